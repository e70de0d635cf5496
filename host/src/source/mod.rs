//! Follows the files of one entry and cuts what is new in them into lines.
//!
//! In: wake-ups (hints only), a buffer to read into. Out: lines of one file with the range they
//! stand in, and per file the committed offset. Absent by design: filters, Kafka, threads.
//!
//! A name is only a way to find a file: each [`Tail`] belongs to an inode's one content. Whatever
//! happens to names is seen by a scan; whatever happens to content by the read itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, info, warn};

use self::checkpoint::{Checkpoints, Record, Saved};
use self::copies::Heads;
use self::discovery::{Found, Pattern};
use self::identity::{FileId, Stat, Trace, read_at};
use self::lines::{Lines, Rules};
use self::records::{Cutter, End};
use self::tail::{Fate, Fill, Tail, is_gone};
use self::tails::Tails;
use crate::ledger::Mark;
use crate::model::{Entry, EntryName, LongLine, StartAt};
use crate::policy::{FileShare, OpenError, Policy};
use crate::status::{FileStatus, Files};
use crate::telemetry::Seldom;

pub mod checkpoint;
mod copies;
pub mod discovery;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gzip;
pub mod identity;
pub mod lines;
mod packed;
pub mod records;
pub mod tail;
mod tails;
pub mod watch;

#[cfg(test)]
mod tests;

/// How often names are looked at without any hint: one path, or the files of a glob.
const RESCAN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The same, where there are so many files that this would cost more than a two-thousandth of a core.
const RESCAN_MAX: Duration = Duration::from_secs(60);

/// Every so many looks the directories are walked, whatever their times say: not every filesystem
/// keeps them.
const WALK_EVERY: u64 = 10;

/// How soon names are looked at again that change all the time.
const SCAN_PAUSE: Duration = Duration::from_millis(10);

/// How often open files are looked at without any hint.
const POLL: Duration = Duration::from_millis(250);

/// A file that did not grow for so long costs no descriptor.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// A renamed file that did not grow for so long is forgotten. Until then its writer may still have
/// it: a daemon that was not told to open a new one.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Numbers for the contents that one file has, one after the other. A file that is truncated more
/// often gets the number of a new one, which matters only for the order after a restart.
const CONTENTS: u64 = 1000;

/// Descriptors an entry keeps open for files that are read to their end.
const OPEN_MAX: usize = 128;

/// What is kept of a file: itself, its names, its heads, and its place in tables. Measured with 10,000 of
/// them (docs/performance.md).
const FILE_BYTES: u64 = 1536;

/// The first step back from the end of a file in search of its last newline. Bytes.
const LAST_LINE_BYTES: usize = 4096;

/// What deleted files may keep on the disk before they are delivered.
#[derive(Clone, Copy, Debug)]
pub struct HeldLimits {
    /// How long.
    pub age: Duration,
    /// How much disk they pin. Bytes.
    pub bytes: u64,
}

/// The files of one entry.
pub struct Source {
    entry: EntryName,
    pattern: Pattern,
    /// What the last walk found, where the next one may find the same.
    found: Option<Found>,
    cutter: Cutter,
    start_at: StartAt,
    policy: Arc<Policy>,
    checkpoints: Arc<Checkpoints>,
    held_limits: HeldLimits,
    tails: Tails,
    by_id: HashMap<FileId, u64>,
    by_path: HashMap<Arc<Path>, u64>,
    /// Names that are links, by where they led to when names were looked at last.
    links: HashMap<PathBuf, PathBuf>,
    /// The newest file that had this name first.
    by_origin: HashMap<Arc<Path>, u64>,
    heads: Heads,
    /// Files that are polled: open ones, and renamed or deleted ones that are not finished. The
    /// others cost nothing but a look at each scan.
    awake: BTreeSet<u64>,
    /// Files with lines that may not be a whole record, and when they are taken as one.
    flushes: BTreeSet<(Instant, u64)>,
    /// Files with something new, in the order in which they are read.
    turns: VecDeque<u64>,
    first: Option<Saved>,
    scan_due: bool,
    /// When names were looked at last, and how often they were.
    scanned: Instant,
    scans: u64,
    /// When names are looked at with a hint, and without.
    next_scan: (Instant, Instant),
    polled: Instant,
    ending: bool,
    last_incarnation: u64,
    need: Option<usize>,
    lost: BTreeMap<&'static str, u64>,
    rewinds: BTreeMap<&'static str, u64>,
    rewind_told: Seldom,
    troubles: BTreeMap<Arc<Path>, String>,
    /// What it may follow of the files of the host.
    share: FileShare,
}

/// How far the files of an entry are, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Files that are followed, and others that are not finished.
    pub files: u64,
    /// Bytes that are not finished.
    pub lag_bytes: u64,
    /// Since when the oldest of these have been there.
    pub lag_since: Option<Instant>,
    /// Bytes of deleted and renamed files that are kept open.
    pub held_bytes: u64,
}

/// Lines that were read and are not yet part of a chunk.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Of which file.
    pub incarnation: u64,
    /// Its name, for people and filters.
    pub path: Arc<Path>,
    /// Its first name, for the partition.
    pub origin: Arc<Path>,
    /// Where the first byte of the buffer stands in the file.
    pub offset: u64,
    inside: bool,
}

