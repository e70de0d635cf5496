//! The agent's own log: to standard error, for people or for programs.
//!
//! In: `RUST_LOG` (default `info`), the format. Absent by design: line content, files, rotation
//! (that is journald's).
//!
//! Names of files and texts of others are told as they are, so what a message has of control characters is
//! made visible: none forges a second message, or steers a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter};

use crate::cli::LogFormat;

/// What may happen for each chunk is told once in this time.
const SELDOM: Duration = Duration::from_secs(10);

/// Keeps what happens again and again from filling the log; a counter tells how often it did.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// Whether to tell it, as the number of times that it was not told since the last.
    pub fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SELDOM) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

/// Begins logging. A second call changes nothing, so that several agents of one process share a log.
pub fn init(format: LogFormat) {
    begin(format, LevelFilter::INFO.into());
}

/// As [`init`], for who tries a filter: where `RUST_LOG` says nothing, all that modules log, and
/// nothing else.
pub fn init_for_modules(format: LogFormat) {
    let modules = "weir::module=debug".parse().expect("a directive that is written here");
    begin(format, modules);
}

fn begin(format: LogFormat, otherwise: Directive) {
    let filter = EnvFilter::builder().with_default_directive(otherwise).from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Visible(io::stderr()));
    let begun = match format {
        LogFormat::Text => {
            builder.compact().with_target(false).with_ansi(io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if begun.is_err() {
        tracing::debug!("logging was begun before");
    }
}

/// Makes control characters visible in what is written: one message a call.
struct Visible<W>(W);

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.0.write_all(&visible(message)).map(|()| message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The message on one line. The colours that the formatter itself puts in stay.
fn visible(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(message);
    let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
    let mut out = String::with_capacity(text.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let taken = colour(rest).unwrap_or(c.len_utf8());
        let (now, later) = rest.split_at(taken);
        let turns =
            |c: char| ('\u{200e}'..='\u{200f}').contains(&c) || ('\u{2028}'..='\u{202e}').contains(&c);
        if taken == c.len_utf8() && (c.is_control() && c != '\t' || turns(c)) {
            out.extend(c.escape_default());
        } else {
            out.push_str(now);
        }
        rest = later;
    }
    out.push_str(end);
    out.into_bytes()
}

/// The length of the colour that `text` begins with: `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some(text.len() - numbers.len() + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_steers_no_terminal() {
        let seen = |text: &str| String::from_utf8(visible(text.as_bytes())).unwrap();
        assert_eq!(seen("plain\ttext é\n"), "plain\ttext é\n");
        assert_eq!(seen("one\nWARN two\r\n"), "one\\nWARN two\\r\n");
        assert_eq!(seen("\x1b[2J\x1b]0;x\x07\u{202e}"), "\\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{202e}");
        assert_eq!(seen("\x1b[2m\x1b[1;31mred\x1b[0m \x1b[31"), "\x1b[2m\x1b[1;31mred\x1b[0m \\u{1b}[31");
        assert_eq!(visible(b"\xff\n"), "\u{fffd}\n".as_bytes());
        let mut out = Vec::new();
        assert_eq!(Visible(&mut out).write(b"a\nb\n").unwrap(), 4);
        assert_eq!(out, b"a\\nb\n");
    }

    #[test]
    fn what_happens_again_and_again_is_told_once_in_a_while_with_how_often_it_was_not() {
        let (begun, mut seldom) = (Instant::now(), Seldom::default());
        let told = [0, 1, 9, 10, 11, 25].map(|after| seldom.tell(begun + Duration::from_secs(after)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
