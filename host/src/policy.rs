//! What any list may ask for on this host: roots, topics, modules, number of entries.
//!
//! In: an entry, or a path to open. Out: yes, or which rule says no and where to change it; a file
//! opened beneath an allowed root. Never settable from etcd.

use std::path::PathBuf;

/// `[policy]`, with the defaults filled in.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Files must lie below one of these; `None` is no bound.
    pub roots: Option<Vec<PathBuf>>,
}
