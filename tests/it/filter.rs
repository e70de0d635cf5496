//! Filters come, go and change while lines run through them; bad ones hurt only themselves.

use serde_json::{Value, json};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::topic::{Record, Topic};
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host, put_list, steered};

/// Writes a module beside the agent's settings.
fn module(weir: &Weir, name: &str, bytes: &[u8]) -> String {
    let draft = weir.file(&format!("{name}.new"));
    std::fs::write(&draft, bytes).expect("write a module");
    let path = weir.file(name);
    std::fs::rename(draft, &path).expect("rename a module");
    path.to_str().expect("text").into()
}

fn entry(weir: &Weir, name: &str, topic: &Topic, filter: &Value) -> Value {
    json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": topic.name(),
        "start_at": "beginning", "filter": filter})
}

#[test]
fn a_tag_moved_a_hundred_times_under_load_gives_each_line_one_version() {
    const KEY: &str = "/moved/collect";
    const MOVES: u64 = 100;
    let topic = Kafka::shared().topic("moved", 1);
    let mut weir = steered(KEY);
    let push = |weir: &Weir, version: u64| {
        let file = module(weir, &format!("stamp-{version}.wasm"), &guests::stamp(version));
        weir.weir(&["module", "push", &file, "--tag", "stamp"]).ok()
    };
    push(&weir, 1);
    put_list(KEY, &json!([entry(&weir, "app", &topic, &json!("stamp"))]));
    let writer = LineFile::create(weir.log("app.log"), "app", 100).paced(10_000);
    weir.start();
    eventually(SOON, "the first lines", || weir.lines("app").delivered, |lines| *lines > 1_000);
    for version in 2..=MOVES {
        let pushed = push(&weir, version);
        let digest = pushed.lines().last().unwrap_or_default();
        let applied = |entry: &Value| entry["filter"]["digest"] == digest;
        let read = |entry: &Value| entry["lines"]["read"].as_u64().unwrap_or_default();
        let before = read(&eventually(LONG, "the version to be applied", || weir.entry("app"), applied));
        // One more chunk, so that each version has lines.
        eventually(SOON, "lines for the version", || weir.entry("app"), |entry| read(entry) > before);
    }
    let expected = writer.stop();
    weir.await_finished("app", expected.lines(), LONG);
    assert!(weir.stop().success());

    let mut tally = Tally::of(&[expected]);
    let mut versions = Vec::new();
    for Record { partition, value, .. } in topic.all() {
        let head = tally.see(partition, &value).map(|found| found.head.to_vec()).unwrap_or_default();
        let head = String::from_utf8_lossy(&head).into_owned();
        let version = head.strip_suffix(' ').and_then(|version| version.parse::<u64>().ok());
        versions.push(version.unwrap_or_else(|| panic!("exactly one version before the line, not {head:?}")));
    }
    tally.verdict().assert_exact();
    assert!(versions.is_sorted(), "versions follow one another");
    versions.dedup();
    assert_eq!(versions, (1..=MOVES).collect::<Vec<_>>(), "each version was at work");
}

