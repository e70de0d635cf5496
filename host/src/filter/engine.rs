//! The engine that runs all filters of the agent, and the modules that it has loaded.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker};

use super::bindings::{LineFilter, LineFilterPre};
use super::instance::State;
use super::{Compiler, Filter, FilterContext, FilterError, ModuleCache, Tidied, mapped};
use crate::model::Digest;

/// How often running filters look at their CPU time. A twentieth of the default deadline, and few
/// enough wake-ups not to be seen.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// After so many ticks without a filter call the ticker sleeps until there is one.
const IDLE_TICKS: u32 = 200;
/// The deepest a filter's calls may nest; well below the stack of a thread. Bytes.
const WASM_STACK_BYTES_MAX: usize = 512 * 1024;

/// What all filters together may take.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Memory of all instances. Bytes.
    pub memory: u64,
}

/// Runs the filters of one agent.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    compiler: Compiler,
    loaded: Mutex<HashMap<Digest, Weak<Module>>>,
    /// Held while a module is compiled: one at a time, so that limits of memory hold.
    compiling: Mutex<()>,
}

/// A module that is ready to be instantiated. All entries that name it share it.
#[derive(Clone)]
pub struct Module {
    digest: Digest,
    pub(super) component: LineFilterPre<State>,
    pub(super) shared: Arc<Shared>,
}

/// What every filter needs of the engine. The ticker ends when the last one lets go.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wasmtime: wasmtime::Engine,
    gate: Arc<Gate>,
    /// What instances may still take; bytes.
    pub(super) memory_left: AtomicU64,
}

impl Engine {
    /// An engine that compiles in a child process of this program.
    pub fn new(limits: EngineLimits) -> Result<Arc<Self>, FilterError> {
        Self::with_compiler(limits, Compiler::this_program())
    }

    /// An engine with a compiler of the caller's choice.
    pub fn with_compiler(limits: EngineLimits, compiler: Compiler) -> Result<Arc<Self>, FilterError> {
        let wasmtime = wasmtime::Engine::new(&config()).map_err(failed("set the WebAssembly engine up"))?;
        let gate = Arc::new(Gate::new());
        let (ticked, ticking) = (wasmtime.weak(), gate.clone());
        let ticker = thread::Builder::new().name("filter-tick".into());
        let ticker = ticker.spawn(move || ticking.tick(&ticked));
        ticker.map_err(|error| failed("start the thread for deadlines")(error.into()))?;
        let shared = Shared { wasmtime, gate, memory_left: AtomicU64::new(limits.memory) };
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
            compiler,
            loaded: Mutex::default(),
            compiling: Mutex::default(),
        }))
    }

    /// The module `digest` from `cache`. Compiles it when that was not done before, which takes
    /// long: not to be called where lines wait.
    pub fn load(&self, cache: &ModuleCache, digest: &Digest) -> Result<Arc<Module>, FilterError> {
        if let Some(module) = lock(&self.loaded).get(digest).and_then(Weak::upgrade) {
            return Ok(module);
        }
        let component = mapped::map(&self.shared.wasmtime, &self.code(cache, digest)?);
        let component = component.map_err(failed("load compiled code"))?;
        let mut linker = Linker::<State>::new(&self.shared.wasmtime);
        LineFilter::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)
            .map_err(failed("link the host's interface"))?;
        let component = linker.instantiate_pre(&component).and_then(LineFilterPre::new);
        let component = component.map_err(|error| FilterError::Invalid(error.into()))?;
        let module = Arc::new(Module { digest: *digest, component, shared: self.shared.clone() });
        let mut loaded = lock(&self.loaded);
        loaded.retain(|_, module| module.strong_count() > 0);
        loaded.insert(*digest, Arc::downgrade(&module));
        Ok(module)
    }

    /// Removes from the cache what was not used for long; `used` is what entries name.
    pub fn tidy(&self, cache: &ModuleCache, used: &BTreeSet<Digest>) -> Result<Tidied, FilterError> {
        cache.tidy(used, &key(&self.shared.wasmtime))
    }

    fn code(&self, cache: &ModuleCache, digest: &Digest) -> Result<PathBuf, FilterError> {
        let key = key(&self.shared.wasmtime);
        if let Some(code) = cache.code(digest, &key)? {
            return Ok(code);
        }
        let _one_at_a_time = lock(&self.compiling);
        match cache.code(digest, &key)? {
            Some(code) => Ok(code),
            None => self.compiler.compile(cache, digest, &key),
        }
    }
}

