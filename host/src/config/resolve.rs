//! What was typed becomes what it means: defaults filled in, files read, rules between keys held.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::Host;
use super::typed::{At, Form, Typed, TypedCollect, TypedEtcd, TypedLimits};
use super::{
    AdminSettings, AgentSettings, EtcdSettings, KafkaSettings, Limits, ListSource, Secret, Settings, kafka,
    key, read_text, size, trust,
};
use crate::model::Problem;

/// How long a stop may take. Below what systemd gives by default, 90 s.
const DRAIN: Duration = Duration::from_secs(10);
const ENDPOINT: &str = "127.0.0.1:2379";
const COLLECT_KEY: &str = "/weir/{host}/collect";
const MODULES_PREFIX: &str = "/weir/modules/";
const AGENTS_PREFIX: &str = "/weir/agents/";
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);
const SOCKET: &str = "weir.sock";

const MEMORY: u64 = 64 << 20;
const FILTER_MEMORY: u64 = 256 << 20;
const QUARANTINE: u64 = 256 << 20;
const HELD_FILES_AGE: Duration = Duration::from_secs(3600);
const HELD_FILES_BYTES: u64 = 1 << 30;

/// Below this a single chunk of usual size finds no room. Bytes.
const MEMORY_MIN: u64 = 1 << 20;
/// Less than one instance of a usual filter. Bytes.
const FILTER_MEMORY_MIN: u64 = 4 << 20;

/// What the command line and the environment say in place of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Instead {
    pub(super) brokers: Option<String>,
    pub(super) endpoints: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    /// Roots for this run.
    pub(super) allow: Vec<PathBuf>,
    /// Whether the command needs no broker.
    pub(super) without_kafka: bool,
    /// The agent that is spoken of, where it is not this host's.
    pub(super) name: Option<String>,
}

/// The work in hand.
pub(super) struct Resolver<'a> {
    pub(super) file: &'a Path,
    pub(super) host: &'a Host,
    pub(super) instead: &'a Instead,
    form: Form,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

impl<'a> Resolver<'a> {
    /// `problems` are those that were found when the file was read.
    pub(super) fn new(file: &'a Path, host: &'a Host, instead: &'a Instead, problems: Vec<Problem>) -> Self {
        Self { file, host, instead, form: Form::Toml, problems, notes: Vec::new() }
    }

    pub(super) fn settings(mut self, typed: Typed) -> Result<Settings, Vec<Problem>> {
        (self.form, self.notes) = (typed.form, typed.notes);
        let agent = self.agent(typed.name, typed.ip, typed.labels, typed.drain);
        let kafka = self.kafka(typed.brokers, typed.sasl_password_file, typed.properties);
        let list = self.list(typed.etcd, typed.collect, &agent);
        let state_dir = self.state_dir(typed.state_dir);
        let socket = typed
            .socket
            .map(|socket| self.path(&socket.value))
            .or_else(|| Some(self.host.runtime_dir.as_ref().or(state_dir.as_ref())?.join(SOCKET)));
        let limits = self.limits(typed.limits);
        let policy = self.policy(typed.policy, list.as_ref(), state_dir.as_deref());
        match (list, state_dir, socket, policy) {
            (Some(list), Some(state_dir), Some(socket), Some(policy)) if self.problems.is_empty() => {
                Ok(Settings {
                    file: self.file.into(),
                    agent,
                    kafka,
                    list,
                    state_dir,
                    admin: AdminSettings { listen: typed.listen.unwrap_or(LISTEN), socket },
                    limits,
                    policy,
                    notes: self.notes,
                })
            }
            _ => Err(self.problems),
        }
    }

