//! Lines that stand together as one record, and that record taken apart again. Pure.
//!
//! In: the records of a chunk, one a line. Out: fewer of them, each with lines that follow one another
//! in the file, a newline between them. Where the filter rewrote none of these, that is a slice of what
//! was read. No line has a newline in it, so that each record can be taken apart.

use super::sorting::Sorted;
use crate::sink::{Buffer, Chunk, Failed, Record};

/// Where a line stands in what was read.
type Place = (u32, u32);

/// Packs the records of `chunk` into ones of up to `most` bytes. A longer line stays alone.
pub(super) fn pack(chunk: &mut Chunk, sorted: &mut Sorted, most: u32) {
    let lines = std::mem::take(&mut sorted.records);
    let mut packed = Packed::default();
    let mut sources = sorted.sources.iter();
    let mut run: Option<Run> = None;
    for (at, line) in lines.iter().enumerate() {
        let place = match line.buffer {
            Buffer::Read => (line.start, line.start + line.len),
            Buffer::Written => sources.next().copied().unwrap_or_default(),
        };
        match &mut run {
            Some(run) if run.takes(line, place, most) => run.add(line, place),
            _ => {
                if let Some(run) = run.replace(Run::of(at, line, place)) {
                    packed.close(run, &lines[..at], chunk);
                }
            }
        }
        if let Some(run) = run.as_mut().filter(|_| line.buffer == Buffer::Written) {
            run.sources.push(place);
        }
    }
    if let Some(run) = run {
        packed.close(run, &lines, chunk);
    }
    (sorted.records, sorted.sources, chunk.written) = (packed.records, packed.sources, packed.written);
}

/// Lines that become one record.
struct Run {
    /// The first one's number.
    at: usize,
    bytes: u32,
    first: Place,
    last: Place,
    /// Where those come from that the filter wrote.
    sources: Vec<Place>,
}

impl Run {
    fn of(at: usize, line: &Record, place: Place) -> Self {
        Self { at, bytes: line.len, first: place, last: place, sources: Vec::new() }
    }

    /// Whether a line follows the last one, or is written for the same one, and still fits.
    fn takes(&self, line: &Record, place: Place, most: u32) -> bool {
        let follows = place.0 == self.last.1 + 1 || place == self.last;
        follows && self.bytes + 1 + line.len <= most
    }

    fn add(&mut self, line: &Record, place: Place) {
        self.bytes += 1 + line.len;
        self.last = place;
    }
}

#[derive(Default)]
struct Packed {
    records: Vec<Record>,
    /// The records in which there is something that the filter wrote, and where their lines come from.
    written: Vec<u8>,
    sources: Vec<Place>,
}

impl Packed {
    /// `lines` end with the last one of the run.
    fn close(&mut self, run: Run, lines: &[Record], chunk: &Chunk) {
        if run.sources.is_empty() {
            let (start, end) = (run.first.0, run.last.1);
            return self.records.push(Record { start, len: end - start, buffer: Buffer::Read });
        }
        let (start, mut sources) = (self.written.len(), run.sources.iter());
        for (i, line) in lines[run.at..].iter().enumerate() {
            if i > 0 {
                self.written.push(b'\n');
            }
            self.written.extend_from_slice(chunk.bytes(line));
            self.sources.push(match line.buffer {
                Buffer::Read => (line.start, line.start + line.len),
                Buffer::Written => sources.next().copied().unwrap_or_default(),
            });
        }
        let len = (self.written.len() - start) as u32;
        self.records.push(Record { start: start as u32, len, buffer: Buffer::Written });
    }
}

