//! A module and files of lines, put together as the agent does it.
//!
//! In: paths, a config. Out: a live filter with the limits of the agent, the batches of a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::value::RawValue;

use crate::filter::inspect::inspect;
use crate::filter::{Batch, Compiler, Engine, EngineLimits, Filter, FilterContext, Module, ModuleCache};
use crate::model::{Digest, EntryName, FILTER_MEMORY, FILTER_TIMEOUT, LINE_BYTES_MAX, LongLine, Topic};
use crate::pipeline::{CHUNK_LINES, READ_BYTES};
use crate::source::lines::{Lines, Rules, Unit};

/// What an entry says about its lines where it says nothing.
const RULES: Rules = Rules {
    skip_empty: true,
    line_bytes_max: LINE_BYTES_MAX as usize,
    long_line: LongLine::Split,
    unit: Unit::Byte,
};

/// Which module, and how it is configured.
#[derive(Debug, clap::Args)]
pub(super) struct Tried {
    /// The module
    pub(super) wasm: PathBuf,
    /// What the collect list would have under `config`
    #[arg(long, value_name = "JSON")]
    pub(super) with_config: Option<String>,
}

impl Tried {
    /// The module at work, compiled and limited as the agent would.
    pub(super) fn filter(&self, compiler: Compiler) -> anyhow::Result<Filter> {
        let context = self.context()?;
        self.start(&load(&self.wasm, compiler)?, context)
    }

    /// What it is started with.
    pub(super) fn context(&self) -> anyhow::Result<FilterContext> {
        context(config(self.with_config.as_deref())?)
    }

    pub(super) fn start(&self, module: &Arc<Module>, context: FilterContext) -> anyhow::Result<Filter> {
        let does_not_start = || format!("{} does not start with this config", self.wasm.display());
        module.prepare(context).with_context(does_not_start)
    }
}

/// The module in a file, compiled as the agent would.
pub(super) fn load(wasm: &Path, compiler: Compiler) -> anyhow::Result<Arc<Module>> {
    let bytes = std::fs::read(wasm).with_context(|| format!("cannot read {}", wasm.display()))?;
    compile(wasm, &bytes, FILTER_MEMORY, compiler)
}

/// The module in `bytes`, the content of the file `wasm`; its instances may take so much memory.
pub(super) fn compile(
    wasm: &Path,
    bytes: &[u8],
    memory: u64,
    compiler: Compiler,
) -> anyhow::Result<Arc<Module>> {
    Cached::new(wasm, bytes)?.load(memory, compiler)
}

/// A module in a cache of its own, as an agent has it.
pub(super) struct Cached {
    file: String,
    digest: Digest,
    cache: ModuleCache,
    _dir: tempfile::TempDir,
}

impl Cached {
    pub(super) fn new(wasm: &Path, bytes: &[u8]) -> anyhow::Result<Self> {
        let file = wasm.display().to_string();
        // What is no filter is said here, in fewer words than the compiler's.
        inspect(bytes).with_context(|| format!("{file} cannot be a filter"))?;
        let dir = tempfile::tempdir().context("make a directory for compiled code")?;
        let cache = ModuleCache::open(dir.path())?;
        Ok(Self { file, digest: cache.put(bytes)?, cache, _dir: dir })
    }

    /// Loads it into an engine of its own. The first time it is compiled.
    pub(super) fn load(&self, memory: u64, compiler: Compiler) -> anyhow::Result<Arc<Module>> {
        let engine = Engine::with_compiler(EngineLimits { memory }, compiler)?;
        engine.load(&self.cache, &self.digest).with_context(|| format!("{} cannot be used", self.file))
    }
}

/// What is typed as a configuration: any JSON, taken as its bytes.
pub(super) fn config(typed: Option<&str>) -> anyhow::Result<Vec<u8>> {
    match typed.map(serde_json::from_str::<&RawValue>) {
        None => Ok(Vec::new()),
        Some(config) => Ok(config.context("--with-config is no JSON")?.get().as_bytes().to_vec()),
    }
}

