//! The list as people change it: one key or one file, read, changed, compared and swapped.
//!
//! In: where it is, a new text. Out: the text that stands there; a write that fails where somebody
//! else wrote meanwhile. Absent by design: following it (that is the agent's), what an entry means.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};

use super::client;
use super::error::ControlError;
use super::list::{Item, Origin};
use super::modules::{now, who};
use crate::config::EtcdSettings;

/// Behind the key of a list: who wrote it, and when.
const BY: &str = ".by";

/// One list that can be changed.
pub struct Lists(pub(super) Place);

pub(super) enum Place {
    Key { client: Box<Client>, key: String },
    File(PathBuf),
}

/// What stands there, and what a write must find unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// `None` where there is nothing yet.
    pub text: Option<Vec<u8>>,
    /// The revision that wrote it; 0 where nothing did, and for files.
    pub modified: i64,
}

/// Who wrote a list, and when, as `<key>.by` says: etcd itself keeps neither. It counts for the text that
/// was written at the same revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// `user@host`
    #[serde(default)]
    pub who: String,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub when: String,
}

impl Writer {
    pub(super) fn here() -> Self {
        Self { who: who(), when: now() }
    }
}

/// Where the writer of the list under `key` is told.
pub(super) fn by_key(key: &str) -> String {
    format!("{key}{BY}")
}

impl Lists {
    /// The list under `key`.
    pub async fn in_etcd(settings: &EtcdSettings, key: &str) -> Result<Self, ControlError> {
        let client = Box::new(client::connect(settings).await?);
        Ok(Self(Place::Key { client, key: key.into() }))
    }

    /// The list in the file at `path`.
    pub fn in_file(path: &Path) -> Self {
        Self(Place::File(path.into()))
    }

    /// Where it is.
    pub fn origin(&self) -> Origin {
        match &self.0 {
            Place::Key { key, .. } => Origin::Key(key.clone()),
            Place::File(path) => Origin::File(path.clone()),
        }
    }

    /// What stands there now.
    pub async fn read(&mut self) -> Result<Version, ControlError> {
        self.read_at(0).await
    }

    /// What stood there at a revision; 0 is now. Files have no revisions.
    pub async fn read_at(&mut self, revision: i64) -> Result<Version, ControlError> {
        match &mut self.0 {
            Place::File(path) if revision != 0 => Err(ControlError::NoRevisions(path.clone())),
            Place::Key { client, key } => {
                let options = GetOptions::new().with_revision(revision);
                let get = async { client::kv(client).get(key.as_str(), Some(options)).await };
                let answer = client::call(&format!("read {key}"), get).await?;
                let version = |kv: &etcd_client::KeyValue| Version {
                    text: Some(kv.value().into()),
                    modified: kv.mod_revision(),
                };
                Ok(answer.kvs().first().map(version).unwrap_or_default())
            }
            Place::File(path) => match std::fs::read(&path) {
                Ok(text) => Ok(Version { text: Some(text), modified: 0 }),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Version::default()),
                Err(source) => Err(ControlError::File { operation: "read", path: path.clone(), source }),
            },
        }
    }

    /// Writes `text` where `old` still stands. The revision of the write; 0 for files.
    pub async fn write(&mut self, old: &Version, text: &[u8]) -> Result<i64, ControlError> {
        if let Place::File(path) = &self.0 {
            let path = path.clone();
            if self.read().await? != *old {
                return Err(ControlError::Moved(path.display().to_string()));
            }
            let written = replace(&path, text);
            return written.map(|()| 0).map_err(|source| ControlError::File {
                operation: "write",
                path,
                source,
            });
        }
        let Place::Key { client, key } = &mut self.0 else { return Ok(0) };
        let write = async |by: bool| {
            let by = by.then(|| TxnOp::put(by_key(key), json(&Writer::here()), None));
            let txn = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, old.modified)])
                .and_then([TxnOp::put(key.as_str(), text, None)].into_iter().chain(by).collect::<Vec<_>>());
            client::call(&format!("write {key}"), client::kv(client).txn(txn)).await
        };
        let answer = match write(true).await {
            // This user may write the list and nothing beside it.
            Err(ControlError::Etcd { cause, .. }) if cause.contains("permission denied") => {
                write(false).await?
            }
            answer => answer?,
        };
        if !answer.succeeded() {
            return Err(ControlError::Moved(key.clone()));
        }
        Ok(answer.header().ok_or(ControlError::BadAnswer("write"))?.revision())
    }
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record of text is JSON")
}

/// Puts `text` in the place of a file, whole or not at all, with the permissions it had.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    // A link stays a link.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    let permissions = match std::fs::metadata(&path) {
        Ok(meta) => meta.permissions(),
        Err(_) => std::os::unix::fs::PermissionsExt::from_mode(0o644),
    };
    file.as_file().set_permissions(permissions)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    std::fs::File::open(directory)?.sync_all()
}

/// A list of these entries, each as it was typed, one below the other.
pub fn text_of<'a>(items: impl Iterator<Item = &'a Item>) -> String {
    let entries: Vec<_> = items.map(|item| format!("  {}", item.text)).collect();
    if entries.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", entries.join(",\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::list;

    #[test]
    fn entries_keep_their_text() {
        let text = "[\n  {\"path\": \"/a\",   \"topic\": \"t\"},\n  7\n]\n";
        let items = list::parse(text.as_bytes(), &Origin::Key("x".into())).unwrap().items;
        assert_eq!(text_of(items.iter()), text);
        assert_eq!(text_of([].iter()), "[]\n");
    }

    #[tokio::test]
    async fn a_file_that_somebody_changed_meanwhile_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("collect.json");
        let mut lists = Lists::in_file(&path);
        let nothing = lists.read().await.unwrap();
        lists.write(&nothing, b"[]").await.unwrap();
        let old = lists.read().await.unwrap();
        std::fs::write(&path, "[ ]").unwrap();
        assert!(matches!(lists.write(&old, b"[1]").await, Err(ControlError::Moved(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"[ ]");
    }

    #[tokio::test]
    async fn a_link_stays_a_link_and_permissions_stay() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real.json"), directory.path().join("link.json"));
        std::fs::write(&real, "[]").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut lists = Lists::in_file(&link);
        let old = lists.read().await.unwrap();
        lists.write(&old, b"[1]").await.unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"[1]");
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
