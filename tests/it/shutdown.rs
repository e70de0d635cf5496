//! A stop is in good order or says that it is not.

use std::time::Instant;

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::wait::{SOON, eventually};

use crate::{LONG, host, unconnected};

#[test]
fn a_stop_that_exits_0_repeats_nothing() {
    let topic = Kafka::shared().topic("stopped", 4);
    let mut weir = host();
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(1_000_000);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    for part in 1..=3 {
        weir.start();
        let delivered = || weir.lines("app").delivered;
        eventually(LONG, "a part to be delivered", delivered, |delivered| *delivered >= 50_000);
        let begun = Instant::now();
        assert!(weir.stop().success(), "{}", weir.stderr());
        let (records, took) = (topic.count_all(), begun.elapsed());
        assert!(records < 1_000_000, "stop {part} came too late to prove anything");
        eprintln!("stop {part} took {took:?}; {records} records are on the topic");
    }
    weir.start();
    topic.verdict(&[file.expected()], LONG).assert_exact();
    assert!(weir.stop().success());
    topic.verdict(&[file.expected()], SOON).assert_exact();
}

#[test]
fn a_stop_while_everything_is_delivered_is_quick() {
    let topic = Kafka::shared().topic("idle", 1);
    // Were it to use up its time, it would not end within the harness' own deadline.
    let mut weir = host().setting("agent", "drain = \"120s\"");
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(1_000);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    for _ in 0..3 {
        weir.start();
        topic.verdict(&[file.expected()], SOON).assert_exact();
        file.write(1_000);
        topic.verdict(&[file.expected()], SOON).assert_exact();
        let begun = Instant::now();
        assert!(weir.stop().success());
        eprintln!("a stop with nothing to do took {:?}", begun.elapsed());
    }
    topic.verdict(&[file.expected()], SOON).assert_exact();
}

#[test]
fn a_stop_without_a_broker_exits_1_and_says_how_much_may_be_repeated() {
    let kafka = Kafka::private();
    let topic = kafka.topic("unacknowledged", 1);
    let mut weir = unconnected().kafka(&kafka.brokers()).setting("agent", "drain = \"2s\"");
    let mut file = LineFile::create(weir.log("app.log"), "app", 200);
    file.write(1_000);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    weir.start();
    weir.await_finished("app", 1_000, SOON);
    kafka.pause();
    file.write(1_000);
    eventually(SOON, "lines under way", || weir.lines("app").in_flight, |lines| *lines > 0);
    assert_eq!(weir.stop().code(), Some(1), "{}", weir.stderr());
    assert!(weir.stderr().contains("repeat"), "it says what may be repeated: {}", weir.stderr());
    kafka.resume();
    weir.start();
    weir.await_finished("app", 1_000, LONG);
    topic.verdict(&[file.expected()], SOON).assert_at_least_once();
}

#[test]
fn a_second_agent_on_the_same_state_exits_1_and_names_the_first() {
    let topic = Kafka::shared().topic("second", 1);
    let mut weir = host();
    weir.list(&json!([{"path": weir.log("app.log"), "topic": topic.name()}]));
    weir.start();
    let second = weir.weir(&["run"]);
    assert_eq!(second.code(), 1, "{second:?}");
    assert!(second.stderr.contains(&weir.pid().to_string()), "{}", second.stderr);
    assert!(weir.runs());
}
