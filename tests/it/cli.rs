//! What people type: forms, effects, exit codes, and messages that say what to do.

use std::path::Path;

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::wait::SOON;

use crate::{host, steered, unconnected};

#[test]
fn wrong_usage_exits_2_and_help_exits_0() {
    let weir = unconnected();
    assert_eq!(weir.bare(&["frobnicate"]).code(), 2);
    assert_eq!(weir.bare(&["list"]).code(), 2);
    let help = weir.bare(&["--help"]).ok();
    for command in ["run", "check", "demo", "list", "module", "status"] {
        assert!(help.contains(command), "{command} in {help}");
    }
}

#[test]
fn settings_that_do_not_hold_are_refused_with_file_line_and_advice() {
    let no_settings = unconnected().bare(&["run"]);
    assert_eq!(no_settings.code(), 1);
    assert!(no_settings.stderr.contains("weir.toml"), "{}", no_settings.stderr);
    for (name, text, says) in [
        ("weir.toml", "[kafka]\nbroker = \"x\"\n", ["weir.toml:2", "brokers"]),
        ("weir.toml", "[kafka\n", ["weir.toml:1", "TOML"]),
        ("weir.toml", "[kafka]\nbrokers = \"x\"\n[kafka.properties]\nacks = \"0\"\n", ["acks", "weir.toml"]),
        (
            "config.ini",
            "[kafka]\naddress = x\n[etcd]\naddress = y\ncollect_key = /a/%_/b\n",
            ["%_", "config.ini:5"],
        ),
        ("config.ini", "[kafka]\ntopic = t\n", ["address", "config.ini"]),
    ] {
        let said = unconnected().settings_file(name, text).weir(&["run"]);
        assert_eq!(said.code(), 1, "{text}: {said:?}");
        for words in says {
            assert!(said.stderr.contains(words), "{words:?} about {text:?}:\n{}", said.stderr);
        }
    }
}

