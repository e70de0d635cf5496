//! Wakes pipelines when something happens in the directories they care about.
//!
//! In: directories. Out: hints, collected until they are asked for, and one wake-up for all of
//! them. Hints may be missing (full queue, watch limit, network filesystem) or too many: sources
//! poll and rescan anyway. Directories are watched, not files.
//!
//! The kernel wakes the thread of notify for each event. One for each line would be most of what a
//! busy file costs, so that thread rests while the pipeline it would wake is awake anyway: what
//! happens to a file meanwhile becomes one event in the kernel's queue.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tracing::{debug, warn};

/// More hints than this are one: look at everything.
const HINTS_MAX: usize = 1024;

/// How long events stay in the kernel's queue after one that woke nobody. Those of another file
/// wait so long at most, and only while one is busy.
const REST: Duration = Duration::from_millis(4);

/// How long events are read before the next rest, where there may be more of them. It is time for
/// hundreds: the events of several busy files do not become one, and the queue holds 16,384 by default.
const WORK: Duration = Duration::from_micros(500);

/// The watches of all pipelines. Cheap to clone.
#[derive(Clone)]
pub struct Watcher {
    /// Never locked by the thread that serves events: it may be waited for with this lock held.
    notify: Arc<Mutex<Option<RecommendedWatcher>>>,
    routes: Arc<Mutex<Routes>>,
}

#[derive(Default)]
struct Routes {
    dirs: HashMap<PathBuf, Vec<Arc<Hints>>>,
    warned: bool,
}

struct Hints {
    collected: Mutex<Collected>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// What happened since it was last asked for.
#[derive(Debug, Default)]
pub struct Collected {
    /// Paths at which something happened.
    pub paths: HashSet<PathBuf>,
    /// Names may have appeared, changed or gone.
    pub names_changed: bool,
    /// Watched directories that were deleted or renamed, and their watches with them.
    ended: BTreeSet<PathBuf>,
    woken: bool,
}

/// The watches of one pipeline, ended when it is dropped.
pub struct Subscription {
    watcher: Watcher,
    hints: Arc<Hints>,
    dirs: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Starts watching nothing. Without the kernel's help, sources poll.
    pub fn start() -> Self {
        let routes = Arc::new(Mutex::new(Routes::default()));
        let served = routes.clone();
        let (mut last, mut rested) = (Event::default(), Instant::now());
        let notify = notify::recommended_watcher(move |event| {
            let event = match event {
                Ok(event) => event,
                Err(error) => return debug!(%error, "a file event was lost"),
            };
            // The kernel's queue never has two of the same one behind the other: it was empty.
            let was_empty = event == last;
            if serve(&served, &event) && (was_empty || rested.elapsed() >= WORK) {
                thread::sleep(REST);
                rested = Instant::now();
            }
            last = event;
        });
        let notify = notify.inspect_err(|error| warn!(%error, "no file events; files are polled")).ok();
        Self { notify: Arc::new(Mutex::new(notify)), routes }
    }

    /// A pipeline that `wake` wakes. It is called once until the hints are taken, and must not block.
    pub fn subscribe(&self, wake: impl Fn() + Send + Sync + 'static) -> Subscription {
        let hints = Arc::new(Hints { collected: Mutex::default(), wake: Box::new(wake) });
        Subscription { watcher: self.clone(), hints, dirs: BTreeSet::new() }
    }

    fn watch(&self, dir: &Path, hints: &Arc<Hints>) {
        // Held throughout, so that a neighbour who leaves the directory now does not end the watch.
        let mut notify = lock(&self.notify);
        let mut routes = lock(&self.routes);
        let subscribers = routes.dirs.entry(dir.into()).or_default();
        subscribers.push(hints.clone());
        if subscribers.len() > 1 {
            return;
        }
        drop(routes);
        let result = notify.as_mut().map(|notify| notify.watch(dir, RecursiveMode::NonRecursive));
        if let Some(Err(error)) = result
            && !std::mem::replace(&mut lock(&self.routes).warned, true)
        {
            warn!(dir = %dir.display(), %error,
                "a directory cannot be watched; it is polled instead (raise fs.inotify.max_user_watches)");
        }
    }

