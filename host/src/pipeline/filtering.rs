//! From lines to chunks under way: one filter call a chunk, what is set aside, and what happens
//! when the filter changes or keeps failing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::packing::pack;
use super::sorting::{DROP, KEEP, SET_ASIDE, Sorted, refusal, sort};
use super::{FilterChange, Flight, Gate, Judgement, Origin, Pipeline, Range, Verdict, dead_letters};
use crate::budget::CHUNK_BYTES;
use crate::filter::{Batch, Filter, Outcome, replacements};
use crate::model::Entry;
use crate::quarantine::{QuarantineError, SetAside};
use crate::sink::{Buffer, Chunk, Pick, Record};
use crate::source::Piece;
use crate::source::lines::Lines;
use crate::status::{FILTER_SECONDS_BUCKETS, FilterState, FilterStats, LINE_SECONDS_BUCKETS};

/// A filter that fails on more than one line in a hundred, and on so many, only burns CPU.
const FAILED_LINES_MIN: u64 = 32;

/// Lines after which older failures count half.
const HEALTH_WINDOW: u64 = 10_000;

/// How long a full quarantine is left alone before the held line is tried again.
const QUARANTINE_RETRY: Duration = Duration::from_secs(5);

/// How often a filter failed lately.
#[derive(Debug, Default)]
pub(super) struct Health {
    lines: u64,
    failed: u64,
}

impl Health {
    fn add(&mut self, lines: u64, failed: u64) {
        (self.lines, self.failed) = (self.lines + lines, self.failed + failed);
        if self.lines > HEALTH_WINDOW {
            (self.lines, self.failed) = (self.lines / 2, self.failed / 2);
        }
    }

    fn is_bad(&self) -> bool {
        self.failed >= FAILED_LINES_MIN && self.failed * 100 > self.lines
    }

    fn is_proven(&self) -> bool {
        self.lines >= HEALTH_WINDOW / 2 && !self.is_bad()
    }
}

impl Pipeline {
    /// Filters the lines of a piece and sends what is to be sent. Where a line may not be passed
    /// by, the chunk ends before it and the gate closes.
    pub(super) fn process(&mut self, piece: &Piece, mut chunk: Chunk, lines: &mut Lines, now: Instant) {
        let mut outcome = self.filter(&piece.path, piece.offset, &chunk, lines);
        let record_bytes = self.record_bytes;
        let mut whole = outcome.as_mut().is_none_or(|outcome| fit(&mut chunk, lines, outcome, record_bytes));
        self.count(outcome.as_ref());
        if self.filter_gave_up(outcome.as_ref()) {
            return self.recycle(chunk);
        }
        let on_error = self.entry.filter.as_ref().map(|filter| filter.on_error.clone()).unwrap_or_default();
        if let (false, Some(outcome)) = (whole, &outcome) {
            self.source.cut_again(piece, &chunk.read, outcome.verdicts.len(), lines);
        }
        let mut sorted = sort(lines, outcome.as_ref(), &on_error);
        let held = match sorted.held {
            Some(line) => Some((line, Gate::Hold(held_cause(outcome.as_ref(), line), None))),
            None => self.set_aside(piece, &chunk, lines, &sorted, outcome.as_ref()),
        };
        if let Some((line, gate)) = held {
            if let Gate::Hold(cause, _) = &gate {
                warn!(entry = %self.entry.name, path = %piece.path.display(), cause, "holds before a line");
            }
            self.gate = gate;
            self.source.cut_again(piece, &chunk.read, line as usize, lines);
            if lines.used == 0 {
                return self.recycle(chunk);
            }
            if let Some(outcome) = &mut outcome {
                outcome.truncate(lines.starts.len());
            }
            sorted = sort(lines, outcome.as_ref(), &on_error);
            whole = false;
        }
        self.show(piece, &chunk, lines, outcome.as_ref(), &on_error, now);
        if let Some(outcome) = outcome {
            self.show_shadow(piece, &chunk, lines, &outcome);
            chunk.written = outcome.bytes;
        }
        self.begin(piece, chunk, lines, sorted, whole, now);
    }

