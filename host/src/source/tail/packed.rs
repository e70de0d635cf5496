//! A followed file that is compressed: places in it are places in its content.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::super::copies::Copy;
use super::super::gzip::{End, Unzip};
use super::super::identity::{FileId, Stat, Trace};
use super::{Fill, Tail};
use crate::ledger::{Ledger, Mark};

/// A compressed file that ends too soon and did not grow for so long is not being written any more.
pub const WRITTEN_AFTER: Duration = Duration::from_secs(10);

/// What there is besides for a compressed file.
#[derive(Debug)]
pub(super) struct Packed {
    /// Boxed: few of very many files are compressed.
    unzip: Option<Box<Unzip>>,
    /// Its size on the disk.
    size: u64,
    /// It is taken for the file that was followed before, until the bytes before the place tell; and when that
    /// was last written to.
    adopted: Option<i64>,
}

/// What is to be done about a compressed file of which nothing more can be had.
#[derive(Debug)]
pub enum Damage {
    /// It may become whole.
    Wait,
    /// So many bytes are lost, at least.
    Lost {
        /// Why.
        cause: String,
        /// Measured where its length was known, else estimated.
        bytes: u64,
    },
}

impl Packed {
    pub(super) fn resume(size: u64) -> Self {
        Self { unzip: None, size, adopted: None }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn close(&mut self) {
        self.unzip = None;
    }
}

impl Tail {
    /// Whether it is compressed.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Whether the last read reached the end of a compressed file: its last line is one without a newline,
    /// too.
    pub fn is_unpacked(&self) -> bool {
        let unzip = self.packed.as_ref().and_then(|packed| packed.unzip.as_ref());
        unzip.is_some_and(|unzip| matches!(unzip.end(), Some(End::Whole)))
    }

    /// It turned out to be compressed, before anything was read of it. Its content has perhaps `length`
    /// bytes.
    pub fn set_packed(&mut self, stat: &Stat, length: u64, now: Instant) {
        let packed = self.packed.get_or_insert_with(|| {
            // What was seen of it so far was its size on the disk.
            self.seen = 0;
            Box::new(Packed { unzip: None, size: stat.size, adopted: None })
        });
        packed.size = stat.size;
        (self.size, self.suspect, self.partial_at) = (length.max(1), false, 0);
        self.sightings = [(now, self.size)].into();
    }

    /// What was read of it goes on in a file that it was compressed to.
    pub fn go_on_packed(&mut self, copy: Copy, length: u64, now: Instant) {
        let Copy { path, stat, file } = copy;
        if !self.shrunk {
            self.seen = self.seen.max(self.size);
        }
        let unread = self.seen.saturating_sub(self.read_to);
        self.cut(length);
        self.seen = self.read_to + unread;
        self.close();
        let adopted = Some(self.modified);
        self.packed = Some(Box::new(Packed { unzip: None, size: stat.size, adopted }));
        (self.path, self.id, self.file, self.modified) = (path, stat.id, Some(file), stat.modified);
        let is_done = length == self.read_to && self.seen <= length;
        self.size = if is_done { length } else { length.max(self.read_to + 1) };
        (self.suspect, self.shrunk, self.partial_at) = (false, false, 0);
        // One that nothing was read of may itself be a copy.
        (self.grew, self.not_before, self.vetted) = (now, now, self.read_to > 0);
        self.sightings = [(now, self.size)].into();
    }

    /// Whether it was taken to go on in a compressed file of which nothing was read.
    pub fn is_adopted(&self) -> bool {
        self.packed.as_ref().is_some_and(|packed| packed.adopted.is_some()) && self.read_to == 0
    }

    /// What it went on in is another file's content. It is as gone as before.
    pub fn leave_packed(&mut self) -> FileId {
        self.close();
        self.modified = self.packed.take().and_then(|packed| packed.adopted).unwrap_or(self.modified);
        self.size = self.seen;
        self.rejected.push(self.id);
        self.id
    }

    /// Whether the content of a compressed file, shorter than what was read, is the beginning of that.
    pub fn begins_as(&self, file: &File, length: u64) -> io::Result<bool> {
        let (mut unzip, mut is_sampled) = (Unzip::new(file)?, false);
        for sample in self.samples.iter().filter(|sample| (1..=length).contains(&sample.offset)) {
            while !unzip.fill(sample.offset, 1) {}
            let before = unzip.before(sample.offset);
            let before = &before[before.len().saturating_sub(sample.trace.tail_len.into())..];
            if unzip.reaches() < sample.offset || !sample.trace.matches(before) {
                return Ok(false);
            }
            is_sampled = true;
        }
        Ok(is_sampled)
    }

