//! Each stage of the data path on its own: what a chunk of lines goes through, without files and
//! without a broker elsewhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use weir::config::KafkaSettings;
use weir::control::list::{Origin, parse};
use weir::filter::{Batch, Compiler, Engine, EngineLimits, Filter, FilterContext, ModuleCache};
use weir::ledger::{Ledger, Mark};
use weir::model::{EntryName, FILTER_MEMORY, LongLine, Topic};
use weir::pipeline::{CHUNK_LINES, READ_BYTES};
use weir::policy::Policy;
use weir::sink::kafka::KafkaSink;
use weir::sink::{Buffer, Chunk, Done, Finished, Lane, Pick, Record, Route, Sink as _};
use weir::source::checkpoint::Checkpoints;
use weir::source::discovery::TIME_STEP;
use weir::source::lines::{Lines, Rules, Unit};
use weir::source::{HeldLimits, Source};
use weir_tests::{guests, scratch};

/// The name of each, for [`stage`].
pub const STAGES: [&str; 6] = ["names", "split", "ledger", "drop_debug", "redact", "enqueue"];

/// Bytes of a line, its newline included. Every other one is a `DEBUG` line.
const LINE_BYTES: usize = 200;

/// Files to which nothing is written.
const FILES: u64 = 1000;
/// Between two looks at their names.
const PAUSE: Duration = Duration::from_secs(60);

/// Ranges of a file that are under way at once.
const RANGES: u64 = 64;
/// What all chunks may take. Bytes.
const MEMORY: u64 = 64 << 20;

/// Takes one chunk through a stage. Says how many lines that were, for the ledger ranges, for names files.
pub type Stage = Box<dyn FnMut() -> Result<u64>>;

