//! The Kafka sink against librdkafka's in-process cluster, which can be told to answer with errors.
//! `make memcheck` runs these under valgrind, to hold the rule that no chunk is freed early.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as E};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use super::kafka::KafkaSink;
use super::{Buffer, Chunk, Finished, Header, Lane, Pick, Record, Refusal, Route, Sink, SinkError, Stopped};
use crate::budget::Budget;
use crate::config::KafkaSettings;
use crate::model::Topic;

/// Longest wait for anything; valgrind makes all of it some thirty times slower.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY: u64 = 1 << 20;
const IN_ORDER: Route = Route::to(Pick::Fixed(0));
const ALONE: Route = Route { partition: Pick::Fixed(0), key: None, headers: None, alone: true, stream: 0 };

/// A cluster, a sink, and a lane to the topic `t` with one partition.
struct Bench {
    sink: Arc<KafkaSink>,
    wire: Wire,
    topic: Topic,
    mock: MockCluster<'static, DefaultProducerContext>,
}

/// A lane and what comes back from it.
struct Wire {
    lane: Box<dyn Lane>,
    back: Receiver<Finished>,
}

impl Bench {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(properties: &[(&str, &str)]) -> Self {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("t", 1, 1).unwrap();
        let sink = KafkaSink::start(&settings(&mock.bootstrap_servers(), properties), MEMORY).unwrap();
        let topic = Topic::parse("t").unwrap();
        Self { wire: open(&sink, &topic), sink, topic, mock }
    }

    fn inject(&self, errors: &[E]) {
        self.mock.request_errors(RDKafkaApiKey::Produce, errors);
    }

    /// The lines on partition 0 of the topic.
    fn consume(&self) -> Vec<String> {
        consume(&self.mock.bootstrap_servers(), "t", 0)
    }
}

impl Wire {
    fn send(&mut self, chunk: Chunk) {
        self.lane.send(chunk, None, &IN_ORDER);
    }

    /// Asks again where the answer does not come in time.
    fn partitions(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lane.partitions() {
                Ok(count) => return count,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    fn next(&self) -> Finished {
        self.back.recv_timeout(PATIENCE).expect("a chunk comes back")
    }

    fn take(&self, count: usize) -> Vec<Finished> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Sends once more what failed, in order, until nothing fails.
    fn finish(&mut self, mut finished: Vec<Finished>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            finished.retain(|one| !one.failed.is_empty());
            finished.sort_by_key(|one| one.chunk.id);
            if finished.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still failing: {:?}", finished[0].failed[0]);
            self.lane.resume();
            let count = finished.len();
            for one in finished.drain(..) {
                let only: Vec<u32> = one.failed.iter().map(|failed| failed.record).collect();
                self.lane.send(one.chunk, Some(&only), &IN_ORDER);
            }
            finished = self.take(count);
        }
    }
}

fn settings(brokers: &str, properties: &[(&str, &str)]) -> KafkaSettings {
    let mut all = BTreeMap::from([("retry.backoff.ms".to_string(), "10".to_string())]);
    all.extend(properties.iter().map(|(key, value)| ((*key).into(), (*value).into())));
    KafkaSettings { brokers: brokers.into(), properties: all }
}

fn open(sink: &KafkaSink, topic: &Topic) -> Wire {
    let (done, back) = mpsc::channel();
    Wire { lane: sink.open(topic, Arc::new(move |finished| drop(done.send(finished)))), back }
}

fn chunk_of(id: u64, lines: &[String]) -> Chunk {
    let mut chunk = Chunk { id, ..Chunk::default() };
    for line in lines {
        let start = chunk.read.len() as u32;
        chunk.read.extend_from_slice(line.as_bytes());
        chunk.read.push(b'\n');
        chunk.records.push(Record { start, len: line.len() as u32, buffer: Buffer::Read });
    }
    chunk
}

fn lines(id: u64, count: u64) -> Vec<String> {
    (0..count).map(|i| format!("line {:08} of chunk {id}", id * count + i)).collect()
}

fn chunk(id: u64) -> Chunk {
    chunk_of(id, &lines(id, 50))
}

/// What the chunks before `end` put on the topic.
fn all(end: u64) -> Vec<String> {
    (0..end).flat_map(|id| lines(id, 50)).collect()
}

fn codes(finished: &Finished) -> Vec<(u32, Refusal, &str)> {
    finished.failed.iter().map(|failed| (failed.record, failed.why, &*failed.code)).collect()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn fail(sink: &KafkaSink, text: &str) {
    wait_for("a producer", || sink.fail(text));
}

fn consume(brokers: &str, topic: &str, partition: i32) -> Vec<String> {
    let text =
        |record: OwnedMessage| String::from_utf8(record.payload().unwrap_or_default().to_vec()).unwrap();
    records(brokers, topic, partition).into_iter().map(text).collect()
}

fn records(brokers: &str, topic: &str, partition: i32) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "check")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    consumer.assign(&places).unwrap();
    let mut found = Vec::new();
    loop {
        match consumer.poll(PATIENCE).expect("a record or the end") {
            Ok(record) => found.push(record.detach()),
            Err(KafkaError::PartitionEOF(_)) => return found,
            Err(_) => (),
        }
    }
}

