//! etcd is paused, killed, compacted, put back to an older state, flooded, and its tokens expire.
//! What runs goes on, and what the list says in the end is what runs in the end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_tests::etcd::{Etcd, USER};
use weir_tests::kafka::Kafka;
use weir_tests::lines::{LineFile, Tally};
use weir_tests::topic::Topic;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::{Dice, Outcome, PATIENCE, Plan, seconds};
use crate::host;

const KEY: &str = "/steering/collect";
/// A little less than etcd takes in one value (1.5 MiB with all that goes with it). Bytes.
const LARGE: usize = 1_400_000;
/// What the entry that never changes has to do; little, so that it does not wait for a slow Kafka.
const LINES_PER_SECOND: u64 = 1_000;

/// An agent, its etcd, and an entry that never changes.
struct Steered {
    etcd: Etcd,
    weir: Weir,
    topic: Topic,
    /// What the list said last.
    mark: u64,
    slowest: Duration,
}

impl Steered {
    /// The entry that never changes, and one whose name says which list is applied.
    fn list(&self, mark: u64, comment: &str) -> String {
        json!([
            {"name": "same", "path": self.weir.log("same.log"), "topic": self.topic.name(), "start_at": "beginning"},
            {"name": format!("mark-{mark}"), "path": self.weir.log(&format!("mark-{mark}.log")),
                "topic": self.topic.name(), "comment": comment},
        ])
        .to_string()
    }

    fn edit(&mut self) -> i64 {
        self.mark += 1;
        self.etcd.put(KEY, self.list(self.mark, ""))
    }

    fn applied(&self) -> Vec<String> {
        let status = self.weir.status();
        let entries = status["entries"].as_array().cloned().unwrap_or_default();
        let names = entries.iter().filter_map(|entry| entry["name"].as_str());
        names.filter(|name| name.starts_with("mark-")).map(str::to_owned).collect()
    }

    /// Waits until the agent runs what the list says, and notes how long that took.
    fn await_applied(&mut self, what: &str, mark: u64) {
        let wanted = [format!("mark-{mark}")];
        let begun = Instant::now();
        eventually(PATIENCE, what, || self.applied(), |applied| *applied == wanted);
        self.slowest = self.slowest.max(begun.elapsed());
        eprintln!("{what}: applied after {:?}", begun.elapsed());
    }

    fn converges(&mut self, what: &str) {
        self.edit();
        self.await_applied(what, self.mark);
    }

    fn paused(&mut self, dice: &mut Dice) {
        self.etcd.pause();
        dice.pause(500..4_000);
        self.etcd.resume();
        self.converges("paused");
    }

    fn killed(&mut self, dice: &mut Dice) {
        self.etcd.kill();
        dice.pause(0..3_000);
        self.etcd.start();
        self.converges("killed");
    }

    /// The agent is away while the list changes and etcd forgets how.
    fn compacted(&mut self, dice: &mut Dice) {
        self.weir.pause();
        self.etcd.stop();
        self.etcd.start();
        let mut revision = 0;
        for _ in 0..dice.within(2..20) {
            revision = self.edit();
        }
        self.etcd.compact(revision);
        self.weir.resume();
        self.await_applied("compacted", self.mark);
    }

    /// Revisions go backwards, and the list with them; later edits count all the same.
    fn restored(&mut self, dice: &mut Dice) {
        self.edit();
        self.etcd.stop();
        let saved = self.etcd.save();
        let old = self.mark;
        self.etcd.start();
        for _ in 0..dice.within(5..30) {
            self.edit();
        }
        self.await_applied("before it was restored", self.mark);
        self.etcd.stop();
        self.etcd.restore(&saved);
        self.etcd.start();
        self.await_applied("restored", old);
        self.converges("edited after it was restored");
    }

    /// Nothing is asked for so long that the agent's token expires, more than once.
    fn expired(&mut self) {
        for what in ["token expired", "token expired again"] {
            self.etcd.outwait_tokens();
            self.converges(what);
        }
    }

    fn flooded(&mut self, edits: u64) {
        let lists: Vec<_> = (1..=edits).map(|n| self.list(self.mark + n, "")).collect();
        self.etcd.put_each(KEY, &lists);
        self.mark += edits;
        self.await_applied("flooded", self.mark);
    }

    fn large(&mut self) {
        self.mark += 1;
        self.etcd.put(KEY, self.list(self.mark, &"x".repeat(LARGE)));
        self.await_applied("a large list", self.mark);
    }

    /// The thread of the entry that does not change, and its sums.
    fn undisturbed(&self) -> (Option<u32>, u64) {
        let thread = self.weir.threads().into_iter().find(|(_, name)| name == "same").map(|(id, _)| id);
        (thread, self.weir.lines("same").read)
    }
}

#[test]
fn whatever_happens_to_etcd_the_agent_converges_and_unchanged_entries_are_undisturbed() {
    let plan = Plan::of(
        "etcd paused, killed, compacted, restored, token expired, flooded (rounds: edits)",
        200,
        10_000,
    );
    let mut dice = plan.dice();
    let etcd = Etcd::private();
    etcd.ask_for_user();
    let mut weir = host().etcd(&etcd.endpoint(), KEY);
    std::fs::write(weir.file("password"), USER.1).expect("write the password");
    let password = format!("username = {:?}\npassword_file = {:?}", USER.0, weir.file("password"));
    weir = weir.setting("etcd", &password);
    let topic = Kafka::shared().topic("steered", 1);
    let mut all = Steered { etcd, weir, topic, mark: 0, slowest: Duration::ZERO };
    let writer = LineFile::create(all.weir.log("same.log"), "same", 100).paced(LINES_PER_SECOND);
    all.edit();
    all.weir.start();
    all.await_applied("the start", 1);
    eventually(PATIENCE, "the first lines", || all.weir.lines("same").delivered, |lines| *lines > 100);
    let (thread, mut read) = all.undisturbed();
    for _ in 0..plan.rounds.div_ceil(1_000) {
        // Each once, in an order that the seed decides.
        let mut faults = vec![0, 1, 2, 3, 4, 5, 6];
        while !faults.is_empty() {
            match faults.swap_remove(dice.below(faults.len() as u64) as usize) {
                0 => all.paused(&mut dice),
                1 => all.killed(&mut dice),
                2 => all.compacted(&mut dice),
                3 => all.restored(&mut dice),
                4 => all.expired(),
                5 => all.flooded(plan.rounds.min(1_000)),
                _ => all.large(),
            }
            assert_eq!(all.undisturbed().0, thread, "the thread of the entry that did not change");
            read = eventually(PATIENCE, "more of its lines", || all.undisturbed().1, |more| *more > read);
        }
    }
    if plan.rounds > 1_000 {
        all.flooded(plan.rounds);
    }
    let expected = writer.stop();
    all.weir.await_finished("same", expected.lines(), PATIENCE);
    assert!(all.weir.stop().success(), "{}", all.weir.stderr());
    let mut tally = Tally::of(&[expected]);
    all.topic.tally_now(&mut tally);
    let facts: Value = json!({"edits": all.mark, "slowest_convergence_s": seconds(all.slowest)});
    Outcome::of(plan, tally.verdict(), Some(0), facts)
        .must(all.slowest < Duration::from_secs(20), format!("converged only after {:?}", all.slowest))
        .report();
}