#[test]
fn check_names_all_problems_at_once() {
    let mut weir = unconnected().kafka("127.0.0.1:1");
    weir.list(&json!([
        {"name": "no-path", "topic": "t"},
        {"name": "bad-topic", "path": "/var/log/x.log", "topic": "a b"},
        {"name": "no-module", "path": weir.log("x.log"), "topic": "t", "filter": "./absent.wasm"},
    ]));
    let said = weir.weir(&["check"]);
    assert_eq!(said.code(), 1, "{said:?}");
    let text = said.stdout + &said.stderr;
    for words in ["no-path", "bad-topic", "absent.wasm", "127.0.0.1:1", "collect.json:"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let offline = weir.weir(&["check", "--offline"]);
    assert!(!(offline.stdout + &offline.stderr).contains("127.0.0.1:1"), "offline asks nobody");
}

#[test]
fn check_accepts_what_runs_and_converts_the_older_form() {
    let topic = Kafka::shared().topic("checked", 1);
    let mut weir = host();
    weir.list(&json!([{"path": weir.log("a.log"), "topic": topic.name()}]));
    weir.weir(&["check"]).ok();
    let ini = weir.file("config.ini");
    let text = format!(
        "[kafka]\naddress = {}\n[etcd]\naddress = 127.0.0.1:2379\ncollect_key = /a/%s/b\n",
        Kafka::shared().brokers()
    );
    std::fs::write(&ini, text).expect("write config.ini");
    let converted = weir.weir(&["check", "--offline", "--convert", ini.to_str().expect("text")]).ok();
    assert!(converted.contains("[kafka]") && converted.contains("collect_key"), "{converted}");
}

#[test]
fn the_list_is_read_and_changed_entry_by_entry() {
    const KEY: &str = "/typed/collect";
    let etcd = Etcd::shared();
    let weir = steered(KEY);
    let names = || -> Vec<String> {
        let list: Value = serde_json::from_slice(&etcd.get(KEY).expect("the key")).expect("JSON");
        let entries = list.as_array().expect("an array").iter();
        entries.map(|entry| entry["name"].as_str().expect("a name").into()).collect()
    };
    let log = |name: &str| weir.log(name).display().to_string();
    let entry = |name: &str| json!({"name": name, "path": log(name), "topic": "t"}).to_string();
    std::fs::write(weir.file("list.json"), format!("[{}, {}]", entry("a"), entry("b")))
        .expect("write a list");
    weir.weir(&["list", "put", "list.json"]).ok();
    assert_eq!(names(), ["a", "b"]);
    weir.weir(&["list", "add", &entry("c")]).ok();
    assert_eq!(names(), ["a", "b", "c"]);
    weir.weir(&["list", "rm", "b"]).ok();
    assert_eq!(names(), ["a", "c"]);
    let got = weir.weir(&["list", "get"]).ok();
    assert!(
        serde_json::from_str::<Value>(&got).is_ok_and(|list| list.as_array().is_some_and(|l| l.len() == 2)),
        "{got}"
    );
    assert_eq!(weir.weir(&["list", "rm", "nobody"]).code(), 1);
    for bad in ["{", "{\"name\": \"d\", \"topic\": \"t\"}", &entry("a")] {
        let said = weir.weir(&["list", "add", bad]);
        assert_eq!(said.code(), 1, "{bad}: {said:?}");
    }
    assert_eq!(names(), ["a", "c"], "what is refused changes nothing");
}

#[test]
fn run_once_prints_what_is_there_and_ends() {
    let mut weir = host();
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(3);
    weir.list(&json!([{"path": weir.log("app.log"), "topic": "t", "start_at": "beginning"}]));
    let printed = weir.weir(&["run", "--once", "--stdout"]).ok();
    assert_eq!(printed, std::fs::read_to_string(weir.log("app.log")).expect("read it"));
    assert!(!weir.file("state").exists(), "--stdout leaves no state");
}

#[test]
fn run_once_delivers_what_is_there_and_ends() {
    let topic = Kafka::shared().topic("once", 1);
    let mut weir = host();
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(1_000);
    weir.list(&json!([{"path": weir.log("app.log"), "topic": topic.name(), "start_at": "beginning"}]));
    for _ in 0..2 {
        weir.weir(&["run", "--once"]).ok();
    }
    topic.verdict(&[file.expected()], SOON).assert_exact();
}

#[test]
fn status_asks_the_agent_of_this_host() {
    let topic = Kafka::shared().topic("asked", 1);
    let mut weir = host();
    weir.list(&json!([{"name": "app", "path": weir.log("a.log"), "topic": topic.name()}]));
    let none = weir.weir(&["status"]);
    assert_eq!(none.code(), 1, "{none:?}");
    weir.start();
    weir.await_state("app", "waiting");
    let said: Value = serde_json::from_str(&weir.weir(&["status", "--json"]).ok()).expect("JSON");
    assert_eq!((&said["agent"]["name"], &said["entries"][0]["name"]), (&json!("host"), &json!("app")));
    assert!(weir.weir(&["status"]).ok().contains("app"));
}

#[test]
fn what_is_no_filter_is_not_pushed() {
    let weir = steered("/unpushed/collect");
    std::fs::write(weir.file("a.wasm"), "no wasm").expect("write a file");
    let said = weir.weir(&["module", "push", "a.wasm", "--tag", "a"]);
    assert_eq!(said.code(), 1);
    assert!(said.stderr.contains("a.wasm"), "{}", said.stderr);
    assert!(Etcd::shared().keys("/unpushed/").is_empty(), "nothing of it is in the store");
    let absent = weir.weir(&["module", "tag", "a", &format!("sha256:{}", "0".repeat(64))]);
    assert_eq!(absent.code(), 1, "{absent:?}");
}

#[test]
fn a_tag_is_rolled_back_and_its_module_pulled() {
    let weir = unconnected().etcd(&Etcd::shared().endpoint(), "/rolled/collect");
    let push = |version: u64| {
        std::fs::write(weir.file("stamp.wasm"), guests::stamp(version)).expect("write a module");
        weir.weir(&["module", "push", "stamp.wasm", "--tag", "stamp"]).ok();
    };
    let pulled = || {
        weir.weir(&["module", "pull", "stamp", "out.wasm"]).ok();
        std::fs::read(weir.file("out.wasm")).expect("read what was pulled")
    };
    push(1);
    let first = weir.weir(&["module", "rollback", "stamp"]);
    assert_eq!(first.code(), 1);
    assert!(first.stderr.contains("weir module tag stamp REF"), "{}", first.stderr);
    push(2);
    assert!(pulled() == guests::stamp(2));
    let said = weir.weir(&["module", "rollback", "stamp"]).ok();
    assert!(said.starts_with("stamp: ") && pulled() == guests::stamp(1), "{said}");
    weir.weir(&["module", "rollback", "stamp"]).ok();
    assert!(pulled() == guests::stamp(2), "a second one undoes the first");
    let listed: Value = serde_json::from_str(&weir.weir(&["module", "ls", "--json"]).ok()).expect("JSON");
    assert_eq!(listed["tags"][0]["history"].as_array().map(Vec::len), Some(3), "{listed}");
    assert_eq!(weir.weir(&["module", "pull", "absent", "out.wasm"]).code(), 1);
}

#[test]
fn a_module_is_inspected() {
    let module = guests::path("drop_debug");
    let said = unconnected().bare(&["module", "inspect", module.to_str().expect("text"), "--json"]).ok();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["accepted"], &said["interface"]), (&json!(true), &json!("0.1.0")));
    let weir = unconnected();
    std::fs::write(weir.file("a.wasm"), "no wasm").expect("write a file");
    let said = weir.bare(&["module", "inspect", "a.wasm"]);
    assert_eq!(said.code(), 1);
    assert!(said.stdout.contains("accepted   no: this is not a WebAssembly file"), "{said:?}");
}