    /// Counts what is settled already, begins the range, and sends its records.
    fn begin(
        &mut self,
        piece: &Piece,
        mut chunk: Chunk,
        lines: &Lines,
        mut sorted: Sorted,
        whole: bool,
        now: Instant,
    ) {
        let range = self.take(piece, &chunk, lines, whole);
        self.counts.filtered += sorted.filtered;
        self.counts.discarded += sorted.discarded;
        self.counts.quarantined += lines.weight(&sorted.aside);
        self.counts.in_flight += sorted.sent + lines.weight(&sorted.dead);
        if let Some(most) = self.entry.pack {
            pack(&mut chunk, &mut sorted, most);
        }
        chunk.records = sorted.records;
        let cost = cost(&chunk, self.record_bytes);
        if let Some(charge) = &mut chunk.charge {
            charge.settle(cost);
        }
        let dead = (!sorted.dead.is_empty())
            .then(|| dead_letters_of(&chunk, lines, &sorted.dead, self.record_bytes));
        let parts = u8::from(!chunk.records.is_empty()) + u8::from(dead.is_some());
        self.ranges.insert(range, Range { incarnation: piece.incarnation, parts: parts.max(1) });
        let origin = Arc::new(Origin {
            path: piece.path.clone(),
            incarnation: piece.incarnation,
            offset: piece.offset,
            places: lines.places.iter().zip(&lines.starts).map(|((raw, _), start)| (*start, *raw)).collect(),
        });
        let route = self.route(&piece.origin);
        let packs = self.entry.pack.is_some();
        let flight = |lines, sources, dead_letter| Flight {
            range,
            lines,
            sources,
            origin: origin.clone(),
            route: route.clone(),
            refused: Default::default(),
            dead_letter,
            packed: !dead_letter && packs,
            sent: now,
        };
        if let Some((dead, places)) = dead {
            // Another topic has other partitions.
            let mut flight = flight(lines.weight(&sorted.dead), places, true);
            flight.route.partition = Pick::Partitioner;
            self.send(dead, flight, None);
        }
        if chunk.records.is_empty() {
            self.recycle(chunk);
            if parts == 0 {
                self.finish_part(range);
            }
            return;
        }
        let flight = flight(sorted.sent, sorted.sources, false);
        self.send(chunk, flight, None);
    }

    /// What the filter says of the lines; none where there is no filter.
    pub(super) fn filter(
        &mut self,
        path: &Path,
        offset: u64,
        chunk: &Chunk,
        lines: &Lines,
    ) -> Option<Outcome> {
        let filter = self.filter.as_mut()?;
        let path = path.to_string_lossy();
        let outcome = filter.process(&Batch {
            path: &path,
            offset,
            unix_ms: unix_ms(),
            bytes: &chunk.read[..lines.span()],
            starts: &lines.starts,
            ends: &lines.ends,
        });
        let seconds = outcome.cpu.as_secs_f64();
        let bucket = FILTER_SECONDS_BUCKETS.iter().position(|bound| seconds <= *bound);
        self.figures.filter_seconds[bucket.unwrap_or(FILTER_SECONDS_BUCKETS.len())] += 1;
        self.figures.filter_seconds_sum += seconds;
        Some(outcome)
    }

    /// Adds an outcome to the figures of the entry and of the module that runs.
    pub(super) fn count(&mut self, outcome: Option<&Outcome>) {
        if let Some(outcome) = outcome {
            add(outcome, &mut self.figures.filter);
            add(outcome, &mut self.stats);
        }
    }

    /// Keeps count of failures. With a filter that fails too often the entry holds until it is given
    /// another one, which may be the one before it; the chunk at hand is read again then.
    fn filter_gave_up(&mut self, outcome: Option<&Outcome>) -> bool {
        let Some(outcome) = outcome else { return false };
        let failed = outcome.refused.iter().filter(|refused| refused.kind.is_failure()).count();
        let was_proven = self.health.is_proven();
        self.health.add(outcome.verdicts.len() as u64, failed as u64);
        if self.health.is_proven() && !was_proven {
            self.judge(Verdict::Proven);
        }
        if !self.health.is_bad() {
            return false;
        }
        let kind = outcome.refused.iter().find(|refused| refused.kind.is_failure());
        let cause = format!(
            "the filter fails on {} of its last {} lines ({})",
            self.health.failed,
            self.health.lines,
            kind.map_or("error", |refused| refused.kind.as_str())
        );
        self.health = Health::default();
        warn!(entry = %self.entry.name, cause, "holds until the module or its config changes");
        self.gate = Gate::Hold(cause.clone(), None);
        self.judge(Verdict::Failing(cause));
        true
    }

    fn judge(&self, verdict: Verdict) {
        (self.judge)(Judgement { ticket: self.ticket, verdict });
    }

    /// What a module counted survives it.
    fn replace_filter(&mut self, filter: Option<Filter>) {
        let counted = self.module_counts();
        self.filter = filter;
        self.base_counts = counted;
        self.health = Health::default();
        self.stats = FilterStats { since: unix_ms() / 1000, ..FilterStats::default() };
    }

