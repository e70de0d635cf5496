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
//! use weir_guest::{Context, Filter, Output, Verdict};
//!
//! /// Keeps one line of every `n`.
//! struct Sample { n: u64, seen: u64 }
//!
//! impl Filter for Sample {
//!     fn init(_ctx: &Context, config: &[u8]) -> Result<Self, String> {
//!         let n = std::str::from_utf8(config).ok().and_then(|text| text.parse().ok());
//!         Ok(Self { n: n.filter(|n| *n > 0).ok_or("config: a number above 0")?, seen: 0 })
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
//! # What to know
//!
//! - A filter has no files, no network, no clock and no environment. It can [`log`] and [`count`].
//! - Lines are bytes; they need not be UTF-8.
//! - A kept or dropped line costs no allocation and no copy.
//! - A filter that panics loses its state; the host logs the message, starts a new instance, and
//!   lines may be seen again. So a filter must not hold lines back.

#[doc(hidden)]
#[rustfmt::skip]
#[allow(unsafe_code, missing_docs, unreachable_pub, clippy::all, rustdoc::broken_intra_doc_links, reason = "generated; see tests/bindings.rs")]
pub mod bindings;
mod host;
mod output;
#[doc(hidden)]
pub mod runtime;
pub mod testing;

pub use bindings::Context;
pub use host::{Level, count, log};
pub use output::{LINES_MAX, Output, Verdict};
pub use weir_guest_macros::filter;

/// A line filter with configuration or state.
///
/// There is one instance for each entry of the collect list that names the module; it sees the
/// lines of all files of that entry, each file's in order.
pub trait Filter: Sized {
    /// Called once, before any line. `config` is the JSON value that stands in the collect list,
    /// or empty. An error keeps the module from being used, and is shown to whoever asked for it.
    fn init(ctx: &Context, config: &[u8]) -> Result<Self, String>;

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
                fn init(ctx: $crate::bindings::Context, config: Vec<u8>) -> Result<(), String> {
                    FILTER.init(&ctx, &config)
                }

                fn process(batch: $crate::bindings::Batch) -> Result<$crate::bindings::Output, String> {
                    FILTER.process(batch)
                }
            }

    $crate::bindings::export!(Component with_types_in $crate::bindings);
        };

        // Elsewhere there is no host to export to; that it is a filter is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Context, &[u8]) -> Result<$filter, String> = <$filter as $crate::Filter>::init;
    };
}
