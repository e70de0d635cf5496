//! `weir tap`: the lines of an entry as they pass its filter, before and after.
//!
//! In: what this host's agent shows on its socket. Out: text as `weir module test` prints it, or JSON.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;

use super::Common;
use super::list::runtime;
use super::status::{NO_ANSWER, socket};
use super::visible::{colours, line, plain};
use super::words::count;
use crate::admin::AdminError;
use crate::admin::tap::{Told, follow_tap};
use crate::tap::{Seen, Verdict, Wants};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Two blanks stand before a line that is kept, `-` before one that is dropped or replaced, `+` before what stands
for it, `!` before one that is refused, with the cause. Empty lines are left out by the agent before the filter.
What steers a terminal is made visible.

Looking cannot slow the agent: it shows at most 2,000 lines a second, and does not wait for whoever looks. How
many lines passed unseen is said on standard error. Of a line the first 4,096 bytes are shown.

Examples:
  weir tap app
  weir tap app --dropped -n 10")]
pub struct TapArgs {
    /// The entry's name; its path where it has none
    #[arg(value_name = "ENTRY")]
    entry: String,
    /// Only lines that the filter drops; with --rewritten, both
    #[arg(long)]
    dropped: bool,
    /// Only lines that the filter replaces
    #[arg(long)]
    rewritten: bool,
    /// End after so many lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    number: u64,
    /// Print an object a line, for programs
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(common: &Common, args: TapArgs) -> anyhow::Result<ExitCode> {
    let socket = socket(common)?;
    let wants = Wants { dropped: args.dropped, rewritten: args.rewritten };
    let mut show =
        Show { out: io::stdout().lock(), json: args.json, colours: colours(), path: String::new() };
    let mut left = args.number;
    let mut failed = None;
    let take = |told| {
        let shown = match told {
            Told::Line(seen) => {
                left = left.saturating_sub(1);
                show.line(&seen)
            }
            Told::PassedOver(0) => Ok(()),
            Told::PassedOver(lines) => {
                eprintln!("({} passed unseen)", count(lines, "line", "lines"));
                Ok(())
            }
        };
        failed = shown.err();
        failed.is_none() && left > 0
    };
    let followed = runtime()?.block_on(follow_tap(&socket, &args.entry, wants, take));
    match failed {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("writing lines");
        }
        Some(_) => return Ok(ExitCode::SUCCESS),
        None => {}
    }
    match followed {
        Err(error @ AdminError::Silent { .. }) => Err(error).context(NO_ANSWER),
        followed => {
            followed?;
            if left > 0 {
                eprintln!("the entry is gone from the list, or the agent stopped");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints lines, and the file where it is another than before.
struct Show<W> {
    out: W,
    json: bool,
    colours: bool,
    path: String,
}

impl<W: Write> Show<W> {
    fn line(&mut self, seen: &Seen) -> io::Result<()> {
        if self.json {
            writeln!(self.out, "{}", json(seen))?;
            return self.out.flush();
        }
        if seen.path != self.path {
            self.path.clone_from(&seen.path);
            writeln!(self.out, "== {}", plain(&seen.path))?;
        }
        match seen.verdict {
            Verdict::Kept => self.mark(' ', None, &seen.before)?,
            Verdict::Dropped => self.mark('-', Some(31), &seen.before)?,
            Verdict::Rewritten => {
                self.mark('-', Some(31), &seen.before)?;
                for after in &seen.after {
                    self.mark('+', Some(32), after)?;
                }
            }
            Verdict::Refused => {
                self.mark('!', Some(33), &seen.before)?;
                self.mark('!', Some(33), format!("  {}", seen.cause).as_bytes())?;
            }
        }
        if seen.cut {
            writeln!(self.out, "  … (cut)")?;
        }
        self.out.flush()
    }

    fn mark(&mut self, mark: char, colour: Option<u8>, text: &[u8]) -> io::Result<()> {
        let text = line(text);
        match colour.filter(|_| self.colours) {
            Some(colour) => writeln!(self.out, "\x1b[{colour}m{mark} {text}\x1b[0m"),
            None => writeln!(self.out, "{mark} {text}"),
        }
    }
}

/// Bytes that are no UTF-8 come as U+FFFD.
fn json(seen: &Seen) -> serde_json::Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let after: Vec<_> = seen.after.iter().map(|after| text(after)).collect();
    serde_json::json!({
        "path": seen.path, "offset": seen.offset, "verdict": seen.verdict, "cause": seen.cause,
        "before": text(&seen.before), "after": after, "cut": seen.cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_steers_the_terminal() {
        let evil = b"a\x1b[2J\r\xff\n\x07".to_vec();
        let mut show = Show { out: Vec::new(), json: false, colours: false, path: String::new() };
        for verdict in [Verdict::Kept, Verdict::Dropped, Verdict::Rewritten, Verdict::Refused] {
            let seen = Seen {
                path: "/a\x1b".into(),
                offset: 0,
                verdict,
                cause: "trap: \x1b".into(),
                before: evil.clone(),
                after: vec![evil.clone()],
                cut: false,
            };
            show.line(&seen).unwrap();
            assert!(!json(&seen).to_string().contains('\x1b'));
        }
        let shown = String::from_utf8(show.out).unwrap();
        let visible = r"a\u{1b}[2J\r\xff\n\u{7}";
        let expected = format!(
            "== /a\\u{{1b}}\n  {visible}\n- {visible}\n- {visible}\n+ {visible}\n! {visible}\n!   trap: \\u{{1b}}\n"
        );
        assert_eq!(shown, expected);
    }
}
