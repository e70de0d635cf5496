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

#[test]
fn a_filter_that_fails_gives_way_to_the_last_proven_one_also_after_a_restart() {
    let topic = Kafka::shared().topic("rolled", 1);
    let mut weir = host();
    let wasm = module(&weir, "misbehave.wasm", &guests::bytes("guest_misbehave"));
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    let list =
        |config: Value| json!([entry(&weir, "app", &topic, &json!({"module": wasm, "config": config}))]);
    let [proven, unproven, bad, mended] = [
        list(json!({"do": "nothing", "prefix": "A "})),
        list(json!({"do": "nothing", "prefix": "B "})),
        list(json!({"do": "trap", "on": "app"})),
        list(json!({"do": "nothing", "prefix": "D "})),
    ];
    let swaps =
        |weir: &Weir, result: &str| weir.metrics().sum("weir_module_swaps_total", &[("result", result)]);
    let filter = |weir: &Weir| weir.entry("app")["filter"].clone();
    weir.list(&proven);
    weir.start();
    file.write(6_000);
    weir.await_finished("app", 6_000, SOON);
    weir.put_list(&unproven);
    eventually(SOON, "the second version", || swaps(&weir, "applied"), |swaps| *swaps == 2.0);
    file.write(100);
    weir.await_finished("app", 6_100, SOON);
    weir.put_list(&bad);
    eventually(SOON, "the bad version", || swaps(&weir, "applied"), |swaps| *swaps == 3.0);
    file.write(100);
    let back = eventually(SOON, "rolled back", || filter(&weir), |filter| filter["state"] == "rolled-back");
    assert!(back["cause"].as_str().is_some_and(|cause| cause.contains("(trap)")), "{back}");
    assert_eq!(swaps(&weir, "rolled-back"), 1.0);
    let lines = weir.await_finished("app", 6_200, SOON);
    assert_eq!(lines.delivered, 6_200, "no line was set aside: {lines:?}");
    let stats = weir.weir(&["module", "stats", "app"]).ok();
    assert!(stats.contains("rolled back to it: the filter fails on"), "{stats}");

    assert!(weir.restart().success());
    let after =
        eventually(SOON, "still rolled back", || filter(&weir), |filter| filter["state"] == "rolled-back");
    assert_eq!(after["cause"], back["cause"]);
    file.write(100);
    assert_eq!(weir.await_finished("app", 100, SOON).delivered, 100);
    assert_eq!(weir.metrics().sum("weir_filter_errors_total", &[]), 0.0, "the bad version was not tried");
    let stats = weir.weir(&["module", "stats", "app", "--json"]).ok();
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    assert_eq!(
        (&stats["stats"]["lines"], &stats["stats"]["replaced"]),
        (&json!(100), &json!(100)),
        "{stats}"
    );
    weir.put_list(&mended);
    eventually(SOON, "the mended version", || filter(&weir), |filter| filter["state"] == "applied");
    file.write(100);
    weir.await_finished("app", 200, SOON);
    let heads: Vec<_> = topic.all().iter().map(|record| record.value[0]).collect();
    let expected = [(b'A', 6_000), (b'B', 100), (b'A', 200), (b'D', 100)];
    let expected: Vec<_> = expected.into_iter().flat_map(|(head, lines)| vec![head; lines]).collect();
    assert!(heads == expected, "the last proven version came back");
}

