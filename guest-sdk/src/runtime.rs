//! What stands between the host's flat batches and a [`Filter`]. Public for [`crate::export!`]
//! alone.

use std::cell::Cell;

use crate::bindings::{Batch, Context, Output as WireOutput};
use crate::output::{LINES_MAX, Output, Verdict};
use crate::{Filter, Level, log};

const DROP: u8 = 0;
const KEEP: u8 = 1;
const SET_ASIDE: u8 = 255;

/// Where a module keeps its one filter.
pub struct Slot<F>(Cell<Option<F>>);

// SAFETY: a module has one thread, since the host offers no others: nothing is ever shared. (A
// thread-local would be as good, and 600 bytes larger.)
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
unsafe impl<F> Sync for Slot<F> {}

impl<F: Filter> Slot<F> {
    /// A slot without a filter.
    #[allow(clippy::new_without_default, reason = "nobody but `export!` makes one")]
    pub const fn new() -> Self {
        Self(Cell::new(None))
    }

    /// Makes the filter.
    pub fn init(&self, ctx: &Context, config: &[u8]) -> Result<(), String> {
        #[cfg(target_arch = "wasm32")]
        std::panic::set_hook(Box::new(say_panic));
        self.0.set(Some(F::init(ctx, config).map_err(|error| error.to_string())?));
        Ok(())
    }

    /// Passes a batch through it.
    pub fn process(&self, batch: Batch) -> Result<WireOutput, String> {
        let mut filter = self.0.take().ok_or("process was called before init")?;
        let output = process(&mut filter, batch);
        self.0.set(Some(filter));
        Ok(output)
    }
}

/// Sends a panic's message and place to the host: nothing else of it leaves the module.
#[cfg(target_arch = "wasm32")]
fn say_panic(info: &std::panic::PanicHookInfo<'_>) {
    let mut message = String::from(info.payload_as_str().unwrap_or("a panic"));
    if let Some(place) = info.location() {
        message.push_str(" at ");
        message.push_str(place.file());
        message.push(':');
        message.push_str(&place.line().to_string());
    }
    log(Level::Error, &message);
}

/// Asks `filter` about every line of `batch`.
pub fn process<F: Filter>(filter: &mut F, batch: Batch) -> WireOutput {
    filter.begin(&batch);
    let Batch { path, offset, unix_ms, bytes, starts, ends } = batch;
    let mut out = Output::new(path, unix_ms);
    let verdicts = starts.iter().zip(&ends).map(|(&start, &end)| {
        out.next(offset + u64::from(start));
        let line = bytes.get(start as usize..end as usize).unwrap_or_default();
        settle(filter.line(line, &mut out), &mut out)
    });
    let verdicts = verdicts.collect();
    WireOutput { verdicts, bytes: out.bytes, ends: out.ends }
}

/// The byte that stands for `verdict`; its lines, if any, stay in `out`.
fn settle(verdict: Verdict<'_>, out: &mut Output) -> u8 {
    let byte = match verdict {
        Verdict::Keep => KEEP,
        Verdict::Drop => DROP,
        Verdict::SetAside => SET_ASIDE,
        Verdict::Written => return written(out),
        Verdict::Replace(bytes) => {
            out.forget();
            out.line(&bytes);
            return written(out);
        }
    };
    out.forget();
    byte
}

fn written(out: &mut Output) -> u8 {
    match out.commit() {
        0 => DROP,
        lines @ 1..=LINES_MAX => lines as u8 + 1,
        _ => {
            out.forget();
            log(Level::Error, "a line was set aside: more than 253 lines stand for it");
            SET_ASIDE
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Fate, run};
    use crate::{Context, Filter, Output, Result, Verdict};
    use std::io::Write as _;

    struct Talk;

    impl Filter for Talk {
        fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
            if config.is_empty() { Ok(Self) } else { Err("no config".into()) }
        }

        fn line<'a>(&'a mut self, line: &'a [u8], out: &mut Output) -> Verdict<'a> {
            match line {
                b"written" => {
                    out.line(b"one");
                    out.line(b"");
                    write!(out, "at {} of {}", out.offset(), out.path().to_owned()).unwrap();
                    Verdict::Written
                }
                b"nothing" => Verdict::Written,
                b"empty" => Verdict::replace(&b""[..]),
                b"regret" => {
                    out.line(b"forgotten");
                    Verdict::Keep
                }
                b"too many" => {
                    (0..254).for_each(|_| out.line(b"x"));
                    Verdict::Written
                }
                b"aside" => Verdict::SetAside,
                _ => Verdict::replace(&line[1..]),
            }
        }
    }

    #[test]
    fn every_verdict_reaches_the_wire() {
        let lines = ["written", "regret", "nothing", "empty", "too many", "aside", "xyz"];
        let run = run::<Talk>("", lines).unwrap();
        assert_eq!(run.fates[0], Fate::replaced(["one", "", "at 0 of test.log"]));
        assert_eq!(run.fates[1..4], [Fate::Kept, Fate::Dropped, Fate::replaced([""])]);
        assert_eq!(run.fates[4..], [Fate::SetAside, Fate::SetAside, Fate::replaced(["yz"])]);
        assert_eq!(run.logs.len(), 1);
    }

    #[test]
    fn an_error_of_init_is_handed_on() {
        assert_eq!(run::<Talk>("1", [""; 0]).unwrap_err(), "no config");
    }
}
