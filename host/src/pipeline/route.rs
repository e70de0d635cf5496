//! Where records go and what they carry: partition, key, headers.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use memchr::memchr_iter;

use super::{Flight, Pipeline};
use crate::budget::RECORD_BYTES;
use crate::model::{Entry, Partition, RecordKey};
use crate::sink::{Buffer, Chunk, Header, Pick, Record, Route, key_bytes};

/// What librdkafka keeps for the headers of a record, and for each of them beside its bytes.
const HEADER_BYTES: u64 = 96;

/// A path that is longer than usual. Bytes.
const PATH_BYTES: u64 = 256;

/// The headers that all records of an entry have but `path` and `offset`; none where it sends none.
pub(super) fn headers(entry: &Entry, host: &str) -> Option<Vec<Header>> {
    let header = |(name, value): (&str, &str)| {
        Some(Header { name: CString::new(name).ok()?, value: value.as_bytes().into() })
    };
    let labels = entry.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    entry.headers.then(|| std::iter::once(("host", host)).chain(labels).filter_map(header).collect())
}

/// The memory that a record takes beside its bytes.
pub(super) fn record_bytes(headers: Option<&[Header]>) -> u64 {
    let of = |header: &Header| HEADER_BYTES + (header.name.as_bytes().len() + header.value.len()) as u64;
    let more = headers.map(|fixed| 3 * HEADER_BYTES + PATH_BYTES + fixed.iter().map(of).sum::<u64>());
    RECORD_BYTES + more.unwrap_or_default()
}

impl Pipeline {
    /// The way of the lines of the file that was first seen as `origin`.
    pub(super) fn route(&self, origin: &Path) -> Route {
        let path = origin.to_string_lossy();
        let number = number_of(&self.host, &path);
        let partitions = self.partitions.count.unwrap_or(1);
        let partition = match self.entry.partition {
            Partition::File => Pick::Fixed((number as u32 % partitions as u32) as i32),
            Partition::Spread if self.entry.key == RecordKey::None => Pick::Freest(partitions),
            Partition::Spread => Pick::Partitioner,
        };
        let headers = self.headers.as_ref().map(|fixed| {
            let path = Header { name: c"path".into(), value: origin.as_os_str().as_bytes().into() };
            fixed.iter().cloned().chain([path]).collect::<Arc<[Header]>>()
        });
        let key = key_bytes(self.entry.key, &path, &self.host);
        Route { partition, key, headers, alone: false, stream: number }
    }
}

impl Flight {
    /// Where the line of each record, or its first one, stands in the file; nothing where that is not
    /// sent.
    pub(super) fn offsets(&self, chunk: &Chunk) -> Vec<u64> {
        if self.route.headers.is_none() {
            return Vec::new();
        }
        let mut sources = self.sources.iter();
        let offset = |record: &Record| {
            let start = match record.buffer {
                Buffer::Read if !self.dead_letter => record.start,
                _ => {
                    let first = sources.next().map_or(0, |place| place.0);
                    let more = if self.packed { memchr_iter(b'\n', chunk.bytes(record)).count() } else { 0 };
                    sources.by_ref().take(more).for_each(drop);
                    first
                }
            };
            self.origin.offset_of(start)
        };
        chunk.records.iter().map(offset).collect()
    }
}

/// The number of a file, of which the lower half says its partition: a hash that is the same in every run.
fn number_of(host: &str, path: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let hash = Sha256::new().chain_update(host).chain_update([0]).chain_update(path).finalize();
    hash[..8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
