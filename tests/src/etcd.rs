//! A real etcd (Debian's), one node, on free ports of 127.0.0.1.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, EventType, GetOptions, OpenSslClientConfig, WatchOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::process::Process;
use crate::tls::{Authority, Issued};
use crate::wait::{SOON, eventually};
use crate::{ports, scratch};

/// For one request.
const ANSWER: Duration = Duration::from_secs(60);
/// Edits that are under way together; etcd writes them to its log together, too.
const EDITS_AT_ONCE: usize = 200;
/// The user of an etcd that asks for one, and the password.
pub const USER: (&str, &str) = ("root", "secret");
/// A token is good for so long after it was last used. Seconds.
pub const TOKEN_SECONDS: u64 = 1;

/// An etcd with a data directory of its own. It is killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    port: u16,
    peer_port: u16,
    /// It asks for [`USER`].
    asks: AtomicBool,
    tls: Option<Tls>,
    runtime: Runtime,
    process: Mutex<Option<Process>>,
}

/// What it shows, what it asks for, and what the harness shows it.
#[derive(Debug)]
struct Tls {
    ca: PathBuf,
    server: Issued,
    client: Issued,
}

/// A change that a watch saw: the key, and its value or `None` where it was deleted.
pub type Change = (String, Option<Vec<u8>>);

