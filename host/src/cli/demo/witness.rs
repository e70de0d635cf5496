//! What an independent consumer sees on the topic.
//!
//! In: records. Out: which lines they are, which version of the filter made each, and everything
//! about them that should not be. What should be there and is not is judged in `sums`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::line::{self, Version};
use crate::sink::consume::Consumer;

/// How long one look for a record takes at most.
const LOOK: Duration = Duration::from_millis(50);
/// How long the rest of the topic may take to be read at the end.
const REST_MAX: Duration = Duration::from_secs(10);
/// How many of the latest records are kept to be shown.
const LATEST: usize = 4;

/// Reads the topic on a thread of its own.
pub(super) struct Witness {
    seen: Arc<Mutex<Seen>>,
    finish: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Records.
    pub(super) records: u64,
    /// Records of each version, in the order of [`Version::ALL`].
    pub(super) by_version: [u64; Version::ALL.len()],
    /// The first line that each version made.
    pub(super) firsts: [Option<u64>; Version::ALL.len()],
    /// For each line its place on the topic, counted from 1; 0 for a line that is not there.
    pub(super) places: Vec<u64>,
    /// Records of lines that were there before.
    pub(super) repeated: u64,
    /// Records that no version made, such as a mixture.
    pub(super) strange: u64,
    /// Records of a version older than the one before.
    pub(super) gone_back: u64,
    /// The latest few, as text.
    pub(super) latest: VecDeque<String>,
    version: Option<Version>,
}

impl Seen {
    /// Whether that line is on the topic.
    pub(super) fn has(&self, line: u64) -> bool {
        self.places.get(line as usize).is_some_and(|place| *place > 0)
    }

    /// The first line that `version` made.
    pub(super) fn first(&self, version: Version) -> Option<u64> {
        self.firsts[version as usize]
    }

    /// One more record.
    pub(super) fn see(&mut self, payload: &[u8]) {
        self.records += 1;
        if self.latest.len() == LATEST {
            self.latest.pop_front();
        }
        self.latest.push_back(String::from_utf8_lossy(payload).into_owned());
        let Some((number, version)) = line::parse(payload) else {
            self.strange += 1;
            return;
        };
        self.gone_back += u64::from(self.version > Some(version));
        self.version = Some(version);
        self.by_version[version as usize] += 1;
        self.firsts[version as usize].get_or_insert(number);
        self.place(number as usize);
    }

    fn place(&mut self, line: usize) {
        if self.places.len() <= line {
            self.places.resize(line + 1, 0);
        }
        if self.places[line] == 0 {
            self.places[line] = self.records;
        } else {
            self.repeated += 1;
        }
    }
}

impl Witness {
    /// Begins to read.
    pub(super) fn start(consumer: Consumer) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let finish = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("consumer".into()).spawn({
            let (seen, finish) = (seen.clone(), finish.clone());
            move || read(&consumer, &seen, &finish)
        });
        Ok(Self { seen, finish, thread: thread.context("start a thread")? })
    }

    /// What `look` finds in all that was seen up to now.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it reads no more, before it was told to finish: [`Witness::finish`] says why.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Reads the topic to its end, when nothing writes to it any more.
    pub(super) fn finish(self) -> anyhow::Result<Seen> {
        self.finish.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(read) => read?,
            Err(_) => bail!("the consumer broke down"),
        }
        Ok(std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(consumer: &Consumer, seen: &Mutex<Seen>, finish: &AtomicBool) -> anyhow::Result<()> {
    let look = || -> anyhow::Result<u64> {
        let record = consumer.next(LOOK)?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = record {
            seen.see(&record);
        }
        Ok(seen.records)
    };
    while !finish.load(Ordering::Relaxed) {
        look()?;
    }
    let (begun, end) = (Instant::now(), consumer.end()?);
    while look()? < end {
        if begun.elapsed() > REST_MAX {
            bail!("the topic could not be read to its end, record {end}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(records: &[(u64, Version)]) -> Seen {
        let mut seen = Seen::default();
        records.iter().for_each(|(number, version)| seen.see(line::text(*number, *version).as_bytes()));
        seen
    }

    #[test]
    fn lines_and_versions_are_recognised() {
        let seen = seen(&[(0, Version::AsWritten), (1, Version::AsWritten), (2, Version::NoToken)]);
        assert_eq!((seen.records, seen.by_version), (3, [2, 1, 0]));
        assert_eq!((seen.first(Version::NoToken), seen.first(Version::NoTokenNoUser)), (Some(2), None));
        assert_eq!((seen.repeated, seen.strange, seen.gone_back), (0, 0, 0));
        assert!(seen.has(2) && !seen.has(3));
    }

    #[test]
    fn a_repeated_line_a_strange_one_and_a_version_that_comes_back_are_noticed() {
        let mut seen = seen(&[(0, Version::NoToken), (0, Version::NoToken), (1, Version::AsWritten)]);
        seen.see(b"INFO line=2 user=ann");
        assert_eq!((seen.repeated, seen.gone_back, seen.strange), (1, 1, 1));
    }
}
