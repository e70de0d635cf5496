//! `weir demo`: the whole story in one process.
//!
//! In: how long. Out: a log that is written, lines on a topic of an in-process broker, a filter
//! that is swapped meanwhile, a rotation, and the sums: three counts that know nothing of one
//! another, by the service that writes, the agent, and a consumer. Absent by design: the network.
//! The agent is the one of `weir run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::HumanCount;
use serde_json::json;

use self::line::Version;
use self::log::{LINES_PER_SECOND, Log};
use self::rig::Rig;
use self::screen::{Picture, Screen};
use self::sums::Sums;
use self::witness::Witness;
use super::Common;
use crate::model::Topic;
use crate::sink::consume::{Broker, Consumer};

mod line;
mod log;
mod rig;
mod screen;
mod sums;
mod witness;

/// The topic of the demo.
const TOPIC: &str = "app";
/// Between two looks at everything.
const FRAME: Duration = Duration::from_millis(100);
/// How long anything may take that the story waits for, on a busy host: compiling, above all.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the agent may take at the end to deliver the rest.
const REST_MAX: Duration = Duration::from_secs(20);
/// Where a package puts the demo's filters, from where the program is.
const MODULES: &str = "../share/weir";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The demo needs no settings and no network: broker, list, log and state are its own,
and gone afterwards. Its filters are drop_debug.wasm and redact.wasm, two examples in
the source of weir: `make demo` builds them. Without them it shows the rest.

Exit code 0: what was written, what the agent counted and what a consumer found on
the topic add up: nothing lost, nothing repeated. 1: they do not; standard error says
which sums.")]
pub struct DemoArgs {
    /// How long the log is written; the end follows within seconds
    #[arg(long = "for", value_name = "SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Where drop_debug.wasm and redact.wasm are [default: ../share/weir from where weir is]
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
}

/// The filters of the demo.
struct Modules {
    drop_debug: PathBuf,
    redact: PathBuf,
}

/// Everything on the stage.
struct Show {
    screen: Screen,
    rig: Rig,
    log: Log,
    witness: Witness,
    begun: Instant,
    length: Duration,
    interrupted: Arc<AtomicBool>,
    // Last, so that it outlives whoever talks to it.
    _broker: Broker,
}

/// Runs it.
pub fn run(_common: &Common, args: DemoArgs) -> anyhow::Result<ExitCode> {
    let modules = Modules::find(args.modules.as_deref())?;
    let show = Show::open(Duration::from_secs(args.seconds))?;
    match show.acts(modules.as_ref()).and_then(|_| show.epilogue()) {
        Ok(()) => show.close(modules.is_some()),
        Err(error) => Err(show.cause(error)),
    }
}

impl Modules {
    /// Those in `dir`; where nobody says, those of the package, if there are any.
    fn find(dir: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(MODULES)));
        let Some(found) = dir.map(Path::to_path_buf).or(beside) else { return Ok(None) };
        let module = |name: &str| {
            let file = found.join(name);
            file.canonicalize().with_context(|| format!("{} (`make demo` builds it)", file.display()))
        };
        match (module("drop_debug.wasm"), module("redact.wasm")) {
            (Ok(drop_debug), Ok(redact)) => Ok(Some(Self { drop_debug, redact })),
            (Err(error), _) | (_, Err(error)) if dir.is_some() => Err(error),
            _ => Ok(None),
        }
    }

    fn redact(&self, fields: &[&str]) -> serde_json::Value {
        json!({"module": self.redact, "config": {"fields": fields}})
    }
}

