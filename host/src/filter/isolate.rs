//! A filter at work: passes batches to its instance, and finds the lines it fails on.
//!
//! In: a batch. Out: an [`Outcome`] that is complete whatever the module does.
//!
//! # How a bad line is found
//!
//! When a call fails, its instance is dropped and the batch is halved, left half first, with a new
//! instance; a half that succeeds keeps its instance for the next. What fails is halved again, down
//! to a line that fails alone. That one is tried once more, alone, with a fresh instance and the
//! whole deadline, before it is refused. So whatever the cause was, a line is blamed only by
//! itself.
//!
//! # What that costs
//!
//! A line that never ends costs a deadline at each step. So a part of the batch gets only its share
//! of the deadline, at least [`PART_CPU_MIN`]; missing it blames nobody, since only a line alone,
//! with the whole deadline, is ever blamed. With deadline `T`, a batch of `n` lines, one of them
//! bad, is finished after `T` (the batch), less than `2·T` (the halves, a geometric row), `T` (the
//! line alone) and `log2(n)` times `PART_CPU_MIN`: some 0.5 s for thousands of lines and 100 ms.
//!
//! Many bad lines in a batch would still add up, and while they do nobody hears the pipeline. So
//! finding them ends after [`FIND_CPU_MIN`] and some deadlines, and what is then left of the batch
//! is refused untried, with the cause of the last failure: `on_error` holds for lines that the
//! filter could not be asked about as for those it failed on.
//!
//! # How much output is taken
//!
//! A batch with more output than is taken at once is no fault of a line: the batch is halved as above, and what fits is
//! the outcome of the first lines. The rest of the batch is the caller's to pass through again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::check::{Output, Room, SET_ASIDE};
use super::engine::{Module, lock};
use super::instance::{Instance, thread_cpu};
use super::voice::Voice;
use super::{Batch, ErrorKind, Failure, FilterContext, Ignored, Outcome, RefusedLine};
use crate::model::Digest;

/// The least CPU time a part of a batch gets: two ticks of the engine, so that there is a
/// difference between a line that is slow and one that never ends.
const PART_CPU_MIN: Duration = Duration::from_millis(10);
/// CPU time for finding bad lines in a batch, beside [`FIND_DEADLINES`] and [`FIND_INITS`].
const FIND_CPU_MIN: Duration = Duration::from_secs(1);
/// How many deadlines finding bad lines may take: one bad line takes less than four.
const FIND_DEADLINES: u32 = 5;
/// How many new instances are paid for beside that: one bad line in 4,096 takes 14.
const FIND_INITS: u32 = 16;

/// A module at work for one entry.
pub struct Filter {
    module: Arc<Module>,
    context: FilterContext,
    voice: Arc<Mutex<Voice>>,
    /// None after a failure, until the next call.
    instance: Option<Instance>,
    /// What the first instance and its `init` took.
    init_cpu: Duration,
}

/// One batch on its way through a filter.
struct Search<'f, 'b> {
    filter: &'f mut Filter,
    batch: Batch<'b>,
    outcome: Outcome,
    begun: Duration,
}

impl Filter {
    pub(super) fn new(module: Arc<Module>, context: FilterContext) -> Result<Self, Failure> {
        let voice = Arc::new(Mutex::new(Voice::new(context.entry.clone(), module.digest())));
        let begun = thread_cpu();
        let instance = Some(Instance::new(&module, &context, &voice, true)?);
        let init_cpu = thread_cpu() - begun;
        Ok(Self { module, context, voice, instance, init_cpu })
    }

    /// The module's digest.
    pub fn digest(&self) -> Digest {
        self.module.digest()
    }

    /// The memory of its instance; none after a failure, until the next batch. Bytes.
    pub fn memory(&self) -> u64 {
        self.instance.as_ref().map_or(0, Instance::memory)
    }

