//! The list is changed while the agent runs: what changed changes, all else stays.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::topic::Topic;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host, put_list, steered};

/// An entry that reads its file from the beginning.
fn entry(weir: &Weir, name: &str, topic: &Topic) -> Value {
    json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": topic.name(), "start_at": "beginning"})
}

#[track_caller]
fn await_delivered(weir: &Weir, name: &str, count: u64) {
    let what = format!("{count} lines of {name}");
    eventually(SOON, &what, || weir.lines(name).delivered, |delivered| *delivered >= count);
}

#[test]
fn a_list_edit_leaves_unchanged_entries_alone_and_the_others_go_on_from_their_offsets() {
    const KEY: &str = "/edit/collect";
    let kafka = Kafka::shared();
    let [same, gone, before, after, new] =
        ["same", "gone", "before", "after", "new"].map(|name| kafka.topic(name, 1));
    let mut weir = steered(KEY);
    let [same_log, gone_log, moved_log, new_log] = ["same", "gone", "moved", "new"]
        .map(|name| LineFile::create(weir.log(&format!("{name}.log")), name, 100).paced(5_000));
    let with =
        |pairs: &[(&str, &Topic)]| json!(pairs.iter().map(|(n, t)| entry(&weir, n, t)).collect::<Vec<_>>());
    let first = with(&[("same", &same), ("gone", &gone), ("moved", &before)]);
    let second = with(&[("same", &same), ("moved", &after), ("new", &new)]);
    let third = with(&[("same", &same), ("moved", &after), ("new", &new), ("gone", &gone)]);

    put_list(KEY, &first);
    weir.start();
    for name in ["same", "gone", "moved"] {
        await_delivered(&weir, name, 5_000);
    }
    let (threads, open) = (threads_of(&weir, "same"), weir.descriptors(&weir.log("same.log")));
    assert_eq!(
        (threads.len(), open.len()),
        (1, 1),
        "one thread and one descriptor for an entry with one file"
    );
    let read = weir.lines("same").read;

    put_list(KEY, &second);
    await_delivered(&weir, "new", 5_000);
    await_delivered(&weir, "moved", 5_000);
    assert!(weir.entry("gone").is_null());
    let unchanged = (threads_of(&weir, "same"), weir.descriptors(&weir.log("same.log")));
    assert_eq!(unchanged, (threads, open), "thread and descriptor of the entry that did not change");
    assert!(weir.lines("same").read >= read, "its sums go on");

    let mut tally = Tally::of(&[gone_log.with(|file| file.expected())]);
    gone.tally_now(&mut tally);
    let part = tally.verdict();
    assert!(part.lost() > 0 && part.repeated() == 0, "it stopped where it was: {part}");

    put_list(KEY, &third);
    let expected = [same_log, gone_log, moved_log, new_log].map(|writer| writer.stop());
    for (name, expected) in ["same", "gone", "new"].iter().zip([&expected[0], &expected[1], &expected[3]]) {
        await_all(&weir, name, expected.lines());
    }
    let lag = || weir.entry("moved")["lag_bytes"].as_u64();
    eventually(SOON, "no lag of the moved entry", lag, |lag| *lag == Some(0));
    assert!(weir.stop().success());
    let [same_lines, gone_lines, moved_lines, new_lines] = expected;
    for (topic, lines) in [(same, same_lines), (gone, gone_lines), (new, new_lines)] {
        topic.verdict(&[lines], SOON).assert_exact();
    }
    let mut tally = Tally::of(&[moved_lines]);
    before.tally_now(&mut tally);
    assert!(tally.missing() > 0, "the topic was changed too late to prove anything");
    after.tally(&mut tally, SOON);
    tally.verdict().assert_exact();
}

/// Waits until the file of an entry is read to its end and all is finished.
#[track_caller]
fn await_all(weir: &Weir, name: &str, lines: u64) {
    let done = |entry: &Value| entry["lag_bytes"] == 0 && entry["lines"]["in_flight"] == 0;
    eventually(LONG, &format!("{lines} lines of {name}"), || weir.entry(name), done);
}

/// Threads that carry the name of an entry.
fn threads_of(weir: &Weir, entry: &str) -> Vec<u32> {
    let threads = weir.threads().into_iter().filter(|(_, name)| name.contains(entry));
    threads.map(|(id, _)| id).collect()
}

