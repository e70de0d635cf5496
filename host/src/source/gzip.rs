//! Compressed files, read as what was put into them.
//!
//! In: an open `.gz`. Out: its decompressed bytes from a place on, with those just before it. Absent by
//! design: more of it in memory than is asked for, and going back: a place is reached from the beginning.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::identity::{HEAD_BYTES, Stat, TAIL_BYTES, read_at};

/// What a compressed file begins with: gzip, deflated.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Bytes decompressed at once on the way to a place, so that other files have their turn.
const SKIP_BYTES: usize = 1 << 20;

/// Bytes asked of the decoder at once.
const STEP_BYTES: usize = 64 * 1024;

/// Deflate makes no byte out of more than so many.
const RATIO_MAX: u64 = 1032;

/// Whether a name says that a file is compressed.
pub(super) fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// `NAME.gz`.
pub(super) fn name_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    name.into()
}

/// Whether a file is compressed; `None` while it is too short to tell.
pub(super) fn is_packed(file: &File) -> io::Result<Option<bool>> {
    let begin = read_at(file, 0, MAGIC.len())?;
    Ok((begin.len() == MAGIC.len() || !MAGIC.starts_with(&begin)).then_some(begin == MAGIC))
}

/// How long its content is by what it says itself: right for one member of less than 4 GiB, which is what
/// rotation makes.
pub(super) fn length(file: &File, stat: &Stat) -> io::Result<u64> {
    let end = read_at(file, stat.size.saturating_sub(4), 4)?;
    let length = end.try_into().map_or(0, u32::from_le_bytes);
    Ok(u64::from(length).min(stat.size.saturating_mul(RATIO_MAX)))
}

/// What its content begins with; less where it is damaged.
pub(super) fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut unzip = Unzip::new(file)?;
    unzip.fill(0, HEAD_BYTES);
    Ok(unzip.bytes(0, HEAD_BYTES).to_vec())
}

/// Whether a compressed file holds just what another one does.
pub(super) fn holds(packed: &File, plain: &File) -> io::Result<bool> {
    let (mut unzip, mut at) = (Unzip::new(packed)?, 0);
    loop {
        while !unzip.fill(at, STEP_BYTES) {}
        let bytes = unzip.bytes(at, STEP_BYTES);
        if read_at(plain, at, STEP_BYTES)? != bytes {
            return Ok(false);
        }
        if bytes.is_empty() {
            return Ok(matches!(unzip.end(), Some(End::Whole)));
        }
        at += bytes.len() as u64;
    }
}

/// A compressed file that is being read.
pub(super) struct Unzip {
    decoder: MultiGzDecoder<BufReader<Packed>>,
    /// What was decompressed and is not used up, and a little before it.
    window: Vec<u8>,
    /// Where the window begins in the content.
    start: u64,
    end: Option<End>,
}

/// Why there is no more.
#[derive(Debug)]
pub(super) enum End {
    /// That was all.
    Whole,
    /// It ends too soon: perhaps it is still being written.
    Cut,
    /// It cannot be decompressed.
    Damaged(io::Error),
}

impl std::fmt::Debug for Unzip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unzip").field("start", &self.start).field("end", &self.end).finish_non_exhaustive()
    }
}

/// Reads with offsets of its own, whatever else is read from the descriptor.
struct Packed {
    file: File,
    at: u64,
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Unzip {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let packed = Packed { file: file.try_clone()?, at: 0 };
        let decoder = MultiGzDecoder::new(BufReader::new(packed));
        Ok(Self { decoder, window: Vec::new(), start: 0, end: None })
    }

    /// Decompresses until there are `want` bytes from `from` on, or no more. False while it is on the way
    /// to `from`, which never goes back.
    pub(super) fn fill(&mut self, from: u64, want: usize) -> bool {
        let mut skipped = 0;
        while self.end.is_none() && self.reaches() < from + want as u64 {
            if self.reaches() < from && skipped >= SKIP_BYTES {
                return false;
            }
            self.leave_behind(from);
            skipped += self.step();
        }
        self.leave_behind(from);
        true
    }

    /// What it holds from `from` on, at most `want` bytes.
    pub(super) fn bytes(&self, from: u64, want: usize) -> &[u8] {
        let from = from.checked_sub(self.start).map_or(self.window.len(), |at| at as usize);
        let bytes = self.window.get(from..).unwrap_or_default();
        &bytes[..want.min(bytes.len())]
    }

