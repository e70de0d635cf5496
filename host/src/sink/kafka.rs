//! Produces chunks to Kafka, and survives whatever the cluster answers.
//!
//! In: `[kafka]` settings, then chunks on lanes. Out: chunks, acknowledged or with the records
//! that failed and why. Which producer a lane uses is decided here: the main one; one that sends
//! each record in a batch of its own, so that the cluster's answer is about that record and no
//! other; or, for a topic that keeps breaking the main one, one of its own.
//!
//! Absent by design: sending again, back-off, quarantine; which properties a user may set.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::flights::{Home, Landed};
use super::gates::Parcel;
use super::native::{Batch, Fatal, Mock};
use super::producer::{Plan, Producer, Stopped};
use super::tally::{Bounce, SinkFigures, Tally};
use super::{Chunk, Done, Lane, Route, Sink, SinkError, lock};
use crate::config::KafkaSettings;
use crate::model::Topic;

/// The value of `brokers` that means librdkafka's in-process cluster.
const MOCK: &str = "mock";
/// How long a question for partitions may take.
const METADATA_WAIT: Duration = Duration::from_secs(1);
/// Fatal errors of a topic within [`BLAME_WINDOW`] that give it a producer of its own.
const BLAME_MAX: usize = 3;
/// Fatal errors longer ago are forgiven.
const BLAME_WINDOW: Duration = Duration::from_secs(10 * 60);
/// How long a sink that was not stopped before waits when it is dropped.
const DROP_WAIT: Duration = Duration::from_secs(1);
/// What part of the memory for chunks may lie with lanes that are gone.
const ORPHAN_PART: u64 = 4;

/// What every producer begins with; a user's properties come after and win.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "weir"),
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // Nothing is dropped for being late.
    ("message.timeout.ms", "0"),
    // The budget of chunks is the limit; a second one here could only refuse what was paid for.
    ("queue.buffering.max.messages", "0"),
    ("queue.buffering.max.kbytes", "2147483647"),
    // A misspelt topic is to be seen, not created.
    ("allow.auto.create.topics", "false"),
    // While a chunk is handed over none of it is to be sent, and chunks of quiet files are gathered. With none
    // at all the first record of each would be a request of its own.
    ("linger.ms", "1"),
    // Logs shrink to a fraction, for CPU that was within the noise of sending them as they are.
    ("compression.type", "lz4"),
    ("socket.keepalive.enable", "true"),
    // Nobody asked for figures of this host at the brokers; and destroying waits for a last push.
    ("enable.metrics.push", "false"),
];

/// The Kafka sink of an agent.
pub struct KafkaSink {
    inner: Arc<Inner>,
}

struct Inner {
    bootstrap_servers: String,
    properties: Vec<(String, String)>,
    orphan_bytes_max: u64,
    tally: Arc<Tally>,
    main: Arc<Producer>,
    alone: Mutex<Option<Arc<Producer>>>,
    blamed: Arc<Blamed>,
    /// Set by a stop, under the locks of `alone` and `blamed`: no producer is made after it.
    stopped: AtomicBool,
    // Last, so that the producers are gone before the cluster is.
    _mock: Option<Mock>,
}

/// The topics that broke the main producer.
#[derive(Default)]
struct Blamed {
    topics: Mutex<HashMap<Topic, Blame>>,
    /// Whether any topic is to have its own producer; spares a lock where there is none.
    any: AtomicBool,
}

#[derive(Default)]
struct Blame {
    when: Vec<Instant>,
    /// From the third time on; the producer is made with the first chunk.
    own: bool,
    producer: Option<Arc<Producer>>,
}