/// `found` holds everything of `wanted` in order once repeats are left out.
fn assert_nothing_lost(found: &[String], wanted: &[String]) {
    let mut seen = std::collections::HashSet::new();
    let first: Vec<&String> = found.iter().filter(|line| seen.insert(*line)).collect();
    assert_eq!(first, wanted.iter().collect::<Vec<_>>());
}

#[test]
fn each_chunk_comes_back_once_and_its_records_are_on_the_topic_in_order() {
    let mut bench = Bench::new();
    (0..20).for_each(|id| bench.wire.send(chunk(id)));
    let ids: Vec<u64> =
        bench.wire.take(20).iter().inspect(|f| assert_eq!(codes(f), [])).map(|f| f.chunk.id).collect();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    assert_eq!(bench.consume(), all(20));
    assert_eq!(bench.sink.stop(Instant::now() + PATIENCE), Stopped::default());
    assert!(bench.wire.back.try_recv().is_err());
    assert_eq!(bench.sink.stats().errors, BTreeMap::new());
}

#[test]
fn both_buffers_an_empty_record_and_a_key_arrive_as_they_are() {
    let mut bench = Bench::new();
    let record = |start, len, buffer| Record { start, len, buffer };
    let chunk = Chunk {
        read: b"read".to_vec(),
        written: b"written".to_vec(),
        records: vec![
            record(0, 7, Buffer::Written),
            record(0, 4, Buffer::Read),
            record(7, 0, Buffer::Written),
            record(0, 3, Buffer::Written),
        ],
        ..Chunk::default()
    };
    let route = Route { key: Some(b"k".as_slice().into()), ..IN_ORDER };
    bench.wire.lane.send(chunk, Some(&[0, 1, 2]), &route);
    assert_eq!(codes(&bench.wire.next()), []);
    assert_eq!(bench.consume(), ["written", "read", ""]);
}

fn with_headers(route: Route) -> Route {
    let header = |name: &CStr, value: &str| Header { name: name.into(), value: value.as_bytes().into() };
    let headers = [header(c"host", "h"), header(c"path", "/ä.log"), header(c"empty", "")];
    Route { headers: Some(headers.as_slice().into()), ..route }
}

