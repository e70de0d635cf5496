//! Checks what a guest hands back against the batch it was given. Pure.
//!
//! Whoever passes the check can be indexed without looking: every verdict's replacement lines are
//! there, in order, within the bytes.

use super::Batch;

const KEEP: u8 = 1;
/// Set aside by the guest.
pub(super) const SET_ASIDE: u8 = 255;

/// What output may have beside the fourfold of its input, for each line: an envelope around short
/// lines. Bytes.
const OUTPUT_BYTES_PER_LINE: usize = 1024;
/// How much longer than its input output may be beside that.
const OUTPUT_RATIO: usize = 4;
/// The most output for one batch, whatever its lines. Bytes.
pub(super) const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most lines that may stand for the lines of one batch. Each becomes a record, which costs memory
/// beside its bytes; a filter that makes more has its batch taken in parts.
pub(super) const OUTPUT_LINES_MAX: usize = 65_536;

/// What output may still have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) bytes: usize,
    pub(super) lines: usize,
}

impl Room {
    /// For a batch of which there is no output yet.
    pub(super) const WHOLE: Self = Self { bytes: OUTPUT_BYTES_MAX, lines: OUTPUT_LINES_MAX };

    /// What is left of it beside so much.
    pub(super) fn beside(bytes: usize, lines: usize) -> Self {
        Self {
            bytes: Self::WHOLE.bytes.saturating_sub(bytes),
            lines: Self::WHOLE.lines.saturating_sub(lines),
        }
    }
}

/// The most bytes a filter may hand back for `lines` lines of `bytes` bytes in all.
pub fn output_bytes_max(lines: usize, bytes: usize) -> usize {
    OUTPUT_BYTES_MAX.min(OUTPUT_RATIO * bytes + OUTPUT_BYTES_PER_LINE * lines)
}

/// What a guest handed back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) verdicts: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<u32>,
}

/// What is wrong with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadOutput {
    #[error("{verdicts} verdicts for {lines} lines")]
    Verdicts { verdicts: usize, lines: usize },
    #[error("the verdicts speak of {promised} replacement lines, and there are {given}")]
    Replacements { promised: usize, given: usize },
    #[error("replacement line {line} ends at {end}, behind the {bytes} bytes or before the line before it")]
    End { line: usize, end: u32, bytes: usize },
    #[error("{bytes} bytes of output end no line")]
    Trailing { bytes: usize },
    #[error("{bytes} bytes of output; for this batch {max} are taken")]
    Size { bytes: usize, max: usize },
    #[error("{given} replacement lines; for a batch {max} are taken")]
    Lines { given: usize, max: usize },
    #[error("a newline in replacement line {line}")]
    Newline { line: usize },
}

/// How many lines stand for one with this verdict.
pub fn replacements(verdict: u8) -> usize {
    match verdict {
        0 | KEEP | SET_ASIDE => 0,
        lines => usize::from(lines) - 1,
    }
}

impl BadOutput {
    /// Whether there is merely too much of it.
    pub(super) fn is_size(&self) -> bool {
        matches!(self, Self::Size { .. } | Self::Lines { .. })
    }
}

/// Whether `output` fits `batch`, and into `room`.
pub(super) fn check(batch: &Batch<'_>, output: &Output, room: Room) -> Result<(), BadOutput> {
    let Output { verdicts, bytes, ends } = output;
    let lines = batch.starts.len();
    if verdicts.len() != lines {
        return Err(BadOutput::Verdicts { verdicts: verdicts.len(), lines });
    }
    let promised = verdicts.iter().map(|verdict| replacements(*verdict)).sum();
    if ends.len() != promised {
        return Err(BadOutput::Replacements { promised, given: ends.len() });
    }
    if ends.len() > room.lines {
        return Err(BadOutput::Lines { given: ends.len(), max: room.lines });
    }
    let max = output_bytes_max(lines, batch.bytes.len()).min(room.bytes);
    if bytes.len() > max {
        return Err(BadOutput::Size { bytes: bytes.len(), max });
    }
    let mut start = 0;
    for (line, &end) in ends.iter().enumerate() {
        if end < start || end as usize > bytes.len() {
            return Err(BadOutput::End { line, end, bytes: bytes.len() });
        }
        start = end;
    }
    if start as usize != bytes.len() {
        return Err(BadOutput::Trailing { bytes: bytes.len() - start as usize });
    }
    if memchr::memchr(b'\n', bytes).is_some() { check_newlines(batch, output) } else { Ok(()) }
}

