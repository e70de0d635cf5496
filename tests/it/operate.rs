//! What operators do with a running agent and with a fleet.

use std::io::Write as _;

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::http;
use weir_tests::kafka::Kafka;
use weir_tests::mock::MockKafka;
use weir_tests::terminal::Terminal;
use weir_tests::topic::Record;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host, put_list, steered, unconnected};

#[test]
fn a_line_in_quarantine_is_looked_at_replayed_and_removed() {
    let (mut weir, topic) = (host(), Kafka::shared().topic("quarantined", 1));
    let wasm = weir.file("misbehave.wasm");
    std::fs::write(&wasm, guests::bytes("guest_misbehave")).expect("write a module");
    std::fs::write(weir.log("app.log"), "one\ntwo bad \x1b[2J\nthree bad\nfour bad\n").expect("write a log");
    let list = |what: &str| {
        json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name(), "start_at": "beginning",
            "filter": {"module": wasm, "config": {"do": what}}}])
    };
    let (trap, nothing) = (list("trap"), list("nothing"));
    weir.list(&trap);
    weir.start();
    weir.await_finished("app", 4, SOON);

    let shown = weir.weir(&["quarantine", "ls"]).ok();
    assert!(shown.contains("3 lines;") && shown.contains("trap"), "{shown}");
    let items: Value =
        serde_json::from_str(&weir.weir(&["quarantine", "ls", "--json"]).ok()).expect("a page as JSON");
    let items = items["items"].as_array().expect("items");
    assert_eq!(items.iter().map(|item| item["offset"].as_u64()).collect::<Vec<_>>(), [4, 17, 27].map(Some));
    let ids: Vec<String> = items.iter().map(|item| item["id"].to_string()).collect();
    let shown = weir.weir(&["quarantine", "show", &ids[0]]).ok();
    assert!(shown.ends_with("\ntwo bad \\u{1b}[2J\n"), "{shown:?}");
    assert_eq!(weir.weir(&["quarantine", "show", &ids[0], "--raw"]).ok(), "two bad \x1b[2J");
    let (code, _) = http::get(weir.admin(), "/api/v1/quarantine?after=0").expect("an answer");
    assert_eq!(code, 404, "nothing of it over the network");

    let refused = weir.weir(&["quarantine", "replay", &ids[0]]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("stays: the filter refuses it: trap"), "{refused:?}");
    weir.weir(&["quarantine", "rm", &ids[1]]).ok();
    weir.put_list(&nothing);
    let digest = |entry: &Value| entry["filter"]["state"] == "applied";
    eventually(SOON, "the filter to be applied", || weir.entry("app"), digest);
    let replay = || weir.weir(&["quarantine", "replay", "--entry", "app"]);
    let said = eventually(SOON, "the filter that lets it pass", replay, |said| said.code() == 0);
    assert_eq!(said.stdout, "2 delivered, 0 dropped by the filter, 0 still in quarantine\n");
    assert!(weir.weir(&["quarantine", "ls"]).ok().starts_with("0 lines;"));
    let texts: Vec<_> = topic.all().iter().map(Record::text).collect();
    assert_eq!(texts, ["one", "two bad \x1b[2J", "four bad"]);
    let gone = weir.weir(&["quarantine", "rm", &ids[1]]);
    assert_eq!((gone.code(), gone.stderr.as_str()), (1, "1 line was not there\n"));
    assert!(weir.lines("app").hold());
    eventually(
        SOON,
        "the metric",
        || weir.metrics().sum("weir_replayed_lines_total", &[("entry", "app")]),
        |sum| *sum == 2.0,
    );
    assert!(weir.stop().success());
    let silent = weir.weir(&["quarantine", "ls"]);
    assert!(silent.code() == 1 && silent.stderr.contains("is `weir run` running"), "{silent:?}");
}

