//! `weir module rollback`: a tag back to where it was.

use std::process::ExitCode;

use super::say_moved;
use crate::config::EtcdSettings;
use crate::control::modules::Store;

/// Arguments of `rollback`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module rollback redact

Agents whose list names the tag swap at once, as after a push. A second rollback undoes the first.
A tag remembers its last ten modules: `weir module ls --json` shows them, and `weir module tag`
goes back further.")]
pub struct RollbackArgs {
    /// The tag
    #[arg(value_name = "TAG")]
    name: String,
}

/// Runs it.
pub(super) async fn run(etcd: &EtcdSettings, args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let (digest, moved) = Store::connect(etcd).await?.rollback(&args.name).await?;
    say_moved(&args.name, &digest, &moved);
    Ok(ExitCode::SUCCESS)
}
