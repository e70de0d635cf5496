//! The settings of one host: what was typed becomes what it means.
//!
//! In: `weir.toml` or the older `config.ini`, the environment, `--allow`. Out: checked
//! [`Settings`]. Absent by design: the collect list (it is in `control`), anything that runs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Common;
use crate::model::Problem;
use crate::policy::Policy;

use host::Host;
use resolve::{Instead, Resolver};
use typed::Typed;

mod convert;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod host;
mod ini;
mod kafka;
pub mod key;
mod policy;
mod resolve;
mod section;
pub mod size;
#[cfg(test)]
mod tests;
mod toml;
mod trust;
mod typed;

/// Where settings are looked for when nobody says.
const FILES: [&str; 2] = ["weir.toml", "/etc/weir/weir.toml"];
/// Names that end so are in the older form.
const INI_EXTENSIONS: [&str; 3] = ["ini", "cfg", "conf"];

/// Why there are no settings: everything that is wrong, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} problems in the settings", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// The settings of this host: the file, and in place of it the environment and the command line.
/// `allow` are roots for this run; those of `WEIR_ALLOW` are added.
pub fn load(common: &Common, allow: &[PathBuf]) -> Result<Settings, ConfigError> {
    load_on(&Host::here(), common, &Instead { allow: allow.into(), ..instead(common) })
}

/// The same for a command that needs no broker. Keys are those of the agent called `name`, where
/// one is given.
pub fn load_without_kafka(common: &Common, name: Option<&str>) -> Result<Settings, ConfigError> {
    let name = name.map(str::to_owned);
    load_on(&Host::here(), common, &Instead { without_kafka: true, name, ..instead(common) })
}

/// A `weir.toml` that means what the older `file` means.
pub fn convert(file: &Path) -> Result<String, ConfigError> {
    let text = read_text(file).map_err(one)?;
    let (typed, problems) = ini::parse(&text, &file.display().to_string());
    if problems.is_empty() { Ok(convert::to_toml(&typed, file)) } else { Err(ConfigError { problems }) }
}

/// Where `key`, such as `kafka.brokers`, stands in the file, for a problem that shows only when it
/// is used.
pub fn place(settings: &Settings, key: &str) -> String {
    let file = settings.file.display().to_string();
    let text = fs::read_to_string(&settings.file).unwrap_or_default();
    toml::place(&text, &file, key).unwrap_or_else(|| format!("{file}: {key}"))
}

/// Where `key` of the policy stands, in the settings or in the file of its own; `None` where it has
/// its default.
pub fn policy_place(settings: &Settings, key: &str) -> Option<String> {
    let file = &settings.policy.rules().file;
    let key = if *file == settings.file { format!("policy.{key}") } else { key.to_owned() };
    let text = fs::read_to_string(file).ok()?;
    toml::place(&text, &file.display().to_string(), &key)
}

fn instead(common: &Common) -> Instead {
    Instead {
        brokers: common.kafka_brokers.clone(),
        endpoints: common.etcd_endpoints.clone(),
        state_dir: common.state_dir.clone(),
        ..Instead::default()
    }
}

fn load_on(host: &Host, common: &Common, instead: &Instead) -> Result<Settings, ConfigError> {
    let found = FILES.iter().map(PathBuf::from).find(|file| file.exists());
    let Some(file) = common.config.clone().or(found) else {
        // Enough is said without a file, as in a container.
        if instead.endpoints.is_some() && (instead.brokers.is_some() || instead.without_kafka) {
            return resolve(host, instead, Path::new(FILES[0]), Typed::default(), Vec::new());
        }
        let fix = "name one with --config or WEIR_CONFIG, \
                   or give WEIR_KAFKA_BROKERS and WEIR_ETCD_ENDPOINTS";
        return Err(one(Problem::new(FILES.join(", "), "no settings are there", fix)));
    };
    let text = read_text(&file).map_err(|problem| {
        let fix = if problem.fix.is_empty() { "name another with --config".into() } else { problem.fix };
        one(Problem { fix, ..problem })
    })?;
    parse_on(host, instead, &text, &file)
}

fn parse_on(host: &Host, instead: &Instead, text: &str, file: &Path) -> Result<Settings, ConfigError> {
    let shown = file.display().to_string();
    let read = if is_ini(file) { Ok(ini::parse(text, &shown)) } else { toml::parse(text, &shown) };
    let (typed, problems) = read.map_err(|problems| ConfigError { problems })?;
    resolve(host, instead, file, typed, problems)
}