#[test]
fn bad_modules_leave_their_neighbours_alone_and_their_bad_lines_in_quarantine() {
    /// One bad line in so many.
    const BAD: u64 = 1_000;
    const LINES: u64 = 10_000;
    let kafka = Kafka::shared();
    let mut weir = host();
    let wasm = module(&weir, "misbehave.wasm", &guests::bytes("guest_misbehave"));
    let misdeeds = ["loop", "trap", "hoard", "error", "few-verdicts", "ends-beyond", "flood", "recurse"];
    let good = kafka.topic("neighbour", 1);
    let mut good_file = LineFile::create(weir.log("good.log"), "good", 100);
    let mut list = vec![json!({"name": "good", "path": weir.log("good.log"), "topic": good.name(),
        "start_at": "beginning"})];
    let mut bad = Vec::new();
    for what in misdeeds {
        let (name, topic) = (format!("bad-{what}"), kafka.topic(what, 1));
        let mut file = LineFile::create(weir.log(&format!("{name}.log")), what, 100)
            .with_head(|seq| if seq % BAD == BAD / 2 { "bad " } else { "" });
        file.write(LINES);
        let filter = json!({"module": wasm, "config": {"do": what}, "timeout_ms": 50});
        list.push(entry(&weir, &name, &topic, &filter));
        bad.push((name, topic, file));
    }
    weir.list(&json!(list));
    weir.start();
    let writer_rate = 5_000;
    good_file.write(100);
    let writer = good_file.paced(writer_rate);
    for (name, topic, file) in &bad {
        let lines = weir.await_finished(name, LINES, LONG);
        let set_aside = LINES / BAD;
        assert_eq!((lines.delivered, lines.quarantined), (LINES - set_aside, set_aside), "{name}: {lines:?}");
        let expected = file.expected().only(|seq| seq % BAD != BAD / 2);
        topic.verdict(&[expected], SOON).assert_exact();
    }
    assert!(weir.lines("good").delivered > 0);
    let expected = writer.stop();
    weir.await_finished("good", expected.lines(), SOON);
    assert!(weir.runs());
    let metrics = weir.metrics();
    for kind in ["trap", "deadline", "memory", "output", "error"] {
        assert!(metrics.sum("weir_filter_errors_total", &[("kind", kind)]) > 0.0, "{kind} in {metrics:?}");
    }
    assert!(weir.stop().success());
    good.verdict(&[expected], SOON).assert_exact();
    for (_, topic, file) in &bad {
        topic.verdict(&[file.expected().only(|seq| seq % BAD != BAD / 2)], SOON).assert_exact();
    }
}

#[test]
fn each_on_error_policy_does_what_it_says() {
    let kafka = Kafka::shared();
    let mut weir = host();
    let wasm = module(&weir, "misbehave.wasm", &guests::bytes("guest_misbehave"));
    let dead = kafka.topic("dead", 1);
    let policies = [
        ("quarantine", json!("quarantine")),
        ("pass", json!("pass")),
        ("drop", json!("drop")),
        ("dead", json!({"dead_letter": dead.name()})),
        ("hold", json!("hold")),
    ];
    let mut list = Vec::new();
    let mut topics = Vec::new();
    for (name, on_error) in policies {
        let topic = kafka.topic(name, 1);
        std::fs::write(weir.log(&format!("{name}.log")), "one\ntwo bad\nthree\n").expect("write a log");
        let filter = json!({"module": wasm, "config": {"do": "trap"}, "on_error": on_error});
        list.push(entry(&weir, name, &topic, &filter));
        topics.push(topic);
    }
    weir.list(&json!(list));
    weir.start();
    for name in ["quarantine", "pass", "drop", "dead"] {
        weir.await_finished(name, 3, SOON);
    }
    let held = weir.await_state("hold", "holding");
    assert!(!held["cause"].as_str().unwrap_or_default().is_empty(), "{held}");
    let texts = |topic: &Topic| topic.all().iter().map(Record::text).collect::<Vec<_>>();
    assert_eq!(texts(&topics[0]), ["one", "three"]);
    assert_eq!(texts(&topics[1]), ["one", "two bad", "three"]);
    assert_eq!(texts(&topics[2]), ["one", "three"]);
    assert_eq!(texts(&topics[3]), ["one", "three"]);
    assert_eq!(texts(&dead), ["two bad"]);
    assert!(!texts(&topics[4]).contains(&"three".into()), "nothing behind the line that is held");
    assert_eq!((weir.lines("quarantine").quarantined, weir.lines("drop").discarded), (1, 1));
    assert_eq!((weir.lines("pass").delivered, weir.lines("dead").delivered), (3, 3));
    // Another config lets the held entry go on.
    list[4]["filter"]["config"]["do"] = json!("nothing");
    weir.put_list(&json!(list));
    weir.await_finished("hold", 3, SOON);
    assert_eq!(texts(&topics[4]), ["one", "two bad", "three"]);
}

