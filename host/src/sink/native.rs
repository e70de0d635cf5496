//! librdkafka's producer, owned. The one place of this room with `unsafe`.
//!
//! In: chunks, by value. Out: [`Landed`] chunks. librdkafka gets pointers into their buffers, so
//! the rule that all of this file serves is: *a chunk is freed only when each of its records was
//! reported, or after `rd_kafka_destroy` returned*. [`Native`] owns both the producer and the
//! [`Flights`] that own the chunks, and drops them in that order. [`Reports`] and [`Destroyed`] are
//! made here alone. If a thread panics meanwhile, its chunks stay where they are.
//!
//! Absent by design: callbacks (reports come as events, to the thread that asks), when to rebuild,
//! what to send again.
//!
//! Error codes stay numbers here: a broker may send a code that this librdkafka does not know, and
//! such a value must never be read as the binding's enum.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaRespErr;

use super::flights::{Flights, Landed, Ticket, sent};
use super::gates::Parcel;
use super::tally::Tally;
use super::trouble::Troubles;
use super::{Chunk, Header, Pick, Route, SinkError, lock};
use crate::model::Topic;

/// A part of a record, of whichever kind.
type Value = rd::rd_kafka_vu_s__bindgen_ty_1;

/// librdkafka's name for "as the partitioner says".
const ANY_PARTITION: i32 = -1;
/// How many reports are looked at between two calls into librdkafka.
const REPORTS_AT_ONCE: usize = 256;
/// A record that is larger than `message.max.bytes`.
const TOO_LARGE: i32 = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as i32;
/// Room for librdkafka's texts; it cuts them at 512 itself. Bytes.
const TEXT_BYTES: usize = 512;
/// Of a record that is taken for written and may not be.
const IN_DOUBT: i32 = RDKafkaRespErr::RD_KAFKA_RESP_ERR__INCONSISTENT as i32;

const _: () = assert!(usize::BITS == 64, "an opaque is 64 bits in a pointer");

/// A producer and the chunks it may be reading.
pub(super) struct Native {
    // Dropped in this order: the producer is destroyed before any chunk is freed.
    handle: Handle,
    flights: Flights,
}

/// What librdkafka said about records.
#[derive(Default)]
pub(super) struct Reports {
    runs: Vec<(Ticket, u64)>,
    failures: Vec<(Ticket, u32, i32)>,
}

/// Proof that `rd_kafka_destroy` returned: no thread of that producer exists any more.
pub(super) struct Destroyed(());

/// Why a producer can send nothing any more.
#[derive(Debug)]
pub(super) struct Fatal {
    /// librdkafka's name of the error.
    pub(super) code: String,
    /// What it says of it; names the topic where one is to blame.
    pub(super) text: String,
}

impl Reports {
    /// Records reported, by flight.
    pub(super) fn runs(&self) -> &[(Ticket, u64)] {
        &self.runs
    }

    /// Those of them that failed: flight, record, error code.
    pub(super) fn failures(&self) -> &[(Ticket, u32, i32)] {
        &self.failures
    }

    fn add(&mut self, opaque: u64, code: i32) {
        let (ticket, record) = Ticket::of(opaque);
        match self.runs.last_mut() {
            Some((last, records)) if *last == ticket => *records += 1,
            _ => self.runs.push((ticket, 1)),
        }
        if code != 0 {
            self.failures.push((ticket, record, code));
        }
    }
}

impl Native {
    /// A producer with these properties, the later ones winning.
    pub(super) fn new(properties: &[(String, String)], tally: Arc<Tally>) -> Result<Self, SinkError> {
        Ok(Self { handle: Handle::new(properties)?, flights: Flights::new(tally) })
    }

    /// The chunks under way.
    pub(super) fn flights(&self) -> &Flights {
        &self.flights
    }

