//! One watch on etcd, and every reason not to trust it.
//!
//! In: the keys, and what was read of them. Out: "something changed", or an error that means: read
//! again and watch anew. What the events hold is not used: after a change everything is read at one
//! revision, so an event lost, doubled or out of order does no harm. Absent by design: reading.
//!
//! The client library neither reconnects nor notices a dead server, and a watch on a compacted
//! revision is confirmed first, then cancelled, and stays open and silent.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{Client, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, sleep_until};

use super::client;
use super::error::ControlError;

/// What was read, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) cluster: u64,
    pub(super) revision: i64,
}

/// A watch on some keys since a reading.
pub(super) struct Watch {
    stream: WatchStream,
    watched: BTreeSet<String>,
    trust: Trust,
    patience: Patience,
    /// When etcd was last heard, or asked.
    since: Instant,
    asked: bool,
}

/// How long silence is borne.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// After so much silence etcd is asked for a sign of life.
    pub(super) ask_after: Duration,
    /// Without an answer in this time the watch is over.
    pub(super) answer: Duration,
}

impl Watch {
    /// Watches `keys` for what comes after `read`.
    pub(super) async fn open(
        client: &Client,
        keys: &BTreeSet<String>,
        read: Mark,
        patience: Patience,
    ) -> Result<Self, ControlError> {
        let mut keys = keys.iter();
        let first = keys.next().ok_or(ControlError::BadAnswer("a watch without keys"))?.clone();
        let mut watcher = client::watcher(client);
        let opened = watcher.watch(first.as_str(), Some(options(read)));
        let stream = client::call(&format!("watch {first}"), opened).await?;
        let trust = Trust { unconfirmed: 1, highest: 0, read };
        let watched = BTreeSet::from([first]);
        let mut watch = Self { stream, watched, trust, patience, since: Instant::now(), asked: false };
        for key in keys {
            watch.add(key).await?;
        }
        Ok(watch)
    }

    /// Everything was read again; `keys` are those that matter now. Ones that matter no more stay
    /// watched until the next watch: they cost an idle reading.
    pub(super) async fn was_read(&mut self, keys: &BTreeSet<String>, read: Mark) -> Result<(), ControlError> {
        self.trust.read = read;
        // An answer that is under way may be of before this reading.
        self.asked = false;
        for key in keys {
            if !self.watched.contains(key) {
                self.add(key).await?;
            }
        }
        Ok(())
    }

    async fn add(&mut self, key: &str) -> Result<(), ControlError> {
        let operation = format!("watch {key}");
        client::call(&operation, self.stream.watch(key, Some(options(self.trust.read)))).await?;
        self.watched.insert(key.into());
        self.trust.unconfirmed += 1;
        self.since = Instant::now();
        Ok(())
    }

    /// Returns when a key changed, or at `deadline`.
    pub(super) async fn changed(&mut self, deadline: Instant) -> Result<(), ControlError> {
        loop {
            let waiting = self.asked || self.trust.unconfirmed > 0;
            let limit = if waiting { self.patience.answer } else { self.patience.ask_after };
            tokio::select! {
                message = self.stream.message() => {
                    let asked = std::mem::take(&mut self.asked);
                    self.since = Instant::now();
                    let message = message.map_err(|error| ControlError::etcd("watch the list", error))?;
                    let message = message.ok_or_else(|| ControlError::WatchEnded("etcd closed it".into()))?;
                    let verdict = self.trust.judge(&Said::of(&message, asked)).map_err(ControlError::WatchEnded)?;
                    if verdict == Verdict::Changed {
                        return Ok(());
                    }
                }
                () = sleep_until(self.since + limit) => {
                    if waiting {
                        return Err(ControlError::WatchEnded(format!("no sign of life within {limit:?}")));
                    }
                    client::call("ask for progress", self.stream.request_progress()).await?;
                    (self.since, self.asked) = (Instant::now(), true);
                }
                () = sleep_until(deadline) => return Ok(()),
            }
        }
    }
}

fn options(read: Mark) -> WatchOptions {
    WatchOptions::new().with_start_revision(read.revision + 1).with_progress_notify().with_fragment()
}

