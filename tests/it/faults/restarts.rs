//! The agent is killed or stopped, the broker goes away, and files are rotated all the while.

use std::time::{Duration, Instant};

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::scratch::Small;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::load::{LINE_BYTES, Load};
use super::{AGENT_MEMORY, Dice, FILE_BYTES, MEMORY, Outcome, PATIENCE, Plan, UNSAVED, mib, seconds};
use crate::{host, unconnected};

/// Lines written at once, so that the agent is behind when it is killed.
const BURST: u64 = 20_000;

/// The filesystem that logs lie on, where it is not the host's. Bytes.
const LOG_DISK: u64 = 2 << 30;

fn small(weir: Weir) -> Weir {
    weir.setting("limits", &format!("memory = {MEMORY}"))
}

/// A broker that now and then is away for a while.
struct Outages {
    kafka: Kafka,
    /// Rounds until it comes back; 0 while it is there.
    left: u64,
    count: u64,
}

impl Outages {
    fn is_away(&self) -> bool {
        self.left > 0
    }

    /// Freezes it at some moment of this round, or lets it go on.
    fn round(&mut self, dice: &mut Dice) {
        if self.is_away() {
            self.left -= 1;
            if !self.is_away() {
                self.kafka.resume();
            }
        } else if dice.one_in(6) {
            self.kafka.pause();
            self.left = dice.within(1..4);
            self.count += 1;
        } else if dice.one_in(100) {
            self.kafka.kill();
            self.kafka.start();
            self.count += 1;
        }
    }

    fn end(&mut self) {
        if self.is_away() {
            self.kafka.resume();
            self.left = 0;
        }
    }
}

/// Runs for a while: long enough, now and then, for the agent to notice files that are new.
fn live(load: &mut Load, dice: &mut Dice, started: Instant) {
    dice.pause(0..600);
    if dice.one_in(3) {
        dice.pause(1_000..2_000);
    }
    load.agent_runs(started);
}