    /// Hands over the records of `chunk`. What comes back at once is complete: nothing of it was
    /// taken, or all of it was reported meanwhile.
    pub(super) fn send(&self, batch: &mut Batch, parcel: Parcel) -> Option<Landed> {
        let (topic, route) = (parcel.topic.clone(), parcel.route.clone());
        batch.load(&parcel.chunk, parcel.only.as_deref(), &route);
        let ticket = match self.flights.board(parcel) {
            Ok(ticket) => ticket,
            Err(bounced) => return Some(*bounced),
        };
        batch.stamp(ticket);
        let partition = match route.partition {
            Pick::Fixed(partition) => partition,
            Pick::Freest(_) | Pick::Partitioner => ANY_PARTITION,
        };
        let mut reports = match self.handle.topic(&topic) {
            Ok(handle) => match &route.headers {
                None => self.handle.produce(handle, partition, batch),
                Some(headers) => self.handle.produce_each(handle, partition, batch, headers),
            },
            Err(code) => batch.refuse_all(code),
        };
        reports.runs.push((ticket, 1));
        batch.clear();
        self.flights.report(&reports).pop()
    }

    /// Waits for one event and handles it. Chunks that it completes are added to `landed`.
    pub(super) fn serve(&self, wait: Duration, landed: &mut Vec<Landed>) -> Option<Fatal> {
        match self.handle.poll(wait) {
            Event::Nothing => None,
            Event::Reports(reports, doubt) => {
                landed.extend(self.flights.report(&reports));
                doubt
            }
            Event::Fatal(fatal) => Some(fatal),
        }
    }

    /// Serves reports until nothing is under way or `until` has passed.
    fn serve_until(&self, until: Instant, landed: &mut Vec<Landed>) {
        while !self.flights.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.serve(left, landed);
        }
    }

    /// Ends the producer and brings back every chunk it had: `settle` for answers that are on
    /// their way, then a purge and at most `purge` for the reports of that.
    pub(super) fn destroy(self, settle: Duration, purge: Duration) -> Vec<Landed> {
        let mut landed = Vec::new();
        self.serve_until(Instant::now() + settle, &mut landed);
        self.handle.purge();
        self.serve_until(Instant::now() + purge, &mut landed);
        let Self { handle, flights } = self;
        landed.extend(flights.sweep(handle.destroy()));
        landed
    }

    /// Makes a [`Native::serve`] that waits return.
    pub(super) fn wake(&self) {
        // SAFETY: the queue lives as long as the handle.
        unsafe { rd::rd_kafka_queue_yield(self.handle.queue.as_ptr()) }
    }

    /// Asks the cluster for the number of partitions of `topic`, which also makes librdkafka look
    /// again at a topic that it holds for unusable.
    pub(super) fn partitions(&self, topic: &Topic, wait: Duration) -> Result<i32, SinkError> {
        self.handle.partitions(topic, wait)
    }

    /// Raises a fatal error as a broker's answer would.
    #[cfg(test)]
    pub(super) fn fail(&self, reason: &str) {
        let reason = c_string(reason);
        let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the producer is alive, and the text is copied.
        unsafe { rd::rd_kafka_test_fatal_error(self.handle.producer.as_ptr(), code, reason.as_ptr()) };
    }
}

/// What one look at the queue brought.
enum Event {
    Nothing,
    /// What became of records, and why the producer is not to be trusted any more.
    Reports(Reports, Option<Fatal>),
    Fatal(Fatal),
}

/// The producer itself, its event queue and its topics.
struct Handle {
    producer: NonNull<rd::rd_kafka_t>,
    queue: NonNull<rd::rd_kafka_queue_t>,
    topics: Mutex<HashMap<Topic, TopicHandle>>,
    acknowledged: Mutex<Acknowledged>,
    troubles: Mutex<Troubles>,
}

#[derive(Clone, Copy)]
struct TopicHandle(NonNull<rd::rd_kafka_topic_t>);

// SAFETY: librdkafka's API may be called from any thread, its objects are locked inside.
unsafe impl Send for Handle {}
// SAFETY: as above; `topics` is locked here.
unsafe impl Sync for Handle {}
// SAFETY: a reference-counted object behind librdkafka's own lock.
unsafe impl Send for TopicHandle {}

