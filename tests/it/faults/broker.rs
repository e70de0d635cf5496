//! Errors of the broker, by a proxy before a real one, with the whole agent before that.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use rdkafka::Message as _;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::proxy::{BrokerError as E, Proxy};
use weir_tests::topic::Consumer;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::load::LINE_BYTES;
use super::{MEMORY, Outcome, PATIENCE, Plan};
use crate::unconnected;

/// Files under load; two partitions share them.
const FILES: usize = 3;
/// Of lines written between two looks at the topic.
const LINES: u64 = 2_000;
/// As a partition of its own, for the tally.
const QUARANTINE: i32 = 99;

/// Errors that go by themselves.
const RETRIABLE: [E; 6] = [
    E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    E::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    E::RD_KAFKA_RESP_ERR__TRANSPORT,
];
/// Those that are about a record, with what the quarantine says of it.
const RECORD: [(E, &str); 2] = [
    (E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "MSG_SIZE_TOO_LARGE"),
    (E::RD_KAFKA_RESP_ERR_INVALID_RECORD, "INVALID_RECORD"),
];
/// About the topic.
const TOPIC: E = E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
/// After it a producer can send nothing any more.
const FATAL: E = E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;

/// An agent that produces to a cluster with errors, and what was found of its lines.
struct Faulty {
    proxy: Proxy,
    weir: Weir,
    files: Vec<LineFile>,
    consumer: Consumer,
    tally: Tally,
    // Last, so that it is there for all of them.
    _kafka: Kafka,
}

impl Faulty {
    #[track_caller]
    fn begin() -> Self {
        let (kafka, proxy) = Kafka::proxied();
        let topic = kafka.topic("t", 2);
        let mut weir = unconnected().kafka(&proxy.brokers());
        weir = weir.setting("limits", &format!("memory = {MEMORY}"));
        weir = weir.setting("kafka.properties", "\"retry.backoff.ms\" = \"10\"");
        weir.list(&json!([{"name": "app", "path": weir.log("*.log"), "topic": topic.name()}]));
        weir.start();
        weir.await_state("app", "waiting");
        let name = |n: usize| format!("f{n}");
        let file = |n: usize| LineFile::create(weir.log(&format!("{}.log", name(n))), &name(n), LINE_BYTES);
        let files: Vec<_> = (0..FILES).map(file).collect();
        let expected: Vec<_> = files.iter().map(LineFile::expected).collect();
        Self { proxy, files, consumer: topic.consumer(), tally: Tally::of(&expected), weir, _kafka: kafka }
    }

    fn write(&mut self, lines: u64, file: usize) {
        self.files[file].write(lines);
        self.tally.expect_below(file, self.files[file].written());
    }

    /// Waits until each line is acknowledged or set aside, and reads what came meanwhile.
    #[track_caller]
    fn settle(&mut self) {
        let written = self.files.iter().map(LineFile::written).sum();
        let (weir, consumer, tally) = (&self.weir, &mut self.consumer, &mut self.tally);
        let settled = || {
            consumer.each(Duration::from_millis(100), |message| {
                tally.see(message.partition(), message.payload().unwrap_or_default());
                ControlFlow::Continue(())
            });
            weir.lines("app")
        };
        eventually(PATIENCE, "all lines to be finished", settled, |lines| {
            lines.finished() >= written && lines.in_flight == 0
        });
    }

    fn rebuilds(&self) -> u64 {
        self.weir.metrics().sum("weir_producer_rebuilds_total", &[("cause", "fatal")]) as u64
    }

    /// Stops the agent, reads the rest of the topic and the quarantine, and reports.
    #[track_caller]
    fn conclude(mut self, plan: Plan, may_repeat: u64, may_reorder: bool, mut facts: Value) {
        self.proxy.accept();
        self.settle();
        let resends = self.weir.metrics().sum("weir_resends_total", &[]);
        let said = self.weir.lines("app").quarantined;
        assert!(self.weir.stop().success(), "{}", self.weir.stderr());
        let tally = &mut self.tally;
        self.consumer.to_end(|message| {
            tally.see(message.partition(), message.payload().unwrap_or_default());
        });
        let mut causes: BTreeMap<String, u64> = BTreeMap::new();
        let aside = quarantined(&self.weir.file("state/quarantine/quarantine.redb"));
        assert_eq!(aside.len() as u64, said, "what is in quarantine is what was counted");
        for (cause, line) in aside {
            assert!(RECORD.iter().any(|(_, name)| *name == cause), "set aside because of {cause}");
            self.tally.see(QUARANTINE, &line);
            *causes.entry(cause).or_default() += 1;
        }
        facts["set_aside"] = json!(causes);
        facts["resends"] = json!(resends);
        let bound = MEMORY / LINE_BYTES as u64 * may_repeat;
        let outcome = Outcome::of(plan, self.tally.verdict(), Some(bound), facts);
        if may_reorder { outcome.any_order() } else { outcome }.report();
    }
}

