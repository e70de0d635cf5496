//! The agent as a process, with a host of its own: settings, state, logs to follow.
//!
//! ```no_run
//! # use weir_tests::{etcd::Etcd, kafka::Kafka, weir::Weir};
//! # let binary = std::path::Path::new("target/debug/weir");
//! // In a test of the host, `binary` is `env!("CARGO_BIN_EXE_weir")`.
//! let mut weir = Weir::new(binary)
//!     .kafka(&Kafka::shared().brokers())
//!     .etcd(&Etcd::shared().endpoint(), "/weir/mine/collect");
//! weir.start();
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::metrics::Metrics;
use crate::process::Process;
use crate::terminal::Terminal;
use crate::wait::{SOON, eventually};
use crate::{ports, scratch};

/// Beyond the agent's own bound (`agent.drain`, 10 s).
const STOP: Duration = Duration::from_secs(40);
/// For a command of the command line.
const COMMAND: Duration = Duration::from_secs(60);

/// A host with one agent.
#[derive(Debug)]
pub struct Weir {
    bin: PathBuf,
    dir: TempDir,
    admin: SocketAddr,
    settings: Settings,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    process: Option<Process>,
}

#[derive(Clone, Debug)]
enum Settings {
    /// Sections of `weir.toml`: name and body.
    Toml(BTreeMap<String, String>),
    /// Another file, as it stands.
    File(PathBuf),
}

/// The sums of an entry, as `/api/v1/status` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Lines cut from the files.
    pub read: u64,
    /// Acknowledged by Kafka.
    pub delivered: u64,
    /// Dropped by the filter.
    pub filtered: u64,
    /// Empty lines.
    pub skipped: u64,
    /// Set aside.
    pub quarantined: u64,
    /// Dropped by another rule.
    pub discarded: u64,
    /// Under way.
    pub in_flight: u64,
}

impl Lines {
    /// Reads the `lines` of an entry.
    pub fn of(entry: &Value) -> Self {
        let count =
            |key: &str| entry["lines"][key].as_u64().unwrap_or_else(|| panic!("lines.{key} of {entry}"));
        Self {
            read: count("read"),
            delivered: count("delivered"),
            filtered: count("filtered"),
            skipped: count("skipped"),
            quarantined: count("quarantined"),
            discarded: count("discarded"),
            in_flight: count("in_flight"),
        }
    }

    /// Lines that are finished.
    pub fn finished(&self) -> u64 {
        self.delivered + self.filtered + self.skipped + self.quarantined + self.discarded
    }

    /// Whether what was read equals the sum of what became of it.
    pub fn hold(&self) -> bool {
        self.read == self.finished() + self.in_flight
    }
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Its exit code.
    ///
    /// # Panics
    /// When a signal ended it.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// The output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

impl Weir {
    /// A host on which nothing is set up yet; `bin` is `env!("CARGO_BIN_EXE_weir")`, which only
    /// the package `weir` can say.
    pub fn new(bin: &Path) -> Self {
        let dir = scratch::dir("weir");
        let admin = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let mut sections = BTreeMap::new();
        sections.insert("agent".into(), "name = \"host\"\nip = \"10.0.0.7\"\n".into());
        sections.insert("state".into(), format!("dir = {:?}\n", dir.path().join("state")));
        sections.insert("admin".into(), format!("listen = \"{admin}\"\n"));
        sections.insert("policy".into(), format!("roots = [{:?}]\n", dir.path().join("log")));
        std::fs::create_dir(dir.path().join("log")).expect("a directory for logs");
        let settings = Settings::Toml(sections);
        let env = vec![("RUST_LOG".into(), "info".into())];
        Self { bin: bin.into(), dir, admin, settings, env, wrapper: Vec::new(), process: None }
    }

    /// Where it produces to.
    pub fn kafka(self, brokers: &str) -> Self {
        self.setting("kafka", &format!("brokers = {brokers:?}"))
    }

    /// Takes its list from a key in etcd, its modules and its status key beside that.
    pub fn etcd(self, endpoint: &str, collect_key: &str) -> Self {
        let prefix = collect_key.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        self.setting("etcd", &format!("endpoints = [{endpoint:?}]"))
            .setting("etcd", &format!("collect_key = {collect_key:?}"))
            .setting("etcd", &format!("modules_prefix = \"{prefix}/modules/\""))
            .setting("etcd", &format!("agents_prefix = \"{prefix}/agents/\""))
    }

    /// Takes its list from a file with `list` in it; see [`Weir::put_list`].
    pub fn list(&mut self, list: &Value) {
        self.put_list(list);
        let file = format!("file = {:?}\n", self.list_file());
        self.section("collect").replace_range(.., &file);
    }

    /// Adds lines to a section of `weir.toml`.
    pub fn setting(mut self, section: &str, lines: &str) -> Self {
        writeln!(self.section(section), "{lines}").expect("memory takes every write");
        self
    }

