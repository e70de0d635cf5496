//! Compressed files: those that the pattern covers, and those that a followed file was compressed to.
//!
//! In: a new file that is compressed, or a followed one that is gone. Out: whether the first is a content
//! that is known, and where the second goes on. Absent by design: trusting a name, where there are bytes.
//!
//! A file that was compressed goes on in the compressed one, as if it had been renamed: what was read of
//! it is not read again, and what was not is read from there, before the next content.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::copies::{Copy, leads_to, stem_of};
use super::gzip;
use super::identity::{Head, Stat};
use super::tail::{Damage, Fate, Tail, WRITTEN_AFTER};
use super::{Source, remove_if};

/// A compressed file that was not written to for so long is whole, as far as anybody can tell.
const QUIET: Duration = Duration::from_secs(3);

/// Compressed files beside one that is gone that are looked into: those with its name, then the newest.
const CANDIDATES_MAX: usize = 16;

/// Names beside one that is gone that are looked at.
const NAMES_MAX: usize = 10_000;

/// The longest content that is looked through at once. Bytes.
const LOOKED_THROUGH_MAX: u64 = 64 << 20;

/// A compressed file beside one that is gone.
struct Candidate {
    copy: Copy,
    /// Of its content, as it says itself. Bytes.
    length: u64,
}

impl Source {
    /// Before anything of a file is read: is it compressed, and if so, whole, and not what another file
    /// holds that is still there? `None`: it is not compressed. Else whether it waits.
    pub(super) fn vet_packed(&mut self, key: u64, now: Instant) -> io::Result<Option<bool>> {
        let Some(tail) = self.tails.get_mut(&key).filter(|tail| gzip::is_named(&tail.path)) else {
            return Ok(None);
        };
        let Some(file) = tail.file() else { return Ok(None) };
        let stat = Stat::of(file)?;
        match gzip::is_packed(file)? {
            Some(true) => {}
            Some(false) => return Ok(None),
            None => {
                tail.wait_until(now + QUIET);
                return Ok(Some(true));
            }
        }
        let (length, head) = (gzip::length(file, &stat)?, gzip::head(file)?);
        tail.set_packed(&stat, length, now);
        let quiet = tail.quiet_for(now);
        if quiet < QUIET && age(&stat) < QUIET {
            tail.wait_until(now + (QUIET - quiet));
            return Ok(Some(true));
        }
        let (twin, passed_over) = match self.unpacked(key, &head, length, quiet) {
            Some(of) if self.tails.get(&of).is_some_and(|of| of.size() == length && of.is_delivered()) => {
                (None, true)
            }
            of => (of, false),
        };
        let Some(tail) = self.tails.get_mut(&key) else { return Ok(None) };
        (tail.twin, tail.vetted) = (twin, twin.is_none());
        if passed_over {
            tail.pass_over(length);
            self.note(key, 0);
        }
        Ok(Some(twin.is_some() || passed_over))
    }

    /// The file that is there beside the compressed file `key` and begins as its content does. While that
    /// may grow it counts as the one that is being compressed, after that if it is as long. One of which
    /// the beginning is not known yet may be it, if it is as long.
    fn unpacked(&self, key: u64, head: &[u8], length: u64, quiet: Duration) -> Option<u64> {
        let plain = |of: &u64| {
            let tail = self.tails.get(of).filter(|tail| tail.fate != Fate::Over && !tail.is_packed());
            tail.filter(|_| *of != key)
        };
        let is_it = |of: &u64| {
            let Some(tail) = plain(of).filter(|tail| tail.may_begin_with(head)) else { return false };
            if tail.size() == length && tail.is_delivered() {
                return self.holds_same(tail, key, length).unwrap_or_default();
            }
            quiet < WRITTEN_AFTER || tail.size() == length || tail.may_differ()
        };
        let may_be_it = |of: &u64| {
            let may_be_it = |tail: &Tail| tail.size() == length && tail.has_news() && tail.trouble.is_none();
            plain(of).is_some_and(may_be_it)
        };
        let like = self.heads.like(head).into_iter().find(is_it);
        like.or_else(|| self.awake.iter().copied().find(may_be_it))
    }

    /// Whether the compressed file `key` holds just what `plain` does. A long content is compared at some
    /// places.
    fn holds_same(&self, plain: &Tail, key: u64, length: u64) -> io::Result<bool> {
        let Some(packed) = self.tails.get(&key).and_then(Tail::file) else { return Ok(false) };
        if length > LOOKED_THROUGH_MAX {
            return plain.begins_as(packed, length);
        }
        match (plain.file(), self.policy.open(&plain.path)) {
            (Some(file), _) => gzip::holds(packed, file),
            (None, Ok(opened)) => gzip::holds(packed, &opened.file),
            (None, Err(_)) => Ok(false),
        }
    }