#[test]
fn a_module_that_does_not_load_leaves_the_old_one_running() {
    let topic = Kafka::shared().topic("unloadable", 1);
    let mut weir = host();
    let stamp = module(&weir, "filter.wasm", &guests::stamp(7));
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    let list = |filter: Value| json!([entry(&weir, "app", &topic, &filter)]);
    let (good, misbehave) = (list(json!(stamp)), guests::bytes("guest_misbehave"));
    let unknown_import = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x07\x01\x01e\x01f\0\0";
    weir.list(&good);
    weir.start();
    file.write(100);
    weir.await_finished("app", 100, SOON);
    let digest = weir.entry("app")["filter"]["digest"].clone();
    let mut written = 100;
    for (what, bytes) in [
        ("not wasm at all", &b"#!/bin/sh"[..]),
        ("half a module", &misbehave[..misbehave.len() / 2]),
        ("another import", unknown_import),
        ("an init that refuses no config", &misbehave),
    ] {
        module(&weir, "filter.wasm", bytes);
        let state = || weir.entry("app")["filter"].clone();
        let failed = eventually(SOON, what, state, |filter| filter["state"] == "failed");
        assert_eq!(failed["digest"], digest, "{what}: the old one runs: {failed}");
        assert!(!failed["cause"].as_str().unwrap_or_default().is_empty(), "{what}: {failed}");
        file.write(100);
        written += 100;
        weir.await_finished("app", written, SOON);
        module(&weir, "filter.wasm", &guests::stamp(7));
        eventually(SOON, "the good one again", state, |filter| filter["state"] == "applied");
    }
    module(&weir, "filter.wasm", &guests::stamp(8));
    let swapped = || weir.entry("app")["filter"]["digest"].clone();
    eventually(SOON, "another digest", swapped, |now| *now != digest);
    file.write(100);
    weir.await_finished("app", written + 100, SOON);
    let heads: Vec<_> = topic.all().iter().map(|record| record.value[..2].to_vec()).collect();
    assert!(heads[..written as usize].iter().all(|head| head == b"7 "), "the old one was at work");
    assert!(heads[written as usize..].iter().all(|head| head == b"8 "), "then the new one");
}

#[test]
fn lines_meant_for_a_filter_never_go_out_without_it() {
    const KEY: &str = "/meant/collect";
    let topic = Kafka::shared().topic("meant", 1);
    let mut weir = steered(KEY);
    std::fs::write(weir.log("app.log"), "user=ann password=s3cret\n").expect("write a log");
    let filter = json!({"module": "redact-later", "config": {"fields": ["password"]}});
    put_list(KEY, &json!([entry(&weir, "app", &topic, &filter)]));
    weir.start();
    let names_it =
        |entry: &Value| entry["cause"].as_str().is_some_and(|cause| cause.contains("redact-later"));
    let waiting = eventually(SOON, "the missing tag as the cause", || weir.entry("app"), names_it);
    assert_eq!(waiting["state"], "waiting", "{waiting}");
    assert_eq!(topic.count_all(), 0);
    let redact = guests::path("redact");
    weir.weir(&["module", "push", redact.to_str().expect("text"), "--tag", "redact-later"]).ok();
    let sent = topic.take(1, SOON);
    assert_eq!(sent[0].text(), "user=ann password=***");
    let listed = weir.weir(&["module", "ls"]).ok();
    assert!(listed.contains("redact-later"), "{listed}");
}

#[test]
fn the_examples_do_what_they_say_on_the_real_path() {
    let kafka = Kafka::shared();
    let mut weir = host();
    let cases = [
        ("drop_debug", Value::Null, "DEBUG x\nINFO y\n", vec!["INFO y"]),
        ("redact", json!({"patterns": ["[0-9]{4,}"]}), "pin 1234\nfine\n", vec!["pin ***", "fine"]),
        ("json_fields", json!({"remove": ["b"]}), "{\"a\":1.50,\"b\":2}\nno json\n", vec!["{\"a\":1.50}"]),
    ];
    let mut list = Vec::new();
    let mut topics = Vec::new();
    for (name, config, text, _) in &cases {
        let topic = kafka.topic(name, 1);
        std::fs::write(weir.log(&format!("{name}.log")), text).expect("write a log");
        let mut filter = json!({"module": guests::path(name)});
        if !config.is_null() {
            filter["config"] = config.clone();
        }
        list.push(entry(&weir, name, &topic, &filter));
        topics.push(topic);
    }
    weir.list(&json!(list));
    weir.start();
    for ((name, _, _, expected), topic) in cases.iter().zip(topics) {
        weir.await_finished(name, 2, SOON);
        let texts: Vec<_> = topic.all().iter().map(Record::text).collect();
        assert_eq!(texts, *expected, "{name}");
    }
    assert_eq!(weir.lines("json_fields").quarantined, 1);
}
