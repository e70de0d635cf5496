//! Says what is wanted: the collect list, from etcd or a file, and the modules it names.
//!
//! In: a value in etcd or a file, watched. Out: one `watch` channel of [`Wanted`], whichever
//! source feeds it; `None` means "nothing heard yet", never "collect nothing". Absent by design:
//! running pipelines, Kafka, wasmtime.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch::{Receiver, Sender, channel};

use crate::config::{ListSource, Settings};
use crate::model::{Digest, Entry, ModuleRef, Problem};

pub mod announce;
mod backoff;
mod client;
mod error;
mod etcd;
mod file;
pub mod fleet;
pub mod history;
mod kept;
pub mod list;
pub mod lists;
pub mod modules;
mod trust;
mod watch;

#[cfg(test)]
mod tests;

pub use error::ControlError;
pub use modules::Fetcher;

/// Where the bytes of local module files go; tells their digest.
pub type ModuleSink = Arc<dyn Fn(&[u8]) -> io::Result<Digest> + Send + Sync>;

/// Work that the agent runs.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The last good lists, in the state directory.
const KEPT_FILE: &str = "list.json";

/// Follows the list wherever the settings say it is. Nothing happens until the task is run; it ends
/// when it is dropped. The last good list is kept in the state directory.
pub fn start(settings: &Settings, modules: ModuleSink) -> (Receiver<Option<Wanted>>, Task, Fetcher) {
    let (out, wanted) = channel(None);
    let kept = settings.state_dir.join(KEPT_FILE);
    let keys = settings.policy.keys().clone();
    let task: Task = match &settings.list {
        ListSource::Etcd(etcd) => {
            Box::pin(etcd::Follower::new(etcd.clone(), etcd::Timing::default(), kept, keys, out).run())
        }
        ListSource::File(path) => Box::pin(file::Follower::new(path.clone(), kept, keys, modules, out).run()),
        ListSource::Fixed { path, topic } => Box::pin(fixed(path.clone(), topic.clone(), out)),
    };
    (wanted, task, Fetcher::new(&settings.list))
}

/// One entry that never changes. The older form has relative paths as well.
async fn fixed(path: String, topic: String, out: Sender<Option<Wanted>>) {
    let path = std::path::absolute(&path).map_or(path, |path| path.to_string_lossy().into_owned());
    let text = serde_json::json!([{ "path": path, "topic": topic }]).to_string();
    let items = list::parse(text.as_bytes(), &list::Origin::Settings).unwrap_or_default().items;
    let mut wanted = Wanted { source: "settings".into(), ..Wanted::default() };
    for item in items {
        match item.checked {
            Ok(entry) => wanted.entries.push(entry),
            Err(refused) => wanted.refused.push(refused),
        }
    }
    out.send_replace(Some(wanted));
    out.closed().await;
}

/// What the agent should run, read at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// What a tag pointed at before, where it is known.
    pub before: BTreeMap<ModuleRef, Digest>,
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
