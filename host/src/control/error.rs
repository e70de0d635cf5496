//! What goes wrong between weir and the place where lists and modules are kept.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use super::modules::User;
use crate::model::Digest;

/// Why the list or a module cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// etcd answers with an error, or cannot be reached.
    #[error("cannot {operation}: {cause}")]
    Etcd {
        /// What was asked for.
        operation: String,
        /// What etcd or the connection says: the client's own errors do not read well.
        cause: String,
    },
    /// etcd does not answer.
    #[error("no answer within {limit:?} to: {operation}")]
    Silent {
        /// What was asked for.
        operation: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The watch cannot be trusted any more.
    #[error("the watch ended: {0}")]
    WatchEnded(String),
    /// etcd does not do what its interface says.
    #[error("the answer to {0} lacks a part")]
    BadAnswer(&'static str),
    /// A file cannot be read or written.
    #[error("cannot {operation} {path}")]
    File {
        /// Read, write.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The list comes from a file.
    #[error(
        "the list of this host is in a file, so there is no module store; name the module's file in the list"
    )]
    NoStore,
    /// A blob is not there, or not whole.
    #[error("module {0} is not in the store; push it with `weir module push`")]
    NoBlob(Digest),
    /// A blob is not what its key says.
    #[error("module {0} in the store is damaged; push it again")]
    Damaged(Digest),
    /// A tag is not there.
    #[error("the store has no tag `{0}`; push a module with `weir module push WASM --tag {0}`")]
    NoTag(String),
    /// A tag's record cannot be read.
    #[error("the record of tag `{0}` cannot be read; set it again with `weir module tag {0} REF`")]
    BadTag(String),
    /// A name cannot be a tag.
    #[error("{0}")]
    BadName(String),
    /// A module is larger than the store takes.
    #[error("the module has {bytes} bytes; the store takes at most {most}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        most: usize,
    },
    /// A tag has never pointed elsewhere.
    #[error("tag `{0}` has never pointed at another module; point it at one with `weir module tag {0} REF`")]
    NoHistory(String),
    /// History is etcd's.
    #[error("{} is a file, and a file has no revisions; keep it in version control, or the list in etcd", .0.display())]
    NoRevisions(PathBuf),
    /// What is used is not removed.
    #[error("{what} is still used by {}", .by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    InUse {
        /// The tag or the module.
        what: String,
        /// By whom.
        by: Vec<User>,
    },
    /// What a list uses cannot be told.
    #[error(
        "the list {key} cannot be read, so what it uses cannot be told: {cause}; mend it with `weir list put FILE --key {key}`"
    )]
    BadList {
        /// Where it is.
        key: String,
        /// Why.
        cause: String,
    },
    /// Compare-and-swap failed.
    #[error("somebody else changed {0} meanwhile; look at it and try again")]
    Moved(String),
}

impl ControlError {
    /// An error of the client library, in its shortest true form.
    pub(super) fn etcd(operation: impl Into<String>, error: etcd_client::Error) -> Self {
        let (mut cause, mut inner) = match &error {
            etcd_client::Error::GRpcStatus(status) => (status.message().to_string(), status.source()),
            other => (other.to_string(), other.source()),
        };
        // Only the innermost reason adds to the outermost words.
        let mut innermost = None;
        while let Some(error) = inner {
            innermost = Some(error);
            inner = error.source();
        }
        if let Some(reason) = innermost.map(ToString::to_string).filter(|reason| !cause.contains(reason)) {
            cause = format!("{cause}: {reason}");
        }
        Self::Etcd { operation: operation.into(), cause }
    }

    /// The error with its sources, for one line of a log.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }
}
