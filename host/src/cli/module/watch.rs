//! `weir module watch`: a filter built and tried on its sample, each time a file is saved.
//!
//! In: a crate, its sample. Out: what `weir module test` shows, again and again, or why it does not
//! build; until somebody ends it. What cargo writes is no reason to build again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::HumanBytes;
use notify::{Event, EventKind, RecursiveMode, Watcher as _};

use super::sample::Tried;
use super::{build, test};
use crate::cli::{Common, visible};
use crate::filter::Compiler;
use crate::telemetry;

/// An editor writes more than once.
const SETTLE: Duration = Duration::from_millis(50);
/// Cargo writes them while it builds.
const OF_CARGO: [&str; 2] = ["target", "Cargo.lock"];

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, in one terminal the filter, in another the editor:
  weir module new quiet
  weir module watch quiet

Each time a file of the crate or the sample is saved, the module is built, and the sample passes
through it as in `weir module test`. Where there is DIR/sample.expected, it says whether the output is
still that. An agent whose local list names the module's file, which is said first, swaps it too.")]
pub struct WatchArgs {
    /// The filter's crate
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Lines to try it on [default: DIR/sample.log]
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// What the collect list would have under `config`
    #[arg(long, value_name = "JSON")]
    with_config: Option<String>,
}

/// Runs until it is ended.
pub fn run(common: &Common, args: &WatchArgs) -> anyhow::Result<ExitCode> {
    telemetry::init_for_modules(common.log_format);
    ensure!(args.dir.join("Cargo.toml").is_file(), "{} has no Cargo.toml", args.dir.display());
    let sample = args.sample.clone().unwrap_or_else(|| args.dir.join("sample.log"));
    let (events, saved) = channel();
    let mut watcher = notify::recommended_watcher(events).context("watch files")?;
    let mut watch =
        |path: &Path, mode| watcher.watch(path, mode).with_context(|| format!("watch {}", path.display()));
    watch(&args.dir, RecursiveMode::Recursive)?;
    if let Some(elsewhere) = args.sample.as_deref().and_then(Path::parent) {
        let elsewhere = if elsewhere == Path::new("") { Path::new(".") } else { elsewhere };
        if !elsewhere.starts_with(&args.dir) {
            watch(elsewhere, RecursiveMode::NonRecursive)?;
        }
    }
    loop {
        round(args, &sample);
        wait_for_a_save(&args.dir, &saved)?;
    }
}

/// One build and what comes of it. What is wrong is said, and waits for the next save.
fn round(args: &WatchArgs, sample: &Path) {
    let begun = Instant::now();
    let text = match build::built(&args.dir, None) {
        Ok(built) => {
            let head = format!(
                "== {}, {}, built in {:.1} s\n",
                built.path.display(),
                HumanBytes(built.size),
                begun.elapsed().as_secs_f64()
            );
            match tried(args, built.path, sample) {
                Ok(shown) => head + &shown,
                Err(error) => format!("{head}error: {error:#}\n"),
            }
        }
        Err(error) => format!("error: {error:#}\n"),
    };
    // A reader that is gone ends it at the next save.
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

fn tried(args: &WatchArgs, wasm: PathBuf, sample: &Path) -> anyhow::Result<String> {
    let tried = Tried { wasm, with_config: args.with_config.clone() };
    let filter = || tried.filter(Compiler::this_program());
    let mut text = test::shown(filter()?, sample, visible::colours())?;
    let expected = args.dir.join("sample.expected");
    if let Ok(expectation) = std::fs::read_to_string(&expected) {
        let same = test::shown(filter()?, sample, false)? == expectation;
        text.push_str(&format!("{} {}\n", if same { "as in" } else { "not as in" }, expected.display()));
    }
    Ok(text)
}

fn wait_for_a_save(dir: &Path, saved: &Receiver<notify::Result<Event>>) -> anyhow::Result<()> {
    while !matters(dir, &saved.recv().context("the watch ended")?) {}
    while saved.recv_timeout(SETTLE).is_ok() {}
    Ok(())
}

/// Whether an event may change what comes of a build.
fn matters(dir: &Path, event: &notify::Result<Event>) -> bool {
    // Events that were lost may have mattered.
    let Ok(event) = event else { return true };
    let of_cargo = |path: &PathBuf| {
        let below = path
            .strip_prefix(dir.canonicalize().as_deref().unwrap_or(dir))
            .or_else(|_| path.strip_prefix(dir));
        let first = below.ok().and_then(|below| below.iter().next()).unwrap_or_default();
        OF_CARGO.iter().any(|name| first == *name) || first.to_string_lossy().starts_with('.')
    };
    !matches!(event.kind, EventKind::Access(_)) && (event.need_rescan() || !event.paths.iter().all(of_cargo))
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{AccessKind, CreateKind, ModifyKind};

    #[test]
    fn what_cargo_or_the_editor_leaves_is_no_save() {
        let matters = |kind, path: &str| {
            matters(
                Path::new("/x/quiet"),
                &Ok(Event { kind, paths: vec![path.into()], attrs: Default::default() }),
            )
        };
        let modified = EventKind::Modify(ModifyKind::Any);
        assert!(matters(modified, "/x/quiet/src/lib.rs") && matters(modified, "/x/quiet/sample.log"));
        assert!(matters(EventKind::Create(CreateKind::File), "/x/other.log"));
        for path in ["/x/quiet/target/weir/quiet.wasm", "/x/quiet/Cargo.lock", "/x/quiet/.git/index"] {
            assert!(!matters(modified, path), "{path}");
        }
        assert!(!matters(EventKind::Access(AccessKind::Any), "/x/quiet/src/lib.rs"));
    }
}
