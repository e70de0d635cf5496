//! One batch a partition under way, and what waits behind it.
//!
//! An idempotent producer of librdkafka has one request of a partition under way, whatever
//! `max.in.flight` says (its pull request 4989). While more of that partition lies with it, for longer
//! than `linger.ms`, its thread looks without a pause whether the answer is there: with a broker that takes
//! 10 ms, three quarters of a core at 1,000 lines a second. So it is given no more than it can send at
//! once; what comes meanwhile waits here and is the next batch.
//!
//! In: chunks for a partition, or for any. Out: those whose turn it is. Absent by design: chunks for
//! which librdkafka chooses the partition of each record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::flights::{Home, sent};
use super::producer::Stopped;
use super::queue::Queue;
use super::{Chunk, Pick, Route, lock};
use crate::model::Topic;

/// A topic and one of its partitions.
pub(super) type Place = (Topic, i32);

/// A chunk on its way to a producer, and all that is said of it.
pub(super) struct Parcel {
    pub(super) chunk: Chunk,
    pub(super) topic: Topic,
    /// Of its records, those that are sent; `None`: all.
    pub(super) only: Option<Box<[u32]>>,
    pub(super) route: Route,
    pub(super) home: Arc<Home>,
}

impl Parcel {
    /// The partition behind whose batch it waits, if there is such a one.
    pub(super) fn place(&self) -> Option<Place> {
        match self.route.partition {
            Pick::Fixed(partition) if !self.route.alone => Some((self.topic.clone(), partition)),
            _ => None,
        }
    }

    /// How many of its records are sent.
    pub(super) fn records(&self) -> u64 {
        self.only.as_ref().map_or(self.chunk.records.len(), |only| only.len()) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        let length = |record: u32| u64::from(self.chunk.records[record as usize].len);
        let lengths = sent(&self.chunk, self.only.as_deref()).map(length);
        lengths.sum::<u64>() + self.records() * RECORD_BYTES
    }
}

/// What the frame of a record may take in a batch.
const RECORD_BYTES: u64 = 32;

/// The most that is sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// `batch.size`, or `message.max.bytes` where that is less. Bytes.
    pub(super) bytes: u64,
    /// `batch.num.messages`.
    pub(super) records: u64,
}

impl Limits {
    /// What these properties say, the later ones winning, and librdkafka's defaults where they say nothing.
    pub(super) fn of(properties: &[(String, String)]) -> Self {
        let said = |key: &str, usual: u64| {
            let value = properties.iter().rev().find(|(name, _)| name == key);
            value.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(usual)
        };
        let bytes = said("batch.size", 1_000_000).min(said("message.max.bytes", 1_000_000));
        Self { bytes, records: said("batch.num.messages", 10_000) }
    }
}

/// The partitions that have something under way.
pub(super) struct Gates {
    limits: Limits,
    gates: Mutex<HashMap<Place, Gate>>,
}

#[derive(Default)]
struct Gate {
    /// Chunks that were let through and have not landed. While there is none, none waits.
    under_way: usize,
    waiting: Queue,
}

impl Gates {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, gates: Mutex::default() }
    }

    /// Takes a parcel, and gives it back where it may be handed over now.
    pub(super) fn enter(&self, mut parcel: Parcel) -> Option<Parcel> {
        let mut gates = lock(&self.gates);
        if let Pick::Freest(partitions) = parcel.route.partition {
            parcel.route.partition = Pick::Fixed(freest(&gates, &parcel, partitions));
        }
        let Some(place) = parcel.place() else { return Some(parcel) };
        let gate = gates.entry(place).or_default();
        if gate.under_way == 0 {
            gate.under_way = 1;
            return Some(parcel);
        }
        gate.waiting.push(parcel);
        None
    }

    /// A chunk that was let through has landed. Out: what may be handed over now, in order.
    pub(super) fn leave(&self, place: &Place) -> Vec<Parcel> {
        let mut gates = lock(&self.gates);
        let Some(gate) = gates.get_mut(place) else { return Vec::new() };
        gate.under_way -= 1;
        if gate.under_way > 0 {
            return Vec::new();
        }
        let batch = gate.waiting.batch(self.limits);
        gate.under_way = batch.len();
        if batch.is_empty() {
            gates.remove(place);
        }
        batch
    }

    /// Takes out what waits of a lane that is gone.
    pub(super) fn forget(&self, home: &Arc<Home>) {
        for gate in lock(&self.gates).values_mut() {
            gate.waiting.forget(home);
        }
    }

    /// What waits, as if it were stopped now.
    pub(super) fn waiting(&self) -> Stopped {
        let gates = lock(&self.gates);
        let waiting = gates.values().flat_map(|gate| gate.waiting.iter());
        waiting.fold(Stopped::default(), |sum, parcel| Stopped {
            chunks: sum.chunks + 1,
            records: sum.records + parcel.records(),
        })
    }
}

/// The partition that has least under way and waiting; of equal ones in turn.
fn freest(gates: &HashMap<Place, Gate>, parcel: &Parcel, partitions: i32) -> i32 {
    let first = (parcel.chunk.id % partitions as u64) as i32;
    let chunks = |partition: &i32| gates.get(&(parcel.topic.clone(), *partition)).map_or(0, Gate::chunks);
    (first..partitions).chain(0..first).min_by_key(chunks).unwrap_or(first)
}

