//! What is known of the versions of each entry's filter, over restarts of the agent.
//!
//! In: which version runs, which was proven, which failed. Out: whether a version may be tried, and
//! what to run in its place. A version that was rolled back is not tried again until the tag, the
//! config or the limits make it another one. Absent by design: modules, pipelines.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::model::{Digest, EntryName, FilterSpec};

/// In the state directory.
pub(super) const FILE: &str = "filters.json";

/// A module and what it is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// As the list named it; for people.
    pub(super) module: String,
    digest: String,
    /// JSON, as it stood in the list.
    pub(super) config: String,
    pub(super) timeout_ms: u64,
    /// Bytes.
    pub(super) memory: u64,
}

/// A version that failed, and what took its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RolledBack {
    from: Version,
    to: Version,
    cause: String,
}

/// What is known for one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    running: Option<Version>,
    /// What ran before it.
    before: Option<Version>,
    /// The last that went through so many lines without failing too often.
    proven: Option<Version>,
    rolled_back: Option<RolledBack>,
}

/// What is known for all entries.
#[derive(Debug)]
pub(super) struct Versions {
    known: BTreeMap<EntryName, Known>,
    path: PathBuf,
    out: watch::Sender<Option<Vec<u8>>>,
}

impl Version {
    pub(super) fn of(spec: &FilterSpec, digest: &Digest) -> Self {
        Self {
            module: spec.module.to_string(),
            digest: digest.to_string(),
            config: String::from_utf8_lossy(&spec.config).into_owned(),
            timeout_ms: spec.timeout.as_millis() as u64,
            memory: spec.memory,
        }
    }

    pub(super) fn digest(&self) -> Result<Digest, String> {
        self.digest.parse()
    }

    /// Whether it is the same, under whatever name.
    pub(super) fn is(&self, other: &Self) -> bool {
        *self == Self { module: self.module.clone(), ..other.clone() }
    }
}

/// Whether a host adopts a change that so many percent of the hosts are to adopt. The same at any
/// time, and a larger share has the hosts of a smaller one.
pub(super) fn is_in_share(host: &str, entry: &EntryName, percent: u8) -> bool {
    let Digest(hash) = Digest::of(format!("{host}\0{}", entry.as_str()).as_bytes());
    let number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    u64::from(number) * 100 < u64::from(percent) << 32
}

impl Versions {
    /// What is written down at `path`. What cannot be read is forgotten, which is said.
    pub(super) fn load(path: PathBuf) -> Self {
        let read = std::fs::read(&path).and_then(|bytes| {
            serde_json::from_slice::<BTreeMap<EntryName, Known>>(&bytes).map_err(Into::into)
        });
        let known = read.unwrap_or_else(|error| {
            if error.kind() != std::io::ErrorKind::NotFound {
                warn!(path = %path.display(), %error, "what is known of filters cannot be read; it is forgotten");
            }
            BTreeMap::new()
        });
        Self { known, path, out: watch::channel(None).0 }
    }

    /// What stands in the place of `wanted`, and why, where that was rolled back. Another version that
    /// is wanted ends the memory of one that was rolled back.
    pub(super) fn instead_of(&mut self, entry: &EntryName, wanted: &Version) -> Option<(Version, String)> {
        let known = self.known.get_mut(entry)?;
        let rolled_back = known.rolled_back.as_ref()?;
        if rolled_back.from.is(wanted) {
            return Some((rolled_back.to.clone(), rolled_back.cause.clone()));
        }
        known.rolled_back = None;
        self.changed();
        None
    }

    /// What runs, or ran before the agent was started.
    pub(super) fn running(&self, entry: &EntryName) -> Option<&Version> {
        self.known.get(entry)?.running.as_ref()
    }

