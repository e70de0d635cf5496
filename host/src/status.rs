//! What the agent says about itself: one [`Board`] that pipelines and agent write and admin reads.
//!
//! A pipeline replaces its report as a whole, between two chunks, so the sums in it always hold.
//! Absent by design: line content, module log texts.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::control::ListState;
use crate::model::{EntryName, Lines, Problem, ShadowTally};
use crate::tap::{Look, Tap, Wants};

/// The whole of `weir status --json` and `/api/v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Who speaks.
    pub agent: AgentStatus,
    /// The collect list as applied.
    pub list: ListStatus,
    /// Running entries in the order of the list, then refused ones.
    pub entries: Vec<EntryStatus>,
    /// The lines set aside on this host; none where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Room>,
}

/// Who speaks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// `agent.name`.
    pub name: String,
    /// weir's version.
    pub version: String,
    /// Seconds since 1970.
    pub started: u64,
}

/// The collect list as applied.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListStatus {
    /// Where it came from.
    pub source: String,
    /// etcd's revision, or the number of the file's change.
    pub revision: i64,
    /// How sure it is.
    pub state: ListState,
    /// What somebody should mend.
    pub problems: Vec<Problem>,
}

/// What is taken of a limit. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// What is taken.
    pub used: u64,
    /// Of so much.
    pub limit: u64,
}

/// One entry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EntryStatus {
    /// Its name.
    pub name: String,
    /// Path or glob.
    pub path: String,
    /// Where its lines go.
    pub topic: String,
    /// In one word.
    pub state: EntryState,
    /// Why it is in that state; empty where that needs no words.
    pub cause: String,
    /// The same in one word, which may leave the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
    /// Files it knows of.
    pub files: u64,
    /// Bytes in them that are not yet finished (delivered, dropped, set aside).
    pub lag_bytes: u64,
    /// Age of the oldest read line that is not finished, or since when unread bytes wait; seconds.
    pub lag_seconds: f64,
    /// Bytes cut into lines.
    #[serde(default)]
    pub bytes_read: u64,
    /// The sums.
    pub lines: Lines,
    /// Its filter, where it has one.
    pub filter: Option<FilterStatus>,
}

/// The files of one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// How many there are.
    pub total: u64,
    /// Those that lag most, in that order.
    pub files: Vec<FileStatus>,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its name, or the last that it had.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Bytes read, from the beginning.
    pub read_to: u64,
    /// Bytes not finished; an unfinished last line is not counted.
    pub lag_bytes: u64,
    /// Whether a descriptor is held on it.
    pub open: bool,
    /// It was renamed or deleted, and is read to its end.
    pub moved: bool,
    /// Why it cannot be read; empty where it can.
    pub cause: String,
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryState {
    /// At the end of its files.
    Following,
    /// Reading what is there.
    CatchingUp,
    /// For files, a filter, Kafka: `cause` says which.
    #[default]
    Waiting,
    /// Its topic takes nothing.
    Stalled,
    /// `on_error: hold`, a full quarantine, or a filter that fails too often.
    Holding,
    /// It cannot be run as it stands.
    Refused,
}

/// What stands in the way of an entry or a filter: all of its cause that the fleet may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// What stands in the list is not valid.
    List,
    /// This host's policy refuses it.
    Policy,
    /// No file matches, or one cannot be read.
    Files,
    /// The module cannot be had.
    Module,
    /// The module is no filter, or does not compile.
    Compile,
    /// The module does not start with its config.
    Init,
    /// The filter fails on lines.
    Lines,
    /// Kafka refuses the topic.
    Topic,
    /// Kafka does not answer, or takes nothing.
    Kafka,
    /// Other entries have all the memory.
    Memory,
    /// The quarantine is full, or cannot be written.
    Quarantine,
    /// A later version has a word for it.
    #[serde(other)]
    Other,
}

/// The filter of an entry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FilterStatus {
    /// As the list names it.
    pub module: String,
    /// Of the module that runs; empty where none does yet.
    pub digest: String,
    /// In one word.
    pub state: FilterState,
    /// Why a newer one does not run.
    pub cause: String,
    /// The same in one word, which may leave the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
    /// What the module that runs did since it was applied.
    #[serde(default)]
    pub stats: FilterStats,
    /// The second module, where the list names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
}

/// The shadow of an entry's filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowStatus {
    /// As the list names it.
    pub module: String,
    /// Of the module that runs; empty where none does.
    pub digest: String,
    /// `applied` or `failed`.
    pub state: FilterState,
    /// Why it does not run.
    pub cause: String,
    /// What came of the comparison.
    #[serde(flatten)]
    pub tally: ShadowTally,
}