#[test]
fn headers_arrive_with_each_record_and_its_own_offset() {
    let mut bench = Bench::with(&[("message.max.bytes", "1000")]);
    let mut lines = lines(0, 10);
    lines[4] = "x".repeat(2000);
    let mut chunk = chunk_of(0, &lines);
    chunk.offsets = (0..10).map(|i| i * 1_000_000_000_000).collect();
    let route = with_headers(Route { key: Some(b"k".as_slice().into()), ..IN_ORDER });
    bench.wire.lane.send(chunk, Some(&[3, 4, 9]), &route);
    let refused = bench.wire.next();
    assert_eq!(codes(&refused), [(4, Refusal::Record, "MSG_SIZE_TOO_LARGE")]);
    let found = records(&bench.mock.bootstrap_servers(), "t", 0);
    let told = |record: &OwnedMessage| {
        let headers = record.headers().unwrap().iter();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let headers = headers.map(|header| format!("{}={}", header.key, text(header.value)));
        (text(record.payload()), text(record.key()), headers.collect::<Vec<_>>().join(" "))
    };
    let of = |i: usize| {
        let headers = format!("host=h path=/ä.log empty= offset={i}000000000000");
        (lines[i].clone(), "k".to_string(), headers)
    };
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), [of(3), of(9)]);
    assert_eq!(bench.sink.stop(Instant::now() + PATIENCE), Stopped::default());
}

#[test]
fn records_with_headers_come_back_from_a_rebuild_and_from_a_stop() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    bench.wire.lane.send(chunk(0), None, &with_headers(IN_ORDER));
    fail(&bench.sink, "whatever");
    let failed = bench.wire.next();
    assert_eq!(failed.failed.len(), 50);
    bench.wire.lane.resume();
    // Until the producer is rebuilt, the chunk comes back at once.
    let (mut again, begun) = (Some(failed.chunk), Instant::now());
    while let Some(chunk) = again.take() {
        assert!(begun.elapsed() < PATIENCE, "no producer");
        bench.wire.lane.resume();
        bench.wire.lane.send(chunk, None, &with_headers(IN_ORDER));
        again = bench.wire.back.try_recv().ok().map(|finished| finished.chunk);
    }
    assert_eq!(bench.sink.stop(Instant::now()), Stopped { chunks: 1, records: 50 });
    assert_eq!(bench.wire.next().failed.len(), 50);
}

#[test]
fn a_chunk_without_records_comes_back_at_once() {
    let mut bench = Bench::new();
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(Chunk { id: 7, ..Chunk::default() });
    assert_eq!(bench.wire.back.try_recv().unwrap().chunk.id, 7);
}

#[test]
fn order_is_kept_when_errors_go_by_themselves() {
    let mut bench = Bench::new();
    bench.inject(&[
        E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        E::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        E::RD_KAFKA_RESP_ERR__TRANSPORT,
        E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    ]);
    (0..20).for_each(|id| bench.wire.send(chunk(id)));
    bench.wire.take(20).iter().for_each(|finished| assert_eq!(codes(finished), []));
    assert_eq!(bench.consume(), all(20));
}

