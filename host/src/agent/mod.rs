//! The wanted list against the running pipelines.
//!
//! In: [`Wanted`] lists from control, filters that were prepared, pipelines that ended, a stop.
//! Out: pipelines started, changed and stopped, one by one, so that an entry that did not change
//! is not touched. The only place that starts threads and tasks for the rooms, and it ends them
//! all.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::admin::files::{AskFiles, FilesAsked};
use crate::admin::quarantine::Access;
use crate::admin::{Admin, AdminError};
use crate::budget::Budget;
use crate::config::Settings;
use crate::control::{self, Refused, Wanted};
use crate::filter::{Engine, EngineLimits, FilterError, ModuleCache};
use crate::model::{Entry, EntryName, Problem};
use crate::pipeline::{Ended, Message, Pipeline, Setup};
use crate::policy::Policy;
use crate::quarantine::{Quarantine, QuarantineError, Replay, Replayed};
use crate::sink::kafka::KafkaSink;
use crate::sink::stdout::StdoutSink;
use crate::sink::{Sink, SinkError};
use crate::source::HeldLimits;
use crate::source::checkpoint::Checkpoints;
use crate::source::watch::Watcher;
use crate::state::{StateDir, StateError};
use crate::status::{
    AgentFigures, Board, EntryReport, EntryState, EntryStatus, Figures, ListStatus, Obstacle, Room,
};

mod filters;
mod shadows;
mod supervisor;
mod versions;

use self::filters::{Filters, News};
use self::supervisor::Supervisor;
use self::versions::Versions;

/// Kept of the drain time for writing offsets and ending the producer.
const ENDING: Duration = Duration::from_secs(1);

/// Refused entries that the log names: whoever writes lists cannot fill it.
const REFUSED_TOLD: usize = 10;

/// How long an entry whose pipeline broke down waits before it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(5);

/// How the agent is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Print instead of producing; the state is neither opened nor changed.
    pub stdout: bool,
    /// Stop at the end of the files, when all is acknowledged.
    pub once: bool,
}

/// How the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Lines that the next start may repeat.
    pub unfinished: u64,
    /// Whether all offsets are on the disk.
    pub saved: bool,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The quarantine.
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    /// The engine of the filters, or the module cache.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The producer.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The admin address or socket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The system has no thread for it.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// The system has no temporary directory.
    #[error("make a directory for this run")]
    Scratch(#[source] std::io::Error),
}

/// What every pipeline is built from.
struct Shared {
    host: String,
    policy: Arc<Policy>,
    checkpoints: Arc<Checkpoints>,
    quarantine: Option<Arc<Quarantine>>,
    budget: Arc<Budget>,
    sink: Arc<dyn Sink>,
    watcher: Watcher,
    board: Board,
    held_limits: HeldLimits,
    mode: Mode,
}

/// The agent while it runs.
struct Agent {
    shared: Shared,
    filters: Filters,
    wanted: Wanted,
    /// Entries that the policy allows, by name.
    entries: BTreeMap<EntryName, Arc<Entry>>,
    running: HashMap<EntryName, Running>,
    supervisor: Supervisor,
    ended: mpsc::UnboundedSender<EntryName>,
    finished: Finished,
}

/// A pipeline and what it was told.
struct Running {
    entry: Arc<Entry>,
    inbox: std::sync::mpsc::Sender<Message>,
    thread: Option<JoinHandle<Ended>>,
    stopping: bool,
    /// With `once`, or until it is restarted: the pipeline ended.
    over: Option<Instant>,
}

/// Everything that outlives the pipelines.
struct Parts {
    state: Option<StateDir>,
    kafka: Option<Arc<KafkaSink>>,
    admin: Option<Admin>,
    replays: mpsc::Receiver<Replay>,
    questions: mpsc::Receiver<FilesAsked>,
}

