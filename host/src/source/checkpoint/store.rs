//! The database of the offsets: opened, read, written. The only file of the room that knows redb.
//!
//! Where it can be read and not written, a copy in memory answers for it: a read-only disk costs
//! repeats of what is delivered meanwhile, and nothing else.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{Database, Error, ReadableDatabase, ReadableTable, StorageBackend as _, TableDefinition};

use super::{EntryRecord, Pending, RETIRED_KEPT, Saved, decode, encode, unix_seconds};
use crate::model::EntryName;

/// Stands in the table of entries where a store was lost; no entry has this name.
const LOST: &str = "";

/// What redb may keep in memory; its own default is 1 GiB. Bytes.
const CACHE_BYTES: usize = 1024 * 1024;

const FILES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("files.v1");
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries.v1");

/// How a database is got hold of; a test has other disks.
type Open = Box<dyn Fn(&Path) -> Result<Database, Error> + Send + Sync>;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub(super) struct StoreError {
    operation: &'static str,
    path: PathBuf,
    source: Box<Error>,
}

/// The database, open or to be opened.
pub(super) struct Store {
    path: PathBuf,
    open: Open,
    /// `None` after a failure: redb refuses all after an I/O error, so it is opened anew.
    database: Option<Database>,
    /// What it held when it was found unwritable.
    stand_in: Option<Database>,
    /// The next write notes that offsets were lost.
    mark_lost: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// The one at `path`, not opened yet.
    pub(super) fn at(path: PathBuf) -> Self {
        Self::with(path, create)
    }

    /// One that is gone with the process.
    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        Self::with(PathBuf::new(), |_| Ok(builder().create_with_backend(InMemoryBackend::new())?))
    }

    pub(super) fn with(
        path: PathBuf,
        open: impl Fn(&Path) -> Result<Database, Error> + Send + Sync + 'static,
    ) -> Self {
        Self { path, open: Box::new(open), database: None, stand_in: None, mark_lost: false }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it, unless it is open.
    pub(super) fn open(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let opened = (self.open)(&self.path).and_then(|database| prepare(&database).map(|()| database));
            self.database = Some(opened.map_err(|source| self.failed("open", source))?);
        }
        Ok(self.database.as_ref().expect("it was opened above"))
    }

    /// The next operation opens it anew.
    pub(super) fn close(&mut self) {
        self.database = None;
    }

    /// Renames a damaged one, so that a new one is begun; its new name.
    pub(super) fn move_aside(&self) -> Result<PathBuf, StoreError> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".corrupt-{}", unix_seconds()));
        let aside = PathBuf::from(name);
        std::fs::rename(&self.path, &aside).map_err(|error| self.failed("move aside", Error::Io(error)))?;
        Ok(aside)
    }

    /// Takes a copy of one that cannot be written; whether it could be read.
    pub(super) fn copy(&mut self) -> Result<(), StoreError> {
        let copied = copy_of(&self.path).map_err(|source| self.failed("read", source))?;
        self.stand_in = Some(copied);
        Ok(())
    }

    /// Entries that are not known were perhaps known once. It is noted with the next write, and kept
    /// as long as a retired entry: a crash before all of them have begun again must not make them new.
    pub(super) fn mark_lost(&mut self) {
        self.mark_lost = true;
    }

    /// Whether it was ever marked.
    pub(super) fn is_lost(&mut self) -> Result<bool, StoreError> {
        if self.mark_lost {
            return Ok(true);
        }
        let lost = |database: &Database| Ok(database.begin_read()?.open_table(ENTRIES)?.get(LOST)?.is_some());
        self.read_with(lost)
    }

    /// What it holds of an entry.
    pub(super) fn read(&mut self, entry: &EntryName) -> Result<Saved, StoreError> {
        self.read_with(|database| read(database, entry))
    }

    fn read_with<T>(&mut self, what: impl Fn(&Database) -> Result<T, Error>) -> Result<T, StoreError> {
        let failure = match self.open() {
            Ok(database) => match what(database) {
                Ok(read) => return Ok(read),
                Err(source) => self.failed("read", source),
            },
            Err(error) => error,
        };
        match &self.stand_in {
            Some(copy) => what(copy).map_err(|_| failure),
            None => Err(failure),
        }
    }

    /// Puts any bytes where the records of an entry and of its only file belong.
    #[cfg(any(test, fuzzing))]
    pub(super) fn put_raw(&mut self, entry: &EntryName, bytes: &[u8]) -> Result<(), Error> {
        let database = self.open().map_err(|error| *error.source)?;
        let transaction = database.begin_write()?;
        transaction.open_table(FILES)?.insert((entry.as_str(), 0), bytes)?;
        transaction.open_table(ENTRIES)?.insert(entry.as_str(), bytes)?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes what changed in one fsynced transaction.
    pub(super) fn write(&mut self, pending: &Pending) -> Result<(), StoreError> {
        let mark = self.mark_lost;
        let result = write(self.open()?, pending, mark).map_err(|source| self.failed("write to", source));
        match result {
            Ok(()) => (self.mark_lost, self.stand_in) = (false, None),
            Err(_) => self.close(),
        }
        result
    }

    fn failed(&self, operation: &'static str, source: Error) -> StoreError {
        StoreError { operation, path: self.path.clone(), source: Box::new(source) }
    }
}

