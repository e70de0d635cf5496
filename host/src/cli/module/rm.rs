//! `weir module rm`: a tag or a module out of the store, where nobody uses it.

use std::process::ExitCode;

use super::module_ref;
use crate::config::EtcdSettings;
use crate::control::ControlError;
use crate::control::modules::Store;
use crate::model::ModuleRef;

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir module rm redact            the tag; its module stays until `weir module gc`
  weir module rm sha256:0d8e…      the module

A tag that a list names is refused, and so is a module that a tag points at, a list names or an agent
runs; who that is, is said. A module that a tag only pointed at before goes, and the tag can no longer
be rolled back to it. The lists that are looked at are those of all hosts: of every key that the
settings' collect_key may stand for, and those of --key.")]
pub struct RmArgs {
    /// A tag, or `sha256:` and 64 hex digits
    #[arg(value_name = "REF")]
    what: String,
    /// A list in etcd that other settings follow; may be given more than once
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
}

/// Runs it.
pub(super) async fn run(etcd: &EtcdSettings, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::connect(etcd).await?;
    let uses = store.uses(etcd, &args.key, 0).await?;
    match module_ref(&args.what)? {
        ModuleRef::Digest(digest) => store.remove_blob(&digest, &uses).await?,
        ModuleRef::Tag(name) => {
            let pointed = store.remove_tag(&name, &uses).await?;
            println!("{name} is removed; it pointed at {pointed}");
            return Ok(ExitCode::SUCCESS);
        }
        ModuleRef::File(_) => Err(ControlError::BadName("a file is not in the store".into()))?,
    }
    println!("{} is removed", args.what);
    Ok(ExitCode::SUCCESS)
}
