//! Prepares filters off the data path and hands them to running pipelines.
//!
//! In: what an entry wants, and what its pipeline finds out about the filter it runs. Out: a live
//! filter, tried with the real config, in the pipeline's inbox; or why there is none, while the old
//! one goes on. A filter that fails too often gives way to the one before it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use crate::control::{Fetcher, Wanted};
use crate::filter::{Engine, Filter, FilterContext, FilterError, ModuleCache};
use crate::model::{Digest, Entry, EntryName, FilterSpec, ModuleRef};
use crate::pipeline::{FilterChange, Judge, Judgement, Message, Verdict};
use crate::policy::Policy;
use crate::policy::keys::SIGNATURE_EXTENSION;
use crate::status::{FilterState, FilterStatus, Obstacle};

use super::shadows::{Shadows, Task};
use super::versions::{Version, Versions, is_in_share};

/// The pause before a module that could not be fetched is fetched again, doubled up to a minute.
const FETCH_RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How often the module cache is tidied; first when there is a list.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// What each module of a list is.
pub(super) type Modules = BTreeMap<ModuleRef, Result<Digest, String>>;

/// The filters that entries want.
pub(super) struct Filters {
    loader: Loader,
    versions: Versions,
    shadows: Shadows,
    asked: HashMap<EntryName, Asked>,
    tasks: JoinSet<()>,
    sender: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
    tickets: u64,
    /// When the cache is tidied next.
    tidy_at: Instant,
}

/// Gets modules ready.
#[derive(Clone)]
pub(super) struct Loader {
    engine: Arc<Engine>,
    cache: ModuleCache,
    policy: Arc<Policy>,
    pub(super) host: String,
    fetcher: Option<Fetcher>,
}

/// Why there is no filter: in words, and in one that may leave the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    obstacle: Obstacle,
    cause: String,
}

impl Refusal {
    fn new(obstacle: Obstacle, cause: impl Into<String>) -> Self {
        Self { obstacle, cause: cause.into() }
    }
}

/// What was last asked for an entry.
struct Asked {
    ticket: u64,
    wish: Result<(Digest, FilterSpec), Refusal>,
    task: Option<AbortHandle>,
    /// What is being prepared.
    target: Option<Target>,
    /// What the pipeline was given last.
    given: Option<(u64, Version)>,
}

/// A version to be run, and why it is that one.
#[derive(Clone)]
struct Target {
    version: Version,
    state: FilterState,
    cause: String,
}

/// What is heard of the filter of an entry.
pub(super) struct News {
    entry: EntryName,
    what: What,
}

enum What {
    /// It is ready, or why it is not.
    Prepared { ticket: u64, result: Result<Box<Filter>, Refusal> },
    /// The same of its shadow.
    Shadow { ticket: u64, result: Result<Box<Filter>, Refusal> },
    /// What its pipeline found out.
    Judged(Judgement),
}

impl News {
    pub(super) fn entry(&self) -> &EntryName {
        &self.entry
    }
}

