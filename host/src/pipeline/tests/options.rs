//! Options of an entry that change what a record is: packed lines, joined lines, headers, encodings.

use super::*;
use crate::model::{LineStart, Multiline};

fn joined() -> Option<Multiline> {
    let start = LineStart::new("^[A-Z]").unwrap();
    Some(Multiline { start, max_lines: 500, flush: Duration::from_millis(50) })
}

/// The headers of the records that the broker is asked to take, as text.
fn headers(rig: &Rig) -> Vec<String> {
    let broker = rig.broker();
    let held = broker.held.iter().flat_map(|held| {
        let fixed = held.route.headers.iter().flat_map(|headers| headers.iter());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fixed: Vec<_> =
            fixed.map(|header| format!("{}={}", text(header.name.as_bytes()), text(&header.value))).collect();
        held.chunk.offsets.iter().map(move |offset| format!("{} offset={offset}", fixed.join(" ")))
    });
    held.collect()
}

#[test]
fn packed_lines_are_delivered_in_order_and_counted_as_lines() {
    let mut rig = Rig::new();
    rig.entry.pack = Some(1024);
    let lines = numbered(0, 5_000);
    rig.append("a.log", format!("{}\n\n{}", text(&lines[..2_500]), text(&lines[2_500..])));
    rig.start();
    rig.await_delivered(5_000);
    let log = rig.log();
    assert!(log.len() < 100 && log.iter().all(|record| record.len() <= 1024), "{} records", log.len());
    assert_eq!(log.join("\n").lines().collect::<Vec<_>>(), lines);
    assert_eq!((rig.status().lines.read, rig.status().lines.skipped), (5_002, 2));
}

#[test]
fn a_packed_record_that_is_refused_is_taken_apart_and_only_its_bad_line_is_set_aside() {
    let mut rig = Rig::new();
    (rig.entry.pack, rig.entry.headers) = (Some(1024), true);
    rig.rule(|attempt| attempt.text.contains("bad").then_some(Refusal::Record));
    let mut lines = numbered(0, 300);
    lines[150] = "bad".into();
    rig.append("a.log", text(&lines));
    rig.start();
    rig.await_delivered(299);
    rig.eventually("nothing under way", |rig| rig.status().lag_bytes == 0);
    let items = rig.quarantine.list(0, 10).unwrap();
    let places: Vec<_> = items.iter().map(|item| (item.offset, item.bytes, item.kind.as_str())).collect();
    assert_eq!(places, [(12 * 150, 3, "refused")]);
    let counts = rig.status().lines;
    assert_eq!((counts.read, counts.delivered, counts.quarantined), (300, 299, 1));
    lines.remove(150);
    assert_eq!(rig.log().join("\n").lines().collect::<Vec<_>>(), lines);
}

#[test]
fn packed_lines_go_through_a_filter_and_what_it_wrote_is_set_aside_by_its_line() {
    let mut rig = Rig::new();
    rig.entry.pack = Some(4096);
    rig.wants_filter(OnError::Drop);
    rig.rule(|attempt| attempt.text.contains("line 000007").then_some(Refusal::Record));
    rig.append("a.log", format!("{}bad\n{}", text(&numbered(0, 5)), text(&numbered(5, 10))));
    rig.start();
    rig.give_filter(r#"{"do": "set-aside"}"#);
    rig.await_delivered(9);
    rig.eventually("nothing under way", |rig| rig.status().lag_bytes == 0);
    let counts = rig.status().lines;
    assert_eq!((counts.read, counts.delivered, counts.discarded, counts.quarantined), (11, 9, 1, 1));
    let mut expected = numbered(0, 10);
    expected.remove(7);
    assert_eq!(rig.log().join("\n").lines().collect::<Vec<_>>(), expected);
    assert_eq!(rig.quarantine.list(0, 10).unwrap()[0].offset, 5 * 12 + 4 + 2 * 12);
}

#[test]
fn joined_lines_are_counted_as_the_lines_they_are() {
    let mut rig = Rig::new();
    rig.entry.multiline = joined();
    rig.wants_filter(OnError::Quarantine);
    rig.rule(|attempt| attempt.text.contains("refused").then_some(Refusal::Record));
    rig.append("a.log", "A\n 1\n 2\nB bad\n 3\n\nC refused\n 4\n 5\n 6\n\r\nD\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.eventually("all settled", |rig| {
        let counts = rig.status().lines;
        counts.delivered + counts.quarantined == 12
    });
    let counts = rig.status().lines;
    assert_eq!((counts.read, counts.delivered, counts.quarantined, counts.in_flight), (12, 4, 8, 0));
    assert_eq!(rig.log(), ["A\n 1\n 2", "D"]);
    let lines: Vec<_> = rig.set_aside().iter().map(|id| rig.quarantine.read(*id).unwrap().unwrap()).collect();
    assert_eq!(lines, [&b"B bad\n 3\n"[..], b"C refused\n 4\n 5\n 6\n\r"]);
}

