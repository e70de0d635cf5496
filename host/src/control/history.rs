//! The list over time: what stood under its key before, and what comes next.
//!
//! In: one list. Out: its editions, as far back as etcd remembers; the next one, as it is written. Absent
//! by design: what an edition means. etcd keeps every revision until it is compacted; it keeps neither who
//! wrote it nor when, so that is known of those that `weir` wrote (see [`Writer`]).

use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::client;
use super::error::ControlError;
use super::lists::{Lists, Place, Version, Writer, by_key};

/// After so much silence there is nothing more to read of a key that is gone: of one that stands, the last
/// revision is known.
const QUIET: Duration = Duration::from_secs(1);
/// A watch that is silent for so long is not trusted without a look.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two looks at a file.
const FILE_LOOK_EVERY: Duration = Duration::from_millis(300);

/// What stood there from one revision on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Edition {
    /// The revision that wrote it; 0 for files.
    pub revision: i64,
    /// Who wrote it and when, where that is known.
    #[serde(flatten)]
    pub writer: Writer,
    /// `None` where the key was deleted.
    #[serde(skip)]
    pub text: Option<Vec<u8>>,
}

/// All that etcd remembers, or the newest of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Oldest first.
    pub editions: VecDeque<Edition>,
    /// What was before this revision is compacted away; 0 where nothing is.
    pub compacted: i64,
    /// Whether the first edition is the first that ever was, as far as can be told.
    pub whole: bool,
}

impl Lists {
    /// The newest `most` editions.
    pub async fn history(&mut self, most: usize) -> Result<History, ControlError> {
        let newest = self.read().await?.modified;
        let (client, key) = self.key()?;
        let mut history = History { whole: true, ..History::default() };
        loop {
            history.begin(client, key).await?;
            if history.collect(client, key, newest, most).await? {
                break;
            }
        }
        while history.editions.len() > most {
            history.editions.pop_front();
            history.whole = false;
        }
        for edition in &mut history.editions {
            edition.writer = writer(client, key, edition.revision).await?;
        }
        Ok(history)
    }

    fn key(&self) -> Result<(&Client, &str), ControlError> {
        match &self.0 {
            Place::Key { client, key } => Ok((&**client, key.as_str())),
            Place::File(path) => Err(ControlError::NoRevisions(path.clone())),
        }
    }

    /// Follows what is written after `now`.
    pub fn follow(self, now: &Version) -> Follow {
        let last = Edition { revision: now.modified, text: now.text.clone(), ..Edition::default() };
        Follow { list: self, last, stream: None, next: VecDeque::new() }
    }
}

impl History {
    /// Where history was compacted, begins with what stood at that revision.
    async fn begin(&mut self, client: &Client, key: &str) -> Result<(), ControlError> {
        self.editions.clear();
        if self.compacted == 0 {
            return Ok(());
        }
        self.whole = false;
        let options = GetOptions::new().with_revision(self.compacted);
        let get = async { client::kv(client).get(key, Some(options)).await };
        let answer = client::call(&format!("read {key}"), get).await?;
        self.editions.extend(answer.kvs().first().map(|kv| Edition {
            revision: kv.mod_revision(),
            text: Some(kv.value().into()),
            ..Edition::default()
        }));
        Ok(())
    }

    /// Reads the events of the key up to `newest`. `false`: history is shorter than was thought; begin again.
    async fn collect(
        &mut self,
        client: &Client,
        key: &str,
        newest: i64,
        most: usize,
    ) -> Result<bool, ControlError> {
        let reached = |editions: &VecDeque<Edition>| {
            newest > 0 && editions.back().is_some_and(|edition| edition.revision >= newest)
        };
        let mut stream = watch(client, key, self.compacted.max(1)).await?;
        while !reached(&self.editions) {
            let message = match timeout(QUIET, stream.message()).await {
                Err(_) if newest == 0 => break,
                Err(_) => return Err(ControlError::WatchEnded("no more history comes".into())),
                Ok(message) => message.map_err(|error| ControlError::etcd("read history", error))?,
            };
            let message = message.ok_or_else(|| ControlError::WatchEnded("etcd closed it".into()))?;
            if message.compact_revision() > self.compacted {
                self.compacted = message.compact_revision();
                return Ok(false);
            }
            check(&message)?;
            self.editions.extend(editions(&message).filter(|edition| edition.revision > self.compacted));
            // One more than is wanted, to compare the oldest with.
            while self.editions.len() > most + 1 {
                self.editions.pop_front();
            }
        }
        Ok(true)
    }
}