    /// The module's own counters.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.voice).counts()
    }

    /// Passes a batch through the module. However the module behaves, this comes back within
    /// bounds and says something about every line, unless there is more output than is taken at
    /// once: then about the first lines, at least one.
    pub fn process(&mut self, batch: &Batch<'_>) -> Outcome {
        let (begun, before) = (thread_cpu(), lock(&self.voice).ignored());
        let mut search = Search { filter: self, batch: *batch, outcome: Outcome::default(), begun };
        debug_assert_eq!(batch.starts.len(), batch.ends.len());
        if !batch.starts.is_empty() {
            search.run();
        }
        let mut outcome = search.outcome;
        outcome.cpu = thread_cpu() - begun;
        let Ignored { messages, counts } = lock(&self.voice).ignored();
        outcome.ignored = Ignored { messages: messages - before.messages, counts: counts - before.counts };
        outcome
    }

    /// Passes a batch through as often as it takes for all of its lines.
    pub fn process_all<E>(
        &mut self,
        batch: &Batch<'_>,
        mut each: impl FnMut(&Batch<'_>, Outcome) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        while done < batch.starts.len() {
            let part = Part::of(batch, done..batch.starts.len());
            let outcome = self.process(&part.batch());
            done += outcome.verdicts.len();
            each(&part.batch(), outcome)?;
        }
        Ok(())
    }

    /// One call of the module, whose answer may have so much `room`; a failure costs the instance.
    fn attempt(
        &mut self,
        batch: &Batch<'_>,
        cpu: Duration,
        room: Room,
        outcome: &mut Outcome,
    ) -> Result<Output, Failed> {
        let instance = self.instance.take().map_or_else(
            || {
                outcome.restarts += 1;
                Instance::new(&self.module, &self.context, &self.voice, self.context.aside)
            },
            Ok,
        );
        let mut instance = instance.map_err(Failed::NoInstance)?;
        outcome.calls += 1;
        let output = instance.process(batch, cpu, room);
        outcome.memory = outcome.memory.max(instance.memory());
        let output = output.map_err(Failed::Call)?;
        self.instance = Some(instance);
        Ok(output)
    }
}

/// How an attempt failed.
enum Failed {
    /// The module was called.
    Call(Failure),
    /// There was nothing to call: the module does not start any more.
    NoInstance(Failure),
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("module", &self.module).field("entry", &self.context.entry).finish()
    }
}

impl Search<'_, '_> {
    fn run(&mut self) {
        let whole = 0..self.batch.starts.len();
        let batch = self.batch;
        let deadline = self.filter.context.timeout;
        match self.attempt(&batch, deadline) {
            Ok(output) => self.take(whole, output),
            Err(Failed::NoInstance(failure)) => self.refuse(whole, &failure),
            Err(Failed::Call(failure)) => {
                self.outcome.broken_batches = 1;
                self.find(whole, failure);
            }
        }
    }

    /// Goes through the parts of a batch that failed as a whole, from left to right.
    fn find(&mut self, whole: Range<usize>, mut last: Failure) {
        let lines = whole.len() as u32;
        let deadline = self.filter.context.timeout;
        let mut parts = halves(whole.clone()).collect::<Vec<_>>();
        while let Some(part) = parts.pop() {
            if self.spent_too_much() {
                return self.refuse_untried(part.start..whole.end, &last);
            }
            let share = deadline.saturating_mul(part.len() as u32) / lines;
            let share = share.max(PART_CPU_MIN).min(deadline);
            let mut attempt = self.attempt_part(&part, share);
            if part.len() == 1 && matches!(attempt, Err(Failed::Call(_))) {
                self.filter.instance = None;
                attempt = self.attempt_part(&part, deadline);
            }
            match attempt {
                Ok(output) => self.take(part, output),
                Err(Failed::NoInstance(failure)) => return self.refuse(part.start..whole.end, &failure),
                // What comes next may fit a batch of its own.
                Err(Failed::Call(failure)) if failure.kind == ErrorKind::Size && self.is_crowded() => return,
                Err(Failed::Call(_)) if part.len() > 1 => parts.extend(halves(part)),
                Err(Failed::Call(failure)) => {
                    self.refuse(part, &failure);
                    last = failure;
                }
            }
        }
    }