#[test]
fn an_edit_of_one_among_a_thousand_entries_touches_that_one() {
    const KEY: &str = "/thousand/collect";
    const ENTRIES: usize = 1_000;
    let topic = Kafka::shared().topic("thousand", 4);
    let mut weir = steered(KEY);
    let mut files: Vec<_> = (0..ENTRIES)
        .map(|n| LineFile::create(weir.log(&format!("e{n:03}.log")), &format!("e{n:03}"), 100))
        .collect();
    let mut list: Vec<_> = (0..ENTRIES).map(|n| entry(&weir, &format!("e{n:03}"), &topic)).collect();
    let delivered = |weir: &Weir| weir.metrics().sum("weir_lines_delivered_total", &[]);
    // An entry's thread has its name.
    let pipelines = |weir: &Weir| {
        let threads = weir.threads().into_iter().filter(|(_, name)| name.len() == 4 && name.starts_with('e'));
        threads.collect::<BTreeMap<_, _>>()
    };
    put_list(KEY, &json!(list));
    let begun = Instant::now();
    weir.start();
    files.iter_mut().for_each(|file| file.write(10));
    eventually(LONG, "the lines of all", || delivered(&weir), |lines| *lines >= 10.0 * ENTRIES as f64);
    let (all, before) = (begun.elapsed(), pipelines(&weir));
    assert_eq!(before.len(), ENTRIES);

    list[500]["line_bytes_max"] = json!(4096);
    put_list(KEY, &json!(list));
    let begun = Instant::now();
    let has_ended = |now: &BTreeMap<u32, String>| before.keys().any(|thread| !now.contains_key(thread));
    eventually(SOON, "the edited entry to stop", || pipelines(&weir), has_ended);
    let whole = |now: &BTreeMap<u32, String>| now.len() == ENTRIES;
    let now = eventually(SOON, "the edited entry to run", || pipelines(&weir), whole);
    let one = begun.elapsed();
    println!("{ENTRIES} entries after {all:?}, the edited one after {one:?}");
    let kept = now.iter().filter(|(thread, name)| before.get(thread) == Some(name));
    assert_eq!(kept.count(), ENTRIES - 1, "the threads of all others");
    assert!(one < all / 4, "all took {all:?}, one {one:?}");

    files.iter_mut().for_each(|file| file.write(10));
    eventually(LONG, "the lines of all", || delivered(&weir), |lines| *lines >= 20.0 * ENTRIES as f64);
    assert!(weir.stop().success());
    let expected: Vec<_> = files.iter().map(LineFile::expected).collect();
    topic.verdict(&expected, SOON).assert_exact();
}

#[test]
fn bad_json_or_a_deleted_key_keep_what_runs_and_an_empty_list_stops_it() {
    const KEY: &str = "/bad/collect";
    let (etcd, topic) = (Etcd::shared(), Kafka::shared().topic("bad", 1));
    let mut weir = steered(KEY);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    let list = json!([entry(&weir, "app", &topic)]);
    put_list(KEY, &list);
    weir.start();
    let state = || weir.status()["list"]["state"].as_str().unwrap_or_default().to_owned();
    let mut written = 0;
    let mut goes_on = |what: &str| {
        file.write(100);
        written += 100;
        eventually(SOON, what, || weir.lines("app").delivered, |delivered| *delivered == written);
    };
    goes_on("lines with the first list");
    for bad in ["", "{", "{\"path\": \"/x\"}", "[1, 2", "null"] {
        etcd.put(KEY, bad);
        eventually(SOON, &format!("{bad:?} to be called invalid"), state, |state| state == "invalid");
        goes_on("lines with a list that does not parse");
    }
    let problem = weir.status()["list"]["problems"][0].clone();
    assert!(problem["where"].as_str().is_some_and(|place| place.contains(KEY)), "{problem}");
    assert!(!problem["fix"].as_str().unwrap_or_default().is_empty(), "{problem}");
    etcd.delete(KEY);
    eventually(SOON, "the list to be called missing", state, |state| state == "missing");
    goes_on("lines without a list");
    put_list(KEY, &list);
    eventually(SOON, "the list to be current", state, |state| state == "current");
    goes_on("lines with the list again");
    put_list(KEY, &json!([]));
    eventually(SOON, "no entry", || weir.entry("app"), Value::is_null);
    put_list(KEY, &list);
    weir.await_state("app", "following");
    assert!(weir.stop().success());
    topic.verdict(&[file.expected()], SOON).assert_exact();
}

