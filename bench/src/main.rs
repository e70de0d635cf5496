//! Measures weir and other agents side by side, on the same files and broker: `make bench`.
//!
//! Runs of one round stand side by side, so that whatever else the machine does hits all of them;
//! figures are medians over the rounds. CPU is user and system time of the whole process, from its
//! start to its end. What an agent delivered is read back from the topic, line by line, by a consumer
//! that shares nothing with it: a run that loses or repeats lines is marked.
//!
//! - `plan`: what is measured, from the environment.
//! - `agent`: the programs, and how each is started; `bare`: the bare loop among them.
//! - `run`: one run of one program over files that are there; `throughput`: the tables of such runs.
//! - `scan`: a search in each line, in a filter and natively.
//! - `latency`, `idle`: lines that come one by one, and files to which nothing comes.
//! - `fleet`: many agents on one etcd.
//! - `stages`, in the library: each stage of the data path alone, for `cargo bench` and for callgrind.
//! - `report`: what is printed, and kept as markdown and JSON.

mod agent;
mod bare;
mod fleet;
mod idle;
mod latency;
mod plan;
mod report;
mod run;
mod scan;
mod stats;
mod throughput;

use std::process::ExitCode;

use anyhow::Result;
use weir_tests::kafka::Kafka;

use self::agent::Agent;
use self::plan::Plan;
use self::report::Report;

/// What every measure works with.
struct Bench {
    plan: Plan,
    agents: Vec<Agent>,
    kafka: &'static Kafka,
    report: Report,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        None => measure(),
        Some((first, rest)) if first == "bare-loop" => bare::run(rest),
        Some((first, [name, times])) if first == "stage" => stage(name, times),
        Some((first, _)) => {
            Err(anyhow::anyhow!("{first}: what to measure is said by variables, see the Makefile"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a stage so often, and says how many lines went through it.
fn stage(name: &str, times: &str) -> Result<()> {
    let mut stage = weir_bench::stages::stage(name)?;
    let lines = (0..times.parse()?).map(|_: u64| stage()).sum::<Result<u64>>()?;
    println!("{lines}");
    Ok(())
}

fn measure() -> Result<()> {
    let plan = Plan::from_env()?;
    let (mut agents, missing) = agent::find()?;
    agents.retain(|agent| plan.has_agent(agent.name));
    let mut bench =
        Bench { report: Report::start(&plan, &agents, &missing), plan, agents, kafka: Kafka::shared() };
    type Measure = (&'static str, fn(&mut Bench) -> Result<()>);
    let measures: [Measure; 10] = [
        ("agents", throughput::agents),
        ("codecs", throughput::codecs),
        ("lengths", throughput::lengths),
        ("filters", throughput::filters),
        ("scan", scan::scan),
        ("entries", throughput::entries),
        ("pack", throughput::pack),
        ("latency", latency::latency),
        ("idle", idle::idle),
        ("fleet", fleet::fleet),
    ];
    for (name, measure) in measures {
        if bench.plan.has(name) {
            measure(&mut bench)?;
        }
    }
    bench.report.end()
}

impl Bench {
    fn agent(&self, name: &str) -> Option<&Agent> {
        self.agents.iter().find(|agent| agent.name == name)
    }
}
