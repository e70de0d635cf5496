//! Fuzz target: what anybody who may write the key may write into it.

use std::collections::{BTreeMap, HashSet};

use serde_json::value::{RawValue, to_raw_value};

use super::{Item, List, Origin, parse};
use crate::fuzz::assert_within;
use crate::model::{Entry, FilterSpec, LongLine, Multiline, OnError, Partition, Problem, RecordKey, StartAt};

const FILE: &str = "/etc/weir/collect.json";

type Members = BTreeMap<&'static str, Box<RawValue>>;

/// A text is no list, and it is said where and why; or each entry is checked or refused. Names are
/// unique. What was taken means the same where it is written out in full.
pub fn list(input: &[u8]) {
    for origin in [Origin::File(FILE.into()), Origin::Key("/weir/web1/collect".into())] {
        let text = String::from_utf8_lossy(input);
        let list = match parse(input, &origin) {
            Ok(list) => list,
            Err(problem) => return check(&text, &problem),
        };
        list.problems.iter().for_each(|problem| check(&text, problem));
        let mut names = HashSet::new();
        for item in &list.items {
            match &item.checked {
                Ok(entry) => {
                    assert!(names.insert(entry.name.clone()), "two entries are called {}", entry.name);
                    let written = format!("[{}]", serde_json::to_string(&members(entry)).expect("JSON"));
                    let again = parse(written.as_bytes(), &origin).expect("a list");
                    assert_eq!(again.problems, [], "{written}");
                    assert_eq!(again.items[0].checked.as_ref().ok(), Some(entry), "{written}");
                }
                Err(refused) => check(&text, &refused.problem),
            }
        }
        assert_same_again(&list, &origin);
    }
}

fn check(text: &str, problem: &Problem) {
    assert!(!problem.cause.is_empty() && !problem.fix.is_empty(), "{problem:?}");
    assert_within(text.strip_prefix('\u{feff}').unwrap_or(text), FILE, &problem.place);
}

/// What is kept of the entries is the list.
fn assert_same_again(list: &List, origin: &Origin) {
    let texts: Vec<_> = list.items.iter().map(|item| item.text.as_str()).collect();
    let again = parse(format!("[{}]", texts.join(",")).as_bytes(), origin).expect("a list");
    let known = |item: &Item| (item.name().to_string(), item.checked.clone().ok());
    assert!(list.items.iter().map(known).eq(again.items.iter().map(known)), "{texts:?}");
}

/// The entry with every member that it may have.
fn members(entry: &Entry) -> Members {
    let start_at = match entry.start_at {
        StartAt::End => "end",
        StartAt::Beginning => "beginning",
    };
    let partition = match entry.partition {
        Partition::File => "file",
        Partition::Spread => "spread",
    };
    let key = match entry.key {
        RecordKey::None => "none",
        RecordKey::Path => "path",
        RecordKey::Host => "host",
    };
    let long_line = match entry.long_line {
        LongLine::Split => "split",
        LongLine::Truncate => "truncate",
        LongLine::Quarantine => "quarantine",
    };
    BTreeMap::from([
        ("name", raw(&entry.name)),
        ("path", raw(&entry.path)),
        ("exclude", raw(&entry.exclude)),
        ("topic", raw(&entry.topic)),
        ("filter", raw(&entry.filter.as_ref().map(filter))),
        ("start_at", raw(start_at)),
        ("partition", raw(partition)),
        ("key", raw(key)),
        ("line_bytes_max", raw(&entry.line_bytes_max)),
        ("long_line", raw(long_line)),
        ("read_bytes_per_second", raw(&entry.read_bytes_per_second)),
        ("skip_empty", raw(&entry.skip_empty)),
        ("labels", raw(&entry.labels)),
        ("headers", raw(&entry.headers)),
        ("multiline", raw(&entry.multiline.as_ref().map(multiline))),
        ("encoding", raw(&entry.encoding.map(|encoding| encoding.name()))),
        ("pack", raw(&entry.pack)),
    ])
}

fn multiline(multiline: &Multiline) -> Members {
    BTreeMap::from([
        ("start", raw(multiline.start.pattern())),
        ("max_lines", raw(&multiline.max_lines)),
        ("flush_ms", raw(&(multiline.flush.as_millis() as u64))),
    ])
}

fn filter(filter: &FilterSpec) -> Members {
    let on_error = match &filter.on_error {
        OnError::Quarantine => raw("quarantine"),
        OnError::Pass => raw("pass"),
        OnError::Drop => raw("drop"),
        OnError::Hold => raw("hold"),
        OnError::DeadLetter(topic) => raw(&BTreeMap::from([("dead_letter", topic)])),
    };
    let shadow = filter.shadow.as_ref().map(|shadow| {
        BTreeMap::from([("module", raw(&shadow.module.to_string())), ("config", config(&shadow.config))])
    });
    BTreeMap::from([
        ("module", raw(&filter.module.to_string())),
        ("config", config(&filter.config)),
        ("shadow", raw(&shadow)),
        ("rollout", raw(&filter.rollout)),
        ("on_error", on_error),
        ("timeout_ms", raw(&(filter.timeout.as_millis() as u64))),
        ("memory", raw(&filter.memory)),
    ])
}

fn config(config: &[u8]) -> Box<RawValue> {
    let config = if config.is_empty() { &b"null"[..] } else { config };
    RawValue::from_string(String::from_utf8(config.to_vec()).expect("it is JSON")).expect("it is JSON")
}

fn raw(value: &(impl serde::Serialize + ?Sized)) -> Box<RawValue> {
    to_raw_value(value).expect("it is JSON")
}

#[cfg(test)]
mod tests {
    use super::super::raw::{RawEntry, RawFilter, RawMultiline, names_of};
    use super::*;

    /// Otherwise a new option would not be tried.
    #[test]
    fn every_member_is_written_out() {
        let text = br#"[{"path": "/a", "topic": "t", "filter": "m", "multiline": {"start": "a"}}]"#;
        let list = parse(text, &Origin::File(FILE.into())).unwrap();
        let entry = list.items[0].checked.as_ref().unwrap();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let keys = |members: Members| members.into_keys().map(str::to_string).collect::<Vec<_>>();
        assert_eq!(keys(members(entry)), sorted(names_of::<RawEntry>()));
        let joined = keys(multiline(entry.multiline.as_ref().unwrap()));
        assert_eq!(joined, sorted(names_of::<RawMultiline>()));
        assert_eq!(keys(filter(entry.filter.as_ref().unwrap())), sorted(names_of::<RawFilter>()));
    }
}
