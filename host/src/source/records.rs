//! From lines to what records hold: transcoded to UTF-8, and joined where several lines are one.
//!
//! In: bytes of a file, as `lines` takes them. Out: lines as it gives them, of UTF-8 text where the
//! entry names an encoding, and of several lines of the source where it joins them. What is used up
//! ends where a record ends, so that a restart neither splits nor repeats one. Pure.

use std::time::Duration;

use encoding_rs::{DecoderResult, Encoding, UTF_16BE, UTF_16LE};

use super::lines::{Lines, Rules, Unit};
use crate::model::{Entry, Multiline};

/// What stands for a sequence that means no character.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// How an entry's files are cut.
pub struct Cutter {
    rules: Rules,
    /// Whether empty lines are left out, where lines are joined first.
    skip_empty: bool,
    encoding: Option<&'static Encoding>,
    multiline: Option<Multiline>,
}

/// What is known of the end of the bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// No more will come: an unfinished line is a line.
    pub last: bool,
    /// Nothing came for so long that a record of several lines is taken as finished.
    pub quiet: bool,
}

impl Cutter {
    /// As the entry says.
    pub fn new(entry: &Entry) -> Self {
        let unit = unit_of(entry.encoding);
        let line_bytes_max = entry.line_bytes_max as usize;
        Self {
            rules: Rules {
                skip_empty: entry.skip_empty && entry.multiline.is_none(),
                line_bytes_max: line_bytes_max - line_bytes_max % unit.width(),
                long_line: entry.long_line,
                unit,
            },
            skip_empty: entry.skip_empty,
            encoding: entry.encoding,
            multiline: entry.multiline.clone(),
        }
    }

    /// How single lines are cut.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// As many bytes always hold a record, or the beginning of a line that is too long.
    pub fn enough(&self) -> usize {
        self.rules.line_bytes_max + self.rules.unit.width()
    }

    /// How long a record that may go on waits for more.
    pub fn patience(&self) -> Option<Duration> {
        self.multiline.as_ref().map(|multiline| multiline.flush)
    }

    /// Cuts the first `len` bytes of `buffer`, which stand at `offset` in their file, into at most
    /// `most` records; see [`Rules::cut`]. What is transcoded takes the place of what was read, which
    /// `lines` has then.
    pub fn cut(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
        offset: u64,
        most: usize,
        end: End,
        lines: &mut Lines,
    ) {
        let lines_max = self.multiline.as_ref().map_or(most, |joined| most.max(joined.max_lines + 1));
        let mark = if offset == 0 { self.byte_order_mark(&buffer[..len]) } else { 0 };
        self.rules.cut(&buffer[mark..len], lines_max, end.last, lines);
        lines.move_by(mark);
        let mut malformed = Vec::new();
        let text =
            self.encoding.map(|encoding| transcode(encoding, &self.rules, buffer, lines, &mut malformed));
        if let Some(multiline) = &self.multiline {
            let text = text.as_deref().unwrap_or(&buffer[..len]);
            // Behind as many lines as there was room for there may be more: nothing is known of the end.
            let (len, end) = if lines.starts.len() < lines_max { (len, end) } else { (0, End::default()) };
            let used = self.join(multiline, text, len, most, end, lines);
            malformed.retain(|(line, _)| (*line as usize) < used);
        }
        lines.malformed = malformed.iter().map(|(_, count)| count).sum();
        if let Some(text) = text.filter(|_| lines.used > 0) {
            lines.raw = Some(std::mem::replace(buffer, text));
        }
    }

    /// Bytes of the mark that a file of this encoding may begin with.
    fn byte_order_mark(&self, bytes: &[u8]) -> usize {
        let found =
            self.encoding.and_then(|encoding| Encoding::for_bom(bytes).filter(|(of, _)| *of == encoding));
        found.map_or(0, |(_, len)| len)
    }