/// Runs until `stop`, or with [`Mode::once`] until all files are read and acknowledged.
pub async fn run(
    mut settings: Settings,
    mode: Mode,
    stop: impl Future<Output = ()>,
) -> Result<Finished, AgentError> {
    let board = Board::new(&settings.agent.name);
    let scratch = if mode.stdout { Some(tempfile::tempdir().map_err(AgentError::Scratch)?) } else { None };
    if let Some(scratch) = &scratch {
        // The agent's own state is left alone.
        settings.state_dir = scratch.path().into();
    }
    let (shared, parts, filters, cache) = prepare(&settings, mode, &board).await?;
    let checkpoints = shared.checkpoints.clone();
    let writer = spawn("checkpoints", {
        let checkpoints = checkpoints.clone();
        move || checkpoints.run()
    })?;
    let (wanted, task, fetcher) = control::start(
        &settings,
        Arc::new(move |bytes: &[u8]| cache.put(bytes).map_err(std::io::Error::other)),
    );
    let (stopped, stopping) = watch::channel(());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(task);
    let noting = tokio::spawn(filters.writer());
    let announcing = (!mode.stdout).then(|| {
        tokio::spawn(control::announce::run(board.clone(), settings.clone(), until(stopping.clone())))
    });
    let Parts { state, kafka, admin, replays, questions } = parts;
    if let Some(admin) = admin {
        info!(listen = %admin.address(), "metrics, health and status");
        tasks.spawn(admin.serve(until(stopping)));
    }
    let (ended, ending) = mpsc::unbounded_channel();
    let finished = Finished { unfinished: 0, saved: true };
    let agent = Agent {
        shared,
        filters: filters.with_fetcher(fetcher),
        wanted: Wanted::default(),
        entries: BTreeMap::new(),
        running: HashMap::new(),
        supervisor: Supervisor::new(),
        ended,
        finished,
    };
    let drain = settings.agent.drain;
    let mut finished = agent.run(wanted, ending, (replays, questions), stop, drain).await;
    checkpoints.stop();
    finished.saved = tokio::task::spawn_blocking(move || writer.join().is_ok() && checkpoints.flush())
        .await
        .unwrap_or(false);
    if let Some(kafka) = kafka {
        // All is acknowledged or given up by now: nothing to wait for.
        let _ = tokio::task::spawn_blocking(move || kafka.stop(Instant::now() + ENDING)).await;
    }
    // The agent is gone, and what it knew last is written down.
    let _ = noting.await;
    drop(stopped);
    if let Some(announcing) = announcing {
        // It has a bound of its own, and is only told to the fleet.
        let _ = announcing.await;
    }
    tasks.shutdown().await;
    drop(state);
    Ok(finished)
}

async fn prepare(
    settings: &Settings,
    mode: Mode,
    board: &Board,
) -> Result<(Shared, Parts, Filters, ModuleCache), AgentError> {
    let (state, checkpoints, quarantine) = if mode.stdout {
        (None, Checkpoints::none(), None)
    } else {
        let state = StateDir::open(&settings.state_dir, &settings.agent.name)?;
        let checkpoints = Checkpoints::open(state.path());
        let quarantine = Quarantine::open(&state.path().join("quarantine"), settings.limits.quarantine)?;
        (Some(state), checkpoints, Some(quarantine))
    };
    let cache = ModuleCache::open(settings.state_dir.join("modules"))?;
    let kafka =
        if mode.stdout { None } else { Some(KafkaSink::start(&settings.kafka, settings.limits.memory)?) };
    let sink: Arc<dyn Sink> = match &kafka {
        Some(kafka) => kafka.clone(),
        None => Arc::new(StdoutSink::new()),
    };
    let (ask_files, questions) = AskFiles::new();
    let (admin, replays) = match &quarantine {
        Some(quarantine) => {
            let (access, replays) = Access::new(quarantine.clone());
            let admin = Admin::bind(&settings.admin, board.clone()).await?;
            (Some(admin.with_quarantine(access).with_files(ask_files)), replays)
        }
        None => (None, mpsc::channel(1).1),
    };
    let engine = Engine::new(EngineLimits { memory: settings.limits.filter_memory })?;
    let policy = Arc::new(settings.policy.clone());
    let versions = Versions::load(settings.state_dir.join(versions::FILE));
    let filters = Filters::new(engine, cache.clone(), policy.clone(), settings.agent.name.clone(), versions);
    let checkpoints = Arc::new(checkpoints);
    board.set_figures({
        let (checkpoints, kafka, quarantine) = (checkpoints.clone(), kafka.clone(), quarantine.clone());
        move || AgentFigures {
            producer_rebuilds: kafka.as_ref().map(|kafka| kafka.rebuilds()).unwrap_or_default(),
            state_errors: checkpoints.errors(),
            problems: checkpoints.problem().into_iter().collect(),
            quarantine: quarantine.as_ref().and_then(|quarantine| {
                Some(Room { used: quarantine.used().ok()?, limit: quarantine.limit() })
            }),
        }
    });
    let shared = Shared {
        host: settings.agent.name.clone(),
        policy,
        checkpoints,
        quarantine,
        budget: Budget::new(settings.limits.memory),
        sink,
        watcher: Watcher::start(),
        board: board.clone(),
        held_limits: HeldLimits {
            age: settings.limits.held_files_age,
            bytes: settings.limits.held_files_bytes,
        },
        mode,
    };
    Ok((shared, Parts { state, kafka, admin, replays, questions }, filters, cache))
}