impl Handle {
    fn new(properties: &[(String, String)]) -> Result<Self, SinkError> {
        let conf = Conf::new(properties)?;
        let mut text = [0; TEXT_BYTES];
        // SAFETY: `conf` is a valid configuration, which is taken over if and only if the call
        // succeeds; `text` has the size that is given.
        let producer = unsafe {
            rd::rd_kafka_new(
                rd::rd_kafka_type_t::RD_KAFKA_PRODUCER,
                conf.0.as_ptr(),
                text.as_mut_ptr(),
                text.len(),
            )
        };
        let producer = NonNull::new(producer).ok_or_else(|| SinkError::Create { cause: read_text(&text) })?;
        mem::forget(conf);
        // SAFETY: the producer is alive. A null queue means: logs go to the main queue too, which
        // is returned with a reference of its own and is never null.
        let queue = unsafe {
            rd::rd_kafka_set_log_queue(producer.as_ptr(), ptr::null_mut());
            NonNull::new_unchecked(rd::rd_kafka_queue_get_main(producer.as_ptr()))
        };
        Ok(Self {
            producer,
            queue,
            topics: Mutex::default(),
            acknowledged: Mutex::default(),
            troubles: Mutex::new(Troubles::new(Instant::now())),
        })
    }

    /// The handle of a topic, made on first use and kept until the producer ends.
    fn topic(&self, topic: &Topic) -> Result<TopicHandle, i32> {
        let mut topics = lock(&self.topics);
        if let Some(handle) = topics.get(topic) {
            return Ok(*handle);
        }
        let name = c_string(topic.as_str());
        // SAFETY: the producer is alive, the name is copied, null means the default settings.
        let handle =
            unsafe { rd::rd_kafka_topic_new(self.producer.as_ptr(), name.as_ptr(), ptr::null_mut()) };
        // SAFETY: reads a number of this thread.
        let handle = NonNull::new(handle)
            .map(TopicHandle)
            .ok_or_else(|| unsafe { rd::rd_kafka_last_error() } as i32)?;
        topics.insert(topic.clone(), handle);
        Ok(handle)
    }

    /// Hands over a batch whose chunk has boarded. Returns what was refused at once.
    ///
    /// The partition is given once, not by `RD_KAFKA_MSG_F_PARTITION` with each record: that flag
    /// leaks a record whose partition does not exist, and looks the partition up again and again.
    fn produce(&self, topic: TopicHandle, partition: i32, batch: &mut Batch) -> Reports {
        // SAFETY: payloads point into buffers of a chunk that this producer's flights own, and are
        // read until the record is reported; keys are copied. Neither F_COPY nor F_FREE is set, so
        // librdkafka frees nothing. The count fits: a chunk has fewer than 2^28 records.
        let taken = unsafe {
            rd::rd_kafka_produce_batch(
                topic.0.as_ptr(),
                partition,
                0,
                batch.messages.as_mut_ptr(),
                batch.messages.len() as c_int,
            )
        };
        let mut refused = Reports::default();
        if taken as usize != batch.messages.len() {
            for message in &batch.messages {
                // SAFETY: the message is alive.
                let code = unsafe { code_of(message) };
                if code != 0 {
                    refused.add(message._private.addr() as u64, code);
                }
            }
        }
        refused
    }

    /// As [`Handle::produce`], a record at a time: headers go no other way. Behind a record that is
    /// refused for another reason than its size none is handed over, so that none overtakes it.
    fn produce_each(&self, topic: TopicHandle, partition: i32, batch: &Batch, headers: &[Header]) -> Reports {
        let (mut refused, mut stopped) = (Reports::default(), None);
        let mut parts = Vec::new();
        for (message, offset) in batch.messages.iter().zip(&batch.offsets) {
            let offset = offset.to_string();
            parts.clear();
            describe(&mut parts, topic, partition, message, headers, &offset);
            let code = stopped.unwrap_or_else(|| self.produce_one(&parts));
            if code != 0 {
                refused.add(message._private.addr() as u64, code);
                stopped = Some(code).filter(|code| *code != TOO_LARGE);
            }
        }
        refused
    }

