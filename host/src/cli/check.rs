//! `weir check`.

use std::process::ExitCode;

use super::Common;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {}

/// Runs it.
pub fn run(_common: &Common, _args: CheckArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