impl KafkaSink {
    /// Makes the main producer. Does not wait for the cluster, which may be away. `memory` is what
    /// all chunks together may take; bytes.
    pub fn start(settings: &KafkaSettings, memory: u64) -> Result<Arc<Self>, SinkError> {
        let mock = if settings.brokers == MOCK { Some(Mock::start()?) } else { None };
        let bootstrap_servers = match &mock {
            Some(mock) => mock.bootstrap_servers(),
            None => settings.brokers.clone(),
        };
        let mut properties = vec![("bootstrap.servers".into(), bootstrap_servers.clone())];
        properties.extend(DEFAULTS.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        if mock.is_some() {
            properties.push(("allow.auto.create.topics".into(), "true".into()));
        }
        properties.extend(settings.properties.iter().map(|(key, value)| (key.clone(), value.clone())));
        let (tally, blamed) = (Arc::new(Tally::default()), Arc::new(Blamed::default()));
        let orphan_bytes_max = memory / ORPHAN_PART;
        let main = Producer::start(Plan {
            properties: properties.clone(),
            orphan_bytes_max,
            tally: tally.clone(),
            on_fatal: Box::new({
                let blamed = blamed.clone();
                move |fatal| blamed.note(fatal)
            }),
        })?;
        let inner = Inner {
            bootstrap_servers,
            properties,
            orphan_bytes_max,
            tally,
            main,
            alone: Mutex::default(),
            blamed,
            stopped: AtomicBool::new(false),
            _mock: mock,
        };
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// Where the cluster is; with `brokers = "mock"` the in-process one, for a consumer.
    pub fn bootstrap_servers(&self) -> &str {
        &self.inner.bootstrap_servers
    }

    /// What it did besides delivering.
    pub fn stats(&self) -> SinkFigures {
        self.inner.figures()
    }

    /// How often a producer was made anew, by cause.
    pub fn rebuilds(&self) -> BTreeMap<&'static str, u64> {
        self.inner.tally.figures().rebuilds
    }

    /// Raises a fatal error of the main producer. False when there is none just now.
    #[cfg(test)]
    pub(super) fn fail(&self, reason: &str) -> bool {
        self.inner.main.with(|native| native.fail(reason)).is_some()
    }

    /// Waits for what is under way until `deadline`, then ends all producers. What was not
    /// acknowledged comes back failed, and what is sent later too.
    pub fn stop(&self, deadline: Instant) -> Stopped {
        self.inner.stop(deadline)
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.inner.stop(Instant::now() + DROP_WAIT);
    }
}

impl Sink for KafkaSink {
    fn open(&self, topic: &Topic, done: Done) -> Box<dyn Lane> {
        Box::new(KafkaLane {
            sink: self.inner.clone(),
            topic: topic.clone(),
            home: Home::new(done),
            last: self.inner.main.clone(),
            batch: Batch::default(),
        })
    }
}

impl Inner {
    /// The producer for a topic's records. Asked anew for each chunk.
    fn producer(&self, topic: &Topic, alone: bool) -> Result<Arc<Producer>, SinkError> {
        if alone {
            return self.make(&mut lock(&self.alone), &[("batch.num.messages", "1")]);
        }
        if self.blamed.any.load(Ordering::Acquire)
            && let Some(blame) = lock(&self.blamed.topics).get_mut(topic)
            && blame.own
        {
            return self.make(&mut blame.producer, &[]);
        }
        Ok(self.main.clone())
    }

