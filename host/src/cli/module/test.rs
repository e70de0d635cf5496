//! `weir module test`: the lines of files through the real engine, before and after.
//!
//! In: a module, files, perhaps what is expected. Out: every line with what became of it, and the
//! sums; or the difference from what is expected. Absent by design: time, which differs from run
//! to run (`weir module bench` measures it).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use similar::TextDiff;

use super::cases;
use super::sample::{Sample, Tried, load};
use crate::cli::{Common, visible};
use crate::filter::{Batch, Compiler, Filter, Outcome};
use crate::telemetry;

/// Lines around a difference.
const CONTEXT: usize = 3;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir module test target/weir/redact.wasm app.log --with-config '{\"fields\": [\"password\"]}'
  weir module test target/weir/quiet.wasm sample.log > sample.expected
  weir module test target/weir/quiet.wasm sample.log --expect sample.expected
  weir module test filter.wasm --cases conformance/cases.json

    a line that is kept
  - a line that is dropped
  - a line that is replaced, before
  + and after (there may be several)
  ! a line that is refused: the filter failed on it, or set it aside
  !   why

The lines go through the engine of the agent, in its batches and with its limits: 100 ms of CPU time
a batch, 32 MiB. What the module logs is on standard error. Control characters are shown as \\u{1b},
bytes that are no UTF-8 as \\xff. The clock stands still, so the same lines give the same output: keep
it in a file, and let your CI compare it with --expect, which exits 1 and shows the difference.")]
pub struct TestArgs {
    /// The module.
    #[command(flatten)]
    tried: Tried,
    /// Logs
    #[arg(required_unless_present = "cases")]
    file: Vec<PathBuf>,
    /// What the output should be; nothing but the difference is shown
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Cases with their configurations and what is expected, as in weir's conformance kit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "expect", "with_config"])]
    cases: Option<PathBuf>,
}

/// Runs it.
pub fn run(common: &Common, args: &TestArgs) -> anyhow::Result<ExitCode> {
    if let Some(file) = &args.cases {
        let module = load(&args.tried.wasm, Compiler::this_program())?;
        return cases::run(&module, file);
    }
    telemetry::init_for_modules(common.log_format);
    let filter = args.tried.filter(Compiler::this_program())?;
    let Some(expect) = &args.expect else {
        let stdout = io::BufWriter::new(io::stdout().lock());
        let mut show = Show { out: stdout, colours: visible::colours(), sums: Sums::default() };
        return match show.files(filter, &args.file) {
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            done => done.map(|()| ExitCode::SUCCESS),
        };
    };
    let how = || format!("where the new output is right, write it: {}", args.command());
    let expected = std::fs::read_to_string(expect)
        .with_context(|| format!("cannot read {}; {}", expect.display(), how()))?;
    let mut show = Show { out: Vec::new(), colours: false, sums: Sums::default() };
    show.files(filter, &args.file)?;
    let found = String::from_utf8_lossy(&show.out);
    if found == expected {
        println!("as in {}: {}", expect.display(), show.sums);
        return Ok(ExitCode::SUCCESS);
    }
    io::stdout().lock().write_all(difference(expect, &expected, &found).as_bytes())?;
    bail!("the output is not the one in {}; {}", expect.display(), how())
}

/// The lines of a file with what became of them, as `test` shows them.
pub(super) fn shown(filter: Filter, file: &Path, colours: bool) -> anyhow::Result<String> {
    let mut show = Show { out: Vec::new(), colours, sums: Sums::default() };
    show.files(filter, &[file.to_owned()])?;
    Ok(String::from_utf8_lossy(&show.out).into_owned())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn difference(expect: &Path, expected: &str, found: &str) -> String {
    let name = expect.display().to_string();
    let difference = TextDiff::from_lines(expected, found);
    difference.unified_diff().context_radius(CONTEXT).header(&name, "found").to_string()
}

impl TestArgs {
    /// The command that writes what is expected.
    fn command(&self) -> String {
        let mut words = vec!["weir module test".to_owned(), shell(&self.tried.wasm.to_string_lossy())];
        words.extend(self.file.iter().map(|file| shell(&file.to_string_lossy())));
        if let Some(config) = &self.tried.with_config {
            words.extend(["--with-config".into(), shell(config)]);
        }
        let file = self.expect.as_deref().unwrap_or(Path::new("FILE"));
        words.extend([">".into(), shell(&file.to_string_lossy())]);
        words.join(" ")
    }
}

/// A word as a shell takes it.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What became of the lines, in numbers.
#[derive(Debug, Default)]
struct Sums {
    lines: u64,
    kept: u64,
    dropped: u64,
    replaced: u64,
    replacements: u64,
    skipped: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lines, kept, dropped, replaced, replacements, skipped, refused } = self;
        write!(f, "{lines} lines: {kept} kept, {dropped} dropped, {replaced} replaced")?;
        if replaced != replacements {
            write!(f, " by {replacements}")?;
        }
        write!(f, ", {} refused", refused.values().sum::<u64>())?;
        if !refused.is_empty() {
            let kinds: Vec<_> = refused.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            write!(f, " ({})", kinds.join(", "))?;
        }
        if *skipped > 0 { write!(f, "; {skipped} empty left out") } else { Ok(()) }
    }
}

/// Shows lines as they come out of the filter.
struct Show<W> {
    out: W,
    colours: bool,
    sums: Sums,
}