    /// The modules that may be wanted again.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        let versions = self.known.values().flat_map(|known| [&known.running, &known.before, &known.proven]);
        versions.flatten().filter_map(|version| version.digest().ok())
    }

    /// The pipeline was given this one.
    pub(super) fn runs(&mut self, entry: &EntryName, version: &Version) {
        let known = self.known.entry(entry.clone()).or_default();
        let now = Some(version.clone());
        if known.running == now {
            return;
        }
        let old = std::mem::replace(&mut known.running, now);
        let failed = known.rolled_back.as_ref().map(|rolled_back| &rolled_back.from);
        known.before = old.filter(|old| !old.is(version) && !failed.is_some_and(|failed| failed.is(old)));
        self.changed();
    }

    /// It went through many lines without failing too often.
    pub(super) fn proved(&mut self, entry: &EntryName, version: &Version) {
        let known = self.known.entry(entry.clone()).or_default();
        if known.proven.as_ref() != Some(version) {
            known.proven = Some(version.clone());
            self.changed();
        }
    }

    /// It fails too often. What to run instead: the last that was proven, else what ran before;
    /// nothing where it was proven itself, or is the first.
    pub(super) fn failed(&mut self, entry: &EntryName, version: &Version, cause: &str) -> Option<Version> {
        let known = self.known.entry(entry.clone()).or_default();
        if known.proven.as_ref().is_some_and(|proven| proven.is(version)) {
            return None;
        }
        let to = known.proven.clone().or_else(|| known.before.clone()).filter(|to| !to.is(version))?;
        known.rolled_back = Some(RolledBack { from: version.clone(), to: to.clone(), cause: cause.into() });
        self.changed();
        Some(to)
    }

    /// The entry is gone.
    pub(super) fn forget(&mut self, entry: &EntryName) {
        if self.known.remove(entry).is_some() {
            self.changed();
        }
    }

    fn changed(&mut self) {
        let text = serde_json::to_vec_pretty(&self.known).expect("texts and numbers are JSON");
        self.out.send_replace(Some(text));
    }

    /// Writes down what changes, until the value is gone.
    pub(super) fn writer(&self) -> impl Future<Output = ()> + use<> {
        let (path, mut text) = (self.path.clone(), self.out.subscribe());
        async move {
            while text.changed().await.is_ok() {
                let Some(text) = text.borrow_and_update().clone() else { continue };
                let to = path.clone();
                let saved = tokio::task::spawn_blocking(move || save(&to, &text)).await;
                if let Ok(Err(error)) = saved {
                    let path = path.display();
                    warn!(%path, %error, "what is known of filters cannot be written down; the next start will not know it");
                }
            }
        }
    }
}

/// After a crash the file is the old or the new one, whole.
fn save(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(name: &str) -> Version {
        let digest = Digest::of(name.as_bytes()).to_string();
        Version { module: "tag".into(), digest, config: String::new(), timeout_ms: 100, memory: 1 }
    }

    fn entry() -> EntryName {
        EntryName("e".into())
    }

    fn fresh() -> Versions {
        Versions::load("/nowhere/filters.json".into())
    }

    #[test]
    fn a_failing_version_gives_way_to_the_last_that_was_proven() {
        let [a, b, c] = ["a", "b", "c"].map(version);
        let mut versions = fresh();
        versions.runs(&entry(), &a);
        versions.proved(&entry(), &a);
        versions.runs(&entry(), &b);
        versions.runs(&entry(), &c);
        assert_eq!(versions.failed(&entry(), &c, "why"), Some(a.clone()));
        assert_eq!(versions.instead_of(&entry(), &c), Some((a.clone(), "why".into())));
        versions.runs(&entry(), &a);
        assert_eq!(versions.failed(&entry(), &a, "too"), None, "a proven one holds");
    }

    #[test]
    fn where_none_was_proven_the_one_before_comes_back_and_the_first_holds() {
        let [a, b] = ["a", "b"].map(version);
        let mut versions = fresh();
        versions.runs(&entry(), &a);
        assert_eq!(versions.failed(&entry(), &a, ""), None);
        versions.runs(&entry(), &b);
        assert_eq!(versions.failed(&entry(), &b, ""), Some(a.clone()));
        versions.runs(&entry(), &a);
        assert_eq!(versions.failed(&entry(), &a, ""), None, "what was rolled back does not come back");
    }

    #[test]
    fn another_version_ends_the_memory_of_the_one_that_failed() {
        let [a, b, c] = ["a", "b", "c"].map(version);
        let mut versions = fresh();
        versions.runs(&entry(), &a);
        versions.runs(&entry(), &b);
        versions.failed(&entry(), &b, "why").unwrap();
        let renamed = Version { module: "other".into(), ..b.clone() };
        assert!(versions.instead_of(&entry(), &renamed).is_some());
        assert_eq!(versions.instead_of(&entry(), &c), None);
        assert_eq!(versions.instead_of(&entry(), &b), None, "it was wanted anew");
    }

    #[test]
    fn a_share_of_hosts_grows_with_its_percent() {
        let hosts: Vec<_> = (0..2_000).map(|n| format!("web{n}")).collect();
        let inside =
            |percent| hosts.iter().filter(|host| is_in_share(host, &entry(), percent)).collect::<Vec<_>>();
        assert_eq!((inside(0).len(), inside(100).len()), (0, 2_000));
        assert!((400..600).contains(&inside(25).len()), "{}", inside(25).len());
        assert!(inside(25).iter().all(|host| inside(26).contains(host)));
        let other = EntryName("other".into());
        assert!(
            inside(50).iter().any(|host| !is_in_share(host, &other, 50)),
            "another entry has other hosts"
        );
    }

    #[tokio::test]
    async fn what_is_known_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let [a, b] = ["a", "b"].map(version);
        let mut versions = Versions::load(path.clone());
        let writer = versions.writer();
        versions.runs(&entry(), &a);
        versions.runs(&entry(), &b);
        versions.failed(&entry(), &b, "why").unwrap();
        let known = versions.known.clone();
        drop(versions);
        writer.await;
        let mut again = Versions::load(path.clone());
        assert_eq!(again.known, known);
        assert_eq!(again.instead_of(&entry(), &b), Some((a, "why".into())));
        std::fs::write(&path, "{").unwrap();
        assert!(Versions::load(path).known.is_empty());
    }
}
