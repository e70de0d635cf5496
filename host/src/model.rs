//! Nouns that several rooms share. Absent by design: behaviour that touches files, Kafka, etcd
//! or wasm.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use encoding_rs::Encoding;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Longest line by default; the rest is handled as `long_line` says. Bytes.
pub const LINE_BYTES_MAX: u32 = 256 * 1024;
/// A compiled [`LineStart`]. Bytes.
const LINE_START_BYTES: usize = 1024 * 1024;
/// CPU time a filter may take for one batch, by default.
pub const FILTER_TIMEOUT: Duration = Duration::from_millis(100);
/// Memory one filter instance may take, by default. Bytes.
pub const FILTER_MEMORY: u64 = 32 * 1024 * 1024;

/// The unique name of an entry. Offsets belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryName(pub Arc<str>);

/// A Kafka topic name: 1 to 249 of `[a-zA-Z0-9._-]`, neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks the name as Kafka does; the error says which rule is broken.
    pub fn parse(name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Err("the topic is empty".into());
        }
        if name.len() > 249 {
            return Err(format!("the topic has {} characters; Kafka takes at most 249", name.len()));
        }
        if name == "." || name == ".." {
            return Err(format!("Kafka does not take {name:?} as a topic"));
        }
        if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            return Err(format!("topic {name:?} has {bad:?}; Kafka takes letters, digits, '.', '_' and '-'"));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl EntryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sha256 of a module's bytes as they were pushed. Written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hex digits alone.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix("sha256:").ok_or("a digest begins with `sha256:`")?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("a digest is `sha256:` and 64 hex digits".into());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|e| e.to_string())?;
        }
        Ok(Self(bytes))
    }
}

/// How an entry names its module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModuleRef {
    /// A name in the module store that points at a digest.
    Tag(String),
    /// The bytes themselves.
    Digest(Digest),
    /// A file on this host; in a local list only.
    File(PathBuf),
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One checked entry of the collect list. Two equal entries ask for the same thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Unique over all merged keys.
    pub name: EntryName,
    /// An absolute path or a glob.
    pub path: String,
    /// Globs matched against the whole path and against the file name.
    pub exclude: Vec<String>,
    /// Where the lines go.
    pub topic: Topic,
    /// What they pass through on the way.
    pub filter: Option<FilterSpec>,
    /// Where files that are already there begin.
    pub start_at: StartAt,
    /// How records spread over partitions.
    pub partition: Partition,
    /// The records' key.
    pub key: RecordKey,
    /// The longest line; bytes.
    pub line_bytes_max: u32,
    /// What happens to a longer one.
    pub long_line: LongLine,
    /// At most so many bytes a second are read for this entry.
    pub read_bytes_per_second: Option<u64>,
    /// Whether empty lines (`\r` aside) are left out.
    pub skip_empty: bool,
    /// Notes for whoever reads the records.
    pub labels: BTreeMap<String, String>,
    /// Whether each record says in headers where it comes from, and the labels.
    pub headers: bool,
    /// Which lines are joined to one record.
    pub multiline: Option<Multiline>,
    /// How characters are written in the files; `None` for bytes that are taken as they are.
    pub encoding: Option<&'static Encoding>,
    /// Lines that stand together travel as one record of up to so many bytes.
    pub pack: Option<u32>,
}

#[cfg(test)]
impl Entry {
    /// For tests: files from their beginning, as they are, and no option.
    pub(crate) fn plain(name: &str, path: impl AsRef<std::path::Path>, topic: &str) -> Self {
        Self {
            name: EntryName(name.into()),
            path: path.as_ref().display().to_string(),
            exclude: Vec::new(),
            topic: Topic::parse(topic).expect("a topic"),
            filter: None,
            start_at: StartAt::Beginning,
            partition: Partition::File,
            key: RecordKey::None,
            line_bytes_max: LINE_BYTES_MAX,
            long_line: LongLine::Split,
            read_bytes_per_second: None,
            skip_empty: true,
            labels: BTreeMap::new(),
            headers: false,
            multiline: None,
            encoding: None,
            pack: None,
        }
    }
}

/// Which lines are joined to one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Multiline {
    /// What a line looks like that begins a record; others belong to the one before.
    pub start: LineStart,
    /// At most so many lines are joined.
    pub max_lines: usize,
    /// A record that nothing followed for so long is sent.
    pub flush: Duration,
}

/// A regular expression that lines are compared with.
#[derive(Clone, Debug)]
pub struct LineStart(Regex);

