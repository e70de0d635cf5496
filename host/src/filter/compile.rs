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

/// The child's side. What goes wrong is said on stderr in one line, for the parent to read.
pub fn run(args: CompileArgs) -> anyhow::Result<ExitCode> {
    limit_this_process()?;
    let module = fs::read(&args.module)?;
    match machine_code(&module) {
        Ok(code) => fs::write(&args.out, code)?,
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::new(error));
            return Ok(ExitCode::FAILURE);
        }
    }
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
    let compiled =
        wasmtime::Engine::new(&engine::config()).and_then(|engine| engine.precompile_component(&component));
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
        None => format!("the compiler was stopped after {wait:?}"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::guest;
    use crate::filter::{Engine, EngineLimits};
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::sync::Arc;

    /// The test that is the compiler when another test starts this program as one.
    const CHILD: &str = "filter::compile::tests::the_child_of_another_test";
    const MODULE: &str = "WEIR_TEST_MODULE";
    const OUT: &str = "WEIR_TEST_OUT";

    struct Setup {
        dir: tempfile::TempDir,
        cache: ModuleCache,
        engine: Arc<Engine>,
    }

    /// An engine whose compiler is a shell script; `$2` is the module, `$3` where code goes.
    fn setup(script: &str, wait: Duration) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("compiler");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o700).open(&exe).unwrap();
        std::io::Write::write_all(&mut &file, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        let cache = ModuleCache::open(dir.path().join("modules")).unwrap();
        let engine = Engine::with_compiler(EngineLimits { memory: 1 << 30 }, Compiler::Child { exe, wait });
        Setup { dir, cache, engine: engine.unwrap() }
    }

    impl Setup {
        fn error(&self, module: &[u8]) -> String {
            let error = self.engine.load(&self.cache, &self.cache.put(module).unwrap()).unwrap_err();
            anyhow::Error::new(error).to_string()
        }
    }

    fn this_test_program() -> String {
        let exe = std::env::current_exe().unwrap();
        format!("{MODULE}=$2 {OUT}=$3 exec {} {CHILD} --exact --ignored --nocapture", exe.display())
    }

    #[test]
    #[ignore = "run by other tests as their compiler"]
    fn the_child_of_another_test() {
        let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
        let code = run(CompileArgs { module: path(MODULE), out: path(OUT) }).unwrap();
        assert_eq!(rustix::process::getpriority_process(None), Ok(NICE));
        let limit = rustix::process::getrlimit(Resource::As);
        assert!(limit.maximum.is_some_and(|max| max <= MEMORY_BYTES_MAX));
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }

    #[test]
    fn a_module_is_compiled_once_in_a_child() {
        let setup = setup(&format!("echo >> $0.runs\n{}", this_test_program()), WAIT_MAX);
        let digest = setup.cache.put(guest("drop_debug")).unwrap();
        setup.engine.load(&setup.cache, &digest).unwrap();
        setup.engine.load(&setup.cache, &digest).unwrap();
        assert_eq!(fs::read(setup.dir.path().join("compiler.runs")).unwrap(), b"\n");
    }

    #[test]
    fn a_child_says_why_it_refuses_a_module() {
        let setup = setup(&this_test_program(), WAIT_MAX);
        let error = setup.error(b"\0asm\x01\0\0\0");
        assert!(error.contains("without a WIT section"), "{error}");
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let setup = setup("exec sleep 600", Duration::from_millis(100));
        let error = setup.error(guest("drop_debug"));
        assert!(error.contains("stopped after 100ms"), "{error}");
    }

    #[test]
    fn a_child_that_is_killed_or_writes_nonsense_gives_no_module() {
        let error = setup("kill -KILL $$", WAIT_MAX).error(guest("drop_debug"));
        assert!(error.contains("signal 9") && error.contains("4 GiB"), "{error}");
        let error = setup("echo nonsense > $3", WAIT_MAX).error(guest("drop_debug"));
        assert!(error.contains("load compiled code"), "{error}");
        let error = setup("exit 3", WAIT_MAX).error(guest("drop_debug"));
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