impl Agent {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<Option<Wanted>>,
        mut ending: mpsc::UnboundedReceiver<EntryName>,
        (mut replays, mut questions): (mpsc::Receiver<Replay>, mpsc::Receiver<FilesAsked>),
        stop: impl Future<Output = ()>,
        drain: Duration,
    ) -> Finished {
        tokio::pin!(stop);
        self.supervisor.ready();
        loop {
            let (restart, tidy) = (self.next_restart(), self.next_tidy());
            tokio::select! {
                () = &mut stop => break,
                Ok(()) = wanted.changed() => {
                    let list = wanted.borrow_and_update().clone();
                    if let Some(list) = list {
                        self.adopt(list);
                    }
                }
                Some(name) = ending.recv() => self.pipeline_ended(&name).await,
                Some(replay) = replays.recv() => self.replay(replay),
                Some(asked) = questions.recv() => self.ask_for_files(asked),
                news = self.filters.next() => self.filter_news(news),
                () = tokio::time::sleep_until(restart.into()) => self.converge(),
                () = self.supervisor.beat() => {}
                () = tokio::time::sleep_until(tidy.into()) => self.filters.tidy(&self.wanted.modules),
            }
            if self.is_over() {
                return self.finished;
            }
        }
        self.stop(ending, drain).await
    }

    /// A new list: entries that changed are changed, the others left alone.
    fn adopt(&mut self, wanted: Wanted) {
        let (mut refused, mut entries) = (wanted.refused.clone(), BTreeMap::new());
        let of_list = refused.len();
        let mut order = Vec::new();
        for entry in &wanted.entries {
            let most = self.shared.policy.rules().max_entries;
            let allowed = if entries.len() >= most {
                Err(Problem::new(
                    entry.name.as_str(),
                    format!("the list has more than {most} entries"),
                    "raise [policy] max_entries on this host",
                ))
            } else {
                self.shared.policy.check(entry)
            };
            match allowed {
                Ok(()) => {
                    order.push(entry.name.clone());
                    entries.insert(entry.name.clone(), entry.clone());
                }
                Err(problem) => refused.push(Refused {
                    name: entry.name.to_string(),
                    path: entry.path.clone(),
                    topic: entry.topic.to_string(),
                    problem,
                }),
            }
        }
        for refused in refused.iter().take(REFUSED_TOLD) {
            warn!(entry = refused.name, problem = %refused.problem, "refused");
        }
        if let Some(more) = refused.len().checked_sub(REFUSED_TOLD).filter(|more| *more > 0) {
            warn!(more, "further entries are refused; `weir status` names them all");
        }
        info!(
            source = wanted.source,
            revision = wanted.revision,
            entries = entries.len(),
            refused = refused.len(),
            "applies the list"
        );
        self.supervisor.status(&format!(
            "{} at revision {}: {} entries, {} refused",
            wanted.source,
            wanted.revision,
            entries.len(),
            refused.len()
        ));
        self.entries = entries;
        self.wanted = wanted;
        self.converge();
        self.show(order, &refused, of_list);
    }

    /// The first `of_list` refused entries are not valid, the others not allowed.
    fn show(&self, order: Vec<EntryName>, refused: &[Refused], of_list: usize) {
        let damaged = self.shared.quarantine.as_ref().and_then(|quarantine| quarantine.problem());
        let problems = self.wanted.problems.iter().chain(refused.iter().map(|refused| &refused.problem));
        let list = ListStatus {
            source: self.wanted.source.clone(),
            revision: self.wanted.revision,
            state: self.wanted.state,
            problems: problems.cloned().chain(damaged).collect(),
        };
        let refused = refused.iter().enumerate().map(|(i, refused)| EntryStatus {
            cause: refused.problem.cause.clone(),
            state: EntryState::Refused,
            obstacle: Some(if i < of_list { Obstacle::List } else { Obstacle::Policy }),
            ..blank(&refused.name, &refused.path, &refused.topic)
        });
        self.shared.board.set_list(list, order, refused.collect());
    }

    /// Makes what runs what is wanted, as far as that goes at once; what must end first is asked to.
    fn converge(&mut self) {
        let names: Vec<EntryName> = self.running.keys().chain(self.entries.keys()).cloned().collect();
        for name in names {
            let wanted = self.entries.get(&name).cloned();
            match (self.running.get_mut(&name), wanted) {
                (Some(running), wanted)
                    if !wanted.as_ref().is_some_and(|wanted| same_source(&running.entry, wanted)) =>
                {
                    if running.over.is_some() {
                        self.running.remove(&name);
                        self.converge_new(&name);
                    } else if !running.stopping {
                        running.stop();
                    }
                }
                (Some(running), Some(_)) if running.over.is_some_and(|at| Instant::now() >= at) => {
                    self.running.remove(&name);
                    self.converge_new(&name);
                }
                (Some(running), Some(wanted)) => {
                    let known = std::mem::replace(&mut running.entry, wanted);
                    if running.over.is_none() && !running.stopping {
                        self.filters.want(&known, &running.entry, &running.inbox, &self.wanted);
                    }
                }
                (None, _) => self.converge_new(&name),
                (Some(_), None) => {}
            }
        }
    }

    fn converge_new(&mut self, name: &EntryName) {
        self.filters.forget(name);
        let Some(entry) = self.entries.get(name).cloned() else { return };
        match self.start(&entry) {
            Ok(running) => {
                self.filters.begin(&entry, &running.inbox, &self.wanted);
                self.running.insert(name.clone(), running);
            }
            Err(error) => error!(entry = %name, %error, "the entry cannot be started"),
        }
    }

    fn start(&self, entry: &Arc<Entry>) -> Result<Running, AgentError> {
        let shared = &self.shared;
        let report = || EntryReport {
            status: blank(entry.name.as_str(), &entry.path, entry.topic.as_str()),
            figures: Figures::default(),
        };
        let setup = Setup {
            entry: entry.clone(),
            host: shared.host.clone(),
            policy: shared.policy.clone(),
            checkpoints: shared.checkpoints.clone(),
            quarantine: shared.quarantine.clone(),
            share: shared.budget.share(),
            sink: shared.sink.clone(),
            watcher: shared.watcher.clone(),
            slot: shared.board.entry(&entry.name, report),
            tap: shared.board.tap(&entry.name),
            held_limits: shared.held_limits,
            judge: self.filters.judge(&entry.name),
            once: shared.mode.once,
        };
        let (pipeline, inbox) =
            Pipeline::new(setup).map_err(|error| AgentError::Thread(std::io::Error::other(error)))?;
        let (ended, name) = (self.ended.clone(), entry.name.clone());
        let thread = spawn(entry.name.as_str(), move || {
            let told = Told { ended, name };
            let result = pipeline.run();
            drop(told);
            result
        })?;
        Ok(Running { entry: entry.clone(), inbox, thread: Some(thread), stopping: false, over: None })
    }

    /// A pipeline's thread is over: as it was told, at the end of its files, or broken.
    async fn pipeline_ended(&mut self, name: &EntryName) {
        let Some(running) = self.running.get_mut(name) else { return };
        let Some(thread) = running.thread.take() else { return };
        let ended = tokio::task::spawn_blocking(move || thread.join()).await.ok().and_then(Result::ok);
        let Some(running) = self.running.get_mut(name) else { return };
        match ended {
            Some(ended) => {
                self.finished.unfinished += ended.unfinished;
                if running.stopping {
                    let entry = running.entry.clone();
                    self.running.remove(name);
                    if !self.entries.contains_key(name) {
                        self.shared.checkpoints.retire(name, &entry.path);
                        self.filters.retire(name);
                    } else {
                        self.finished.unfinished -= ended.unfinished;
                    }
                    self.converge();
                } else {
                    running.over = Some(far());
                }
            }
            None => {
                error!(entry = %name, "the pipeline broke down; it is started again from its offsets");
                self.shared.board.count_breakdown(name);
                running.over = Some(Instant::now() + RESTART_AFTER);
            }
        }
    }

    fn filter_news(&mut self, news: News) {
        if let Some(running) = self.running.get(news.entry()) {
            self.filters.hear(news, &running.entry, &running.inbox);
        }
    }

    /// A line in quarantine goes to the pipeline of its entry.
    fn replay(&self, replay: Replay) {
        match self.running.get(&replay.item.entry) {
            // A pipeline that has just ended drops it, which is an answer.
            Some(running) => drop(running.inbox.send(Message::Replay(replay))),
            None => {
                let cause =
                    format!("no entry {} runs; add it to the list, or remove the line", replay.item.entry);
                (replay.answer)(Replayed::Kept(cause));
            }
        }
    }

    /// Where no such entry runs, the question is dropped, which is an answer.
    fn ask_for_files(&self, FilesAsked { entry, answer }: FilesAsked) {
        if let Some(running) = self.running.get(&entry) {
            // Whoever asked may have gone.
            let answer = Box::new(move |files| drop(answer.send(files)));
            let _ = running.inbox.send(Message::Files(answer));
        }
    }

    fn next_restart(&self) -> Instant {
        self.running.values().filter_map(|running| running.over).min().unwrap_or_else(far)
    }

    /// Until there is a list, nobody knows what is used; a run that prints leaves the cache alone.
    fn next_tidy(&self) -> Instant {
        let heard = self.shared.board.ready() && !self.shared.mode.stdout;
        if heard { self.filters.tidy_at() } else { far() }
    }

    /// With `once`: every pipeline of the list has come to the end of its files.
    fn is_over(&self) -> bool {
        self.shared.mode.once
            && self.shared.board.ready()
            && self.running.values().all(|running| running.over.is_some())
    }

    async fn stop(mut self, mut ending: mpsc::UnboundedReceiver<EntryName>, drain: Duration) -> Finished {
        info!("stops: what was read is delivered first");
        self.supervisor.stopping();
        let deadline = Instant::now() + drain.saturating_sub(ENDING);
        self.entries.clear();
        for running in self.running.values_mut() {
            running.stopping = true;
            // A pipeline that has just ended needs no word.
            let _ = running.inbox.send(Message::Stop(deadline));
        }
        while self.running.values().any(|running| running.thread.is_some()) {
            let name = tokio::select! {
                name = ending.recv() => name,
                () = self.supervisor.beat() => continue,
            };
            let Some(name) = name else { break };
            let Some(thread) = self.running.get_mut(&name).and_then(|running| running.thread.take()) else {
                continue;
            };
            let ended = tokio::task::spawn_blocking(move || thread.join()).await.ok().and_then(Result::ok);
            self.finished.unfinished += ended.unwrap_or_default().unfinished;
        }
        self.finished
    }
}