#[test]
fn a_bad_entry_is_refused_with_cause_and_does_not_stop_the_good_ones() {
    const KEY: &str = "/oneBad/collect";
    let topic = Kafka::shared().topic("one-bad", 1);
    let mut weir = steered(KEY);
    let mut file = LineFile::create(weir.log("good.log"), "good", 100);
    file.write(100);
    let log = |name: &str| weir.log(name);
    put_list(
        KEY,
        &json!([
            {"name": "no-path", "topic": "t"},
            {"name": "bad-topic", "path": log("a.log"), "topic": "no such/topic"},
            {"name": "bad-on-error", "path": log("b.log"), "topic": "t", "filter": {"module": "m", "on_error": "explode"}},
            {"name": "outside", "path": "/etc/passwd", "topic": "t"},
            {"name": "twice", "path": log("c.log"), "topic": "t"},
            {"name": "twice", "path": log("d.log"), "topic": "t"},
            entry(&weir, "good", &topic),
        ]),
    );
    weir.start();
    topic.verdict(&[file.expected()], SOON).assert_exact();
    for name in ["no-path", "bad-topic", "bad-on-error", "outside", "twice"] {
        let entries = weir.status()["entries"].as_array().cloned().unwrap_or_default();
        let refused = entries.iter().find(|entry| entry["name"] == name && entry["state"] == "refused");
        let cause = refused.and_then(|entry| entry["cause"].as_str()).unwrap_or_default();
        assert!(!cause.is_empty(), "{name} is refused with a cause: {entries:#?}");
    }
    let outside = weir.entry("outside");
    assert!(
        outside["cause"].as_str().is_some_and(|cause| cause.contains("no root of this host's policy")),
        "{outside}"
    );
}

#[test]
fn losing_etcd_changes_nothing_and_its_return_brings_what_was_missed() {
    const KEY: &str = "/lost/collect";
    let etcd = Etcd::private();
    let kafka = Kafka::shared();
    let [first, second] = ["first", "second"].map(|name| kafka.topic(name, 1));
    let mut weir = host().etcd(&etcd.endpoint(), KEY);
    let [mut one, mut two] =
        ["one", "two"].map(|name| LineFile::create(weir.log(&format!("{name}.log")), name, 100));
    etcd.put(KEY, json!([entry(&weir, "one", &first)]).to_string());
    weir.start();
    one.write(100);
    await_delivered(&weir, "one", 100);

    etcd.stop();
    one.write(100);
    await_delivered(&weir, "one", 200);
    assert!(weir.stop().success());
    weir.start();
    one.write(100);
    await_delivered(&weir, "one", 100);
    assert_eq!(weir.status()["list"]["state"], "cached", "the last good list was on the disk");

    etcd.start();
    two.write(100);
    let revision =
        etcd.put(KEY, json!([entry(&weir, "one", &first), entry(&weir, "two", &second)]).to_string());
    await_delivered(&weir, "two", 100);
    eventually(
        SOON,
        "the list to be current",
        || weir.status()["list"]["state"].clone(),
        |state| state == "current",
    );

    // A watch that was away longer than etcd remembers must list again.
    etcd.pause();
    etcd.resume();
    etcd.put("/lost/other", "x");
    etcd.compact(revision + 1);
    etcd.put(KEY, json!([entry(&weir, "two", &second)]).to_string());
    eventually(SOON, "one entry", || weir.entry("one"), Value::is_null);
    two.write(100);
    await_delivered(&weir, "two", 200);
    assert!(weir.stop().success());
    first.verdict(&[one.expected()], SOON).assert_exact();
    second.verdict(&[two.expected()], SOON).assert_exact();
}

#[test]
fn an_agent_without_etcd_and_without_a_list_waits_and_collects_when_it_comes() {
    const KEY: &str = "/absent/collect";
    let etcd = Etcd::private();
    etcd.stop();
    let topic = Kafka::shared().topic("absent", 1);
    let mut weir = host().etcd(&etcd.endpoint(), KEY);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(100);
    weir.start();
    let (code, why) = weir.get("/readyz");
    assert_eq!(code, 503, "{why}");
    etcd.start();
    etcd.put(KEY, json!([entry(&weir, "app", &topic)]).to_string());
    topic.verdict(&[file.expected()], SOON).assert_exact();
    assert_eq!(weir.get("/readyz").0, 200);
}

