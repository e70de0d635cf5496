//! Fuzz target: what anybody may write into a log, read in any chunking.

use std::ops::Range;

use super::lines::{Lines, NUL_RUN_MIN, Rules, Unit};
use crate::model::LongLine;

/// What became of a text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    lines: Vec<Range<usize>>,
    too_long: Vec<usize>,
    skipped: u64,
    discarded: u64,
    used: usize,
}

/// Eight bytes say how the rest, a file, is read. Its lines tile it; without holes they are what
/// [`expected`] says, whatever the chunking.
pub fn lines(input: &[u8]) {
    let Some((head, text)) = input.split_first_chunk::<8>() else { return };
    let [flags, longest, most, pieces @ ..] = head;
    let rules = Rules {
        skip_empty: flags & 1 != 0,
        line_bytes_max: 16 + usize::from(longest % 64),
        long_line: match (flags >> 1) % 3 {
            0 => LongLine::Split,
            1 => LongLine::Truncate,
            _ => LongLine::Quarantine,
        },
        unit: Unit::Byte,
    };
    let last = flags & 8 != 0;
    let lines_max = if *most == 0 { usize::MAX } else { usize::from(*most) };
    let found = feed(rules, text, pieces, lines_max, last);
    assert_tiles(rules, text, &found);
    if !text.windows(NUL_RUN_MIN).any(|run| run.iter().all(|byte| *byte == 0)) {
        assert_eq!(found, expected(rules, text, last), "{rules:?} {text:?}");
    }
}

/// Reads as a source does: what is not used up comes again, with more where that was too little.
fn feed(rules: Rules, text: &[u8], pieces: &[u8], lines_max: usize, last: bool) -> Found {
    let (mut found, mut lines) = (Found::default(), Lines::default());
    let mut pieces = pieces.iter().cycle().map(|piece| usize::from(*piece) + 1);
    let mut end = 0;
    loop {
        let at = found.used;
        end = (end.max(at) + pieces.next().unwrap_or(1)).min(text.len());
        let bytes = &text[at..end];
        rules.cut(bytes, lines_max, last && end == text.len(), &mut lines);
        assert!(lines.starts.len() <= lines_max, "{} lines, not {lines_max}", lines.starts.len());
        assert!(lines.used > 0 || bytes.len() <= rules.line_bytes_max, "stuck at {bytes:?}");
        assert_first_half(rules, bytes, &lines);
        let places = lines.starts.iter().zip(&lines.ends);
        found.lines.extend(places.map(|(start, end)| at + *start as usize..at + *end as usize));
        found.too_long.extend(lines.too_long.iter().map(|n| at + lines.starts[*n as usize] as usize));
        found.skipped += lines.skipped;
        found.discarded += lines.discarded;
        found.used += lines.used;
        if end == text.len() && lines.used == 0 {
            return found;
        }
    }
}

/// Cut again for fewer lines, as where memory is short, they are the first ones.
fn assert_first_half(rules: Rules, bytes: &[u8], lines: &Lines) {
    let half = lines.starts.len() / 2;
    if half > 0 {
        let mut again = Lines { inside: lines.began_inside, ..Lines::default() };
        rules.cut(&bytes[..lines.used], half, false, &mut again);
        assert_eq!((&again.starts[..], &again.ends[..]), (&lines.starts[..half], &lines.ends[..half]));
    }
}

/// Every byte used is in one line, or in what may be left out between two.
fn assert_tiles(rules: Rules, text: &[u8], found: &Found) {
    let (mut at, mut after_long) = (0, false);
    let end = end_of_hole(text, found);
    let end = end..end;
    for line in found.lines.iter().chain([&end]) {
        assert!(at <= line.start && line.start <= line.end && line.end <= end.end, "{found:?}");
        assert!(line.len() <= rules.line_bytes_max, "{line:?} is too long");
        assert!(
            may_be_left_out(rules, &text[at..line.start], after_long),
            "{:?} is lost",
            &text[at..line.start]
        );
        after_long = rules.long_line != LongLine::Split && line.len() == rules.line_bytes_max;
        at = line.end;
    }
}

/// Where what was used up ends; of a hole that may go on, what it is known by is not used up yet.
fn end_of_hole(text: &[u8], found: &Found) -> usize {
    let begun = found.lines.last().is_none_or(|line| line.end < found.used);
    let in_hole = begun && text[..found.used].ends_with(b"\0");
    let zeros = text[found.used..].iter().take_while(|byte| **byte == 0);
    found.used + if in_hole { zeros.count() } else { 0 }
}

/// Newlines, empty lines, holes, and the rest of a line that was too long.
fn may_be_left_out(rules: Rules, gap: &[u8], after_long: bool) -> bool {
    let empty = |part: &[u8]| part.is_empty() || (rules.skip_empty && part == b"\r");
    let without_holes = |line: &[u8]| {
        let mut parts = Vec::new();
        for run in line.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            if run[0] != 0 || run.len() < NUL_RUN_MIN {
                parts.push(run.to_vec());
            }
        }
        parts
    };
    let mut lines = gap.split(|byte| *byte == b'\n');
    if after_long {
        lines.next();
    }
    lines.all(|line| without_holes(line).iter().all(|part| empty(part)))
}

/// The plain way: all of the text at once, line by line.
fn expected(rules: Rules, text: &[u8], last: bool) -> Found {
    let (mut found, max) = (Found::default(), rules.line_bytes_max);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let mut start = found.used;
        let whole = line.ends_with(b"\n");
        let end = start + line.len() - usize::from(whole);
        if rules.long_line == LongLine::Split {
            while end - start > max {
                found.lines.push(start..start + max);
                start += max;
            }
        }
        found.used = start;
        if end - start > max {
            if rules.long_line == LongLine::Quarantine {
                found.too_long.push(start);
            }
            found.lines.push(start..start + max);
            found.discarded += 1;
        } else if !whole && !last {
            break;
        } else if rules.skip_empty && matches!(&text[start..end], b"" | b"\r") {
            found.skipped += u64::from(whole || end > start);
        } else if whole || end > start {
            found.lines.push(start..end);
        }
        found.used = end + usize::from(whole);
    }
    found
}
