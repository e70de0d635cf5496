//! Passes batches of lines through a WebAssembly module.
pub mod compile;
