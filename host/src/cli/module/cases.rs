//! `weir module test --cases`: cases with what is expected of them, from a file that is of no
//! language.
//!
//! In: a module, the cases. Out: each case that fails, with what was found; the sums. Every case
//! has an instance of its own, with the limits of an entry that says nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::sample::context;
use super::test::replacements;
use crate::cli::visible;
use crate::filter::{self, Module, Outcome};

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// What the cases are about, for people.
    #[serde(rename = "about")]
    _about: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// What the module is started with; nothing where it is absent.
    config: Option<Box<RawValue>>,
    /// What the error says with which `init` must fail.
    init_error: Option<String>,
    /// What is passed through, one after the other.
    #[serde(default)]
    batches: Vec<CaseBatch>,
}

/// A batch: `lines`, a newline after each, or `bytes` with `starts` and `ends`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseBatch {
    #[serde(default = "CaseBatch::path")]
    path: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    unix_ms: u64,
    #[serde(default)]
    lines: Vec<Text>,
    bytes: Option<Text>,
    #[serde(default)]
    starts: Vec<u32>,
    #[serde(default)]
    ends: Vec<u32>,
    /// `lines` and `fates` are there so many times.
    #[serde(default = "CaseBatch::once")]
    times: usize,
    fates: Vec<Fate>,
    /// What was logged: a level, a blank, a message.
    logs: Option<Vec<String>>,
    /// What was counted up to and with this batch.
    counts: Option<BTreeMap<String, u64>>,
}

/// Bytes: as text, as hex digits, or as a text that is repeated.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Hex { hex: String },
    Repeated { repeat: String, times: usize },
}

/// What becomes of a line.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    Keep,
    Drop,
    Replace(Vec<Text>),
    /// Refused with this kind of error.
    Refuse(String),
}

impl CaseBatch {
    fn path() -> String {
        "/var/log/app.log".into()
    }

    fn once() -> usize {
        1
    }
}

impl Text {
    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Plain(text) => Ok(text.clone().into_bytes()),
            Self::Repeated { repeat, times } => Ok(repeat.repeat(*times).into_bytes()),
            Self::Hex { hex } => {
                let pairs = hex.as_bytes().chunks(2).map(|pair| {
                    let pair = std::str::from_utf8(pair)?;
                    u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} are no hex digits"))
                });
                pairs.collect()
            }
        }
    }
}

/// Runs the cases of `file`.
pub(super) fn run(module: &Arc<Module>, file: &Path) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let cases: Cases =
        serde_json::from_str(&text).with_context(|| format!("{} is no file of cases", file.display()))?;
    let mut failed = 0;
    for case in &cases.cases {
        let faults = case.run(module).with_context(|| format!("{}: case {}", file.display(), case.name))?;
        if !faults.is_empty() {
            failed += 1;
            println!("FAILED {}", case.name);
            faults.iter().for_each(|fault| println!("  {fault}"));
        }
    }
    println!("{} passed, {failed} failed", cases.cases.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Case {
    /// What is not as it is expected to be.
    fn run(&self, module: &Arc<Module>) -> anyhow::Result<Vec<String>> {
        let config = self.config.as_ref().map(|config| config.get().as_bytes().to_vec());
        let context = context(config.unwrap_or_default())?;
        let heard = Heard::default();
        let ears = tracing_subscriber::registry().with(heard.clone());
        tracing::subscriber::with_default(ears, || {
            let mut filter = match (module.prepare(context), &self.init_error) {
                (Ok(filter), None) => filter,
                (Ok(_), Some(wanted)) => return Ok(vec![format!("init succeeds; it should say {wanted:?}")]),
                (Err(error), wanted) => {
                    let found = format!("{:#}", anyhow::Error::new(error));
                    let fits = wanted.as_ref().is_some_and(|wanted| found.contains(wanted));
                    return Ok(if fits { Vec::new() } else { vec![format!("init fails: {found}")] });
                }
            };
            let mut faults = Vec::new();
            for (number, batch) in self.batches.iter().enumerate() {
                let found = batch.run(&mut filter, &heard)?;
                faults.extend(found.into_iter().map(|fault| format!("batch {}: {fault}", number + 1)));
            }
            Ok(faults)
        })
    }
}

/// The lines of a batch, as the agent has them.
struct Lines {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl CaseBatch {
    fn run(&self, filter: &mut filter::Filter, heard: &Heard) -> anyhow::Result<Vec<String>> {
        let Lines { bytes, starts, ends } = &self.lines()?;
        let batch = filter::Batch {
            path: &self.path,
            offset: self.offset,
            unix_ms: self.unix_ms,
            bytes,
            starts,
            ends,
        };
        heard.take();
        let outcome = filter.process(&batch);
        let mut faults = self.wrong_fates(&outcome, &batch)?;
        let logs = heard.take();
        if self.logs.as_ref().is_some_and(|wanted| *wanted != logs) {
            faults.push(format!("logged {logs:?}, not {:?}", self.logs));
        }
        let counts = filter.counts();
        if self.counts.as_ref().is_some_and(|wanted| *wanted != counts) {
            faults.push(format!("counted {counts:?}, not {:?}", self.counts));
        }
        Ok(faults)
    }

    fn lines(&self) -> anyhow::Result<Lines> {
        if let Some(bytes) = &self.bytes {
            return Ok(Lines { bytes: bytes.bytes()?, starts: self.starts.clone(), ends: self.ends.clone() });
        }
        let mut lines = Lines { bytes: Vec::new(), starts: Vec::new(), ends: Vec::new() };
        for _ in 0..self.times {
            for line in &self.lines {
                lines.starts.push(u32::try_from(lines.bytes.len())?);
                lines.bytes.extend(line.bytes()?);
                lines.ends.push(u32::try_from(lines.bytes.len())?);
                lines.bytes.push(b'\n');
            }
        }
        Ok(lines)
    }

    /// The lines of which became something else than was expected.
    fn wrong_fates(&self, outcome: &Outcome, batch: &filter::Batch<'_>) -> anyhow::Result<Vec<String>> {
        let wanted = std::iter::repeat_n(&self.fates, self.times).flatten();
        let wanted: Vec<String> = wanted.map(Fate::shown).collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(
            wanted.len() == batch.starts.len(),
            "{} fates for {} lines",
            wanted.len(),
            batch.starts.len()
        );
        let found = found(outcome);
        let lines = batch.starts.iter().zip(batch.ends).map(|(start, end)| *start as usize..*end as usize);
        let wrong = lines.zip(wanted.iter().zip(&found)).filter(|(_, (wanted, found))| wanted != found);
        let tell = |(line, (wanted, found))| {
            let line = visible::line(&batch.bytes[line]).to_string();
            format!("{line:?}: {found}; expected: {wanted}")
        };
        Ok(wrong.map(tell).collect())
    }
}

impl Fate {
    fn shown(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Keep => "keep".into(),
            Self::Drop => "drop".into(),
            Self::Refuse(kind) => format!("refuse {kind}"),
            Self::Replace(lines) => {
                let lines: Vec<_> = lines.iter().map(Text::bytes).collect::<anyhow::Result<_>>()?;
                replaced(lines.iter().map(Vec::as_slice))
            }
        })
    }
}

