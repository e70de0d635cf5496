//! A second module beside the filter of an entry, which sees the same lines and is only counted.
//!
//! In: batches, and what the filter made of them. Out: for how many lines the shadow makes the same
//! of them, something else, or fails. Nothing of it is sent.
//!
//! It runs on one thread for all shadows, at the lowest priority and beside the calls that lines wait
//! for. It has one batch at a time, and rests three times as long as that took: at most a quarter of a
//! core. Batches that come meanwhile are skipped, and counted. So whatever a shadow does, its entry
//! does not wait for it.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::check::{SET_ASIDE, replacements};
use super::engine::lock;
use super::{Batch, Filter, Outcome};
use crate::model::{Digest, ShadowTally};

/// How many times as long as a batch took a shadow rests.
const REST: u32 = 3;
/// What is kept for a line of a copied batch beside its bytes: a verdict and places. Bytes.
const LINE_BYTES: usize = 16;
/// The nicest there is.
const NICE: i32 = 19;

/// A module in shadow, as its pipeline has it.
pub struct Shadow {
    inner: Arc<Inner>,
    queue: Sender<Job>,
}

struct Inner {
    digest: Digest,
    filter: Mutex<Filter>,
    state: Mutex<State>,
    /// A batch of it waits or is at work.
    busy: AtomicBool,
}

struct State {
    tally: ShadowTally,
    rests_until: Instant,
}

/// A batch for a shadow.
pub struct Job {
    inner: Arc<Inner>,
    path: String,
    offset: u64,
    unix_ms: u64,
    bytes: Vec<u8>,
    starts: Vec<u32>,
    ends: Vec<u32>,
    outcome: Outcome,
    /// The memory it is charged for.
    _room: Box<dyn Any + Send>,
}

impl Shadow {
    /// A shadow whose batches go through `queue` to [`run`].
    pub fn new(filter: Filter, queue: Sender<Job>) -> Self {
        let state = State { tally: ShadowTally::default(), rests_until: Instant::now() };
        let inner = Inner {
            digest: filter.digest(),
            filter: Mutex::new(filter),
            state: Mutex::new(state),
            busy: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner), queue }
    }

    /// The module's digest.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// What came of it so far.
    pub fn tally(&self) -> ShadowTally {
        lock(&self.inner.state).tally
    }

    /// Shows it a batch, unless it is busy, rests, or there is no room for a copy; `room` takes so
    /// many bytes and gives them back when it is dropped.
    pub fn see<R: Any + Send>(
        &self,
        batch: &Batch<'_>,
        outcome: &Outcome,
        room: impl FnOnce(u64) -> Option<R>,
    ) {
        let bytes = batch.bytes.len() + outcome.bytes.len();
        let cost = bytes + LINE_BYTES * (outcome.verdicts.len() + outcome.ends.len());
        let is_free =
            !self.inner.busy.load(Ordering::Acquire) && Instant::now() >= lock(&self.inner.state).rests_until;
        let Some(room) = is_free.then(|| room(cost as u64)).flatten() else {
            lock(&self.inner.state).tally.skipped += batch.starts.len() as u64;
            return;
        };
        self.inner.busy.store(true, Ordering::Release);
        let outcome = Outcome {
            verdicts: outcome.verdicts.clone(),
            bytes: outcome.bytes.clone(),
            ends: outcome.ends.clone(),
            ..Outcome::default()
        };
        let job = Job {
            inner: self.inner.clone(),
            path: batch.path.into(),
            offset: batch.offset,
            unix_ms: batch.unix_ms,
            bytes: batch.bytes.into(),
            starts: batch.starts.into(),
            ends: batch.ends.into(),
            outcome,
            _room: Box::new(room),
        };
        // Nobody runs shadows any more when the agent stops.
        let _ = self.queue.send(job);
    }
}

/// Runs all shadows, until there is none that could have a batch.
pub fn run(queue: &Receiver<Job>) {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "shadows run at the usual priority");
    }
    for job in queue {
        job.run();
    }
}

