//! The chunks that a producer may be reading.
//!
//! In: chunks, by value, and [`Reports`]. Out: each chunk once, as [`Landed`], when every record
//! of it was reported, or when its producer is [`Destroyed`]. Both of these proofs can be made
//! only in [`super::native`], from what librdkafka said; so nothing else can free a chunk early.
//! Absent by design: anything per record that is acknowledged but one subtraction a run of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use slab::Slab;

use super::gates::{Parcel, Place};
use super::native::{Destroyed, Reports};
use super::producer::Stopped;
use super::tally::{Bounce, Tally, Verdict};
use super::{Chunk, Done, Failed, Finished, lock};

/// Bits of an opaque that say which record of the chunk it is.
const RECORD_BITS: u32 = 28;
/// Bits above those that say which flight of the slot it is.
const GENERATION_BITS: u32 = 16;
/// Bits above those that say which slot: as many chunks can be under way.
const SLOT_BITS: u32 = u64::BITS - RECORD_BITS - GENERATION_BITS;

/// The slot and the generation of a flight, in place in an opaque. librdkafka carries it and the
/// record's index with each record, so that a report needs no search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Ticket {
    fn new(slot: usize, generation: u16) -> Self {
        Self((slot as u64) << (RECORD_BITS + GENERATION_BITS) | u64::from(generation) << RECORD_BITS)
    }

    /// Takes an opaque apart.
    pub(super) fn of(opaque: u64) -> (Self, u32) {
        let record = opaque & ((1 << RECORD_BITS) - 1);
        (Self(opaque - record), record as u32)
    }

    /// The opaque of one of the flight's records.
    pub(super) fn opaque(self, record: u32) -> u64 {
        self.0 | u64::from(record)
    }

    fn slot(self) -> usize {
        (self.0 >> (RECORD_BITS + GENERATION_BITS)) as usize
    }

    fn generation(self) -> u16 {
        (self.0 >> RECORD_BITS) as u16
    }
}

/// Where the chunks of a lane come back to, and whether it may send.
pub(super) struct Home {
    done: Done,
    closed: AtomicBool,
    under_way: AtomicU64,
}

impl Home {
    pub(super) fn new(done: Done) -> Arc<Self> {
        Arc::new(Self { done, closed: AtomicBool::new(false), under_way: AtomicU64::new(0) })
    }

