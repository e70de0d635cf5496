//! Instructions of each stage, counted by callgrind: other work on the machine does not change them.
//!
//! A stage runs a few times and then some more; the difference is what one run takes, without start
//! and end. Another compiler may change a figure. Then the table is to be changed, and
//! docs/performance.md with it.

use std::process::Command;

use weir_tests::scratch;

/// Instructions a line, for the ledger a range, for names a file, in the development build: there our
/// crates, and what wasmtime has in them as generics, are not optimised, so the figures say nothing of
/// a release.
const TABLE: [(&str, f64); 6] = [
    ("names", 9_160.0),
    ("split", 501.0),
    ("ledger", 1396.0),
    ("drop_debug", 10_830.0),
    ("redact", 11_253.0),
    ("enqueue", 3_566.0),
];
/// What a figure may be above the table.
const MORE: f64 = 1.15;
/// How often a stage runs: the first time things are set up.
const TIMES: [u64; 2] = [4, 12];

/// Instructions, and lines, of so many runs.
fn count(stage: &str, times: u64) -> (f64, f64) {
    let dir = scratch::dir("callgrind");
    let out = dir.path().join("out");
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(env!("CARGO_BIN_EXE_weir-bench")).args(["stage", stage, &times.to_string()]);
    let output = command.output().expect("run valgrind: `make setup-test` installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stage}: {said}");
    let lines = String::from_utf8_lossy(&output.stdout).trim().parse().expect("lines");
    let counts = std::fs::read_to_string(&out).expect("what callgrind counted");
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
    (total.trim().parse().expect("a number"), lines)
}

#[test]
fn no_stage_takes_more_instructions_than_it_did() {
    let mut worse = Vec::new();
    for (stage, known) in TABLE {
        let [few, many] = TIMES.map(|times| count(stage, times));
        let instructions = (many.0 - few.0) / (many.1 - few.1);
        println!("{stage}: {instructions:.1} instructions, {known} known");
        if instructions > known * MORE {
            worse.push(format!("{stage}: {instructions:.1}, it was {known}"));
        }
    }
    assert!(worse.is_empty(), "instructions a line: {worse:?}");
}