/// What a filter did, in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilterStats {
    /// When it was applied; seconds since 1970.
    pub since: u64,
    /// Lines that it was given. Lines of the sums `kept`, `dropped`, `replaced` and `refused`.
    pub lines: u64,
    /// Lines sent as they were read.
    pub kept: u64,
    /// Lines it dropped.
    pub dropped: u64,
    /// Lines it replaced.
    pub replaced: u64,
    /// Lines that stand for those.
    pub replacements: u64,
    /// Lines it failed on, by kind, and lines it set aside on purpose (`set-aside`).
    pub refused: BTreeMap<String, u64>,
    /// Batches.
    pub batches: u64,
    /// CPU time, with all attempts and new instances; seconds.
    pub cpu_seconds: f64,
    /// Lines by the CPU time of a line, which is that of its batch in equal parts; the bounds are
    /// [`LINE_SECONDS_BUCKETS`], the last one has none.
    pub line_seconds: [u64; LINE_SECONDS_BUCKETS.len() + 1],
    /// The most memory that an instance of it had; bytes.
    pub memory_max: u64,
    /// Instances made after a failure.
    pub restarts: u64,
    /// Messages of it that were not logged, for there were too many.
    pub unlogged: u64,
    /// Times that it counted under a name that it may not have.
    pub uncounted: u64,
    /// What it counts itself.
    pub counts: BTreeMap<String, u64>,
}

/// Upper bounds of the buckets of [`FilterStats::line_seconds`]; seconds.
pub const LINE_SECONDS_BUCKETS: [f64; 9] = [1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3];

impl FilterStats {
    /// Lines it failed on or set aside.
    pub fn refused_lines(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The upper bound of the time that so many percent of the lines do not exceed; seconds.
    pub fn line_seconds_at(&self, percent: u64) -> f64 {
        let rank = (self.lines * percent).div_ceil(100);
        let mut seen = 0;
        let reached = |lines: &u64| {
            seen += lines;
            seen >= rank
        };
        let bucket = self.line_seconds.iter().position(reached);
        bucket.and_then(|bucket| LINE_SECONDS_BUCKETS.get(bucket)).copied().unwrap_or(f64::INFINITY)
    }
}

/// The state of a filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterState {
    /// The wanted one runs.
    Applied,
    /// The wanted one could not be loaded; an older one runs, or the entry waits.
    #[default]
    Failed,
    /// The wanted one failed on lines; the older one runs again.
    RolledBack,
}

/// Upper bounds of the buckets of `weir_filter_seconds`: CPU time of one batch, seconds.
pub const FILTER_SECONDS_BUCKETS: [f64; 8] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0];

/// Figures of an entry that only `/metrics` shows. They grow as long as the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Bytes cut into lines.
    pub bytes_read: u64,
    /// Bytes of deleted or rotated files that are kept open.
    pub held_bytes: u64,
    /// Batches by CPU time; the last bucket is +Inf.
    pub filter_seconds: [u64; FILTER_SECONDS_BUCKETS.len() + 1],
    /// Sum of that CPU time; seconds.
    pub filter_seconds_sum: f64,
    /// What all modules of the entry did; `counts` and `since` are not used here.
    pub filter: FilterStats,
    /// What all shadows saw, where there was one.
    pub shadow: Option<ShadowTally>,
    /// Swaps by result: `applied`, `failed`, `rolled-back`.
    pub module_swaps: BTreeMap<&'static str, u64>,
    /// What a module counts itself.
    pub module_counts: BTreeMap<String, u64>,
    /// By librdkafka's name of the error.
    pub delivery_errors: BTreeMap<String, u64>,
    /// Records sent again.
    pub resends: u64,
    /// Files read again from their beginning (`truncated`, `state_lost`), and entries started again
    /// from their offsets (`breakdown`).
    pub rewinds: BTreeMap<&'static str, u64>,
    /// Lines of the quarantine that were sent again, or that the filter dropped then.
    pub replayed: u64,
    /// Runs of NUL that were skipped.
    pub nul_runs: u64,
    /// Sequences of bytes that mean no character in the entry's encoding.
    pub malformed: u64,
    /// What could not be saved, by reason: `truncated`, `deleted`, `held_limit`.
    pub lost_bytes: BTreeMap<&'static str, u64>,
}

/// What the agent itself says at one moment, beside its entries.
#[derive(Clone, Debug, Default)]
pub struct AgentFigures {
    /// Producers made anew, by cause: `fatal`, `orphans`.
    pub producer_rebuilds: BTreeMap<&'static str, u64>,
    /// What went wrong with the stored offsets, by kind.
    pub state_errors: BTreeMap<&'static str, u64>,
    /// What somebody should mend; shown with those of the list.
    pub problems: Vec<Problem>,
    /// The lines set aside on this host.
    pub quarantine: Option<Room>,
}

