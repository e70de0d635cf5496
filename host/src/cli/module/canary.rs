//! A module tried as the agents will use it, before it is in the store.
//!
//! In: a module's bytes, with what agents will start it, perhaps lines. Out: nothing, or why it
//! would fail there.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::sample::{Sample, compile, context};
use crate::filter::{Compiler, ErrorKind, Filter, FilterContext};
use crate::model::{Entry, FILTER_MEMORY, ModuleRef};

/// What a module is started with.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    /// Whose config it is, for people.
    pub(super) whose: String,
    pub(super) context: FilterContext,
}

impl Trial {
    /// What an entry of `list` starts it with, if it names the tag.
    pub(super) fn of(entry: &Entry, tag: &str, list: &str) -> Option<Self> {
        let spec = entry.filter.as_ref().filter(|spec| spec.module == ModuleRef::Tag(tag.into()))?;
        let context = FilterContext {
            entry: entry.name.clone(),
            topic: entry.topic.clone(),
            host: "localhost".into(),
            config: spec.config.clone(),
            timeout: spec.timeout,
            memory: spec.memory,
            aside: false,
        };
        Some(Self { whose: format!("entry `{}` of {list}", entry.name), context })
    }
}

/// Tries a module, the content of the file `wasm`. Where nothing says how it is started, lines are
/// tried without a config.
pub(super) fn run(
    wasm: &Path,
    bytes: &[u8],
    mut trials: Vec<Trial>,
    sample: Option<&Path>,
) -> anyhow::Result<()> {
    let sample = sample.map(Sample::read).transpose()?;
    if trials.is_empty() && sample.is_some() {
        trials.push(Trial { whose: "no config".into(), context: context(Vec::new())? });
    }
    let memory = trials.iter().map(|trial| trial.context.memory).max();
    let Some(memory) = memory else { return Ok(()) };
    let module = compile(wasm, bytes, memory.max(FILTER_MEMORY), Compiler::this_program())?;
    let mut tried: Vec<FilterContext> = Vec::new();
    for Trial { whose, context } in trials {
        // Many hosts have the same entry.
        let same = |other: &FilterContext| {
            (&other.config, other.timeout, other.memory) == (&context.config, context.timeout, context.memory)
        };
        if tried.iter().any(same) {
            continue;
        }
        tried.push(context.clone());
        let mut filter = module
            .prepare(context)
            .with_context(|| format!("it does not start with the config of {whose}"))?;
        if let Some(sample) = &sample {
            pass(&mut filter, sample).with_context(|| format!("with the config of {whose}"))?;
        }
    }
    Ok(())
}

/// Passes all lines; one that is set aside on purpose is no failure.
fn pass(filter: &mut Filter, sample: &Sample) -> anyhow::Result<()> {
    let (mut lines, mut failed, mut first) = (0, 0, String::new());
    for batch in sample.batches() {
        lines += batch.starts.len();
        for refused in filter.process(&batch).refused {
            if refused.kind != ErrorKind::SetAside {
                failed += 1;
                if first.is_empty() {
                    first = format!("{}: {}", refused.kind.as_str(), refused.message);
                }
            }
        }
    }
    let path = &sample.path;
    ensure!(
        failed == 0,
        "it fails on {failed} of {lines} lines of {path} ({first}); `weir module test` shows which"
    );
    Ok(())
}