/// The lines in quarantine, each with its cause, read without the agent.
#[track_caller]
fn quarantined(database: &Path) -> Vec<(String, Vec<u8>)> {
    const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items");
    const LINES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lines");
    let database = redb::Database::open(database).expect("open the quarantine");
    let read = database.begin_read().expect("read it");
    let (items, lines) = (read.open_table(ITEMS).expect("items"), read.open_table(LINES).expect("lines"));
    let item = |row: Result<(redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>), _>| {
        let (id, item) = row.expect("an item");
        let item: Value = serde_json::from_slice(item.value()).expect("JSON");
        let line = lines.get(id.value()).expect("a line").expect("the line of an item").value().to_vec();
        (item["message"].as_str().unwrap_or_default().to_owned(), line)
    };
    items.iter().expect("items").map(item).collect()
}

#[test]
fn retriable_and_fatal_errors_of_the_broker_cost_no_line_and_no_order() {
    let plan = Plan::of("retriable and fatal errors of the broker, at random", 8, 300);
    let mut dice = plan.dice();
    let mut all = Faulty::begin();
    let (mut injected, mut may_repeat) = (BTreeMap::<&str, u64>::new(), 0);
    for _ in 0..plan.rounds {
        let mut errors = Vec::new();
        for _ in 0..dice.within(1..4) {
            let (kind, error) = match dice.below(10) {
                0..8 => ("retriable", RETRIABLE[dice.below(RETRIABLE.len() as u64) as usize]),
                _ => ("fatal", FATAL),
            };
            errors.push(error);
            *injected.entry(kind).or_default() += 1;
            may_repeat += u64::from(matches!(error, FATAL | E::RD_KAFKA_RESP_ERR__TRANSPORT));
        }
        all.proxy.refuse(&errors);
        for file in 0..FILES {
            if dice.one_in(2) {
                all.write(dice.within(1..LINES), file);
            }
        }
        if dice.one_in(3) {
            all.settle();
        } else {
            dice.pause(0..300);
        }
        all.settle();
    }
    let rebuilds = all.rebuilds();
    all.conclude(plan, may_repeat, false, json!({"injected": injected, "rebuilds": rebuilds}));
}

/// A batch that is refused for the sake of a record or of its topic has failed, and librdkafka sends
/// the next one at once. Where that one is taken it stands before what is sent again: lines of a file
/// may change places, around a line that is refused for good and where a topic is refused and taken
/// again between two batches. After the latter librdkafka may number records so that the broker drops one
/// as a repetition of another; then the producer is made anew, and what it had under way comes again.
#[test]
fn refused_batches_cost_no_line_but_poison_which_is_in_quarantine() {
    let plan = Plan::of("record and topic errors of the broker, at random", 12, 400);
    let mut dice = plan.dice();
    let mut all = Faulty::begin();
    let mut injected = BTreeMap::<&str, u64>::new();
    for _ in 0..plan.rounds {
        let mut errors = Vec::new();
        for _ in 0..dice.within(1..4) {
            // A line is refused for good when it is refused alone, too.
            let times = dice.within(1..5);
            let record = RECORD[dice.below(2) as usize];
            let (name, error) =
                if dice.one_in(3) { ("TOPIC_AUTHORIZATION_FAILED", TOPIC) } else { (record.1, record.0) };
            errors.extend((0..times).map(|_| error));
            *injected.entry(name).or_default() += times;
        }
        all.proxy.refuse(&errors);
        for file in 0..FILES {
            all.write(dice.within(1..LINES), file);
        }
        dice.pause(0..300);
        all.settle();
    }
    let rebuilds = all.rebuilds();
    all.conclude(plan, rebuilds, true, json!({"injected": injected, "rebuilds": rebuilds}));
}

#[test]
fn fatal_errors_of_the_producer_are_recovered_from_without_help() {
    let plan = Plan::of("fatal producer errors", 4, 50);
    let mut dice = plan.dice();
    let mut all = Faulty::begin();
    for round in 1..=plan.rounds {
        (0..FILES).for_each(|file| all.write(dice.within(1..LINES), file));
        all.settle();
        all.proxy.refuse(&[FATAL]);
        (0..FILES).for_each(|file| all.write(dice.within(1..LINES), file));
        eventually(PATIENCE, "a new producer", || all.rebuilds(), |rebuilds| *rebuilds >= round);
        all.settle();
    }
    let (rebuilds, stderr) = (all.rebuilds(), all.weir.stderr());
    let told = stderr.lines().filter(|line| line.contains("rebuilding the producer")).count() as u64;
    assert_eq!(told, rebuilds, "each is one line of log");
    all.conclude(plan, plan.rounds, false, json!({"rebuilds": rebuilds}));
}

#[test]
fn what_the_broker_says_it_has_and_has_not_is_sent_again() {
    let plan = Plan::of("acknowledgements of what the broker has not", 3, 30);
    let mut dice = plan.dice();
    let mut all = Faulty::begin();
    (0..FILES).for_each(|file| all.write(LINES, file));
    for round in 1..=plan.rounds {
        all.settle();
        // Its answer has no offset that is new.
        all.proxy.refuse(&[E::RD_KAFKA_RESP_ERR_NO_ERROR]);
        all.write(dice.within(1..50), dice.below(FILES as u64) as usize);
        eventually(PATIENCE, "a new producer", || all.rebuilds(), |rebuilds| *rebuilds >= round);
    }
    all.settle();
    let rebuilds = all.rebuilds();
    all.conclude(plan, rebuilds, false, json!({"rebuilds": rebuilds}));
}
