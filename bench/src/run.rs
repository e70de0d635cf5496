//! One run of one program over files that are there already.

use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::Message as _;
use serde_json::Value;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{Expected, Tally, Verdict};
use weir_tests::process::Process;
use weir_tests::scratch;
use weir_tests::topic::Topic;

use crate::agent::{Agent, Job};

/// Between two looks at the topic.
const LOOK: Duration = Duration::from_millis(20);
/// Without a new record for so long, no more will come.
const SILENCE: Duration = Duration::from_secs(30);
/// What comes so soon behind the last line that was waited for is a repeat.
const SETTLE: Duration = Duration::from_millis(500);
/// The same where nobody knows how many records there will be.
const SETTLE_PACKED: Duration = Duration::from_secs(3);
/// From SIGTERM to the end.
const STOP: Duration = Duration::from_secs(30);

/// What is read.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// Paths or globs.
    pub(crate) files: Vec<String>,
    pub(crate) expected: Vec<Expected>,
    /// Lines in the files, with those that a filter drops.
    pub(crate) lines: u64,
    /// What they take, newlines included.
    pub(crate) bytes: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// From the start of the process until the last line is on the topic.
    pub(crate) took: Duration,
    /// User and system, until the end of the process.
    pub(crate) cpu: Duration,
    /// Bytes.
    pub(crate) peak_memory: u64,
    pub(crate) verdict: Verdict,
}

/// A filter and its configuration.
pub(crate) type Filter = (&'static str, Value);

/// Runs `agent` until all of `input` is on a topic of its own, and judges what is there.
pub(crate) fn run(
    kafka: &Kafka,
    agent: &Agent,
    input: &Input,
    codec: &str,
    filter: Option<&Filter>,
    pack: Option<&str>,
) -> Result<Run> {
    let (dir, topic) = (scratch::dir("run"), kafka.topic("bench", 1));
    let job = Job {
        dir: dir.path(),
        brokers: &kafka.brokers(),
        topic: topic.name(),
        files: &input.files,
        codec,
        filter: filter.cloned(),
        pack,
    };
    let command = agent.command(&job)?;
    let begun = Instant::now();
    let mut process = Process::start(agent.name, command, &dir.path().join("output.log"));
    let wanted = match pack {
        None => Wanted::Records(input.expected.iter().map(Expected::lines).sum()),
        Some(_) => Wanted::Some,
    };
    let (took, peak_memory) = watch(&mut process, &topic, wanted, begun);
    stop(&mut process, agent.one_shot);
    let cpu = process.cpu_to_the_end();
    let mut tally = Tally::of(&quoted(agent, &input.expected));
    if pack.is_none() {
        topic.tally_now(&mut tally);
    } else {
        topic.consumer().to_end(|record| {
            let lines = record.payload().unwrap_or_default().split(|byte| *byte == b'\n');
            lines.for_each(|line| _ = tally.see(record.partition(), line));
        });
    }
    kafka.delete_topic(topic.name());
    Ok(Run { took, cpu, peak_memory, verdict: tally.verdict() })
}

/// What is to be expected of an agent that puts something around each line.
pub(crate) fn quoted(agent: &Agent, expected: &[Expected]) -> Vec<Expected> {
    let quoted = |file: &Expected| match agent.quote {
        "" => file.clone(),
        quote => file.clone().with_tail(quote),
    };
    expected.iter().map(quoted).collect()
}

/// How many records a run is to make.
#[derive(Clone, Copy)]
enum Wanted {
    Records(u64),
    Some,
}

/// Waits until so many records are on the topic, or no more will come. Returns when the last one
/// was there, or where there is none the end of the process, and the peak memory.
fn watch(process: &mut Process, topic: &Topic, wanted: Wanted, begun: Instant) -> (Duration, u64) {
    let mut consumer = topic.consumer();
    let (mut count, mut changed, mut peak) = (0, Instant::now(), 0);
    loop {
        peak = peak.max(process.peak_memory());
        let over = process.ended().is_some();
        let now_there = consumer.ends();
        if now_there > count {
            (count, changed) = (now_there, Instant::now());
        }
        let patience = match wanted {
            Wanted::Records(wanted) if count >= wanted && count > 0 => SETTLE,
            Wanted::Some if count > 0 => SETTLE_PACKED,
            _ => SILENCE,
        };
        if over || changed.elapsed() > patience {
            return (if count > 0 { changed - begun } else { begun.elapsed() }, peak);
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends it, in good order where it can.
pub(crate) fn stop(process: &mut Process, one_shot: bool) {
    if !one_shot {
        process.signal(15);
    }
    let begun = Instant::now();
    while process.ended().is_none() && begun.elapsed() < STOP {
        std::thread::sleep(LOOK);
    }
    if process.ended().is_none() {
        process.kill();
    }
}

/// `all`, or what is wrong.
pub(crate) fn judged<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> String {
    let (mut lost, mut repeated, mut reordered, mut foreign) = (0, 0, 0, 0);
    for verdict in verdicts {
        lost += verdict.lost();
        repeated += verdict.repeated();
        reordered += verdict.reordered();
        foreign += verdict.foreign();
    }
    let wrong: Vec<String> =
        [(lost, "lost"), (repeated, "repeated"), (reordered, "reordered"), (foreign, "not as written")]
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("**{count} {what}**"))
            .collect();
    if wrong.is_empty() { "all, once, in order".into() } else { wrong.join(", ") }
}
