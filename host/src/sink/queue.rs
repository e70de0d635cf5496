//! What waits for its turn at a partition.
//!
//! In: chunks in the order in which they were sent. Out: as much as is sent at once. The chunks of one
//! stream keep their order; streams take turns, so that fresh lines of a quiet file do not wait behind
//! all that a busy one has here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::flights::Home;
use super::gates::{Limits, Parcel};

/// After so much it is another stream's turn: a chunk of a busy one, or many small ones of a quiet one.
const TURN_BYTES: u64 = 256 * 1024;

/// The address of its lane's home, which its chunks keep alive, and the number of the stream in that lane.
type Stream = (usize, u64);

/// Those that wait for a partition.
#[derive(Default)]
pub(super) struct Queue {
    /// What waits of each stream; none is empty.
    streams: HashMap<Stream, VecDeque<Parcel>>,
    /// Their turns, the next one first.
    turns: VecDeque<Stream>,
    len: usize,
}

impl Queue {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All that wait, in any order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Parcel> {
        self.streams.values().flatten()
    }

    pub(super) fn push(&mut self, parcel: Parcel) {
        let stream = stream(&parcel);
        let parcels = self.streams.entry(stream).or_default();
        if parcels.is_empty() {
            self.turns.push_back(stream);
        }
        parcels.push_back(parcel);
        self.len += 1;
    }

    /// Takes out as much as is sent at once; one parcel, however large it is.
    pub(super) fn batch(&mut self, limits: Limits) -> Vec<Parcel> {
        let (mut bytes, mut records, mut batch) = (0, 0, Vec::new());
        while let Some(stream) = self.turns.front().copied() {
            let end_of_turn = bytes + TURN_BYTES;
            while let Some(parcel) = self.streams.get(&stream).and_then(VecDeque::front)
                && bytes < end_of_turn
            {
                bytes += parcel.bytes();
                records += parcel.records();
                if !batch.is_empty() && (bytes > limits.bytes || records > limits.records) {
                    return batch;
                }
                batch.extend(self.pop(stream));
            }
            self.turns.pop_front();
            if self.streams.contains_key(&stream) {
                self.turns.push_back(stream);
            }
        }
        batch
    }

    fn pop(&mut self, stream: Stream) -> Option<Parcel> {
        let parcels = self.streams.get_mut(&stream)?;
        let parcel = parcels.pop_front();
        if parcels.is_empty() {
            self.streams.remove(&stream);
        }
        self.len -= usize::from(parcel.is_some());
        parcel
    }

    /// Takes out what waits of a lane that is gone.
    pub(super) fn forget(&mut self, home: &Arc<Home>) {
        self.streams.retain(|(lane, _), _| *lane != address(home));
        self.turns.retain(|(lane, _)| *lane != address(home));
        self.len = self.iter().count();
    }
}

fn stream(parcel: &Parcel) -> Stream {
    (address(&parcel.home), parcel.route.stream)
}

fn address(home: &Arc<Home>) -> usize {
    Arc::as_ptr(home).addr()
}

#[cfg(test)]
mod tests {
    use super::super::gates::tests::{home, ids, parcel};
    use super::super::{Pick, Route};
    use super::*;

    const TURN: usize = TURN_BYTES as usize;
    const LIMITS: Limits = Limits { bytes: 3 * TURN_BYTES, records: 100 };

    fn batches(queue: &mut Queue) -> Vec<Vec<u64>> {
        std::iter::repeat_with(|| ids(&queue.batch(LIMITS))).take_while(|ids| !ids.is_empty()).collect()
    }

    /// Of a home and a stream: a chunk of this number and so many bytes.
    fn of(home: &Arc<Home>, stream: u64, (id, bytes): (u64, usize)) -> Parcel {
        let parcel = parcel(home, Pick::Fixed(0), id, bytes, 1);
        Parcel { route: Route { stream, ..parcel.route.clone() }, ..parcel }
    }

    #[test]
    fn streams_take_turns_of_so_many_bytes_and_each_keeps_its_order() {
        let [here, there] = [home(), home()];
        // Another file of the same lane, and the same number in another lane.
        for (lane, number) in [(&here, 2), (&there, 1)] {
            let mut queue = Queue::default();
            for chunk in [(2, TURN), (3, TURN), (4, TURN), (5, TURN)] {
                queue.push(of(&here, 1, chunk));
            }
            for chunk in [(6, 1), (7, 1), (8, TURN), (9, 1)] {
                queue.push(of(lane, number, chunk));
            }
            assert_eq!(queue.len(), 8);
            assert_eq!(batches(&mut queue), [vec![2, 6, 7, 8], vec![3, 9, 4], vec![5]]);
            assert_eq!((queue.len(), queue.streams.len(), queue.turns.len()), (0, 0, 0));
        }
    }

    #[test]
    fn what_is_forgotten_leaves_the_turns_of_the_others() {
        let (mut queue, [gone, there]) = (Queue::default(), [home(), home()]);
        for (id, home) in [(1, &there), (2, &gone), (3, &there), (4, &gone)] {
            queue.push(of(home, id % 2, (id, TURN)));
        }
        queue.forget(&gone);
        assert_eq!((queue.len(), queue.turns.len()), (2, 1));
        assert_eq!(batches(&mut queue), [[1, 3]]);
    }
}
