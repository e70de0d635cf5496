//! The sums: what was written against what the agent counted and what is on the topic.
//!
//! In: three independent counts. Out: a table, and every sum that does not hold.

use std::fmt;

use indicatif::HumanCount;

use super::line::{self, Version};
use super::log::Written;
use super::witness::Seen;
use crate::agent::Finished;
use crate::model::Lines;

/// What each of the three knows at the end.
pub(super) struct Sums {
    /// The service.
    pub(super) written: Written,
    /// The agent's board.
    pub(super) board: Lines,
    /// The consumer.
    pub(super) seen: Seen,
    /// How the agent ended.
    pub(super) ended: Finished,
    /// Whether lines went through filters.
    pub(super) filtered: bool,
}

impl Sums {
    /// Lines that were written, are not on the topic, and were not to be dropped.
    fn lost(&self) -> u64 {
        let (dropped, missing) = self.absent();
        missing + dropped.saturating_sub(self.board.filtered)
    }

    /// Lines that are not on the topic: those that `drop_debug` had to drop while it was in force,
    /// and others.
    fn absent(&self) -> (u64, u64) {
        let in_force = if self.filtered { self.seen.first(Version::NoToken).unwrap_or(u64::MAX) } else { 0 };
        let absent = (0..self.written.lines).filter(|line| !self.seen.has(*line));
        absent.fold((0, 0), |(dropped, missing), line| {
            if line::is_debug(line) && line < in_force {
                (dropped + 1, missing)
            } else {
                (dropped, missing + 1)
            }
        })
    }

    /// DEBUG lines that went out as they were though there was a filter from the beginning.
    fn leaked(&self) -> u64 {
        let in_force = self.seen.first(Version::NoToken).unwrap_or(u64::MAX).min(self.written.lines);
        let debug = (0..in_force).filter(|line| line::is_debug(*line));
        if self.filtered { debug.filter(|line| self.seen.has(*line)).count() as u64 } else { 0 }
    }

    /// Lines that stand on the topic before an earlier line of the same file.
    fn reordered(&self) -> u64 {
        let (places, cut) = (&self.seen.places, self.written.rotated_at.unwrap_or(u64::MAX));
        let (first, second) = places.split_at(places.len().min(cut as usize));
        [first, second].into_iter().map(descents).sum()
    }

    /// Every sum that does not hold, in words. None is how it should be.
    pub(super) fn broken(&self) -> Vec<String> {
        let Self { written, board, seen, ended, .. } = self;
        let mut broken = Vec::new();
        let mut none = |count: u64, what: &str| {
            if count > 0 {
                broken.push(format!("{} {what}", HumanCount(count)));
            }
        };
        none(self.lost(), "lines are lost");
        none(seen.repeated, "records repeat a line");
        none(seen.strange, "records are not what one version of the filter makes of a line");
        none(seen.gone_back, "records come from a version older than the one before");
        none(self.leaked(), "DEBUG lines passed by the filter");
        none(self.reordered(), "lines stand before an earlier line of their file");
        none(board.in_flight, "lines are still under way for the agent");
        none(ended.unfinished, "lines may be repeated by the agent's next start");
        let mut same = |what: &str, left: u64, right: u64| {
            if left != right {
                broken.push(format!("{what}: {} and {}", HumanCount(left), HumanCount(right)));
            }
        };
        same("lines written, and read by the agent", written.lines, board.read);
        same("lines read by the agent, and the sum of what became of them", board.read, parts(board));
        same("lines delivered by the agent, and records on the topic", board.delivered, seen.records);
        same("lines dropped by the filter, and DEBUG lines missing", board.filtered, self.absent().0);
        if !ended.saved {
            broken.push("the agent could not write its offsets".into());
        }
        broken
    }

    /// The sums in one line.
    pub(super) fn sentence(&self) -> String {
        let [written, topic, dropped] =
            [self.written.lines, self.seen.records, self.board.filtered].map(HumanCount);
        let (lost, repeated) = (HumanCount(self.lost()), HumanCount(self.seen.repeated));
        format!(
            "{written} lines written = {topic} on the topic + {dropped} filtered: {lost} lost, {repeated} repeated"
        )
    }
}

/// What became of the lines that the agent read.
fn parts(board: &Lines) -> u64 {
    board.delivered + board.filtered + board.skipped + board.quarantined + board.discarded + board.in_flight
}

