//! The state directory is full, read-only, damaged or gone, its disk fails, the power is cut. Lines
//! come again then; none is lost.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::preload::{Failing, Preload};
use weir_tests::scratch::Small;
use weir_tests::wait::eventually;
use weir_tests::weir::Weir;

use super::load::{LINE_BYTES, Load};
use super::{Dice, MEMORY, Outcome, PATIENCE, Plan, UNSAVED};
use crate::host;

/// The filesystem that the state lies on. Bytes.
const DISK: u64 = 4 << 20;

fn small(weir: Weir) -> Weir {
    weir.setting("limits", &format!("memory = {MEMORY}"))
}

/// Waits until a thousand more lines are delivered.
#[track_caller]
fn delivers(weir: &Weir, when: &str) {
    let delivered = || weir.metrics().sum("weir_lines_delivered_total", &[]);
    let until = delivered() + 1_000.0;
    eventually(PATIENCE, &format!("lines {when}"), delivered, |lines| *lines >= until);
}

/// Ends the load, waits until all is delivered, and reports; repeats are allowed without bound.
#[track_caller]
fn conclude(plan: Plan, mut weir: Weir, mut load: Load, facts: serde_json::Value) {
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    // What came again came again at a start; a clean stop and start add nothing.
    weir.start();
    weir.await_state("load-0", "following");
    assert!(weir.stop().success());
    assert_eq!(load.look(), 0, "records came again after a clean stop");
    Outcome::of(plan, load.verdict(), None, facts).report();
}

/// What the status says of the offsets; `None` where they are written.
fn complaint(weir: &Weir) -> Option<String> {
    let problems = weir.status()["list"]["problems"].as_array().cloned().unwrap_or_default();
    let told = problems.iter().map(|problem| problem["cause"].as_str().unwrap_or_default().to_owned());
    told.into_iter().find(|cause| cause.contains("offsets cannot be written"))
}

/// How often something went wrong with the offsets.
fn errors(weir: &Weir, kind: &str) -> f64 {
    weir.metrics().sum("weir_state_errors_total", &[("kind", kind)])
}

/// It starts and delivers where nothing can be written, and says so in the log, the status, the metrics.
#[track_caller]
fn starts_unwritable(weir: &mut Weir) {
    let from = weir.stderr().len();
    weir.start();
    delivers(weir, "after a start on a disk that cannot be written");
    let said = weir.stderr().split_off(from);
    assert!(said.contains("offsets cannot be written: they are kept in memory"), "{said}");
    assert!(complaint(weir).is_some(), "{}", weir.status());
    assert_eq!(errors(weir, "open"), 1.0);
}

/// What waited in memory is written, and all complaints are over.
#[track_caller]
fn writes_again(weir: &Weir) {
    eventually(PATIENCE, "offsets to be written again", || complaint(weir), Option::is_none);
}

#[test]
fn a_state_directory_that_cannot_be_written_stops_nothing() {
    let plan = Plan::of("state directory full or read-only", 2, 40);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("full", 4);
    let mut weir = small(host());
    let Some(disk) = Small::mount(&weir.file("state"), DISK) else {
        eprintln!("skipped: this user may not mount a filesystem");
        return;
    };
    let load = Load::begin(&mut weir, &topic, 4_000);
    for _ in 0..plan.rounds {
        delivers(&weir, "before the disk is full");
        disk.fill();
        delivers(&weir, "on a full disk");
        if dice.one_in(2) {
            weir.kill();
        } else {
            // Offsets were saved if there was room in the file for them, or else it says so.
            let (from, status) = (weir.stderr().len(), weir.stop());
            assert!(status.success() || weir.stderr()[from..].contains("could not be written"));
        }
        weir.start();
        delivers(&weir, "after a start on a full disk");
        disk.free();
        delivers(&weir, "after there is room again");
        writes_again(&weir);
        weir.kill();
        disk.read_only(true);
        starts_unwritable(&mut weir);
        let second = weir.weir(&["run"]);
        assert_eq!(second.code(), 1, "one agent a directory, also on a read-only one");
        assert!(second.stderr.contains("is in use by"), "{}", second.stderr);
        disk.read_only(false);
        writes_again(&weir);
    }
    conclude(plan, weir, load, json!({}));
}

/// What can happen to a file of the state.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Emptied,
    Cut,
    Overwritten,
    /// Half of it is as it was some time ago: a write that was torn.
    Torn,
    Deleted,
}

impl Damage {
    const ALL: [Self; 5] = [Self::Emptied, Self::Cut, Self::Overwritten, Self::Torn, Self::Deleted];

    fn befall(self, path: &Path, older: &[u8], dice: &mut Dice) {
        if matches!(self, Self::Deleted) {
            return std::fs::remove_file(path).expect("delete the offsets");
        }
        let file = std::fs::File::options().write(true).open(path).expect("open the offsets");
        let length = file.metadata().expect("its length").len();
        let place = dice.below(length.max(1));
        let done = match self {
            Self::Emptied => file.set_len(0),
            Self::Cut => file.set_len(place),
            Self::Overwritten => {
                let garbage: Vec<u8> = (0..4096).map(|_| dice.below(256) as u8).collect();
                file.write_all_at(&garbage, place.min(length.saturating_sub(4096)))
            }
            _ => file.write_all_at(&older[..older.len() / 2], 0),
        };
        done.expect("damage the offsets");
    }
}

