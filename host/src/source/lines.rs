//! Cuts bytes into lines. Pure: no file is touched.
//!
//! In: bytes that begin where a line begins (or inside a long one), in any chunking. Out: where
//! the lines stand, and how many bytes are used up; an unfinished line is left for the next time.
//! Absent by design: what the bytes mean (see `records`), but for how a newline is written.

use memchr::memmem;
use memchr::{memchr, memchr_iter, memchr2_iter, memrchr_iter};

use crate::model::LongLine;

/// So many NULs in a row are no text: a crash or a sparse copytruncate left a hole. Fewer are
/// passed through, as any byte is.
pub const NUL_RUN_MIN: usize = 16;

/// What an entry says about its lines.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Leave out lines that are empty, a `\r` aside.
    pub skip_empty: bool,
    /// The longest line. Bytes.
    pub line_bytes_max: usize,
    /// What happens to a longer one.
    pub long_line: LongLine,
    /// How the newlines are written.
    pub unit: Unit,
}

/// The bytes that make a character, as far as newlines go. A piece begins where a unit begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// One at a time: a newline is the byte 10, and is part of nothing else.
    #[default]
    Byte,
    /// Pairs, the lower one first.
    Utf16Le,
    /// Pairs, the higher one first.
    Utf16Be,
}

impl Unit {
    /// Bytes of one.
    pub fn width(self) -> usize {
        if self == Self::Byte { 1 } else { 2 }
    }

    /// Where the newline begins that has the byte 10 at `at`, if it is one.
    fn newline(self, bytes: &[u8], at: usize) -> Option<usize> {
        match self {
            Self::Byte => Some(at),
            Self::Utf16Le => (at.is_multiple_of(2) && bytes.get(at + 1) == Some(&0)).then_some(at),
            Self::Utf16Be => (!at.is_multiple_of(2) && bytes[at - 1] == 0).then(|| at - 1),
        }
    }

    fn first_newline(self, bytes: &[u8], from: usize) -> Option<usize> {
        memchr_iter(b'\n', &bytes[from..]).find_map(|at| self.newline(bytes, from + at))
    }

    /// Just past the last newline of `bytes`, which stand at `offset` in their file.
    pub fn last_line_end(self, bytes: &[u8], offset: u64) -> Option<usize> {
        let odd = (offset % self.width() as u64) as usize;
        let bytes = bytes.get(odd..)?;
        let newline = memrchr_iter(b'\n', bytes).find_map(|at| self.newline(bytes, at))?;
        Some(odd + newline + self.width())
    }

    /// Whether a NUL is a character, not a part of one.
    fn is_nul_alone(self) -> bool {
        self == Self::Byte
    }

    /// Whether `bytes` end in a run of NUL.
    pub fn ends_hole(self, bytes: &[u8]) -> bool {
        match self {
            // Fewer of them stand here only at the end of a hole that was read in pieces.
            Self::Byte => bytes.ends_with(&[0]),
            _ => bytes.ends_with(&[0; NUL_RUN_MIN]),
        }
    }

    /// Nothing, or a `\r`.
    fn is_empty(self, line: &[u8]) -> bool {
        let cr: &[u8] = match self {
            Self::Byte => b"\r",
            Self::Utf16Le => b"\r\0",
            Self::Utf16Be => b"\0\r",
        };
        line.is_empty() || line == cr
    }
}

/// The lines found. Reused from chunk to chunk.
#[derive(Debug, Default)]
pub struct Lines {
    /// First byte of each line.
    pub starts: Vec<u32>,
    /// Just past the last byte of each line, its newline not included.
    pub ends: Vec<u32>,
    /// Of `starts`, those whose line goes to quarantine because it is too long.
    pub too_long: Vec<u32>,
    /// Where they stand in what was read, where that is another place: of lines that were transcoded.
    pub places: Vec<(u32, u32)>,
    /// How many lines of the source each is, where that is not one: of lines that were joined.
    pub weights: Vec<u32>,
    /// Bytes used up, of what was read.
    pub used: usize,
    /// Empty lines left out.
    pub skipped: u64,
    /// NUL runs, and the rests of long lines.
    pub discarded: u64,
    /// Of those, the NUL runs.
    pub holes: u64,
    /// Behind how many lines each of `discarded` stands, and whether it is a NUL run.
    pub gaps: Vec<(u32, bool)>,
    /// Sequences that mean no character.
    pub malformed: u64,
    /// Lines are left because more of their record may follow.
    pub open: bool,
    /// What was read, where the lines stand in a transcoded copy.
    pub raw: Option<Vec<u8>>,
    /// The last byte used stands inside a line whose rest is to be discarded.
    pub inside: bool,
    /// And so did the byte before the first.
    pub began_inside: bool,
}

