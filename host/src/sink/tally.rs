//! What the sink counts, and what librdkafka's error codes mean for a record.
//!
//! In: error codes as numbers, as brokers sent them. Out: a [`Verdict`] for the pipeline and
//! [`SinkFigures`] for the metrics. Absent by design: anything that happens for each record that
//! is acknowledged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Refusal, lock, native};

/// What the sink did besides delivering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkFigures {
    /// Producers destroyed and made anew, by cause: `fatal`, `orphans`.
    pub rebuilds: BTreeMap<&'static str, u64>,
    /// The last fatal error, by librdkafka's name.
    pub fatal: Option<Arc<str>>,
    /// What chunks of closed lanes hold. Bytes.
    pub orphan_bytes: u64,
    /// Chunks handed over and not yet back.
    pub chunks_under_way: u64,
    /// Topics with a producer of their own.
    pub own_producers: u64,
    /// Records whose report never came before their producer was destroyed; they were sent again.
    pub missing_reports: u64,
    /// Reports about a chunk that was not under way. Each is a bug.
    pub stale_reports: u64,
    /// Records that failed, by librdkafka's name of the error.
    pub errors: BTreeMap<Arc<str>, u64>,
}

/// What became of a record that was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) why: Refusal,
    pub(super) code: Arc<str>,
}

/// Why the sink itself sends a record back. They stand beside librdkafka's names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bounce {
    /// The producer is being rebuilt.
    Rebuilding,
    /// The sink was stopped.
    Stopped,
    /// A chunk of the lane failed and [`super::Lane::resume`] was not called since.
    LaneClosed,
    /// Chunks of the lane are under way with another producer, which this one could overtake.
    LaneBusy,
    /// More chunks or records than tickets can tell apart.
    TooMany,
    /// The second producer could not be made.
    NoProducer,
    /// The producer was destroyed and had not said what became of the record.
    NoReport,
}

impl Bounce {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rebuilding => "REBUILDING",
            Self::Stopped => "STOPPED",
            Self::LaneClosed => "LANE_CLOSED",
            Self::LaneBusy => "LANE_BUSY",
            Self::TooMany => "TOO_MANY",
            Self::NoProducer => "NO_PRODUCER",
            Self::NoReport => "NO_REPORT",
        }
    }
}

/// The counters of one sink, shared by its producers.
#[derive(Debug, Default)]
pub(super) struct Tally {
    known: Mutex<Known>,
    pub(super) missing_reports: AtomicU64,
    pub(super) stale_reports: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    codes: HashMap<i32, Verdict>,
    errors: BTreeMap<Arc<str>, u64>,
    fatal: Option<Arc<str>>,
    rebuilds: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Sorts one failed record by its error code, and counts it.
    pub(super) fn verdict(&self, code: i32) -> Verdict {
        let mut known = lock(&self.known);
        let verdict = known
            .codes
            .entry(code)
            .or_insert_with(|| Verdict { why: refusal(code), code: native::error_name(code).into() })
            .clone();
        *known.errors.entry(verdict.code.clone()).or_default() += 1;
        verdict
    }

    /// Counts `records` that the sink itself sends back.
    pub(super) fn bounce(&self, bounce: Bounce, records: usize) -> Verdict {
        let code: Arc<str> = bounce.name().into();
        *lock(&self.known).errors.entry(code.clone()).or_default() += records as u64;
        Verdict { why: Refusal::Again, code }
    }

    /// A producer was made anew; `cause` as in [`SinkFigures::rebuilds`].
    pub(super) fn rebuilt(&self, cause: &'static str) {
        *lock(&self.known).rebuilds.entry(cause).or_default() += 1;
    }

    /// Remembers a fatal error for the figures.
    pub(super) fn fatal(&self, code: &str) {
        lock(&self.known).fatal = Some(code.into());
    }

    /// The counters; what lives in the producers is left for the caller to add.
    pub(super) fn figures(&self) -> SinkFigures {
        let known = lock(&self.known);
        SinkFigures {
            rebuilds: known.rebuilds.clone(),
            fatal: known.fatal.clone(),
            missing_reports: self.missing_reports.load(Ordering::Relaxed),
            stale_reports: self.stale_reports.load(Ordering::Relaxed),
            errors: known.errors.clone(),
            ..SinkFigures::default()
        }
    }
}

/// What an error says about a record. Whatever is not named goes by itself or with a new producer.
fn refusal(code: i32) -> Refusal {
    use rdkafka::types::RDKafkaRespErr as E;
    match E::try_from(code) {
        Ok(
            E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
            | E::RD_KAFKA_RESP_ERR_INVALID_RECORD
            | E::RD_KAFKA_RESP_ERR_INVALID_MSG
            | E::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE
            | E::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP
            | E::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
        ) => Refusal::Record,
        Ok(
            E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | E::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | E::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | E::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
            | E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | E::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
            | E::RD_KAFKA_RESP_ERR_POLICY_VIOLATION
            | E::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS
            | E::RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT
            | E::RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
        ) => Refusal::Topic,
        _ => Refusal::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_code_newer_than_librdkafka_is_tried_again_under_its_number() {
        let tally = Tally::default();
        let verdict = tally.verdict(31_000);
        assert_eq!((verdict.why, &*verdict.code), (Refusal::Again, "ERR_31000"));
        assert_eq!(tally.figures().errors[&verdict.code], 1);
    }

    #[test]
    fn innocent_neighbours_of_an_invalid_record_are_tried_again() {
        let tally = Tally::default();
        assert_eq!(tally.verdict(87).why, Refusal::Record);
        let neighbour = tally.verdict(-138);
        assert_eq!((neighbour.why, &*neighbour.code), (Refusal::Again, "_INVALID_DIFFERENT_RECORD"));
    }
}
