//! Follows the files of one entry and cuts what is new in them into lines.
//!
//! In: wake-ups (hints only), a buffer to read into. Out: lines of one file with the range they
//! stand in, and per file the committed offset. Absent by design: filters, Kafka, threads.
//!
//! A name is only a way to find a file: each [`Tail`] belongs to an inode's one content. Whatever
//! happens to names is seen by [`Source::scan`]; whatever happens to content by the read itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{debug, info, warn};

use self::checkpoint::{Checkpoints, Saved};
use self::discovery::{Found, Pattern};
use self::identity::{FileId, Stat, Trace, read_at};
use self::lines::{Lines, Rules};
use self::tail::{Fate, Fill, OpenTrouble, Tail};
use crate::ledger::Mark;
use crate::model::{Entry, EntryName, LongLine, StartAt};
use crate::policy::Policy;

pub mod checkpoint;
pub mod discovery;
pub mod identity;
pub mod lines;
pub mod tail;
pub mod watch;

/// How often names are looked at without any hint: one path, or the files of a glob.
const RESCAN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How often open files are looked at without any hint.
const POLL: Duration = Duration::from_millis(250);

/// A renamed or deleted file that was read to its end and did not grow for so long is finished:
/// its writer had the time to open the new one.
pub const FINISH_AFTER: Duration = Duration::from_secs(2);

/// A file that did not grow for so long costs no descriptor.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// Descriptors an entry keeps open for files that are read to their end.
const OPEN_MAX: usize = 128;

/// What deleted and renamed files may keep open before they are delivered.
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
    rules: Rules,
    start_at: StartAt,
    policy: Arc<Policy>,
    checkpoints: Arc<Checkpoints>,
    held_limits: HeldLimits,
    tails: BTreeMap<u64, Tail>,
    by_id: HashMap<FileId, u64>,
    by_path: HashMap<PathBuf, u64>,
    /// Files with something new, in the order in which they are read.
    turns: VecDeque<u64>,
    dirs: BTreeSet<PathBuf>,
    first: Option<Saved>,
    scanned: Instant,
    scan_due: bool,
    polled: Instant,
    ending: bool,
    last_incarnation: u64,
    need: Option<usize>,
    lost: BTreeMap<&'static str, u64>,
    troubles: BTreeMap<PathBuf, String>,
}

/// Lines that were read and are not yet part of a chunk.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Of which file.
    pub incarnation: u64,
    /// Its name, for people and filters.
    pub path: PathBuf,
    /// Its first name, for the partition.
    pub origin: PathBuf,
    /// Where the first byte of the buffer stands in the file.
    pub offset: u64,
    inside: bool,
}

impl Source {
    /// The files of `entry`, as far as `checkpoints` knows them.
    pub fn new(entry: &Entry, policy: Arc<Policy>, checkpoints: Arc<Checkpoints>, held_limits: HeldLimits) -> Result<Self, globset::Error> {
        let now = Instant::now();
        Ok(Self {
            entry: entry.name.clone(),
            pattern: Pattern::new(&entry.path, &entry.exclude)?,
            rules: Rules {
                skip_empty: entry.skip_empty,
                line_bytes_max: entry.line_bytes_max as usize,
                long_line: entry.long_line,
            },
            start_at: entry.start_at,
            policy,
            first: Some(checkpoints.load(&entry.name)),
            checkpoints,
            held_limits,
            tails: BTreeMap::new(),
            by_id: HashMap::new(),
            by_path: HashMap::new(),
            turns: VecDeque::new(),
            dirs: BTreeSet::new(),
            scanned: now,
            scan_due: true,
            polled: now,
            ending: false,
            last_incarnation: 0,
            need: None,
            lost: BTreeMap::new(),
            troubles: BTreeMap::new(),
        })
    }

