//! `weir run`: the agent.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::Common;
use crate::agent::{self, Finished, Mode};
use crate::config::Settings;
use crate::confine::{Bounds, Confined, confine};
use crate::{config, telemetry};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A stop (SIGTERM, SIGINT) delivers what was read, writes the offsets down and leaves within agent.drain.
SIGHUP has a list in a file, and the modules it names, read again; a list in etcd is followed anyway. Settings
are read at the start only.
Exit code 0: the next start repeats nothing. 1: standard error says how many lines it may repeat.

Examples:
  weir run                               with ./weir.toml, else /etc/weir/weir.toml
  weir run --config config.ini           with the older agent's settings
  weir run --stdout --once               print what would be sent, to the end of the files")]
pub struct RunArgs {
    /// Let lists reach files below this directory too; may be given more than once. WEIR_ALLOW adds
    /// further ones, with a colon between them
    #[arg(long, value_name = "DIR")]
    allow: Vec<PathBuf>,
    /// Print lines instead of producing them; the state is neither opened nor changed
    #[arg(long)]
    stdout: bool,
    /// Stop at the end of the files, when all lines are acknowledged
    #[arg(long)]
    once: bool,
}

/// Runs it.
pub fn run(common: &Common, args: RunArgs) -> anyhow::Result<ExitCode> {
    telemetry::init(common.log_format);
    raise_descriptor_limit();
    let settings = config::load(common, &args.allow)?;
    let mode = Mode { stdout: args.stdout, once: args.once };
    hold(&settings, mode);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weir")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let finished = runtime.block_on(async {
        let stop = stop_signal()?;
        anyhow::Ok(agent::run(settings, mode, stop).await?)
    })?;
    Ok(report(finished, mode))
}

/// Confines the agent, before there is a second thread.
fn hold(settings: &Settings, mode: Mode) {
    if !settings.policy.rules().confine {
        return;
    }
    let scratch = mode.stdout.then(std::env::temp_dir);
    match confine(&Bounds::of(settings, scratch.as_deref())) {
        Confined::Fully => tracing::info!("confined by the kernel to the roots of its policy and its state"),
        Confined::Partly => {
            tracing::info!(
                "confined by the kernel to the roots of its policy and its state, as far as it can"
            );
        }
        Confined::Not(why) => {
            tracing::warn!(why, "the kernel does not confine the agent; its policy holds all the same");
        }
    }
}

fn report(finished: Finished, mode: Mode) -> ExitCode {
    let Finished { unfinished, saved } = finished;
    if unfinished == 0 && (saved || mode.stdout) {
        tracing::info!("stopped; the next start repeats nothing");
        return ExitCode::SUCCESS;
    }
    if unfinished > 0 {
        eprintln!(
            "weir: stopped before all was acknowledged; the next start may repeat up to {unfinished} lines"
        );
    }
    if !saved && !mode.stdout {
        eprintln!(
            "weir: the last offsets could not be written; the next start repeats lines since the last that were"
        );
    }
    ExitCode::FAILURE
}

/// Done at the first SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // Without a receiver it would end the agent. The list's own is in `control`.
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                Some(()) = hangup.recv() => tracing::info!("SIGHUP: reads again what is local; settings need a restart"),
            }
        }
    })
}

/// As many descriptors as the host allows: files that are being read hold one each.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