    /// Hands over one record; 0, or why it was refused.
    fn produce_one(&self, parts: &[rd::rd_kafka_vu_t]) -> i32 {
        // SAFETY: producer and topic are alive. The payload points into a buffer of a chunk that this
        // producer's flights own, and is read until the record is reported; no flags are set, so
        // that it is neither copied nor freed. Key and headers are read in this call only, and
        // copied; the borrows of `parts` outlive it.
        let error = unsafe { rd::rd_kafka_produceva(self.producer.as_ptr(), parts.as_ptr(), parts.len()) };
        let Some(error) = NonNull::new(error) else { return 0 };
        // SAFETY: the error is alive and this thread's; it is not used again. librdkafka made it
        // itself, so that its code is one that the binding knows.
        unsafe {
            let code = rd::rd_kafka_error_code(error.as_ptr()) as i32;
            rd::rd_kafka_error_destroy(error.as_ptr());
            code
        }
    }

    fn poll(&self, wait: Duration) -> Event {
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the queue is alive. The event is this thread's and destroyed below.
        let event = unsafe { rd::rd_kafka_queue_poll(self.queue.as_ptr(), wait) };
        let Some(event) = NonNull::new(event) else { return Event::Nothing };
        // SAFETY: the event is alive.
        let what = match unsafe { rd::rd_kafka_event_type(event.as_ptr()) } {
            rd::RD_KAFKA_EVENT_DR => {
                let (reports, doubt) = read_reports(event, &mut lock(&self.acknowledged));
                Event::Reports(reports, doubt)
            }
            rd::RD_KAFKA_EVENT_ERROR => self.read_error(event),
            rd::RD_KAFKA_EVENT_LOG => {
                pass_on_log(event);
                Event::Nothing
            }
            _ => Event::Nothing,
        };
        // SAFETY: the event is alive, nothing borrowed from it is left, and it is not used again.
        unsafe { rd::rd_kafka_event_destroy(event.as_ptr()) };
        what
    }

    fn read_error(&self, event: NonNull<rd::rd_kafka_event_t>) -> Event {
        // SAFETY: the event is alive; its text lives as long.
        let text = unsafe { text_at(rd::rd_kafka_event_error_string(event.as_ptr())) };
        // SAFETY: the event is alive.
        if unsafe { rd::rd_kafka_event_error_is_fatal(event.as_ptr()) } == 0 {
            if let Some(held_back) = lock(&self.troubles).tell(&text, Instant::now()) {
                tracing::warn!(%text, held_back, "kafka");
            }
            return Event::Nothing;
        }
        let mut reason = [0; TEXT_BYTES];
        // SAFETY: the producer is alive and `reason` has the size that is given. Fatal errors are
        // raised by librdkafka itself, so that the code is one that the binding knows.
        let code =
            unsafe { rd::rd_kafka_fatal_error(self.producer.as_ptr(), reason.as_mut_ptr(), reason.len()) };
        Event::Fatal(Fatal { code: error_name(code as i32), text: read_text(&reason) })
    }

