//! What the C library keeps of memory that was given back.
//!
//! It keeps it for the thread that took it. Chunks and librdkafka's messages are taken by the thread of
//! each entry, so that with ten busy ones it kept twice what was in use: ten times the most that each
//! had had.

#![allow(unsafe_code)]

/// As many threads can take memory at the same time without waiting for one another. Ten entries took 30 %
/// less memory with two than with the sixteen of two cores, and no more CPU time (docs/performance.md).
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Lets all threads use what any of them gave back. To be called before there are any.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: this sets a number in the allocator, which takes any, and reads no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives whole pages that nothing is in back to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: this touches only what was freed, under the locks of the allocator.
    unsafe {
        libc::malloc_trim(0);
    }
}