    /// Whether it is known not to go on in that file.
    pub fn has_left(&self, id: FileId) -> bool {
        self.rejected.contains(&id)
    }

    /// Nothing is to be read of a compressed file whose content has `length` bytes.
    pub fn pass_over(&mut self, length: u64) {
        let mark = Mark { offset: length, trace: Trace::default() };
        self.ledger = Ledger::new(mark);
        (self.read_to, self.size, self.seen, self.partial_at) = (length, length, length, 0);
        (self.vetted, self.twin, self.verified) = (true, None, false);
        self.before.clear();
        self.close();
    }

    pub(super) fn sighted_packed(&mut self, stat: &Stat, now: Instant) {
        self.modified = stat.modified;
        let Some(packed) = self.packed.as_mut().filter(|packed| packed.size != stat.size) else { return };
        (packed.size, packed.unzip) = (stat.size, None);
        (self.grew, self.verified, self.partial_at) = (now, false, 0);
        self.size = self.size.max(self.read_to + 1);
    }

    /// As [`Tail::fill`], of an open file.
    pub(super) fn fill_packed(
        &mut self,
        buffer: &mut Vec<u8>,
        want: usize,
        now: Instant,
    ) -> io::Result<Fill> {
        let (Some(file), Some(packed)) = (&self.file, &mut self.packed) else { return Ok(Fill::Closed) };
        self.not_before = now;
        let unzip = match &mut packed.unzip {
            Some(unzip) => unzip,
            none => {
                self.verified = false;
                none.insert(Box::new(Unzip::new(file)?))
            }
        };
        if !unzip.fill(self.read_to, want) {
            return Ok(Fill::Busy);
        }
        let reaches = unzip.reaches();
        let is_whole = matches!(unzip.end(), Some(End::Whole));
        if reaches < self.read_to && !is_whole {
            return Ok(Fill::Bytes { len: 0, full: false });
        }
        if !self.verified {
            let resumed = self.before.is_empty() && self.ledger.committed().offset == self.read_to;
            let trace = if resumed { self.ledger.committed().trace } else { Trace::of(&self.before) };
            let before = unzip.before(self.read_to);
            let before = &before[before.len().saturating_sub(trace.tail_len.into())..];
            if reaches < self.read_to || !trace.matches(before) {
                let lost = self.seen.saturating_sub(self.read_to);
                return Ok(if packed.adopted.is_some() { Fill::Other } else { Fill::Rewritten { lost } });
            }
            self.before = before.to_vec();
            self.verified = true;
            if resumed && self.read_to > 0 {
                self.inside = self.inside_line();
            }
        }
        let (Some(packed), from) = (&self.packed, self.read_to) else { return Ok(Fill::Closed) };
        let bytes = packed.unzip.as_ref().map_or(&[][..], |unzip| unzip.bytes(from, want));
        let len = bytes.len();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        buffer[..len].copy_from_slice(bytes);
        if is_whole {
            self.vanished += self.seen.saturating_sub(reaches);
            (self.size, self.seen) = (reaches, reaches);
        } else {
            self.size = self.size.max(reaches + 1);
        }
        Ok(Fill::Bytes { len, full: from + (len as u64) < reaches || (len == want && !is_whole) })
    }

    /// Where a compressed file gave no line more: why, unless that was all of it.
    pub fn damage(&mut self, now: Instant) -> Option<Damage> {
        let (quiet, grew) = (self.quiet_for(now), self.grew);
        let packed = self.packed.as_mut()?;
        let unzip = packed.unzip.as_ref()?;
        // Where only some bytes are wrong, its last ones still say how long it is.
        let (cause, length) = match unzip.end()? {
            End::Whole => return None,
            End::Cut if quiet < WRITTEN_AFTER => {
                packed.unzip = None;
                self.not_before = grew + WRITTEN_AFTER;
                return Some(Damage::Wait);
            }
            End::Cut => ("it ends too soon".to_string(), 0),
            End::Damaged(error) => (error.to_string(), self.size),
        };
        let behind = unzip.reaches().max(self.seen).max(length).saturating_sub(self.read_to);
        let bytes = behind.max(unzip.rest(packed.size)).max(1);
        packed.unzip = None;
        (self.size, self.seen, self.partial_at) = (self.read_to, self.read_to, 0);
        Some(Damage::Lost { cause, bytes })
    }
}