/// Makes each record of a chunk one of a line again, and of what failed the lines that did.
pub(super) fn take_apart(chunk: &mut Chunk, failed: &[Failed]) -> Vec<Failed> {
    let packed = std::mem::take(&mut chunk.records);
    let mut failed = failed.iter().peekable();
    let (mut lines, mut lines_failed) = (Vec::new(), Vec::new());
    for (i, record) in packed.iter().enumerate() {
        let why = failed.next_if(|failed| failed.record == i as u32);
        let mut start = record.start;
        for line in chunk.bytes(record).split(|byte| *byte == b'\n') {
            lines_failed.extend(why.map(|why| Failed { record: lines.len() as u32, ..why.clone() }));
            let len = line.len() as u32;
            lines.push(Record { start, len, buffer: record.buffer });
            start += len + 1;
        }
    }
    chunk.records = lines;
    lines_failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Outcome;
    use crate::model::OnError;
    use crate::pipeline::sorting::sort;
    use crate::sink::Refusal;
    use crate::source::lines::Lines;

    /// The lines of `text`, an empty one left out, with these verdicts and replacements.
    fn packed(text: &str, verdicts: &[u8], new: &[&str], most: u32) -> (Chunk, Sorted) {
        let mut lines = Lines::default();
        let mut start = 0;
        for line in text.split_terminator('\n') {
            if !line.is_empty() {
                lines.starts.push(start);
                lines.ends.push(start + line.len() as u32);
            }
            start += line.len() as u32 + 1;
        }
        let ends = new
            .iter()
            .scan(0, |end, line| {
                *end += line.len() as u32;
                Some(*end)
            })
            .collect();
        let outcome =
            Outcome { verdicts: verdicts.into(), bytes: new.concat().into(), ends, ..Outcome::default() };
        let outcome = (!verdicts.is_empty()).then_some(outcome);
        let mut sorted = sort(&lines, outcome.as_ref(), &OnError::Quarantine);
        let written = outcome.map(|outcome| outcome.bytes).unwrap_or_default();
        let mut chunk = Chunk { read: text.into(), written, ..Chunk::default() };
        pack(&mut chunk, &mut sorted, most);
        chunk.records = sorted.records.clone();
        (chunk, sorted)
    }

    fn texts(chunk: &Chunk) -> Vec<&str> {
        chunk.records.iter().map(|record| std::str::from_utf8(chunk.bytes(record)).unwrap()).collect()
    }

    #[test]
    fn kept_lines_are_a_slice_of_what_was_read_up_to_the_size() {
        let (chunk, sorted) = packed("a\nbb\nccc\ndddddddddddd\ne\n\nf\n", &[], &[], 8);
        assert_eq!(texts(&chunk), ["a\nbb\nccc", "dddddddddddd", "e", "f"]);
        assert!(chunk.records.iter().all(|record| record.buffer == Buffer::Read));
        assert_eq!((sorted.sent, chunk.written.len()), (6, 0));
    }

    #[test]
    fn a_dropped_line_ends_a_record_and_replaced_ones_are_copied() {
        let verdicts = [1, 1, 0, 1, 3, 1, 0, 1, 2];
        let (chunk, sorted) = packed("a\nb\nc\nd\ne\nf\ng\nh\ni\n", &verdicts, &["E1", "", "I"], 100);
        assert_eq!(texts(&chunk), ["a\nb", "d\nE1\n\nf", "h\nI"]);
        assert_eq!(chunk.records[0].buffer, Buffer::Read);
        assert_eq!(sorted.sources, [(6, 7), (8, 9), (8, 9), (10, 11), (14, 15), (16, 17)]);
        assert_eq!((sorted.sent, sorted.filtered), (7, 2));
    }

    #[test]
    fn a_record_is_taken_apart_into_its_lines() {
        let (mut chunk, _) = packed("a\nb\nc\nd\ne\n", &[1, 1, 0, 1, 3], &["E", ""], 100);
        let failed = Failed { record: 1, why: Refusal::Record, code: "CODE".into() };
        let failed = take_apart(&mut chunk, &[failed]);
        assert_eq!(texts(&chunk), ["a", "b", "d", "E", ""]);
        assert_eq!(failed.iter().map(|failed| failed.record).collect::<Vec<_>>(), [2, 3, 4]);
    }
}
