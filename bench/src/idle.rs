//! What many files cost to which nothing is written.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use weir_tests::lines::{Expected, LineFile, Tally};
use weir_tests::process::Process;
use weir_tests::scratch;

use crate::Bench;
use crate::agent::{Agent, Job};
use crate::report::Table;
use crate::run::{judged, quoted, stop};
use crate::stats::number;

const LINES: u64 = 10;
const LINE_BYTES: usize = 100;
/// For all lines of the files.
const CATCH_UP: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// After the last line; an agent may take its time before it holds a file for idle.
const SETTLE: Duration = Duration::from_secs(70);

pub(crate) fn idle(bench: &mut Bench) -> Result<()> {
    let agents: Vec<Agent> = bench.agents.iter().filter(|agent| !agent.one_shot).cloned().collect();
    for count in bench.plan.idle_files.clone() {
        let title = format!("{} idle files under one glob", number(count as f64, 0));
        let columns =
            ["", "CPU % of a core", "RSS MB", "descriptors", "s to deliver them first", "lines on the topic"];
        let mut table = Table::new("idle", &title, &columns);
        let logs = scratch::dir("idle-logs");
        let files: Vec<Expected> = (0..count).map(|n| write(logs.path(), n)).collect();
        for agent in &agents {
            let (cells, json) = run(bench, agent, &logs.path().join("*.log").to_string_lossy(), &files)?;
            eprintln!("idle: {count} files, {}", cells.join(", "));
            table.row(&cells, json);
        }
        bench.report.add(table)?;
    }
    Ok(())
}

fn write(dir: &std::path::Path, n: u64) -> Expected {
    let mut file = LineFile::create(dir.join(format!("f{n:06}.log")), &format!("f{n:06}"), LINE_BYTES);
    file.write(LINES);
    file.expected()
}

fn run(
    bench: &Bench,
    agent: &Agent,
    glob: &str,
    files: &[Expected],
) -> Result<(Vec<String>, serde_json::Value)> {
    let (dir, topic) = (scratch::dir("idle"), bench.kafka.topic("idle", 1));
    let job = Job {
        dir: dir.path(),
        brokers: &bench.kafka.brokers(),
        topic: topic.name(),
        files: &[glob.to_owned()],
        codec: "lz4",
        filter: None,
        pack: None,
    };
    let begun = Instant::now();
    let mut process = Process::start(agent.name, agent.command(&job)?, &dir.path().join("output.log"));
    let mut consumer = topic.consumer();
    let wanted = files.iter().map(Expected::lines).sum::<u64>();
    while consumer.ends() < wanted && begun.elapsed() < CATCH_UP && process.ended().is_none() {
        std::thread::sleep(LOOK);
    }
    let caught_up = begun.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let (cpu_before, from) = (process.cpu_of_threads(), Instant::now());
    std::thread::sleep(Duration::from_secs(bench.plan.idle_seconds));
    let cpu =
        process.cpu_of_threads().saturating_sub(cpu_before).as_secs_f64() / from.elapsed().as_secs_f64();
    let memory = process.resident_memory() as f64 / 1e6;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).map_or(0, Iterator::count);
    stop(&mut process, false);
    let mut tally = Tally::of(&quoted(agent, files));
    topic.tally_now(&mut tally);
    bench.kafka.delete_topic(topic.name());
    let verdict = judged([&tally.verdict()]);
    let cells = vec![
        agent.name.into(),
        number(cpu * 100.0, 3),
        number(memory, 0),
        descriptors.to_string(),
        number(caught_up, 1),
        verdict.clone(),
    ];
    let json = json!({
        "what": agent.name, "files": files.len(), "cpu_percent_of_a_core": cpu * 100.0, "rss_mb": memory,
        "descriptors": descriptors, "caught_up_s": caught_up, "lines": verdict,
    });
    Ok((cells, json))
}
