//! The collect list from a file of this host.
//!
//! In: a path. Out: [`Wanted`] on every change of the list or of a module file that it names, by the
//! same rules as a list in etcd. Directories are watched, because editors rename; what is watched is
//! looked at each second as well, because events get lost; SIGHUP has all of it read again. Module files are handed to the module
//! cache, and named by digest from there on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::watch::Sender;

use super::kept::{Collector, Found, Kept, Merged, Reading, modules_of};
use super::list::Origin;
use super::modules::MODULE_BYTES_MOST;
use super::trust::Trust;
use super::{ModuleSink, Wanted};
use crate::config::OnDelete;
use crate::model::{Digest, ModuleRef};
use crate::policy::Keys;

/// Between two looks where not all events come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And where they come, as far as is known.
const LOOK_SELDOM: Duration = Duration::from_secs(5);
/// After an event: an editor or a build writes more than once.
const SETTLE: Duration = Duration::from_millis(30);
/// A file that was written so shortly before it was read may be written again within the same tick of
/// its time stamp, so it is read again.
const STAMP_TICK: Duration = Duration::from_secs(2);
/// Bytes. No list is so large; a log named by mistake is.
const LIST_BYTES_MOST: usize = 16 * 1024 * 1024;

/// Follows a list in a file.
pub(super) struct Follower {
    path: PathBuf,
    collector: Collector,
    kept: Kept,
    kept_path: PathBuf,
    list: Seen<Found>,
    modules: BTreeMap<PathBuf, Seen<Result<Digest, String>>>,
    sink: ModuleSink,
    out: Sender<Option<Wanted>>,
}

/// A file as it was when it was read last.
struct Seen<T> {
    stamp: Option<Stamp>,
    read_at: SystemTime,
    content: T,
}

/// Changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

impl Follower {
    /// `kept_path` is where the last good list is, or will be; `keys` sign lists, where there are any.
    pub(super) fn new(
        path: PathBuf,
        kept_path: PathBuf,
        keys: Keys,
        sink: ModuleSink,
        out: Sender<Option<Wanted>>,
    ) -> Self {
        let kept = Kept::load(&kept_path, "file");
        let origins = vec![Origin::File(path.clone())];
        let collector = Collector::new(origins, OnDelete::Keep, kept.lists.clone())
            .with_trust(Trust::new(keys, kept.serials.clone()));
        let list = Seen { stamp: None, read_at: SystemTime::UNIX_EPOCH, content: Found::Nothing };
        Self { path, collector, kept, kept_path, list, modules: BTreeMap::new(), sink, out }
    }

    /// Follows until it is dropped.
    pub(super) async fn run(mut self) {
        let (wake, mut woken) = mpsc::channel(1);
        let mut watched = Watched::new(wake);
        let mut hangup = signal(SignalKind::hangup()).ok();
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            // A look that panics would have stopped the agent elsewhere; here it ends the task.
            let Ok(back) = looked.await else { return };
            self = back;
            let next_look = watched.follow(self.files());
            tokio::select! {
                _ = woken.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    let _ = woken.try_recv();
                }
                () = tokio::time::sleep(next_look) => {}
                () = hung_up(&mut hangup) => self.forget_stamps(),
            }
        }
    }

    /// What was read is read again, whatever its time stamp says.
    fn forget_stamps(&mut self) {
        self.list.stamp = None;
        self.modules.values_mut().for_each(|seen| seen.stamp = None);
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        self.modules.keys().map(PathBuf::as_path).chain([self.path.as_path()])
    }

    /// Reads what changed, and says it if that changes what is wanted.
    fn look(&mut self) {
        let text = |path: &Path| match read(path, LIST_BYTES_MOST) {
            Ok(bytes) => Found::Text { bytes, modified: 0 },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
            Err(error) => Found::Unreadable(format!("cannot read it: {error}")),
        };
        let first = self.out.borrow().is_none();
        let mut changed = self.list.look(&self.path, text) || first;
        for (path, seen) in &mut self.modules {
            changed |= seen.look(path, |path| store(path, &self.sink));
        }
        if changed {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let revision = self.kept.revision + 1;
        let found = match self.list.content.clone() {
            Found::Text { bytes, .. } => Found::Text { bytes, modified: revision },
            other => other,
        };
        let merged = self.collector.read(&Reading { cluster: 0, revision, found: vec![found] });
        let modules = self.resolve(&merged);
        let Merged { state, entries, refused, problems } = merged;
        let source = format!("file {}", self.path.display());
        let before = BTreeMap::new();
        let mut wanted = Wanted { source, revision, state, entries, refused, problems, modules, before };
        let sent = self.out.send_if_modified(|old| {
            wanted.revision = old.as_ref().map_or(revision, |old| old.revision);
            if old.as_ref() == Some(&wanted) {
                return false;
            }
            wanted.revision = revision;
            *old = Some(wanted);
            true
        });
        if !sent {
            return;
        }
        let lists = self.collector.lists().to_vec();
        let serials = self.collector.serials().clone();
        self.kept = Kept { source: "file".into(), revision, lists, tags: BTreeMap::new(), serials };
        if let Err(error) = self.kept.save(&self.kept_path) {
            let path = self.kept_path.display();
            tracing::warn!(%path, %error, "the list cannot be kept on disk");
        }
    }

    fn resolve(&mut self, merged: &Merged) -> BTreeMap<ModuleRef, Result<Digest, String>> {
        let wanted = modules_of(&merged.entries);
        self.modules.retain(|path, _| wanted.contains(&ModuleRef::File(path.clone())));
        let mut digest = |module: &ModuleRef| match module {
            ModuleRef::Digest(digest) => Ok(*digest),
            ModuleRef::Tag(name) => Err(format!(
                "`{name}` is a tag, and the list of this host is in a file, so there is no module store; \
                 write the module's path with a `/`"
            )),
            ModuleRef::File(path) => {
                let seen = self.modules.entry(path.clone());
                let seen = seen.or_insert_with(|| Seen::read(path, |path| store(path, &self.sink)));
                seen.content.clone()
            }
        };
        wanted.iter().map(|module| (module.clone(), digest(module))).collect()
    }
}

