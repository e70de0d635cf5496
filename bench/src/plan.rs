//! What is measured and how often: from the environment, so that `make bench ONLY=latency` works.

use anyhow::{Result, bail};

/// The measures, in the order in which they run.
pub(crate) const MEASURES: [&str; 10] =
    ["agents", "codecs", "lengths", "filters", "scan", "entries", "pack", "latency", "idle", "fleet"];

/// How much of it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Of [`MEASURES`].
    pub(crate) only: Vec<String>,
    /// Of the agents that are there; empty: all.
    pub(crate) agents: Vec<String>,
    /// How often each run is made; the runs of one round stand side by side.
    pub(crate) rounds: usize,
    /// Lines of a run.
    pub(crate) lines: u64,
    /// Of a latency run.
    pub(crate) latency_seconds: u64,
    /// Over which idle cost is measured.
    pub(crate) idle_seconds: u64,
    /// Files that lie idle.
    pub(crate) idle_files: Vec<u64>,
    /// Agents on one etcd.
    pub(crate) fleet: Vec<u64>,
}

impl Plan {
    pub(crate) fn from_env() -> Result<Self> {
        let only = list("ONLY");
        if let Some(unknown) = only.iter().find(|name| !MEASURES.contains(&name.as_str())) {
            bail!("ONLY={unknown}: there are {}", MEASURES.join(", "));
        }
        Ok(Self {
            only,
            agents: list("AGENTS"),
            rounds: number("ROUNDS", 3)? as usize,
            lines: number("LINES", 1_000_000)?,
            latency_seconds: number("LATENCY_SECONDS", 20)?,
            idle_seconds: number("IDLE_SECONDS", 60)?,
            idle_files: numbers("IDLE_FILES", &[1_000, 10_000])?,
            fleet: numbers("FLEET", &[100, 200])?,
        })
    }

    pub(crate) fn has(&self, measure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == measure)
    }

    pub(crate) fn has_agent(&self, name: &str) -> bool {
        self.agents.is_empty() || self.agents.iter().any(|agent| agent == name)
    }
}

fn list(name: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(Into::into).collect()
}

fn numbers(name: &str, usual: &[u64]) -> Result<Vec<u64>> {
    match list(name) {
        numbers if numbers.is_empty() => Ok(usual.into()),
        numbers => numbers.iter().map(|text| parse(name, text)).collect(),
    }
}

fn number(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => parse(name, &text),
        _ => Ok(usual),
    }
}

fn parse(name: &str, text: &str) -> Result<u64> {
    match text.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("{name}={text}: a number above 0 is wanted"),
    }
}
