//! TLS, certificates and passwords on the way to Kafka and to etcd, on real ones that ask for them.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use weir_tests::etcd;
use weir_tests::etcd::Etcd;
use weir_tests::kafka::{Kafka, USER};
use weir_tests::lines::LineFile;
use weir_tests::mock::MockKafka;
use weir_tests::tls::Authority;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use crate::{LONG, unconnected};

/// Lines of a file, for each way in.
const LINES: u64 = 100;

/// A file that only its owner may read.
fn secret(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).expect("write a secret");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("keep it secret");
    path
}

/// `[kafka]` and its properties for SASL over TLS.
fn sasl(weir: Weir, brokers: &str, mechanism: &str, password: &str, ca: Option<&Path>) -> Weir {
    let file = secret(weir.file("kafka.password"), &format!("{password}\n"));
    let mut properties = format!(
        "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = {mechanism:?}\n\"sasl.username\" = {:?}\n",
        USER.0
    );
    if let Some(ca) = ca {
        writeln!(properties, "\"ssl.ca.location\" = {ca:?}").expect("memory takes every write");
    }
    weir.kafka(brokers)
        .setting("kafka", &format!("sasl_password_file = {file:?}"))
        .setting("kafka.properties", &properties)
}

#[test]
fn kafka_is_reached_over_tls_by_password_or_certificate_and_by_nobody_else() {
    let authority = Authority::new();
    let kafka = Kafka::secured(&authority);
    let (ca, client) = (authority.ca(), authority.issue("agent"));
    for mechanism in ["SCRAM-SHA-256", "PLAIN"] {
        delivers(&kafka, sasl(unconnected(), &kafka.sasl_brokers(), mechanism, USER.1, Some(&ca)));
    }
    let certificate = format!(
        "\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = {ca:?}\n\
         \"ssl.certificate.location\" = {:?}\n\"ssl.key.location\" = {:?}\n",
        client.cert, client.key
    );
    let mtls = unconnected().kafka(&kafka.mtls_brokers());
    delivers(&kafka, mtls.setting("kafka.properties", &certificate));

    // What is wrong is said, by `check` before and by the agent after, and never with the password.
    let stranger = Authority::new();
    let wrong = sasl(unconnected(), &kafka.sasl_brokers(), "SCRAM-SHA-256", "guessed-wrong", Some(&ca));
    refused(&kafka, wrong, "Authentication failed");
    let untrusted = sasl(unconnected(), &kafka.sasl_brokers(), "SCRAM-SHA-256", USER.1, Some(&stranger.ca()));
    refused(&kafka, untrusted, "certificate verify failed");
    // Without `ssl.ca.location` the system's authorities count, and this is none of them.
    let by_default = sasl(unconnected(), &kafka.sasl_brokers(), "SCRAM-SHA-256", USER.1, None);
    refused(&kafka, by_default, "certificate verify failed");
    let no_certificate = unconnected().kafka(&kafka.mtls_brokers()).setting(
        "kafka.properties",
        &format!("\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = {ca:?}"),
    );
    refused(&kafka, no_certificate, "");
}

#[track_caller]
fn delivers(kafka: &Kafka, mut weir: Weir) {
    let topic = kafka.topic("secured", 1);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(LINES);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    let said = weir.weir(&["check"]);
    assert_eq!(said.code(), 0, "{}{}", said.stdout, said.stderr);
    weir.start();
    topic.verdict(&[file.expected()], LONG).assert_exact();
    assert!(weir.stop().success());
    assert!(!weir.stderr().contains(USER.1), "{}", weir.stderr());
}

/// Nothing arrives, and it is said why; the agent goes on.
#[track_caller]
fn refused(kafka: &Kafka, weir: Weir, why: &str) {
    let mut weir = weir.setting("agent", "drain = \"1s\"");
    let topic = kafka.topic("refused", 1);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(LINES);
    weir.list(&json!([{"name": "app", "path": file.path(), "topic": topic.name(), "start_at": "beginning"}]));
    let said = weir.weir(&["check"]);
    assert_eq!(said.code(), 1, "{}{}", said.stdout, said.stderr);
    weir.start();
    eventually(
        LONG,
        "a reason in the log",
        || weir.stderr(),
        |log| log.contains(why) && log.contains("broker"),
    );
    assert!(weir.runs());
    assert_eq!(topic.count_all(), 0);
    assert!(weir.stop().code().is_some(), "it is not killed: {}", weir.stderr());
    for shown in [&weir.stderr(), &said.stdout, &said.stderr] {
        assert!(!shown.contains(USER.1) && !shown.contains("guessed-wrong"), "{shown}");
    }
}

#[test]
fn etcd_is_reached_with_a_certificate_and_a_password_and_by_nobody_else() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let etcd = Etcd::secured(&authority);
    etcd.ask_for_user();
    let client = authority.issue("agent");
    let mock = MockKafka::new(1);
    let key = "/secure/collect";
    etcd.put(key, json!([{"name": "app", "path": "/var/log/none.log", "topic": "none"}]).to_string());
    let agent = |ca: Option<&Path>, certificate: bool, password: &str| {
        let weir = unconnected().kafka(&mock.brokers()).etcd(&etcd.endpoint(), key);
        let file = secret(weir.file("etcd.password"), password);
        let mut lines = format!("username = {:?}\npassword_file = {file:?}\n", etcd::USER.0);
        if let Some(ca) = ca {
            writeln!(lines, "ca_file = {ca:?}").expect("memory takes every write");
        }
        if certificate {
            write!(lines, "cert_file = {:?}\nkey_file = {:?}\n", client.cert, client.key)
                .expect("memory takes every write");
        }
        weir.setting("etcd", &lines)
    };
    let ca = authority.ca();
    let mut weir = agent(Some(&ca), true, etcd::USER.1);
    weir.start();
    let revision = || weir.status()["list"]["revision"].as_i64().unwrap_or_default();
    eventually(LONG, "the list", revision, |revision| *revision > 0);
    let written = weir.weir(&["list", "rm", "app"]);
    assert_eq!(written.code(), 0, "{}{}", written.stdout, written.stderr);
    eventually(LONG, "the change", || weir.status()["entries"].clone(), |entries| *entries == json!([]));
    assert!(weir.stop().success(), "{}", weir.stderr());

    for (what, mut weir) in [
        ("wrong password", agent(Some(&ca), true, "guessed-wrong")),
        ("no certificate", agent(Some(&ca), false, etcd::USER.1)),
        ("wrong authority", agent(Some(&stranger.ca()), true, etcd::USER.1)),
        ("the system's authorities", agent(None, true, etcd::USER.1)),
    ] {
        let said = weir.weir(&["list", "get"]);
        assert_eq!(said.code(), 1, "{what}: {}{}", said.stdout, said.stderr);
        assert!(said.stderr.contains("etcd"), "{what}: {}", said.stderr);
        weir.start();
        eventually(Duration::from_secs(60), what, || weir.stderr(), |log| log.contains("etcd"));
        assert_eq!(weir.status()["list"]["revision"].as_i64().unwrap_or_default(), 0, "{what}");
        assert!(weir.stop().success(), "{what}: {}", weir.stderr());
        for shown in [&weir.stderr(), &said.stderr] {
            assert!(!shown.contains("guessed-wrong"), "{what}: {shown}");
        }
    }
}