    fn unwatch(&self, dir: &Path, hints: &Arc<Hints>) {
        let mut notify = lock(&self.notify);
        let mut routes = lock(&self.routes);
        let Some(subscribers) = routes.dirs.get_mut(dir) else { return };
        subscribers.retain(|other| !Arc::ptr_eq(other, hints));
        if !subscribers.is_empty() {
            return;
        }
        routes.dirs.remove(dir);
        drop(routes);
        if let Some(notify) = notify.as_mut() {
            // It may be gone already, and its watch with it.
            let _ = notify.unwatch(dir);
        }
    }
}

impl Subscription {
    /// Watches exactly these directories from now on. Returns whether any of them is new: what
    /// appeared in it before now was not noticed.
    pub fn watch(&mut self, dirs: BTreeSet<PathBuf>) -> bool {
        for gone in self.dirs.difference(&dirs) {
            self.watcher.unwatch(gone, &self.hints);
        }
        let mut any_new = false;
        for new in dirs.difference(&self.dirs) {
            self.watcher.watch(new, &self.hints);
            any_new = true;
        }
        self.dirs = dirs;
        any_new
    }

    /// What happened since the last time. Until this says that nothing did, nobody is woken: while
    /// a writer is busy, it is for the pipeline to say how often it looks.
    pub fn take(&mut self) -> Option<Collected> {
        let mut hints = lock(&self.hints.collected);
        let collected = std::mem::take(&mut *hints);
        hints.woken = !collected.is_empty();
        drop(hints);
        if collected.is_empty() {
            return None;
        }
        for dir in &collected.ended {
            // Another directory may have its name by now, and is to be watched anew.
            self.watcher.unwatch(dir, &self.hints);
            self.dirs.remove(dir);
        }
        Some(collected)
    }
}

impl Collected {
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.names_changed
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.watch(BTreeSet::new());
    }
}

impl Hints {
    /// Returns whether that woke the pipeline.
    fn add(&self, path: Option<&Path>, names_changed: bool) -> bool {
        let mut collected = lock(&self.collected);
        collected.names_changed |= names_changed || collected.paths.len() >= HINTS_MAX;
        if let Some(path) = path.filter(|_| collected.paths.len() < HINTS_MAX)
            && !collected.paths.contains(path)
        {
            collected.paths.insert(path.into());
        }
        let wake = !std::mem::replace(&mut collected.woken, true);
        drop(collected);
        if wake {
            (self.wake)();
        }
        wake
    }
}

