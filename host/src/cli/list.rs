//! `weir list`: the collect list, read and changed by people.
//!
//! In: a list or an entry. Out: the list in etcd or in a file, changed by compare-and-swap, with the
//! difference shown. A list that an agent would refuse in part is not written. Absent by design: what
//! the host allows; an agent's policy may still refuse an entry.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use similar::TextDiff;

use super::Common;
use crate::config::{self, EtcdSettings, ListSource, Settings};
use crate::control::ControlError;
use crate::control::list::{self, List, Origin};
use crate::control::lists::{Lists, Version, text_of};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// Print the list
    Get(GetArgs),
    /// Replace the list by the one in a file
    Put(PutArgs),
    /// Show what `put` would change
    Diff(PutArgs),
    /// Add an entry at the end
    Add(AddArgs),
    /// Remove an entry
    Rm(RmArgs),
}

/// Which list, where the settings name several or another host's is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct At {
    /// The key in etcd, in place of the one in the settings
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Another host's list: fills `{host}` in the settings' key
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    host: Option<String>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Which list.
    #[command(flatten)]
    at: At,
}

/// Arguments of `put` and `diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  weir list get > collect.json
  $EDITOR collect.json
  weir list put collect.json

The list is checked first; if any entry is wrong, nothing is written. If somebody else changed the
list while this runs, nothing is written either.")]
pub struct PutArgs {
    /// The new list; `-` is the standard input
    file: PathBuf,
    /// Which list.
    #[command(flatten)]
    at: At,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
#[command(after_help = r#"Examples:
  weir list add '{"path": "/var/log/nginx/access.log", "topic": "nginx"}'
  weir list add '{"name": "app", "path": "/srv/*/log/*.log", "topic": "app", "filter": "redact"}'"#)]
pub struct AddArgs {
    /// The entry, as JSON
    #[arg(value_name = "JSON")]
    entry: String,
    /// Which list.
    #[command(flatten)]
    at: At,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  weir list rm /var/log/nginx/access.log

An entry without a name is called by its path. Its offsets are kept for 7 days, so that adding it
again goes on where it was.")]
pub struct RmArgs {
    /// The entry's name, or its place in the list, such as #3
    name: String,
    /// Which list.
    #[command(flatten)]
    at: At,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(common: &Common, command: ListCommand) -> anyhow::Result<ExitCode> {
    let at = match &command {
        ListCommand::Get(args) => &args.at,
        ListCommand::Put(args) | ListCommand::Diff(args) => &args.at,
        ListCommand::Add(args) => &args.at,
        ListCommand::Rm(args) => &args.at,
    };
    let settings = config::load_without_kafka(common, at.host())?;
    let done = runtime()?.block_on(async {
        let mut lists = open(&settings, at).await?;
        match &command {
            ListCommand::Get(_) => get(&mut lists).await,
            ListCommand::Put(args) => put(&mut lists, args).await,
            ListCommand::Diff(args) => Ok(Change::new(&mut lists, read_list(&args.file)?).await?.show()),
            ListCommand::Add(args) => add(&mut lists, args).await,
            ListCommand::Rm(args) => rm(&mut lists, args).await,
        }
    });
    done.map_err(|error| with_endpoints(error, &settings))
}

async fn get(lists: &mut Lists) -> anyhow::Result<ExitCode> {
    let Some(text) = lists.read().await?.text else {
        bail!("{}: there is no list; write one with `weir list put FILE`", lists.origin());
    };
    let text = String::from_utf8_lossy(&text);
    print!("{text}{}", if text.ends_with('\n') { "" } else { "\n" });
    Ok(ExitCode::SUCCESS)
}

async fn put(lists: &mut Lists, args: &PutArgs) -> anyhow::Result<ExitCode> {
    let change = Change::new(lists, read_list(&args.file)?).await?;
    change.write(lists, args.json).await
}

async fn add(lists: &mut Lists, args: &AddArgs) -> anyhow::Result<ExitCode> {
    let origin = lists.origin();
    let added = format!("[{}]", args.entry);
    let added = list::parse(added.as_bytes(), &origin)
        .map_err(|problem| anyhow::anyhow!("the entry is not JSON: {}", problem.cause))?;
    let old = lists.read().await?;
    let mut all = standing(&old, &origin)?;
    all.items.extend(added.items);
    let new = text_of(all.items.iter()).into_bytes();
    Change { old, new, origin }.write(lists, args.json).await
}

async fn rm(lists: &mut Lists, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let origin = lists.origin();
    let old = lists.read().await?;
    let mut all = standing(&old, &origin)?;
    let place = |i: usize| format!("#{}", i + 1);
    let named = all.items.iter().position(|item| item.name() == args.name);
    let found = named.or_else(|| (0..all.items.len()).find(|i| place(*i) == args.name));
    let Some(found) = found else {
        let names: Vec<_> = all.items.iter().map(list::Item::name).collect();
        bail!("{origin} has no entry {:?}; it has: {}", args.name, names.join(", "));
    };
    all.items.remove(found);
    let new = text_of(all.items.iter()).into_bytes();
    Change { old, new, origin }.write(lists, args.json).await
}

/// The list that stands there; an empty one where there is none yet.
fn standing(old: &Version, origin: &Origin) -> anyhow::Result<List> {
    match &old.text {
        None => Ok(List::default()),
        Some(text) => list::parse(text, origin).map_err(|problem| {
            anyhow::anyhow!(
                "the list that stands there cannot be read; replace it with `weir list put`\n{problem}"
            )
        }),
    }
}

fn read_list(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        return std::io::read_to_string(std::io::stdin())
            .map(String::into_bytes)
            .context("cannot read the standard input");
    }
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A list that is to take the place of another.
pub(super) struct Change {
    pub(super) old: Version,
    pub(super) new: Vec<u8>,
    origin: Origin,
}

impl Change {
    pub(super) async fn new(lists: &mut Lists, new: Vec<u8>) -> anyhow::Result<Self> {
        Ok(Self { old: lists.read().await?, new, origin: lists.origin() })
    }

