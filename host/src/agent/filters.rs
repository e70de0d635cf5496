//! Prepares filters off the data path and hands them to running pipelines.
//!
//! In: what an entry wants. Out: a live filter, tried with the real config, in the pipeline's
//! inbox; or why there is none, while the old one goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use crate::control::Fetcher;
use crate::filter::{Engine, Filter, FilterContext, FilterError, ModuleCache};
use crate::model::{Digest, Entry, EntryName, FilterSpec, ModuleRef};
use crate::pipeline::{FilterChange, Message};
use crate::policy::Policy;
use crate::policy::keys::SIGNATURE_EXTENSION;
use crate::status::{FilterState, FilterStatus, Obstacle};

/// The pause before a module that could not be fetched is fetched again, doubled up to a minute.
const FETCH_RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How often the module cache is tidied; first when there is a list.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// What each module of a list is.
type Modules = BTreeMap<ModuleRef, Result<Digest, String>>;

/// The filters that entries want.
pub(super) struct Filters {
    loader: Loader,
    asked: HashMap<EntryName, Asked>,
    tasks: JoinSet<()>,
    sender: mpsc::UnboundedSender<Prepared>,
    results: mpsc::UnboundedReceiver<Prepared>,
    tickets: u64,
    /// When the cache is tidied next.
    tidy_at: Instant,
}

#[derive(Clone)]
struct Loader {
    engine: Arc<Engine>,
    cache: ModuleCache,
    policy: Arc<Policy>,
    host: String,
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
    /// Whether the pipeline was given a filter.
    applied: bool,
}

/// A filter that is ready, or why it is not.
pub(super) struct Prepared {
    entry: EntryName,
    ticket: u64,
    result: Result<Box<Filter>, Refusal>,
}

impl Prepared {
    pub(super) fn entry(&self) -> &EntryName {
        &self.entry
    }
}

