//! `weir module push`: a module into the store, and a tag at it.
//!
//! In: a file, perhaps a tag, a list, a config, lines. Out: the store changed; or nothing changed,
//! and why: all that can be refused is looked at before anything is written.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::canary::{self, Trial};
use super::sample::{config, context};
use super::say_moved;
use crate::cli::list::{At, Change};
use crate::cli::signing::{Signing, signature_beside};
use crate::config::EtcdSettings;
use crate::control::list::{self, Item, Origin};
use crate::control::lists::Lists;
use crate::control::modules::{ListWrite, Store};

/// Arguments of `push`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir module push redact.wasm --tag redact
  weir module push redact.wasm --with-config '{\"fields\": [\"password\"]}' --sample app.log --tag redact
  weir module push redact.wasm --tag redact --with-list collect.json

First the module is tried here, in the engine of the agent: it must start with the config of
--with-config, and with that of every entry that names the tag, in the lists of all hosts or in that of
--with-list; and it must not fail on any line of --sample. If it does, nothing is written. A module
and a config that fit only each other go together, by --with-list: the list and the tag change in one
transaction.

Agents whose list names the tag fetch the module, try it, and swap between two chunks of lines; one
that fails there leaves the old one running. A signature that stands beside the module (redact.wasm.minisig,
see weir module sign) is stored with it. The digest is printed last.")]
pub struct PushArgs {
    /// The module
    wasm: PathBuf,
    /// The name to point at it
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Try it with this, as the collect list would have it under `config`
    #[arg(long, value_name = "JSON")]
    with_config: Option<String>,
    /// Try it on the lines of this file
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// Do not try it with the configs of entries that name the tag
    #[arg(long)]
    untried: bool,
    /// A collect list to write together with the tag
    #[arg(long, value_name = "FILE", requires = "tag")]
    with_list: Option<PathBuf>,
    /// Which list `--with-list` writes.
    #[command(flatten)]
    pub(super) at: At,
    /// How that list is signed.
    #[command(flatten)]
    signing: Signing,
}

/// Runs it.
pub(super) async fn run(etcd: &EtcdSettings, args: &PushArgs) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(&args.wasm).with_context(|| format!("cannot read {}", args.wasm.display()))?;
    // What no agent could run does not get into the store.
    crate::filter::inspect::inspect(&bytes)
        .with_context(|| format!("{} cannot be a filter", args.wasm.display()))?;
    let mut store = Store::connect(etcd).await?;
    let change = match &args.with_list {
        Some(file) => {
            let key = args.at.key(etcd)?;
            let mut lists = Lists::in_etcd(etcd, &key).await?;
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let change = Change::new(&mut lists, text).await?.signed(&args.signing)?;
            if !change.check() {
                return Ok(ExitCode::FAILURE);
            }
            Some((key, change))
        }
        None => None,
    };
    let trials = trials(&mut store, etcd, args, change.as_ref()).await?;
    canary::run(&args.wasm, &bytes, trials, args.sample.as_deref()).context("nothing was pushed")?;

    let signature = signature_beside(&args.wasm)?;
    let bar = progress(bytes.len());
    let digest = store.push(&bytes, |sent| bar.inc(sent as u64)).await?;
    bar.finish_and_clear();
    // Before the tag: agents look for it as soon as that moves.
    if let Some(signature) = signature {
        store.push_signature(&digest, &signature).await?;
    }
    if let Some(name) = &args.tag {
        let list = change.map(|(key, change)| {
            print!("{}", change.difference());
            ListWrite { key, modified: change.old.modified, text: change.new }
        });
        let moved = store.tag(name, &digest, &from(&args.wasm), list).await?;
        say_moved(name, &digest, &moved);
    }
    println!("{digest}");
    Ok(ExitCode::SUCCESS)
}

/// What the module is to be tried with.
async fn trials(
    store: &mut Store,
    etcd: &EtcdSettings,
    args: &PushArgs,
    change: Option<&(String, Change)>,
) -> anyhow::Result<Vec<Trial>> {
    let mut trials = Vec::new();
    if args.with_config.is_some() {
        let context = context(config(args.with_config.as_deref())?)?;
        trials.push(Trial { whose: "--with-config".into(), context });
    }
    let Some(tag) = args.tag.as_ref().filter(|_| !args.untried) else { return Ok(trials) };
    if let Some((key, change)) = change {
        let origin = Origin::Key(key.clone());
        let items = list::parse(&change.new, &origin).map(|list| list.items).unwrap_or_default();
        trials.extend(trials_of("the new list", &items, tag));
    }
    let lists = match store.lists(etcd, &[]).await {
        Ok(lists) => lists,
        // Who may write modules may not read the lists.
        Err(error) => {
            eprintln!("note: tried with no config of the lists: {}", error.chain());
            return Ok(trials);
        }
    };
    let replaced = change.map(|(key, _)| key);
    for list in lists.iter().filter(|list| Some(&list.key) != replaced) {
        // What is no list names nothing.
        let items = list.items.as_deref().unwrap_or_default();
        trials.extend(trials_of(&format!("the list {}", list.key), items, tag));
    }
    Ok(trials)
}

fn trials_of(list: &str, items: &[Item], tag: &str) -> Vec<Trial> {
    let entries = items.iter().filter_map(|item| item.checked.as_ref().ok());
    entries.filter_map(|entry| Trial::of(entry, tag, list)).collect()
}

fn from(wasm: &Path) -> String {
    wasm.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn progress(bytes: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {msg}");
    ProgressBar::new(bytes as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