    fn partitions(&self, topic: &Topic, wait: Duration) -> Result<i32, SinkError> {
        let refused = |code| SinkError::Topic { topic: topic.clone(), code: error_name(code).into() };
        let handle = self.topic(topic).map_err(refused)?;
        let mut metadata = ptr::null();
        // SAFETY: producer and topic are alive; the answer is written on success only, and freed
        // below.
        let code = unsafe {
            rd::rd_kafka_metadata(
                self.producer.as_ptr(),
                0,
                handle.0.as_ptr(),
                &mut metadata,
                wait.as_millis() as c_int,
            )
        } as i32;
        if code != 0 || metadata.is_null() {
            return Err(SinkError::Unreachable { code: error_name(code).into() });
        }
        // SAFETY: the answer is alive until it is freed here, and says how many topics it has. The
        // error code is read as a number, see above.
        let found = unsafe {
            let answer = &*metadata;
            let first = (answer.topic_cnt > 0).then_some(answer.topics);
            let found = first.map(|t| ((&raw const (*t).err).cast::<i32>().read(), (*t).partition_cnt));
            rd::rd_kafka_metadata_destroy(metadata);
            found
        };
        match found {
            Some((0, partitions)) if partitions > 0 => Ok(partitions),
            Some((code, _)) if code != 0 => Err(refused(code)),
            _ => Err(refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as i32)),
        }
    }

    /// Makes everything under way be reported as failed.
    fn purge(&self) {
        let all =
            rd::RD_KAFKA_PURGE_F_QUEUE | rd::RD_KAFKA_PURGE_F_INFLIGHT | rd::RD_KAFKA_PURGE_F_NON_BLOCKING;
        // SAFETY: the producer is alive. Non-blocking: a broker thread may hang in the resolver.
        unsafe { rd::rd_kafka_purge(self.producer.as_ptr(), all) };
    }

    fn destroy(self) -> Destroyed {
        drop(self);
        Destroyed(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let topics = mem::take(self.topics.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()));
        // SAFETY: each was made once and is given back once, topics and queue before the producer;
        // `self` is not shared any more. `rd_kafka_destroy` joins all threads of the producer.
        unsafe {
            for topic in topics.into_values() {
                rd::rd_kafka_topic_destroy(topic.0.as_ptr());
            }
            rd::rd_kafka_queue_destroy(self.queue.as_ptr());
            rd::rd_kafka_destroy(self.producer.as_ptr());
        }
    }
}

/// A configuration that no producer has taken over yet.
struct Conf(NonNull<rd::rd_kafka_conf_t>);

impl Conf {
    fn new(properties: &[(String, String)]) -> Result<Self, SinkError> {
        // SAFETY: never null.
        let conf = Self(unsafe { NonNull::new_unchecked(rd::rd_kafka_conf_new()) });
        for (key, value) in properties {
            conf.set(key, value)?;
        }
        conf.set("log.queue", "true")?;
        let events = rd::RD_KAFKA_EVENT_DR | rd::RD_KAFKA_EVENT_ERROR | rd::RD_KAFKA_EVENT_LOG;
        // SAFETY: the configuration is alive.
        unsafe { rd::rd_kafka_conf_set_events(conf.0.as_ptr(), events) };
        Ok(conf)
    }

    fn set(&self, key: &str, value: &str) -> Result<(), SinkError> {
        let (name, value) = (c_string(key), c_string(value));
        let mut text = [0; TEXT_BYTES];
        // SAFETY: the configuration is alive, the strings are copied, `text` has the given size.
        let done = unsafe {
            rd::rd_kafka_conf_set(
                self.0.as_ptr(),
                name.as_ptr(),
                value.as_ptr(),
                text.as_mut_ptr(),
                text.len(),
            )
        };
        match done {
            rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => Ok(()),
            _ => Err(SinkError::Property { key: key.into(), cause: read_text(&text) }),
        }
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        // SAFETY: made once, and forgotten when a producer took it over.
        unsafe { rd::rd_kafka_conf_destroy(self.0.as_ptr()) }
    }
}

/// A lane's scratch for one call: records in librdkafka's form. Kept, so that nothing is allocated
/// per record. Empty, or pointing into a chunk that [`Native::send`] is handing over.
#[derive(Default)]
pub(super) struct Batch {
    messages: Vec<rd::rd_kafka_message_t>,
    /// Where their lines stand in the file, where that is sent.
    offsets: Vec<u64>,
}

// SAFETY: between two calls it is empty, so no pointer crosses threads.
unsafe impl Send for Batch {}

impl Batch {
    fn load(&mut self, chunk: &Chunk, only: Option<&[u32]>, route: &Route) {
        let key = route.key.as_deref();
        let (key, key_len) = key.map_or((ptr::null(), 0), |key| (key.as_ptr(), key.len()));
        self.clear();
        if route.headers.is_some() {
            let offset = |index| chunk.offsets.get(index as usize).copied().unwrap_or_default();
            self.offsets.extend(sent(chunk, only).map(offset));
        }
        self.messages.extend(sent(chunk, only).map(|index| {
            let payload = chunk.bytes(&chunk.records[index as usize]);
            rd::rd_kafka_message_t {
                err: RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
                rkt: ptr::null_mut(),
                partition: 0,
                payload: payload.as_ptr().cast_mut().cast(),
                len: payload.len(),
                key: key.cast_mut().cast(),
                key_len,
                offset: 0,
                _private: ptr::without_provenance_mut(index as usize),
            }
        }));
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.offsets.clear();
    }