    fn spent_too_much(&self) -> bool {
        let Filter { context, init_cpu, .. } = &*self.filter;
        let deadlines = context.timeout.saturating_mul(FIND_DEADLINES);
        let inits = init_cpu.saturating_mul(FIND_INITS);
        thread_cpu() - self.begun > FIND_CPU_MIN.saturating_add(deadlines).saturating_add(inits)
    }

    /// Whether lines before have taken so much room that a line may fail that would not alone: then
    /// it is not asked about here.
    fn is_crowded(&self) -> bool {
        let Room { bytes, lines } = Room::WHOLE;
        self.outcome.bytes.len() > bytes / 2 || self.outcome.ends.len() > lines / 2
    }

    fn attempt_part(&mut self, part: &Range<usize>, cpu: Duration) -> Result<Output, Failed> {
        let part = Part::of(&self.batch, part.clone());
        self.attempt(&part.batch(), cpu)
    }

    fn attempt(&mut self, batch: &Batch<'_>, cpu: Duration) -> Result<Output, Failed> {
        let room = Room::beside(self.outcome.bytes.len(), self.outcome.ends.len());
        self.filter.attempt(batch, cpu, room, &mut self.outcome)
    }

    /// Adds the output for the lines in `part` behind what is there.
    fn take(&mut self, part: Range<usize>, output: Output) {
        let Outcome { verdicts, bytes, ends, refused, .. } = &mut self.outcome;
        let aside = memchr::memchr_iter(SET_ASIDE, &output.verdicts);
        refused.extend(aside.map(|line| RefusedLine {
            line: (part.start + line) as u32,
            kind: ErrorKind::SetAside,
            message: "set aside by the module".into(),
        }));
        if verdicts.is_empty() {
            (*verdicts, *bytes, *ends) = (output.verdicts, output.bytes, output.ends);
        } else {
            let moved = bytes.len() as u32;
            verdicts.extend(output.verdicts);
            bytes.extend(output.bytes);
            ends.extend(output.ends.iter().map(|end| end + moved));
        }
    }

    fn refuse(&mut self, lines: Range<usize>, why: &Failure) {
        for line in lines {
            self.outcome.verdicts.push(SET_ASIDE);
            let (kind, message) = (why.kind, why.message.clone());
            self.outcome.refused.push(RefusedLine { line: line as u32, kind, message });
        }
    }

    fn refuse_untried(&mut self, lines: Range<usize>, last: &Failure) {
        let message = format!(
            "not tried, since lines before it in its batch used up the time for finding bad ones; the last: {}",
            last.message
        );
        self.refuse(lines, &Failure { kind: last.kind, message });
    }
}

/// Some lines of a batch, as a batch.
struct Part<'a> {
    of: Batch<'a>,
    from: u32,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl<'a> Part<'a> {
    fn of(batch: &Batch<'a>, lines: Range<usize>) -> Self {
        let (starts, ends) = (&batch.starts[lines.clone()], &batch.ends[lines]);
        let from = starts.first().copied().unwrap_or(0);
        let moved = |places: &[u32]| places.iter().map(|place| place.saturating_sub(from)).collect();
        Self { of: *batch, from, starts: moved(starts), ends: moved(ends) }
    }

    fn batch(&self) -> Batch<'_> {
        let (from, used) = (self.from as usize, self.ends.last().copied().unwrap_or(0) as usize);
        Batch {
            offset: self.of.offset + u64::from(self.from),
            bytes: self.of.bytes.get(from..from + used).unwrap_or_default(),
            starts: &self.starts,
            ends: &self.ends,
            ..self.of
        }
    }
}

/// The halves of a range of more than one, the right one first; of one, the range itself.
fn halves(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle].into_iter().filter(|half| !half.is_empty())
}