    /// All that the modules of this entry counted in this run.
    pub(super) fn module_counts(&self) -> std::collections::BTreeMap<String, u64> {
        let mut counts = self.base_counts.clone();
        for (name, by) in self.filter.iter().flat_map(Filter::counts) {
            *counts.entry(name).or_default() += by;
        }
        counts
    }

    /// Adopted between two chunks.
    pub(super) fn change_filter(&mut self, entry: Arc<Entry>, change: FilterChange) {
        // What runs goes on as it was, where there is anything.
        if !matches!(change, FilterChange::Refused(_)) || self.filter.is_none() {
            self.adopt(entry);
        }
        match change {
            FilterChange::Remove => {
                self.replace_filter(None);
                self.filter_status = None;
                self.change_shadow(None);
                self.gate = Gate::Open;
            }
            FilterChange::WaitFor(status) => {
                if self.filter.is_none() {
                    self.gate = Gate::Filter(status.cause.clone());
                }
                self.filter_status = Some(status);
            }
            FilterChange::Refused(status) => {
                *self.figures.module_swaps.entry("failed").or_default() += 1;
                if self.filter.is_none() {
                    self.gate = Gate::Filter(status.cause.clone());
                }
                self.filter_status = Some(status);
            }
            FilterChange::Same(status) => {
                self.filter_status = Some(status);
                if matches!(self.gate, Gate::Hold(_, None)) {
                    (self.gate, self.health) = (Gate::Open, Health::default());
                }
            }
            FilterChange::Use { filter, status, ticket } => {
                let (name, module) = (&self.entry.name, filter.digest().short());
                let result = if status.state == FilterState::RolledBack { "rolled-back" } else { "applied" };
                info!(entry = %name, module, result, "filter applied");
                self.replace_filter(Some(*filter));
                (self.filter_status, self.ticket) = (Some(status), ticket);
                self.gate = Gate::Open;
                *self.figures.module_swaps.entry(result).or_default() += 1;
            }
        }
    }

    fn adopt(&mut self, entry: Arc<Entry>) {
        if dead_letters(&entry) != dead_letters(&self.entry) {
            self.dead_letters = dead_letters(&entry).map(|topic| self.sink.open(topic, self.done.clone()));
        }
        self.entry = entry;
    }

