//! Decides for each line of a chunk what becomes of it. Pure.
//!
//! In: where the lines stand, and what the filter said. Out: the records to send, in order, and
//! the lines that go another way.

use crate::filter::{Outcome, RefusedLine};
use crate::model::OnError;
use crate::sink::{Buffer, Record};
use crate::source::lines::Lines;

/// The filter drops the line.
pub(super) const DROP: u8 = 0;
/// The filter keeps the line as it is.
pub(super) const KEEP: u8 = 1;
/// The line is set aside as `on_error` says.
pub(super) const SET_ASIDE: u8 = 255;

/// What becomes of the lines of a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    /// What to send, in order.
    pub records: Vec<Record>,
    /// For each record that the filter wrote, where its line stands in what was read.
    pub sources: Vec<(u32, u32)>,
    /// Lines that have records.
    pub sent: u64,
    /// Lines the filter dropped.
    pub filtered: u64,
    /// Lines dropped because the filter failed on them.
    pub discarded: u64,
    /// Lines for the dead-letter topic.
    pub dead: Vec<u32>,
    /// Lines for the quarantine.
    pub aside: Vec<u32>,
    /// The first line that may not be passed by.
    pub held: Option<u32>,
}

/// Sorts the lines; without an outcome all are kept.
pub(super) fn sort(lines: &Lines, outcome: Option<&Outcome>, on_error: &OnError) -> Sorted {
    let mut sorted = Sorted { records: Vec::with_capacity(lines.starts.len()), ..Sorted::default() };
    match outcome {
        None => sorted.keep_all(lines),
        Some(outcome) => sorted.follow(lines, outcome, on_error),
    }
    sorted
}

/// What the filter said about a line it failed on.
pub(super) fn refusal(outcome: Option<&Outcome>, line: u32) -> Option<&RefusedLine> {
    outcome?.refused.iter().find(|refused| refused.line == line)
}

impl Sorted {
    fn keep_all(&mut self, lines: &Lines) {
        let mut too_long = lines.too_long.iter().peekable();
        for (line, (start, end)) in lines.starts.iter().zip(&lines.ends).enumerate() {
            if too_long.next_if(|long| **long == line as u32).is_some() {
                self.aside.push(line as u32);
            } else {
                self.keep(*start, *end);
                self.sent += lines.weight_of(line);
            }
        }
    }

    fn follow(&mut self, lines: &Lines, outcome: &Outcome, on_error: &OnError) {
        let mut too_long = lines.too_long.iter().peekable();
        let mut written = outcome.ends.iter();
        let mut from = 0;
        for (line, verdict) in outcome.verdicts.iter().enumerate() {
            let (Some(start), Some(end)) = (lines.starts.get(line), lines.ends.get(line)) else { return };
            let (start, end, weight, line) = (*start, *end, lines.weight_of(line), line as u32);
            let is_long = too_long.next_if(|long| **long == line).is_some();
            if *verdict > KEEP && *verdict < SET_ASIDE {
                for end_written in written.by_ref().take(usize::from(*verdict - 1)) {
                    if !is_long {
                        self.records.push(Record {
                            start: from,
                            len: end_written - from,
                            buffer: Buffer::Written,
                        });
                        self.sources.push((start, end));
                    }
                    from = *end_written;
                }
            }
            match *verdict {
                _ if is_long => self.aside.push(line),
                DROP => self.filtered += weight,
                KEEP => {
                    self.keep(start, end);
                    self.sent += weight;
                }
                SET_ASIDE => match on_error {
                    OnError::Quarantine => self.aside.push(line),
                    OnError::Pass => {
                        self.keep(start, end);
                        self.sent += weight;
                    }
                    OnError::Drop => self.discarded += weight,
                    OnError::DeadLetter(_) => self.dead.push(line),
                    OnError::Hold => {
                        self.held = Some(line);
                        return;
                    }
                },
                _ => self.sent += weight,
            }
        }
    }

    fn keep(&mut self, start: u32, end: u32) {
        self.records.push(Record { start, len: end - start, buffer: Buffer::Read });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines `aa`, `bb`, `cc`, `dd` with a newline behind each.
    fn four_lines() -> Lines {
        Lines { starts: vec![0, 3, 6, 9], ends: vec![2, 5, 8, 11], used: 12, ..Lines::default() }
    }

    fn outcome(verdicts: &[u8], ends: &[u32]) -> Outcome {
        let bytes = vec![b'x'; ends.last().copied().unwrap_or(0) as usize];
        Outcome { verdicts: verdicts.into(), bytes, ends: ends.into(), ..Outcome::default() }
    }

    #[test]
    fn kept_dropped_and_replaced_lines_keep_their_order() {
        let outcome = outcome(&[1, 0, 3, 2], &[4, 9, 10]);
        let sorted = sort(&four_lines(), Some(&outcome), &OnError::Quarantine);
        let spans: Vec<_> = sorted.records.iter().map(|r| (r.buffer, r.start, r.len)).collect();
        use Buffer::{Read, Written};
        assert_eq!(spans, [(Read, 0, 2), (Written, 0, 4), (Written, 4, 5), (Written, 9, 1)]);
        assert_eq!((sorted.sent, sorted.filtered), (3, 1));
        assert_eq!(sorted.sources, [(6, 8), (6, 8), (9, 11)]);
    }

    #[test]
    fn a_line_set_aside_goes_where_on_error_says() {
        let topic = crate::model::Topic::parse("dead").unwrap();
        let outcome = outcome(&[1, 255, 1, 1], &[]);
        let sorted = |on_error| sort(&four_lines(), Some(&outcome), &on_error);
        assert_eq!((sorted(OnError::Quarantine).aside, sorted(OnError::Quarantine).sent), (vec![1], 3));
        assert_eq!(sorted(OnError::Pass).sent, 4);
        assert_eq!((sorted(OnError::Drop).discarded, sorted(OnError::Drop).sent), (1, 3));
        assert_eq!(
            (sorted(OnError::DeadLetter(topic.clone())).dead, sorted(OnError::DeadLetter(topic)).sent),
            (vec![1], 3)
        );
        assert_eq!((sorted(OnError::Hold).held, sorted(OnError::Hold).sent), (Some(1), 1));
    }

    #[test]
    fn a_line_too_long_is_set_aside_with_and_without_a_filter() {
        let lines = Lines { too_long: vec![2], ..four_lines() };
        let outcome = outcome(&[1, 1, 2, 2], &[3, 5]);
        assert_eq!(sort(&lines, None, &OnError::Pass).aside, [2]);
        let sorted = sort(&lines, Some(&outcome), &OnError::Pass);
        assert_eq!((sorted.aside, sorted.records[2].start, sorted.sources), (vec![2], 3, vec![(9, 11)]));
    }
}