impl Job {
    fn run(self) {
        let begun = Instant::now();
        let Self { inner, path, offset, unix_ms, bytes, starts, ends, outcome, .. } = &self;
        let batch = Batch { path, offset: *offset, unix_ms: *unix_ms, bytes, starts, ends };
        let mut tally = ShadowTally::default();
        let mut wanted = Made::all(&batch, outcome);
        let compared = lock(&inner.filter).process_all(&batch, |part, found| {
            tally.cpu_seconds += found.cpu.as_secs_f64();
            tally.memory_max = tally.memory_max.max(found.memory);
            let mut refused = found.refused.iter();
            for (made, wanted) in Made::all(part, &found).zip(&mut wanted) {
                let failed =
                    made == Made::Refused && refused.next().is_some_and(|line| line.kind.is_failure());
                match made == wanted {
                    _ if failed => tally.errors += 1,
                    true => tally.same += 1,
                    false => tally.differing += 1,
                }
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = compared;
        let mut state = lock(&inner.state);
        state.tally.add(&tally);
        state.rests_until = Instant::now() + begun.elapsed() * REST;
        drop(state);
        inner.busy.store(false, Ordering::Release);
    }
}

/// What becomes of a line.
#[derive(Debug, PartialEq)]
enum Made<'a> {
    Nothing,
    /// A line that is kept, or replaced by one, which may be the same.
    One(&'a [u8]),
    /// The bytes of several, and the length of each.
    Several(&'a [u8], Vec<u32>),
    Refused,
}

impl<'a> Made<'a> {
    /// Of each line that there is a verdict for.
    fn all(batch: &Batch<'a>, outcome: &'a Outcome) -> impl Iterator<Item = Self> {
        let (mut from, mut next) = (0, 0);
        let Batch { bytes, starts, ends, .. } = *batch;
        outcome.verdicts.iter().enumerate().map(move |(line, verdict)| {
            let count = replacements(*verdict);
            let places = &outcome.ends[next..next + count];
            let (begin, end) = (from, places.last().copied().unwrap_or(from));
            (next, from) = (next + count, end);
            let written = &outcome.bytes[begin as usize..end as usize];
            match (*verdict, count) {
                (0, _) => Self::Nothing,
                (SET_ASIDE, _) => Self::Refused,
                (1, _) => Self::One(&bytes[starts[line] as usize..ends[line] as usize]),
                (_, 1) => Self::One(written),
                _ => Self::Several(written, places.iter().map(|end| end - begin).collect()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::tests::{Bench, Lines};
    use super::*;

    /// What a shadow of the guest with `config` makes of lines beside a filter that keeps them all.
    fn beside(config: &str, lines: &Lines) -> ShadowTally {
        let bench = Bench::new();
        let mut filter = bench.filter("guest_misbehave", r#"{"do":"nothing"}"#);
        let (queue, jobs) = channel();
        let shadow = Shadow::new(bench.filter("guest_misbehave", config), queue);
        let outcome = filter.process(&lines.batch());
        shadow.see(&lines.batch(), &outcome, Some);
        shadow.see(&lines.batch(), &outcome, |_| -> Option<()> { panic!("it is busy") });
        let begun = Instant::now();
        jobs.recv().unwrap().run();
        assert!(lock(&shadow.inner.state).rests_until > begun);
        lock(&shadow.inner.state).rests_until += std::time::Duration::from_secs(60);
        shadow.see(&lines.batch(), &outcome, |_| -> Option<()> { panic!("it rests") });
        shadow.tally()
    }

    #[test]
    fn lines_are_compared_by_what_goes_out() {
        let lines = Lines::new(["good", "bad", "good", "bad"]);
        let of = |config: &str| {
            let ShadowTally { same, differing, errors, skipped, .. } = beside(config, &lines);
            assert_eq!(skipped, 8);
            (same, differing, errors)
        };
        assert_eq!(of(r#"{"do":"nothing"}"#), (4, 0, 0));
        assert_eq!(of(r#"{"do":"nothing","prefix":""}"#), (4, 0, 0), "replaced by itself");
        assert_eq!(of(r#"{"do":"nothing","prefix":"x"}"#), (0, 4, 0));
        assert_eq!(of(r#"{"do":"set-aside"}"#), (2, 2, 0));
        assert_eq!(of(r#"{"do":"multiply"}"#), (2, 2, 0));
        assert_eq!(of(r#"{"do":"trap"}"#), (2, 0, 2));
        assert_eq!(of(r#"{"do":"garbage"}"#), (2, 0, 2));
    }

    #[test]
    fn a_shadow_that_is_skipped_for_want_of_memory_is_counted() {
        let bench = Bench::new();
        let lines = Lines::new(["a", "b"]);
        let (queue, jobs) = channel();
        let shadow = Shadow::new(bench.filter("drop_debug", ""), queue);
        let outcome = bench.filter("drop_debug", "").process(&lines.batch());
        shadow.see(&lines.batch(), &outcome, |_| None::<()>);
        assert_eq!(shadow.tally(), ShadowTally { skipped: 2, ..ShadowTally::default() });
        assert!(jobs.try_recv().is_err());
    }
}
