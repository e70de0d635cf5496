//! Shows the lines of a chunk, and what became of them, to whoever looks.

use std::time::Instant;

use super::Pipeline;
use super::sorting::refusal;
use crate::filter::Outcome;
use crate::model::OnError;
use crate::sink::Chunk;
use crate::source::Piece;
use crate::source::lines::Lines;
use crate::tap::{After, Line, Verdict};

impl Pipeline {
    /// Offers them where somebody looks; costs one load where nobody does.
    pub(super) fn show(
        &self,
        piece: &Piece,
        chunk: &Chunk,
        lines: &Lines,
        outcome: Option<&Outcome>,
        on_error: &OnError,
        now: Instant,
    ) {
        if self.tap.is_open() {
            let passing = Passing { offset: piece.offset, read: &chunk.read, lines, outcome, on_error };
            let walk = || Walk { passing: &passing, next: 0, replaced: 0 };
            self.tap.offer(&piece.path.to_string_lossy(), lines.starts.len(), now, walk);
        }
    }
}

/// A chunk between the filter and the sink.
struct Passing<'a> {
    offset: u64,
    read: &'a [u8],
    lines: &'a Lines,
    outcome: Option<&'a Outcome>,
    on_error: &'a OnError,
}

/// Its lines, one after the other.
struct Walk<'a> {
    passing: &'a Passing<'a>,
    next: usize,
    /// Lines in the outcome's `ends` that stand for those that were passed.
    replaced: usize,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let Passing { offset, read, lines, outcome, on_error } = self.passing;
        let (start, end) = (*lines.starts.get(self.next)?, *lines.ends.get(self.next)?);
        let number = self.next as u32;
        self.next += 1;
        let verdict = outcome.map_or(1, |outcome| outcome.verdicts[number as usize]);
        let after = match outcome {
            Some(outcome) if (2..255).contains(&verdict) => {
                self.replacement(outcome, usize::from(verdict - 1))
            }
            _ => After::default(),
        };
        let too_long = lines.too_long.binary_search(&number).is_ok();
        let cause = match refusal(*outcome, number) {
            _ if too_long => ("too long", "set aside as long_line says"),
            Some(refused) => (refused.kind.as_str(), refused.message.as_str()),
            None => ("", ""),
        };
        let verdict = match verdict {
            _ if too_long => Verdict::Refused,
            0 => Verdict::Dropped,
            255 if matches!(on_error, OnError::Pass) => Verdict::Kept,
            255 => Verdict::Refused,
            1 => Verdict::Kept,
            _ => Verdict::Rewritten,
        };
        let before = &read[start as usize..end as usize];
        let offset = offset + u64::from(lines.place(number as usize).0);
        Some(Line { offset, verdict, before, after, cause })
    }
}

impl<'a> Walk<'a> {
    /// The next so many lines that the filter wrote.
    fn replacement(&mut self, outcome: &'a Outcome, count: usize) -> After<'a> {
        let first = self.replaced;
        self.replaced += count;
        let from = first.checked_sub(1).map_or(0, |before| outcome.ends[before]);
        After { bytes: &outcome.bytes, from, ends: &outcome.ends[first..self.replaced] }
    }
}
