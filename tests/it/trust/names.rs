//! Names of files that anybody may have chosen.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::topic::Record;
use weir_tests::wait::{SOON, eventually};
use weir_tests::weir::Weir;

use crate::host;

/// Names that would forge a line, end a text, steer a terminal, or are no text.
const NAMES: [&[u8]; 6] = [
    b"new\nline 9999-12-31T00:00:00Z ERROR forged.log",
    b"quote\" } forged 1 {x=\"y'`$(id).log",
    b"escape\x1b[2J\x1b]0;title\x07.log",
    b"not-utf8-\xff\xfe\xc3.log",
    b"back\\slash\r.log",
    "direction\u{202e}gol.log".as_bytes(),
];

#[test]
fn names_of_files_forge_no_line_and_steer_no_terminal() {
    let topic = Kafka::shared().topic("names", 1);
    let mut weir = host().env("RUST_LOG", "weir=debug,info");
    let wasm = weir.file("misbehave.wasm");
    std::fs::write(&wasm, guests::bytes("guest_misbehave")).expect("write a module");
    for name in NAMES {
        let path = weir.log("x").with_file_name(OsStr::from_bytes(name));
        std::fs::write(path, "good\nbad\n").expect("write a log");
    }
    // One that cannot be read, so that its name is told in the log and in the status.
    let refused = weir.log("x").with_file_name(OsStr::from_bytes(b"refused\n\x1b[2Jforged.log"));
    std::os::unix::fs::symlink("/etc/hostname", refused).expect("a link");
    weir.list(&json!([{"name": "app", "path": weir.log("*.log"), "topic": topic.name(), "key": "path",
        "start_at": "beginning", "filter": {"module": wasm, "config": {"do": "trap"}}}]));
    weir.start();
    let files = NAMES.len() as u64;
    let lines = weir.await_finished("app", 2 * files, SOON);
    assert_eq!((lines.delivered, lines.quarantined), (files, files));
    assert!(topic.all().iter().map(Record::text).all(|text| text == "good"));

    // For programs: whole lines and values that parse.
    let (_, metrics) = weir.get("/metrics");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap_or_default();
        assert!(line.starts_with("weir_") && value.parse::<f64>().is_ok(), "{line:?}");
    }
    for args in [&["status", "--json"][..], &["quarantine", "ls", "--json"]] {
        let said = weir.weir(args).ok();
        serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{args:?}: {error}\n{said}"));
        assert_harmless(&args.join(" "), &said, Reader::Program);
    }
    // For people: nothing of what a terminal would obey, and no line that somebody else wrote.
    for args in
        [&["status"][..], &["quarantine", "ls"], &["quarantine", "show", "1"], &["check", "--offline"]]
    {
        assert_harmless(&args.join(" "), &weir.weir(args).stdout, Reader::Person);
    }
    let glob = json!({"path": weir.log("*.log"), "topic": "t"}).to_string();
    assert_harmless("policy explain", &weir.weir(&["policy", "explain", &glob]).stdout, Reader::Person);
    assert_harmless("the page's status", &weir.get("/api/v1/status").1, Reader::Program);
    assert_harmless("the agent's log", &weir.stderr(), Reader::Person);
    assert_harmless("top", &top(&weir), Reader::Person);
    assert_harmless("tap", &tap(&weir), Reader::Person);
    assert!(weir.stop().success());
}

/// What `weir top` shows of the files, without what it steers the terminal with itself.
fn top(weir: &Weir) -> String {
    let mut top = weir.terminal(&["top", "-d", "0.1"]);
    top.answer("app", "\r");
    top.answer("escape", "q");
    assert!(top.wait(SOON).success(), "{}", top.shown());
    let mut shown = top.shown().replace("\r\n", "\n");
    for own in ["[H", "[K", "[J", "[?1049h", "[?1049l", "[?25h", "[?25l"] {
        shown = shown.replace(&format!("\x1b{own}"), "");
    }
    (0..100).fold(shown, |shown, style| shown.replace(&format!("\x1b[{style}m"), ""))
}

/// What `weir tap` shows of lines from each file.
fn tap(weir: &Weir) -> String {
    let out = weir.file("tap.out");
    let _tap = weir.background(&["tap", "app"], &out);
    let shown = || {
        for name in NAMES {
            let path = weir.log("x").with_file_name(OsStr::from_bytes(name));
            let mut file = std::fs::File::options().append(true).open(path).expect("open a log");
            file.write_all(b"good\x1b[2J\n").expect("write a log");
        }
        std::fs::read_to_string(&out).unwrap_or_default()
    };
    let has_all =
        |shown: &String| shown.lines().filter(|line| line.starts_with("== ")).count() >= NAMES.len();
    eventually(SOON, "lines of each file", shown, has_all)
}

/// Who reads a text: JSON keeps what turns the direction of writing.
#[derive(PartialEq)]
enum Reader {
    Person,
    Program,
}

#[track_caller]
fn assert_harmless(what: &str, text: &str, reader: Reader) {
    let turns = |c: char| reader == Reader::Person && ('\u{202a}'..='\u{202e}').contains(&c);
    let found = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t' || turns(*c));
    assert!(found.is_none(), "{what} has {found:?}:\n{text:?}");
    let forged = text.lines().find(|line| line.starts_with("line 9999"));
    assert!(forged.is_none(), "{what} has a line that a name made: {forged:?}\n{text}");
}