fn resolve(
    host: &Host,
    instead: &Instead,
    file: &Path,
    typed: Typed,
    problems: Vec<Problem>,
) -> Result<Settings, ConfigError> {
    Resolver::new(file, host, instead, problems).settings(typed).map_err(|problems| ConfigError { problems })
}

fn is_ini(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    INI_EXTENSIONS.contains(&extension.to_lowercase().as_str())
}

/// A file as text, without the byte order mark that some editors put first.
fn read_text(file: &Path) -> Result<String, Problem> {
    let shown = file.display().to_string();
    let bytes =
        fs::read(file).map_err(|error| Problem::new(&*shown, format!("cannot be read: {error}"), ""))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        let (line, column) = line_and_column(&before);
        let cause = format!("not UTF-8: byte 0x{:02x}", error.as_bytes()[good]);
        Problem::new(format!("{shown}:{line}:{column}"), cause, "save it as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Where the text behind `before` begins, both counted from 1.
fn line_and_column(before: &str) -> (usize, usize) {
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn one(problem: Problem) -> ConfigError {
    ConfigError { problems: vec![problem] }
}

/// Everything a host says about its agent, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The file they came from.
    pub file: PathBuf,
    /// `[agent]`.
    pub agent: AgentSettings,
    /// `[kafka]`.
    pub kafka: KafkaSettings,
    /// `[etcd]` or `[collect]`.
    pub list: ListSource,
    /// `[state] dir`.
    pub state_dir: PathBuf,
    /// `[admin]`.
    pub admin: AdminSettings,
    /// `[limits]`.
    pub limits: Limits,
    /// `[policy]`, with `--allow` and `WEIR_ALLOW`.
    pub policy: Policy,
    /// What somebody should know though it stops nothing: ignored keys of the older form.
    pub notes: Vec<String>,
}

/// Who this agent is.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSettings {
    /// Default: the host name.
    pub name: String,
    /// Default: the address of the default route.
    pub ip: String,
    /// For `{label.X}` in keys.
    pub labels: BTreeMap<String, String>,
    /// How long a stop may take. Default 10 s.
    pub drain: Duration,
}

/// Where the lines go.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated; or `mock`.
    pub brokers: String,
    /// librdkafka properties as the user gave them, checked against those that would break a promise.
    pub properties: BTreeMap<String, String>,
}

/// Passwords and keys are not shown.
impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value)| (name, if kafka::is_secret(name) { "[secret]" } else { value });
        let properties: BTreeMap<&str, &str> =
            self.properties.iter().map(|(name, value)| shown((name.as_str(), value.as_str()))).collect();
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("properties", &properties)
            .finish()
    }
}

/// Where the collect list comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ListSource {
    /// Keys in etcd.
    Etcd(EtcdSettings),
    /// A file, watched the same way.
    File(PathBuf),
    /// One entry that the older INI form names itself: path, topic.
    Fixed {
        /// `[collect] logfile_path`.
        path: String,
        /// `[kafka] topic`.
        topic: String,
    },
}

/// `[etcd]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdSettings {
    /// `host:port` or a URL each.
    pub endpoints: Vec<String>,
    /// The keys of the list, with every placeholder filled in; the first wins a name.
    pub collect_keys: Vec<String>,
    /// The keys of the lists of all hosts: each as it was written.
    pub collect_patterns: Vec<key::Pattern>,
    /// Ends in `/`.
    pub modules_prefix: String,
    /// Ends in `/`.
    pub agents_prefix: String,
    /// What a deleted key means.
    pub on_delete: OnDelete,
    /// With `password`.
    pub username: Option<String>,
    /// From `password_file`.
    pub password: Option<Secret>,
    /// PEM.
    pub ca_file: Option<PathBuf>,
    /// PEM, with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM.
    pub key_file: Option<PathBuf>,
}

/// What a deleted collect key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDelete {
    /// The last list stays, and LIST MISSING is said.
    #[default]
    Keep,
    /// As an empty list: everything stops.
    Stop,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminSettings {
    /// Metrics, health, status. Default 127.0.0.1:9477.
    pub listen: SocketAddr,
    /// Where local commands talk to the agent; 0600.
    pub socket: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Chunks of all pipelines together, records in librdkafka included. Bytes; default 64 MiB.
    pub memory: u64,
    /// Instances of all filters together. Bytes; default 256 MiB.
    pub filter_memory: u64,
    /// The quarantine on disk. Bytes; default 256 MiB.
    pub quarantine: u64,
    /// How long a deleted or rotated file is kept open until delivered. Default 1 h.
    pub held_files_age: Duration,
    /// How much disk such files may pin. Bytes; default 1 GiB.
    pub held_files_bytes: u64,
}
