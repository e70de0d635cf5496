//! `weir module pull`: a module out of the store, into a file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{build, module_ref};
use crate::config::EtcdSettings;
use crate::control::modules::Store;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, what would the module that runs now do to these lines:
  weir module pull redact redact.wasm
  weir module test redact.wasm app.log

What comes is checked against its digest, which is printed last.")]
pub struct PullArgs {
    /// A tag, or `sha256:` and 64 hex digits
    #[arg(value_name = "REF")]
    from: String,
    /// Where it goes
    file: PathBuf,
}

/// Runs it.
pub(super) async fn run(etcd: &EtcdSettings, args: &PullArgs) -> anyhow::Result<ExitCode> {
    let module = module_ref(&args.from)?;
    let mut store = Store::connect(etcd).await?;
    let digest = store.resolve(&module).await?;
    let bytes = store.fetch(&digest).await?;
    build::write(&args.file, &bytes).with_context(|| format!("write {}", args.file.display()))?;
    println!("{digest}");
    Ok(ExitCode::SUCCESS)
}
