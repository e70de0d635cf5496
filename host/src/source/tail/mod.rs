//! One file that is followed: what was read of it, and what of that is finished.
//!
//! In: wake-ups, which are only hints. Out: bytes, and the record that a restart resumes from.
//! Absent by design: which files there are (see `discovery`), where the lines end (see `lines`).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::packed::Packed;
use super::checkpoint::Record;
use super::copies::Copy;
use super::identity::{FileId, HEAD_BYTES, HEAD_LENGTHS, Head, Stat, TAIL_BYTES, Trace, read_at};
use super::lines::Unit;
use crate::ledger::{Ledger, Mark};
use crate::model::Problem;
use crate::policy::{OpenError, Policy};

mod packed;

pub use self::packed::{Damage, WRITTEN_AFTER};

/// After a read that reached the end, the file is left alone so long: a writer that writes a line
/// at a time does not cost a read a line.
pub const READ_PAUSE: Duration = Duration::from_millis(3);

/// How soon a file is looked for again that had another name a moment ago.
const MOVED_RETRY: Duration = Duration::from_millis(100);

/// How soon a file that cannot be read is tried again without a hint, and with one.
const TROUBLE_RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(250));

/// A renamed or deleted file that was read to its end and did not grow for so long is settled: its
/// writer had the time to open the new one.
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Places kept at which a copy must have the same bytes.
const SAMPLES_MAX: usize = 16;

/// Sightings kept to tell how old unread bytes are.
const SIGHTINGS_MAX: usize = 64;

/// In place of the time of a write that was not looked into.
const UNKNOWN: i64 = 0;

/// A followed file.
#[derive(Debug)]
pub struct Tail {
    /// Tells apart the contents that one inode held one after the other.
    pub incarnation: u64,
    /// Its last known name.
    pub path: Arc<Path>,
    /// Its first known name, which chooses the partition.
    pub origin: Arc<Path>,
    /// Which file.
    pub id: FileId,
    /// What became of its name.
    pub fate: Fate,
    /// The file that had its name before: read to its end first.
    pub after: Option<u64>,
    /// What its lines are made of.
    pub unit: Unit,
    /// When the lines that are left of it are taken as a whole record, if nothing follows.
    pub flush_at: Option<Instant>,
    /// Chunks under way.
    pub ledger: Ledger,
    /// Whether what was last read ended inside a line whose rest is discarded.
    pub inside: bool,
    /// Which look at names found it last.
    pub found_by: u64,
    /// Whether it waits for its turn to be read.
    pub queued: bool,
    /// Why it cannot be read, and when to try again.
    pub trouble: Option<Box<Trouble>>,
    /// It is known not to be a copy of a file that is followed.
    pub vetted: bool,
    /// The file that it may be a copy of: it is not read until that is known.
    pub twin: Option<u64>,
    file: Option<File>,
    packed: Option<Box<Packed>>,
    /// Compressed files that it is known not to go on in.
    rejected: Vec<FileId>,
    verified: bool,
    head: Head,
    /// What it begins with, the shortest first: a copy that is half made is known by them.
    heads: Vec<Head>,
    /// Where chunks ended, and what stood there.
    samples: Vec<Mark>,
    size: u64,
    /// The largest size it had with the content that `read_to` is a place in.
    seen: u64,
    /// It became shorter, so what it holds is probably another content; the next read tells.
    shrunk: bool,
    /// Bytes of contents of which nothing was read, and which are gone.
    vanished: u64,
    modified: i64,
    /// It was written to and did not grow: perhaps it was rewritten.
    suspect: bool,
    read_to: u64,
    /// Where it was read to before it went on in a copy that is shorter.
    beyond: u64,
    /// Bytes just before `read_to`; what stands there is compared at each read.
    before: Vec<u8>,
    /// The size at which only an unfinished line was left.
    partial_at: u64,
    grew: Instant,
    /// When it was last read from, or could have been.
    filled: Instant,
    not_before: Instant,
    sightings: VecDeque<(Instant, u64)>,
}

