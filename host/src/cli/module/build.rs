//! `weir module build`.

use std::process::ExitCode;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {}

/// Runs it.
pub fn run(_args: BuildArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
