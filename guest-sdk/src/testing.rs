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
/// The error is that of `init`. [`Host`] has more to say about files and times.
pub fn run<F: Filter>(
    config: impl AsRef<[u8]>,
    lines: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Result<Run, String> {
    Ok(Host::<F>::new(config)?.run(lines))
}

/// Stands for the host: makes a filter, and passes it batch after batch.
///
/// ```
/// use weir_guest::testing::{Fate, Host};
/// # use weir_guest::{Context, Filter, Output, RateLimit, Result, Verdict};
/// # struct OneASecond(RateLimit);
/// # impl Filter for OneASecond {
/// #     fn init(_: &Context, _: &[u8]) -> Result<Self> { Ok(Self(RateLimit::per_second(1))) }
/// #     fn line(&mut self, _: &[u8], out: &mut Output) -> Verdict<'_> {
/// #         self.0.allow(out.unix_ms()).into()
/// #     }
/// # }
///
/// let mut host = Host::<OneASecond>::new("").unwrap();
/// assert_eq!(host.run(["a", "b"]).fates, [Fate::Kept, Fate::Dropped]);
/// host.unix_ms += 1000;
/// assert_eq!(host.run(["c"]).fates, [Fate::Kept]);
/// ```
#[derive(Debug)]
pub struct Host<F> {
    filter: F,
    /// Where the next lines come from; at first `test.log`.
    pub path: String,
    /// When they are read; at first 0.
    pub unix_ms: u64,
    /// Where the next batch stands in its file.
    pub offset: u64,
    /// What `init` said.
    said: Run,
}

impl<F: Filter> Host<F> {
    /// Makes the filter; the error is that of its `init`.
    pub fn new(config: impl AsRef<[u8]>) -> Result<Self, String> {
        SAID.take();
        let context = Context { entry: "test".into(), topic: "test".into(), host: "test".into() };
        let filter = F::init(&context, config.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { filter, path: "test.log".into(), unix_ms: 0, offset: 0, said: SAID.take() })
    }

    /// Passes it one batch; what `init` said is told with the first.
    pub fn run(&mut self, lines: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Run {
        SAID.replace(std::mem::take(&mut self.said));
        let batch = self.batch(lines);
        self.offset += batch.bytes.len() as u64;
        let output = runtime::process(&mut self.filter, batch);
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
        Run { fates, ..SAID.take() }
    }

    /// The lines as the host would hand them over, a newline after each.
    fn batch(&self, lines: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Batch {
        let (mut bytes, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            starts.push(bytes.len() as u32);
            bytes.extend_from_slice(line.as_ref());
            ends.push(bytes.len() as u32);
            bytes.push(b'\n');
        }
        Batch { path: self.path.clone(), offset: self.offset, unix_ms: self.unix_ms, bytes, starts, ends }
    }
}
