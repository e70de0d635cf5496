//! Committed offsets on disk, and which files an entry knew when it was first applied.
//!
//! In: a file's record whenever its committed offset moved. Out: the records of an entry when it
//! starts again. One thread writes what changed in one fsynced transaction, a few times a second
//! and at the latest after [`ACKED_BYTES_MAX`], off the data path. A store that cannot be written
//! stops nothing: lines are repeated after a restart, never lost.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::identity::{FileId, Head, Trace};
use crate::model::{EntryName, Problem};
use store::Store;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod power;
mod store;

/// Bytes that may be acknowledged and not yet written down, over all entries. It bounds what is
/// repeated after a kill; when a slow disk reaches it, reading waits.
pub const ACKED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long a changed offset may wait.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long a store that failed is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// How long the offsets of an entry that is no longer in the list are kept.
const RETIRED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where a file's reader is to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Tells apart the contents that one inode held one after the other.
    pub incarnation: u64,
    /// Its last known name.
    #[serde(with = "path_bytes")]
    pub path: Arc<Path>,
    /// Its first known name, which chose the partition.
    #[serde(with = "path_bytes")]
    pub origin: Arc<Path>,
    /// Which file.
    pub id: FileId,
    /// All before this byte is finished.
    pub committed: u64,
    /// What stands before it.
    pub trace: Trace,
    /// What the file begins with.
    pub head: Head,
    /// The same, shorter, the shortest first: by them a copy is known that ends sooner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Head>,
    /// A place before `committed`, and what stands there, for the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<(u64, Trace)>,
    /// Its size when last seen: what is missing of it when it is gone.
    #[serde(default)]
    pub size: u64,
    /// When it was last written to, as [`super::identity::Stat`] says it.
    #[serde(default)]
    pub modified: i64,
    /// Of a compressed file, for which all the above is about its content: the size that it has itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<u64>,
}

/// What was known of an entry when the agent last ran.
#[derive(Debug, Default, PartialEq)]
pub struct Saved {
    /// The path or glob it had; `None` when the entry is new here.
    pub path: Option<String>,
    /// Its files.
    pub records: Vec<Record>,
    /// Records existed and cannot be read any more: read files from the beginning.
    pub lost: bool,
}

#[derive(Serialize, Deserialize)]
struct EntryRecord {
    path: String,
    /// Seconds since 1970, of an entry that is no longer wanted.
    retired: Option<u64>,
}

/// The store and what waits to be written to it.
#[derive(Debug)]
pub struct Checkpoints {
    /// `None`: nothing is kept (`--stdout`).
    store: Option<Mutex<Store>>,
    lost: bool,
    pending: Mutex<Pending>,
    wake: Condvar,
    acked: AtomicU64,
    failing: AtomicBool,
    errors: Mutex<Errors>,
}

#[derive(Debug, Default)]
struct Pending {
    /// `None` removes the record. Boxed: a table that grows is there twice.
    files: HashMap<(EntryName, u64), Option<Box<Record>>>,
    /// Path, and whether it is retired.
    entries: HashMap<EntryName, (String, bool)>,
    stop: bool,
}

/// What went wrong with the store.
#[derive(Debug, Default)]
struct Errors {
    /// By kind. `corrupt`: it was damaged and moved aside. `missing`: it was gone. `open`: it could not be
    /// opened for writing at the start. `read`, `write`: so while the agent ran, for each attempt.
    counts: BTreeMap<&'static str, u64>,
    /// Why it cannot be written just now.
    failure: Option<String>,
}

impl Checkpoints {
    /// Opens `checkpoints.redb` in `dir`. One that is damaged is moved aside, and files are read from
    /// their beginning rather than lines lost. One that cannot be written costs nothing but repeats:
    /// what it holds is used, what is new waits in memory until it can be.
    pub fn open(dir: &Path) -> Self {
        let store = Store::at(dir.join("checkpoints.redb"));
        let missing = std::fs::metadata(store.path()).map_or(true, |file| file.len() == 0) && was_used(dir);
        Self::on(store, missing)
    }

