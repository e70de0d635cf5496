//! What any list may ask for on this host: roots, topics, modules, signatures, caps.
//!
//! In: an entry, or a path to open. Out: yes, or which rule says no and which line to write where;
//! a file opened below an allowed root. Never settable from etcd. Absent by design: reading what
//! was typed (that is `config`), fetching modules, the content of files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::model::{Digest, Entry, ModuleRef, OnError, Problem, Topic};

mod files;
pub mod keys;
mod open;
pub mod sign;

pub use files::FileShare;
pub use keys::Keys;
pub use open::{OpenError, Opened};

/// Entries of one host, where the settings say nothing: each has a thread and a reserve of memory.
pub const ENTRIES_MAX: usize = 1000;
/// Files of one host, where the settings say nothing: each costs about a kilobyte and a checkpoint.
pub const FILES_MAX: usize = 100_000;

/// What holds a list from etcd where the settings name no root.
pub const ROOT_DEFAULT: &str = "/var/log";

/// Refused below any root: logins, failed logins (which hold passwords typed as user names), and
/// the journal. None of them holds lines.
const NEVER: [&str; 11] = [
    "**/btmp",
    "**/btmp[.-]*",
    "**/wtmp",
    "**/wtmp[.-]*",
    "**/utmp",
    "**/utmp[.-]*",
    "**/lastlog",
    "**/lastlog[.-]*",
    "**/faillog",
    "**/*.journal",
    "**/*.journal~",
];

/// `[policy]` as it was typed, checked, with the defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Files must lie below one of these; `None` is no bound.
    pub roots: Option<Vec<PathBuf>>,
    /// Globs of files that are not read.
    pub deny: Vec<String>,
    /// Globs of topics that may be written; `None` is all.
    pub topics: Option<Vec<String>>,
    /// Modules that may be loaded; `None` is all.
    pub modules: Option<BTreeSet<Digest>>,
    /// At most so many entries run.
    pub max_entries: usize,
    /// At most so many files are followed, by all entries together.
    pub max_files: usize,
    /// At most so many bytes a second are read for each entry; `None` is no bound.
    pub read_bytes_per_second: Option<u64>,
    /// Keys of which one must have signed each list and module, as minisign prints them; none
    /// where nothing needs a signature.
    pub keys: Vec<String>,
    /// Whether the kernel is to hold the agent to what the policy lets it read (Landlock).
    pub confine: bool,
    /// The agent's own directory, which no list may name.
    pub state_dir: Option<PathBuf>,
    /// The file that a refusal names as the one to change.
    pub file: PathBuf,
}

/// What a list may ask for. Every answer is about the file a path leads to now, so a link that is
/// moved later is seen when its file is opened.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Rules,
    roots: Option<Vec<Root>>,
    deny: GlobSet,
    never: GlobSet,
    topics: Option<GlobSet>,
    state_dir: Option<PathBuf>,
    keys: Keys,
    /// Files that all entries follow now.
    files: files::Count,
}

/// The rule by which a file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `roots`: it lies below none.
    Roots,
    /// `deny`.
    Deny,
    /// Logins and the journal are never read below a root.
    Never,
    /// Nor is the agent's own state, anywhere.
    State,
    /// A file with several names belongs to root or the agent's user, or is not read below a root.
    HardLinks,
}

impl Rule {
    /// The key of `[policy]` that says it; `None` for what is built in.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::Roots => Some("roots"),
            Self::Deny => Some("deny"),
            Self::Never | Self::State | Self::HardLinks => None,
        }
    }
}

