//! One live instance of a module: a store, and what limits it.
//!
//! In: a batch and a deadline. Out: checked output, or a [`Failure`]; after a failure the instance
//! must be dropped, for a trapped component cannot be entered again.
//!
//! The deadline is CPU time of the calling thread. The engine's ticker moves the epoch on every few
//! milliseconds; at the next loop or call the guest calls back here, and only then is the clock
//! looked at. So the deadline costs nothing per call beyond reading the clock twice, and a thread
//! that the host kept waiting is not blamed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, Store, StoreContextMut, Trap, UpdateDeadline};

use super::bindings::weir::filter::host::Host;
use super::bindings::weir::filter::types;
use super::bindings::{self, LineFilter};
use super::check::{self, OUTPUT_LINES_MAX, Output, Room, output_bytes_max};
use super::engine::{Module, Shared, lock};
use super::voice::{Voice, tame};
use super::{Batch, ErrorKind, Failure, FilterContext};

/// CPU time that instantiation and `init` may take together: they may compile patterns.
const INIT_CPU_MAX: Duration = Duration::from_secs(2);
/// What `init` may hand over to the host in one call: an error in words. Bytes.
const INIT_HOSTCALL_BYTES_MAX: usize = 1 << 20;
/// Instances, memories and tables inside one component: Rust has 3 instances and 1 memory, Python
/// and JavaScript some 20.
const PARTS_MAX: usize = 64;
/// Elements of all tables of a component; a pointer each.
const TABLE_ELEMENTS_MAX: usize = 100_000;
/// What wasmtime says when more than [`hostcall_bytes_max`] is handed back; the error has no type.
const HOSTCALL_FUEL: &str = "hostcalls";
/// Names that a single call may count under; the others are ignored.
const PENDING_COUNTS_MAX: usize = 128;

/// A module at work for one entry.
pub(super) struct Instance {
    store: Store<State>,
    filter: LineFilter,
    shared: Arc<Shared>,
    aside: bool,
}

/// What the host knows of an instance.
pub(super) struct State {
    memory: Memory,
    table_elements: usize,
    /// Point on the thread's CPU clock at which the call must have ended.
    deadline: Duration,
    voice: Arc<Mutex<Voice>>,
    /// What this call has counted; it counts once the call has succeeded.
    pending: Vec<(String, u64)>,
    /// The last error that this call has logged: after a panic, its message.
    last_words: Option<String>,
}

/// The memory an instance has taken; given back on drop.
struct Memory {
    shared: Arc<Shared>,
    used: u64,
    max: u64,
    refused: Option<Refused>,
}

#[derive(Clone, Copy)]
enum Refused {
    /// By the limit of the entry.
    Entry,
    /// By what all filters may take together.
    All,
}

/// Ends a call from within the epoch callback.
#[derive(Debug, thiserror::Error)]
#[error("deadline")]
struct DeadlineMissed;

/// CPU time of the calling thread.
pub(super) fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Instance {
    /// Instantiates `module` and calls its `init`; `aside` where no line waits for it.
    pub(super) fn new(
        module: &Module,
        context: &FilterContext,
        voice: &Arc<Mutex<Voice>>,
        aside: bool,
    ) -> Result<Self, Failure> {
        let memory = Memory { shared: module.shared.clone(), used: 0, max: context.memory, refused: None };
        let state = State {
            memory,
            table_elements: 0,
            deadline: Duration::ZERO,
            voice: voice.clone(),
            pending: Vec::new(),
            last_words: None,
        };
        let mut store = Store::new(&module.shared.wasmtime, state);
        store.limiter(|state| state);
        store.epoch_deadline_callback(look_at_clock);
        let _pass = module.shared.enter(aside);
        begin(&mut store, INIT_CPU_MAX, INIT_HOSTCALL_BYTES_MAX);
        let filter = match module.component.instantiate(&mut store) {
            Ok(filter) => filter,
            Err(error) => return Err(explain(&mut store, &error, INIT_CPU_MAX)),
        };
        let wire = types::Context {
            entry: context.entry.as_str(),
            topic: context.topic.as_str(),
            host: &context.host,
        };
        match filter.call_init(&mut store, wire, &context.config) {
            Ok(Ok(())) => {
                store.data_mut().commit_counts();
                Ok(Self { store, filter, shared: module.shared.clone(), aside: context.aside })
            }
            Ok(Err(message)) => Err(Failure { kind: ErrorKind::Error, message: tame(&message) }),
            Err(error) => Err(explain(&mut store, &error, INIT_CPU_MAX)),
        }
    }

    /// The memory it has taken. Bytes.
    pub(super) fn memory(&self) -> u64 {
        self.store.data().memory.used
    }

    /// Passes a batch through `process`; the answer may have so much `room`.
    pub(super) fn process(
        &mut self,
        batch: &Batch<'_>,
        cpu: Duration,
        room: Room,
    ) -> Result<Output, Failure> {
        let Self { store, filter, shared, aside } = self;
        let wire = bindings::Batch {
            path: batch.path,
            offset: batch.offset,
            unix_ms: batch.unix_ms,
            bytes: batch.bytes,
            starts: batch.starts,
            ends: batch.ends,
        };
        let lines = batch.starts.len();
        let pass = shared.enter(*aside);
        begin(store, cpu, hostcall_bytes_max(lines, batch.bytes.len()));
        let called = filter.call_process(&mut *store, wire);
        drop(pass);
        let bindings::Output { verdicts, bytes, ends } = match called {
            Ok(Ok(output)) => output,
            Ok(Err(message)) => return Err(Failure { kind: ErrorKind::Error, message: tame(&message) }),
            Err(error) => return Err(explain(store, &error, cpu)),
        };
        let output = Output { verdicts, bytes, ends };
        match check::check(batch, &output, room) {
            Ok(()) => {
                store.data_mut().commit_counts();
                Ok(output)
            }
            Err(bad) => {
                let kind = if bad.is_size() { ErrorKind::Size } else { ErrorKind::Output };
                Err(Failure { kind, message: bad.to_string() })
            }
        }
    }
}

