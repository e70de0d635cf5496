//! What the agents say in etcd, read as one.
//!
//! In: the keys below `<agents_prefix>`, at one revision. Out: every agent, also those that are gone.
//! Absent by design: asking an agent itself; what it keeps on its host (causes, content).

use std::collections::BTreeMap;

use etcd_client::GetOptions;
use serde::Serialize;

use super::announce::{Announcement, LIVE, SEEN, Seen};
use super::client;
use super::error::ControlError;
use crate::config::EtcdSettings;

/// Keys in one answer: with 2,000 entries each they stay within what a client takes.
const PAGE_KEYS: i64 = 200;

/// An agent, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// `agent.name`.
    pub name: String,
    /// How many agents of this name live; more than one overwrite each other's status.
    pub live: usize,
    /// What it says; none where it is gone.
    pub status: Option<Announcement>,
    /// When it last wrote; none where that is not known.
    pub seen: Option<Seen>,
}

impl Agent {
    /// `agent.labels`, also of one that is gone.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels()?.get(name).map(String::as_str)
    }

    /// All of them, where any were said.
    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        let status = self.status.as_ref().map(|status| &status.labels);
        status.or_else(|| self.seen.as_ref().map(|seen| &seen.labels))
    }

    /// Whether it applied the list of this revision, or a later one.
    pub fn applied(&self, revision: i64) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready && status.revision >= revision)
    }
}

/// Reads all agents, by name.
pub async fn read(settings: &EtcdSettings) -> Result<Vec<Agent>, ControlError> {
    let mut kv = client::kv(&client::connect(settings).await?);
    let prefix = settings.agents_prefix.as_bytes();
    let (mut from, mut revision) = (prefix.to_vec(), 0);
    let mut agents = BTreeMap::new();
    loop {
        let options =
            GetOptions::new().with_range(end_of(prefix)).with_limit(PAGE_KEYS).with_revision(revision);
        let operation = format!("read {}", settings.agents_prefix);
        let page = client::call(&operation, kv.get(from, Some(options))).await?;
        for record in page.kvs() {
            let key = String::from_utf8_lossy(&record.key()[prefix.len()..]);
            note(&mut agents, &key, record.value());
        }
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { break };
        revision = page.header().ok_or(ControlError::BadAnswer("read"))?.revision();
        from = [last.key(), &[0]].concat();
    }
    Ok(agents.into_values().collect())
}

/// Takes what one key says; what does not parse, from a later version perhaps, counts as said and empty.
fn note(agents: &mut BTreeMap<String, Agent>, key: &str, value: &[u8]) {
    if let Some(name) = key.strip_prefix(SEEN) {
        of(agents, name).seen = serde_json::from_slice(value).ok();
    } else if let Some((name, _)) = key.strip_prefix(LIVE).and_then(|rest| rest.rsplit_once('/')) {
        of(agents, name).live += 1;
    } else {
        of(agents, key).status = serde_json::from_slice(value).ok();
    }
}

fn of<'a>(agents: &'a mut BTreeMap<String, Agent>, name: &str) -> &'a mut Agent {
    agents.entry(name.into()).or_insert_with(|| Agent { name: name.into(), ..Agent::default() })
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys there are.
    vec![0]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::super::announce::tests::board;
    use super::super::announce::{Pace, Who, announce_until};
    use super::super::tests::{Etcd, settings_of, until};
    use super::*;
    use crate::status::{EntryState, ListStatus};

    /// Agents that say what they run, until they are stopped one by one.
    struct Fleet {
        settings: EtcdSettings,
        tasks: JoinSet<()>,
        stops: Vec<watch::Sender<bool>>,
    }

    impl Fleet {
        fn add(&mut self, name: &str, instance: &str, state: EntryState) -> crate::status::Board {
            let labels = BTreeMap::from([("role".to_string(), "web".to_string())]);
            let who = Who { name: name.into(), instance: instance.into(), labels };
            let (stop, mut stopped) = watch::channel(false);
            let (board, settings) = (board(state), self.settings.clone());
            let pace = Pace { look: Duration::from_millis(500), write: Duration::from_millis(500) };
            let shown = board.clone();
            self.tasks.spawn(async move {
                let stop = async { drop(stopped.wait_for(|stop| *stop).await) };
                announce_until(&board, &who, &settings, pace, stop).await;
            });
            self.stops.push(stop);
            shown
        }

        /// On a busy machine a hundred at once may keep an answer waiting.
        async fn all(&self) -> Vec<Agent> {
            read(&self.settings).await.unwrap_or_default()
        }

        /// Waits until those seen are so.
        async fn await_all(&self, are_so: impl Fn(&[Agent]) -> bool) -> Vec<Agent> {
            let seen = std::cell::RefCell::new(Vec::new());
            until(async || {
                let all = self.all().await;
                let so = are_so(&all);
                *seen.borrow_mut() = all;
                so
            })
            .await;
            seen.into_inner()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_agents_are_seen_with_their_states_and_one_that_stops_is_gone_at_once() {
        let etcd = Etcd::start();
        let mut fleet = Fleet { settings: settings_of(&etcd), tasks: JoinSet::new(), stops: Vec::new() };
        let mut boards = Vec::new();
        for n in 0..100 {
            let state = if n == 42 { EntryState::Stalled } else { EntryState::Following };
            boards.push(fleet.add(&format!("web{n:03}"), "1", state));
        }
        let live = |all: &[Agent]| all.iter().filter(|agent| agent.live == 1).count();
        let all = fleet.await_all(|all| live(all) == 100).await;
        assert_eq!(all.len(), 100);
        let stalled: Vec<_> = all
            .iter()
            .filter(|agent| agent.status.as_ref().unwrap().entries[0].state == EntryState::Stalled)
            .map(|agent| agent.name.as_str())
            .collect();
        assert_eq!(stalled, ["web042"]);
        assert!(all.iter().all(|agent| agent.applied(7) && !agent.applied(8) && agent.seen.is_some()));
        // All but one apply the next list.
        for board in &boards[1..] {
            board.set_list(ListStatus { revision: 8, ..ListStatus::default() }, vec![], vec![]);
        }
        let applied = |all: &[Agent]| all.iter().filter(|agent| agent.applied(8)).count();
        let all = fleet.await_all(|all| applied(all) == 99).await;
        assert_eq!(all.iter().find(|agent| !agent.applied(8)).unwrap().name, "web000");
        // The lease is taken back, long before it would run out.
        fleet.stops[3].send(true).unwrap();
        fleet.tasks.join_next().await.unwrap().unwrap();
        let all = fleet.await_all(|all| live(all) == 99).await;
        let gone = all.into_iter().find(|agent| agent.name == "web003").unwrap();
        assert_eq!((gone.live, gone.status.is_none(), gone.label("role")), (0, true, Some("web")));
        assert_eq!(gone.seen.unwrap().revision, 8);
    }

    #[tokio::test]
    async fn two_agents_of_one_name_are_told_apart_and_a_restarted_one_is_not_two() {
        let etcd = Etcd::start();
        let mut fleet = Fleet { settings: settings_of(&etcd), tasks: JoinSet::new(), stops: Vec::new() };
        fleet.add("web1", "a", EntryState::Following);
        fleet.add("web1", "a", EntryState::Following);
        fleet.add("web2", "a", EntryState::Following);
        fleet.add("web2", "b", EntryState::Following);
        fleet.await_all(|all| all.iter().map(|agent| agent.live).eq([1, 2])).await;
    }

    #[test]
    fn the_end_of_a_prefix_is_just_behind_it() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(&[1, 255]), [2]);
        assert_eq!(end_of(&[255]), [0]);
    }
}