    /// Something happened at these paths.
    pub fn hint(&mut self, paths: impl IntoIterator<Item = PathBuf>, names_changed: bool) {
        let now = Instant::now();
        self.scan_due |= names_changed;
        for path in paths {
            let Some(key) = self.by_path.get(&path).copied() else {
                self.scan_due |= self.pattern.matches(&path);
                continue;
            };
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            if tail.is_open() {
                tail.poll(now);
            } else if let Ok(stat) = Stat::at(&tail.path)
                && stat.id == tail.id
            {
                tail.sighted(stat.size, now);
            }
            self.enqueue(key);
        }
    }

    /// A file that has something new is read when its turn comes.
    fn enqueue(&mut self, key: u64) {
        if let Some(tail) = self.tails.get_mut(&key).filter(|tail| tail.has_news() && !tail.queued) {
            tail.queued = true;
            self.turns.push_back(key);
        }
    }

    /// Does what is due: scan, poll, finish. Returns the directories to watch when they changed.
    pub fn tick(&mut self, now: Instant) -> Option<BTreeSet<PathBuf>> {
        let rescan = if self.pattern.is_literal() { RESCAN.0 } else { RESCAN.1 };
        let mut dirs = None;
        if self.scan_due || now >= self.scanned + rescan {
            dirs = self.scan(now);
        }
        if now >= self.polled + POLL {
            self.polled = now;
            let open: Vec<u64> =
                self.tails.values().filter(|tail| tail.is_open()).map(|tail| tail.incarnation).collect();
            for key in open {
                if let Some(tail) = self.tails.get_mut(&key) {
                    tail.poll(now);
                }
                self.enqueue(key);
            }
            self.close_idle(now);
            self.finish_moved(now);
        }
        dirs
    }

    /// Looks at all names.
    fn scan(&mut self, now: Instant) -> Option<BTreeSet<PathBuf>> {
        self.scanned = now;
        self.scan_due = false;
        let found = self.pattern.scan();
        if found.too_many {
            warn!(entry = %self.entry, limit = discovery::FILES_MAX, "more files than an entry may follow; the rest is left alone");
        }
        self.troubles.clear();
        let named = self.look_at(&found);
        if let Some(saved) = self.first.take() {
            self.begin(saved, &named);
        }
        for (path, stat) in &named {
            match self.by_id.get(&stat.id).copied() {
                Some(key) => self.still_there(key, path, stat, now),
                None => self.appeared(path, stat, Mark::default()),
            }
        }
        let present: BTreeSet<FileId> = named.iter().map(|(_, stat)| stat.id).collect();
        let gone: Vec<u64> = self.tails.values().filter(|tail| tail.fate == Fate::Named && !present.contains(&tail.id)).map(|tail| tail.incarnation).collect();
        for key in gone {
            self.lost_its_name(key, now);
        }
        self.by_path = self.tails.values().filter(|tail| tail.fate == Fate::Named).map(|tail| (tail.path.clone(), tail.incarnation)).collect();
        self.dirs_changed(found)
    }

    fn dirs_changed(&mut self, found: Found) -> Option<BTreeSet<PathBuf>> {
        if found.dirs == self.dirs {
            return None;
        }
        // What appears between this scan and the watch is found by the next one.
        self.scan_due = true;
        self.dirs = found.dirs;
        Some(self.dirs.clone())
    }

    /// One name for each file; what is no regular file is reported.
    fn look_at(&mut self, found: &Found) -> Vec<(PathBuf, Stat)> {
        let mut seen = HashMap::new();
        let mut named: Vec<(PathBuf, Stat)> = Vec::new();
        for path in &found.files {
            let Ok(stat) = Stat::at(path) else { continue };
            if !stat.regular {
                self.troubles.insert(path.clone(), "not a regular file".into());
                continue;
            }
            let known = self.by_id.get(&stat.id).and_then(|key| self.tails.get(key)).is_some_and(|tail| tail.path == *path);
            match seen.get(&stat.id) {
                // The second name of a file that is followed under another one.
                Some(_) if !known => {}
                Some(at) => named[*at] = (path.clone(), stat),
                None => {
                    seen.insert(stat.id, named.len());
                    named.push((path.clone(), stat));
                }
            }
        }
        named
    }

