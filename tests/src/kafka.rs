//! A real Apache Kafka: one node, KRaft, on free ports of 127.0.0.1.
//!
//! Its jars lie in `target/kafka/lib` (`make test` fetches them) or in `$WEIR_KAFKA_LIB`. It is
//! ready about three seconds after it was asked for.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tempfile::TempDir;

use crate::process::Process;
use crate::proxy::Proxy;
use crate::tls::Authority;
use crate::topic::Topic;
use crate::wait::eventually;
use crate::{ports, scratch, workspace};

/// From the start of the JVM to the first answer.
const START: Duration = Duration::from_secs(120);
/// For one request, on a busy machine.
const ANSWER: Duration = Duration::from_secs(60);
/// Smaller than the default and the same for each start: a test machine has other things to do.
const JVM: [&str; 4] =
    ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"];
/// Whom a secured broker lets in, and the password.
pub const USER: (&str, &str) = ("weir", "a-secret-of-kafka");
/// Any valid id does.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";

/// A broker with a data directory of its own. It is killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Kafka {
    dir: TempDir,
    port: u16,
    secure: Option<Secure>,
    /// A further listener, and under which port clients that came through it are told to come.
    proxied: Option<(u16, u16)>,
    process: Mutex<Option<Process>>,
}

/// Further listeners, which trust one authority: one asks for [`USER`], one for a certificate.
#[derive(Debug)]
struct Secure {
    sasl_port: u16,
    mtls_port: u16,
    settings: String,
}

impl Kafka {
    /// The broker that all tests of this process share; each uses topics of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Self::private)
    }

    /// A broker for one test: to stop, start, pause.
    pub fn private() -> Self {
        Self::begin(None, None)
    }

    /// A broker, and a proxy before it through which it is reached with all its requests.
    pub fn proxied() -> (Self, Proxy) {
        let port = ports::free();
        let proxy = Proxy::before(port);
        (Self::begin(None, Some((port, proxy.port()))), proxy)
    }

    /// A broker that also listens on [`Kafka::sasl_brokers`] and [`Kafka::mtls_brokers`].
    pub fn secured(authority: &Authority) -> Self {
        Self::begin(Some(Secure::new(authority)), None)
    }

    fn begin(secure: Option<Secure>, proxied: Option<(u16, u16)>) -> Self {
        let (dir, port) = (scratch::dir("kafka"), ports::free());
        let kafka = Self { dir, port, secure, proxied, process: Mutex::new(None) };
        std::fs::write(kafka.properties(), kafka.settings(ports::free())).expect("write server.properties");
        let mut format = kafka.java("kafka.tools.StorageTool");
        format.args(["format", "-t", CLUSTER_ID, "-c"]).arg(kafka.properties());
        if kafka.secure.is_some() {
            let (user, password) = USER;
            format.arg("--add-scram").arg(format!("SCRAM-SHA-256=[name={user},password={password}]"));
        }
        let status = Process::start("StorageTool", format, &kafka.log()).wait(START);
        assert!(status.success(), "format Kafka's storage: {status}; see {}", kafka.log().display());
        kafka.start();
        kafka
    }

    /// Its address, as clients take it.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it asks for [`USER`], by SCRAM or PLAIN, over TLS.
    #[track_caller]
    pub fn sasl_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.secure.as_ref().expect("it is secured").sasl_port)
    }

    /// Where it asks for a certificate of the authority.
    #[track_caller]
    pub fn mtls_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.secure.as_ref().expect("it is secured").mtls_port)
    }

    /// A new topic whose name begins with `prefix` and is nobody else's.
    #[track_caller]
    pub fn topic(&self, prefix: &str, partitions: i32) -> Topic {
        self.topic_with(prefix, partitions, &[])
    }

    /// The same with settings of its own, `max.message.bytes` for instance.
    #[track_caller]
    pub fn topic_with(&self, prefix: &str, partitions: i32, settings: &[(&str, &str)]) -> Topic {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.create_with(&name, partitions, settings);
        Topic::new(self.brokers(), name)
    }

    /// Creates a topic and waits until each partition has a leader.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_with(name, partitions, &[]);
    }

    /// Deletes a topic and what is on it, for whoever fills many.
    #[track_caller]
    pub fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let deleted = admin.delete_topics(&[name], &AdminOptions::new().request_timeout(Some(ANSWER)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(deleted).unwrap_or_else(|e| panic!("delete topic {name}: {e}"));
    }

    #[track_caller]
    fn create_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let created = admin.create_topics([&topic], &AdminOptions::new().request_timeout(Some(ANSWER)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let results = runtime.block_on(created).unwrap_or_else(|e| panic!("create topic {name}: {e}"));
        for result in results {
            result.unwrap_or_else(|(_, code)| panic!("create topic {name}: {code}"));
        }
        let consumer: BaseConsumer = self.client().create().expect("a client");
        let leaders = || {
            let metadata = consumer.fetch_metadata(Some(name), ANSWER).map_err(|e| e.to_string())?;
            let led = metadata.topics()[0].partitions().iter().filter(|partition| partition.leader() >= 0);
            Ok::<_, String>(led.count())
        };
        let all = |led: &Result<usize, String>| *led == Ok(partitions as usize);
        eventually(ANSWER, "leaders of the topic", leaders, all).expect("they were there");
    }

    /// Starts it again on the same data and port.
    #[track_caller]
    pub fn start(&self) {
        let mut command = self.java("kafka.Kafka");
        command.arg(self.properties());
        let mut process = Process::start("Kafka", command, &self.log());
        let client: BaseConsumer = self.client().create().expect("a client");
        let answer = || {
            assert!(process.ended().is_none(), "Kafka ended at its start\n{}", process.tail());
            let metadata = client.fetch_metadata(None, Duration::from_secs(1)).map_err(|e| e.to_string())?;
            Ok::<_, String>(metadata.brokers().len())
        };
        eventually(START, "Kafka to answer", answer, |brokers| matches!(brokers, Ok(1)))
            .expect("it answered");
        *self.process() = Some(process);
    }

    /// Stops it in good order.
    #[track_caller]
    pub fn stop(&self) {
        let mut process = self.process().take().expect("Kafka runs");
        process.signal(libc::SIGTERM);
        process.wait(START);
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&self) {
        self.process().take().expect("Kafka runs").kill();
    }

    /// Freezes it: connections stay, nothing answers.
    #[track_caller]
    pub fn pause(&self) {
        self.process().as_mut().expect("Kafka runs").pause();
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&self) {
        self.process().as_mut().expect("Kafka runs").resume();
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        crate::lock(&self.process)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers());
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "100");
        // What it has to say while the broker starts is of no interest.
        config.set("log_level", "0");
        config
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        command.args(JVM).arg("-cp").arg(lib().join("*")).arg(class).current_dir(self.dir.path());
        command
    }

    fn properties(&self) -> PathBuf {
        self.dir.path().join("server.properties")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("kafka.log")
    }

    /// The session is short because a killed broker is taken back only when its old one has ended.
    fn settings(&self, controller: u16) -> String {
        let (port, data) = (self.port, self.dir.path().join("data"));
        let data = data.display();
        let (listeners, protocols, secure) = self.secure.as_ref().map(Secure::parts).unwrap_or_default();
        let listener = |port| format!(",PROXIED://127.0.0.1:{port}");
        let proxied = self.proxied.map(|(port, proxy)| (listener(port), listener(proxy)));
        let (own, advertised) = proxied.unwrap_or_default();
        format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}{own}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{listeners}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT{protocols}
