//! The tests of the whole: an agent as a process between real files, a real etcd and a real Kafka.
//!
//! A test is a sentence. What it says is done by the harness, `weir-tests`, and what the agent
//! promises is judged from outside: from the topic, from etcd, from its status and its metrics.

mod author;
mod cli;
mod control;
mod delivery;
mod dependencies;
mod docs;
mod fairness;
mod faults;
mod filter;
mod harness;
mod hostile;
mod lists;
mod operate;
mod options;
mod packaging;
mod page;
mod rotation;
mod secure;
mod service;
mod shutdown;
mod store;
mod tidy;
mod trust;

use std::time::Duration;

use serde_json::Value;
use weir_tests::etcd::Etcd;
use weir_tests::kafka::Kafka;
use weir_tests::weir::Weir;

/// For a million lines on a busy machine.
const LONG: Duration = Duration::from_secs(300);

/// A host whose agent produces to the shared Kafka.
fn host() -> Weir {
    unconnected().kafka(&Kafka::shared().brokers())
}

/// A host whose agent knows no Kafka yet. `WEIR_TESTS_BIN` names an agent of another build.
fn unconnected() -> Weir {
    let bin = std::env::var_os("WEIR_TESTS_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_weir").into());
    Weir::new(bin.as_ref())
}

/// A host steered from the shared etcd; `key` is its collect key.
fn steered(key: &str) -> Weir {
    host().etcd(&Etcd::shared().endpoint(), key)
}

/// Puts a list into the shared etcd.
#[track_caller]
fn put_list(key: &str, list: &Value) {
    Etcd::shared().put(key, list.to_string());
}
