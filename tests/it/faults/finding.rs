//! File events are lost, or there are none; directories come late, trees are deep. Everything is
//! found by the next scan of names at the latest.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use weir_tests::kafka::Kafka;
use weir_tests::lines::{Expected, LineFile, Tally};
use weir_tests::topic::Topic;
use weir_tests::weir::Weir;

use super::{Dice, Outcome, PATIENCE, Plan, seconds};
use crate::host;

/// The agent scans the names of a glob so often without any event.
const RESCAN: Duration = Duration::from_secs(10);
/// At most so seldom where there are thousands of files, so that scans take a thousandth of a core.
const RESCAN_MAX: Duration = Duration::from_secs(60);
/// Beyond that, on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
/// CPU time of the agent, not optimised, that a file may cost from the scan to the last acknowledgement:
/// what grows with the square of the files would take more.
const FILE_CPU: Duration = Duration::from_millis(1);
/// Directories in a directory.
const DIRS: u64 = 4;
/// So deep are trees.
const LEVELS: u64 = 5;
/// Becomes the agent in a user namespace of its own, where it may watch nothing.
const WITHOUT_WATCHES: [&str; 6] = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    "echo 0 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"",
];

/// An agent that follows a deep tree.
fn following(prefix: &str, weir: Weir) -> (Weir, Topic) {
    let (mut weir, topic) = (weir, Kafka::shared().topic(prefix, 4));
    weir.list(&json!([{"name": "tree", "path": weir.log("**/*.log"), "topic": topic.name(),
        "start_at": "beginning"}]));
    (weir, topic)
}

/// A file with two lines, up to so many levels deep, in directories that may be new.
fn file(weir: &Weir, n: u64, levels: u64, dice: &mut Dice) -> Expected {
    let mut path = PathBuf::from("tree");
    for _ in 0..dice.below(levels + 1) {
        path.push(format!("d{}", dice.below(DIRS)));
    }
    let path = weir.log(&path.join(format!("f{n:06}.log")).to_string_lossy());
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
    let mut file = LineFile::create(path, &format!("f{n:06}"), 50);
    file.write(2);
    file.expected()
}

/// Waits for all lines, stops, and reports; what is found last must be found within `bound`, and the
/// agent must not take more than [`FILE_CPU`] for a file.
#[track_caller]
fn conclude(plan: Plan, mut weir: Weir, topic: &Topic, expected: &[Expected], bound: Duration) {
    let (begun, before) = (Instant::now(), weir.cpu());
    let mut tally = Tally::of(expected);
    topic.tally(&mut tally, PATIENCE);
    let (took, cpu) = (begun.elapsed(), weir.cpu() - before);
    assert!(weir.stop().success(), "{}", weir.stderr());
    let verdict = topic.verdict(expected, Duration::ZERO);
    let facts = json!({"all_delivered_s": seconds(took), "agent_cpu_s": seconds(cpu)});
    let cpu_bound = FILE_CPU * plan.rounds as u32 + Duration::from_secs(1);
    Outcome::of(plan, verdict, Some(0), facts)
        .must(took < bound, format!("found only after {took:?}"))
        .must(cpu < cpu_bound, format!("found with {cpu:?} of CPU time"))
        .report();
}

#[test]
fn without_any_file_events_everything_is_found_by_the_next_scan() {
    let plan = Plan::of("no inotify watches (rounds: files)", 200, 5_000);
    let mut dice = plan.dice();
    let allowed = Command::new(WITHOUT_WATCHES[0]).args(&WITHOUT_WATCHES[1..]).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user may not make a user namespace");
        return;
    }
    let (mut weir, topic) = following("unwatched", host().wrapped(&WITHOUT_WATCHES));
    std::fs::create_dir(weir.log("tree")).expect("a directory");
    weir.start();
    weir.await_state("tree", "waiting");
    let mut expected: Vec<_> = (0..plan.rounds).map(|n| file(&weir, n, LEVELS, &mut dice)).collect();
    // And one that is written on after it was found: it is polled.
    let mut grows = LineFile::create(weir.log("grows.log"), "grows00", 50);
    grows.write(2);
    weir.await_finished("tree", 2 * plan.rounds + 2, PATIENCE);
    grows.write(1_000);
    expected.push(grows.expected());
    // In a directory that is known: nothing but a scan of its own accord finds it.
    expected.push(file(&weir, plan.rounds, 0, &mut dice));
    let stderr = weir.stderr();
    assert!(stderr.contains("cannot be watched"), "it says that there are no events: {stderr}");
    let rescan = if plan.rounds > 1_000 { RESCAN_MAX } else { RESCAN };
    conclude(plan, weir, &topic, &expected, rescan + SLACK);
}

#[test]
fn events_that_the_kernel_threw_away_are_made_up_for() {
    let plan = Plan::of("inotify queue overflow (rounds: files)", 5_000, 100_000);
    let mut dice = plan.dice();
    let (mut weir, topic) = following("overflow", host());
    // They are watched: every file is four events (create, open, modify, close) in the queue.
    let dirs = (0..DIRS).flat_map(|one| (0..DIRS).map(move |two| format!("tree/d{one}/d{two}")));
    dirs.for_each(|dir| std::fs::create_dir_all(weir.log(&dir)).expect("directories"));
    weir.start();
    weir.await_state("tree", "waiting");
    weir.pause();
    let expected: Vec<_> = (0..plan.rounds).map(|n| file(&weir, n, 2, &mut dice)).collect();
    let queue =
        std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("the kernel's limit");
    let queue: u64 = queue.trim().parse().expect("a number");
    assert!(4 * plan.rounds > queue, "ROUNDS={} does not overflow a queue of {queue}", plan.rounds);
    weir.resume();
    // To find them is a matter of the next scan; to send them all, of how busy the machine is.
    conclude(plan, weir, &topic, &expected, PATIENCE);
}

#[test]
fn a_directory_that_appears_later_is_found_with_all_below_it() {
    let plan = Plan::of("directories that come and go (rounds: files)", 100, 5_000);
    let mut dice = plan.dice();
    let (mut weir, topic) = following("later-tree", host());
    weir.start();
    weir.await_state("tree", "waiting");
    let mut expected = Vec::new();
    for n in 0..plan.rounds {
        if n > 0 && dice.one_in(20) {
            // Renamed directories keep their files, under other names.
            let to = weir.log(&format!("moved-{n}"));
            std::fs::rename(weir.log("tree"), to).expect("rename a directory");
        }
        expected.push(file(&weir, n, LEVELS, &mut dice));
        dice.pause(0..20);
    }
    conclude(plan, weir, &topic, &expected, RESCAN + SLACK);
}
