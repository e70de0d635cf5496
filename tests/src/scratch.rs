//! Directories that are gone when the test process is.
//!
//! All of one process lie in `/tmp/weir-tests-PID`. That folder is removed when the process exits
//! (statics are not dropped, so this is an exit handler), and what a killed process left behind is
//! removed by the next one. `WEIR_TESTS_KEEP=1` keeps everything.

#![allow(unsafe_code)] // atexit

use std::path::PathBuf;
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
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn keep() -> bool {
    std::env::var_os("WEIR_TESTS_KEEP").is_some()
}