log.dirs={data}
auto.create.topics.enable=false
log.retention.ms=-1
log.cleaner.enable=false
log.index.size.max.bytes=1048576
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
{secure}"
        )
    }
}

impl Secure {
    fn new(authority: &Authority) -> Self {
        let (user, password) = USER;
        let (key_store, trust_store) = (authority.issue("broker").both, authority.ca());
        let (key_store, trust_store) = (key_store.display(), trust_store.display());
        let module = "org.apache.kafka.common.security";
        let settings = format!(
            "sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.sasl.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;
listener.name.sasl.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{user}=\"{password}\";
listener.name.mtls.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={key_store}
ssl.truststore.type=PEM
ssl.truststore.location={trust_store}
"
        );
        Self { sasl_port: ports::free(), mtls_port: ports::free(), settings }
    }

    /// For `listeners`, for the map of protocols, and as lines of their own.
    fn parts(&self) -> (String, &'static str, &str) {
        let Self { sasl_port, mtls_port, settings } = self;
        let listeners = format!(",SASL://127.0.0.1:{sasl_port},MTLS://127.0.0.1:{mtls_port}");
        (listeners, ",SASL:SASL_SSL,MTLS:SSL", settings)
    }
}

/// Where the jars lie.
fn lib() -> PathBuf {
    let lib = std::env::var_os("WEIR_KAFKA_LIB")
        .map_or_else(|| workspace().join("target/kafka/lib"), PathBuf::from);
    assert!(lib.is_dir(), "no Kafka in {}: run `make setup-test` first", lib.display());
    lib
}