    fn section(&mut self, name: &str) -> &mut String {
        let Settings::Toml(sections) = &mut self.settings else {
            panic!("settings from a file of one's own take no sections");
        };
        sections.entry(name.into()).or_default()
    }

    /// Uses a settings file of its own, `config.ini` for instance, in place of `weir.toml`. What
    /// such a file cannot say is in the environment: the state directory, and the roots to follow.
    pub fn settings_file(mut self, name: &str, text: &str) -> Self {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).expect("write the settings");
        self.settings = Settings::File(file);
        // The default: a form that cannot say another cannot run twice on one host.
        self.admin = SocketAddr::from(([127, 0, 0, 1], 9477));
        let (state, log) = (self.dir.path().join("state"), self.dir.path().join("log"));
        self.env("WEIR_STATE_DIR", &state.to_string_lossy()).env("WEIR_ALLOW", &log.to_string_lossy())
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it as the last arguments of another program that becomes it (`exec`): one that sets
    /// a limit, for instance.
    pub fn wrapped(mut self, program: &[&str]) -> Self {
        self.wrapper = program.iter().map(ToString::to_string).collect();
        self
    }

    /// The agent's program.
    pub fn exe(&self) -> &Path {
        &self.bin
    }

    /// A path under the directory that it may follow.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join("log").join(name)
    }

    /// A path beside settings, list and state.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the list lies if it comes from a file.
    pub fn list_file(&self) -> PathBuf {
        self.file("collect.json")
    }

    /// Replaces the list as an editor would: another file is renamed over it.
    pub fn put_list(&self, list: &Value) {
        let draft = self.file("collect.json.new");
        std::fs::write(&draft, format!("{list:#}\n")).expect("write the list");
        std::fs::rename(draft, self.list_file()).expect("rename the list");
    }

