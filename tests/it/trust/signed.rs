//! Lists and modules that must be signed.

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::{LONG, host, steered};

/// Keys of `minisign -G -W`: the public line, and the secret one.
const OURS: [&str; 2] = [
    "RWQVpr9gnFmjoFGbswCeKDTtI86DT1uIFqf/qPsllUquuYJ3sP2rZO3G",
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFaa/YJxZo6DZPPrvf/6wG8LXj9LwyHq3WEr2umKyATynk26aennjglGbswCeKDTtI86DT1uIFqf/qPsllUquuYJ3sP2rZO3GAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];
const THEIRS: [&str; 2] = [
    "RWRy8oZkDgwgJ3lEZuaebahkBE73y5zUWdp6Nutk4+iXoXzeqzy/4PpD",
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAcvKGZA4MICddDs10TPQAUCrAkioUp2nIqJxQbdViepGh0ujsvIgrKXlEZuaebahkBE73y5zUWdp6Nutk4+iXoXzeqzy/4PpDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];

/// Writes a secret key; its path.
fn key_file(weir: &Weir, name: &str, key: [&str; 2]) -> String {
    let file = weir.file(name);
    std::fs::write(&file, format!("untrusted comment: a key for tests\n{}\n", key[1])).expect("write a key");
    file.to_str().expect("text").into()
}

fn keys(keys: &[[&str; 2]]) -> String {
    format!("keys = {}", json!(keys.iter().map(|key| key[0]).collect::<Vec<_>>()))
}

/// Writes a list to a file beside the settings; its path.
fn list_file(weir: &Weir, list: &Value) -> String {
    let file = weir.file("to-put.json");
    std::fs::write(&file, list.to_string()).expect("write a list");
    file.to_str().expect("text").into()
}

#[track_caller]
fn await_problem(weir: &Weir, words: &str) {
    let problems = || weir.status()["list"]["problems"].to_string();
    eventually(SOON, &format!("a problem about {words:?}"), problems, |problems| problems.contains(words));
}

#[test]
fn only_a_signed_list_runs_and_an_older_one_is_not_taken_again() {
    const KEY: &str = "/signed/collect";
    let (etcd, topic) = (Etcd::shared(), Kafka::shared().topic("signed", 1));
    let mut weir = steered(KEY).setting("policy", &keys(&[OURS])).env("VISUAL", "cp next.json");
    let (ours, theirs) = (key_file(&weir, "ours.key", OURS), key_file(&weir, "theirs.key", THEIRS));
    let list = |name: &str| json!([{"name": name, "path": weir.log("app.log"), "topic": topic.name(), "start_at": "beginning"}]);
    let lists = ["plain", "one", "two", "three"].map(list);
    let put = |weir: &Weir, list: &Value, key: &str| {
        weir.weir(&["list", "put", &list_file(weir, list), "--sign-key", key]).ok();
        etcd.get(KEY).expect("a list")
    };
    std::fs::write(weir.log("app.log"), "line\n").expect("write a log");

    etcd.put(KEY, lists[0].to_string());
    weir.start();
    await_problem(&weir, "not signed");
    assert!(weir.entry("plain").is_null());
    put(&weir, &lists[1], &theirs);
    await_problem(&weir, "by none of the keys");
    let first = put(&weir, &lists[1], &ours);
    weir.await_finished("one", 1, SOON);
    assert_eq!(weir.status()["list"]["state"], "current");

    // A plain one in its place is refused where it is written, and by the agent.
    let said = weir.weir(&["list", "put", &list_file(&weir, &lists[2])]);
    assert!(said.code() == 1 && said.stderr.contains("--sign-key"), "{said:?}");
    etcd.put(KEY, lists[2].to_string());
    await_problem(&weir, "not signed");
    etcd.put(KEY, first.clone());
    let tampered = String::from_utf8_lossy(&first).replace("\"one\"", "\"two\"");
    etcd.put(KEY, tampered);
    await_problem(&weir, "changed since");
    assert!(weir.entry("two").is_null() && !weir.entry("one").is_null(), "the last good list stays");

    etcd.put(KEY, first.clone());
    put(&weir, &lists[2], &ours);
    eventually(SOON, "the second list", || weir.entry("two"), |entry| !entry.is_null());
    etcd.put(KEY, first.clone());
    await_problem(&weir, "was taken before");
    // And not after a restart, when only the state directory knows.
    weir.kill();
    weir.start();
    await_problem(&weir, "was taken before");
    assert!(weir.entry("one").is_null() && !weir.entry("two").is_null());

    // A signed list of another key is refused under this one.
    etcd.put("/signed/other", first);
    let other = weir.weir(&[
        "list",
        "put",
        &list_file(&weir, &lists[3]),
        "--key",
        "/signed/other",
        "--sign-key",
        &ours,
    ]);
    other.ok();
    etcd.put(KEY, etcd.get("/signed/other").expect("a list"));
    await_problem(&weir, "signed for /signed/other");
    let check = weir.weir(&["check"]);
    assert!(check.code() == 1 && check.stdout.contains("signed for /signed/other"), "{check:?}");

    // What is edited is signed again, with a higher number.
    std::fs::write(weir.file("next.json"), lists[3].to_string()).expect("write a list");
    let unsigned = weir.weir(&["list", "edit", "--yes"]);
    assert!(unsigned.code() == 1 && unsigned.stderr.contains("--sign-key"), "{unsigned:?}");
    weir.weir(&["list", "edit", "--yes", "--sign-key", &ours]).ok();
    eventually(SOON, "the edited list", || weir.entry("three"), |entry| !entry.is_null());
    assert!(weir.stop().success());
}