    /// A file that is gone, or held open for too long, was perhaps compressed. Whether it goes on there.
    pub(super) fn find_packed(&mut self, key: u64, now: Instant) -> bool {
        let Some(tail) = self.tails.get(&key).filter(|tail| !tail.is_packed()) else { return false };
        let Some(Candidate { copy, length }) = self.packed_of(key, tail) else { return false };
        // What is under way is read again from there after a crash.
        let is_over = tail.unread() == 0 && tail.ledger.is_empty();
        let fate = self.fate_at(&copy.path, &copy.stat, now);
        // A copy from before the last that was read of it, or something else: no read will tell.
        let (is_short, is_read) = (length < tail.read_to(), is_over && length == tail.read_to());
        let is_begin = || match length <= LOOKED_THROUGH_MAX {
            true => tail.begins_as(&copy.file, length).unwrap_or_default(),
            false => !is_short,
        };
        if (is_short || is_read) && !is_begin() {
            return false;
        }
        // One that is open has no more than was read of it: what is longer is another file's.
        if is_over && tail.is_open() && length > tail.read_to() {
            return false;
        }
        self.replaced_by_copy(&copy.stat, now);
        let Some(tail) = self.tails.get_mut(&key) else { return false };
        let was = (tail.id, tail.path.clone());
        let next_content = tail.next_content_beside(length, copy.stat.modified);
        info!(entry = %self.entry, path = %tail.path.display(), packed = %copy.path.display(),
            "a file was compressed; what was not read of it is read from there");
        let (id, path, modified) = (copy.stat.id, copy.path.clone(), copy.stat.modified);
        self.heads.remove(tail.heads(), key);
        tail.go_on_packed(copy, length, now);
        self.heads.add(tail.heads(), key);
        tail.fate = fate.unwrap_or(Fate::Named);
        remove_if(&mut self.by_id, &was.0, key);
        remove_if(&mut self.by_path, &was.1, key);
        self.count_lost("deleted", next_content, &was.1);
        // Its copy, which was compressed.
        let is_copy = |tail: &Tail| {
            let is_made_of = *gzip::name_of(&tail.path) == *path || tail.modified() == modified;
            let is_copy = tail.twin == Some(key) || (tail.is_unread() && is_made_of);
            is_copy && !leads_to(&tail.path, tail.id) && tail.size() == length
        };
        for copy in self.keys(|tail| tail.incarnation != key && !tail.is_packed() && is_copy(tail)) {
            self.give_up(copy, "truncated", 0);
        }
        self.has_place(key, id, path);
        true
    }

    /// What a file that is gone was compressed to.
    fn packed_of(&self, key: u64, tail: &Tail) -> Option<Candidate> {
        // One that is open was perhaps deleted since.
        let open = self.untouched(key, tail).filter(|other| other.is_packed());
        let mut open = open.filter_map(|other| Some((&other.path, other.file()?.try_clone().ok()?)));
        if let Some(found) = open.find_map(|(path, file)| self.candidate(tail, path.clone(), file)) {
            return Some(found);
        }
        let real = std::fs::canonicalize(&tail.path).ok().filter(|real| **real != *tail.path);
        let dirs = [Some(&*tail.path), real.as_deref()].into_iter().flatten().filter_map(Path::parent);
        let names = dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().take(NAMES_MAX);
        let packed = names.filter_map(Result::ok).map(|name| name.path()).filter(|path| gzip::is_named(path));
        let mut found: Vec<_> =
            packed.filter_map(|path| Stat::at(&path).ok().map(|stat| (path, stat))).collect();
        let (name, stem) = (gzip::name_of(&tail.path), stem_of(&tail.origin));
        found.sort_by_key(|(path, stat)| {
            (*path != name, stem_of(path) != stem, std::cmp::Reverse(stat.modified))
        });
        found.truncate(CANDIDATES_MAX);
        found.into_iter().find_map(|(path, _)| {
            let file = self.policy.open(&path).ok()?.file;
            self.candidate(tail, path.into(), file)
        })
    }

