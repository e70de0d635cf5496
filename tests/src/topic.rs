//! A topic read from its beginning, by a consumer that shares nothing with the agent.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use crate::lines::{Expected, Tally, Verdict};
use crate::wait::{SOON, eventually};

/// For one request to the broker.
const ANSWER: Duration = Duration::from_secs(60);
/// For a record; then the deadline is looked at.
const TICK: Duration = Duration::from_millis(50);

/// A topic of a test.
#[derive(Clone, Debug)]
pub struct Topic {
    brokers: String,
    name: String,
}

/// One record, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it lies.
    pub partition: i32,
    /// Its place there.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; empty where it has none.
    pub value: Vec<u8>,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The value as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

impl Topic {
    /// A topic that exists.
    pub fn new(brokers: impl Into<String>, name: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins to read it from its beginning.
    #[track_caller]
    pub fn consumer(&self) -> Consumer {
        let client = self.client();
        let metadata = client.fetch_metadata(Some(&self.name), ANSWER).expect("metadata of the topic");
        let partitions = metadata.topics()[0].partitions().len() as i32;
        assert!(partitions > 0, "there is no topic {}", self.name);
        let mut consumer = Consumer { client, topic: self.clone(), next: vec![0; partitions as usize] };
        consumer.assign();
        consumer
    }

    fn client(&self) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("group.id", "weir-tests");
        config.set("enable.auto.commit", "false").set("fetch.wait.max.ms", "20").set("log_level", "0");
        config.set("reconnect.backoff.max.ms", "200");
        config.create().expect("a consumer")
    }

    /// The first `count` records.
    ///
    /// # Panics
    /// When there are fewer at the deadline.
    #[track_caller]
    pub fn take(&self, count: usize, within: Duration) -> Vec<Record> {
        self.consumer().take(count, within)
    }

    /// Everything on it now.
    #[track_caller]
    pub fn all(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.consumer().to_end(|message| records.push(keep(message)));
        records
    }

    /// How many records are on it now.
    #[track_caller]
    pub fn count_all(&self) -> u64 {
        let mut count = 0;
        self.consumer().to_end(|_| count += 1);
        count
    }

    /// Waits until every expected line was found, or the deadline passed; then reads to the end as
    /// it is by now. A repeat that comes later still is not seen: stop the agent before.
    #[track_caller]
    pub fn verdict(&self, expected: &[Expected], within: Duration) -> Verdict {
        let mut tally = Tally::of(expected);
        self.tally(&mut tally, within);
        tally.verdict()
    }

    /// The same into a tally that may know other topics too.
    #[track_caller]
    pub fn tally(&self, tally: &mut Tally, within: Duration) {
        let mut consumer = self.consumer();
        consumer.each(within, |message| {
            tally.see(message.partition(), message.payload().unwrap_or_default());
            if tally.missing() == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        consumer.tally_to_end(tally);
    }

    /// Counts what is on it now.
    #[track_caller]
    pub fn tally_now(&self, tally: &mut Tally) {
        self.consumer().tally_to_end(tally);
    }
}

/// A reader of a topic. It goes on where it stopped.
pub struct Consumer {
    client: BaseConsumer,
    topic: Topic,
    /// For each partition the offset behind the last record that was handed out.
    next: Vec<i64>,
}

impl Consumer {
    /// Reads on where it was.
    #[track_caller]
    fn assign(&mut self) {
        let mut all = TopicPartitionList::new();
        for (partition, next) in (0..).zip(&self.next) {
            let offset = if *next == 0 { Offset::Beginning } else { Offset::Offset(*next) };
            all.add_partition_offset(&self.topic.name, partition, offset).expect("an offset");
        }
        self.client.assign(&all).expect("assign all partitions");
    }

    /// Hands out records until `act` breaks off or the deadline passes; whether it broke off.
    pub fn each(
        &mut self,
        within: Duration,
        mut act: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < within {
            // Errors are a broker that is away; the deadline bounds them.
            while let Some(polled) = self.client.poll(TICK) {
                let Ok(message) = polled else { break };
                self.next[message.partition() as usize] = message.offset() + 1;
                if act(&message).is_break() {
                    return true;
                }
                // The clock costs more than a record; but a writer may be endless.
                if message.offset() % 1024 == 0 && begun.elapsed() >= within {
                    return false;
                }
            }
        }
        false
    }

    /// The next `count` records.
    ///
    /// # Panics
    /// When there are fewer at the deadline.
    #[track_caller]
    pub fn take(&mut self, count: usize, within: Duration) -> Vec<Record> {
        let mut records = Vec::new();
        let all = count == 0
            || self.each(within, |message| {
                records.push(keep(message));
                if records.len() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        let last = records.last().map(Record::text);
        let (topic, got) = (&self.topic.name, records.len());
        assert!(all, "{got} of {count} records on {topic} within {within:?}; the last is {last:?}");
        records
    }

    #[track_caller]
    fn tally_to_end(&mut self, tally: &mut Tally) {
        self.to_end(|message| {
            tally.see(message.partition(), message.payload().unwrap_or_default());
        });
    }

    /// The end of a partition. A broker that has just come back may not lead it yet, and a client that
    /// was told so may believe for long that there is no such partition: then another one takes over.
    #[track_caller]
    fn end(&mut self, partition: i32) -> i64 {
        let ask = || {
            let told = self.client.fetch_watermarks(&self.topic.name, partition, ANSWER).map(|(_, end)| end);
            if told.is_err() {
                self.client = self.topic.client();
                self.assign();
            }
            told
        };
        eventually(SOON * 2, "the end of a partition", ask, Result::is_ok).expect("it was told")
    }

    /// How many records are on the topic now, as the broker says.
    #[track_caller]
    pub fn ends(&mut self) -> u64 {
        (0..self.next.len() as i32).map(|partition| self.end(partition).max(0).unsigned_abs()).sum()
    }

    /// Hands out what is on the topic beyond what was handed out, up to the end as it is now.
    #[track_caller]
    pub fn to_end(&mut self, mut act: impl FnMut(&BorrowedMessage<'_>)) {
        let ends: Vec<i64> = (0..self.next.len() as i32).map(|partition| self.end(partition)).collect();
        let begun = Instant::now();
        while self.next.iter().zip(&ends).any(|(next, end)| next < end) {
            assert!(begun.elapsed() < ANSWER * 6, "{} is not readable to its end", self.topic.name);
            while let Some(Ok(message)) = self.client.poll(TICK) {
                let partition = message.partition() as usize;
                self.next[partition] = message.offset() + 1;
                act(&message);
                if self.next.iter().zip(&ends).all(|(next, end)| next >= end) {
                    return;
                }
            }
        }
    }
}

fn keep(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let header = |header: rdkafka::message::Header<'_, &[u8]>| {
        (header.key.to_owned(), header.value.unwrap_or_default().to_vec())
    };
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().unwrap_or_default().to_vec(),
        headers: headers.map(header).collect(),
    }
}