#[test]
fn the_fleet_is_seen_and_waited_for_and_a_stopped_agent_is_gone() {
    const KEY: &str = "/fleet/collect";
    let mut weir = steered(KEY).setting("agent", "labels = { role = \"web\", zone = \"eu\" }");
    put_list(KEY, &json!([{"name": "bad", "path": "/elsewhere/app.log", "topic": "t"}]));
    weir.start();
    let fleet = |weir: &Weir| -> Value {
        let said = weir.weir(&["fleet", "host", "--json"]);
        serde_json::from_str(&said.stdout).unwrap_or_default()
    };
    let read = |agents: &Value| agents[0]["status"]["revision"].as_i64().unwrap_or_default();
    eventually(SOON, "the agent to say what it runs", || fleet(&weir), |agents| read(agents) > 0);
    let shown = weir.weir(&["fleet", "host", "--label", "zone=eu", "--label", "role=web"]).ok();
    for part in ["  role=web zone=eu\n", "\n  bad: refused: the host's policy refuses it\n"] {
        assert!(shown.contains(part), "{shown}");
    }
    let others = weir.weir(&["fleet", "--label", "role=db", "--label", "zone=eu"]).ok();
    assert!(others.starts_with("0 agents:"), "{others}");
    let revision = Etcd::shared().put(KEY, "[ ]").to_string();
    let wait = || weir.weir(&["fleet", "host", "--wait", &revision]);
    eventually(LONG, "the revision to be applied", wait, |said| said.code() == 0);
    assert!(read(&fleet(&weir)) >= revision.parse().expect("a number"));
    let late = weir.weir(&["fleet", "host", "--wait", "9000000000", "--within", "0"]);
    assert!(late.code() == 1 && late.stderr.contains("behind revision 9000000000: host"), "{late:?}");
    let unknown = weir.weir(&["fleet", "nobody"]);
    assert!(unknown.code() == 1 && unknown.stderr.contains("no agent \"nobody\""), "{unknown:?}");
    assert!(weir.stop().success());
    // The lease, which would run out in a minute, was taken back.
    let gone = |after: &Value| after[0]["status"].is_null() && after[0]["seen"]["when"].is_string();
    eventually(SOON, "the agent to be gone", || fleet(&weir), gone);
    assert!(weir.weir(&["fleet", "host", "--label", "role=web"]).ok().contains("gone"));
}

#[test]
fn lines_are_seen_as_they_pass_their_filter_and_steer_no_terminal() {
    let kafka = MockKafka::new(1);
    let _topic = kafka.topic("tapped", 1);
    let mut weir = unconnected().kafka(&kafka.brokers());
    let wasm = weir.file("drop_debug.wasm");
    std::fs::write(&wasm, guests::bytes("drop_debug")).expect("write a module");
    let log = weir.log("app.log");
    weir.list(&json!([{"name": "my app", "path": log, "topic": "tapped", "start_at": "beginning",
        "filter": wasm}]));
    weir.start();
    let unknown = weir.weir(&["tap", "other"]);
    assert!(
        unknown.code() == 1 && unknown.stderr.contains("no entry \"other\" runs; there are: my app"),
        "{unknown:?}"
    );
    let tap = |args: &[&str]| {
        std::thread::scope(|scope| {
            let tap = scope.spawn(|| weir.weir(&[&["tap", "my app", "-n", "40"][..], args].concat()));
            let mut lines =
                std::fs::OpenOptions::new().append(true).create(true).open(&log).expect("the log");
            // Until it has seen enough: when it begins to look cannot be told from outside.
            let write = || {
                lines.write_all("INFO \x1b[2J\nDEBUG it\n".repeat(5).as_bytes()).expect("write");
                tap.is_finished()
            };
            eventually(SOON, "lines to be seen", write, |seen| *seen);
            tap.join().expect("the command").ok()
        })
    };
    let shown = tap(&[]);
    assert!(shown.starts_with(&format!("== {}\n", log.display())), "{shown}");
    assert!(shown.contains("\n  INFO \\u{1b}[2J\n- DEBUG it\n  INFO"), "{shown}");
    assert!(!shown.contains('\x1b'), "{shown}");
    let dropped = tap(&["--dropped", "--json"]);
    let first: Value = serde_json::from_str(dropped.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["verdict"], &first["before"]), (&json!("dropped"), &json!("DEBUG it")), "{first}");
    assert_eq!(dropped.matches("\"dropped\"").count(), 40, "{dropped}");
    assert!(weir.stop().success());
}

