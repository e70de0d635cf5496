//! What a hostile module costs its neighbour: `make hostile` prints the table, the tests run a part of it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use serde_json::{Value, json};
use weir_tests::guests;
use weir_tests::kafka::Kafka;
use weir_tests::lines::LineFile;
use weir_tests::lock;
use weir_tests::steady::{self, PACE, Steady};
use weir_tests::topic::Topic;
use weir_tests::wait::{SOON, eventually};

use crate::host;

/// A module may be compiled for 120 s of CPU time, at the lowest priority.
const COMPILED: Duration = Duration::from_secs(900);
/// Lines of the hostile entry, and how many there are for each that its module fails on.
const LINES: u64 = 2_000;
const BAD: u64 = 1_000;

/// A module, what its configuration says, and whether lines come out of it.
struct Case {
    name: &'static str,
    module: fn(&[u8]) -> Vec<u8>,
    runs: bool,
}

const fn config(name: &'static str) -> Case {
    Case { name, module: <[u8]>::to_vec, runs: true }
}

const fn start(name: &'static str) -> Case {
    Case { runs: false, ..config(name) }
}

/// All of them; their names are what `tests/guests/misbehave` is told to do.
const CASES: [Case; 28] = [
    config("loop"),
    config("trap"),
    config("recurse"),
    config("hoard"),
    config("leak"),
    config("error"),
    config("garbage"),
    config("few-verdicts"),
    config("many-verdicts"),
    config("ends-beyond"),
    config("ends-backwards"),
    config("no-replacement"),
    config("newline"),
    config("flood"),
    config("multiply"),
    config("chatter"),
    config("count-names"),
    config("slow"),
    start("init-loop"),
    start("init-trap"),
    start("init-error"),
    start("init-hoard"),
    Case { name: "start function that loops", module: with_start, runs: false },
    Case { name: "table of 10,000,000 elements", module: |core| with_table(core, 10_000_000), runs: false },
    Case { name: "100,000 functions", module: |core| with_functions(core, 100_000, 0), runs: true },
    Case { name: "45 MB of code", module: |core| with_functions(core, 60, 250_000), runs: true },
    Case { name: "custom section of 60 MB", module: |core| with_custom(core, 60_000_000), runs: true },
    Case { name: "no module at all", module: |_| b"#!/bin/sh".to_vec(), runs: false },
];

/// What runs in `make test`.
const SLICE: [&str; 3] = ["loop", "flood", "table of 10,000,000 elements"];

