//! What is written arrives: each line once, in order, as it was.

use std::process::Command;

use serde_json::json;
use weir_tests::etcd::Etcd;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host, unconnected};

#[track_caller]
fn etcdctl(args: &[&str]) {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", Etcd::shared().endpoint())).args(args);
    let output = command.output().expect("run etcdctl");
    assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_older_agents_settings_and_list_move_a_million_lines_exactly() {
    let (kafka, etcd) = (Kafka::shared(), Etcd::shared());
    let topic = kafka.topic("older", 4);
    let ini = format!(
        "[kafka]\naddress = {}\ntopic = unused\nchan_size = 100000\n\n[collect]\nlogfile_path = ./unused.log\n\n\
         [etcd]\naddress = {}\ncollect_key = /older/collect_log_conf\n",
        kafka.brokers(),
        etcd.endpoint()
    );
    let mut weir = unconnected().settings_file("config.ini", &ini);
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    let path = file.path().to_str().expect("text").to_owned();
    let list = json!([{"path": path, "topic": topic.name()}]).to_string();
    etcdctl(&["put", "/older/collect_log_conf", &list]);
    weir.start();
    weir.await_state(&path, "following");
    file.write(1_000_000);
    let lines = weir.await_finished(&path, 1_000_000, LONG);
    assert_eq!((lines.read, lines.delivered), (1_000_000, 1_000_000));
    assert!(weir.stop().success());
    topic.verdict(&[file.expected()], SOON).assert_exact();
}

#[test]
fn lines_go_out_as_they_are_but_for_the_newline() {
    let topic = Kafka::shared().topic("bytes", 1);
    let mut weir = host();
    let mut file = LineFile::create(weir.log("app.log"), "app", 50);
    file.write_raw(b"windows\r\n\n\r\n\xff\xfe not utf-8 \xc3\n  blanks  \n{\"a\":1}\nheld");
    let list = json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]);
    weir.list(&list);
    weir.start();
    let values =
        |records: Vec<weir_tests::topic::Record>| records.into_iter().map(|r| r.value).collect::<Vec<_>>();
    let sent = values(topic.take(4, SOON));
    assert_eq!(sent, [&b"windows\r"[..], b"\xff\xfe not utf-8 \xc3", b"  blanks  ", b"{\"a\":1}"]);
    let lines = weir.await_finished("app", 6, SOON);
    assert_eq!((lines.read, lines.delivered, lines.skipped), (6, 4, 2), "two of them were empty");
    file.write_raw(b" back\n");
    assert_eq!(topic.take(5, SOON)[4].text(), "held back");
    let plain = topic.all().into_iter().all(|record| record.key.is_none() && record.headers.is_empty());
    assert!(plain, "no key and no headers unless the entry asks for them");
}

#[test]
fn a_new_entry_begins_at_the_end_of_files_that_are_there_and_at_the_beginning_of_later_ones() {
    let topic = Kafka::shared().topic("startat", 1);
    let mut weir = host();
    let mut old = LineFile::create(weir.log("old.log"), "old", 100);
    old.write(1_000);
    weir.list(&json!([{"name": "app", "path": weir.log("*.log"), "topic": topic.name()}]));
    weir.start();
    weir.await_state("app", "following");
    old.write(500);
    let mut new = LineFile::create(weir.log("new.log"), "new", 100);
    new.write(500);
    weir.await_finished("app", 1_000, SOON);
    assert!(weir.stop().success());
    let expected = [old.expected().only(|seq| seq >= 1_000), new.expected()];
    topic.verdict(&expected, SOON).assert_exact();
}

#[test]
fn a_line_longer_than_allowed_is_split_and_stays_whole_in_sum() {
    let topic = Kafka::shared().topic("long", 1);
    let mut weir = host();
    let mut file = LineFile::create(weir.log("app.log"), "app", 50);
    let long: String = (0..10_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    file.write_raw(format!("before\n{long}\nafter\n").as_bytes());
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(),
        "start_at": "beginning", "line_bytes_max": 4096}]));
    weir.start();
    let sent = topic.take(5, SOON);
    let text: Vec<_> = sent.iter().map(weir_tests::topic::Record::text).collect();
    assert_eq!((text[0].as_str(), text[4].as_str()), ("before", "after"));
    assert_eq!(text[1..4].concat(), long);
    assert!(text[1..4].iter().all(|part| part.len() <= 4096));
}

#[test]
fn a_hundred_files_of_one_entry_and_ten_entries_of_one_topic_keep_their_orders() {
    let topic = Kafka::shared().topic("many", 8);
    let mut weir = host();
    let mut files: Vec<_> = (0..100)
        .map(|n| LineFile::create(weir.log(&format!("many-{n:03}.log")), &format!("m{n:03}"), 100))
        .chain(
            (0..10).map(|n| LineFile::create(weir.log(&format!("one-{n:03}.txt")), &format!("o{n:03}"), 100)),
        )
        .collect();
    let path = |name: &str| weir.log(name);
    let mut list = vec![json!({"name": "many", "path": path("many-*.log"), "topic": topic.name(),
        "start_at": "beginning"})];
    list.extend((0..10).map(
        |n| json!({"path": path(&format!("one-{n:03}.txt")), "topic": topic.name(), "start_at": "beginning"}),
    ));
    weir.list(&json!(list));
    weir.start();
    for _ in 0..10 {
        files.iter_mut().for_each(|file| file.write(100));
    }
    let expected: Vec<_> = files.iter().map(LineFile::expected).collect();
    topic.verdict(&expected, LONG).assert_exact();
    let finished = || {
        let status = weir.status();
        let entries = status["entries"].as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["lines"]["delivered"].as_u64().unwrap_or(0)).sum::<u64>()
    };
    eventually(SOON, "110,000 lines in the status", finished, |sum| *sum == 110_000);
}

