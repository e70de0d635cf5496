//! The chunks of one file that are under way, in order.
//!
//! In: a range when it is read, its number when it is finished. Out: the committed offset, the end
//! of the prefix in which every range is finished. Absent by design: what finished means, and
//! where the offset is kept.

use std::collections::VecDeque;

/// Ranges of one file, without gaps, from the committed offset on.
#[derive(Debug)]
pub struct Ledger {
    committed: Mark,
    ranges: VecDeque<Range>,
}

/// A place between two lines, and what stands just before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Bytes from the beginning of the file.
    pub offset: u64,
    /// What a resumed reader checks: see [`crate::source::identity::Trace`].
    pub trace: crate::source::identity::Trace,
}

#[derive(Debug)]
struct Range {
    id: u64,
    end: Mark,
    finished: bool,
}

impl Ledger {
    /// Nothing is under way; all before `committed` is finished.
    pub fn new(committed: Mark) -> Self {
        Self { committed, ranges: VecDeque::new() }
    }

    /// The next range, up to `end`. Numbers only grow.
    pub fn begin(&mut self, id: u64, end: Mark) {
        debug_assert!(self.ranges.back().is_none_or(|last| last.id < id && last.end.offset <= end.offset));
        self.ranges.push_back(Range { id, end, finished: false });
    }

    /// The range is finished. Returns by how many bytes the committed offset moved.
    pub fn finish(&mut self, id: u64) -> u64 {
        let Ok(at) = self.ranges.binary_search_by_key(&id, |range| range.id) else { return 0 };
        self.ranges[at].finished = true;
        self.merge(at);
        let before = self.committed.offset;
        while let Some(range) = self.ranges.pop_front_if(|range| range.finished) {
            self.committed = range.end;
        }
        self.committed.offset - before
    }

    /// Nothing lies behind `end` any more: ranges that did end there.
    pub fn cut(&mut self, end: Mark) {
        let marks = self.ranges.iter_mut().map(|range| &mut range.end).chain([&mut self.committed]);
        marks.filter(|mark| mark.offset > end.offset).for_each(|mark| *mark = end);
    }

    /// Finished neighbours become one, so that a stalled head keeps no more than twice as many
    /// ranges as there are chunks under way.
    fn merge(&mut self, mut at: usize) {
        if self.ranges.get(at + 1).is_some_and(|next| next.finished) {
            self.ranges.remove(at);
        }
        if at > 0 && self.ranges[at - 1].finished {
            at -= 1;
            self.ranges.remove(at);
        }
    }

    /// The end of the finished prefix.
    pub fn committed(&self) -> Mark {
        self.committed
    }

    /// Gives back memory that ranges took.
    pub fn shrink(&mut self) {
        self.ranges.shrink_to_fit();
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark(offset: u64) -> Mark {
        Mark { offset, trace: Default::default() }
    }

    fn ledger(ends: &[u64]) -> Ledger {
        let mut ledger = Ledger::new(mark(0));
        for (id, end) in ends.iter().enumerate() {
            ledger.begin(id as u64, mark(*end));
        }
        ledger
    }

    #[test]
    fn the_offset_waits_for_the_first_unfinished_range() {
        let mut ledger = ledger(&[10, 20, 30]);
        assert_eq!(ledger.finish(1), 0);
        assert_eq!(ledger.finish(2), 0);
        assert_eq!(ledger.committed().offset, 0);
        assert_eq!(ledger.finish(0), 30);
        assert!(ledger.is_empty());
    }

    #[test]
    fn finished_ranges_behind_a_stalled_head_are_one() {
        let mut ledger = ledger(&(1..=1000).collect::<Vec<_>>());
        for id in (1..1000).rev() {
            ledger.finish(id);
        }
        assert_eq!(ledger.ranges.len(), 2);
    }

    #[test]
    fn what_is_cut_off_is_not_committed() {
        let mut ledger = ledger(&[10, 20, 30]);
        ledger.finish(0);
        ledger.cut(mark(15));
        assert_eq!((ledger.finish(2), ledger.finish(1)), (0, 5));
        ledger.cut(mark(7));
        assert_eq!(ledger.committed(), mark(7));
    }

    proptest! {
        #[test]
        fn any_order_of_finishing_ends_at_the_end(order in Just((0..50u64).collect::<Vec<_>>()).prop_shuffle()) {
            let ends: Vec<u64> = (1..=50).map(|n| n * 7).collect();
            let mut ledger = ledger(&ends);
            let mut done = std::collections::BTreeSet::new();
            for id in order {
                ledger.finish(id);
                done.insert(id);
                let prefix = (0..).take_while(|id| done.contains(id)).count() as u64;
                prop_assert_eq!(ledger.committed().offset, prefix * 7);
            }
            prop_assert!(ledger.is_empty());
        }
    }
}
