//! The bare loop: what following a file and producing its lines costs at the least.
//!
//! Reads 256 KiB, cuts at newlines, hands `rd_kafka_produce_batch` pointers into what was read, and
//! reads into a buffer again when all of its records are reported. It is built with the librdkafka
//! of weir and given its properties. No offsets, no filter, no second file, nothing sent again,
//! nothing that survives a restart: nothing is in it that a real agent could leave away.

#![allow(unsafe_code)] // librdkafka, as plainly as it can be called

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Read as _;
use std::ptr;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaRespErr;

const READ_BYTES: usize = 256 * 1024;
/// 64 MiB, as much as weir may have under way; then the loop waits for reports.
const CHUNKS_MAX: usize = 256;
/// For a report, where the loop waits for one.
const POLL_MS: c_int = 100;
const ANY_PARTITION: i32 = -1;
/// librdkafka copies each record. Without it, it reads them where they are.
const COPY: c_int = rd::RD_KAFKA_MSG_F_COPY as c_int;

/// What was read, and how many of its records are not reported yet.
struct Chunk {
    bytes: Box<[u8]>,
    /// Behind a pointer that stays as it is while the chunk is handed on.
    unreported: Rc<Cell<usize>>,
}

/// `bare-loop copy|nocopy BROKERS TOPIC FILE [KEY=VALUE]...`
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [copy, brokers, topic, file, properties @ ..] = args else {
        bail!("usage: bare-loop copy|nocopy BROKERS TOPIC FILE [KEY=VALUE]...");
    };
    let mut all = vec![("bootstrap.servers", brokers.as_str())];
    for property in properties {
        all.push(property.split_once('=').with_context(|| format!("{property}: KEY=VALUE is wanted"))?);
    }
    let producer = producer(&all)?;
    let topic = CString::new(topic.as_str())?;
    // SAFETY: the producer is alive; the name is copied.
    let topic = unsafe { rd::rd_kafka_topic_new(producer, topic.as_ptr(), ptr::null_mut()) };
    let mut out = Loop {
        producer,
        topic,
        flags: if copy == "copy" { COPY } else { 0 },
        under_way: VecDeque::new(),
        free: Vec::new(),
        messages: Vec::new(),
    };
    let done = out.send(&mut File::open(file).with_context(|| file.clone())?);
    if done.is_err() {
        // Records may lie in buffers that are still read: leave without freeing any.
        std::mem::forget(out);
        return done;
    }
    // SAFETY: all records are reported, so nothing of the buffers is read; each is destroyed once.
    unsafe {
        rd::rd_kafka_topic_destroy(topic);
        rd::rd_kafka_destroy(producer);
    }
    Ok(())
}

struct Loop {
    producer: *mut rd::rd_kafka_t,
    topic: *mut rd::rd_kafka_topic_t,
    flags: c_int,
    under_way: VecDeque<Chunk>,
    free: Vec<Chunk>,
    messages: Vec<rd::rd_kafka_message_t>,
}

impl Loop {
    fn send(&mut self, file: &mut File) -> Result<()> {
        let mut partial: Vec<u8> = Vec::new();
        loop {
            let mut chunk = self.chunk();
            chunk.bytes[..partial.len()].copy_from_slice(&partial);
            let read = file.read(&mut chunk.bytes[partial.len()..])?;
            if read == 0 {
                break;
            }
            let end = partial.len() + read;
            let rest = self.split(&chunk, end);
            if rest == 0 && end == READ_BYTES {
                bail!("a line is longer than {READ_BYTES} bytes");
            }
            partial.clear();
            partial.extend_from_slice(&chunk.bytes[rest..end]);
            self.under_way.push_back(chunk);
            self.hand_over()?;
        }
        while !self.under_way.is_empty() {
            self.take_reports(POLL_MS);
        }
        match FAILED.get() {
            0 => Ok(()),
            failed => bail!("{failed} records were not delivered"),
        }
    }

