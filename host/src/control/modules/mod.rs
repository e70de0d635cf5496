//! The module store in etcd: blobs by digest, tags by name.
//!
//! ```text
//! <modules_prefix>blobs/<sha256>/begun       written first, gone when the push has ended
//! <modules_prefix>blobs/<sha256>/00000 …     chunks
//! <modules_prefix>blobs/<sha256>/manifest    written last: without it there is no blob
//! <modules_prefix>tags/<name>                digest, who, when, from what, and what it was before
//! ```
//!
//! In: bytes, names. Out: bytes whose digest was checked. A blob never changes; a tag moves by
//! compare-and-swap, alone or in one transaction with a list; `uses.rs` removes. Absent by design: what
//! a module does.

use std::time::{Duration, SystemTime};

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue, KvClient, Txn, TxnOp};
use serde::{Deserialize, Serialize};

use super::backoff::chance;
use super::client;
use super::error::ControlError;
use super::list::check_tag;
use super::lists::{Writer, by_key};
use crate::config::{EtcdSettings, ListSource};
use crate::model::{Digest, ModuleRef};

mod uses;

pub use uses::{StoredList, Swept, User, Uses};

/// Bytes. etcd refuses requests over 1.5 MiB.
const CHUNK_BYTES: usize = 512 * 1024;
/// Bytes. etcd's quota is 2 GiB by default, for everything.
pub const MODULE_BYTES_MOST: usize = 64 * 1024 * 1024;
/// How many of a tag's former digests are remembered.
pub const HISTORY_MOST: usize = 10;
/// A fleet that hears of a module at once does not ask for it at once.
const FETCH_SPREAD: Duration = Duration::from_millis(250);

/// The record of a blob, written after its chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    bytes: usize,
    chunks: usize,
    #[serde(default)]
    who: String,
    #[serde(default)]
    when: String,
}

/// What a tag was moved to, by whom, when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// `sha256:…`
    pub digest: String,
    /// `user@host`
    #[serde(default)]
    pub who: String,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub when: String,
    /// The file or name that it came from.
    #[serde(default)]
    pub from: String,
}

/// The record of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tag {
    #[serde(flatten)]
    now: Move,
    /// Newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<Move>,
}

/// A tag and what it points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagInfo {
    /// Its name.
    pub name: String,
    /// Where it points.
    #[serde(flatten)]
    pub now: Move,
    /// Where it pointed before, newest first.
    pub history: Vec<Move>,
}

/// A blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlobInfo {
    /// `sha256:…`
    pub digest: String,
    /// Its size.
    pub bytes: usize,
    /// Who pushed it.
    pub who: String,
    /// When.
    pub when: String,
}

/// What is in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// By name.
    pub tags: Vec<TagInfo>,
    /// By digest.
    pub blobs: Vec<BlobInfo>,
}

/// A list to be written together with a tag.
#[derive(Clone, Debug)]
pub struct ListWrite {
    /// The key.
    pub key: String,
    /// The list's text.
    pub text: Vec<u8>,
    /// The revision that wrote what stands there now; 0 where nothing does.
    pub modified: i64,
}

/// What came of moving a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// What it pointed at before.
    pub before: Option<Digest>,
    /// etcd's revision of the move.
    pub revision: i64,
}

/// The key of a tag.
pub(super) fn tag_key(prefix: &str, name: &str) -> String {
    format!("{prefix}tags/{name}")
}

/// What the record of tag `name` points at.
pub(super) fn digest_of_tag(name: &str, record: Option<&[u8]>) -> Result<Digest, ControlError> {
    let tag = read_tag(name, record)?;
    tag.now.digest.parse().map_err(|_| ControlError::BadTag(name.into()))
}

/// The last module other than the present one that it pointed at.
pub(super) fn digest_before(name: &str, record: Option<&[u8]>) -> Result<Digest, ControlError> {
    let Tag { now, history } = read_tag(name, record)?;
    let before = history.iter().find(|before| before.digest != now.digest);
    let before = before.ok_or_else(|| ControlError::NoHistory(name.into()))?;
    before.digest.parse().map_err(|_| ControlError::BadTag(name.into()))
}

fn read_tag(name: &str, record: Option<&[u8]>) -> Result<Tag, ControlError> {
    let record = record.ok_or_else(|| ControlError::NoTag(name.into()))?;
    serde_json::from_slice(record).map_err(|_| ControlError::BadTag(name.into()))
}

