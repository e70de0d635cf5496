//! What one file or entry has to do is not what others wait for, and all together stay within the memory.
//!
//! Times are those of the broker's log, and held against others of the same run.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use serde_json::{Value, json};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::mock::MockKafka;
use weir_tests::steady::{self, Steady};
use weir_tests::topic::Topic;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::{Lines, Weir};

use crate::faults::AGENT_MEMORY;
use crate::{LONG, host, unconnected};

/// Lines of a backlog: seconds of work.
const BACKLOG: u64 = 3_000_000;
/// Bytes of each.
const LINE_BYTES: usize = 200;
/// `limits.memory`. Bytes.
const MEMORY: u64 = 32 << 20;
/// What the program and its libraries take in a development build more than in a release, 27 of 19 MB. Bytes.
const DEVELOPMENT: u64 = 8 << 20;

/// A topic on which each record has the time at which it was written to the broker's log.
fn timed(prefix: &str) -> Topic {
    Kafka::shared().topic_with(prefix, 1, &[("message.timestamp.type", "LogAppendTime")])
}

/// All files that begin with the entry's name.
fn entry(weir: &Weir, name: &str, topic: &Topic) -> Value {
    let path = weir.log(&format!("{name}*.log"));
    json!({"name": name, "path": path, "topic": topic.name(), "start_at": "beginning"})
}

/// How long the lines of the steady file of this path took that were written within these times, shortest
/// first. Milliseconds.
fn delays(topic: &Topic, path: &Path, from: Duration, to: Duration) -> Vec<i64> {
    let mut delays = Vec::new();
    topic.consumer().to_end(|message| {
        let Some((_, written)) = steady::parse(message.payload().unwrap_or_default()) else { return };
        if message.key() != Some(path.as_os_str().as_bytes()) {
            return;
        }
        let logged = message.timestamp().to_millis().expect("the time of the log");
        if (from..to).contains(&written) {
            delays.push(logged - written.as_millis() as i64);
        }
    });
    delays.sort_unstable();
    delays
}

#[test]
fn a_huge_backlog_holds_up_no_fresh_line_of_its_own_entry_or_of_another() {
    let (near, far) = (timed("near"), timed("far"));
    let mut weir = host();
    let mut big = LineFile::create(weir.log("near-big.log"), "big", LINE_BYTES);
    big.write(BACKLOG);
    // Of the same entry, of another one with the same partition, and of one with another topic.
    let quiet =
        [("near", "near-quiet.log", &near), ("beside", "beside.log", &near), ("far", "far.log", &far)];
    weir.list(&json!(quiet.map(|(name, _, topic)| {
        let mut entry = entry(&weir, name, topic);
        entry["key"] = json!("path");
        entry
    })));
    let files = quiet.map(|(_, log, _)| Steady::begin(weir.log(log)));
    weir.start();
    eventually(SOON, "the backlog to be begun", || weir.lines("near").delivered, |lines| *lines > 0);
    let (from, begun) = (steady::now(), Instant::now());
    eventually(LONG, "the backlog to be done", || weir.lines("near").delivered, |lines| *lines >= BACKLOG);
    let (to, took) = (steady::now(), begun.elapsed());
    let written = files.map(Steady::end);
    for ((name, _, _), written) in quiet.iter().zip(written) {
        weir.await_finished(name, written + if *name == "near" { BACKLOG } else { 0 }, SOON);
    }
    assert!(weir.stop().success());
    let [near, beside, far] = quiet.map(|(name, log, topic)| {
        let delays = delays(topic, &weir.log(log), from, to);
        assert!(delays.len() > 10, "{name}: {} lines in {took:?} say nothing", delays.len());
        let (p99, max) = (delays[delays.len() * 99 / 100], delays[delays.len() - 1]);
        println!("{name}: {took:?} of backlog, p99 {p99} ms, max {max} ms");
        Duration::from_millis(p99 as u64)
    });
    // Behind all that was read before them it would be ten times as long.
    assert!(near < far * 4 && beside < far * 4, "{near:?} near, {beside:?} beside, {far:?} far");
    assert!(far < took / 10, "{far:?} of {took:?}");
}

