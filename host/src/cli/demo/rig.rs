//! The agent of the demo, as `weir run` runs it, in a directory that is gone afterwards.
//!
//! In: a broker's address, lists. Out: what `weir status` would show, and how the agent ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::agent::{self, AgentError, Finished, Mode};
use crate::config::{AdminSettings, AgentSettings, KafkaSettings, Limits, ListSource, Settings};
use crate::policy::Policy;
use crate::{admin, status};

/// How long the agent may take to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The running agent and its directory.
pub(super) struct Rig {
    agent: JoinHandle<Result<Finished, AgentError>>,
    stop: oneshot::Sender<()>,
    runtime: Runtime,
    dir: TempDir,
}

impl Rig {
    /// Starts an agent that collects nothing yet and produces to `brokers`.
    pub(super) fn start(brokers: String) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("weir-demo-").tempdir().context("make a directory")?;
        write_log_to(&dir.path().join("agent.log"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start the runtime")?;
        let (stop, stopped) = oneshot::channel();
        let settings = settings(dir.path(), brokers);
        let agent = runtime.spawn(agent::run(settings, Mode::default(), async {
            // A rig that is gone is a stop too.
            let _ = stopped.await;
        }));
        Ok(Self { dir, runtime, agent, stop })
    }

    /// Where the service writes.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.path().join("app.log")
    }

    /// What runs tasks, for whoever waits for signals.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Changes the collect list: one entry, the log to `topic`, with this filter.
    pub(super) fn collect(&self, topic: &str, filter: Option<serde_json::Value>) -> anyhow::Result<()> {
        let mut entry = serde_json::json!({"path": self.log(), "topic": topic, "start_at": "beginning"});
        if let Some(filter) = filter {
            entry["filter"] = filter;
        }
        let (list, new) = (list(self.dir.path()), self.dir.path().join("collect.json.new"));
        fs::write(&new, serde_json::json!([entry]).to_string())
            .and_then(|()| fs::rename(&new, &list))
            .with_context(|| format!("write {}", list.display()))
    }

    /// What the agent says about its entry, once it has one.
    pub(super) fn status(&self) -> Option<status::EntryStatus> {
        let status = self.runtime.block_on(admin::fetch_status(&socket(self.dir.path())));
        status.ok()?.entries.into_iter().next()
    }

    /// Whether the agent has ended, though nobody stopped it: [`Rig::stop`] says why.
    pub(super) fn is_over(&self) -> bool {
        self.agent.is_finished()
    }

    /// Stops the agent as SIGTERM does.
    pub(super) fn stop(self) -> anyhow::Result<(Finished, TempDir)> {
        // An agent that has ended listens no more.
        let _ = self.stop.send(());
        match self.runtime.block_on(self.agent) {
            Ok(ended) => Ok((ended.context("the agent")?, self.dir)),
            Err(_) => bail!("the agent broke down"),
        }
    }
}

fn list(dir: &Path) -> PathBuf {
    dir.join("collect.json")
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("weir.sock")
}

fn settings(dir: &Path, brokers: String) -> Settings {
    Settings {
        file: dir.join("weir.toml"),
        agent: AgentSettings {
            name: "demo".into(),
            ip: "127.0.0.1".into(),
            labels: Default::default(),
            drain: DRAIN,
        },
        kafka: KafkaSettings { brokers, properties: Default::default() },
        list: ListSource::File(list(dir)),
        state_dir: dir.join("state"),
        admin: AdminSettings { listen: ([127, 0, 0, 1], 0).into(), socket: socket(dir) },
        limits: Limits {
            memory: 64 << 20,
            filter_memory: 256 << 20,
            quarantine: 16 << 20,
            held_files_age: Duration::from_secs(3600),
            held_files_bytes: 1 << 30,
        },
        policy: Policy::unbounded(),
        notes: Vec::new(),
    }
}

/// The agent's own log would disturb the picture.
fn write_log_to(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(file);
    log.try_init().map_err(anyhow::Error::from_boxed)
}
