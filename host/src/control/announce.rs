//! Says in etcd what this agent runs, for the fleet to see.
//!
//! In: the [`Board`]. Out: `<agents_prefix><name>` under a lease, written on change and not too often;
//! `<agents_prefix>live/<name>/<instance>` under the same lease, so that two agents of one name show; and
//! `<agents_prefix>seen/<name>`, which outlives it. A stop takes the lease back. Absent by design: line
//! content, error texts and causes: they stay on the host; of a cause one word leaves it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::client;
use super::error::ControlError;
use super::{ListSource, ListState};
use crate::config::{EtcdSettings, Settings};
use crate::model::Digest;
use crate::status::{Board, EntryState, EntryStatus, FilterState, FilterStatus, Obstacle};

/// Seconds. So long the status stays when the agent is gone.
const LEASE_SECONDS: i64 = 60;
/// Three tries fit in the lease.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);
/// The record that outlives the lease is written again so often even if nothing changes.
const SEEN_EVERY: Duration = Duration::from_secs(600);
/// Behind the prefix: the records that outlive the leases.
pub(super) const SEEN: &str = "seen/";
/// Behind the prefix: one key for each agent that lives.
pub(super) const LIVE: &str = "live/";
/// Entries in one status, so that it stays far below the 1.5 MiB of a request.
const ENTRIES_MOST: usize = 2000;

/// How often the board is looked at, and the status written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) look: Duration,
    pub(super) write: Duration,
}

const PACE: Pace = Pace { look: Duration::from_secs(2), write: Duration::from_secs(10) };

/// For taking the lease back; a stop waits no longer.
const REVOKE_LIMIT: Duration = Duration::from_secs(2);

/// Announces until `stop`, then takes the announcement back; returns at once where the list is not in
/// etcd.
pub async fn run(board: Board, settings: Settings, stop: impl Future<Output = ()>) {
    if let ListSource::Etcd(etcd) = &settings.list {
        let who = Who {
            name: settings.agent.name.clone(),
            instance: instance(&settings.state_dir),
            labels: settings.agent.labels.clone(),
        };
        announce_until(&board, &who, etcd, PACE, stop).await;
    }
}

/// Which agent speaks.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) name: String,
    /// The same for every run on one state directory, of which there is one at a time.
    pub(super) instance: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// Tells agents apart that have one name: by the boot of the host and by the state directory. After a
/// restart of the agent it is the same, so that what a killed one left is no second agent.
fn instance(state_dir: &Path) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let place = std::fs::metadata(state_dir).map(|dir| (dir.dev(), dir.ino())).unwrap_or_default();
    Digest::of(format!("{boot} {place:?}").as_bytes()).short()
}

pub(super) async fn announce_until(
    board: &Board,
    who: &Who,
    etcd: &EtcdSettings,
    pace: Pace,
    stop: impl Future<Output = ()>,
) {
    let mut held = None;
    tokio::select! {
        () = announce(board, who, etcd, pace, &mut held) => {}
        () = stop => {}
    }
    let Some((client, lease)) = held else { return };
    let revoke = async { client.lease_client().revoke(lease).await };
    if let Ok(Ok(_)) = tokio::time::timeout(REVOKE_LIMIT, revoke).await {
        return;
    }
    tracing::warn!("the status key could not be taken back; it goes within {LEASE_SECONDS} s");
}

/// Says it until it is dropped; `held` is the lease to take back then.
async fn announce(
    board: &Board,
    who: &Who,
    etcd: &EtcdSettings,
    pace: Pace,
    held: &mut Option<(Client, i64)>,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut said = None;
    loop {
        let begun = Instant::now();
        let Err(error) = session(board, who, etcd, pace, held).await;
        if begun.elapsed() > KEEP_ALIVE_EVERY {
            backoff.reset();
        }
        let cause = error.chain();
        if said.as_ref() != Some(&cause) {
            tracing::warn!(%cause, "the status key cannot be written; trying again, and `weir fleet` may show this agent as gone");
            said = Some(cause);
        }
        sleep(backoff.after_failure()).await;
    }
}

