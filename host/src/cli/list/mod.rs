//! `weir list`: the collect list, read and changed by people.
//!
//! In: a list or an entry. Out: the list in etcd or in a file, changed by compare-and-swap, with the
//! difference and what will happen shown. A list that an agent would refuse in part is not written.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::Common;
use super::signing::Signing;
use crate::config::{self, EtcdSettings, ListSource, Settings};
use crate::control::ControlError;
use crate::control::list::{self, List, Origin};
use crate::control::lists::{Lists, Version, text_of};

mod change;
mod edit;
mod past;

pub(super) use change::Change;

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
    /// Open the list in $VISUAL or $EDITOR; check, show and write what comes of it
    Edit(EditArgs),
    /// Who changed the list, when, and what that did, as far back as etcd remembers
    History(HistoryArgs),
    /// Print each change of the list as it is written
    Watch(WatchArgs),
    /// Sign the list in a file, in its place
    Sign(SignArgs),
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
#[command(after_help = "\
Example, to go back to what stood there before:
  weir list history
  weir list get --revision 4711 | weir list put -")]
pub struct GetArgs {
    /// As it stood at this revision of etcd, as `history` shows them
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    revision: i64,
    /// Which list.
    #[command(flatten)]
    at: At,
}

/// Which list is written, and how.
#[derive(Debug, Args)]
struct To {
    /// Which list.
    #[command(flatten)]
    at: At,
    /// How it is signed.
    #[command(flatten)]
    signing: Signing,
    /// Say what was done, or what would happen, as JSON
    #[arg(long)]
    json: bool,
}

impl To {
    /// Signs the change and writes it.
    async fn write(&self, change: Change, lists: &mut Lists) -> anyhow::Result<ExitCode> {
        change.signed(&self.signing)?.write(lists, self.json).await
    }
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
    /// Where it is written.
    #[command(flatten)]
    to: To,
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
    /// Where it is written.
    #[command(flatten)]
    to: To,
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
    /// Where it is written.
    #[command(flatten)]
    to: To,
}

/// Arguments of `edit`.
#[derive(Debug, Args)]
#[command(after_help = "\
The draft is called weir-collect-….json, so that an editor can be told once that files of that name have the
schema conf/collect.schema.json, and completes and checks them (docs/operating.md says how). What comes of it
is checked; the difference is shown, and which entries start, stop, swap their filter or are refused; then it
is written, unless somebody else changed the list meanwhile. A draft that was not written is kept.

Where nobody sits at the terminal nothing is asked: what is valid is written, and what is not ends with exit
code 1.")]
pub struct EditArgs {
    /// Which list.
    #[command(flatten)]
    at: At,
    /// How it is signed.
    #[command(flatten)]
    signing: Signing,
    /// Write what is valid without asking
    #[arg(long, short)]
    yes: bool,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
#[command(after_help = "\
etcd keeps what stood there until it is compacted (automatically, where it is set so), and keeps neither who
wrote it nor when: weir writes that beside the list, under KEY.by. Of changes by other programs it is unknown.")]
pub struct HistoryArgs {
    /// Which list.
    #[command(flatten)]
    at: At,
    /// Show the difference of each change, and each entry that it touched
    #[arg(long, short)]
    patch: bool,
    /// At most so many changes, the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    most: usize,
    /// Print it for programs
    #[arg(long, conflicts_with = "patch")]
    json: bool,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Which list.
    #[command(flatten)]
    at: At,
    /// End after so many changes
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Print an object a line, for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of `sign`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  minisign -G -p weir.pub -s weir.key          once; the second line of weir.pub goes into [policy] keys
  weir list sign collect.json --sign-key weir.key --host web1
  weir list put collect.json --host web1

The list in the file becomes a signed one, for the key in etcd that --key, --host or the settings name; where the
settings name a list in a file, for any file. Edit it as before, and sign it again: its number grows.
`weir list put --sign-key` does both at once.")]
pub struct SignArgs {
    /// The list
    file: PathBuf,
    /// Which list it is.
    #[command(flatten)]
    at: At,
    /// How it is signed.
    #[command(flatten)]
    signing: Signing,
}

/// Runs it.
pub fn run(common: &Common, command: ListCommand) -> anyhow::Result<ExitCode> {
    let at = match &command {
        ListCommand::Get(args) => &args.at,
        ListCommand::Put(args) | ListCommand::Diff(args) => &args.to.at,
        ListCommand::Add(args) => &args.to.at,
        ListCommand::Rm(args) => &args.to.at,
        ListCommand::Edit(args) => &args.at,
        ListCommand::History(args) => &args.at,
        ListCommand::Watch(args) => &args.at,
        ListCommand::Sign(args) => &args.at,
    };
    let settings = config::load_without_kafka(common, at.host())?;
    let done = runtime()?.block_on(async {
        let mut lists = open(&settings, at).await?;
        match &command {
            ListCommand::Get(args) => get(&mut lists, args).await,
            ListCommand::Put(args) => put(&mut lists, args).await,
            ListCommand::Diff(args) => diff(&mut lists, args).await,
            ListCommand::Add(args) => add(&mut lists, args).await,
            ListCommand::Rm(args) => rm(&mut lists, args).await,
            ListCommand::Edit(args) => edit::edit(&mut lists, args).await,
            ListCommand::History(args) => past::history(&mut lists, args).await,
            ListCommand::Watch(args) => past::watch(lists, args).await,
            ListCommand::Sign(args) => sign(&lists.origin(), args).await,
        }
    });
    done.map_err(|error| with_endpoints(error, &settings))
}

async fn get(lists: &mut Lists, args: &GetArgs) -> anyhow::Result<ExitCode> {
    let Some(text) = lists.read_at(args.revision).await?.text else {
        bail!("{}: there is no list; write one with `weir list put FILE`", lists.origin());
    };
    let text = String::from_utf8_lossy(&text);
    print!("{text}{}", if text.ends_with('\n') { "" } else { "\n" });
    Ok(ExitCode::SUCCESS)
}

async fn put(lists: &mut Lists, args: &PutArgs) -> anyhow::Result<ExitCode> {
    let change = Change::new(lists, read_list(&args.file)?).await?;
    args.to.write(change, lists).await
}

async fn diff(lists: &mut Lists, args: &PutArgs) -> anyhow::Result<ExitCode> {
    let change = Change::new(lists, read_list(&args.file)?).await?;
    let good = change.check();
    if args.to.json {
        println!("{}", serde_json::to_string_pretty(&change.effects())?);
    } else {
        change.show();
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    args.to.write(Change { old, new, origin }, lists).await
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
    args.to.write(Change { old, new, origin }, lists).await
}

/// Signs the list in a file for `origin`.
async fn sign(origin: &Origin, args: &SignArgs) -> anyhow::Result<ExitCode> {
    if !args.signing.has_key() {
        bail!("name the key with --sign-key; `minisign -G` makes one");
    }
    let mut file = Lists::in_file(&args.file);
    let old = file.read().await?;
    let new = old.text.clone().with_context(|| format!("{} is not there", args.file.display()))?;
    let change = Change { old, new, origin: origin.clone() }.signed(&args.signing)?;
    if !change.check() {
        eprintln!("nothing was signed");
        return Ok(ExitCode::FAILURE);
    }
    file.write(&change.old, &change.new).await?;
    println!("{}: signed for {origin}", args.file.display());
    Ok(ExitCode::SUCCESS)
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
