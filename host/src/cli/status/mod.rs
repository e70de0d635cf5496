//! `weir status`: is everything delivered?
//!
//! In: the status of this host's agent, asked for on its socket. Out: one screen, for which it looks twice to
//! tell rates, or JSON of one look.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::rates::rates;
use super::{Common, visible};
use crate::{admin, config};

pub(super) mod text;

/// Where a systemd unit with `RuntimeDirectory=weir` has its socket.
const SOCKET: &str = "/run/weir/weir.sock";

/// What to look at when no agent answers; the error behind it says where it was looked for.
pub(super) const NO_ANSWER: &str =
    "no answer (is `weir run` running, with the same --config, and is this user root or its own?)";

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It looks twice, a second apart, for rates and the time left. `for` is the age of the oldest line that was read
and is not finished, or since when unread bytes wait; `aside` is lines in quarantine since the agent started.
docs/operating.md has the states and the JSON.")]
pub struct StatusArgs {
    /// Print one look for programs
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
pub fn run(common: &Common, args: StatusArgs) -> anyhow::Result<ExitCode> {
    let socket = socket(common)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let look = || runtime.block_on(admin::fetch_status(&socket)).context(NO_ANSWER);
    let (before, begun) = (look()?, Instant::now());
    let shown = if args.json {
        serde_json::to_string_pretty(&before)? + "\n"
    } else {
        std::thread::sleep(LOOK_AGAIN);
        let status = look()?;
        let rates = rates(&before, &status, begun.elapsed().as_secs_f64());
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        text::render(&status, &rates, now, visible::colours())
    };
    match io::stdout().lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing the status"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Where the agent listens: as the settings say, or where a unit of systemd has it, whose
/// `$RUNTIME_DIRECTORY` a user's shell does not know.
pub(super) fn socket(common: &Common) -> anyhow::Result<PathBuf> {
    let settings = config::load_without_kafka(common, None)?;
    let unit = PathBuf::from(SOCKET);
    Ok(if !settings.admin.socket.exists() && unit.exists() { unit } else { settings.admin.socket })
}