    /// Completes the opaques, once it is known which flight this is.
    fn stamp(&mut self, ticket: Ticket) {
        for message in &mut self.messages {
            let opaque = ticket.opaque(message._private.addr() as u32);
            message._private = ptr::without_provenance_mut(opaque as usize);
        }
    }

    fn refuse_all(&self, code: i32) -> Reports {
        let mut refused = Reports::default();
        self.messages.iter().for_each(|message| refused.add(message._private.addr() as u64, code));
        refused
    }
}

/// A record with headers as [`Handle::produce_one`] takes it. What the parts point at must outlive that.
fn describe(
    parts: &mut Vec<rd::rd_kafka_vu_t>,
    topic: TopicHandle,
    partition: i32,
    message: &rd::rd_kafka_message_t,
    headers: &[Header],
    offset: &str,
) {
    use rd::rd_kafka_vtype_t as T;
    let bytes = |ptr, size| Value { mem: rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size } };
    let header = |name: &CStr, value: &[u8]| Value {
        header: rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
            name: name.as_ptr(),
            val: value.as_ptr().cast(),
            size: value.len() as isize,
        },
    };
    let mut part = |vtype, u| parts.push(rd::rd_kafka_vu_t { vtype, u });
    part(T::RD_KAFKA_VTYPE_RKT, Value { rkt: topic.0.as_ptr() });
    part(T::RD_KAFKA_VTYPE_PARTITION, Value { i32_: partition });
    part(T::RD_KAFKA_VTYPE_VALUE, bytes(message.payload, message.len));
    part(T::RD_KAFKA_VTYPE_KEY, bytes(message.key, message.key_len));
    part(T::RD_KAFKA_VTYPE_OPAQUE, Value { ptr: message._private });
    for Header { name, value } in headers {
        part(T::RD_KAFKA_VTYPE_HEADER, header(name, value));
    }
    part(T::RD_KAFKA_VTYPE_HEADER, header(c"offset", offset.as_bytes()));
}

/// What each partition acknowledged.
///
/// librdkafka can take a record for written that is not: when a topic is refused while requests are under
/// way, and then taken again, it may give a number of its sequence twice, and the broker drops the second
/// record as a repetition of the first; and a batch may count as written because the next one was. Such
/// an acknowledgement has an offset that was acknowledged before, or none.
type Acknowledged = HashMap<(usize, i32), Places>;

/// The offsets of one partition.
struct Places {
    /// The highest that was acknowledged.
    highest: i64,
    /// The last in doubt. Of a batch only the first offset is told; the others are counted from there.
    in_doubt: i64,
}

impl Places {
    const NONE: Self = Self { highest: -1, in_doubt: i64::MIN };

    /// Whether a record can be there that was not before.
    fn take(&mut self, offset: i64) -> bool {
        let is_new = offset > self.highest && offset.checked_sub(1) != Some(self.in_doubt);
        *(if is_new { &mut self.highest } else { &mut self.in_doubt }) = offset;
        is_new
    }
}

