//! The room as a whole, against guests that were really built.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::*;
use crate::model::{Digest, FILTER_MEMORY, FILTER_TIMEOUT};

const GUESTS: [&str; 7] = [
    "containers",
    "drop_debug",
    "redact",
    "json_fields",
    "conformance_rust",
    "guest_misbehave",
    "guest_stamp",
];

/// The core module of a guest; all are built once.
pub(crate) fn guest(name: &str) -> &'static [u8] {
    static BUILT: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    &BUILT.get_or_init(build_guests)[name]
}

fn build_guests() -> BTreeMap<String, Vec<u8>> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).args([
        "build",
        "--offline",
        "--profile=guest",
        "--target=wasm32-unknown-unknown",
        "--message-format=json",
    ]);
    GUESTS.iter().for_each(|name| _ = cargo.args(["-p", name]));
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut built = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        let files = message["filenames"].as_array().into_iter().flatten();
        if let Some(file) = files.filter_map(|file| file.as_str()).find(|file| file.ends_with(".wasm")) {
            let name = message["target"]["name"].as_str().unwrap();
            built.insert(name.to_owned(), std::fs::read(file).unwrap());
        }
    }
    built
}

/// An engine with a cache of its own, compiling in process.
pub(super) struct Bench {
    engine: Arc<Engine>,
    cache: ModuleCache,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_memory(1 << 30)
    }

    fn with_memory(memory: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::with_compiler(EngineLimits { memory }, Compiler::InProcess).unwrap();
        Self { engine, cache: ModuleCache::open(dir.path()).unwrap(), _dir: dir }
    }

    pub(super) fn load(&self, wasm: &[u8]) -> Result<Arc<Module>, FilterError> {
        self.engine.load(&self.cache, &self.cache.put(wasm)?)
    }

    pub(super) fn filter(&self, guest_name: &str, config: &str) -> Filter {
        self.load(guest(guest_name)).unwrap().prepare(context(config)).unwrap()
    }
}

fn context(config: &str) -> FilterContext {
    FilterContext {
        entry: EntryName("entry".into()),
        topic: Topic::parse("topic").unwrap(),
        host: "host".into(),
        config: config.into(),
        timeout: FILTER_TIMEOUT,
        memory: FILTER_MEMORY,
        aside: false,
    }
}

/// Lines as they stand in a file.
pub(super) struct Lines {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl Lines {
    pub(super) fn new(lines: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut all = Self { bytes: Vec::new(), starts: Vec::new(), ends: Vec::new() };
        for line in lines {
            all.starts.push(all.bytes.len() as u32);
            all.bytes.extend_from_slice(line.as_ref());
            all.ends.push(all.bytes.len() as u32);
            all.bytes.push(b'\n');
        }
        all
    }

    /// `n` lines, `bad` where the numbers say so.
    fn with_bad(n: usize, bad: &[usize]) -> Self {
        Self::new((0..n).map(|i| if bad.contains(&i) { format!("bad {i}") } else { format!("good {i}") }))
    }

    pub(super) fn batch(&self) -> Batch<'_> {
        let Self { bytes, starts, ends } = self;
        Batch { path: "/log", offset: 0, unix_ms: 0, bytes, starts, ends }
    }
}

fn replaced(outcome: &Outcome) -> Vec<String> {
    let mut start = 0;
    let line = |end: &u32| {
        let line = &outcome.bytes[std::mem::replace(&mut start, *end as usize)..*end as usize];
        String::from_utf8(line.to_vec()).unwrap()
    };
    outcome.ends.iter().map(line).collect()
}

fn kinds(outcome: &Outcome) -> Vec<(u32, ErrorKind)> {
    outcome.refused.iter().map(|refused| (refused.line, refused.kind)).collect()
}

/// Every line has a verdict, and there is a refusal for each 255 and for nothing else.
fn assert_complete(outcome: &Outcome, lines: usize) {
    assert_eq!(outcome.verdicts.len(), lines);
    let set_aside: Vec<_> = (0..lines as u32).filter(|i| outcome.verdicts[*i as usize] == 255).collect();
    assert_eq!(set_aside, outcome.refused.iter().map(|refused| refused.line).collect::<Vec<_>>());
}

#[test]
fn a_filter_can_move_to_its_pipelines_thread() {
    fn is_send<T: Send>() {}
    is_send::<Filter>();
}

