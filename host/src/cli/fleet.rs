//! `weir fleet`: every agent on one etcd.
//!
//! In: what the agents say in etcd. Out: a row an agent with its troubled entries below it, JSON, or an
//! exit code once all have applied a list.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::status::text::{severity, word};
use super::visible::plain;
use super::words::{count, cut};
use super::{Common, list};
use crate::config::{self, EtcdSettings, ListSource};
use crate::control::ListState;
use crate::control::announce::Announcement;
use crate::control::fleet::{self, Agent};
use crate::status::{EntryState, FilterState};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An agent writes its status on change, at most every 10 s, under a lease of 60 s: one that was killed is shown
as alive until that runs out, one that was stopped is not. Two agents of one name overwrite each other's
status; they are counted.

Examples:
  weir fleet
  weir list put --key /weir/all/collect collect.json     # written, revision 4711
  weir fleet --wait 4711 --within 120 && echo applied everywhere")]
pub struct FleetArgs {
    /// Only these agents
    #[arg(value_name = "AGENT")]
    names: Vec<String>,
    /// Print it for programs
    #[arg(long)]
    json: bool,
    /// Wait until every agent that lives has applied the list of this etcd revision, or a later one
    #[arg(long, value_name = "REVISION")]
    wait: Option<i64>,
    /// How long to wait; exit code 1 after that
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    within: u64,
}

/// Runs it.
pub fn run(common: &Common, args: FleetArgs) -> anyhow::Result<ExitCode> {
    let settings = config::load_without_kafka(common, None)?;
    let ListSource::Etcd(etcd) = &settings.list else {
        bail!("{} names no etcd, and the agents of a fleet are seen there", settings.file.display());
    };
    let done = list::runtime()?.block_on(async {
        match args.wait {
            Some(revision) => wait(etcd, &args, revision).await,
            None => Ok((chosen(etcd, &args.names).await?, ExitCode::SUCCESS)),
        }
    });
    let (agents, code) = done.map_err(|error| list::with_endpoints(error, &settings))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&agents)?);
    } else {
        print!("{}", table(&agents));
    }
    Ok(code)
}

/// The agents that are meant; one that nobody has ever heard of is an error.
async fn chosen(etcd: &EtcdSettings, names: &[String]) -> anyhow::Result<Vec<Agent>> {
    let mut agents = fleet::read(etcd).await?;
    if let Some(unknown) = names.iter().find(|name| agents.iter().all(|agent| agent.name != **name)) {
        bail!("no agent {unknown:?} was ever seen below {}", etcd.agents_prefix);
    }
    agents.retain(|agent| names.is_empty() || names.contains(&agent.name));
    Ok(agents)
}

