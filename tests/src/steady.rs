//! A file that gets a line with its time now and then, for as long as something else goes on beside it.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two lines.
pub const PACE: Duration = Duration::from_millis(5);

/// What such a line begins with.
const WORD: &str = "steady";

/// The writer of a file.
pub struct Steady {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<u64>,
}

impl Steady {
    /// Begins a new file.
    pub fn begin(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            let mut file = File::create(path).expect("create a log");
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                writeln!(file, "{WORD} {written} {}", now().as_micros()).expect("write a line");
                written += 1;
                std::thread::sleep(PACE);
            }
            written
        });
        Self { stop, writer }
    }

    /// Ends it; how many lines it has.
    ///
    /// # Panics
    /// Where a line could not be written.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.join().expect("the writer does not panic")
    }
}

/// Number and time of such a line, if it is one.
pub fn parse(line: &[u8]) -> Option<(u64, Duration)> {
    let (number, time) =
        std::str::from_utf8(line).ok()?.strip_prefix(WORD)?.strip_prefix(' ')?.split_once(' ')?;
    Some((number.parse().ok()?, Duration::from_micros(time.parse().ok()?)))
}

/// Since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
