//! The last good list of each key, and what becomes of a new reading.
//!
//! In: what stands in all keys (or the file) at one revision. Out: what to run: entries of all keys
//! merged, the refused ones, the problems; and what to remember. Nothing here waits, reads or asks:
//! the rules can be tested alone.
//!
//! - A list that is none changes nothing: the key keeps its last good list.
//! - So does a key that is gone, unless `on_delete` says `stop`.
//! - A list that vanishes or turns empty together with the cluster's id or the key's name is not
//!   believed until it is written again: etcd was replaced, or the host's address changed.
//! - An entry that was good and is refused now keeps running as it was.
//! - Where two keys use one name, the first key has it.
//! - Where the host's policy has keys, only signed lists count: see `trust`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::list::{self, Item, List, Origin};
use super::trust::Trust;
use super::{ListState, Refused};
use crate::config::OnDelete;
use crate::model::{Entry, EntryName, FilterSpec, ModuleRef, Problem};

/// What stands in every place of the list at one revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// etcd's; 0 for a file.
    pub(super) cluster: u64,
    /// etcd's; for a file a number that grows.
    pub(super) revision: i64,
    /// One for each origin.
    pub(super) found: Vec<Found>,
}

/// What stands in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is no such key or file.
    Nothing,
    /// It is there and cannot be read, for this reason.
    Unreadable(String),
    /// Bytes, and the revision that wrote them.
    Text { bytes: Vec<u8>, modified: i64 },
}

/// What is remembered over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// `etcd` or `file`: one knows nothing of the other's lists.
    pub(super) source: String,
    /// Of the reading that changed something last.
    pub(super) revision: i64,
    /// One for each origin.
    pub(super) lists: Vec<Option<KeptList>>,
    /// The digests of the tags that the lists name.
    pub(super) tags: BTreeMap<String, String>,
    /// The numbers of signed lists, by origin.
    #[serde(default)]
    pub(super) serials: BTreeMap<String, u64>,
}

/// The last good list of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptList {
    origin: String,
    cluster: u64,
    text: String,
    /// Entries by name, as they were before the text had them wrong.
    stand_ins: BTreeMap<String, String>,
}

/// What all keys together ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Merged {
    pub(super) state: ListState,
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) refused: Vec<Refused>,
    pub(super) problems: Vec<Problem>,
}

/// Where lists come from, with the last good one of each.
#[derive(Debug)]
pub(super) struct Collector {
    origins: Vec<Origin>,
    on_delete: OnDelete,
    lists: Vec<Option<KeptList>>,
    /// For an origin whose list is not believed: the cluster, and the revision it was first seen at.
    doubted: Vec<Option<(u64, i64)>>,
    trust: Trust,
}

impl Collector {
    /// `kept` may be of other settings: a list is known by its key's name, else by its position.
    pub(super) fn new(origins: Vec<Origin>, on_delete: OnDelete, mut kept: Vec<Option<KeptList>>) -> Self {
        let mut named = |origin: &Origin| {
            let same =
                |list: &&mut Option<KeptList>| list.as_ref().is_some_and(|l| l.origin == origin.to_string());
            kept.iter_mut().find(same).and_then(Option::take)
        };
        let mut lists: Vec<_> = origins.iter().map(&mut named).collect();
        for (list, left) in lists.iter_mut().zip(kept) {
            *list = list.take().or(left);
        }
        let doubted = vec![None; origins.len()];
        Self { origins, on_delete, lists, doubted, trust: Trust::default() }
    }

    /// Takes only what is trusted, of what was kept as well.
    pub(super) fn with_trust(mut self, trust: Trust) -> Self {
        for kept in &mut self.lists {
            if kept.as_ref().is_some_and(|kept| !trust.still_good(&kept.text)) {
                tracing::warn!(
                    "the list that was kept is signed by no key of this host's policy; it is not run"
                );
                *kept = None;
            }
        }
        self.trust = trust;
        self
    }

    /// The numbers of signed lists, to be remembered.
    pub(super) fn serials(&self) -> &BTreeMap<String, u64> {
        self.trust.serials()
    }

    /// The last good lists, to be remembered.
    pub(super) fn lists(&self) -> &[Option<KeptList>] {
        &self.lists
    }