/// What became of each line, in the words of [`Fate::shown`].
fn found(outcome: &Outcome) -> Vec<String> {
    let mut refused = outcome.refused.iter();
    let mut written = replacements(outcome);
    let fate = |verdict: &u8| match verdict {
        0 => "drop".into(),
        1 => "keep".into(),
        255 => format!("refuse {}", refused.next().map_or("", |refused| refused.kind.as_str())),
        lines => replaced(written.by_ref().take(usize::from(lines - 1))),
    };
    outcome.verdicts.iter().map(fate).collect()
}

fn replaced<'a>(lines: impl Iterator<Item = &'a [u8]>) -> String {
    let lines: Vec<_> = lines.map(|line| format!("{:?}", line.escape_ascii().to_string())).collect();
    format!("replace [{}]", lines.join(", "))
}

/// What a module logs.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _ctx: Context<'_, S>) {
        struct Message(String);

        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }

        let metadata = event.metadata();
        if metadata.target() == "weir::module" {
            let mut message = Message(String::new());
            event.record(&mut message);
            let said = format!("{} {}", metadata.level().as_str().to_lowercase(), message.0);
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::module::sample::load;
    use crate::filter::Compiler;
    use weir_tests::{guests, workspace};

    fn faults(module: &str, cases: &str) -> Vec<String> {
        let module = load(&guests::path(module), Compiler::InProcess).unwrap();
        let cases: Cases = serde_json::from_str(cases).unwrap();
        cases.cases.iter().flat_map(|case| case.run(&module).unwrap()).collect()
    }

    fn kit(file: &str) -> String {
        std::fs::read_to_string(workspace().join("conformance").join(file)).unwrap()
    }

    #[test]
    fn the_reference_filter_in_rust_conforms() {
        assert_eq!(faults("conformance_rust", &kit("cases.json")), [""; 0]);
    }

    #[test]
    fn what_no_filter_may_do_is_refused() {
        assert_eq!(faults("guest_misbehave", &kit("hostile.json")), [""; 0]);
    }

    #[test]
    fn a_filter_that_does_something_else_is_found_out() {
        let found = faults("drop_debug", &kit("cases.json"));
        assert!(found.len() > 10, "{found:?}");
        let case = |expected: &str| {
            format!(
                r#"{{"about": "", "cases": [{{"name": "x", "batches": [{{"lines": ["DEBUG"], {expected}}}]}}]}}"#
            )
        };
        assert_eq!(faults("drop_debug", &case(r#""fates": ["drop"]"#)), [""; 0]);
        let wrong = [
            (r#""fates": ["keep"]"#, r#"batch 1: "DEBUG": drop; expected: keep"#),
            (r#""fates": [{"replace": ["a"]}]"#, r#"batch 1: "DEBUG": drop; expected: replace ["a"]"#),
            (r#""fates": ["drop"], "logs": ["info x"]"#, r#"batch 1: logged [], not Some(["info x"])"#),
            (r#""fates": ["drop"], "counts": {"x": 1}"#, r#"batch 1: counted {}, not Some({"x": 1})"#),
        ];
        for (expected, fault) in wrong {
            assert_eq!(faults("drop_debug", &case(expected)), [fault]);
        }
        let error = r#"{"about": "", "cases": [{"name": "x", "init_error": "no"}]}"#;
        assert_eq!(faults("drop_debug", error), [r#"init succeeds; it should say "no""#]);
    }
}