impl Lines {
    /// How many lines of the source this is.
    pub fn read(&self) -> u64 {
        let joined = self.weights.iter().map(|weight| u64::from(*weight) - 1).sum::<u64>();
        self.starts.len() as u64 + joined + self.skipped + self.discarded
    }

    /// How many lines of the source these are.
    pub fn weight(&self, lines: &[u32]) -> u64 {
        lines.iter().map(|line| self.weight_of(*line as usize)).sum()
    }

    /// How many lines of the source this one is.
    pub fn weight_of(&self, line: usize) -> u64 {
        self.weights.get(line).map_or(1, |weight| u64::from(*weight))
    }

    /// Where a line stands in what was read.
    pub fn place(&self, line: usize) -> (u32, u32) {
        self.places.get(line).copied().unwrap_or_else(|| (self.starts[line], self.ends[line]))
    }

    /// How many bytes hold the lines.
    pub fn span(&self) -> usize {
        if self.raw.is_some() { self.ends.last().map_or(0, |end| *end as usize) } else { self.used }
    }

    fn clear(&mut self) {
        self.starts.clear();
        self.ends.clear();
        self.too_long.clear();
        self.places.clear();
        self.weights.clear();
        self.gaps.clear();
        (self.used, self.skipped, self.discarded, self.holes, self.malformed) = (0, 0, 0, 0, 0);
        (self.open, self.raw) = (false, None);
    }

    fn discard(&mut self, is_hole: bool) {
        self.discarded += 1;
        self.holes += u64::from(is_hole);
        self.gaps.push((self.starts.len() as u32, is_hole));
    }
}

impl Rules {
    /// Cuts `bytes` into at most `lines_max` lines. `inside` in `lines` says whether they begin in
    /// the rest of a long line; `last` that no more bytes will come, so that an unfinished line is
    /// a line.
    pub fn cut(&self, bytes: &[u8], lines_max: usize, last: bool, lines: &mut Lines) {
        lines.clear();
        lines.began_inside = lines.inside;
        // Half a unit is none, but at the end of the file.
        let odd = if last { 0 } else { bytes.len() % self.unit.width() };
        let bytes = &bytes[..bytes.len() - odd];
        if lines.inside && !self.skip_rest(bytes, lines) {
            return;
        }
        let in_hole =
            self.cut_text(bytes, lines_max, lines) && self.cut_with_holes(bytes, lines_max, last, lines);
        if !in_hole && lines.starts.len() < lines_max {
            self.end(bytes, lines_max, last, lines);
        }
    }

    /// Lines up to where a run of NUL may begin. Whether one may.
    fn cut_text(&self, bytes: &[u8], lines_max: usize, lines: &mut Lines) -> bool {
        let base = lines.used;
        if !self.unit.is_nul_alone() && memmem::find(&bytes[base..], &[0; NUL_RUN_MIN]).is_some() {
            return true;
        }
        // One search for both: NULs are very rare, and two searches take longer.
        let nul = if self.unit.is_nul_alone() { 0 } else { b'\n' };
        for at in memchr2_iter(b'\n', nul, &bytes[base..]).map(|at| base + at) {
            if bytes[at] != b'\n' {
                return true;
            }
            let Some(end) = self.unit.newline(bytes, at) else { continue };
            if lines.starts.len() >= lines_max || !self.line(bytes, lines.used, end, lines_max, lines) {
                return false;
            }
            lines.used = end + self.unit.width();
        }
        false
    }

    /// As `cut_text`, where long runs of NUL end a line too. Returns whether the bytes end in one
    /// that may go on: then so much of it is left that it is known by.
    fn cut_with_holes(&self, bytes: &[u8], lines_max: usize, last: bool, lines: &mut Lines) -> bool {
        while lines.starts.len() < lines_max {
            let start = lines.used;
            let newline = self.unit.first_newline(bytes, start);
            let text = newline.unwrap_or(bytes.len());
            if let Some((hole, after)) = self.find_hole(bytes, start, text) {
                if hole > start && !self.line(bytes, start, hole, lines_max, lines) {
                    return false;
                }
                if after == bytes.len() && !last {
                    lines.used = after - NUL_RUN_MIN;
                    return true;
                }
                lines.discard(true);
                lines.used = if newline == Some(after) { after + self.unit.width() } else { after };
            } else if let Some(end) = newline {
                if !self.line(bytes, start, end, lines_max, lines) {
                    return false;
                }
                lines.used = end + self.unit.width();
            } else {
                return false;
            }
        }
        false
    }