    /// Whether the content of a compressed file begins as one that is gone did. Where nothing was read of
    /// that, its name tells, or its length and age: a compressed file keeps those.
    fn candidate(&self, tail: &Tail, path: Arc<Path>, file: File) -> Option<Candidate> {
        let stat = Stat::of(&file).ok().filter(|opened| opened.regular)?;
        let known = self.by_id.get(&stat.id).and_then(|key| self.tails.get(key));
        if tail.has_left(stat.id) || known.is_some_and(|known| known.read_to() > 0) {
            return None;
        }
        if gzip::is_packed(&file).ok()? != Some(true) {
            return None;
        }
        let length = gzip::length(&file, &stat).ok()?;
        let is_it = if tail.head().len > 0 {
            let bytes = gzip::head(&file).ok()?;
            let known = tail.head();
            match bytes.get(..known.len.into()) {
                Some(begin) => {
                    Head::of_bytes(begin) == known && !self.is_more_like_another(tail, &bytes, length)
                }
                None => tail.begins_as(&file, length).ok()?,
            }
        } else {
            // One that had another name before was made of another file.
            let is_named =
                *path == *gzip::name_of(&tail.path) && known.is_none_or(|known| known.origin == path);
            let is_named = is_named && may_have_been(tail, &stat, length);
            is_named || (length, stat.modified) == (tail.size(), tail.modified())
        };
        is_it.then(|| Candidate { copy: Copy { path, stat, file }, length })
    }

    /// Whether a content that begins with `bytes` is rather that of another file than of `tail`: of one of
    /// which more is known.
    fn is_more_like_another(&self, tail: &Tail, bytes: &[u8], length: u64) -> bool {
        let others = self.heads.like(bytes).into_iter().filter(|other| *other != tail.incarnation);
        let mut others = others.filter_map(|other| self.tails.get(&other));
        others.any(|other| {
            let (head, is_it) = (other.head(), other.fate != Fate::Over && other.size() == length);
            let begin = bytes.get(..head.len.into()).filter(|_| is_it && head.len > tail.head().len);
            begin.is_some_and(|begin| Head::of_bytes(begin) == head)
        })
    }

    /// The compressed file that a file went on in holds something else.
    pub(super) fn leave_packed(&mut self, key: u64, now: Instant) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        let (id, path) = (tail.leave_packed(), tail.path.clone());
        remove_if(&mut self.by_id, &id, key);
        remove_if(&mut self.by_path, &path, key);
        self.scan_due = true;
        if !self.find_packed(key, now) {
            let unread = self.tails.get(&key).map_or(0, Tail::unread);
            self.give_up(key, "deleted", unread);
        }
    }

    /// A compressed file that is there when an entry begins at the end of its files.
    pub(super) fn pass_over_packed(&mut self, key: u64, now: Instant) {
        let Some(tail) = self.tails.get_mut(&key).filter(|tail| gzip::is_named(&tail.path)) else { return };
        let Ok(file) = tail.open(&self.policy, now) else { return };
        let found = gzip::is_packed(file).and_then(|is_packed| Ok((is_packed, Stat::of(file)?)));
        if let Ok((Some(true), stat)) = found
            && let Ok(length) = gzip::length(file, &stat)
        {
            tail.set_packed(&stat, length, now);
            tail.pass_over(length);
            self.note(key, 0);
        }
    }

    /// Whether a compressed file gave no line more because it is not whole.
    pub(super) fn is_damaged(&mut self, key: u64, now: Instant) -> bool {
        let Some(tail) = self.tails.get_mut(&key) else { return false };
        match tail.damage(now) {
            None => false,
            Some(Damage::Wait) => true,
            Some(Damage::Lost { cause, bytes }) => {
                let path = tail.path.clone();
                warn!(entry = %self.entry, path = %path.display(), cause, "a compressed file is damaged");
                self.count_lost("damaged", bytes, &path);
                true
            }
        }
    }
}

/// Whether a file of which nothing was read may be what a compressed one was made of, by length and age. It
/// may have grown since it was seen, which makes it younger and longer, and not one without the other; if
/// not, the compressed one has its time, where it was given one at all.
fn may_have_been(tail: &Tail, packed: &Stat, length: u64) -> bool {
    let birth =
        packed.id.birth.map_or(0, |(s, ns)| s.saturating_mul(1_000_000_000).saturating_add(ns.into()));
    let has_own_time = packed.modified >= birth;
    let is_long = tail.size() > u32::MAX.into();
    packed.modified >= tail.modified()
        && (is_long || length > tail.size() || (length == tail.size() && has_own_time))
}

/// How long ago it was written to, by its own time.
fn age(stat: &Stat) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(stat.modified.max(0) as u64))
}
