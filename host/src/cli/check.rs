//! `weir check`: all that is wrong with this host, before anything runs.
//!
//! In: the settings, and what they name. Out: a line a check, and exit code 1 if one found a problem.
//! Nothing is changed and nothing produced.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::Common;
use super::list::runtime;
use super::signing::signature_beside;
use crate::config::{self, EtcdSettings, ListSource, Settings};
use crate::confine::{Bounds, Confined, try_to_confine};
use crate::control::list::{self, Origin, envelope};
use crate::control::lists::Lists;
use crate::control::modules::Store;
use crate::filter::inspect::inspect;
use crate::model::{Entry, ModuleRef, OnError, Problem};
use crate::policy::Keys;
use crate::sink::probe::{self, KnownTopic, ProbeError};

/// How long Kafka may take to answer.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(5);
/// Says whether a user may make hard links to files of others.
const PROTECTED_HARDLINKS: &str = "/proc/sys/fs/protected_hardlinks";

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Ask neither etcd nor Kafka
    #[arg(long)]
    offline: bool,
    /// Write a weir.toml that means what this older config.ini means, and check nothing
    #[arg(long, value_name = "CONFIG.INI")]
    convert: Option<PathBuf>,
}

/// Runs it.
pub fn run(common: &Common, args: CheckArgs) -> anyhow::Result<ExitCode> {
    if let Some(ini) = &args.convert {
        io::stdout().write_all(config::convert(ini)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = Report { out: io::stdout().lock(), problems: 0 };
    match config::load(common, &[]) {
        Ok(settings) => check(&settings, args.offline, &mut report)?,
        Err(error) => report.say("settings", "", &error.problems)?,
    }
    report.end()
}

/// What was found so far, printed as it is found.
struct Report<W> {
    out: W,
    problems: usize,
}

impl<W: Write> Report<W> {
    /// One check: what is well, or each problem.
    fn say(&mut self, check: &str, well: &str, problems: &[Problem]) -> io::Result<()> {
        self.problems += problems.len();
        if problems.is_empty() {
            return writeln!(self.out, "ok       {check}: {well}");
        }
        problems.iter().try_for_each(|problem| writeln!(self.out, "problem  {problem}"))
    }

    /// Something to know that is no problem.
    fn note(&mut self, note: &str) -> io::Result<()> {
        writeln!(self.out, "note     {note}")
    }

    fn end(mut self) -> anyhow::Result<ExitCode> {
        match self.problems {
            0 => writeln!(self.out, "no problems")?,
            1 => writeln!(self.out, "1 problem")?,
            many => writeln!(self.out, "{many} problems")?,
        }
        Ok(if self.problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Everything that good settings lead to.
fn check<W: Write>(settings: &Settings, offline: bool, report: &mut Report<W>) -> io::Result<()> {
    report.say("settings", &settings.file.display().to_string(), &[])?;
    settings.notes.iter().try_for_each(|note| report.note(note))?;

    let state = settings.state_dir.display().to_string();
    report.say("state", &state, &check_state(&settings.state_dir))?;

    let properties = probe::check_properties(&settings.kafka).map_err(|error| kafka_problem(settings, error));
    report.say("kafka.properties", "librdkafka takes them", properties.err().as_slice())?;

    let list = check_list(settings, offline);
    report.say("list", &list.source, &list.problems)?;

    report.say("policy", &policy_in_words(settings), &check_policy(settings, &list.entries))?;
    report.note(&confinement(settings))?;
    if settings.policy.rules().roots.is_some()
        && fs::read_to_string(PROTECTED_HARDLINKS).is_ok_and(|value| value.trim() == "0")
    {
        report.note(
            "fs.protected_hardlinks is 0: anybody may link files of root below a root of the policy; \
                     sysctl fs.protected_hardlinks=1",
        )?;
    }
    if !offline {
        check_kafka(settings, &list.entries, report)?;
    }
    Ok(())
}

/// The list as the agent would apply it.
struct Listed<'a> {
    keys: &'a Keys,
    source: String,
    entries: Vec<Arc<Entry>>,
    problems: Vec<Problem>,
}

fn check_list(settings: &Settings, offline: bool) -> Listed<'_> {
    let keys = settings.policy.keys();
    let mut listed = Listed { keys, source: String::new(), entries: Vec::new(), problems: Vec::new() };
    match &settings.list {
        ListSource::Etcd(etcd) => {
            listed.source = format!("etcd {}", etcd.collect_keys.join(", "));
            if offline {
                listed.source += " (not asked)";
            } else {
                listed.read_keys(etcd);
            }
        }
        ListSource::File(file) => {
            listed.source = file.display().to_string();
            match fs::read(file) {
                Ok(text) => listed.read(&text, &Origin::File(file.clone())),
                Err(error) => listed.problems.push(Problem::new(
                    file.display().to_string(),
                    format!("cannot be read: {error}"),
                    "write a JSON array of entries such as {\"path\": \"/var/log/x.log\", \"topic\": \"x\"} into it",
                )),
            }
        }
        ListSource::Fixed { path, topic } => {
            listed.source = format!("{path} to topic {topic}");
            let text = serde_json::json!([{ "path": absolute(path), "topic": topic }]).to_string();
            listed.read(text.as_bytes(), &Origin::Settings);
        }
    }
    listed
}

/// The older form has relative paths as well.
fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.into(), |path| path.to_string_lossy().into_owned())
}

impl Listed<'_> {
    fn read(&mut self, text: &[u8], origin: &Origin) {
        if self.keys.are_set() && *origin != Origin::Settings {
            self.problems.extend(envelope::verify(text, origin, self.keys).err());
        }
        match list::parse(text, origin) {
            Err(problem) => self.problems.push(problem),
            Ok(list) => {
                self.problems.extend(list.problems);
                for item in list.items {
                    match item.checked {
                        Ok(entry) => {
                            self.problems.extend(module_file_problem(&entry, self.keys));
                            self.entries.push(entry);
                        }
                        Err(refused) => self.problems.push(refused.problem),
                    }
                }
            }
        }
    }

    /// Asks etcd for each key, and for what the tags that its entries name point at.
    fn read_keys(&mut self, etcd: &EtcdSettings) {
        let place = format!("etcd {}", etcd.endpoints.join(", "));
        let answer = runtime().and_then(|runtime| {
            runtime.block_on(async {
                for key in &etcd.collect_keys {
                    let mut lists = Lists::in_etcd(etcd, key).await?;
                    match lists.read().await?.text {
                        Some(text) => self.read(&text, &lists.origin()),
                        None => self.problems.push(Problem::new(
                            format!("etcd key {key}"),
                            "no list is there",
                            "write one with `weir list put FILE`",
                        )),
                    }
                }
                self.resolve(etcd).await
            })
        });
        if let Err(error) = answer {
            let fix = "start etcd, or name other endpoints under [etcd] or in WEIR_ETCD_ENDPOINTS";
            self.problems.push(Problem::new(place, format!("{error:#}"), fix));
        }
    }

    async fn resolve(&mut self, etcd: &EtcdSettings) -> anyhow::Result<()> {
        let mut store = Store::connect(etcd).await?;
        for entry in &self.entries {
            let Some(filter) = &entry.filter else { continue };
            match store.resolve(&filter.module).await {
                Err(error) => {
                    let fix = format!("push it: `weir module push WASM --tag {}`", filter.module);
                    self.problems.push(Problem::new(entry.name.as_str(), error.chain(), fix));
                }
                Ok(digest) if self.keys.are_set() => {
                    let (bytes, signature) = (store.fetch(&digest).await?, store.signature(&digest).await?);
                    self.problems.extend(unsigned(entry, &bytes, signature.as_deref(), self.keys));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Where there are keys, one of them must have signed a module.
fn unsigned(entry: &Entry, bytes: &[u8], signature: Option<&str>, keys: &Keys) -> Option<Problem> {
    if !keys.are_set() {
        return None;
    }
    let verified =
        signature.ok_or_else(|| "it is not signed".into()).and_then(|text| keys.verify(bytes, text));
    let module = &entry.filter.as_ref()?.module;
    let fix = "sign it, and push it again: weir module sign WASM --sign-key KEY";
    Some(Problem::new(entry.name.as_str(), format!("module {module}: {}", verified.err()?), fix))
}

/// A module named as a file must be there and be a filter.
fn module_file_problem(entry: &Entry, keys: &Keys) -> Option<Problem> {
    let ModuleRef::File(file) = &entry.filter.as_ref()?.module else { return None };
    let cause = match fs::read(file) {
        Ok(bytes) => match inspect(&bytes) {
            Err(error) => error.to_string(),
            Ok(_) => {
                let signature = signature_beside(file).ok().flatten();
                return unsigned(entry, &bytes, signature.as_deref(), keys);
            }
        },
        Err(error) => format!("cannot be read: {error}"),
    };
    let cause = format!("module {}: {cause}", file.display());
    Some(Problem::new(entry.name.as_str(), cause, "build it with `weir module build`, or name another file"))
}

fn check_policy(settings: &Settings, entries: &[Arc<Entry>]) -> Vec<Problem> {
    let policy = &settings.policy;
    let mut problems: Vec<_> = entries.iter().filter_map(|entry| policy.check(entry).err()).collect();
    let max = policy.rules().max_entries;
    if entries.len() > max {
        let cause = format!("{} entries; the policy of this host takes {max}", entries.len());
        let fix = format!("write a higher max_entries under [policy] in {}", policy.rules().file.display());
        problems.push(Problem::new("list", cause, fix));
    }
    problems
}

fn policy_in_words(settings: &Settings) -> String {
    match &settings.policy.rules().roots {
        None => "files anywhere".into(),
        Some(roots) => {
            let roots: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
            format!("files below {}", roots.join(", "))
        }
    }
}

/// Whether the kernel will hold the agent, tried on a thread that ends with it.
fn confinement(settings: &Settings) -> String {
    if !settings.policy.rules().confine {
        return "the kernel does not confine the agent: confine = false under [policy]".into();
    }
    let bounds = Bounds::of(settings, None);
    let tried = std::thread::scope(|scope| scope.spawn(|| try_to_confine(&bounds)).join());
    match tried.unwrap_or_else(|_| Confined::Not("trying it failed".into())) {
        Confined::Fully => "the kernel confines the agent (Landlock)".into(),
        Confined::Partly => "the kernel confines the agent as far as it can (an older Landlock)".into(),
        Confined::Not(why) => format!("the kernel does not confine the agent: {why}"),
    }
}

/// The directory, or the one it would be made in, must be writable.
fn check_state(dir: &Path) -> Vec<Problem> {
    let place = format!("state directory {}", dir.display());
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let shown = there.display();
    if !there.is_dir() {
        return vec![Problem::new(
            place,
            format!("{shown} is not a directory"),
            "name another under [state]",
        )];
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let cause = format!("{shown} cannot be written ({})", io::Error::from(error));
        let fix = "run weir check as the agent's user, or name another under [state]";
        return vec![Problem::new(place, cause, fix)];
    }
    Vec::new()
}

fn check_kafka<W: Write>(
    settings: &Settings,
    entries: &[Arc<Entry>],
    report: &mut Report<W>,
) -> io::Result<()> {
    match probe::probe(&settings.kafka, KAFKA_TIMEOUT) {
        Err(error) => report.say("kafka", "", &[kafka_problem(settings, error)]),
        Ok(topics) => {
            let brokers = &settings.kafka.brokers;
            report.say("kafka", &format!("{brokers} answers, {} topics", topics.len()), &[])?;
            // The in-process broker makes topics as they are named.
            let missing =
                if brokers == "mock" { Vec::new() } else { missing_topics(entries, &topics, brokers) };
            report.say("topics", "all there", &missing)
        }
    }
}

fn missing_topics(entries: &[Arc<Entry>], known: &[KnownTopic], brokers: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for entry in entries {
        let dead_letter = entry.filter.as_ref().and_then(|filter| match &filter.on_error {
            OnError::DeadLetter(topic) => Some(topic),
            _ => None,
        });
        for topic in [Some(&entry.topic), dead_letter].into_iter().flatten() {
            if !known.iter().any(|known| known.name == topic.as_str()) {
                let cause = format!("topic {topic} is not there, or hidden from this user");
                let fix = format!("kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic}");
                problems.push(Problem::new(entry.name.as_str(), cause, fix));
            }
        }
    }
    problems
}

fn kafka_problem(settings: &Settings, error: ProbeError) -> Problem {
    match error {
        ProbeError::Property { name, cause } => {
            let fix = "see the list of properties of librdkafka";
            Problem::new(config::place(settings, &format!("kafka.properties.{name}")), cause, fix)
        }
        ProbeError::Setup(cause) => Problem::new(config::place(settings, "kafka.properties"), cause, ""),
        unreachable @ ProbeError::Unreachable { .. } => {
            let fix = "look whether it runs, whether the address leads there from this host, \
                       and whether security.protocol fits; RUST_LOG=rdkafka=debug weir run shows more";
            Problem::new(config::place(settings, "kafka.brokers"), unreachable.to_string(), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// What `weir check` prints for these settings, without the directory, and how it ends.
    fn checked(dir: &tempfile::TempDir, settings: &str, offline: bool) -> (String, usize) {
        let file = dir.path().join("weir.toml");
        fs::write(&file, settings).unwrap();
        let (file, state) = (file.to_str().unwrap(), dir.path().join("state"));
        let args = ["weir", "--config", file, "--state-dir", state.to_str().unwrap(), "check"];
        let common = Cli::parse_from(args).common;
        let mut report = Report { out: Vec::new(), problems: 0 };
        check(&config::load(&common, &[]).unwrap(), offline, &mut report).unwrap();
        // The kernel's part depends on the kernel.
        let text = String::from_utf8(report.out).unwrap();
        let text: String = text.split_inclusive('\n').filter(|line| !line.contains("the kernel")).collect();
        (text.replace(&format!("{}/", dir.path().display()), ""), report.problems)
    }

    const MOCK: &str = "[kafka]\nbrokers = \"mock\"\n[collect]\nfile = \"list.json\"\n";

    #[test]
    fn a_host_that_is_well_has_a_line_a_check() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("list.json"), "[]").unwrap();
        let (text, problems) = checked(&dir, MOCK, false);
        assert_eq!(
            text,
            "ok       settings: weir.toml\n\
             ok       state: state\n\
             ok       kafka.properties: librdkafka takes them\n\
             ok       list: list.json\n\
             ok       policy: files anywhere\n\
             ok       kafka: mock answers, 0 topics\n\
             ok       topics: all there\n"
        );
        assert_eq!(problems, 0);
    }

    #[test]
    fn every_problem_is_a_line_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("list.json"), "[\n  {\"path\": }\n]").unwrap();
        fs::write(dir.path().join("state"), "").unwrap();
        let (text, problems) =
            checked(&dir, &format!("{MOCK}[kafka.properties]\ncompression.type = \"lzma\"\n"), true);
        let wanted = [
            "problem  state directory state: state is not a directory; name another under [state]",
            "problem  weir.toml:6:13: kafka.properties.compression.type: Invalid value \"lzma\"",
            "problem  list.json:2:12: expected value; mend the JSON",
        ];
        for line in wanted {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(problems, wanted.len());
    }

    #[test]
    fn a_missing_topic_comes_with_the_command_that_makes_it() {
        let known = [KnownTopic { name: "there".into(), partitions: 1 }];
        let entry = |topic| Arc::new(crate::policy::tests::entry("/var/log/x", topic));
        let problems = missing_topics(&[entry("there"), entry("gone")], &known, "k:9092");
        assert_eq!(
            problems.iter().map(Problem::to_string).collect::<Vec<_>>(),
            ["app: topic gone is not there, or hidden from this user; \
              kafka-topics.sh --bootstrap-server k:9092 --create --topic gone"]
        );
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_a_problem() {
        let problems = check_state(Path::new("/dev/null/weir"));
        assert_eq!(
            problems.iter().map(Problem::to_string).collect::<Vec<_>>(),
            ["state directory /dev/null/weir: /dev/null is not a directory; name another under [state]"]
        );
        assert_eq!(check_state(&std::env::temp_dir().join("none/none")), []);
    }
}
