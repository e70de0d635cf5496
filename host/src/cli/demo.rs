//! `weir demo`.

use std::process::ExitCode;

use super::Common;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}

/// Runs it.
pub fn run(_common: &Common, _args: DemoArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
