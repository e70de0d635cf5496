//! `weir module bench`: what a module costs, on lines of its author's.
//!
//! In: a module, a log. Out: its time and memory as parts of what it may take, and next to the
//! identity filter on the same batches, in the same engine, in turns. What that one costs every filter
//! pays: the batch is copied into the sandbox, and a verdict a line comes back.

use std::hint::black_box;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::{BinaryBytes, HumanCount};

use super::foreign;
use super::sample::{Cached, Sample, Tried, compile, context};
use crate::cli::Common;
use crate::filter::{Compiler, Filter};
use crate::model::{FILTER_MEMORY, FILTER_TIMEOUT};
use crate::telemetry;

/// A smaller sample is repeated to this size, so that there are batches as on a busy host. Bytes.
const SAMPLE_BYTES_MIN: usize = 4 << 20;
/// How long is measured.
const MEASURE: Duration = Duration::from_secs(2);
/// And over how many passes at least: their median is shown.
const PASSES_MIN: usize = 5;

/// The filter that keeps every line, and does nothing else.
const IDENTITY: &str = include_str!("identity.wat");

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module bench target/weir/redact.wasm app.log --with-config '{\"fields\": [\"password\"]}'

It runs for some seconds on one core and prints the median of several passes over the log; a log
below 4 MiB is repeated. Times are CPU time, with all that the agent does around a call. The identity
filter next to it keeps every line and does nothing else; it runs on the same batches, in turns.")]
pub struct BenchArgs {
    /// The module.
    #[command(flatten)]
    tried: Tried,
    /// A log
    file: PathBuf,
}

