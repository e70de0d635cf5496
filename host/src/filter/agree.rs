//! Each example does the same in WebAssembly and natively, so that what its author's `cargo test`
//! says holds on the fleet.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;
use weir_guest::testing::{Fate, Run};

use super::tests::{Bench, Lines, guest};
use super::{ErrorKind, Filter, FilterContext, Outcome};
use crate::model::{EntryName, FILTER_MEMORY, FILTER_TIMEOUT, Topic};

#[path = "../../../examples/cookbook/recipes/add_place.rs"]
mod recipe_add_place;
#[path = "../../../examples/cookbook/recipes/anonymize_ip.rs"]
mod recipe_anonymize_ip;
#[path = "../../../examples/cookbook/recipes/dedup.rs"]
mod recipe_dedup;
#[path = "../../../examples/cookbook/recipes/drop_by_level.rs"]
mod recipe_drop_by_level;
#[path = "../../../examples/cookbook/recipes/hash_field.rs"]
mod recipe_hash_field;
#[path = "../../../examples/cookbook/recipes/json_select.rs"]
mod recipe_json_select;
#[path = "../../../examples/cookbook/recipes/logfmt_to_json.rs"]
mod recipe_logfmt_to_json;
#[path = "../../../examples/cookbook/recipes/rate_limit.rs"]
mod recipe_rate_limit;
#[path = "../../../examples/cookbook/recipes/redact.rs"]
mod recipe_redact;
#[path = "../../../examples/cookbook/recipes/sample.rs"]
mod recipe_sample;
#[path = "../../../examples/cookbook/recipes/split.rs"]
mod recipe_split;
#[path = "../../../examples/cookbook/recipes/truncate.rs"]
mod recipe_truncate;

/// The examples that are crates, each with a config.
const EXAMPLES: [(&str, &str, Natively); 4] = [
    ("containers", "", containers::run_natively),
    ("drop_debug", "", drop_debug::run_natively),
    ("redact", r#"{"fields":["password"],"patterns":["[0-9]{4,}","a+"]}"#, redact::run_natively),
    ("json_fields", r#"{"remove":["b"],"rename":{"a":"first"}}"#, json_fields::run_natively),
];

/// The recipes of the cookbook.
const RECIPES: [(&str, &str, Natively); 12] = [
    ("add_place", "", recipe_add_place::run_natively),
    ("anonymize_ip", "", recipe_anonymize_ip::run_natively),
    ("dedup", "", recipe_dedup::run_natively),
    ("drop_by_level", r#""info""#, recipe_drop_by_level::run_natively),
    ("hash_field", r#"{"fields":["a","level"],"key":"0123456789abcdef"}"#, recipe_hash_field::run_natively),
    ("json_select", r#"["a","level"]"#, recipe_json_select::run_natively),
    ("logfmt_to_json", "", recipe_logfmt_to_json::run_natively),
    ("rate_limit", "3", recipe_rate_limit::run_natively),
    ("redact", r#"["password=","a="]"#, recipe_redact::run_natively),
    ("sample", r#"{"percent":50,"by":"a"}"#, recipe_sample::run_natively),
    ("split", r#"";""#, recipe_split::run_natively),
    ("truncate", "5", recipe_truncate::run_natively),
];

/// A filter, compiled for this machine: what it does to lines of one batch.
type Natively = fn(&[u8], &[Vec<u8>]) -> Result<Run, String>;

const CASES: u32 = 200;

/// What the examples look for, and what may confuse them.
const PARTS: [&[u8]; 32] = [
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
    b"1 stdout F ",
    b"{\"log\":\"a\\n\"}",
];

fn line() -> impl Strategy<Value = Vec<u8>> {
    let any = prop::collection::vec(any::<u8>().prop_filter("no newline", |byte| *byte != b'\n'), 0..20);
    let part = prop_oneof![8 => select(&PARTS[..]).prop_map(<[u8]>::to_vec), 1 => any];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// Holds a module with `config` to what it does natively.
fn agrees(name: &str, module: &[u8], config: &str, natively: Natively) {
    let bench = Bench::new();
    let module = bench.load(module).unwrap();
    let lines = prop::collection::vec(line(), 1..20);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(CASES));
    let outcome = runner.run(&lines, |lines| {
        let mut filter = module.prepare(context(config)).unwrap();
        let found = fates(&mut filter, &lines);
        let Run { fates, counts, .. } = natively(config.as_bytes(), &lines).map_err(TestCaseError::fail)?;
        prop_assert_eq!((found, filter.counts()), (fates, counts));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{name} {config}: {error}"));
}

/// What it is told natively, too.
fn context(config: &str) -> FilterContext {
    FilterContext {
        entry: EntryName("test".into()),
        topic: Topic::parse("test").unwrap(),
        host: "test".into(),
        config: config.into(),
        timeout: FILTER_TIMEOUT,
        memory: FILTER_MEMORY,
        aside: false,
    }
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
fn each_example_does_the_same_natively() {
    for (name, config, natively) in EXAMPLES {
        agrees(name, guest(name), config, natively);
    }
}

#[test]
fn each_recipe_does_the_same_natively() {
    for (name, config, natively) in RECIPES {
        let module = std::fs::read(weir_tests::guests::recipe(name)).unwrap();
        agrees(name, &module, config, natively);
    }
}

#[test]
fn no_example_is_left_out() {
    let names = |dir: &str| -> BTreeSet<String> {
        let dir = weir_tests::workspace().join(dir).read_dir().unwrap().flatten();
        let stems = dir.map(|file| file.path().file_stem().unwrap().to_string_lossy().into_owned());
        stems.filter(|name| name != "cookbook").collect()
    };
    let held = |table: &[(&str, &str, Natively)]| table.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(names("examples"), held(&EXAMPLES));
    assert_eq!(names("examples/cookbook/recipes"), held(&RECIPES));
}

#[test]
fn the_reference_filter_does_the_same_natively() {
    agrees("conformance_rust", guest("conformance_rust"), r#""é ""#, conformance_rust::run_natively);
}

#[test]
fn the_smallest_filter_has_less_than_20_kilobytes() {
    let bytes = guest("drop_debug").len();
    assert!(bytes < 20_000, "{bytes} bytes");
}

#[test]
fn two_that_differ_are_found_out() {
    let found = std::panic::catch_unwind(|| {
        agrees("drop_debug", guest("drop_debug"), "", |_, lines| {
            Ok(Run { fates: vec![Fate::Kept; lines.len()], logs: Vec::new(), counts: BTreeMap::new() })
        })
    });
    assert!(found.is_err());
}