    /// What to run from the last good lists alone; `None` where there never was one.
    pub(super) fn remembered(&self) -> Option<Merged> {
        self.lists.iter().any(Option::is_some).then(|| {
            let merged = self.merge(vec![None; self.origins.len()]);
            Merged { state: ListState::Cached, ..merged }
        })
    }

    /// What to run after a reading.
    pub(super) fn read(&mut self, reading: &Reading) -> Merged {
        let trouble = (0..self.origins.len())
            .map(|i| self.judge(i, reading, reading.found.get(i).unwrap_or(&Found::Nothing)).err());
        let trouble = trouble.collect();
        self.merge(trouble)
    }

    /// Takes a new value over as the last good list, or says why the old one stays.
    fn judge(&mut self, i: usize, reading: &Reading, found: &Found) -> Result<(), (ListState, Problem)> {
        let origin = self.origins[i].clone();
        let stays = if self.lists[i].is_some() { "; the last good list stays" } else { "" };
        let (bytes, modified) = match found {
            Found::Nothing if self.on_delete == OnDelete::Stop && self.same_place(i, reading.cluster) => {
                self.lists[i] = None;
                return Ok(());
            }
            Found::Nothing => return Err((ListState::Missing, missing(&origin, stays))),
            Found::Unreadable(why) => {
                let problem =
                    Problem::new(origin.to_string(), format!("{why}{stays}"), "let the agent read it");
                return Err((ListState::Invalid, problem));
            }
            Found::Text { bytes, modified } => (bytes, *modified),
        };
        let invalid = |mut problem: Problem| {
            problem.cause.push_str(stays);
            (ListState::Invalid, problem)
        };
        let known = self.lists[i].as_ref().map(|kept| kept.text.as_str());
        let serial = self.trust.check(bytes, &origin, known).map_err(invalid)?;
        let list = list::parse(bytes, &origin).map_err(invalid)?;
        if list.items.is_empty() && !self.believed(i, reading, modified) {
            let cause =
                format!("the list is empty, but in another cluster or under another key than before{stays}");
            let problem =
                Problem::new(origin.to_string(), cause, "if nothing is to be collected, write [] again");
            return Err((ListState::Missing, problem));
        }
        self.adopt(i, reading.cluster, bytes, &list);
        self.trust.taken(&origin, serial);
        Ok(())
    }

    /// Whether the last good list stood under the same key of the same cluster, or there is none.
    fn same_place(&self, i: usize, cluster: u64) -> bool {
        let same = |kept: &KeptList| kept.cluster == cluster && kept.origin == self.origins[i].to_string();
        self.lists[i].as_ref().is_none_or(same)
    }

    /// An empty list in a new place is believed once it is written while this agent looks.
    fn believed(&mut self, i: usize, reading: &Reading, modified: i64) -> bool {
        if self.same_place(i, reading.cluster) {
            return true;
        }
        match self.doubted[i] {
            Some((cluster, first_seen)) if cluster == reading.cluster => modified > first_seen,
            _ => {
                self.doubted[i] = Some((reading.cluster, reading.revision));
                false
            }
        }
    }

    fn adopt(&mut self, i: usize, cluster: u64, bytes: &[u8], list: &List) {
        let origin = self.origins[i].to_string();
        let before = self.lists[i].take().filter(|kept| kept.origin == origin);
        let mut good = before.map(|kept| kept.good(&self.origins[i])).unwrap_or_default();
        let has = |name: &str| list.items.iter().any(|item| item.checked.is_ok() && item.name() == name);
        let refused = list.items.iter().filter(|item| item.checked.is_err() && !has(item.name()));
        let stand_ins = refused.filter_map(|item| good.remove_entry(item.name())).collect();
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.lists[i] = Some(KeptList { origin, cluster, text, stand_ins });
        self.doubted[i] = None;
    }