/// Runs it.
pub fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<ExitCode> {
    telemetry::init_for_modules(common.log_format);
    let sample = Sample::read_at_least(&args.file, SAMPLE_BYTES_MIN)?;
    ensure!(sample.batches().any(|batch| !batch.starts.is_empty()), "{} has no lines", args.file.display());
    let (mut filter, started) = start(&args.tried, Compiler::this_program())?;
    // Finding bad lines takes a second a batch, and is not what is to be measured.
    let fails = sample.batches().take(1).any(|batch| filter.process(&batch).broken_batches > 0);
    ensure!(!fails, "the module fails on lines of {}; weir module test shows which", args.file.display());
    let figures = measure(&mut filter, &mut identity()?, &sample, started, MEASURE);
    std::io::stdout().lock().write_all(figures.text().as_bytes())?;
    if cfg!(debug_assertions) {
        eprintln!("This weir was built without optimisation: the times of a release are shorter.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The filter that keeps everything.
fn identity() -> anyhow::Result<Filter> {
    let module = foreign::component(&wat::parse_str(IDENTITY)?)?.component;
    let module = compile(Path::new("the identity filter"), &module, FILTER_MEMORY, Compiler::InProcess)?;
    Ok(module.prepare(context(Vec::new())?)?)
}

/// How long it takes until a module is at work.
#[derive(Clone, Copy, Debug)]
struct Started {
    /// On an agent that has never had it, its fetch aside.
    compiled: Duration,
    /// From then on.
    cached: Duration,
}

/// Starts it twice, as two agents would one after the other on the same cache.
fn start(tried: &Tried, compiler: Compiler) -> anyhow::Result<(Filter, Started)> {
    let bytes =
        std::fs::read(&tried.wasm).with_context(|| format!("cannot read {}", tried.wasm.display()))?;
    let cached = Cached::new(&tried.wasm, &bytes)?;
    let once = || -> anyhow::Result<(Filter, Duration)> {
        let begun = Instant::now();
        let module = cached.load(FILTER_MEMORY, compiler.clone())?;
        Ok((tried.start(&module, tried.context()?)?, begun.elapsed()))
    };
    let (_, first) = once()?;
    let (filter, again) = once()?;
    Ok((filter, Started { compiled: first, cached: again }))
}

/// What was measured.
#[derive(Debug)]
struct Figures {
    started: Started,
    /// Of the sample.
    lines: u64,
    bytes: u64,
    batches: usize,
    /// In a pass.
    refused: u64,
    /// CPU time of a pass: the median.
    module: Duration,
    identity: Duration,
    /// Of the batches of all passes.
    p99: Duration,
    /// Of the instance. Bytes.
    memory: u64,
}

fn measure(
    filter: &mut Filter,
    identity: &mut Filter,
    sample: &Sample,
    started: Started,
    length: Duration,
) -> Figures {
    let (mut modules, mut identities, mut batches, mut refused) = (Vec::new(), Vec::new(), Vec::new(), 0);
    // The first pass is not measured: memories grow in it.
    sample.batches().for_each(|batch| _ = (filter.process(&batch), identity.process(&batch)));
    let begun = Instant::now();
    while begun.elapsed() < length || modules.len() < PASSES_MIN {
        refused = 0;
        let from = batches.len();
        for batch in sample.batches() {
            let outcome = black_box(filter.process(&batch));
            refused += outcome.refused.len() as u64;
            batches.push(outcome.cpu);
        }
        modules.push(batches[from..].iter().sum());
        identities.push(sample.batches().map(|batch| black_box(identity.process(&batch)).cpu).sum());
    }
    Figures {
        started,
        lines: sample.batches().map(|batch| batch.starts.len() as u64).sum(),
        bytes: sample.batches().map(|batch| batch.bytes.len() as u64).sum(),
        batches: sample.batches().count(),
        refused,
        module: quantile(&mut modules, 50),
        identity: quantile(&mut identities, 50),
        p99: quantile(&mut batches, 99),
        memory: filter.memory(),
    }
}

/// The smallest duration that so many percent are not above.
fn quantile(durations: &mut [Duration], percent: usize) -> Duration {
    durations.sort_unstable();
    let rank = (durations.len() * percent).div_ceil(100).max(1);
    durations.get(rank - 1).copied().unwrap_or_default()
}

impl Figures {
    /// Ratios first: they hold on other machines too.
    fn text(&self) -> String {
        let seconds = |time: Duration| time.as_secs_f64().max(f64::MIN_POSITIVE);
        let ns = |time: Duration| seconds(time) * 1e9 / self.lines as f64;
        let per_second = |what: u64| HumanCount((what as f64 / seconds(self.module)) as u64);
        let percent = |part: f64, whole: f64| 100.0 * part / whole;
        let ms = |time: Duration| seconds(time) * 1e3;
        let mut text = format!(
            "{:6.1} times the identity filter\n\
             {:6.2} % of the time a batch may take, at p99\n\
             {:6.2} % of the memory it may have\n\n",
            seconds(self.module) / seconds(self.identity),
            percent(seconds(self.p99), seconds(FILTER_TIMEOUT)),
            percent(self.memory as f64, FILTER_MEMORY as f64),
        );
        let rows = [
            ("a line", format!("{:.1} ns (identity {:.1} ns)", ns(self.module), ns(self.identity))),
            (
                "a core",
                format!("{} lines/s, {} MB/s", per_second(self.lines), per_second(self.bytes / 1_000_000)),
            ),
            ("a batch", format!("{:.3} ms at p99, of {} ms", ms(self.p99), FILTER_TIMEOUT.as_millis())),
            ("memory", format!("{} of {}", BinaryBytes(self.memory), BinaryBytes(FILTER_MEMORY))),
            (
                "start",
                format!(
                    "{:.1} ms compiled once, then {:.1} ms",
                    ms(self.started.compiled),
                    ms(self.started.cached)
                ),
            ),
            (
                "sample",
                format!(
                    "{} lines of {} bytes, {} batches",
                    HumanCount(self.lines),
                    self.bytes / self.lines.max(1),
                    HumanCount(self.batches as u64)
                ),
            ),
        ];
        rows.iter().for_each(|(name, value)| text.push_str(&format!("{name:7}  {value}\n")));
        if self.refused > 0 {
            text.push_str(&format!(
                "{} lines were refused, and finding them costs most; weir module test shows them\n",
                HumanCount(self.refused)
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_tests::guests;

    fn measured(module: &str, log: &str) -> Figures {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.log");
        std::fs::write(&file, log).unwrap();
        let tried = Tried { wasm: guests::path(module), with_config: None };
        let sample = Sample::read_at_least(&file, 100_000).unwrap();
        let (mut filter, started) = start(&tried, Compiler::InProcess).unwrap();
        measure(&mut filter, &mut identity().unwrap(), &sample, started, Duration::ZERO)
    }

    #[test]
    fn a_filter_costs_time_and_memory_and_more_than_the_identity() {
        let figures = measured("drop_debug", "DEBUG a\nINFO b");
        assert_eq!((figures.lines, figures.refused), (2 * 100_000_u64.div_ceil(15), 0));
        assert!(figures.module > figures.identity && !figures.identity.is_zero(), "{figures:?}");
        assert!(figures.p99 <= figures.module && !figures.p99.is_zero(), "{figures:?}");
        assert!((65_536..FILTER_MEMORY).contains(&figures.memory), "{figures:?}");
    }

    #[test]
    fn the_identity_filter_keeps_every_line_and_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.log");
        std::fs::write(&file, "line\n".repeat(100_000)).unwrap();
        let (sample, mut identity) = (Sample::read(&file).unwrap(), identity().unwrap());
        for batch in sample.batches() {
            let outcome = identity.process(&batch);
            assert!(outcome.verdicts == vec![1; batch.starts.len()] && outcome.ends.is_empty());
        }
        assert!(identity.memory() < 1 << 20, "its memory is free again after each batch");
    }

    #[test]
    fn a_module_with_much_code_starts_many_times_faster_from_the_cache() {
        let body = "(local.set 0 (i32.xor (i32.mul (local.get 0) (i32.const 31)) (i32.const 7)))".repeat(20);
        let code: String =
            (0..3000).map(|_| format!("(func (param i32) (result i32) {body} (local.get 0))")).collect();
        let end = IDENTITY.rfind(')').unwrap();
        let module =
            foreign::component(&wat::parse_str(format!("{} {code})", &IDENTITY[..end])).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let wasm = dir.path().join("large.wasm");
        std::fs::write(&wasm, module.component).unwrap();
        let (_, started) = start(&Tried { wasm, with_config: None }, Compiler::InProcess).unwrap();
        assert!(started.compiled > started.cached * 5, "{started:?}");
    }

    #[test]
    fn the_text_begins_with_ratios_and_tells_of_refused_lines() {
        let figures = Figures {
            started: Started { compiled: Duration::from_secs(1), cached: Duration::from_millis(2) },
            lines: 1_000_000,
            bytes: 100_000_000,
            batches: 400,
            refused: 3,
            module: Duration::from_millis(50),
            identity: Duration::from_millis(10),
            p99: Duration::from_micros(250),
            memory: FILTER_MEMORY / 32,
        };
        assert_eq!(
            figures.text(),
            "   5.0 times the identity filter\n\
             \x20 0.25 % of the time a batch may take, at p99\n\
             \x20 3.12 % of the memory it may have\n\
             \n\
             a line   50.0 ns (identity 10.0 ns)\n\
             a core   20,000,000 lines/s, 2,000 MB/s\n\
             a batch  0.250 ms at p99, of 100 ms\n\
             memory   1.00 MiB of 32.00 MiB\n\
             start    1000.0 ms compiled once, then 2.0 ms\n\
             sample   1,000,000 lines of 100 bytes, 400 batches\n\
             3 lines were refused, and finding them costs most; weir module test shows them\n"
        );
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut values, 99), Duration::from_millis(198));
        assert_eq!(quantile(&mut values, 50), Duration::from_millis(100));
        assert_eq!(quantile(&mut values[..1], 99), Duration::from_millis(1));
    }
}