/// What became of records. One that is taken for written and may not be has failed, and so has its producer:
/// the next one begins a new sequence.
fn read_reports(
    event: NonNull<rd::rd_kafka_event_t>,
    acknowledged: &mut Acknowledged,
) -> (Reports, Option<Fatal>) {
    let (mut reports, mut doubt) = (Reports::default(), None);
    let mut messages = [ptr::null(); REPORTS_AT_ONCE];
    loop {
        // SAFETY: the event is alive and `messages` has the size that is given. As many pointers as
        // are returned are valid until the event is destroyed.
        let messages = unsafe {
            let count =
                rd::rd_kafka_event_message_array(event.as_ptr(), messages.as_mut_ptr(), messages.len());
            &messages[..count]
        };
        // SAFETY: valid as said.
        let place =
            |message: &*const rd::rd_kafka_message_t| unsafe { ((**message).rkt, (**message).partition) };
        for run in messages.chunk_by(|one, next| place(one) == place(next)) {
            let (topic, partition) = place(&run[0]);
            let places = acknowledged.entry((topic.addr(), partition)).or_insert(Places::NONE);
            for &message in run {
                // SAFETY: valid as said; the opaque is the number that `Batch::stamp` gave it.
                let (opaque, offset, mut code) =
                    unsafe { ((*message)._private.addr() as u64, (*message).offset, code_of(message)) };
                if code == 0 && !places.take(offset) {
                    code = IN_DOUBT;
                    // SAFETY: the topic of a message is alive, and so is its name.
                    doubt.get_or_insert_with(|| unsafe { in_doubt(topic, partition, offset) });
                }
                reports.add(opaque, code);
            }
        }
        if messages.len() < REPORTS_AT_ONCE {
            return (reports, doubt);
        }
    }
}

/// # Safety
/// The topic is alive.
unsafe fn in_doubt(topic: *mut rd::rd_kafka_topic_t, partition: i32, offset: i64) -> Fatal {
    // SAFETY: the caller's promise; the name lives as long.
    let topic = unsafe { text_at(rd::rd_kafka_topic_name(topic)) };
    let text = format!(
        "ProduceRequest for {topic} [{partition}] was acknowledged at offset {offset}, where another one was before or none can be"
    );
    Fatal { code: error_name(IN_DOUBT), text }
}

/// The error code of a record, as a number, see above.
///
/// # Safety
/// The message is alive.
unsafe fn code_of(message: *const rd::rd_kafka_message_t) -> i32 {
    // SAFETY: the caller's promise; an enum of `repr(i32)` is read as an `i32`.
    unsafe { (&raw const (*message).err).cast::<i32>().read() }
}

fn pass_on_log(event: NonNull<rd::rd_kafka_event_t>) {
    let (mut facility, mut text, mut level) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the event is alive; what is written lives as long.
    let (facility, text) = unsafe {
        rd::rd_kafka_event_log(event.as_ptr(), &mut facility, &mut text, &mut level);
        (text_at(facility), text_at(text))
    };
    match level {
        ..=3 => tracing::error!(%facility, %text, "librdkafka"),
        4 => tracing::warn!(%facility, %text, "librdkafka"),
        5 | 6 => tracing::info!(%facility, %text, "librdkafka"),
        _ => tracing::debug!(%facility, %text, "librdkafka"),
    }
}

/// librdkafka's name of an error code, such as `MSG_SIZE_TOO_LARGE`.
pub(super) fn error_name(code: i32) -> String {
    match RDKafkaRespErr::try_from(code) {
        // SAFETY: returns a text that is never freed.
        Ok(known) => unsafe { text_at(rd::rd_kafka_err2name(known)) }.into_owned(),
        Err(_) => format!("ERR_{code}"),
    }
}

/// # Safety
/// `text` is null or a string that lives as long as the result.
unsafe fn text_at<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

