//! Who uses a module, and removing what nobody uses.
//!
//! In: the tags and their histories, the lists of all hosts, what the agents say that they run. Out:
//! tags and blobs removed, each in a transaction that fails where a tag or a list changed meanwhile.
//! Absent by design: the caches of agents, which they tidy themselves; etcd's own history, which
//! holds what was removed until it is compacted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp};
use serde_json::{Map, Value};

use super::{BlobInfo, Manifest, Store, read_tag, tag_key};
use crate::config::EtcdSettings;
use crate::control::error::ControlError;
use crate::control::list::{self, Item, Origin};
use crate::control::{client, fleet};
use crate::model::{Digest, Problem};

/// A push may take so long: what was begun or pushed later is left alone. The clocks of the hosts that
/// push and sweep may differ by as much.
const YOUNG: Duration = Duration::from_secs(3600);
/// etcd takes at most 128 comparisons in one transaction. The lists behind these are read only.
const LISTS_COMPARED_MOST: usize = 100;

/// Who uses something in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A tag points at it.
    Tag(String),
    /// A tag pointed at it, and can be rolled back to it.
    Past(String),
    /// An entry of a list names it.
    Entry {
        /// The list's key.
        list: String,
        /// The entry's name.
        entry: String,
    },
    /// An agent says that it runs it.
    Agent {
        /// The agent's name.
        agent: String,
        /// The entry's name.
        entry: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "tag `{tag}`"),
            Self::Past(tag) => write!(f, "the history of tag `{tag}`"),
            Self::Entry { list, entry } => write!(f, "entry `{entry}` of the list {list}"),
            Self::Agent { agent, entry } => write!(f, "agent {agent}, which runs it for entry `{entry}`"),
        }
    }
}

/// A list in etcd.
#[derive(Debug)]
pub struct StoredList {
    /// Where it is.
    pub key: String,
    /// The revision that wrote it.
    pub modified: i64,
    /// Its entries, or why it is no list.
    pub items: Result<Vec<Item>, Problem>,
}

/// What is used.
#[derive(Debug, Default)]
pub struct Uses {
    tags: BTreeMap<String, Vec<User>>,
    digests: BTreeMap<Digest, Vec<User>>,
    /// The lists that were read, and the revision that wrote each.
    lists: Vec<(String, i64)>,
    /// When the tags were read.
    revision: i64,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// What nobody uses, and is gone unless it was only asked for.
    pub unused: Vec<BlobInfo>,
    /// How many are used.
    pub used: usize,
    /// How many are not, and were pushed within the last hour.
    pub young: usize,
}

/// The keys of a blob that say what it is, each with the revision that wrote it.
#[derive(Debug, Default)]
struct Marks {
    /// Of a push that has ended.
    manifest: Option<(Manifest, i64)>,
    /// Of one that has not.
    begun: Option<(Manifest, i64)>,
}

impl Uses {
    fn of_digest(&self, digest: &Digest) -> &[User] {
        self.digests.get(digest).map_or(&[], Vec::as_slice)
    }

    /// Holds as long as what was read still stands.
    fn unchanged(&self, prefix: &str) -> Vec<Compare> {
        let tags =
            Compare::mod_revision(tag_key(prefix, ""), CompareOp::Less, self.revision + 1).with_prefix();
        let lists = self.lists.iter().take(LISTS_COMPARED_MOST);
        let lists =
            lists.map(|(key, modified)| Compare::mod_revision(key.as_str(), CompareOp::Equal, *modified));
        std::iter::once(tags).chain(lists).collect()
    }

    /// Notes what the entries of a list name.
    fn note(&mut self, key: &str, items: &[Item]) {
        for item in items {
            let user = User::Entry { list: key.into(), entry: item.name().into() };
            for name in named_by(&item.text) {
                match name.parse::<Digest>() {
                    Ok(digest) => self.digests.entry(digest).or_default().push(user.clone()),
                    Err(_) => self.tags.entry(name).or_default().push(user.clone()),
                }
            }
        }
    }
}

/// The modules that an entry names, whether or not the rest of it is right.
fn named_by(entry: &str) -> Vec<String> {
    fn names(filter: &Value) -> Vec<String> {
        match filter {
            Value::String(name) => vec![name.clone()],
            Value::Object(members) => {
                let parts = ["module", "shadow"].into_iter().flat_map(|name| member(members, name));
                parts.flat_map(names).collect()
            }
            _ => Vec::new(),
        }
    }
    fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Vec<&'a Value> {
        members.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
    let entry: Value = serde_json::from_str(entry).unwrap_or_default();
    let filters = entry.as_object().map(|members| member(members, "filter")).unwrap_or_default();
    filters.into_iter().flat_map(names).collect()
}