/// The most that a good answer to a batch takes on its way to the host.
fn hostcall_bytes_max(lines: usize, bytes: usize) -> usize {
    // A verdict, and up to 253 ends of four bytes. An answer that is too large by a little still
    // arrives, and is refused with exact words.
    output_bytes_max(lines, bytes) + lines + 4 * OUTPUT_LINES_MAX.min(253 * lines) + INIT_HOSTCALL_BYTES_MAX
}

fn begin(store: &mut Store<State>, cpu: Duration, hostcall_bytes: usize) {
    let state = store.data_mut();
    state.deadline = thread_cpu().saturating_add(cpu);
    state.memory.refused = None;
    state.last_words = None;
    store.set_hostcall_fuel(hostcall_bytes);
    store.set_epoch_deadline(1);
}

fn look_at_clock(store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    if thread_cpu() < store.data().deadline {
        Ok(UpdateDeadline::Continue(1))
    } else {
        Err(wasmtime::Error::new(DeadlineMissed))
    }
}

/// Finds the words for an error that ended a call.
fn explain(store: &mut Store<State>, error: &wasmtime::Error, cpu: Duration) -> Failure {
    let state = store.data_mut();
    let said = state.last_words.take().map(|words| format!("; the module said: {words}")).unwrap_or_default();
    let (kind, message) = if error.is::<DeadlineMissed>() {
        (ErrorKind::Deadline, format!("took more than {} ms of CPU time", cpu.as_millis()))
    } else if let Some(refused) = state.memory.refused {
        let message = match refused {
            Refused::Entry => format!("needed more than the {} bytes it may have", state.memory.max),
            Refused::All => "needed more memory than all filters together have left".into(),
        };
        (ErrorKind::Memory, message)
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        (ErrorKind::Trap, trap.to_string())
    } else if error.root_cause().to_string().contains(HOSTCALL_FUEL) {
        (ErrorKind::Size, "handed back far more than is taken for this batch".into())
    } else {
        (ErrorKind::Output, error.root_cause().to_string())
    };
    Failure { kind, message: message + &said }
}

impl State {
    fn commit_counts(&mut self) {
        if !self.pending.is_empty() {
            let mut voice = lock(&self.voice);
            self.pending.drain(..).for_each(|(name, by)| voice.count(&name, by));
        }
    }
}

impl Host for State {
    fn log(&mut self, level: u8, message: String) {
        lock(&self.voice).log(level, &message);
        if level <= 1 {
            self.last_words = Some(tame(&message));
        }
    }

    fn count(&mut self, name: String, by: u64) {
        if let Some((_, count)) = self.pending.iter_mut().find(|(known, _)| *known == name) {
            *count = count.saturating_add(by);
        } else if self.pending.len() < PENDING_COUNTS_MAX {
            self.pending.push((name, by));
        }
    }
}

impl types::Host for State {}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.memory.take((desired - current) as u64))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.table_elements.saturating_add(desired - current);
        let granted = wanted <= TABLE_ELEMENTS_MAX;
        if granted {
            self.table_elements = wanted;
        }
        Ok(granted)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

impl Memory {
    fn take(&mut self, bytes: u64) -> bool {
        if self.used + bytes > self.max {
            self.refused = Some(Refused::Entry);
            return false;
        }
        let left = &self.shared.memory_left;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        match taken {
            Ok(_) => self.used += bytes,
            Err(_) => self.refused = Some(Refused::All),
        }
        taken.is_ok()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.memory_left.fetch_add(self.used, Ordering::Relaxed);
    }
}
