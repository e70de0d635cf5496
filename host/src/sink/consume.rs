//! An in-process broker and a consumer that shares nothing with the sink but the wire, so that
//! `weir demo` can judge the agent from outside.
//!
//! In: a topic. Out: the broker's address, and what is on the topic, record by record. Absent by
//! design: consumer groups, committed offsets, topics of several partitions.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::SinkError;
use super::native::Mock;
use crate::model::Topic;

/// The only partition of a topic of [`Broker`].
const PARTITION: i32 = 0;
/// How long the broker may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// librdkafka's in-process broker, on a free port of the loopback address. It keeps the last
/// 5 MiB of a partition, so a topic has to be read while it is written.
pub struct Broker(Mock);

impl Broker {
    /// Starts one that has `topic`, in one partition.
    pub fn start(topic: &Topic) -> Result<Self, SinkError> {
        let mock = Mock::start()?;
        mock.create_topic(topic)?;
        Ok(Self(mock))
    }

    /// Where it is, as `kafka.brokers`.
    pub fn address(&self) -> String {
        self.0.bootstrap_servers()
    }
}

/// Why a topic cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read topic {topic}")]
pub struct ConsumeError {
    topic: Topic,
    #[source]
    source: KafkaError,
}

/// Reads a topic from its beginning.
pub struct Consumer {
    client: BaseConsumer,
    topic: Topic,
}

impl Consumer {
    /// One that reads `topic` at `brokers`.
    pub fn new(brokers: &str, topic: &Topic) -> Result<Self, ConsumeError> {
        let failed = |source| ConsumeError { topic: topic.clone(), source };
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            // librdkafka wants one, though no group is joined.
            .set("group.id", "weir-demo")
            .set("enable.auto.commit", "false")
            .set("enable.metrics.push", "false")
            .set("fetch.wait.max.ms", "50")
            // What is gone before it was read is to be noticed.
            .set("auto.offset.reset", "error");
        let client: BaseConsumer = config.create().map_err(failed)?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic.as_str(), PARTITION, Offset::Beginning).map_err(failed)?;
        client.assign(&partitions).map_err(failed)?;
        Ok(Self { client, topic: topic.clone() })
    }

    /// The next record's payload, if one comes within `wait`.
    pub fn next(&self, wait: Duration) -> Result<Option<Vec<u8>>, ConsumeError> {
        match self.client.poll(wait) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message.payload().unwrap_or_default().to_vec())),
            Some(Err(source)) => Err(self.failed(source)),
        }
    }

    /// How many records the topic has had up to now.
    pub fn end(&self) -> Result<u64, ConsumeError> {
        let (_, end) = self
            .client
            .fetch_watermarks(self.topic.as_str(), PARTITION, ANSWER_WAIT)
            .map_err(|source| self.failed(source))?;
        Ok(end.max(0) as u64)
    }

    fn failed(&self, source: KafkaError) -> ConsumeError {
        ConsumeError { topic: self.topic.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_topic_has_an_end_and_no_record() {
        let topic = Topic::parse("quiet").unwrap();
        let broker = Broker::start(&topic).unwrap();
        let consumer = Consumer::new(&broker.address(), &topic).unwrap();
        assert_eq!(consumer.end().unwrap(), 0);
        assert_eq!(consumer.next(Duration::from_millis(200)).unwrap(), None);
    }
}