#[test]
fn a_batch_that_the_broker_refuses_fails_and_sending_alone_finds_the_record() {
    let mut bench = Bench::new();
    bench.inject(&[E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    bench.wire.lane.send(chunk_of(0, &lines(0, 10)), None, &IN_ORDER);
    let refused = bench.wire.next();
    let record = |i| (i, Refusal::Record, "MSG_SIZE_TOO_LARGE");
    assert_eq!(codes(&refused), (0..10).map(record).collect::<Vec<_>>());

    bench.wire.lane.resume();
    let mut answers = [E::RD_KAFKA_RESP_ERR_NO_ERROR; 10];
    answers[6] = E::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    bench.inject(&answers);
    bench.wire.lane.send(refused.chunk, None, &ALONE);
    assert_eq!(codes(&bench.wire.next()), [(6, Refusal::Record, "INVALID_RECORD")]);
    let mut wanted = lines(0, 10);
    wanted.remove(6);
    assert_eq!(bench.consume(), wanted);
}

#[test]
fn a_record_that_librdkafka_refuses_comes_back_with_its_chunk_and_spares_the_others() {
    let mut bench = Bench::with(&[("message.max.bytes", "1000")]);
    let mut lines = lines(0, 10);
    lines[4] = "x".repeat(2000);
    bench.wire.send(chunk_of(0, &lines));
    assert_eq!(codes(&bench.wire.next()), [(4, Refusal::Record, "MSG_SIZE_TOO_LARGE")]);
    lines.remove(4);
    assert_eq!(bench.consume(), lines);
}

#[test]
fn a_topic_that_may_not_be_written_is_the_topics_fault_and_recovers() {
    let mut bench = Bench::new();
    bench.inject(&[E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    bench.wire.send(chunk(0));
    let refused = bench.wire.next();
    assert!(
        refused.failed.iter().all(|f| f.why == Refusal::Topic && &*f.code == "TOPIC_AUTHORIZATION_FAILED")
    );
    assert_eq!(refused.failed.len(), 50);
    assert_eq!(bench.wire.partitions(), 1);
    bench.wire.finish(vec![refused]);
    assert_eq!(bench.consume(), all(1));
}

#[test]
fn a_partition_that_does_not_exist_is_the_topics_fault() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    let nowhere = Route { partition: Pick::Fixed(5), ..IN_ORDER };
    for route in [nowhere.clone(), with_headers(nowhere)] {
        bench.wire.lane.send(chunk(0), None, &route);
        let refused = bench.wire.next();
        assert!(refused.failed.iter().all(|f| f.why == Refusal::Topic && &*f.code == "_UNKNOWN_PARTITION"));
        assert_eq!(refused.failed.len(), 50);
        bench.wire.lane.resume();
    }
    assert_eq!(bench.sink.stop(Instant::now() + PATIENCE), Stopped::default());
}

#[test]
fn a_topic_that_does_not_exist_is_said_and_not_created() {
    let bench = Bench::new();
    let mut wire = open(&bench.sink, &Topic::parse("missing").unwrap());
    match wire.lane.partitions() {
        Err(SinkError::Topic { code, .. }) => assert_eq!(&*code, "UNKNOWN_TOPIC_OR_PART"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_that_is_away_is_said_within_a_second() {
    let mut bench = Bench::new();
    bench.mock.broker_down(-1).unwrap();
    let begun = Instant::now();
    assert!(matches!(bench.wire.lane.partitions(), Err(SinkError::Unreachable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_sequence_error_rebuilds_the_producer_and_nothing_is_missing() {
    let mut bench = Bench::new();
    bench.wire.send(chunk(0));
    assert_eq!(codes(&bench.wire.next()), []);
    bench.inject(&[E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    (1..30).for_each(|id| bench.wire.send(chunk(id)));
    let finished = bench.wire.take(29);
    assert!(finished.iter().flat_map(|one| &one.failed).all(|failed| failed.why == Refusal::Again));
    wait_for("a rebuild", || bench.sink.stats().rebuilds.values().sum::<u64>() == 1);
    bench.wire.finish(finished);
    assert_nothing_lost(&bench.consume(), &all(30));
    assert_eq!(bench.sink.stats().fatal.as_deref(), Some("OUT_OF_ORDER_SEQUENCE_NUMBER"));
}

#[test]
fn a_fatal_error_with_the_broker_away_brings_every_chunk_back_and_nothing_is_missing() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    (0..10).for_each(|id| bench.wire.send(chunk(id)));
    assert!(bench.wire.back.try_recv().is_err());
    fail(&bench.sink, "no topic in this text");
    let finished = bench.wire.take(10);
    finished.iter().for_each(|one| assert_eq!(one.failed.len(), 50));
    bench.mock.broker_up(-1).unwrap();
    bench.wire.finish(finished);
    assert_eq!(bench.consume(), all(10));
    assert_eq!(bench.sink.stats().missing_reports, 0);
}

#[test]
fn nothing_new_overtakes_what_failed() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(chunk(0));
    fail(&bench.sink, "whatever");
    wait_for("a rebuild", || bench.sink.stats().rebuilds.values().sum::<u64>() == 1);
    bench.mock.broker_up(-1).unwrap();
    bench.wire.send(chunk(1));
    let finished = bench.wire.take(2);
    assert_eq!(codes(&finished[1])[0], (0, Refusal::Again, "LANE_CLOSED"));
    bench.wire.finish(finished);
    assert_eq!(bench.consume(), all(2));
}

#[test]
fn a_lane_does_not_change_its_producer_with_chunks_under_way() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(chunk(0));
    bench.wire.lane.send(chunk(1), None, &ALONE);
    let bounced = bench.wire.next();
    assert_eq!(codes(&bounced)[0], (0, Refusal::Again, "LANE_BUSY"));
    bench.mock.broker_up(-1).unwrap();
    let first = bench.wire.next();
    bench.wire.finish(vec![first, bounced]);
    assert_eq!(bench.consume(), all(2));
}

#[test]
fn a_topic_that_breaks_the_producer_three_times_gets_its_own() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        bench.wire.send(chunk(0));
        let finished = bench.wire.next();
        bench.wire.finish(vec![finished]);
        fail(&bench.sink, "ProduceRequest for t [0] with 1 message(s) failed");
        wait_for("a rebuild", || bench.sink.stats().rebuilds.values().sum::<u64>() == round);
    }
    assert_eq!(bench.sink.stats().own_producers, 1);
    // A fatal error of the main producer is nothing to the topic any more.
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(chunk(1));
    fail(&bench.sink, "ProduceRequest for another [0] with 1 message(s) failed");
    wait_for("a rebuild", || bench.sink.stats().rebuilds.values().sum::<u64>() == 4);
    assert!(bench.wire.back.try_recv().is_err());
    bench.mock.broker_up(-1).unwrap();
    assert_eq!(codes(&bench.wire.next()), []);
}

#[test]
fn a_stop_with_the_broker_away_ends_in_time_and_brings_everything_back() {
    let mut bench = Bench::new();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    (0..5).for_each(|id| bench.wire.send(chunk(id)));
    let begun = Instant::now();
    let stopped = bench.sink.stop(begun + Duration::from_secs(4));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(stopped, Stopped { chunks: 5, records: 250 });
    for finished in bench.wire.take(5) {
        // The others waited behind the first.
        let code = if finished.chunk.id == 0 { "_PURGE_QUEUE" } else { "STOPPED" };
        assert_eq!(codes(&finished)[0], (0, Refusal::Again, code));
        assert_eq!(finished.failed.len(), 50);
    }
    bench.wire.lane.resume();
    bench.wire.send(chunk(5));
    assert_eq!(codes(&bench.wire.next())[0].2, "STOPPED");
}

#[test]
fn records_too_long_to_be_copied_can_be_purged_while_they_are_in_flight() {
    let mut bench = Bench::with(&[("compression.type", "none")]);
    bench.wire.partitions();
    let long: Vec<String> = (0..4).map(|i| i.to_string().repeat(200_000)).collect();
    bench.wire.send(chunk_of(0, &long));
    assert_eq!(codes(&bench.wire.next()), []);
    bench.mock.broker_round_trip_time(-1, PATIENCE).unwrap();
    bench.wire.send(chunk_of(1, &long));
    let stopped = bench.sink.stop(Instant::now() + Duration::from_secs(2));
    assert_eq!(stopped, Stopped { chunks: 1, records: 4 });
    let finished = bench.wire.next();
    assert!(finished.failed.iter().all(|failed| failed.code.starts_with("_PURGE_")));
}

#[test]
fn a_stop_waits_for_what_is_under_way() {
    let mut bench = Bench::with(&[("linger.ms", "300")]);
    (0..5).for_each(|id| bench.wire.send(chunk(id)));
    assert_eq!(bench.sink.stop(Instant::now() + PATIENCE), Stopped::default());
    bench.wire.take(5).iter().for_each(|finished| assert_eq!(codes(finished), []));
    assert_eq!(bench.consume(), all(5));
}

#[test]
fn memory_stays_charged_until_the_records_are_reported() {
    let mut bench = Bench::new();
    let budget = Budget::new(MEMORY);
    let share = budget.share();
    let reserved = budget.used();
    bench.wire.partitions();
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(Chunk { charge: share.take(10_000), ..chunk(0) });
    assert_eq!(budget.used(), reserved + 10_000);
    bench.mock.broker_up(-1).unwrap();
    drop(bench.wire.next());
    assert_eq!(budget.used(), reserved);
}

#[test]
fn what_a_closed_lane_left_under_way_is_freed_above_the_cap() {
    let mut bench = Bench::new();
    let budget = Budget::new(4 * MEMORY);
    let share = budget.share();
    let reserved = budget.used();
    bench.wire.partitions();
    let mut other = open(&bench.sink, &bench.topic);
    bench.mock.broker_down(-1).unwrap();
    bench.wire.send(Chunk { charge: share.take(MEMORY / 2), ..chunk(0) });
    let mut behind = open(&bench.sink, &bench.topic);
    behind.send(Chunk { charge: share.take(MEMORY / 2), ..chunk(1) });
    other.send(chunk(9));
    let Bench { sink, wire, mock: _mock, .. } = bench;
    drop(behind);
    assert_eq!(budget.used(), reserved + MEMORY / 2, "what waits is freed at once");
    drop(wire);
    assert_eq!(sink.stats().orphan_bytes, MEMORY / 2);
    wait_for("a rebuild", || sink.stats().rebuilds.values().sum::<u64>() == 1);
    let again = other.next();
    assert_eq!(codes(&again)[0], (0, Refusal::Again, "REBUILDING"));
    wait_for("memory", || budget.used() == reserved);
    assert_eq!(sink.stats().orphan_bytes, 0);
}

#[test]
fn a_receiver_that_panics_takes_nobody_with_it() {
    let mut bench = Bench::new();
    let mut bad = bench.sink.open(&bench.topic, Arc::new(|_| panic!("poisoned inbox")));
    bad.send(chunk(0), None, &IN_ORDER);
    wait_for("the first chunk", || bench.sink.stats().chunks_under_way == 0);
    bench.wire.send(chunk(1));
    assert_eq!(codes(&bench.wire.next()), []);
    assert_eq!(bench.consume(), all(2));
}

#[test]
fn many_lanes_and_fatal_errors_at_any_time_lose_nothing() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let mut wire = open(&bench.sink, &bench.topic);
            scope.spawn(move || {
                for round in 0..10 {
                    (0..5).for_each(|i| wire.send(chunk((round * 5 + i) * 4 + part)));
                    let finished = wire.take(5);
                    wire.finish(finished);
                }
            });
        }
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(30));
            fail(&bench.sink, "at any time");
        }
    });
    let mut found = bench.consume();
    found.sort();
    found.dedup();
    assert_eq!(found, all(200));
}

#[test]
fn the_in_process_cluster_makes_topics_and_can_be_read() {
    let sink = KafkaSink::start(&settings("mock", &[]), MEMORY).unwrap();
    let topic = Topic::parse("demo").unwrap();
    let mut wire = open(&sink, &topic);
    assert!(wire.partitions() >= 1);
    wire.send(chunk(0));
    assert_eq!(codes(&wire.next()), []);
    assert_eq!(consume(sink.bootstrap_servers(), "demo", 0), all(1));
}

#[test]
fn a_property_that_librdkafka_does_not_take_is_named() {
    match KafkaSink::start(&settings("127.0.0.1:1", &[("linger.sm", "5")]), MEMORY) {
        Err(SinkError::Property { key, cause }) => {
            assert_eq!(key, "linger.sm");
            assert!(cause.contains("No such configuration property"), "{cause}");
        }
        other => panic!("{:?}", other.err()),
    }
    let clash = KafkaSink::start(&settings("127.0.0.1:1", &[("acks", "0")]), MEMORY);
    assert!(matches!(clash.err(), Some(SinkError::Create { cause }) if cause.contains("acks")));
}
