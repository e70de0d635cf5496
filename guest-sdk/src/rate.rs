//! So many a second.

/// Lets so many lines a second pass: a bucket of tokens, refilled by the time of the batch.
///
/// A filter has no clock; all lines of a batch have one time, [`Output::unix_ms`](crate::Output::unix_ms).
/// So lines of a backlog, which are read faster than they were written, are limited by when they
/// are read.
///
/// ```
/// use weir_guest::RateLimit;
///
/// let mut limit = RateLimit::per_second(2);
/// let allowed = [0, 0, 0, 400, 500].map(|unix_ms| limit.allow(unix_ms));
/// assert_eq!(allowed, [true, true, false, false, true]);
/// ```
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Thousandths of a token a millisecond, which is tokens a second.
    rate: u64,
    /// The most thousandths of a token.
    full: u64,
    left: u64,
    /// When it was refilled last.
    at: Option<u64>,
}

/// A line's worth, in thousandths.
const TOKEN: u64 = 1000;

impl RateLimit {
    /// `lines` a second on average, and as many at once.
    pub fn per_second(lines: u32) -> Self {
        Self { rate: u64::from(lines), full: 0, left: 0, at: None }.burst(lines)
    }

    /// At most `lines` at once.
    pub fn burst(self, lines: u32) -> Self {
        let full = u64::from(lines) * TOKEN;
        Self { full, left: full, ..self }
    }

    /// Whether one more line may pass at that time. Where the clock was set back, it goes on from
    /// there.
    pub fn allow(&mut self, unix_ms: u64) -> bool {
        let passed = unix_ms.saturating_sub(self.at.replace(unix_ms).unwrap_or(unix_ms));
        self.left = self.left.saturating_add(passed.saturating_mul(self.rate)).min(self.full);
        let allowed = self.left >= TOKEN;
        if allowed {
            self.left -= TOKEN;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_no_further_than_its_burst() {
        let mut limit = RateLimit::per_second(1000).burst(3);
        let mut allowed = |unix_ms| (0..10).filter(|_| limit.allow(unix_ms)).count();
        assert_eq!([allowed(u64::MAX / 2), allowed(u64::MAX / 2 + 1), allowed(u64::MAX)], [3, 1, 3]);
    }

    #[test]
    fn a_clock_that_is_set_back_stops_nothing() {
        let mut limit = RateLimit::per_second(1);
        assert_eq!([10_000, 5_000, 5_500, 6_000].map(|ms| limit.allow(ms)), [true, false, false, true]);
    }

    #[test]
    fn a_limit_of_nothing_lets_nothing_pass() {
        let mut limit = RateLimit::per_second(0);
        assert!(!limit.allow(0) && !limit.allow(u64::MAX));
    }
}