async fn hung_up(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

impl<T: PartialEq> Seen<T> {
    fn read(path: &Path, read: impl Fn(&Path) -> T) -> Self {
        // The stamp first: a write in between makes the next look read again.
        let stamp = Stamp::of(path);
        Self { stamp, read_at: SystemTime::now(), content: read(path) }
    }

    /// Reads the file again if it may have changed. Whether its content did.
    fn look(&mut self, path: &Path, read: impl Fn(&Path) -> T) -> bool {
        if Stamp::of(path) == self.stamp && !self.stamp.is_some_and(|stamp| stamp.is_young(self.read_at)) {
            return false;
        }
        let before = std::mem::replace(self, Self::read(path, read));
        before.content != self.content
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self { modified: (meta.mtime(), meta.mtime_nsec()), size: meta.len(), inode: meta.ino() })
    }

    fn is_young(&self, at: SystemTime) -> bool {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (at.as_secs() as i64).abs_diff(self.modified.0) <= STAMP_TICK.as_secs()
    }
}

/// The bytes of a regular file of at most `most` bytes.
fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // A pipe would be waited for when it is opened.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

fn store(path: &Path, sink: &ModuleSink) -> Result<Digest, String> {
    let bytes =
        read(path, MODULE_BYTES_MOST).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    sink(&bytes).map_err(|error| format!("cannot keep {} in the module cache: {error}", path.display()))
}

/// The directories that are watched.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(wake: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an access; a full channel means that a look is coming anyway.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                let _ = wake.try_send(());
            }
        });
        let watcher =
            watcher.inspect_err(|error| tracing::warn!(%error, "no file events; looking each second"));
        Self { watcher: watcher.ok(), directories: BTreeSet::new() }
    }

    /// Watches the directories of `files`, and no others. How long no look is needed.
    fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) -> Duration {
        let Some(watcher) = &mut self.watcher else { return LOOK_EVERY };
        let directory = |file: &Path| match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let wanted: BTreeSet<_> = files.map(directory).collect();
        for gone in self.directories.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        // One that does not exist yet is tried again at each look.
        let old = std::mem::take(&mut self.directories);
        let mut watch = |path: &PathBuf| watcher.watch(path, RecursiveMode::NonRecursive).is_ok();
        let followed = wanted.iter().filter(|path| old.contains(*path) || watch(path));
        self.directories = followed.cloned().collect();
        if !self.directories.is_subset(&old) {
            // What happened in a directory since the last look and before its watch was not seen.
            Duration::ZERO
        } else if self.directories == wanted {
            LOOK_SELDOM
        } else {
            LOOK_EVERY
        }
    }
}