impl StoreError {
    /// Whether the file, and not the disk, is at fault: one that is full leaves good offsets alone.
    pub(super) fn is_damage(&self) -> bool {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        match &*self.source {
            Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
            Error::DatabaseAlreadyOpen | Error::LockPoisoned(_) | Error::PreviousIo => false,
            _ => true,
        }
    }
}

/// Opens the file, or makes one whose name outlives a power cut.
fn create(path: &Path) -> Result<Database, Error> {
    let created = !path.exists();
    let database = builder().create(path)?;
    if created && let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::Io)?;
    }
    Ok(database)
}

/// A database in memory with the bytes of a file.
fn copy_of(path: &Path) -> Result<Database, Error> {
    let bytes = std::fs::read(path).map_err(Error::Io)?;
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes)).map_err(Error::Io)?;
    let database = builder().create_with_backend(memory)?;
    prepare(&database)?;
    Ok(database)
}

/// A damaged store is to be noticed when it is opened, not by a wrong offset.
pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true).set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the tables, and drops what was retired long ago.
fn prepare(database: &Database) -> Result<(), Error> {
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
    Ok(())
}

fn long_retired(entries: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Vec<String>, Error> {
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

fn read(database: &Database, entry: &EntryName) -> Result<Saved, Error> {
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

fn write(database: &Database, pending: &Pending, mark_lost: bool) -> Result<(), Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(FILES)?;
        for ((entry, incarnation), record) in &pending.files {
            let key = (entry.as_str(), *incarnation);
            match record {
                Some(record) => table.insert(key, encode(record).as_slice())?,
                None => table.remove(key)?,
            };
        }
        let mut table = transaction.open_table(ENTRIES)?;
        let lost = mark_lost.then(|| (LOST, String::new(), true));
        let entries = pending.entries.iter();
        let entries = entries.map(|(entry, (path, retired))| (entry.as_str(), path.clone(), *retired));
        for (entry, path, retired) in entries.chain(lost) {
            let record = EntryRecord { path, retired: retired.then(unix_seconds) };
            table.insert(entry, encode(&record).as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::checkpoint::Checkpoints;
    use crate::source::checkpoint::tests::{name, record};

    #[test]
    fn an_entry_retired_long_ago_is_dropped_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let database = create(&dir.path().join("checkpoints.redb")).unwrap();
        prepare(&database).unwrap();
        let transaction = database.begin_write().unwrap();
        for (entry, retired) in [("old", Some(1)), ("recent", Some(unix_seconds())), ("wanted", None)] {
            let value = encode(&EntryRecord { path: "/x".into(), retired });
            transaction.open_table(ENTRIES).unwrap().insert(entry, value.as_slice()).unwrap();
            let file = encode(&record(1, 1));
            transaction.open_table(FILES).unwrap().insert((entry, 1), file.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        let store = Checkpoints::open(dir.path());
        let files = |entry| store.load(&name(entry)).records.len();
        assert_eq!((files("old"), files("recent"), files("wanted")), (0, 1, 1));
    }
}