impl Module {
    /// What it is known by.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// A live filter whose `init` has run with the real config: what fails here never sees a line.
    pub fn prepare(self: &Arc<Self>, context: FilterContext) -> Result<Filter, FilterError> {
        Filter::new(self.clone(), context).map_err(|source| FilterError::Init { digest: self.digest, source })
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Shared {
    /// Waits until a core is free for a filter call; it is taken until the pass is dropped. A call
    /// that no line waits for goes beside that.
    pub(super) fn enter(&self, aside: bool) -> Pass<'_> {
        self.gate.enter(aside)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.gate.change(|doors| doors.closed = true);
        self.gate.ticker.notify_all();
    }
}

/// Lets at most as many filter calls run at once as there are cores, and counts their time.
#[derive(Debug)]
struct Gate {
    cores: usize,
    doors: Mutex<Doors>,
    freed: Condvar,
    ticker: Condvar,
}

#[derive(Debug, Default)]
struct Doors {
    running: usize,
    /// Calls that no line waits for.
    aside: usize,
    /// The ticker waits for the next call.
    asleep: bool,
    closed: bool,
}

/// The right to run a filter call.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    aside: bool,
}

impl Gate {
    fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { cores, doors: Mutex::default(), freed: Condvar::new(), ticker: Condvar::new() }
    }

    fn enter(&self, aside: bool) -> Pass<'_> {
        let full = |doors: &mut Doors| !aside && doors.running >= self.cores;
        let mut doors =
            self.freed.wait_while(lock(&self.doors), full).unwrap_or_else(PoisonError::into_inner);
        *doors.count(aside) += 1;
        if doors.asleep {
            self.ticker.notify_one();
        }
        Pass { gate: self, aside }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Doors) -> R) -> R {
        change(&mut lock(&self.doors))
    }

    /// Moves the epoch on while filters run, until the engine is gone.
    fn tick(&self, engine: &wasmtime::EngineWeak) {
        let mut idle = 0;
        loop {
            thread::sleep(TICK);
            let Some(engine) = engine.upgrade() else { return };
            engine.increment_epoch();
            drop(engine);
            let mut doors = lock(&self.doors);
            idle = if doors.is_used() { 0 } else { idle + 1 };
            if idle >= IDLE_TICKS {
                doors.asleep = true;
                let nothing_to_do = |doors: &mut Doors| !doors.is_used() && !doors.closed;
                doors = self.ticker.wait_while(doors, nothing_to_do).unwrap_or_else(PoisonError::into_inner);
                doors.asleep = false;
                idle = 0;
            }
            if doors.closed {
                return;
            }
        }
    }
}

impl Doors {
    fn count(&mut self, aside: bool) -> &mut usize {
        if aside { &mut self.aside } else { &mut self.running }
    }

    fn is_used(&self) -> bool {
        self.running + self.aside > 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.change(|doors| *doors.count(self.aside) -= 1);
        self.gate.freed.notify_one();
    }
}

/// How filters are compiled and run; the same in the agent and in its compiler, or the agent will
/// not take the compiler's code.
pub(super) fn config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config
        .strategy(wasmtime::Strategy::Cranelift)
        .epoch_interruption(true)
        .concurrency_support(false)
        .max_wasm_stack(WASM_STACK_BYTES_MAX)
        // Nobody reads a backtrace without names, and taking one costs more than a new instance.
        .wasm_backtrace_max_frames(None)
        .wasm_simd(true)
        .wasm_bulk_memory(true)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .gc_support(false);
    config
}

/// Tells code of one engine configuration (and version, and CPU) from that of another.
pub(super) fn key(engine: &wasmtime::Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn failed(operation: &'static str) -> impl FnOnce(wasmtime::Error) -> FilterError {
    move |error| FilterError::Engine { operation, source: error.into() }
}

/// No panic happens while these locks are held, so what they guard is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn no_more_calls_run_than_there_are_cores() {
        let gate = Gate { cores: 2, ..Gate::new() };
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _pass = gate.enter(false);
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), gate.change(|doors| doors.running)), (2, 0));
        let full = [gate.enter(false), gate.enter(false)];
        drop((gate.enter(true), full));
    }

    #[test]
    fn the_ticker_sleeps_when_nothing_runs_and_wakes_for_a_call() {
        let engine = Engine::with_compiler(EngineLimits { memory: 0 }, Compiler::InProcess).unwrap();
        let gate = engine.shared.gate.clone();
        let asleep = || gate.change(|doors| doors.asleep);
        wait_until("the ticker sleeps", asleep);
        let pass = engine.shared.enter(true);
        wait_until("it wakes", || !asleep());
        drop(pass);
        wait_until("it sleeps again", asleep);
        drop(engine);
        wait_until("it ends with the engine", || Arc::strong_count(&gate) == 1);
    }
}