    /// A buffer of which nothing is under way.
    fn chunk(&mut self) -> Chunk {
        self.take_reports(0);
        while self.under_way.len() >= CHUNKS_MAX {
            self.take_reports(POLL_MS);
        }
        let new = || Chunk { bytes: vec![0; READ_BYTES].into(), unreported: Rc::default() };
        self.free.pop().unwrap_or_else(new)
    }

    /// One message a line. Returns where the last, partial line begins.
    fn split(&mut self, chunk: &Chunk, end: usize) -> usize {
        self.messages.clear();
        let counter = Rc::as_ptr(&chunk.unreported);
        let mut start = 0;
        for newline in memchr::memchr_iter(b'\n', &chunk.bytes[..end]) {
            self.messages.push(message(&chunk.bytes[start..newline], counter));
            start = newline + 1;
        }
        chunk.unreported.set(self.messages.len());
        start
    }

    fn hand_over(&mut self) -> Result<()> {
        let (messages, count) = (self.messages.as_mut_ptr(), c_int::try_from(self.messages.len())?);
        // SAFETY: producer and topic are alive, and so are the bytes and the counter that each message
        // points at until it is reported: see `take_reports`.
        let taken =
            unsafe { rd::rd_kafka_produce_batch(self.topic, ANY_PARTITION, self.flags, messages, count) };
        if taken != count {
            bail!("{} of {count} records were refused", count - taken);
        }
        Ok(())
    }

    /// Counts what was reported, and frees the buffers, the oldest first, of which all was.
    fn take_reports(&mut self, wait_ms: c_int) {
        // SAFETY: the producer is alive.
        unsafe { rd::rd_kafka_poll(self.producer, wait_ms) };
        while self.under_way.front().is_some_and(|chunk| chunk.unreported.get() == 0) {
            self.free.extend(self.under_way.pop_front());
        }
    }
}

thread_local! {
    /// Records that were reported as not delivered.
    static FAILED: Cell<u64> = const { Cell::new(0) };
}

/// One record is reported. Called by `rd_kafka_poll`, in its thread.
unsafe extern "C" fn reported(
    _: *mut rd::rd_kafka_t,
    message: *const rd::rd_kafka_message_t,
    _: *mut c_void,
) {
    // SAFETY: librdkafka hands out a message of `split`, whose counter lives until it is counted here.
    let (error, unreported) = unsafe { ((*message).err, &*(*message)._private.cast::<Cell<usize>>()) };
    unreported.set(unreported.get() - 1);
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        FAILED.set(FAILED.get() + 1);
    }
}

fn message(line: &[u8], counter: *const Cell<usize>) -> rd::rd_kafka_message_t {
    rd::rd_kafka_message_t {
        err: RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: 0,
        payload: line.as_ptr().cast_mut().cast(),
        len: line.len(),
        key: ptr::null_mut(),
        key_len: 0,
        offset: 0,
        _private: counter.cast_mut().cast(),
    }
}

fn producer(properties: &[(&str, &str)]) -> Result<*mut rd::rd_kafka_t> {
    let mut text: [c_char; 512] = [0; 512];
    // SAFETY: the strings live during each call, `text` has the size that is given, and the
    // configuration is taken over by the producer.
    unsafe {
        let conf = rd::rd_kafka_conf_new();
        for (key, value) in properties {
            let (name, value) = (CString::new(*key)?, CString::new(*value)?);
            let done = rd::rd_kafka_conf_set(conf, name.as_ptr(), value.as_ptr(), text.as_mut_ptr(), 512);
            if done != rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                bail!("{key}: {}", CStr::from_ptr(text.as_ptr()).to_string_lossy());
            }
        }
        rd::rd_kafka_conf_set_dr_msg_cb(conf, Some(reported));
        let kind = rd::rd_kafka_type_t::RD_KAFKA_PRODUCER;
        let producer = rd::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
        if producer.is_null() {
            bail!("{}", CStr::from_ptr(text.as_ptr()).to_string_lossy());
        }
        Ok(producer)
    }
}
