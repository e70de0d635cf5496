//! What happens to chunks that came back with records that were not acknowledged.
//!
//! Nothing new is sent until everything under way is back; then what failed is sent again, chunk
//! by chunk in order, so that lines of a file keep their order. A record that the broker refuses
//! is sent in a batch of its own, and if it is refused there too it goes to quarantine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memchr::memchr_iter;
use tracing::{info, warn};

use super::filtering::cost;
use super::{Flight, Pipeline, packing};
use crate::model::Topic;
use crate::quarantine::SetAside;
use crate::sink::{Buffer, Chunk, Failed, Finished, Refusal};
use crate::status::{EntryState, Obstacle};

/// The pause before the first attempt, doubled for each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Failures in a row after which the entry counts as stalled.
const STALLED_AFTER: u32 = 3;

/// Chunks that wait to be sent again.
pub(super) struct Recovery {
    parked: BTreeMap<u64, Finished>,
    running: bool,
    attempt: u32,
    /// When to try again.
    pub(super) not_before: Instant,
    cause: String,
    is_topic: bool,
    holds: bool,
}

impl Recovery {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            parked: BTreeMap::new(),
            running: false,
            attempt: 0,
            not_before: now,
            cause: String::new(),
            is_topic: false,
            holds: false,
        }
    }

    /// Whether nothing new may be sent.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// What somebody should know; a failure that goes by itself is not worth a word.
    pub(super) fn trouble(&self) -> Option<(EntryState, Obstacle, String)> {
        if self.holds {
            Some((EntryState::Holding, Obstacle::Quarantine, self.cause.clone()))
        } else if self.running && (self.is_topic || self.attempt >= STALLED_AFTER) {
            let obstacle = if self.is_topic { Obstacle::Topic } else { Obstacle::Kafka };
            Some((EntryState::Stalled, obstacle, self.cause.clone()))
        } else {
            None
        }
    }

    /// When to go on, once everything is back.
    pub(super) fn due(&self, under_way: usize) -> Option<Instant> {
        (self.running && under_way <= self.parked.len()).then_some(self.not_before)
    }

    fn failed(&mut self, failed: &Failed, topic: &Topic) {
        self.running = true;
        // What comes back behind the first failure was not tried, and says nothing.
        if self.parked.is_empty() || failed.why == Refusal::Topic {
            self.is_topic = failed.why == Refusal::Topic;
            self.cause = match failed.why {
                Refusal::Topic => {
                    format!(
                        "Kafka refuses topic {topic}: {}; create it, allow it, or change the entry",
                        failed.code
                    )
                }
                _ => format!("Kafka does not take the records: {}", failed.code),
            };
        }
        if self.parked.is_empty() {
            let pause = BACKOFF_MIN * 2u32.pow(self.attempt.min(10));
            self.not_before = Instant::now() + pause.min(BACKOFF_MAX);
            self.attempt += 1;
        }
    }
}

impl Pipeline {
    /// A chunk came back with failed records.
    pub(super) fn park(&mut self, finished: Finished) {
        let Some(first) = finished.failed.first() else { return };
        for failed in &finished.failed {
            *self.figures.delivery_errors.entry(failed.code.to_string()).or_default() += 1;
        }
        let stalls = self.recovery.running && self.recovery.attempt == STALLED_AFTER - 1;
        let begins = !self.recovery.running;
        let topic = match self.flights.get(&finished.chunk.id) {
            Some(flight) => self.topic(flight),
            None => self.entry.topic.clone(),
        };
        self.recovery.failed(first, &topic);
        let held_back = if begins || stalls { self.told.resends.tell(Instant::now()) } else { None };
        if stalls || held_back.is_some() {
            warn!(entry = %self.entry.name, %topic, code = %first.code, held_back = held_back.unwrap_or_default(),
                records = finished.failed.len(), "records were not taken; they are sent again");
        }
        self.recovery.parked.insert(finished.chunk.id, finished);
    }

    /// Sends again what failed, once everything is back and the pause is over.
    pub(super) fn recover(&mut self, now: Instant) {
        let recovery = &mut self.recovery;
        if recovery.due(self.flights.len()).is_none_or(|due| now < due) {
            return;
        }
        if recovery.parked.is_empty() {
            if recovery.attempt >= STALLED_AFTER {
                info!(entry = %self.entry.name, topic = %self.entry.topic, "delivers again");
            }
            self.recovery = Recovery::new(now);
            return;
        }
        self.reopen();
        while let Some((_, finished)) = self.recovery.parked.pop_first() {
            let alone = finished.failed.iter().any(|failed| failed.why == Refusal::Record);
            let finished = if alone { self.take_apart(finished) } else { finished };
            if let Err(full) = self.set_refused_aside(&finished) {
                self.hold(finished, full, now);
                return;
            }
            self.resend(finished, alone);
            if alone {
                // It goes through another producer: what follows waits until that has answered.
                return;
            }
        }
    }

    /// Of several lines in a record that is refused, the others go out.
    fn take_apart(&mut self, mut finished: Finished) -> Finished {
        let chunk = &mut finished.chunk;
        if let Some(flight) = self.flights.get_mut(&chunk.id).filter(|flight| flight.packed) {
            flight.packed = false;
            finished.failed = packing::take_apart(chunk, &finished.failed);
            let cost = cost(chunk, self.record_bytes);
            if let Some(charge) = &mut chunk.charge {
                charge.settle(cost);
            }
        }
        finished
    }

