//! How long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from a first to a longest one, with up to a quarter of chance in them, so
/// that a fleet does not ask at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The wait after one more failure.
    pub(super) fn after_failure(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait - chance(wait / 4)
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Some time below `most`; the standard library's hasher keys are random enough for spreading load.
pub(super) fn chance(most: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8);
    most.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(4));
        let mut backoff = Backoff::new(first, longest);
        for expected in [500, 1000, 2000, 4000, 4000] {
            let wait = backoff.after_failure();
            let expected = Duration::from_millis(expected);
            assert!(wait <= expected && wait >= expected * 3 / 4, "{wait:?} is not about {expected:?}");
        }
        backoff.reset();
        assert!(backoff.after_failure() <= first);
    }
}
