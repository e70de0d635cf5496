//! Hands chunks of records to where they go and reports what became of each record.
//!
//! In: a [`Chunk`] that owns its buffers. Out: the same chunk in a [`Finished`], exactly once.
//! Absent by design: files, offsets, filters, etcd.
//!
//! librdkafka is given pointers into a chunk's buffers, so a chunk that was handed over comes back
//! only when nothing can read those buffers any more. Nobody outside this room can hold a chunk
//! and have it under way at the same time: [`Lane::send`] takes it by value.

use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::Charge;
use crate::model::{RecordKey, Topic};

pub mod consume;
pub mod kafka;
pub mod probe;
pub mod stdout;

mod flights;
mod gates;
mod native;
mod producer;
mod queue;
mod tally;
#[cfg(test)]
mod tests;
mod trouble;

pub use producer::Stopped;
pub use tally::SinkFigures;

/// Where a record's bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// First byte, in `read` or in `written`.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
    /// Which of the chunk's buffers.
    pub buffer: Buffer,
}

/// One of a chunk's two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// What was read from the file.
    Read,
    /// What the filter wrote instead.
    Written,
}

/// A run of records that travels together. The buffers are not changed while it is under way.
#[derive(Debug, Default)]
pub struct Chunk {
    /// What the pipeline knows it by; the sink only carries it.
    pub id: u64,
    /// What was read from the file.
    pub read: Vec<u8>,
    /// The filter's replacements.
    pub written: Vec<u8>,
    /// What to send, in order.
    pub records: Vec<Record>,
    /// Where the line of each record stands in its file; needed only where headers are sent.
    pub offsets: Vec<u64>,
    /// The memory this chunk is charged for, given back when it is dropped.
    pub charge: Option<Charge>,
}

impl Chunk {
    /// The bytes of one of its records.
    pub fn bytes(&self, record: &Record) -> &[u8] {
        let buffer = match record.buffer {
            Buffer::Read => &self.read,
            Buffer::Written => &self.written,
        };
        &buffer[record.start as usize..][..record.len as usize]
    }
}

/// A chunk that nothing outside this process can read any more, and what became of it.
#[derive(Debug)]
pub struct Finished {
    /// The chunk as it was handed over.
    pub chunk: Chunk,
    /// The records that were sent and not acknowledged, in order; empty when all were.
    pub failed: Vec<Failed>,
}

/// A record that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its place in `chunk.records`.
    pub record: u32,
    /// Why, and so what to do.
    pub why: Refusal,
    /// librdkafka's name of the error, such as `MSG_SIZE_TOO_LARGE`.
    pub code: Arc<str>,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Purged, the producer was rebuilt, or any error that goes by itself: send it again.
    Again,
    /// The topic does not exist or may not be written: wait, say so, send it again.
    Topic,
    /// The broker refuses the record or one that stood in a batch with it. Send it again with
    /// [`Route::alone`]; if it was sent so already, it is this record and no other.
    Record,
}

/// How the records of a chunk are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The partition of all of its records.
    pub partition: Pick,
    /// The key of every record.
    pub key: Option<Arc<[u8]>>,
    /// The headers of every record, which has its offset as one more.
    pub headers: Option<Arc<[Header]>>,
    /// Each record in a batch of its own, so that the broker's answer is about it alone.
    pub alone: bool,
    /// Of what a lane sends to one partition, that of one such number keeps its order.
    pub stream: u64,
}

impl Route {
    /// Records without key and headers.
    pub const fn to(partition: Pick) -> Self {
        Self { partition, key: None, headers: None, alone: false, stream: 0 }
    }
}

/// Which partition the records of a chunk go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// This one.
    Fixed(i32),
    /// Of so many the one that has least under way.
    Freest(i32),
    /// As librdkafka's partitioner says, for each record.
    Partitioner,
}

/// A header that all records of a chunk have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: CString,
    /// Its value.
    pub value: Box<[u8]>,
}

/// Called once with each chunk that comes back. It must not block: it may run on the thread that
/// serves delivery reports for all entries.
pub type Done = Arc<dyn Fn(Finished) + Send + Sync>;

/// A destination that lanes are opened on.
pub trait Sink: Send + Sync {
    /// Opens a lane to `topic`, whose chunks come back through `done`.
    fn open(&self, topic: &Topic, done: Done) -> Box<dyn Lane>;
}

/// A pipeline's way to one topic.
pub trait Lane: Send {
    /// How many partitions the topic has. Asks the destination, for at most a second.
    fn partitions(&mut self) -> Result<i32, SinkError>;

    /// Sends the records of `chunk` (all, or those at the indexes in `only`, ascending), in order.
    /// Never blocks on the network. Records that are refused at once come back with the others,
    /// which can be from inside this call.
    ///
    /// The first chunk that comes back with a failure closes the lane: from then on chunks come
    /// back untried, so that nothing new overtakes what has to be sent again. A change of
    /// [`Route::alone`] with chunks still under way closes it too.
    fn send(&mut self, chunk: Chunk, only: Option<&[u32]>, route: &Route);

    /// Opens a lane that a failure closed. Call it when every chunk sent has come back, then send
    /// again what failed, in order. After [`Refusal::Topic`] call [`Lane::partitions`] first:
    /// it makes the destination look again at the topic.
    fn resume(&mut self);
}

/// Why a destination cannot be used just now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// It says that the topic cannot be used.
    #[error("topic {topic}: {code}")]
    Topic {
        /// Which one.
        topic: Topic,
        /// librdkafka's name of the error.
        code: Arc<str>,
    },
    /// A property that librdkafka does not take.
    #[error("kafka property {key}: {cause}")]
    Property {
        /// Its name.
        key: String,
        /// What librdkafka says of it.
        cause: String,
    },
    /// Properties that do not go together, or the host has no room for a producer.
    #[error("cannot make a Kafka producer: {cause}")]
    Create {
        /// What librdkafka or the host says.
        cause: String,
    },
    /// It did not answer.
    #[error("no answer from Kafka ({code})")]
    Unreachable {
        /// librdkafka's name of the error.
        code: Arc<str>,
    },
}

/// Whether a record carries a key, as bytes for [`Route::key`].
pub fn key_bytes(key: RecordKey, path: &str, host: &str) -> Option<Arc<[u8]>> {
    match key {
        RecordKey::None => None,
        RecordKey::Path => Some(path.as_bytes().into()),
        RecordKey::Host => Some(host.as_bytes().into()),
    }
}

/// A panic elsewhere leaves what is guarded here whole: nothing panics half-way through a change.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