    fn make(
        &self,
        place: &mut Option<Arc<Producer>>,
        more: &[(&str, &str)],
    ) -> Result<Arc<Producer>, SinkError> {
        if let Some(producer) = place {
            return Ok(producer.clone());
        }
        if self.stopped.load(Ordering::Acquire) {
            return Err(SinkError::Create { cause: "the sink was stopped".into() });
        }
        let mut properties = self.properties.clone();
        properties.extend(more.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        let producer = Producer::start(Plan {
            properties,
            orphan_bytes_max: self.orphan_bytes_max,
            tally: self.tally.clone(),
            on_fatal: Box::new(|_| ()),
        })?;
        Ok(place.insert(producer).clone())
    }

    /// All producers there are.
    fn producers(&self) -> Vec<Arc<Producer>> {
        let mut all = vec![self.main.clone()];
        all.extend(lock(&self.alone).clone());
        all.extend(lock(&self.blamed.topics).values().filter_map(|blame| blame.producer.clone()));
        all
    }

    fn figures(&self) -> SinkFigures {
        let mut figures = self.tally.figures();
        for producer in self.producers() {
            producer.with(|native| {
                figures.orphan_bytes += native.flights().orphan_bytes();
            });
            figures.chunks_under_way += producer.under_way().chunks;
        }
        figures.own_producers = lock(&self.blamed.topics).values().filter(|blame| blame.own).count() as u64;
        figures
    }

    fn stop(&self, deadline: Instant) -> Stopped {
        self.stopped.store(true, Ordering::Release);
        let producers = self.producers();
        producers.iter().for_each(|producer| producer.stop(deadline));
        producers.iter().map(|producer| producer.stopped(deadline)).fold(Stopped::default(), Stopped::and)
    }
}

impl Blamed {
    fn note(&self, fatal: &Fatal) {
        let Some(topic) = topic_of(&fatal.text) else { return };
        let mut topics = lock(&self.topics);
        let blame = topics.entry(topic.clone()).or_default();
        blame.when.retain(|when| when.elapsed() < BLAME_WINDOW);
        blame.when.push(Instant::now());
        if blame.when.len() >= BLAME_MAX && !blame.own {
            tracing::warn!(%topic, "the topic broke the producer again and gets one of its own");
            blame.own = true;
            self.any.store(true, Ordering::Release);
        }
    }
}

/// The topic that librdkafka's text of a fatal error is about: "ProduceRequest for TOPIC \[0\] with".
fn topic_of(text: &str) -> Option<Topic> {
    let (_, rest) = text.split_once("ProduceRequest for ")?;
    let (topic, _) = rest.split_once(" [")?;
    Topic::parse(topic).ok()
}

/// A pipeline's way to one topic.
struct KafkaLane {
    sink: Arc<Inner>,
    topic: Topic,
    home: Arc<Home>,
    last: Arc<Producer>,
    batch: Batch,
}

impl KafkaLane {
    /// The producer for what is sent so; or why there is none just now.
    fn producer(&self, route: &Route) -> Result<Arc<Producer>, Bounce> {
        let producer = self.sink.producer(&self.topic, route.alone).map_err(|error| {
            if self.sink.stopped.load(Ordering::Acquire) {
                return Bounce::Stopped;
            }
            tracing::error!(%error, "no producer");
            Bounce::NoProducer
        })?;
        let is_another = !Arc::ptr_eq(&producer, &self.last);
        if is_another && self.home.under_way() > 0 { Err(Bounce::LaneBusy) } else { Ok(producer) }
    }
}

impl Lane for KafkaLane {
    fn partitions(&mut self) -> Result<i32, SinkError> {
        self.last
            .with(|native| native.partitions(&self.topic, METADATA_WAIT))
            .unwrap_or_else(|| Err(SinkError::Unreachable { code: Bounce::Rebuilding.name().into() }))
    }

    fn send(&mut self, chunk: Chunk, only: Option<&[u32]>, route: &Route) {
        let (topic, home) = (self.topic.clone(), self.home.clone());
        let parcel = Parcel { chunk, topic, only: only.map(Into::into), route: route.clone(), home };
        match self.producer(route) {
            Ok(producer) => {
                self.last = producer;
                self.last.send(&mut self.batch, parcel);
            }
            Err(bounce) => Landed::bounced(parcel, bounce, &self.sink.tally).deliver(),
        }
    }

    fn resume(&mut self) {
        self.home.open();
    }
}

impl Drop for KafkaLane {
    fn drop(&mut self) {
        self.last.forget(&self.home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(topic: &str) -> Fatal {
        let text = format!("ProduceRequest for {topic} [0] with 7 message(s) failed due to sequence");
        Fatal { code: "OUT_OF_ORDER_SEQUENCE_NUMBER".into(), text }
    }

    #[test]
    fn a_topic_gets_its_own_producer_when_it_breaks_the_main_one_the_third_time() {
        let blamed = Blamed::default();
        for (topic, own) in [("a", false), ("b", false), ("a", false), ("a", true)] {
            blamed.note(&broken(topic));
            assert_eq!(lock(&blamed.topics)[&Topic::parse(topic).unwrap()].own, own);
        }
    }

    #[test]
    fn a_fatal_error_without_a_topic_blames_nobody() {
        let blamed = Blamed::default();
        blamed.note(&Fatal { code: "_FENCED".into(), text: "Producer fenced by newer instance".into() });
        assert!(lock(&blamed.topics).is_empty());
    }
}