/// What became of a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The pattern finds it.
    Named,
    /// Renamed out of the pattern, or deleted: read to its end, then finished.
    Moved {
        /// When it was noticed.
        since: Instant,
        /// It has no name at all: only our descriptor keeps its bytes.
        deleted: bool,
    },
    /// Its content is gone or wholly read: only chunks under way are left.
    Over,
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A sentence with what to do.
    pub reason: String,
    /// When to try again.
    pub retry: Instant,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Fill {
    /// So many bytes, from `read_to` on; whether the buffer is full, so that there may be more.
    Bytes {
        /// How many.
        len: usize,
        /// Whether as many as asked for.
        full: bool,
    },
    /// Shorter than what was read, or other bytes stand before the place: it begins anew. So many
    /// bytes that were seen are gone unread.
    Rewritten {
        /// Bytes seen and not read.
        lost: u64,
    },
    /// It cannot be opened: see `trouble`.
    Closed,
    /// Its name leads nowhere, or to another file.
    Moved,
    /// Of a compressed file: not yet at the place.
    Busy,
    /// What it was taken to go on in, compressed, is the content of another file.
    Other,
}

impl Tail {
    /// A file that nothing is known of, read from `mark`.
    pub fn new(incarnation: u64, path: Arc<Path>, stat: &Stat, mark: Mark, now: Instant) -> Self {
        let mut tail = Self::build(incarnation, stat.id, path.clone(), path, mark, now);
        tail.sighted(stat, now);
        tail
    }

    /// A file that was followed before. Its content is checked when it is opened.
    pub fn resume(record: &Record, path: Arc<Path>, stat: &Stat, now: Instant) -> Self {
        let mark = Mark { offset: record.committed, trace: record.trace };
        let mut tail = Self::build(record.incarnation, stat.id, path, record.origin.clone(), mark, now);
        tail.head = record.head;
        let earlier = record.earlier.map(|(offset, trace)| Mark { offset, trace });
        tail.samples.splice(0..0, earlier);
        let heads = record.heads.iter().copied().chain([record.head]);
        tail.heads.extend(heads.filter(|head| head.len >= HEAD_LENGTHS[0]));
        (tail.size, tail.seen) = (record.size, record.size);
        if let Some(size) = record.packed {
            tail.packed = Some(Box::new(Packed::resume(size)));
            tail.vetted = record.committed > 0;
            tail.sighted(stat, now);
            return tail;
        }
        tail.sighted(stat, now);
        // What became of one that is gone nobody knows.
        let is_known = stat.links > 0 && record.modified != UNKNOWN;
        let as_left = is_known && (stat.size, stat.modified) == (record.size, record.modified);
        tail.suspect = !tail.is_unread() && !as_left;
        tail
    }

    fn build(
        incarnation: u64,
        id: FileId,
        path: Arc<Path>,
        origin: Arc<Path>,
        mark: Mark,
        now: Instant,
    ) -> Self {
        let origin = if origin == path { path.clone() } else { origin };
        Self {
            incarnation,
            path,
            origin,
            id,
            fate: Fate::Named,
            after: None,
            unit: Unit::default(),
            flush_at: None,
            ledger: Ledger::new(mark),
            inside: false,
            found_by: 0,
            queued: false,
            trouble: None,
            vetted: false,
            twin: None,
            file: None,
            packed: None,
            rejected: Vec::new(),
            verified: false,
            head: Head::default(),
            heads: Vec::new(),
            samples: if mark.offset > 0 { vec![mark] } else { Vec::new() },
            size: 0,
            seen: 0,
            shrunk: false,
            vanished: 0,
            modified: 0,
            suspect: false,
            read_to: mark.offset,
            beyond: 0,
            before: Vec::new(),
            partial_at: 0,
            grew: now,
            filled: now,
            not_before: now,
            sightings: VecDeque::new(),
        }
    }

