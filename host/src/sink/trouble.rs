//! Keeps what librdkafka has to say about an unreachable cluster from filling the log.
//!
//! In: texts. Out: whether to log one, and how many were held back before it. While a cluster is
//! away the same text comes with every attempt to connect, twenty times a second.

use std::time::{Duration, Instant};

/// A text is logged once in this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Different texts in a window; further ones are held back too.
const TEXTS_MAX: usize = 10;

/// What was logged lately.
#[derive(Debug)]
pub(super) struct Troubles {
    since: Instant,
    told: Vec<String>,
    held_back: u64,
}

impl Troubles {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, told: Vec::new(), held_back: 0 }
    }

    /// Whether to log `text`, as the number of those that were held back since the last one.
    pub(super) fn tell(&mut self, text: &str, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.told) = (now, Vec::new());
        }
        // Counts and times in it make it no other text.
        let text: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.told.len() >= TEXTS_MAX || self.told.contains(&text) {
            self.held_back += 1;
            return None;
        }
        self.told.push(text);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once_in_a_while_and_the_rest_is_counted() {
        let begun = Instant::now();
        let mut troubles = Troubles::new(begun);
        assert_eq!(troubles.tell("1/1 brokers are down", begun), Some(0));
        for text in ["1/1 brokers are down", "0/1 brokers are down"] {
            assert_eq!(troubles.tell(text, begun + WINDOW / 2), None);
        }
        assert_eq!(troubles.tell("authentication failed", begun + WINDOW / 2), Some(2));
        assert_eq!(troubles.tell("1/1 brokers are down", begun + WINDOW), Some(0));
    }

    #[test]
    fn ever_new_texts_are_bounded_too() {
        let begun = Instant::now();
        let mut troubles = Troubles::new(begun);
        let told = ('a'..='z').filter(|c| troubles.tell(&c.to_string(), begun).is_some());
        assert_eq!(told.count(), TEXTS_MAX);
    }
}
