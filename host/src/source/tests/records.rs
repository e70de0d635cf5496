//! Records of several lines, and files in other encodings, over rotations, restarts and pauses.

use super::*;
use crate::model::{LineStart, Multiline};

/// Follows `pattern`; a record begins with a capital letter, and waits for a second.
fn joined(pattern: &str) -> Place {
    let flush = seconds(1);
    let start = LineStart::new("^[A-Z]").unwrap();
    Place::with(pattern, |entry| entry.multiline = Some(Multiline { start, max_lines: 500, flush }))
}

#[test]
fn an_open_record_is_sent_when_nothing_followed_for_a_while() {
    let mut place = joined("a.log");
    place.append("a.log", "ERROR a\n\tat b\nERROR c\n");
    assert_eq!(place.lines(), ["ERROR a\n\tat b"]);
    place.append("a.log", "\tat d\n");
    assert_eq!(place.lines(), [""; 0]);
    assert!(place.source.next_look() <= place.now + seconds(1));
    assert_eq!(place.lines_within(seconds(2)), ["ERROR c\n\tat d"]);
    // What comes later is a record of its own, and an unfinished line is none.
    place.append("a.log", "\tat e\n\tat f");
    assert_eq!(place.lines_within(seconds(3)), ["\tat e"]);
    assert!(place.source.flushes.is_empty());
    place.append("a.log", "\n");
    assert_eq!(place.lines_within(seconds(3)), ["\tat f"]);
}

#[test]
fn a_restart_neither_splits_nor_repeats_a_record() {
    let mut place = joined("a.log");
    place.append("a.log", "ERROR a\n\tat b\nERROR c\n\tat d\n");
    assert_eq!(place.lines(), ["ERROR a\n\tat b"]);
    place.restart();
    place.append("a.log", "\tat e\nERROR f\n");
    assert_eq!(place.unfinished_lines(), ["ERROR c\n\tat d\n\tat e"]);
    place.restart();
    assert_eq!(place.lines_within(seconds(3)), ["ERROR c\n\tat d\n\tat e", "ERROR f"]);
}

#[test]
fn a_rotation_ends_a_record_and_the_new_file_waits_for_it() {
    let mut place = joined("a.log");
    place.append("a.log", "ERROR a\n\tat b\n");
    assert_eq!(place.lines(), [""; 0]);
    place.rename("a.log", "a.log.1");
    place.append("a.log.1", "\tat c\n");
    place.append("a.log", "\tat d\nERROR e\nERROR f\n");
    assert_eq!(place.lines_within(seconds(4)), ["ERROR a\n\tat b\n\tat c", "\tat d", "ERROR e", "ERROR f"]);
}

#[test]
fn a_record_is_read_whole_however_little_is_asked_for() {
    let mut place = joined("a.log");
    place.want = 16;
    let record = format!("ERROR a\n{}", "\tat b\n".repeat(80));
    place.append("a.log", format!("{record}ERROR c\n"));
    assert_eq!(place.lines(), [record.trim_end()]);
}

#[test]
fn the_end_of_the_files_ends_a_record_with_once() {
    let mut place = joined("a.log");
    place.source.end();
    place.append("a.log", "ERROR a\n\tat b\n");
    assert_eq!(place.lines(), ["ERROR a\n\tat b"]);
}

#[test]
fn a_file_in_utf_16_begins_behind_its_last_newline_and_goes_on_after_a_restart() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let mut place = Place::with("a.log", |entry| {
        (entry.start_at, entry.encoding) = (StartAt::End, Some(encoding_rs::UTF_16LE));
    });
    place.append("a.log", utf16("\u{feff}old\nbeg"));
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log", utf16("un ä\n"));
    assert_eq!(place.lines(), ["begun ä"]);
    // Half a character is left for the next time.
    place.append("a.log", &utf16("next\n")[..9]);
    assert_eq!(place.lines(), [""; 0]);
    place.restart();
    place.append("a.log", &utf16("next\n")[9..]);
    assert_eq!(place.lines(), ["next"]);
}

#[test]
fn a_long_line_in_utf_16_is_cut_the_same_across_restarts() {
    for (encoding, wide) in [
        (encoding_rs::UTF_16LE, u16::to_le_bytes as fn(u16) -> [u8; 2]),
        (encoding_rs::UTF_16BE, u16::to_be_bytes),
    ] {
        let mut place = Place::with("a.log", |entry| {
            (entry.long_line, entry.encoding) = (LongLine::Truncate, Some(encoding));
        });
        place.want = 200;
        let bytes = |text: &str| text.encode_utf16().flat_map(wide).collect::<Vec<u8>>();
        let long = "x".repeat(1000);
        place.append("a.log", bytes(&long));
        let mut lines = place.lines();
        for rest in [&long[..500], "\nnext\n"] {
            place.restart();
            place.append("a.log", bytes(rest));
            lines.extend(place.lines());
        }
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(long.starts_with(&lines[0]) && lines[1] == "next", "{lines:?}");
    }
}
