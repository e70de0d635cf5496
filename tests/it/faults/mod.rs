//! Faults, and what must hold under each: lines carry file and number, so that the topic alone says
//! what was lost, repeated or reordered. The agent is not asked.
//!
//! `make test` runs a slice of every fault, `make faults` all of it; `docs/faults.md` has the table.
//! A seed decides what happens in which order. It does not decide the microsecond at which it
//! happens: a seed that failed fails again within some rounds, not on the very same line.
//!
//! - `restarts`: the agent is killed or stopped, the broker goes away, files are rotated meanwhile.
//! - `copies`: files are rotated by copying and truncating, the agent is killed.
//! - `changes`: entries and modules change under load.
//! - `steering`: etcd is paused, killed, compacted, restored from an older copy, flooded.
//! - `broker`: it answers with each error there is; fatal errors of the producer.
//! - `disk`: the state directory is full, read-only, damaged, deleted; I/O errors; a power cut.
//! - `clock`: it jumps.
//! - `finding`: file events are lost, or there are none.
//! - `refusals`: lines that the broker does not want.
//! - `sizes`: very long lines, very many files.

mod broker;
mod changes;
mod clock;
mod copies;
mod disk;
mod finding;
mod load;
mod refusals;
mod restarts;
mod sizes;
mod steering;

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weir_tests::lines::Verdict;

/// Half of it is for chunks under way, see the agent's `limits.memory`. Bytes.
const MEMORY: u64 = 16 << 20;
/// What may be acknowledged and not yet written down when the agent is killed. Bytes.
const UNSAVED: u64 = 16 << 20;
/// Beyond the memory for chunks, the agent may take so much. Bytes.
pub(crate) const AGENT_MEMORY: u64 = 40 << 20;

/// What it may take beside that where there are very many files: their names and places. Bytes a file.
pub(crate) const FILE_BYTES: u64 = 4096;

/// For what must happen: how soon is part of the verdict where that was promised, and a machine that is
/// busy with all faults at once is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much of a fault, and in which order.
#[derive(Clone, Copy, Debug)]
struct Plan {
    fault: &'static str,
    seed: u64,
    rounds: u64,
}

impl Plan {
    /// `slice` rounds in `make test`, `long` in `make faults`, unless `WEIR_FAULTS_ROUNDS` says.
    fn of(fault: &'static str, slice: u64, long: u64) -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        let usual = if std::env::var_os("WEIR_FAULTS_LONG").is_some() { long } else { slice };
        let rounds = number("WEIR_FAULTS_ROUNDS").unwrap_or(usual);
        let plan = Self { fault, seed: number("WEIR_FAULTS_SEED").unwrap_or_else(fresh_seed), rounds };
        eprintln!("{fault}: SEED={} ROUNDS={}", plan.seed, plan.rounds);
        plan
    }

    fn dice(&self) -> Dice {
        Dice(self.seed)
    }
}

/// Short enough to be typed.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    now.as_nanos() as u64 % 1_000_000
}

/// Numbers that a seed decides: SplitMix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A pause of so many milliseconds.
    fn pause(&mut self, millis: Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.within(millis)));
    }
}

/// What came of a fault.
struct Outcome {
    plan: Plan,
    verdict: Verdict,
    /// Records that may come a second time; `None` where all may, any number of times.
    repeats_allowed: Option<u64>,
    /// What else was measured, as a JSON object.
    facts: Value,
    /// What else does not hold.
    broken: Vec<String>,
    /// Lines may change places.
    any_order: bool,
}

impl Outcome {
    fn of(plan: Plan, verdict: Verdict, repeats_allowed: Option<u64>, facts: Value) -> Self {
        Self { plan, verdict, repeats_allowed, facts, broken: Vec::new(), any_order: false }
    }

    /// Lines may change places.
    fn any_order(self) -> Self {
        Self { any_order: true, ..self }
    }

    /// Something else that must hold, and what is to be said if it does not.
    fn must(mut self, hold: bool, else_say: String) -> Self {
        if !hold {
            self.broken.push(else_say);
        }
        self
    }

    /// Prints the verdict, as JSON and as a row of the table, and fails unless all holds. With
    /// `WEIR_FAULTS_DIR` they are added to `verdicts.json` and `table.md` there, too.
    #[track_caller]
    fn report(&self) {
        self.report_in(std::env::var_os("WEIR_FAULTS_DIR").as_ref().map(Path::new));
    }

    #[track_caller]
    fn report_in(&self, dir: Option<&Path>) {
        let Self { plan, verdict, repeats_allowed, facts, broken, any_order } = self;
        let (lost, repeated, reordered) = (verdict.lost(), verdict.repeated(), verdict.reordered());
        let bounded = repeats_allowed.is_none_or(|allowed| repeated <= allowed);
        let in_order = reordered == 0 || *any_order;
        let holds = lost == 0 && in_order && verdict.foreign() == 0 && bounded && broken.is_empty();
        let json = json!({
            "fault": plan.fault, "seed": plan.seed, "rounds": plan.rounds, "holds": holds,
            "lines": verdict.expected(), "lost": lost, "lost_allowed": 0,
            "repeated": repeated, "repeated_allowed": repeats_allowed,
            "reordered": reordered, "reordered_allowed": if *any_order { Value::Null } else { json!(0) }, "foreign": verdict.foreign(), "broken": broken, "facts": facts,
        });
        let row = row(plan, verdict, *repeats_allowed, facts, holds);
        println!("{json}\n{row}");
        if let Some(dir) = dir {
            append(&dir.join("verdicts.json"), &json.to_string());
            append(&dir.join("table.md"), &row);
        }
        assert!(
            holds,
            "{} with SEED={} ROUNDS={}\n{broken:#?}\n{verdict}",
            plan.fault, plan.seed, plan.rounds
        );
    }
}

#[track_caller]
fn append(path: &Path, line: &str) {
    let file = File::options().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// A row of the table of `docs/faults.md`.
fn row(plan: &Plan, verdict: &Verdict, repeats_allowed: Option<u64>, facts: &Value, holds: bool) -> String {
    let allowed = repeats_allowed.map_or_else(|| "any".into(), |allowed| allowed.to_string());
    let facts = facts.as_object().into_iter().flatten();
    let facts: Vec<_> = facts.map(|(name, value)| format!("{name} {value}")).collect();
    format!(
        "| {} | {} | {} | {} | {} | {} | {} of {} | {} | {} |",
        if holds { "holds" } else { "**fails**" },
        plan.fault,
        plan.seed,
        plan.rounds,
        verdict.expected(),
        verdict.lost(),
        verdict.repeated(),
        allowed,
        verdict.reordered(),
        facts.join(", ")
    )
}

/// For the table.
fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// For the table.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

#[test]
fn a_verdict_with_a_line_lost_does_not_hold() {
    let mut file = weir_tests::lines::LineFile::create("/dev/null", "x", 50);
    file.write(2);
    let tally = weir_tests::lines::Tally::of(&[file.expected()]);
    let plan = Plan { fault: "none", seed: 1, rounds: 1 };
    let outcome = Outcome::of(plan, tally.verdict(), Some(0), json!({}));
    assert!(std::panic::catch_unwind(|| outcome.report_in(None)).is_err());
    let sound = || Outcome::of(plan, weir_tests::lines::Tally::of(&[]).verdict(), Some(0), json!({}));
    sound().report_in(None);
    let broken = sound().must(true, String::new()).must(false, "too slow".into());
    assert!(std::panic::catch_unwind(|| broken.report_in(None)).is_err());
}
