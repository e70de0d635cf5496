//! Lines set aside on the host: those that a filter or the broker refuses.
//!
//! In: a chunk's refused lines, with cause and place. Out: they are on the disk when
//! [`Quarantine::append`] returns, so the committed offset may move over them; later they can be
//! listed, read and removed. Absent by design: why a line is set aside and what happens while
//! there is no room (the pipeline holds), sending lines again (the agent does).
//!
//! One database in `<state>/quarantine/`, open in one process only: commands ask the agent.

use std::error::Error as _;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::model::{Digest, EntryName, Problem, Topic};
use crate::state::is_disk_failure;
use store::Store;

mod replay;
mod store;

pub use replay::{Replay, Replayed};

/// The database's name in the quarantine directory.
const FILE: &str = "quarantine.redb";

/// The longest part of a cause that is kept: it is for people, and a module may choose it. Bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// A line to set aside. `entry`, `file` and `offset` say which line it is: the same one is kept
/// once, however often it is appended.
#[derive(Clone, Debug)]
pub struct SetAside<'a> {
    /// Whose line it is.
    pub entry: &'a EntryName,
    /// Where it would have gone.
    pub topic: &'a Topic,
    /// The file's path, for people.
    pub path: &'a str,
    /// The incarnation of the file, as the offsets in the state know it.
    pub file: &'a str,
    /// Where the line begins in the file.
    pub offset: u64,
    /// The class of the cause, in one word.
    pub kind: &'a str,
    /// The cause.
    pub message: &'a str,
    /// The module that refused it; none if it was the broker.
    pub digest: Option<Digest>,
    /// The line as it was read, without its newline.
    pub line: &'a [u8],
}

/// A line that was set aside, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Names it in commands; grows with time and is never used again.
    pub id: u64,
    /// Whose line it is.
    pub entry: EntryName,
    /// Where it would have gone.
    pub topic: String,
    /// The file's path, for people.
    pub path: String,
    /// The incarnation of the file.
    pub file: String,
    /// Where the line begins in the file.
    pub offset: u64,
    /// When it was set aside; seconds since 1970.
    pub time: u64,
    /// The class of the cause, in one word.
    pub kind: String,
    /// The cause, its first 1,024 bytes.
    pub message: String,
    /// The module that refused it, as `sha256:…`; none if it was the broker.
    pub digest: Option<String>,
    /// Length of the line.
    pub bytes: u64,
}

impl Item {
    fn new(id: u64, time: u64, line: &SetAside<'_>) -> Self {
        let end = line.message.floor_char_boundary(MESSAGE_BYTES_MAX);
        Self {
            id,
            entry: line.entry.clone(),
            topic: line.topic.as_str().into(),
            path: line.path.into(),
            file: line.file.into(),
            offset: line.offset,
            time,
            kind: line.kind.into(),
            message: line.message[..end].into(),
            digest: line.digest.map(|digest| digest.to_string()),
            bytes: line.line.len() as u64,
        }
    }
}

/// Why a line is not in quarantine.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// There is no room for all of them; none was taken.
    #[error(
        "the quarantine is full: {used} of {limit} bytes are taken, {wanted} more are needed; \
         look at `weir quarantine ls`, then replay or remove lines, or raise `limits.quarantine`"
    )]
    Full {
        /// `limits.quarantine`.
        limit: u64,
        /// What is taken.
        used: u64,
        /// What the lines would take.
        wanted: u64,
    },
    /// The directory cannot be used.
    #[error("preparing the quarantine directory {}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("{operation} the quarantine {}", path.display())]
    Store {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}

impl QuarantineError {
    fn is_disk_failure(&self) -> bool {
        match self {
            Self::Full { .. } => false,
            Self::Directory { source, .. } => is_disk_failure(source),
            Self::Store { source, .. } => {
                matches!(&**source, redb::Error::Io(error) if is_disk_failure(error))
            }
        }
    }
}

