//! A proxy before a real Kafka that answers requests to produce with errors. What it refuses never
//! reaches the broker, which then checks the sequence numbers of what comes behind it, as in a cluster
//! that refused it itself.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rdkafka::types::RDKafkaRespErr;

use crate::lock;

/// An error of a broker.
pub type BrokerError = RDKafkaRespErr;

/// The number of a request to produce.
const PRODUCE: i16 = 0;
/// Its versions that are known here; librdkafka takes the newest that a broker has.
const VERSIONS: std::ops::RangeInclusive<i16> = 9..=10;

/// Errors of a broker that has written what it was sent.
const WRITTEN: [BrokerError; 2] = [
    BrokerError::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    BrokerError::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
];

/// The proxy. It ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Of the broker.
    port: u16,
    errors: Mutex<VecDeque<BrokerError>>,
    /// Both ends of each connection; `None` when it ends.
    open: Mutex<Option<Vec<TcpStream>>>,
}

impl Proxy {
    /// Before the broker that listens on this port, once it does.
    #[track_caller]
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let own = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { port, errors: Mutex::default(), open: Mutex::new(Some(Vec::new())) });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || listener.incoming().take_while(|client| shared.serve(client)).for_each(drop)
        });
        Self { port: own, shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, as clients take it.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Answers the next requests to produce with these, one after the other. `_TRANSPORT` cuts the connection.
    pub fn refuse(&self, errors: &[BrokerError]) {
        lock(&self.shared.errors).extend(errors);
    }

    /// Lets all requests through again.
    pub fn accept(&self) {
        lock(&self.shared.errors).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for stream in lock(&self.shared.open).take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // So that it looks up once more.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.accepting.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Takes a connection. Whether there may be another one.
    fn serve(self: &Arc<Self>, client: &io::Result<TcpStream>) -> bool {
        let Some(open) = &mut *lock(&self.open) else { return false };
        // A broker that is not there yet: the client tries again.
        let Ok(client) = client else { return true };
        let Ok(broker) = TcpStream::connect(("127.0.0.1", self.port)) else { return true };
        let end = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        open.extend([end(client), end(&broker)]);
        let connection = Arc::new(Connection {
            shared: self.clone(),
            client: Mutex::new(end(client)),
            broker: end(&broker),
            instead: Mutex::default(),
        });
        let (up, down) = (connection.clone(), connection);
        let (client, broker) = (end(client), broker);
        std::thread::spawn(move || up.run(client, |frame| up.request(frame)));
        std::thread::spawn(move || down.run(broker, |frame| down.answer(frame)));
        true
    }
}

struct Connection {
    shared: Arc<Shared>,
    client: Mutex<TcpStream>,
    broker: TcpStream,
    /// What the client is told in place of what the broker answers, by number of the request.
    instead: Mutex<HashMap<i32, Vec<u8>>>,
}

impl Connection {
    /// Passes frames on until one end is gone; then the other one goes, too.
    fn run(&self, mut from: TcpStream, mut pass: impl FnMut(Vec<u8>) -> io::Result<()>) {
        while read(&mut from).and_then(&mut pass).is_ok() {}
        let _ = lock(&self.client).shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }

    fn request(&self, frame: Vec<u8>) -> io::Result<()> {
        let is_produce = Fields(&frame).i16() == PRODUCE;
        let error = if is_produce { lock(&self.shared.errors).pop_front() } else { None };
        match error {
            None => write(&self.broker, &frame),
            Some(BrokerError::RD_KAFKA_RESP_ERR__TRANSPORT) => Err(io::ErrorKind::ConnectionReset.into()),
            Some(error) => {
                let (number, answer) = refusal(&frame, error);
                if WRITTEN.contains(&error) {
                    lock(&self.instead).insert(number, answer);
                    return write(&self.broker, &frame);
                }
                write(&lock(&self.client), &answer)
            }
        }
    }

    fn answer(&self, frame: Vec<u8>) -> io::Result<()> {
        let instead = lock(&self.instead).remove(&Fields(&frame).i32());
        write(&lock(&self.client), &instead.unwrap_or(frame))
    }
}

/// The number of a request to produce to one partition, and the answer that it fails.
fn refusal(request: &[u8], error: BrokerError) -> (i32, Vec<u8>) {
    let mut fields = Fields(request);
    let (_, version, number) = (fields.i16(), fields.i16(), fields.i32());
    assert!(VERSIONS.contains(&version), "version {version} of a request to produce is not known here");
    let client_id = fields.i16().max(0) as usize;
    fields.take(client_id);
    // Tags; no transaction.
    assert_eq!((fields.length(), fields.length()), (0, 0));
    let (_acks, _timeout) = (fields.i16(), fields.i32());
    // Arrays and texts have one more than their length before them.
    assert_eq!(fields.length(), 2, "one topic");
    let name_length = fields.length() - 1;
    let name = fields.take(name_length);
    assert_eq!(fields.length(), 2, "one partition");
    let partition = fields.i32();

    let mut answer = number.to_be_bytes().to_vec();
    // Tags; one topic.
    answer.extend([0, 2]);
    put_length(&mut answer, name.len() + 1);
    answer.extend(name);
    answer.push(2);
    answer.extend(partition.to_be_bytes());
    answer.extend((error as i16).to_be_bytes());
    // Offset, time, first offset: none.
    answer.extend([0xff; 24]);
    // No errors of records, no text; tags of the partition and the topic; no throttling; tags.
    answer.extend([1, 0, 0, 0, 0, 0, 0, 0, 0]);
    (number, answer)
}

/// The fields of a request, from its beginning.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as many")
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.array())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.array())
    }

    /// Seven bits a byte, the lowest first.
    fn length(&mut self) -> usize {
        let [byte] = self.array();
        let low = usize::from(byte & 0x7f);
        if byte < 0x80 { low } else { low | self.length() << 7 }
    }
}

fn put_length(to: &mut Vec<u8>, length: usize) {
    if length < 0x80 {
        return to.push(length as u8);
    }
    to.push(length as u8 | 0x80);
    put_length(to, length >> 7);
}

/// A request or an answer: its length, then so many bytes.
fn read(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn write(mut to: &TcpStream, frame: &[u8]) -> io::Result<()> {
    to.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat())
}
