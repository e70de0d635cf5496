//! The collect list from etcd.
//!
//! In: the settings' keys. Out: [`Wanted`] on every change, the last good lists on disk. A session
//! is: connect, read everything at one revision, watch from the next one, read everything again
//! whenever a watched key changes. Whatever is doubtful ends the session, and after a while the next
//! one begins with reading, which finds what was missed. Losing etcd changes nothing that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{Client, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse};
use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::Backoff;
use super::error::ControlError;
use super::kept::{Collector, Found, Kept, Merged, Reading, modules_of};
use super::list::Origin;
use super::trust::Trust;
use super::watch::{Mark, Patience, Watch};
use super::{Wanted, client, modules};
use crate::config::EtcdSettings;
use crate::model::{Digest, ModuleRef, Problem};
use crate::policy::Keys;

/// Reading is tried so often before a session is given up; another try may reach another endpoint.
const READ_TRIES: u32 = 4;
/// Between tries.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// No try begins later than this, so that an agent that finds no etcd starts from its last list soon.
const READ_TRIES_LIMIT: Duration = Duration::from_secs(3);
/// Between two readings, however fast the list changes.
const READ_GAP: Duration = Duration::from_millis(100);
/// etcd takes at most 128 operations in one transaction.
const TXN_OPERATIONS_MOST: usize = 100;
/// A session that held so long was good: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) first_wait: Duration,
    pub(super) longest_wait: Duration,
    pub(super) patience: Patience,
    /// Everything is read again after this time even if nothing seems to have changed: etcd has had
    /// bugs that lose events.
    pub(super) reread: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(10),
            patience: Patience { ask_after: Duration::from_secs(30), answer: Duration::from_secs(10) },
            reread: Duration::from_secs(300),
        }
    }
}

/// Follows the keys of the list.
pub(super) struct Follower {
    settings: EtcdSettings,
    timing: Timing,
    collector: Collector,
    kept: Kept,
    kept_path: PathBuf,
    out: Sender<Option<Wanted>>,
    /// Sessions since etcd last answered.
    failures: u32,
    /// What was last said about etcd in the log.
    said: Option<String>,
}

impl Follower {
    /// `kept_path` is where the last good lists are, or will be; `keys` sign lists, where there are any.
    pub(super) fn new(
        settings: EtcdSettings,
        timing: Timing,
        kept_path: PathBuf,
        keys: Keys,
        out: Sender<Option<Wanted>>,
    ) -> Self {
        let kept = Kept::load(&kept_path, "etcd");
        let origins = settings.collect_keys.iter().cloned().map(Origin::Key).collect();
        let collector = Collector::new(origins, settings.on_delete, kept.lists.clone())
            .with_trust(Trust::new(keys, kept.serials.clone()));
        Self { settings, timing, collector, kept, kept_path, out, failures: 0, said: None }
    }