async fn session(
    board: &Board,
    who: &Who,
    etcd: &EtcdSettings,
    pace: Pace,
    held: &mut Option<(Client, i64)>,
) -> Result<Infallible, ControlError> {
    let client = client::connect(etcd).await?;
    let mut lease = Lease::grant(&client).await?;
    *held = Some((client.clone(), lease.keeper.id()));
    let (prefix, Who { name, instance, labels }) = (&etcd.agents_prefix, who);
    let (status_key, seen_key) = (format!("{prefix}{name}"), format!("{prefix}{SEEN}{name}"));
    let live_key = format!("{prefix}{LIVE}{name}/{instance}");
    let mut kv = client::kv(&client);
    let mut last: Option<(Announcement, Instant)> = None;
    loop {
        lease.keep().await?;
        let now = Announcement::of(board, labels);
        let due = last.as_ref().is_none_or(|(old, at)| {
            at.elapsed() > SEEN_EVERY || (at.elapsed() >= pace.write && !old.tells_the_same_as(&now))
        });
        if due {
            let under_lease = PutOptions::new().with_lease(lease.keeper.id());
            let txn = Txn::new().and_then([
                TxnOp::put(status_key.as_str(), json(&now), Some(under_lease.clone())),
                TxnOp::put(live_key.as_str(), "", Some(under_lease)),
                TxnOp::put(seen_key.as_str(), json(&Seen::of(&now)), None),
            ]);
            client::call(&format!("write {status_key}"), kv.txn(txn)).await?;
            last = Some((now, Instant::now()));
        }
        sleep(pace.look).await;
    }
}

/// A lease that is kept by hand: the client library has no loop for it.
struct Lease {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    kept: Instant,
}

impl Lease {
    async fn grant(client: &Client) -> Result<Self, ControlError> {
        let mut leases = client.lease_client();
        let granted = client::call("get a lease", leases.grant(LEASE_SECONDS, None)).await?;
        let (keeper, answers) = client::call("keep the lease", leases.keep_alive(granted.id())).await?;
        Ok(Self { keeper, answers, kept: Instant::now() })
    }

    async fn keep(&mut self) -> Result<(), ControlError> {
        if self.kept.elapsed() < KEEP_ALIVE_EVERY {
            return Ok(());
        }
        client::call("keep the lease", self.keeper.keep_alive()).await?;
        let answer = client::call("keep the lease", self.answers.message()).await?;
        if answer.is_none_or(|answer| answer.ttl() <= 0) {
            return Err(ControlError::WatchEnded("the lease of the status key ran out".into()));
        }
        self.kept = Instant::now();
        Ok(())
    }
}

/// What the fleet may know of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// weir's version.
    pub version: String,
    /// `agent.labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub started: u64,
    /// Whether any list was applied yet.
    pub ready: bool,
    /// Of the list as applied.
    pub revision: i64,
    /// How sure the list is.
    pub list: ListState,
    /// How many problems the list has.
    pub problems: usize,
    /// In the order of the list.
    pub entries: Vec<EntryWord>,
    /// Entries that are not shown.
    pub more: usize,
}

/// What the fleet may know of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryWord {
    /// Its name.
    pub name: String,
    /// In one word.
    pub state: EntryState,
    /// What stands in its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
    /// Where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterWord>,
}

/// What the fleet may know of a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterWord {
    /// Of the module that runs; empty where none does.
    pub digest: String,
    /// In one word.
    pub state: FilterState,
    /// Why the wanted one does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
}

/// What stays when the agent is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// RFC 3339, UTC: when it last wrote, every 10 minutes at least.
    pub when: String,
    /// weir's version.
    pub version: String,
    /// `agent.labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Of the list as applied then.
    pub revision: i64,
}

impl Announcement {
    fn of(board: &Board, labels: &BTreeMap<String, String>) -> Self {
        let status = board.status();
        let filter = |filter: &FilterStatus| FilterWord {
            digest: filter.digest.clone(),
            state: filter.state,
            obstacle: filter.obstacle,
        };
        let word = |entry: &EntryStatus| EntryWord {
            name: entry.name.clone(),
            state: entry.state,
            obstacle: entry.obstacle,
            filter: entry.filter.as_ref().map(filter),
        };
        Self {
            version: status.agent.version,
            labels: labels.clone(),
            started: status.agent.started,
            ready: board.ready(),
            revision: status.list.revision,
            list: status.list.state,
            problems: status.list.problems.len(),
            entries: status.entries.iter().take(ENTRIES_MOST).map(word).collect(),
            more: status.entries.len().saturating_sub(ENTRIES_MOST),
        }
    }