    /// Keeps all in memory: for tests that start again very often.
    #[cfg(test)]
    pub(in crate::source) fn in_memory() -> Self {
        Self::on(Store::in_memory(), false)
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        Self::new(None, false, Errors::default())
    }

    fn on(mut store: Store, missing: bool) -> Self {
        let mut errors = Errors::default();
        if missing {
            errors.count("missing");
            store.mark_lost();
            error!(path = %store.path().display(),
                "the stored offsets are gone; files are read from their beginning");
        }
        let mut opened = store.open().map(drop);
        if let Err(reason) = &opened
            && reason.is_damage()
            && let Ok(aside) = store.move_aside()
        {
            errors.count("corrupt");
            store.mark_lost();
            error!(error = %reason, moved_to = %aside.display(),
                "the stored offsets cannot be read; files are read from their beginning");
            opened = store.open().map(drop);
        }
        // A mark is on the disk before anything else is.
        let opened = opened.and_then(|()| store.write(&Pending::default()));
        let known = opened.and_then(|()| store.is_lost());
        let lost = known.unwrap_or_else(|reason| {
            errors.count("open");
            errors.failure = Some(reason.to_string());
            let unread = store.copy().and_then(|()| store.is_lost());
            let lost = *unread.as_ref().unwrap_or(&true);
            let files = if lost { "files are read from their beginning" } else { "what it holds is used" };
            error!(error = %reason, "offsets cannot be written: they are kept in memory and written \
                as soon as that works, and a restart before would repeat lines; {files}");
            lost
        });
        Self::new(Some(Mutex::new(store)), lost, errors)
    }

    fn new(store: Option<Mutex<Store>>, lost: bool, errors: Errors) -> Self {
        Self {
            store,
            lost,
            pending: Mutex::default(),
            wake: Condvar::new(),
            acked: AtomicU64::new(0),
            failing: AtomicBool::new(errors.failure.is_some()),
            errors: Mutex::new(errors),
        }
    }

    /// What is known of an entry, what still waits to be written included.
    pub fn load(&self, entry: &EntryName) -> Saved {
        self.flush();
        let Some(store) = &self.store else { return Saved::default() };
        let read = lock(store).read(entry);
        let mut saved = read.unwrap_or_else(|error| {
            lock(&self.errors).count("read");
            error!(%entry, %error, "stored offsets cannot be read; its files are read from their beginning");
            Saved { lost: true, ..Saved::default() }
        });
        lock(&self.pending).add_to(&mut saved, entry);
        saved.lost |= self.lost && saved.path.is_none();
        saved
    }

    /// The entry is wanted with this path; its offsets are kept.
    pub fn begin(&self, entry: &EntryName, path: &str) {
        self.change(|pending| {
            pending.entries.insert(entry.clone(), (path.into(), false));
        });
    }

    /// The entry is wanted no more; its offsets are kept for seven days.
    pub fn retire(&self, entry: &EntryName, path: &str) {
        self.change(|pending| {
            pending.entries.insert(entry.clone(), (path.into(), true));
        });
    }

    /// A file's committed offset moved by `bytes`.
    pub fn note(&self, entry: &EntryName, record: Record, bytes: u64) {
        let file = (entry.clone(), record.incarnation);
        self.change(|pending| {
            pending.files.insert(file, Some(Box::new(record)));
        });
        if self.acked.fetch_add(bytes, Ordering::Relaxed) + bytes >= ACKED_BYTES_MAX / 2 {
            self.wake.notify_all();
        }
    }

    /// The file will not be asked for again.
    pub fn forget(&self, entry: &EntryName, incarnation: u64) {
        self.change(|pending| {
            pending.files.insert((entry.clone(), incarnation), None);
        });
    }

    /// Notes what is to be written. The first of it wakes the writer, which sleeps while there is nothing.
    fn change(&self, change: impl FnOnce(&mut Pending)) {
        if self.store.is_none() {
            return;
        }
        let mut pending = lock(&self.pending);
        let first = pending.is_empty();
        change(&mut pending);
        if first {
            self.wake.notify_all();
        }
    }

