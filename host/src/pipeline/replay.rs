//! Lines that come back from quarantine, through the filter and to the topic of their entry as these
//! are now.
//!
//! A replayed line travels beside the order of the files: in a chunk and on a lane of its own, in a
//! batch of its own, so that what the broker says is about it alone and stops nothing else. It leaves
//! the quarantine when Kafka has acknowledged it, or when the filter drops it; whatever else happens,
//! it stays there. In the sums it is `quarantined` and stays so: it was read once.

use std::path::Path;

use super::filtering::{cost, dead_letters_of};
use super::sorting::{Sorted, refusal, sort};
use super::{LONG_LINE_RECORDS, Pipeline, dead_letters};
use crate::model::Topic;
use crate::quarantine::{Item, Quarantine, Replay, Replayed};
use crate::sink::{Chunk, Finished, Lane, Pick};
use crate::source::lines::Lines;

/// Lines of one entry that are under way again at a time.
const UNDER_WAY_MAX: usize = 256;

/// A line that waits for its acknowledgement.
pub(super) struct UnderWay {
    replay: Replay,
    /// Kept until then: a lane that is gone leaves orphans.
    _lane: Box<dyn Lane>,
}

impl Pipeline {
    /// Sends a line again, or says why not.
    pub(super) fn replay(&mut self, replay: Replay) {
        match self.prepare_replay(&replay.item) {
            Ok(Some((chunk, topic))) => self.send_replay(replay, chunk, &topic),
            Ok(None) => self.settle(replay, Replayed::Dropped),
            Err(cause) => (replay.answer)(Replayed::Kept(cause)),
        }
    }

    /// What to send and where; nothing where the filter drops the line now.
    fn prepare_replay(&mut self, item: &Item) -> Result<Option<(Chunk, Topic)>, String> {
        let is_under_way = |other: &UnderWay| other.replay.item.id == item.id;
        if self.replays.values().any(is_under_way) {
            return Err("it is under way already".into());
        }
        if self.replays.len() >= UNDER_WAY_MAX {
            return Err(format!("{UNDER_WAY_MAX} lines of its entry are under way already; try again later"));
        }
        if self.stop.is_some() {
            return Err("its entry is being stopped".into());
        }
        if self.entry.filter.is_some() && self.filter.is_none() {
            return Err("its entry waits for its filter".into());
        }
        let cost = item.bytes * 2 + LONG_LINE_RECORDS * self.record_bytes;
        let charge = self.share.take(cost).ok_or("no memory is free for it; try again later")?;
        let line = self.quarantine()?.read(item.id).map_err(|error| error.to_string())?;
        let read = line.ok_or("it is not in quarantine any more")?;
        self.filter_replay(item, Chunk { read, charge: Some(charge), ..Chunk::default() })
    }

    fn filter_replay(&mut self, item: &Item, mut chunk: Chunk) -> Result<Option<(Chunk, Topic)>, String> {
        let used = chunk.read.len();
        let lines = Lines { starts: vec![0], ends: vec![used as u32], used, ..Lines::default() };
        let outcome = self.filter(Path::new(&item.path), item.offset, &chunk, &lines);
        self.count(outcome.as_ref());
        let on_error = self.entry.filter.as_ref().map(|filter| filter.on_error.clone()).unwrap_or_default();
        let Sorted { records, dead, aside, held, .. } = sort(&lines, outcome.as_ref(), &on_error);
        if !aside.is_empty() || held.is_some() {
            let said =
                refusal(outcome.as_ref(), 0).map(|said| format!("{}, {}", said.kind.as_str(), said.message));
            return Err(format!("the filter refuses it: {}", said.unwrap_or_default()));
        }
        if let (false, Some(topic)) = (dead.is_empty(), dead_letters(&self.entry)) {
            let (copy, _) = dead_letters_of(&chunk, &lines, &dead, self.record_bytes);
            return Ok(Some((copy, topic.clone())));
        }
        chunk.records = records;
        chunk.written = outcome.map(|outcome| outcome.bytes).unwrap_or_default();
        let cost = cost(&chunk, self.record_bytes);
        if let Some(charge) = &mut chunk.charge {
            charge.settle(cost);
        }
        Ok((!chunk.records.is_empty()).then(|| (chunk, self.entry.topic.clone())))
    }

    fn send_replay(&mut self, replay: Replay, mut chunk: Chunk, topic: &Topic) {
        chunk.id = self.new_id();
        chunk.offsets = vec![replay.item.offset; chunk.records.len()];
        let mut route = self.route(Path::new(&replay.item.path));
        route.alone = true;
        if self.partitions.count.is_none() || *topic != self.entry.topic {
            route.partition = Pick::Partitioner;
        }
        let mut lane = self.sink.open(topic, self.done.clone());
        let id = chunk.id;
        lane.send(chunk, None, &route);
        self.replays.insert(id, UnderWay { replay, _lane: lane });
    }

    /// A replayed line came back.
    pub(super) fn replayed(&mut self, under_way: UnderWay, finished: &Finished) {
        match finished.failed.first() {
            None => self.settle(under_way.replay, Replayed::Delivered),
            Some(failed) => {
                let cause = format!("Kafka does not take it: {}", failed.code);
                (under_way.replay.answer)(Replayed::Kept(cause));
            }
        }
    }

    /// It need not be kept any longer.
    fn settle(&mut self, replay: Replay, how: Replayed) {
        let removed = self
            .quarantine()
            .and_then(|quarantine| quarantine.remove(&[replay.item.id]).map_err(|error| error.to_string()));
        let how = match removed {
            Ok(_) => {
                self.figures.replayed += 1;
                how
            }
            Err(cause) => Replayed::Kept(format!("it was sent, but cannot be removed: {cause}")),
        };
        (replay.answer)(how);
    }

    fn quarantine(&self) -> Result<&Quarantine, String> {
        self.quarantine.as_deref().ok_or_else(|| "this agent has no quarantine".into())
    }
}
