//! Cuts bytes into lines. Pure: no file is touched.
//!
//! In: bytes that begin where a line begins (or inside a long one), in any chunking. Out: where
//! the lines stand, and how many bytes are used up; an unfinished line is left for the next time.

use memchr::{memchr, memchr_iter};

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
    /// Bytes used up.
    pub used: usize,
    /// Empty lines left out.
    pub skipped: u64,
    /// NUL runs, and the rests of long lines.
    pub discarded: u64,
    /// Of those, the NUL runs.
    pub holes: u64,
    /// The last byte used stands inside a line whose rest is to be discarded.
    pub inside: bool,
    /// And so did the byte before the first.
    pub began_inside: bool,
}

impl Lines {
    /// How many lines of the source this is.
    pub fn read(&self) -> u64 {
        self.starts.len() as u64 + self.skipped + self.discarded
    }

    fn clear(&mut self) {
        self.starts.clear();
        self.ends.clear();
        self.too_long.clear();
        (self.used, self.skipped, self.discarded, self.holes) = (0, 0, 0, 0);
    }
}

impl Rules {
    /// Cuts `bytes` into at most `lines_max` lines. `inside` in `lines` says whether they begin in
    /// the rest of a long line; `last` that no more bytes will come, so that an unfinished line is
    /// a line.
    pub fn cut(&self, bytes: &[u8], lines_max: usize, last: bool, lines: &mut Lines) {
        lines.clear();
        lines.began_inside = lines.inside;
        if lines.inside && !skip_rest(bytes, lines) {
            return;
        }
        let in_hole = memchr(0, bytes).is_some() && self.cut_with_holes(bytes, lines_max, last, lines);
        if !in_hole {
            self.cut_text(bytes, lines_max, lines);
            if lines.starts.len() < lines_max {
                self.end(bytes, lines_max, last, lines);
            }
        }
    }

    fn cut_text(&self, bytes: &[u8], lines_max: usize, lines: &mut Lines) {
        let base = lines.used;
        for newline in memchr_iter(b'\n', &bytes[base..]) {
            if lines.starts.len() >= lines_max {
                return;
            }
            let (start, end) = (lines.used, base + newline);
            if !self.line(bytes, start, end, lines_max, lines) {
                return;
            }
            lines.used = end + 1;
        }
    }

    /// As `cut_text`, where long runs of NUL end a line too. Returns whether the bytes end in one
    /// that may go on: then so much of it is left that it is known by.
    fn cut_with_holes(&self, bytes: &[u8], lines_max: usize, last: bool, lines: &mut Lines) -> bool {
        while lines.starts.len() < lines_max {
            let start = lines.used;
            let newline = memchr(b'\n', &bytes[start..]).map(|at| start + at);
            let text = newline.unwrap_or(bytes.len());
            if let Some((hole, after)) = find_hole(bytes, start, text) {
                if hole > start && !self.line(bytes, start, hole, lines_max, lines) {
                    return false;
                }
                if after == bytes.len() && !last {
                    lines.used = after - NUL_RUN_MIN;
                    return true;
                }
                lines.discarded += 1;
                lines.holes += 1;
                lines.used = if newline == Some(after) { after + 1 } else { after };
            } else if let Some(end) = newline {
                if !self.line(bytes, start, end, lines_max, lines) {
                    return false;
                }
                lines.used = end + 1;
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
        if self.long_line == LongLine::Split {
            self.split(end, lines_max, lines);
            if lines.starts.len() >= lines_max {
                return false;
            }
        }
        let start = lines.used;
        if self.skip_empty && (end == start || (end == start + 1 && bytes[start] == b'\r')) {
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
        lines.discarded += 1;
    }
}

impl Lines {
    fn push(&mut self, start: usize, end: usize) {
        self.starts.push(start as u32);
        self.ends.push(end as u32);
    }
}

/// Whether the rest of the long line ends in `bytes`.
fn skip_rest(bytes: &[u8], lines: &mut Lines) -> bool {
    let newline = memchr(b'\n', bytes);
    lines.used = newline.map_or(bytes.len(), |at| at + 1);
    lines.inside = newline.is_none();
    newline.is_some()
}

/// The first run of at least `NUL_RUN_MIN` NULs between `from` and `to`.
fn find_hole(bytes: &[u8], from: usize, to: usize) -> Option<(usize, usize)> {
    let mut at = from;
    while let Some(found) = memchr(0, &bytes[at..to]) {
        let hole = at + found;
        let after = bytes[hole..to].iter().position(|byte| *byte != 0).map_or(to, |n| hole + n);
        if after - hole >= NUL_RUN_MIN {
            return Some((hole, after));
        }
        at = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules { skip_empty: true, line_bytes_max: 8, long_line: LongLine::Split };

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
            let rules = Rules { skip_empty: false, line_bytes_max: 1000, long_line: LongLine::Split };
            prop_assume!(find_hole(&bytes, 0, bytes.len()).is_none());
            let mut expected: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(feed(rules, &bytes, 1000, true).0, expected);
        }
    }
}