/// What comes next under a key, or in a file.
pub struct Follow {
    list: Lists,
    last: Edition,
    stream: Option<WatchStream>,
    next: VecDeque<Edition>,
}

impl Follow {
    /// The next edition. After an error it can be asked again; nothing that etcd remembers is missed.
    pub async fn next(&mut self) -> Result<Edition, ControlError> {
        let next = match &self.list.0 {
            Place::Key { .. } => self.next_of_key().await,
            Place::File(_) => self.next_of_file().await,
        };
        match next {
            Ok(edition) => self.last = edition,
            Err(error) => {
                self.stream = None;
                return Err(error);
            }
        }
        Ok(self.last.clone())
    }

    async fn next_of_file(&mut self) -> Result<Edition, ControlError> {
        loop {
            sleep(FILE_LOOK_EVERY).await;
            let Version { text, .. } = self.list.read().await?;
            if text != self.last.text {
                return Ok(Edition { text, ..Edition::default() });
            }
        }
    }

    async fn next_of_key(&mut self) -> Result<Edition, ControlError> {
        loop {
            let (client, key) = self.list.key()?;
            if let Some(mut edition) = self.next.pop_front() {
                edition.writer = writer(client, key, edition.revision).await?;
                return Ok(edition);
            }
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(watch(client, key, self.last.revision + 1).await?),
            };
            let Ok(message) = timeout(LOOK_EVERY, stream.message()).await else {
                // The library does not notice that a server is gone.
                if self.list.read().await?.modified > self.last.revision {
                    return Err(ControlError::WatchEnded("it missed a change".into()));
                }
                continue;
            };
            let message = message.map_err(|error| ControlError::etcd("watch the list", error))?;
            let message = message.ok_or_else(|| ControlError::WatchEnded("etcd closed it".into()))?;
            if message.compact_revision() > 0 {
                self.stream = None;
                let Version { text, modified } = self.list.read().await?;
                // What was between is forgotten; a key that is gone has no revision to go on from.
                let revision = modified.max(message.compact_revision());
                self.next.push_back(Edition { revision, text, ..Edition::default() });
                continue;
            }
            check(&message)?;
            self.next.extend(editions(&message));
        }
    }
}

async fn watch(client: &Client, key: &str, from: i64) -> Result<WatchStream, ControlError> {
    let options = WatchOptions::new().with_start_revision(from).with_fragment();
    let mut watcher = client::watcher(client);
    client::call(&format!("watch {key}"), watcher.watch(key, Some(options))).await
}

fn check(message: &WatchResponse) -> Result<(), ControlError> {
    if message.canceled() {
        return Err(ControlError::WatchEnded(format!("etcd cancelled it: {}", message.cancel_reason())));
    }
    Ok(())
}

fn editions(message: &WatchResponse) -> impl Iterator<Item = Edition> {
    message.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        let text = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
        Some(Edition { revision: kv.mod_revision(), text, ..Edition::default() })
    })
}