impl Store {
    /// Who uses what: by the lists of all hosts that the settings' keys may stand for and by those
    /// under `keys`; by tags, with as many former modules of each as `history` says; by what agents
    /// run now.
    pub async fn uses(
        &mut self,
        etcd: &EtcdSettings,
        keys: &[String],
        history: usize,
    ) -> Result<Uses, ControlError> {
        let mut uses = Uses::default();
        let prefix = tag_key(&self.prefix, "");
        let get = self.kv.get(prefix.as_str(), Some(GetOptions::new().with_prefix()));
        let tags = client::call(&format!("read {prefix}"), get).await?;
        uses.revision = tags.header().ok_or(ControlError::BadAnswer("read"))?.revision();
        for kv in tags.kvs() {
            let name = String::from_utf8_lossy(kv.key())[prefix.len()..].to_owned();
            let tag = read_tag(&name, Some(kv.value()))?;
            let past = tag.history.iter().take(history).map(|past| (past, User::Past(name.clone())));
            for (at, user) in std::iter::once((&tag.now, User::Tag(name.clone()))).chain(past) {
                let digest = at.digest.parse().map_err(|_| ControlError::BadTag(name.clone()))?;
                uses.digests.entry(digest).or_default().push(user);
            }
        }
        for StoredList { key, modified, items } in self.lists(etcd, keys).await? {
            let items =
                items.map_err(|problem| ControlError::BadList { key: key.clone(), cause: problem.cause })?;
            uses.note(&key, &items);
            uses.lists.push((key, modified));
        }
        for agent in fleet::read(etcd).await? {
            for entry in agent.status.into_iter().flat_map(|status| status.entries) {
                let Some(Ok(digest)) = entry.filter.map(|filter| filter.digest.parse::<Digest>()) else {
                    continue;
                };
                let user = User::Agent { agent: agent.name.clone(), entry: entry.name };
                uses.digests.entry(digest).or_default().push(user);
            }
        }
        Ok(uses)
    }