impl Filters {
    pub(super) fn new(
        engine: Arc<Engine>,
        cache: ModuleCache,
        policy: Arc<Policy>,
        host: String,
        versions: Versions,
    ) -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        let loader = Loader { engine, cache, policy, host, fetcher: None };
        let (shadows, asked, tasks) = (Shadows::default(), HashMap::new(), JoinSet::new());
        let tidy_at = Instant::now();
        Self { loader, versions, shadows, asked, tasks, sender, news, tickets: 0, tidy_at }
    }

    /// Writes down what becomes known of filters, until this is gone.
    pub(super) fn writer(&self) -> impl Future<Output = ()> + use<> {
        self.versions.writer()
    }

    /// Where the pipeline of the entry says what it finds out about its filter.
    pub(super) fn judge(&self, entry: &EntryName) -> Judge {
        let (sender, entry) = (self.sender.clone(), entry.clone());
        Arc::new(move |judgement| {
            // Nobody wants to know when the agent stops.
            let _ = sender.send(News { entry: entry.clone(), what: What::Judged(judgement) });
        })
    }

    /// Modules that are not in the cache come from there.
    pub(super) fn with_fetcher(mut self, fetcher: Fetcher) -> Self {
        self.loader.fetcher = Some(fetcher);
        self
    }

    /// A pipeline was started for the entry: it waits if there is a filter.
    pub(super) fn begin(&mut self, entry: &Arc<Entry>, inbox: &Sender<Message>, wanted: &Wanted) {
        self.ask(entry, inbox, wanted);
        self.ask_shadow(entry, inbox, wanted);
    }

    /// A running entry may want another filter than before.
    pub(super) fn want(
        &mut self,
        known: &Entry,
        entry: &Arc<Entry>,
        inbox: &Sender<Message>,
        wanted: &Wanted,
    ) {
        if entry.filter.is_some() {
            self.ask(entry, inbox, wanted);
            self.ask_shadow(entry, inbox, wanted);
        } else if known.filter.is_some() {
            self.forget(&entry.name);
            tell(inbox, entry, FilterChange::Remove);
        }
    }

    fn ask(&mut self, entry: &Arc<Entry>, inbox: &Sender<Message>, wanted: &Wanted) {
        let Some(spec) = &entry.filter else { return };
        let wish = self.loader.resolve(entry, spec, &wanted.modules);
        let before = self.asked.get(&entry.name);
        if before.is_some_and(|before| before.wish == wish) {
            return;
        }
        let given = before.and_then(|before| before.given.clone());
        self.forget_filter(&entry.name);
        let applied = given.is_some();
        let mut asked = Asked { ticket: 0, wish: wish.clone(), task: None, target: None, given };
        match wish {
            Ok((digest, _)) => {
                let target = self.choose(&entry.name, spec, &digest, wanted);
                match &asked.given {
                    Some((ticket, version)) if target.version.is(version) => {
                        asked.ticket = *ticket;
                        let status = status(spec, target.state, &target.cause);
                        tell(inbox, entry, FilterChange::Same(status));
                    }
                    _ => self.prepare(entry, target, &mut asked),
                }
                if !applied {
                    let status = status(spec, FilterState::Failed, "its filter is being loaded");
                    tell(inbox, entry, FilterChange::WaitFor(status));
                }
            }
            Err(why) => refuse(entry, spec, applied, why, inbox),
        }
        self.asked.insert(entry.name.clone(), asked);
    }

    /// The version to run for what is wanted.
    fn choose(&mut self, entry: &EntryName, spec: &FilterSpec, digest: &Digest, list: &Wanted) -> Target {
        let wanted = Version::of(spec, digest);
        if let Some((version, cause)) = self.versions.instead_of(entry, &wanted) {
            return Target { version, state: FilterState::RolledBack, cause };
        }
        let (mut version, mut cause) = (wanted, String::new());
        if !is_in_share(&self.loader.host, entry, spec.rollout) {
            // Without a past of its own it begins with that of the tag.
            let before = list.before.get(&spec.module).map(|before| Version::of(spec, before));
            let old = self.versions.running(entry).cloned().or(before);
            if let Some(old) = old.filter(|old| !old.is(&version)) {
                version = old;
                cause = format!("this host is outside the rollout to {} % of the hosts", spec.rollout);
            }
        }
        Target { version, state: FilterState::Applied, cause }
    }

    fn ask_shadow(&mut self, entry: &Arc<Entry>, inbox: &Sender<Message>, wanted: &Wanted) {
        let task = self.shadows.ask(entry, inbox, &wanted.modules, &self.loader);
        let Some(Task { ticket, module, digest, context }) = task else { return };
        let (sender, name) = (self.sender.clone(), entry.name.clone());
        let answer = move |result| {
            // Nobody waits for it when the agent stops.
            let _ = sender.send(News { entry: name.clone(), what: What::Shadow { ticket, result } });
        };
        let task = self.tasks.spawn(self.loader.clone().prepare(module, digest, context, answer));
        self.shadows.begun(&entry.name, task);
    }

    fn prepare(&mut self, entry: &Entry, target: Target, asked: &mut Asked) {
        self.tickets += 1;
        let (loader, sender, ticket) = (self.loader.clone(), self.sender.clone(), self.tickets);
        let version = &target.version;
        let context = FilterContext {
            entry: entry.name.clone(),
            topic: entry.topic.clone(),
            host: loader.host.clone(),
            config: version.config.clone().into_bytes(),
            timeout: Duration::from_millis(version.timeout_ms),
            memory: version.memory,
            aside: false,
        };
        let Some(module) = entry.filter.as_ref().map(|spec| spec.module.clone()) else { return };
        let name = entry.name.clone();
        let answer = move |result| {
            // Nobody waits for it when the agent stops.
            let _ = sender.send(News { entry: name.clone(), what: What::Prepared { ticket, result } });
        };
        // What is remembered must be allowed as well.
        let digest = version.digest().map_err(|cause| Refusal::new(Obstacle::Module, cause));
        let digest = digest.and_then(|digest| loader.allowed(&entry.name, digest));
        let task = match digest {
            Ok(digest) => self.tasks.spawn(loader.prepare(module, digest, context, answer)),
            Err(why) => self.tasks.spawn(async move { answer(Err(why)) }),
        };
        if let Some(old) = asked.task.replace(task) {
            old.abort();
        }
        (asked.ticket, asked.target) = (ticket, Some(target));
    }

    /// When [`Filters::tidy`] is due, once there is a list.
    pub(super) fn tidy_at(&self) -> Instant {
        self.tidy_at
    }

    /// Removes modules from the cache that no entry has used for long.
    pub(super) fn tidy(&mut self, modules: &Modules) {
        self.tidy_at = Instant::now() + TIDY_EVERY;
        let asked = self.asked.values().filter_map(|asked| asked.wish.as_ref().ok());
        let named = modules.values().filter_map(|digest| digest.as_ref().ok());
        let used = named.chain(asked.map(|(digest, _)| digest)).copied();
        let used = used.chain(self.versions.digests()).collect();
        let (engine, cache) = (self.loader.engine.clone(), self.loader.cache.clone());
        self.tasks.spawn_blocking(move || match engine.tidy(&cache, &used) {
            Ok(tidied) if tidied.files == 0 => {}
            Ok(tidied) => {
                info!(files = tidied.files, bytes = tidied.bytes, "removed unused modules from the cache")
            }
            Err(error) => warn!(error = %chain(&error), "the module cache cannot be tidied"),
        });
    }

    /// The entry or its filter is gone, or its pipeline.
    pub(super) fn forget(&mut self, entry: &EntryName) {
        self.forget_filter(entry);
        self.shadows.forget(entry);
    }

    fn forget_filter(&mut self, entry: &EntryName) {
        if let Some(task) = self.asked.remove(entry).and_then(|asked| asked.task) {
            task.abort();
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// The entry is in no list any more.
    pub(super) fn retire(&mut self, entry: &EntryName) {
        self.forget(entry);
        self.versions.forget(entry);
    }

    /// What is heard next.
    pub(super) async fn next(&mut self) -> News {
        loop {
            // This struct holds a sender, so there is always more to wait for.
            if let Some(news) = self.news.recv().await {
                return news;
            }
        }
    }

    /// Does what is to be done about it.
    pub(super) fn hear(&mut self, news: News, entry: &Arc<Entry>, inbox: &Sender<Message>) {
        match news.what {
            What::Prepared { ticket, result } => self.hand_over(ticket, result, entry, inbox),
            What::Shadow { ticket, result } => {
                let result = result.map_err(|why| why.cause);
                self.shadows.hand_over(ticket, result, entry, inbox);
            }
            What::Judged(Judgement { ticket, verdict }) => self.judged(ticket, verdict, entry),
        }
    }

    /// Gives a filter to the pipeline, unless something else was asked for meanwhile.
    fn hand_over(
        &mut self,
        ticket: u64,
        result: Result<Box<Filter>, Refusal>,
        entry: &Arc<Entry>,
        inbox: &Sender<Message>,
    ) {
        let (Some(asked), Some(spec)) = (self.asked.get_mut(&entry.name), &entry.filter) else { return };
        let Some(target) = asked.target.clone().filter(|_| asked.ticket == ticket) else { return };
        match result {
            Ok(filter) => {
                asked.given = Some((ticket, target.version.clone()));
                self.versions.runs(&entry.name, &target.version);
                let status = status(spec, target.state, &target.cause);
                tell(inbox, entry, FilterChange::Use { filter, status, ticket });
            }
            Err(why) => refuse(entry, spec, asked.given.is_some(), why, inbox),
        }
    }

    /// Notes what the pipeline found out about the filter that it was given, if it still runs. One that
    /// fails gives way to the one before it, where there is one.
    fn judged(&mut self, ticket: u64, verdict: Verdict, entry: &Arc<Entry>) {
        let Some(mut asked) = self.asked.remove(&entry.name) else { return };
        let given = asked.given.clone().filter(|(given, _)| *given == ticket);
        match (given, verdict) {
            (Some((_, version)), Verdict::Proven) => self.versions.proved(&entry.name, &version),
            // What is asked for meanwhile comes anyway.
            (Some((_, version)), Verdict::Failing(cause)) if asked.ticket == ticket => {
                if let Some(to) = self.versions.failed(&entry.name, &version, &cause) {
                    let (from, digest) = (&version.module, &to.module);
                    warn!(entry = %entry.name, %from, to = %digest, cause, "rolls the filter back");
                    let target = Target { version: to, state: FilterState::RolledBack, cause };
                    self.prepare(entry, target, &mut asked);
                }
            }
            _ => {}
        }
        self.asked.insert(entry.name.clone(), asked);
    }
}

impl Loader {
    /// Which module it is, and with what; or why that cannot be told.
    fn resolve(
        &self,
        entry: &Entry,
        spec: &FilterSpec,
        modules: &Modules,
    ) -> Result<(Digest, FilterSpec), Refusal> {
        let digest = self.which(entry, &spec.module, modules)?;
        // A shadow is another wish.
        Ok((digest, FilterSpec { shadow: None, ..spec.clone() }))
    }

    /// Which module that is, where the host allows it.
    pub(super) fn digest(
        &self,
        entry: &Entry,
        module: &ModuleRef,
        modules: &Modules,
    ) -> Result<Digest, String> {
        self.which(entry, module, modules).map_err(|why| why.cause)
    }

    fn which(&self, entry: &Entry, module: &ModuleRef, modules: &Modules) -> Result<Digest, Refusal> {
        match modules.get(module) {
            Some(Ok(digest)) => self.allowed(&entry.name, *digest),
            Some(Err(cause)) => Err(Refusal::new(Obstacle::Module, cause)),
            None => Err(Refusal::new(Obstacle::Module, format!("module {module} is not known"))),
        }
    }

    fn allowed(&self, entry: &EntryName, digest: Digest) -> Result<Digest, Refusal> {
        let refused = match self.policy.check_module(entry.as_str(), &digest) {
            Ok(()) => return Ok(digest),
            Err(problem) => format!("{}; {}", problem.cause, problem.fix),
        };
        Err(Refusal::new(Obstacle::Policy, refused))
    }

    /// Fetches, loads and tries a module, and answers with it. Where it cannot be fetched, that is answered,
    /// and it is tried again.
    async fn prepare(
        self,
        module: ModuleRef,
        digest: Digest,
        context: FilterContext,
        answer: impl Fn(Result<Box<Filter>, Refusal>) + Send,
    ) {
        let mut pause = FETCH_RETRY.0;
        while let Err(why) = self.fetch(&module, &digest).await {
            answer(Err(why));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FETCH_RETRY.1);
        }
        let load = tokio::task::spawn_blocking(move || self.load(&digest, context)).await;
        answer(load.unwrap_or_else(|error| Err(Refusal::new(Obstacle::Compile, error.to_string()))));
    }

    /// Has the module in the cache, signed where the policy has keys.
    async fn fetch(&self, module: &ModuleRef, digest: &Digest) -> Result<(), Refusal> {
        let refusal = |cause: String| Refusal::new(Obstacle::Module, cause);
        if let Ok(Some(bytes)) = self.cache.get(digest) {
            return self.verify(module, digest, &bytes).await.map_err(refusal);
        }
        let Some(fetcher) = &self.fetcher else {
            return Err(refusal("there is no module store".into()));
        };
        let bytes = fetcher.fetch(digest).await.map_err(|error| refusal(error.chain()))?;
        info!(module = %digest.short(), bytes = bytes.len(), "fetched a module");
        self.cache.put(&bytes).map_err(|error| refusal(chain(&error)))?;
        self.verify(module, digest, &bytes).await.map_err(refusal)
    }

    /// Whether one of the policy's keys signed the module, by the signature that was kept or the one
    /// that stands beside it now.
    async fn verify(&self, module: &ModuleRef, digest: &Digest, bytes: &[u8]) -> Result<(), String> {
        let keys = self.policy.keys();
        if !keys.are_set() {
            return Ok(());
        }
        if let Ok(Some(kept)) = self.cache.signature(digest)
            && keys.verify(bytes, &kept).is_ok()
        {
            return Ok(());
        }
        const SIGN: &str =
            "sign it with one of the keys in [policy] of this host: weir module sign WASM --sign-key KEY";
        let signature = self.signature(module, digest).await?;
        let signature = signature.ok_or_else(|| {
            format!("module {digest} is not signed, and the policy of this host has keys; {SIGN}, and push it again")
        })?;
        keys.verify(bytes, &signature)
            .map_err(|cause| format!("module {digest} cannot be trusted: {cause}; {SIGN}"))?;
        self.cache.put_signature(digest, &signature).map_err(|error| chain(&error))
    }

    async fn signature(&self, module: &ModuleRef, digest: &Digest) -> Result<Option<String>, String> {
        if let ModuleRef::File(path) = module {
            let path = path.with_added_extension(SIGNATURE_EXTENSION);
            return match tokio::fs::read_to_string(&path).await {
                Ok(signature) => Ok(Some(signature)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("cannot read {}: {error}", path.display())),
            };
        }
        let Some(fetcher) = &self.fetcher else { return Err("there is no module store".into()) };
        fetcher.signature(digest).await.map_err(|error| error.chain())
    }

    fn load(&self, digest: &Digest, context: FilterContext) -> Result<Box<Filter>, Refusal> {
        let refusal = |obstacle| move |error: FilterError| Refusal::new(obstacle, chain(&error));
        let module = self.engine.load(&self.cache, digest).map_err(refusal(Obstacle::Compile))?;
        module.prepare(context).map(Box::new).map_err(refusal(Obstacle::Init))
    }
}

/// The old filter goes on; where there is none, the entry waits.
fn refuse(entry: &Arc<Entry>, spec: &FilterSpec, applied: bool, why: Refusal, inbox: &Sender<Message>) {
    let Refusal { obstacle, cause } = why;
    warn!(entry = %entry.name, module = %spec.module, cause, keeps_old = applied,
        "the filter cannot be used; mend its module, tag or config, or take it back (`weir module rollback`)");
    let status = FilterStatus { obstacle: Some(obstacle), ..status(spec, FilterState::Failed, &cause) };
    tell(inbox, entry, FilterChange::Refused(status));
}

fn status(spec: &FilterSpec, state: FilterState, cause: &str) -> FilterStatus {
    let obstacle = (state == FilterState::RolledBack).then_some(Obstacle::Lines);
    let (module, cause) = (spec.module.to_string(), cause.into());
    FilterStatus { module, state, cause, obstacle, ..FilterStatus::default() }
}

fn tell(inbox: &Sender<Message>, entry: &Arc<Entry>, change: FilterChange) {
    // A pipeline that has ended is started anew with its filter.
    let _ = inbox.send(Message::Filter(entry.clone(), Box::new(change)));
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
