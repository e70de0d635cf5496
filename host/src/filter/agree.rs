//! Each example does the same in WebAssembly and natively, so that what its author's `cargo test`
//! says holds on the fleet.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;
use weir_guest::testing::{Fate, Run};

use super::tests::{Bench, Lines};
use super::{ErrorKind, Filter, Outcome};

/// A filter, compiled for this machine: what it does to lines of one batch.
type Natively = fn(&[u8], &[Vec<u8>]) -> Result<Run, String>;

const CASES: u32 = 200;

/// What the examples look for, and what may confuse them.
const PARTS: [&[u8]; 30] = [
    b"DEBUG",
    b"INFO",
    b" ",
    b"=",
    b"\"",
    b"\\",
    b";",
    b"{",
    b"}",
    b"[1,2]",
    b":",
    b",",
    b"\"a\"",
    b"\"b\":1.50",
    b"a=1",
    b"password",
    b"password=x y",
    b"4111111111111111",
    b"10.1.2.3",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"\xf0\x9f\x98\x80",
    b"\0",
    b"one ",
    b"split ",
    b"many 3",
    b"seen",
    b"where",
    b"aside",
    b"{\"a\":\"\\u00e9\",\"level\":\"debug\"}",
];

fn line() -> impl Strategy<Value = Vec<u8>> {
    let any = prop::collection::vec(any::<u8>().prop_filter("no newline", |byte| *byte != b'\n'), 0..20);
    let part = prop_oneof![8 => select(&PARTS[..]).prop_map(<[u8]>::to_vec), 1 => any];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// Holds `name` with `config` to what it does natively.
fn agrees(name: &str, config: &str, natively: Natively) {
    let bench = Bench::new();
    let lines = prop::collection::vec(line(), 1..20);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(CASES));
    let outcome = runner.run(&lines, |lines| {
        let mut filter = bench.filter(name, config);
        let found = fates(&mut filter, &lines);
        let Run { fates, counts, .. } = natively(config.as_bytes(), &lines).map_err(TestCaseError::fail)?;
        prop_assert_eq!((found, filter.counts()), (fates, counts));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{name} {config}: {error}"));
}

/// What the module makes of a batch. A line that it fails on is no fate.
fn fates(filter: &mut Filter, lines: &[Vec<u8>]) -> Vec<Fate> {
    let lines = Lines::new(lines);
    let Outcome { verdicts, bytes, ends, refused, .. } =
        filter.process(&super::Batch { path: "test.log", ..lines.batch() });
    assert!(refused.iter().all(|line| line.kind == ErrorKind::SetAside), "{refused:?}");
    let mut ends = ends.into_iter().map(|end| end as usize);
    let mut start = 0;
    let mut replaced = |lines: u8| {
        let lines = ends.by_ref().take(usize::from(lines) - 1);
        lines.map(|end| bytes[std::mem::replace(&mut start, end)..end].to_vec()).collect()
    };
    let fate = |verdict| match verdict {
        0 => Fate::Dropped,
        1 => Fate::Kept,
        255 => Fate::SetAside,
        lines => Fate::Replaced(replaced(lines)),
    };
    verdicts.into_iter().map(fate).collect()
}

#[test]
fn drop_debug_does_the_same_natively() {
    agrees("drop_debug", "", drop_debug::run_natively);
}

#[test]
fn redact_does_the_same_natively() {
    agrees("redact", r#"{"fields":["password"],"patterns":["[0-9]{4,}","a+"]}"#, redact::run_natively);
}

#[test]
fn json_fields_does_the_same_natively() {
    agrees("json_fields", r#"{"remove":["b"],"rename":{"a":"first"}}"#, json_fields::run_natively);
}

#[test]
fn the_reference_filter_does_the_same_natively() {
    agrees("conformance_rust", r#""é ""#, conformance_rust::run_natively);
}

#[test]
fn the_smallest_filter_has_less_than_20_kilobytes() {
    let bytes = super::tests::guest("drop_debug").len();
    assert!(bytes < 20_000, "{bytes} bytes");
}

#[test]
fn two_that_differ_are_found_out() {
    let found = std::panic::catch_unwind(|| {
        agrees("drop_debug", "", |_, lines| {
            Ok(Run { fates: vec![Fate::Kept; lines.len()], logs: Vec::new(), counts: BTreeMap::new() })
        })
    });
    assert!(found.is_err());
}
