//! The state directory is full, read-only, damaged or gone. Lines come again then; none is lost.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::scratch::Small;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use super::load::Load;
use super::{Dice, MEMORY, Outcome, Plan};
use crate::{LONG, host};

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
    eventually(SOON, &format!("lines {when}"), delivered, |lines| *lines >= until);
}

/// Ends the load, waits until all is delivered, and reports; repeats are allowed without bound.
#[track_caller]
fn conclude(plan: Plan, mut weir: Weir, mut load: Load, facts: serde_json::Value) {
    load.end();
    load.await_all(LONG);
    assert!(weir.stop().success(), "{}", weir.stderr());
    load.look();
    // What came again came again at a start; a clean stop and start add nothing.
    weir.start();
    weir.await_state("load-0", "following");
    assert!(weir.stop().success());
    assert_eq!(load.look(), 0, "records came again after a clean stop");
    Outcome { plan, verdict: load.verdict(), repeats_allowed: None, facts }.report();
}

/// Where nothing can be written at all it does not start, and says why and what to do.
#[track_caller]
fn does_not_start(weir: &mut Weir) {
    let from = weir.stderr().len();
    weir.launch();
    assert_eq!(weir.wait(SOON).code(), Some(1));
    let said = weir.stderr().split_off(from);
    assert!(said.contains("state directory") && said.contains("make it writable"), "{said}");
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
        weir.kill();
        disk.read_only(true);
        does_not_start(&mut weir);
        disk.read_only(false);
        weir.start();
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
        told += u64::from(weir.stderr()[from..].contains("read from their beginning"));
    }
    conclude(plan, weir, load, json!({"damage_told": told}));
}
