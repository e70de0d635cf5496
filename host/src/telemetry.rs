//! The agent's own log: to standard error, for people or for programs.
//!
//! In: `RUST_LOG` (default `info`), the format. Absent by design: line content, files, rotation
//! (that is journald's).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter};

use crate::cli::LogFormat;

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