#[test]
fn lines_are_kept_and_dropped() {
    let mut filter = Bench::new().filter("drop_debug", "");
    let outcome = filter.process(&Lines::new(["INFO a", "DEBUG b", ""]).batch());
    assert_eq!(outcome.verdicts, [1, 0, 1]);
    assert_eq!((outcome.calls, outcome.broken_batches), (1, 0));
    assert!(outcome.bytes.is_empty() && outcome.refused.is_empty() && outcome.cpu > Duration::ZERO);
    assert_eq!(filter.process(&Lines::new([""; 0]).batch()).calls, 0);
}

#[test]
fn lines_are_replaced_by_the_examples() {
    let bench = Bench::new();
    let mut redact = bench.filter("redact", r#"{"fields":["password"]}"#);
    let outcome = redact.process(&Lines::new(["x", "password=y z"]).batch());
    assert_eq!(
        (&outcome.verdicts[..], &replaced(&outcome)[..]),
        (&[1, 2][..], &["password=*** z".into()][..])
    );
    let mut fields = bench.filter("json_fields", r#"{"remove":["a"]}"#);
    let outcome = fields.process(&Lines::new([r#"{"a":1,"b":2}"#, "text"]).batch());
    assert_eq!(replaced(&outcome), [r#"{"b":2}"#]);
    assert_eq!(kinds(&outcome), [(1, ErrorKind::SetAside)]);
    assert_eq!(outcome.broken_batches, 0);
}

#[test]
fn a_core_module_and_its_component_do_the_same() {
    let core = guest_stamp::with_version(guest("guest_stamp"), 7);
    let component = inspect::component(&core).unwrap();
    let other = guest_stamp::with_custom_section(&component, "note", b"1");
    let bench = Bench::new();
    let mut digests = Vec::new();
    for wasm in [&core[..], &component, &other] {
        let module = bench.load(wasm).unwrap();
        digests.push(module.digest());
        let outcome = module.prepare(context("")).unwrap().process(&Lines::new(["x"]).batch());
        assert_eq!(replaced(&outcome), ["7 x"]);
        assert_eq!(inspect::inspect(wasm).unwrap().is_core, wasm == core);
    }
    digests.dedup();
    assert_eq!(digests.len(), 3);
}

#[test]
fn whoever_names_a_module_shares_it() {
    let bench = Bench::new();
    let (one, two) = (bench.load(guest("drop_debug")).unwrap(), bench.load(guest("drop_debug")).unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    let absent = Digest::of(b"absent");
    assert!(matches!(bench.engine.load(&bench.cache, &absent), Err(FilterError::Absent(_))));
}

/// A single bad line among thousands is found and alone refused, whatever it makes the module do.
#[test]
fn a_bad_line_is_found_among_thousands() {
    use ErrorKind::*;
    let misdeeds = [
        ("trap", Trap, "a bad line"),
        ("recurse", Trap, "out of bounds"),
        ("loop", Deadline, "more than 100 ms"),
        ("hoard", Memory, "33554432 bytes"),
        ("error", Error, "a bad line"),
        ("garbage", Output, ""),
        ("few-verdicts", Output, "0 verdicts for 1"),
        ("many-verdicts", Output, "2 verdicts for 1"),
        ("ends-beyond", Output, "ends at"),
        ("ends-backwards", Output, "ends at"),
        ("no-replacement", Output, "there are 0"),
        ("newline", Output, "a newline"),
        ("flood", Size, "far more"),
    ];
    let bench = Bench::new();
    let lines = Lines::with_bad(4000, &[1234]);
    for (misdeed, kind, words) in misdeeds {
        let mut filter = bench.filter("guest_misbehave", &format!(r#"{{"do":"{misdeed}"}}"#));
        let outcome = filter.process(&lines.batch());
        println!("{misdeed}: {:?} in {} calls: {}", outcome.cpu, outcome.calls, outcome.refused[0].message);
        assert_complete(&outcome, 4000);
        assert_eq!(kinds(&outcome), [(1234, kind)], "{misdeed}");
        assert!(outcome.refused[0].message.contains(words), "{misdeed}: {}", outcome.refused[0].message);
        assert!(outcome.verdicts.iter().enumerate().all(|(i, verdict)| *verdict == 1 || i == 1234));
        assert!(outcome.cpu < FILTER_TIMEOUT * 8, "{misdeed} took {:?}", outcome.cpu);
        assert_eq!(outcome.broken_batches, 1);
        assert!((10..30).contains(&outcome.restarts) && outcome.memory > 1 << 16, "{outcome:?}");
        assert_eq!(filter.process(&Lines::with_bad(10, &[]).batch()).verdicts, [1; 10]);
    }
}

#[test]
fn replacements_around_a_bad_line_keep_their_order() {
    let mut filter = Bench::new().filter("guest_misbehave", r#"{"do":"trap","prefix":"> "}"#);
    let outcome = filter.process(&Lines::with_bad(9, &[0, 4, 5]).batch());
    assert_complete(&outcome, 9);
    assert_eq!(outcome.verdicts, [255, 2, 2, 2, 255, 255, 2, 2, 2]);
    let wanted = [1, 2, 3, 6, 7, 8].map(|i| format!("> good {i}"));
    assert_eq!(replaced(&outcome), wanted);
}

#[test]
fn lines_set_aside_on_purpose_break_nothing() {
    let mut filter = Bench::new().filter("guest_misbehave", r#"{"do":"set-aside"}"#);
    let outcome = filter.process(&Lines::with_bad(5, &[1, 3]).batch());
    assert_eq!(kinds(&outcome), [(1, ErrorKind::SetAside), (3, ErrorKind::SetAside)]);
    assert_eq!((outcome.calls, outcome.broken_batches), (1, 0));
}

/// However many lines are bad, a batch is finished in bounded time, and completely.
#[test]
fn a_batch_of_nothing_but_bad_lines_comes_to_an_end() {
    let bench = Bench::new();
    let lines = Lines::new(vec!["bad"; 5000]);
    for (misdeed, kind) in [("loop", ErrorKind::Deadline), ("trap", ErrorKind::Trap)] {
        let mut filter = bench.filter("guest_misbehave", &format!(r#"{{"do":"{misdeed}"}}"#));
        let outcome = filter.process(&lines.batch());
        println!("{misdeed}: {:?} in {} calls", outcome.cpu, outcome.calls);
        assert_complete(&outcome, 5000);
        assert!(outcome.refused.len() == 5000 && outcome.refused.iter().all(|line| line.kind == kind));
        assert!(outcome.cpu < Duration::from_secs(3), "{misdeed} took {:?}", outcome.cpu);
    }
}

/// A batch whose lines are multiplied as often as they may be is taken in parts, and no line is
/// refused for its neighbours.
#[test]
fn a_batch_with_too_much_output_is_taken_in_parts() {
    let mut filter = Bench::new().filter("guest_misbehave", r#"{"do":"multiply"}"#);
    let lines = Lines::new((0..4000).map(|i| format!("bad {i}")));
    let (mut done, mut parts) = (0, 0);
    let each = |batch: &Batch<'_>, outcome: Outcome| -> Result<(), ()> {
        assert_eq!(&batch.bytes[..batch.ends[0] as usize], format!("bad {done}").as_bytes());
        assert!(outcome.refused.is_empty() && outcome.verdicts.iter().all(|verdict| *verdict == 254));
        assert_eq!(outcome.ends.len(), 253 * outcome.verdicts.len());
        assert!(outcome.ends.len() <= 65_536, "{} lines at once", outcome.ends.len());
        (done, parts) = (done + outcome.verdicts.len(), parts + 1);
        Ok(())
    };
    filter.process_all(&lines.batch(), each).unwrap();
    assert_eq!(done, 4000);
    assert!(parts < 40, "{parts} parts, where 16 would do");
}

/// Memory that a module leaks costs it its instance, and no line.
#[test]
fn a_leak_blames_no_line() {
    let mut filter = Bench::new().filter("guest_misbehave", r#"{"do":"leak"}"#);
    let lines = Lines::with_bad(100, &[50]);
    let outcomes: Vec<_> = (0..100).map(|_| filter.process(&lines.batch())).collect();
    assert!(outcomes.iter().all(|outcome| outcome.verdicts == [1; 100]));
    let broken: u32 = outcomes.iter().map(|outcome| outcome.broken_batches).sum();
    assert!((1..10).contains(&broken), "{broken}");
}

#[test]
fn all_filters_together_have_one_limit_of_memory() {
    let bench = Bench::with_memory(4 << 20);
    let module = bench.load(guest("guest_misbehave")).unwrap();
    let mut filter = module.prepare(context(r#"{"do":"hoard"}"#)).unwrap();
    let outcome = filter.process(&Lines::with_bad(3, &[1]).batch());
    assert_eq!(kinds(&outcome), [(1, ErrorKind::Memory)]);
    assert!(outcome.refused[0].message.contains("all filters together"), "{outcome:?}");
    let more: Vec<_> = (0..4).map(|_| module.prepare(context(r#"{"do":"nothing"}"#))).collect();
    assert!(more[0].is_ok() && more[3].is_err());
    drop((more, filter));
    module.prepare(context(r#"{"do":"nothing"}"#)).expect("memory comes back");
}

/// A module that fails to start never sees a line; one that does so later gives none back.
#[test]
fn a_module_that_does_not_start_is_not_prepared() {
    use ErrorKind::*;
    let bench = Bench::new();
    let module = bench.load(guest("guest_misbehave")).unwrap();
    for (misdeed, kind, words) in [
        ("init-trap", Trap, "init panics"),
        ("init-error", Error, "init says no"),
        ("init-hoard", Memory, ""),
        ("init-loop", Deadline, "2000 ms"),
        ("unheard-of", Error, "unknown variant"),
    ] {
        let began = Instant::now();
        let error = module.prepare(context(&format!(r#"{{"do":"{misdeed}"}}"#))).unwrap_err();
        let FilterError::Init { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind, kind, "{misdeed}");
        assert!(source.message.contains(words), "{}", source.message);
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_start_function_that_never_ends_meets_the_deadline() {
    let bench = Bench::new();
    let module = bench.load(&with_start(guest("guest_misbehave"), "spin")).unwrap();
    let error = module.prepare(context(r#"{"do":"nothing"}"#)).unwrap_err();
    let FilterError::Init { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind, ErrorKind::Deadline);
}

/// `core` with its exported function `name` as its start function.
fn with_start(core: &[u8], name: &str) -> Vec<u8> {
    let mut function = None;
    let mut place = None;
    for payload in wasmparser::Parser::new(0).parse_all(core) {
        match payload.unwrap() {
            wasmparser::Payload::ExportSection(section) => {
                place = Some(section.range().end);
                let mut exports = section.into_iter().map(Result::unwrap);
                function = exports.find(|export| export.name == name).map(|export| export.index);
            }
            _ => continue,
        }
    }
    let (before, after) = core.split_at(place.unwrap());
    let function = function.unwrap();
    assert!(function < 0x3fff);
    let index = [function as u8 & 0x7f | 0x80, (function >> 7) as u8];
    [before, &[8, 2], &index, after].concat()
}

/// CPU time is what counts: a filter that waits for its turn is not blamed.
#[test]
fn a_busy_host_blames_no_innocent_line() {
    let mut filter = Bench::new().filter("guest_misbehave", r#"{"do":"slow"}"#);
    let alone = filter.process(&Lines::with_bad(2, &[1]).batch()).cpu;
    filter = {
        let bench = Bench::new();
        let module = bench.load(guest("guest_misbehave")).unwrap();
        module.prepare(FilterContext { timeout: alone * 4, ..context(r#"{"do":"slow"}"#) }).unwrap()
    };
    let stop = AtomicBool::new(false);
    let (mut outcomes, mut waited) = (Vec::new(), false);
    std::thread::scope(|scope| {
        for _ in 0..8 * std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let began = Instant::now();
        while !waited && began.elapsed() < Duration::from_secs(30) {
            let call = Instant::now();
            outcomes.push(filter.process(&Lines::with_bad(2, &[1]).batch()));
            waited = call.elapsed() > alone * 4;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(waited, "the host was never busy enough to prove anything");
    assert!(outcomes.iter().all(|outcome| outcome.broken_batches == 0), "{outcomes:?}");
}

#[test]
fn a_module_counts_under_few_names_and_only_when_it_succeeds() {
    let bench = Bench::new();
    let mut many = bench.filter("guest_misbehave", r#"{"do":"count-names"}"#);
    many.process(&Lines::with_bad(1, &[0]).batch());
    many.process(&Lines::with_bad(1, &[0]).batch());
    let counts = many.counts();
    assert!((32..=64).contains(&counts.len()), "{}", counts.len());
    assert_eq!(counts["n_0"], 2);
    let mut failing = bench.filter("guest_misbehave", r#"{"do":"count-and-trap"}"#);
    let outcome = failing.process(&Lines::with_bad(8, &[3]).batch());
    assert_eq!(kinds(&outcome), [(3, ErrorKind::Trap)]);
    assert!(failing.counts().is_empty());
}

#[test]
fn what_is_no_filter_is_refused_with_its_reason() {
    let stamp = guest("guest_stamp");
    let said = |wasm: &[u8]| inspect::inspect(wasm).unwrap_err().to_string();
    assert!(said(b"hello").contains("not a WebAssembly file"));
    assert!(said(&vec![0; MODULE_BYTES_MAX as usize + 1]).contains("64 MiB"));
    assert!(said(b"\0asm\x01\0\0\0").contains("without a WIT section"));
    assert!(
        said(&importing("wasi_snapshot_preview1", "fd_write")).contains("`wasi_snapshot_preview1::fd_write`")
    );
    assert!(said(&importing("env", "exec")).contains("`env::exec`"));
    let renamed = patch(stamp, b"process", b"procesz");
    assert!(said(&renamed).contains("does not export `process`"), "{}", said(&renamed));
    let component = inspect::component(stamp).unwrap().into_owned();
    let renamed = patch(&component, b"\x07process", b"\x07procesz");
    assert!(said(&renamed).contains("does not export `process`"), "{}", said(&renamed));
    let other = patch(&component, b"weir:filter/host@0.1.0", b"weir:filter/host@0.2.0");
    assert!(said(&other).contains("`weir:filter/host@0.2.0`"), "{}", said(&other));
    let evil = patch(&component, b"weir:filter/host@0.1.0", b"wasi:sockets/tcp@0.2.0");
    assert!(said(&evil).contains("`wasi:sockets/tcp@0.2.0`"), "{}", said(&evil));
    assert!(inspect::inspect(&component[..component.len() / 2]).is_err());
    let bench = Bench::new();
    assert!(matches!(bench.load(&evil), Err(FilterError::Import { .. })));
}

#[test]
fn a_filter_is_described() {
    let info = inspect::inspect(guest("drop_debug")).unwrap();
    assert_eq!(info.exports, ["init", "process"]);
    assert_eq!(info.imports, ["weir:filter/host@0.1.0", "weir:filter/types@0.1.0"]);
    assert!(info.is_core && info.digest == Digest::of(guest("drop_debug")));
    assert!(info.size < 20 * 1024, "{} bytes", info.size);
}

/// A core module that imports a function and nothing else.
fn importing(module: &str, name: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let import = [&[1][..], &text(module), &text(name), &[0, 0]].concat();
    [&b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02"[..], &[import.len() as u8], &import].concat()
}

fn patch(wasm: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut patched = wasm.to_vec();
    let places = wasm.windows(from.len()).enumerate().filter(|(_, window)| *window == from);
    for (place, _) in places {
        patched[place..place + to.len()].copy_from_slice(to);
    }
    assert_ne!(patched, wasm);
    patched
}

/// `cargo test -p weir --lib filter::tests::nanoseconds -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn nanoseconds_a_line() {
    let bench = Bench::new();
    let filler = "x".repeat(185);
    let lines = Lines::new((0..1000).map(|i| format!("INFO {i:08} {filler}")));
    for (name, config) in [
        ("drop_debug", ""),
        ("guest_stamp", ""),
        ("redact", r#"{"fields":["password"]}"#),
        ("redact", r#"{"patterns":["[0-9]{16}"]}"#),
    ] {
        let mut filter = bench.filter(name, config);
        let best = (0..200).map(|_| filter.process(&lines.batch()).cpu).min().unwrap();
        println!("{name} {config}: {} ns a line", best.as_nanos() / 1000);
    }
    let module = bench.load(guest("drop_debug")).unwrap();
    for _ in 0..3 {
        let began = super::instance::thread_cpu();
        (0..1000).for_each(|_| drop(module.prepare(context("")).unwrap()));
        let took = super::instance::thread_cpu() - began;
        println!("instance, init and drop: {} ns", took.as_nanos() / 1000);
    }
    let one = Lines::new(["INFO"]);
    let mut filter = bench.filter("drop_debug", "");
    let best = (0..10_000).map(|_| filter.process(&one.batch()).cpu).min().unwrap();
    println!("a batch of one line: {} ns", best.as_nanos());
}