#[test]
fn a_broker_that_is_away_costs_the_entries_of_another_neither_memory_nor_time() {
    let mock = MockKafka::new(2);
    let [near, far] = ["near", "far"].map(|name| mock.topic(name, 1));
    mock.lead(&near, 1);
    mock.lead(&far, 2);
    let mut weir = unconnected().kafka(&mock.brokers()).setting("limits", &format!("memory = {MEMORY}"));
    for name in ["before", "stuck", "beside"] {
        LineFile::create(weir.log(&format!("{name}.log")), name, LINE_BYTES).write(BACKLOG);
    }
    let list = [("before", &near), ("stuck", &far), ("beside", &near)];
    let list = list.map(|(name, topic)| entry(&weir, name, topic));
    weir.list(&json!([]));
    weir.start();
    let run = |weir: &Weir, name: &str, entries: &[Value]| {
        let begun = Instant::now();
        weir.put_list(&json!(entries));
        weir.await_finished(name, BACKLOG, LONG);
        begun.elapsed()
    };
    let before = run(&weir, "before", &list[..1]);
    mock.down(2);
    weir.put_list(&json!(list[..2]));
    eventually(SOON, "lines that wait", || weir.lines("stuck").in_flight, |lines| *lines > 10_000);
    let beside = run(&weir, "beside", &list);
    let stuck = weir.lines("stuck");
    println!("{before:?} before, {beside:?} beside, {stuck:?}, peak {} MiB", weir.peak_memory() >> 20);
    // A quarter of the memory, and the third part of its other half: the rest is for others.
    let most = MEMORY * 5 / 12 / LINE_BYTES as u64;
    assert!(stuck.in_flight > 0 && stuck.in_flight < most, "{stuck:?}");
    assert!(beside < before * 3, "{before:?} before, {beside:?} beside one that is stuck");
    let most = MEMORY + AGENT_MEMORY + DEVELOPMENT;
    assert!(weir.peak_memory() < most, "{} MiB", weir.peak_memory() >> 20);
    mock.up(2);
    weir.await_finished("stuck", BACKLOG, LONG);
    assert!(weir.stop().success());
}

#[test]
fn a_broker_that_answers_late_costs_little_more_than_one_that_answers_at_once() {
    const LATE: Duration = Duration::from_millis(20);
    const RATE: u64 = 1000;
    for (partition, partitions) in [("file", 1), ("spread", 3)] {
        let mock = MockKafka::new(1);
        let topic = mock.topic("late", partitions);
        let mut weir = unconnected().kafka(&mock.brokers());
        let file = LineFile::create(weir.log("late.log"), "late", LINE_BYTES).paced(RATE);
        let mut entry = entry(&weir, "late", &topic);
        entry["partition"] = json!(partition);
        weir.list(&json!([entry]));
        weir.start();
        // By lines, not by time: on a busy machine both take longer.
        let delivered = |weir: &Weir| weir.lines("late").delivered;
        let cost_of = |lines: u64| {
            let (begun, before) = (delivered(&weir), weir.cpu_of_threads());
            eventually(LONG, "more lines", || delivered(&weir), |now| *now >= begun + lines);
            (weir.cpu_of_threads() - before).as_secs_f64() / (delivered(&weir) - begun) as f64 * 1e6
        };
        cost_of(RATE);
        let at_once = cost_of(3 * RATE);
        mock.answer_after(LATE);
        cost_of(RATE);
        let late = cost_of(3 * RATE);
        println!("{partition}: {at_once:.1} µs a line at once, {late:.1} late");
        drop(file);
        assert!(late < at_once * 3.0, "{partition}: {at_once:.1} µs a line at once, {late:.1} late");
        assert!(weir.stop().success());
    }
}

