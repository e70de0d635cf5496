//! A search in each line: by a filter, and the same one compiled natively.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use memchr::memmem::Finder;
use serde_json::json;
use weir_tests::{scratch, workspace};

use crate::Bench;
use crate::report::Table;
use crate::stats::Sample;

const LENGTHS: [usize; 3] = [50, 200, 1000];
const LINES: usize = 20_000;
/// What no line has, as the cookbook's `redact` is told to look for.
const TEXT: &str = "password=";
/// How often the native one goes through all lines in a round.
const TIMES: u32 = 50;

pub(crate) fn scan(bench: &mut Bench) -> Result<()> {
    let Some(weir) = bench.agent("weir").cloned() else { return Ok(()) };
    let module = workspace().join("target/wasm32-unknown-unknown/guest/examples/redact.wasm");
    let columns = [
        "bytes a line",
        "filter, ns a line",
        "identity filter",
        "natively",
        "× native, what the search adds",
    ];
    let mut table = Table::new("scan", "A search for a text that is not there", &columns);
    for length in LENGTHS {
        let dir = scratch::dir("scan");
        let file = dir.path().join("sample.log");
        let line = |n| format!("INFO {n:08} {}", "x".repeat(length - 14));
        let text: String = (0..LINES).map(|n| line(n) + "\n").collect();
        std::fs::write(&file, &text)?;
        let (mut filters, mut identities, mut natives, mut ratios) = (vec![], vec![], vec![], vec![]);
        for _ in 0..bench.plan.rounds {
            let mut command = Command::new(&weir.program);
            command.args(["module", "bench"]).arg(&module).arg(&file);
            let said = command.args(["--with-config", &json!([TEXT]).to_string()]).output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let (filter, identity) = figures(&said).with_context(|| format!("weir module bench: {said}"))?;
            let native = native(&text);
            filters.push(filter);
            identities.push(identity);
            natives.push(native);
            ratios.push((filter - identity) / native);
        }
        let samples = [filters, identities, natives, ratios].map(Sample::of);
        let cells = samples.iter().map(|sample| sample.cell(1));
        let cells: Vec<_> = [length.to_string()].into_iter().chain(cells).collect();
        eprintln!("scan: {}", cells.join(", "));
        let [filter, identity, native, ratio] = samples.map(|sample| sample.json());
        table.row(&cells, json!({"bytes": length, "filter_ns": filter, "identity_ns": identity, "native_ns": native, "ratio": ratio}));
    }
    bench.report.add(table)
}

/// Of `a line   54.7 ns (identity 12.6 ns)`.
fn figures(said: &str) -> Option<(f64, f64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("a line"))?;
    let mut figures =
        line.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|figure| !figure.is_empty());
    Some((figures.next()?.parse().ok()?, figures.next()?.parse().ok()?))
}

/// Nanoseconds a line.
fn native(text: &str) -> f64 {
    let finder = Finder::new(TEXT);
    let lines: Vec<&[u8]> = text.lines().map(str::as_bytes).collect();
    let begun = Instant::now();
    for _ in 0..TIMES {
        let found = lines.iter().filter(|line| finder.find(black_box(line)).is_some()).count();
        assert_eq!(black_box(found), 0, "no line has it");
    }
    begun.elapsed().as_nanos() as f64 / f64::from(TIMES) / lines.len() as f64
}
