//! Files that are copies of what was read: rotation by copying and truncating.
//!
//! In: a file with nothing read of it, or one that was just truncated. Out: whether the first waits,
//! and where the content of the second goes on. Absent by design: trusting a name; a copy is known
//! by its bytes.
//!
//! A copy that is found takes the place of what was truncated, as if that had been renamed: what is
//! under way stays under way, what was read is not read again, and what was not is read from the
//! copy, before the new content.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::identity::{FileId, HEAD_BYTES, HEAD_LENGTHS, Head, Stat, read_at};
use super::tail::{Fate, Tail};
use super::{Source, remove_if, rotated_from};

/// A file that begins as another one does, and did not grow for so long while that one was not
/// truncated, is no copy on its way: it is read as any other.
const TWIN_WAIT: Duration = Duration::from_secs(3);

/// Files beside a truncated one that are looked into, the newest first.
const CANDIDATES_MAX: usize = 16;

/// Names beside a truncated one that are looked at.
const NAMES_MAX: usize = 10_000;

/// What the files begin with, as far as they were read.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The longest head of each.
    longest: ByHead,
    /// The shorter ones, for copies that are shorter than that.
    shorter: ByHead,
}

/// A file that holds what was read of another one.
#[derive(Debug)]
pub struct Copy {
    /// Its name.
    pub path: Arc<Path>,
    /// Which file, and how long.
    pub stat: Stat,
    /// It, open: it may be deleted at any time.
    pub file: File,
}

impl Copy {
    /// This file, if it is a copy of what was read of `tail`.
    fn of(tail: &Tail, path: &Path, file: File) -> Option<Self> {
        let stat = Stat::of(&file).ok()?;
        let is_copy = (stat.size >= tail.read_to() || tail.is_sampled_within(stat.size))
            && tail.is_copied_in(&file, stat.size).unwrap_or_default();
        is_copy.then(|| Self { path: path.into(), stat, file })
    }
}

/// Length and hash of a head, and a file that has it: one flat set, because there are seven of them
/// for each of very many files.
type ByHead = BTreeSet<(u16, u64, u64)>;

impl Heads {
    /// `heads` stand in order of length.
    pub(super) fn add(&mut self, heads: &[Head], key: u64) {
        let Some((longest, shorter)) = heads.split_last() else { return };
        self.shorter.extend(shorter.iter().map(|head| (head.len, head.hash, key)));
        self.longest.insert((longest.len, longest.hash, key));
    }

    pub(super) fn remove(&mut self, heads: &[Head], key: u64) {
        for head in heads {
            self.longest.remove(&(head.len, head.hash, key));
            self.shorter.remove(&(head.len, head.hash, key));
        }
    }

    /// The files that begin as `bytes` do, those with most in common first.
    pub(super) fn like(&self, bytes: &[u8]) -> Vec<u64> {
        let same = |by: &ByHead, len: u16| {
            let Head { hash, .. } = Head::of_bytes(&bytes[..usize::from(len)]);
            by.range((len, hash, 0)..=(len, hash, u64::MAX)).map(|(_, _, key)| *key).collect::<Vec<_>>()
        };
        // Of a file that was read further all lengths are known up to that.
        let half = HEAD_LENGTHS.into_iter().rfind(|len| usize::from(*len) <= bytes.len());
        let half = half.filter(|_| bytes.len() < HEAD_BYTES).into_iter();
        let shorter = half.flat_map(|len| same(&self.shorter, len));
        let below = |len: u16| self.longest.range(..(len, 0, 0)).next_back().map(|(len, ..)| *len);
        let lengths = std::iter::successors(below(bytes.len() as u16 + 1), |len| below(*len));
        shorter.chain(lengths.flat_map(|len| same(&self.longest, len))).collect()
    }
}

impl Source {
    /// Before anything of a file is read: does it begin as one that is followed? Then it may be the
    /// copy that is made before a truncation, and waits until that is known.
    pub(super) fn vet(&mut self, key: u64, now: Instant) -> io::Result<bool> {
        let Some(tail) = self.tails.get_mut(&key).filter(|tail| !tail.vetted) else { return Ok(false) };
        // What was read of it before a restart was read of itself.
        if !tail.is_unread() {
            tail.vetted = true;
            return Ok(false);
        }
        if tail.open(&self.policy, now).is_err() {
            return Ok(false);
        }
        if let Some(waits) = self.vet_packed(key, now)? {
            self.awake.insert(key);
            return Ok(waits);
        }
        let Some(file) = self.tails.get(&key).and_then(Tail::file) else { return Ok(false) };
        let (bytes, size) = (read_at(file, 0, HEAD_BYTES)?, Stat::of(file)?.size);
        let mut twin = None;
        for of in self.heads.like(&bytes) {
            if let Some(of) = self.tails.get_mut(&of) {
                // How large it is now.
                of.poll(now);
            }
            if of != key && self.may_be_copy(of, key, size)? {
                twin = Some(of);
                self.awake.insert(key);
                break;
            }
        }
        if let Some(tail) = self.tails.get_mut(&key) {
            (tail.twin, tail.vetted) = (twin, twin.is_none());
        }
        Ok(twin.is_some())
    }

