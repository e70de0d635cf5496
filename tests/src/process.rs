//! Child processes that never outlive the tests, with their output in a file.
//!
//! A child is killed when its [`Process`] is dropped, when the test process exits, and, through
//! `PR_SET_PDEATHSIG`, when the test process is killed. That signal comes when the *thread* that
//! forked ends, and each test has a thread of its own; so one thread that lives as long as the
//! process starts all children.

#![allow(unsafe_code)] // prctl in the child, kill

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// So much of a log is shown when a test fails. Bytes.
const TAIL_BYTES: usize = 6_000;

/// A child process whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both output streams are appended to `log`.
    #[track_caller]
    pub fn start(name: &str, command: Command, log: &Path) -> Self {
        Self::start_split(name, command, log, log)
    }

    /// Starts `command`; each output stream is appended to a file of its own.
    #[track_caller]
    pub fn start_split(name: &str, mut command: Command, out: &Path, err: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(open_log(out)).stderr(open_log(err));
        let child = spawn(command).unwrap_or_else(|error| panic!("start {name}: {error}"));
        running().insert(child.id());
        Self { name: name.into(), child, log: err.into() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("wait for a child");
        if status.is_some() {
            running().remove(&self.pid());
        }
        status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it runs on beyond `within`.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(begun.elapsed() < within, "{} still runs after {within:?}\n{}", self.name, self.tail());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal, `libc::SIGTERM` for instance; nothing when it has ended.
    pub fn signal(&mut self, signal: i32) {
        if self.ended().is_none() {
            send(self.pid(), signal);
        }
    }

    /// Freezes it: sockets stay open, nothing answers.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(30));
    }

    /// The end of what it wrote.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(TAIL_BYTES)..];
        format!("--- {} ({})\n{}", self.name, self.log.display(), String::from_utf8_lossy(tail))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            send(self.pid(), libc::SIGKILL);
            let _ = self.child.wait();
            running().remove(&self.pid());
        }
    }
}

/// Kills every child that still runs; for the end of the process.
pub(crate) fn kill_all() {
    for pid in std::mem::take(&mut *running()) {
        send(pid, libc::SIGKILL);
        // SAFETY: waitpid with a null status only reaps our own child.
        unsafe { libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), 0) };
    }
}

/// The children that were not reaped yet, so their ids are still theirs.
fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(pid: u32, signal: i32) {
    // SAFETY: kill takes no memory; `pid` is a child that has not been waited for.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

fn open_log(path: &Path) -> File {
    let log = OpenOptions::new().create(true).append(true).open(path);
    log.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

type Order = (Command, Sender<io::Result<Child>>);

/// Forks on the thread that lives as long as the process.
fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        let work = move || {
            for (mut command, reply) in inbox {
                // The one who ordered may have panicked meanwhile; its child is killed at exit.
                let _ = reply.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("spawner".into()).spawn(work).expect("a thread");
        orders
    });
    die_with_parent(&mut command);
    let (reply, answer) = channel();
    spawner.send((command, reply)).expect("the spawner lives as long as the process");
    answer.recv().expect("the spawner answers every order")
}

fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the call above.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