    /// Whether so much is acknowledged and not written down that reading should wait.
    pub fn is_behind(&self) -> bool {
        self.acked.load(Ordering::Relaxed) > ACKED_BYTES_MAX && !self.failing.load(Ordering::Relaxed)
    }

    /// What went wrong with the store since the start, by kind.
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.errors).counts.clone()
    }

    /// That the store cannot be written just now.
    pub fn problem(&self) -> Option<Problem> {
        let cause = lock(&self.errors).failure.clone()?;
        let cause = format!("offsets cannot be written, a restart now would repeat lines: {cause}");
        Some(Problem::new(
            "[state] dir",
            cause,
            "make it writable and give it room; nothing is lost meanwhile",
        ))
    }

    /// Writes down all that was noted so far. Returns whether it is on the disk.
    pub fn flush(&self) -> bool {
        self.store.as_ref().is_none_or(|store| self.write(&mut lock(store)))
    }

    /// Writes what changed until [`Checkpoints::stop`], then a last time.
    pub fn run(&self) {
        loop {
            let nothing = |pending: &mut Pending| !pending.stop && pending.is_empty();
            let pending =
                self.wake.wait_while(lock(&self.pending), nothing).unwrap_or_else(PoisonError::into_inner);
            let idle = |pending: &mut Pending| {
                !pending.stop && self.acked.load(Ordering::Relaxed) < ACKED_BYTES_MAX / 2
            };
            let (pending, _) =
                self.wake.wait_timeout_while(pending, INTERVAL, idle).unwrap_or_else(PoisonError::into_inner);
            let stop = pending.stop;
            drop(pending);
            let written = self.flush();
            if stop {
                return;
            }
            if !written {
                let until = Instant::now() + RETRY;
                let pending = lock(&self.pending);
                drop(self.wake.wait_timeout_while(pending, until - Instant::now(), |pending| !pending.stop));
            }
        }
    }

    /// Ends [`Checkpoints::run`].
    pub fn stop(&self) {
        lock(&self.pending).stop = true;
        self.wake.notify_all();
    }

    fn write(&self, store: &mut Store) -> bool {
        let (taken, acked) = {
            let mut pending = lock(&self.pending);
            (pending.take(), self.acked.load(Ordering::Relaxed))
        };
        if taken.is_empty() {
            return true;
        }
        match store.write(&taken) {
            Ok(()) => {
                self.acked.fetch_sub(acked, Ordering::Relaxed);
                if self.failing.swap(false, Ordering::Relaxed) {
                    lock(&self.errors).failure = None;
                    info!("offsets are written again");
                }
                true
            }
            Err(reason) => {
                let mut errors = lock(&self.errors);
                errors.count("write");
                errors.failure = Some(reason.to_string());
                if !self.failing.swap(true, Ordering::Relaxed) {
                    warn!(error = %reason,
                        "offsets cannot be written; delivery goes on, and a restart now would repeat lines");
                }
                lock(&self.pending).put_back(taken);
                false
            }
        }
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.entries.is_empty()
    }

    fn take(&mut self) -> Self {
        let (files, entries) = (std::mem::take(&mut self.files), std::mem::take(&mut self.entries));
        Self { files, entries, stop: self.stop }
    }

    /// What could not be written, unless something newer is known by now.
    fn put_back(&mut self, older: Self) {
        for (key, record) in older.files {
            self.files.entry(key).or_insert(record);
        }
        for (key, record) in older.entries {
            self.entries.entry(key).or_insert(record);
        }
    }

    /// Where the store cannot be written, this is newer than what it holds.
    fn add_to(&self, saved: &mut Saved, entry: &EntryName) {
        if let Some((path, _)) = self.entries.get(entry) {
            saved.path = Some(path.clone());
        }
        for ((_, incarnation), record) in self.files.iter().filter(|((of, _), _)| of == entry) {
            saved.records.retain(|saved| saved.incarnation != *incarnation);
            saved.records.extend(record.as_deref().cloned());
        }
    }
}

impl Errors {
    fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }
}

