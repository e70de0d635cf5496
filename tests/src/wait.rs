//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Long enough for anything that should happen at once, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(60);

/// Between two looks.
const TICK: Duration = Duration::from_millis(10);

/// Looks until the value is as it should be, and returns it.
///
/// # Panics
/// When the deadline passes: with `what` was waited for and the last value seen.
#[track_caller]
pub fn eventually<T: Debug>(
    within: Duration,
    what: &str,
    mut look: impl FnMut() -> T,
    is_so: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let value = look();
        if is_so(&value) {
            return value;
        }
        if begun.elapsed() >= within {
            panic!("waited {within:?} for {what}; the last value seen is {value:?}");
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_becomes_right_is_returned() {
        let mut n = 0;
        let look = || {
            n += 1;
            n
        };
        assert_eq!(eventually(SOON, "three", look, |n| *n == 3), 3);
    }

    #[test]
    #[should_panic(expected = "for a seven; the last value seen is 6")]
    fn a_value_that_stays_wrong_is_named() {
        eventually(Duration::ZERO, "a seven", || 6, |n| *n == 7);
    }
}