/// The stage of that name, set up.
pub fn stage(name: &str) -> Result<Stage> {
    match name {
        "names" => names(),
        "split" => Ok(split()),
        "ledger" => Ok(ledger()),
        "drop_debug" => filter(&guests::path("drop_debug"), ""),
        // No line has it.
        "redact" => filter(&guests::recipe("redact"), r#"["password="]"#),
        "enqueue" => enqueue(),
        _ => bail!("{name}: there are {}", STAGES.join(", ")),
    }
}

/// What is read at once.
fn chunk() -> Vec<u8> {
    let line = |n| {
        let level = if n % 2 == 0 { "INFO" } else { "DEBUG" };
        let head = format!("{level} {n:08} ");
        format!("{head}{}\n", "x".repeat(LINE_BYTES - 1 - head.len()))
    };
    (0..READ_BYTES / LINE_BYTES).flat_map(|n| line(n).into_bytes()).collect()
}

fn lines_of(bytes: &[u8], lines: &mut Lines) {
    let rules =
        Rules { skip_empty: true, line_bytes_max: READ_BYTES, long_line: LongLine::Split, unit: Unit::Byte };
    rules.cut(bytes, CHUNK_LINES, false, lines);
}

/// A look at all names, with nothing new, and a report of it: what idle files cost. One of ten looks
/// walks the directory, which the others spare.
fn names() -> Result<Stage> {
    let dir = scratch::dir("stage");
    for n in 0..FILES {
        std::fs::write(dir.path().join(format!("{n:06}.log")), "")?;
    }
    // Before, its time does not tell whether there are other names.
    while dir.path().metadata()?.modified()?.elapsed()? <= TIME_STEP {
        std::thread::sleep(Duration::from_millis(20));
    }
    let list = serde_json::json!([{ "path": dir.path().join("*.log"), "topic": "stage" }]).to_string();
    let list = parse(list.as_bytes(), &Origin::Settings).map_err(anyhow::Error::msg)?;
    let entry = list.items[0].checked.as_ref().map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let (policy, checkpoints) = (Arc::new(Policy::unbounded()), Arc::new(Checkpoints::none()));
    let held = HeldLimits { age: PAUSE, bytes: MEMORY };
    let mut source = Source::new(entry, policy, checkpoints, held)?;
    let mut now = Instant::now();
    source.tick(now).context("names are looked at")?;
    // Nothing is in them, but that is known only of a file that was read.
    let (mut buffer, mut lines) = (Vec::new(), Lines::default());
    while !source.is_drained() {
        source.read(READ_BYTES, CHUNK_LINES, &mut buffer, &mut lines, now);
    }
    Ok(Box::new(move || {
        let _alive = &dir;
        now += PAUSE;
        source.tick(now).context("names are looked at")?;
        let files = source.standing().files;
        if files == FILES { Ok(files) } else { bail!("{files} files") }
    }))
}

fn split() -> Stage {
    let (bytes, mut lines) = (chunk(), Lines::default());
    Box::new(move || {
        lines_of(&bytes, &mut lines);
        Ok(lines.starts.len() as u64)
    })
}

/// Ranges that begin in order, and of which every second is finished after its successor.
fn ledger() -> Stage {
    let (mut ledger, mut next) = (Ledger::new(Mark::default()), 0);
    Box::new(move || {
        let ids = next..next + RANGES;
        next = ids.end;
        for id in ids.clone() {
            ledger.begin(id, Mark { offset: (id + 1) * READ_BYTES as u64, ..Mark::default() });
        }
        for id in ids {
            ledger.finish(id ^ 1);
        }
        if ledger.is_empty() { Ok(RANGES) } else { bail!("ranges are left") }
    })
}

fn filter(module: &Path, config: &str) -> Result<Stage> {
    let dir = scratch::dir("stage");
    let cache = ModuleCache::open(dir.path())?;
    let digest = cache.put(&std::fs::read(module)?)?;
    let engine = Engine::with_compiler(EngineLimits { memory: FILTER_MEMORY }, Compiler::InProcess)?;
    let mut filter: Filter = engine.load(&cache, &digest)?.prepare(FilterContext {
        entry: EntryName("stage".into()),
        topic: Topic::parse("stage").map_err(anyhow::Error::msg)?,
        host: "localhost".into(),
        config: config.into(),
        // Long: under callgrind all takes some fifty times as long.
        timeout: Duration::from_secs(10),
        memory: FILTER_MEMORY,
        aside: false,
    })?;
    let (bytes, mut lines) = (chunk(), Lines::default());
    lines_of(&bytes, &mut lines);
    Ok(Box::new(move || {
        let (starts, ends) = (&lines.starts[..], &lines.ends[..]);
        let batch = Batch { path: "/stage.log", offset: 0, unix_ms: 0, bytes: &bytes, starts, ends };
        let outcome = filter.process(&batch);
        if outcome.broken_batches > 0 {
            bail!("{:?}", outcome.refused);
        }
        Ok(outcome.verdicts.len() as u64)
    }))
}

/// To librdkafka's in-process broker, until it has acknowledged each record.
fn enqueue() -> Result<Stage> {
    let settings = KafkaSettings { brokers: "mock".into(), properties: BTreeMap::new() };
    let sink = KafkaSink::start(&settings, MEMORY)?;
    let (back, done) = channel();
    let back: Done = Arc::new(move |finished| drop(back.send(finished)));
    let mut lane = sink.open(&Topic::parse("stage").map_err(anyhow::Error::msg)?, back);
    lane.partitions().context("the topic")?;
    let mut lines = Lines::default();
    let read = chunk();
    lines_of(&read, &mut lines);
    let record =
        |(start, end): (&u32, &u32)| Record { start: *start, len: end - start, buffer: Buffer::Read };
    let records = lines.starts.iter().zip(&lines.ends).map(record).collect();
    let mut next = Some(Chunk { id: 1, read, records, ..Chunk::default() });
    Ok(Box::new(move || {
        let _alive = &sink;
        let chunk = next.take().context("the chunk is back")?;
        let back = send(&mut *lane, chunk, &done)?;
        let lines = back.records.len() as u64;
        next = Some(back);
        Ok(lines)
    }))
}

fn send(lane: &mut dyn Lane, chunk: Chunk, done: &Receiver<Finished>) -> Result<Chunk> {
    lane.send(chunk, None, &Route::to(Pick::Fixed(0)));
    let Finished { chunk, failed } = done.recv()?;
    if failed.is_empty() { Ok(chunk) } else { bail!("{:?}", failed[0]) }
}