    /// An entry goes to and fro between following and catching up all day; a fleet that wrote each
    /// time would keep etcd busy.
    fn tells_the_same_as(&self, other: &Self) -> bool {
        let quiet = |announcement: &Self| {
            let mut quiet = announcement.clone();
            for entry in quiet.entries.iter_mut().filter(|entry| entry.state == EntryState::CatchingUp) {
                entry.state = EntryState::Following;
            }
            quiet
        };
        quiet(self) == quiet(other)
    }
}

impl Seen {
    fn of(announcement: &Announcement) -> Self {
        let when = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let Announcement { version, labels, revision, .. } = announcement;
        Self { when, version: version.clone(), labels: labels.clone(), revision: *revision }
    }
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record of text and numbers is JSON")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{Etcd, settings_of, until};
    use super::*;
    use crate::model::{EntryName, Problem};
    use crate::status::{EntryReport, Figures, ListStatus};

    pub(in crate::control) fn board(state: EntryState) -> Board {
        let board = Board::new("web1");
        let name = EntryName("app".into());
        let filter = FilterStatus {
            digest: "sha256:1".into(),
            cause: "secret cause".into(),
            obstacle: Some(Obstacle::Init),
            ..FilterStatus::default()
        };
        let status = EntryStatus {
            name: name.to_string(),
            path: "/secret/path".into(),
            topic: "t".into(),
            state,
            cause: "secret cause".into(),
            obstacle: (state == EntryState::Stalled).then_some(Obstacle::Topic),
            files: 1,
            filter: Some(filter),
            ..EntryStatus::default()
        };
        board.entry(&name, || EntryReport { status, figures: Figures::default() });
        let problems = vec![Problem::new("here", "secret cause", "")];
        board.set_list(ListStatus { revision: 7, problems, ..ListStatus::default() }, vec![name], vec![]);
        board
    }

    #[test]
    fn a_status_has_states_and_no_texts() {
        let labels = BTreeMap::from([("role".to_string(), "web".to_string())]);
        let announcement = Announcement::of(&board(EntryState::Stalled), &labels);
        let json = String::from_utf8(json(&announcement)).unwrap();
        let filter = r#"{"digest":"sha256:1","state":"failed","obstacle":"init"}"#;
        let entry = format!(r#"{{"name":"app","state":"stalled","obstacle":"topic","filter":{filter}}}"#);
        assert!(json.contains(&format!(r#""entries":[{entry}]"#)), "{json}");
        assert!(json.contains(r#""labels":{"role":"web"}"#), "{json}");
        assert!(json.contains(r#""revision":7,"list":"current","problems":1"#), "{json}");
        assert!(!json.contains("secret"), "{json}");
    }

    #[test]
    fn catching_up_is_no_news() {
        let of = |state| Announcement::of(&board(state), &BTreeMap::new());
        assert!(of(EntryState::Following).tells_the_same_as(&of(EntryState::CatchingUp)));
        assert!(!of(EntryState::Following).tells_the_same_as(&of(EntryState::Holding)));
    }

    #[tokio::test]
    async fn the_status_stands_under_a_lease_and_its_shadow_does_not() {
        let etcd = Etcd::start();
        let settings = settings_of(&etcd);
        let board = board(EntryState::Following);
        let pace = Pace { look: Duration::from_millis(20), write: Duration::from_millis(20) };
        let task = tokio::spawn({
            let (board, settings) = (board.clone(), settings.clone());
            let who = Who { name: "web1".into(), instance: "1".into(), labels: BTreeMap::new() };
            async move { announce(&board, &who, &settings, pace, &mut None).await }
        });
        let read = async |key: &str| {
            let client = client::connect(&settings).await.unwrap();
            client::kv(&client)
                .get(key, None)
                .await
                .unwrap()
                .kvs()
                .first()
                .map(|kv| (kv.lease(), kv.value().to_vec()))
        };
        until(async || read("/weir/agents/web1").await.is_some()).await;
        assert_ne!(read("/weir/agents/web1").await.unwrap().0, 0);
        assert_eq!(read("/weir/agents/seen/web1").await.unwrap().0, 0);
        board.set_list(ListStatus { revision: 8, ..ListStatus::default() }, vec![], vec![]);
        let says = |value: &[u8], what: &str| String::from_utf8_lossy(value).contains(what);
        until(async || says(&read("/weir/agents/web1").await.unwrap().1, r#""revision":8"#)).await;
        task.abort();
    }
}
