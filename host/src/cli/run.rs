//! `weir run`.

use std::process::ExitCode;

use super::Common;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct RunArgs {}

/// Runs it.
pub fn run(_common: &Common, _args: RunArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