#[test]
fn a_joined_record_that_is_held_is_not_passed_by() {
    let mut rig = Rig::new();
    (rig.entry.multiline, rig.entry.encoding) = (joined(), Some(encoding_rs::GBK));
    rig.wants_filter(OnError::Hold);
    rig.append("a.log", b"A \xd6\xd0\n 1\nB bad\n 3\nC\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.await_state(EntryState::Holding);
    rig.await_delivered(2);
    assert_eq!(rig.log(), ["A 中\n 1"]);
    rig.eventually("the offset before it", |rig| rig.committed() == [8]);
    rig.give_filter(r#"{"do": "nothing"}"#);
    rig.await_delivered(5);
    assert_eq!(rig.log()[1..], ["B bad\n 3", "C"]);
}

#[test]
fn headers_name_host_path_labels_and_the_offset_in_the_file() {
    let mut rig = Rig::new();
    rig.entry.headers = true;
    rig.entry.labels = [("team".to_string(), "web".to_string())].into();
    rig.entry.encoding = Some(encoding_rs::UTF_16LE);
    rig.broker().silent = true;
    let bytes: Vec<u8> = "\u{feff}ä\n\n€uro\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    rig.append("a.log", bytes);
    rig.start();
    rig.eventually("a chunk", |rig| !rig.broker().held.is_empty());
    let fixed = format!("host=host team=web path={}", rig.path("a.log").display());
    assert_eq!(headers(&rig), [format!("{fixed} offset=2"), format!("{fixed} offset=8")]);
    rig.broker().answer_all();
    rig.await_delivered(2);
    assert_eq!(rig.log(), ["ä", "€uro"]);
}

#[test]
fn the_offset_of_a_packed_record_and_of_a_dead_letter_is_that_of_its_first_line() {
    let mut rig = Rig::new();
    (rig.entry.headers, rig.entry.pack) = (true, Some(1024));
    rig.wants_filter(dead_letter());
    rig.broker().silent = true;
    rig.append("a.log", "one\ntwo\nbad\nfour\nfive\n");
    rig.start();
    rig.give_filter(SETS_BAD_ASIDE);
    rig.eventually("two chunks", |rig| rig.broker().held.len() == 2);
    let offsets: Vec<_> =
        rig.broker().held.iter().map(|held| (held.topic.to_string(), held.chunk.offsets.clone())).collect();
    assert_eq!(offsets, [("dead".to_string(), vec![8]), ("topic".to_string(), vec![0, 12])]);
    rig.broker().answer_all();
    rig.await_delivered(5);
}

#[test]
fn what_means_no_character_is_counted() {
    let mut rig = Rig::new();
    rig.entry.encoding = Some(encoding_rs::GBK);
    rig.append("a.log", b"\xd6\xd0\xff\n");
    rig.start();
    rig.await_delivered(1);
    assert_eq!(rig.log(), ["中\u{fffd}"]);
    rig.eventually("a report", |rig| rig.slot.lock().unwrap().figures.malformed == 1);
}