    /// One line that has an end, and room for its first piece. Whether there was room for all of it:
    /// if not, what is left begins the next time.
    fn line(&self, bytes: &[u8], start: usize, end: usize, lines_max: usize, lines: &mut Lines) -> bool {
        lines.used = start;
        // Most lines are neither long nor perhaps empty.
        if end - start > self.unit.width() && end - start <= self.line_bytes_max {
            lines.push(start, end);
            return true;
        }
        if self.long_line == LongLine::Split {
            self.split(end, lines_max, lines);
            if lines.starts.len() >= lines_max {
                return false;
            }
        }
        let start = lines.used;
        if self.skip_empty && self.unit.is_empty(&bytes[start..end]) {
            lines.skipped += 1;
        } else if end - start <= self.line_bytes_max {
            lines.push(start, end);
        } else {
            self.beginning(start, lines);
        }
        true
    }

    /// The pieces of a long line but its last one, as many as there is room for.
    fn split(&self, end: usize, lines_max: usize, lines: &mut Lines) {
        while end - lines.used > self.line_bytes_max && lines.starts.len() < lines_max {
            lines.push(lines.used, lines.used + self.line_bytes_max);
            lines.used += self.line_bytes_max;
        }
    }

    /// What is behind the last newline.
    fn end(&self, bytes: &[u8], lines_max: usize, last: bool, lines: &mut Lines) {
        let rest = bytes.len() - lines.used;
        if last && rest > 0 {
            if self.line(bytes, lines.used, bytes.len(), lines_max, lines) {
                lines.used = bytes.len();
            }
        } else if rest > self.line_bytes_max {
            if self.long_line == LongLine::Split {
                self.split(bytes.len(), lines_max, lines);
            } else {
                self.beginning(lines.used, lines);
                lines.used = bytes.len();
                lines.inside = true;
            }
        }
    }

    fn beginning(&self, start: usize, lines: &mut Lines) {
        if self.long_line == LongLine::Quarantine {
            lines.too_long.push(lines.starts.len() as u32);
        }
        lines.push(start, start + self.line_bytes_max);
        lines.discard(false);
    }

    /// Whether the rest of the long line ends in `bytes`.
    fn skip_rest(&self, bytes: &[u8], lines: &mut Lines) -> bool {
        let newline = self.unit.first_newline(bytes, 0);
        lines.used = newline.map_or(bytes.len(), |at| at + self.unit.width());
        lines.inside = newline.is_none();
        newline.is_some()
    }

    /// The first run of at least `NUL_RUN_MIN` NULs between `from` and `to`, in whole units.
    fn find_hole(&self, bytes: &[u8], from: usize, to: usize) -> Option<(usize, usize)> {
        let width = self.unit.width();
        let mut at = from;
        while let Some(found) = memchr(0, &bytes[at..to]) {
            let first = at + found;
            let after = bytes[first..to].iter().position(|byte| *byte != 0).map_or(to, |n| first + n);
            let (hole, end) = (first.next_multiple_of(width), after - after % width);
            if end >= hole + NUL_RUN_MIN {
                return Some((hole, end));
            }
            at = after;
        }
        None
    }
}

impl Lines {
    /// They stand `by` bytes further on.
    pub fn move_by(&mut self, by: usize) {
        if by > 0 && self.used > 0 {
            self.starts.iter_mut().chain(&mut self.ends).for_each(|at| *at += by as u32);
            self.used += by;
        }
    }

