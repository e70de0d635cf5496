//! Passes batches of lines through a WebAssembly module.
//!
//! In: a module's bytes by digest, an entry's context, batches of lines. Out: a verdict for every
//! line of every batch, with the lines that replace it. Absent by design: files, offsets, Kafka,
//! etcd, what becomes of a line that is set aside.
//!
//! ```text
//!  bytes ─► ModuleCache ─► Engine::load ─► Module::prepare ─► Filter::process
//!           by digest      compiled in     a live instance,   one call a batch;
//!                          a child         `init` has run     never fails
//! ```
//!
//! What holds whatever a module does:
//!
//! - It reaches nothing but its own memory, [`inspect`]ed imports `log` and `count`, and the batch.
//! - A call ends: its deadline is CPU time of the calling thread, so a busy host blames no
//!   innocent line (`instance.rs`). A batch ends too: `isolate.rs` says how a bad line is found,
//!   and what bounds the cost of finding it.
//! - Its memory is bounded, alone and together with all others; so are its output, its log and
//!   the names it counts under.
//! - Its output is believed only after it was checked against the batch.
//! - Machine code is mapped only if this agent's own compiler wrote it.

use std::time::Duration;

use crate::model::{EntryName, Topic};

#[cfg(test)]
mod agree;
mod bindings;
mod cache;
mod check;
pub mod compile;
mod engine;
mod error;
#[cfg(test)]
mod features;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod inspect;
mod instance;
mod isolate;
mod mapped;
pub mod shadow;
#[cfg(test)]
pub(crate) mod tests;
mod voice;

pub use cache::{ModuleCache, Tidied};
pub use check::{output_bytes_max, replacements};
pub use compile::Compiler;
pub use engine::{Engine, EngineLimits, Module};
pub use error::FilterError;
pub use inspect::{MODULE_BYTES_MAX, ModuleInfo};
pub use isolate::Filter;
pub use voice::Ignored;

/// What an instance is made with.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterContext {
    /// The entry it works for.
    pub entry: EntryName,
    /// Where the entry's lines go.
    pub topic: Topic,
    /// The agent's name.
    pub host: String,
    /// The JSON value `config` as it stands in the list; empty where there is none.
    pub config: Vec<u8>,
    /// CPU time a batch may take.
    pub timeout: Duration,
    /// Memory an instance may take; bytes.
    pub memory: u64,
    /// No line waits for it: its calls run beside the others, not among the few that may run at once.
    pub aside: bool,
}

/// Lines of one file: line `i` is `bytes[starts[i]..ends[i]]`. Starts and ends ascend, lie in
/// `bytes`, and are as many as each other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The file's path, as lossy UTF-8.
    pub path: &'a str,
    /// Where `bytes` begins in the file.
    pub offset: u64,
    /// When it was read; milliseconds since 1970.
    pub unix_ms: u64,
    /// The slice of the file as it was read.
    pub bytes: &'a [u8],
    /// Where each line begins.
    pub starts: &'a [u32],
    /// Where each line ends.
    pub ends: &'a [u32],
}

/// What became of a batch, or of its first lines where output for more would be too much at once.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One a line: 0 drop, 1 keep, 2..=254 replaced by verdict-1 lines, 255 refused. At least one, and
    /// fewer than there are lines where the others are to be passed through again.
    pub verdicts: Vec<u8>,
    /// The replacement lines, one after the other.
    pub bytes: Vec<u8>,
    /// Where each replacement line ends in `bytes`.
    pub ends: Vec<u32>,
    /// One for each verdict 255, in order.
    pub refused: Vec<RefusedLine>,
    /// What it took, with all attempts and new instances.
    pub cpu: Duration,
    /// 1 if the call with the whole batch failed, so that lines were looked at in parts; else 0.
    pub broken_batches: u32,
    /// Calls of the module's `process`, failed ones included.
    pub calls: u32,
    /// Instances made because one before had failed.
    pub restarts: u32,
    /// The most memory that an instance had; bytes.
    pub memory: u64,
    /// What the module said beyond what it may.
    pub ignored: Ignored,
}

impl Outcome {
    /// Makes it the outcome of the first `lines` lines.
    pub fn truncate(&mut self, lines: usize) {
        self.verdicts.truncate(lines);
        self.ends.truncate(self.verdicts.iter().map(|verdict| replacements(*verdict)).sum());
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0) as usize);
        self.bytes.shrink_to_fit();
        self.refused.retain(|refused| (refused.line as usize) < lines);
    }
}

/// A line the filter failed on or set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// Its index in the batch.
    pub line: u32,
    /// What kind of failure.
    pub kind: ErrorKind,
    /// For people on this host; may hold what the module said.
    pub message: String,
}

/// How a filter fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// It panicked, or did what WebAssembly forbids.
    Trap,
    /// It took more CPU time than it may.
    Deadline,
    /// It asked for more memory than it may have, and could not go on without.
    Memory,
    /// What it handed back does not fit the batch.
    Output,
    /// It handed back more than it may.
    Size,
    /// It returned an error.
    Error,
    /// It set the line aside on purpose.
    SetAside,
}

impl ErrorKind {
    /// Whether it is a fault of the filter.
    pub fn is_failure(self) -> bool {
        self != Self::SetAside
    }

    /// As it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Size => "size",
            Self::Error => "error",
            Self::SetAside => "set-aside",
        }
    }
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.as_str())]
pub struct Failure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// For people on this host.
    pub message: String,
}
