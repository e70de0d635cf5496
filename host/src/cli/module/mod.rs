//! `weir module`: filters, from source to fleet.
//!
//! In: names. Out: the module store in etcd changed or shown. Absent by design: what has a file of its
//! own (building, inspecting, trying, pushing, removing), and what a module may do (the filter room says it).

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::Common;
use super::list::{etcd_of, runtime, with_endpoints};
use super::signing::{SignArgs, sign_module};
use crate::config::{self, EtcdSettings};
use crate::control::modules::{Contents, Moved, Store};
use crate::model::{Digest, ModuleRef};

pub mod bench;
pub mod build;
mod canary;
mod cases;
mod foreign;
pub mod gc;
pub mod inspect;
pub mod new;
pub mod pull;
pub mod push;
pub mod rm;
pub mod rollback;
mod sample;
pub mod stats;
pub mod test;
mod wasi;
pub mod watch;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ModuleCommand {
    /// Make a crate that is a filter already
    New(new::NewArgs),
    /// Build a filter from its source, or make one of another tool's module
    Build(build::BuildArgs),
    /// Build a filter and run its sample each time a file is saved
    Watch(watch::WatchArgs),
    /// Say what a module is, and whether an agent would take it
    Inspect(inspect::InspectArgs),
    /// Pass the lines of files through a module, and show before and after
    Test(test::TestArgs),
    /// Measure what a module costs, on lines of yours
    Bench(bench::BenchArgs),
    /// Store a module in etcd, and point a tag at it
    Push(push::PushArgs),
    /// Point a tag at a module that is stored; agents that use the tag swap at once
    Tag(TagArgs),
    /// Point a tag back at the module it pointed at before
    Rollback(rollback::RollbackArgs),
    /// Write a module that is stored to a file
    Pull(pull::PullArgs),
    /// Sign a module, for hosts whose policy has keys
    Sign(SignArgs),
    /// List tags and modules
    Ls(LsArgs),
    /// Remove a tag or a module that nobody uses
    Rm(rm::RmArgs),
    /// Remove all modules that nobody uses
    Gc(gc::GcArgs),
    /// Show what the filter of an entry does on this host: lines, time, memory, failures
    Stats(stats::StatsArgs),
}

/// Arguments of `tag`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, back to an earlier module:
  weir module tag redact sha256:0d8e…")]
pub struct TagArgs {
    /// The tag
    name: String,
    /// Another tag, or `sha256:` and 64 hex digits
    #[arg(value_name = "REF")]
    to: String,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(common: &Common, command: ModuleCommand) -> anyhow::Result<ExitCode> {
    match command {
        ModuleCommand::New(args) => new::run(&args),
        ModuleCommand::Build(args) => build::run(args),
        ModuleCommand::Watch(args) => watch::run(common, &args),
        ModuleCommand::Inspect(args) => inspect::run(&args),
        ModuleCommand::Test(args) => test::run(common, &args),
        ModuleCommand::Bench(args) => bench::run(common, &args),
        ModuleCommand::Push(args) => {
            with_etcd(common, args.at.host(), async |etcd| push::run(etcd, &args).await)
        }
        ModuleCommand::Tag(args) => with_etcd(common, None, async |etcd| tag(etcd, &args).await),
        ModuleCommand::Rollback(args) => {
            with_etcd(common, None, async |etcd| rollback::run(etcd, &args).await)
        }
        ModuleCommand::Sign(args) => sign_module(&args),
        ModuleCommand::Pull(args) => with_etcd(common, None, async |etcd| pull::run(etcd, &args).await),
        ModuleCommand::Ls(args) => with_etcd(common, None, async |etcd| ls(etcd, &args).await),
        ModuleCommand::Rm(args) => with_etcd(common, None, async |etcd| rm::run(etcd, &args).await),
        ModuleCommand::Gc(args) => with_etcd(common, None, async |etcd| gc::run(etcd, &args).await),
        ModuleCommand::Stats(args) => stats::run(common, &args),
    }
}

fn with_etcd(
    common: &Common,
    host: Option<&str>,
    work: impl AsyncFnOnce(&EtcdSettings) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let settings = config::load_without_kafka(common, host)?;
    let done = runtime()?.block_on(work(etcd_of(&settings)?));
    done.map_err(|error| with_endpoints(error, &settings))
}

async fn tag(etcd: &EtcdSettings, args: &TagArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::connect(etcd).await?;
    let digest = store.resolve(&module_ref(&args.to)?).await?;
    let moved = store.tag(&args.name, &digest, &args.to, None).await?;
    say_moved(&args.name, &digest, &moved);
    Ok(ExitCode::SUCCESS)
}

/// A tag, or `sha256:` and 64 hex digits.
fn module_ref(text: &str) -> anyhow::Result<ModuleRef> {
    match text.parse::<Digest>() {
        Ok(digest) => Ok(ModuleRef::Digest(digest)),
        Err(cause) if text.starts_with("sha256:") => bail!("{text}: {cause}"),
        Err(_) => Ok(ModuleRef::Tag(text.to_owned())),
    }
}

async fn ls(etcd: &EtcdSettings, args: &LsArgs) -> anyhow::Result<ExitCode> {
    let contents = Store::connect(etcd).await?.contents().await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&contents)?);
    } else {
        print!("{}", table(&contents));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(contents: &Contents) -> String {
    let short = |digest: &str| digest.parse::<Digest>().map_or_else(|_| digest.to_string(), |d| d.short());
    let mut text = String::new();
    if contents.tags.is_empty() && contents.blobs.is_empty() {
        return "The store is empty; weir module push WASM --tag NAME fills it.\n".into();
    }
    let width = contents.tags.iter().map(|tag| tag.name.len()).max().unwrap_or(0).max(3);
    text.push_str(&format!("{:width$}  {:12}  {:20}  {:20}  FROM\n", "TAG", "MODULE", "WHEN", "WHO"));
    for tag in &contents.tags {
        let now = &tag.now;
        let module = short(&now.digest);
        text.push_str(&format!(
            "{:width$}  {module:12}  {:20}  {:20}  {}\n",
            tag.name, now.when, now.who, now.from
        ));
    }
    text.push_str(&format!("\n{:71}  {:>10}  {:20}  TAGS\n", "MODULE", "SIZE", "PUSHED"));
    for blob in &contents.blobs {
        let tags = contents.tags.iter().filter(|tag| tag.now.digest == blob.digest);
        let tags: Vec<_> = tags.map(|tag| tag.name.as_str()).collect();
        let size = HumanBytes(blob.bytes as u64).to_string();
        text.push_str(&format!("{:71}  {size:>10}  {:20}  {}\n", blob.digest, blob.when, tags.join(" ")));
    }
    text
}

fn say_moved(name: &str, digest: &Digest, moved: &Moved) {
    let revision = moved.revision;
    match moved.before {
        Some(before) if before == *digest => {
            println!("{name} stays at {} (revision {revision})", digest.short())
        }
        Some(before) => println!("{name}: {} → {} (revision {revision})", before.short(), digest.short()),
        None => println!("{name}: {} (revision {revision})", digest.short()),
    }
}
