//! The sources keep the walls between the rooms.
//!
//! What `ARCHITECTURE.md` says about who may name whom is read off the sources here. Comments and
//! tests may name anything: what stands behind `#[cfg(test)] mod` in a file, and files `tests.rs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source file of the agent.
struct Source {
    /// Relative to `host/src`.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The first part of its path: `sink/kafka.rs` and `sink.rs` lie in `sink`.
    fn room(&self) -> &str {
        let first = self.path.iter().next().and_then(|part| part.to_str()).expect("a path of text");
        first.trim_end_matches(".rs")
    }

    /// The code alone, without comments and without the tests at its end.
    fn code(&self) -> String {
        let tests = self.text.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(|at| {
            let next = self.text[*at..].lines().nth(1).unwrap_or_default();
            next.ends_with("mod tests {")
        });
        let code = &self.text[..tests.unwrap_or(self.text.len())];
        let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The rooms it names: what stands behind `crate::`, alone or in braces.
    fn rooms_named(&self) -> BTreeSet<String> {
        let code = self.code();
        let mut rooms = BTreeSet::new();
        for rest in code.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(group) => rooms.extend(heads_of_group(group)),
                None => _ = rooms.insert(word(rest)),
            }
        }
        rooms
    }

    /// Whether the code names a crate: in a path or a `use`.
    fn names_crate(&self, name: &str) -> bool {
        let code = self.code();
        let before =
            |at: usize| code[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let in_path = code.match_indices(&format!("{name}::")).any(|(at, _)| before(at));
        in_path || code.contains(&format!("use {name};")) || code.contains(&format!("use {name} as"))
    }
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// `a::{b, c}, d}` has the heads `a` and `d`.
fn heads_of_group(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut head) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut head)),
            _ if depth == 0 => head.push(c),
            _ => {}
        }
    }
    heads.push(head);
    heads.iter().map(|head| word(head.trim())).filter(|head| !head.is_empty()).collect()
}

fn sources() -> Vec<Source> {
    let root = weir_tests::workspace().join("host/src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 10, "the sources are in {}", root.display());
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(dir).expect("read the sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).expect("read a source");
            found.push(Source { path: path.strip_prefix(root).expect("below the root").into(), text });
        }
    }
}

/// Fails with one line for each file that breaks the rule.
#[track_caller]
fn hold(rule: &str, broken_by: impl Fn(&Source) -> Option<String>) {
    let broken: Vec<_> = sources()
        .iter()
        .filter_map(|source| Some(format!("host/src/{}: {}", source.path.display(), broken_by(source)?)))
        .collect();
    assert!(broken.is_empty(), "{rule}\n{}", broken.join("\n"));
}

#[test]
fn source_filter_and_sink_do_not_name_one_another() {
    const ROOMS: [&str; 3] = ["source", "filter", "sink"];
    hold("only the pipeline sees source, filter and sink", |source| {
        let others = source.rooms_named();
        let other = ROOMS.iter().find(|room| **room != source.room() && others.contains(**room))?;
        ROOMS.contains(&source.room()).then(|| format!("names {other}"))
    });
}

#[test]
fn each_outside_is_named_by_one_room() {
    for (name, room) in [
        ("etcd_client", "control"),
        ("landlock", "confine"),
        ("minisign_verify", "policy"),
        ("openssl", "policy"),
        ("rdkafka", "sink"),
        ("rdkafka_sys", "sink"),
        ("wasmtime", "filter"),
    ] {
        hold(&format!("only {room} names {name}"), |source| {
            (source.room() != room && source.names_crate(name)).then(|| format!("names {name}"))
        });
    }
}

#[test]
fn threads_and_tasks_are_started_by_their_owners_only() {
    /// The agent owns all threads and tasks of the rooms; the rest own what lives no longer than
    /// one command or one connection to the outside.
    const OWNERS: [&str; 4] = ["agent", "admin", "control", "cli"];
    /// A thread that belongs to a part from outside, and ends with it: the one that serves a
    /// producer of librdkafka until it is destroyed, the one that ticks wasmtime's epochs.
    const SERVANTS: [&str; 2] = ["sink/producer.rs", "filter/engine.rs"];
    const STARTS: [&str; 5] =
        ["thread::spawn(", "thread::Builder::", "thread::scope(", "tokio::spawn(", "task::spawn"];
    hold("only the agent starts threads and tasks", |source| {
        let code = source.code();
        let start = STARTS.iter().find(|start| code.contains(**start))?;
        let owner =
            OWNERS.contains(&source.room()) || SERVANTS.iter().any(|file| source.path == Path::new(file));
        // A test's threads end with the test.
        let is_test = source.path.components().any(|part| part.as_os_str() == "tests");
        (!owner && !is_test).then(|| format!("has {start}"))
    });
}

#[test]
fn every_file_says_what_it_is_for_and_holds_nothing_unfinished() {
    hold("a file begins with its documentation", |source| {
        (!source.text.starts_with("//! ")).then(|| "begins otherwise".into())
    });
    hold("nothing is left unfinished", |source| {
        let code = source.code();
        let left = ["todo!(", "unimplemented!(", "dbg!("].into_iter().find(|left| code.contains(left))?;
        Some(format!("has {left}"))
    });
}

#[test]
fn the_rules_notice_what_they_forbid() {
    let source = |text: &str| Source { path: "sink/kafka.rs".into(), text: text.into() };
    let named = |text: &str| source(text).rooms_named().into_iter().collect::<Vec<_>>();
    assert_eq!(named("use crate::source::Tail;\nlet x = crate::filter::f();"), ["filter", "source"]);
    assert_eq!(named("use crate::{model::{Entry, Topic}, source};"), ["model", "source"]);
    assert!(named("// crate::source\n").is_empty());
    assert!(named("#[cfg(test)]\npub(crate) mod tests {\n    use crate::source;\n}").is_empty());
    assert_eq!(named("#[cfg(test)]\nmod tests;\nuse crate::source;"), ["source"]);
    assert!(source("use wasmtime::Engine;").names_crate("wasmtime"));
    assert!(!source("use my_wasmtime::Engine; //! wasmtime::x").names_crate("wasmtime"));
    assert_eq!(source("").room(), "sink");
}