impl Gate {
    /// How many are under way or wait.
    fn chunks(&self) -> usize {
        self.under_way + self.waiting.len()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Buffer, Record};
    use super::*;

    const LIMITS: Limits = Limits { bytes: 1000, records: 10 };

    pub(in super::super) fn home() -> Arc<Home> {
        Home::new(Arc::new(|_| ()))
    }

    pub(in super::super) fn parcel(
        home: &Arc<Home>,
        partition: Pick,
        id: u64,
        bytes: usize,
        records: usize,
    ) -> Parcel {
        let mut all = vec![Record { start: 0, len: 0, buffer: Buffer::Read }; records];
        all[0].len = bytes as u32;
        let chunk = Chunk { id, read: vec![0; bytes], records: all, ..Chunk::default() };
        let route = Route::to(partition);
        Parcel { chunk, topic: Topic::parse("t").unwrap(), only: None, route, home: home.clone() }
    }

    pub(in super::super) fn ids(parcels: &[Parcel]) -> Vec<u64> {
        parcels.iter().map(|parcel| parcel.chunk.id).collect()
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_is_the_next_one_as_far_as_it_fits() {
        let (gates, home) = (Gates::new(LIMITS), home());
        let place = (Topic::parse("t").unwrap(), 0);
        let send = |id, bytes, records| gates.enter(parcel(&home, Pick::Fixed(0), id, bytes, records));
        assert!(send(1, 5000, 1).is_some(), "the first, however large it is");
        for (id, bytes, records) in
            [(2, 300, 1), (3, 300, 1), (4, 400, 1), (5, 0, 9), (6, 0, 2), (7, 3000, 1)]
        {
            assert!(send(id, bytes, records).is_none());
        }
        assert_eq!(gates.waiting(), Stopped { chunks: 6, records: 15 });
        assert_eq!(ids(&gates.leave(&place)), [2, 3], "as many bytes as fit");
        assert!(send(8, 0, 1).is_none(), "two are under way");
        assert!(gates.leave(&place).is_empty(), "one still is");
        assert_eq!(ids(&gates.leave(&place)), [4, 5], "as many records as fit");
        assert!(gates.leave(&place).is_empty());
        assert_eq!(ids(&gates.leave(&place)), [6]);
        assert_eq!(ids(&gates.leave(&place)), [7], "too large, and alone");
        assert_eq!(ids(&gates.leave(&place)), [8]);
        assert!(gates.leave(&place).is_empty());
        assert_eq!(lock(&gates.gates).len(), 0);
        assert!(send(9, 1, 1).is_some());
    }

    #[test]
    fn partitions_do_not_wait_for_one_another_and_what_has_none_waits_for_nobody() {
        let (gates, home) = (Gates::new(LIMITS), home());
        for partition in [Pick::Fixed(0), Pick::Fixed(1), Pick::Partitioner, Pick::Partitioner] {
            assert!(gates.enter(parcel(&home, partition, 1, 1, 1)).is_some());
        }
        let mut alone = parcel(&home, Pick::Fixed(0), 2, 1, 1);
        alone.route.alone = true;
        assert!(gates.enter(alone).is_some());
    }

    #[test]
    fn what_may_go_anywhere_goes_where_least_is_under_way_and_in_turn_where_that_is_the_same() {
        let (gates, home) = (Gates::new(LIMITS), home());
        let send = |id| gates.enter(parcel(&home, Pick::Freest(3), id, 1, 1));
        let place = |parcel: Parcel| parcel.place().map(|(_, partition)| partition);
        assert!(gates.enter(parcel(&home, Pick::Fixed(1), 1, 1, 1)).is_some());
        assert_eq!([4, 5].map(|id| send(id).and_then(place)), [Some(2), Some(0)]);
        assert!([6, 7, 8, 9].into_iter().all(|id| send(id).is_none()), "all three are taken");
        let behind = |partition| gates.leave(&(Topic::parse("t").unwrap(), partition));
        assert_eq!([0, 1, 2].map(|partition| ids(&behind(partition))), [vec![6, 9], vec![7], vec![8]]);
    }

    #[test]
    fn what_waits_of_a_lane_that_is_gone_is_not_sent() {
        let (gates, [gone, there]) = (Gates::new(LIMITS), [home(), home()]);
        for (id, home) in [(1, &there), (2, &gone), (3, &there)] {
            gates.enter(parcel(home, Pick::Fixed(0), id, 1, 1));
        }
        gates.forget(&gone);
        assert_eq!(ids(&gates.leave(&(Topic::parse("t").unwrap(), 0))), [3]);
    }

    #[test]
    fn limits_are_what_the_properties_say() {
        let limits = |properties: &[(&str, &str)]| {
            let properties: Vec<_> =
                properties.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            let limits = Limits::of(&properties);
            (limits.bytes, limits.records)
        };
        assert_eq!(limits(&[]), (1_000_000, 10_000));
        assert_eq!(
            limits(&[("batch.size", "5"), ("batch.size", "500"), ("batch.num.messages", "7")]),
            (500, 7)
        );
        assert_eq!(limits(&[("message.max.bytes", "2000")]).0, 2000);
    }
}
