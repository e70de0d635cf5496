//! The agent's own log: to standard error, for people or for programs.
//!
//! In: `RUST_LOG` (default `info`), the format. Absent by design: line content, files, rotation
//! (that is journald's).

use std::io::{self, IsTerminal};
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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_and_again_is_told_once_in_a_while_with_how_often_it_was_not() {
        let (begun, mut seldom) = (Instant::now(), Seldom::default());
        let told = [0, 1, 9, 10, 11, 25].map(|after| seldom.tell(begun + Duration::from_secs(after)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
