//! The programs that are measured, and how each is started.
//!
//! In: a [`Job`]. Out: a command, with the configuration it needs written into the job's directory.
//! A program that is not there is left out, and said so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weir::sink::kafka::DEFAULTS;
use weir_tests::{guests, workspace};

/// What one run is to do.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Empty, and the run's own.
    pub(crate) dir: &'a Path,
    pub(crate) brokers: &'a str,
    pub(crate) topic: &'a str,
    /// Paths or globs; others than weir take only one.
    pub(crate) files: &'a [String],
    /// `none`, `lz4`, `zstd`.
    pub(crate) codec: &'a str,
    /// An example filter and its configuration; weir only.
    pub(crate) filter: Option<(&'a str, Value)>,
    /// The size of packed records; weir only.
    pub(crate) pack: Option<&'a str>,
}

/// A program that is measured.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) program: PathBuf,
    command: fn(&Path, &Job<'_>) -> Result<Command>,
    /// It reads one file to its end and ends.
    pub(crate) one_shot: bool,
    /// What it puts around each line.
    pub(crate) quote: &'static str,
}

/// Programs of others: where their binary is found, their template, the arguments with which they are
/// started.
struct Peer {
    name: &'static str,
    /// A variable that names the binary; else it is looked for.
    variable: &'static str,
    look_for: &'static str,
    version: &'static str,
    command: fn(&Path, &Job<'_>) -> Result<Command>,
    quote: &'static str,
    missing: &'static str,
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "rsyslog",
        variable: "RSYSLOGD",
        look_for: "/usr/sbin/rsyslogd",
        version: "-v",
        command: rsyslog,
        quote: "",
        missing: "Debian has it in rsyslog and rsyslog-kafka",
    },
    Peer {
        name: "otelcol",
        variable: "OTELCOL",
        look_for: "target/bench/otelcol",
        version: "--version",
        command: otelcol,
        quote: "\"",
        missing: "`make bench` builds it where Go is there",
    },
    Peer {
        name: "vector",
        variable: "VECTOR",
        look_for: "",
        version: "--version",
        command: vector,
        quote: "",
        missing: "VECTOR=/path/to/vector brings it in",
    },
    Peer {
        name: "fluent-bit",
        variable: "FLUENT_BIT",
        look_for: "",
        version: "--version",
        command: fluent_bit,
        quote: "",
        missing: "FLUENT_BIT=/path/to/fluent-bit brings it in",
    },
    Peer {
        name: "filebeat",
        variable: "FILEBEAT",
        look_for: "",
        version: "version",
        command: filebeat,
        quote: "",
        missing: "FILEBEAT=/path/to/filebeat brings it in",
    },
];

/// All that are there, and of each that is not, why.
pub(crate) fn find() -> Result<(Vec<Agent>, Vec<String>)> {
    let this = std::env::current_exe()?;
    let agent = |name, version, program, command, one_shot| Agent {
        name,
        version,
        program,
        command,
        one_shot,
        quote: "",
    };
    let librdkafka = rdkafka::util::get_rdkafka_version().1;
    let program = this.with_file_name("weir");
    let version = format!("{}, librdkafka {librdkafka}", first_line(&program, "--version")?);
    let mut agents = vec![
        agent("weir", version, program, weir, false),
        agent("bare loop", format!("librdkafka {librdkafka}"), this.clone(), bare_loop, true),
        agent("copying loop", format!("librdkafka {librdkafka}"), this, copying_loop, true),
    ];
    let mut missing = Vec::new();
    match first_line(Path::new("kcat"), "-V").and_then(|_| kcat_version()) {
        Ok(version) => agents.push(agent("kcat", version, "kcat".into(), kcat, true)),
        Err(_) => missing.push("kcat: Debian has it in kcat".into()),
    }
    for peer in PEERS {
        let program = std::env::var_os(peer.variable).filter(|path| !path.is_empty());
        let program = program.map_or_else(|| workspace().join(peer.look_for), PathBuf::from);
        match first_line(&program, peer.version) {
            Ok(version) if program.is_file() => agents
                .push(Agent { quote: peer.quote, ..agent(peer.name, version, program, peer.command, false) }),
            _ => missing.push(format!("{}: {}", peer.name, peer.missing)),
        }
    }
    Ok((agents, missing))
}

