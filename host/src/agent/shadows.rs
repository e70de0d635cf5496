//! Prepares the second modules that entries name, and has the thread on which they all run.
//!
//! In: what an entry wants. Out: a shadow in the pipeline's inbox, or why there is none. Whatever goes
//! wrong with a shadow is said and changes nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tokio::task::AbortHandle;
use tracing::warn;

use super::filters::{Loader, Modules};
use super::spawn;
use crate::filter::shadow::{Job, Shadow, run};
use crate::filter::{Filter, FilterContext};
use crate::model::{Digest, Entry, EntryName, FilterSpec, ModuleRef, ShadowSpec};
use crate::pipeline::Message;
use crate::status::{FilterState, ShadowStatus};

/// The shadows that entries want.
#[derive(Default)]
pub(super) struct Shadows {
    asked: HashMap<EntryName, Asked>,
    /// To the thread; none until there is a shadow.
    queue: Option<Sender<Job>>,
    tickets: u64,
}

/// What was last asked for an entry.
struct Asked {
    ticket: u64,
    wish: (Result<Digest, String>, FilterContext),
    task: Option<AbortHandle>,
}

/// What is to be prepared.
pub(super) struct Task {
    pub(super) ticket: u64,
    pub(super) module: ModuleRef,
    pub(super) digest: Digest,
    pub(super) context: FilterContext,
}

impl Shadows {
    /// What to prepare for the entry, if that is something else than before.
    pub(super) fn ask(
        &mut self,
        entry: &Entry,
        inbox: &Sender<Message>,
        modules: &Modules,
        loader: &Loader,
    ) -> Option<Task> {
        let shadow = entry.filter.as_ref().and_then(|spec| Some((spec, spec.shadow.as_ref()?)));
        let Some((spec, shadow)) = shadow else {
            if self.forget(&entry.name) {
                tell(inbox, None);
            }
            return None;
        };
        let wish = (loader.digest(entry, &shadow.module, modules), context(entry, spec, shadow, loader));
        if self.asked.get(&entry.name).is_some_and(|asked| asked.wish == wish) {
            return None;
        }
        self.forget(&entry.name);
        self.tickets += 1;
        let ticket = self.tickets;
        let (digest, context) = wish.clone();
        self.asked.insert(entry.name.clone(), Asked { ticket, wish, task: None });
        match digest {
            Ok(digest) => {
                tell(inbox, Some((status(shadow, FilterState::Failed, "it is being loaded"), None)));
                Some(Task { ticket, module: shadow.module.clone(), digest, context })
            }
            Err(cause) => {
                self.refuse(entry, shadow, &cause, inbox);
                None
            }
        }
    }

    /// The task that prepares it.
    pub(super) fn begun(&mut self, entry: &EntryName, task: AbortHandle) {
        if let Some(asked) = self.asked.get_mut(entry) {
            asked.task = Some(task);
        }
    }

    /// Gives a shadow to the pipeline, unless something else was asked for meanwhile.
    pub(super) fn hand_over(
        &mut self,
        ticket: u64,
        result: Result<Box<Filter>, String>,
        entry: &Arc<Entry>,
        inbox: &Sender<Message>,
    ) {
        let shadow = entry.filter.as_ref().and_then(|spec| spec.shadow.as_ref());
        let is_wanted = self.asked.get(&entry.name).is_some_and(|asked| asked.ticket == ticket);
        let Some(shadow) = shadow.filter(|_| is_wanted) else { return };
        match result.and_then(|filter| Ok((filter, self.queue()?))) {
            Ok((filter, queue)) => {
                let shadowing = Shadow::new(*filter, queue);
                tell(inbox, Some((status(shadow, FilterState::Applied, ""), Some(shadowing))));
            }
            Err(cause) => self.refuse(entry, shadow, &cause, inbox),
        }
    }

    fn refuse(&self, entry: &Entry, shadow: &ShadowSpec, cause: &str, inbox: &Sender<Message>) {
        warn!(entry = %entry.name, module = %shadow.module, cause, "the shadow cannot be used");
        tell(inbox, Some((status(shadow, FilterState::Failed, cause), None)));
    }

    /// The way to the thread of all shadows, which is started for the first.
    fn queue(&mut self) -> Result<Sender<Job>, String> {
        if let Some(queue) = &self.queue {
            return Ok(queue.clone());
        }
        let (queue, jobs) = channel();
        // It ends with the last shadow and this.
        spawn("shadows", move || run(&jobs)).map_err(|error| error.to_string())?;
        self.queue = Some(queue.clone());
        Ok(queue)
    }

    /// The entry or its pipeline is gone. Whether it had a shadow.
    pub(super) fn forget(&mut self, entry: &EntryName) -> bool {
        let asked = self.asked.remove(entry);
        if let Some(task) = asked.as_ref().and_then(|asked| asked.task.as_ref()) {
            task.abort();
        }
        asked.is_some()
    }
}

fn context(entry: &Entry, spec: &FilterSpec, shadow: &ShadowSpec, loader: &Loader) -> FilterContext {
    FilterContext {
        entry: entry.name.clone(),
        topic: entry.topic.clone(),
        host: loader.host.clone(),
        config: shadow.config.clone(),
        timeout: spec.timeout,
        memory: spec.memory,
        aside: true,
    }
}

fn status(shadow: &ShadowSpec, state: FilterState, cause: &str) -> ShadowStatus {
    let module = shadow.module.to_string();
    ShadowStatus { module, state, cause: cause.into(), ..ShadowStatus::default() }
}

fn tell(inbox: &Sender<Message>, shadow: Option<(ShadowStatus, Option<Shadow>)>) {
    // A pipeline that has ended is started anew with its shadow.
    let _ = inbox.send(Message::Shadow(shadow));
}
