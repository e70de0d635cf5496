//! The module store keeps what somebody uses, and lets go of the rest.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weir_tests::etcd::Etcd;
use weir_tests::guests;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::{Said, Weir};

use crate::{put_list, steered, unconnected};

/// A host whose list and module store are below `/NAME/`; the list has the host's name in its key.
fn store(name: &str) -> Weir {
    unconnected().etcd(&Etcd::shared().endpoint(), &format!("/{name}/{{host}}/collect"))
}

/// Where that store is: beside the list, and the host's name is not filled in there.
fn blobs(name: &str) -> String {
    format!("/{name}/{{host}}/modules/blobs/")
}

/// Pushes a version of the stamping filter; its digest.
fn push(weir: &Weir, version: u64, more: &[&str]) -> String {
    std::fs::write(weir.file("stamp.wasm"), guests::stamp(version)).expect("write a module");
    let said = weir.weir(&[&["module", "push", "stamp.wasm"], more].concat()).ok();
    said.lines().last().expect("a digest").to_owned()
}

/// Takes a blob for one that was pushed, or begun, in the year 2020.
fn age(name: &str, digest: &str, mark: &str) {
    let key = format!("{}{}/{mark}", blobs(name), digest.trim_start_matches("sha256:"));
    let etcd = Etcd::shared();
    let mut record: Value = serde_json::from_slice(&etcd.get(&key).expect("a record")).expect("JSON");
    record["when"] = json!("2020-01-01T00:00:00Z");
    etcd.put(&key, record.to_string());
}

fn list_of(module: &str) -> Value {
    json!([{"name": "app", "path": "/var/log/a.log", "topic": "t", "filter": module}])
}

#[track_caller]
fn refused(said: Said, why: &str) {
    assert_eq!(said.code(), 1, "{said:?}");
    assert!(said.stderr.contains(why), "{why:?} in\n{}", said.stderr);
}

#[test]
fn what_a_tag_or_another_hosts_list_uses_is_not_removed_and_who_uses_it_is_said() {
    let weir = store("rm");
    let digest = push(&weir, 1, &["--tag", "stamp"]);
    let rm = |what: &str| weir.weir(&["module", "rm", what]);
    put_list("/rm/web2/collect", &list_of("stamp"));
    refused(rm("stamp"), "tag `stamp` is still used by entry `app` of the list /rm/web2/collect");
    refused(rm(&digest), "is still used by tag `stamp`");
    put_list("/rm/web2/collect", &list_of(&digest));
    assert!(rm("stamp").ok().contains(&digest));
    refused(rm(&digest), "is still used by entry `app` of the list /rm/web2/collect");
    put_list("/rm/web2/collect", &json!([]));
    // A list that no key of the settings stands for.
    put_list("/elsewhere/rm", &list_of(&digest));
    let elsewhere = weir.weir(&["module", "rm", &digest, "--key", "/elsewhere/rm"]);
    refused(elsewhere, "the list /elsewhere/rm");
    rm(&digest).ok();
    assert!(Etcd::shared().keys(&blobs("rm")).is_empty());
    refused(rm(&digest), "is not in the store");
    refused(rm("stamp"), "no tag `stamp`");
}