fn read_text(text: &[c_char; TEXT_BYTES]) -> String {
    let bytes: Vec<u8> = text.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Up to the first NUL: neither topics nor properties can have one.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().take_while(|b| *b != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// librdkafka's in-process cluster, for trying out and for tests.
pub(super) struct Mock(MockCluster<'static, DefaultProducerContext>);

// SAFETY: the cluster runs on a thread of its own; calls to it are passed there under a lock, and
// the address that is read here never changes.
unsafe impl Send for Mock {}
// SAFETY: as above.
unsafe impl Sync for Mock {}

impl Mock {
    /// A cluster of one broker, on a free port of the loopback address.
    pub(super) fn start() -> Result<Self, SinkError> {
        MockCluster::new(1).map(Self).map_err(|error| SinkError::Create { cause: error.to_string() })
    }

    /// Gives it a topic of one partition. Others it makes itself, of several.
    pub(super) fn create_topic(&self, topic: &Topic) -> Result<(), SinkError> {
        let created = self.0.create_topic(topic.as_str(), 1, 1);
        created.map_err(|error| SinkError::Create { cause: error.to_string() })
    }

    /// Its address, as `bootstrap.servers`.
    pub(super) fn bootstrap_servers(&self) -> String {
        self.0.bootstrap_servers()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::sink::flights::Home;
    use crate::sink::{Buffer, Finished, Record};

    fn board(records: usize) -> (Flights, Arc<Tally>, Ticket, Receiver<Finished>) {
        let tally = Arc::new(Tally::default());
        let flights = Flights::new(tally.clone());
        let (done, back) = mpsc::channel();
        let record = Record { start: 0, len: 0, buffer: Buffer::Read };
        let chunk = Chunk { records: vec![record; records], ..Chunk::default() };
        let home = Home::new(Arc::new(move |finished| drop(done.send(finished))));
        let route = Route::to(Pick::Partitioner);
        let parcel = Parcel { chunk, topic: Topic::parse("t").unwrap(), only: None, route, home };
        let Ok(ticket) = flights.board(parcel) else { panic!("there is room") };
        (flights, tally, ticket, back)
    }

    fn reports(of: impl IntoIterator<Item = (u64, i32)>) -> Reports {
        let mut reports = Reports::default();
        of.into_iter().for_each(|(opaque, code)| reports.add(opaque, code));
        reports
    }

    #[test]
    fn a_record_is_believed_to_be_only_where_none_was() {
        let mut places = Places::NONE;
        let said = [0, 1, 5, 5, 4, 7, 6, -1001, -1, 0, 1, 8];
        let new = [true, true, true, false, false, true, false, false, false, false, false, true];
        assert_eq!(said.map(|offset| places.take(offset)), new);
        // A batch without an offset, as the first that a producer hears of.
        let mut places = Places::NONE;
        let new = [false, false, false, false, true, true];
        assert_eq!([-1, 0, 1, 2, 9, 10].map(|offset| places.take(offset)), new);
    }

    #[test]
    fn reports_that_fit_no_flight_are_counted_and_free_nothing() {
        let (flights, tally, ticket, _back) = board(1);
        let (other_slot, other_generation) = (1 << 44, 1 << 28);
        let strange = reports([(ticket.opaque(0) + other_slot, 0), (ticket.opaque(0) + other_generation, 0)]);
        assert!(flights.report(&strange).is_empty());
        let too_many = reports([(ticket.opaque(0), 0); 3]);
        assert!(flights.report(&too_many).is_empty());
        assert_eq!(tally.figures().stale_reports, 3);
        assert!(!flights.is_empty());
    }

    #[test]
    fn a_chunk_lands_when_the_hand_over_and_all_records_are_accounted_for() {
        let (flights, _, ticket, _back) = board(2);
        assert!(flights.report(&reports([(ticket.opaque(0), 0), (ticket.opaque(1), 0)])).is_empty());
        assert_eq!(flights.report(&Reports { runs: vec![(ticket, 1)], failures: Vec::new() }).len(), 1);
        assert!(flights.is_empty());
    }

    #[test]
    fn what_was_never_reported_fails_when_the_producer_is_gone() {
        let (flights, tally, ticket, back) = board(3);
        let mut some = reports([(ticket.opaque(1), 10)]);
        some.runs.push((ticket, 1));
        assert!(flights.report(&some).is_empty());
        flights.sweep(Destroyed(())).into_iter().for_each(Landed::deliver);
        let failed = back.try_recv().unwrap().failed;
        let failed: Vec<_> = failed.iter().map(|failed| (failed.record, &*failed.code)).collect();
        assert_eq!(failed, [(0, "NO_REPORT"), (1, "MSG_SIZE_TOO_LARGE"), (2, "NO_REPORT")]);
        assert_eq!(tally.figures().missing_reports, 2);
    }
}