    /// All last good lists as one.
    fn merge(&self, trouble: Vec<Option<(ListState, Problem)>>) -> Merged {
        let mut merged = Merged::default();
        let mut owners: HashMap<EntryName, &Origin> = HashMap::new();
        for ((origin, kept), trouble) in self.origins.iter().zip(&self.lists).zip(trouble) {
            if let Some((state, problem)) = trouble {
                merged.state = worse(merged.state, state);
                merged.problems.push(problem);
            }
            let Some(kept) = kept else { continue };
            // It was a list when it was kept, unless somebody changed the file in the state directory.
            let list = list::parse(kept.text.as_bytes(), origin).unwrap_or_default();
            merged.problems.extend(list.problems);
            for item in list.items {
                let entry = match item.checked {
                    Ok(entry) => Some(entry),
                    Err(mut refused) => {
                        let stand_in = kept.stand_in(&refused.name, origin);
                        if stand_in.is_some() {
                            refused.problem.cause.push_str("; the entry runs on as it was before");
                        }
                        merged.refused.push(refused);
                        stand_in
                    }
                };
                let Some(entry) = entry else { continue };
                match owners.get(&entry.name) {
                    Some(owner) => merged.refused.push(taken(&entry, owner, origin)),
                    None => {
                        owners.insert(entry.name.clone(), origin);
                        merged.entries.push(entry);
                    }
                }
            }
        }
        merged
    }
}

impl KeptList {
    /// The JSON of every entry that runs, by name.
    fn good(self, origin: &Origin) -> BTreeMap<String, String> {
        let items = list::parse(self.text.as_bytes(), origin).unwrap_or_default().items;
        let good = |item: Item| item.checked.is_ok().then(|| (item.name().to_string(), item.text));
        let mut all = self.stand_ins;
        all.extend(items.into_iter().filter_map(good));
        all
    }

    fn stand_in(&self, name: &str, origin: &Origin) -> Option<Arc<Entry>> {
        let text = format!("[{}]", self.stand_ins.get(name)?);
        let item = list::parse(text.as_bytes(), origin).ok()?.items.pop()?;
        // Alone in its list, an unnamed entry would be called by its path.
        let entry = Entry::clone(item.checked.as_ref().ok()?);
        Some(Arc::new(Entry { name: EntryName(name.into()), ..entry }))
    }
}

fn missing(origin: &Origin, stays: &str) -> Problem {
    let (what, fix) = match origin {
        Origin::Key(key) => ("key", format!("write it: weir list put FILE --key {key}; [] collects nothing")),
        Origin::File(_) | Origin::Settings => ("file", "write it; [] collects nothing".into()),
    };
    Problem::new(origin.to_string(), format!("LIST MISSING: there is no such {what}{stays}"), fix)
}

fn taken(entry: &Entry, owner: &Origin, origin: &Origin) -> Refused {
    let cause = format!("{owner} has an entry of this name, and comes first");
    let place = format!("{origin}, entry {}", entry.name);
    Refused {
        name: entry.name.to_string(),
        path: entry.path.clone(),
        topic: entry.topic.to_string(),
        problem: Problem::new(place, cause, "give one of them another `name`"),
    }
}