impl Etcd {
    /// The etcd that all tests of this process share; each uses keys of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Etcd> = OnceLock::new();
        SHARED.get_or_init(Self::private)
    }

    /// An etcd for one test: to stop, start, pause, compact.
    pub fn private() -> Self {
        Self::begin(None)
    }

    /// An etcd that speaks TLS only, and only with those who show a certificate of the authority.
    pub fn secured(authority: &Authority) -> Self {
        let (server, client) = (authority.issue("etcd"), authority.issue("harness"));
        Self::begin(Some(Tls { ca: authority.ca(), server, client }))
    }

    fn begin(tls: Option<Tls>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let etcd = Self {
            dir: scratch::dir("etcd"),
            port: ports::free(),
            peer_port: ports::free(),
            asks: AtomicBool::new(false),
            tls,
            runtime: runtime.expect("a runtime"),
            process: Mutex::new(None),
        };
        etcd.start();
        etcd
    }

    /// From now on only [`USER`] is let in, with tokens that expire.
    #[track_caller]
    pub fn ask_for_user(&self) {
        let (user, password) = USER;
        self.request(async |mut client| client.user_add(user, password, None).await);
        self.request(async |mut client| client.user_grant_role(user, "root").await);
        self.request(async |mut client| client.auth_enable().await);
        self.asks.store(true, Ordering::Relaxed);
    }

    /// Waits until a token that nobody used has expired, and makes sure of it.
    #[track_caller]
    pub fn outwait_tokens(&self) {
        let refused = self.runtime.block_on(async {
            let mut client = Client::connect([self.endpoint()], Some(user())).await.expect("log in");
            tokio::time::sleep(Duration::from_millis(2_500 * TOKEN_SECONDS)).await;
            client.get("/", None).await.map_err(|error| error.to_string())
        });
        let error = refused.err().unwrap_or_default();
        assert!(error.contains("invalid auth token"), "a token lives on: {error}");
    }

    /// Its address, as weir's settings and `etcdctl` take it.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https://" } else { "" };
        format!("{scheme}127.0.0.1:{}", self.port)
    }

    /// Writes a key; the revision.
    #[track_caller]
    pub fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        let put = self.request(async |mut client| client.put(key, value, None).await);
        put.header().map_or(0, etcd_client::ResponseHeader::revision)
    }

    /// Writes a key again and again, many edits under way at once, in any order but the last.
    #[track_caller]
    pub fn put_each(&self, key: &str, values: &[String]) {
        let Some((last, others)) = values.split_last() else { return };
        // Few enough for the limit of a request.
        for values in others.chunks(EDITS_AT_ONCE) {
            self.request(async |client| {
                let put = |value: &String| {
                    let (mut client, key, value) = (client.clone(), key.to_owned(), value.clone());
                    async move { client.put(key, value, None).await }
                };
                let mut puts: JoinSet<_> = values.iter().map(put).collect();
                while let Some(done) = puts.join_next().await {
                    done.expect("a request does not panic")?;
                }
                Ok(())
            });
        }
        self.put(key, last.as_str());
    }

    /// Reads a key.
    #[track_caller]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let got = self.request(async |mut client| client.get(key, None).await);
        got.kvs().first().map(|kv| kv.value().to_vec())
    }

    /// Keys that begin with `prefix`, in order.
    #[track_caller]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let got = self.request(async |mut client| client.get(prefix, Some(options)).await);
        got.kvs().iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned()).collect()
    }

    /// Deletes a key; the revision.
    #[track_caller]
    pub fn delete(&self, key: &str) -> i64 {
        let deleted = self.request(async |mut client| client.delete(key, None).await);
        deleted.header().map_or(0, etcd_client::ResponseHeader::revision)
    }

    /// Forgets what was before `revision`.
    #[track_caller]
    pub fn compact(&self, revision: i64) {
        self.request(async |mut client| client.compact(revision, None).await);
    }

    /// What changes under `prefix` from now on. The watch is in place on return.
    #[track_caller]
    pub fn watch(&self, prefix: &str) -> Receiver<Change> {
        let options = WatchOptions::new().with_prefix();
        let mut stream = self.request(async |mut client| client.watch(prefix, Some(options)).await);
        let (changes, inbox) = channel();
        self.runtime.spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                for event in response.events() {
                    let Some(kv) = event.kv() else { continue };
                    let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                    let key = String::from_utf8_lossy(kv.key()).into_owned();
                    if changes.send((key, value)).is_err() {
                        return;
                    }
                }
            }
        });
        inbox
    }

    /// Starts it again on the same data and port.
    #[track_caller]
    pub fn start(&self) {
        let client = if self.tls.is_some() { self.endpoint() } else { format!("http://{}", self.endpoint()) };
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new("etcd");
        command.current_dir(self.dir.path()).args([
            "--name=weir",
            "--data-dir=data",
            "--logger=zap",
            "--bcrypt-cost=4",
        ]);
        command.arg(format!("--auth-token-ttl={TOKEN_SECONDS}"));
        command.args(["--heartbeat-interval=50", "--election-timeout=500"]);
        for (flag, value) in [
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("weir={peer}")),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        if let Some(Tls { ca, server, .. }) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(&server.cert).arg("--key-file").arg(&server.key);
        }
        let mut process = Process::start("etcd", command, &self.log());
        let answer = || {
            assert!(process.ended().is_none(), "etcd ended at its start\n{}", process.tail());
            self.try_request(async |mut client| client.get("/", None).await).map(|_| ())
        };
        eventually(SOON, "etcd to answer", answer, Result::is_ok).expect("it answered");
        *self.process() = Some(process);
    }

    /// Stops it in good order.
    #[track_caller]
    pub fn stop(&self) {
        let mut process = self.process().take().expect("etcd runs");
        process.signal(libc::SIGTERM);
        process.wait(SOON);
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&self) {
        self.process().take().expect("etcd runs").kill();
    }

    /// Its data as it is now, to go back to; etcd must be stopped.
    #[track_caller]
    pub fn save(&self) -> TempDir {
        let saved = scratch::dir("etcd-saved");
        copy(&self.data(), saved.path());
        saved
    }

    /// Puts back what was saved, as after a restored backup; etcd must be stopped.
    #[track_caller]
    pub fn restore(&self, saved: &TempDir) {
        std::fs::remove_dir_all(self.data()).expect("remove etcd's data");
        copy(saved.path(), &self.data());
    }

    /// Freezes it: connections stay, nothing answers.
    #[track_caller]
    pub fn pause(&self) {
        self.process().as_mut().expect("etcd runs").pause();
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&self) {
        self.process().as_mut().expect("etcd runs").resume();
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        crate::lock(&self.process)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("etcd.log")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    #[track_caller]
    fn request<T, F>(&self, ask: impl FnOnce(Client) -> F) -> T
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.try_request(ask).unwrap_or_else(|error| panic!("ask etcd: {error}"))
    }

    /// A connection a request: nothing to mend after a restart.
    fn try_request<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asks = self.asks.load(Ordering::Relaxed);
        let options = asks.then(|| user().with_auto_token_refresh(true));
        let options =
            self.tls.as_ref().map(|tls| tls.options(options.clone().unwrap_or_default())).or(options);
        let talk = async { ask(Client::connect([self.endpoint()], options).await?).await };
        let answer = self.runtime.block_on(async { tokio::time::timeout(ANSWER, talk).await });
        answer.map_err(|_| format!("no answer within {ANSWER:?}"))?.map_err(|error| error.to_string())
    }
}

impl Tls {
    fn options(&self, options: ConnectOptions) -> ConnectOptions {
        let read = |path: &Path| std::fs::read(path).expect("read a certificate");
        let tls = OpenSslClientConfig::default().ca_cert_pem(&read(&self.ca));
        options
            .with_openssl_tls(tls.client_cert_pem_and_key(&read(&self.client.cert), &read(&self.client.key)))
    }
}

fn user() -> ConnectOptions {
    ConnectOptions::new().with_user(USER.0, USER.1)
}

/// Copies a directory and all below it.
#[track_caller]
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("read a directory").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copy a file");
        }
    }
}
