//! `weir module bench`: what a module costs, on lines of its author's.
//!
//! In: a module, a log. Out: its time and memory as parts of what it may take, and next to a bare
//! copy of the same batches. That copy is the measure since every filter pays for it: the batch is
//! copied into the sandbox, and a verdict a line comes back. A filter that keeps everything would
//! be another measure, but one that changes with its compiler.

use std::hint::black_box;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use indicatif::{BinaryBytes, HumanCount};

use super::sample::{Sample, Tried};
use crate::cli::Common;
use crate::filter::{Batch, Compiler, Filter};
use crate::model::{FILTER_MEMORY, FILTER_TIMEOUT};
use crate::telemetry;

/// A smaller sample is repeated to this size, so that there are batches as on a busy host. Bytes.
const SAMPLE_BYTES_MIN: usize = 4 << 20;
/// How long is measured.
const MEASURE: Duration = Duration::from_secs(2);
/// And over how many passes at least: their median is shown.
const PASSES_MIN: usize = 5;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module bench target/weir/redact.wasm app.log --with-config '{\"fields\": [\"password\"]}'

It runs for some seconds on one core and prints the median of several passes over the log; a log
below 4 MiB is repeated. Times are CPU time, with all that the agent does around a call. The bare
copy next to it is what the fastest filter pays: a copy of the batch, and a verdict a line.")]
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
    let mut filter = args.tried.filter(Compiler::this_program())?;
    // Finding bad lines takes a second a batch, and is not what is to be measured.
    let fails = sample.batches().take(1).any(|batch| filter.process(&batch).broken_batches > 0);
    ensure!(!fails, "the module fails on lines of {}; weir module test shows which", args.file.display());
    let figures = measure(&mut filter, &sample, MEASURE);
    std::io::stdout().lock().write_all(figures.text().as_bytes())?;
    if cfg!(debug_assertions) {
        eprintln!("This weir was built without optimisation: the times of a release are shorter.");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured.
#[derive(Debug)]
struct Figures {
    /// Of the sample.
    lines: u64,
    bytes: u64,
    batches: usize,
    /// In a pass.
    refused: u64,
    /// CPU time of a pass: the median.
    module: Duration,
    copy: Duration,
    /// Of the batches of all passes.
    p99: Duration,
    /// Of the instance. Bytes.
    memory: u64,
}

fn measure(filter: &mut Filter, sample: &Sample, length: Duration) -> Figures {
    let (mut modules, mut copies, mut batches, mut refused) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut buffers = Copy::default();
    // The first pass is not measured: memories grow in it.
    sample.batches().for_each(|batch| _ = (filter.process(&batch), buffers.take(&batch)));
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
        let copying = Instant::now();
        sample.batches().for_each(|batch| buffers.take(&batch));
        copies.push(copying.elapsed());
    }
    Figures {
        lines: sample.batches().map(|batch| batch.starts.len() as u64).sum(),
        bytes: sample.batches().map(|batch| batch.bytes.len() as u64).sum(),
        batches: sample.batches().count(),
        refused,
        module: quantile(&mut modules, 50),
        copy: quantile(&mut copies, 50),
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

/// What a batch is copied into.
#[derive(Default)]
struct Copy {
    bytes: Vec<u8>,
    places: Vec<u32>,
    verdicts: Vec<u8>,
}

impl Copy {
    fn take(&mut self, batch: &Batch<'_>) {
        let Self { bytes, places, verdicts } = self;
        bytes.clear();
        places.clear();
        verdicts.clear();
        bytes.extend_from_slice(batch.bytes);
        places.extend_from_slice(batch.starts);
        places.extend_from_slice(batch.ends);
        verdicts.resize(batch.starts.len(), 1);
        black_box(self);
    }
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
            "{:6.1} times a bare copy of the batches\n\
             {:6.2} % of the time a batch may take, at p99\n\
             {:6.2} % of the memory it may have\n\n",
            seconds(self.module) / seconds(self.copy),
            percent(seconds(self.p99), seconds(FILTER_TIMEOUT)),
            percent(self.memory as f64, FILTER_MEMORY as f64),
        );
        let rows = [
            ("a line", format!("{:.1} ns (bare copy {:.1} ns)", ns(self.module), ns(self.copy))),
            (
                "a core",
                format!("{} lines/s, {} MB/s", per_second(self.lines), per_second(self.bytes / 1_000_000)),
            ),
            ("a batch", format!("{:.3} ms at p99, of {} ms", ms(self.p99), FILTER_TIMEOUT.as_millis())),
            ("memory", format!("{} of {}", BinaryBytes(self.memory), BinaryBytes(FILTER_MEMORY))),
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
        measure(&mut tried.filter(Compiler::InProcess).unwrap(), &sample, Duration::ZERO)
    }

    #[test]
    fn a_filter_costs_time_and_memory_and_more_than_a_copy() {
        let figures = measured("drop_debug", "DEBUG a\nINFO b");
        assert_eq!((figures.lines, figures.refused), (2 * 100_000_u64.div_ceil(15), 0));
        assert!(figures.module > figures.copy && !figures.copy.is_zero(), "{figures:?}");
        assert!(figures.p99 <= figures.module && !figures.p99.is_zero(), "{figures:?}");
        assert!((65_536..FILTER_MEMORY).contains(&figures.memory), "{figures:?}");
    }

    #[test]
    fn the_text_begins_with_ratios_and_tells_of_refused_lines() {
        let figures = Figures {
            lines: 1_000_000,
            bytes: 100_000_000,
            batches: 400,
            refused: 3,
            module: Duration::from_millis(50),
            copy: Duration::from_millis(10),
            p99: Duration::from_micros(250),
            memory: FILTER_MEMORY / 32,
        };
        assert_eq!(
            figures.text(),
            "   5.0 times a bare copy of the batches\n\
             \x20 0.25 % of the time a batch may take, at p99\n\
             \x20 3.12 % of the memory it may have\n\
             \n\
             a line   50.0 ns (bare copy 10.0 ns)\n\
             a core   20,000,000 lines/s, 2,000 MB/s\n\
             a batch  0.250 ms at p99, of 100 ms\n\
             memory   1.00 MiB of 32.00 MiB\n\
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