fn offsets(weir: &Weir) -> PathBuf {
    weir.file("state").join("checkpoints.redb")
}

#[test]
fn damaged_or_deleted_offsets_cost_repeats_and_no_line() {
    let plan = Plan::of("stored offsets damaged or deleted", 5, 100);
    let mut dice = plan.dice();
    let topic = Kafka::shared().topic("damaged", 4);
    let mut weir = small(host());
    let load = Load::begin(&mut weir, &topic, 1_000);
    let (mut older, mut told) = (Vec::new(), 0);
    for round in 0..plan.rounds {
        delivers(&weir, "before the damage");
        let damage = Damage::ALL[round as usize % Damage::ALL.len()];
        eprintln!("round {round}: {damage:?}");
        let while_it_runs = dice.one_in(4);
        if while_it_runs && matches!(damage, Damage::Deleted) {
            damage.befall(&offsets(&weir), &older, &mut dice);
            delivers(&weir, "after the offsets were deleted");
        }
        dice.pause(0..500);
        if dice.one_in(2) {
            weir.kill();
        } else {
            weir.stop();
        }
        let from = weir.stderr().len();
        let stored = std::fs::read(offsets(&weir)).unwrap_or_default();
        if !stored.is_empty() {
            damage.befall(&offsets(&weir), &older, &mut dice);
        }
        older = stored;
        weir.start();
        delivers(&weir, "after the damage");
        let lost = weir.stderr()[from..].contains("read from their beginning");
        let rewinds = weir.metrics().sum("weir_rewinds_total", &[("reason", "state_lost")]);
        assert_eq!(lost, rewinds > 0.0, "what the log says, the counter says");
        told += u64::from(lost);
    }
    conclude(plan, weir, load, json!({"damage_told": told}));
}

#[test]
fn a_disk_that_fails_under_the_state_stops_nothing() {
    let plan = Plan::of("I/O errors under the state", 3, 60);
    let mut dice = plan.dice();
    let (preload, topic) = (Preload::new(), Kafka::shared().topic("failing-disk", 4));
    let mut weir = preload.on(small(host()));
    let load = Load::begin(&mut weir, &topic, 4_000);
    let mut failed = 0.0;
    for _ in 0..plan.rounds {
        delivers(&weir, "on a sound disk");
        let failing = if dice.one_in(2) { Failing::Writes } else { Failing::All };
        preload.fail_disk(failing);
        eventually(PATIENCE, "a complaint", || complaint(&weir), Option::is_some);
        delivers(&weir, "on a disk that fails");
        failed += errors(&weir, "write");
        match dice.below(3) {
            0 => {
                preload.fail_disk(Failing::Nothing);
                writes_again(&weir);
            }
            1 => {
                weir.kill();
                starts_unwritable(&mut weir);
                preload.fail_disk(Failing::Nothing);
                writes_again(&weir);
            }
            _ => {
                assert_eq!(weir.stop().code(), Some(1), "it says that offsets were not saved");
                preload.fail_disk(Failing::Nothing);
                weir.start();
            }
        }
    }
    conclude(plan, weir, load, json!({"failed_writes": failed}));
}

#[test]
fn a_power_cut_costs_repeats_within_the_bound_and_no_line() {
    let plan = Plan::of("power cut", 5, 200);
    let mut dice = plan.dice();
    let (preload, topic) = (Preload::new(), Kafka::shared().topic("power-cut", 4));
    let mut weir = preload.on(small(host()));
    let mut load = Load::begin(&mut weir, &topic, 8_000);
    // As after a kill: what was under way, and what was acknowledged and not on the disk yet.
    let bound = (MEMORY + UNSAVED) / LINE_BYTES as u64;
    let (mut open, mut worst, mut started) = (0, 0, Instant::now());
    for _ in 0..plan.rounds {
        dice.pause(0..1_500);
        load.agent_runs(started);
        load.rotate(&mut dice);
        dice.pause(0..500);
        weir.kill();
        open += preload.cut_power(&offsets(&weir), || dice.one_in(2));
        let repeated = load.look();
        assert!(repeated <= bound, "{repeated} records again after a power cut, {plan:?}");
        worst = worst.max(repeated);
        weir.start();
        started = Instant::now();
        delivers(&weir, "after the power cut");
    }
    let damaged = errors(&weir, "corrupt") + errors(&weir, "missing");
    load.end();
    load.await_all(PATIENCE);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    assert!(!weir.stderr().contains("read from their beginning") && damaged == 0.0, "a cut is no damage");
    let facts =
        json!({"unsynced_sectors": open, "most_repeats_after_a_cut": worst, "rotations": load.rotations});
    let repeats_allowed = Some(plan.rounds * bound);
    Outcome::of(plan, load.verdict(), repeats_allowed, facts).report();
}