    /// Joins lines that begin no record to the one before. Returns how many of them are in records
    /// that are whole; the others are left.
    fn join(
        &self,
        multiline: &Multiline,
        text: &[u8],
        len: usize,
        most: usize,
        end: End,
        lines: &mut Lines,
    ) -> usize {
        let mut joiner =
            Joiner { most, lines, records: 0, used: 0, skipped: 0, too_long: Vec::new(), long: 0 };
        let mut open: Option<Group> = None;
        for line in 0..joiner.lines.starts.len() {
            let bytes = &text[joiner.lines.starts[line] as usize..joiner.lines.ends[line] as usize];
            if let Some(group) = &mut open {
                if self.takes(multiline, group, joiner.lines, line) && !multiline.start.begins(bytes) {
                    group.last = line;
                    continue;
                }
                joiner.close(*group);
                open = None;
            }
            if joiner.is_full() {
                break;
            }
            if self.skip_empty && matches!(bytes, b"" | b"\r") {
                joiner.skip(line);
            } else {
                open = Some(Group { first: line, last: line });
            }
        }
        if let Some(group) = open {
            // More than it may have: whatever follows is not of it.
            let begun = joiner.lines.place(group.first).0 as usize;
            let bytes = len.saturating_sub(begun);
            let is_whole = group.lines() >= multiline.max_lines || bytes >= self.enough();
            if is_whole || end.last || end.quiet {
                joiner.close(group);
            } else {
                joiner.lines.open = true;
            }
        }
        joiner.finish()
    }

    /// Whether a record may have one more line: it stands just behind, and there is room.
    fn takes(&self, multiline: &Multiline, group: &Group, lines: &Lines, line: usize) -> bool {
        let ((begin, _), (_, end)) = (lines.place(group.first), lines.place(line));
        lines.starts[line] == lines.ends[group.last] + 1
            && group.lines() < multiline.max_lines
            && (end - begin) as usize <= self.rules.line_bytes_max
    }
}

/// Lines that are one record.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    last: usize,
}

impl Group {
    fn lines(&self) -> usize {
        self.last - self.first + 1
    }
}

/// Puts records where the lines stood that they are made of.
struct Joiner<'a> {
    most: usize,
    lines: &'a mut Lines,
    records: usize,
    /// Lines that are in records or left out.
    used: usize,
    skipped: u64,
    too_long: Vec<u32>,
    /// Of the lines that are too long, those behind which it is.
    long: usize,
}

impl Joiner<'_> {
    fn is_full(&self) -> bool {
        self.records >= self.most
    }

    fn close(&mut self, Group { first, last }: Group) {
        let Self { lines, records, .. } = self;
        let (begin, end) = (lines.place(first).0, lines.place(last).1);
        let is_long = lines.too_long.get(self.long).is_some_and(|long| *long as usize == first);
        if is_long {
            self.long += 1;
            self.too_long.push(*records as u32);
        }
        (lines.starts[*records], lines.ends[*records]) = (lines.starts[first], lines.ends[last]);
        if let Some(place) = lines.places.get_mut(*records) {
            *place = (begin, end);
        }
        lines.weights.push((last - first + 1) as u32);
        (self.records, self.used) = (self.records + 1, last + 1);
    }

    fn skip(&mut self, line: usize) {
        self.skipped += 1;
        self.used = line + 1;
    }

    /// What stands behind the last record was not read yet.
    fn finish(self) -> usize {
        let Self { lines, records, used, skipped, too_long, .. } = self;
        if used < lines.starts.len() {
            lines.gaps.retain(|(behind, _)| *behind as usize <= used);
            lines.discarded = lines.gaps.len() as u64;
            lines.holes = lines.gaps.iter().filter(|(_, is_hole)| *is_hole).count() as u64;
            lines.used = lines.place(used).0 as usize;
            lines.inside = false;
        }
        lines.starts.truncate(records);
        lines.ends.truncate(records);
        lines.places.truncate(records);
        (lines.skipped, lines.too_long) = (skipped, too_long);
        used
    }
}

/// How newlines are written in this encoding.
fn unit_of(encoding: Option<&'static Encoding>) -> Unit {
    match encoding {
        Some(encoding) if encoding == UTF_16LE => Unit::Utf16Le,
        Some(encoding) if encoding == UTF_16BE => Unit::Utf16Be,
        _ => Unit::Byte,
    }
}