    /// A failure closed the lane, so that nothing new overtook what failed.
    fn reopen(&mut self) {
        for lane in [Some(&mut self.lane), self.dead_letters.as_mut()].into_iter().flatten() {
            if self.recovery.is_topic {
                // Asked for its effect: librdkafka looks at the topic again. What it says shows
                // when the records come back.
                let _ = lane.partitions();
            }
            lane.resume();
        }
    }

    /// A refused line that cannot be set aside is tried again, and nothing passes it by.
    fn hold(&mut self, finished: Finished, cause: String, now: Instant) {
        self.recovery.holds = true;
        self.recovery.cause = cause;
        self.recovery.not_before = now + BACKOFF_MAX;
        self.recovery.parked.insert(finished.chunk.id, finished);
    }

    fn resend(&mut self, finished: Finished, alone: bool) {
        let Finished { chunk, failed } = finished;
        let Some(mut flight) = self.flights.remove(&chunk.id) else { return };
        let again: Vec<u32> = failed
            .iter()
            .filter(|failed| !self.is_final(&flight, failed))
            .map(|failed| failed.record)
            .collect();
        if again.is_empty() {
            self.flights.insert(chunk.id, flight);
            return self.complete(chunk);
        }
        self.figures.resends += again.len() as u64;
        flight.route.alone |= alone;
        flight.sent = Instant::now();
        self.send(chunk, flight, Some(&again));
    }

    /// Whether a failed record is not sent again: it was refused though it stood in a batch of its
    /// own, or its entry has no dead-letter topic any more.
    fn is_final(&self, flight: &Flight, failed: &Failed) -> bool {
        let refused = flight.route.alone && failed.why == Refusal::Record;
        refused || (flight.dead_letter && self.dead_letters.is_none())
    }

    /// Records that are not sent again go to quarantine. A line counts once, however many of its
    /// records are refused.
    fn set_refused_aside(&mut self, finished: &Finished) -> Result<(), String> {
        self.recovery.holds = false;
        let chunk = &finished.chunk;
        let Some(flight) = self.flights.get(&chunk.id) else { return Ok(()) };
        let refused: BTreeMap<(u32, u32), &Failed> = finished
            .failed
            .iter()
            .filter(|failed| self.is_final(flight, failed))
            .map(|failed| (place_of(chunk, flight, failed.record), failed))
            .filter(|(place, _)| !flight.refused.contains(place))
            .collect();
        let Some((_, first)) = refused.first_key_value() else { return Ok(()) };
        let topic = self.topic(flight);
        let path = flight.origin.path.to_string_lossy();
        let file = flight.origin.incarnation.to_string();
        let items: Vec<SetAside<'_>> = refused
            .iter()
            .map(|((start, end), failed)| SetAside {
                entry: &self.entry.name,
                topic: &topic,
                path: &path,
                file: &file,
                offset: flight.origin.offset_of(*start),
                kind: "refused",
                message: &failed.code,
                digest: None,
                line: match chunk.records.get(failed.record as usize) {
                    Some(record) if flight.dead_letter => chunk.bytes(record),
                    _ => &chunk.read[*start as usize..*end as usize],
                },
            })
            .collect();
        if let Some(quarantine) = &self.quarantine {
            quarantine
                .append(&items)
                .map_err(|error| format!("a refused line cannot be set aside: {error}"))?;
        }
        // A newline within a line joins two of the source.
        let lines = items.iter().map(|item| 1 + memchr_iter(b'\n', item.line).count() as u64).sum::<u64>();
        if let Some(held_back) = self.told.refusals.tell(Instant::now()) {
            warn!(entry = %self.entry.name, %topic, lines, code = %first.code, held_back,
                "lines are refused for good; they are set aside: `weir quarantine ls` shows them");
        }
        self.counts.quarantined += lines;
        self.counts.in_flight -= lines;
        let places: Vec<(u32, u32)> = refused.into_keys().collect();
        if let Some(flight) = self.flights.get_mut(&chunk.id) {
            flight.lines -= lines;
            flight.refused.extend(places);
        }
        Ok(())
    }

    /// Where a chunk goes.
    fn topic(&self, flight: &Flight) -> Topic {
        let dead_letters = super::dead_letters(&self.entry).filter(|_| flight.dead_letter);
        dead_letters.unwrap_or(&self.entry.topic).clone()
    }
}

/// Where the line of a record stands in what was read.
fn place_of(chunk: &Chunk, flight: &Flight, record: u32) -> (u32, u32) {
    let record = record as usize;
    let Some(sent) = chunk.records.get(record) else { return (0, 0) };
    let at = match sent.buffer {
        _ if flight.dead_letter => record,
        Buffer::Read => return (sent.start, sent.start + sent.len),
        Buffer::Written => {
            chunk.records[..record].iter().filter(|other| other.buffer == Buffer::Written).count()
        }
    };
    flight.sources.get(at).copied().unwrap_or((0, 0))
}
