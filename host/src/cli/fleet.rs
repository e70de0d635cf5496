//! `weir fleet`: every agent on one etcd.
//!
//! In: what the agents say in etcd. Out: a row an agent with its troubled entries below it, JSON, or an
//! exit code once all have applied a list. Absent by design: causes in words, which stay on their host.

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
use crate::status::{EntryState, FilterState, Obstacle};

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
  weir fleet --label role=web --label zone=eu
  weir list put --key /weir/all/collect collect.json     # written, revision 4711
  weir fleet --wait 4711 --within 120 && echo applied everywhere")]
pub struct FleetArgs {
    /// Only these agents
    #[arg(value_name = "AGENT")]
    names: Vec<String>,
    /// Only agents that have this label (agent.labels in the settings); given more than once, all of them
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
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

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE, such as role=web")?;
    Ok((name.into(), value.into()))
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
            None => Ok((chosen(etcd, &args).await?, ExitCode::SUCCESS)),
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
async fn chosen(etcd: &EtcdSettings, args: &FleetArgs) -> anyhow::Result<Vec<Agent>> {
    let FleetArgs { names, labels, .. } = args;
    let mut agents = fleet::read(etcd).await?;
    if let Some(unknown) = names.iter().find(|name| agents.iter().all(|agent| agent.name != **name)) {
        bail!("no agent {unknown:?} was ever seen below {}", etcd.agents_prefix);
    }
    agents.retain(|agent| names.is_empty() || names.contains(&agent.name));
    agents.retain(|agent| labels.iter().all(|(name, value)| agent.label(name) == Some(value)));
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
        let agents = chosen(etcd, args).await?;
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
        "{:<width$}  {:<10}  {:>10}  {:>7}  {:<20}  labels\n",
        "agent", "version", "revision", "entries", "last seen"
    );
    for agent in agents {
        let (version, revision, entries) = match (&agent.status, &agent.seen) {
            (Some(status), _) => {
                (status.version.as_str(), status.revision, (status.entries.len() + status.more).to_string())
            }
            (None, Some(seen)) => (seen.version.as_str(), seen.revision, "gone".into()),
            (None, None) => ("", 0, "gone".into()),
        };
        let seen = match (&agent.status, &agent.seen) {
            (Some(_), _) => "now".into(),
            (None, Some(seen)) => plain(&seen.when),
            (None, None) => String::new(),
        };
        let labels = agent.labels().into_iter().flatten();
        let labels: Vec<_> = labels.map(|(name, value)| plain(&format!("{name}={value}"))).collect();
        let (name, version) = (cut(&plain(&agent.name)), plain(version));
        let row = format!(
            "{name:<width$}  {version:<10}  {revision:>10}  {entries:>7}  {seen:<20}  {}",
            labels.join(" ")
        );
        table += row.trim_end();
        table += "\n";
        for trouble in troubles(agent) {
            table += &format!("  {trouble}\n");
        }
    }
    table
}

/// What somebody should look at; the causes in full are on the agent's host, where `weir status` shows them.
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
            troubles.push(format!("{name}: {}{}", word(entry.state), cause(entry.obstacle)));
        }
        let Some(filter) = &entry.filter else { continue };
        let cause = cause(filter.obstacle);
        match filter.state {
            FilterState::Failed => troubles.push(format!("{name}: its filter failed{cause}")),
            FilterState::RolledBack => troubles.push(format!("{name}: its filter was rolled back{cause}")),
            FilterState::Applied => {}
        }
    }
    troubles
}

/// What an agent may say of a cause, in words.
fn cause(obstacle: Option<Obstacle>) -> &'static str {
    match obstacle {
        Some(Obstacle::List) => ": it is not valid as it stands in the list",
        Some(Obstacle::Policy) => ": the host's policy refuses it",
        Some(Obstacle::Files) => ": no file matches, or one cannot be read",
        Some(Obstacle::Module) => ": its module cannot be had from the store",
        Some(Obstacle::Compile) => ": its module does not compile, or is no filter",
        Some(Obstacle::Init) => ": its module does not start with its config",
        Some(Obstacle::Lines) => ": its filter fails on lines",
        Some(Obstacle::Topic) => ": Kafka refuses its topic",
        Some(Obstacle::Kafka) => ": Kafka does not take its lines",
        Some(Obstacle::Memory) => ": no memory is left for it",
        Some(Obstacle::Quarantine) => ": the quarantine is full, or cannot be written",
        Some(Obstacle::Other) => ": for a reason that only a later version knows",
        None => "",
    }
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
        let entry =
            |name: &str, state, obstacle| EntryWord { name: name.into(), state, obstacle, filter: None };
        let status = Announcement {
            version: "1".into(),
            labels: [("role".into(), "we\x1bb".into())].into(),
            started: 0,
            ready: true,
            revision: 7,
            list: ListState::Missing,
            problems: 1,
            entries: vec![
                entry("ok", EntryState::Following, None),
                entry("a\x1b[2J", EntryState::Stalled, Some(Obstacle::Topic)),
            ],
            more: 0,
        };
        let agent = Agent { name: "web\x1b1".into(), live: 2, status: Some(status), seen: None };
        let shown = table(&[agent, Agent { name: "web2".into(), ..Agent::default() }]);
        assert!(shown.starts_with("2 agents: 1 alive, 1 to look at\n"), "{shown}");
        assert!(shown.contains("\n  2 agents have this name"), "{shown}");
        assert!(shown.contains("\n  runs its last good list: its list is gone\n"), "{shown}");
        assert!(shown.contains("\n  a\\u{1b}[2J: stalled: Kafka refuses its topic\n"), "{shown}");
        assert!(shown.contains("  now                   role=we\\u{1b}b\n"), "{shown}");
        assert!(!shown.contains("ok:") && !shown.contains('\x1b'), "{shown}");
        assert!(shown.contains("gone"), "{shown}");
    }

    #[test]
    fn a_label_has_a_name_and_a_value() {
        assert_eq!(label("role=a=b"), Ok(("role".into(), "a=b".into())));
        assert!(label("role").is_err());
    }

    #[test]
    fn a_word_of_a_later_version_is_no_reason_to_call_an_agent_gone() {
        let word = r#"{"name": "app", "state": "stalled", "obstacle": "gremlins"}"#;
        let word: EntryWord = serde_json::from_str(word).unwrap();
        assert_eq!(word.obstacle, Some(Obstacle::Other));
    }
}
