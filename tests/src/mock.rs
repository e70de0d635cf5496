//! librdkafka's in-process cluster, of as many brokers as wanted. The agent finds it at an address like any
//! other; it keeps 5 MiB of a partition, so it is read meanwhile.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::topic::Topic;

/// A cluster, gone when dropped.
pub struct MockKafka(MockCluster<'static, DefaultProducerContext>);

impl MockKafka {
    /// A cluster of so many brokers, 1 and up, on free ports of the loopback address.
    #[track_caller]
    pub fn new(brokers: i32) -> Self {
        Self(MockCluster::new(brokers).expect("a cluster"))
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

    /// Gives the one partition of a topic to a broker.
    #[track_caller]
    pub fn lead(&self, topic: &Topic, broker: i32) {
        self.0.partition_leader(topic.name(), 0, Some(broker)).expect("a leader");
    }

    /// Takes a broker away. What it led has no other leader.
    #[track_caller]
    pub fn down(&self, broker: i32) {
        self.0.broker_down(broker).expect("a broker that goes");
    }

    /// Brings it back.
    #[track_caller]
    pub fn up(&self, broker: i32) {
        self.0.broker_up(broker).expect("a broker that comes");
    }

    /// All brokers answer so late.
    #[track_caller]
    pub fn answer_after(&self, time: std::time::Duration) {
        self.0.broker_round_trip_time(-1, time).expect("a round trip time");
    }
}