    /// Starts `weir run` and waits until it answers.
    ///
    /// # Panics
    /// When it ends instead; with what it said.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        let admin = self.admin;
        let process = self.process.as_mut().expect("just started");
        let healthy = || {
            if let Some(status) = process.ended() {
                panic!("weir ended at its start: {status}\n{}", process.tail());
            }
            http::get(admin, "/healthz").map(|(code, _)| code).map_err(|error| error.to_string())
        };
        eventually(SOON, "weir to answer", healthy, |code| *code == Ok(200)).expect("it answered");
    }

    /// Starts `weir run` and waits for nothing.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "weir runs already");
        let command = self.command(&["run"]);
        self.process = Some(Process::start("weir", command, &self.stderr_file()));
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().expect("weir runs").kill();
    }

    /// SIGTERM; how it ended.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("weir runs");
        process.signal(libc::SIGTERM);
        process.wait(STOP)
    }

    /// SIGHUP.
    #[track_caller]
    pub fn hang_up(&mut self) {
        self.process.as_mut().expect("weir runs").signal(libc::SIGHUP);
    }

    /// Freezes it.
    #[track_caller]
    pub fn pause(&mut self) {
        self.process.as_mut().expect("weir runs").pause();
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.as_mut().expect("weir runs").resume();
    }

    /// Stops and starts it; how it ended.
    #[track_caller]
    pub fn restart(&mut self) -> ExitStatus {
        let status = self.stop();
        self.start();
        status
    }

    /// Waits for an end that comes by itself.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        self.process.take().expect("weir runs").wait(within)
    }

    /// Whether it runs: nothing may end it but its tests.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// What it said on standard error, over all starts.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.stderr_file()).unwrap_or_default()).into_owned()
    }

    /// Runs another command of the command line with the same settings.
    #[track_caller]
    pub fn weir(&self, args: &[&str]) -> Said {
        self.run(self.command(args), &format!("weir {}", args.join(" ")))
    }

    /// Runs a command without any settings of this host's.
    #[track_caller]
    pub fn bare(&self, args: &[&str]) -> Said {
        let mut command = Command::new(&self.bin);
        command.args(args).current_dir(self.dir.path());
        self.run(command, &format!("weir {}", args.join(" ")))
    }

    /// Starts a command that does not end by itself, with the settings of this host; what it prints
    /// goes to `out`, what it says to `out` with `.err` at its end.
    #[track_caller]
    pub fn background(&self, args: &[&str], out: &Path) -> Process {
        let name = format!("weir {}", args.join(" "));
        Process::start_split(&name, self.command(args), out, &out.with_extension("err"))
    }

    /// Runs a command at a terminal.
    #[track_caller]
    pub fn terminal(&self, args: &[&str]) -> Terminal {
        let mut command = self.command(args);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        Terminal::start(&format!("weir {}", args.join(" ")), command)
    }

    #[track_caller]
    fn run(&self, command: Command, name: &str) -> Said {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let stem = format!("command-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (out, err) = (self.file(&format!("{stem}.out")), self.file(&format!("{stem}.err")));
        let status = Process::start_split(name, command, &out, &err).wait(COMMAND);
        let text = |path| String::from_utf8_lossy(&std::fs::read(path).expect("read output")).into_owned();
        Said { status, stdout: text(out), stderr: text(err) }
    }

    /// The whole status.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|error| panic!("status: {error}\n{}", self.tail()))
    }

    fn try_status(&self) -> Result<Value, String> {
        let (code, body) = http::get(self.admin, "/api/v1/status").map_err(|error| error.to_string())?;
        if code != 200 {
            return Err(format!("{code}: {body}"));
        }
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    }

    /// The status of one entry; null where it has none.
    #[track_caller]
    pub fn entry(&self, name: &str) -> Value {
        let status = self.status();
        let entries = status["entries"].as_array().cloned().unwrap_or_default();
        entries.into_iter().find(|entry| entry["name"] == name).unwrap_or_default()
    }

    /// The sums of one entry; zeros where it does not run yet.
    #[track_caller]
    pub fn lines(&self, name: &str) -> Lines {
        let entry = self.entry(name);
        if entry.is_null() { Lines::default() } else { Lines::of(&entry) }
    }

    /// `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let (code, body) = self.get("/metrics");
        assert_eq!(code, 200, "{body}");
        Metrics::parse(&body)
    }

    /// A page of the admin address.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        http::get(self.admin, path).unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.tail()))
    }

    /// Waits until an entry is in `state`.
    #[track_caller]
    pub fn await_state(&self, name: &str, state: &str) -> Value {
        eventually(
            SOON,
            &format!("{name} to be {state}"),
            || self.entry(name),
            |entry| entry["state"] == state,
        )
    }

    /// Waits until `count` lines of an entry are finished, none is under way, and returns the sums.
    #[track_caller]
    pub fn await_finished(&self, name: &str, count: u64, within: Duration) -> Lines {
        let done = |lines: &Lines| lines.finished() >= count && lines.in_flight == 0;
        eventually(within, &format!("{count} lines of {name}"), || self.lines(name), done)
    }

    /// CPU time it has used, user and system.
    #[track_caller]
    pub fn cpu(&self) -> Duration {
        let stat = self.proc_file("stat");
        let fields: Vec<_> = stat.rsplit(')').next().expect("a stat line").split_whitespace().collect();
        // utime and stime are the 14th and 15th field; the name, the 2nd, was cut off with the 1st.
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        // The kernel counts in 1/100 s, whatever its own clock.
        Duration::from_millis(ticks * 10)
    }

    /// Its largest resident size up to now. Bytes.
    #[track_caller]
    pub fn peak_memory(&self) -> u64 {
        self.process().peak_memory()
    }

    /// CPU time of the threads that it has now, see [`Process::cpu_of_threads`].
    #[track_caller]
    pub fn cpu_of_threads(&self) -> Duration {
        self.process().cpu_of_threads()
    }

    /// Its threads by id, with their names (the kernel keeps 15 bytes of them).
    #[track_caller]
    pub fn threads(&self) -> BTreeMap<u32, String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let named = tasks.flatten().filter_map(|task| {
            // It may end meanwhile.
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
        });
        named.collect()
    }

    /// The descriptors on which it has `path` open.
    #[track_caller]
    pub fn descriptors(&self, path: &Path) -> BTreeSet<u32> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors");
        let on_path = fds.flatten().filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path));
        on_path.filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect()
    }

    /// Where `[admin] listen` has it listen.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    #[track_caller]
    fn process(&self) -> &Process {
        self.process.as_ref().expect("weir runs")
    }

    #[track_caller]
    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("a file in /proc")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((program, first)) => {
                let mut command = Command::new(program);
                command.args(first).arg(&self.bin);
                command
            }
            None => Command::new(&self.bin),
        };
        command.args(args).arg("--config").arg(self.write_settings()).current_dir(self.dir.path());
        // Nothing of the host on which the tests run.
        for name in ["CONFIG", "KAFKA_BROKERS", "ETCD_ENDPOINTS", "STATE_DIR", "ALLOW"] {
            command.env_remove(format!("WEIR_{name}"));
        }
        command.env_remove("STATE_DIRECTORY").env_remove("RUNTIME_DIRECTORY");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn write_settings(&self) -> PathBuf {
        let sections = match &self.settings {
            Settings::File(file) => return file.clone(),
            Settings::Toml(sections) => sections,
        };
        let text: String = sections.iter().map(|(name, body)| format!("[{name}]\n{body}\n")).collect();
        let file = self.file("weir.toml");
        std::fs::write(&file, text).expect("write weir.toml");
        file
    }

    fn stderr_file(&self) -> PathBuf {
        self.file("stderr.log")
    }

    fn tail(&self) -> String {
        self.process.as_ref().map_or_else(|| self.stderr(), Process::tail)
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.process.as_mut().map(Process::ended);
            eprintln!("{}\nended: {ended:?}", self.tail());
        }
    }
}
