//! Files are renamed, truncated, deleted, replaced; their lines arrive all the same.

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{Expected, LineFile, Tally};
use weir_tests::topic::Topic;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host};

/// An agent that follows `pattern` from the beginning, and the topic.
fn following(prefix: &str, pattern: &str, partitions: i32) -> (Weir, Topic) {
    let topic = Kafka::shared().topic(prefix, partitions);
    let mut weir = host();
    let list = json!([{"name": "app", "path": weir.log(pattern), "topic": topic.name(), "start_at": "beginning",
        "exclude": ["*.gz", "*.tmp"]}]);
    weir.list(&list);
    (weir, topic)
}

/// Everything is delivered, the agent stops in good order, and the topic has each line once.
#[track_caller]
fn assert_exact(mut weir: Weir, topic: &Topic, expected: &[Expected]) {
    weir.await_finished("app", expected.iter().map(Expected::lines).sum(), LONG);
    assert!(weir.stop().success());
    topic.verdict(expected, SOON).assert_exact();
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_then_the_new_one() {
    let (mut weir, topic) = following("renamed", "app.log", 4);
    weir.start();
    let file = LineFile::create(weir.log("app.log"), "app", 200);
    let writer = file.paced(10_000);
    for n in 1..=5 {
        eventually(SOON, "more lines", || writer.written(), |written| *written >= n * 5_000);
        writer.with(|file| {
            file.rotate(&weir.log(&format!("app.log.{n}")));
            file.write(10);
        });
    }
    assert_exact(weir, &topic, &[writer.stop()]);
}

#[test]
fn a_writer_that_keeps_the_renamed_file_open_loses_nothing() {
    let (mut weir, topic) = following("kept-open", "app.log", 1);
    let mut old = LineFile::create(weir.log("app.log"), "old", 100);
    old.write(1_000);
    weir.start();
    weir.await_finished("app", 1_000, SOON);
    std::fs::rename(weir.log("app.log"), weir.log("app.log.1")).expect("rename");
    let mut new = LineFile::create(weir.log("app.log"), "new", 100);
    new.write(500);
    weir.await_finished("app", 1_500, SOON);
    old.write(500);
    assert_exact(weir, &topic, &[old.expected(), new.expected()]);
}

#[test]
fn a_truncated_file_begins_again() {
    let (mut weir, topic) = following("truncated", "app.log", 1);
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    weir.start();
    for n in 1..=3 {
        file.write(2_000);
        weir.await_finished("app", n * 2_000, SOON);
        file.copytruncate(&weir.log("app.log.tmp"));
    }
    file.write(10);
    assert_exact(weir, &topic, &[file.expected()]);
}

#[test]
fn a_deleted_file_is_delivered_to_its_end() {
    let (mut weir, topic) = following("deleted", "app.log", 1);
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(200_000);
    weir.start();
    eventually(SOON, "the file to be open", || weir.descriptors(&weir.log("app.log")), |fds| !fds.is_empty());
    std::fs::remove_file(weir.log("app.log")).expect("delete");
    file.write(10);
    assert_exact(weir, &topic, &[file.expected()]);
}

#[test]
fn files_that_appear_later_are_followed_and_excluded_ones_are_not() {
    let (mut weir, topic) = following("later", "*/app*", 2);
    weir.start();
    std::fs::create_dir(weir.log("one")).expect("a directory");
    let mut files = Vec::new();
    for (name, id) in
        [("one/app.log", "a"), ("one/app.log.tmp", "b"), ("one/app2.log", "c"), ("one/other", "d")]
    {
        let mut file = LineFile::create(weir.log(name), id, 100);
        file.write(1_000);
        files.push(file);
    }
    assert_exact(weir, &topic, &[files[0].expected(), files[2].expected()]);
}

#[test]
fn a_last_line_without_newline_is_sent_when_its_file_is_finished() {
    let (mut weir, topic) = following("unended", "app.log", 1);
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write_raw(b"whole\nunended");
    weir.start();
    weir.await_finished("app", 1, SOON);
    file.rotate(&weir.log("app.log.1"));
    file.write_raw(b"new\n");
    let mut texts: Vec<_> = topic.take(3, SOON).iter().map(weir_tests::topic::Record::text).collect();
    texts[1..].sort();
    assert_eq!(texts, ["whole", "new", "unended"]);
}

#[test]
fn a_path_that_appears_later_is_waited_for() {
    let (mut weir, topic) = following("absent", "a/b/app.log", 1);
    weir.start();
    weir.await_state("app", "waiting");
    std::fs::create_dir_all(weir.log("a/b")).expect("directories");
    let mut file = LineFile::create(weir.log("a/b/app.log"), "app", 200);
    file.write(1_000);
    assert_exact(weir, &topic, &[file.expected()]);
}

/// Compresses a file as logrotate does.
#[track_caller]
fn gzip(path: &std::path::Path) {
    let status = std::process::Command::new("gzip").arg("-1").arg(path).status().expect("run gzip");
    assert!(status.success(), "gzip {}: {status}", path.display());
}

#[test]
fn kill_9_with_a_rotation_while_down_loses_nothing() {
    kill_with_a_rotation_while_down("killed", |_| ());
}

#[test]
fn kill_9_with_a_rotation_and_compression_while_down_loses_nothing() {
    kill_with_a_rotation_while_down("compressed", gzip);
}

#[test]
fn rotation_that_compresses_at_once_while_lines_are_written_loses_and_repeats_nothing() {
    let topic = Kafka::shared().topic("compress-at-once", 4);
    let mut weir = host();
    let list = json!([{"name": "app", "path": weir.log("app.log*"), "topic": topic.name(), "start_at": "beginning"}]);
    weir.list(&list);
    weir.start();
    let file = LineFile::create(weir.log("app.log"), "app", 200);
    let writer = file.paced(10_000);
    for n in 1..=5 {
        eventually(SOON, "more lines", || writer.written(), |written| *written >= n * 5_000);
        let rotated = weir.log(&format!("app.log.{n}"));
        writer.with(|file| file.rotate(&rotated));
        gzip(&rotated);
    }
    assert_exact(weir, &topic, &[writer.stop()]);
}

fn kill_with_a_rotation_while_down(prefix: &str, then: impl Fn(&std::path::Path)) {
    let (weir, topic) = following(prefix, "app.log", 4);
    let mut weir = weir.setting("limits", "memory = \"16MiB\"");
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(900_000);
    weir.start();
    let delivered = || weir.lines("app").delivered;
    eventually(LONG, "a part to be delivered", delivered, |delivered| *delivered >= 100_000);
    weir.kill();
    let mut tally = Tally::of(&[file.expected()]);
    topic.tally_now(&mut tally);
    assert!(tally.missing() > 0, "the agent was killed too late to prove anything");
    file.rotate(&weir.log("app.log.1"));
    then(&weir.log("app.log.1"));
    file.write(100_000);
    weir.start();
    let verdict = topic.verdict(&[file.expected()], LONG);
    weir.await_finished("app", 100_000, SOON);
    assert!(weir.stop().success());
    verdict.assert_at_least_once();
    let repeated = verdict.repeated() * 200;
    assert!(
        repeated <= 32 << 20,
        "{repeated} bytes were repeated: more than was under way and 16 MiB\n{verdict}"
    );
    // And at the next start nothing comes again.
    weir.start();
    weir.await_state("app", "following");
    assert!(weir.stop().success());
    assert_eq!(topic.verdict(&[file.expected()], SOON).repeated(), verdict.repeated());
}
