//! The bare loop: what following a file and producing its lines costs at the least.
//!
//! Reads 256 KiB, cuts at newlines, hands the lines to `rd_kafka_produce_batch`, flushes at the end.
//! It is built with the librdkafka of weir and given its properties. No offsets, no filter, no order
//! after failures, no second file, nothing that survives a restart; nothing that a real agent can
//! leave away.

#![allow(unsafe_code)] // librdkafka, as plainly as it can be called

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::Read as _;
use std::ptr;

use anyhow::{Context as _, Result, bail};
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaRespErr;

const READ_BYTES: usize = 256 * 1024;
/// As much as weir may have under way; then the loop waits.
const QUEUE_KBYTES: &str = "65536";
/// The copy of a record is librdkafka's.
const COPY: c_int = 2;
const ANY_PARTITION: i32 = -1;
const FLUSH_MS: c_int = 600_000;

/// `bare-loop BROKERS TOPIC FILE [KEY=VALUE]...`
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [brokers, topic, file, properties @ ..] = args else {
        bail!("usage: bare-loop BROKERS TOPIC FILE [KEY=VALUE]...");
    };
    let mut all = vec![("bootstrap.servers", brokers.as_str())];
    for property in properties {
        all.push(property.split_once('=').with_context(|| format!("{property}: KEY=VALUE is wanted"))?);
    }
    all.push(("queue.buffering.max.kbytes", QUEUE_KBYTES));
    let producer = producer(&all)?;
    let topic = CString::new(topic.as_str())?;
    // SAFETY: the producer lives as long as the process; the name is copied.
    let topic = unsafe { rd::rd_kafka_topic_new(producer, topic.as_ptr(), ptr::null_mut()) };
    produce(producer, topic, &mut File::open(file).with_context(|| file.clone())?)?;
    // SAFETY: the producer is alive; it is destroyed once, its topic before it.
    unsafe {
        let left = rd::rd_kafka_flush(producer, FLUSH_MS);
        rd::rd_kafka_topic_destroy(topic);
        rd::rd_kafka_destroy(producer);
        match left {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            left => bail!("not all was acknowledged: {left:?}"),
        }
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
        let kind = rd::rd_kafka_type_t::RD_KAFKA_PRODUCER;
        let producer = rd::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
        if producer.is_null() {
            bail!("{}", CStr::from_ptr(text.as_ptr()).to_string_lossy());
        }
        Ok(producer)
    }
}

fn produce(producer: *mut rd::rd_kafka_t, topic: *mut rd::rd_kafka_topic_t, file: &mut File) -> Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut messages = Vec::new();
    let mut held = 0;
    loop {
        let read = file.read(&mut buffer[held..])?;
        if read == 0 {
            return Ok(());
        }
        let bytes = &buffer[..held + read];
        let mut start = 0;
        messages.clear();
        for end in memchr::memchr_iter(b'\n', bytes) {
            messages.push(message(&bytes[start..end]));
            start = end + 1;
        }
        hand_over(producer, topic, &mut messages)?;
        held = bytes.len() - start;
        if held == buffer.len() {
            bail!("a line is longer than {READ_BYTES} bytes");
        }
        buffer.copy_within(start..start + held, 0);
    }
}

fn message(line: &[u8]) -> rd::rd_kafka_message_t {
    rd::rd_kafka_message_t {
        err: RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: 0,
        payload: line.as_ptr().cast_mut().cast(),
        len: line.len(),
        key: ptr::null_mut(),
        key_len: 0,
        offset: 0,
        _private: ptr::null_mut(),
    }
}

/// What a full queue refuses is handed over again, in order.
fn hand_over(
    producer: *mut rd::rd_kafka_t,
    topic: *mut rd::rd_kafka_topic_t,
    messages: &mut Vec<rd::rd_kafka_message_t>,
) -> Result<()> {
    loop {
        let count = c_int::try_from(messages.len())?;
        // SAFETY: producer and topic are alive, and so is what the messages point at.
        let taken =
            unsafe { rd::rd_kafka_produce_batch(topic, ANY_PARTITION, COPY, messages.as_mut_ptr(), count) };
        if taken == count {
            return Ok(());
        }
        messages.retain(|message| message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        for message in &mut *messages {
            if message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                bail!("refused: {:?}", message.err);
            }
            message.err = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        }
        // SAFETY: the producer is alive.
        unsafe { rd::rd_kafka_poll(producer, 1) };
    }
}
