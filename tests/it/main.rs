//! The tests of the whole: an agent as a process between real files, a real etcd and a real Kafka.
//!
//! A test is a sentence. What it says is done by the harness, `weir-tests`, and what the agent
//! promises is taken from outside: from the topic, from etcd, from its status and its metrics.

mod harness;
