//! librdkafka's in-process cluster, which can be told to answer with errors. The agent finds it at
//! an address like any other; it keeps 5 MiB of a partition, so it is read meanwhile.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::topic::Topic;

/// An error of a broker.
pub type BrokerError = RDKafkaRespErr;

/// A cluster of one broker, gone when dropped.
pub struct MockKafka(MockCluster<'static, DefaultProducerContext>);

impl MockKafka {
    /// A cluster on a free port of the loopback address.
    #[track_caller]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(MockCluster::new(1).expect("a cluster"))
    }

    /// Its address, as clients take it.
    pub fn brokers(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// A new topic.
    #[track_caller]
    pub fn topic(&self, name: &str, partitions: i32) -> Topic {
        self.0.create_topic(name, partitions, 1).expect("a topic");
        Topic::new(self.brokers(), name)
    }

    /// Answers the next requests to produce with these, one after the other.
    pub fn refuse(&self, errors: &[BrokerError]) {
        self.0.request_errors(RDKafkaApiKey::Produce, errors);
    }

    /// Answers truly again.
    pub fn accept(&self) {
        self.0.clear_request_errors(RDKafkaApiKey::Produce);
    }
}
