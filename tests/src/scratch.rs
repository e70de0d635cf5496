//! Directories that are gone when the test process is.
//!
//! All of one process lie in `/tmp/weir-tests-PID`. That folder is removed when the process exits
//! (statics are not dropped, so this is an exit handler), and what a killed process left behind is
//! removed by the next one. `WEIR_TESTS_KEEP=1` keeps everything.
//!
//! A [`Small`] filesystem can be full, or read-only, without hurting anybody.

#![allow(unsafe_code)] // atexit

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::process;

const PREFIX: &str = "weir-tests-";

/// A new empty directory, removed when dropped.
pub fn dir(name: &str) -> TempDir {
    let mut dir = tempfile::Builder::new().prefix(name).tempdir_in(root()).expect("a directory in /tmp");
    dir.disable_cleanup(keep());
    dir
}

/// A small filesystem in memory, mounted on a directory, gone when dropped.
#[derive(Debug)]
pub struct Small {
    dir: PathBuf,
}

impl Small {
    /// Mounts it on `dir`; `None` where that is not allowed.
    pub fn mount(dir: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(dir).expect("a directory to mount on");
        let size = format!("size={bytes},mode=0700");
        mount(&["-t", "tmpfs", "-o", &size, "weir-tests", &dir.to_string_lossy()])
            .then(|| Self { dir: dir.into() })
    }

    /// Mounts an ext4 whose inodes have no room for a birth time, and which gives a deleted file's
    /// inode to the next one; `None` where that is not allowed.
    pub fn mount_without_birth_times(dir: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(dir).expect("a directory to mount on");
        let image = dir.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        let mut mkfs = Command::new("mkfs.ext4");
        let made = mkfs.args(["-q", "-I", "128"]).arg(&image).stderr(Stdio::null()).status();
        let mounted = made.is_ok_and(|status| status.success())
            && mount(&["-o", "loop", &image.to_string_lossy(), &dir.to_string_lossy()]);
        let small = mounted.then(|| Self { dir: dir.into() })?;
        let file = File::create(small.filler()).and_then(|file| file.metadata()).expect("a file");
        assert!(file.created().is_err(), "files have no birth time");
        small.free();
        Some(small)
    }

    /// Takes all space that is left, under the name `filler`.
    #[track_caller]
    pub fn fill(&self) {
        let filler = File::create(self.filler()).expect("a file to fill the disk");
        let mut zeros = io::repeat(0);
        let full = io::copy(&mut zeros, &mut &filler).expect_err("the disk is small");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives it back.
    #[track_caller]
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("remove the filler");
    }

    /// Makes it read-only, or writable again.
    #[track_caller]
    pub fn read_only(&self, read_only: bool) {
        let how = if read_only { "remount,ro" } else { "remount,rw" };
        assert!(mount(&["-o", how, &self.dir.to_string_lossy()]), "{how} {}", self.dir.display());
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazy: a process that has a file open on it does not keep it there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
    }
}

fn mount(args: &[&str]) -> bool {
    let output = Command::new("mount").args(args).output();
    output.is_ok_and(|output| output.status.success())
}

fn root() -> &'static PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        sweep();
        let root = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a directory in /tmp");
        // SAFETY: `at_exit` is an extern "C" function without arguments that does not unwind.
        unsafe { libc::atexit(at_exit) };
        root
    })
}

extern "C" fn at_exit() {
    process::kill_all();
    if !keep() {
        // What cannot be removed now is swept by the next run.
        let _ = std::fs::remove_dir_all(root());
    }
}

/// Removes what processes that are no more have left.
fn sweep() {
    sweep_mounts();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn sweep_mounts() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let prefix = std::env::temp_dir().join(PREFIX);
    let dirs = mounts.lines().filter_map(|mount| mount.split(' ').nth(1));
    for dir in dirs {
        let of = dir.strip_prefix(&*prefix.to_string_lossy()).and_then(|rest| rest.split('/').next());
        if of.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = Command::new("umount").arg("--lazy").arg(dir).status();
        }
    }
}

fn keep() -> bool {
    std::env::var_os("WEIR_TESTS_KEEP").is_some()
}
