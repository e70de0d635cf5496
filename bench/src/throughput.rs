//! Tables of runs over files that are there already.

use anyhow::Result;
use serde_json::{Value, json};
use weir_tests::lines::LineFile;
use weir_tests::scratch;

use crate::Bench;
use crate::agent::{self, Agent};
use crate::report::Table;
use crate::run::{Filter, Input, Run, judged, run};
use crate::stats::{Sample, number};

/// Of the lines where nothing else is said; newline included. Bytes.
const LINE_BYTES: usize = 200;
/// Long enough for the start not to matter, where lines differ in length. Bytes.
const LENGTHS_BYTES: u64 = 200_000_000;
const LENGTHS: [usize; 5] = [50, 200, 1_000, 4_000, 10_000];
const ENTRIES: [u64; 3] = [1, 10, 100];
const PACKS: [&str; 2] = ["64KiB", "256KiB"];
const CODECS: [&str; 3] = ["none", "lz4", "zstd"];
/// What weir is compared with where others would only take time.
const FEW: [&str; 3] = ["weir", "bare loop", "kcat"];

/// One row: what runs on what, and which row it is compared with.
struct Contender {
    label: String,
    agent: Agent,
    codec: &'static str,
    filter: Option<Filter>,
    pack: Option<&'static str>,
    input: Input,
    reference: usize,
}

/// A filter, the head and the tail of the lines it is made for, and whether it drops every other one.
type Scene = (Filter, fn(u64) -> &'static str, &'static str, bool);

/// All agents on one file.
pub(crate) fn agents(bench: &mut Bench) -> Result<()> {
    let dir = scratch::dir("agents");
    let input = one_file(&dir.path().join("app.log"), bench.plan.lines, LINE_BYTES);
    let mut contenders: Vec<Contender> =
        bench.agents.iter().map(|agent| plain(agent, "lz4", &input)).collect();
    refer(&mut contenders, "bare loop");
    table(bench, "agents", "One file, lz4", "× bare loop", &contenders)
}

/// What compression costs.
pub(crate) fn codecs(bench: &mut Bench) -> Result<()> {
    let dir = scratch::dir("codecs");
    let input = one_file(&dir.path().join("app.log"), bench.plan.lines, LINE_BYTES);
    for codec in CODECS {
        let mut contenders = few(bench, codec, &input);
        refer(&mut contenders, "bare loop");
        table(bench, "codecs", &format!("Compression: {codec}"), "× bare loop", &contenders)?;
    }
    Ok(())
}

/// What lines of a length cost.
pub(crate) fn lengths(bench: &mut Bench) -> Result<()> {
    for bytes in LENGTHS {
        let dir = scratch::dir("lengths");
        let input = one_file(&dir.path().join("app.log"), LENGTHS_BYTES / bytes as u64, bytes);
        let mut contenders = few(bench, "lz4", &input);
        refer(&mut contenders, "bare loop");
        table(bench, "lengths", &format!("Lines of {bytes} bytes, lz4"), "× bare loop", &contenders)?;
    }
    Ok(())
}

/// Each example filter on lines that it is made for, beside the same lines without it.
pub(crate) fn filters(bench: &mut Bench) -> Result<()> {
    let Some(weir) = bench.agent("weir").cloned() else { return Ok(()) };
    let lines = bench.plan.lines;
    let level = |seq| if seq % 2 == 0 { "DEBUG " } else { "INFO  " };
    let filters: [Scene; 3] = [
        (("drop_debug", Value::Null), level, "", true),
        (("redact", json!({"fields": ["password"]})), |_| "password=hunter2 ", "", false),
        (
            ("json_fields", json!({"remove": ["password"]})),
            |_| r#"{"password":"hunter2","msg":""#,
            "\"}",
            false,
        ),
    ];
    for (filter, head, tail, drops_half) in filters {
        let dir = scratch::dir("filters");
        let path = dir.path().join("app.log");
        let mut file = LineFile::create(&path, "app", LINE_BYTES).with_head(head).with_tail(tail);
        file.write(lines);
        let input = input(&[file]);
        let mut filtered = input.clone();
        if drops_half {
            filtered.expected =
                filtered.expected.into_iter().map(|file| file.only(|seq| seq % 2 == 1)).collect();
        }
        let name = filter.0;
        let with = Contender {
            label: format!("weir, {name}"),
            filter: Some(filter),
            ..plain(&weir, "lz4", &filtered)
        };
        let mut contenders = vec![plain(&weir, "lz4", &input), with];
        contenders[1].reference = 0;
        table(bench, "filters", &format!("The filter {name}, lz4"), "× no filter", &contenders)?;
    }
    Ok(())
}

/// The same lines in more files, each followed by an entry of its own.
pub(crate) fn entries(bench: &mut Bench) -> Result<()> {
    let Some(weir) = bench.agent("weir").cloned() else { return Ok(()) };
    let dir = scratch::dir("entries");
    let mut contenders = Vec::new();
    for count in ENTRIES {
        let file = |n| {
            let path = dir.path().join(format!("{count}-{n}.log"));
            let mut file = LineFile::create(path, &format!("f{n:03}"), LINE_BYTES);
            file.write(bench.plan.lines / count);
            file
        };
        let files: Vec<LineFile> = (0..count).map(file).collect();
        let label = format!("weir, {count} {}", if count == 1 { "entry" } else { "entries" });
        contenders.push(Contender { label, ..plain(&weir, "lz4", &input(&files)) });
    }
    table(bench, "entries", "The same lines over more entries, lz4", "× one entry", &contenders)
}