/// The store of one etcd.
pub struct Store {
    kv: KvClient,
    prefix: String,
}

impl Store {
    /// Connects; a server that is away shows with the first call.
    pub async fn connect(settings: &EtcdSettings) -> Result<Self, ControlError> {
        Ok(Self::over(&client::connect(settings).await?, settings))
    }

    pub(super) fn over(client: &Client, settings: &EtcdSettings) -> Self {
        Self { kv: client::kv(client), prefix: settings.modules_prefix.clone() }
    }

    /// Stores a module, unless it is there already. `sent` is told of each chunk's bytes.
    pub async fn push(&mut self, bytes: &[u8], mut sent: impl FnMut(usize)) -> Result<Digest, ControlError> {
        if bytes.len() > MODULE_BYTES_MOST {
            return Err(ControlError::TooLarge { bytes: bytes.len(), most: MODULE_BYTES_MOST });
        }
        let digest = Digest::of(bytes);
        let chunks = bytes.len().div_ceil(CHUNK_BYTES);
        let manifest = Manifest { bytes: bytes.len(), chunks, who: who(), when: now() };
        if self.refresh(&digest, &manifest).await? {
            sent(bytes.len());
            return Ok(digest);
        }
        self.put(self.begun_key(&digest), json(&manifest)).await?;
        for (i, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
            self.put(self.chunk_key(&digest, i), chunk.to_vec()).await?;
            sent(chunk.len());
        }
        let ends = [
            TxnOp::put(self.manifest_key(&digest), json(&manifest), None),
            TxnOp::delete(self.begun_key(&digest), None),
        ];
        client::call("write the manifest", self.kv.txn(Txn::new().and_then(ends))).await?;
        Ok(digest)
    }