/// Whether an agent ran here before: there is more than the lock.
fn was_used(dir: &Path) -> bool {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name != "lock" && name != "checkpoints.redb")
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these records have only numbers, text and byte arrays")
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path as text, or as bytes where it is no UTF-8.
mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match path.to_str() {
            Some(text) => Form::Text(text.into()),
            None => Form::Bytes(path.as_os_str().as_bytes().into()),
        };
        form.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Path>, D::Error> {
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text).into(),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)).into(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    pub(in crate::source) fn name(text: &str) -> EntryName {
        EntryName(text.into())
    }

    pub(in crate::source) fn record(incarnation: u64, committed: u64) -> Record {
        let path: Arc<Path> = Path::new(OsStr::from_bytes(b"/var/log/\xff.log")).into();
        Record {
            incarnation,
            origin: path.clone(),
            path,
            id: FileId { dev: (1, 2), ino: 3, birth: Some((4, 5)) },
            committed,
            trace: Trace::of(b"before\n"),
            head: Head::default(),
            size: committed,
            modified: 7,
            packed: None,
            heads: Vec::new(),
            earlier: None,
        }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = Checkpoints::open(dir.path());
        store.begin(&name("app"), "/var/log/*.log");
        store.note(&name("app"), record(1, 10), 10);
        store.note(&name("app"), record(1, 20), 10);
        store.note(&name("app"), record(2, 5), 5);
        store.note(&name("other"), record(3, 7), 7);
        store.forget(&name("app"), 2);
        assert!(store.flush());
        drop(store);
        let store = Checkpoints::open(dir.path());
        let saved = store.load(&name("app"));
        assert_eq!(
            saved,
            Saved { path: Some("/var/log/*.log".into()), records: vec![record(1, 20)], lost: false }
        );
        assert_eq!(store.load(&name("new")), Saved::default());
    }

    #[test]
    fn a_corrupt_store_is_moved_aside_and_everything_counts_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("checkpoints.redb"), vec![7; 8192]).unwrap();
        let store = Checkpoints::open(dir.path());
        assert!(store.load(&name("app")).lost);
        let aside = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
        assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().contains("corrupt")));
    }

    #[test]
    fn offsets_that_are_gone_from_a_used_directory_count_as_lost() {
        for emptied in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("lock"), "").unwrap();
            drop(Checkpoints::open(dir.path()));
            assert!(!Checkpoints::open(dir.path()).load(&name("new")).lost);
            std::fs::create_dir(dir.path().join("quarantine")).unwrap();
            let path = dir.path().join("checkpoints.redb");
            if emptied { std::fs::write(&path, "") } else { std::fs::remove_file(&path) }.unwrap();
            for start in 1..=2 {
                let store = Checkpoints::open(dir.path());
                assert!(store.load(&name("app")).lost, "at start {start}");
                store.begin(&name("other"), "/x");
                assert!(store.flush());
                assert!(!store.load(&name("other")).lost, "it has begun");
            }
        }
    }

    #[test]
    fn what_is_stored_is_known_after_a_write_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Checkpoints::open(dir.path());
        store.begin(&name("app"), "/var/log/*.log");
        store.note(&name("app"), record(1, 10), 10);
        assert!(store.flush());
        // As a write that failed leaves it.
        lock(store.store.as_ref().unwrap()).close();
        let saved = store.load(&name("app"));
        assert_eq!((saved.path.as_deref(), saved.records.len()), (Some("/var/log/*.log"), 1));
        lock(store.store.as_ref().unwrap()).close();
        std::fs::remove_file(dir.path().join("checkpoints.redb")).unwrap();
        std::fs::create_dir(dir.path().join("checkpoints.redb")).unwrap();
        assert!(store.load(&name("app")).lost, "what cannot be read is lost, not unknown");
    }

    #[test]
    fn too_much_unwritten_holds_reading_until_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Checkpoints::open(dir.path());
        store.note(&name("app"), record(1, 1), ACKED_BYTES_MAX + 1);
        assert!(store.is_behind());
        assert!(store.flush());
        assert!(!store.is_behind());
    }
}