    /// What a restart needs to go on from here.
    pub fn record(&self) -> Record {
        let mark = self.ledger.committed();
        // What is under way and not in the copy is lost in a crash.
        let beyond = if self.ledger.is_empty() { 0 } else { self.beyond };
        Record {
            incarnation: self.incarnation,
            path: self.path.clone(),
            origin: self.origin.clone(),
            id: self.id,
            committed: mark.offset,
            trace: mark.trace,
            head: self.head,
            heads: self.heads.iter().filter(|head| head.len < self.head.len).copied().collect(),
            earlier: self.sample_before(mark.offset).map(|sample| (sample.offset, sample.trace)),
            size: self.size.max(beyond),
            // A write that was not looked into yet is one after a restart, too.
            modified: if self.suspect { UNKNOWN } else { self.modified },
            packed: self.packed.as_deref().map(Packed::size),
        }
    }

    /// It was looked at.
    pub fn sighted(&mut self, stat: &Stat, now: Instant) {
        if self.is_packed() {
            return self.sighted_packed(stat, now);
        }
        if stat.size != self.size || stat.modified != self.modified {
            self.suspect |= stat.size <= self.size;
            if stat.size < self.size {
                self.shrank();
            }
            (self.grew, self.size, self.modified) = (now, stat.size, stat.modified);
            if !self.shrunk {
                self.seen = self.seen.max(self.size);
            }
        }
        let known = self.sightings.back().map_or(self.read_to, |last| last.1).max(self.partial_at);
        if self.size > known.max(self.ledger.committed().offset) {
            if self.sightings.len() >= SIGHTINGS_MAX {
                self.sightings.remove(SIGHTINGS_MAX / 2);
            }
            self.sightings.push_back((now, self.size));
        }
    }

    /// Whether a look at its name says nothing new: most files of most looks.
    pub fn is_as_known(&self, path: &Path, stat: &Stat) -> bool {
        let same = (self.size, self.modified) == (stat.size, stat.modified) && *self.path == *path;
        same && self.fate == Fate::Named && !self.is_packed() && self.vanished == 0 && self.is_finished()
    }

    /// It is shorter than it was: what was seen of its content is gone. What is unread of the one that was
    /// read from may be in a copy, so that is for the next read to say.
    fn shrank(&mut self) {
        if self.is_unread() {
            self.vanished += std::mem::take(&mut self.seen);
        } else if std::mem::replace(&mut self.shrunk, true) {
            self.vanished += self.size;
        }
    }

    /// Bytes that are gone and of whose content nothing was read, since this was last asked for.
    pub fn take_vanished(&mut self) -> u64 {
        std::mem::take(&mut self.vanished)
    }

    fn know_head(&mut self, bytes: &[u8]) {
        self.head = Head::of_bytes(bytes);
        for len in HEAD_LENGTHS.into_iter().filter(|len| usize::from(*len) <= bytes.len()) {
            if self.heads.iter().all(|head| head.len != len) {
                self.heads.push(Head::of_bytes(&bytes[..usize::from(len)]));
            }
        }
        self.heads.sort_unstable_by_key(|head| head.len);
    }

    /// What it begins with, as far as it was read.
    pub fn head(&self) -> Head {
        self.head
    }

    /// What it begins with, the shortest first.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Whether it may begin with these bytes, as far as is known.
    pub fn may_begin_with(&self, bytes: &[u8]) -> bool {
        let known = self.heads.iter().rev().find(|head| usize::from(head.len) <= bytes.len());
        known.is_none_or(|head| Head::of_bytes(&bytes[..head.len.into()]) == *head)
    }

    /// Its descriptor, where it is open.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Whether it may have been truncated or rewritten since it was read.
    pub fn is_doubtful(&self) -> bool {
        self.suspect || self.size < self.read_to
    }