#[test]
fn a_module_is_tried_on_lines_and_compared_with_what_is_expected() {
    let weir = unconnected();
    let module = guests::path("drop_debug");
    let test = ["module", "test", module.to_str().expect("text"), "a.log"];
    std::fs::write(weir.file("a.log"), "INFO a\nDEBUG b\n").expect("write a log");
    let shown = weir.bare(&test).ok();
    assert_eq!(shown, "  INFO a\n- DEBUG b\n\n2 lines: 1 kept, 1 dropped, 0 replaced, 0 refused\n");
    let expect = [&test[..], &["--expect", "a.expected"]].concat();
    let absent = weir.bare(&expect);
    assert_eq!(absent.code(), 1);
    assert!(absent.stderr.contains("a.log > a.expected"), "{}", absent.stderr);
    std::fs::write(weir.file("a.expected"), &shown).expect("write what is expected");
    assert!(weir.bare(&expect).ok().starts_with("as in a.expected: 2 lines"));
    std::fs::write(weir.file("a.expected"), shown.replace("- DEBUG", "  DEBUG")).expect("change it");
    let differs = weir.bare(&expect);
    assert_eq!(differs.code(), 1);
    assert!(differs.stdout.contains("-  DEBUG b\n+- DEBUG b\n"), "{}", differs.stdout);
    assert!(differs.stderr.contains("a.log > a.expected"), "{}", differs.stderr);
}

#[test]
fn a_module_is_measured_next_to_the_identity_filter() {
    let weir = unconnected();
    let module = guests::path("drop_debug");
    std::fs::write(weir.file("a.log"), "INFO a\nDEBUG b\n").expect("write a log");
    let bench = |log| weir.bare(&["module", "bench", module.to_str().expect("text"), log]);
    let said = bench("a.log").ok();
    assert!(said.lines().next().is_some_and(|line| line.ends_with("times the identity filter")), "{said}");
    assert!(said.contains("lines/s") && !said.contains("refused"), "{said}");
    std::fs::write(weir.file("empty.log"), "\n\n").expect("write a log");
    let none = bench("empty.log");
    assert_eq!(none.code(), 1);
    assert!(none.stderr.contains("empty.log has no lines"), "{}", none.stderr);
}

/// Runs a command in `dir`, without the network; what it prints.
fn in_dir(dir: &Path, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    let mut command = std::process::Command::new(program);
    // Kept from run to run: what the crates stand on is built once.
    let target = weir_tests::workspace().join("target/new");
    command.args(args).current_dir(dir).env("CARGO_TARGET_DIR", target).env("CARGO_NET_OFFLINE", "true");
    let output = command.output().expect("run a command");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} in {}: {}\n{said}", dir.display(), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_new_filter_of_each_template_passes_its_tests_builds_and_does_what_it_says() {
    let dir = tempfile::tempdir().expect("a directory outside of the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let weir = env!("CARGO_BIN_EXE_weir");
    for template in ["function", "stateful", "json"] {
        let name = format!("my-{template}");
        in_dir(dir.path(), weir, &["module", "new", &name, "--template", template]);
        let filter = dir.path().join(&name);
        let tested = in_dir(&filter, &cargo, &["test"]);
        assert!(tested.contains("... ok"), "{tested}");
        let built = in_dir(&filter, weir, &["module", "build"]);
        let wasm = built.lines().last().expect("the path");
        assert_eq!(wasm, format!("./target/weir/my_{template}.wasm"));
        let test = ["module", "test", wasm, "sample.log", "--expect", "sample.expected"];
        assert!(in_dir(&filter, weir, &test).starts_with("as in sample.expected"));
    }
}

#[test]
fn the_demo_tells_its_story_and_loses_nothing() {
    let modules = ["drop_debug", "redact"].map(guests::path);
    let modules = modules[0].parent().and_then(Path::to_str).expect("a directory");
    let said = unconnected().bare(&["demo", "--for", "5", "--modules", modules]);
    let text = said.clone().ok();
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with("filtered: 0 lost, 0 repeated"), "{text}");
    for words in ["redact took over", "The new config took over", "Line "] {
        assert!(text.contains(words), "{words:?} in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "plain where it is piped: {text:?}");
    assert_eq!(said.stderr, "", "the agent's own log is elsewhere");
}

#[test]
fn the_demo_shows_the_rest_where_there_are_no_filters() {
    let text = unconnected().bare(&["demo", "--for", "2"]).ok();
    assert!(text.contains("--modules"), "{text}");
    assert!(text.ends_with("+ 0 filtered: 0 lost, 0 repeated\n"), "{text}");
    let absent = unconnected().bare(&["demo", "--for", "2", "--modules", "absent"]);
    assert_eq!(absent.code(), 1);
    assert!(absent.stderr.contains("absent/drop_debug.wasm"), "{}", absent.stderr);
}