    /// Follows until it is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.first_wait, self.timing.longest_wait);
        loop {
            let begun = Instant::now();
            let Err(error) = self.session().await;
            if begun.elapsed() > GOOD_SESSION {
                backoff.reset();
            }
            self.lost(&error);
            sleep(backoff.after_failure()).await;
        }
    }

    async fn session(&mut self) -> Result<Infallible, ControlError> {
        let client = client::connect(&self.settings).await?;
        let mut mark = self.read(&client).await?;
        let mut watch = Watch::open(&client, &self.keys(), mark, self.timing.patience).await?;
        loop {
            let read_at = Instant::now();
            watch.changed(read_at + self.timing.reread).await?;
            sleep_until(read_at + READ_GAP).await;
            mark = self.read(&client).await?;
            watch.was_read(&self.keys(), mark).await?;
        }
    }

    /// The keys that matter: those of the list, and the tags that it names.
    fn keys(&self) -> BTreeSet<String> {
        let tag = |name| modules::tag_key(&self.settings.modules_prefix, name);
        let mut keys: BTreeSet<_> = self.settings.collect_keys.iter().cloned().collect();
        if let Some(wanted) = &*self.out.borrow() {
            keys.extend(wanted.modules.keys().filter_map(tag_name).map(tag));
        }
        keys
    }

    async fn read(&mut self, client: &Client) -> Result<Mark, ControlError> {
        let mut kv = client::kv(client);
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            match self.try_read(&mut kv).await {
                Err(_) if tries < READ_TRIES && begun.elapsed() < READ_TRIES_LIMIT => tries += 1,
                result => return result,
            }
            sleep(READ_PAUSE).await;
        }
    }

    async fn try_read(&mut self, kv: &mut KvClient) -> Result<Mark, ControlError> {
        let (mark, found) = get_all(kv, &self.settings.collect_keys, None).await?;
        let merged = self.collector.read(&Reading { cluster: mark.cluster, revision: mark.revision, found });
        let (modules, before) = self.resolve(kv, &merged, mark.revision).await?;
        self.answered();
        self.publish(merged, modules, before, mark.revision).await;
        Ok(mark)
    }

    /// The digests of the modules that entries name, read at the same revision as the list, and what
    /// tags pointed at before.
    async fn resolve(
        &self,
        kv: &mut KvClient,
        merged: &Merged,
        revision: i64,
    ) -> Result<(Modules, Before), ControlError> {
        let modules = modules_of(&merged.entries);
        let names: Vec<_> = modules.iter().filter_map(tag_name).collect();
        let keys: Vec<_> =
            names.iter().map(|name| modules::tag_key(&self.settings.modules_prefix, name)).collect();
        let (_, found) = get_all(kv, &keys, Some(revision)).await?;
        let mut tags: BTreeMap<&str, Result<Digest, String>> = BTreeMap::new();
        let mut before = Before::new();
        for (name, found) in names.iter().zip(found) {
            let record = match &found {
                Found::Text { bytes, .. } => Some(bytes.as_slice()),
                Found::Nothing | Found::Unreadable(_) => None,
            };
            tags.insert(name, modules::digest_of_tag(name, record).map_err(|error| error.to_string()));
            if let Ok(digest) = modules::digest_before(name, record) {
                before.insert(ModuleRef::Tag((*name).into()), digest);
            }
        }
        Ok((with_digests(&modules, |name| tags.get(name).cloned()), before))
    }

    async fn publish(&mut self, merged: Merged, modules: Modules, before: Before, revision: i64) {
        let digest = |(module, digest): (&ModuleRef, &Result<Digest, String>)| {
            Some((tag_name(module)?.to_string(), digest.as_ref().ok()?.to_string()))
        };
        let tags = modules.iter().filter_map(digest).collect();
        let (lists, serials) = (self.collector.lists().to_vec(), self.collector.serials().clone());
        let kept = Kept { source: "etcd".into(), revision, lists, tags, serials };
        self.send(merged, modules, before, revision, "");
        if kept != (Kept { revision, ..self.kept.clone() }) {
            self.kept = kept;
            self.save().await;
        }
        self.kept.revision = revision;
    }

    fn send(&self, merged: Merged, modules: Modules, before: Before, revision: i64, note: &str) {
        let Merged { state, entries, refused, problems } = merged;
        let source = format!("etcd {}{note}", self.settings.collect_keys.join(", "));
        let wanted = Wanted { source, revision, state, entries, refused, problems, modules, before };
        self.out.send_if_modified(|old| {
            let news = old.as_ref() != Some(&wanted);
            *old = Some(wanted);
            news
        });
    }

    async fn save(&self) {
        let (kept, path) = (self.kept.clone(), self.kept_path.clone());
        let saved = tokio::task::spawn_blocking(move || kept.save(&path)).await;
        if let Ok(Err(error)) = saved {
            let path = self.kept_path.display();
            tracing::warn!(%path, %error, "the list cannot be kept on disk; without etcd the next start will not know it");
        }
    }

    fn answered(&mut self) {
        self.failures = 0;
        if self.said.take().is_some() {
            tracing::info!(keys = %self.settings.collect_keys.join(", "), "etcd answers");
        }
    }

    /// etcd does not answer, or a session ended. A first end is usual (a member restarts, history was
    /// compacted); a second one in a row is said in the status.
    fn lost(&mut self, error: &ControlError) {
        let cause = error.chain();
        if self.said.as_ref() != Some(&cause) {
            let endpoints = self.settings.endpoints.join(", ");
            tracing::warn!(%endpoints, %cause, "waiting for etcd; what runs goes on");
            self.said = Some(cause.clone());
        }
        self.failures += 1;
        if self.failures == 1 && self.out.borrow().is_some() {
            return;
        }
        let Some(mut merged) = self.collector.remembered() else { return };
        let place = format!("etcd {}", self.settings.endpoints.join(", "));
        merged.problems.insert(
            0,
            Problem::new(place, cause, "the last good list stays; start etcd, or mend its address"),
        );
        let digest = |name: &str| self.kept.tags.get(name).and_then(|digest| digest.parse().ok()).map(Ok);
        let modules = with_digests(&modules_of(&merged.entries), digest);
        self.send(merged, modules, Before::new(), self.kept.revision, " (last good copy)");
    }
}

type Modules = BTreeMap<ModuleRef, Result<Digest, String>>;
type Before = BTreeMap<ModuleRef, Digest>;

fn tag_name(module: &ModuleRef) -> Option<&str> {
    match module {
        ModuleRef::Tag(name) => Some(name),
        ModuleRef::Digest(_) | ModuleRef::File(_) => None,
    }
}

fn with_digests(
    modules: &BTreeSet<ModuleRef>,
    tag: impl Fn(&str) -> Option<Result<Digest, String>>,
) -> Modules {
    let digest = |module: &ModuleRef| match module {
        ModuleRef::Digest(digest) => Ok(*digest),
        ModuleRef::Tag(name) => {
            tag(name).unwrap_or_else(|| Err(format!("what tag `{name}` is cannot be told without etcd")))
        }
        ModuleRef::File(path) => Err(format!("{} is a file; a list in etcd cannot name one", path.display())),
    };
    modules.iter().map(|module| (module.clone(), digest(module))).collect()
}

/// The values of `keys` at one revision: the given one, else the newest.
async fn get_all(
    kv: &mut KvClient,
    keys: &[String],
    revision: Option<i64>,
) -> Result<(Mark, Vec<Found>), ControlError> {
    let mut mark = Mark { cluster: 0, revision: revision.unwrap_or_default() };
    let mut found = Vec::with_capacity(keys.len());
    for keys in keys.chunks(TXN_OPERATIONS_MOST) {
        let options = GetOptions::new().with_revision(mark.revision);
        let gets: Vec<_> = keys.iter().map(|key| TxnOp::get(key.as_str(), Some(options.clone()))).collect();
        let answer =
            client::call(&format!("read {}", keys.join(", ")), kv.txn(Txn::new().and_then(gets))).await?;
        let header = answer.header().ok_or(ControlError::BadAnswer("read"))?;
        mark.cluster = header.cluster_id();
        if mark.revision == 0 {
            mark.revision = header.revision();
        }
        for response in answer.op_responses() {
            let TxnOpResponse::Get(got) = response else { return Err(ControlError::BadAnswer("read")) };
            found.push(match got.kvs().first() {
                Some(kv) => Found::Text { bytes: kv.value().into(), modified: kv.mod_revision() },
                None => Found::Nothing,
            });
        }
    }
    if found.len() == keys.len() { Ok((mark, found)) } else { Err(ControlError::BadAnswer("read")) }
}