fn worse(one: ListState, other: ListState) -> ListState {
    let rank = |state| match state {
        ListState::Current => 0,
        ListState::Cached => 1,
        ListState::Missing => 2,
        ListState::Invalid => 3,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// The modules that entries name.
pub(super) fn modules_of(entries: &[Arc<Entry>]) -> std::collections::BTreeSet<ModuleRef> {
    entries.iter().filter_map(|entry| entry.filter.as_ref()).flat_map(FilterSpec::modules).cloned().collect()
}

impl Kept {
    /// What was remembered; nothing where it is another source's, or cannot be read, which is said.
    pub(super) fn load(path: &Path, source: &str) -> Self {
        let nothing = Self { source: source.into(), ..Self::default() };
        let read =
            std::fs::read(path).and_then(|bytes| serde_json::from_slice::<Self>(&bytes).map_err(Into::into));
        match read {
            Ok(kept) if kept.source == source => kept,
            Ok(_) => nothing,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the last good list cannot be read");
                }
                nothing
            }
        }
    }

    /// Writes it so that after a crash the file is the old or the new one, whole.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"path": "/a", "topic": "t"}"#;
    const B: &str = r#"{"path": "/b", "topic": "t"}"#;

    fn keys(names: &[&str], kept: Vec<Option<KeptList>>) -> Collector {
        let origins = names.iter().map(|name| Origin::Key((*name).into())).collect();
        Collector::new(origins, OnDelete::Keep, kept)
    }

    /// A reading in cluster 1 at `revision`; each value was written then.
    fn at(revision: i64, values: &[Option<&str>]) -> Reading {
        let found = |text: &Option<&str>| match text {
            Some(text) => Found::Text { bytes: (*text).into(), modified: revision },
            None => Found::Nothing,
        };
        Reading { cluster: 1, revision, found: values.iter().map(found).collect() }
    }

    fn running(merged: &Merged) -> Vec<&str> {
        merged.entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn several_keys_are_one_list_in_their_order() {
        let merged =
            keys(&["x", "y"], vec![]).read(&at(1, &[Some(&format!("[{A}]")), Some(&format!("[{B}]"))]));
        assert_eq!(running(&merged), ["/a", "/b"]);
        assert_eq!((merged.state, merged.problems, merged.refused), (ListState::Current, vec![], vec![]));
    }

    #[test]
    fn the_key_named_first_has_a_name() {
        let other = r#"[{"name": "/a", "path": "/other", "topic": "t"}]"#;
        let merged = keys(&["x", "y"], vec![]).read(&at(1, &[Some(&format!("[{A}]")), Some(other)]));
        assert_eq!(merged.entries[0].path, "/a");
        assert_eq!(merged.entries.len(), 1);
        assert_eq!(merged.refused[0].path, "/other");
        assert_eq!(merged.refused[0].problem.cause, "etcd key x has an entry of this name, and comes first");
    }

    #[test]
    fn a_key_that_was_never_there_runs_nothing_and_says_so() {
        let merged = keys(&["x"], vec![]).read(&at(1, &[None]));
        assert_eq!((merged.state, running(&merged).len()), (ListState::Missing, 0));
        assert_eq!(merged.problems[0].cause, "LIST MISSING: there is no such key");
        assert!(merged.problems[0].fix.contains("weir list put FILE --key x"));
    }

    #[test]
    fn a_deleted_key_keeps_its_list_and_says_so() {
        let mut collector = keys(&["x", "y"], vec![]);
        collector.read(&at(1, &[Some(&format!("[{A}]")), Some(&format!("[{B}]"))]));
        let merged = collector.read(&at(2, &[None, Some("[]")]));
        assert_eq!((merged.state, running(&merged)), (ListState::Missing, vec!["/a"]));
        assert_eq!(merged.problems[0].cause, "LIST MISSING: there is no such key; the last good list stays");
        assert_eq!(running(&collector.read(&at(3, &[Some("[]"), None]))), Vec::<&str>::new());
    }

    #[test]
    fn a_deleted_key_stops_all_where_the_settings_say_so() {
        let mut collector = keys(&["x"], vec![]);
        collector.on_delete = OnDelete::Stop;
        collector.read(&at(1, &[Some(&format!("[{A}]"))]));
        assert_eq!(collector.read(&at(2, &[None])), Merged::default());
    }

    #[test]
    fn each_key_keeps_its_own_last_good_value() {
        let mut collector = keys(&["x", "y"], vec![]);
        collector.read(&at(1, &[Some(&format!("[{A}]")), Some("[]")]));
        let merged = collector.read(&at(2, &[Some("[{]"), Some(&format!("[{B}]"))]));
        assert_eq!((merged.state, running(&merged)), (ListState::Invalid, vec!["/a", "/b"]));
        assert!(merged.problems[0].cause.ends_with("; the last good list stays"), "{}", merged.problems[0]);
        assert!(
            merged.problems[0].place.starts_with("etcd key x, line 1, column 3"),
            "{}",
            merged.problems[0]
        );
    }

    #[test]
    fn what_cannot_be_read_changes_nothing_and_says_why() {
        let mut collector = keys(&["x"], vec![]);
        collector.read(&at(1, &[Some(&format!("[{A}]"))]));
        let merged =
            collector.read(&Reading { found: vec![Found::Unreadable("denied".into())], ..at(2, &[]) });
        assert_eq!((merged.state, running(&merged)), (ListState::Invalid, vec!["/a"]));
        assert_eq!(merged.problems[0].cause, "denied; the last good list stays");
    }

    #[test]
    fn an_entry_that_turns_bad_runs_on_as_it_was() {
        let mut collector = keys(&["x"], vec![]);
        let bad = r#"{"path": "/a", "topic": "no topic"}"#;
        collector.read(&at(1, &[Some(&format!("[{A}, {B}]"))]));
        let merged = collector.read(&at(2, &[Some(&format!("[{B}, {bad}]"))]));
        assert_eq!(running(&merged), ["/b", "/a"]);
        assert_eq!(merged.entries[1].topic.as_str(), "t");
        assert!(merged.refused[0].problem.cause.ends_with("the entry runs on as it was before"));

        let again = keys(&["x"], collector.lists().to_vec()).read(&at(3, &[Some(&format!("[{bad}]"))]));
        assert_eq!(running(&again), ["/a"]);
        let gone = collector.read(&at(4, &[Some("[]")]));
        assert_eq!(gone, Merged::default());
        assert_eq!(running(&collector.read(&at(5, &[Some(&format!("[{bad}]"))]))), Vec::<&str>::new());
    }

    #[test]
    fn an_empty_list_of_another_cluster_is_not_believed_until_it_is_written_again() {
        let mut collector = keys(&["x"], vec![]);
        collector.read(&at(9, &[Some(&format!("[{A}]"))]));
        let other = |reading| Reading { cluster: 2, ..reading };
        for revision in [3, 4] {
            let found = vec![Found::Text { bytes: "[]".into(), modified: 2 }];
            let merged = collector.read(&other(Reading { found, ..at(revision, &[]) }));
            assert_eq!((merged.state, running(&merged)), (ListState::Missing, vec!["/a"]));
        }
        assert_eq!(collector.read(&other(at(5, &[Some("[]")]))), Merged::default());
    }

    #[test]
    fn another_list_of_another_cluster_is_believed() {
        let mut collector = keys(&["x"], vec![]);
        collector.read(&at(9, &[Some(&format!("[{A}]"))]));
        let merged = collector.read(&Reading { cluster: 2, ..at(3, &[Some(&format!("[{B}]"))]) });
        assert_eq!((merged.state, running(&merged)), (ListState::Current, vec!["/b"]));
    }

    #[test]
    fn a_list_stays_when_the_hosts_address_and_so_the_key_changes() {
        for (now, on_delete) in [(None, OnDelete::Keep), (None, OnDelete::Stop), (Some("[]"), OnDelete::Keep)]
        {
            let mut before = keys(&["/10.0.0.1"], vec![]);
            before.read(&at(1, &[Some(&format!("[{A}]"))]));
            let mut collector = keys(&["/10.0.0.2"], before.lists().to_vec());
            collector.on_delete = on_delete;
            let merged = collector.read(&at(2, &[now]));
            assert_eq!((merged.state, running(&merged)), (ListState::Missing, vec!["/a"]), "{now:?}");
        }
    }

    #[test]
    fn kept_lists_are_known_by_their_key_before_their_position() {
        let mut before = keys(&["x", "y"], vec![]);
        before.read(&at(1, &[Some(&format!("[{A}]")), Some(&format!("[{B}]"))]));
        let after = keys(&["y", "x"], before.lists().to_vec());
        let merged = after.remembered().unwrap();
        assert_eq!((merged.state, running(&merged)), (ListState::Cached, vec!["/b", "/a"]));
        assert_eq!(keys(&["y"], vec![]).remembered(), None);
    }

    #[test]
    fn what_is_saved_is_loaded_for_the_same_source_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/list.json");
        let mut collector = keys(&["x"], vec![]);
        collector.read(&at(7, &[Some(&format!("[{A}]"))]));
        let tags = BTreeMap::from([("redact".into(), "sha256:00".into())]);
        let (lists, serials) = (collector.lists().to_vec(), BTreeMap::from([("x".into(), 3)]));
        let kept = Kept { source: "etcd".into(), revision: 7, lists, tags, serials };
        assert_eq!(Kept::load(&path, "etcd").lists, []);
        kept.save(&path).unwrap();
        assert_eq!(Kept::load(&path, "etcd"), kept);
        assert_eq!(Kept::load(&path, "file").lists, []);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Kept::load(&path, "etcd").lists, []);
    }
}
