//! `weir status`.

use std::process::ExitCode;

use super::Common;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {}

/// Runs it.
pub fn run(_common: &Common, _args: StatusArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
