//! What was typed, in either form, each value with its place. Absent by design: defaults, and what
//! the values mean together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{OnDelete, Secret};

/// A value and where it stands: `conf/weir.toml:3:10: kafka.brokers`.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: String,
}

impl<T> At<T> {
    pub(super) fn new(value: T, place: impl Into<String>) -> Self {
        Self { value, place: place.into() }
    }
}

/// In which form, so that advice is given in the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    #[default]
    Toml,
    Ini,
}

/// A settings file.
#[derive(Debug, Default)]
pub(super) struct Typed {
    pub(super) form: Form,
    pub(super) name: Option<At<String>>,
    pub(super) ip: Option<At<String>>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) drain: Option<Duration>,
    pub(super) brokers: Option<At<Vec<At<String>>>>,
    pub(super) sasl_password_file: Option<At<String>>,
    pub(super) properties: BTreeMap<String, At<String>>,
    pub(super) etcd: Option<At<TypedEtcd>>,
    pub(super) collect: Option<At<TypedCollect>>,
    pub(super) state_dir: Option<At<String>>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) socket: Option<At<String>>,
    pub(super) limits: TypedLimits,
    pub(super) policy: Option<TypedPolicy>,
    /// What somebody should know though it stops nothing.
    pub(super) notes: Vec<String>,
}

/// `[etcd]`.
#[derive(Debug, Default)]
pub(super) struct TypedEtcd {
    pub(super) endpoints: Option<At<Vec<At<String>>>>,
    pub(super) collect_key: Option<At<Vec<At<String>>>>,
    pub(super) modules_prefix: Option<At<String>>,
    pub(super) agents_prefix: Option<At<String>>,
    pub(super) on_delete: OnDelete,
    pub(super) username: Option<At<String>>,
    pub(super) password_file: Option<At<String>>,
    /// The older form has it in the settings themselves.
    pub(super) password: Option<Secret>,
    pub(super) ca_file: Option<At<String>>,
    pub(super) cert_file: Option<At<String>>,
    pub(super) key_file: Option<At<String>>,
}

/// `[collect]`.
#[derive(Debug)]
pub(super) enum TypedCollect {
    /// `file`, where it was said well.
    File(Option<At<String>>),
    /// The one entry of the older form.
    Fixed { path: At<String>, topic: At<String> },
}

/// `[limits]`. Sizes in bytes.
#[derive(Debug, Default)]
pub(super) struct TypedLimits {
    pub(super) memory: Option<At<u64>>,
    pub(super) filter_memory: Option<At<u64>>,
    pub(super) quarantine: Option<At<u64>>,
    pub(super) held_files_age: Option<Duration>,
    pub(super) held_files_bytes: Option<At<u64>>,
}

/// `[policy]`, or a policy file.
#[derive(Debug, Default)]
pub(super) struct TypedPolicy {
    pub(super) roots: Option<At<Vec<At<String>>>>,
    pub(super) deny: Vec<At<String>>,
    pub(super) topics: Option<Vec<At<String>>>,
    pub(super) modules: Option<Vec<At<String>>>,
    pub(super) max_entries: Option<u64>,
    pub(super) max_files: Option<u64>,
    pub(super) read_bytes_per_second: Option<At<u64>>,
    pub(super) keys: Vec<At<String>>,
    pub(super) confine: Option<bool>,
    /// Where the keys stand instead.
    pub(super) file: Option<At<String>>,
}

impl TypedPolicy {
    /// Whether any rule stands here.
    pub(super) fn says_something(&self) -> bool {
        self.roots.is_some()
            || !self.deny.is_empty()
            || self.topics.is_some()
            || self.modules.is_some()
            || self.max_entries.is_some()
            || self.max_files.is_some()
            || self.read_bytes_per_second.is_some()
            || !self.keys.is_empty()
            || self.confine.is_some()
    }
}
