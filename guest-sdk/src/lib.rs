//! Write line filters for weir in Rust.
//!
//! A filter is a WebAssembly module that says for every line of a log file what becomes of it.
//! The smallest one is a function:
//!
//! ```
//! use weir_guest::Verdict;
//!
//! #[weir_guest::filter]
//! fn drop_debug(line: &[u8]) -> Verdict<'_> {
//!     if line.starts_with(b"DEBUG") { Verdict::Drop } else { Verdict::Keep }
//! }
//!
//! // It is still a function, so it is tested as one.
//! assert_eq!(drop_debug(b"DEBUG x"), Verdict::Drop);
//! ```
//!
//! One that needs configuration or state implements [`Filter`]:
//!
//! ```
//! use weir_guest::{Context, Filter, Output, Result, Verdict};
//!
//! /// Keeps one line of every `n`.
//! struct Sample { n: u64, seen: u64 }
//!
//! impl Filter for Sample {
//!     fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
//!         let n = std::str::from_utf8(config)?.parse()?;
//!         if n == 0 {
//!             return Err("config: a number above 0".into());
//!         }
//!         Ok(Self { n, seen: 0 })
//!     }
//!
//!     fn line(&mut self, _line: &[u8], _out: &mut Output) -> Verdict<'_> {
//!         self.seen += 1;
//!         if self.seen % self.n == 1 { Verdict::Keep } else { Verdict::Drop }
//!     }
//! }
//!
//! weir_guest::export!(Sample);
//!
//! // The same code runs natively, over the same path as in the host.
//! use weir_guest::testing::{Fate, run};
//! let run = run::<Sample>("2", ["a", "b", "c"]).unwrap();
//! assert_eq!(run.fates, [Fate::Kept, Fate::Dropped, Fate::Kept]);
//! ```
//!
//! A crate of type `["cdylib", "rlib"]` with either becomes a module by `weir module build`, or by
//! a plain `cargo build --target wasm32-unknown-unknown`.
//!
//! # What filters do, and what helps
//!
//! | to | take |
//! |---|---|
//! | read the configuration | [`config()`] (feature `json`), by serde |
//! | read and change fields of JSON | [`json`] (feature `json`) |
//! | read `key=value` | [`logfmt`] |
//! | find a substring | [`memchr::memmem::Finder`], which uses `simd128` |
//! | keep a share | [`Sample`], by a hash that is the same on every host |
//! | keep so many a second | [`RateLimit`], by the time of the batch |
//! | shorten | [`truncate()`], which cuts between characters |
//! | fail on a line | a function that returns `Result<Verdict, E>`, or `Verdict::from(result)` |
//! | look at all lines at once | [`Filter::begin`] |
//! | say something | [`log`], [`count`] |
//! | test | [`testing::run`], in plain `cargo test` |
//!
//! A `#[filter]` function may also return a `bool` (keep it?) or a `Result`:
//!
//! ```
//! use std::num::ParseIntError;
//! use weir_guest::{Verdict, logfmt};
//!
//! /// Drops what took less than 100 ms; a line whose `ms` is no number is set aside.
//! #[weir_guest::filter]
//! fn slow_ones(line: &[u8]) -> Result<Verdict<'_>, ParseIntError> {
//!     let Some(ms) = logfmt::get(line, b"ms") else { return Ok(Verdict::Keep) };
//!     let ms: u64 = String::from_utf8_lossy(&ms).parse()?;
//!     Ok(if ms < 100 { Verdict::Drop } else { Verdict::Keep })
//! }
//!
//! assert_eq!(slow_ones(b"GET / ms=7"), Ok(Verdict::Drop));
//! assert!(slow_ones(b"GET / ms=-").is_err());
//! ```
//!
//! # What to know
//!
//! - A filter has no files, no network, no clock and no environment. It can [`log`] and [`count`].
//! - Lines are bytes; they need not be UTF-8.
//! - A kept or dropped line costs no allocation and no copy. Parts of the line, written to the
//!   [`Output`], cost one copy.
//! - A filter that panics loses its state; the host logs the message, starts a new instance, and
//!   lines may be seen again. So a filter must not hold lines back.
//!
//! # Small and fast modules
//!
//! A module is fetched once by every agent, so size matters little; what runs for every line does.
//! All the same: the smallest filter, `drop_debug`, has 19 kB, `json_fields` with serde and JSON
//! 141 kB, `redact` with regular expressions and JSON 793 kB.
//!
//! **Regular expressions.** Where a pattern has a fixed part, look for that first with
//! `memchr::memmem`, and run the expression on lines that have it. Take `regex::bytes` (lines need not be UTF-8; `regex-lite` has no `bytes`) without its
//! Unicode tables, which are most of what it weighs, and build expressions in `init`, never for a
//! line:
//!
//! ```toml
//! regex = { version = "1", default-features = false, features = ["std", "perf-dfa", "perf-inline", "perf-literal"] }
//! ```
//!
//! Without Unicode, `\d`, `\w` and `(?i)` mean ASCII, and each pattern needs
//! `RegexBuilder::new(p).unicode(false)`. The example `redact` does so.

