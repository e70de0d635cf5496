//! weir: a host agent that follows log files, passes their lines through a sandboxed
//! WebAssembly filter where one is named, and produces them to Kafka.
//!
//! # The map
//!
//! Modules stand in the order in which things flow. Each one's documentation says what comes in,
//! what goes out, and what is absent by design.
//!
//! ```text
//!  notify, scan ─► source ──────► filter ───────► sink ─────► librdkafka ─► Kafka
//!                  read a chunk   one call a      one batch                 │
//!                  split lines    chunk           enqueue                   │
//!                       ▲                                                   │
//!    checkpoint ◄── ledger: committed offset ◄── a counter a chunk ◄────────┘ delivery reports
//! ```
//!
//! A *pipeline* is one running entry of the collect list, on a thread of its own. The *agent*
//! compares the wanted list with the running pipelines and owns every thread and task.
//! *Control* feeds the wanted list from etcd or a file. *Admin* shows what happens.
//!
//! # What holds everywhere
//!
//! - `source`, `filter` and `sink` do not import one another; they share only [`model`].
//! - Only [`pipeline`] sees all three. Only [`agent`] starts threads and tasks for them.
//! - Only [`control`] names etcd, only [`sink`] librdkafka, only [`filter`] wasmtime.
//! - A committed offset moves only over a prefix that is finished: see [`ledger`].

pub mod cli;
pub mod config;
pub mod confine;
pub mod model;
pub mod policy;
pub mod status;
pub mod tap;

pub mod filter;
pub mod sink;
pub mod source;

pub mod allocator;
pub mod budget;
pub mod ledger;
pub mod pipeline;
pub mod quarantine;

pub mod agent;
pub mod control;

pub mod admin;
pub mod state;
pub mod telemetry;

#[cfg(any(test, fuzzing))]
pub mod fuzz;