#[test]
fn much_trouble_makes_a_short_log_that_says_what_to_do() {
    let kafka = MockKafka::new(1);
    let _topic = kafka.topic("trouble", 1);
    let mut weir = unconnected().kafka(&kafka.brokers());
    let wasm = weir.file("misbehave.wasm");
    std::fs::write(&wasm, guests::bytes("guest_misbehave")).expect("write a module");
    // A line in 200 fails: too few to hold, enough to fill a log that had one for each.
    let lines = format!("{}bad\n", "good\n".repeat(199)).repeat(500);
    std::fs::write(weir.log("app.log"), lines).expect("write a log");
    let refused = (0..500).map(|n| json!({"name": format!("bad{n}"), "path": "/elsewhere", "topic": "t"}));
    let app = json!({"name": "app", "path": weir.log("app.log"), "topic": "trouble", "start_at": "beginning",
        "filter": {"module": wasm, "config": {"do": "trap"}}});
    let absent =
        json!({"name": "absent", "path": weir.log("b.log"), "topic": "trouble", "filter": "./absent.wasm"});
    weir.list(&json!(refused.chain([app, absent]).collect::<Vec<_>>()));
    weir.start();
    let sums = weir.await_finished("app", 100_000, SOON);
    assert_eq!(sums.quarantined, 500);
    assert!(weir.stop().success());
    let log = weir.stderr();
    assert!(log.lines().count() < 100, "{} lines in the log:\n{log}", log.lines().count());
    for advice in ["`weir status` names them all", "mend its module, tag or config", "roots"] {
        assert!(log.contains(advice), "no {advice:?} in\n{log}");
    }
}

#[test]
fn top_sorts_opens_an_entry_and_gives_the_terminal_back() {
    let mut weir = host();
    std::fs::write(weir.log("first.log"), "one\n").expect("write a log");
    let entry = |name: &str| json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": "t"});
    let list = json!([entry("first"), entry("second")]);
    weir.list(&list);
    weir.start();
    weir.await_state("second", "waiting");
    let mut top = weir.terminal(&["top", "-d", "0.1"]);
    let frame = |top: &Terminal| top.shown().rsplit("\x1b[H").next().unwrap_or_default().to_owned();
    let is_first = |frame: &str, one: &str, other: &str| {
        frame.find(one).zip(frame.find(other)).is_some_and(|(one, other)| one < other)
    };
    top.answer("second", "");
    assert!(!top.is_ordinary());
    let begun = is_first(&frame(&top), "first ", "second ");
    top.answer("", "r");
    eventually(
        SOON,
        "the order turned",
        || frame(&top),
        |frame| is_first(frame, "first ", "second ") != begun,
    );
    top.answer("", "r\x1b[H");
    eventually(
        SOON,
        "the order as it was",
        || frame(&top),
        |frame| is_first(frame, "first ", "second ") == begun,
    );
    top.answer("", "\r");
    let opened = eventually(SOON, "the files of an entry", || frame(&top), |frame| frame.contains(".log"));
    assert!(opened.contains("first.log") != opened.contains("second.log"), "{opened}");
    top.answer("", "\x7f");
    eventually(
        SOON,
        "all entries",
        || frame(&top),
        |frame| frame.contains("first ") && frame.contains("second "),
    );
    top.answer("", "q");
    assert!(top.wait(SOON).success(), "{}", top.shown());
    assert!(top.is_ordinary() && top.shown().ends_with("\x1b[?25h\x1b[?1049l"), "{:?}", top.shown());
    assert!(weir.stop().success());
}
