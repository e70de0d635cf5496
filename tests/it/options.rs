//! Options of an entry that change what a record is, on a real Kafka.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::topic::Record;
use weir_tests::wait::{SOON, eventually};

use crate::{LONG, host};

#[track_caller]
fn append(path: &Path, bytes: impl AsRef<[u8]>) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(bytes.as_ref())).expect("append to a log");
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn headers(record: &Record) -> String {
    let header =
        |(name, value): &(String, Vec<u8>)| format!("{name}={}", String::from_utf8_lossy(value).into_owned());
    record.headers.iter().map(header).collect::<Vec<_>>().join(" ")
}

/// The `n`th stack trace of a Java program, of five lines.
fn trace(n: usize) -> String {
    format!(
        "2026-11-26 10:00:00,{n:06} ERROR [main] it broke\njava.lang.IllegalStateException: {n}\n\
         \tat com.example.Main.run(Main.java:{n})\nCaused by: java.io.IOException\n\t... 2 more"
    )
}

#[test]
fn stack_traces_arrive_whole_and_once_over_a_rotation_and_kills() {
    let topic = Kafka::shared().topic("traces", 1);
    let mut weir = host();
    let log = weir.log("app.log");
    weir.list(
        &json!([{"name": "app", "path": log, "topic": topic.name(), "start_at": "beginning", "headers": true,
        "labels": {"team": "web"}, "multiline": {"start": "^\\d{4}-", "flush_ms": 5000}}]),
    );
    let mut expected: Vec<String> = (0..3000).map(trace).collect();
    weir.start();
    for (n, part) in expected.chunks(500).enumerate() {
        let text: String = part.iter().map(|trace| format!("{trace}\n")).collect();
        // The write ends within a trace, which the next one completes.
        let cut = text.len() - 40;
        append(&log, &text[..cut]);
        // Whole traces are there; the agent may be anywhere in what it says of them.
        eventually(LONG, "traces", || topic.count_all(), |count| *count >= n as u64 * 500 + 400);
        weir.kill();
        append(&log, &text[cut..]);
        weir.start();
    }
    // Renamed in the middle of a trace: its writer ends it in the renamed file.
    append(&log, format!("{}\n2026 half\n\tat a", trace(3000)));
    std::fs::rename(&log, weir.log("app.log.1")).expect("rename");
    append(&weir.log("app.log.1"), "\n\tat b\n");
    append(&log, format!("\tlost its head\n{}\n", trace(3001)));
    expected.extend([trace(3000) + "\n2026 half\n\tat a\n\tat b", "\tlost its head".into(), trace(3001)]);
    let last = || topic.all().last().map(Record::text);
    eventually(LONG, "the last trace", last, |last| last.as_ref() == expected.last());
    assert!(weir.stop().success());
    let records = topic.all();
    let sent: Vec<String> = records.iter().map(Record::text).collect();
    // After a kill a record may arrive twice, whole.
    let mut seen = std::collections::HashSet::new();
    let first: Vec<&String> = sent.iter().filter(|text| seen.insert(*text)).collect();
    assert_eq!(first, expected.iter().collect::<Vec<_>>());
    let told = format!("host=host team=web path={} offset=0", log.display());
    assert_eq!(headers(&records[0]), told);
    assert!(headers(&records[1]).ends_with(&format!(" offset={}", trace(0).len() + 1)));
}

#[test]
fn lines_that_may_go_anywhere_reach_every_partition_once_and_those_with_a_key_only_one() {
    const LINES: u64 = 20_000;
    let mut weir = host();
    let places = |keys: [&'static str; 2]| {
        keys.map(|key| {
            let mut file = LineFile::create(weir.log(&format!("{key}.log")), key, 200);
            file.write(LINES);
            (key, file, Kafka::shared().topic(key, 3))
        })
    };
    let places = places(["none", "path"]);
    weir.list(&json!(places.each_ref().map(|(key, file, topic)| json!({"name": key, "path": file.path(),
        "topic": topic.name(), "start_at": "beginning", "partition": "spread", "key": key}))));
    weir.start();
    for ((key, file, topic), partitions) in places.iter().zip([3, 1]) {
        let verdict = topic.verdict(&[file.expected()], LONG);
        assert_eq!((verdict.lost(), verdict.repeated(), verdict.foreign()), (0, 0, 0), "key {key}");
        let found: BTreeSet<i32> = topic.all().iter().map(|record| record.partition).collect();
        assert_eq!(found.len(), partitions, "key {key}");
    }
    assert!(weir.stop().success());
}

#[test]
fn other_encodings_and_packed_lines_arrive_line_by_line_and_the_sums_hold() {
    let kafka = Kafka::shared();
    let (coded, packed) = (kafka.topic("coded", 1), kafka.topic("packed", 1));
    let small = kafka.topic_with("small", 1, &[("max.message.bytes", "4000")]);
    // The broker looks at what a batch takes when it is compressed.
    let mut weir = host().setting("kafka.properties", "\"compression.type\" = \"none\"");
    let mut file = LineFile::create(weir.log("packed.log"), "packed", 100);
    file.write(100_000);
    let mut wide = LineFile::create(weir.log("small.log"), "small", 100);
    wide.write(200);
    append(&weir.log("small.log"), "x".repeat(5000) + "\n");
    append(&weir.log("gbk.log"), b"\xd6\xd0\xce\xc4 \xff\n");
    append(&weir.log("utf16.log"), utf16("\u{feff}Größe 日本\n\n\u{1f600}\n"));
    append(&weir.log("latin1.log"), b"caf\xe9 \x80\n");
    let entry = |name: &str, topic: &str, more: serde_json::Value| {
        let mut entry = json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": topic,
            "start_at": "beginning"});
        entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        entry
    };
    weir.list(&json!([
        entry("packed", packed.name(), json!({"pack": "64KiB"})),
        entry("small", small.name(), json!({"pack": "16KiB"})),
        entry("gbk", coded.name(), json!({"encoding": "GBK"})),
        entry("utf16", coded.name(), json!({"encoding": "utf-16be"})),
        entry("latin1", coded.name(), json!({"encoding": "latin1"})),
    ]));
    weir.start();
    let lines = weir.await_finished("packed", 100_000, LONG);
    assert!(lines.hold() && lines.delivered == 100_000, "{lines:?}");
    // Each record is refused, and of its lines only one.
    let lines = weir.await_finished("small", 201, LONG);
    assert!((lines.delivered, lines.quarantined) == (200, 1), "{lines:?}");
    let mut texts: Vec<String> = coded.take(4, SOON).iter().map(Record::text).collect();
    texts.sort();
    assert_eq!(texts, ["Größe 日本", "café €", "中文 \u{fffd}", "😀"]);
    let malformed = weir.metrics().sum("weir_malformed_sequences_total", &[("entry", "gbk")]);
    assert_eq!(malformed, 1.0);
    assert_eq!(weir.lines("utf16").skipped, 1);
    let expected = std::fs::read_to_string(file.path()).expect("the file");
    let records: Vec<String> = packed.all().iter().map(Record::text).collect();
    assert!(records.len() < 1000, "{} records", records.len());
    assert!(records.join("\n") + "\n" == expected, "the packed records are the file");
    assert!(weir.stop().success());
    small.verdict(&[wide.expected()], SOON).assert_exact();
}
