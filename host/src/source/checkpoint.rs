//! Committed offsets on disk, and which files an entry knew when it was first applied.
//!
//! In: a file's record whenever its committed offset moved. Out: the records of an entry when it
//! starts again. One thread writes what changed in one fsynced transaction, a few times a second
//! and at the latest after [`ACKED_BYTES_MAX`], off the data path. A store that cannot be written
//! stops nothing: lines are repeated after a restart, never lost.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::identity::{FileId, Head, Trace};
use crate::model::EntryName;

/// Bytes that may be acknowledged and not yet written down, over all entries. It bounds what is
/// repeated after a kill; when a slow disk reaches it, reading waits.
pub const ACKED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long a changed offset may wait.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long a store that failed is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// How long the offsets of an entry that is no longer in the list are kept.
const RETIRED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Stands in the table of entries where a store was lost; no entry has this name.
const LOST: &str = "";

/// What redb may keep in memory; its own default is 1 GiB. Bytes.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

const FILES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("files.v1");
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries.v1");

/// Where a file's reader is to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Tells apart the contents that one inode held one after the other.
    pub incarnation: u64,
    /// Its last known name.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// Its first known name, which chose the partition.
    #[serde(with = "path_bytes")]
    pub origin: PathBuf,
    /// Which file.
    pub id: FileId,
    /// All before this byte is finished.
    pub committed: u64,
    /// What stands before it.
    pub trace: Trace,
    /// What the file begins with.
    pub head: Head,
    /// Its size when last seen: what is missing of it when it is gone.
    #[serde(default)]
    pub size: u64,
    /// When it was last written to, as [`super::identity::Stat`] says it.
    #[serde(default)]
    pub modified: i64,
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

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct CheckpointError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: Box<redb::Error>,
}

/// The store and what waits to be written to it.
#[derive(Debug)]
pub struct Checkpoints {
    /// `None`: nothing is kept (`--stdout`).
    path: Option<PathBuf>,
    database: Mutex<Option<Database>>,
    lost: bool,
    pending: Mutex<Pending>,
    wake: Condvar,
    acked: AtomicU64,
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    /// `None` removes the record.
    files: HashMap<(EntryName, u64), Option<Record>>,
    /// Path, and whether it is retired.
    entries: HashMap<EntryName, (String, bool)>,
    stop: bool,
}