    /// Makes a blob that is there and whole as young as one that was just pushed, so that no sweep
    /// takes it before it has its tag. Whether there is one.
    async fn refresh(&mut self, digest: &Digest, manifest: &Manifest) -> Result<bool, ControlError> {
        match self.fetch(digest).await {
            Ok(_) => {}
            Err(ControlError::NoBlob(_) | ControlError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        let key = self.manifest_key(digest);
        let there = Compare::version(key.as_str(), CompareOp::Greater, 0);
        let txn = Txn::new().when([there]).and_then([TxnOp::put(key, json(manifest), None)]);
        Ok(client::call("write the manifest", self.kv.txn(txn)).await?.succeeded())
    }

    /// The bytes of a module, checked against its digest.
    pub async fn fetch(&mut self, digest: &Digest) -> Result<Vec<u8>, ControlError> {
        let record = self.get(self.manifest_key(digest)).await?.ok_or(ControlError::NoBlob(*digest))?;
        let manifest: Manifest =
            serde_json::from_slice(record.value()).map_err(|_| ControlError::Damaged(*digest))?;
        let Manifest { bytes: size, chunks, .. } = manifest;
        if size > MODULE_BYTES_MOST || chunks != size.div_ceil(CHUNK_BYTES) {
            return Err(ControlError::Damaged(*digest));
        }
        let mut bytes = Vec::with_capacity(size);
        for i in 0..chunks {
            let chunk = self.get(self.chunk_key(digest, i)).await?.ok_or(ControlError::Damaged(*digest))?;
            bytes.extend_from_slice(chunk.value());
        }
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(ControlError::Damaged(*digest)) }
    }

    /// Stores the signature of a module, in place of an older one.
    pub async fn push_signature(&mut self, digest: &Digest, signature: &str) -> Result<(), ControlError> {
        self.put(self.signature_key(digest), signature.into()).await
    }

    /// The signature of a module, where it has one.
    pub async fn signature(&mut self, digest: &Digest) -> Result<Option<String>, ControlError> {
        let found = self.get(self.signature_key(digest)).await?;
        Ok(found.map(|kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    /// Points tag `name` at `digest`, and writes a list in the same transaction where one is given.
    pub async fn tag(
        &mut self,
        name: &str,
        digest: &Digest,
        from: &str,
        list: Option<ListWrite>,
    ) -> Result<Moved, ControlError> {
        check_tag(name).map_err(ControlError::BadName)?;
        let old = self.get(tag_key(&self.prefix, name)).await?;
        self.swing(name, old, digest, from, list).await
    }

    /// Points tag `name` at the module it pointed at before; says which. A second time undoes the
    /// first.
    pub async fn rollback(&mut self, name: &str) -> Result<(Digest, Moved), ControlError> {
        let old = self.get(tag_key(&self.prefix, name)).await?;
        let digest = digest_before(name, old.as_ref().map(KeyValue::value))?;
        Ok((digest, self.swing(name, old, &digest, "rollback", None).await?))
    }

    /// Moves a tag whose record is still `old`.
    async fn swing(
        &mut self,
        name: &str,
        old: Option<KeyValue>,
        digest: &Digest,
        from: &str,
        list: Option<ListWrite>,
    ) -> Result<Moved, ControlError> {
        let (tag_key, manifest_key) = (tag_key(&self.prefix, name), self.manifest_key(digest));
        let modified = old.as_ref().map_or(0, KeyValue::mod_revision);
        // A record that cannot be read is replaced: moving the tag is how it is mended.
        let old: Option<Tag> = old.and_then(|kv| serde_json::from_slice(kv.value()).ok());
        let before = old.as_ref().and_then(|tag| tag.now.digest.parse().ok());
        let mut history: Vec<_> =
            old.into_iter().flat_map(|tag| [vec![tag.now], tag.history].concat()).collect();
        history.truncate(HISTORY_MOST);
        let now = Move { digest: digest.to_string(), who: who(), when: now(), from: from.into() };

        let mut compares = vec![
            Compare::mod_revision(tag_key.as_str(), CompareOp::Equal, modified),
            Compare::version(manifest_key.as_str(), CompareOp::Greater, 0),
        ];
        let mut puts = vec![TxnOp::put(tag_key, json(&Tag { now, history }), None)];
        let mut what = format!("tag `{name}`");
        if let Some(ListWrite { key, text, modified }) = list {
            what.push_str(&format!(" or {key}"));
            compares.push(Compare::mod_revision(key.as_str(), CompareOp::Equal, modified));
            puts.push(TxnOp::put(by_key(&key), json(&Writer::here()), None));
            puts.push(TxnOp::put(key, text, None));
        }
        let txn = Txn::new().when(compares).and_then(puts);
        let answer = client::call(&format!("write {what}"), self.kv.txn(txn)).await?;
        if !answer.succeeded() {
            self.get(manifest_key).await?.ok_or(ControlError::NoBlob(*digest))?;
            return Err(ControlError::Moved(what));
        }
        let revision = answer.header().ok_or(ControlError::BadAnswer("write"))?.revision();
        Ok(Moved { before, revision })
    }

    /// What a tag or digest stands for.
    pub async fn resolve(&mut self, module: &ModuleRef) -> Result<Digest, ControlError> {
        match module {
            ModuleRef::Digest(digest) => Ok(*digest),
            ModuleRef::Tag(name) => {
                let record = self.get(tag_key(&self.prefix, name)).await?;
                digest_of_tag(name, record.as_ref().map(KeyValue::value))
            }
            ModuleRef::File(_) => Err(ControlError::BadName("a file is not in the store".into())),
        }
    }

    /// All tags and blobs.
    pub async fn contents(&mut self) -> Result<Contents, ControlError> {
        let mut contents = Contents::default();
        let tags = tag_key(&self.prefix, "");
        for kv in self.get_below(&tags, GetOptions::new()).await? {
            let name = String::from_utf8_lossy(kv.key()).strip_prefix(&tags).unwrap_or_default().to_string();
            let Tag { now, history } = read_tag(&name, Some(kv.value()))?;
            contents.tags.push(TagInfo { name, now, history });
        }
        let blobs = format!("{}blobs/", self.prefix);
        for kv in self.get_below(&blobs, GetOptions::new().with_keys_only()).await? {
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            let hex = key.strip_prefix(&blobs).and_then(|rest| rest.strip_suffix("/manifest"));
            let Some(Ok(digest)) = hex.map(|hex| format!("sha256:{hex}").parse::<Digest>()) else { continue };
            let Some(record) = self.get(key).await? else { continue };
            let manifest: Manifest =
                serde_json::from_slice(record.value()).map_err(|_| ControlError::Damaged(digest))?;
            let Manifest { bytes, who, when, .. } = manifest;
            contents.blobs.push(BlobInfo { digest: digest.to_string(), bytes, who, when });
        }
        Ok(contents)
    }

    /// All keys of a blob begin so.
    fn blob_prefix(&self, digest: &Digest) -> String {
        format!("{}blobs/{}/", self.prefix, digest.hex())
    }

    fn signature_key(&self, digest: &Digest) -> String {
        self.blob_prefix(digest) + "minisig"
    }

    fn manifest_key(&self, digest: &Digest) -> String {
        self.blob_prefix(digest) + "manifest"
    }

    fn begun_key(&self, digest: &Digest) -> String {
        self.blob_prefix(digest) + "begun"
    }

    fn chunk_key(&self, digest: &Digest, i: usize) -> String {
        format!("{}{i:05}", self.blob_prefix(digest))
    }

    async fn put(&mut self, key: String, value: Vec<u8>) -> Result<(), ControlError> {
        client::call(&format!("write {key}"), self.kv.put(key, value, None)).await?;
        Ok(())
    }

    async fn get(&mut self, key: String) -> Result<Option<KeyValue>, ControlError> {
        let mut answer = client::call(&format!("read {key}"), self.kv.get(key, None)).await?;
        Ok(answer.take_kvs().into_iter().next())
    }

    async fn get_below(&mut self, prefix: &str, options: GetOptions) -> Result<Vec<KeyValue>, ControlError> {
        let get = self.kv.get(prefix, Some(options.with_prefix()));
        Ok(client::call(&format!("read {prefix}"), get).await?.take_kvs())
    }
}

/// Gets modules for the agent.
#[derive(Clone, Debug)]
pub struct Fetcher {
    store: Option<EtcdSettings>,
}

impl Fetcher {
    /// For the store that belongs to the source of the list.
    pub(super) fn new(source: &ListSource) -> Self {
        let store = match source {
            ListSource::Etcd(settings) => Some(settings.clone()),
            ListSource::File(_) | ListSource::Fixed { .. } => None,
        };
        Self { store }
    }

    /// The bytes of a module, checked against its digest. One try: who asks decides when to ask again.
    pub async fn fetch(&self, digest: &Digest) -> Result<Vec<u8>, ControlError> {
        let settings = self.store.as_ref().ok_or(ControlError::NoStore)?;
        tokio::time::sleep(chance(FETCH_SPREAD)).await;
        Store::connect(settings).await?.fetch(digest).await
    }

    /// The signature of a module, where the store has one.
    pub async fn signature(&self, digest: &Digest) -> Result<Option<String>, ControlError> {
        let settings = self.store.as_ref().ok_or(ControlError::NoStore)?;
        Store::connect(settings).await?.signature(digest).await
    }
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record of text and numbers is JSON")
}

pub(super) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// `user@host`, for people to find one another.
pub(super) fn who() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_it_points_at_or_what_to_do() {
        let digest = Digest::of(b"x");
        let record = format!(r#"{{"digest": "{digest}", "later": 1}}"#);
        assert_eq!(digest_of_tag("t", Some(record.as_bytes())).unwrap(), digest);
        let message = |record: Option<&[u8]>| digest_of_tag("t", record).unwrap_err().to_string();
        assert!(message(None).contains("weir module push WASM --tag t"));
        assert!(message(Some(b"{}")).contains("weir module tag t REF"));
        assert!(message(Some(br#"{"digest": "sha256:1"}"#)).contains("weir module tag t REF"));
    }

    #[test]
    fn before_is_the_last_that_was_another() {
        let [a, b, c] = ["a", "b", "c"].map(|text| Digest::of(text.as_bytes()));
        let before = |past: &[Digest]| {
            let past: Vec<_> = past.iter().map(|digest| format!(r#"{{"digest": "{digest}"}}"#)).collect();
            let record = format!(r#"{{"digest": "{a}", "history": [{}]}}"#, past.join(", "));
            digest_before("t", Some(record.as_bytes())).map_err(|error| error.to_string())
        };
        assert_eq!(before(&[a, b, c]), Ok(b));
        assert!(before(&[a]).unwrap_err().contains("weir module tag t REF"));
        assert!(before(&[]).is_err());
    }

    #[tokio::test]
    async fn a_list_in_a_file_has_no_store() {
        let fetcher = Fetcher::new(&ListSource::File("a.json".into()));
        assert!(matches!(fetcher.fetch(&Digest::of(b"")).await, Err(ControlError::NoStore)));
    }
}
