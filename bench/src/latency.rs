//! How long a line takes from the write to a consumer, where lines come one by one.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::Message as _;
use serde_json::json;
use weir_tests::lines::{LineFile, Tally, Verdict};
use weir_tests::process::Process;
use weir_tests::scratch;

use crate::Bench;
use crate::agent::{Agent, Job};
use crate::report::Table;
use crate::run::{judged, quoted, stop};
use crate::stats::{Sample, number};

/// Lines a second.
const RATES: [u64; 2] = [1_000, 20_000];
const LINE_BYTES: usize = 200;
/// Written and awaited before the clock is looked at: the agent is up and knows the topic.
const WARM_UP: u64 = 100;
/// For the last line.
const LAST: Duration = Duration::from_secs(60);

/// Of one run.
struct Figures {
    /// Milliseconds.
    latency: Sample,
    /// Of a core, 0 to 1.
    cpu: f64,
    verdict: Verdict,
}

pub(crate) fn latency(bench: &mut Bench) -> Result<()> {
    for rate in RATES {
        let agents: Vec<Agent> = bench.agents.iter().filter(|agent| !agent.one_shot).cloned().collect();
        let mut runs: Vec<Vec<Figures>> = agents.iter().map(|_| Vec::new()).collect();
        for round in 1..=bench.plan.rounds {
            for (agent, runs) in agents.iter().zip(&mut runs) {
                let run = run(bench, agent, rate)?;
                let (p50, p99) = (run.latency.quantile(0.5), run.latency.quantile(0.99));
                eprintln!(
                    "latency: {rate} lines/s, round {round}, {}: p50 {p50:.1}, p99 {p99:.1} ms",
                    agent.name
                );
                runs.push(run);
            }
        }
        let title =
            format!("From the write to a consumer, {} lines/s, one write a line", number(rate as f64, 0));
        let columns = ["", "p50 ms", "p99 ms", "max ms", "CPU % of a core", "lines on the topic"];
        let mut table = Table::new("latency", &title, &columns);
        for (agent, runs) in agents.iter().zip(&runs) {
            let sample = |figure: &dyn Fn(&Figures) -> f64| Sample::of(runs.iter().map(figure));
            let p50 = sample(&|run| run.latency.quantile(0.5));
            let p99 = sample(&|run| run.latency.quantile(0.99));
            let max = sample(&|run| run.latency.quantile(1.0));
            let cpu = sample(&|run| run.cpu * 100.0);
            let verdict = judged(runs.iter().map(|run| &run.verdict));
            table.row(
                &[agent.name.into(), p50.cell(1), p99.cell(1), max.cell(0), cpu.cell(1), verdict.clone()],
                json!({
                    "what": agent.name, "lines_per_s": rate, "p50_ms": p50.json(), "p99_ms": p99.json(),
                    "max_ms": max.json(), "cpu_percent_of_a_core": cpu.json(), "lines": verdict,
                }),
            );
        }
        bench.report.add(table)?;
    }
    Ok(())
}

fn run(bench: &Bench, agent: &Agent, rate: u64) -> Result<Figures> {
    let (dir, topic) = (scratch::dir("latency"), bench.kafka.topic("latency", 1));
    let logs = scratch::dir("latency-logs");
    let mut file = LineFile::create(logs.path().join("app.log"), "app", LINE_BYTES);
    let files = [file.path().to_string_lossy().into_owned()];
    let job = Job {
        dir: dir.path(),
        brokers: &bench.kafka.brokers(),
        topic: topic.name(),
        files: &files,
        codec: "lz4",
        filter: None,
        pack: None,
    };
    let mut process = Process::start(agent.name, agent.command(&job)?, &dir.path().join("output.log"));
    file.write(WARM_UP);
    let mut consumer = topic.consumer();
    consumer.take(WARM_UP as usize, LAST);
    let count = rate * bench.plan.latency_seconds;
    let mut seen: Vec<Option<Instant>> = vec![None; (WARM_UP + count) as usize];
    let mut written = Vec::with_capacity(count as usize);
    let cpu_before = process.cpu_of_threads();
    let begun = Instant::now();
    let cpu = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut missing = count;
            let within = Duration::from_secs(bench.plan.latency_seconds) + LAST;
            consumer.each(within, |message| {
                let value = message.payload().unwrap_or_default();
                let seq = number_of(&value[agent.quote.len().min(value.len())..]);
                if let Some(place @ None) = seq.and_then(|seq| seen.get_mut(seq)) {
                    *place = Some(Instant::now());
                    missing -= 1;
                }
                if missing == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        });
        for n in 0..count {
            let due = begun + Duration::from_nanos(n * 1_000_000_000 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            written.push(Instant::now());
            file.write(1);
        }
        let cpu = process.cpu_of_threads().saturating_sub(cpu_before);
        reader.join().expect("the reader does not panic");
        cpu.as_secs_f64() / begun.elapsed().as_secs_f64()
    });
    stop(&mut process, false);
    let mut tally = Tally::of(&quoted(agent, &[file.expected()]));
    topic.tally_now(&mut tally);
    bench.kafka.delete_topic(topic.name());
    let pairs = written.iter().zip(&seen[WARM_UP as usize..]);
    let latency = pairs.filter_map(|(written, seen)| Some((*seen.as_ref()? - *written).as_secs_f64() * 1e3));
    Ok(Figures { latency: Sample::of(latency), cpu, verdict: tally.verdict() })
}

/// The number of a line: `app 00000017 ...`.
fn number_of(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line.get(4..12)?).ok()?.parse().ok()
}
