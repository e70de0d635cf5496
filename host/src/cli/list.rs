//! `weir list`.

use std::process::ExitCode;

use super::Common;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum ListCommand {}

/// Runs it.
pub fn run(_common: &Common, _command: ListCommand) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