    /// Says what is wrong or odd; whether an agent would run all of it. What was refused before the
    /// change is odd, not wrong: otherwise one bad entry would stop every other change.
    pub(super) fn check(&self) -> bool {
        let list = match list::parse(&self.new, &self.origin) {
            Ok(list) => list,
            Err(problem) => {
                eprintln!("error: {problem}");
                return false;
            }
        };
        let old = self
            .old
            .text
            .as_deref()
            .and_then(|text| list::parse(text, &self.origin).ok())
            .unwrap_or_default();
        let known_bad: HashSet<_> =
            old.items.iter().filter(|item| item.checked.is_err()).map(|item| item.text.as_str()).collect();
        for problem in &list.problems {
            eprintln!("note: {problem}");
        }
        let mut good = true;
        for item in &list.items {
            let Err(refused) = &item.checked else { continue };
            let known = known_bad.contains(item.text.as_str());
            eprintln!("{}: {}", if known { "note" } else { "error" }, refused.problem);
            good &= known;
        }
        good
    }

    /// In the unified form; empty where nothing changes.
    pub(super) fn difference(&self) -> String {
        let old = String::from_utf8_lossy(self.old.text.as_deref().unwrap_or_default());
        let new = String::from_utf8_lossy(&self.new);
        let name = self.origin.to_string();
        TextDiff::from_lines(old.as_ref(), new.as_ref()).unified_diff().header(&name, "new").to_string()
    }

    fn changes(&self) -> bool {
        self.old.text.as_deref() != Some(self.new.as_slice())
    }