    /// Puts lines into the quarantine before the chunk moves on. The first that cannot be put
    /// there is held.
    fn set_aside(
        &mut self,
        piece: &Piece,
        chunk: &Chunk,
        lines: &Lines,
        sorted: &Sorted,
        outcome: Option<&Outcome>,
    ) -> Option<(u32, Gate)> {
        let first = *sorted.aside.first()?;
        let digest = self.filter.as_ref().map(Filter::digest);
        let path = piece.path.to_string_lossy();
        let file = piece.incarnation.to_string();
        let items: Vec<SetAside<'_>> = sorted
            .aside
            .iter()
            .map(|line| {
                let (start, end) = (lines.starts[*line as usize], lines.ends[*line as usize]);
                let refused = refusal(outcome, *line);
                SetAside {
                    entry: &self.entry.name,
                    topic: &self.entry.topic,
                    path: &path,
                    file: &file,
                    offset: piece.offset + u64::from(lines.place(*line as usize).0),
                    kind: refused.map_or("too-long", |refused| refused.kind.as_str()),
                    message: refused.map_or("longer than line_bytes_max", |refused| &refused.message),
                    digest,
                    line: &chunk.read[start as usize..end as usize],
                }
            })
            .collect();
        let error = self.quarantine.as_ref()?.append(&items).err()?;
        let cause = match error {
            QuarantineError::Full { .. } => error.to_string(),
            _ => format!("a line cannot be set aside: {error}"),
        };
        Some((first, Gate::Hold(cause, Some(Instant::now() + QUARANTINE_RETRY))))
    }
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn add(outcome: &Outcome, stats: &mut FilterStats) {
    let verdicts = &outcome.verdicts;
    let of = |wanted: u8| verdicts.iter().filter(|verdict| **verdict == wanted).count() as u64;
    let (lines, kept, dropped, refused) = (verdicts.len() as u64, of(KEEP), of(DROP), of(SET_ASIDE));
    stats.lines += lines;
    stats.kept += kept;
    stats.dropped += dropped;
    stats.replaced += lines - kept - dropped - refused;
    stats.replacements += outcome.ends.len() as u64;
    for refused in &outcome.refused {
        let kind = refused.kind.as_str();
        match stats.refused.get_mut(kind) {
            Some(lines) => *lines += 1,
            None => _ = stats.refused.insert(kind.into(), 1),
        }
    }
    stats.batches += 1;
    let seconds = outcome.cpu.as_secs_f64();
    stats.cpu_seconds += seconds;
    let a_line = seconds / lines.max(1) as f64;
    let bucket = LINE_SECONDS_BUCKETS.iter().position(|bound| a_line <= *bound);
    stats.line_seconds[bucket.unwrap_or(LINE_SECONDS_BUCKETS.len())] += lines;
    stats.memory_max = stats.memory_max.max(outcome.memory);
    stats.restarts += u64::from(outcome.restarts);
    stats.unlogged += outcome.ignored.messages;
    stats.uncounted += outcome.ignored.counts;
}

/// Charges what the filter made of the lines before it is kept. Where there is no room for all of
/// it, the outcome becomes that of the first lines, at least one. Whether it is that of all lines.
fn fit(chunk: &mut Chunk, lines: &Lines, outcome: &mut Outcome, record_bytes: u64) -> bool {
    let whole = outcome.verdicts.len() == lines.starts.len();
    let Some(charge) = &mut chunk.charge else { return whole };
    let fixed = chunk.read.capacity() as u64 + CHUNK_BYTES;
    let copies = if outcome.refused.is_empty() { 0 } else { lines.span() + CHUNK_BYTES as usize };
    let records = (outcome.verdicts.len() + outcome.ends.len()) as u64;
    let most = fixed + (outcome.bytes.capacity() + copies) as u64 + records * record_bytes;
    if charge.grow(most) {
        return whole;
    }
    let room = charge.bytes().saturating_sub(fixed);
    let fitting = costs(lines, outcome, record_bytes).scan(0, |sum, cost| {
        *sum += cost;
        Some(*sum)
    });
    let fitting = fitting.take_while(|sum| *sum <= room).count();
    outcome.truncate(fitting.max(1));
    outcome.verdicts.len() == lines.starts.len()
}

/// The most that each line takes beside what was read: its records, and what was written for them or is copied for
/// the dead-letter topic. Bytes.
fn costs<'a>(lines: &'a Lines, outcome: &'a Outcome, record_bytes: u64) -> impl Iterator<Item = u64> + 'a {
    let (mut ends, mut from) = (outcome.ends.iter(), 0);
    let lengths = lines.starts.iter().zip(&lines.ends).map(|(start, end)| end - start);
    outcome.verdicts.iter().zip(lengths).map(move |(verdict, length)| {
        let lines = replacements(*verdict);
        let last = ends.by_ref().take(lines).last().copied().unwrap_or(from);
        let written = u64::from(last - std::mem::replace(&mut from, last));
        match *verdict {
            DROP => 0,
            SET_ASIDE => record_bytes + CHUNK_BYTES + u64::from(length),
            _ => lines.max(1) as u64 * record_bytes + written,
        }
    })
}

fn held_cause(outcome: Option<&Outcome>, line: u32) -> String {
    let kind = refusal(outcome, line).map_or("error", |refused| refused.kind.as_str());
    format!("on_error is hold, and the filter failed on a line ({kind}); change the module or its config")
}

/// A chunk of its own for lines that go to the dead-letter topic, and where they stand in what was
/// read: its way and its time are its own.
pub(super) fn dead_letters_of(
    chunk: &Chunk,
    lines: &Lines,
    which: &[u32],
    record_bytes: u64,
) -> (Chunk, Vec<(u32, u32)>) {
    let (mut copy, mut places) = (Chunk::default(), Vec::with_capacity(which.len()));
    for line in which {
        let (start, end) = (lines.starts[*line as usize], lines.ends[*line as usize]);
        copy.records.push(Record { start: copy.read.len() as u32, len: end - start, buffer: Buffer::Read });
        copy.read.extend_from_slice(&chunk.read[start as usize..end as usize]);
        places.push((start, end));
    }
    copy.charge = chunk.charge.as_ref().map(|charge| charge.another(cost(&copy, record_bytes)));
    (copy, places)
}

/// The memory a chunk takes. Bytes.
pub(super) fn cost(chunk: &Chunk, record_bytes: u64) -> u64 {
    let bytes = chunk.read.capacity() + chunk.written.capacity();
    bytes as u64 + chunk.records.len() as u64 * record_bytes + CHUNK_BYTES
}