impl LineStart {
    /// Compiles it; the error says what is wrong, in one line.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let compiled = RegexBuilder::new(pattern).size_limit(LINE_START_BYTES).build();
        compiled.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "it is too large".into(),
            error => {
                error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").into()
            }
        })
    }

    /// As it was written.
    pub fn pattern(&self) -> &str {
        self.0.as_str()
    }

    /// Whether a line begins a record.
    pub fn begins(&self, line: &[u8]) -> bool {
        self.0.is_match(line)
    }
}

impl PartialEq for LineStart {
    fn eq(&self, other: &Self) -> bool {
        self.pattern() == other.pattern()
    }
}

/// The filter of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterSpec {
    /// Which module.
    pub module: ModuleRef,
    /// The JSON value `config` as it stands in the list; empty where there is none.
    pub config: Vec<u8>,
    /// What happens to a line the filter fails on or sets aside.
    pub on_error: OnError,
    /// CPU time a batch may take.
    pub timeout: Duration,
    /// Memory an instance may take; bytes.
    pub memory: u64,
    /// A second module that sees the same lines and is only counted.
    pub shadow: Option<ShadowSpec>,
    /// Percent of hosts that adopt a change of it.
    pub rollout: u8,
}

/// A second module for the lines of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowSpec {
    /// Which module.
    pub module: ModuleRef,
    /// As of a filter.
    pub config: Vec<u8>,
}

/// Lines of a shadow, by what came of the comparison, and what that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowTally {
    /// Lines of which it makes the same as the filter.
    pub same: u64,
    /// Lines of which it makes something else.
    pub differing: u64,
    /// Lines on which it failed.
    pub errors: u64,
    /// Lines that it was not shown.
    pub skipped: u64,
    /// What it took, with all attempts and new instances; seconds.
    pub cpu_seconds: f64,
    /// The most memory that an instance of it had; bytes.
    pub memory_max: u64,
}

impl ShadowTally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.same += other.same;
        self.differing += other.differing;
        self.errors += other.errors;
        self.skipped += other.skipped;
        self.cpu_seconds += other.cpu_seconds;
        self.memory_max = self.memory_max.max(other.memory_max);
    }
}

impl FilterSpec {
    /// All modules that it names.
    pub fn modules(&self) -> impl Iterator<Item = &ModuleRef> {
        [&self.module].into_iter().chain(self.shadow.as_ref().map(|shadow| &shadow.module))
    }
}

/// What happens to a line that the filter fails on or sets aside.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// Set aside on the host, with cause and place.
    #[default]
    Quarantine,
    /// Sent as it was read.
    Pass,
    /// Dropped and counted.
    Drop,
    /// The entry stops before this line until module or config change.
    Hold,
    /// Sent as it was read to this topic.
    DeadLetter(Topic),
}

/// Where files that are there when an entry is first applied begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StartAt {
    /// After their last complete line.
    #[default]
    End,
    /// At byte 0.
    Beginning,
}

/// How records spread over the partitions of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Partition {
    /// One partition a file, by a hash of host and first-seen path: order is kept.
    #[default]
    File,
    /// Any partition: the one that has least under way; with a key, as librdkafka's partitioner says.
    Spread,
}

/// The key of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RecordKey {
    /// No key.
    #[default]
    None,
    /// The file's path.
    Path,
    /// The agent's name.
    Host,
}

/// What happens to a line longer than `line_bytes_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LongLine {
    /// Sent as several records.
    #[default]
    Split,
    /// Its beginning is sent, the rest counted as discarded.
    Truncate,
    /// Its beginning goes to quarantine, the rest is discarded.
    Quarantine,
}

/// Something wrong that somebody can mend: what, where, and what to do. Never holds line content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// File, line, column, key or entry.
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// A problem at `place`.
    pub fn new(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.into(), cause: cause.into(), fix: fix.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        Ok(())
    }
}

/// Lines of the source since the pipeline of an entry first started in this run of the agent.
/// `read = delivered + filtered + skipped + quarantined + discarded + in_flight`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Lines cut from the files.
    pub read: u64,
    /// Acknowledged by Kafka (a dead-lettered line too).
    pub delivered: u64,
    /// Dropped by the filter.
    pub filtered: u64,
    /// Empty lines left out.
    pub skipped: u64,
    /// Set aside on the host.
    pub quarantined: u64,
    /// NUL runs, `on_error: drop`, parts of long lines.
    pub discarded: u64,
    /// Read, and none of the above yet.
    pub in_flight: u64,
}
