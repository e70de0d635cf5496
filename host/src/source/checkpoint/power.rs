//! What the store holds after a power cut, and over errors of the disk: on a disk in memory that
//! forgets what was not synced, sector by sector.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use redb::StorageBackend;

use super::store::builder;
use super::tests::{name, record};
use super::{Checkpoints, Mutex, Saved, Store, lock};

/// A disk writes so much at once or not at all. Bytes.
const SECTOR: usize = 512;

/// A disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Media>>);

#[derive(Debug, Default)]
struct Media {
    /// As a reader sees it while the power is on.
    cached: Vec<u8>,
    /// What is there whatever happens.
    synced: Vec<u8>,
    /// Since the last sync, in order.
    unsynced: Vec<Change>,
    /// Operations until all fail; `None`: none does.
    left: Option<u64>,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Disk {
    fn checkpoints(&self) -> Checkpoints {
        let disk = self.clone();
        let open = move |_: &std::path::Path| Ok(builder().create_with_backend(disk.clone())?);
        Checkpoints::on(Store::with(PathBuf::from("checkpoints.redb"), open), false)
    }

    /// After so many operations every further one fails.
    fn fail_after(&self, operations: Option<u64>) {
        lock(&self.0).left = operations;
    }

    /// The power goes and comes back: of what was not synced each sector is there or not.
    fn cut(&self, mut survives: impl FnMut() -> bool) {
        let media = &mut *lock(&self.0);
        for change in std::mem::take(&mut media.unsynced) {
            match change {
                Change::Length(length) if survives() => media.synced.resize(length, 0),
                Change::Length(_) => {}
                Change::Bytes(at, bytes) => {
                    for (n, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| survives()) {
                        put(&mut media.synced, at + n * SECTOR, sector);
                    }
                }
            }
        }
        (media.cached, media.left) = (media.synced.clone(), None);
    }

    fn operate<T>(&self, what: impl FnOnce(&mut Media) -> T) -> io::Result<T> {
        let media = &mut *lock(&self.0);
        match &mut media.left {
            Some(0) => return Err(io::Error::from_raw_os_error(5)),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(what(media))
    }
}

/// Writes behind the end too, as files do.
fn put(media: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    media.resize(media.len().max(at + bytes.len()), 0);
    media[at..at + bytes.len()].copy_from_slice(bytes);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.operate(|media| media.cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        self.operate(|media| match media.cached.get(at..at + out.len()) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })?
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.operate(|media| {
            media.cached.resize(length as usize, 0);
            media.unsynced.push(Change::Length(length as usize));
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|media| {
            media.synced.clone_from(&media.cached);
            media.unsynced.clear();
        })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.operate(|media| {
            put(&mut media.cached, offset as usize, bytes);
            media.unsynced.push(Change::Bytes(offset as usize, bytes.to_vec()));
        })
    }
}

/// What was noted of the files of one entry.
#[derive(Default)]
struct Noted {
    /// Behind the first kept one, all that was noted since the last flush that succeeded.
    offsets: HashMap<u64, Vec<u64>>,
    begun: bool,
}

impl Noted {
    fn flushed(&mut self) {
        self.begun = true;
        for offsets in self.offsets.values_mut() {
            offsets.drain(..offsets.len() - 1);
        }
    }

    /// What is stored is what was noted, and no older than what was said to be on the disk.
    fn allow(&self, saved: &Saved) -> Result<(), TestCaseError> {
        prop_assert!(!saved.lost, "nothing was lost");
        prop_assert!(saved.path.is_some() || !self.begun, "the entry was known");
        for (file, offsets) in &self.offsets {
            let found = saved.records.iter().find(|record| record.incarnation == *file);
            let allowed = offsets.iter().map(|offset| record(*file, *offset));
            match found {
                Some(found) => prop_assert!(allowed.into_iter().any(|record| record == *found), "{found:?}"),
                None => prop_assert!(offsets[0] == 0, "file {file} was known at {}", offsets[0]),
            }
        }
        prop_assert!(saved.records.iter().all(|record| self.offsets.contains_key(&record.incarnation)));
        Ok(())
    }
}

/// A while of work: files whose offsets move, and after how many operations of the disk it ends.
type Round = (Vec<u64>, Option<u64>, u64);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (prop::collection::vec(0u64..6, 0..30), prop::option::of(0u64..120), any::<u64>());
    prop::collection::vec(round, 1..8)
}

/// Moves offsets, and flushes now and then; what is noted is known to the test first.
fn work(store: &Checkpoints, files: &[u64], next: &mut u64, noted: &mut Noted) {
    store.begin(&name("app"), "/var/log/*.log");
    for (n, file) in files.iter().enumerate() {
        *next += 1;
        noted.offsets.entry(*file).or_insert_with(|| vec![0]).push(*next);
        store.note(&name("app"), record(*file, *next), 1);
        if n % 4 == 3 && store.flush() {
            noted.flushed();
        }
    }
}

fn coin(mut seed: u64) -> impl FnMut() -> bool {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 63 == 1
    }
}