/// The lines as UTF-8. Those that followed one another have one newline between them, others none or
/// two, so that this can still be told. `malformed` has how many sequences of which line mean nothing.
fn transcode(
    encoding: &'static Encoding,
    rules: &Rules,
    bytes: &[u8],
    lines: &mut Lines,
    malformed: &mut Vec<(u32, u64)>,
) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.used);
    let mut behind = None;
    for line in 0..lines.starts.len() {
        let (start, end) = (lines.starts[line] as usize, lines.ends[line] as usize);
        let between: &[u8] = match behind {
            None => b"",
            Some(last) if last == start => b"",
            Some(last) if last + rules.unit.width() == start => b"\n",
            Some(_) => b"\n\n",
        };
        text.extend_from_slice(between);
        behind = Some(end);
        lines.places.push((start as u32, end as u32));
        lines.starts[line] = text.len() as u32;
        let bad = decode(encoding, &bytes[start..end], &mut text);
        lines.ends[line] = text.len() as u32;
        if bad > 0 {
            malformed.push((line as u32, bad));
        }
    }
    text
}

/// Adds a line as UTF-8; how many of its sequences mean nothing.
fn decode(encoding: &'static Encoding, line: &[u8], text: &mut Vec<u8>) -> u64 {
    if unit_of(Some(encoding)) == Unit::Byte && line.is_ascii() {
        text.extend_from_slice(line);
        return 0;
    }
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let (mut from, mut bad) = (0, 0);
    loop {
        let left = &line[from..];
        let room = decoder.max_utf8_buffer_length_without_replacement(left.len()).unwrap_or(left.len() * 4);
        let at = text.len();
        text.resize(at + room, 0);
        let (result, read, written) = decoder.decode_to_utf8_without_replacement(left, &mut text[at..], true);
        text.truncate(at + written);
        from += read;
        match result {
            DecoderResult::InputEmpty => return bad,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => {
                text.extend_from_slice(REPLACEMENT);
                bad += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use encoding_rs::{BIG5, GB18030, GBK, SHIFT_JIS, UTF_8, WINDOWS_1252};
    use proptest::prelude::*;

    use super::*;
    use crate::model::{LineStart, LongLine};
    use crate::source::lines::NUL_RUN_MIN;

    const MAX: usize = 60;

    fn cutter(encoding: Option<&'static Encoding>, start: Option<&str>) -> Cutter {
        let unit = unit_of(encoding);
        let multiline = start.map(|start| Multiline {
            start: LineStart::new(start).unwrap(),
            max_lines: 4,
            flush: Duration::from_secs(1),
        });
        let skip_empty = multiline.is_none();
        let rules = Rules { skip_empty, line_bytes_max: MAX, long_line: LongLine::Split, unit };
        Cutter { rules, skip_empty: true, encoding, multiline }
    }

    #[derive(Debug, Default, PartialEq)]
    struct Found {
        /// What each record holds, and where it stands.
        records: Vec<(String, usize)>,
        read: u64,
        skipped: u64,
        discarded: u64,
        malformed: u64,
        used: usize,
    }

    impl Found {
        fn texts(&self) -> Vec<&str> {
            self.records.iter().map(|(text, _)| text.as_str()).collect()
        }
    }

    /// Feeds `bytes` in pieces as a reader would: what is not used up comes again with more.
    fn feed(cutter: &Cutter, bytes: &[u8], piece: usize, most: usize, last: bool) -> Found {
        let (mut found, mut lines, mut end) = (Found::default(), Lines::default(), 0);
        loop {
            let at = found.used;
            end = (end.max(at) + piece).min(bytes.len());
            let mut buffer = bytes[at..end].to_vec();
            let (len, last) = (buffer.len(), last && end == bytes.len());
            cutter.cut(&mut buffer, len, at as u64, most, End { last, quiet: false }, &mut lines);
            assert!(lines.starts.len() <= most);
            assert!(lines.used > 0 || len < cutter.enough() || end == bytes.len(), "stuck at {at}");
            for line in 0..lines.starts.len() {
                let text = &buffer[lines.starts[line] as usize..lines.ends[line] as usize];
                let text = String::from_utf8_lossy(text).into_owned();
                assert_eq!(lines.weight_of(line), 1 + text.matches('\n').count() as u64);
                found.records.push((text, at + lines.place(line).0 as usize));
            }
            found.read += lines.read();
            found.skipped += lines.skipped;
            found.discarded += lines.discarded;
            found.malformed += lines.malformed;
            found.used += lines.used;
            if end == bytes.len() && lines.used == 0 {
                return found;
            }
        }
    }

    #[test]
    fn lines_that_begin_no_record_belong_to_the_one_before() {
        let cutter = cutter(None, Some("^[A-Z]"));
        let text = b"  before\nERROR a\n\tat b\n\nCaused: c\nINFO d\nINFO e\n  open\n";
        for piece in [1, 7, 1000] {
            let found = feed(&cutter, text, piece, 1000, false);
            assert_eq!(found.texts(), ["  before", "ERROR a\n\tat b\n", "Caused: c", "INFO d"]);
            assert_eq!((found.read, found.used), (6, text.len() - 14));
            assert_eq!(feed(&cutter, text, piece, 1, true).texts()[4], "INFO e\n  open");
        }
    }

    #[test]
    fn a_record_that_nothing_follows_is_open_until_it_is_quiet() {
        let cutter = cutter(None, Some("^[A-Z]"));
        let mut lines = Lines::default();
        for (text, quiet, used, open) in [
            ("ERROR a\n b\nunfinis", false, 0, true),
            ("ERROR a\n b\nunfinis", true, 11, false),
            ("unfinis", true, 0, false),
            ("ERROR a\n\n\n\n", false, 11, false),
            ("ERROR a\n\nINFO", false, 0, true),
        ] {
            let mut buffer = text.as_bytes().to_vec();
            cutter.cut(&mut buffer, text.len(), 5, 10, End { last: false, quiet }, &mut lines);
            assert_eq!((lines.used, lines.open), (used, open), "{text:?}");
        }
    }

    #[test]
    fn a_record_has_no_more_lines_and_bytes_than_it_may() {
        let cutter = cutter(None, Some("^[A-Z]"));
        let text = format!("A\n1\n2\n3\n4\n\nB\n{}\n{}\n7\nC\n", "5".repeat(40), "6".repeat(40));
        for piece in [1, 30, 1000] {
            let found = feed(&cutter, text.as_bytes(), piece, 1000, true);
            let (five, six) = ("5".repeat(40), "6".repeat(40));
            let expected = ["A\n1\n2\n3", "4\n", &format!("B\n{five}"), &format!("{six}\n7"), "C"];
            assert_eq!(found.texts(), expected, "{piece}");
            assert_eq!((found.read, found.skipped), (11, 0));
        }
    }

    #[test]
    fn an_empty_line_begins_no_record_and_a_hole_ends_one() {
        let cutter = cutter(None, Some("^[A-Z]"));
        let mut text = b"\n\nA\n1\n".to_vec();
        text.extend([0; 200]);
        text.extend(b"2\nB\n");
        for piece in [20, 64, 1000] {
            let found = feed(&cutter, &text, piece, 1000, true);
            assert_eq!(found.texts(), ["A\n1", "2", "B"], "{piece}");
            assert_eq!((found.read, found.skipped, found.discarded, found.used), (7, 2, 1, text.len()));
        }
        // What stands behind an open record is not counted before it is used.
        let mut lines = Lines::default();
        let mut begun = [b"A\n".as_slice(), &[0; 40], b"x\n"].concat();
        let len = begun.len();
        cutter.cut(&mut begun, len, 0, 1000, End::default(), &mut lines);
        assert_eq!((lines.used, lines.discarded, lines.read()), (42, 1, 2));
    }

    #[test]
    fn a_line_too_long_is_set_aside_alone() {
        let mut cutter = cutter(None, Some("^[A-Z]"));
        cutter.rules.long_line = LongLine::Quarantine;
        let text = format!("A\n1\n{}\n2\nB\n", "x".repeat(100));
        let (mut buffer, mut lines) = (text.clone().into_bytes(), Lines::default());
        cutter.cut(&mut buffer, text.len(), 0, 1000, End { last: true, quiet: false }, &mut lines);
        assert_eq!((lines.starts.as_slice(), lines.too_long.as_slice()), (&[0, 4, 105, 107][..], &[1][..]));
        assert_eq!((lines.weights.as_slice(), lines.read()), (&[2, 1, 1, 1][..], 6));
    }

    fn utf16(text: &str, encoding: &'static Encoding) -> Vec<u8> {
        let bytes = |unit: u16| if encoding == UTF_16LE { unit.to_le_bytes() } else { unit.to_be_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn lines_in_other_encodings_become_utf8_and_keep_their_places() {
        for (encoding, lines) in [
            (GBK, ["中文日志", "错误: 文件不存在\r", "plain"]),
            (GB18030, ["中文𠀀", "x", "€"]),
            (BIG5, ["繁體中文", "日誌", "功能許蓋"]),
            (SHIFT_JIS, ["日本語ソフト", "ｱｲｳ", "表示"]),
            (WINDOWS_1252, ["Größe", "naïve café", "“quoted”"]),
            (UTF_8, ["schön", "日本", "𠀀"]),
        ] {
            let coded = lines.map(|line| encoding.encode(line).0.into_owned());
            let found = feed(&cutter(Some(encoding), None), &coded.join(&b'\n'), 5, 1000, true);
            assert_eq!(found.texts(), lines, "{encoding:?}");
            let places: Vec<_> = found.records.iter().map(|(_, place)| *place).collect();
            assert_eq!(places, [0, coded[0].len() + 1, coded[0].len() + coded[1].len() + 2]);
            assert_eq!((found.malformed, found.read), (0, 3));
        }
    }

    #[test]
    fn utf_16_is_cut_where_its_newlines_are() {
        let text = "a\u{a00}\u{a0a}b\u{a}\u{20ac}\u{a}\u{d}\u{a}\u{1f600}\u{a}open";
        for encoding in [UTF_16LE, UTF_16BE] {
            let bytes = [utf16("\u{feff}", encoding), utf16(text, encoding)].concat();
            for piece in [1, 3, 1000] {
                let found = feed(&cutter(Some(encoding), None), &bytes, piece, 1000, false);
                assert_eq!(found.texts(), ["a\u{a00}\u{a0a}b", "€", "😀"], "{encoding:?} {piece}");
                let places: Vec<_> = found.records.iter().map(|(_, place)| *place).collect();
                assert_eq!((places, found.skipped, found.used), (vec![2, 12, 20], 1, 26));
            }
            let whole = feed(&cutter(Some(encoding), None), &bytes, 7, 1000, true);
            assert_eq!((whole.texts()[3], whole.used), ("open", bytes.len()));
        }
    }

    #[test]
    fn a_hole_in_utf_16_is_one_and_its_text_is_none() {
        for encoding in [UTF_16LE, UTF_16BE] {
            let hole = vec![0; 50];
            let bytes = [utf16("one\n", encoding), hole, utf16("two\nthree\n", encoding)].concat();
            let found = feed(&cutter(Some(encoding), None), &bytes, 1000, 1000, false);
            assert_eq!((found.texts(), found.discarded), (vec!["one", "two", "three"], 1), "{encoding:?}");
        }
    }

    #[test]
    fn what_means_no_character_is_replaced_and_counted() {
        let gbk = cutter(Some(GBK), None);
        let found = feed(&gbk, b"\xd6\xd0\xff\xce\xc4\nbad \x81\n\x80\n", 100, 1000, false);
        assert_eq!((found.texts(), found.malformed), (vec!["中\u{fffd}文", "bad \u{fffd}", "€"], 2));
        let lone = [b"a\0\x00\xd8b\0\n\0".as_slice(), b"\x00\xdc\n\0c"].concat();
        let found = feed(&cutter(Some(UTF_16LE), None), &lone, 100, 1000, true);
        assert_eq!(found.texts(), ["a\u{fffd}b", "\u{fffd}", "\u{fffd}"]);
        assert_eq!((found.malformed, found.used), (3, lone.len()));
        let utf8 = feed(&cutter(Some(UTF_8), None), b"\xef\xbb\xbfa\n\xef\xbb\xbfb\xc3\n", 100, 1000, false);
        assert_eq!((utf8.texts(), utf8.malformed), (vec!["a", "\u{feff}b\u{fffd}"], 1));
    }

    #[test]
    fn joined_lines_are_compared_as_utf8_and_count_what_they_use_only() {
        let text = "错误 a\n  b\n错误 c\n  \u{fffd}open\n";
        for encoding in [UTF_16LE, UTF_16BE] {
            let bytes = utf16(text, encoding);
            let found = feed(&cutter(Some(encoding), Some("^错误")), &bytes, 9, 1000, false);
            assert_eq!((found.texts(), found.records[0].1), (vec!["错误 a\n  b"], 0));
            assert_eq!(feed(&cutter(Some(encoding), Some("^错误")), &bytes, 9, 1000, true).records[1].1, 18);
        }
        let found = feed(&cutter(Some(GBK), Some("^A")), b"A\n\xff\nA\n\xff\xff\n", 100, 1000, false);
        assert_eq!((found.texts(), found.malformed), (vec!["A\n\u{fffd}"], 1));
    }

    #[test]
    fn the_last_newline_is_found_from_any_place() {
        let le = utf16("a\u{a0a}\nb", UTF_16LE);
        let be = utf16("a\u{a0a}\nb", UTF_16BE);
        for from in 0..4 {
            assert_eq!(Unit::Utf16Le.last_line_end(&le[from..], from as u64), Some(6 - from));
            assert_eq!(Unit::Utf16Be.last_line_end(&be[from..], from as u64), Some(6 - from));
        }
        assert_eq!(Unit::Byte.last_line_end(b"a\nb", 7), Some(2));
        assert_eq!(Unit::Utf16Le.last_line_end(b"a\0b", 0), None);
        assert_eq!(Unit::Utf16Le.last_line_end(b"", 3), None);
    }

    #[test]
    fn half_a_newline_ends_no_record_that_has_room_for_its_line() {
        let cutter = cutter(Some(UTF_16LE), Some("^[A-Z]"));
        // As many bytes as a record may have, without its last newline.
        let text = format!("A\n{}\nB\n", "b".repeat(MAX / 2 - 2));
        let bytes = utf16(&text, UTF_16LE);
        let found = feed(&cutter, &bytes, MAX + 1, 1, false);
        assert_eq!(found.texts(), [text.strip_suffix("\nB\n").unwrap()]);
    }

    /// Lines of which some begin a record, some are empty, too long, or stand behind a hole.
    fn text() -> impl Strategy<Value = String> {
        let hole = "\0".repeat(NUL_RUN_MIN + 3);
        let line = prop_oneof![
            4 => "[A-Z][a-zé中😀]{0,8}",
            4 => " [a-zé中😀]{0,8}",
            1 => Just(String::new()),
            1 => Just("\r".to_string()),
            1 => Just("x".repeat(2 * MAX + 7)),
            1 => Just(hole),
        ];
        proptest::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_records(
            text in text(),
            piece in 1usize..80,
            most in 1usize..5,
            last: bool,
            joined: bool,
            coded in 0usize..4,
        ) {
            let encoding = [None, Some(UTF_8), Some(UTF_16LE), Some(UTF_16BE)][coded];
            let bytes = match encoding {
                Some(encoding) if encoding != UTF_8 => utf16(&text, encoding),
                _ => text.into_bytes(),
            };
            let cutter = cutter(encoding, joined.then_some("^[A-Z]"));
            let whole = feed(&cutter, &bytes, 100_000, 100_000, last);
            prop_assert_eq!(feed(&cutter, &bytes, piece, most, last), whole);
        }
    }
}
