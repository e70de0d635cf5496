//! `weir module`.

use std::process::ExitCode;

use super::Common;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum ModuleCommand {}

/// Runs it.
pub fn run(_common: &Common, _command: ModuleCommand) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
