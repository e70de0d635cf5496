//! The harness of weir's tests: everything around the agent is real.
//!
//! - [`kafka`]: an Apache Kafka, shared by a test binary or private to a test; [`topic`] reads it
//!   back with a consumer of its own.
//! - [`etcd`]: the same for etcd.
//! - [`mock`]: a Kafka in this process, which can be told to answer with errors.
//! - [`lines`]: files whose lines can be told apart, and the tally that says what became of them;
//!   [`steady`]: one whose lines say when they were written.
//! - [`weir`]: the agent as a process; [`metrics`] is what it says about itself.
//! - [`guests`]: filters, built once.
//! - [`tls`]: certificates for Kafka and etcd.
//! - [`terminal`]: someone who sits at one.
//! - [`preload`]: a clock that jumps, a disk that fails, a power cut.
//!
//! Whatever is started here ends with the test process, however that ends ([`process`]), and
//! works in a directory that goes with it ([`scratch`]). Nothing sleeps and hopes: [`wait`].
//! Absent by design: anything of the agent's own code.

pub mod etcd;
pub mod guests;
pub mod http;
pub mod kafka;
pub mod lines;
pub mod metrics;
pub mod mock;
pub mod ports;
pub mod preload;
pub mod process;
pub mod proxy;
pub mod scratch;
pub mod steady;
pub mod terminal;
pub mod tls;
pub mod topic;
pub mod wait;
pub mod weir;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Locks, whatever became of a thread that had it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