#[derive(Clone, Copy)]
enum Mark {
    Kept,
    Before,
    After,
    Refused,
}

impl<W: Write> Show<W> {
    fn files(&mut self, mut filter: Filter, files: &[PathBuf]) -> anyhow::Result<()> {
        for file in files {
            let sample = Sample::read(file)?;
            if files.len() > 1 {
                writeln!(self.out, "== {}", visible::plain(&sample.path))?;
            }
            self.sums.skipped += sample.skipped();
            for batch in sample.batches() {
                filter.process_all(&batch, |batch, outcome| self.batch(batch, &outcome))?;
            }
        }
        writeln!(self.out, "\n{}", self.sums)?;
        let counts = filter.counts();
        if !counts.is_empty() {
            let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(self.out, "counted: {}", counts.join(", "))?;
        }
        Ok(self.out.flush()?)
    }

    fn batch(&mut self, batch: &Batch<'_>, outcome: &Outcome) -> io::Result<()> {
        let mut refused = outcome.refused.iter();
        let mut written = replacements(outcome);
        for (line, verdict) in outcome.verdicts.iter().enumerate() {
            let text = &batch.bytes[batch.starts[line] as usize..batch.ends[line] as usize];
            self.sums.lines += 1;
            match verdict {
                0 => {
                    self.sums.dropped += 1;
                    self.line(Mark::Before, text)?;
                }
                1 => {
                    self.sums.kept += 1;
                    self.line(Mark::Kept, text)?;
                }
                255 => {
                    self.line(Mark::Refused, text)?;
                    if let Some(why) = refused.next() {
                        *self.sums.refused.entry(why.kind.as_str()).or_default() += 1;
                        let why = format!("  {}: {}", why.kind.as_str(), why.message);
                        self.line(Mark::Refused, why.as_bytes())?;
                    }
                }
                more => {
                    self.sums.replaced += 1;
                    self.line(Mark::Before, text)?;
                    for text in written.by_ref().take(usize::from(more - 1)) {
                        self.sums.replacements += 1;
                        self.line(Mark::After, text)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, mark: Mark, text: &[u8]) -> io::Result<()> {
        let (mark, colour) = match mark {
            Mark::Kept => (' ', None),
            Mark::Before => ('-', Some(31)),
            Mark::After => ('+', Some(32)),
            Mark::Refused => ('!', Some(33)),
        };
        let text = visible::line(text);
        match colour.filter(|_| self.colours) {
            Some(colour) => writeln!(self.out, "\x1b[{colour}m{mark} {text}\x1b[0m"),
            None => writeln!(self.out, "{mark} {text}"),
        }
    }
}

/// The replacement lines of a batch, one after the other.
pub(super) fn replacements(outcome: &Outcome) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    outcome.ends.iter().map(move |end| {
        let end = *end as usize;
        &outcome.bytes[std::mem::replace(&mut start, end)..end]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_tests::guests;

    fn shown(module: &str, config: &str, log: &[u8], colours: bool) -> anyhow::Result<String> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.log");
        std::fs::write(&file, log)?;
        let tried = Tried { wasm: guests::path(module), with_config: Some(config.into()) };
        let mut show = Show { out: Vec::new(), colours, sums: Sums::default() };
        show.files(tried.filter(Compiler::InProcess)?, &[file])?;
        Ok(String::from_utf8(show.out)?)
    }

    #[test]
    fn each_line_is_shown_with_what_became_of_it() {
        let log = b"{\"a\":1}\n{\"b\":2,\"a\":\"\\u001b\"}\n\ngarbage\x1b[2J\xff\n";
        assert_eq!(
            shown("json_fields", r#"{"remove":["b"]}"#, log, false).unwrap(),
            "- {\"a\":1}\n\
             + {\"a\":1}\n\
             - {\"b\":2,\"a\":\"\\u001b\"}\n\
             + {\"a\":\"\\u001b\"}\n\
             ! garbage\\u{1b}[2J\\xff\n\
             !   set-aside: set aside by the module\n\
             \n\
             3 lines: 0 kept, 0 dropped, 2 replaced, 1 refused (1 set-aside); 1 empty left out\n"
        );
    }

    #[test]
    fn colours_are_for_terminals() {
        let text = shown("drop_debug", "null", b"INFO a\nDEBUG b\n", true).unwrap();
        assert!(text.starts_with("  INFO a\n\x1b[31m- DEBUG b\x1b[0m\n"), "{text:?}");
        let text = shown("drop_debug", "null", b"INFO a\nDEBUG b\n", false).unwrap();
        assert_eq!(text, "  INFO a\n- DEBUG b\n\n2 lines: 1 kept, 1 dropped, 0 replaced, 0 refused\n");
    }

    #[test]
    fn a_config_that_is_bad_is_refused_in_the_words_of_whoever_refuses_it() {
        let error = |config| format!("{:#}", shown("redact", config, b"", false).unwrap_err());
        let (no_json, no_fields) = (error("{"), error("{}"));
        assert!(no_json.contains("--with-config is no JSON: EOF"), "{no_json}");
        assert!(no_fields.contains("`fields` or `patterns`"), "{no_fields}");
    }

    #[test]
    fn a_word_for_the_shell_is_quoted_where_it_must_be() {
        assert_eq!(shell("a/b-1.log"), "a/b-1.log");
        assert_eq!(shell(r#"{"a": "it's"}"#), r#"'{"a": "it'\''s"}'"#);
    }
}
