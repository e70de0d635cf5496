//! The room against a real etcd, and against files.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;

use super::etcd::{Follower, Timing};
use super::modules::{ListWrite, Store};
use super::watch::{Mark, Patience, Watch};
use super::*;
use crate::config::key::Pattern;
use crate::config::{EtcdSettings, OnDelete};
use crate::policy::Keys;

const KEY: &str = "/weir/web1/collect";
const A: &str = r#"{"path": "/a", "topic": "t"}"#;
const B: &str = r#"{"path": "/b", "topic": "t"}"#;

/// A server of its own on a free port; killed when dropped.
pub(super) struct Etcd {
    child: Option<Child>,
    directory: tempfile::TempDir,
    port: u16,
}

impl Etcd {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut etcd = Self { child: None, directory, port: 0 };
        // Somebody else may take a port between our looking and etcd's listening.
        for _ in 0..5 {
            etcd.port = free_port();
            if etcd.run() {
                return etcd;
            }
        }
        panic!("etcd does not start; is /usr/bin/etcd there?");
    }

    fn run(&mut self) -> bool {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", free_port()));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let child = self.child.insert(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop();
        false
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id() as i32;
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn settings_of(etcd: &Etcd) -> EtcdSettings {
    EtcdSettings {
        endpoints: vec![etcd.endpoint()],
        collect_keys: vec![KEY.into()],
        collect_patterns: vec![Pattern::of("/weir/{host}/collect")],
        modules_prefix: "/weir/modules/".into(),
        agents_prefix: "/weir/agents/".into(),
        on_delete: OnDelete::Keep,
        username: None,
        password: None,
        ca_file: None,
        cert_file: None,
        key_file: None,
    }
}

/// Waits until `holds`, but not for ever.
pub(super) async fn until(holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the agent would see.
struct Seen {
    wanted: Receiver<Option<Wanted>>,
    task: JoinHandle<()>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn etcd(settings: &EtcdSettings, state: &Path) -> Self {
        let timing = Timing {
            first_wait: Duration::from_millis(50),
            longest_wait: Duration::from_millis(200),
            patience: Patience { ask_after: Duration::from_millis(500), answer: Duration::from_millis(500) },
            ..Timing::default()
        };
        let (out, wanted) = channel(None);
        let task = tokio::spawn(
            Follower::new(settings.clone(), timing, state.join(KEPT_FILE), Keys::default(), out).run(),
        );
        Self { wanted, task }
    }

    fn file(path: &Path, state: &Path) -> Self {
        let sink: ModuleSink = Arc::new(|bytes| Ok(Digest::of(bytes)));
        let (out, wanted) = channel(None);
        let follower = file::Follower::new(path.into(), state.join(KEPT_FILE), Keys::default(), sink, out);
        Self { wanted, task: tokio::spawn(follower.run()) }
    }

    async fn when(&self, holds: impl Fn(&Wanted) -> bool) -> Wanted {
        let mut wanted = self.wanted.clone();
        let seen = wanted.wait_for(|wanted| wanted.as_ref().is_some_and(&holds));
        match tokio::time::timeout(Duration::from_secs(20), seen).await {
            Ok(wanted) => wanted.unwrap().clone().unwrap(),
            Err(_) => panic!("it does not come true; wanted now: {:#?}", self.wanted.borrow()),
        }
    }

    async fn when_running(&self, names: &[&str]) -> Wanted {
        self.when(|wanted| running(wanted) == names).await
    }
}

fn running(wanted: &Wanted) -> Vec<&str> {
    wanted.entries.iter().map(|entry| entry.name.as_str()).collect()
}

async fn put(settings: &EtcdSettings, key: &str, value: &str) -> i64 {
    let client = client::connect(settings).await.unwrap();
    client::kv(&client).put(key, value, None).await.unwrap().header().unwrap().revision()
}

fn list_of(entries: &[&str]) -> String {
    format!("[{}]", entries.join(","))
}

fn filtered(module: &str) -> String {
    format!(r#"{{"path": "/f", "topic": "t", "filter": "{module}"}}"#)
}

#[tokio::test]
async fn a_list_is_followed_through_changes_and_deletion() {
    let (etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    let seen = Seen::etcd(&settings, state.path());
    let none = seen.when(|wanted| wanted.state == ListState::Missing).await;
    assert_eq!(running(&none), Vec::<&str>::new());

    put(&settings, KEY, &list_of(&[A])).await;
    seen.when_running(&["/a"]).await;
    let revision = put(&settings, KEY, &list_of(&[A, B])).await;
    let both = seen.when_running(&["/a", "/b"]).await;
    assert_eq!((both.source.as_str(), both.state), ("etcd /weir/web1/collect", ListState::Current));
    assert!(both.revision >= revision);

    put(&settings, KEY, "[{]").await;
    let invalid = seen.when(|wanted| wanted.state == ListState::Invalid).await;
    assert_eq!(running(&invalid), ["/a", "/b"]);

    let client = client::connect(&settings).await.unwrap();
    client::kv(&client).delete(KEY, None).await.unwrap();
    let missing = seen.when(|wanted| wanted.state == ListState::Missing).await;
    assert_eq!(running(&missing), ["/a", "/b"]);
    assert!(missing.problems[0].cause.starts_with("LIST MISSING"));

    put(&settings, KEY, "[]").await;
    seen.when_running(&[]).await;
}

#[tokio::test]
async fn a_watch_on_compacted_history_ends_and_says_so() {
    let etcd = Etcd::start();
    let settings = settings_of(&etcd);
    let mut revision = 0;
    for _ in 0..5 {
        revision = put(&settings, KEY, "[]").await;
    }
    let mut client = client::connect(&settings).await.unwrap();
    let cluster = client.compact(revision, None).await.unwrap().header().unwrap().cluster_id();
    let keys = [KEY.to_string()].into();
    let patience = Timing::default().patience;
    let mut watch = Watch::open(&client, &keys, Mark { cluster, revision: 1 }, patience).await.unwrap();
    let end = watch.changed(tokio::time::Instant::now() + Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(end.to_string(), format!("the watch ended: history before revision {revision} is gone"));
}

#[tokio::test]
async fn a_quiet_watch_is_asked_and_answers() {
    let etcd = Etcd::start();
    let settings = settings_of(&etcd);
    let revision = put(&settings, KEY, "[]").await;
    let mut client = client::connect(&settings).await.unwrap();
    let cluster = client.status().await.unwrap().header().unwrap().cluster_id();
    let keys = [KEY.to_string(), "/another".to_string()].into();
    let patience = Patience { ask_after: Duration::from_millis(50), answer: Duration::from_millis(1500) };
    let mut watch = Watch::open(&client, &keys, Mark { cluster, revision }, patience).await.unwrap();
    // With no answer to the first question it would end.
    watch.changed(tokio::time::Instant::now() + Duration::from_millis(2500)).await.unwrap();
}

#[tokio::test]
async fn what_changed_while_etcd_was_away_is_found() {
    let (mut etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    put(&settings, KEY, &list_of(&[A])).await;
    let seen = Seen::etcd(&settings, state.path());
    seen.when_running(&["/a"]).await;

    etcd.stop();
    let cached = seen.when(|wanted| wanted.state == ListState::Cached).await;
    assert_eq!(running(&cached), ["/a"]);
    assert!(etcd.run());
    seen.when(|wanted| wanted.state == ListState::Current).await;
    put(&settings, KEY, &list_of(&[B])).await;
    seen.when_running(&["/b"]).await;
}

#[tokio::test]
async fn without_etcd_an_agent_starts_from_its_last_list_and_its_modules() {
    let (mut etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    let mut store = Store::connect(&settings).await.unwrap();
    let digest = store.push(b"\0asm", |_| {}).await.unwrap();
    store.tag("redact", &digest, "test", None).await.unwrap();
    put(&settings, KEY, &list_of(&[&filtered("redact")])).await;
    Seen::etcd(&settings, state.path()).when_running(&["/f"]).await;
    // The list is saved after it is said.
    let kept = state.path().join(KEPT_FILE);
    until(async || kept.exists()).await;
    etcd.stop();

    let wanted = Seen::etcd(&settings, state.path()).when_running(&["/f"]).await;
    assert_eq!(
        (wanted.state, wanted.source.as_str()),
        (ListState::Cached, "etcd /weir/web1/collect (last good copy)")
    );
    assert_eq!(wanted.modules[&ModuleRef::Tag("redact".into())], Ok(digest));
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let (etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    let seen = Seen::etcd(&settings, state.path());
    seen.when_running(&[]).await;
    // What comes after the first reading comes through the watch.
    put(&settings, KEY, &list_of(&[A])).await;
    seen.when_running(&["/a"]).await;
    etcd.signal(Signal::STOP);
    let cached = seen.when(|wanted| wanted.state == ListState::Cached).await;
    assert_eq!(running(&cached), ["/a"]);
    etcd.signal(Signal::CONT);
    put(&settings, KEY, &list_of(&[B])).await;
    seen.when_running(&["/b"]).await;
}

#[tokio::test]
async fn a_module_goes_through_the_store_and_its_tag_is_followed() {
    let (etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let mut store = Store::connect(&settings).await.unwrap();
    let (one, two) = (store.push(&large, |_| {}).await.unwrap(), store.push(b"\0asm", |_| {}).await.unwrap());
    let fetcher = Fetcher::new(&ListSource::Etcd(settings.clone()));
    assert!(fetcher.fetch(&one).await.unwrap() == large);
    let absent = Digest::of(b"absent");
    assert!(matches!(fetcher.fetch(&absent).await, Err(ControlError::NoBlob(_))));
    assert!(matches!(store.tag("redact", &absent, "", None).await, Err(ControlError::NoBlob(_))));

    let seen = Seen::etcd(&settings, state.path());
    seen.when_running(&[]).await;
    put(&settings, KEY, &list_of(&[&filtered("redact")])).await;
    let tag = ModuleRef::Tag("redact".into());
    let untold = seen.when_running(&["/f"]).await;
    assert!(untold.modules[&tag].as_ref().unwrap_err().contains("weir module push"));
    store.tag("redact", &one, "a.wasm", None).await.unwrap();
    seen.when(|wanted| wanted.modules[&tag] == Ok(one)).await;
    let moved = store.tag("redact", &two, "b.wasm", None).await.unwrap();
    assert_eq!(moved.before, Some(one));
    seen.when(|wanted| wanted.modules[&tag] == Ok(two)).await;

    let contents = store.contents().await.unwrap();
    let tags: Vec<_> = contents.tags.iter().map(|tag| (tag.name.as_str(), tag.now.from.as_str())).collect();
    assert_eq!(tags, [("redact", "b.wasm")]);
    let mut sizes: Vec<_> = contents.blobs.iter().map(|blob| blob.bytes).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [4, 3_000_000]);
}

#[tokio::test]
async fn a_damaged_module_is_refused_until_it_is_pushed_again() {
    let etcd = Etcd::start();
    let settings = settings_of(&etcd);
    let mut store = Store::connect(&settings).await.unwrap();
    let digest = store.push(b"\0asm", |_| {}).await.unwrap();
    put(&settings, &format!("/weir/modules/blobs/{}/00000", digest.hex()), "\0bsm").await;
    assert!(matches!(store.fetch(&digest).await, Err(ControlError::Damaged(_))));
    store.push(b"\0asm", |_| {}).await.unwrap();
    assert_eq!(store.fetch(&digest).await.unwrap(), b"\0asm");
}

#[tokio::test]
async fn a_password_lets_in_and_without_it_the_reason_is_said() {
    let (etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let mut settings = settings_of(&etcd);
    put(&settings, KEY, &list_of(&[A])).await;
    let mut client = client::connect(&settings).await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let refused = Store::connect(&settings).await.unwrap().contents().await.unwrap_err();
    assert!(refused.to_string().ends_with("etcdserver: user name is empty"), "{refused}");

    settings.username = Some("root".into());
    settings.password = Some(crate::config::Secret("wrong".into()));
    let refused = client::connect(&settings).await.err().unwrap().to_string();
    assert!(refused.contains("invalid user ID or password") && !refused.contains("wrong"), "{refused}");
    settings.password = Some(crate::config::Secret("secret".into()));
    let seen = Seen::etcd(&settings, state.path());
    seen.when_running(&["/a"]).await;
    put(&settings, KEY, &list_of(&[A, B])).await;
    seen.when_running(&["/a", "/b"]).await;
}

#[tokio::test]
async fn a_list_and_a_tag_change_as_one() {
    let (etcd, state) = (Etcd::start(), tempfile::tempdir().unwrap());
    let settings = settings_of(&etcd);
    let mut store = Store::connect(&settings).await.unwrap();
    let (one, two) = (store.push(b"one", |_| {}).await.unwrap(), store.push(b"two", |_| {}).await.unwrap());
    store.tag("redact", &one, "", None).await.unwrap();
    let modified = put(&settings, KEY, &list_of(&[&filtered("redact")])).await;
    let seen = Seen::etcd(&settings, state.path());
    seen.when_running(&["/f"]).await;

    let write = |modified| {
        let text = list_of(&[&filtered("redact"), A]).into_bytes();
        Some(ListWrite { key: KEY.into(), text, modified })
    };
    let stale = store.tag("redact", &two, "", write(modified - 1)).await;
    assert!(matches!(stale, Err(ControlError::Moved(_))));
    let moved = store.tag("redact", &two, "", write(modified)).await.unwrap();
    let tag = ModuleRef::Tag("redact".into());
    let next = seen.when(|wanted| wanted.revision >= moved.revision).await;
    assert_eq!((running(&next), &next.modules[&tag]), (vec!["/f", "/a"], &Ok(two)));
}

fn write_whole(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn a_list_in_a_file_is_followed_through_renames_and_its_modules_too() {
    let directory = tempfile::tempdir().unwrap();
    let (path, module): (PathBuf, PathBuf) =
        (directory.path().join("collect.json"), directory.path().join("m.wasm"));
    let seen = Seen::file(&path, &directory.path().join("state"));
    assert_eq!(seen.when(|wanted| wanted.state == ListState::Missing).await.entries, []);

    write_whole(&path, &list_of(&[A]));
    let first = seen.when_running(&["/a"]).await;
    write_whole(&path, &list_of(&[&filtered("m.wasm")]));
    let second = seen.when_running(&["/f"]).await;
    assert!(second.revision > first.revision);
    let file = ModuleRef::File(module.clone());
    assert!(second.modules[&file].as_ref().unwrap_err().contains("m.wasm"));

    for content in ["one", "two"] {
        std::fs::write(&module, content).unwrap();
        seen.when(|wanted| wanted.modules[&file] == Ok(Digest::of(content.as_bytes()))).await;
    }
    std::fs::write(&path, "[{]").unwrap();
    let invalid = seen.when(|wanted| wanted.state == ListState::Invalid).await;
    assert_eq!(running(&invalid), ["/f"]);
    assert!(invalid.problems[0].place.ends_with("collect.json:1:3"), "{}", invalid.problems[0]);
    drop(seen);
    let again = Seen::file(&path, &directory.path().join("state"));
    let kept = again.when(|wanted| wanted.state == ListState::Invalid).await;
    assert_eq!(running(&kept), ["/f"], "the last good list is on disk");
}

#[tokio::test]
async fn the_settings_may_name_the_only_entry() {
    let (out, mut wanted) = channel(None);
    let task = tokio::spawn(fixed("./logs/my.log".into(), "web".into(), out));
    let wanted = wanted.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let here = std::env::current_dir().unwrap().join("logs/my.log");
    assert_eq!(
        (wanted.entries[0].path.as_str(), wanted.entries[0].topic.as_str()),
        (here.to_str().unwrap(), "web")
    );
    task.abort();
}