    /// The lists of all hosts that the settings' keys may stand for, and those under `keys`.
    pub async fn lists(
        &mut self,
        etcd: &EtcdSettings,
        keys: &[String],
    ) -> Result<Vec<StoredList>, ControlError> {
        let mut all: BTreeSet<_> = keys.iter().chain(&etcd.collect_keys).cloned().collect();
        for pattern in &etcd.collect_patterns {
            let found = self.get_below(pattern.prefix(), GetOptions::new().with_keys_only()).await?;
            let found = found.iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned());
            let ours = |key: &String| key.starts_with(&self.prefix) || key.starts_with(&etcd.agents_prefix);
            all.extend(found.filter(|key| pattern.matches(key) && !ours(key)));
        }
        let mut lists = Vec::new();
        for key in all {
            let Some(kv) = self.get(key.clone()).await? else { continue };
            let items = list::parse(kv.value(), &Origin::Key(key.clone())).map(|list| list.items);
            lists.push(StoredList { key, modified: kv.mod_revision(), items });
        }
        Ok(lists)
    }

    /// Removes a tag that no list names; what it pointed at.
    pub async fn remove_tag(&mut self, name: &str, uses: &Uses) -> Result<String, ControlError> {
        let key = tag_key(&self.prefix, name);
        let record = self.get(key.clone()).await?.ok_or_else(|| ControlError::NoTag(name.into()))?;
        if let Some(users) = uses.tags.get(name) {
            return Err(ControlError::InUse { what: format!("tag `{name}`"), by: users.clone() });
        }
        let removed = self.remove(TxnOp::delete(key, None), uses.unchanged(&self.prefix)).await?;
        // A record that cannot be read is removed like any other.
        let digest = read_tag(name, Some(record.value())).map(|tag| tag.now.digest).unwrap_or_default();
        if removed { Ok(digest) } else { Err(ControlError::Moved("a tag or a list".into())) }
    }

    /// Removes a blob that nothing uses.
    pub async fn remove_blob(&mut self, digest: &Digest, uses: &Uses) -> Result<(), ControlError> {
        let prefix = self.blob_prefix(digest);
        if self.get_below(&prefix, GetOptions::new().with_keys_only()).await?.is_empty() {
            return Err(ControlError::NoBlob(*digest));
        }
        let users = uses.of_digest(digest);
        if !users.is_empty() {
            return Err(ControlError::InUse { what: format!("module {digest}"), by: users.into() });
        }
        let all = TxnOp::delete(prefix, Some(DeleteOptions::new().with_prefix()));
        if self.remove(all, uses.unchanged(&self.prefix)).await? {
            Ok(())
        } else {
            Err(ControlError::Moved("a tag or a list".into()))
        }
    }

    /// Removes every blob that is neither used nor young; says which only, where `dry`.
    pub async fn sweep(&mut self, uses: &Uses, dry: bool) -> Result<Swept, ControlError> {
        let mut swept = Swept::default();
        for (digest, marks) in self.marks().await? {
            if !uses.of_digest(&digest).is_empty() {
                swept.used += 1;
                continue;
            }
            let (manifest, begun) = (marks.manifest.as_ref(), marks.begun.as_ref());
            if [manifest, begun].into_iter().flatten().any(|(mark, _)| mark.is_young(SystemTime::now())) {
                swept.young += 1;
                continue;
            }
            if !dry {
                let modified = |mark: Option<&(Manifest, i64)>| mark.map_or(0, |(_, modified)| *modified);
                let mut compares = uses.unchanged(&self.prefix);
                for (key, mark) in [(self.manifest_key(&digest), manifest), (self.begun_key(&digest), begun)]
                {
                    compares.push(Compare::mod_revision(key, CompareOp::Equal, modified(mark)));
                }
                let all = TxnOp::delete(self.blob_prefix(&digest), Some(DeleteOptions::new().with_prefix()));
                if !self.remove(all, compares).await? {
                    return Err(ControlError::Moved("a tag, a list or a module".into()));
                }
            }
            let (Manifest { bytes, who, when, .. }, _) = manifest.or(begun).cloned().unwrap_or_default();
            swept.unused.push(BlobInfo { digest: digest.to_string(), bytes, who, when });
        }
        Ok(swept)
    }

    async fn remove(&mut self, what: TxnOp, compares: Vec<Compare>) -> Result<bool, ControlError> {
        let txn = Txn::new().when(compares).and_then([what]);
        Ok(client::call("remove it from the store", self.kv.txn(txn)).await?.succeeded())
    }

    /// Every blob, whole or not.
    async fn marks(&mut self) -> Result<BTreeMap<Digest, Marks>, ControlError> {
        let mut all: BTreeMap<Digest, Marks> = BTreeMap::new();
        let blobs = format!("{}blobs/", self.prefix);
        for kv in self.get_below(&blobs, GetOptions::new().with_keys_only()).await? {
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            let Some((hex, name)) = key.strip_prefix(&blobs).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() else { continue };
            let marks = all.entry(digest).or_default();
            let mark = match name {
                "manifest" => &mut marks.manifest,
                "begun" => &mut marks.begun,
                _ => continue,
            };
            let Some(kv) = self.get(key).await? else { continue };
            // One that cannot be read is of no age.
            *mark = Some((serde_json::from_slice(kv.value()).unwrap_or_default(), kv.mod_revision()));
        }
        Ok(all)
    }
}

impl Manifest {
    fn is_young(&self, now: SystemTime) -> bool {
        let when = humantime::parse_rfc3339(&self.when);
        when.is_ok_and(|when| now.duration_since(when).is_ok_and(|age| age < YOUNG) || when > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_module_is_seen() {
        for (entry, names) in [
            (r#"{"filter": "redact", "path": "x"}"#, vec!["redact"]),
            (r#"{"Filter": {"MODULE": "a", "config": {"module": "b"}}}"#, vec!["a"]),
            (r#"{"filter": {"module": "a", "shadow": "b"}}"#, vec!["a", "b"]),
            (r#"{"filter": {"module": "a", "shadow": {"module": "b", "config": "c"}}}"#, vec!["a", "b"]),
            (r#"{"path": "redact", "filter": null}"#, vec![]),
            ("7", vec![]),
        ] {
            assert_eq!(named_by(entry), names, "{entry}");
        }
    }

    #[test]
    fn an_hour_is_young_and_so_is_what_another_clock_says_is_to_come() {
        let now = humantime::parse_rfc3339("2026-01-01T12:00:00Z").unwrap();
        let is_young = |when: &str| Manifest { when: when.into(), ..Manifest::default() }.is_young(now);
        assert!(is_young("2026-01-01T11:00:01Z") && is_young("2026-01-01T12:30:00Z"));
        assert!(!is_young("2026-01-01T11:00:00Z") && !is_young(""));
    }
}