impl Source {
    /// The files of `entry`, as far as `checkpoints` knows them.
    pub fn new(
        entry: &Entry,
        policy: Arc<Policy>,
        checkpoints: Arc<Checkpoints>,
        held_limits: HeldLimits,
    ) -> Result<Self, globset::Error> {
        let now = Instant::now();
        Ok(Self {
            entry: entry.name.clone(),
            pattern: Pattern::new(&entry.path, &entry.exclude)?,
            found: None,
            cutter: Cutter::new(entry),
            start_at: entry.start_at,
            share: policy.file_share(),
            policy,
            first: Some(checkpoints.load(&entry.name)),
            checkpoints,
            held_limits,
            tails: Tails::default(),
            by_id: HashMap::new(),
            by_path: HashMap::new(),
            links: HashMap::new(),
            by_origin: HashMap::new(),
            heads: Heads::default(),
            awake: BTreeSet::new(),
            flushes: BTreeSet::new(),
            turns: VecDeque::new(),
            scan_due: true,
            scanned: now,
            scans: 0,
            next_scan: (now, now),
            polled: now,
            ending: false,
            last_incarnation: 0,
            need: None,
            lost: BTreeMap::new(),
            rewinds: BTreeMap::new(),
            rewind_told: Seldom::default(),
            troubles: BTreeMap::new(),
        })
    }

    /// Something happened at these paths.
    pub fn hint(&mut self, paths: impl IntoIterator<Item = PathBuf>, names_changed: bool, now: Instant) {
        self.scan_due |= names_changed;
        for path in paths {
            let path = self.links.get(&path).unwrap_or(&path).as_path();
            let Some(key) = self.by_path.get(path).copied() else {
                self.scan_due |= self.pattern.matches(path);
                continue;
            };
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            tail.hinted(now);
            self.scan_due |= !tail.poll(now);
            self.enqueue(key);
        }
    }

    /// A file that has something new is read when its turn comes.
    fn enqueue(&mut self, key: u64) {
        self.count_vanished(key);
        if let Some(tail) = self.tails.get_mut(&key).filter(|tail| tail.has_news() && !tail.queued) {
            tail.queued = true;
            self.turns.push_back(key);
        }
    }

    /// Does what is due: scan, poll, finish. Returns the directories to watch after a scan.
    pub fn tick(&mut self, now: Instant) -> Option<BTreeSet<PathBuf>> {
        let dirs = (now >= self.scan_at()).then(|| self.scan(now));
        self.flush(now);
        if now >= self.polled + POLL {
            self.polled = now;
            self.poll(now);
        }
        dirs
    }

    /// Records that nothing followed are read again, to be sent as they are.
    fn flush(&mut self, now: Instant) {
        while let Some((due, key)) = self.flushes.first().copied().filter(|(due, _)| *due <= now) {
            self.flushes.remove(&(due, key));
            if let Some(tail) = self.tails.get_mut(&key) {
                tail.flush_at = None;
                tail.release_partial();
                self.enqueue(key);
            }
        }
    }

