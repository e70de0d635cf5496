//! Runs a filter in plain `cargo test`, over the same path as in the host.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::bindings::{Batch, Context};
use crate::{Filter, Level, runtime};

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Kept,
    /// It goes no further.
    Dropped,
    /// These lines go on in its place.
    Replaced(Vec<Vec<u8>>),
    /// It is treated as `on_error` says.
    SetAside,
}

impl Fate {
    /// Replaced by `lines`.
    pub fn replaced<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>) -> Self {
        Self::Replaced(lines.into_iter().map(|line| line.as_ref().to_vec()).collect())
    }
}

/// What a filter did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// What became of each line.
    pub fates: Vec<Fate>,
    /// What it logged.
    pub logs: Vec<(Level, String)>,
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
}

thread_local! {
    static SAID: RefCell<Run> = RefCell::default();
}

#[cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "there the host hears it"))]
pub(crate) fn logged(level: Level, message: &str) {
    SAID.with_borrow_mut(|said| said.logs.push((level, message.to_owned())));
}

#[cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "there the host hears it"))]
pub(crate) fn counted(name: &str, by: u64) {
    SAID.with_borrow_mut(|said| *said.counts.entry(name.to_owned()).or_default() += by);
}

/// Makes a filter with `config` and passes it one batch of `lines`, as from a file `test.log`.
/// The error is that of `init`.
pub fn run<F: Filter>(
    config: impl AsRef<[u8]>,
    lines: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Result<Run, String> {
    SAID.take();
    let context = Context { entry: "test".into(), topic: "test".into(), host: "test".into() };
    let mut filter = F::init(&context, config.as_ref())?;
    let output = runtime::process(&mut filter, batch(lines));
    let mut ends = output.ends.iter().map(|end| *end as usize);
    let mut from = 0;
    let mut next = || {
        let to = ends.next().expect("an end for each replacement");
        output.bytes[std::mem::replace(&mut from, to)..to].to_vec()
    };
    let fates = output.verdicts.iter().map(|verdict| match verdict {
        0 => Fate::Dropped,
        1 => Fate::Kept,
        255 => Fate::SetAside,
        lines => Fate::Replaced((1..*lines).map(|_| next()).collect()),
    });
    let fates = fates.collect();
    Ok(Run { fates, ..SAID.take() })
}

/// The lines as the host would hand them over, a newline after each.
fn batch(lines: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Batch {
    let (mut bytes, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        starts.push(bytes.len() as u32);
        bytes.extend_from_slice(line.as_ref());
        ends.push(bytes.len() as u32);
        bytes.push(b'\n');
    }
    Batch { path: "test.log".into(), offset: 0, unix_ms: 0, bytes, starts, ends }
}
