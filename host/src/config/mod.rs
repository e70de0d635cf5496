//! The settings of one host: what was typed becomes what it means.
//!
//! In: `weir.toml` or the older `config.ini`, the environment, `--allow`. Out: checked
//! [`Settings`]. Absent by design: the collect list (it is in `control`), anything that runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::policy::Policy;

/// Everything a host says about its agent, checked.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated; or `mock`.
    pub brokers: String,
    /// librdkafka properties as the user gave them, checked against those that would break a promise.
    pub properties: BTreeMap<String, String>,
}

/// Where the collect list comes from.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// `host:port` or a URL each.
    pub endpoints: Vec<String>,
    /// The keys of the list, with every placeholder filled in; the first wins a name.
    pub collect_keys: Vec<String>,
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

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Metrics, health, status. Default 127.0.0.1:9477.
    pub listen: SocketAddr,
    /// Where local commands talk to the agent; 0600.
    pub socket: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Debug)]
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
