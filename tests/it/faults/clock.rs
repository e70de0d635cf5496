//! The wall clock jumps by an hour, to and fro, while the agent runs and while it does not.

use std::time::Instant;

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::preload::Preload;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::load::Load;
use super::{Dice, MEMORY, Outcome, PATIENCE, Plan};
use crate::host;

/// As far as the clock goes, either way. Seconds.
const HOUR: u64 = 3600;
/// What a lag may be on a busy machine, however the clock stands. Seconds.
const LAG: f64 = 120.0;

fn jump(preload: &Preload, dice: &mut Dice) {
    let seconds = match dice.below(3) {
        0 => HOUR as i64,
        1 => -(HOUR as i64),
        _ => dice.below(2 * HOUR) as i64 - HOUR as i64,
    };
    preload.shift_clock(seconds);
}

/// Waits until the agent has delivered more; its lag is that of a true clock.
#[track_caller]
fn goes_on(weir: &Weir) {
    let delivered = || weir.metrics().sum("weir_lines_delivered_total", &[]);
    let until = delivered() + 2_000.0;
    eventually(PATIENCE, "lines after the clock jumped", delivered, |lines| *lines >= until);
    let lag = weir.metrics().sum("weir_lag_seconds", &[]);
    assert!(lag < LAG, "a lag of {lag} s");
}

#[test]
fn a_clock_that_jumps_costs_no_line_and_repeats_none() {
    let plan = Plan::of("clock set by up to an hour", 6, 200);
    let mut dice = plan.dice();
    let (preload, topic) = (Preload::new(), Kafka::shared().topic("clock", 4));
    let weir = preload.on(host()).setting("limits", &format!("memory = {MEMORY}"));
    let mut weir = weir;
    let mut load = Load::begin(&mut weir, &topic, 8_000);
    let (mut started, mut restarts) = (Instant::now(), 0);
    for _ in 0..plan.rounds {
        jump(&preload, &mut dice);
        goes_on(&weir);
        load.agent_runs(started);
        load.rotate(&mut dice);
        if dice.one_in(3) {
            assert!(weir.stop().success(), "{}", weir.stderr());
            jump(&preload, &mut dice);
            load.rotate(&mut dice);
            weir.start();
            (started, restarts) = (Instant::now(), restarts + 1);
        }
    }
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    let facts = json!({"restarts": restarts, "rotations": load.rotations});
    Outcome::of(plan, load.verdict(), Some(0), facts).report();
}
