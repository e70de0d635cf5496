//! How fast an entry goes, from two looks at it.

use std::collections::HashMap;

use crate::status::{EntryState, EntryStatus, Status};

use super::status::text::words;
use super::words::seconds;

/// How fast an entry went between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Lines read a second.
    pub(super) lines: f64,
    /// Bytes read a second.
    pub(super) bytes: f64,
    /// Bytes a second by which the lag falls; below 0 where it grows.
    pub(super) gain: f64,
}

impl Rate {
    pub(super) fn between(before: &EntryStatus, after: &EntryStatus, seconds: f64) -> Self {
        // An agent that was started again counts from 0.
        let grown = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Self {
            lines: grown(before.lines.read, after.lines.read),
            bytes: grown(before.bytes_read, after.bytes_read),
            gain: (before.lag_bytes as f64 - after.lag_bytes as f64) / seconds,
        }
    }

    /// Seconds until the lag is gone at this rate; `None` where it does not fall.
    pub(super) fn left(&self, lag_bytes: u64) -> Option<f64> {
        (self.gain > 0.0).then(|| lag_bytes as f64 / self.gain)
    }
}

/// Of all entries by name, between two looks that lie so many seconds apart.
pub(super) fn rates(before: &Status, after: &Status, seconds: f64) -> HashMap<String, Rate> {
    let known: HashMap<_, _> = before.entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let rate = |entry: &EntryStatus| {
        let before = known.get(entry.name.as_str())?;
        Some((entry.name.clone(), Rate::between(before, entry, seconds)))
    };
    after.entries.iter().filter_map(rate).collect()
}

/// The state in words, and where it catches up, how long that will take.
pub(super) fn state(entry: &EntryStatus, rate: Option<&Rate>) -> String {
    let state = words(entry.state);
    match rate {
        Some(rate) if entry.state == EntryState::CatchingUp => match rate.left(entry.lag_bytes) {
            Some(left) => format!("{state}, {} left", seconds(left)),
            None if rate.gain < 0.0 => format!("{state}, falls behind"),
            None => state.into(),
        },
        _ => state.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lines;

    fn entry(read: u64, lag_bytes: u64) -> EntryStatus {
        EntryStatus {
            state: EntryState::CatchingUp,
            lag_bytes,
            bytes_read: read * 100,
            lines: Lines { read, ..Lines::default() },
            ..EntryStatus::default()
        }
    }

    #[test]
    fn the_time_left_is_what_the_lag_takes_at_the_rate_at_which_it_falls() {
        let rate = Rate::between(&entry(100, 9_000), &entry(300, 8_000), 2.0);
        assert_eq!(rate, Rate { lines: 100.0, bytes: 10_000.0, gain: 500.0 });
        assert_eq!(state(&entry(0, 60_000), Some(&rate)), "catching up, 2 min 0 s left");
        let behind = Rate::between(&entry(100, 8_000), &entry(300, 9_000), 2.0);
        assert_eq!(state(&entry(0, 9_000), Some(&behind)), "catching up, falls behind");
        assert_eq!(state(&entry(0, 9_000), None), "catching up");
    }

    #[test]
    fn an_agent_that_was_started_again_has_no_rate_below_nothing() {
        let rate = Rate::between(&entry(300, 0), &entry(100, 0), 2.0);
        assert_eq!((rate.lines, rate.bytes), (0.0, 0.0));
    }
}