#[test]
fn gc_removes_what_nobody_uses_and_leaves_a_push_under_way() {
    let (weir, etcd) = (store("gc"), Etcd::shared());
    let tagged: Vec<_> = (1..=3).map(|version| push(&weir, version, &["--tag", "stamp"])).collect();
    let [unused, named, young] = [4, 5, 6].map(|version| push(&weir, version, &[]));
    put_list("/gc/web2/collect", &list_of(&named));
    for digest in tagged.iter().chain([&unused, &named]) {
        age("gc", digest, "manifest");
    }
    // Two pushes that have not ended: one is under way, one broke off long ago.
    let [under_way, broken_off] = ["a", "b"].map(|digit| digit.repeat(64));
    for digest in [&under_way, &broken_off] {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let record = json!({"bytes": 9, "chunks": 1, "who": "ann@web1", "when": now});
        etcd.put(&format!("{}{digest}/begun", blobs("gc")), record.to_string());
        etcd.put(&format!("{}{digest}/00000", blobs("gc")), "x");
    }
    age("gc", &broken_off, "begun");
    let there = || -> Vec<String> {
        let mut hex: Vec<_> =
            etcd.keys(&blobs("gc")).iter().map(|key| key[blobs("gc").len()..][..64].to_owned()).collect();
        hex.dedup();
        hex
    };
    let removed = |args: &[&str]| -> Vec<String> {
        let said = weir.weir(&[&["module", "gc", "--json"], args].concat()).ok();
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let mut removed: Vec<String> = said["removed"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|blob| blob["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned())
            .collect();
        removed.sort();
        removed
    };
    let hex = |digests: &[&String]| {
        let mut hex: Vec<_> =
            digests.iter().map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect();
        hex.sort();
        hex
    };

    // What a list uses that cannot be read cannot be told.
    etcd.put("/gc/web3/collect", "[{");
    refused(weir.weir(&["module", "gc"]), "/gc/web3/collect cannot be read");
    etcd.delete("/gc/web3/collect");

    let all = there();
    assert_eq!(all.len(), 8);
    assert_eq!(removed(&["--dry-run"]), hex(&[&unused, &broken_off]));
    assert_eq!(there(), all, "nothing is removed by looking");
    assert_eq!(removed(&[]), hex(&[&unused, &broken_off]));
    assert_eq!(there(), hex(&[&tagged[0], &tagged[1], &tagged[2], &named, &young, &under_way]));
    weir.weir(&["module", "rollback", "stamp"]).ok();
    assert_eq!(removed(&["--history", "1"]), hex(&[&tagged[0]]));
    assert!(weir.weir(&["module", "gc"]).ok().ends_with("in use, 2 pushed within the last hour\n"));
}

#[test]
fn a_push_that_does_not_fit_the_configs_in_use_writes_nothing() {
    let weir = store("canary");
    let redact = guests::path("redact");
    let redact = redact.to_str().expect("text");
    let push = |more: &[&str]| weir.weir(&[&["module", "push", redact, "--tag", "redact"], more].concat());
    let entry = |config: Value| {
        json!([{"name": "app", "path": "/var/log/a.log", "topic": "t",
            "filter": {"module": "redact", "config": config}}])
    };
    put_list("/canary/web2/collect", &entry(json!({})));
    refused(push(&[]), "does not start with the config of entry `app` of the list /canary/web2/collect");
    put_list("/canary/web2/collect", &entry(json!({"fields": ["password"]})));
    refused(push(&["--with-config", "{}"]), "does not start with the config of --with-config");
    std::fs::write(weir.file("list.json"), entry(json!({"fields": 7})).to_string()).expect("write a list");
    refused(push(&["--with-list", "list.json"]), "of the new list");
    assert!(Etcd::shared().keys("/canary/{host}/modules/").is_empty(), "nothing is in the store");
    push(&["--with-config", "{\"fields\": [\"a\"]}"]).ok();

    let misbehave = guests::path("guest_misbehave");
    let misbehave = misbehave.to_str().expect("text");
    std::fs::write(weir.file("a.log"), "good\nbad\n").expect("write a log");
    let tried = |misdeed: &str| {
        let config = json!({ "do": misdeed }).to_string();
        weir.weir(&["module", "push", misbehave, "--with-config", &config, "--sample", "a.log"])
    };
    refused(tried("trap"), "it fails on 1 of 2 lines of a.log (trap: ");
    refused(tried("init-trap"), "does not start with the config of --with-config");
    tried("set-aside").ok();
    put_list("/canary/web2/collect", &entry(json!({})));
    refused(push(&[]), "does not start");
    push(&["--untried"]).ok();
}

#[test]
fn an_agent_forgets_modules_that_no_entry_has_used_for_a_week() {
    let mut weir = steered("/tidied/collect");
    put_list("/tidied/collect", &json!([]));
    let cache = weir.file("state/modules");
    std::fs::create_dir_all(&cache).expect("the cache");
    let days_ago = |digit: &str, days: u64| {
        let path = cache.join(format!("{}.wasm", digit.repeat(64)));
        let file = std::fs::File::create(&path).expect("a module");
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).expect("its time");
        path
    };
    let (recent, old) = (days_ago("a", 6), days_ago("b", 8));
    weir.start();
    eventually(SOON, "the old module to go", || old.exists(), |there| !there);
    assert!(recent.exists());
}