    fn show(&self) -> ExitCode {
        let good = self.check();
        print!("{}", self.difference());
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    async fn write(&self, lists: &mut Lists, json: bool) -> anyhow::Result<ExitCode> {
        if !self.check() {
            eprintln!("nothing was written");
            return Ok(ExitCode::FAILURE);
        }
        if !json {
            print!("{}", self.difference());
        }
        let changed = self.changes();
        let revision = if changed { lists.write(&self.old, &self.new).await? } else { self.old.modified };
        let place = self.origin.to_string();
        if json {
            println!("{}", serde_json::json!({ "list": place, "changed": changed, "revision": revision }));
        } else {
            match (changed, &self.origin) {
                (false, _) => println!("{place}: nothing to change"),
                (true, Origin::Key(_)) => println!("{place}: written, revision {revision}"),
                (true, _) => println!("{place}: written"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl At {
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The one key that is meant.
    pub(super) fn key(&self, etcd: &EtcdSettings) -> anyhow::Result<String> {
        match (&self.key, etcd.collect_keys.as_slice()) {
            (Some(key), _) => Ok(key.clone()),
            (None, [key]) => Ok(key.clone()),
            (None, keys) => {
                bail!("the settings name {} keys; say which with --key: {}", keys.len(), keys.join(", "))
            }
        }
    }
}

async fn open(settings: &Settings, at: &At) -> anyhow::Result<Lists> {
    match &settings.list {
        ListSource::Etcd(etcd) => Ok(Lists::in_etcd(etcd, &at.key(etcd)?).await?),
        ListSource::File(path) if at.key.is_none() && at.host.is_none() => Ok(Lists::in_file(path)),
        ListSource::File(path) => {
            bail!(
                "the list of this host is the file {}; --key and --host are for lists in etcd",
                path.display()
            )
        }
        ListSource::Fixed { .. } => bail!(
            "{} names its only entry itself; change it there, or name a `collect_key`",
            settings.file.display()
        ),
    }
}

/// The etcd of the settings.
pub(super) fn etcd_of(settings: &Settings) -> anyhow::Result<&EtcdSettings> {
    match &settings.list {
        ListSource::Etcd(etcd) => Ok(etcd),
        ListSource::File(_) | ListSource::Fixed { .. } => bail!(
            "{} names no etcd, and the module store is there; a list in a file names the module's file",
            settings.file.display()
        ),
    }
}

/// Where etcd was looked for, before what it said or did not.
pub(super) fn with_endpoints(error: anyhow::Error, settings: &Settings) -> anyhow::Error {
    match &settings.list {
        ListSource::Etcd(etcd) if error.is::<ControlError>() => {
            error.context(format!("etcd {}", etcd.endpoints.join(", ")))
        }
        _ => error,
    }
}

/// These commands ask one thing after another.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(old: &str, new: &str) -> Change {
        let old = Version { text: Some(old.into()), modified: 1 };
        Change { old, new: new.into(), origin: Origin::Key("x".into()) }
    }

    #[test]
    fn a_list_with_a_bad_entry_is_not_written() {
        assert!(!change("[]", r#"[{"path": "a"}]"#).check());
        assert!(!change("[]", "[").check());
        assert!(change("[]", r#"[{"path": "/a", "topic": "t", "odd": 1}]"#).check());
    }

    #[test]
    fn an_entry_that_was_bad_before_stops_no_other_change() {
        let bad = r#"{"path": "a"}"#;
        assert!(change(&format!("[{bad}]"), &format!(r#"[{bad}, {{"path": "/a", "topic": "t"}}]"#)).check());
    }

    #[test]
    fn the_difference_is_shown() {
        let difference = change("[\n  1\n]\n", "[\n  2\n]\n").difference();
        assert_eq!(difference, "--- etcd key x\n+++ new\n@@ -1,3 +1,3 @@\n [\n-  1\n+  2\n ]\n");
        assert_eq!(change("[]", "[]").difference(), "");
    }

    #[test]
    fn several_keys_must_be_told_apart() {
        let at = |key: Option<&str>| At { key: key.map(Into::into), host: None };
        let common = super::super::Common {
            config: None,
            kafka_brokers: None,
            etcd_endpoints: Some("x:1".into()),
            state_dir: None,
            log_format: super::super::LogFormat::Text,
        };
        let settings = config::load_without_kafka(&common, Some("web1")).unwrap();
        let mut etcd = etcd_of(&settings).unwrap().clone();
        assert_eq!(at(None).key(&etcd).unwrap(), "/weir/web1/collect");
        etcd.collect_keys.push("/weir/all".into());
        assert!(at(None).key(&etcd).unwrap_err().to_string().ends_with("/weir/web1/collect, /weir/all"));
        assert_eq!(at(Some("/k")).key(&etcd).unwrap(), "/k");
    }
}
