//! `weir top`: the status, live, in the terminal.
//!
//! In: the status of this host's agent, asked for on its socket again and again; keys. Out: a screen, which is
//! given back as it was. Absent by design: changing anything.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::runtime::Runtime;

use self::keys::Terminal;
use self::state::{Action, Top};
use super::Common;
use super::list::runtime;
use super::status::{NO_ANSWER, socket};
use super::visible::colours;
use crate::admin::fetch_status;
use crate::admin::files::fetch_files;

mod draw;
mod keys;
mod state;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: ↑ ↓ PgUp PgDn Home End choose an entry, Enter shows its files and what is wrong with it, Esc goes back,
< > choose the column to sort by, r turns the order, p pauses, q ends.

Rates and the time left come from the last 10 s.")]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, short = 'd', value_name = "SECONDS", default_value_t = 1.0, value_parser = delay)]
    delay: f64,
}

fn delay(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds")?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("write 0.1 to 60".into()) }
}

/// Runs it.
pub fn run(common: &Common, args: TopArgs) -> anyhow::Result<ExitCode> {
    let socket = socket(common)?;
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("`weir top` needs a terminal; `weir status` prints one look, and `--json` is for programs");
    }
    let runtime = runtime()?;
    let mut top = Top::default();
    // What is wrong from the beginning is said on an ordinary screen.
    top.look(runtime.block_on(fetch_status(&socket)).context(NO_ANSWER)?, Instant::now());
    let terminal = Terminal::take().context("take the terminal")?;
    show(&terminal, &mut top, &runtime, &socket, Duration::from_secs_f64(args.delay))?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    terminal: &Terminal,
    top: &mut Top,
    runtime: &Runtime,
    socket: &Path,
    delay: Duration,
) -> anyhow::Result<()> {
    let (keys, colours) = (keys::keys(), colours());
    let mut due = Instant::now() + delay;
    loop {
        let (columns, rows) = terminal.size();
        terminal.show(&draw::draw(top, columns, rows, colours)).context("draw the screen")?;
        match keys.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(key) => match top.key(key) {
                Action::End => return Ok(()),
                Action::Look => due = Instant::now(),
                Action::Nothing => {}
            },
            // The terminal is gone.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                due = Instant::now() + delay;
                look(top, runtime, socket);
            }
        }
    }
}

fn look(top: &mut Top, runtime: &Runtime, socket: &Path) {
    if !top.paused {
        match runtime.block_on(fetch_status(socket)) {
            Ok(status) => top.look(status, Instant::now()),
            Err(error) => top.trouble = Some(error.to_string()),
        }
    }
    if let Some(entry) = top.opened().map(String::from) {
        // One that has just gone from the list has none.
        top.files = runtime.block_on(fetch_files(socket, &entry)).ok();
    }
}