    /// What stands just before `from`: [`TAIL_BYTES`], or all there is.
    pub(super) fn before(&self, from: u64) -> &[u8] {
        let end = from.checked_sub(self.start).map_or(0, |end| end as usize);
        let before = self.window.get(..end).unwrap_or_default();
        &before[before.len().saturating_sub(TAIL_BYTES)..]
    }

    /// To where it is decompressed.
    pub(super) fn reaches(&self) -> u64 {
        self.start + self.window.len() as u64
    }

    /// Why there is no more behind that.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Compressed bytes that were not looked at yet.
    pub(super) fn rest(&self, packed: u64) -> u64 {
        let reader = self.decoder.get_ref();
        packed.saturating_sub(reader.get_ref().at - reader.buffer().len() as u64)
    }

    fn leave_behind(&mut self, from: u64) {
        let keep = from.saturating_sub(TAIL_BYTES as u64).saturating_sub(self.start);
        let keep = (keep as usize).min(self.window.len());
        self.window.drain(..keep);
        self.start += keep as u64;
    }

    fn step(&mut self) -> usize {
        let len = self.window.len();
        self.window.resize(len + STEP_BYTES, 0);
        let read = loop {
            match self.decoder.read(&mut self.window[len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let more = *read.as_ref().unwrap_or(&0);
        self.window.truncate(len + more);
        match read {
            Ok(0) => self.end = Some(End::Whole),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.end = Some(End::Cut),
            Err(error) => self.end = Some(End::Damaged(error)),
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn packed(members: &[&[u8]]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for member in members {
            let mut encoder = GzEncoder::new(&mut file, Compression::fast());
            encoder.write_all(member).unwrap();
            encoder.finish().unwrap();
        }
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn text() -> Vec<u8> {
        (0..300_000u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
    }

    #[test]
    fn members_are_one_content_read_in_any_steps() {
        let text = text();
        let file = packed(&[&text[..1000], &text[1000..]]);
        for (from, want) in [(0, 100_000), (999, 7), (2_000_000, 300_000)] {
            let (mut unzip, mut found) = (Unzip::new(&file).unwrap(), Vec::new());
            loop {
                let at = from + found.len() as u64;
                while !unzip.fill(at, want) {}
                let bytes = unzip.bytes(at, want);
                assert!(unzip.window.len() <= want + TAIL_BYTES + STEP_BYTES);
                assert_eq!(unzip.before(at), &text[(at as usize).saturating_sub(TAIL_BYTES)..at as usize]);
                found.extend(bytes.iter().take(if found.len() > 100 { want } else { 10 }));
                if bytes.is_empty() {
                    break;
                }
                if want < 100 && found.len() > 1000 {
                    break;
                }
            }
            assert!(text[from as usize..].starts_with(&found));
            if want > 100 {
                assert_eq!(found.len(), text.len() - from as usize);
                assert!(matches!(unzip.end(), Some(End::Whole)));
            }
        }
    }

    #[test]
    fn what_is_cut_or_damaged_is_said_behind_what_is_there() {
        let text = text();
        let file = packed(&[&text]);
        let len = file.metadata().unwrap().len();
        let stat = Stat::of(&file).unwrap();
        assert_eq!(length(&file, &stat).unwrap(), text.len() as u64);
        file.set_len(len / 2).unwrap();
        let mut unzip = Unzip::new(&file).unwrap();
        assert!(unzip.fill(0, text.len()));
        assert!(matches!(unzip.end(), Some(End::Cut)));
        assert!(unzip.reaches() > 100_000 && text.starts_with(unzip.bytes(0, usize::MAX)));
        let file = packed(&[&text]);
        // Its checksum.
        file.write_all_at(&[0x55; 4], len - 8).unwrap();
        let mut unzip = Unzip::new(&file).unwrap();
        unzip.fill(0, text.len() + 1);
        assert!(matches!(unzip.end(), Some(End::Damaged(_))));
        assert_eq!(unzip.reaches(), text.len() as u64);
    }

    #[test]
    fn what_is_packed_is_known_by_its_first_bytes() {
        let file = packed(&[b"one\n"]);
        assert_eq!(is_packed(&file).unwrap(), Some(true));
        assert_eq!(head(&file).unwrap(), b"one\n");
        file.set_len(2).unwrap();
        assert_eq!(is_packed(&file).unwrap(), None);
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(is_packed(&file).unwrap(), Some(false));
    }
}
