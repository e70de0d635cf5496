//! The author of a filter sees at once what a change does, and brings modules of any tool and size.

use std::path::Path;

use serde_json::json;
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::wait::eventually;

use crate::{LONG, host, put_list, steered, unconnected};

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn append(path: &Path, line: &str) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("open a log");
    writeln!(file, "{line}").expect("write a line");
}

#[test]
fn a_printing_agent_swaps_a_local_module_when_it_is_rebuilt() {
    let mut weir = host();
    let (log, out) = (weir.log("app.log"), weir.file("printed"));
    let (draft, wasm) = (weir.file("draft"), weir.file("stamp.wasm"));
    // As `weir module build` does it.
    let rebuild = |version: u64| {
        std::fs::write(&draft, guests::stamp(version)).expect("write a module");
        std::fs::rename(&draft, &wasm).expect("rename it");
    };
    rebuild(1);
    append(&log, "first");
    let entry =
        json!({"name": "app", "path": log, "topic": "t", "start_at": "beginning", "filter": "./stamp.wasm"});
    weir.list(&json!([entry]));
    let _agent = weir.background(&["run", "--stdout"], &out);
    eventually(LONG, "the first line", || text(&out), |printed| printed == "1 first\n");
    rebuild(2);
    // Lines go on until one comes out of the new module.
    let more = || {
        append(&log, "more");
        text(&out)
    };
    let printed = eventually(LONG, "a line of the new module", more, |printed| printed.contains("2 more\n"));
    assert!(printed.starts_with("1 first\n"), "{printed}");
}

#[test]
fn a_saved_filter_is_built_and_tried_at_once() {
    let weir = unconnected().env("CARGO_NET_OFFLINE", "true");
    let target = weir_tests::workspace().join("target/new");
    let weir = weir.env("CARGO_TARGET_DIR", target.to_str().expect("text"));
    weir.bare(&["module", "new", "watched"]).ok();
    let (source, out) = (weir.file("watched/src/lib.rs"), weir.file("shown"));
    let _watch = weir.background(&["module", "watch", "watched"], &out);
    let rounds = |wanted: usize| {
        let done = |shown: &String| {
            shown.matches(".expected\n").count() + shown.matches("error: ").count() >= wanted
        };
        eventually(LONG, "a round", || text(&out), done)
    };
    let first = rounds(1);
    assert!(first.contains("- DEBUG cache miss\n"), "{first}");
    assert!(first.ends_with("\nas in watched/sample.expected\n"), "{first}");

    let code = std::fs::read_to_string(&source).expect("its source");
    std::fs::write(&source, code.replace("b\"DEBUG \"", "b\"ERROR \"")).expect("save it");
    let second = rounds(2);
    let second = &second[first.len()..];
    assert!(second.contains("- ERROR disk full\n") && second.contains("  DEBUG cache miss\n"), "{second}");
    assert!(second.ends_with("\nnot as in watched/sample.expected\n"), "{second}");

    std::fs::write(&source, "no Rust").expect("save it");
    assert!(rounds(3).ends_with("error: cargo build failed in watched\n"), "{}", text(&out));
    std::fs::write(&source, &code).expect("save it");
    assert!(rounds(4).ends_with("\nas in watched/sample.expected\n"), "{}", text(&out));
    append(&weir.file("watched/sample.log"), "DEBUG saved");
    assert!(rounds(5).contains("- DEBUG saved\n"), "{}", text(&out));
}

/// A module as large as one of Python, which does what `drop_debug` does.
fn large() -> Vec<u8> {
    const BYTES: usize = 18_000_000;
    let mut module = guests::bytes("drop_debug");
    let mut content = vec![3];
    content.extend(b"pad");
    // No two chunks are alike.
    content.extend((0..BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8));
    module.push(0);
    let mut size = content.len();
    while size >= 128 {
        module.push((size % 128) as u8 | 128);
        size /= 128;
    }
    module.push(size as u8);
    module.extend(content);
    module
}

#[test]
fn a_module_of_eighteen_megabytes_goes_through_etcd_to_the_agent() {
    const KEY: &str = "/large/collect";
    let topic = Kafka::shared().topic("large", 1);
    let mut weir = steered(KEY);
    let module = large();
    std::fs::write(weir.file("large.wasm"), &module).expect("write a module");
    let pushed = weir.weir(&["module", "push", "large.wasm", "--tag", "large"]).ok();
    weir.weir(&["module", "pull", "large", "pulled.wasm"]).ok();
    assert!(std::fs::read(weir.file("pulled.wasm")).expect("read it") == module);
    append(&weir.log("app.log"), "DEBUG a\nINFO b");
    let entry = json!({"name": "app", "path": weir.log("app.log"), "topic": topic.name(),
        "start_at": "beginning", "filter": "large"});
    put_list(KEY, &json!([entry]));
    weir.start();
    let sums = weir.await_finished("app", 2, LONG);
    assert_eq!((sums.delivered, sums.filtered), (1, 1));
    assert_eq!(weir.entry("app")["filter"]["digest"], pushed.lines().last().expect("a digest"));
}

#[test]
fn a_core_module_of_another_tool_becomes_a_filter_with_wasi_stubbed_out() {
    let weir = unconnected();
    let core = guests::path("drop_debug");
    let core = core.to_str().expect("text");
    let built = weir.bare(&["module", "build", core, "--out", "drop.wasm"]).ok();
    assert!(built.ends_with("\ndrop.wasm\n") && !built.contains("stubbed"), "{built}");
    assert!(weir.bare(&["module", "inspect", "drop.wasm"]).ok().contains("form       component\n"));
    std::fs::write(weir.file("no.wasm"), "no module").expect("write a file");
    let said = weir.bare(&["module", "build", "no.wasm"]);
    assert_eq!(said.code(), 1);
    assert!(said.stderr.contains("no.wasm is no filter"), "{}", said.stderr);
    let mut file = LineFile::create(weir.log("app.log"), "app", 100);
    file.write(3);
    let tested = weir.bare(&["module", "test", "drop.wasm", "log/app.log"]).ok();
    assert!(tested.ends_with("\n3 lines: 3 kept, 0 dropped, 0 replaced, 0 refused\n"), "{tested}");
}