/// Looks until all that live, and all that were named, have applied it.
async fn wait(
    etcd: &EtcdSettings,
    args: &FleetArgs,
    revision: i64,
) -> anyhow::Result<(Vec<Agent>, ExitCode)> {
    let deadline = Instant::now() + Duration::from_secs(args.within);
    loop {
        let agents = chosen(etcd, &args.names).await?;
        let meant = |agent: &&Agent| agent.status.is_some() || !args.names.is_empty();
        let behind: Vec<_> = agents.iter().filter(meant).filter(|agent| !agent.applied(revision)).collect();
        if behind.is_empty() && agents.iter().any(|agent| agent.status.is_some()) {
            return Ok((agents, ExitCode::SUCCESS));
        }
        if Instant::now() >= deadline {
            let names: Vec<_> = behind.iter().take(10).map(|agent| plain(&agent.name)).collect();
            let which = if names.is_empty() { "no agent lives".into() } else { names.join(", ") };
            eprintln!(
                "{} behind revision {revision}: {which}",
                count(behind.len() as u64, "agent is", "agents are")
            );
            return Ok((agents, ExitCode::FAILURE));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// A sentence, a row an agent, and below it what somebody should look at.
fn table(agents: &[Agent]) -> String {
    let live = agents.iter().filter(|agent| agent.status.is_some()).count();
    let troubled = agents.iter().filter(|agent| !troubles(agent).is_empty()).count();
    let all = count(agents.len() as u64, "agent", "agents");
    let mut table = format!("{all}: {live} alive, {troubled} to look at\n\n");
    let width = agents.iter().map(|agent| cut(&plain(&agent.name)).chars().count()).max().unwrap_or(0).max(5);
    table += &format!(
        "{:<width$}  {:<10}  {:>10}  {:>7}  last written\n",
        "agent", "version", "revision", "entries"
    );
    for agent in agents {
        let (version, revision, entries) = match (&agent.status, &agent.seen) {
            (Some(status), _) => {
                (status.version.as_str(), status.revision, (status.entries.len() + status.more).to_string())
            }
            (None, Some(seen)) => (seen.version.as_str(), seen.revision, "gone".into()),
            (None, None) => ("", 0, "gone".into()),
        };
        let seen = agent.seen.as_ref().map(|seen| plain(&seen.when)).unwrap_or_default();
        let (name, version) = (cut(&plain(&agent.name)), plain(version));
        table += &format!("{name:<width$}  {version:<10}  {revision:>10}  {entries:>7}  {seen}\n");
        for trouble in troubles(agent) {
            table += &format!("  {trouble}\n");
        }
    }
    table
}

/// What somebody should look at; the causes are on the agent's host, where `weir status` shows them.
fn troubles(agent: &Agent) -> Vec<String> {
    let Some(status) = &agent.status else { return Vec::new() };
    let mut troubles = Vec::new();
    if agent.live > 1 {
        troubles
            .push(format!("{} agents have this name; give each a name of its own (agent.name)", agent.live));
    }
    if !status.ready {
        troubles.push("has applied no list yet".into());
    }
    troubles.extend(list_trouble(status));
    for entry in &status.entries {
        let name = cut(&plain(&entry.name));
        if severity(entry.state) > severity(EntryState::CatchingUp) {
            troubles.push(format!("{name}: {}", word(entry.state)));
        }
        match entry.filter.as_ref().map(|filter| filter.state) {
            Some(FilterState::Failed) => troubles.push(format!("{name}: its filter failed")),
            Some(FilterState::RolledBack) => troubles.push(format!("{name}: its filter was rolled back")),
            Some(FilterState::Applied) | None => {}
        }
    }
    troubles
}

fn list_trouble(status: &Announcement) -> Option<String> {
    let state = match status.list {
        ListState::Current if status.problems == 0 => return None,
        ListState::Current => {
            return Some(count(status.problems as u64, "problem with its list", "problems with its list"));
        }
        ListState::Cached => "etcd does not answer it",
        ListState::Missing => "its list is gone",
        ListState::Invalid => "its list is not valid",
    };
    Some(format!("runs its last good list: {state}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::announce::EntryWord;

    #[test]
    fn what_somebody_should_look_at_stands_below_the_agent_and_steers_no_terminal() {
        let entry = |name: &str, state| EntryWord { name: name.into(), state, filter: None };
        let status = Announcement {
            version: "1".into(),
            started: 0,
            ready: true,
            revision: 7,
            list: ListState::Missing,
            problems: 1,
            entries: vec![entry("ok", EntryState::Following), entry("a\x1b[2J", EntryState::Stalled)],
            more: 0,
        };
        let agent = Agent { name: "web\x1b1".into(), live: 2, status: Some(status), seen: None };
        let shown = table(&[agent, Agent { name: "web2".into(), ..Agent::default() }]);
        assert!(shown.starts_with("2 agents: 1 alive, 1 to look at\n"), "{shown}");
        assert!(shown.contains("\n  2 agents have this name"), "{shown}");
        assert!(shown.contains("\n  runs its last good list: its list is gone\n"), "{shown}");
        assert!(shown.contains("\n  a\\u{1b}[2J: stalled\n"), "{shown}");
        assert!(!shown.contains("ok:") && !shown.contains('\x1b'), "{shown}");
        assert!(shown.contains("gone"), "{shown}");
    }
}