    /// A lane closes at its first failure, so that nothing new overtakes what must be sent again.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Chunks sent that have not come back.
    pub(super) fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Acquire)
    }

    /// One more is.
    pub(super) fn enter(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// One is not any more.
    pub(super) fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A chunk on its way back to its lane.
pub(super) struct Landed {
    finished: Finished,
    home: Arc<Home>,
    /// Whose batch it was part of.
    place: Option<Place>,
}

impl Landed {
    fn new(finished: Finished, home: Arc<Home>, place: Option<Place>) -> Self {
        if !finished.failed.is_empty() {
            home.closed.store(true, Ordering::Release);
        }
        Self { finished, home, place }
    }

    /// A chunk that no producer was given.
    pub(super) fn bounced(parcel: Parcel, bounce: Bounce, tally: &Tally) -> Self {
        let (verdict, place) = (tally.bounce(bounce, parcel.records() as usize), parcel.place());
        let Parcel { chunk, only, home, .. } = parcel;
        let failed = sent(&chunk, only.as_deref()).map(|record| failed(record, &verdict)).collect();
        Self::new(Finished { chunk, failed }, home, place)
    }

    /// The partition whose batch it was part of.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// The lane that it comes back to.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// How many of its records failed.
    pub(super) fn failed(&self) -> usize {
        self.finished.failed.len()
    }

    /// Hands the chunk to its lane. A panic there is the lane's, and must not take down the thread
    /// that serves all others.
    pub(super) fn deliver(self) {
        let Self { finished, home, .. } = self;
        if catch_unwind(AssertUnwindSafe(|| (home.done)(finished))).is_err() {
            tracing::error!("the receiver of a finished chunk panicked");
        }
    }
}

/// The records of a chunk that were asked to be sent.
pub(super) fn sent(chunk: &Chunk, only: Option<&[u32]>) -> impl Iterator<Item = u32> {
    let all = if only.is_some() { 0 } else { chunk.records.len() as u32 };
    only.unwrap_or_default().iter().copied().chain(0..all)
}

fn failed(record: u32, verdict: &Verdict) -> Failed {
    Failed { record, why: verdict.why, code: verdict.code.clone() }
}

/// One chunk under way. Its buffers do not move or change while it is here.
struct Flight {
    chunk: Chunk,
    only: Option<Box<[u32]>>,
    generation: u16,
    /// Records without a report, and one for the call that hands them over.
    open: u64,
    failed: Vec<Failed>,
    home: Arc<Home>,
    place: Option<Place>,
    orphan: bool,
}

impl Flight {
    fn bytes(&self) -> u64 {
        match &self.chunk.charge {
            Some(charge) => charge.bytes(),
            None => (self.chunk.read.capacity() + self.chunk.written.capacity()) as u64,
        }
    }

    fn land(mut self) -> Landed {
        self.failed.sort_unstable_by_key(|failed| failed.record);
        Landed::new(Finished { chunk: self.chunk, failed: self.failed }, self.home, self.place)
    }

    /// Fails all records that are not known to have failed: which of them were acknowledged is
    /// not kept, only how many.
    fn give_up(&mut self, tally: &Tally) {
        self.failed.sort_unstable_by_key(|failed| failed.record);
        let known: Vec<u32> = self.failed.iter().map(|failed| failed.record).collect();
        let open: Vec<u32> = sent(&self.chunk, self.only.as_deref())
            .filter(|record| known.binary_search(record).is_err())
            .collect();
        let verdict = tally.bounce(Bounce::NoReport, open.len());
        self.failed.extend(open.into_iter().map(|record| failed(record, &verdict)));
        tally.missing_reports.fetch_add(self.open, Ordering::Relaxed);
    }
}

/// All chunks that one producer may be reading.
pub(super) struct Flights {
    table: Mutex<Table>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Table {
    slots: Slab<Flight>,
    generation: u16,
    orphan_bytes: u64,
}

impl Flights {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { table: Mutex::default(), tally }
    }

    /// Takes a chunk in before its records are handed over. The hand-over itself counts as one
    /// more record, so that the chunk cannot land before it has ended.
    pub(super) fn board(&self, parcel: Parcel) -> Result<Ticket, Box<Landed>> {
        let mut table = lock(&self.table);
        if parcel.chunk.records.len() >= 1 << RECORD_BITS || table.slots.len() >= 1 << SLOT_BITS {
            drop(table);
            return Err(Box::new(Landed::bounced(parcel, Bounce::TooMany, &self.tally)));
        }
        table.generation = table.generation.wrapping_add(1);
        let (place, records) = (parcel.place(), parcel.records());
        let Parcel { chunk, only, home, .. } = parcel;
        let flight = Flight {
            open: records + 1,
            only,
            generation: table.generation,
            failed: Vec::new(),
            home,
            place,
            orphan: false,
            chunk,
        };
        let generation = flight.generation;
        Ok(Ticket::new(table.slots.insert(flight), generation))
    }

    /// Notes what became of records. What comes back is complete.
    pub(super) fn report(&self, reports: &Reports) -> Vec<Landed> {
        let mut table = lock(&self.table);
        for &(ticket, record, code) in reports.failures() {
            if let Some(flight) = table.find(ticket, &self.tally) {
                flight.failed.push(failed(record, &self.tally.verdict(code)));
            }
        }
        let runs = reports.runs().iter();
        runs.filter_map(|&(ticket, records)| table.count_down(ticket, records, &self.tally)).collect()
    }

    /// Lands everything that is left of a producer that does not exist any more.
    pub(super) fn sweep(self, _: Destroyed) -> Vec<Landed> {
        let table = self.table.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut landed = Vec::with_capacity(table.slots.len());
        for (_, mut flight) in table.slots {
            tracing::warn!(records = flight.open, "no delivery reports before the producer was destroyed");
            flight.give_up(&self.tally);
            landed.push(flight.land());
        }
        landed
    }

    /// Counts what a lane that is gone left under way.
    pub(super) fn orphan(&self, home: &Arc<Home>) {
        let mut table = lock(&self.table);
        let mut bytes = 0;
        for (_, flight) in &mut table.slots {
            if !flight.orphan && Arc::ptr_eq(&flight.home, home) {
                flight.orphan = true;
                bytes += flight.bytes();
            }
        }
        table.orphan_bytes += bytes;
    }

    /// What chunks of lanes that are gone hold. Bytes.
    pub(super) fn orphan_bytes(&self) -> u64 {
        lock(&self.table).orphan_bytes
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.table).slots.is_empty()
    }

    /// What is under way, as if it were stopped now.
    pub(super) fn under_way(&self) -> Stopped {
        let table = lock(&self.table);
        let records = table.slots.iter().map(|(_, flight)| flight.open).sum();
        Stopped { chunks: table.slots.len() as u64, records }
    }
}

impl Table {
    fn find(&mut self, ticket: Ticket, tally: &Tally) -> Option<&mut Flight> {
        let flight = self.slots.get_mut(ticket.slot()).filter(|f| f.generation == ticket.generation());
        if flight.is_none() {
            stale(ticket, tally);
        }
        flight
    }

    fn count_down(&mut self, ticket: Ticket, records: u64, tally: &Tally) -> Option<Landed> {
        let flight = self.find(ticket, tally)?;
        let Some(open) = flight.open.checked_sub(records) else {
            stale(ticket, tally);
            return None;
        };
        flight.open = open;
        if open > 0 {
            return None;
        }
        let flight = self.slots.remove(ticket.slot());
        if flight.orphan {
            self.orphan_bytes -= flight.bytes();
        }
        Some(flight.land())
    }
}

/// Reports that fit no flight free nothing: at worst its chunk is kept until the producer ends.
fn stale(ticket: Ticket, tally: &Tally) {
    tally.stale_reports.fetch_add(1, Ordering::Relaxed);
    tracing::error!(slot = ticket.slot(), generation = ticket.generation(), "report without a flight");
}