/// A directory below which files may be read.
#[derive(Clone, Debug)]
struct Root {
    said: PathBuf,
    /// Where it led when the agent started: whoever owns a directory on the way to it cannot point
    /// it elsewhere while the agent runs.
    real: PathBuf,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl Policy {
    /// Compiles `rules`; fails on a glob that does not parse, with its text and the reason.
    pub fn new(rules: Rules) -> Result<Self, globset::Error> {
        let root = |said: &PathBuf| Root { said: said.clone(), real: resolved(said) };
        Ok(Self {
            roots: rules.roots.as_ref().map(|roots| roots.iter().map(root).collect()),
            deny: globs(&rules.deny)?,
            never: globs(&NEVER)?,
            topics: rules.topics.as_ref().map(|topics| globs(topics)).transpose()?,
            state_dir: rules.state_dir.as_deref().map(resolved),
            keys: Keys::new(&rules.keys),
            files: files::Count::default(),
            rules,
        })
    }

    /// A policy that refuses nothing but what is no regular file.
    pub fn unbounded() -> Self {
        let rules = Rules { max_entries: ENTRIES_MAX, max_files: FILES_MAX, ..Rules::default() };
        Self::new(rules).expect("the globs in this file are checked by a test")
    }

    /// What it was made of.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether `entry` may run here. What a glob matches is checked again when each file is opened.
    pub fn check(&self, entry: &Entry) -> Result<(), Problem> {
        let place = entry.name.as_str();
        self.check_path(place, &entry.path)?;
        self.check_topic(place, &entry.topic)?;
        let Some(filter) = &entry.filter else { return Ok(()) };
        if let OnError::DeadLetter(topic) = &filter.on_error {
            self.check_topic(place, topic)?;
        }
        match filter.module {
            ModuleRef::Digest(digest) => self.check_module(place, &digest),
            ModuleRef::Tag(_) | ModuleRef::File(_) => Ok(()),
        }
    }

    /// How fast an entry may be read that asks for `wanted`.
    pub fn pace(&self, wanted: Option<u64>) -> Option<u64> {
        [wanted, self.rules.read_bytes_per_second].into_iter().flatten().min()
    }

    /// The keys that sign lists and modules.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The directories below which files may be read, with links followed; `None` is no bound.
    pub fn real_roots(&self) -> Option<Vec<&Path>> {
        self.roots.as_ref().map(|roots| roots.iter().map(|root| root.real.as_path()).collect())
    }

    /// The root, as it was typed, below which a file lies whose links were followed.
    pub fn root_of(&self, real: &Path) -> Option<&Path> {
        let roots = self.roots.iter().flatten();
        roots.filter(|root| real.starts_with(&root.real)).map(|root| root.said.as_path()).next()
    }

    /// Whether this module may be loaded here, whatever it was called in the list.
    pub fn allows_module(&self, digest: &Digest) -> bool {
        self.rules.modules.as_ref().is_none_or(|modules| modules.contains(digest))
    }

    /// The same with a reason, for the entry or module at `place`.
    pub fn check_module(&self, place: &str, digest: &Digest) -> Result<(), Problem> {
        if self.allows_module(digest) {
            return Ok(());
        }
        let cause = format!("module {digest} is not among the modules of this host's policy");
        Err(Problem::new(place, cause, self.fix(&format!("add \"{digest}\" to modules"))))
    }

    /// Whether an entry may write to `topic`.
    pub fn check_topic(&self, place: &str, topic: &Topic) -> Result<(), Problem> {
        if self.topics.as_ref().is_none_or(|globs| globs.is_match(topic.as_str())) {
            return Ok(());
        }
        let cause = format!("topic {topic} is not among the topics of this host's policy");
        Err(Problem::new(place, cause, self.fix(&format!("add \"{topic}\" to topics"))))
    }

    /// Whether an entry may follow this path or glob; each file is looked at again when it is opened.
    pub fn check_path(&self, place: &str, text: &str) -> Result<(), Problem> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(Problem::new(place, format!("{text} is not an absolute path"), "begin it with /"));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Problem::new(place, format!("{text} has `..` in it"), "write the path it leads to"));
        }
        let (prefix, is_glob) = literal_prefix(path);
        let real = resolved(&prefix);
        if !is_glob && let Some((_, cause)) = self.denied(path, &real) {
            return Err(Problem::new(place, cause, self.deny_fix()));
        }
        let Some(roots) = &self.roots else { return Ok(()) };
        let below = |path: &Path, root: &Path| path.starts_with(root) || is_glob && root.starts_with(path);
        if roots.iter().any(|root| below(&prefix, &root.said) || below(&real, &root.real)) {
            return Ok(());
        }
        let dir = if is_glob { &prefix } else { prefix.parent().unwrap_or(&prefix) };
        Err(self.outside(place, text, dir))
    }

    /// Why this file is not read although it lies below a root.
    fn denied(&self, path: &Path, real: &Path) -> Option<(Rule, String)> {
        if let Some(dir) = &self.state_dir
            && real.starts_with(dir)
        {
            let cause = format!("{} lies in the agent's own state directory", path.display());
            return Some((Rule::State, cause));
        }
        let hit = |globs: &GlobSet| {
            let hits = [path, real].map(|path| globs.matches(path));
            hits.into_iter().flatten().next()
        };
        if let Some(glob) = hit(&self.deny) {
            let glob = &self.rules.deny[glob];
            let cause = format!("{} matches \"{glob}\" in deny of this host's policy", path.display());
            return Some((Rule::Deny, cause));
        }
        let glob = self.roots.as_ref().and_then(|_| hit(&self.never))?;
        let cause =
            format!("{} matches \"{}\", which is never read below a root", path.display(), NEVER[glob]);
        Some((Rule::Never, cause))
    }

    fn deny_fix(&self) -> String {
        format!("name another path, or change deny under [policy] in {}", self.rules.file.display())
    }

    /// The refusal of something in `dir` that lies below no root.
    fn outside(&self, place: &str, what: &str, dir: &Path) -> Problem {
        let said: Vec<_> = self.roots.iter().flatten().map(|root| root.said.as_path()).collect();
        let list = |paths: &[&Path]| {
            paths
                .iter()
                .map(|path| format!("{:?}", path.display().to_string()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let cause = format!("{what} lies below no root of this host's policy ({})", list(&said));
        let wanted: Vec<_> = said.into_iter().chain([dir]).collect();
        let line = format!("write roots = [{}]", list(&wanted));
        let fix = format!("{}, or start with --allow {}", self.fix(&line), dir.display());
        Problem::new(place, cause, fix)
    }

    fn fix(&self, what: &str) -> String {
        format!("{what} under [policy] in {}", self.rules.file.display())
    }
}

/// The part of a glob before its first wildcard, and whether there is one.
fn literal_prefix(path: &Path) -> (PathBuf, bool) {
    let literal =
        |part: &Component<'_>| !part.as_os_str().as_encoded_bytes().iter().any(|b| b"*?[{\\".contains(b));
    let prefix: PathBuf = path.components().take_while(literal).collect();
    let is_glob = prefix.components().count() < path.components().count();
    (prefix, is_glob)
}

/// Where `path` leads now, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let found = path.ancestors().find_map(|dir| Some((dir, fs::canonicalize(dir).ok()?)));
    let Some((dir, real)) = found else { return path.to_path_buf() };
    match path.strip_prefix(dir) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    }
}

