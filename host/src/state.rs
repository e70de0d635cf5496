//! The state directory: one agent a directory, readable by nobody else.
//!
//! One that was used and can no longer be written (a disk that went read-only or is full) is used as
//! it is: the lock needs a file, not a write. One that never was used must be writable, since the
//! user who set it up is looking.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A state directory that is this process's as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Whether the disk and not the user's settings is at fault: it went read-only, is full, or fails.
pub fn is_disk_failure(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let failing = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    failing || matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or written.
    #[error(
        "state directory {} cannot be written; make it writable for this user, or name another one with \
         [state] dir or WEIR_STATE_DIR", path.display()
    )]
    Unwritable {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent runs on it.
    #[error(
        "state directory {} is in use by {holder}; stop that agent, or give this one a directory of its own \
         with [state] dir", path.display()
    )]
    InUse {
        /// Which one.
        path: PathBuf,
        /// The other agent's name and process.
        holder: String,
    },
}

impl StateDir {
    /// Makes the directory where it is missing and locks it for the agent called `name`.
    pub fn open(path: &Path, name: &str) -> Result<Self, StateError> {
        let unwritable = |source| StateError::Unwritable { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unwritable)?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = match options.open(&lock_path) {
            Err(error) if is_disk_failure(&error) => File::open(&lock_path).map_err(|_| unwritable(error))?,
            opened => opened.map_err(unwritable)?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            lock.read_to_string(&mut holder).map_err(unwritable)?;
            return Err(StateError::InUse { path: path.into(), holder: holder.trim().into() });
        }
        let said = lock.set_len(0).and_then(|()| lock.rewind());
        let said = said.and_then(|()| writeln!(lock, "{name} (process {})", std::process::id()));
        if let Err(error) = said {
            // It is for people; the lock holds without it.
            tracing::error!(state = %path.display(), %error, "the state directory cannot be written");
        }
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(&dir.path().join("state"), "web1").unwrap();
        let error = StateDir::open(first.path(), "web2").unwrap_err().to_string();
        assert!(error.contains(&format!("in use by web1 (process {})", std::process::id())), "{error}");
        let path = first.path().to_path_buf();
        drop(first);
        StateDir::open(&path, "web2").unwrap();
    }
}
