//! A clock that jumps, a disk that fails, a power cut: what the agent's process is told is not the
//! truth, through a small library that it loads before all others (`preload.c`).
//!
//! A power cut leaves of what was written to a database and not synced each sector as it was before
//! or as it is now. It touches no other file, and no name of a file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::scratch;
use crate::weir::Weir;

/// A disk writes so much at once or not at all. Bytes.
const SECTOR: usize = 512;
/// Place, length, size of the file before.
const HEAD: usize = 24;

/// What the agent is told of clock and disk.
#[derive(Debug)]
pub struct Preload {
    dir: TempDir,
    control: File,
}

/// What of the disk fails, with EIO.
#[derive(Clone, Copy, Debug)]
pub enum Failing {
    /// Nothing.
    Nothing = 0,
    /// Writing and syncing of databases.
    Writes = 1,
    /// Reading of them too.
    All = 2,
}

impl Preload {
    /// Builds the library; nothing is different yet.
    #[track_caller]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = scratch::dir("preload");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/preload.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(dir.path().join("preload.so"));
        let built = cc.arg(source).args(["-ldl", "-lpthread"]).status().expect("run cc");
        assert!(built.success(), "cc preload.c");
        std::fs::create_dir(dir.path().join("undo")).expect("a directory");
        let path = dir.path().join("control");
        let control = File::options().create_new(true).write(true).open(path).expect("a file");
        control.set_len(16).expect("room in it");
        Self { dir, control }
    }

    /// Lets an agent load it, at its next start.
    pub fn on(&self, weir: Weir) -> Weir {
        let path = |name: &str| self.dir.path().join(name).to_string_lossy().into_owned();
        // It writes beside the agent's state, which the kernel would not let it.
        weir.setting("policy", "confine = false")
            .env("LD_PRELOAD", &path("preload.so"))
            .env("WEIR_PRELOAD_CONTROL", &path("control"))
            .env("WEIR_PRELOAD_UNDO", &path("undo"))
    }

    /// Sets the wall clock by so many seconds off the true one.
    pub fn shift_clock(&self, seconds: i64) {
        self.control.write_all_at(&seconds.to_ne_bytes(), 0).expect("steer the clock");
    }

    /// Says what of the disk fails from now on.
    pub fn fail_disk(&self, failing: Failing) {
        self.control.write_all_at(&(failing as i64).to_ne_bytes(), 8).expect("steer the disk");
    }

    /// The power went: makes of a database what the disk may hold of it. The agent must have been
    /// killed. Says how many sectors there were to lose.
    #[track_caller]
    pub fn cut_power(&self, database: &Path, mut survives: impl FnMut() -> bool) -> usize {
        let undo = self.undo(database);
        let log = std::fs::read(&undo).unwrap_or_default();
        let now = std::fs::read(database).expect("read a database");
        let mut before = now.clone();
        for (at, size, bytes) in records(&log).into_iter().rev() {
            before.resize(before.len().max(at + bytes.len()), 0);
            before[at..at + bytes.len()].copy_from_slice(bytes);
            before.resize(size, 0);
        }
        let length = if survives() { now.len() } else { before.len() };
        let (mut cut, mut open) = (now.clone(), 0);
        cut.resize(length, 0);
        for (n, sector) in cut.chunks_mut(SECTOR).enumerate() {
            let old = before.get(n * SECTOR..n * SECTOR + sector.len());
            let old = old.map_or_else(|| vec![0; sector.len()], <[u8]>::to_vec);
            if old != *sector {
                open += 1;
                if !survives() {
                    sector.copy_from_slice(&old);
                }
            }
        }
        std::fs::write(database, cut).expect("write a database");
        if undo.exists() {
            std::fs::write(undo, "").expect("empty a file");
        }
        open
    }

    fn undo(&self, database: &Path) -> PathBuf {
        self.dir.path().join("undo").join(database.file_name().expect("a file"))
    }
}

/// Place, size before and bytes before of each write; one that a kill cut off was not done.
fn records(mut log: &[u8]) -> Vec<(usize, usize, &[u8])> {
    let mut records = Vec::new();
    while let Some((head, rest)) = log.split_at_checked(HEAD) {
        let number = |n: usize| u64::from_ne_bytes(head[n * 8..][..8].try_into().expect("8 bytes")) as usize;
        let Some((bytes, rest)) = rest.split_at_checked(number(1)) else { break };
        records.push((number(0), number(2), bytes));
        log = rest;
    }
    records
}