impl Checkpoints {
    /// Opens `checkpoints.redb` in `dir`. One that cannot be read is moved aside, and files are
    /// read from their beginning rather than lines lost.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("checkpoints.redb");
        let gone = std::fs::metadata(&path).map_or(true, |file| file.len() == 0) && was_used(dir);
        if gone {
            error!(path = %path.display(), "the stored offsets are gone; files are read from their beginning");
        }
        let (database, damaged) = match open(&path) {
            Ok(database) => (database, false),
            Err(reason) if is_damage(&reason.source) => {
                let aside = dir.join(format!("checkpoints.redb.corrupt-{}", unix_seconds()));
                error!(error = %chain(&reason), moved_to = %aside.display(),
                    "the stored offsets cannot be read; files are read from their beginning");
                if let Err(error) = std::fs::rename(&path, &aside) {
                    return Err(failed("move aside", &path, redb::Error::Io(error)));
                }
                (open(&path)?, true)
            }
            Err(reason) => return Err(reason),
        };
        if gone || damaged {
            mark_lost(&database).map_err(|source| failed("write to", &path, source))?;
        }
        let lost = is_lost(&database).map_err(|source| failed("read", &path, source))?;
        Ok(Self::new(Some(path), Some(database), lost))
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        Self::new(None, None, false)
    }

    fn new(path: Option<PathBuf>, database: Option<Database>, lost: bool) -> Self {
        Self {
            path,
            database: Mutex::new(database),
            lost,
            pending: Mutex::default(),
            wake: Condvar::new(),
            acked: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// What is known of an entry, what still waits to be written included.
    pub fn load(&self, entry: &EntryName) -> Saved {
        self.flush();
        let Some(path) = &self.path else { return Saved::default() };
        let mut database = lock(&self.database);
        // After a write that failed, the store is opened anew: what it holds is still true.
        let read = reopened(&mut database, path)
            .map_err(|error| chain(&error))
            .and_then(|database| read(database, entry).map_err(|error| error.to_string()));
        let mut saved = read.unwrap_or_else(|error| {
            error!(%entry, error, "stored offsets cannot be read; its files are read from their beginning");
            Saved { lost: true, ..Saved::default() }
        });
        saved.lost |= self.lost && saved.path.is_none();
        saved
    }

    /// The entry is wanted with this path; its offsets are kept.
    pub fn begin(&self, entry: &EntryName, path: &str) {
        lock(&self.pending).entries.insert(entry.clone(), (path.into(), false));
    }

    /// The entry is wanted no more; its offsets are kept for seven days.
    pub fn retire(&self, entry: &EntryName, path: &str) {
        lock(&self.pending).entries.insert(entry.clone(), (path.into(), true));
    }

    /// A file's committed offset moved by `bytes`.
    pub fn note(&self, entry: &EntryName, record: Record, bytes: u64) {
        if self.path.is_none() {
            return;
        }
        let mut pending = lock(&self.pending);
        pending.files.insert((entry.clone(), record.incarnation), Some(record));
        if self.acked.fetch_add(bytes, Ordering::Relaxed) + bytes >= ACKED_BYTES_MAX / 2 {
            self.wake.notify_all();
        }
    }

    /// The file will not be asked for again.
    pub fn forget(&self, entry: &EntryName, incarnation: u64) {
        lock(&self.pending).files.insert((entry.clone(), incarnation), None);
    }

    /// Whether so much is acknowledged and not written down that reading should wait.
    pub fn is_behind(&self) -> bool {
        self.acked.load(Ordering::Relaxed) > ACKED_BYTES_MAX && !self.failing.load(Ordering::Relaxed)
    }

    /// Whether the store cannot be written just now.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Writes down all that was noted so far. Returns whether it is on the disk.
    pub fn flush(&self) -> bool {
        if self.path.is_none() {
            return true;
        }
        self.write()
    }

    /// Writes what changed until [`Checkpoints::stop`], then a last time.
    pub fn run(&self) {
        loop {
            let pending = lock(&self.pending);
            let idle = |pending: &mut Pending| {
                !pending.stop && self.acked.load(Ordering::Relaxed) < ACKED_BYTES_MAX / 2
            };
            let (pending, _) =
                self.wake.wait_timeout_while(pending, INTERVAL, idle).unwrap_or_else(PoisonError::into_inner);
            let stop = pending.stop;
            drop(pending);
            let written = self.write();
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

    fn write(&self) -> bool {
        let mut database = lock(&self.database);
        let (files, entries, acked) = {
            let mut pending = lock(&self.pending);
            let acked = self.acked.load(Ordering::Relaxed);
            (std::mem::take(&mut pending.files), std::mem::take(&mut pending.entries), acked)
        };
        if files.is_empty() && entries.is_empty() {
            return true;
        }
        match self.commit(&mut database, &files, &entries) {
            Ok(()) => {
                self.acked.fetch_sub(acked, Ordering::Relaxed);
                if self.failing.swap(false, Ordering::Relaxed) {
                    info!("offsets are written again");
                }
                true
            }
            Err(reason) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    warn!(error = %chain(&reason),
                        "offsets cannot be written; delivery goes on, and a restart now would repeat lines");
                }
                // The next attempt begins with a newly opened store: redb refuses all after an I/O error.
                *database = None;
                let mut pending = lock(&self.pending);
                for (key, record) in files {
                    pending.files.entry(key).or_insert(record);
                }
                for (key, record) in entries {
                    pending.entries.entry(key).or_insert(record);
                }
                false
            }
        }
    }

    fn commit(
        &self,
        database: &mut Option<Database>,
        files: &HashMap<(EntryName, u64), Option<Record>>,
        entries: &HashMap<EntryName, (String, bool)>,
    ) -> Result<(), CheckpointError> {
        let Some(path) = &self.path else { return Ok(()) };
        let database = reopened(database, path)?;
        write(database, files, entries).map_err(|source| failed("write offsets to", path, source))
    }
}

fn write(
    database: &Database,
    files: &HashMap<(EntryName, u64), Option<Record>>,
    entries: &HashMap<EntryName, (String, bool)>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(FILES)?;
        for ((entry, incarnation), record) in files {
            let key = (entry.as_str(), *incarnation);
            match record {
                Some(record) => table.insert(key, encode(record).as_slice())?,
                None => table.remove(key)?,
            };
        }
        let mut table = transaction.open_table(ENTRIES)?;
        for (entry, (path, retired)) in entries {
            let record = EntryRecord { path: path.clone(), retired: retired.then(unix_seconds) };
            table.insert(entry.as_str(), encode(&record).as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn read(database: &Database, entry: &EntryName) -> Result<Saved, redb::Error> {
    let transaction = database.begin_read()?;
    let known = transaction.open_table(ENTRIES)?.get(entry.as_str())?;
    let known = known.and_then(|value| decode::<EntryRecord>(value.value()));
    let mut saved = Saved { path: known.map(|record| record.path), ..Saved::default() };
    let range = (entry.as_str(), 0)..=(entry.as_str(), u64::MAX);
    for item in transaction.open_table(FILES)?.range(range)? {
        match decode(item?.1.value()) {
            Some(record) => saved.records.push(record),
            None => saved.lost = true,
        }
    }
    Ok(saved)
}

fn open(path: &Path) -> Result<Database, CheckpointError> {
    prepare(path).map_err(|source| failed("open", path, source))
}

/// Whether the file, and not the disk, is at fault: one that is full leaves good offsets alone.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockPoisoned(_) => false,
        _ => true,
    }
}

/// The store, opened where it is not.
fn reopened<'a>(database: &'a mut Option<Database>, path: &Path) -> Result<&'a Database, CheckpointError> {
    match database {
        Some(database) => Ok(database),
        None => Ok(database.insert(open(path)?)),
    }
}