#[test]
fn the_sums_hold_in_the_status_and_in_the_metrics_at_every_moment() {
    let topic = Kafka::shared().topic("sums", 1);
    let module = weir_tests::guests::path("drop_debug");
    let mut weir = host();
    let file = LineFile::create(weir.log("app.log"), "app", 100).with_head(|seq| match seq % 4 {
        0 => "DEBUG ",
        1 => "\n",
        _ => "",
    });
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(),
        "start_at": "beginning", "filter": module}]));
    weir.start();
    let writer = file.paced(50_000);
    let enough = |weir: &Weir| weir.lines("app").read > 100_000;
    eventually(LONG, "100,000 lines with good sums", || good_sums(&weir), |_| enough(&weir));
    let expected = writer.stop();
    let written = expected.lines();
    let empty = (0..written).filter(|seq| seq % 4 == 1).count() as u64;
    let debug = (0..written).filter(|seq| seq % 4 == 0).count() as u64;
    let lines = weir.await_finished("app", written + empty, SOON);
    assert_eq!((lines.read, lines.filtered, lines.skipped), (written + empty, debug, empty), "{lines:?}");
    let metrics = weir.metrics();
    let of_app = [("entry", "app")];
    assert_eq!(metrics.sum("weir_lines_delivered_total", &of_app), (written - debug) as f64);
    assert_eq!(metrics.sum("weir_lag_bytes", &of_app), 0.0);
    for name in ["weir_build_info", "weir_list_revision", "weir_module_info", "weir_filter_seconds_count"] {
        assert!(metrics.has(name), "{name} in {metrics:?}");
    }
    assert!(weir.stop().success());
    topic.verdict(&[expected.only(|seq| seq % 4 != 0)], SOON).assert_exact();
}

/// One look at status and metrics.
#[track_caller]
fn good_sums(weir: &Weir) -> bool {
    let lines = weir.lines("app");
    assert!(lines.hold(), "{lines:?}");
    let metrics = weir.metrics();
    let count = |name: &str| metrics.sum(&format!("weir_lines_{name}"), &[("entry", "app")]);
    let finished = ["delivered", "filtered", "skipped", "quarantined", "discarded"];
    let finished: f64 = finished.iter().map(|name| count(&format!("{name}_total"))).sum();
    assert_eq!(count("read_total"), finished + count("in_flight"), "{metrics:?}");
    true
}

#[test]
fn a_broker_that_is_away_for_a_while_costs_no_line() {
    let kafka = Kafka::private();
    let topic = kafka.topic("away", 2);
    let mut weir = unconnected().kafka(&kafka.brokers()).setting("limits", "memory = \"8MiB\"");
    let file = LineFile::create(weir.log("app.log"), "app", 200);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    weir.start();
    let writer = file.paced(20_000);
    let delivered = |weir: &Weir, more: u64| {
        let until = weir.lines("app").delivered + more;
        let look = || weir.lines("app").delivered;
        eventually(LONG, "more lines delivered", look, |delivered| *delivered >= until);
    };
    delivered(&weir, 10_000);
    let behind = || weir.metrics().sum("weir_lag_bytes", &[("entry", "app")]);
    kafka.pause();
    eventually(SOON, "the lag to reach the memory", behind, |lag| *lag > 8e6);
    kafka.resume();
    delivered(&weir, 10_000);
    kafka.kill();
    eventually(SOON, "the lag to exceed the memory by far", behind, |lag| *lag > 24e6);
    kafka.start();
    let expected = writer.stop();
    weir.await_finished("app", expected.lines(), LONG);
    assert!(weir.peak_memory() < 250 << 20, "peak memory {} MiB", weir.peak_memory() >> 20);
    assert!(weir.stop().success());
    // A broker that was killed may have written what it could not acknowledge any more.
    topic.verdict(&[expected], SOON).assert_at_least_once();
}

#[test]
fn an_agent_waits_for_its_broker_and_says_so() {
    let kafka = Kafka::private();
    let topic = kafka.topic("later", 1);
    kafka.stop();
    let mut weir = unconnected().kafka(&kafka.brokers());
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(1_000);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    weir.start();
    let unwell = |entry: &serde_json::Value| {
        matches!(entry["state"].as_str(), Some("waiting" | "stalled")) && entry["cause"] != ""
    };
    eventually(SOON, "the entry to say what it waits for", || weir.entry("app"), unwell);
    kafka.start();
    weir.await_finished("app", 1_000, LONG);
    topic.verdict(&[file.expected()], SOON).assert_exact();
}