/// Who wrote what stands at this revision; nobody known where another program did, or may not be asked.
async fn writer(client: &Client, key: &str, revision: i64) -> Result<Writer, ControlError> {
    let by = by_key(key);
    let options = GetOptions::new().with_revision(revision);
    let get = async { client::kv(client).get(by.as_str(), Some(options)).await };
    let answer = match client::call(&format!("read {by}"), get).await {
        Err(ControlError::Etcd { .. }) => return Ok(Writer::default()),
        answer => answer?,
    };
    let written = answer.kvs().first().filter(|kv| kv.mod_revision() == revision);
    Ok(written.and_then(|kv| serde_json::from_slice(kv.value()).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Etcd, settings_of};
    use super::*;

    const KEY: &str = "/weir/web1/collect";

    async fn lists(etcd: &Etcd) -> Lists {
        Lists::in_etcd(&settings_of(etcd), KEY).await.unwrap()
    }

    async fn write(lists: &mut Lists, text: &str) -> i64 {
        let old = lists.read().await.unwrap();
        lists.write(&old, text.as_bytes()).await.unwrap()
    }

    async fn client(etcd: &Etcd) -> Client {
        client::connect(&settings_of(etcd)).await.unwrap()
    }

    fn texts(history: &History) -> Vec<&str> {
        let texts = history.editions.iter().map(|edition| edition.text.as_deref());
        texts.map(|text| text.map_or("gone", |text| std::str::from_utf8(text).unwrap())).collect()
    }

    #[tokio::test]
    async fn every_edition_is_remembered_with_its_writer_until_it_is_compacted() {
        let etcd = Etcd::start();
        let mut lists = lists(&etcd).await;
        assert_eq!(lists.history(9).await.unwrap(), History { whole: true, ..History::default() });
        write(&mut lists, "[1]").await;
        let second = write(&mut lists, "[2]").await;
        let kv = client(&etcd).await.kv_client();
        kv.clone().delete(KEY, None).await.unwrap();
        assert_eq!(texts(&lists.history(9).await.unwrap()), ["[1]", "[2]", "gone"], "a key that is gone");
        kv.clone().put(KEY, "[3]", None).await.unwrap();
        let last = write(&mut lists, "[4]").await;

        let history = lists.history(9).await.unwrap();
        assert_eq!(texts(&history), ["[1]", "[2]", "gone", "[3]", "[4]"]);
        assert_eq!((history.editions[4].revision, history.whole), (last, true));
        let known: Vec<_> = history.editions.iter().map(|edition| edition.writer.who.contains('@')).collect();
        assert_eq!(known, [true, true, false, false, true], "others say nothing of themselves");
        let newest = lists.history(2).await.unwrap();
        assert_eq!((texts(&newest), newest.whole), (vec!["[3]", "[4]"], false));

        kv.clone().compact(second + 1, None).await.unwrap();
        let left = lists.history(9).await.unwrap();
        assert_eq!((texts(&left), left.compacted, left.whole), (vec!["[3]", "[4]"], second + 1, false));
        kv.clone().compact(last, None).await.unwrap();
        assert_eq!(texts(&lists.history(9).await.unwrap()), ["[4]"], "what stands is never forgotten");
    }

    #[tokio::test]
    async fn what_is_written_next_is_followed_one_by_one() {
        let etcd = Etcd::start();
        let mut lists = lists(&etcd).await;
        write(&mut lists, "[1]").await;
        let now = lists.read().await.unwrap();
        let mut follow = lists.follow(&now);
        let mut lists = self::lists(&etcd).await;
        write(&mut lists, "[2]").await;
        write(&mut lists, "[3]").await;
        client(&etcd).await.kv_client().delete(KEY, None).await.unwrap();
        for expected in [Some(b"[2]".to_vec()), Some(b"[3]".to_vec()), None] {
            let edition = timeout(Duration::from_secs(20), follow.next()).await.unwrap().unwrap();
            assert_eq!(
                (edition.text.clone(), edition.writer.who.contains('@')),
                (expected.clone(), expected.is_some())
            );
        }
    }

    #[tokio::test]
    async fn a_file_is_followed_and_has_no_history() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("collect.json");
        std::fs::write(&path, "[1]").unwrap();
        let mut lists = Lists::in_file(&path);
        assert!(matches!(lists.history(9).await, Err(ControlError::NoRevisions(_))));
        let mut follow = {
            let now = lists.read().await.unwrap();
            lists.follow(&now)
        };
        std::fs::write(&path, "[2]").unwrap();
        let edition = timeout(Duration::from_secs(20), follow.next()).await.unwrap().unwrap();
        assert_eq!(edition.text, Some(b"[2]".to_vec()));
    }
}