/// Rotations and a burst, some of them.
fn stir(load: &mut Load, dice: &mut Dice) {
    for _ in 0..dice.below(3) {
        load.rotate(dice);
    }
    if dice.one_in(3) {
        load.burst(dice, BURST);
    }
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_repeats_within_the_bound() {
    let plan = Plan::of("kill -9, rotations, broker outages", 10, 1_000);
    let mut dice = plan.dice();
    let mut broker = Outages { kafka: Kafka::private(), left: 0, count: 0 };
    let topic = broker.kafka.topic("killed", 4);
    let mut weir = small(unconnected().kafka(&broker.kafka.brokers()));
    let mut load = Load::begin(&mut weir, &topic, 4_000);
    weir.kill();
    // What one kill may repeat, and how many there were since the topic was looked at.
    let bound = (MEMORY + UNSAVED) / LINE_BYTES as u64;
    let (mut kills, mut repeating, mut worst) = (0, 0, 0);
    for _ in 0..plan.rounds {
        if dice.one_in(4) {
            // While it starts.
            weir.launch();
            dice.pause(0..400);
            broker.round(&mut dice);
        } else {
            weir.start();
            let started = Instant::now();
            stir(&mut load, &mut dice);
            live(&mut load, &mut dice, started);
            stir(&mut load, &mut dice);
            broker.round(&mut dice);
            dice.pause(0..600);
        }
        weir.kill();
        kills += 1;
        stir(&mut load, &mut dice);
        if !broker.is_away() {
            let repeated = load.look();
            assert!(repeated <= kills * bound, "{repeated} records again after {kills} kills, {plan:?}");
            (kills, repeating, worst) = (0, repeating + u64::from(repeated > 0), worst.max(repeated));
        }
    }
    broker.end();
    weir.start();
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    let facts = json!({"rotations": load.rotations, "outages": broker.count,
        "looks_with_repeats": repeating, "most_repeats_between_looks": worst});
    Outcome::of(plan, load.verdict(), Some(plan.rounds * bound), facts).report();
}

#[test]
fn a_clean_restart_under_load_loses_and_repeats_nothing() {
    let plan = Plan::of("clean restart, rotations", 5, 200);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("restarted", 4);
    let mut weir = small(host());
    let mut load = Load::begin(&mut weir, &topic, 4_000);
    assert!(weir.stop().success());
    let mut slowest = Duration::ZERO;
    for round in 0..plan.rounds {
        weir.start();
        let started = Instant::now();
        stir(&mut load, &mut dice);
        live(&mut load, &mut dice, started);
        stir(&mut load, &mut dice);
        let begun = Instant::now();
        let status = weir.stop();
        slowest = slowest.max(begun.elapsed());
        assert!(status.success(), "stop {round}: {status}, {plan:?}\n{}", weir.stderr());
        stir(&mut load, &mut dice);
        let repeated = load.look();
        assert_eq!(repeated, 0, "records came again after stop {round} exited 0, {plan:?}");
    }
    weir.start();
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    let facts = json!({"rotations": load.rotations, "slowest_stop_s": seconds(slowest)});
    Outcome::of(plan, load.verdict(), Some(0), facts).report();
}

#[test]
fn files_without_a_birth_time_are_told_apart() {
    let plan = Plan::of("filesystem without birth times, kill -9", 8, 200);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("no-birth", 4);
    let mut weir = small(host());
    let Some(_disk) = Small::mount_without_birth_times(&weir.log(""), LOG_DISK) else {
        eprintln!("skipped: this user may not mount a filesystem");
        return;
    };
    let mut load = Load::begin(&mut weir, &topic, 4_000);
    let bound = (MEMORY + UNSAVED) / LINE_BYTES as u64;
    let mut started = Instant::now();
    for _ in 0..plan.rounds {
        live(&mut load, &mut dice, started);
        stir(&mut load, &mut dice);
        live(&mut load, &mut dice, started);
        weir.kill();
        // What was delivered is deleted: the next file has its inode, and nothing else tells it apart.
        load.look();
        stir(&mut load, &mut dice);
        weir.start();
        started = Instant::now();
    }
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    let facts = json!({"rotations": load.rotations});
    Outcome::of(plan, load.verdict(), Some(plan.rounds * bound), facts).report();
}

#[test]
fn a_broker_that_is_away_for_long_costs_no_line_and_no_memory() {
    let plan = Plan::of("broker away (rounds: seconds), agent restarted meanwhile", 15, 600);
    let mut dice = plan.dice();
    let kafka = Kafka::private();
    let topic = kafka.topic("outage", 4);
    let mut weir = small(unconnected().kafka(&kafka.brokers())).setting("agent", "drain = \"3s\"");
    let mut started = Instant::now();
    let mut load = Load::begin(&mut weir, &topic, 10_000);
    let lag = |weir: &Weir| weir.metrics().sum("weir_lag_bytes", &[]);
    let delivered = |weir: &Weir| weir.metrics().sum("weir_lines_delivered_total", &[]);
    eventually(PATIENCE, "the first lines", || delivered(&weir), |lines| *lines > 10_000.0);

    let away = Instant::now();
    kafka.kill();
    let until = |share: u64| Duration::from_millis(plan.rounds * 10 * share);
    while away.elapsed() < until(50) {
        stir(&mut load, &mut dice);
        live(&mut load, &mut dice, started);
    }
    let before = weir.peak_memory();
    let clean = weir.stop().success();
    stir(&mut load, &mut dice);
    weir.start();
    started = Instant::now();
    while away.elapsed() < until(100) {
        stir(&mut load, &mut dice);
        live(&mut load, &mut dice, started);
    }
    let behind = lag(&weir);
    kafka.start();
    let back = Instant::now();
    // Of what is written in a second.
    eventually(PATIENCE, "the agent to catch up", || lag(&weir), |lag| *lag < 2e6);
    let caught_up = back.elapsed();
    let peak = before.max(weir.peak_memory());
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    let said = weir.stderr().lines().count() as u64;
    // Each rotation leaves a file more.
    let most = MEMORY + AGENT_MEMORY + load.rotations * FILE_BYTES;
    let facts = json!({"rotations": load.rotations, "log_lines": said, "behind_mib": mib(behind as u64), "peak_rss_mib": mib(peak),
        "rss_allowed_mib": mib(most), "caught_up_s": seconds(caught_up), "stop_was_clean": clean});
    let bound = (MEMORY + UNSAVED) / LINE_BYTES as u64;
    Outcome::of(plan, load.verdict(), Some(bound), facts)
        .must(said <= 100 + 5 * plan.rounds, format!("{said} lines of log in {} s", plan.rounds))
        .must(peak <= most, format!("peak memory {} MiB", mib(peak)))
        .report();
}
