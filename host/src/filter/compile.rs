//! Compiles a module in a child process.

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct CompileArgs {}

/// Runs it.
pub fn run(_args: CompileArgs) -> anyhow::Result<std::process::ExitCode> {
    unimplemented!()
}
