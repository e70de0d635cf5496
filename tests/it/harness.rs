//! The harness judges the agent, so it is judged first: each fault that it should notice is made.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::scratch;
use weir_tests::topic::Topic;
use weir_tests::wait::{SOON, eventually};

/// Produces the lines of a file with kcat, which has nothing of ours in it.
#[track_caller]
fn kcat(kafka: &Kafka, topic: &Topic, file: &Path) {
    let mut command = Command::new("kcat");
    command.args(["-P", "-q", "-p", "0", "-b", &kafka.brokers(), "-t", topic.name(), "-l"]).arg(file);
    assert!(command.status().expect("run kcat").success());
}

#[test]
fn a_hundred_thousand_lines_come_back_exactly() {
    let (kafka, dir) = (Kafka::shared(), scratch::dir("harness"));
    let topic = kafka.topic("exact", 2);
    let mut lines = LineFile::create(dir.path().join("a.log"), "a", 200);
    lines.write(100_000);
    kcat(kafka, &topic, lines.path());
    let begun = Instant::now();
    topic.verdict(&[lines.expected()], SOON).assert_exact();
    eprintln!("100,000 lines judged in {:?}", begun.elapsed());
}

#[test]
fn a_lost_a_repeated_and_a_reordered_line_are_noticed_among_a_hundred_thousand() {
    let (kafka, dir) = (Kafka::shared(), scratch::dir("harness"));
    let topic = kafka.topic("doctored", 1);
    let mut lines = LineFile::create(dir.path().join("a.log"), "a", 200);
    lines.write(100_000);
    let text = std::fs::read_to_string(lines.path()).expect("read it back");
    let mut doctored: Vec<_> = text.lines().collect();
    doctored.swap(70_000, 70_001);
    doctored.insert(50_000, doctored[49_000]);
    doctored.remove(30_000);
    let file = dir.path().join("doctored.log");
    std::fs::write(&file, doctored.join("\n") + "\n").expect("write it doctored");
    kcat(kafka, &topic, &file);
    let verdict = topic.verdict(&[lines.expected()], Duration::from_secs(3));
    let (_, a) = &verdict.files[0];
    assert_eq!((a.lost, a.first_lost.as_str()), (1, "30000"), "{verdict}");
    assert_eq!((a.repeated, a.reordered, a.damaged, verdict.strangers), (1, 1, 0, 0), "{verdict}");
}

#[test]
fn what_is_written_steadily_is_read_while_it_comes() {
    let (kafka, dir) = (Kafka::shared(), scratch::dir("harness"));
    let topic = kafka.topic("steady", 1);
    let writer = LineFile::create(dir.path().join("a.log"), "a", 100).paced(2_000);
    eventually(SOON, "500 lines", || writer.written(), |written| *written >= 500);
    let old = dir.path().join("a.log.1");
    writer.with(|file| file.rotate(&old));
    eventually(SOON, "1,000 lines", || writer.written(), |written| *written >= 1_000);
    let expected = writer.stop();
    for file in [&old, &dir.path().join("a.log")] {
        kcat(kafka, &topic, file);
    }
    topic.verdict(&[expected], SOON).assert_exact();
}

#[test]
fn a_broker_keeps_its_data_over_a_stop_a_kill_and_a_pause() {
    let begun = Instant::now();
    let (kafka, dir) = (Kafka::private(), scratch::dir("harness"));
    eprintln!("Kafka formatted and started in {:?}", begun.elapsed());
    let topic = kafka.topic("kept", 1);
    let mut lines = LineFile::create(dir.path().join("a.log"), "a", 200);
    lines.write(1_000);
    kcat(&kafka, &topic, lines.path());
    let mut consumer = topic.consumer();
    assert_eq!(consumer.take(1, SOON)[0].offset, 0);
    let begun = Instant::now();
    kafka.stop();
    eprintln!("Kafka stopped in {:?}", begun.elapsed());
    kafka.start();
    eprintln!("Kafka stopped and started in {:?}", begun.elapsed());
    kafka.pause();
    kafka.resume();
    kafka.kill();
    let begun = Instant::now();
    kafka.start();
    eprintln!("Kafka started again in {:?}", begun.elapsed());
    assert_eq!(consumer.take(999, SOON)[998].offset, 999);
    topic.verdict(&[lines.expected()], SOON).assert_exact();
}

#[test]
fn etcd_keeps_what_was_put_and_a_watch_sees_each_change() {
    let etcd = Etcd::private();
    let changes = etcd.watch("/harness/");
    let first = etcd.put("/harness/a", "one");
    assert!(etcd.put("/harness/a", "two") > first);
    etcd.delete("/harness/a");
    let next = || changes.recv_timeout(SOON).expect("a change");
    for value in [Some("one"), Some("two"), None] {
        assert_eq!(next(), ("/harness/a".to_owned(), value.map(Into::into)));
    }
    etcd.put("/harness/b", "kept");
    etcd.stop();
    etcd.start();
    etcd.pause();
    etcd.resume();
    assert_eq!(etcd.get("/harness/b"), Some(b"kept".to_vec()));
    assert_eq!(etcd.get("/harness/a"), None);
    assert_eq!(etcd.keys("/harness/"), ["/harness/b"]);
}

#[test]
fn guests_are_built_and_each_version_of_the_stamp_is_a_module_of_its_own() {
    for guest in ["drop_debug", "redact", "json_fields", "guest_misbehave"] {
        assert!(guests::bytes(guest).starts_with(b"\0asm"), "{guest}");
    }
    let (one, two) = (guests::stamp(1), guests::stamp(2));
    assert!(one.starts_with(b"\0asm") && one.len() == two.len() && one != two);
}

#[test]
fn the_shared_servers_are_up_within_a_few_seconds() {
    let begun = Instant::now();
    Kafka::shared();
    let kafka = begun.elapsed();
    Etcd::shared();
    eprintln!("Kafka after {kafka:?}, etcd after {:?}", begun.elapsed() - kafka);
}