    /// Whether file `key`, of `size` bytes, may be a copy, perhaps half made, of what was read of `of`.
    fn may_be_copy(&self, of: u64, key: u64, size: u64) -> io::Result<bool> {
        let (Some(tail), Some(copy)) = (self.tails.get(&of), self.tails.get(&key)) else { return Ok(false) };
        let Some(file) = copy.file().filter(|_| !tail.is_packed()) else { return Ok(false) };
        // A file that was renamed is not copied for rotation, unless before that; and a copy is no larger
        // than what it is made of, unless that was truncated already: what is unread may be another content.
        let was_live = rotated_from(&tail.origin).is_none();
        let may_differ = tail.is_doubtful() || (was_live && tail.may_differ());
        let is_live =
            (tail.fate == Fate::Named && tail.path == tail.origin) || (tail.fate != Fate::Over && may_differ);
        let is_like = stem_of(&tail.origin) == stem_of(&copy.path) && (size <= tail.size() || may_differ);
        Ok(is_live && is_like && tail.is_copied_in(file, size)?)
    }

    /// Looks again at a file that waits for the truncation of the one it may be a copy of.
    pub(super) fn look_at_twin(&mut self, key: u64, now: Instant) {
        let Some((tail, of)) = self.tails.get(&key).and_then(|tail| Some((tail, tail.twin?))) else { return };
        if tail.is_packed() {
            if !self.vet_packed(key, now).is_ok_and(|waits| waits == Some(true)) {
                self.enqueue(key);
            }
            return;
        }
        let (quiet, size) = (tail.quiet_for(now), tail.size());
        if quiet >= TWIN_WAIT {
            // Where it is closed, nothing else would tell that it was truncated.
            let is_there = self.tails.get_mut(&of).is_none_or(|of| of.poll(now) || of.fate == Fate::Over);
            self.enqueue(of);
            if !is_there {
                self.scan_due = true;
                return;
            }
        }
        // Where reading was held up, only the next read tells that the other one was truncated.
        let is_ahead = |of: &Tail| self.tails.get(&key).is_some_and(|tail| tail.is_ahead_of(of, TWIN_WAIT));
        let is_early = quiet < TWIN_WAIT || self.tails.get(&of).is_some_and(is_ahead);
        let waits = is_early && self.may_be_copy(of, key, size).unwrap_or_default();
        if waits {
            return;
        }
        if let Some(tail) = self.tails.get_mut(&key) {
            (tail.twin, tail.vetted) = (None, true);
        }
        self.enqueue(key);
    }

    /// The copy of what was read of a file before it was truncated, if there is one.
    pub(super) fn find_copy(&self, key: u64) -> Option<Copy> {
        let tail = self.tails.get(&key).filter(|tail| !tail.is_packed())?;
        // One that is open was perhaps deleted since.
        let open = self.untouched(key, tail).filter(|other| !other.is_packed());
        let open = open.filter_map(|other| Copy::of(tail, &other.path, other.file()?.try_clone().ok()?));
        let beside = self.beside(tail).filter_map(|path| {
            let opened = self.policy.open(&path).ok()?;
            Copy::of(tail, &path, opened.file)
        });
        // The whole one: a file that is shorter may only begin alike.
        let copies: Vec<_> = open.chain(beside).collect();
        copies.into_iter().rev().max_by_key(|copy| copy.stat.size.min(tail.read_to()))
    }

    /// A file that is gone was perhaps copied before it was truncated and deleted. Whether it goes on
    /// in its copy.
    pub(super) fn find_in_copy(&mut self, key: u64, now: Instant) -> bool {
        // None that had another name before, unless it was copied before that.
        let is_live = |tail: &Tail| tail.path == tail.origin && rotated_from(&tail.origin).is_none();
        let has_twin =
            self.awake.iter().any(|twin| self.tails.get(twin).is_some_and(|twin| twin.twin == Some(key)));
        let is_likely =
            |tail: &&Tail| has_twin || is_live(tail) || tail.is_doubtful() || tail.next_content() > 0;
        let Some(tail) = self.tails.get(&key).filter(is_likely) else { return false };
        let (id, path) = (tail.id, tail.path.clone());
        let Some(copy) = self.find_copy(key) else { return false };
        let next_content = tail.next_content_beside(copy.stat.size, copy.stat.modified);
        let lost = self.go_on_in_copy(key, copy, now);
        remove_if(&mut self.by_id, &id, key);
        remove_if(&mut self.by_path, &path, key);
        self.count_lost("deleted", lost + next_content, &path);
        true
    }