#[test]
fn a_list_in_a_file_is_watched_the_same_way() {
    let kafka = Kafka::shared();
    let [first, second] = ["file-a", "file-b"].map(|name| kafka.topic(name, 1));
    let mut weir = host();
    let [mut one, mut two] =
        ["one", "two"].map(|name| LineFile::create(weir.log(&format!("{name}.log")), name, 100));
    one.write(100);
    two.write(100);
    weir.list(&json!([entry(&weir, "one", &first)]));
    weir.start();
    await_delivered(&weir, "one", 100);
    std::fs::write(weir.list_file(), "[{").expect("write half a list");
    let state = || weir.status()["list"]["state"].clone();
    eventually(SOON, "half a list to be called invalid", state, |state| state == "invalid");
    one.write(100);
    await_delivered(&weir, "one", 200);
    weir.put_list(&json!([entry(&weir, "two", &second)]));
    await_delivered(&weir, "two", 100);
    assert!(weir.entry("one").is_null());
    std::fs::remove_file(weir.list_file()).expect("delete the list");
    eventually(SOON, "the list to be called missing", state, |state| state == "missing");
    two.write(100);
    await_delivered(&weir, "two", 200);
    assert!(weir.stop().success());
    first.verdict(&[one.expected()], SOON).assert_exact();
    second.verdict(&[two.expected()], SOON).assert_exact();
}

#[test]
fn several_keys_are_merged_and_the_first_wins_a_name() {
    let (etcd, kafka) = (Etcd::shared(), Kafka::shared());
    let [own, fleet] = ["own", "fleet"].map(|name| kafka.topic(name, 1));
    let mut weir = host();
    let settings = format!(
        "endpoints = [{:?}]\ncollect_key = [\"/merged/{{host}}\", \"/merged/{{label.role}}/{{ip}}\"]",
        etcd.endpoint()
    );
    weir = weir.setting("etcd", &settings).setting("agent", "labels = { role = \"web\" }");
    let [mut app, mut sys] =
        ["app", "sys"].map(|name| LineFile::create(weir.log(&format!("{name}.log")), name, 100));
    app.write(100);
    sys.write(100);
    put_list("/merged/host", &json!([entry(&weir, "app", &own)]));
    put_list("/merged/web/10.0.0.7", &json!([entry(&weir, "app", &fleet), entry(&weir, "sys", &fleet)]));
    weir.start();
    await_delivered(&weir, "app", 100);
    await_delivered(&weir, "sys", 100);
    assert!(weir.stop().success());
    own.verdict(&[app.expected()], SOON).assert_exact();
    fleet.verdict(&[sys.expected()], SOON).assert_exact();
}

#[test]
fn the_status_key_says_which_revision_is_applied_and_nothing_of_the_lines() {
    const KEY: &str = "/told/collect";
    let (etcd, topic) = (Etcd::shared(), Kafka::shared().topic("told", 1));
    let mut weir = steered(KEY);
    std::fs::write(weir.log("app.log"), "SECRET-LINE\n").expect("write a log");
    let revision = etcd.put(KEY, json!([entry(&weir, "app", &topic)]).to_string());
    weir.start();
    await_delivered(&weir, "app", 1);
    let told = || {
        let keys = etcd.keys("/told/agents/");
        let values = keys.iter().filter_map(|key| etcd.get(key));
        values.map(|value| String::from_utf8_lossy(&value).into_owned()).collect::<Vec<_>>().join("\n")
    };
    // Others write to this etcd as well: the list may have been read at a later revision.
    let applied = |text: &String| {
        let said = text.lines().find_map(|line| {
            let status: Value = serde_json::from_str(line).ok()?;
            status["entries"].as_array()?.first()?;
            status["revision"].as_i64()
        });
        said.is_some_and(|said| said >= revision)
    };
    let told = eventually(SOON, "the applied revision", told, applied);
    assert!(told.contains("app") && !told.contains("SECRET"), "{told}");
}
