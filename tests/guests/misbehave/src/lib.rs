//! A guest that does on demand what a filter must not do.
//!
//! The config `{"do": "…", "on": "…"}` says what, and on which lines: those that contain `on`, by
//! default `bad`. All other lines are kept, or get `prefix` in front of them. It goes round the SDK's runtime, so that it can also
//! hand back what no filter written with the SDK can.

// Elsewhere there is no host to misbehave to.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]

use std::cell::RefCell;

use serde::Deserialize;
use weir_guest::bindings::{Batch, Context, Guest, Output};
use weir_guest::{Level, count, log};

/// What to do, and when.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(rename = "do")]
    what: Misdeed,
    #[serde(default = "bad")]
    on: String,
    prefix: Option<String>,
}

fn bad() -> String {
    "bad".into()
}

/// What a guest can do wrong.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Misdeed {
    /// Nothing: every line is kept.
    Nothing,
    /// Never comes back.
    Loop,
    /// Panics with a message.
    Trap,
    /// Recurses until the stack is used up.
    Recurse,
    /// Takes memory without end.
    Hoard,
    /// Keeps a MiB more with every batch that has such a line.
    Leak,
    /// Says no in words.
    Error,
    /// Sets the line aside.
    SetAside,
    /// Random-looking verdicts, bytes and ends.
    Garbage,
    /// One verdict too few.
    FewVerdicts,
    /// One verdict too many.
    ManyVerdicts,
    /// An end behind the bytes.
    EndsBeyond,
    /// Ends that go backwards.
    EndsBackwards,
    /// A replacement is promised and not there.
    NoReplacement,
    /// A newline in a replacement.
    Newline,
    /// Far more output than input.
    Flood,
    /// 253 lines for one, as many as there may be.
    Multiply,
    /// Logs a thousand messages.
    Chatter,
    /// Counts under a thousand names, some of them bad.
    CountNames,
    /// Counts the line under `seen`, then panics.
    CountAndTrap,
    /// Spends some milliseconds of CPU and keeps the line.
    Slow,
    /// `init` never comes back.
    InitLoop,
    /// `init` panics.
    InitTrap,
    /// `init` says no in words.
    InitError,
    /// `init` takes memory without end.
    InitHoard,
}

thread_local! {
    static CONFIG: RefCell<Option<Config>> = const { RefCell::new(None) };
    static HOARD: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

struct Misbehave;

#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
const _: () = {
    weir_guest::bindings::export!(Misbehave with_types_in weir_guest::bindings);
};

/// Never comes back; a test makes it the module's start function.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn spin() {
    forever();
}

impl Guest for Misbehave {
    fn init(_ctx: Context, config: Vec<u8>) -> Result<(), String> {
        std::panic::set_hook(Box::new(|info| log(Level::Error, &info.to_string())));
        let config: Config = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
        match config.what {
            Misdeed::InitLoop => forever(),
            Misdeed::InitTrap => panic!("init panics"),
            Misdeed::InitError => return Err("init says no".into()),
            Misdeed::InitHoard => hoard(),
            _ => CONFIG.set(Some(config)),
        }
        Ok(())
    }

    fn process(batch: Batch) -> Result<Output, String> {
        let config = CONFIG.with_borrow(|config| config.clone()).ok_or("no init")?;
        let is_bad = |range: (&u32, &u32)| {
            let line = &batch.bytes[*range.0 as usize..*range.1 as usize];
            line.windows(config.on.len().max(1)).any(|window| window == config.on.as_bytes())
        };
        let bad: Vec<bool> = batch.starts.iter().zip(&batch.ends).map(is_bad).collect();
        let mut good = Output { verdicts: vec![1; bad.len()], bytes: Vec::new(), ends: Vec::new() };
        if let Some(prefix) = &config.prefix {
            good.verdicts.fill(2);
            for range in batch.starts.iter().zip(&batch.ends) {
                good.bytes.extend_from_slice(prefix.as_bytes());
                good.bytes.extend_from_slice(&batch.bytes[*range.0 as usize..*range.1 as usize]);
                good.ends.push(good.bytes.len() as u32);
            }
        }
        if bad.contains(&true) { misbehave(config.what, &bad, good) } else { Ok(good) }
    }
}