/// What a message of the watch says, as far as it matters.
#[derive(Clone, Debug, Default)]
struct Said {
    cluster: u64,
    revision: i64,
    canceled: bool,
    compacted: i64,
    reason: String,
    created: bool,
    events: usize,
    /// It answers the question for a sign of life, which was asked after the reading.
    asked: bool,
}

impl Said {
    fn of(message: &WatchResponse, asked: bool) -> Self {
        let header = message.header();
        Self {
            cluster: header.map_or(0, |header| header.cluster_id()),
            revision: header.map_or(0, |header| header.revision()),
            canceled: message.canceled(),
            compacted: message.compact_revision(),
            reason: message.cancel_reason().into(),
            created: message.created(),
            events: message.events().len(),
            asked,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Changed,
}

/// What a message must fit to.
#[derive(Debug)]
struct Trust {
    /// Keys whose watch etcd has not confirmed yet.
    unconfirmed: usize,
    /// The highest revision heard on this stream.
    highest: i64,
    read: Mark,
}

impl Trust {
    /// What a message means, or why to begin again. `canceled` comes first: such a message may say
    /// `created` as well, and has no revision.
    fn judge(&mut self, said: &Said) -> Result<Verdict, String> {
        if said.compacted > 0 {
            return Err(format!("history before revision {} is gone", said.compacted));
        }
        if said.canceled {
            return Err(format!("etcd cancelled it: {}", said.reason));
        }
        if said.cluster != self.read.cluster {
            return Err(format!("cluster {:x} answers instead of {:x}", said.cluster, self.read.cluster));
        }
        if said.revision < self.highest {
            return Err(format!("the revision went back from {} to {}", self.highest, said.revision));
        }
        self.highest = said.revision;
        if said.created {
            // A member may lag when the watch begins; it will catch up to the reading.
            self.unconfirmed = self.unconfirmed.saturating_sub(1);
            return Ok(Verdict::Nothing);
        }
        if said.asked && said.revision < self.read.revision {
            return Err(format!(
                "revision {} was read, and etcd is at {}",
                self.read.revision, said.revision
            ));
        }
        let news = said.events > 0 && said.revision > self.read.revision;
        Ok(if news { Verdict::Changed } else { Verdict::Nothing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust() -> Trust {
        Trust { unconfirmed: 2, highest: 0, read: Mark { cluster: 1, revision: 10 } }
    }

    fn said(revision: i64) -> Said {
        Said { cluster: 1, revision, ..Said::default() }
    }

    #[test]
    fn an_event_after_the_reading_is_a_change() {
        assert_eq!(trust().judge(&Said { events: 1, ..said(11) }), Ok(Verdict::Changed));
    }

    #[test]
    fn an_event_that_the_reading_has_seen_is_none() {
        assert_eq!(trust().judge(&Said { events: 1, ..said(10) }), Ok(Verdict::Nothing));
    }

    #[test]
    fn a_confirmation_may_come_from_a_member_that_lags() {
        let mut trust = trust();
        assert_eq!(trust.judge(&Said { created: true, ..said(8) }), Ok(Verdict::Nothing));
        assert_eq!((trust.unconfirmed, trust.highest), (1, 8));
    }

    #[test]
    fn a_cancelled_watch_is_over_even_if_it_says_created() {
        let cancelled =
            Said { created: true, canceled: true, reason: "invalid auth token".into(), ..said(0) };
        assert_eq!(trust().judge(&cancelled), Err("etcd cancelled it: invalid auth token".into()));
        let compacted = Said { canceled: true, compacted: 12, cluster: 1, ..Said::default() };
        assert_eq!(trust().judge(&compacted), Err("history before revision 12 is gone".into()));
    }

    #[test]
    fn a_revision_that_goes_back_is_not_trusted() {
        let mut trust = trust();
        trust.judge(&said(20)).unwrap();
        assert!(trust.judge(&said(19)).is_err());
    }

    #[test]
    fn a_sign_of_life_from_before_the_reading_is_not_trusted() {
        assert!(trust().judge(&Said { asked: true, ..said(9) }).is_err());
        assert_eq!(trust().judge(&said(9)), Ok(Verdict::Nothing), "one that nobody asked for may be old");
    }

    #[test]
    fn another_cluster_is_not_trusted() {
        assert!(trust().judge(&Said { cluster: 2, ..said(11) }).is_err());
    }
}