impl Running {
    fn stop(&mut self) {
        self.stopping = true;
        // What is under way to a topic that takes nothing must not keep the new entry waiting for long.
        let _ = self.inbox.send(Message::Stop(Instant::now() + RESTART_AFTER));
    }
}

/// Says that a pipeline's thread is over, also when it panics.
struct Told {
    ended: mpsc::UnboundedSender<EntryName>,
    name: EntryName,
}

impl Drop for Told {
    fn drop(&mut self) {
        // Nobody listens any more when the agent itself is gone.
        let _ = self.ended.send(self.name.clone());
    }
}

/// Whether a running pipeline can go on for the new entry: all but the filter is the same.
pub(crate) fn same_source(running: &Entry, wanted: &Entry) -> bool {
    let without_filter = |entry: &Entry| Entry { filter: None, ..entry.clone() };
    without_filter(running) == without_filter(wanted)
}

fn blank(name: &str, path: &str, topic: &str) -> EntryStatus {
    EntryStatus {
        name: name.into(),
        path: path.into(),
        topic: topic.into(),
        cause: "starts".into(),
        ..EntryStatus::default()
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, AgentError> {
    // Linux shows 15 bytes of a thread's name.
    let name: String = name.chars().filter(|c| !c.is_control()).take(15).collect();
    std::thread::Builder::new().name(name).spawn(work).map_err(AgentError::Thread)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600 * 24 * 365)
}

async fn until(mut stopping: watch::Receiver<()>) {
    // An error is the sender's end, which is what is waited for.
    while stopping.changed().await.is_ok() {}
}
