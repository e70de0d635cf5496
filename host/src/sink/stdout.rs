//! The sink that prints: each record and a newline, a chunk at a time.
//!
//! In: chunks. Out: the same, finished before [`Lane::send`] returns. Absent by design: topics,
//! partitions, memory of anything.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::{Chunk, Done, Failed, Finished, Lane, Refusal, Route, Sink, SinkError, lock};
use crate::model::Topic;

/// Prints what other sinks would send.
pub struct StdoutSink {
    out: Arc<Mutex<dyn Write + Send>>,
}

impl StdoutSink {
    /// Prints to standard output.
    pub fn new() -> Self {
        Self { out: Arc::new(Mutex::new(io::stdout())) }
    }
}

impl Default for StdoutSink {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for StdoutSink {
    fn open(&self, _: &Topic, done: Done) -> Box<dyn Lane> {
        Box::new(StdoutLane { out: self.out.clone(), done, text: Vec::new() })
    }
}

struct StdoutLane {
    out: Arc<Mutex<dyn Write + Send>>,
    done: Done,
    text: Vec<u8>,
}

impl Lane for StdoutLane {
    fn partitions(&mut self) -> Result<i32, SinkError> {
        Ok(1)
    }

    fn send(&mut self, chunk: Chunk, only: Option<&[u32]>, _: &Route) {
        self.text.clear();
        for record in super::flights::sent(&chunk, only) {
            self.text.extend_from_slice(chunk.bytes(&chunk.records[record as usize]));
            self.text.push(b'\n');
        }
        let failed = match self.print() {
            Ok(()) => Vec::new(),
            Err(error) => failed(&chunk, only, &error),
        };
        (self.done)(Finished { chunk, failed });
    }

    fn resume(&mut self) {}
}

impl StdoutLane {
    /// All or nothing as far as the lock goes: lines of two chunks never mix.
    fn print(&self) -> io::Result<()> {
        let mut out = lock(&self.out);
        out.write_all(&self.text)?;
        out.flush()
    }
}

/// Whoever read the output is gone: as with a topic that is gone, all that helps is to wait.
fn failed(chunk: &Chunk, only: Option<&[u32]>, error: &io::Error) -> Vec<Failed> {
    let code: Arc<str> = match error.kind() {
        io::ErrorKind::BrokenPipe => "BROKEN_PIPE".into(),
        kind => kind.to_string().into(),
    };
    super::flights::sent(chunk, only)
        .map(|record| Failed { record, why: Refusal::Topic, code: code.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::sink::{Buffer, Pick, Record};

    const ROUTE: Route = Route::to(Pick::Partitioner);

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn chunk() -> Chunk {
        let record = |start, len, buffer| Record { start, len, buffer };
        Chunk {
            read: b"one\ntwo\n".to_vec(),
            written: b"2".to_vec(),
            records: vec![
                record(0, 3, Buffer::Read),
                record(0, 1, Buffer::Written),
                record(4, 3, Buffer::Read),
            ],
            ..Chunk::default()
        }
    }

    fn printed(out: Arc<Mutex<dyn Write + Send>>, only: Option<&[u32]>) -> Finished {
        let (done, finished) = mpsc::channel();
        let topic = Topic::parse("t").unwrap();
        let mut lane = StdoutSink { out }.open(&topic, Arc::new(move |f| done.send(f).unwrap()));
        lane.send(chunk(), only, &ROUTE);
        finished.try_recv().unwrap()
    }

    #[test]
    fn records_are_printed_in_order_from_both_buffers() {
        let out = Arc::new(Mutex::new(Vec::new()));
        assert!(printed(out.clone(), None).failed.is_empty());
        assert_eq!(lock(&out).as_slice(), b"one\n2\ntwo\n");
        assert!(printed(out.clone(), Some(&[1])).failed.is_empty());
        assert_eq!(lock(&out).as_slice(), b"one\n2\ntwo\n2\n");
    }

    #[test]
    fn a_closed_pipe_fails_what_was_to_be_printed() {
        let finished = printed(Arc::new(Mutex::new(Full)), Some(&[0, 2]));
        let failed: Vec<_> = finished.failed.iter().map(|f| (f.record, &*f.code)).collect();
        assert_eq!(failed, [(0, "BROKEN_PIPE"), (2, "BROKEN_PIPE")]);
    }
}