/// How often a line's place is before that of the line before it. Absent lines have no place.
fn descents(places: &[u64]) -> u64 {
    let there: Vec<u64> = places.iter().copied().filter(|place| *place > 0).collect();
    there.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64
}

/// The table.
impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { board, seen, .. } = self;
        let mut row =
            |what: &str, count: u64| writeln!(f, "  {what:<44}{:>10}", HumanCount(count).to_string());
        row("lines written to the log", self.written.lines)?;
        row("lines read by the agent", board.read)?;
        row("  = delivered", board.delivered)?;
        row("  + dropped by the filter", board.filtered)?;
        row("  + skipped, set aside, discarded, under way", parts(board) - board.delivered - board.filtered)?;
        row("records on the topic, says the consumer", seen.records)?;
        if self.filtered {
            let [first, second, third] = seen.by_version;
            row("  = kept by drop_debug", first)?;
            row("  + made by redact", second)?;
            row("  + made by redact with its second config", third)?;
            if seen.strange == 0 && seen.gone_back == 0 {
                writeln!(f, "    each by exactly one of them, and in this order")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight lines: three through drop_debug, one of them dropped; the others through redact.
    fn records() -> Vec<(u64, Version)> {
        let mut records = vec![(0, Version::AsWritten), (1, Version::AsWritten), (2, Version::AsWritten)];
        records.extend((4..6).map(|line| (line, Version::NoToken)));
        records.extend((6..8).map(|line| (line, Version::NoTokenNoUser)));
        records
    }

    fn sums(records: &[(u64, Version)]) -> Sums {
        let mut seen = Seen::default();
        records.iter().for_each(|(number, version)| seen.see(line::text(*number, *version).as_bytes()));
        Sums {
            written: Written { lines: 8, rotated_at: Some(6) },
            board: Lines { read: 8, delivered: 7, filtered: 1, ..Lines::default() },
            seen,
            ended: Finished { unfinished: 0, saved: true },
            filtered: true,
        }
    }

    #[test]
    fn sums_that_hold_say_so() {
        let sums = sums(&records());
        assert_eq!(sums.broken(), [""; 0]);
        assert_eq!(sums.sentence(), "8 lines written = 7 on the topic + 1 filtered: 0 lost, 0 repeated");
    }

    #[track_caller]
    fn assert_broken(sums: &Sums, words: &str) {
        let broken = sums.broken();
        assert!(broken.iter().any(|sum| sum.contains(words)), "{words:?} in {broken:?}");
    }

    #[test]
    fn a_lost_line_is_noticed_even_if_the_agent_counts_it_as_delivered() {
        let mut records = records();
        records.remove(1);
        let sums = sums(&records);
        assert_broken(&sums, "1 lines are lost");
        assert_broken(&sums, "records on the topic: 7 and 6");
        assert!(sums.sentence().ends_with("1 lost, 0 repeated"));
    }

    #[test]
    fn a_debug_line_that_is_missing_after_the_swap_is_lost() {
        let mut records = records();
        records.retain(|(line, _)| *line != 7);
        assert_broken(&sums(&records), "1 lines are lost");
    }

    #[test]
    fn a_repeated_a_leaked_and_a_reordered_line_are_noticed() {
        let mut repeated = records();
        repeated.push((7, Version::NoTokenNoUser));
        assert_broken(&sums(&repeated), "repeat a line");
        let mut leaked = records();
        leaked.insert(3, (3, Version::AsWritten));
        assert_broken(&sums(&leaked), "passed by the filter");
        let mut reordered = records();
        reordered.swap(0, 1);
        assert_broken(&sums(&reordered), "before an earlier line");
    }

    #[test]
    fn two_files_may_mingle_on_the_topic() {
        let mut mingled = records();
        mingled.retain(|(line, _)| *line != 5);
        mingled.push((5, Version::NoTokenNoUser));
        let mut sums = sums(&mingled);
        assert_eq!(sums.broken(), [""; 0]);
        sums.written.rotated_at = None;
        assert_broken(&sums, "before an earlier line");
    }

    #[test]
    fn a_board_that_does_not_add_up_is_noticed() {
        let mut sums = sums(&records());
        sums.board.read = 9;
        assert_broken(&sums, "written, and read by the agent: 8 and 9");
        assert_broken(&sums, "what became of them: 9 and 8");
    }
}
