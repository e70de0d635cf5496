use proptest::prelude::*;

use super::*;
use crate::model::{
    Digest, FilterSpec, LongLine, ModuleRef, OnError, Partition, RecordKey, ShadowSpec, StartAt, Topic,
};

fn key() -> Origin {
    Origin::Key("/weir/web1/collect".into())
}

fn file() -> Origin {
    Origin::File("/etc/weir/collect.json".into())
}

fn list(text: &str) -> List {
    parse(text.as_bytes(), &file()).unwrap()
}

/// The only entry, with `more` members.
fn entry(more: &str) -> Entry {
    let list = list(&format!(r#"[{{"path": "/a.log", "topic": "t"{more}}}]"#));
    assert_eq!(list.problems, []);
    Entry::clone(list.items[0].checked.as_ref().unwrap())
}

/// Why the only entry is refused.
fn refusal(entry: &str, origin: &Origin) -> Problem {
    let list = parse(format!("[{entry}]").as_bytes(), origin).unwrap();
    list.items[0].checked.clone().unwrap_err().problem
}

fn refused_with(more: &str) -> Problem {
    refusal(&format!(r#"{{"path": "/a.log", "topic": "t"{more}}}"#), &file())
}

fn names(list: &List) -> Vec<&str> {
    list.items.iter().map(Item::name).collect()
}

fn filter(value: &str) -> FilterSpec {
    entry(&format!(r#", "filter": {value}"#)).filter.unwrap()
}

#[test]
fn path_and_topic_are_enough() {
    let expected = Entry {
        name: EntryName("/a.log".into()),
        path: "/a.log".into(),
        exclude: Vec::new(),
        topic: Topic::parse("t").unwrap(),
        filter: None,
        start_at: StartAt::End,
        partition: Partition::File,
        key: RecordKey::None,
        line_bytes_max: 256 * 1024,
        long_line: LongLine::Split,
        read_bytes_per_second: None,
        skip_empty: true,
        labels: Default::default(),
        headers: false,
        multiline: None,
        encoding: None,
        pack: None,
    };
    assert_eq!(entry(""), expected);
}

#[test]
fn every_option_is_read() {
    let all = entry(
        r#", "name": "n", "exclude": ["*.gz"], "filter": {"module": "m", "timeout_ms": 5, "memory": "2MiB",
           "shadow": {"module": "s", "config": [1]}, "rollout": 25},
           "start_at": "beginning", "partition": "spread", "key": "host", "line_bytes_max": 1000,
           "long_line": "truncate", "read_bytes_per_second": "1 MiB", "skip_empty": false,
           "labels": {"team": "web", "dc.name": ""}, "headers": true, "encoding": "Latin1", "pack": "64KiB""#,
    );
    let expected = Entry {
        name: EntryName("n".into()),
        path: "/a.log".into(),
        exclude: vec!["*.gz".into()],
        topic: Topic::parse("t").unwrap(),
        filter: Some(FilterSpec {
            module: ModuleRef::Tag("m".into()),
            config: Vec::new(),
            on_error: OnError::Quarantine,
            timeout: std::time::Duration::from_millis(5),
            memory: 2 << 20,
            shadow: Some(ShadowSpec { module: ModuleRef::Tag("s".into()), config: b"[1]".into() }),
            rollout: 25,
        }),
        start_at: StartAt::Beginning,
        partition: Partition::Spread,
        key: RecordKey::Host,
        line_bytes_max: 1000,
        long_line: LongLine::Truncate,
        read_bytes_per_second: Some(1 << 20),
        skip_empty: false,
        labels: [("team".into(), "web".into()), ("dc.name".into(), String::new())].into(),
        headers: true,
        multiline: None,
        encoding: Some(encoding_rs::WINDOWS_1252),
        pack: Some(64 << 10),
    };
    assert_eq!(all, expected);
}

#[test]
fn names_are_matched_without_case_and_in_older_spellings() {
    for path in ["path", "Path", "PATH", "log_path", "Log_Path", "filepath", "FilePath"] {
        let list = list(&format!(r#"[{{"{path}": "/a.log", "Topic": "t", "Filter": {{"Module": "m"}}}}]"#));
        let entry = list.items[0].checked.as_ref().unwrap();
        assert_eq!((entry.path.as_str(), entry.topic.as_str()), ("/a.log", "t"), "{path}");
        assert_eq!(entry.filter.as_ref().unwrap().module, ModuleRef::Tag("m".into()));
        assert_eq!(list.problems, []);
    }
}

#[test]
fn unknown_names_are_reported_once_and_ignored() {
    let list = list(
        r#"[{"path": "/a.log", "topic": "a", "service": "x", "send_rate": 5, "Style": 1, "tags": {}},
            {"path": "/b.log", "topic": "b", "service": "y", "filter": {"module": "m", "modle": 1}}]"#,
    );
    assert!(list.items.iter().all(|item| item.checked.is_ok()));
    let told: Vec<_> = list.problems.iter().map(|p| (p.cause.as_str(), p.fix.as_str())).collect();
    assert_eq!(
        told,
        [
            ("weir does not know `service` and ignores it (2 entries)", "remove it"),
            ("weir does not know `send_rate` and ignores it", "remove it"),
            ("weir does not know `Style` and ignores it", "remove it"),
            ("weir does not know `tags` and ignores it", "remove it"),
            ("weir does not know `filter.modle` and ignores it", "did you mean `filter.module`?"),
        ]
    );
    assert!(
        list.problems[4].place.starts_with("/etc/weir/collect.json:2:13, entry #2 (/b.log)"),
        "{}",
        list.problems[4]
    );
}

#[test]
fn a_shadow_has_the_config_of_its_filter_unless_it_has_its_own() {
    let shadow = |shadow: &str| {
        filter(&format!(r#"{{"module": "m", "config": 1, "shadow": {shadow}}}"#)).shadow.unwrap()
    };
    assert_eq!(shadow(r#""s""#), ShadowSpec { module: ModuleRef::Tag("s".into()), config: b"1".into() });
    assert_eq!(shadow(r#"{"module": "s"}"#), shadow(r#""s""#));
    assert_eq!(shadow(r#"{"module": "s", "config": 2}"#).config, b"2");
    for (bad, cause) in [
        ("7", "a shadow is a module's name or an object"),
        ("{}", "there is no `module`"),
        (r#"{"module": 7}"#, "invalid type: integer `7`, expected a string"),
        (r#""no tag""#, "cannot be a tag"),
    ] {
        let problem = refused_with(&format!(r#", "filter": {{"module": "m", "shadow": {bad}}}"#));
        assert!(problem.cause.contains(cause) && problem.place.contains("filter.shadow"), "{problem}");
    }
    let problem = refused_with(r#", "filter": {"module": "m", "rollout": 101}"#);
    assert_eq!(problem.cause, "101 percent is more than all hosts");
    let odd = list(
        r#"[{"path": "/a", "topic": "t", "filter": {"module": "m", "shadow": {"modul": "s", "module": "s"}}}]"#,
    );
    assert!(odd.problems[0].fix.contains("`filter.shadow.module`"), "{}", odd.problems[0]);
}

#[test]
fn a_filter_may_be_a_string() {
    assert_eq!(filter(r#""redact""#), filter(r#"{"module": "redact"}"#));
}

#[test]
fn a_module_is_a_tag_a_digest_or_a_file_beside_the_list() {
    let digest = Digest::of(b"");
    assert_eq!(filter(&format!("\"{digest}\"")).module, ModuleRef::Digest(digest));
    assert_eq!(filter(r#""a.wasm""#).module, ModuleRef::File("/etc/weir/a.wasm".into()));
    assert_eq!(filter(r#""./a""#).module, ModuleRef::File("/etc/weir/./a".into()));
    assert_eq!(filter(r#""/opt/a""#).module, ModuleRef::File("/opt/a".into()));
    for bad in ["", "a b", "sha256:12", "ümlaut"] {
        assert!(refused_with(&format!(r#", "filter": "{bad}""#)).place.ends_with("`filter.module`"), "{bad}");
    }
}

#[test]
fn a_list_in_etcd_names_no_file() {
    for module in ["a.wasm", "/opt/a"] {
        let text = format!(r#"{{"path": "/a.log", "topic": "t", "filter": "{module}"}}"#);
        let problem = refusal(&text, &key());
        assert!(problem.cause.contains("only a list in a local file"), "{problem}");
        assert!(problem.fix.contains("weir module push"), "{problem}");
    }
}

#[test]
fn the_config_keeps_its_bytes() {
    let spec = filter(r#"{"module": "m", "config": {"b": 1.50,  "a": [ ]}}"#);
    assert_eq!(spec.config, br#"{"b": 1.50,  "a": [ ]}"#);
    assert_eq!(filter(r#"{"module": "m", "config": null}"#).config, b"");
}

#[test]
fn on_error_has_five_forms() {
    let rule = |form: &str| filter(&format!(r#"{{"module": "m", "on_error": {form}}}"#)).on_error;
    assert_eq!(rule(r#""quarantine""#), OnError::Quarantine);
    assert_eq!(rule(r#""pass""#), OnError::Pass);
    assert_eq!(rule(r#""drop""#), OnError::Drop);
    assert_eq!(rule(r#""hold""#), OnError::Hold);
    assert_eq!(rule(r#"{"dead_letter": "dead"}"#), OnError::DeadLetter(Topic::parse("dead").unwrap()));
    for bad in [r#""ignore""#, r#"{"dead_letter": "a b"}"#, r#"{"dead_letter": 1}"#] {
        let problem = refused_with(&format!(r#", "filter": {{"module": "m", "on_error": {bad}}}"#));
        assert!(problem.place.ends_with("`filter.on_error`"), "{problem}");
    }
}

#[test]
fn unnamed_entries_of_one_path_are_told_apart_by_topic() {
    let list = list(
        r#"[{"path": "/a", "topic": "x"}, {"path": "/a", "topic": "y"}, {"path": "/b", "topic": "x"},
            {"path": "/a", "topic": "y"}]"#,
    );
    assert_eq!(names(&list), ["/a", "/a@y", "/b", "/a@y"]);
    let again = list.items[3].checked.as_ref().unwrap_err();
    assert_eq!(again.problem.cause, "entry #2 is already called `/a@y`");
}

#[test]
fn a_name_belongs_to_the_first_that_has_it() {
    let list =
        list(r#"[{"name": "n", "path": "/a", "topic": "x"}, {"name": "n", "path": "/b", "topic": "x"}]"#);
    assert!(list.items[0].checked.is_ok());
    assert_eq!(list.items[1].checked.as_ref().unwrap_err().problem.cause, "entry #1 is already called `n`");
}

#[test]
fn mending_a_bad_entry_renames_no_other() {
    let broken = list(r#"[{"path": "/a", "topic": "not a topic"}, {"path": "/a", "topic": "y"}]"#);
    let mended = list(r#"[{"path": "/a", "topic": "x"}, {"path": "/a", "topic": "y"}]"#);
    assert_eq!(names(&broken), names(&mended));
}

#[test]
fn one_bad_entry_does_not_stop_the_good_ones() {
    let list = list(
        r#"[{"path": "/a", "topic": "x"}, 7, {"path": "b", "topic": "x"}, {"path": "/c", "topic": "x"}]"#,
    );
    let good: Vec<bool> = list.items.iter().map(|item| item.checked.is_ok()).collect();
    assert_eq!(good, [true, false, false, true]);
    assert_eq!(list.items[1].name(), "#2");
    let refused = list.items[2].checked.as_ref().unwrap_err();
    assert_eq!((refused.name.as_str(), refused.path.as_str(), refused.topic.as_str()), ("b", "b", "x"));
}

#[test]
fn paths_that_cannot_be_followed_are_refused() {
    for path in ["", "a.log", "./a.log", "/var/../a.log", "/var/log/", "/a[", "/a{b", "/a\\u0000b"] {
        let problem = refusal(&format!(r#"{{"path": "{path}", "topic": "t"}}"#), &file());
        assert!(problem.place.ends_with("`path`"), "{path}: {problem}");
    }
    assert!(refused_with(r#", "exclude": ["["]"#).place.ends_with("`exclude`"));
    assert_eq!(refusal(r#"{"topic": "t"}"#, &file()).cause, "there is no `path`");
    assert_eq!(refusal(r#"{"path": "/a"}"#, &file()).cause, "there is no `topic`");
    assert!(refusal(r#"{"path": "/a", "topic": "a b"}"#, &file()).place.ends_with("`topic`"));
}

#[test]
fn sizes_and_times_have_bounds() {
    assert_eq!(entry(r#", "line_bytes_max": "1023 KiB""#).line_bytes_max, (1 << 20) - 1024);
    for more in [
        r#""line_bytes_max": "1MiB""#,
        r#""line_bytes_max": 15"#,
        r#""line_bytes_max": "1 MB""#,
        r#""line_bytes_max": "99999999999999999999""#,
        r#""read_bytes_per_second": 1023"#,
        r#""headers": true, "line_bytes_max": "1008KiB""#,
        r#""encoding": "gbk", "line_bytes_max": "342KiB""#,
        r#""pack": 1023"#,
        r#""pack": "257KiB""#,
        r#""filter": {"module": "m", "timeout_ms": 0}"#,
        r#""filter": {"module": "m", "timeout_ms": 10001}"#,
        r#""filter": {"module": "m", "memory": 1048575}"#,
        r#""filter": {"module": "m", "memory": "2GiB"}"#,
    ] {
        let problem = refused_with(&format!(", {more}"));
        let field = problem.place.rsplit('`').nth(1).unwrap_or_default().to_string();
        let last = field.rsplit('.').next().unwrap_or_default();
        assert!(
            !last.is_empty() && more.contains(last) && !["headers", "encoding"].contains(&last),
            "{problem}"
        );
    }
}

#[test]
fn multiline_has_a_pattern_and_bounds() {
    let joined = entry(r#", "multiline": {"Start": "^\\d"}"#).multiline.unwrap();
    assert_eq!((joined.max_lines, joined.flush), (500, std::time::Duration::from_secs(1)));
    assert!(joined.start.begins(b"2026 \xff") && !joined.start.begins(b"\tat a.b"));
    let full = r#", "multiline": {"start": "x", "max_lines": 2, "flush_ms": 10}"#;
    assert_eq!(entry(full).multiline.unwrap().max_lines, 2);
    for (value, field, cause) in [
        (r#""^a""#, "multiline", "an object with `start`"),
        ("true", "multiline", "an object with `start`"),
        ("{}", "", "there is no `multiline.start`"),
        (r#"{"start": ""}"#, "multiline.start", "1 to 1024 bytes"),
        (r#"{"start": "a("}"#, "multiline.start", "\"a(\" is no regular expression: unclosed group"),
        (r#"{"start": "(a{1000}){1000}"}"#, "multiline.start", "it is too large"),
        (r#"{"start": "a", "max_lines": 1}"#, "multiline.max_lines", "1 is not between 2 and 10000"),
        (r#"{"start": "a", "flush_ms": 9}"#, "multiline.flush_ms", "9 is not between 10 and 600000"),
        (r#"{"start": 7}"#, "multiline.start", "expected a string"),
    ] {
        let problem = refused_with(&format!(r#", "multiline": {value}"#));
        assert!(problem.place.ends_with(&format!("`{field}`")) || field.is_empty(), "{problem}");
        assert!(problem.cause.contains(cause), "{problem}");
    }
    let both = refused_with(r#", "multiline": {"start": "a"}, "pack": "64KiB""#);
    assert!(both.place.ends_with("`pack`") && both.fix == "remove one of the two", "{both}");
    let odd = list(r#"[{"path": "/a", "topic": "t", "multiline": {"start": "a", "maxlines": 3}}]"#);
    assert_eq!(odd.problems[0].fix, "did you mean `multiline.max_lines`?");
}

#[test]
fn an_encoding_is_one_whose_lines_can_be_told() {
    for label in ["gbk", "GB2312", "gb18030", "big5", "shift_jis", "euc-kr", "latin1", "koi8-r", "utf-8"] {
        assert!(entry(&format!(r#", "encoding": "{label}""#)).encoding.is_some(), "{label}");
    }
    assert_eq!(entry(r#", "encoding": "utf-16""#).encoding, Some(encoding_rs::UTF_16LE));
    for bad in ["utf-32", "", "ebcdic", "iso-2022-jp", "hz-gb-2312"] {
        let problem = refused_with(&format!(r#", "encoding": "{bad}""#));
        assert!(problem.place.ends_with("`encoding`"), "{problem}");
    }
}

#[test]
fn labels_have_bounds() {
    let many = |n: usize| (0..n).map(|i| format!("\"l{i}\": \"v\"")).collect::<Vec<_>>().join(", ");
    assert_eq!(entry(&format!(r#", "labels": {{{}}}"#, many(16))).labels.len(), 16);
    let bad = [
        many(17),
        r#""": "v""#.into(),
        r#""Team": "v""#.into(),
        format!(r#""{}": "v""#, "n".repeat(64)),
        format!(r#""n": "{}""#, "v".repeat(257)),
        r#""offset": "v""#.into(),
        r#""n": 7"#.into(),
    ];
    for labels in bad {
        let problem = refused_with(&format!(r#", "labels": {{{labels}}}"#));
        assert!(problem.place.ends_with("`labels`"), "{problem}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_place() {
    let text = "[\n  {\"path\": \"/a\", \"topic\": \"t\"},\n  {\"path\": \"/b\",\n   \"Topic\": 7}\n]";
    let list = list(text);
    let problem = &list.items[1].checked.as_ref().unwrap_err().problem;
    assert_eq!(problem.place, "/etc/weir/collect.json:4:13, entry #2 (/b), `Topic`");
    assert_eq!(problem.cause, "invalid type: integer `7`, expected a string");
    let twice = refusal(r#"{"path": "/a", "log_path": "/b", "topic": "t"}"#, &key());
    assert_eq!(twice.cause, "`path` is given twice");
    assert!(twice.place.starts_with("etcd key /weir/web1/collect, line 1, column 29, "), "{twice}");
    assert!(refused_with(r#", "filter": 7"#).cause.contains("a module's name or an object"));
}

#[test]
fn what_is_no_list_is_an_error_with_line_and_column() {
    let broken = parse(b"[\n {\"path\": }\n]", &file()).unwrap_err();
    assert_eq!(broken.place, "/etc/weir/collect.json:2:11");
    assert_eq!(broken.cause, "expected value");
    let object = parse(b"{}", &file()).unwrap_err();
    assert_eq!(object.place, "/etc/weir/collect.json:1:1");
    assert!(object.fix.contains("an array such as"));
    let place = |path| {
        parse(format!(r#"[{{"path": "{path}", "topic": tru}}]"#).as_bytes(), &file()).unwrap_err().place
    };
    assert_eq!(place("/ä"), place("/a"));
    assert!(parse(b" ", &key()).unwrap_err().fix.contains("[]"));
    assert!(parse(b"[] []", &key()).is_err());
    assert!(parse(b"null", &key()).is_err());
    assert_eq!(parse(b"[\n\"\xff\"]", &file()).unwrap_err().place, "/etc/weir/collect.json:2:2");
    assert!(parse(b"\xef\xbb\xbf[]", &file()).unwrap().items.is_empty());
}

#[test]
fn the_shipped_schema_is_the_one_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/collect.schema.json");
    let now = format!("{:#}\n", schema());
    if std::env::var_os("WEIR_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap();
    assert_eq!(shipped, now, "write it again: WEIR_WRITE_SCHEMA=1 cargo test -p weir --lib shipped_schema");
}

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/entries.md")).unwrap()
}

#[test]
fn the_page_of_options_has_each_of_them() {
    let page = page();
    let heads: HashSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    let names = raw::names_of::<raw::RawEntry>();
    assert_eq!(heads, names.iter().map(String::as_str).collect());
    for name in &names {
        assert!(page.contains(&format!("| [`{name}`](#{name}) |")), "{name} is not in the table");
    }
    let within = [raw::names_of::<raw::RawFilter>(), raw::names_of::<raw::RawMultiline>()].concat();
    for name in within {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn the_examples_of_the_page_of_options_are_taken() {
    let page = page();
    let mut examples = 0;
    for block in page.split("```json\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let list = parse(text.as_bytes(), &key()).unwrap_or_else(|problem| panic!("{problem}\n{text}"));
        assert!(list.items.iter().all(|item| item.checked.is_ok()) && list.problems.is_empty(), "{list:?}");
        examples += 1;
    }
    assert!(examples >= 8, "{examples}");
    let text = r#"[
  {"path": "/a", "topic": "t"},
  {"line_bytes_max": 8, "name": "app", "path": "/b", "topic": "t"}]"#;
    let refused = list(text).items[1].checked.clone().unwrap_err().problem.to_string();
    assert!(page.contains(&refused), "{refused}");
}

#[test]
fn the_schema_knows_every_option() {
    let schema = schema();
    let of = |name: &str| {
        schema["$defs"][name]["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("Entry"), raw::names_of::<raw::RawEntry>());
    assert!(of("Filter").contains(&"config".into()));
    assert_eq!(schema["$defs"]["Entry"]["required"], serde_json::json!(["path", "topic"]));
}

/// Text that is nearly a list.
fn nearly_a_list() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("path".to_string()),
        Just("Topic".into()),
        Just("filter".into()),
        Just("module".into()),
        Just("/a*[".into()),
        Just("line_bytes_max".into()),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        word.clone().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::vec((word.clone(), inner), 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    });
    proptest::collection::vec(value, 0..4).prop_map(|values| serde_json::Value::Array(values).to_string())
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = parse(&text, &file());
    }

    #[test]
    fn no_list_makes_it_panic(text in nearly_a_list(), cut in 0usize..400) {
        let list = parse(text.as_bytes(), &key()).unwrap();
        let names: HashSet<_> = list.items.iter().filter_map(|item| item.checked.as_ref().ok()).map(|e| &e.name).collect();
        prop_assert_eq!(names.len(), list.items.iter().filter(|item| item.checked.is_ok()).count());
        let _ = parse(&text.as_bytes()[..cut.min(text.len())], &file());
    }
}