    /// Whether nothing was ever read of it, before a restart either.
    pub fn is_unread(&self) -> bool {
        self.read_to == 0 && self.head.len == 0
    }

    /// Whether it is open and nothing was read of it: perhaps it holds what another file held.
    pub fn is_untouched(&self) -> bool {
        self.is_unread() && self.file.is_some()
    }

    /// Whether it may hold another content than the one that was read from: the next read tells.
    pub fn may_differ(&self) -> bool {
        self.is_doubtful() || (self.has_news() && self.trouble.is_none())
    }

    /// Whether it was written to since it was last looked at.
    pub fn differs(&self, stat: &Stat) -> bool {
        (stat.size, stat.modified) != (self.disk_bytes(), self.modified)
    }

    /// Whether a place is known within the first `size` bytes: an equal header is not enough to pass over
    /// what begins alike.
    pub fn is_sampled_within(&self, size: u64) -> bool {
        self.samples.iter().any(|sample| sample.offset <= size)
    }

    /// Whether a file of `size` bytes holds what was read, as far as it goes.
    pub fn is_copied_in(&self, file: &File, size: u64) -> io::Result<bool> {
        let Some(head) = self.heads.iter().rev().find(|head| u64::from(head.len) <= size) else {
            return Ok(false);
        };
        if !head.matches(file)? {
            return Ok(false);
        }
        for sample in self.samples.iter().filter(|sample| sample.offset <= size) {
            if sample.trace.verify(file, sample.offset)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was read of it goes on in a copy of it, which may end before what was read. Returns how many
    /// bytes were seen that neither were read nor are in the copy.
    pub fn move_to(&mut self, copy: Copy, now: Instant) -> u64 {
        let Copy { path, stat, file } = copy;
        let lost = self.seen.saturating_sub(self.read_to.max(stat.size));
        self.cut(stat.size);
        (self.path, self.id, self.file, self.verified) = (path, stat.id, Some(file), false);
        (self.size, self.seen, self.modified, self.shrunk) = (stat.size, stat.size, stat.modified, false);
        (self.suspect, self.partial_at, self.grew, self.not_before) = (false, 0, now, now);
        lost
    }

    /// It goes on in a copy of `size` bytes, which may be fewer than were read.
    fn cut(&mut self, size: u64) {
        if size < self.read_to {
            self.beyond = self.read_to;
            self.read_to = size;
            self.before.clear();
            self.samples.retain(|sample| sample.offset <= size);
            self.ledger.cut(Mark { offset: size, trace: Trace::default() });
        }
        if size < u64::from(self.head.len) {
            self.heads.retain(|head| u64::from(head.len) <= size);
            self.head = self.heads.last().copied().unwrap_or_default();
        }
    }

    /// Looks at the file. False when its name leads nowhere, or to another file.
    pub fn poll(&mut self, now: Instant) -> bool {
        let stat = match &self.file {
            Some(file) => Stat::of(file),
            None => Stat::at(&self.path),
        };
        match stat {
            Ok(stat) if stat.id == self.id => {
                self.sighted(&stat, now);
                if let (Fate::Moved { deleted: false, .. }, 0) = (self.fate, stat.links) {
                    self.fate = Fate::Moved { since: now, deleted: true };
                }
                true
            }
            Ok(_) => false,
            Err(error) => !is_gone(&error),
        }
    }

    /// Something happened to it: one that could not be read is tried soon.
    pub fn hinted(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.retry = trouble.retry.min(now + TROUBLE_RETRY.1);
        }
    }

    /// Whether a read would find something new.
    pub fn has_news(&self) -> bool {
        let grown = self.size > self.read_to && self.size != self.partial_at;
        self.fate != Fate::Over && (grown || self.suspect || self.size < self.read_to)
    }

    /// Whether all of it is read and finished.
    pub fn is_finished(&self) -> bool {
        !self.has_news() && !self.holds_partial() && self.ledger.is_empty()
    }

    /// Whether it is followed, or at least not finished.
    pub fn counts(&self) -> bool {
        self.fate == Fate::Named || !self.is_finished()
    }

    /// Whether all that can be read of it is finished, an unfinished last line aside.
    pub fn is_delivered(&self) -> bool {
        !self.has_news() && self.ledger.is_empty()
    }

    /// Whether its name is gone and its writer had the time to open another file.
    pub fn is_settled(&self, now: Instant) -> bool {
        let Fate::Moved { since, .. } = self.fate else { return false };
        self.quiet_for(now).min(now.saturating_duration_since(since)) >= SETTLED_AFTER
    }

    /// When it may be read again.
    pub fn not_before(&self) -> Instant {
        self.trouble.as_ref().map_or(self.not_before, |trouble| trouble.retry)
    }

    /// Whether all that can be read was read, an unfinished last line aside.
    pub fn is_drained(&self) -> bool {
        !self.has_news() || self.trouble.is_some()
    }

    /// Whether its descriptor is open.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Gives the descriptor back; the next read opens the file again.
    pub fn close(&mut self) {
        self.file = None;
        self.verified = false;
        if let Some(packed) = &mut self.packed {
            packed.close();
        }
        self.shrink();
    }

    /// Chunk `id` is finished. Returns by how many bytes the committed offset moved.
    pub fn finished(&mut self, id: u64) -> u64 {
        let moved = self.ledger.finish(id);
        if !self.is_open() && self.ledger.is_empty() {
            self.shrink();
        }
        moved
    }

    /// Gives back what only a file takes that is read from: most of very many files are not.
    fn shrink(&mut self) {
        self.forget_sightings();
        self.sightings.shrink_to_fit();
        self.samples.shrink_to_fit();
        self.heads.shrink_to_fit();
        self.before.shrink_to_fit();
        self.ledger.shrink();
    }

    /// How long it has not grown.
    pub fn quiet_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.grew)
    }

    /// Whether `time` after it last grew something else was not yet read from.
    pub fn is_ahead_of(&self, other: &Self, time: Duration) -> bool {
        other.has_news() && other.filled < self.grew + time
    }

    /// Its size when last seen.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that it takes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.packed.as_deref().map_or(self.size, Packed::size)
    }

    /// When it was last written to, as [`Stat`] says it.
    pub fn modified(&self) -> i64 {
        self.modified
    }

    /// It is not read before.
    pub fn wait_until(&mut self, then: Instant) {
        self.not_before = then;
    }

    /// Bytes read, from the beginning.
    pub fn read_to(&self) -> u64 {
        self.read_to
    }

    /// Bytes that were seen and not read, whether or not they are still there.
    pub fn unread(&self) -> u64 {
        let seen = if self.is_packed() { self.seen.max(self.size) } else { self.seen };
        seen.saturating_sub(self.read_to) + self.next_content()
    }

    /// Bytes of another content that has taken the place of the one that was read from, as far as that is
    /// known without reading.
    pub fn next_content(&self) -> u64 {
        if self.shrunk { self.size } else { 0 }
    }

    /// The same, where what was read is in a copy of `size` bytes that was last written to at `modified`:
    /// what is no longer than that and younger is another content.
    pub fn next_content_beside(&self, size: u64, modified: i64) -> u64 {
        if self.size <= size && modified < self.modified { self.size } else { self.next_content() }
    }

    /// Bytes that are not finished; an unfinished last line is not counted.
    pub fn lag(&self) -> u64 {
        let end = if self.size == self.partial_at { self.read_to } else { self.size };
        end.saturating_sub(self.ledger.committed().offset)
    }

    /// Since when the oldest of those bytes have been there.
    pub fn lag_since(&mut self) -> Option<Instant> {
        self.forget_sightings();
        if self.lag() == 0 { None } else { self.sightings.front().map(|(at, _)| *at) }
    }

    /// Those of bytes that are finished.
    fn forget_sightings(&mut self) {
        let committed = self.ledger.committed().offset;
        while self.sightings.pop_front_if(|(_, size)| *size <= committed).is_some() {}
    }

    /// Opens the file where it is closed, and checks that it is the one.
    pub fn open(&mut self, policy: &Policy, now: Instant) -> Result<&File, Fill> {
        if self.file.is_none() {
            let opened = policy.open(&self.path).and_then(|opened| {
                Stat::of(&opened.file).map(|stat| (opened.file, stat.id)).map_err(OpenError::Io)
            });
            match opened {
                Ok((file, id)) if id == self.id => (self.file, self.trouble) = (Some(file), None),
                Ok(_) | Err(OpenError::Gone) => {
                    self.not_before = now + MOVED_RETRY;
                    return Err(Fill::Moved);
                }
                Err(error) => self.failed(&error, now),
            }
        }
        self.file.as_ref().ok_or(Fill::Closed)
    }

    /// It cannot be read just now.
    pub fn failed(&mut self, error: &OpenError, now: Instant) {
        let Problem { cause, fix, .. } = error.problem("", &self.path);
        let reason = if fix.is_empty() { cause } else { format!("{cause}; {fix}") };
        self.trouble = Some(Box::new(Trouble { reason, retry: now + TROUBLE_RETRY.0 }));
        self.close();
    }

    /// Reads up to `want` bytes into `buffer`.
    pub fn fill(
        &mut self,
        policy: &Policy,
        buffer: &mut Vec<u8>,
        want: usize,
        now: Instant,
    ) -> io::Result<Fill> {
        let stat = match self.open(policy, now) {
            Ok(file) => Stat::of(file)?,
            // It has another name, by which it is read soon.
            Err(Fill::Moved) => return Ok(Fill::Moved),
            Err(why) => {
                self.filled = now;
                return Ok(why);
            }
        };
        self.filled = now;
        if self.is_packed() {
            self.sighted(&stat, now);
            return self.fill_packed(buffer, want, now);
        }
        let lost = self.seen.saturating_sub(self.read_to);
        self.sighted(&stat, now);
        self.verified &= !self.suspect;
        if stat.size < self.read_to || !self.verify()? {
            return Ok(Fill::Rewritten { lost });
        }
        if std::mem::take(&mut self.shrunk) {
            // Only its end was cut off.
            self.vanished += self.seen.saturating_sub(stat.size);
            self.seen = stat.size;
        }
        self.suspect = false;
        let want = want.min((stat.size - self.read_to).max(1) as usize);
        if buffer.len() < want {
            buffer.resize(want, 0);
        }
        let mut check = [0; TAIL_BYTES];
        let check = &mut check[..self.before.len()];
        let from = self.read_to - check.len() as u64;
        let Some(file) = &self.file else { return Ok(Fill::Closed) };
        let read = rustix::io::preadv(
            file,
            &mut [IoSliceMut::new(check), IoSliceMut::new(&mut buffer[..want])],
            from,
        )?;
        // NULs alone are what any file has where a crash or a sparse write left a hole.
        let is_hole = self.head.len > 0 && check.iter().all(|byte| *byte == 0);
        if read < check.len() || *check != *self.before || (is_hole && !self.head.matches(file)?) {
            return Ok(Fill::Rewritten { lost });
        }
        let len = read - check.len();
        self.not_before = if self.read_to + len as u64 >= stat.size { now + READ_PAUSE } else { now };
        Ok(Fill::Bytes { len, full: len == want && self.read_to + (len as u64) < stat.size })
    }

    /// After a restart or a pause: does the file still hold what was read of it?
    fn verify(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        if self.verified || self.read_to == 0 {
            // What was read of it, and not finished, before a restart.
            self.verified = self.verified || self.head.len == 0 || self.head.matches(file)?;
            return Ok(self.verified);
        }
        let resumed = self.before.is_empty() && self.ledger.committed().offset == self.read_to;
        let trace = if resumed { self.ledger.committed().trace } else { Trace::of(&self.before) };
        let same = match trace.verify(file, self.read_to)? {
            Some(tail) => {
                self.before = tail;
                if resumed {
                    self.inside = self.inside_line();
                }
                self.head.len == 0 || self.head.matches(file)?
            }
            None => false,
        };
        self.verified = same;
        Ok(same)
    }

    /// Whether what stands before the place ends no line (nor a run of NUL).
    fn inside_line(&self) -> bool {
        let before = &self.before;
        let from = self.read_to - before.len() as u64;
        let ends_line = self.unit.last_line_end(before, from) == Some(before.len());
        !before.is_empty() && !ends_line && !self.unit.ends_hole(before)
    }

    /// The file begins again, as another incarnation; this one keeps what is under way.
    pub fn begin_anew(&mut self, incarnation: u64, now: Instant) -> Self {
        let (path, origin) = (self.path.clone(), self.origin.clone());
        let anew = Self::build(incarnation, self.id, path, origin, Mark::default(), now);
        let (file, size, modified) = (self.file.take(), self.disk_bytes(), self.modified);
        let Self { fate, after, unit, .. } = *self;
        self.shrunk = false;
        Self { file, size, seen: size, modified, fate, after, unit, ..anew }
    }

    /// `used` bytes, which stand at the beginning of `bytes`, are chunk `id` now.
    pub fn advance(&mut self, id: u64, bytes: &[u8], used: usize) {
        let used = &bytes[..used];
        let keep = TAIL_BYTES.saturating_sub(used.len()).min(self.before.len());
        self.before.drain(..self.before.len() - keep);
        self.before.extend_from_slice(&used[used.len().saturating_sub(TAIL_BYTES)..]);
        self.read_to += used.len() as u64;
        let mark = Mark { offset: self.read_to, trace: Trace::of(&self.before) };
        self.ledger.begin(id, mark);
        self.sample(mark);
        if self.is_packed() {
            if self.read_to == used.len() as u64 {
                self.know_head(&used[..used.len().min(HEAD_BYTES)]);
            }
            return;
        }
        // A head that cannot be read now is read with the next chunk.
        let file = self.file.as_ref().filter(|_| self.head.grows(self.read_to));
        let len = self.read_to.min(HEAD_BYTES as u64) as usize;
        if let Some(bytes) = file.and_then(|file| read_at(file, 0, len).ok()) {
            self.know_head(&bytes);
        }
    }

    /// A place before `offset`, and far enough for a copy to hold it that was made a while ago.
    fn sample_before(&self, offset: u64) -> Option<&Mark> {
        self.samples.iter().find(|sample| (offset.div_ceil(2)..offset).contains(&sample.offset))
    }

    /// Every second place is forgotten where there are too many.
    fn sample(&mut self, mark: Mark) {
        if self.samples.len() >= SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.samples.push(mark);
    }

    /// Only an unfinished line is left.
    pub fn hold_partial(&mut self) {
        self.partial_at = self.size;
        // Its age is not lag.
        for (_, size) in &mut self.sightings {
            *size = (*size).min(self.read_to);
        }
    }

    /// The end of the file is final: its last line is a line even without a newline.
    pub fn release_partial(&mut self) {
        self.partial_at = 0;
    }

    /// Whether an unfinished last line is held.
    pub fn holds_partial(&self) -> bool {
        self.size > self.read_to && self.size == self.partial_at
    }

    /// The content is gone; chunks under way still count.
    pub fn end(&mut self) {
        self.fate = Fate::Over;
        self.close();
        // All that a crash may take from now on.
        (self.size, self.seen, self.shrunk) = (self.read_to, self.read_to, false);
    }
}

/// Whether the error says that a name leads nowhere.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
