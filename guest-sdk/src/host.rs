//! What a filter may ask of its host. Natively the testing module takes the host's place.

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be.
    Warn = 2,
    /// For the record.
    Info = 3,
    /// For whoever writes the filter.
    Debug = 4,
}

/// Writes to the log of the host, which shows some ten messages a second and entry and counts the
/// others. The log stays on the host; do not write line content to it all the same.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::weir::filter::host::log(level as u8, message);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::logged(level, message);
}

/// Adds `by` to the counter `name`, which is shown as `weir_module_count_total{entry,name}`.
/// A name is of `[a-z0-9_]`; a module has at most 64.
pub fn count(name: &str, by: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::weir::filter::host::count(name, by);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::counted(name, by);
}
