//! One producer and the thread that keeps it: serves its reports, rebuilds it, ends it.
//!
//! In: chunks. Out: chunks, through their lanes. A producer is rebuilt after a fatal error, and
//! when lanes that are gone left too much under way. All of its chunks come back first: their
//! lanes are closed before the new producer can be seen, so nothing overtakes what failed.
//!
//! Absent by design: sending again, which is the pipeline's.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use super::flights::{Home, Landed};
use super::gates::{Gates, Limits, Parcel};
use super::native::{Batch, Fatal, Native};
use super::tally::{Bounce, Tally};
use super::{SinkError, lock};

/// Longest wait for an event; how soon orphans are noticed.
const LOOK: Duration = Duration::from_secs(1);
/// After a fatal error librdkafka still tells what became of requests that were sent already;
/// waiting for it spares repeats.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest wait for the reports of a purge. It takes milliseconds unless a thread of librdkafka
/// hangs in the resolver.
const PURGE: Duration = Duration::from_secs(1);
/// How long lanes that are gone may keep more than their cap before the producer is rebuilt:
/// a cluster that answers acknowledges them meanwhile.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// A rebuild so soon after the last one waits, twice as long each time.
const REBUILD_CALM: Duration = Duration::from_secs(60);
/// The first such wait.
const REBUILD_WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest such wait.
const REBUILD_WAIT_MAX: Duration = Duration::from_secs(10);

/// What a stop left unacknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Chunks with records that were not acknowledged.
    pub chunks: u64,
    /// Those records; after the next start they are sent again.
    pub records: u64,
}

impl Stopped {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self { chunks: self.chunks + other.chunks, records: self.records + other.records }
    }
}

/// What is the same for all producers of a sink, or decided by it.
pub(super) struct Plan {
    pub(super) properties: Vec<(String, String)>,
    /// How much lanes that are gone may keep under way. Bytes.
    pub(super) orphan_bytes_max: u64,
    pub(super) tally: Arc<Tally>,
    /// Told each fatal error before the new producer is made.
    pub(super) on_fatal: Box<dyn Fn(&Fatal) + Send + Sync>,
}

/// A producer that is rebuilt when it has to be.
pub(super) struct Producer {
    /// `None` while it is being rebuilt, and after the end. Only the keeper writes.
    native: RwLock<Option<Native>>,
    gates: Gates,
    plan: Plan,
    state: Mutex<State>,
    changed: Condvar,
}

/// Where it is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Waits for what is under way until then.
    Stopping(Instant),
    /// Being destroyed or gone: what was not acknowledged, and whether the keeper has ended.
    Stopped(Stopped, bool),
}

/// Why a producer has to be rebuilt.
enum Reason {
    Fatal(Fatal),
    Orphans,
}

impl Producer {
    /// Makes the producer and starts its keeper.
    pub(super) fn start(plan: Plan) -> Result<Arc<Self>, SinkError> {
        let native = Native::new(&plan.properties, plan.tally.clone())?;
        let producer = Arc::new(Self {
            native: RwLock::new(Some(native)),
            gates: Gates::new(Limits::of(&plan.properties)),
            plan,
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
        });
        let keeper = producer.clone();
        thread::Builder::new()
            .name("weir-kafka".into())
            .spawn(move || keeper.keep())
            .map_err(|error| SinkError::Create { cause: error.to_string() })?;
        Ok(producer)
    }

    /// Sends a chunk, or lets it wait until it is its turn.
    pub(super) fn send(&self, batch: &mut Batch, parcel: Parcel) {
        parcel.home.enter();
        if let Some(parcel) = self.gates.enter(parcel) {
            self.hand_over(batch, vec![parcel]);
        }
    }

    /// Forgets what waits of a lane that is gone, and counts what it left under way.
    pub(super) fn forget(&self, home: &Arc<Home>) {
        self.gates.forget(home);
        self.with(|native| native.flights().orphan(home));
    }

    /// What was sent and has not come back.
    pub(super) fn under_way(&self) -> Stopped {
        let given = self.with(|native| native.flights().under_way()).unwrap_or_default();
        given.and(self.gates.waiting())
    }