    /// The first scan: what was followed before goes on where it was, and what is new begins where
    /// `start_at` says.
    fn begin(&mut self, saved: Saved, named: &[(PathBuf, Stat)]) {
        let text = self.pattern.text().to_string();
        let same_path = saved.path.as_deref() == Some(&text);
        let known: HashMap<FileId, &checkpoint::Record> = saved.records.iter().map(|record| (record.id, record)).collect();
        let mut resumed = BTreeSet::new();
        for record in &saved.records {
            self.last_incarnation = self.last_incarnation.max(record.incarnation);
        }
        // What was renamed or lost its name while nobody looked is finished first.
        let present: BTreeSet<FileId> = named.iter().map(|(_, stat)| stat.id).collect();
        for record in saved.records.iter().filter(|record| !present.contains(&record.id)) {
            self.resume_moved(record);
        }
        for (path, stat) in named {
            if let Some(record) = known.get(&stat.id) {
                resumed.insert(record.incarnation);
                self.insert(Tail::resume(record, path.clone(), stat));
            } else if !saved.lost && !same_path && self.start_at == StartAt::End {
                let mark = self.last_line_end(path, stat);
                self.appeared(path, stat, mark);
                if let Some(tail) = self.by_id.get(&stat.id).and_then(|key| self.tails.get(key)) {
                    self.checkpoints.note(&self.entry, tail.record(), 0);
                }
            } else {
                self.appeared(path, stat, Mark::default());
            }
        }
        self.checkpoints.begin(&self.entry, &text);
        // Before the first line is read it is on the disk where the entry began, so that a crash
        // cannot move that place.
        self.checkpoints.flush();
    }

    /// A file that was followed and whose inode no longer has a matching name.
    fn resume_moved(&mut self, record: &checkpoint::Record) {
        let Some((path, stat)) = find_by_id(&record.path, record.id) else {
            debug!(entry = %self.entry, path = %record.path.display(), "a file that was followed is gone");
            self.checkpoints.forget(&self.entry, record.incarnation);
            return;
        };
        info!(entry = %self.entry, was = %record.path.display(), path = %path.display(), "found a file that was renamed meanwhile");
        let mut tail = Tail::resume(record, path, &stat);
        tail.fate = Fate::Moved { since: Instant::now(), deleted: false };
        self.insert(tail);
    }

    /// A file with a new name.
    fn appeared(&mut self, path: &Path, stat: &Stat, mark: Mark) {
        let incarnation = self.next_incarnation();
        debug!(entry = %self.entry, path = %path.display(), offset = mark.offset, "follows a file");
        let mut tail = Tail::new(incarnation, path.into(), stat, mark);
        tail.after = self.predecessor(path);
        self.insert(tail);
    }

    /// The file that had this name before and is not read to its end.
    fn predecessor(&self, path: &Path) -> Option<u64> {
        self.tails.values().rev().find(|tail| tail.origin == path && tail.fate != Fate::Over).map(|tail| tail.incarnation)
    }