/// Notes that entries which are not known were perhaps known once. It is kept as long as a retired
/// entry: a crash before all of them have begun again must not make them new.
fn mark_lost(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let record = EntryRecord { path: String::new(), retired: Some(unix_seconds()) };
    transaction.open_table(ENTRIES)?.insert(LOST, encode(&record).as_slice())?;
    transaction.commit()?;
    Ok(())
}

fn is_lost(database: &Database) -> Result<bool, redb::Error> {
    Ok(database.begin_read()?.open_table(ENTRIES)?.get(LOST)?.is_some())
}

/// Whether an agent ran here before: there is more than the lock.
fn was_used(dir: &Path) -> bool {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name != "lock" && name != "checkpoints.redb")
}

/// Opens the store, makes its tables, and drops what was retired long ago.
fn prepare(path: &Path) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    // A damaged store is to be noticed here, not by a wrong offset.
    let database = builder.set_check_integrity_on_open(true).set_cache_size(CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut files = transaction.open_table(FILES)?;
        for name in long_retired(&entries)? {
            entries.remove(name.as_str())?;
            files.retain_in((name.as_str(), 0)..=(name.as_str(), u64::MAX), |_, _| false)?;
        }
    }
    transaction.commit()?;
    Ok(database)
}

fn long_retired(
    entries: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<String>, redb::Error> {
    let limit = unix_seconds().saturating_sub(RETIRED_KEPT.as_secs());
    let mut names = Vec::new();
    for item in entries.iter()? {
        let (name, value) = item?;
        let retired = decode::<EntryRecord>(value.value()).and_then(|record| record.retired);
        if retired.is_some_and(|at| at < limit) {
            names.push(name.value().to_string());
        }
    }
    Ok(names)
}

fn failed(operation: &'static str, path: &Path, source: redb::Error) -> CheckpointError {
    CheckpointError { operation, path: path.into(), source: Box::new(source) }
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

fn chain(error: &CheckpointError) -> String {
    format!("{error}: {}", error.source)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path as text, or as bytes where it is no UTF-8.
mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

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

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn name(text: &str) -> EntryName {
        EntryName(text.into())
    }

    fn record(incarnation: u64, committed: u64) -> Record {
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/var/log/\xff.log".to_vec()));
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
        }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = Checkpoints::open(dir.path()).unwrap();
        store.begin(&name("app"), "/var/log/*.log");
        store.note(&name("app"), record(1, 10), 10);
        store.note(&name("app"), record(1, 20), 10);
        store.note(&name("app"), record(2, 5), 5);
        store.note(&name("other"), record(3, 7), 7);
        store.forget(&name("app"), 2);
        assert!(store.flush());
        drop(store);
        let store = Checkpoints::open(dir.path()).unwrap();
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
        let store = Checkpoints::open(dir.path()).unwrap();
        assert!(store.load(&name("app")).lost);
        let aside = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
        assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().contains("corrupt")));
    }

    #[test]
    fn offsets_that_are_gone_from_a_used_directory_count_as_lost() {
        for emptied in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("lock"), "").unwrap();
            drop(Checkpoints::open(dir.path()).unwrap());
            assert!(!Checkpoints::open(dir.path()).unwrap().load(&name("new")).lost);
            std::fs::create_dir(dir.path().join("quarantine")).unwrap();
            let path = dir.path().join("checkpoints.redb");
            if emptied { std::fs::write(&path, "") } else { std::fs::remove_file(&path) }.unwrap();
            for start in 1..=2 {
                let store = Checkpoints::open(dir.path()).unwrap();
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
        let store = Checkpoints::open(dir.path()).unwrap();
        store.begin(&name("app"), "/var/log/*.log");
        store.note(&name("app"), record(1, 10), 10);
        assert!(store.flush());
        // As a write that failed leaves it.
        *lock(&store.database) = None;
        let saved = store.load(&name("app"));
        assert_eq!((saved.path.as_deref(), saved.records.len()), (Some("/var/log/*.log"), 1));
        *lock(&store.database) = None;
        std::fs::remove_file(dir.path().join("checkpoints.redb")).unwrap();
        std::fs::create_dir(dir.path().join("checkpoints.redb")).unwrap();
        assert!(store.load(&name("app")).lost, "what cannot be read is lost, not unknown");
    }

    #[test]
    fn an_entry_retired_long_ago_is_dropped_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoints.redb");
        let database = prepare(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        for (entry, retired) in [("old", Some(1)), ("recent", Some(unix_seconds())), ("wanted", None)] {
            let value = encode(&EntryRecord { path: "/x".into(), retired });
            transaction.open_table(ENTRIES).unwrap().insert(entry, value.as_slice()).unwrap();
            transaction
                .open_table(FILES)
                .unwrap()
                .insert((entry, 1), encode(&record(1, 1)).as_slice())
                .unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        let store = Checkpoints::open(dir.path()).unwrap();
        let files = |entry| store.load(&name(entry)).records.len();
        assert_eq!((files("old"), files("recent"), files("wanted")), (0, 1, 1));
    }

    #[test]
    fn too_much_unwritten_holds_reading_until_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Checkpoints::open(dir.path()).unwrap();
        store.note(&name("app"), record(1, 1), ACKED_BYTES_MAX + 1);
        assert!(store.is_behind());
        assert!(store.flush());
        assert!(!store.is_behind());
    }
}