    /// Hands chunks over. Behind those that come back at once it is the turn of others.
    fn hand_over(&self, batch: &mut Batch, parcels: Vec<Parcel>) {
        let mut parcels = VecDeque::from(parcels);
        while let Some(parcel) = parcels.pop_front() {
            let landed = self.give(batch, parcel);
            parcels.extend(landed.map(|landed| self.land(landed)).into_iter().flatten());
        }
    }

    /// A chunk has come back: out is whose turn it is behind it.
    fn land(&self, landed: Landed) -> Vec<Parcel> {
        landed.home().leave();
        let next = landed.place().map(|place| self.gates.leave(place));
        landed.deliver();
        next.unwrap_or_default()
    }

    /// Delivers chunks that have come back, and hands over those behind them.
    fn land_all(&self, batch: &mut Batch, landed: impl IntoIterator<Item = Landed>) {
        for landed in landed {
            let next = self.land(landed);
            self.hand_over(batch, next);
        }
    }

    fn give(&self, batch: &mut Batch, parcel: Parcel) -> Option<Landed> {
        // Fails only while the keeper takes the producer away: then it is as good as gone.
        let native = self.native.try_read();
        let native = native.as_ref().ok().and_then(|native| native.as_ref());
        // Looked at after the producer is there: the lanes of what failed with the last one were closed
        // before this one could be seen.
        let bounce = match native {
            Some(native) if !parcel.home.is_closed() => return native.send(batch, parcel),
            Some(_) => Bounce::LaneClosed,
            None if *lock(&self.state) == State::Running => Bounce::Rebuilding,
            None => Bounce::Stopped,
        };
        Some(Landed::bounced(parcel, bounce, &self.plan.tally))
    }

    /// Does something with the producer, if there is one.
    pub(super) fn with<T>(&self, what: impl FnOnce(&Native) -> T) -> Option<T> {
        let native = self.native.read().unwrap_or_else(PoisonError::into_inner);
        native.as_ref().map(what)
    }

    /// Begins to stop: what is under way has until `deadline`, less what destroying may take.
    pub(super) fn stop(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut state = lock(&self.state);
        if *state == State::Running {
            *state = State::Stopping(deadline - PURGE.min(left / 4));
        }
        drop(state);
        self.changed.notify_all();
        self.with(Native::wake);
    }