fn misbehave(what: Misdeed, bad: &[bool], mut out: Output) -> Result<Output, String> {
    match what {
        Misdeed::Loop => forever(),
        Misdeed::Trap => panic!("a bad line"),
        Misdeed::Recurse => _ = recurse(1),
        Misdeed::Hoard => hoard(),
        Misdeed::Leak => HOARD.with_borrow_mut(|hoard| hoard.push(vec![1; 1 << 20])),
        Misdeed::Error => return Err("a bad line".into()),
        Misdeed::SetAside => each_bad(bad, |i| out.verdicts[i] = 255),
        Misdeed::Garbage => {
            out.verdicts.iter_mut().enumerate().for_each(|(i, verdict)| *verdict = (i * 37 + 3) as u8);
            out.bytes = b"garbage\n\0\xff".repeat(7);
            out.ends = vec![3, u32::MAX, 1, 0];
        }
        Misdeed::FewVerdicts => _ = out.verdicts.pop(),
        Misdeed::ManyVerdicts => out.verdicts.push(1),
        Misdeed::EndsBeyond => replace(bad, &mut out, b"x", |end| end + 1),
        Misdeed::EndsBackwards => {
            each_bad(bad, |i| out.verdicts[i] = 3);
            out.bytes = b"xx".repeat(bad.len());
            out.ends = bad.iter().filter(|bad| **bad).flat_map(|_| [2, 1]).collect();
        }
        Misdeed::NoReplacement => each_bad(bad, |i| out.verdicts[i] = 2),
        Misdeed::Newline => replace(bad, &mut out, b"two\nlines", |end| end),
        Misdeed::Flood => replace(bad, &mut out, &vec![b'x'; 16 << 20], |end| end),
        Misdeed::Multiply => each_bad(bad, |i| {
            out.verdicts[i] = 254;
            (0..253).for_each(|_| {
                out.ends.push({
                    out.bytes.push(b'x');
                    out.bytes.len() as u32
                })
            });
        }),
        Misdeed::Chatter => (0..1000).for_each(|i| log(Level::Info, &format!("chatter {i}\nforged line"))),
        Misdeed::CountNames => (0..1000).for_each(|i| {
            count(&format!("n_{i}"), 1);
            count(&format!("Bad Name {i}"), 1);
        }),
        Misdeed::CountAndTrap => {
            count("seen", 1);
            panic!("a bad line");
        }
        Misdeed::Slow => each_bad(bad, |_| spend(10_000_000)),
        Misdeed::Nothing
        | Misdeed::InitLoop
        | Misdeed::InitTrap
        | Misdeed::InitError
        | Misdeed::InitHoard => {}
    }
    Ok(out)
}

fn each_bad(bad: &[bool], then: impl FnMut(usize)) {
    bad.iter().enumerate().filter(|(_, bad)| **bad).map(|(i, _)| i).for_each(then);
}

fn replace(bad: &[bool], out: &mut Output, with: &[u8], end: impl Fn(u32) -> u32) {
    each_bad(bad, |i| {
        out.verdicts[i] = 2;
        out.bytes.extend_from_slice(with);
        out.ends.push(end(out.bytes.len() as u32));
    });
}

fn forever() {
    let mut n = 0u64;
    while std::hint::black_box(n) < u64::MAX {
        n = n.wrapping_add(2);
    }
}

fn spend(rounds: u64) {
    (0..rounds).for_each(|n| _ = std::hint::black_box(n));
}

fn recurse(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 64]);
    if n == 0 { 0 } else { recurse(n + 1) + frame[n as usize % 64] }
}

fn hoard() {
    loop {
        HOARD.with_borrow_mut(|hoard| hoard.push(std::hint::black_box(vec![1; 1 << 20])));
    }
}