#[test]
fn a_hostile_module_leaves_its_neighbours_lines_and_time() {
    let is_long = std::env::var_os("WEIR_HOSTILE").is_some();
    let during = Duration::from_secs(if is_long { 10 } else { 2 });
    let core = guests::bytes("guest_misbehave");
    let mut weir = host();
    let good = Kafka::shared().topic("good", 1);
    let neighbour = Neighbour::new(weir.log("good.log"), &good);
    let good =
        json!({"name": "good", "path": weir.log("good.log"), "topic": good.name(), "start_at": "beginning"});
    weir.list(&json!([good]));
    weir.start();
    eventually(SOON, "lines of the neighbour", || neighbour.seen(), |seen| *seen > 10);
    println!(
        "| module | what the agent says of it | done, or refused, after s | lines set aside | neighbour p50, p99 ms before | with it | × p99 | peak memory MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let only = std::env::var("WEIR_HOSTILE_ONLY").unwrap_or_default();
    let is_wanted =
        |case: &Case| if is_long { case.name.contains(&only) } else { SLICE.contains(&case.name) };
    for (n, case) in CASES.iter().enumerate().filter(|(_, case)| is_wanted(case)) {
        let before = neighbour.measure(during);
        let (name, topic) = (format!("bad-{n}"), Kafka::shared().topic("bad", 1));
        let wasm = weir.file(&format!("{name}.wasm"));
        std::fs::write(&wasm, (case.module)(&core)).expect("write a module");
        let mut file = LineFile::create(weir.log(&format!("{name}.log")), "x", 100)
            .with_head(|seq| if seq % BAD == BAD / 2 { "bad " } else { "" });
        file.write(LINES);
        let what = if case.name.contains(' ') { "nothing" } else { case.name };
        let bad = json!({"name": name, "path": weir.log(&format!("{name}.log")), "topic": topic.name(),
            "start_at": "beginning", "filter": {"module": wasm, "config": {"do": what}}});
        let begun = Instant::now();
        weir.put_list(&json!([good, bad]));
        let (verdict, with) = std::thread::scope(|scope| {
            let with = scope.spawn(|| neighbour.measure(during));
            let is_said = |entry: &Value| {
                let lines = |what: &str| entry["lines"][what].as_u64().unwrap_or_default();
                let is_done = lines("delivered") + lines("quarantined") >= LINES;
                let cause = entry["cause"].as_str().unwrap_or_default();
                is_done
                    || ["start module", "compile module", "cannot read"]
                        .iter()
                        .any(|said| cause.contains(said))
            };
            let look = || weir.entry(&name);
            let said = eventually(COMPILED, "a word on the module", look, is_said);
            let verdict = begun.elapsed();
            if case.runs {
                let finished = weir.await_finished(&name, LINES, COMPILED);
                let set_aside = finished.quarantined;
                assert!(set_aside == 0 || set_aside == LINES / BAD, "{}: {finished:?}", case.name);
            } else {
                assert_eq!(weir.lines(&name).finished(), 0, "{}: {said}", case.name);
            }
            (verdict, with.join().expect("the neighbour is measured"))
        });
        let entry = weir.entry(&name);
        let said = entry["cause"].as_str().unwrap_or_default().replace(['\n', '|'], " ");
        let digest = said.find(" sha256:").map(|at| said[at..at + 72].to_owned()).unwrap_or_default();
        let said = said.replace(&digest, "").replace("waits for its filter: ", "");
        println!(
            "| {} | {}: {said} | {:.1} | {} | {} | {} | {:.1} | {} |",
            case.name,
            entry["state"].as_str().unwrap_or_default(),
            verdict.as_secs_f64(),
            weir.lines(&name).quarantined,
            before.text(),
            with.text(),
            with.p99 / before.p99,
            weir.peak_memory() >> 20,
        );
        weir.put_list(&json!([good]));
        eventually(SOON, "the entry to be gone", || weir.entry(&name), Value::is_null);
    }
    let written = neighbour.stop();
    weir.await_finished("good", written, SOON);
    assert!(weir.runs());
    assert!(weir.stop().success());
    println!("{written} lines of the neighbour, each of which came once and in order");
}

/// Quantiles of the time from a write to a consumer, in ms.
struct Latency {
    p50: f64,
    p99: f64,
}

impl Latency {
    fn text(&self) -> String {
        format!("{:.1}, {:.1}", self.p50, self.p99)
    }
}

/// A file that gets a line, its number and time, now and then; and the consumer of them.
struct Neighbour {
    stop: Arc<AtomicBool>,
    writer: Steady,
    reader: JoinHandle<()>,
    seen: Arc<Mutex<Vec<Duration>>>,
}

impl Neighbour {
    fn new(path: PathBuf, topic: &Topic) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let writer = Steady::begin(path);
        let (mut consumer, stopped, to): (_, _, Arc<Mutex<Vec<_>>>) =
            (topic.consumer(), stop.clone(), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut expected = None;
            while !stopped.load(Ordering::Relaxed) {
                consumer.each(PACE * 20, |message| {
                    let line = steady::parse(message.payload().unwrap_or_default());
                    let (number, written) = line.expect("a line of the neighbour");
                    assert_eq!(number, expected.unwrap_or(number), "each once and in order");
                    expected = Some(number + 1);
                    lock(&to).push(steady::now().saturating_sub(written));
                    ControlFlow::Continue(())
                });
            }
        });
        Self { stop, writer, reader, seen }
    }

    fn seen(&self) -> usize {
        lock(&self.seen).len()
    }

    /// Of the lines that come within so long. There are some all the while.
    fn measure(&self, during: Duration) -> Latency {
        let (begun, first) = (Instant::now(), self.seen());
        let mut last = first;
        while begun.elapsed() < during {
            last = eventually(SOON, "more lines of the neighbour", || self.seen(), |seen| *seen > last);
        }
        let mut took: Vec<_> = lock(&self.seen)[first..].iter().map(Duration::as_secs_f64).collect();
        took.sort_by(f64::total_cmp);
        let quantile = |share: f64| took[((took.len() - 1) as f64 * share) as usize] * 1e3;
        Latency { p50: quantile(0.5), p99: quantile(0.99) }
    }

    /// Ends it; how many lines were written.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().expect("each line once and in order");
        self.writer.end()
    }
}