    /// Files that are open and of which nothing was read, with a name to which what `tail` held may be
    /// copied.
    pub(super) fn untouched(&self, key: u64, tail: &Tail) -> impl Iterator<Item = &Tail> {
        let is_name_of_copy = names_of_copies(tail);
        let is_other = move |other: &&Tail| other.incarnation != key && other.is_untouched();
        self.tails.values().filter(is_other).filter(move |other| is_name_of_copy(&other.path))
    }

    /// Files in the directory of `tail` with such a name, the newest first: those of which nothing was read,
    /// or that may have been written over since.
    fn beside(&self, tail: &Tail) -> impl Iterator<Item = PathBuf> {
        let is_name_of_copy = names_of_copies(tail);
        let names = tail.path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
        let likely = names.take(NAMES_MAX).filter_map(Result::ok).filter(|name| {
            name.ino() != tail.id.ino
                && name.file_type().is_ok_and(|kind| kind.is_file())
                && is_name_of_copy(&name.path())
        });
        let is_unread = |stat: &Stat| {
            let known = self.by_id.get(&stat.id).and_then(|key| self.tails.get(key));
            known.is_none_or(|known| known.read_to() == 0 || known.is_doubtful() || known.differs(stat))
        };
        let mut files: Vec<_> = likely.filter_map(|name| with_stat(name.path())).collect();
        files.retain(|(_, stat)| is_unread(stat));
        files.sort_by_key(|(_, stat)| std::cmp::Reverse(stat.modified));
        files.truncate(CANDIDATES_MAX);
        files.into_iter().map(|(path, _)| path)
    }

    /// What was read of file `key` goes on in its copy, as if it had been renamed. Returns how many
    /// bytes were seen that neither were read nor are in the copy.
    pub(super) fn go_on_in_copy(&mut self, key: u64, copy: Copy, now: Instant) -> u64 {
        self.replaced_by_copy(&copy.stat, now);
        let fate = self.fate_at(&copy.path, &copy.stat, now);
        let Some(tail) = self.tails.get_mut(&key) else { return 0 };
        info!(entry = %self.entry, path = %tail.path.display(), copy = %copy.path.display(),
            "a file was copied and truncated; its copy is read to its end first");
        let (id, path) = (copy.stat.id, copy.path.clone());
        self.heads.remove(tail.heads(), key);
        let lost = tail.move_to(copy, now);
        self.heads.add(tail.heads(), key);
        tail.fate = fate.unwrap_or(Fate::Named);
        self.has_place(key, id, path);
        lost
    }

    /// What becomes of a file that goes on in another one: nothing if the pattern covers that.
    pub(super) fn fate_at(&self, path: &Path, stat: &Stat, now: Instant) -> Option<Fate> {
        let is_wanted = leads_to(path, stat.id) && self.pattern.matches(path);
        (!is_wanted).then_some(Fate::Moved { since: now, deleted: stat.links == 0 })
    }

    /// The file with number `key` is this one now.
    pub(super) fn has_place(&mut self, key: u64, id: FileId, path: Arc<Path>) {
        self.awake.insert(key);
        self.by_id.insert(id, key);
        if leads_to(&path, id) {
            self.by_path.insert(path, key);
        }
        self.note(key, 0);
        self.enqueue(key);
    }

    /// What the file that holds a copy now held before is gone.
    pub(super) fn replaced_by_copy(&mut self, stat: &Stat, now: Instant) {
        let Some(key) = self.by_id.get(&stat.id).copied() else { return };
        let Some(tail) = self.tails.get_mut(&key) else { return };
        if tail.is_adopted() {
            return self.leave_packed(key, now);
        }
        let unread = if tail.read_to() > 0 { tail.unread() } else { 0 };
        self.give_up(key, "truncated", unread);
    }
}

fn with_stat(path: PathBuf) -> Option<(PathBuf, Stat)> {
    let stat = Stat::at(&path).ok().filter(|stat| stat.regular)?;
    Some((path, stat))
}

/// Whether a name leads to this file.
pub(super) fn leads_to(path: &Path, id: FileId) -> bool {
    Stat::at(path).is_ok_and(|there| there.id == id)
}

/// Names under which a copy of `tail` may be: they begin as its own does, and none is the one that is
/// written to.
fn names_of_copies(tail: &Tail) -> impl Fn(&Path) -> bool + use<> {
    let (origin, live, stem) = (tail.origin.clone(), rotated_from(&tail.origin), stem_of(&tail.origin));
    move |path| path != &*origin && live.as_deref() != Some(path) && stem_of(path) == stem
}

/// What rotation keeps of a name: `app` of `app.log`, `app.log.1`, `app-20261125.log`.
pub(super) fn stem_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let end = name.find(|c: char| !c.is_alphabetic()).filter(|end| *end > 0).unwrap_or(name.len());
    Some(name[..end].to_string())
}