/// What a module that is tried is told, with the limits that an entry has which says nothing.
pub(super) fn context(config: Vec<u8>) -> anyhow::Result<FilterContext> {
    Ok(FilterContext {
        entry: EntryName("test".into()),
        topic: Topic::parse("test").map_err(anyhow::Error::msg)?,
        host: "localhost".into(),
        config,
        timeout: FILTER_TIMEOUT,
        memory: FILTER_MEMORY,
        aside: false,
    })
}

/// The lines of a file.
pub(super) struct Sample {
    /// As it was named.
    pub(super) path: String,
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

/// What the agent would read at once.
struct Part {
    offset: usize,
    lines: Lines,
}

impl Sample {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        Self::read_at_least(path, 0)
    }

    /// The file, as often as it takes for so many bytes.
    pub(super) fn read_at_least(path: &Path, bytes_min: usize) -> anyhow::Result<Self> {
        let mut bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !bytes.is_empty() && bytes.len() < bytes_min {
            if !bytes.ends_with(b"\n") {
                bytes.push(b'\n');
            }
            bytes = bytes.repeat(bytes_min.div_ceil(bytes.len()));
        }
        Ok(Self { path: path.to_string_lossy().into_owned(), parts: cut(&bytes), bytes })
    }

    /// Its batches. All were read in 1970, so that a filter gives the same answers every time.
    pub(super) fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        self.parts.iter().map(|Part { offset, lines }| Batch {
            path: &self.path,
            offset: *offset as u64,
            unix_ms: 0,
            bytes: &self.bytes[*offset..*offset + lines.used],
            starts: &lines.starts,
            ends: &lines.ends,
        })
    }

    /// Lines that no filter sees: empty ones, and runs of NUL.
    pub(super) fn skipped(&self) -> u64 {
        self.parts.iter().map(|part| part.lines.skipped + part.lines.discarded).sum()
    }
}

fn cut(bytes: &[u8]) -> Vec<Part> {
    let (mut parts, mut offset, mut window) = (Vec::new(), 0, READ_BYTES);
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let read = &rest[..window.min(rest.len())];
        let mut lines = Lines::default();
        RULES.cut(read, CHUNK_LINES, read.len() == rest.len(), &mut lines);
        if lines.used == 0 {
            // A line that is longer than what was read; it will be split.
            window *= 2;
            continue;
        }
        (window, offset) = (READ_BYTES, offset + lines.used);
        parts.push(Part { offset: offset - lines.used, lines });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(bytes: &[u8]) -> Sample {
        Sample { path: "a.log".into(), bytes: bytes.into(), parts: cut(bytes) }
    }

    #[test]
    fn every_line_is_in_one_batch_and_no_batch_is_too_large() {
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        let sample = sample(text.as_bytes());
        let mut seen = 0;
        for batch in sample.batches() {
            assert!(batch.starts.len() <= CHUNK_LINES && batch.bytes.len() <= READ_BYTES);
            for (start, end) in batch.starts.iter().zip(batch.ends) {
                let line = &batch.bytes[*start as usize..*end as usize];
                assert_eq!(line, format!("line {seen}").as_bytes());
                seen += 1;
            }
        }
        assert_eq!(seen, 20_000);
    }

    #[test]
    fn an_unfinished_line_is_a_line_and_an_empty_one_is_left_out() {
        let sample = sample(b"a\n\n\r\nb");
        let batch = sample.batches().next().unwrap();
        assert_eq!((batch.starts, batch.ends, sample.skipped()), (&[0, 5][..], &[1, 6][..], 2));
    }

    #[test]
    fn a_line_that_is_too_long_is_split() {
        let sample = sample(&vec![b'x'; 2 * LINE_BYTES_MAX as usize + 1]);
        assert_eq!(sample.batches().map(|batch| batch.starts.len()).sum::<usize>(), 3);
    }
}
