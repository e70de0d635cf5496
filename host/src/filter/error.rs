//! What can go wrong before a filter runs. Once it runs, nothing can: see [`super::Outcome`].

use std::io;
use std::path::PathBuf;

use super::{Failure, MODULE_BYTES_MAX};
use crate::model::Digest;

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not WebAssembly at all.
    #[error("this is not a WebAssembly file: it does not begin with \\0asm")]
    NotWasm,
    /// Beyond [`MODULE_BYTES_MAX`].
    #[error("the module has {bytes} bytes; at most {MODULE_BYTES_MAX} (64 MiB) are taken")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Nothing in it says that it is a filter.
    #[error(
        "a core module without a WIT section: build it with weir-guest, or make it a component of \
         the world weir:filter/line-filter"
    )]
    NoWit,
    /// It wants something that no filter gets.
    #[error("the module imports `{import}`; a filter gets `weir:filter/host@0.1` and nothing else{hint}")]
    Import {
        /// What it wants.
        import: String,
        /// What to do, where that is known.
        hint: &'static str,
    },
    /// It is no filter.
    #[error("the module does not export `{export}` of the world weir:filter/line-filter@0.1")]
    Export {
        /// What is missing.
        export: &'static str,
    },
    /// It is broken, or uses what the engine does not offer.
    #[error("the module is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The core module and its WIT section do not fit.
    #[error("make the core module a component")]
    Componentize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was never fetched, or did not survive on the disk.
    #[error("module {0} is not in the cache")]
    Absent(Digest),
    /// A file of the cache.
    #[error("{operation} {}", path.display())]
    Cache {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else may write into the cache.
    #[error("{} belongs to user {owner}; the module cache must belong to the agent's user", path.display())]
    CacheOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The compiler said no, or was stopped at a limit.
    #[error("compile module {digest}: {message}")]
    Compile {
        /// Which one.
        digest: Digest,
        /// What the compiler said, or which limit it met.
        message: String,
    },
    /// The compiler could not be started.
    #[error("start the compiler {}", exe.display())]
    Compiler {
        /// What was started.
        exe: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The engine itself.
    #[error("{operation}")]
    Engine {
        /// What was done.
        operation: &'static str,
        /// What wasmtime said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It could not be started with this config.
    #[error("start module {digest}")]
    Init {
        /// Which one.
        digest: Digest,
        /// What happened.
        source: Failure,
    },
}