impl Show {
    fn open(length: Duration) -> anyhow::Result<Self> {
        let topic = Topic::parse(TOPIC).map_err(anyhow::Error::msg)?;
        let broker = Broker::start(&topic)?;
        let witness = Witness::start(Consumer::new(&broker.address(), &topic)?)?;
        let rig = Rig::start(broker.address())?;
        let log = Log::start(&rig.log()).context("write a log")?;
        let interrupted = Arc::new(AtomicBool::new(false));
        rig.runtime().spawn({
            let interrupted = interrupted.clone();
            async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    interrupted.store(true, Ordering::Relaxed);
                }
            }
        });
        let (screen, begun) = (Screen::new(length), Instant::now());
        Ok(Self { screen, rig, log, witness, begun, length, interrupted, _broker: broker })
    }

    /// The acts, one after the other. Like each of them, false if somebody interrupts.
    fn acts(&self, modules: Option<&Modules>) -> anyhow::Result<bool> {
        let mut goes_on = self.prologue(modules)?;
        if let Some(modules) = modules {
            goes_on = goes_on && self.swap(modules)? && self.configure(modules)?;
        }
        Ok(goes_on && self.rotate()? && self.play(1.0)?)
    }

    /// A log, a list, the first lines on the topic.
    fn prologue(&self, modules: Option<&Modules>) -> anyhow::Result<bool> {
        self.screen.print("weir demo: a service, its log, the agent and a broker, all in this process.")?;
        self.screen.print("")?;
        self.screen.say(&format!(
            "A service writes {} lines a second to app.log, every fourth DEBUG.",
            HumanCount(LINES_PER_SECOND)
        ))?;
        self.screen.say(match modules {
            Some(_) => {
                "The collect list names the log, a topic, and a filter: drop_debug,\n\
                 a function in Rust compiled to WebAssembly."
            }
            None => {
                "The collect list names the log and a topic. It could name a filter, but\n\
                 there is none here: `make demo` builds two, --modules says where."
            }
        })?;
        self.rig.collect(TOPIC, modules.map(|modules| json!({"module": modules.drop_debug})))?;
        let come = self.until("the first lines come", |show| show.witness.look(|seen| seen.records > 0))?;
        Ok(come && self.scene("The first lines are on the topic. A consumer finds")?)
    }

    /// Another module, live.
    fn swap(&self, modules: &Modules) -> anyhow::Result<bool> {
        if !self.play(0.25)? {
            return Ok(false);
        }
        self.screen.say(
            "DEBUG lines are wanted after all, but without tokens: the list now\n\
             names redact. It is compiled and tried while drop_debug goes on.",
        )?;
        self.rig.collect(TOPIC, Some(modules.redact(&["token"])))?;
        self.adopt(Version::NoToken, "redact took over")
    }

    /// The same module with another config, live.
    fn configure(&self, modules: &Modules) -> anyhow::Result<bool> {
        if !self.play(0.5)? {
            return Ok(false);
        }
        self.screen.say("Users are to be blanked out, too: the same module, another config.")?;
        self.rig.collect(TOPIC, Some(modules.redact(&["token", "user"])))?;
        self.adopt(Version::NoTokenNoUser, "The new config took over")
    }

    /// Waits for the first line that `version` made.
    fn adopt(&self, version: Version, what: &str) -> anyhow::Result<bool> {
        let asked = Instant::now();
        let first = || self.witness.look(|seen| seen.first(version));
        self.until(what, |_| first().is_some())?;
        let Some(line) = first() else { return Ok(false) };
        let seconds = asked.elapsed().as_secs_f32();
        self.scene(&format!("{what} {seconds:.1} s later, from line {} on", HumanCount(line)))
    }

    /// The log is renamed, and a new one begun.
    fn rotate(&self) -> anyhow::Result<bool> {
        if !self.play(0.75)? {
            return Ok(false);
        }
        self.log.rotate().context("rotate the log")?;
        self.screen.say("The log is rotated: app.log becomes app.log.1, and a new app.log begins.")?;
        let Some(cut) = self.log.written().rotated_at else { return Ok(false) };
        let ends = [cut.saturating_sub(1), cut];
        let both = |show: &Self| show.witness.look(|seen| ends.iter().all(|line| seen.has(*line)));
        let come = self.until("the last line of the old file and the first of the new one come", both)?;
        if come {
            let [last, first] = ends.map(HumanCount);
            self.screen.say(&format!(
                "Line {last} ended the old file and line {first} began the new one:\n\
                 both are on the topic."
            ))?;
        }
        Ok(come)
    }

    fn epilogue(&self) -> anyhow::Result<()> {
        let text = "The service stops. The agent delivers the rest, and stops.";
        Ok(self.screen.say(text)?)
    }

    /// The end of the writing, the end of the agent, the sums.
    fn close(self, filtered: bool) -> anyhow::Result<ExitCode> {
        let Self { mut screen, rig, log, witness, _broker, .. } = self;
        let written = log.stop().context("write the log")?;
        let deadline = Instant::now() + REST_MAX;
        let board = loop {
            let now = picture(written.lines, &witness, &rig);
            screen.show(&now);
            let board = now.entry.map(|entry| entry.lines).unwrap_or_default();
            if board.read >= written.lines && board.in_flight == 0 || Instant::now() > deadline {
                break board;
            }
            thread::sleep(FRAME);
        };
        let (ended, dir) = rig.stop()?;
        let sums = Sums { written, board, seen: witness.finish()?, ended, filtered };
        screen.end()?;
        screen.print(&format!("\n{sums}"))?;
        let broken = sums.broken();
        screen.conclude(&sums.sentence(), broken.is_empty())?;
        if broken.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let log = dir.keep().join("agent.log");
        bail!("the sums do not hold; the agent's log is {}\n  {}", log.display(), broken.join("\n  "))
    }

    /// Lets everything run until that part of the time is over. False if somebody interrupts.
    fn play(&self, part: f64) -> anyhow::Result<bool> {
        let end = self.length.mul_f64(part);
        while self.begun.elapsed() < end {
            if !self.frame()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets everything run until `come`. False if somebody interrupts.
    fn until(&self, what: &str, come: impl Fn(&Self) -> bool) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while !come(self) {
            if Instant::now() > deadline {
                let said = self.rig.status().map(|entry| {
                    let filter = entry.filter.map(|filter| filter.cause).unwrap_or_default();
                    format!("{:?} {} {filter}", entry.state, entry.cause)
                });
                bail!("{what}: not within {} s; the agent says: {said:?}", PATIENCE.as_secs());
            }
            if !self.frame()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A sentence about what is on the topic now.
    fn scene(&self, text: &str) -> anyhow::Result<bool> {
        let goes_on = self.frame()?;
        self.screen.quote(text, &self.witness.look(|seen| seen.latest.clone()))?;
        Ok(goes_on)
    }

    /// Shows how things stand, and lets a moment pass.
    fn frame(&self) -> anyhow::Result<bool> {
        if self.rig.is_over() || self.witness.is_over() {
            bail!("a part of the demo has ended before the demo");
        }
        self.screen.show(&picture(self.log.written().lines, &self.witness, &self.rig));
        thread::sleep(FRAME);
        Ok(!self.interrupted.load(Ordering::Relaxed))
    }

    /// Stops everything. Why the story could not be told: what ended the agent, the service or the
    /// consumer, if one of them ended by itself.
    fn cause(self, error: anyhow::Error) -> anyhow::Error {
        let Self { rig, log, witness, .. } = self;
        let deaf = witness.is_over();
        match (rig.stop(), log.stop().context("write the log")) {
            (Err(cause), _) | (_, Err(cause)) => cause,
            _ if deaf => witness.finish().err().unwrap_or(error),
            _ => error,
        }
    }
}

fn picture(written: u64, witness: &Witness, rig: &Rig) -> Picture {
    let (records, latest) = witness.look(|seen| (seen.records, seen.latest.iter().cloned().collect()));
    Picture { written, records, latest, entry: rig.status() }
}