fn first_line(program: &Path, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output().context("run it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// `kcat - ...`, then `Version 1.7.1 (JSON, ..., librdkafka 2.0.2 ...)`.
fn kcat_version() -> Result<String> {
    let output = Command::new("kcat").arg("-V").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word_after = |word: &str| {
        let mut words = text.split_whitespace().skip_while(|w| !w.ends_with(word)).skip(1);
        words.next().unwrap_or("?").trim_matches([',', '(', ')']).to_owned()
    };
    Ok(format!("kcat {}, librdkafka {}", word_after("Version"), word_after("librdkafka")))
}

/// `lz4 -1`, which sends nothing: what compressing a file costs.
pub(crate) fn lz4() -> Result<Agent> {
    let version = first_line(Path::new("lz4"), "--version")?;
    Ok(Agent {
        name: "lz4 -1",
        version,
        program: "lz4".into(),
        command: lz4_to_nowhere,
        one_shot: true,
        quote: "",
    })
}

fn lz4_to_nowhere(program: &Path, job: &Job<'_>) -> Result<Command> {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" -1 -q -c \"$1\" > /dev/null"]).arg(program).arg(&job.files[0]);
    Ok(command)
}

impl Agent {
    pub(crate) fn command(&self, job: &Job<'_>) -> Result<Command> {
        let mut command = (self.command)(&self.program, job)?;
        command.current_dir(job.dir);
        Ok(command)
    }
}

fn weir(program: &Path, job: &Job<'_>) -> Result<Command> {
    let entry = |(n, file): (usize, &String)| {
        let mut entry =
            json!({"name": format!("bench{n}"), "path": file, "topic": job.topic, "start_at": "beginning"});
        if let Some(pack) = job.pack {
            entry["pack"] = json!(pack);
        }
        if let Some((filter, config)) = &job.filter {
            entry["filter"] = json!({"module": guests::path(filter), "config": config});
        }
        entry
    };
    let list: Vec<Value> = job.files.iter().enumerate().map(entry).collect();
    write(job, "collect.json", &Value::from(list).to_string())?;
    let roots: Vec<_> = job.files.iter().filter_map(|file| Path::new(file).parent()).collect();
    let settings = format!(
        "[kafka]\nbrokers = {:?}\n[kafka.properties]\n\"compression.type\" = {:?}\n[collect]\nfile = \"collect.json\"\n\
         [state]\ndir = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n[policy]\nroots = {roots:?}\n",
        job.brokers,
        job.codec,
        job.dir.join("state"),
        weir_tests::ports::free(),
    );
    let config = write(job, "weir.toml", &settings)?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(config);
    Ok(without_env(command))
}

/// weir reads settings from these variables too; whoever measures may have set them.
pub(crate) fn without_env(mut command: Command) -> Command {
    command.env("RUST_LOG", "warn");
    for name in ["CONFIG", "KAFKA_BROKERS", "ETCD_ENDPOINTS", "STATE_DIR", "ALLOW"] {
        command.env_remove(format!("WEIR_{name}"));
    }
    command
}

fn bare_loop(program: &Path, job: &Job<'_>) -> Result<Command> {
    looping(program, "nocopy", job)
}

fn copying_loop(program: &Path, job: &Job<'_>) -> Result<Command> {
    looping(program, "copy", job)
}

fn looping(program: &Path, copy: &str, job: &Job<'_>) -> Result<Command> {
    let mut command = Command::new(program);
    command.args(["bare-loop", copy, job.brokers, job.topic, &job.files[0]]);
    command.args(DEFAULTS.iter().map(|(key, value)| format!("{key}={value}")));
    command.arg(format!("compression.type={}", job.codec));
    Ok(command)
}

fn kcat(program: &Path, job: &Job<'_>) -> Result<Command> {
    let mut command = Command::new(program);
    command.args(["-P", "-q", "-b", job.brokers, "-t", job.topic, "-z", job.codec]);
    command.args(["-X", "acks=all", "-X", "enable.idempotence=true", "-X", "linger.ms=1"]);
    command.arg("-l").arg(&job.files[0]);
    Ok(command)
}

fn rsyslog(program: &Path, job: &Job<'_>) -> Result<Command> {
    let config = fill(job, "rsyslog.conf", include_str!("../configs/rsyslog.conf"))?;
    let mut command = Command::new(program);
    command.arg("-n").arg("-f").arg(config).arg("-i").arg(job.dir.join("rsyslog.pid"));
    Ok(command)
}

fn otelcol(program: &Path, job: &Job<'_>) -> Result<Command> {
    let config = fill(job, "otelcol.yaml", include_str!("../configs/otelcol.yaml"))?;
    with_config(program, "--config", &config)
}

fn vector(program: &Path, job: &Job<'_>) -> Result<Command> {
    let config = fill(job, "vector.toml", include_str!("../configs/vector.toml"))?;
    with_config(program, "--config", &config)
}

fn fluent_bit(program: &Path, job: &Job<'_>) -> Result<Command> {
    let config = fill(job, "fluent-bit.yaml", include_str!("../configs/fluent-bit.yaml"))?;
    with_config(program, "--config", &config)
}

fn filebeat(program: &Path, job: &Job<'_>) -> Result<Command> {
    let config = fill(job, "filebeat.yml", include_str!("../configs/filebeat.yml"))?;
    with_config(program, "-c", &config)
}

fn with_config(program: &Path, flag: &str, config: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command.arg(flag).arg(config);
    Ok(command)
}

/// A template with the job in its places.
fn fill(job: &Job<'_>, name: &str, template: &str) -> Result<PathBuf> {
    let text = template
        .replace("{DIR}", &job.dir.to_string_lossy())
        .replace("{FILES}", &job.files[0])
        .replace("{BROKERS}", job.brokers)
        .replace("{TOPIC}", job.topic)
        .replace("{CODEC}", job.codec);
    write(job, name, &text)
}

fn write(job: &Job<'_>, name: &str, text: &str) -> Result<PathBuf> {
    let path = job.dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