/// Asks the rooms that know, whenever somebody looks.
struct Ask(Box<dyn Fn() -> AgentFigures + Send + Sync>);

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

/// What a pipeline says at one moment.
#[derive(Clone, Debug)]
pub struct EntryReport {
    /// For people.
    pub status: EntryStatus,
    /// For graphs.
    pub figures: Figures,
}

/// Where everything that the agent says about itself stands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    agent: AgentStatus,
    list: ListStatus,
    order: Vec<EntryName>,
    entries: BTreeMap<EntryName, Arc<Mutex<EntryReport>>>,
    taps: BTreeMap<EntryName, Arc<Tap>>,
    refused: Vec<EntryStatus>,
    ready: bool,
    figures: Option<Arc<Ask>>,
}

impl Board {
    /// A board on which nothing stands yet.
    pub fn new(name: &str) -> Self {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let agent = AgentStatus { name: name.into(), version: env!("CARGO_PKG_VERSION").into(), started };
        Self(Arc::new(Mutex::new(Inner {
            agent,
            list: ListStatus::default(),
            order: Vec::new(),
            entries: BTreeMap::new(),
            taps: BTreeMap::new(),
            refused: Vec::new(),
            ready: false,
            figures: None,
        })))
    }

    /// Says where the agent's own figures come from.
    pub fn set_figures(&self, ask: impl Fn() -> AgentFigures + Send + Sync + 'static) {
        self.lock().figures = Some(Arc::new(Ask(Box::new(ask))));
    }

    /// The agent's own figures at this moment.
    pub fn figures(&self) -> AgentFigures {
        let ask = self.lock().figures.clone();
        ask.map(|ask| (ask.0)()).unwrap_or_default()
    }

    /// Where the pipeline of `name` writes; the report is kept as long as the agent runs or until
    /// it is removed, so that a restarted pipeline goes on counting.
    pub fn entry(&self, name: &EntryName, report: impl FnOnce() -> EntryReport) -> Arc<Mutex<EntryReport>> {
        self.lock().entries.entry(name.clone()).or_insert_with(|| Arc::new(Mutex::new(report()))).clone()
    }

    /// Where the pipeline of `name` shows its lines; kept as long as its report.
    pub fn tap(&self, name: &EntryName) -> Arc<Tap> {
        self.lock().taps.entry(name.clone()).or_default().clone()
    }

    /// Looks at the lines of a running entry; `None` where none of that name runs.
    pub fn look(&self, name: &str, wants: Wants) -> Option<Look> {
        let inner = self.lock();
        inner.taps.iter().find(|(entry, _)| entry.as_str() == name).map(|(_, tap)| tap.look(wants))
    }

    /// The pipeline of `name` broke down. What it had said stays as it was.
    pub fn count_breakdown(&self, name: &EntryName) {
        let slot = self.lock().entries.get(name).cloned();
        if let Some(slot) = slot {
            *lock(&slot).figures.rewinds.entry("breakdown").or_default() += 1;
        }
    }

    /// Says which list is applied. Entries in `order` are shown, others forgotten.
    pub fn set_list(&self, list: ListStatus, order: Vec<EntryName>, refused: Vec<EntryStatus>) {
        let mut inner = self.lock();
        let named: HashSet<_> = order.iter().collect();
        inner.entries.retain(|name, _| named.contains(name));
        inner.taps.retain(|name, _| named.contains(name));
        (inner.list, inner.order, inner.refused, inner.ready) = (list, order, refused, true);
    }

    /// Whether a list was applied, from wherever it came.
    pub fn ready(&self) -> bool {
        self.lock().ready
    }

    /// The status at this moment.
    pub fn status(&self) -> Status {
        let (agent, mut list, reports, refused) = self.parts();
        let AgentFigures { problems, quarantine, .. } = self.figures();
        list.problems.extend(problems);
        let running = reports.into_iter().map(|report| report.status);
        Status { agent, list, entries: running.chain(refused).collect(), quarantine }
    }

    /// The reports of the running entries at this moment.
    pub fn reports(&self) -> Vec<EntryReport> {
        self.parts().2
    }

    fn parts(&self) -> (AgentStatus, ListStatus, Vec<EntryReport>, Vec<EntryStatus>) {
        let inner = self.lock();
        let slots: Vec<_> = inner.order.iter().filter_map(|name| inner.entries.get(name).cloned()).collect();
        let (agent, list, refused) = (inner.agent.clone(), inner.list.clone(), inner.refused.clone());
        drop(inner);
        (agent, list, slots.iter().map(|slot| lock(slot).clone()).collect(), refused)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

/// Nothing on the board can be half written, so a writer that panicked has not spoilt it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