/// Many lines a record, beside what compressing the file costs.
pub(crate) fn pack(bench: &mut Bench) -> Result<()> {
    let Some(weir) = bench.agent("weir").cloned() else { return Ok(()) };
    let dir = scratch::dir("pack");
    let input = one_file(&dir.path().join("app.log"), bench.plan.lines, LINE_BYTES);
    let nothing = Input { expected: Vec::new(), ..input.clone() };
    let mut contenders = vec![plain(&agent::lz4()?, "lz4", &nothing), plain(&weir, "lz4", &input)];
    contenders.extend(PACKS.map(|pack| Contender {
        label: format!("weir, pack {pack}"),
        pack: Some(pack),
        ..plain(&weir, "lz4", &input)
    }));
    table(bench, "pack", "Many lines a record, lz4", "× lz4 -1", &contenders)
}

fn one_file(path: &std::path::Path, lines: u64, line_bytes: usize) -> Input {
    let mut file = LineFile::create(path, "app", line_bytes);
    file.write(lines);
    input(&[file])
}

fn input(files: &[LineFile]) -> Input {
    let size = |file: &LineFile| std::fs::metadata(file.path()).map_or(0, |meta| meta.len());
    Input {
        files: files.iter().map(|file| file.path().to_string_lossy().into_owned()).collect(),
        expected: files.iter().map(LineFile::expected).collect(),
        lines: files.iter().map(LineFile::written).sum(),
        bytes: files.iter().map(size).sum(),
    }
}

fn plain(agent: &Agent, codec: &'static str, input: &Input) -> Contender {
    let (label, agent) = (agent.name.into(), agent.clone());
    Contender { label, agent, codec, filter: None, pack: None, input: input.clone(), reference: 0 }
}

fn few(bench: &Bench, codec: &'static str, input: &Input) -> Vec<Contender> {
    let agents = bench.agents.iter().filter(|agent| FEW.contains(&agent.name));
    agents.map(|agent| plain(agent, codec, input)).collect()
}

/// Compares all with the row of that name, or with the first where there is none.
fn refer(contenders: &mut [Contender], label: &str) {
    let reference = contenders.iter().position(|contender| contender.label == label).unwrap_or(0);
    contenders.iter_mut().for_each(|contender| contender.reference = reference);
}

/// Runs them round by round and shows what came of it.
fn table(bench: &mut Bench, measure: &str, title: &str, ratio: &str, contenders: &[Contender]) -> Result<()> {
    let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 1..=bench.plan.rounds {
        for (contender, runs) in contenders.iter().zip(&mut runs) {
            let Contender { agent, input, codec, filter, pack, .. } = contender;
            let run = run(bench.kafka, agent, input, codec, filter.as_ref(), *pack)?;
            let (took, cpu) = (run.took.as_secs_f64(), run.cpu.as_secs_f64());
            eprintln!("{title}: round {round}, {}: {took:.2} s, CPU {cpu:.2} s", contender.label);
            runs.push(run);
        }
    }
    let columns = [
        "",
        "lines/s",
        "MB/s",
        "CPU s per M lines",
        ratio,
        "CPU s per GB",
        "peak RSS MB",
        "lines on the topic",
    ];
    let mut table = Table::new(measure, title, &columns);
    for (contender, of_this) in contenders.iter().zip(&runs) {
        let Input { lines, bytes, .. } = contender.input;
        let sample = |figure: &dyn Fn(&Run) -> f64| Sample::of(of_this.iter().map(figure));
        let cpu = |run: &Run| run.cpu.as_secs_f64();
        let per_second = sample(&|run| lines as f64 / run.took.as_secs_f64());
        let mega = sample(&|run| bytes as f64 / 1e6 / run.took.as_secs_f64());
        let per_million = sample(&|run| cpu(run) / lines as f64 * 1e6);
        let per_gb = sample(&|run| cpu(run) / bytes as f64 * 1e9);
        let memory = sample(&|run| run.peak_memory as f64 / 1e6);
        let reference = &contenders[contender.reference].input.lines;
        let others = runs[contender.reference].iter();
        let ratios = of_this
            .iter()
            .zip(others)
            .map(|(run, other)| cpu(run) / lines as f64 / (cpu(other) / *reference as f64));
        let ratios = Sample::of(ratios);
        let verdict = match contender.input.expected.as_slice() {
            [] => "none are sent".into(),
            _ => judged(of_this.iter().map(|run| &run.verdict)),
        };
        table.row(
            &[
                contender.label.clone(),
                number(per_second.median(), 0),
                number(mega.median(), 0),
                per_million.cell(2),
                ratios.cell(2),
                number(per_gb.median(), 2),
                number(memory.median(), 0),
                verdict.clone(),
            ],
            json!({
                "what": contender.label, "lines_per_s": per_second.json(), "mb_per_s": mega.json(),
                "cpu_s_per_million_lines": per_million.json(), "ratio": ratios.json(), "ratio_of": ratio,
                "cpu_s_per_gb": per_gb.json(), "peak_rss_mb": memory.json(), "lines": verdict,
            }),
        );
    }
    bench.report.add(table)
}