    fn push(&mut self, start: usize, end: usize) {
        self.starts.push(start as u32);
        self.ends.push(end as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules =
        Rules { skip_empty: true, line_bytes_max: 8, long_line: LongLine::Split, unit: Unit::Byte };

    /// Feeds `bytes` in pieces as a reader would: what is not used up comes again with more.
    fn feed(rules: Rules, bytes: &[u8], piece: usize, last: bool) -> (Vec<Vec<u8>>, u64, u64, usize) {
        let (mut found, mut skipped, mut discarded) = (Vec::new(), 0, 0);
        let (mut at, mut end, mut lines) = (0, 0, Lines::default());
        loop {
            end = (end.max(at) + piece).min(bytes.len());
            let ending = last && end == bytes.len();
            rules.cut(&bytes[at..end], usize::MAX, ending, &mut lines);
            found.extend(
                lines
                    .starts
                    .iter()
                    .zip(&lines.ends)
                    .map(|(s, e)| bytes[at..end][*s as usize..*e as usize].to_vec()),
            );
            skipped += lines.skipped;
            discarded += lines.discarded;
            at += lines.used;
            if end == bytes.len() && lines.used == 0 {
                return (found, skipped, discarded, at);
            }
        }
    }

    fn texts(found: &[Vec<u8>]) -> Vec<&str> {
        found.iter().map(|line| std::str::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn an_unfinished_line_is_held_until_the_file_ends() {
        let (found, .., used) = feed(RULES, b"one\ntwo\nthr", 3, false);
        assert_eq!((texts(&found), used), (vec!["one", "two"], 8));
        let (found, .., used) = feed(RULES, b"one\ntwo\nthr", 3, true);
        assert_eq!((texts(&found), used), (vec!["one", "two", "thr"], 11));
    }

    #[test]
    fn a_carriage_return_stays_and_an_empty_line_is_skipped() {
        let (found, skipped, ..) = feed(RULES, b"a\r\n\r\n\nb\n", 100, false);
        assert_eq!((texts(&found), skipped), (vec!["a\r", "b"], 2));
        let keep = Rules { skip_empty: false, ..RULES };
        assert_eq!(texts(&feed(keep, b"a\r\n\r\n\nb\n", 100, false).0), ["a\r", "\r", "", "b"]);
    }

    #[test]
    fn a_long_line_is_split_truncated_or_set_aside() {
        let text = b"0123456789abcdefXY\nnext\n";
        for piece in [1, 5, 100] {
            assert_eq!(texts(&feed(RULES, text, piece, false).0), ["01234567", "89abcdef", "XY", "next"]);
            let truncate = Rules { long_line: LongLine::Truncate, ..RULES };
            let (found, _, discarded, _) = feed(truncate, text, piece, false);
            assert_eq!((texts(&found), discarded), (vec!["01234567", "next"], 1));
        }
        let mut lines = Lines::default();
        Rules { long_line: LongLine::Quarantine, ..RULES }.cut(text, 100, false, &mut lines);
        assert_eq!((lines.too_long.as_slice(), lines.discarded, lines.starts.len()), (&[0][..], 1, 2));
    }

    #[test]
    fn a_run_of_nul_is_discarded_and_ends_the_line_before_it() {
        let mut text = b"be".to_vec();
        text.extend([0; 40]);
        text.extend(b"fore\n\0x\n");
        let (found, _, discarded, _) = feed(RULES, &text, 100, false);
        assert_eq!((texts(&found), discarded), (vec!["be", "fore", "\0x"], 1));
    }

    #[test]
    fn a_run_of_nul_is_one_however_it_is_read() {
        let mut text = b"before\n".to_vec();
        text.extend([0; 1000]);
        text.extend(b"after\n");
        let rules = Rules { line_bytes_max: 100, ..RULES };
        for piece in [17, 20, 64, 100, 333, 2000] {
            let (found, _, discarded, used) = feed(rules, &text, piece, false);
            assert_eq!((texts(&found), discarded, used), (vec!["before", "after"], 1, text.len()), "{piece}");
        }
        let (found, _, discarded, used) = feed(RULES, &text[..1007], 64, true);
        assert_eq!((texts(&found), discarded, used), (vec!["before"], 1, 1007));
    }

    #[test]
    fn no_more_lines_than_asked_for() {
        let mut lines = Lines::default();
        RULES.cut(b"a\nb\nc\n", 2, false, &mut lines);
        assert_eq!((lines.starts.len(), lines.used), (2, 4));
    }

    #[test]
    fn no_more_pieces_of_a_long_line_than_asked_for() {
        let text = b"0123456789abcdefghijklmnop\nnext\n";
        let mut lines = Lines::default();
        for (most, used) in [(1, 8), (2, 16), (3, 24), (4, 27), (5, 32)] {
            for text in [&text[..], &text[..26]].iter().take(if most < 4 { 2 } else { 1 }) {
                RULES.cut(text, most, false, &mut lines);
                assert_eq!((lines.starts.len(), lines.used), (most, used));
            }
        }
    }

    /// Words, newlines, any bytes, and here and there a hole. Holes stand between lines that are
    /// not too long: within a longer one a hole may be seen too late.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => Just(b"\n".to_vec()),
            1 => Just(b"\r\n".to_vec()),
            6 => proptest::collection::vec(1u8.., 1..20),
            1 => Just(vec![b'x'; 70]),
            1 => Just(vec![0; NUL_RUN_MIN - 1]).prop_map(|mut few| { few.push(b'n'); few }),
            1 => (NUL_RUN_MIN..100).prop_map(|n| { let mut hole = vec![b'\n']; hole.resize(n + 1, 0); hole }),
        ];
        proptest::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
    }

    fn long_line() -> impl Strategy<Value = LongLine> {
        prop_oneof![Just(LongLine::Split), Just(LongLine::Truncate), Just(LongLine::Quarantine)]
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(text in text(), piece in 1usize..40, last: bool, long_line in long_line()) {
            let rules = Rules { line_bytes_max: 50, long_line, ..RULES };
            let whole = feed(rules, &text, 10_000, last);
            prop_assert_eq!(feed(rules, &text, piece, last), whole);
        }

        #[test]
        fn lines_are_what_split_gives(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let rules = Rules { skip_empty: false, line_bytes_max: 1000, ..RULES };
            prop_assume!(rules.find_hole(&bytes, 0, bytes.len()).is_none());
            let mut expected: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(feed(rules, &bytes, 1000, true).0, expected);
        }
    }
}
