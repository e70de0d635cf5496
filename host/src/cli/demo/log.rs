//! A service that writes numbered lines to its log at a steady pace, on a thread of its own.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::line::{self, Version};

/// How fast the service writes.
pub(super) const LINES_PER_SECOND: u64 = 4_000;
/// Between two writes.
const TICK: Duration = Duration::from_millis(10);

/// The log while it is being written.
pub(super) struct Log {
    pen: Arc<Mutex<Pen>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

/// What was written in all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    /// Lines; their numbers count from 0.
    pub(super) lines: u64,
    /// The first line of the second file, after a rotation.
    pub(super) rotated_at: Option<u64>,
}

struct Pen {
    path: PathBuf,
    file: File,
    written: Written,
}

impl Log {
    /// Begins a log at `path`.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let pen = Pen { path: path.into(), file: File::create(path)?, written: Written::default() };
        let (pen, stop) = (Arc::new(Mutex::new(pen)), Arc::new(AtomicBool::new(false)));
        let thread = thread::Builder::new().name("service".into()).spawn({
            let (pen, stop) = (pen.clone(), stop.clone());
            move || write(&pen, &stop)
        })?;
        Ok(Self { pen, stop, thread })
    }

    /// What was written up to now.
    pub(super) fn written(&self) -> Written {
        lock(&self.pen).written
    }

    /// Renames the log to `.1` and goes on in a new file, as logrotate does.
    pub(super) fn rotate(&self) -> io::Result<()> {
        let mut pen = lock(&self.pen);
        std::fs::rename(&pen.path, pen.path.with_added_extension("1"))?;
        pen.file = File::create(&pen.path)?;
        pen.written.rotated_at = Some(pen.written.lines);
        Ok(())
    }

    /// Stops writing, after a whole line.
    pub(super) fn stop(self) -> io::Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("the writer broke down"))??;
        Ok(lock(&self.pen).written)
    }
}

fn write(pen: &Mutex<Pen>, stop: &AtomicBool) -> io::Result<()> {
    let begun = Instant::now();
    let mut text = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let due = (begun.elapsed().as_secs_f64() * LINES_PER_SECOND as f64) as u64;
        let mut pen = lock(pen);
        text.clear();
        for number in pen.written.lines..due {
            text.extend_from_slice(line::text(number, Version::AsWritten).as_bytes());
            text.push(b'\n');
        }
        pen.file.write_all(&text)?;
        pen.written.lines = due;
    }
    Ok(())
}

/// A writer that broke down is told of by [`Log::stop`].
fn lock(pen: &Mutex<Pen>) -> MutexGuard<'_, Pen> {
    pen.lock().unwrap_or_else(PoisonError::into_inner)
}