    fn still_there(&mut self, key: u64, path: &Path, stat: &Stat, now: Instant) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        if tail.path != path {
            debug!(entry = %self.entry, was = %tail.path.display(), path = %path.display(), "a file was renamed");
            tail.path = path.into();
            tail.trouble = None;
        }
        tail.fate = Fate::Named;
        tail.sighted(stat.size, now);
        self.enqueue(key);
    }

    /// Renamed out of the pattern, or deleted.
    fn lost_its_name(&mut self, key: u64, now: Instant) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        if !tail.is_open() {
            match find_by_id(&tail.path, tail.id) {
                Some((path, stat)) => {
                    tail.path = path;
                    tail.trouble = None;
                    tail.sighted(stat.size, now);
                }
                None => {
                    let lost = tail.lag();
                    tail.end();
                    self.count_lost("deleted", lost, key);
                    return;
                }
            }
        }
        tail.poll(now);
        if tail.fate == Fate::Named {
            tail.fate = Fate::Moved { since: now, deleted: false };
            tail.poll(now);
        }
        debug!(entry = %self.entry, path = %tail.path.display(), "a file lost its name; it is read to its end");
        self.enqueue(key);
    }

    fn count_lost(&mut self, reason: &'static str, bytes: u64, key: u64) {
        if bytes > 0 {
            let path = self.tails.get(&key).map(|tail| tail.path.display().to_string()).unwrap_or_default();
            warn!(entry = %self.entry, path, bytes, reason, "bytes were gone before they could be read");
            *self.lost.entry(reason).or_default() += bytes;
        }
    }

    /// After its last complete line.
    fn last_line_end(&self, path: &Path, stat: &Stat) -> Mark {
        let at_end = Mark { offset: stat.size, trace: Trace::default() };
        let Ok(opened) = self.policy.open(path) else { return at_end };
        let from = stat.size.saturating_sub(self.rules.line_bytes_max as u64);
        let Ok(tail) = read_at(&opened.file, from, (stat.size - from) as usize) else { return at_end };
        match memchr::memrchr(b'\n', &tail) {
            Some(newline) => {
                Mark { offset: from + newline as u64 + 1, trace: Trace::of(&tail[..=newline]) }
            }
            None if from == 0 => Mark::default(),
            None => at_end,
        }
    }

    fn insert(&mut self, tail: Tail) {
        self.by_id.insert(tail.id, tail.incarnation);
        self.by_path.insert(tail.path.clone(), tail.incarnation);
        let key = tail.incarnation;
        self.tails.insert(key, tail);
        self.enqueue(key);
    }

    /// Grows over restarts, so that what is newer is found last.
    fn next_incarnation(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        self.last_incarnation = now.max(self.last_incarnation + 1);
        self.last_incarnation
    }

    fn close_idle(&mut self, now: Instant) {
        let mut open = self.tails.values().filter(|tail| tail.is_open()).count();
        for tail in self.tails.values_mut().filter(|tail| tail.is_open() && tail.fate == Fate::Named) {
            if !tail.has_news() && (tail.quiet_for(now) > IDLE_AFTER || open > OPEN_MAX) {
                tail.close();
                open -= 1;
            }
        }
    }

    /// Lets go of files that are read and delivered, and of those held for too long.
    fn finish_moved(&mut self, now: Instant) {
        let mut pinned: u64 = 0;
        let (mut over, mut released) = (Vec::new(), Vec::new());
        for tail in self.tails.values_mut().rev() {
            let Fate::Moved { since, .. } = tail.fate else { continue };
            pinned += tail.size();
            let settled = tail.quiet_for(now) >= FINISH_AFTER && now - since >= FINISH_AFTER;
            if settled && tail.holds_partial() {
                tail.release_partial();
                released.push(tail.incarnation);
            } else if settled && !tail.has_news() && tail.ledger.is_empty() {
                over.push((tail.incarnation, 0));
            } else if now - since > self.held_limits.age || pinned > self.held_limits.bytes {
                over.push((tail.incarnation, tail.size().saturating_sub(tail.read_to())));
            }
        }
        for key in released {
            self.enqueue(key);
        }
        for (key, lost) in over {
            self.count_lost("held_limit", lost, key);
            if let Some(tail) = self.tails.get_mut(&key) {
                tail.end();
            }
        }
        self.drop_over();
    }

    /// Drops files of which nothing is under way any more.
    fn drop_over(&mut self) {
        let over: Vec<(u64, FileId)> = self.tails.values().filter(|tail| tail.fate == Fate::Over && tail.ledger.is_empty()).map(|tail| (tail.incarnation, tail.id)).collect();
        for (key, id) in over {
            self.tails.remove(&key);
            if self.by_id.get(&id) == Some(&key) {
                self.by_id.remove(&id);
            }
            self.checkpoints.forget(&self.entry, key);
        }
    }

    /// Nothing will be appended any more as far as this run is concerned (`--once`).
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// Whether there is nothing to read now and, after [`Source::end`], will not be.
    pub fn is_drained(&self) -> bool {
        self.first.is_none() && self.tails.values().all(Tail::is_drained)
    }

    /// Whether a file that has something new may be read: not before the one that had its name.
    fn is_ready(&self, tail: &Tail) -> bool {
        let before = tail.after.and_then(|key| self.tails.get(&key));
        before.is_none_or(Tail::is_drained)
    }

    /// When there is something to do without any hint: a read after its pause, a poll, a scan.
    pub fn next_deadline(&self) -> Instant {
        let rescan = if self.pattern.is_literal() { RESCAN.0 } else { RESCAN.1 };
        let open = self.tails.values().any(|tail| tail.is_open() || tail.fate != Fate::Named);
        let mut due = self.scanned + rescan;
        if open {
            due = due.min(self.polled + POLL);
        }
        let waiting = self.turns.iter().filter_map(|key| self.tails.get(key)).filter(|tail| self.is_ready(tail));
        waiting.map(Tail::not_before).fold(due, Instant::min)
    }

    /// Reads from the next file that has something new, in turn. `lines` says where the lines
    /// stand in `buffer`; [`Source::take`] makes them a chunk.
    pub fn read(&mut self, want: usize, lines_max: usize, buffer: &mut Vec<u8>, lines: &mut Lines) -> Option<Piece> {
        let now = Instant::now();
        self.need = None;
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            if !tail.has_news() {
                tail.queued = false;
                continue;
            }
            self.turns.push_back(key);
            let Some(tail) = self.tails.get(&key) else { continue };
            if !self.is_ready(tail) || tail.not_before() > now {
                continue;
            }
            let piece = self.read_file(key, want, lines_max, buffer, lines, now);
            if piece.is_some() || self.need.is_some() {
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

    fn read_file(&mut self, key: u64, want: usize, lines_max: usize, buffer: &mut Vec<u8>, lines: &mut Lines, now: Instant) -> Option<Piece> {
        let last = self.is_last(key);
        let tail = self.tails.get_mut(&key)?;
        let (len, full) = match tail.fill(&self.policy, buffer, want, now) {
            Ok(Fill::Bytes { len, full }) => (len, full),
            Ok(Fill::Rewritten { lost }) => {
                self.begin_anew(key, lost);
                return None;
            }
            Ok(Fill::Closed) => {
                let path = tail.path.clone();
                let trouble = tail.trouble.as_ref().map(|(trouble, _)| trouble.to_string());
                self.report_trouble(path, trouble);
                return None;
            }
            Err(error) => {
                tail.trouble = Some((OpenTrouble::Failed(error.to_string()), now + Duration::from_secs(1)));
                tail.close();
                return None;
            }
        };
        lines.inside = tail.inside && self.rules.long_line != LongLine::Split;
        self.rules.cut(&buffer[..len], lines_max, last && !full, lines);
        if lines.used == 0 {
            if full {
                self.need = Some(self.rules.line_bytes_max + 1);
            } else {
                tail.held_partial(len);
            }
            return None;
        }
        let piece = Piece { incarnation: key, path: tail.path.clone(), origin: tail.origin.clone(), offset: tail.read_to(), inside: lines.inside };
        Some(piece)
    }

    fn is_last(&self, key: u64) -> bool {
        let Some(tail) = self.tails.get(&key) else { return false };
        let settled = matches!(tail.fate, Fate::Moved { since, .. } if tail.quiet_for(Instant::now()) >= FINISH_AFTER && since.elapsed() >= FINISH_AFTER);
        self.ending || settled
    }

    /// The content is not what was read: the file begins again, as another incarnation.
    fn begin_anew(&mut self, key: u64, lost: u64) {
        self.count_lost("truncated", lost, key);
        let incarnation = self.next_incarnation();
        let Some(tail) = self.tails.get_mut(&key) else { return };
        info!(entry = %self.entry, path = %tail.path.display(), "a file was truncated or rewritten; it is read from its beginning");
        let anew = tail.begin_anew(incarnation);
        self.insert(anew);
        self.drop_over();
    }

    fn report_trouble(&mut self, path: PathBuf, trouble: Option<String>) {
        let Some(trouble) = trouble else { return };
        if self.troubles.insert(path.clone(), trouble.clone()).is_none() {
            warn!(entry = %self.entry, path = %path.display(), reason = trouble, "a file cannot be read");
        }
    }

    /// Only the first `lines_max` lines of what was read.
    pub fn cut_again(&self, buffer: &[u8], lines_max: usize, lines: &mut Lines) {
        let used = lines.used;
        // A held line is behind the rest of a long line, which is cut off again as it was.
        lines.inside = lines.began_inside;
        self.rules.cut(&buffer[..used], lines_max, false, lines);
    }

    /// The first `used` bytes of the piece are chunk `id` now; the rest is read again.
    pub fn take(&mut self, piece: &Piece, id: u64, buffer: &[u8], used: usize, whole: bool) {
        if let Some(tail) = self.tails.get_mut(&piece.incarnation) {
            tail.advance(id, buffer, used);
            tail.inside = whole && piece.inside;
        }
    }

    /// Chunk `id` of the file is finished.
    pub fn finished(&mut self, incarnation: u64, id: u64) {
        let Some(tail) = self.tails.get_mut(&incarnation) else { return };
        let bytes = tail.ledger.finish(id);
        if tail.fate != Fate::Over {
            if bytes > 0 {
                self.checkpoints.note(&self.entry, tail.record(), bytes);
            }
        } else if tail.ledger.is_empty() {
            self.drop_over();
        }
    }

    /// Files known.
    pub fn files(&self) -> u64 {
        self.tails.len() as u64
    }

    /// Bytes that are not finished, and since when the oldest have been there.
    pub fn lag(&mut self) -> (u64, Option<Instant>) {
        let live = self.tails.values_mut().filter(|tail| tail.fate != Fate::Over);
        live.fold((0, None), |(bytes, since), tail| {
            let oldest = [since, tail.lag_since()].into_iter().flatten().min();
            (bytes + tail.lag(), oldest)
        })
    }

    /// Bytes of deleted and renamed files that are kept open.
    pub fn held_bytes(&self) -> u64 {
        self.tails.values().filter(|tail| matches!(tail.fate, Fate::Moved { .. })).map(Tail::size).sum()
    }

    /// Bytes that could not be saved, by reason.
    pub fn lost(&self) -> &BTreeMap<&'static str, u64> {
        &self.lost
    }

    /// Files that cannot be read, and why.
    pub fn troubles(&self) -> &BTreeMap<PathBuf, String> {
        &self.troubles
    }
}

/// A file that lost its name is looked for in the directory it was in.
fn find_by_id(path: &Path, id: FileId) -> Option<(PathBuf, Stat)> {
    use std::os::unix::fs::DirEntryExt;
    let entries = std::fs::read_dir(path.parent()?).ok()?;
    let same_inode = entries.filter_map(Result::ok).filter(|entry| entry.ino() == id.ino);
    same_inode.map(|entry| entry.path()).find_map(|path| {
        let stat = Stat::at(&path).ok()?;
        (stat.id == id && stat.regular).then_some((path, stat))
    })
}
