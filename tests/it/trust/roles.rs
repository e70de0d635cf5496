//! The roles in etcd that docs/security.md gives to agents, editors of lists and publishers of
//! modules: that they suffice, and what each of them cannot do.

use std::process::Command;

use serde_json::json;
use weir_tests::etcd::{Etcd, USER};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::unconnected;

const LIST: &str = "/weir/lists/web1";

/// Runs etcdctl as root; what it said, or its error.
pub(super) fn etcdctl(etcd: &Etcd, args: &[&str]) -> Result<String, String> {
    etcdctl_as(etcd, &format!("{}:{}", USER.0, USER.1), args)
}

fn etcdctl_as(etcd: &Etcd, user: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", etcd.endpoint()).env("ETCDCTL_USER", user);
    let output = command.args(args).output().expect("run etcdctl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The commands that the documentation has for this.
fn documented() -> Vec<String> {
    let page = std::fs::read_to_string(weir_tests::workspace().join("docs/security.md")).expect("the page");
    // The harness calls every agent `host`.
    let here = |line: &str| {
        ["agents", "agents/seen", "agents/live"]
            .iter()
            .fold(line.to_owned(), |line, dir| line.replace(&format!("{dir}/web1"), &format!("{dir}/host")))
    };
    let commands: Vec<_> = page.lines().filter(|line| line.starts_with("etcdctl ")).map(here).collect();
    assert!(commands.len() > 10, "docs/security.md has the commands");
    commands
}

/// A host whose commands and agent log in as `user`.
fn login(etcd: &Etcd, user: &str) -> Weir {
    let weir = unconnected();
    let password = weir.file("password");
    std::fs::write(&password, format!("{user}-password\n")).expect("write a password");
    weir.kafka(&Kafka::shared().brokers())
        .setting("etcd", &format!("endpoints = [{:?}]\ncollect_key = {LIST:?}", etcd.endpoint()))
        .setting("etcd", &format!("username = {user:?}\npassword_file = {password:?}"))
}

#[test]
fn the_documented_roles_suffice_and_lack_what_they_should() {
    let etcd = Etcd::private();
    etcd.ask_for_user();
    for command in documented() {
        let args: Vec<_> = command.split_whitespace().skip(1).collect();
        etcdctl(&etcd, &args).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    let [mut agent, editor, publisher, viewer] =
        ["web1", "editor", "publisher", "viewer"].map(|user| login(&etcd, user));
    let topic = Kafka::shared().topic("roles", 1);

    // What each of them is for.
    let wasm = publisher.file("drop_debug.wasm").to_str().expect("text").to_owned();
    std::fs::write(&wasm, guests::bytes("drop_debug")).expect("write a module");
    publisher.weir(&["module", "push", &wasm, "--tag", "it"]).ok();
    publisher.weir(&["module", "ls"]).ok();
    std::fs::write(agent.log("app.log"), "DEBUG one\nINFO two\n").expect("write a log");
    let entry = json!({"name": "app", "path": agent.log("app.log"), "topic": topic.name(),
        "start_at": "beginning", "filter": "it"});
    editor.weir(&["list", "add", &entry.to_string()]).ok();
    agent.start();
    let lines = agent.await_finished("app", 2, SOON);
    assert_eq!((lines.delivered, lines.filtered), (1, 1));
    let fleet = || viewer.weir(&["fleet", "--json"]).stdout;
    eventually(SOON, "the agent's status", fleet, |fleet| {
        fleet.contains("\"host\"") && fleet.contains("app")
    });
    assert!(agent.stop().success());
    eventually(SOON, "the status to be taken back", || etcd.get("/weir/agents/host"), Option::is_none);
    assert!(!agent.stderr().contains("permission denied"), "{}", agent.stderr());

    // What each of them cannot do.
    let denied = |user: &str, args: &[&str]| {
        let said = etcdctl_as(&etcd, &format!("{user}:{user}-password"), args);
        assert!(
            said.as_ref().is_err_and(|error| error.contains("permission denied")),
            "{user} {args:?}: {said:?}"
        );
    };
    let (tag, blob) = ("/weir/modules/tags/it", "/weir/modules/blobs/00/manifest");
    for key in [LIST, "/weir/lists/web2", tag, blob, "/weir/modules/sigs/00", "/weir/agents/web2", "/other"] {
        denied("web1", &["put", key, "x"]);
    }
    for key in ["/weir/lists/web2", "/weir/agents/web2", "/other"] {
        denied("web1", &["get", key]);
    }
    for key in [tag, blob, "/weir/modules/sigs/00", "/weir/agents/host", "/other"] {
        denied("editor", &["put", key, "x"]);
    }
    for key in [LIST, "/weir/agents/host", "/other"] {
        denied("publisher", &["put", key, "x"]);
        denied("publisher", &["get", key]);
    }
    for key in [LIST, tag, "/weir/agents/host"] {
        denied("viewer", &["put", key, "x"]);
    }
    for user in ["web1", "editor", "publisher", "viewer"] {
        denied(user, &["del", LIST.rsplit_once('/').map_or("", |(dir, _)| dir), "--from-key"]);
        denied(user, &["role", "list"]);
        denied(user, &["auth", "disable"]);
    }
    // The commands say so, too.
    let other = json!({"path": "/var/log/other.log", "topic": "t"});
    let said = agent.weir(&["list", "add", &other.to_string()]);
    assert!(said.code() == 1 && said.stderr.contains("permission denied"), "{said:?}");
}
