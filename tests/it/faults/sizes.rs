//! Very long lines, and very many files: memory stays where it was.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use serde_json::json;
use std::ops::ControlFlow;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::wait::eventually;

use super::{AGENT_MEMORY, FILE_BYTES, MEMORY, Outcome, PATIENCE, Plan, mib, seconds};
use crate::host;

#[test]
fn a_line_of_any_length_is_delivered_in_parts_within_the_memory() {
    let plan = Plan::of("a long line (rounds: MiB)", 64, 1_024);
    let topic = Kafka::shared().topic("long-line", 1);
    let mut weir = host().setting("limits", &format!("memory = {MEMORY}"));
    weir.list(&json!([{"name": "app", "path": weir.log("app.log"), "topic": topic.name(),
        "start_at": "beginning"}]));
    weir.start();
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(10);
    // Its bytes count up, so that a part that is missing, doubled or moved is noticed.
    let bytes = plan.rounds << 20;
    let mut out =
        std::io::BufWriter::new(std::fs::File::options().append(true).open(file.path()).expect("open"));
    (0..bytes / 8).for_each(|n| out.write_all(format!("{n:08x}").as_bytes()).expect("write"));
    out.write_all(b"\n").expect("write");
    out.flush().expect("write");
    drop(out);
    file.write(10);
    let mut tally = Tally::of(&[file.expected()]);
    let (mut next, mut rest) = (0, Vec::new());
    let begun = Instant::now();
    topic.consumer().each(PATIENCE, |message| {
        let value = message.payload().unwrap_or_default();
        if value.starts_with(b"app ") {
            tally.see(0, value);
        } else {
            rest.extend_from_slice(value);
            let whole = rest.len() / 8 * 8;
            for word in rest.drain(..whole).collect::<Vec<_>>().chunks(8) {
                assert_eq!(word, format!("{next:08x}").as_bytes(), "part {next} of the long line");
                next += 1;
            }
        }
        if tally.missing() == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let (took, peak) = (begun.elapsed(), weir.peak_memory());
    assert_eq!((next, rest.len()), (bytes / 8, 0), "the long line is whole");
    assert!(weir.stop().success(), "{}", weir.stderr());
    let facts = json!({"peak_rss_mib": mib(peak), "rss_allowed_mib": mib(MEMORY + AGENT_MEMORY), "took_s": seconds(took)});
    Outcome::of(plan, tally.verdict(), Some(0), facts)
        .must(peak <= MEMORY + AGENT_MEMORY, format!("peak memory {} MiB", mib(peak)))
        .report();
}

#[test]
fn ten_thousand_files_are_followed_within_the_memory() {
    const LINES: u64 = 10;
    let plan = Plan::of("many files (rounds: files)", 2_000, 10_000);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("many-files", 4);
    let mut weir = host().setting("limits", &format!("memory = {MEMORY}"));
    let create = |n: u64| LineFile::create(weir.log(&format!("f{n:06}.log")), &format!("f{n:06}"), 100);
    let mut files: Vec<_> = (0..plan.rounds).map(create).collect();
    weir.list(&json!([{"name": "app", "path": weir.log("*.log"), "topic": topic.name(),
        "start_at": "beginning"}]));
    files.iter_mut().for_each(|file| file.write(LINES));
    weir.start();
    weir.await_finished("app", plan.rounds * LINES, PATIENCE);
    // Then some, in any order, with a clean restart between.
    for restart in [true, false] {
        for _ in 0..plan.rounds {
            let file = dice.below(plan.rounds) as usize;
            files[file].write(LINES);
        }
        if restart {
            assert!(weir.restart().success());
        }
    }
    let expected: Vec<_> = files.iter().map(LineFile::expected).collect();
    let mut tally = Tally::of(&expected);
    topic.tally(&mut tally, PATIENCE);
    let lag = || weir.entry("app")["lag_bytes"].as_u64();
    eventually(PATIENCE, "no lag", lag, |lag| *lag == Some(0));
    let peak = weir.peak_memory();
    let before = weir.cpu();
    std::thread::sleep(Duration::from_secs(3));
    let idle = (weir.cpu() - before).as_secs_f64() / 3.0;
    assert!(weir.stop().success(), "{}", weir.stderr());
    let mut tally = Tally::of(&expected);
    topic.tally_now(&mut tally);
    let bound = MEMORY + AGENT_MEMORY + plan.rounds * FILE_BYTES;
    let facts = json!({"peak_rss_mib": mib(peak), "rss_allowed_mib": mib(bound),
        "idle_core_percent": (idle * 1000.0).round() / 10.0});
    Outcome::of(plan, tally.verdict(), Some(0), facts)
        .must(peak <= bound, format!("peak memory {} MiB", mib(peak)))
        .report();
}
