//! The stages of the data path one by one, for `cargo bench` (time) and for a test (instructions).
//! The program beside it measures whole agents.

pub mod stages;
