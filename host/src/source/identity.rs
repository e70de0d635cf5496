//! Which file is it, and is its content still what was read?
//!
//! A name says nothing: files are renamed, and ext4 gives a deleted file's inode to the next one at
//! once. So a file is its device, inode and birth time, and content is recognised by a hash of its
//! first bytes and of the bytes just before an offset.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, StatxTimestamp, statx};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checkpoint::Record;

/// Bytes before an offset that are remembered. Enough to hold a time stamp and a few words.
pub const TAIL_BYTES: usize = 64;

/// Bytes at the beginning that are remembered, once there are so many.
pub const HEAD_BYTES: usize = 1024;

/// The lengths by which a copy is known that is only half made. What has fewer bytes says too little
/// to be taken for a copy.
pub const HEAD_LENGTHS: [u16; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// One incarnation of an inode: device, inode and birth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Device, major and minor.
    pub dev: (u32, u32),
    /// Inode.
    pub ino: u64,
    /// Seconds and nanoseconds since 1970; `None` where the filesystem keeps none.
    pub birth: Option<(i64, u32)>,
}

/// What the kernel says about a file.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Which file.
    pub id: FileId,
    /// Bytes.
    pub size: u64,
    /// When it was last written to: nanoseconds since 1970, only to be compared.
    pub modified: i64,
    /// When it, its name or, of a directory, the names in it were changed last: likewise.
    pub changed: i64,
    /// Names it has; 0 when it is deleted.
    pub links: u32,
    /// Not a directory, FIFO or device.
    pub regular: bool,
}

/// A hash of the first bytes and of those before an offset, enough to tell whether a file still
/// has the content that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// How many bytes before the offset.
    pub tail_len: u8,
    /// Their hash.
    pub tail: u64,
}

/// A hash of the first bytes of a file. It grows until it covers [`HEAD_BYTES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many bytes.
    pub len: u16,
    /// Their hash.
    pub hash: u64,
}

impl Stat {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::from(statx(file, c"", AtFlags::EMPTY_PATH, wanted())?)
    }

    /// Of what a path leads to.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::from(statx(CWD, path, AtFlags::empty(), wanted())?)
    }

    /// Of a file that is gone: what was known of it last.
    pub fn last(known: &Record) -> Self {
        let Record { id, size, packed, modified, .. } = *known;
        Self { id, size: packed.unwrap_or(size), modified, changed: modified, links: 0, regular: true }
    }

    fn from(stat: rustix::fs::Statx) -> io::Result<Self> {
        let birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        Ok(Self {
            id: FileId {
                dev: (stat.stx_dev_major, stat.stx_dev_minor),
                ino: stat.stx_ino,
                birth: birth.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
            },
            size: stat.stx_size,
            modified: nanoseconds(stat.stx_mtime),
            changed: nanoseconds(stat.stx_ctime),
            links: stat.stx_nlink,
            regular: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile,
        })
    }
}

fn nanoseconds(time: StatxTimestamp) -> i64 {
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.into())
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}

impl Trace {
    /// Of the last bytes of `before`.
    pub fn of(before: &[u8]) -> Self {
        let tail = &before[before.len().saturating_sub(TAIL_BYTES)..];
        Self { tail_len: tail.len() as u8, tail: hash(tail) }
    }

    /// Reads what stands before `offset`; `None` when it is not what was remembered.
    pub fn verify(&self, file: &File, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(from) = offset.checked_sub(u64::from(self.tail_len)) else { return Ok(None) };
        let tail = read_at(file, from, usize::from(self.tail_len))?;
        Ok(self.matches(&tail).then_some(tail))
    }

    /// Whether these bytes are the ones; where none are remembered, any are.
    pub fn matches(&self, tail: &[u8]) -> bool {
        tail.len() == usize::from(self.tail_len) && (tail.is_empty() || hash(tail) == self.tail)
    }
}

impl Head {
    /// The head of `file`, of whose bytes the first `read` have been read.
    pub fn of(file: &File, read: u64) -> io::Result<Self> {
        Ok(Self::of_bytes(&read_at(file, 0, read.min(HEAD_BYTES as u64) as usize)?))
    }

    /// Of a file that begins with `bytes`: at most [`HEAD_BYTES`].
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u16, hash: hash(bytes) }
    }

    /// Whether `file` begins so.
    pub fn matches(&self, file: &File) -> io::Result<bool> {
        Ok(Self::of(file, u64::from(self.len))? == *self)
    }

    /// Whether more bytes would make it surer.
    pub fn grows(&self, read: u64) -> bool {
        u64::from(self.len) < read.min(HEAD_BYTES as u64)
    }
}

/// Up to `len` bytes at `from`; fewer at the end of the file.
pub fn read_at(file: &File, from: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match file.read_at(&mut bytes[read..], from + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn hash(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_reused_inode_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "one\n").unwrap();
        let first = Stat::at(&path).unwrap().id;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "two\n").unwrap();
        assert_ne!(first, Stat::at(&path).unwrap().id);
    }

    #[test]
    fn a_rename_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        std::fs::write(&old, "one\n").unwrap();
        let before = Stat::at(&old).unwrap().id;
        std::fs::rename(&old, &new).unwrap();
        assert_eq!(before, Stat::at(&new).unwrap().id);
    }

    #[test]
    fn rewritten_content_is_noticed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"first line\nsecond line\n").unwrap();
        let trace = Trace::of(b"first line\nsecond line\n");
        assert!(trace.verify(&file, 23).unwrap().is_some());
        assert!(Head::of(&file, 11).unwrap().matches(&file).unwrap());
        file.write_at(b"X", 12).unwrap();
        assert!(trace.verify(&file, 23).unwrap().is_none());
        assert!(trace.verify(&file, 2).unwrap().is_none());
        assert!(Trace::default().verify(&file, 2).unwrap().is_some(), "nothing is remembered, so all fits");
    }
}