/// The lines set aside on this host. Its bytes on disk are bounded: see `store::cost`.
#[derive(Debug)]
pub struct Quarantine {
    path: PathBuf,
    limit: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None` after a failure: redb wants to be opened again after one, such as a full disk.
    store: Option<Store>,
    problem: Option<Problem>,
}

impl Quarantine {
    /// Opens the quarantine in `dir`, which is created if need be, with room for `limit` bytes. A
    /// damaged one is moved aside and a new one begun: see [`Quarantine::problem`]. One on a disk that
    /// fails is opened again with the next line that needs it.
    pub fn open(dir: &Path, limit: u64) -> Result<Arc<Self>, QuarantineError> {
        let inner = Mutex::new(Inner { store: None, problem: None });
        let quarantine = Self { path: dir.join(FILE), limit, inner };
        match quarantine.with("opening", |_| Ok(())) {
            Err(error) if error.is_disk_failure() => {
                tracing::error!(error = %error, cause = error.source().map(ToString::to_string),
                    "lines cannot be set aside; an entry that has one to set aside holds until that works");
            }
            opened => opened?,
        }
        Ok(Arc::new(quarantine))
    }

    /// Sets lines aside, all or none. They are on the disk when this returns. Lines that are
    /// there already are left as they are.
    pub fn append(&self, lines: &[SetAside<'_>]) -> Result<(), QuarantineError> {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        match self.with("writing to", |store| store.append(lines, now, self.limit))? {
            store::Appended::All => Ok(()),
            store::Appended::Full { used, wanted } => {
                Err(QuarantineError::Full { limit: self.limit, used, wanted })
            }
        }
    }

    /// At most `most` items in order, beginning behind the item `after` (0 is before the first).
    pub fn list(&self, after: u64, most: usize) -> Result<Vec<Item>, QuarantineError> {
        self.with("reading", |store| store.list(after, most))
    }

    /// What is known about the line `id`, if it is there.
    pub fn item(&self, id: u64) -> Result<Option<Item>, QuarantineError> {
        let next = self.list(id.saturating_sub(1), 1)?.pop();
        Ok(next.filter(|item| item.id == id))
    }

    /// The content of the line `id`, if it is there.
    pub fn read(&self, id: u64) -> Result<Option<Vec<u8>>, QuarantineError> {
        self.with("reading", |store| store.read(id))
    }

    /// Removes lines and says how many of them were there.
    pub fn remove(&self, ids: &[u64]) -> Result<usize, QuarantineError> {
        self.with("removing from", |store| store.remove(ids))
    }

    /// `limits.quarantine`. Bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is taken of the limit. Bytes.
    pub fn used(&self) -> Result<u64, QuarantineError> {
        self.with("reading", Store::used)
    }

    /// Says that a damaged quarantine was found, where it is now.
    pub fn problem(&self) -> Option<Problem> {
        self.lock().problem.clone()
    }

    /// Does something with the store; opens it first if it is not open.
    fn with<T>(
        &self,
        operation: &'static str,
        what: impl FnOnce(&Store) -> Result<T, redb::Error>,
    ) -> Result<T, QuarantineError> {
        let fail = |operation, source| QuarantineError::Store {
            operation,
            path: self.path.clone(),
            source: Box::new(source),
        };
        let mut inner = self.lock();
        if inner.store.is_none() {
            if let Some(dir) = self.path.parent() {
                private_directory(dir)
                    .map_err(|source| QuarantineError::Directory { path: dir.into(), source })?;
            }
            let (store, problem) = open_or_begin(&self.path).map_err(|source| fail("opening", source))?;
            inner.store = Some(store);
            inner.problem = problem.or(inner.problem.take());
        }
        let store = inner.store.as_ref().expect("opened above");
        let result = what(store);
        if result.is_err() {
            inner.store = None;
        }
        result.map_err(|source| fail(operation, source))
    }

    /// redb leaves no half-done transaction behind, so a caller that panicked has spoilt nothing.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates `dir` for its owner alone, or takes others' rights to it away.
fn private_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if std::fs::metadata(dir)?.mode() & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Opens the database; a damaged one is kept under another name, and a new one begun.
fn open_or_begin(path: &Path) -> Result<(Store, Option<Problem>), redb::Error> {
    let damage = match Store::open(path) {
        Ok(store) => return Ok((store, None)),
        Err(error) if store::is_damage(&error) => error,
        Err(error) => return Err(error),
    };
    let kept = move_aside(path).map_err(redb::Error::Io)?;
    let store = Store::open(path)?;
    tracing::error!(%damage, kept = %kept.display(), "the quarantine was damaged; a new one was begun");
    let problem = Problem::new(
        path.display().to_string(),
        format!("the quarantine was damaged ({damage}) and is now {}; a new one was begun", kept.display()),
        "keep it if its lines matter, else remove it; look at the disk's health",
    );
    Ok((store, Some(problem)))
}

/// Renames `path` to a name that is free and says when.
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
    let name = |second: u64| path.with_file_name(format!("{FILE}.corrupt-{second}"));
    let kept = (now..).map(name).find(|name| !name.exists()).expect("some second is free");
    std::fs::rename(path, &kept)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    const ROOMY: u64 = 1 << 40;

    fn names() -> (EntryName, Topic) {
        (EntryName("app".into()), Topic::parse("app-logs").unwrap())
    }

    fn line<'a>((entry, topic): &'a (EntryName, Topic), offset: u64, line: &'a [u8]) -> SetAside<'a> {
        SetAside {
            entry,
            topic,
            path: "/var/log/app.log",
            file: "8:1:123456:99",
            offset,
            kind: "trap",
            message: "wasm trap: unreachable",
            digest: Some(Digest([7; 32])),
            line,
        }
    }

    fn open(dir: &TempDir, limit: u64) -> Arc<Quarantine> {
        Quarantine::open(&dir.path().join("quarantine"), limit).unwrap()
    }

    fn database(dir: &TempDir) -> PathBuf {
        dir.path().join("quarantine").join(FILE)
    }

    #[test]
    fn lines_are_there_with_cause_and_place_after_a_restart() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let long = "ä".repeat(MESSAGE_BYTES_MAX);
        let by_broker = SetAside { digest: None, message: &long, ..line(&names, 7, b"\xff\x00 two") };
        open(&dir, ROOMY).append(&[line(&names, 0, b"one"), by_broker]).unwrap();

        let quarantine = open(&dir, ROOMY);
        let items = quarantine.list(0, 10).unwrap();
        assert_eq!(items.iter().map(|item| item.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((items[0].entry.as_str(), items[0].topic.as_str()), ("app", "app-logs"));
        assert_eq!((items[0].path.as_str(), items[0].offset), ("/var/log/app.log", 0));
        assert_eq!((items[0].kind.as_str(), items[0].message.as_str()), ("trap", "wasm trap: unreachable"));
        assert_eq!(items[0].digest, Some(Digest([7; 32]).to_string()));
        assert!(items[0].time > 1_700_000_000);
        assert_eq!((items[1].offset, items[1].bytes, items[1].digest.as_ref()), (7, 6, None));
        assert_eq!(items[1].message.len(), MESSAGE_BYTES_MAX);
        assert_eq!(quarantine.read(2).unwrap().unwrap(), b"\xff\x00 two");
        assert_eq!(quarantine.read(3).unwrap(), None);
        assert_eq!(quarantine.problem(), None);
    }

    #[test]
    fn a_line_that_is_appended_again_is_kept_once() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, ROOMY);
        quarantine.append(&[line(&names, 0, b"one")]).unwrap();
        let used = quarantine.used().unwrap();
        drop(quarantine);

        let quarantine = open(&dir, used);
        quarantine.append(&[line(&names, 0, b"one"), line(&names, 0, b"one")]).unwrap();
        assert_eq!(quarantine.list(0, 10).unwrap().len(), 1);
        assert_eq!(quarantine.used().unwrap(), used);
    }

    #[test]
    fn the_same_offset_of_another_file_or_entry_is_another_line() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, ROOMY);
        let other = EntryName("other".into());
        let one = line(&names, 0, b"one");
        let two = SetAside { file: "8:1:123456:100", ..one.clone() };
        let three = SetAside { entry: &other, ..one.clone() };
        quarantine.append(&[one, two, three]).unwrap();
        assert_eq!(quarantine.list(0, 10).unwrap().len(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused_as_a_whole_and_fits_after_a_removal() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, 1500);
        quarantine.append(&[line(&names, 0, b"one"), line(&names, 4, b"two")]).unwrap();
        let used = quarantine.used().unwrap();
        let more = [line(&names, 8, b"three"), line(&names, 14, b"four")];
        let Err(QuarantineError::Full { limit, used: taken, wanted }) = quarantine.append(&more) else {
            panic!("it took more than its limit");
        };
        assert_eq!((limit, taken), (1500, used));
        assert!(wanted + used > limit);
        assert_eq!(quarantine.list(0, 10).unwrap().len(), 2);
        assert_eq!(quarantine.used().unwrap(), used);

        assert_eq!(quarantine.remove(&[1, 2, 99]).unwrap(), 2);
        assert_eq!(quarantine.used().unwrap(), 0);
        quarantine.append(&more).unwrap();
        assert_eq!(quarantine.list(0, 10).unwrap().iter().map(|item| item.id).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn the_database_on_disk_stays_within_the_limit() {
        const LIMIT: u64 = 8 << 20;
        /// redb's own header and free space: 1 MiB.
        const SLACK: u64 = 1 << 20;
        for bytes in [1, 400, 2_100, 5_000, 70_000, 262_144] {
            let (dir, names) = (TempDir::new().unwrap(), names());
            let (quarantine, content) = (open(&dir, LIMIT), vec![b'x'; bytes]);
            let chunk = (100_000 / bytes).clamp(1, 500) as u64;
            let full = (0..).step_by(chunk as usize).find_map(|first| {
                let lines: Vec<_> = (first..first + chunk).map(|n| line(&names, n, &content)).collect();
                quarantine.append(&lines).err()
            });
            assert!(matches!(full, Some(QuarantineError::Full { .. })), "{full:?}");
            let disk = std::fs::metadata(database(&dir)).unwrap().blocks() * 512;
            assert!(disk <= LIMIT + SLACK, "lines of {bytes} bytes took {disk} bytes on disk");
            assert!(disk >= LIMIT / 2, "lines of {bytes} bytes took only {disk} bytes on disk");
        }
    }

    #[test]
    fn items_are_listed_in_pages() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, ROOMY);
        quarantine.append(&(0..5).map(|n| line(&names, n, b"x")).collect::<Vec<_>>()).unwrap();
        let ids = |after, most| -> Vec<u64> {
            quarantine.list(after, most).unwrap().iter().map(|item| item.id).collect()
        };
        assert_eq!(ids(0, 2), [1, 2]);
        assert_eq!(ids(2, 2), [3, 4]);
        assert_eq!(ids(4, 2), [5]);
        assert!(ids(u64::MAX, 2).is_empty());
    }

    #[test]
    fn concurrent_appends_lose_and_double_nothing() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, ROOMY);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let (quarantine, names) = (&quarantine, &names);
                scope.spawn(move || {
                    for n in 0..10 {
                        // Every line is appended by two threads.
                        quarantine.append(&[line(names, thread / 2 * 10 + n, b"x")]).unwrap();
                    }
                });
            }
        });
        let mut offsets: Vec<_> = quarantine.list(0, 1000).unwrap().iter().map(|item| item.offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_database_is_kept_and_a_new_one_begun() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        open(&dir, ROOMY);
        std::fs::write(database(&dir), b"this is no database").unwrap();

        let quarantine = open(&dir, ROOMY);
        quarantine.append(&[line(&names, 0, b"one")]).unwrap();
        let problem = quarantine.problem().unwrap();
        let kept = std::fs::read_dir(dir.path().join("quarantine"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .find(|path| path.to_string_lossy().contains("quarantine.redb.corrupt-"))
            .unwrap();
        assert!(problem.cause.contains(kept.to_str().unwrap()), "{problem}");
        assert_eq!(std::fs::read(kept).unwrap(), b"this is no database");
    }

    #[test]
    fn a_database_in_use_is_not_moved_aside() {
        let dir = TempDir::new().unwrap();
        let _first = open(&dir, ROOMY);
        let second = Quarantine::open(&dir.path().join("quarantine"), ROOMY);
        assert!(matches!(second, Err(QuarantineError::Store { operation: "opening", .. })), "{second:?}");
        assert!(database(&dir).exists());
    }

    #[test]
    fn it_is_opened_again_after_a_failure() {
        let (dir, names) = (TempDir::new().unwrap(), names());
        let quarantine = open(&dir, ROOMY);
        quarantine.append(&[line(&names, 0, b"one")]).unwrap();
        let failed = quarantine.with("writing to", |_| Err::<(), _>(redb::Error::PreviousIo));
        assert!(matches!(failed, Err(QuarantineError::Store { operation: "writing to", .. })), "{failed:?}");
        assert!(quarantine.lock().store.is_none());
        quarantine.append(&[line(&names, 4, b"two")]).unwrap();
        assert_eq!(quarantine.list(0, 10).unwrap().len(), 2);
    }

    #[test]
    fn nobody_else_may_look_into_the_directory() {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("quarantine")).unwrap();
        open(&dir, ROOMY);
        let mode = std::fs::metadata(dir.path().join("quarantine")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever the disk does to the file: it opens, and holds either every line or none.
        #[test]
        fn damage_anywhere_is_survived(at in 0.0..1.0_f64, flip in 1..=255_u8, run in 1..9000_usize) {
            let (dir, names) = (TempDir::new().unwrap(), names());
            let content = vec![b'x'; 3000];
            let lines: Vec<_> = (0..40).map(|n| line(&names, n, &content)).collect();
            open(&dir, ROOMY).append(&lines).unwrap();
            let mut bytes = std::fs::read(database(&dir)).unwrap();
            let first = (at * bytes.len() as f64) as usize;
            bytes[first..].iter_mut().take(run).for_each(|byte| *byte ^= flip);
            std::fs::write(database(&dir), &bytes).unwrap();

            let quarantine = open(&dir, ROOMY);
            let items = quarantine.list(0, 100).unwrap();
            prop_assert_eq!(items.len(), if quarantine.problem().is_some() { 0 } else { 40 });
            for item in items {
                prop_assert_eq!(quarantine.read(item.id).unwrap().unwrap(), content.clone());
            }
            quarantine.append(&[line(&names, 1000, b"new")]).unwrap();
        }
    }
}