#[test]
fn many_busy_entries_stay_within_the_memory_together() {
    const ENTRIES: u64 = 10;
    const LINES: u64 = BACKLOG / ENTRIES;
    let topic = Kafka::shared().topic("busy", 2);
    let mut weir = host().setting("limits", &format!("memory = {MEMORY}"));
    let name = |n: u64| format!("busy{n}");
    let file = |n| LineFile::create(weir.log(&format!("{}.log", name(n))), &name(n), LINE_BYTES);
    let mut files: Vec<_> = (0..ENTRIES).map(file).collect();
    files.iter_mut().for_each(|file| file.write(LINES));
    weir.list(&json!((0..ENTRIES).map(|n| entry(&weir, &name(n), &topic)).collect::<Vec<_>>()));
    weir.start();
    for n in 0..ENTRIES {
        weir.await_finished(&name(n), LINES, LONG);
    }
    let (peak, most) = (weir.peak_memory(), MEMORY + AGENT_MEMORY);
    assert!(weir.stop().success());
    println!("peak {} of {} MiB", peak >> 20, most >> 20);
    assert!(peak < most, "{} MiB", peak >> 20);
}

#[test]
fn all_at_once_stays_within_the_memory_also_while_the_broker_is_away() {
    const FILES: u64 = 10_000;
    const LONG_LINES: u64 = 200;
    let kafka = Kafka::private();
    let topic = kafka.topic("all", 2);
    let mut weir = unconnected().kafka(&kafka.brokers()).setting("limits", &format!("memory = {MEMORY}"));
    let file = |name: &str| LineFile::create(weir.log(&format!("{name}.log")), name, LINE_BYTES);
    let mut many: Vec<_> = (0..FILES).map(|n| file(&format!("many{n:05}"))).collect();
    let (mut load, mut replaced) = (file("load"), file("replaced"));
    let mut long = std::fs::File::create(weir.log("long.log")).expect("create a log");
    let names = ["load", "long", "many", "replaced"];
    let mut list = names.map(|name| entry(&weir, name, &topic));
    // Each gets a word before it, so none is sent from where it was read.
    list[3]["filter"] = json!({"module": guests::path("guest_stamp"), "config": "x"});
    weir.list(&json!(list));
    weir.start();
    names.iter().for_each(|name| drop(weir.await_state(name, "following")));
    let mut write = |weight: u64| {
        many.iter_mut().for_each(|file| file.write(weight));
        load.write(BACKLOG / 10 * weight);
        replaced.write(BACKLOG / 10 * weight);
        for _ in 0..LONG_LINES * weight {
            long.write_all(&[b'l'; 1 << 20]).and_then(|()| long.write_all(b"\n")).expect("write a long line");
        }
    };
    let await_each = |what: &str, lines: fn(&Lines) -> u64| {
        let look = || names.map(|name| lines(&weir.lines(name)));
        eventually(LONG, what, look, |each| each.iter().all(|lines| *lines > 0));
    };
    write(1);
    await_each("some lines of each", |lines| lines.delivered);
    kafka.kill();
    write(1);
    await_each("lines of each that wait", |lines| lines.in_flight);
    kafka.start();
    let long = ("long", 2 * LONG_LINES * 4);
    for (name, lines) in [("load", BACKLOG / 5), long, ("many", FILES * 2), ("replaced", BACKLOG / 5)] {
        let lines = weir.await_finished(name, lines, LONG);
        assert_eq!(lines.read, lines.delivered, "{name}: {lines:?}");
    }
    let peak = weir.peak_memory();
    assert!(weir.stop().success());
    let expected: Vec<_> = many.iter().chain([&load, &replaced]).map(LineFile::expected).collect();
    let mut tally = Tally::of(&expected);
    topic.tally_now(&mut tally);
    assert_eq!(tally.missing(), 0, "{}", tally.verdict());
    let most = MEMORY + AGENT_MEMORY + DEVELOPMENT;
    println!("peak {} of {} MiB", peak >> 20, most >> 20);
    assert!(peak < most, "{} MiB", peak >> 20);
}