/// A newline may stand only in what replaces a line that has one itself (joined by `multiline`).
fn check_newlines(batch: &Batch<'_>, output: &Output) -> Result<(), BadOutput> {
    let mut ends = output.ends.iter().enumerate();
    let mut start = 0;
    for (line, verdict) in output.verdicts.iter().enumerate() {
        let source = batch.bytes.get(batch.starts[line] as usize..batch.ends[line] as usize);
        let joined = source.is_some_and(|source| source.contains(&b'\n'));
        for (line, &end) in ends.by_ref().take(replacements(*verdict)) {
            if !joined && output.bytes[start as usize..end as usize].contains(&b'\n') {
                return Err(BadOutput::Newline { line });
            }
            start = end;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: &[u8] = b"one\ntwo\nth\nree\n";

    /// The last of the three lines has a newline in it.
    fn batch() -> Batch<'static> {
        Batch { path: "p", offset: 0, unix_ms: 0, bytes: BYTES, starts: &[0, 4, 8], ends: &[3, 7, 14] }
    }

    fn checked(verdicts: &[u8], bytes: &[u8], ends: &[u32]) -> Result<(), BadOutput> {
        let output = Output { verdicts: verdicts.into(), bytes: bytes.into(), ends: ends.into() };
        check(&batch(), &output, Room::WHOLE)
    }

    #[test]
    fn every_verdict_is_taken_with_what_it_promises() {
        checked(&[1, 1, 1], b"", &[]).unwrap();
        checked(&[0, 255, 3], b"ab", &[1, 2]).unwrap();
        checked(&[2, 2, 2], b"", &[0, 0, 0]).unwrap();
        let many: Vec<u32> = vec![0; 253];
        checked(&[254, 0, 0], b"", &many).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(checked(&[1, 1], b"", &[]), Err(BadOutput::Verdicts { .. })));
        assert!(matches!(checked(&[1, 1, 1, 1], b"", &[]), Err(BadOutput::Verdicts { .. })));
        assert!(matches!(checked(&[1, 1, 2], b"", &[]), Err(BadOutput::Replacements { .. })));
        assert!(matches!(checked(&[1, 1, 1], b"", &[0]), Err(BadOutput::Replacements { .. })));
        assert!(matches!(checked(&[1, 1, 2], b"x", &[2]), Err(BadOutput::End { .. })));
        assert!(matches!(checked(&[1, 1, 3], b"xx", &[2, 1]), Err(BadOutput::End { .. })));
        assert!(matches!(checked(&[1, 1, 2], b"xx", &[1]), Err(BadOutput::Trailing { bytes: 1 })));
        assert!(matches!(checked(&[1, 1, 1], b"x", &[]), Err(BadOutput::Trailing { .. })));
        let max = output_bytes_max(3, BYTES.len());
        checked(&[1, 1, 2], &vec![b'x'; max], &[max as u32]).unwrap();
        let long = vec![b'x'; max + 1];
        assert!(matches!(checked(&[1, 1, 2], &long, &[max as u32 + 1]), Err(BadOutput::Size { .. })));
        let three = Output { verdicts: vec![0, 0, 4], bytes: Vec::new(), ends: vec![0; 3] };
        check(&batch(), &three, Room { lines: 3, ..Room::WHOLE }).unwrap();
        let bad = check(&batch(), &three, Room { lines: 2, ..Room::WHOLE }).unwrap_err();
        assert!(matches!(bad, BadOutput::Lines { given: 3, max: 2 }) && bad.is_size());
    }

    #[test]
    fn a_newline_is_taken_only_where_the_line_had_one() {
        checked(&[2, 1, 2], b"ab\nc", &[1, 4]).unwrap();
        assert_eq!(checked(&[2, 1, 2], b"a\nbc", &[2, 4]), Err(BadOutput::Newline { line: 0 }));
        assert_eq!(checked(&[1, 3, 1], b"a\n", &[1, 2]), Err(BadOutput::Newline { line: 1 }));
    }

    proptest! {
        /// Whatever passes can be walked without a bounds check failing, and nothing is left over.
        #[test]
        fn what_passes_can_be_walked(
            verdicts in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(255), any::<u8>()], 2..5),
            bytes in prop::collection::vec(prop_oneof![9 => Just(b'x'), 1 => Just(b'\n')], 0..12),
            ends in prop::collection::vec(0u32..14, 0..6),
            mended in any::<bool>(),
        ) {
            let mut output = Output { verdicts, bytes, ends };
            if mended {
                // Most random outputs fail: mend what can be, so that some pass.
                let promised = output.verdicts.iter().map(|v| replacements(*v)).sum();
                output.ends.resize(promised, 0);
                output.ends.sort_unstable();
                output.bytes.resize(output.ends.last().map_or(0, |end| *end as usize), b'x');
            }
            if check(&batch(), &output, Room::WHOLE).is_ok() {
                prop_assert_eq!(output.verdicts.len(), 3);
                let (mut start, mut ends) = (0, output.ends.iter());
                for (i, verdict) in output.verdicts.iter().enumerate() {
                    for _ in 0..replacements(*verdict) {
                        let end = *ends.next().unwrap() as usize;
                        let line = &output.bytes[start..end];
                        prop_assert!(i == 2 || !line.contains(&b'\n'));
                        start = end;
                    }
                }
                prop_assert!(ends.next().is_none() && start == output.bytes.len());
            }
        }
    }
}
