//! Passwords and the content of lines stay where they are.

use serde_json::json;
use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::topic::Record;
use weir_tests::wait::{SOON, eventually};

use crate::trust::roles::etcdctl;
use crate::{LONG, host};

const KEY: &str = "/secrets/collect";
/// What is planted: nothing of it may be seen again where it does not belong.
const KAFKA_PASSWORD: &str = "planted-kafka-password";
const ETCD_PASSWORD: &str = "planted-etcd-password";
const LINE: &str = "planted-token-in-a-line";
const CONFIG: &str = "planted-token-in-a-config";

#[test]
fn planted_secrets_are_found_nowhere_after_a_run_with_every_kind_of_trouble() {
    let etcd = Etcd::private();
    etcd.ask_for_user();
    etcdctl(&etcd, &["user", "add", &format!("agent:{ETCD_PASSWORD}")]).expect("a user");
    etcdctl(&etcd, &["user", "grant-role", "agent", "root"]).expect("a role");
    let topic = Kafka::shared().topic("secrets", 1);
    let weir = host().env("RUST_LOG", "weir=trace,info").etcd(&etcd.endpoint(), KEY);
    let (kafka_file, etcd_file) = (weir.file("kafka.password"), weir.file("etcd.password"));
    std::fs::write(&kafka_file, KAFKA_PASSWORD).expect("write a password");
    std::fs::write(&etcd_file, ETCD_PASSWORD).expect("write a password");
    let mut weir = weir
        .setting("kafka", &format!("sasl_password_file = {kafka_file:?}"))
        .setting("etcd", &format!("username = \"agent\"\npassword_file = {etcd_file:?}"));
    let wasm = weir.file("misbehave.wasm").to_str().expect("text").to_owned();
    std::fs::write(&wasm, guests::bytes("guest_misbehave")).expect("write a module");
    weir.weir(&["module", "push", &wasm, "--tag", "it"]).ok();

    let misdeeds =
        ["trap", "error", "loop", "hoard", "garbage", "flood", "set-aside", "init-error", "init-trap"];
    let mut list = Vec::new();
    for what in misdeeds {
        let text = format!("good {LINE}\nbad {LINE}\n{}\n", "x".repeat(2_000) + LINE);
        std::fs::write(weir.log(&format!("{what}.log")), text).expect("write a log");
        // An unknown name in the config, and one that the module refuses.
        list.push(json!({"name": what, "path": weir.log(&format!("{what}.log")), "topic": topic.name(),
            "start_at": "beginning", "line_bytes_max": 1024, "long_line": "quarantine",
            "filter": {"module": "it", "timeout_ms": 50, "config": {"do": what, "prefix": CONFIG}}}));
    }
    list.push(json!({"name": "bad-config", "path": weir.log("trap.log"), "topic": topic.name(),
        "filter": {"module": "it", "config": {"do": CONFIG}}}));
    list.push(json!({"name": "bad-topic", "path": weir.log("trap.log"), "topic": "a b"}));
    list.push(json!({"name": "no-topic", "path": weir.log("error.log"), "topic": "secrets-not-there",
        "start_at": "beginning"}));
    etcd.put(KEY, json!(list).to_string());
    weir.start();
    for what in &misdeeds[..7] {
        weir.await_finished(what, 3, SOON);
    }
    assert!(topic.all().iter().any(|record| Record::text(record).contains(LINE)), "lines do go to Kafka");
    let announced = || etcd.get("/secrets/agents/host").unwrap_or_default();
    let tells = |status: &Vec<u8>| String::from_utf8_lossy(status).contains("bad-topic");
    eventually(LONG, "the status in etcd", announced, tells);
    // A broken list, and etcd gone for a while.
    etcd.put(KEY, "[{");
    etcd.kill();
    eventually(SOON, "etcd to be missed", || weir.stderr(), |log| log.contains("waiting for etcd"));
    etcd.start();

    let mut seen = vec![
        ("the status", weir.get("/api/v1/status").1),
        ("the metrics", weir.get("/metrics").1),
        ("the page", weir.get("/").1),
        (
            "etcd",
            etcd.keys("/secrets/agents/")
                .iter()
                .map(|key| format!("{key}={}\n", String::from_utf8_lossy(&etcd.get(key).unwrap_or_default())))
                .collect(),
        ),
    ];
    for args in
        [&["status"][..], &["status", "--json"], &["fleet", "--json"], &["quarantine", "ls"], &["check"]]
    {
        let said = weir.weir(args);
        seen.push(("a command", format!("{args:?}\n{}{}", said.stdout, said.stderr)));
    }
    // What `weir quarantine show` is for; it proves that the line is there to be found.
    assert!(weir.weir(&["quarantine", "show", "1"]).ok().contains(LINE));
    weir.stop();
    seen.push(("the agent's log", weir.stderr()));
    for (what, text) in &seen {
        for secret in [KAFKA_PASSWORD, ETCD_PASSWORD, LINE] {
            assert!(!text.contains(secret), "{what} has {secret}:\n{text}");
        }
    }
    // A module may say what it was given, to its own host alone: in the log and in the local status.
    for (what, text) in seen.iter().filter(|(what, _)| ["the metrics", "etcd", "the page"].contains(what)) {
        assert!(!text.contains(CONFIG), "{what} has {CONFIG}:\n{text}");
    }
}