#[doc(hidden)]
#[rustfmt::skip]
#[allow(unsafe_code, missing_docs, unreachable_pub, clippy::all, rustdoc::broken_intra_doc_links, reason = "generated; see tests/bindings.rs")]
pub mod bindings;
#[cfg(feature = "json")]
mod config;
mod host;
#[cfg(feature = "json")]
pub mod json;
pub mod logfmt;
mod output;
mod rate;
#[doc(hidden)]
pub mod runtime;
mod sample;
mod search;
pub mod testing;
mod truncate;

pub use bindings::{Batch, Context};
#[cfg(feature = "json")]
pub use config::config;
pub use host::{Level, count, log};
/// Finds bytes and substrings; on wasm32 it uses `simd128`.
pub use memchr;
pub use output::{LINES_MAX, Output, Verdict};
pub use rate::RateLimit;
pub use sample::{Sample, hash};
pub use search::Search;
pub use truncate::truncate;
pub use weir_guest_macros::filter;

/// What `init` fails with: any error by `?`, or a text by `.into()`.
pub type Error = Box<dyn std::error::Error>;

/// Short for `Result<T, weir_guest::Error>`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A line filter with configuration or state.
///
/// There is one instance for each entry of the collect list that names the module; it sees the
/// lines of all files of that entry, each file's in order.
pub trait Filter: Sized {
    /// Called once, before any line. `config` is the JSON value that stands in the collect list,
    /// or empty. An error keeps the module from being used, and is shown to whoever asked for it.
    fn init(ctx: &Context, config: &[u8]) -> Result<Self>;

    /// Called with each batch before any of its lines: here is a place for what is looked at once
    /// and not for each line. All lines of a batch are of one file and were read at one time.
    fn begin(&mut self, _batch: &Batch) {}

    /// Called for every line, without its newline. Several lines, or one that is built piece by
    /// piece, are written to `out`; then the verdict is [`Verdict::Written`].
    ///
    /// An implementation that replaces with parts of `line` spells the lifetimes out as here;
    /// others write `line: &[u8]` and `Verdict<'_>`.
    fn line<'a>(&'a mut self, line: &'a [u8], out: &mut Output) -> Verdict<'a>;
}

/// Makes a [`Filter`] the module's filter. Once a crate, beside the `impl`.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        const _: () = {
            static FILTER: $crate::runtime::Slot<$filter> = $crate::runtime::Slot::new();

            struct Component;

            impl $crate::bindings::Guest for Component {
                fn init(
                    ctx: $crate::bindings::Context,
                    config: Vec<u8>,
                ) -> ::std::result::Result<(), String> {
                    FILTER.init(&ctx, &config)
                }

                fn process(
                    batch: $crate::bindings::Batch,
                ) -> ::std::result::Result<$crate::bindings::Output, String> {
                    FILTER.process(batch)
                }
            }

    $crate::bindings::export!(Component with_types_in $crate::bindings);
        };

        // Elsewhere there is no host to export to; it runs as in a test.
        #[cfg(not(target_arch = "wasm32"))]
        #[allow(dead_code, unreachable_pub)]
        #[doc(hidden)]
        pub fn run_natively(
            config: &[u8],
            lines: &[Vec<u8>],
        ) -> ::std::result::Result<$crate::testing::Run, String> {
            $crate::testing::run::<$filter>(config, lines)
        }
    };
}