/// Runs on the thread of notify. Returns whether all that the event matters to were awake already.
fn serve(routes: &Mutex<Routes>, event: &Event) -> bool {
    let routes = lock(routes);
    if event.need_rescan() {
        routes.dirs.values().flatten().for_each(|hints| _ = hints.add(None, true));
        return false;
    }
    let names_changed = match event.kind {
        EventKind::Access(_) => return false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => false,
        _ => true,
    };
    let is_end = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
    let mut woke = false;
    for path in &event.paths {
        for hints in path.parent().and_then(|parent| routes.dirs.get(parent)).into_iter().flatten() {
            woke |= hints.add(Some(path), names_changed);
        }
        for hints in routes.dirs.get(path).into_iter().flatten() {
            if is_end {
                lock(&hints.collected).ended.insert(path.clone());
            }
            woke |= hints.add(Some(path), names_changed);
        }
    }
    !woke
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::mpsc;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// How often the thread `proc/self/task/N` has waited.
    fn waits(thread: &Path) -> u64 {
        let status = std::fs::read_to_string(Path::new("/proc").join(thread).join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Takes hints until one is about `path`; returns whether any was about names.
    fn await_hint(subscription: &mut Subscription, woken: &mpsc::Receiver<()>, path: &Path) -> bool {
        let (mut found, mut names_changed) = (false, false);
        loop {
            match subscription.take() {
                Some(collected) => {
                    names_changed |= collected.names_changed;
                    found |= collected.paths.contains(path);
                }
                None if found => return names_changed,
                None => woken.recv_timeout(DEADLINE).unwrap(),
            }
        }
    }

    #[test]
    fn a_write_wakes_once_until_the_hints_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, woken) = mpsc::channel();
        let watcher = Watcher::start();
        let mut subscription = watcher.subscribe(move || sender.send(()).unwrap_or_default());
        assert!(subscription.watch([dir.path().to_path_buf()].into()));
        let path = dir.path().join("a.log");
        std::fs::write(&path, "one\n").unwrap();
        assert!(await_hint(&mut subscription, &woken, &path));
        for _ in 0..100 {
            std::fs::write(&path, "more\n").unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        assert!(subscription.watch([dir.path().into(), other.path().into()].into()));
        let last = other.path().join("b.log");
        std::fs::write(&last, "last\n").unwrap();
        while !lock(&subscription.hints.collected).paths.contains(&last) {
            std::thread::yield_now();
        }
        // Perhaps one that was answered before it was seen, and one for all these.
        assert!(woken.try_iter().count() <= 2);
        assert!(await_hint(&mut subscription, &woken, &last));
        assert!(!subscription.watch([other.path().to_path_buf()].into()));
        std::fs::write(&path, "not watched any more\n").unwrap();
        std::fs::write(&last, "watched\n").unwrap();
        assert!(!await_hint(&mut subscription, &woken, &last), "only its content changed");
    }

    #[test]
    fn the_thread_rests_while_a_pipeline_is_awake() {
        const LINES: u64 = 1_000;
        const PAUSE: Duration = Duration::from_micros(100);
        // Each rest is one, and there may be one for the next event; twice that.
        const WAITS_A_REST: u128 = 4;
        let dir = tempfile::tempdir().unwrap();
        let (sender, woken) = mpsc::channel();
        let watcher = Watcher::start();
        let this_thread = || std::fs::read_link("/proc/thread-self").unwrap();
        let mut subscription = watcher.subscribe(move || sender.send(this_thread()).unwrap_or_default());
        subscription.watch([dir.path().to_path_buf()].into());
        let mut file = std::fs::File::create(dir.path().join("a.log")).unwrap();
        let thread = woken.recv_timeout(DEADLINE).unwrap();
        let before = waits(&thread);
        let started = Instant::now();
        for _ in 0..LINES {
            file.write_all(b"more\n").unwrap();
            let written = Instant::now();
            while written.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
        }
        let rests = started.elapsed().as_micros() / REST.as_micros() + 1;
        let waits = waits(&thread) - before;
        assert!(u128::from(waits) < WAITS_A_REST * rests, "{waits} waits in the time of {rests} rests");
        let last = dir.path().join("last.log");
        std::fs::write(&last, "last\n").unwrap();
        let deadline = Instant::now() + DEADLINE;
        while !lock(&subscription.hints.collected).paths.contains(&last) {
            assert!(Instant::now() < deadline, "what was written last is not noticed");
            thread::yield_now();
        }
        assert!(woken.try_recv().is_err(), "woken again before it took its hints");
    }

    #[test]
    fn a_directory_that_is_made_again_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let (sender, woken) = mpsc::channel();
        let watcher = Watcher::start();
        let mut subscription = watcher.subscribe(move || sender.send(()).unwrap_or_default());
        subscription.watch([logs.clone()].into());
        std::fs::remove_dir(&logs).unwrap();
        std::fs::create_dir(&logs).unwrap();
        assert!(await_hint(&mut subscription, &woken, &logs));
        assert!(subscription.watch([logs.clone()].into()));
        let path = logs.join("a.log");
        std::fs::write(&path, "one\n").unwrap();
        await_hint(&mut subscription, &woken, &path);
    }

    #[test]
    fn a_neighbour_who_leaves_a_directory_does_not_end_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::start();
        let dirs = || BTreeSet::from([dir.path().to_path_buf()]);
        for turn in 0..200 {
            let (sender, woken) = mpsc::channel();
            let mut leaving = watcher.subscribe(|| ());
            leaving.watch(dirs());
            let mut staying = watcher.subscribe(move || sender.send(()).unwrap_or_default());
            std::thread::scope(|scope| {
                scope.spawn(move || drop(leaving));
                staying.watch(dirs());
            });
            std::fs::write(dir.path().join(format!("{turn}.log")), "one\n").unwrap();
            woken.recv_timeout(DEADLINE).unwrap();
        }
    }
}
