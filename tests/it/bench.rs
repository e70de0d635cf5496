//! First figures, next to those of others on the same file and broker: `make bench`.
//!
//! CPU is user and system time of the whole process, from start to end. These are no tests: they
//! print, they hold nothing, and they run only when asked for.

use std::process::Command;

use serde_json::json;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;

use crate::{LONG, host};

/// Of 200 bytes each.
const LINES: u64 = 1_000_000;

#[test]
#[ignore = "prints figures; `make bench` runs it"]
fn cpu_seconds_a_million_lines() {
    let kafka = Kafka::shared();
    let dir = weir_tests::scratch::dir("bench");
    let mut file = LineFile::create(dir.path().join("app.log"), "app", 200);
    file.write(LINES);
    for round in 1..=3 {
        println!("round {round}, CPU seconds a million lines of 200 bytes, lz4");
        println!("  kcat -P -l         {:.2}", kcat(kafka, &file));
        println!("  weir               {:.2}", weir(kafka, &file, None));
        println!("  weir, drop_debug   {:.2}", weir(kafka, &file, Some("drop_debug")));
    }
}

fn kcat(kafka: &Kafka, file: &LineFile) -> f64 {
    let topic = kafka.topic("bench-kcat", 1);
    let script = format!(
        "TIMEFORMAT='%U %S'; time kcat -P -q -b {} -t {} -z lz4 -X acks=all -X enable.idempotence=true -l {}",
        kafka.brokers(),
        topic.name(),
        file.path().display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("run bash");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(topic.count_all(), LINES);
    let times = String::from_utf8_lossy(&output.stderr).into_owned();
    times.split_whitespace().map(|seconds| seconds.parse::<f64>().expect("seconds")).sum()
}

fn weir(kafka: &Kafka, file: &LineFile, filter: Option<&str>) -> f64 {
    let topic = kafka.topic("bench-weir", 1);
    let mut weir = host().setting("kafka.properties", "\"compression.type\" = \"lz4\"");
    let log = weir.log("app.log");
    std::fs::hard_link(file.path(), &log).expect("link the file");
    let mut entry = json!({"name": "app", "path": log, "topic": topic.name(), "start_at": "beginning"});
    if let Some(filter) = filter {
        entry["filter"] = json!(guests::path(filter));
    }
    weir.list(&json!([entry]));
    weir.start();
    weir.await_finished("app", LINES, LONG);
    let cpu = weir.cpu().as_secs_f64();
    assert!(weir.stop().success());
    cpu
}
