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
        "natively, line by line",
        "× that, what the search adds",
        "natively, all at once",
        "× that",
    ];
    let mut table = Table::new("scan", "A search for a text that is not there", &columns);
    for length in LENGTHS {
        let dir = scratch::dir("scan");
        let file = dir.path().join("sample.log");
        let line = |n| format!("INFO {n:08} {}", "x".repeat(length - 14));
        let text: String = (0..LINES).map(|n| line(n) + "\n").collect();
        std::fs::write(&file, &text)?;
        let mut figures: [Vec<f64>; 6] = Default::default();
        for _ in 0..bench.plan.rounds {
            let mut command = Command::new(&weir.program);
            command.args(["module", "bench"]).arg(&module).arg(&file);
            let said = command.args(["--with-config", &json!([TEXT]).to_string()]).output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let (filter, identity) = said_of(&said).with_context(|| format!("weir module bench: {said}"))?;
            let (by_line, at_once) = (native(&text.lines().collect::<Vec<_>>()), native(&[&text]));
            let [by_line, at_once] = [by_line, at_once].map(|ns| ns / LINES as f64);
            let added = filter - identity;
            let round = [filter, identity, by_line, added / by_line, at_once, added / at_once];
            figures.iter_mut().zip(round).for_each(|(figures, figure)| figures.push(figure));
        }
        let samples = figures.map(Sample::of);
        let cells = samples.iter().map(|sample| sample.cell(1));
        let cells: Vec<_> = [length.to_string()].into_iter().chain(cells).collect();
        eprintln!("scan: {}", cells.join(", "));
        let [filter, identity, by_line, by_line_ratio, at_once, at_once_ratio] =
            samples.map(|sample| sample.json());
        let figures = json!({
            "bytes": length, "filter_ns": filter, "identity_ns": identity,
            "native_by_line_ns": by_line, "by_line_ratio": by_line_ratio,
            "native_at_once_ns": at_once, "at_once_ratio": at_once_ratio,
        });
        table.row(&cells, figures);
    }
    bench.report.add(table)
}

/// Of `a line   54.7 ns (identity 12.6 ns)`.
fn said_of(said: &str) -> Option<(f64, f64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("a line"))?;
    let mut figures =
        line.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|figure| !figure.is_empty());
    Some((figures.next()?.parse().ok()?, figures.next()?.parse().ok()?))
}

/// How long a search through all of these takes. Nanoseconds.
fn native(texts: &[&str]) -> f64 {
    let finder = Finder::new(TEXT);
    let begun = Instant::now();
    for _ in 0..TIMES {
        let found = texts.iter().filter(|text| finder.find(black_box(text.as_bytes())).is_some()).count();
        assert_eq!(black_box(found), 0, "no line has it");
    }
    begun.elapsed().as_nanos() as f64 / f64::from(TIMES)
}