proptest! {
    #[test]
    fn after_a_power_cut_what_was_written_down_is_there_and_nothing_that_was_not_noted(rounds in rounds()) {
        let disk = Disk::default();
        // A store that was begun: one that is cut off in the making is a new one.
        drop(disk.checkpoints());
        let (mut next, mut noted) = (0, Noted::default());
        for (files, operations, seed) in rounds {
            disk.fail_after(operations);
            let store = disk.checkpoints();
            work(&store, &files, &mut next, &mut noted);
            disk.fail_after(Some(0));
            drop(store);
            disk.cut(coin(seed));
            let store = disk.checkpoints();
            prop_assert_eq!(store.errors().len(), 0, "a cut is no damage");
            let saved = store.load(&name("app"));
            noted.allow(&saved)?;
            // What is there now is on the disk, and is all that is known.
            noted.begun = saved.path.is_some();
            noted.offsets = saved.records.iter().map(|record| (record.incarnation, vec![record.committed])).collect();
        }
    }

    #[test]
    fn errors_of_the_disk_cost_nothing_once_it_works_again(rounds in rounds()) {
        let disk = Disk::default();
        let store = disk.checkpoints();
        let (mut next, mut noted) = (0, Noted::default());
        for (files, operations, _) in rounds {
            disk.fail_after(operations);
            work(&store, &files, &mut next, &mut noted);
            prop_assert!(operations.is_some() || store.problem().is_none());
            disk.fail_after(None);
            prop_assert!(store.flush());
            noted.flushed();
            prop_assert!(store.problem().is_none());
            noted.allow(&store.load(&name("app")))?;
        }
    }
}

#[test]
fn a_store_that_cannot_be_written_answers_and_what_is_new_is_written_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoints.redb");
    let store = Checkpoints::open(dir.path());
    store.begin(&name("app"), "/x");
    store.note(&name("app"), record(1, 10), 10);
    assert!(store.flush());
    drop(store);
    let read_only = Arc::new(Mutex::new(true));
    let open = {
        let read_only = read_only.clone();
        move |path: &std::path::Path| match *lock(&read_only) {
            true => Err(redb::Error::Io(io::ErrorKind::ReadOnlyFilesystem.into())),
            false => Ok(builder().create(path)?),
        }
    };
    let store = Checkpoints::on(Store::with(path, open), false);
    assert_eq!(store.errors(), [("open", 1)].into());
    assert!(store.problem().unwrap().cause.contains("read-only filesystem"), "{:?}", store.problem());
    assert_eq!(store.load(&name("app")).records, [record(1, 10)]);
    assert!(!store.load(&name("new")).lost, "it is new, not lost");
    store.note(&name("app"), record(1, 20), 10);
    store.begin(&name("new"), "/y");
    assert!(!store.flush());
    assert_eq!(store.load(&name("app")).records, [record(1, 20)], "what waits is newer than what is stored");
    assert_eq!(store.load(&name("new")).path.as_deref(), Some("/y"));
    *lock(&read_only) = false;
    assert!(store.flush());
    assert_eq!(store.problem(), None);
    drop(store);
    assert_eq!(Checkpoints::open(dir.path()).load(&name("app")).records, [record(1, 20)]);
}

#[test]
fn a_store_that_can_be_neither_read_nor_written_counts_as_lost() {
    let disk = Disk::default();
    drop(disk.checkpoints());
    disk.fail_after(Some(0));
    let store = disk.checkpoints();
    assert!(store.load(&name("app")).lost);
    assert!(store.problem().is_some());
}