    fn agent(
        &mut self,
        name: Option<At<String>>,
        ip: Option<At<String>>,
        labels: BTreeMap<String, String>,
        drain: Option<Duration>,
    ) -> AgentSettings {
        if let Some(name) = &name
            && name.value.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace())
        {
            let cause = format!("{:?}: a name is part of keys", name.value);
            self.problem(&name.place, cause, "write it without blanks and without /");
        }
        if let Some(ip) = &ip
            && ip.value.parse::<IpAddr>().is_err()
        {
            let fix = "write an address such as \"10.0.0.7\", or delete the line: \
                       the default is the address of the default route";
            self.problem(&ip.place, format!("{:?} is no IP address", ip.value), fix);
        }
        AgentSettings {
            name: self
                .instead
                .name
                .clone()
                .or(name.map(|name| name.value))
                .unwrap_or_else(|| self.host.name.clone()),
            ip: ip.map_or_else(|| self.host.ip.clone(), |ip| ip.value),
            labels,
            drain: drain.unwrap_or(DRAIN),
        }
    }

    fn kafka(
        &mut self,
        brokers: Option<At<Vec<At<String>>>>,
        password_file: Option<At<String>>,
        typed: BTreeMap<String, At<String>>,
    ) -> KafkaSettings {
        let said = self.instead.brokers.as_deref().map(|text| split(text, "--kafka-brokers"));
        let brokers = said.or(brokers.map(|brokers| self.addresses(brokers)));
        let (key, fix) = match self.form {
            Form::Toml => {
                let fix = "write brokers = \"host:9092\" under [kafka], or \"mock\" for an in-process broker";
                ("kafka.brokers", fix)
            }
            Form::Ini => ("kafka.address", "write address = host:9092 under [kafka]"),
        };
        if brokers.is_none() && !self.instead.without_kafka && !self.complained(key) {
            self.problem(&format!("{}: {key}", self.file.display()), "missing", fix);
        }
        let brokers = brokers.unwrap_or_default();
        let mock = matches!(brokers.as_slice(), [only] if only.value == "mock");
        if !mock {
            self.problems.extend(brokers.iter().filter_map(|broker| kafka::check_address(broker, false)));
        }
        let mut properties = BTreeMap::new();
        for (name, value) in typed {
            self.problems.extend(kafka::check_property(&name, &value));
            if name == "sasl.password" {
                self.notes
                    .push(format!("{}: kafka.sasl_password_file keeps it out of the settings", value.place));
            }
            properties.insert(name, value.value);
        }
        if let Some(file) = &password_file {
            if properties.contains_key("sasl.password") {
                self.problem(&file.place, "sasl.password is set too", "write one of the two");
            }
            if let Some(Secret(password)) = self.secret(file) {
                properties.insert("sasl.password".into(), password);
            }
        }
        let brokers = brokers.into_iter().map(|broker| broker.value).collect::<Vec<_>>().join(",");
        KafkaSettings { brokers, properties }
    }

    fn list(
        &mut self,
        etcd: Option<At<TypedEtcd>>,
        collect: Option<At<TypedCollect>>,
        agent: &AgentSettings,
    ) -> Option<ListSource> {
        let endpoints = &self.instead.endpoints;
        match (etcd, collect) {
            (Some(etcd), Some(collect)) => {
                let cause = format!("[etcd] stands there too ({})", etcd.place.trim_end_matches(": [etcd]"));
                self.problem(&collect.place, cause, "delete one: the list comes from etcd or from a file");
                None
            }
            (Some(etcd), None) => Some(ListSource::Etcd(self.etcd(etcd.value, agent))),
            (None, None) if endpoints.is_some() => {
                Some(ListSource::Etcd(self.etcd(TypedEtcd::default(), agent)))
            }
            (None, Some(collect)) => {
                if endpoints.is_some() {
                    self.notes
                        .push(format!("{}: etcd endpoints are not used: the list is here", collect.place));
                }
                match collect.value {
                    TypedCollect::File(Some(file)) => Some(ListSource::File(self.path(&file.value))),
                    TypedCollect::File(None) => {
                        if !self.complained("collect.file") {
                            self.problem(
                                &collect.place,
                                "file is missing",
                                "write file = \"collect.json\" below it",
                            );
                        }
                        None
                    }
                    TypedCollect::Fixed { path, topic } => {
                        // The older form counts from where the agent is started.
                        let path = std::path::absolute(&path.value).unwrap_or(PathBuf::from(path.value));
                        Some(ListSource::Fixed { path: path.display().to_string(), topic: topic.value })
                    }
                }
            }
            (None, None) => {
                let fix = match self.form {
                    Form::Toml => {
                        "write [etcd] with its endpoints, or [collect] with file = \"collect.json\""
                    }
                    Form::Ini => {
                        "write collect_key = KEY under [etcd], \
                         or logfile_path = PATH under [collect] and topic = NAME under [kafka]"
                    }
                };
                self.problem(&self.file.display().to_string(), "nothing says what to collect", fix);
                None
            }
        }
    }

    fn etcd(&mut self, typed: TypedEtcd, agent: &AgentSettings) -> EtcdSettings {
        let said = self.instead.endpoints.as_deref().map(|text| split(text, "--etcd-endpoints"));
        let endpoints = said.or(typed.endpoints.map(|endpoints| self.addresses(endpoints)));
        let endpoints = endpoints.unwrap_or_else(|| split(ENDPOINT, "default"));
        self.problems.extend(endpoints.iter().filter_map(|endpoint| kafka::check_address(endpoint, true)));
        let keys =
            typed.collect_key.map_or_else(|| vec![At::new(COLLECT_KEY.into(), "default")], |keys| keys.value);
        let pairs = [
            (&typed.cert_file, &typed.key_file, "key_file"),
            (&typed.key_file, &typed.cert_file, "cert_file"),
        ];
        for (one, other, name) in pairs {
            if let (Some(one), None) = (one, other) {
                self.problem(&one.place, format!("etcd.{name} is missing"), "write both or none");
            }
        }
        let password =
            typed.password.or_else(|| typed.password_file.as_ref().and_then(|file| self.secret(file)));
        if let (Some(username), None, None) = (&typed.username, &password, &typed.password_file) {
            self.problem(&username.place, "a user without a password", "write password_file = \"…\" too");
        }
        if let (None, Some(file)) = (&typed.username, &typed.password_file) {
            self.problem(&file.place, "a password without a user", "write username = \"…\" too");
        }
        EtcdSettings {
            endpoints: endpoints.into_iter().map(|endpoint| endpoint.value).collect(),
            collect_patterns: keys.iter().map(|key| key::Pattern::of(&key.value)).collect(),
            collect_keys: keys.iter().filter_map(|key| self.key(key, agent)).collect(),
            modules_prefix: prefix(typed.modules_prefix, MODULES_PREFIX),
            agents_prefix: prefix(typed.agents_prefix, AGENTS_PREFIX),
            on_delete: typed.on_delete,
            username: typed.username.map(|username| username.value),
            password,
            ca_file: self.readable(typed.ca_file),
            cert_file: self.readable(typed.cert_file),
            key_file: self.readable(typed.key_file),
        }
    }

    fn key(&mut self, template: &At<String>, agent: &AgentSettings) -> Option<String> {
        match key::fill(&template.value, agent) {
            Ok(key) => Some(key),
            Err(bad) => {
                let cause = format!("{:?}, column {}: {}", template.value, bad.column, bad.cause);
                self.problem(&template.place, cause, bad.fix);
                None
            }
        }
    }

    fn state_dir(&mut self, typed: Option<At<String>>) -> Option<PathBuf> {
        let said = self.instead.state_dir.clone().or_else(|| typed.map(|dir| self.path(&dir.value)));
        let dir = said.or_else(|| self.host.state_dir.clone());
        if dir.is_none() {
            let fix = "write dir = \"/var/lib/weir\" under [state]";
            let cause = "this user has no home, so there is no default";
            self.problem(&format!("{}: state.dir", self.file.display()), cause, fix);
        }
        dir
    }

    fn limits(&mut self, typed: TypedLimits) -> Limits {
        let mut at_least = |typed: Option<At<u64>>, min: u64, default: u64| {
            if let Some(small) = typed.as_ref().filter(|typed| typed.value < min) {
                let cause = format!("{} is too little to run with", size::show(small.value));
                self.problem(&small.place, cause, format!("write \"{}\" or more", size::show(min)));
            }
            typed.map_or(default, |typed| typed.value)
        };
        Limits {
            memory: at_least(typed.memory, MEMORY_MIN, MEMORY),
            filter_memory: at_least(typed.filter_memory, FILTER_MEMORY_MIN, FILTER_MEMORY),
            quarantine: at_least(typed.quarantine, 0, QUARANTINE),
            held_files_age: typed.held_files_age.unwrap_or(HELD_FILES_AGE),
            held_files_bytes: at_least(typed.held_files_bytes, 0, HELD_FILES_BYTES),
        }
    }

    /// The secret in a file, without the newline an editor leaves.
    fn secret(&mut self, file: &At<String>) -> Option<Secret> {
        let path = self.path(&file.value);
        let text = match read_text(&path) {
            Ok(text) => text.trim_end_matches(['\r', '\n']).to_string(),
            Err(problem) => {
                self.problem(&file.place, problem.to_string(), "");
                return None;
            }
        };
        if text.is_empty() {
            self.problem(&file.place, format!("{} is empty", path.display()), "write the password into it");
        }
        if trust::everybody_reads(&path) {
            let path = path.display();
            self.notes.push(format!("{}: everybody may read {path}: chmod 600 {path}", file.place));
        }
        Some(Secret(text))
    }

    fn readable(&mut self, file: Option<At<String>>) -> Option<PathBuf> {
        let file = file?;
        let path = self.path(&file.value);
        match fs::metadata(&path).and_then(|_| File::open(&path)) {
            Ok(_) => Some(path),
            Err(error) => {
                self.problem(&file.place, format!("{} cannot be read: {error}", path.display()), "");
                None
            }
        }
    }

    /// A path in the settings counts from where the settings are.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(text)
    }

    /// A lone comma is no address.
    fn addresses(&mut self, list: At<Vec<At<String>>>) -> Vec<At<String>> {
        if list.value.is_empty() {
            self.problem(&list.place, "names no address", "write host:port, several separated by commas");
        }
        list.value
    }

    pub(super) fn problem(&mut self, place: &str, cause: impl Into<String>, fix: impl Into<String>) {
        self.problems.push(Problem::new(place, cause, fix));
    }

    /// Whether something was said about this key, so that it is not called missing too.
    fn complained(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.place.ends_with(&format!(": {key}")))
    }
}

pub(super) fn values(list: Vec<At<String>>) -> Vec<String> {
    list.into_iter().map(|at| at.value).collect()
}

fn split(text: &str, place: &str) -> Vec<At<String>> {
    text.split(',').map(|part| At::new(part.trim().to_string(), place)).collect()
}

/// So that a name put behind it is a key of its own.
fn prefix(typed: Option<At<String>>, default: &str) -> String {
    let prefix = typed.map_or_else(|| default.to_string(), |typed| typed.value);
    if prefix.ends_with('/') { prefix } else { format!("{prefix}/") }
}