    /// Waits for the end of a stop. At the deadline it returns what is known then; the keeper goes
    /// on destroying, and nothing is freed early.
    pub(super) fn stopped(&self, deadline: Instant) -> Stopped {
        let mut state = lock(&self.state);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match *state {
                State::Stopped(stopped, ended) if ended || left.is_zero() => return stopped,
                _ if left.is_zero() => break,
                _ => {
                    let waited = self.changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        drop(state);
        self.under_way()
    }

    /// The keeper's life.
    fn keep(&self) {
        let mut pace = Pace::default();
        loop {
            let reason = self.serve();
            let Some(native) = self.exchange(None) else { return };
            let Some(reason) = reason.filter(|_| self.stop_in().is_none()) else { return self.end(native) };
            let (cause, settle) = match reason {
                Reason::Orphans => {
                    tracing::warn!("rebuilding the producer: closed entries left too much under way");
                    ("orphans", Duration::ZERO)
                }
                Reason::Fatal(fatal) => {
                    tracing::error!(code = fatal.code, text = fatal.text, "rebuilding the producer");
                    self.plan.tally.fatal(&fatal.code);
                    (self.plan.on_fatal)(&fatal);
                    ("fatal", SETTLE)
                }
            };
            self.land_all(&mut Batch::default(), native.destroy(settle, PURGE));
            self.plan.tally.rebuilt(cause);
            let Some(renewed) = self.renew(&mut pace) else {
                return self.enter(State::Stopped(Stopped::default(), true));
            };
            self.exchange(Some(renewed));
        }
    }

    /// Serves events until the producer has to be rebuilt or, without a reason, to stop.
    fn serve(&self) -> Option<Reason> {
        let native = self.native.read().unwrap_or_else(PoisonError::into_inner);
        let native = native.as_ref()?;
        let (mut batch, mut landed) = (Batch::default(), Vec::new());
        let mut crowded: Option<Instant> = None;
        loop {
            let left = self.stop_in();
            if left.is_some_and(|left| left.is_zero() || native.flights().is_empty()) {
                return None;
            }
            let fatal = native.serve(left.unwrap_or(LOOK).min(LOOK), &mut landed);
            self.land_all(&mut batch, landed.drain(..));
            if let Some(fatal) = fatal {
                return Some(Reason::Fatal(fatal));
            }
            if native.flights().orphan_bytes() <= self.plan.orphan_bytes_max {
                crowded = None;
            } else if crowded.get_or_insert_with(Instant::now).elapsed() >= ORPHAN_GRACE {
                return Some(Reason::Orphans);
            }
        }
    }

    /// Ends for good. What is open is noted before destroying, which may outlast the deadline.
    fn end(&self, native: Native) {
        self.enter(State::Stopped(native.flights().under_way().and(self.gates.waiting()), false));
        let landed = native.destroy(Duration::ZERO, PURGE);
        let open = landed.iter().filter(|landed| landed.failed() > 0);
        let stopped = open.fold(self.gates.waiting(), |sum, landed| {
            sum.and(Stopped { chunks: 1, records: landed.failed() as u64 })
        });
        self.land_all(&mut Batch::default(), landed);
        self.enter(State::Stopped(stopped, true));
    }

    /// A new producer, or nothing when a stop came first.
    fn renew(&self, pace: &mut Pace) -> Option<Native> {
        loop {
            let wait = Instant::now() + pace.next();
            let mut state = lock(&self.state);
            while *state == State::Running && Instant::now() < wait {
                let waited = self.changed.wait_timeout(state, wait - Instant::now());
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if *state != State::Running {
                return None;
            }
            drop(state);
            match Native::new(&self.plan.properties, self.plan.tally.clone()) {
                Ok(native) => return Some(native),
                Err(error) => tracing::error!(%error, "cannot rebuild the producer; trying again"),
            }
        }
    }

    fn exchange(&self, native: Option<Native>) -> Option<Native> {
        std::mem::replace(&mut *self.native.write().unwrap_or_else(PoisonError::into_inner), native)
    }

    /// How long a stop still waits for what is under way; `None` while nobody stops.
    fn stop_in(&self) -> Option<Duration> {
        match *lock(&self.state) {
            State::Running => None,
            State::Stopping(until) => Some(until.saturating_duration_since(Instant::now())),
            State::Stopped(..) => Some(Duration::ZERO),
        }
    }

    fn enter(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }
}

/// How long to wait before each rebuild.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    wait: Duration,
}

impl Pace {
    fn next(&mut self) -> Duration {
        let calm = self.last.is_none_or(|last| last.elapsed() > REBUILD_CALM);
        self.wait =
            if calm { Duration::ZERO } else { (self.wait * 2).clamp(REBUILD_WAIT_MIN, REBUILD_WAIT_MAX) };
        self.last = Some(Instant::now());
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Buffer, Chunk, Pick, Record, Route};
    use super::*;
    use crate::model::Topic;

    #[test]
    fn a_lane_that_closes_between_its_last_look_and_the_hand_over_sends_nothing() {
        let producer = Producer::start(Plan {
            properties: Vec::new(),
            orphan_bytes_max: 0,
            tally: Arc::default(),
            on_fatal: Box::new(|_| ()),
        })
        .unwrap();
        let (home, topic) = (Home::new(Arc::new(|_| ())), Topic::parse("t").unwrap());
        let parcel = || {
            let record = Record { start: 0, len: 4, buffer: Buffer::Read };
            let chunk = Chunk { read: b"line".into(), records: vec![record], ..Chunk::default() };
            let route = Route::to(Pick::Fixed(0));
            Parcel { chunk, topic: topic.clone(), only: None, route, home: home.clone() }
        };
        let give = || producer.give(&mut Batch::default(), parcel());
        assert!(give().is_none(), "it is taken");
        drop(Landed::bounced(parcel(), Bounce::NoReport, &producer.plan.tally));
        assert_eq!(give().map(|landed| landed.failed()), Some(1));
        producer.stop(Instant::now());
        producer.stopped(Instant::now() + PURGE * 10);
    }

    #[test]
    fn rebuilds_that_follow_one_another_wait_longer_and_longer() {
        let mut pace = Pace::default();
        let waits: Vec<u128> = (0..10).map(|_| pace.next().as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }
}
