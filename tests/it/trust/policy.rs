//! The policy of the host: caps, and what `weir policy explain` says.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use weir_tests::kafka::Kafka;
use weir_tests::wait::{SOON, eventually};

use crate::{host, unconnected};

#[test]
fn a_list_cannot_ask_for_more_entries_or_files_than_the_policy_has() {
    let topic = Kafka::shared().topic("caps", 1);
    let mut weir = host().setting("policy", "max_entries = 2\nmax_files = 3");
    let entry = |name: &str, path: String| json!({"name": name, "path": path, "topic": topic.name(), "start_at": "beginning"});
    for name in ["a1", "a2", "b1", "b2"] {
        std::fs::write(weir.log(&format!("{name}.log")), "line\n").expect("write a log");
    }
    let path = |glob: &str| weir.log(glob).to_string_lossy().into_owned();
    let list = json!([entry("a", path("a*.log")), entry("b", path("b*.log")), entry("c", path("c.log"))]);
    weir.list(&list);
    weir.start();
    let refused = weir.await_state("c", "refused");
    assert!(
        refused["cause"].as_str().is_some_and(|cause| cause.contains("more than 2 entries")),
        "{refused}"
    );
    // One of them came first and has both of its files.
    let files = |name: &str| weir.entry(name)["files"].as_u64().unwrap_or_default();
    eventually(SOON, "three files", || files("a") + files("b"), |files| *files == 3);
    let short = if files("a") == 1 { "a" } else { "b" };
    let told = |entry: &Value| entry["cause"].as_str().is_some_and(|cause| cause.contains("max_files"));
    let entry = eventually(SOON, "the cap to be told", || weir.entry(short), told);
    assert_eq!(entry["files"], 1, "{entry}");
    let delivered = || weir.lines("a").delivered + weir.lines("b").delivered;
    eventually(SOON, "the lines of three files", delivered, |lines| *lines == 3);
    // A file that goes makes room for the one that was left out.
    let other = if short == "a" { "b" } else { "a" };
    std::fs::remove_file(weir.log(&format!("{other}1.log"))).expect("remove a log");
    eventually(SOON, "the file that was left out", delivered, |lines| *lines == 4);
    assert!(weir.stop().success());
}

#[test]
fn the_policy_bounds_how_fast_an_entry_is_read() {
    const BYTES: u64 = 300_000;
    let topic = Kafka::shared().topic("slow", 1);
    let mut weir = host().setting("policy", "read_bytes_per_second = 50000");
    std::fs::write(weir.log("app.log"), format!("{}\n", "x".repeat(99)).repeat(BYTES as usize / 100))
        .expect("write a log");
    weir.list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name(),
        "start_at": "beginning", "read_bytes_per_second": "1GiB"}]));
    let begun = std::time::Instant::now();
    weir.start();
    weir.await_finished("app", BYTES / 100, SOON);
    // The rate allows a burst of a second or so at the beginning.
    let least = (BYTES / 50_000 - 2) as f64;
    assert!(begun.elapsed().as_secs_f64() > least, "{:?}", begun.elapsed());
    assert!(weir.stop().success());
}

#[test]
fn explain_names_the_rule_of_every_file() {
    let mut weir =
        unconnected().kafka("127.0.0.1:1").setting("policy", "deny = [\"**/*.key\"]\ntopics = [\"app-*\"]");
    for name in ["good.log", "tls.key", "wtmp"] {
        std::fs::write(weir.log(name), "x\n").expect("write a log");
    }
    let secret = weir.file("secret");
    std::fs::write(&secret, "x\n").expect("write a file");
    symlink(&secret, weir.log("way-out")).expect("a link");
    symlink(weir.log("good.log"), weir.log("way-in")).expect("a link");
    weir.list(&json!([{"name": "good", "path": weir.log("good.log"), "topic": "app-1"}]));

    let good = weir.weir(&["policy", "explain", "good"]);
    assert_eq!(good.code(), 0, "{good:?}");
    assert!(good.stdout.starts_with("good: all of it is allowed\n"), "{}", good.stdout);

    let entry = json!({"path": weir.log("*"), "topic": "billing"}).to_string();
    let said = weir.weir(&["policy", "explain", &entry, "--json"]);
    assert_eq!(said.code(), 1, "{said:?}");
    let said: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let rulings = said["rulings"].as_array().expect("rulings");
    let ruling = |asked: &str| {
        let found =
            rulings.iter().find(|ruling| ruling["asked"].as_str().is_some_and(|a| a.ends_with(asked)));
        found.unwrap_or_else(|| panic!("{asked} in {rulings:?}"))
    };
    for (asked, allowed, why, rule) in [
        ("*", true, "below a root", "policy.roots"),
        ("billing", false, "not among the topics", "policy.topics"),
        ("good.log", true, "below root", "policy.roots"),
        ("way-in", true, "leads to", "policy.roots"),
        ("way-out", false, "lies below no root", "policy.roots"),
        ("tls.key", false, "\"**/*.key\" in deny", "policy.deny"),
        ("wtmp", false, "never read below a root", "always"),
    ] {
        let ruling = ruling(asked);
        assert_eq!(ruling["allowed"], allowed, "{ruling}");
        assert!(ruling["why"].as_str().is_some_and(|text| text.contains(why)), "{ruling}");
        let place = ruling["rule"].as_str().unwrap_or_default();
        assert!(place.ends_with(rule), "{ruling}");
        assert!(rule == "always" || place.contains("weir.toml:"), "{ruling}");
        assert!(allowed || ruling["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{ruling}");
    }
    let names: Vec<_> =
        said["caps"].as_array().into_iter().flatten().map(|cap| cap["name"].clone()).collect();
    assert_eq!(names, ["max_entries", "max_files", "read_bytes_per_second", "memory"]);
    let nobody = weir.weir(&["policy", "explain", "nobody"]);
    assert!(nobody.code() == 1 && nobody.stderr.contains("it has: good"), "{nobody:?}");
}
