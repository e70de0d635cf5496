//! Entries and modules change all the time while lines run through them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use serde_json::{Value, json};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::topic::Topic;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::{Outcome, PATIENCE, Plan};
use crate::{put_list, steered};

/// Between two changes.
const EVERY: Duration = Duration::from_millis(100);
/// Modules that take turns; each is a digest of its own.
const MODULES: u64 = 4;
/// Between two moves of the tag, which take a process each.
const TAG_EVERY: Duration = Duration::from_secs(1);

/// The list at change `n`: one entry gets another module and another config at once, one comes and
/// goes, one goes to another topic, one stays.
fn list(weir: &Weir, topics: &Topics, n: u64) -> Value {
    let entry = |name: &str, topic: &Topic, filter: Value| {
        json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": topic.name(),
            "start_at": "beginning", "filter": filter})
    };
    let swapped = json!({"module": format!("stamp-{}", n % MODULES), "config": n.to_string()});
    let moving = &topics.moving[usize::from(n / 7 % 2 == 1)];
    let mut list = vec![
        entry("swapped", &topics.swapped, swapped),
        entry("tagged", &topics.tagged, json!("stamp")),
        entry("moving", moving, Value::Null),
        entry("same", &topics.same, Value::Null),
    ];
    if (n / 5).is_multiple_of(2) {
        list.push(entry("coming", &topics.coming, Value::Null));
    }
    json!(list)
}

struct Topics {
    swapped: Topic,
    tagged: Topic,
    moving: [Topic; 2],
    coming: Topic,
    same: Topic,
}

/// Pushes a stamp module under a tag.
fn push(weir: &Weir, tag: &str, wasm: &[u8]) {
    let file = weir.file(&format!("{tag}.wasm"));
    std::fs::write(&file, wasm).expect("write a module");
    weir.weir(&["module", "push", file.to_str().expect("text"), "--tag", tag]).ok();
}

/// Reads a topic whose lines carry the version that was at work before them, and says how many
/// versions there were. They must follow one another, line after line.
fn versions(topic: &Topic, tally: &mut Tally) -> u64 {
    let (mut last, mut count) = (0, 0);
    let mut consumer = topic.consumer();
    let mut see = |message: &rdkafka::message::BorrowedMessage<'_>| {
        let Some(found) = tally.see(message.partition(), message.payload().unwrap_or_default()) else {
            return;
        };
        let head = std::str::from_utf8(found.head).ok().and_then(|head| head.strip_suffix(' '));
        let version: Option<u64> = head.and_then(|version| version.parse().ok());
        let version = version.unwrap_or_else(|| panic!("one version before the line, not {:?}", found.head));
        assert!(version >= last, "version {version} after {last}");
        count += u64::from(version > last);
        last = version;
    };
    consumer.to_end(&mut see);
    count
}

#[test]
fn changes_of_entries_and_modules_give_each_line_one_version_and_lose_and_repeat_nothing() {
    const KEY: &str = "/changes/collect";
    let plan = Plan::of("entries and modules changed every 100 ms", 40, 10_000);
    let mut dice = plan.dice();
    let kafka = Kafka::shared();
    let topic = |name: &str| kafka.topic(name, 1);
    let topics = Topics {
        swapped: topic("swapped"),
        tagged: topic("tagged"),
        moving: [topic("moving-a"), topic("moving-b")],
        coming: topic("coming"),
        same: topic("same"),
    };
    let mut weir = steered(KEY);
    // The config says the version, so these differ in their digests only.
    for n in 0..MODULES {
        let wasm = guest_stamp::with_custom_section(&guests::stamp(1), "n", &[n as u8]);
        push(&weir, &format!("stamp-{n}"), &wasm);
    }
    push(&weir, "stamp", &guests::stamp(1));
    let writers = ["swapped", "tagged", "moving", "coming", "same"]
        .map(|name| LineFile::create(weir.log(&format!("{name}.log")), name, 100).paced(2_000));
    put_list(KEY, &list(&weir, &topics, 1));
    weir.start();
    let read = |name: &str| weir.lines(name).read;
    eventually(PATIENCE, "the first swapped lines", || read("swapped"), |read| *read > 0);
    let threads = weir.threads();
    let begun = Instant::now();
    let done = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in (2..).take_while(|_| !done.load(Ordering::Relaxed)) {
                push(&weir, "stamp", &guests::stamp(version));
                std::thread::sleep(TAG_EVERY);
            }
        });
        for n in 2..=plan.rounds {
            put_list(KEY, &list(&weir, &topics, n));
            // Now at once, now later; what a change took is made up for.
            let due = EVERY * (n as u32 - 1) + Duration::from_millis(dice.below(EVERY.as_millis() as u64));
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        done.store(true, Ordering::Relaxed);
        begun.elapsed()
    });
    // A number that has every entry in it.
    let end = (plan.rounds / 10 + 1) * 10;
    put_list(KEY, &list(&weir, &topics, end));
    let expected = writers.map(|writer| writer.stop());
    for name in ["swapped", "tagged", "moving", "coming", "same"] {
        let done = |entry: &Value| entry["lag_bytes"] == 0 && entry["lines"]["in_flight"] == 0;
        eventually(PATIENCE, &format!("the end of {name}"), || weir.entry(name), done);
    }
    let same = |threads: &std::collections::BTreeMap<u32, String>| {
        threads.iter().find(|(_, name)| *name == "same").map(|(id, _)| *id)
    };
    assert_eq!(same(&weir.threads()), same(&threads), "the thread of the entry that did not change");
    assert!(weir.stop().success(), "{}", weir.stderr());

    let mut tally = Tally::of(&expected);
    let swapped = versions(&topics.swapped, &mut tally);
    let tagged = versions(&topics.tagged, &mut tally);
    for (place, topic) in
        [&topics.moving[0], &topics.moving[1], &topics.coming, &topics.same].iter().enumerate()
    {
        // As if each were a partition: order holds on each topic.
        topic.consumer().to_end(|message| {
            tally.see(place as i32, message.payload().unwrap_or_default());
        });
    }
    let facts = json!({"versions_at_work": swapped, "tags_at_work": tagged,
        "changes_per_s": (plan.rounds as f64 / took.as_secs_f64()).round()});
    Outcome::of(plan, tally.verdict(), Some(0), facts)
        .must(swapped > plan.rounds / 10, format!("only {swapped} versions were at work: no proof"))
        .report();
}