    /// When the lines that are left of a file are taken as a whole record.
    fn plan_flush(&mut self, key: u64, due: Option<Instant>) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        let planned = std::mem::replace(&mut tail.flush_at, due);
        if planned != due {
            if let Some(planned) = planned {
                self.flushes.remove(&(planned, key));
            }
            self.flushes.extend(due.map(|due| (due, key)));
        }
    }

    fn scan_at(&self) -> Instant {
        if self.scan_due { self.next_scan.0 } else { self.next_scan.1 }
    }

    /// Looks at open files, and after those without their name.
    fn poll(&mut self, now: Instant) {
        for key in self.awake.clone() {
            self.look_after(key, now);
            self.look_at_twin(key, now);
        }
        self.close_idle(now);
        self.finish_moved(now);
        let tails = &self.tails;
        let is_awake = |tail: &Tail| {
            tail.is_open()
                || tail.twin.is_some()
                || (matches!(tail.fate, Fate::Moved { .. }) && !tail.is_finished())
        };
        self.awake.retain(|key| tails.get(key).is_some_and(is_awake));
    }

    /// Looks at all names.
    fn scan(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        let began = cpu_time();
        (self.scan_due, self.scanned) = (false, now);
        self.scans += 1;
        let mut found = self.find();
        self.links = std::mem::take(&mut found.links);
        let too_many = self.choose(&mut found.files);
        let is_all = too_many.is_none();
        self.forget_troubles(too_many);
        let named = self.look_at(&found.files);
        self.plan_scan(cpu_time().saturating_sub(began), now);
        if let Some(saved) = self.first.take() {
            self.begin(saved, &named, now);
        }
        for (path, stat) in &named {
            match self.by_id.get(&stat.id).copied() {
                Some(key) => self.still_there(key, path, stat, now),
                None => self.appeared(path, stat, Mark::default(), now),
            }
        }
        let nameless = |tail: &Tail| match tail.fate {
            Fate::Named => !self.has_name(tail),
            Fate::Moved { .. } => true,
            Fate::Over => false,
        };
        for key in self.keys(nameless) {
            self.has_no_name(key, now);
        }
        self.forget_moved(now);
        let dirs = found.dirs.clone();
        self.found = Some(found).filter(|found| is_all && found.is_dated());
        dirs
    }

    /// The names that there are.
    fn find(&mut self) -> Found {
        let may_know = !self.scans.is_multiple_of(WALK_EVERY);
        let known = self.found.take().filter(|found| may_know && found.is_current());
        // Twice as many as there may be, so that those which are followed are among them.
        known.unwrap_or_else(|| self.pattern.scan(self.share.most().saturating_mul(2)))
    }

    /// Scans take at most a twentieth of a core while names change all the time, and else so little
    /// that an idle entry costs nothing.
    fn plan_scan(&mut self, cost: Duration, now: Instant) {
        let rescan = if self.pattern.is_literal() { RESCAN.0 } else { RESCAN.1 };
        self.next_scan = (now + SCAN_PAUSE.max(cost * 20), now + rescan.max((cost * 2000).min(RESCAN_MAX)));
    }

    /// Leaves as many files as the policy of the host lets all entries follow, those first that are
    /// followed already. Why some were left out.
    fn choose(&mut self, files: &mut Vec<PathBuf>) -> Option<String> {
        let (wanted, granted) = (files.len(), self.share.take(files.len()));
        if granted == wanted {
            return None;
        }
        files.sort();
        files.sort_by_key(|path| !self.by_path.contains_key(path.as_path()));
        files.truncate(granted);
        let most = self.share.most();
        Some(format!(
            "{granted} of {wanted} or more files are followed: max_files in this host's policy is {most} for all entries"
        ))
    }

    /// Troubles that are over are not told any more; that there are too many files is told anew.
    fn forget_troubles(&mut self, too_many: Option<String>) {
        let whole: Arc<Path> = Path::new(self.pattern.text()).into();
        let told = self.troubles.get(&whole).cloned();
        let troubled = |path: &Path| {
            self.by_path
                .get(path)
                .and_then(|key| self.tails.get(key))
                .is_some_and(|tail| tail.trouble.is_some())
        };
        self.troubles.retain(|path, _| troubled(path));
        let Some(reason) = too_many else { return };
        if told.is_none() {
            warn!(entry = %self.entry, reason, "the rest is left alone");
        }
        self.troubles.entry(whole).or_insert(reason);
    }

    /// Those of which there is something to say, sorted, each file with one name: that by which it is
    /// followed, or else the first. What is no regular file is reported.
    fn look_at(&mut self, files: &[PathBuf]) -> Vec<(PathBuf, Stat)> {
        let mut named: Vec<(PathBuf, Stat)> = Vec::new();
        let mut at: HashMap<FileId, usize> = HashMap::new();
        for path in files {
            let Ok(stat) = Stat::at(path) else { continue };
            if !stat.regular {
                let trouble = format!("{} is not a regular file", path.display());
                self.troubles.insert(path.as_path().into(), trouble);
                continue;
            }
            let place = at.get(&stat.id).copied();
            let mut known = None;
            if let Some(tail) = self.by_id.get(&stat.id).and_then(|key| self.tails.get_mut(key)) {
                let was_found = std::mem::replace(&mut tail.found_by, self.scans) == self.scans;
                if place.is_none() && (was_found || tail.is_as_known(path, &stat)) {
                    continue;
                }
                known = Some(tail.path.clone());
            }
            let Some(place) = place else {
                at.insert(stat.id, named.len());
                named.push((path.clone(), stat));
                continue;
            };
            let is_other = |path: &Path| known.as_deref() != Some(path);
            let (before, _) = &named[place];
            if (is_other(path), path) < (is_other(before), before) {
                named[place] = (path.clone(), stat);
            }
        }
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        named
    }

    /// Whether the last look at names found the file, be it for another of its contents.
    fn has_name(&self, tail: &Tail) -> bool {
        let found = |tail: &Tail| tail.found_by == self.scans;
        let newest = || self.by_id.get(&tail.id).and_then(|key| self.tails.get(key));
        found(tail) || newest().is_some_and(found)
    }

    /// The first scan: what was followed before goes on where it was, and what is new begins where
    /// `start_at` says.
    fn begin(&mut self, saved: Saved, named: &[(PathBuf, Stat)], now: Instant) {
        let text = self.pattern.text().to_string();
        let present: HashMap<FileId, &(PathBuf, Stat)> = named.iter().map(|file| (file.1.id, file)).collect();
        let newest: HashMap<FileId, u64> =
            saved.records.iter().map(|record| (record.id, record.incarnation)).collect();
        // Of the files that had one name first, the one that has it now is the youngest.
        let mut records: Vec<&Record> = saved.records.iter().collect();
        records
            .sort_by_key(|record| present.get(&record.id).is_some_and(|(path, _)| *path == *record.origin));
        let mut others = HashSet::new();
        for record in records {
            self.last_incarnation = self.last_incarnation.max(record.incarnation);
            match present.get(&record.id) {
                // It was truncated since: its content is gone.
                _ if newest.get(&record.id) != Some(&record.incarnation) => {
                    self.count_lost("truncated", record.size.saturating_sub(record.committed), &record.path);
                    self.checkpoints.forget(&self.entry, record.incarnation);
                }
                Some((path, stat)) if self.is_other(record, path) != Some(false) => {
                    self.count_lost("deleted", record.size.saturating_sub(record.committed), &record.path);
                    self.checkpoints.forget(&self.entry, record.incarnation);
                    others.insert(stat.id);
                }
                Some((path, stat)) => self.insert(Tail::resume(record, path.as_path().into(), stat, now)),
                None => self.resume_moved(record, now),
            }
        }
        let same_path = saved.path.as_deref() == Some(&text);
        let at_end = !saved.lost && !same_path && self.start_at == StartAt::End;
        // New ones come last: they wait for what had their name before.
        let is_new = |stat: &Stat| !newest.contains_key(&stat.id) || others.contains(&stat.id);
        let new: Vec<_> = named.iter().filter(|(_, stat)| is_new(stat)).collect();
        for (path, origin, stat) in in_order_of_time(&new) {
            if saved.lost {
                *self.rewinds.entry("state_lost").or_default() += 1;
            }
            let mark = if at_end { self.last_line_end(path, stat) } else { Mark::default() };
            let key = self.follow(path, origin, stat, mark, now);
            if at_end {
                self.pass_over_packed(key, now);
            }
        }
        self.checkpoints.begin(&self.entry, &text);
        // Before the first line is read it is on the disk where the entry began, so that a crash
        // cannot move that place.
        self.checkpoints.flush();
    }

    /// Whether a file has the number of one that was followed, and is another: it has another name, and
    /// does not begin as that one did. Where files have a birth time their numbers tell them apart.
    /// `None`: nothing was read of it that would tell, so that either way it is read from its beginning.
    fn is_other(&self, record: &Record, path: &Path) -> Option<bool> {
        if record.id.birth.is_some() || path == &*record.path || record.packed.is_some() {
            return Some(false);
        }
        let opened = self.policy.open(path).ok().filter(|_| record.head.len > 0)?;
        record.head.matches(&opened.file).ok().map(|same| !same)
    }

    /// Whether the file under this name is not the one with number `key`, though it has its inode.
    fn was_reused(&self, key: u64, path: &Path) -> bool {
        let renamed = self.tails.get(&key).filter(|tail| tail.id.birth.is_none() && *tail.path != *path);
        renamed.is_some_and(|tail| self.is_other(&tail.record(), path) == Some(true))
    }

    /// A file that was followed and whose inode no longer has a matching name: renamed or lost
    /// while nobody looked, it is finished first.
    fn resume_moved(&mut self, record: &Record, now: Instant) {
        let found = find_by_id(&record.path, record.id);
        let found = found.map(|found| found.filter(|(path, _)| self.is_other(record, path) != Some(true)));
        match found {
            // It has its first name, which the entry does not want any more.
            Ok(Some((path, _))) if path == *record.origin => {}
            Ok(Some((path, stat))) => {
                info!(entry = %self.entry, was = %record.path.display(), path = %path.display(), "found a file that was renamed meanwhile");
                let mut tail = Tail::resume(record, path.into(), &stat, now);
                tail.fate = Fate::Moved { since: now, deleted: false };
                self.awake.insert(tail.incarnation);
                self.insert(tail);
                // By its name now it is known when it is compressed.
                self.note(record.incarnation, 0);
            }
            // A second look at the names decides, and whether it was copied.
            Ok(None) => {
                let mut tail = Tail::resume(record, record.path.clone(), &Stat::last(record), now);
                tail.fate = Fate::Moved { since: now, deleted: false };
                self.awake.insert(tail.incarnation);
                self.insert(tail);
            }
            Err(error) => {
                warn!(entry = %self.entry, path = %record.path.display(), %error, "cannot look for a file that was renamed meanwhile");
            }
        }
    }

    /// A file with a new name.
    fn appeared(&mut self, path: &Path, stat: &Stat, mark: Mark, now: Instant) {
        self.follow(path, path, stat, mark, now);
    }

    fn follow(&mut self, path: &Path, origin: &Path, stat: &Stat, mark: Mark, now: Instant) -> u64 {
        let incarnation = self.next_incarnation();
        debug!(entry = %self.entry, path = %path.display(), offset = mark.offset, "follows a file");
        let mut tail = Tail::new(incarnation, path.into(), stat, mark, now);
        if origin != path {
            tail.origin = origin.into();
        }
        self.insert(tail);
        // One that is renamed before anything of it is acknowledged is found again after a crash.
        self.note(incarnation, 0);
        incarnation
    }

    /// What a restart needs of a file, and by how many bytes its committed offset moved.
    fn note(&self, key: u64, bytes: u64) {
        if let Some(tail) = self.tails.get(&key) {
            self.checkpoints.note(&self.entry, tail.record(), bytes);
        }
    }

    fn still_there(&mut self, key: u64, path: &Path, stat: &Stat, now: Instant) {
        if self.tails.get(&key).is_some_and(|tail| tail.is_as_known(path, stat)) {
            return;
        }
        if self.was_reused(key, path) {
            let unread = self.tails.get(&key).map_or(0, Tail::unread);
            self.give_up(key, "deleted", unread);
            return self.appeared(path, stat, Mark::default(), now);
        }
        self.renamed(key, path);
        let Some(tail) = self.tails.get_mut(&key) else { return };
        tail.fate = Fate::Named;
        tail.sighted(stat, now);
        self.enqueue(key);
    }

    fn renamed(&mut self, key: u64, path: &Path) {
        let Some(tail) = self.tails.get_mut(&key).filter(|tail| *tail.path != *path) else { return };
        debug!(entry = %self.entry, was = %tail.path.display(), path = %path.display(), "a file was renamed");
        tail.trouble = None;
        let path: Arc<Path> = path.into();
        let was = std::mem::replace(&mut tail.path, path.clone());
        if self.by_path.get(&was) == Some(&key) {
            self.by_path.remove(&was);
        }
        self.by_path.insert(path, key);
        self.note(key, 0);
    }

    /// Renamed out of the pattern, or deleted.
    fn has_no_name(&mut self, key: u64, now: Instant) {
        if let Some(tail) = self.tails.get_mut(&key).filter(|tail| tail.fate == Fate::Named) {
            debug!(entry = %self.entry, path = %tail.path.display(), "a file lost its name; it is read to its end");
            tail.fate = Fate::Moved { since: now, deleted: false };
            self.awake.insert(key);
        }
        self.look_after(key, now);
    }

    /// Looks at a file. One without its name that is closed is looked for under another one, and
    /// held open while something of it is unread: it may be deleted at any time.
    fn look_after(&mut self, key: u64, now: Instant) {
        let Some(tail) = self.tails.get_mut(&key).filter(|tail| tail.fate != Fate::Over) else { return };
        let is_there = tail.poll(now);
        if matches!(tail.fate, Fate::Moved { .. }) {
            if !is_there && !self.find_again(key, now) {
                return;
            }
            let Some(tail) = self.tails.get_mut(&key) else { return };
            if tail.has_news() && !tail.is_open() && tail.not_before() <= now {
                // What cannot be opened now is tried again when it is read.
                let _ = tail.open(&self.policy, now);
                self.awake.insert(key);
            }
        }
        self.enqueue(key);
    }

    /// Whether a closed file was found under another name. One that was not is over, when a second
    /// look at all names has not found it either: directories that are renamed during a look hide what
    /// is in them from it.
    fn find_again(&mut self, key: u64, now: Instant) -> bool {
        let scanned = self.scanned;
        let Some(tail) = self.tails.get_mut(&key) else { return false };
        let looked_twice = matches!(tail.fate, Fate::Moved { since, .. } if since < scanned);
        let found = find_by_id(&tail.path, tail.id);
        match found.map(|found| found.filter(|(path, _)| !self.was_reused(key, path))) {
            Ok(Some((path, stat))) => {
                self.renamed(key, &path);
                self.tails.get_mut(&key).into_iter().for_each(|tail| tail.sighted(&stat, now));
                true
            }
            Ok(None) if self.find_in_copy(key, now) || self.find_packed(key, now) => true,
            Ok(None) if looked_twice => {
                let Some(tail) = self.tails.get(&key) else { return false };
                let unread = tail.unread();
                self.give_up(key, "deleted", unread);
                false
            }
            Ok(None) => {
                self.scan_due = true;
                true
            }
            // Nothing is known; the next look may tell.
            Err(_) => true,
        }
    }

    /// Nothing more is read of a file.
    fn give_up(&mut self, key: u64, reason: &'static str, unread: u64) {
        self.count_vanished(key);
        let Some(tail) = self.tails.get_mut(&key) else { return };
        tail.end();
        let path = tail.path.clone();
        self.count_lost(reason, unread, &path);
        // What a crash would take, now that it cannot be read again.
        self.note(key, 0);
        self.drop_if_over(key);
    }

    /// Contents that were seen at this name and were truncated before anything of them was read.
    fn count_vanished(&mut self, key: u64) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        let (bytes, path) = (tail.take_vanished(), &tail.path);
        if bytes > 0 {
            let path = path.clone();
            self.count_lost("truncated", bytes, &path);
        }
    }

    fn count_lost(&mut self, reason: &'static str, bytes: u64, path: &Path) {
        if bytes > 0 {
            warn!(entry = %self.entry, path = %path.display(), bytes, reason, "bytes were gone before they could be read");
            *self.lost.entry(reason).or_default() += bytes;
        }
    }

    /// After its last complete line.
    fn last_line_end(&self, path: &Path, stat: &Stat) -> Mark {
        let at_end = Mark { offset: stat.size, trace: Trace::default() };
        let Ok(opened) = self.policy.open(path) else { return at_end };
        let Rules { line_bytes_max, unit, .. } = *self.cutter.rules();
        let mut back = LAST_LINE_BYTES.min(line_bytes_max);
        loop {
            let from = stat.size.saturating_sub(back as u64);
            let Ok(tail) = read_at(&opened.file, from, (stat.size - from) as usize) else { return at_end };
            match unit.last_line_end(&tail, from) {
                Some(end) => {
                    return Mark { offset: from + end as u64, trace: Trace::of(&tail[..end]) };
                }
                None if from == 0 => return Mark::default(),
                None if back >= line_bytes_max => return at_end,
                None => back = (back * 8).min(line_bytes_max),
            }
        }
    }

    /// A file that had this name first is read before those that have it now.
    fn insert(&mut self, mut tail: Tail) {
        let key = tail.incarnation;
        tail.unit = self.cutter.rules().unit;
        tail.found_by = self.scans;
        self.by_id.insert(tail.id, key);
        self.by_path.insert(tail.path.clone(), key);
        self.heads.add(tail.heads(), key);
        tail.after = self.by_origin.insert(tail.origin.clone(), key);
        self.tails.insert(tail);
        self.enqueue(key);
    }

    /// The number of a new file. It grows over restarts, so that what is newer is found last.
    fn next_incarnation(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let next = (now / CONTENTS + 1) * CONTENTS;
        self.last_incarnation = next.max((self.last_incarnation / CONTENTS + 1) * CONTENTS);
        self.last_incarnation
    }

    /// The number of the next content of a file: behind that of the last one, and before those of
    /// files that are newer.
    fn next_content(&mut self, incarnation: u64) -> u64 {
        let next = incarnation + 1;
        let is_taken = next.is_multiple_of(CONTENTS) || self.tails.contains_key(&next);
        if is_taken { self.next_incarnation() } else { next }
    }

    fn close_idle(&mut self, now: Instant) {
        for key in self.awake.clone() {
            let idle = self.tails.get(&key).is_some_and(|tail| tail.quiet_for(now) > IDLE_AFTER);
            if idle || self.awake.len() > OPEN_MAX {
                self.close(key);
            }
        }
    }

    /// A file with a name and nothing new costs no descriptor.
    fn close(&mut self, key: u64) {
        let named = self.tails.get_mut(&key).filter(|tail| tail.fate == Fate::Named && !tail.has_news());
        if let Some(tail) = named {
            tail.close();
            self.awake.remove(&key);
        }
    }

    /// Lets go of renamed and deleted files that are read and delivered, and of deleted ones that
    /// were held for too long.
    fn finish_moved(&mut self, now: Instant) {
        let mut pinned: u64 = 0;
        for key in self.awake.clone().into_iter().rev() {
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            let Fate::Moved { since, deleted } = tail.fate else { continue };
            if tail.is_settled(now) && tail.holds_partial() {
                tail.release_partial();
                self.enqueue(key);
            } else if tail.is_settled(now) && tail.is_finished() {
                if deleted {
                    if !self.find_packed(key, now) {
                        self.give_up(key, "deleted", 0);
                    }
                } else {
                    tail.close();
                    let (origin, before) = (tail.origin.clone(), tail.after);
                    self.stand_in(&origin, key, before);
                }
            } else if deleted {
                pinned += tail.disk_bytes();
                let is_too_much = now - since > self.held_limits.age || pinned > self.held_limits.bytes;
                let unread = tail.unread();
                if is_too_much && !self.find_packed(key, now) {
                    self.give_up(key, "held_limit", unread);
                }
            }
        }
    }

    /// Renamed files that nobody writes to any more.
    fn forget_moved(&mut self, now: Instant) {
        let forgotten = |tail: &Tail| {
            let moved = matches!(tail.fate, Fate::Moved { .. });
            moved && tail.is_finished() && tail.quiet_for(now) > FORGOTTEN_AFTER
        };
        for key in self.keys(forgotten) {
            self.give_up(key, "deleted", 0);
        }
    }

    fn keys(&self, which: impl Fn(&Tail) -> bool) -> Vec<u64> {
        self.tails.values().filter(|tail| which(tail)).map(|tail| tail.incarnation).collect()
    }

    /// Drops a file that is over and of which nothing is under way any more.
    fn drop_if_over(&mut self, key: u64) {
        let over = |tail: &&Tail| tail.fate == Fate::Over && tail.ledger.is_empty();
        if self.tails.get(&key).filter(over).is_none() {
            return;
        }
        let Some(tail) = self.tails.remove(&key) else { return };
        self.awake.remove(&key);
        remove_if(&mut self.by_id, &tail.id, key);
        remove_if(&mut self.by_path, &tail.path, key);
        self.heads.remove(tail.heads(), key);
        let before = tail.after.filter(|before| self.tails.contains_key(before));
        self.stand_in(&tail.origin, key, before);
        self.checkpoints.forget(&self.entry, key);
    }

    /// Nothing will be appended any more as far as this run is concerned (`--once`).
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// Whether there is nothing to read now and, after [`Source::end`], will not be.
    pub fn is_drained(&self) -> bool {
        // What waits as another file's content, compressed, is that file's.
        let is_drained = |tail: &Tail| tail.is_drained() || (tail.is_packed() && tail.twin.is_some());
        self.first.is_none() && self.tails.values().all(is_drained)
    }

    /// Whether a file that has something new may be read: not before those that had its name.
    fn is_ready(&self, tail: &Tail) -> bool {
        if tail.twin.is_some() {
            return false;
        }
        let mut before = tail.after;
        while let Some(tail) = before.and_then(|key| self.tails.get(&key)) {
            let has_open_record = tail.flush_at.is_some() && tail.trouble.is_none();
            // What waits to be known as a copy holds up nobody, least of all what it was copied from.
            if (has_open_record || !tail.is_drained()) && tail.twin.is_none() {
                return false;
            }
            before = tail.after;
        }
        true
    }

    /// When there is something to look at without any hint.
    pub fn next_look(&self) -> Instant {
        let poll = (!self.awake.is_empty()).then_some(self.polled + POLL);
        let flush = self.flushes.first().map(|(due, _)| *due);
        [poll, flush].into_iter().flatten().fold(self.scan_at(), Instant::min)
    }

    /// When there may be something to read, as far as is known now.
    pub fn next_read(&self) -> Option<Instant> {
        let waiting = self.turns.iter().filter_map(|key| self.tails.get(key));
        waiting.filter(|tail| tail.has_news() && self.is_ready(tail)).map(Tail::not_before).min()
    }

    /// Reads from the next file that has something new, in turn. `lines` says where the lines
    /// stand in `buffer`; [`Source::take`] makes them a chunk.
    pub fn read(
        &mut self,
        want: usize,
        lines_max: usize,
        buffer: &mut Vec<u8>,
        lines: &mut Lines,
        now: Instant,
    ) -> Option<Piece> {
        self.need = None;
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            if !tail.has_news() {
                tail.queued = false;
                continue;
            }
            let Some(tail) = self.tails.get(&key) else { continue };
            if !self.is_ready(tail) || tail.not_before() > now {
                self.turns.push_back(key);
                continue;
            }
            let piece = self.read_file(key, want, lines_max, buffer, lines, now);
            if self.need.is_some() {
                // Its turn is not over.
                self.turns.push_front(key);
                return None;
            }
            self.turns.push_back(key);
            if piece.is_some() {
                return piece;
            }
        }
        None
    }

    /// How many bytes the next read must ask for, where the last one found no whole line in as many
    /// as it asked for.
    pub fn need(&self) -> Option<usize> {
        self.need
    }

    fn read_file(
        &mut self,
        key: u64,
        want: usize,
        lines_max: usize,
        buffer: &mut Vec<u8>,
        lines: &mut Lines,
        now: Instant,
    ) -> Option<Piece> {
        if self.vet(key, now).is_ok_and(|is_twin| is_twin) {
            return None;
        }
        let tail = self.tails.get_mut(&key)?;
        let fill = tail.fill(&self.policy, buffer, want, now);
        if tail.is_open() {
            self.awake.insert(key);
        }
        self.count_vanished(key);
        let tail = self.tails.get_mut(&key)?;
        let (len, full) = match fill {
            Ok(Fill::Bytes { len, full }) => {
                self.troubles.remove(&tail.path);
                (len, full)
            }
            Ok(Fill::Rewritten { lost }) => {
                self.begin_anew(key, lost, now);
                return None;
            }
            Ok(Fill::Busy) => return None,
            Ok(Fill::Other) => {
                self.leave_packed(key, now);
                return None;
            }
            Ok(Fill::Moved) => {
                self.scan_due = true;
                return None;
            }
            Ok(Fill::Closed) => {
                self.report_trouble(key);
                return None;
            }
            Err(error) => {
                tail.failed(&OpenError::Io(error), now);
                self.report_trouble(key);
                return None;
            }
        };
        lines.inside = tail.inside && self.cutter.rules().long_line != LongLine::Split;
        let (quiet_for, patience) = (tail.quiet_for(now), self.cutter.patience());
        let is_over = if tail.is_packed() { tail.is_unpacked() } else { self.ending || tail.is_settled(now) };
        let last = !full && is_over;
        let quiet = !full && patience.is_some_and(|patience| quiet_for >= patience);
        self.cutter.cut(buffer, len, tail.read_to(), lines_max, End { last, quiet }, lines);
        if lines.used > 0 {
            let (path, origin) = (tail.path.clone(), tail.origin.clone());
            let (offset, inside) = (tail.read_to(), lines.inside);
            self.plan_flush(key, None);
            return Some(Piece { incarnation: key, path, origin, offset, inside });
        }
        if full {
            self.need = Some(self.cutter.enough());
        } else if !self.is_damaged(key, now) {
            self.tails.get_mut(&key)?.hold_partial();
            let left = patience.filter(|_| lines.open).map(|patience| patience.saturating_sub(quiet_for));
            self.plan_flush(key, left.map(|left| now + left));
            self.close_surplus(key);
        }
        None
    }

    /// A file that was read to its end is closed at once where many are open.
    fn close_surplus(&mut self, key: u64) {
        if self.awake.len() > OPEN_MAX {
            self.close(key);
        }
    }

    /// The content is not what was read: the file begins again, as another incarnation. Where what it
    /// held was copied before, that is finished first.
    fn begin_anew(&mut self, key: u64, lost: u64, now: Instant) {
        let copy = self.find_copy(key);
        let incarnation = self.next_content(key);
        let Some(tail) = self.tails.get_mut(&key) else { return };
        *self.rewinds.entry("truncated").or_default() += 1;
        if let Some(held_back) = self.rewind_told.tell(now) {
            info!(entry = %self.entry, path = %tail.path.display(), held_back,
                "a file was truncated or rewritten; it is read from its beginning");
        }
        let mut anew = tail.begin_anew(incarnation, now);
        let path = anew.path.clone();
        self.awake.insert(incarnation);
        let lost = match copy {
            Some(copy) => {
                let lost = self.go_on_in_copy(key, copy, now);
                anew.after = Some(key);
                self.take_place(key, anew);
                lost
            }
            None if self.find_packed(key, now) => {
                anew.after = Some(key);
                self.by_id.insert(anew.id, key);
                self.by_path.insert(path.clone(), key);
                self.take_place(key, anew);
                0
            }
            None => {
                self.replace(key, anew);
                lost
            }
        };
        self.count_lost("truncated", lost, &path);
        self.note(incarnation, 0);
        // What a crash would take, where it cannot be read again.
        self.note(key, 0);
        self.drop_if_over(key);
    }

    /// What was true of the file with number `key` is true of `anew` now.
    fn replace(&mut self, key: u64, anew: Tail) {
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.end();
        }
        self.take_place(key, anew);
    }

    /// The names of the file with number `key`, and its place before those that came later, are those of
    /// `anew` now.
    fn take_place(&mut self, key: u64, mut anew: Tail) {
        let number = anew.incarnation;
        anew.found_by = self.scans;
        for place in [self.by_id.get_mut(&anew.id), self.by_path.get_mut(&anew.path)] {
            if let Some(place) = place.filter(|place| **place == key) {
                *place = number;
            }
        }
        self.stand_in(&anew.origin, key, Some(number));
        self.tails.insert(anew);
        self.enqueue(number);
    }

    /// Files that are to be read after `key` are to be read after `other` now.
    fn stand_in(&mut self, origin: &Path, key: u64, other: Option<u64>) {
        match (self.by_origin.get_mut(origin), other) {
            (Some(newest), Some(other)) if *newest == key => *newest = other,
            (Some(newest), None) if *newest == key => _ = self.by_origin.remove(origin),
            _ => {
                for tail in self.tails.values_mut().filter(|tail| tail.after == Some(key)) {
                    tail.after = other;
                }
            }
        }
    }

    fn report_trouble(&mut self, key: u64) {
        let Some((tail, trouble)) =
            self.tails.get(&key).and_then(|tail| Some((tail, tail.trouble.as_ref()?)))
        else {
            return;
        };
        let told = self.troubles.insert(tail.path.clone(), trouble.reason.clone());
        if told.as_ref() != Some(&trouble.reason) {
            warn!(entry = %self.entry, path = %tail.path.display(), reason = trouble.reason, "a file cannot be read");
        }
    }

    /// Only the first `lines_max` lines of what was read.
    pub fn cut_again(&self, piece: &Piece, buffer: &[u8], lines_max: usize, lines: &mut Lines) {
        let (used, raw) = (lines.used, lines.raw.take());
        let mut bytes = raw.as_deref().unwrap_or(buffer)[..used].to_vec();
        // A held line is behind the rest of a long line, which is cut off again as it was.
        lines.inside = lines.began_inside;
        self.cutter.cut(&mut bytes, used, piece.offset, lines_max, End::default(), lines);
        // The copy is transcoded as what was read had been.
        lines.raw = raw;
    }

    /// The first `lines.used` bytes of the piece are chunk `id` now; the rest is read again.
    pub fn take(&mut self, piece: &Piece, id: u64, buffer: &[u8], lines: &Lines, whole: bool) {
        if let Some(tail) = self.tails.get_mut(&piece.incarnation) {
            let known = tail.heads().len();
            tail.advance(id, lines.raw.as_deref().unwrap_or(buffer), lines.used);
            tail.inside = whole && piece.inside;
            if tail.heads().len() != known {
                self.heads.remove(tail.heads(), piece.incarnation);
                self.heads.add(tail.heads(), piece.incarnation);
                // After a crash it is known by them, compressed.
                self.note(piece.incarnation, 0);
            }
        }
        self.close_surplus(piece.incarnation);
    }

    /// Chunk `id` of the file is finished.
    pub fn finished(&mut self, incarnation: u64, id: u64) {
        let Some(tail) = self.tails.get_mut(&incarnation) else { return };
        let bytes = tail.finished(id);
        if bytes > 0 {
            self.note(incarnation, bytes);
        }
        self.drop_if_over(incarnation);
    }

    /// What is kept of its files. Bytes.
    pub fn memory(&self) -> u64 {
        self.tails.len() as u64 * FILE_BYTES
    }

    /// How far they are.
    pub fn standing(&mut self) -> Standing {
        let mut all = Standing::default();
        // In one pass: with many files it is mostly waiting for memory.
        for tail in self.tails.values_mut() {
            all.files += u64::from(tail.counts());
            // What waits as another file's content, compressed, is that file's.
            if tail.fate != Fate::Over && !(tail.is_packed() && tail.twin.is_some()) {
                all.lag_bytes += tail.lag();
                all.lag_since = [all.lag_since, tail.lag_since()].into_iter().flatten().min();
            }
            if tail.is_open() && matches!(tail.fate, Fate::Moved { .. }) {
                all.held_bytes += tail.disk_bytes();
            }
        }
        all
    }

    /// The same one by one, those that lag most first, and at most so many.
    pub fn list(&self, most: usize) -> Files {
        let mut tails: Vec<_> = self.tails.values().filter(|tail| tail.counts()).collect();
        tails.sort_by(|a, b| (b.lag(), &a.path).cmp(&(a.lag(), &b.path)));
        let files = tails.iter().take(most).map(|tail| FileStatus {
            path: tail.path.to_string_lossy().into_owned(),
            size: tail.size(),
            read_to: tail.read_to(),
            lag_bytes: tail.lag(),
            open: tail.is_open(),
            moved: tail.fate != Fate::Named,
            cause: tail.trouble.as_ref().map(|trouble| trouble.reason.clone()).unwrap_or_default(),
        });
        Files { total: tails.len() as u64, files: files.collect() }
    }

    /// Bytes that could not be saved since this was last asked for, by reason.
    pub fn take_lost(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.lost)
    }

    /// Files that are read again from their beginning since this was last asked for, by reason.
    pub fn take_rewinds(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.rewinds)
    }

    /// Files that cannot be read, and why.
    pub fn troubles(&self) -> &BTreeMap<Arc<Path>, String> {
        &self.troubles
    }
}