impl Filters {
    pub(super) fn new(engine: Arc<Engine>, cache: ModuleCache, policy: Arc<Policy>, host: String) -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        let loader = Loader { engine, cache, policy, host, fetcher: None };
        Self {
            loader,
            asked: HashMap::new(),
            tasks: JoinSet::new(),
            sender,
            results,
            tickets: 0,
            tidy_at: Instant::now(),
        }
    }

    /// Modules that are not in the cache come from there.
    pub(super) fn with_fetcher(mut self, fetcher: Fetcher) -> Self {
        self.loader.fetcher = Some(fetcher);
        self
    }

    /// A pipeline was started for the entry: it waits if there is a filter.
    pub(super) fn begin(&mut self, entry: &Arc<Entry>, inbox: &Sender<Message>, modules: &Modules) {
        self.ask(entry, inbox, modules);
    }

    /// A running entry may want another filter than before.
    pub(super) fn want(
        &mut self,
        known: &Entry,
        entry: &Arc<Entry>,
        inbox: &Sender<Message>,
        modules: &Modules,
    ) {
        if entry.filter.is_some() {
            self.ask(entry, inbox, modules);
        } else if known.filter.is_some() {
            self.forget(&entry.name);
            tell(inbox, entry, FilterChange::Remove);
        }
    }

    fn ask(&mut self, entry: &Arc<Entry>, inbox: &Sender<Message>, modules: &Modules) {
        let Some(spec) = &entry.filter else { return };
        let wish = self.loader.resolve(entry, spec, modules);
        let before = self.asked.get(&entry.name);
        if before.is_some_and(|before| before.wish == wish) {
            return;
        }
        let applied = before.is_some_and(|before| before.applied);
        self.forget(&entry.name);
        self.tickets += 1;
        let mut asked = Asked { ticket: self.tickets, wish: wish.clone(), task: None, applied };
        match wish {
            Ok((digest, _)) => {
                asked.task = Some(self.prepare(entry, spec, digest));
                if !applied {
                    let cause = "its filter is being loaded".into();
                    let status = FilterStatus { cause, ..status(spec, FilterState::Failed) };
                    tell(inbox, entry, FilterChange::WaitFor(status));
                }
            }
            Err(why) => refuse(entry, spec, applied, why, inbox),
        }
        self.asked.insert(entry.name.clone(), asked);
    }

    fn prepare(&mut self, entry: &Entry, spec: &FilterSpec, digest: Digest) -> AbortHandle {
        let (loader, sender) = (self.loader.clone(), self.sender.clone());
        let context = FilterContext {
            entry: entry.name.clone(),
            topic: entry.topic.clone(),
            host: loader.host.clone(),
            config: spec.config.clone(),
            timeout: spec.timeout,
            memory: spec.memory,
        };
        let (entry, ticket, module) = (entry.name.clone(), self.tickets, spec.module.clone());
        self.tasks.spawn(async move {
            let answer = |result| {
                // Nobody waits for it when the agent stops.
                let _ = sender.send(Prepared { entry: entry.clone(), ticket, result });
            };
            let mut pause = FETCH_RETRY.0;
            while let Err(why) = loader.fetch(&module, &digest).await {
                answer(Err(why));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FETCH_RETRY.1);
            }
            let load = tokio::task::spawn_blocking(move || loader.load(&digest, context)).await;
            answer(load.unwrap_or_else(|error| Err(Refusal::new(Obstacle::Compile, error.to_string()))));
        })
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
        let used = named.chain(asked.map(|(digest, _)| digest)).copied().collect();
        let (engine, cache) = (self.loader.engine.clone(), self.loader.cache.clone());
        self.tasks.spawn_blocking(move || match engine.tidy(&cache, &used) {
            Ok(tidied) if tidied.files == 0 => {}
            Ok(tidied) => {
                info!(files = tidied.files, bytes = tidied.bytes, "removed unused modules from the cache")
            }
            Err(error) => warn!(error = %chain(&error), "the module cache cannot be tidied"),
        });
    }

    /// The entry or its filter is gone.
    pub(super) fn forget(&mut self, entry: &EntryName) {
        if let Some(task) = self.asked.remove(entry).and_then(|asked| asked.task) {
            task.abort();
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// The next result.
    pub(super) async fn next(&mut self) -> Prepared {
        loop {
            // This struct holds a sender, so there is always another result to wait for.
            if let Some(prepared) = self.results.recv().await {
                return prepared;
            }
        }
    }

    /// Gives a result to the pipeline, unless something else was asked for meanwhile.
    pub(super) fn hand_over(&mut self, prepared: Prepared, entry: &Arc<Entry>, inbox: &Sender<Message>) {
        let (Some(asked), Some(spec)) = (self.asked.get_mut(&prepared.entry), &entry.filter) else { return };
        if asked.ticket != prepared.ticket {
            return;
        }
        match prepared.result {
            Ok(filter) => {
                asked.applied = true;
                let status = status(spec, FilterState::Applied);
                tell(inbox, entry, FilterChange::Use(filter, status));
            }
            Err(why) => refuse(entry, spec, asked.applied, why, inbox),
        }
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
        let digest = match modules.get(&spec.module) {
            Some(Ok(digest)) => *digest,
            Some(Err(cause)) => return Err(Refusal::new(Obstacle::Module, cause)),
            None => {
                let cause = format!("module {} is not known", spec.module);
                return Err(Refusal::new(Obstacle::Module, cause));
            }
        };
        self.policy.check_module(entry.name.as_str(), &digest).map_err(|problem| {
            Refusal::new(Obstacle::Policy, format!("{}; {}", problem.cause, problem.fix))
        })?;
        Ok((digest, spec.clone()))
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
    let status = FilterStatus { cause, obstacle: Some(obstacle), ..status(spec, FilterState::Failed) };
    tell(inbox, entry, if applied { FilterChange::Keep(status) } else { FilterChange::WaitFor(status) });
}

fn status(spec: &FilterSpec, state: FilterState) -> FilterStatus {
    FilterStatus { module: spec.module.to_string(), state, ..FilterStatus::default() }
}

fn tell(inbox: &Sender<Message>, entry: &Arc<Entry>, change: FilterChange) {
    // A pipeline that has ended is started anew with its filter.
    let _ = inbox.send(Message::Filter(entry.clone(), change));
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
