//! Says what is wanted: the collect list, from etcd or a file, and the modules it names.
//!
//! In: a value in etcd or a file, watched. Out: one `watch` channel of [`Wanted`], whichever
//! source feeds it; `None` means "nothing heard yet", never "collect nothing". Absent by design:
//! running pipelines, Kafka, wasmtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Digest, Entry, ModuleRef, Problem};

mod backoff;
pub mod etcd;
pub mod file;
pub mod list;
pub mod modules;

/// What the agent should run, read at one revision.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Where the list came from: `etcd /weir/web1/collect`, `file conf/collect.json`, with
    /// ` (last good copy)` behind it when it came from the state directory.
    pub source: String,
    /// etcd's revision; for a file a number that grows with each change.
    pub revision: i64,
    /// How sure the list is.
    pub state: ListState,
    /// The good entries, in the order of the list.
    pub entries: Vec<Arc<Entry>>,
    /// The bad ones.
    pub refused: Vec<Refused>,
    /// What else somebody should look at: a list that does not parse, unknown names, LIST MISSING.
    pub problems: Vec<Problem>,
    /// What each module the entries name is, or why it cannot be told.
    pub modules: BTreeMap<ModuleRef, Result<Digest, String>>,
}

/// An entry that cannot be run as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name, or its place in the list (`#3`).
    pub name: String,
    /// Its path, where it has one.
    pub path: String,
    /// Its topic, where it has one.
    pub topic: String,
    /// Why.
    pub problem: Problem,
}

/// How sure the list is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListState {
    /// As the source has it now.
    #[default]
    Current,
    /// The last good one; the source does not answer.
    Cached,
    /// The last good one; the key or file is gone.
    Missing,
    /// The last good one; what stands there now does not parse.
    Invalid,
}