#[test]
fn only_a_signed_module_is_loaded_and_a_key_is_replaced_by_having_both() {
    const KEY: &str = "/signedModule/collect";
    let topic = Kafka::shared().topic("signed-module", 1);
    let mut weir = steered(KEY).setting("policy", &keys(&[OURS, THEIRS]));
    let (ours, theirs) = (key_file(&weir, "ours.key", OURS), key_file(&weir, "theirs.key", THEIRS));
    let stranger = weir.file("drop_debug.wasm").to_str().expect("text").to_owned();
    std::fs::write(&stranger, guests::bytes("drop_debug")).expect("write a module");
    std::fs::write(weir.log("app.log"), "DEBUG one\nINFO two\n").expect("write a log");
    let list = json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name(),
        "start_at": "beginning", "filter": "it"}]);
    weir.weir(&["module", "push", &stranger, "--tag", "it"]).ok();
    weir.weir(&["list", "put", &list_file(&weir, &list), "--sign-key", &ours]).ok();
    weir.start();
    let cause = || weir.entry("app")["filter"]["cause"].as_str().unwrap_or_default().to_owned();
    eventually(SOON, "the module to be refused", cause, |cause| cause.contains("is not signed"));
    assert_eq!(weir.lines("app").finished(), 0, "without its filter nothing goes out");
    let check = weir.weir(&["check"]);
    assert!(check.stdout.contains("module it: it is not signed"), "{check:?}");

    // Signed with the second key, it is found without a word.
    let signed = weir.weir(&["module", "sign", &stranger, "--sign-key", &theirs]).ok();
    assert!(signed.contains(THEIRS[0]), "{signed}");
    weir.weir(&["module", "push", &stranger, "--tag", "it"]).ok();
    let lines = weir.await_finished("app", 2, LONG);
    assert_eq!((lines.delivered, lines.filtered), (1, 1));

    // Another module with the signature of the first one: the old filter goes on.
    let forged = weir.file("forged.wasm").to_str().expect("text").to_owned();
    std::fs::write(&forged, guests::bytes("redact")).expect("write a module");
    std::fs::copy(format!("{stranger}.minisig"), format!("{forged}.minisig")).expect("copy a signature");
    weir.weir(&["module", "push", &forged, "--tag", "it", "--untried"]).ok();
    eventually(SOON, "the forged module to be refused", cause, |cause| cause.contains("cannot be trusted"));
    let mut log = std::fs::OpenOptions::new().append(true).open(weir.log("app.log")).expect("open a log");
    std::io::Write::write_all(&mut log, b"DEBUG three\nINFO four\n").expect("write a log");
    let lines = weir.await_finished("app", 4, SOON);
    assert_eq!((lines.delivered, lines.filtered), (2, 2), "by the old filter");
    assert!(weir.stop().success());
}

#[test]
fn a_module_file_is_signed_by_the_file_beside_it() {
    let topic = Kafka::shared().topic("signed-file", 1);
    let mut weir = host().setting("policy", &keys(&[OURS]));
    let ours = key_file(&weir, "ours.key", OURS);
    let wasm = weir.file("drop_debug.wasm").to_str().expect("text").to_owned();
    std::fs::write(&wasm, guests::bytes("drop_debug")).expect("write a module");
    std::fs::write(weir.log("app.log"), "DEBUG one\nINFO two\n").expect("write a log");
    weir.list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name(),
        "start_at": "beginning", "filter": wasm}]));
    weir.start();
    await_problem(&weir, "not signed");
    let list = weir.list_file().to_str().expect("text").to_owned();
    weir.weir(&["list", "sign", &list, "--sign-key", &ours]).ok();
    let cause = || weir.entry("app")["filter"]["cause"].as_str().unwrap_or_default().to_owned();
    eventually(SOON, "the module to be refused", cause, |cause| cause.contains("is not signed"));
    weir.weir(&["module", "sign", &wasm, "--sign-key", &ours]).ok();
    let lines = weir.await_finished("app", 2, LONG);
    assert_eq!((lines.delivered, lines.filtered), (1, 1));
    assert!(weir.stop().success());
}
