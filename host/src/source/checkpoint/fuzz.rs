//! Fuzz target: what a disk, or another version of weir, may have made of a stored record.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use redb::backends::InMemoryBackend;

use super::store::{Store, builder};
use super::{EntryRecord, Record, decode, encode};
use crate::model::EntryName;
use crate::source::identity::HEAD_BYTES;

/// What a log may hold: longer than what is remembered of its beginning.
const LOG_BYTES: usize = 4096;

thread_local! {
    static STORE: RefCell<Store> = RefCell::new(Store::with(PathBuf::from("checkpoints.redb"), |_| {
        Ok(builder().create_with_backend(InMemoryBackend::new())?)
    }));
    static LOG: File = log().expect("make a file");
}

fn log() -> std::io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&[b'x'; LOG_BYTES])?;
    Ok(file)
}

/// A record is what was stored, or is known as lost; none is taken for another, and the file it
/// speaks of can be compared with it.
pub fn state(input: &[u8]) {
    let record = decode::<Record>(input);
    if let Some(record) = &record {
        assert_eq!(decode::<Record>(&encode(record)).as_ref(), Some(record), "not what was stored");
        LOG.with(|log| compare(record, log));
    }
    let entry = decode::<EntryRecord>(input);
    if let Some(entry) = &entry {
        let again = decode::<EntryRecord>(&encode(entry)).expect("what was written can be read");
        assert_eq!((&again.path, again.retired), (&entry.path, entry.retired));
    }
    let name = EntryName("entry".into());
    STORE.with_borrow_mut(|store| {
        store.put_raw(&name, input).expect("write to memory");
        let saved = store.read(&name).expect("whatever is stored can be read");
        assert_eq!(saved.path, entry.map(|entry| entry.path));
        assert_eq!(saved.lost, record.is_none());
        assert_eq!(saved.records.into_iter().next(), record);
    });
}

/// What is taken for the bytes before the offset stands there.
fn compare(record: &Record, log: &File) {
    if let Ok(Some(tail)) = record.trace.verify(log, record.committed) {
        let mut there = vec![0; tail.len()];
        log.read_exact_at(&mut there, record.committed - tail.len() as u64).expect("these bytes were read");
        assert_eq!(there, tail);
    }
    if record.head.matches(log).is_ok_and(|same| same) {
        assert!(usize::from(record.head.len) <= HEAD_BYTES);
    }
}
