//! Compiles a module in a child process, since a thread cannot be stopped.
//!
//! In: a module in the cache. Out: its machine code in the cache. The child is `weir compile` with
//! limits of memory, CPU and file size that it sets on itself before it reads a byte of the module,
//! at the lowest priority; the parent kills it when it takes too long, and the kernel when the
//! parent dies.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};

use super::{FilterError, ModuleCache, engine, inspect, voice};
use crate::model::Digest;

/// Address space of the compiler: a Python filter of 18 MB is the largest that people have. Bytes.
const MEMORY_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// CPU time of the compiler; a Python filter takes 10 s. Seconds.
const CPU_SECONDS_MAX: u64 = 120;
/// The largest code it may write. Bytes.
const CODE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// How long the parent waits, on a host that may have better things to do.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How often it looks. A small module takes 20 to 40 ms.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How much of what the child says is read. Bytes.
const SAID_BYTES_MAX: u64 = 4096;
/// The nicest there is.
const NICE: i32 = 19;

/// Who compiles.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// A child process that runs this program as `weir compile`.
    Child {
        /// The program.
        exe: PathBuf,
        /// How long it may take.
        wait: Duration,
    },
    /// The calling thread, without limits: for tests and for commands that a person waits for.
    InProcess,
}

/// What `weir compile` is told.
#[derive(Debug, clap::Args)]
pub struct CompileArgs {
    /// The module
    module: PathBuf,
    /// Where the machine code goes
    out: PathBuf,
}

/// The child's side.
pub fn run(args: CompileArgs) -> anyhow::Result<ExitCode> {
    limit_this_process()?;
    let module = fs::read(&args.module)?;
    fs::write(&args.out, machine_code(&module)?)?;
    Ok(ExitCode::SUCCESS)
}

fn limit_this_process() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setpriority_process(None, NICE)?;
    let limits = [
        (Resource::As, MEMORY_BYTES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Fsize, CODE_BYTES_MAX),
        (Resource::Core, 0),
    ];
    for (resource, max) in limits {
        // Where the agent itself runs under a lower limit, that one holds.
        let max = rustix::process::getrlimit(resource).maximum.map_or(max, |hard| hard.min(max));
        rustix::process::setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })?;
    }
    Ok(())
}

fn machine_code(module: &[u8]) -> Result<Vec<u8>, FilterError> {
    let component = inspect::component(module)?;
    let compiled = wasmtime::Engine::new(&engine::config())
        .and_then(|engine| engine.precompile_component(&component));
    compiled.map_err(|error| FilterError::Invalid(error.into()))
}

impl Compiler {
    /// A child process of this program. `/proc/self/exe` is the running program even after its
    /// file was replaced by a newer one, whose code this one could not use.
    pub fn this_program() -> Self {
        Self::Child { exe: "/proc/self/exe".into(), wait: WAIT_MAX }
    }

    /// Compiles a module that is in the cache, into the cache.
    pub(super) fn compile(
        &self,
        cache: &ModuleCache,
        digest: &Digest,
        key: &str,
    ) -> Result<PathBuf, FilterError> {
        let module = cache.get(digest)?.ok_or(FilterError::Absent(*digest))?;
        let out = cache.scratch()?;
        match self {
            Self::InProcess => write(out.path(), &machine_code(&module)?)?,
            Self::Child { exe, wait } => {
                drop(module);
                let began = Instant::now();
                compile_in_child(exe, *wait, &cache.module_path(digest), out.path(), digest)?;
                tracing::info!(%digest, ms = began.elapsed().as_millis() as u64, "module compiled");
            }
        }
        cache.keep_code(digest, key, out)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FilterError> {
    fs::write(path, bytes).map_err(|source| FilterError::Cache {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

/// The parent's side.
fn compile_in_child(
    exe: &Path,
    wait: Duration,
    module: &Path,
    out: &Path,
    digest: &Digest,
) -> Result<(), FilterError> {
    let failed = |source| FilterError::Compiler { exe: exe.to_owned(), source };
    let mut child = Command::new(exe)
        .arg("compile")
        .args([module, out])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let status = wait_for(&mut child, wait).map_err(failed)?;
    let message = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => describe(status, &said(&mut child)),
        None => format!("stopped after {} s", wait.as_secs()),
    };
    Err(FilterError::Compile { digest: *digest, message })
}

/// How the child ended, or `None` if it had to be killed. A child that writes more than a pipe
/// holds waits for it to be read, and is killed too.
fn wait_for(child: &mut Child, wait: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + wait;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(LOOK_EVERY);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn said(child: &mut Child) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read was not said: the exit status is told in any case.
        let _ = stderr.take(SAID_BYTES_MAX).read_to_end(&mut said);
    }
    voice::tame(String::from_utf8_lossy(&said).trim())
}

fn describe(status: ExitStatus, said: &str) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let limits = format!("limits: {} GiB of memory, {CPU_SECONDS_MAX} s of CPU", MEMORY_BYTES_MAX >> 30);
    match status.signal() {
        Some(signal) => format!("the compiler was ended by signal {signal} ({limits}) {said}"),
        None if said.is_empty() => format!("the compiler failed: {status}"),
        None => said.to_owned(),
    }
}