/// Sections of a core module: number and content.
fn sections(core: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &core[8..];
    let mut all = Vec::new();
    while let Some((id, behind)) = rest.split_first() {
        let (length, behind) = number(behind);
        let (content, behind) = behind.split_at(length);
        all.push((*id, content.to_vec()));
        rest = behind;
    }
    all
}

fn module(sections: impl IntoIterator<Item = (u8, Vec<u8>)>) -> Vec<u8> {
    let each =
        sections.into_iter().flat_map(|(id, content)| [vec![id], leb(content.len()), content].concat());
    b"\0asm\x01\0\0\0".iter().copied().chain(each).collect()
}

/// A number in LEB128, and what stands behind it.
fn number(bytes: &[u8]) -> (usize, &[u8]) {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a number") + 1;
    let value = bytes[..length].iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    (value, &bytes[length..])
}

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 & 0x7f | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The same with so many more elements in its first table.
fn with_table(core: &[u8], elements: usize) -> Vec<u8> {
    let table = [&[1, 0x70, 0][..], &leb(elements)].concat();
    module(
        sections(core).into_iter().map(|(id, content)| (id, if id == 4 { table.clone() } else { content })),
    )
}

/// With more functions that do nothing, in so many pairs of instructions.
fn with_functions(core: &[u8], count: usize, pairs: usize) -> Vec<u8> {
    // No local variables; a constant is made and dropped; whatever the type, `unreachable` fits it.
    let body = [&[0][..], &[0x41, 0, 0x1a].repeat(pairs), &[0, 0x0b]].concat();
    let body = [leb(body.len()), body].concat();
    let more = |content: &[u8], each: &[u8]| {
        let (known, rest) = number(content);
        [leb(known + count), rest.to_vec(), each.repeat(count)].concat()
    };
    module(sections(core).into_iter().map(|(id, content)| match id {
        3 => (id, more(&content, &[0])),
        10 => (id, more(&content, &body)),
        _ => (id, content),
    }))
}

fn with_custom(core: &[u8], bytes: usize) -> Vec<u8> {
    let custom = [&[4][..], b"huge", &vec![7; bytes]].concat();
    module(sections(core).into_iter().chain([(0, custom)]))
}

/// With its exported function `spin`, which never comes back, as the start function.
fn with_start(core: &[u8]) -> Vec<u8> {
    let exports = sections(core).into_iter().find(|(id, _)| *id == 7).expect("exports").1;
    let at = exports.windows(6).position(|bytes| bytes == b"\x04spin\0").expect("a function called spin");
    let start = leb(number(&exports[at + 6..]).0);
    module(sections(core).into_iter().flat_map(|(id, content)| {
        // It stands behind the exports.
        let start = (id == 7).then(|| (8, start.clone()));
        [Some((id, content)), start].into_iter().flatten()
    }))
}
