//! Files are rotated by copying and truncating, under load, while the agent is killed again and again.
//!
//! Lines that are written between copy and truncation are in no file any more. They may be lost, and
//! nothing else; and where the agent had the time to see them, it says how many bytes it lost.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Paced, Tally};
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::{Dice, MEMORY, Outcome, Plan, UNSAVED};
use crate::{LONG, host};

/// Bytes of a line, newline included.
const LINE_BYTES: usize = 200;
const FILES: usize = 8;
/// Of all files. A second.
const LINES: u64 = 4_000;
/// Until an agent that runs has read of a new content, and written down that it did.
const NOTICED: Duration = Duration::from_secs(2);
/// Until it has seen what is in a file, and has said so in its metrics.
const SEEN: Duration = Duration::from_millis(1_500);
/// Copies that are kept.
const KEPT: usize = 40;

/// Lines that were written between a copy and its truncation.
struct Window {
    file: usize,
    lines: Range<u64>,
    /// The agent had the time to see them, and to say that they are gone.
    seen: bool,
}

struct Rotating {
    writers: Vec<Paced>,
    /// Since when each has the content it has, where the agent may not know it yet.
    unnoticed: Vec<Option<Instant>>,
    windows: Vec<Window>,
    copies: VecDeque<PathBuf>,
    count: u64,
    /// What the agents said that they lost. Bytes.
    said: f64,
}

impl Rotating {
    /// Of the files with even numbers the pattern covers the copies, too.
    fn begin(weir: &mut Weir, topic: &str) -> Self {
        let list = json!([
            {"name": "alone", "path": weir.log("alone*.log"), "topic": topic},
            {"name": "all", "path": weir.log("all*.log*"), "topic": topic},
        ]);
        weir.list(&list);
        weir.start();
        for name in ["alone", "all"] {
            weir.await_state(name, "waiting");
        }
        let file = |n: usize| {
            let name = format!("{}{n}.log", if n.is_multiple_of(2) { "all" } else { "alone" });
            LineFile::create(weir.log(&name), &format!("f{n}"), LINE_BYTES).paced(LINES / FILES as u64)
        };
        Self {
            writers: (0..FILES).map(file).collect(),
            unnoticed: vec![Some(Instant::now()); FILES],
            windows: Vec::new(),
            copies: VecDeque::new(),
            count: 0,
            said: 0.0,
        }
    }

    /// Copies one of the files, writes on, and truncates it, where the agent knows what it holds.
    fn copy_truncate(&mut self, dice: &mut Dice, runs: bool) {
        let file = dice.below(FILES as u64) as usize;
        if self.unnoticed[file].is_some() {
            return;
        }
        self.count += 1;
        let (lines, is_slow) = (dice.below(100), runs && dice.one_in(3));
        let (copy, written) = self.writers[file].with(|file| {
            let copy = PathBuf::from(format!("{}.{}", file.path().display(), self.count));
            let from = file.written();
            file.copytruncate_around(&copy, |file| {
                file.write(lines);
                if is_slow {
                    std::thread::sleep(SEEN);
                }
            });
            (copy, from..file.written())
        });
        self.windows.push(Window { file, lines: written, seen: is_slow });
        self.unnoticed[file] = Some(Instant::now());
        self.copies.push_back(copy);
        if self.copies.len() > KEPT
            && let Some(oldest) = self.copies.pop_front()
        {
            std::fs::remove_file(oldest).expect("delete a copy");
        }
    }

    /// An agent has been answering since `started` and still does.
    fn agent_runs(&mut self, started: Instant) {
        for since in &mut self.unnoticed {
            if since.is_some_and(|since| since.max(started).elapsed() >= NOTICED) {
                *since = None;
            }
        }
    }

    /// It is about to be killed or stopped.
    fn hear(&mut self, weir: &Weir) {
        self.said += weir.metrics().sum("weir_lost_bytes_total", &[]);
    }
}

#[test]
fn copytruncate_under_load_with_kill_9_loses_only_what_is_in_no_copy_and_says_so() {
    let plan = Plan::of("copytruncate under load, kill -9", 5, 200);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("copytruncate", 4);
    let mut weir = host().setting("limits", &format!("memory = {MEMORY}"));
    let mut load = Rotating::begin(&mut weir, topic.name());
    let mut started = Instant::now();
    for _ in 0..plan.rounds {
        std::thread::sleep(NOTICED);
        load.agent_runs(started);
        for _ in 0..dice.below(5) {
            load.copy_truncate(&mut dice, true);
        }
        // A window counts as seen if this agent lives to say what became of it.
        std::thread::sleep(SEEN);
        dice.pause(0..300);
        load.agent_runs(started);
        load.hear(&weir);
        weir.kill();
        for _ in 0..dice.below(4) {
            load.copy_truncate(&mut dice, false);
        }
        weir.start();
        started = Instant::now();
    }
    let expected: Vec<_> = load.writers.drain(..).map(Paced::stop).collect();
    let lag = || weir.metrics().sum("weir_lag_bytes", &[]);
    std::thread::sleep(NOTICED);
    eventually(LONG, "all to be delivered", lag, |lag| *lag == 0.0);
    load.hear(&weir);
    assert!(weir.stop().success(), "{}", weir.stderr());

    let mut tally = Tally::of(&expected);
    topic.tally_now(&mut tally);
    let (mut lost, mut lost_seen) = (0, 0);
    for window in &load.windows {
        let missing = tally.excuse(window.file, window.lines.clone());
        lost += missing;
        lost_seen += if window.seen { missing } else { 0 };
    }
    let (said, lost_seen) = (load.said as u64, lost_seen * LINE_BYTES as u64);
    let bound = plan.rounds * (MEMORY + UNSAVED) / LINE_BYTES as u64;
    let facts = json!({"copies": load.count, "lines_between": load.windows.iter().map(|w| w.lines.end - w.lines.start).sum::<u64>(),
        "lost_between": lost, "lost_and_seen_bytes": lost_seen, "lost_bytes_said": said});
    Outcome::of(plan, tally.verdict(), Some(bound), facts)
        .must(lost_seen <= said, format!("{lost_seen} bytes were lost, {said} counted"))
        .report();
}