fn globs<T: AsRef<str>>(patterns: &[T]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern.as_ref()).literal_separator(true).build()?);
    }
    set.build()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::FilterSpec;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    fn policy(roots: &[&str]) -> Policy {
        let roots = Some(roots.iter().map(PathBuf::from).collect());
        Policy::new(Rules { roots, file: "weir.toml".into(), ..Rules::default() }).unwrap()
    }

    pub(crate) fn entry(path: &str, topic: &str) -> Entry {
        Entry::plain("app", path, topic)
    }

    fn filter(module: ModuleRef, on_error: OnError) -> Option<FilterSpec> {
        let config = vec![];
        let (timeout, shadow) = (Duration::from_millis(100), None);
        Some(FilterSpec { module, config, on_error, timeout, memory: 1, shadow, rollout: 100 })
    }

    fn refusal(policy: &Policy, path: &str) -> String {
        policy.check(&entry(path, "t")).expect_err(path).to_string()
    }

    #[test]
    fn a_path_below_a_root_may_run() {
        let policy = policy(&["/var/log", "/srv/app"]);
        for path in ["/var/log/syslog", "/srv/app/log/*.log", "/var/log/**/*.log"] {
            assert_eq!(policy.check(&entry(path, "t")), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_path_outside_every_root_is_refused_with_the_line_to_write() {
        assert_eq!(
            refusal(&policy(&["/var/log"]), "/home/ann/notes.log"),
            "app: /home/ann/notes.log lies below no root of this host's policy (\"/var/log\"); \
             write roots = [\"/var/log\", \"/home/ann\"] under [policy] in weir.toml, \
             or start with --allow /home/ann"
        );
    }

    #[test]
    fn a_root_does_not_reach_its_namesakes() {
        assert!(refusal(&policy(&["/var/log"]), "/var/logs/x").contains("no root"));
        assert!(refusal(&policy(&["/var/log"]), "/var").contains("no root"));
    }

    #[test]
    fn a_glob_that_could_reach_a_root_may_run_and_others_may_not() {
        let policy = policy(&["/srv/app/log"]);
        assert_eq!(policy.check(&entry("/srv/*/log/*.log", "t")), Ok(()));
        assert_eq!(policy.check(&entry("/*/app/log/x", "t")), Ok(()));
        assert!(refusal(&policy, "/home/*/x.log").contains("--allow /home"));
    }

    #[test]
    fn dots_and_relative_paths_are_refused() {
        let policy = policy(&["/var/log"]);
        assert!(refusal(&policy, "/var/log/../../etc/shadow").contains("`..`"));
        assert!(refusal(&policy, "var/log/syslog").contains("absolute"));
    }

    #[test]
    fn a_link_into_a_root_may_run_from_outside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("data/log")).unwrap();
        symlink(dir.path().join("data/log"), dir.path().join("logs")).unwrap();
        let root = dir.path().join("data/log");
        let path = dir.path().join("logs/not-yet-there.log");
        assert_eq!(policy(&[root.to_str().unwrap()]).check(&entry(path.to_str().unwrap(), "t")), Ok(()));
    }

    #[test]
    fn logins_and_the_journal_are_refused_below_a_root_and_left_to_the_owner_without_one() {
        let bounded = policy(&["/var/log"]);
        for name in
            ["btmp", "btmp.1", "wtmp", "wtmp-20260101", "wtmp.db", "utmp", "lastlog", "lastlog.1", "faillog"]
        {
            let path = format!("/var/log/{name}");
            assert!(refusal(&bounded, &path).contains("never read below a root"), "{path}");
        }
        assert!(refusal(&bounded, "/var/log/journal/0/user-1000@0-1.journal~").contains("\"**/*.journal~\""));
        assert!(refusal(&bounded, "/var/log/journal/0/system.journal").contains("\"**/*.journal\""));
        assert_eq!(Policy::unbounded().check(&entry("/var/log/btmp", "t")), Ok(()));
    }

    #[test]
    fn a_denied_glob_and_the_state_directory_are_refused_with_the_rule() {
        let rules = Rules {
            deny: vec!["**/*.key".into()],
            state_dir: Some("/var/lib/weir".into()),
            file: "/etc/weir/weir.toml".into(),
            ..Rules::default()
        };
        let policy = Policy::new(rules).unwrap();
        assert_eq!(
            refusal(&policy, "/srv/a.key"),
            "app: /srv/a.key matches \"**/*.key\" in deny of this host's policy; \
             name another path, or change deny under [policy] in /etc/weir/weir.toml"
        );
        assert!(refusal(&policy, "/var/lib/weir/x").contains("own state directory"));
    }

    #[test]
    fn topics_bind_the_dead_letter_topic_too() {
        let rules =
            Rules { topics: Some(vec!["app-*".into()]), file: "weir.toml".into(), ..Rules::default() };
        let policy = Policy::new(rules).unwrap();
        assert_eq!(policy.check(&entry("/x", "app-web")), Ok(()));
        let refused = policy.check(&entry("/x", "billing")).unwrap_err().to_string();
        assert_eq!(
            refused,
            "app: topic billing is not among the topics of this host's policy; \
             add \"billing\" to topics under [policy] in weir.toml"
        );
        let mut dead = entry("/x", "app-web");
        let letter = OnError::DeadLetter(Topic::parse("dead").unwrap());
        dead.filter = filter(ModuleRef::Tag("t".into()), letter);
        assert!(policy.check(&dead).unwrap_err().cause.contains("topic dead"));
    }

    #[test]
    fn an_entry_is_read_no_faster_than_the_policy_says() {
        let policy = |most| Policy::new(Rules { read_bytes_per_second: most, ..Rules::default() }).unwrap();
        assert_eq!(policy(None).pace(None), None);
        assert_eq!(policy(None).pace(Some(5)), Some(5));
        assert_eq!((policy(Some(7)).pace(None), policy(Some(7)).pace(Some(9))), (Some(7), Some(7)));
        assert_eq!(policy(Some(7)).pace(Some(5)), Some(5));
    }

    #[test]
    fn modules_are_allowed_by_digest() {
        let (good, bad) = (Digest::of(b"good"), Digest::of(b"bad"));
        let policy = Policy::new(Rules { modules: Some([good].into()), ..Rules::default() }).unwrap();
        assert!(policy.allows_module(&good) && !policy.allows_module(&bad));
        let mut wanted = entry("/x", "t");
        wanted.filter = filter(ModuleRef::Digest(bad), OnError::Drop);
        assert!(policy.check(&wanted).unwrap_err().fix.contains(&bad.to_string()));
        assert!(Policy::unbounded().allows_module(&bad));
    }
}