fn remove_if<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u64>, name: &K, key: u64) {
    if map.get(name) == Some(&key) {
        map.remove(name);
    }
}

/// New files and the names that they had first. Rotated ones of a file that is new, too, are read before
/// it, the oldest first, as if they had been followed when they had its name.
fn in_order_of_time<'a>(new: &[&'a (PathBuf, Stat)]) -> Vec<(&'a Path, &'a Path, &'a Stat)> {
    let by_name: HashMap<&Path, &Stat> = new.iter().map(|(path, stat)| (path.as_path(), stat)).collect();
    let with_origin = |(path, stat): &&'a (PathBuf, Stat)| {
        let live = rotated_from(path).and_then(|live| by_name.get_key_value(live.as_path()));
        let live = live.filter(|(_, live)| stat.modified <= live.modified);
        (path.as_path(), live.map_or(path.as_path(), |(live, _)| *live), stat)
    };
    let mut files: Vec<_> = new.iter().map(with_origin).collect();
    files.sort_by_key(|(path, origin, stat)| (path == origin, stat.modified));
    files
}

/// `app.log` of `app.log.1` and of `app.log-20261125`, compressed or not.
fn rotated_from(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let (live, generation) = name.strip_suffix(".gz").unwrap_or(name).rsplit_once(['.', '-'])?;
    generation.starts_with(|c: char| c.is_ascii_digit()).then(|| path.with_file_name(live))
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A file that lost its name is looked for in the directory it was in, and where its name was a
/// link, in the one that the link leads to now.
fn find_by_id(path: &Path, id: FileId) -> io::Result<Option<(PathBuf, Stat)>> {
    let dir = path.parent().unwrap_or(path);
    if let Some(found) = find_in(dir, id)? {
        return Ok(Some(found));
    }
    match std::fs::canonicalize(path).ok().as_deref().and_then(Path::parent) {
        Some(real) if real != dir => find_in(real, id),
        _ => Ok(None),
    }
}

fn find_in(dir: &Path, id: FileId) -> io::Result<Option<(PathBuf, Stat)>> {
    use std::os::unix::fs::DirEntryExt;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.ino() == id.ino
            && let Ok(stat) = Stat::at(&entry.path())
            && stat.id == id
        {
            return Ok(Some((entry.path(), stat)));
        }
    }
    Ok(None)
}