#[test]
fn a_host_outside_the_rollout_keeps_what_it_ran_also_after_a_restart() {
    const KEY: &str = "/rollout/collect";
    let topic = Kafka::shared().topic("rollout", 1);
    let mut weir = steered(KEY);
    let push = |weir: &Weir, version: u64| {
        let file = module(weir, &format!("stamp-{version}.wasm"), &guests::stamp(version));
        weir.weir(&["module", "push", &file, "--tag", "rollout"])
            .ok()
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    let put = |weir: &Weir, percent: u64| {
        let filter = json!({"module": "rollout", "rollout": percent});
        put_list(KEY, &json!([entry(weir, "app", &topic, &filter)]));
    };
    let runs = |weir: &Weir, digest: &str| {
        let filter = || weir.entry("app")["filter"].clone();
        eventually(SOON, digest, filter, |filter| filter["digest"] == digest && filter["state"] == "applied")
    };
    let (first, second) = (push(&weir, 1), push(&weir, 2));
    put(&weir, 0);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    weir.start();
    let kept = runs(&weir, &first);
    assert!(
        kept["cause"].as_str().is_some_and(|cause| cause.contains("outside the rollout to 0 %")),
        "{kept}"
    );
    file.write(10);
    weir.await_finished("app", 10, SOON);
    let third = push(&weir, 3);
    put(&weir, 100);
    assert_eq!(runs(&weir, &third)["cause"], "");
    put(&weir, 0);
    let fourth = push(&weir, 4);
    let outside = |entry: &Value| entry["filter"]["cause"] != "";
    assert_eq!(eventually(SOON, "kept", || weir.entry("app"), outside)["filter"]["digest"], third);
    assert!(weir.restart().success());
    runs(&weir, &third);
    file.write(10);
    weir.await_finished("app", 10, SOON);
    put(&weir, 100);
    runs(&weir, &fourth);
    file.write(10);
    weir.await_finished("app", 20, SOON);
    let heads: Vec<_> = topic.all().iter().map(|record| record.value[0]).collect();
    let expected = [b'1', b'3', b'4'].into_iter().flat_map(|version| [version; 10]).collect::<Vec<_>>();
    assert_eq!(heads, expected, "{second} was never run");
}

#[test]
fn a_shadow_is_compared_and_counted_and_never_sent_whatever_it_does() {
    let kafka = Kafka::shared();
    let mut weir = host();
    let wasm = module(&weir, "misbehave.wasm", &guests::bytes("guest_misbehave"));
    let no_module = module(&weir, "none.wasm", b"#!/bin/sh");
    let kept = json!({"do": "nothing"});
    let shadows = [
        ("same", json!(wasm)),
        ("other", json!({"module": wasm, "config": {"do": "nothing", "prefix": "x"}})),
        ("loop", json!({"module": wasm, "config": {"do": "loop"}})),
        ("init-loop", json!({"module": wasm, "config": {"do": "init-loop"}})),
        ("none", json!(no_module)),
    ];
    let (mut list, mut files) = (Vec::new(), Vec::new());
    for (name, shadow) in &shadows {
        let topic = kafka.topic(name, 1);
        let filter = json!({"module": wasm, "config": kept, "shadow": shadow});
        list.push(entry(&weir, name, &topic, &filter));
        let file = LineFile::create(weir.log(&format!("{name}.log")), name, 100);
        files.push((*name, topic, file.with_head(|seq| if seq % 100 == 7 { "bad " } else { "" })));
    }
    weir.list(&json!(list));
    weir.start();
    let shadow = |name: &str| weir.entry(name)["filter"]["shadow"].clone();
    for name in ["same", "other", "loop"] {
        eventually(SOON, name, || shadow(name), |shadow| shadow["state"] == "applied");
    }
    for name in ["init-loop", "none"] {
        let loaded = |shadow: &Value| shadow["cause"] != "" && shadow["cause"] != "it is being loaded";
        eventually(SOON, name, || shadow(name), loaded);
    }
    const LINES: u64 = 1_000;
    for (name, topic, file) in &mut files {
        file.write(LINES);
        assert_eq!(weir.await_finished(name, LINES, SOON).delivered, LINES, "{name}");
        topic.verdict(&[file.expected()], SOON).assert_exact();
    }
    let count = |shadow: &Value, what: &str| shadow[what].as_u64().unwrap_or_default();
    let sum = |shadow: &Value| {
        ["same", "differing", "errors", "skipped"].map(|what| count(shadow, what)).iter().sum::<u64>()
    };
    let all = |name: &'static str| eventually(SOON, name, || shadow(name), |shadow| sum(shadow) == LINES);
    let (same, other, stuck) = (all("same"), all("other"), all("loop"));
    assert!(count(&same, "same") > 0 && count(&same, "differing") + count(&same, "errors") == 0, "{same}");
    assert!(
        count(&other, "differing") > 0 && count(&other, "same") + count(&other, "errors") == 0,
        "{other}"
    );
    assert!(count(&stuck, "errors") > 0 && count(&stuck, "differing") == 0, "{stuck}");
    let metrics = weir.metrics();
    let lines =
        |result: &str| metrics.sum("weir_shadow_lines_total", &[("entry", "loop"), ("result", result)]);
    assert_eq!(lines("error") as u64, count(&stuck, "errors"));
    assert_eq!(metrics.sum("weir_filter_errors_total", &[]), 0.0, "no failure is the filter's");
    assert_eq!(shadow("none")["state"], "failed");
    // A shadow comes and goes without its filter.
    list[0]["filter"]["shadow"] = Value::Null;
    let since = weir.entry("same")["filter"]["stats"]["since"].clone();
    weir.put_list(&json!(list));
    eventually(SOON, "it is gone", || shadow("same"), Value::is_null);
    assert_eq!(weir.entry("same")["filter"]["stats"]["since"], since, "the filter was left alone");
    assert!(weir.stop().success());
}
