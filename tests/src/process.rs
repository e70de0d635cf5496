//! Child processes that never outlive the tests, with their output in a file.
//!
//! A child is killed when its [`Process`] is dropped, when the test process exits, and, through
//! `PR_SET_PDEATHSIG`, when the test process is killed. That signal comes when the *thread* that
//! forked ends, and each test has a thread of its own; so one thread that lives as long as the
//! process starts all children.

#![allow(unsafe_code)] // prctl in the child, kill, wait4

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// So much of a log is shown when a test fails. Bytes.
const TAIL_BYTES: usize = 6_000;

/// A child process whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    end: Option<End>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
struct End {
    status: ExitStatus,
    cpu: Duration,
}

impl Process {
    /// Starts `command`; both output streams are appended to `log`.
    #[track_caller]
    pub fn start(name: &str, command: Command, log: &Path) -> Self {
        Self::start_split(name, command, log, log)
    }

    /// Starts `command`; each output stream is appended to a file of its own.
    #[track_caller]
    pub fn start_split(name: &str, command: Command, out: &Path, err: &Path) -> Self {
        let streams = [Stdio::null(), open_log(out).into(), open_log(err).into()];
        let mut process = Self::start_on(name, command, streams);
        process.log = err.into();
        process
    }

    /// Starts `command` with these as its input, output and errors.
    #[track_caller]
    pub fn start_on(name: &str, mut command: Command, streams: [Stdio; 3]) -> Self {
        let [input, out, err] = streams;
        command.stdin(input).stdout(out).stderr(err);
        let child = spawn(command).unwrap_or_else(|error| panic!("start {name}: {error}"));
        running().insert(child.id());
        Self { name: name.into(), child, log: PathBuf::new(), end: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.reap(libc::WNOHANG);
        self.end.map(|end| end.status)
    }

    /// CPU time, user and system, that it and the children it waited for had used at its end.
    ///
    /// # Panics
    /// When it was not seen to end.
    #[track_caller]
    pub fn cpu_to_the_end(&self) -> Duration {
        self.end.unwrap_or_else(|| panic!("{} was not seen to end", self.name)).cpu
    }

    /// Its largest resident size up to now; 0 when it has ended. Bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Its resident size now; 0 when it has ended. Bytes.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(which));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }

    /// CPU time of the threads that it has now, to the nanosecond: the difference of two looks is
    /// what it used between, as long as no thread ends.
    pub fn cpu_of_threads(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let spent = tasks.filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }

    /// Waits with these flags, and keeps what the kernel says of its end.
    fn reap(&mut self, flags: i32) {
        if self.end.is_some() {
            return;
        }
        let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
        // SAFETY: a child of ours that was not waited for; both places are large enough.
        let pid = unsafe { libc::wait4(self.pid().cast_signed(), &mut status, flags, usage.as_mut_ptr()) };
        if pid == 0 {
            return;
        }
        assert_eq!(pid, self.pid().cast_signed(), "wait for {}: {}", self.name, io::Error::last_os_error());
        running().remove(&self.pid());
        // SAFETY: all of it was zeroed, and the kernel filled it in.
        let usage = unsafe { usage.assume_init() };
        let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
        self.end = Some(End { status: ExitStatus::from_raw(status), cpu });
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
            self.reap(0);
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
    crate::lock(&RUNNING)
}

fn send(pid: u32, signal: i32) {
    // SAFETY: kill takes no memory; `pid` is a child that has not been waited for.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
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
