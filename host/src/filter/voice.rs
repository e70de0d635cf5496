//! What a module says: its log, and its counters. Both outlive its instances.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Digest, EntryName};

/// Messages a module may log within [`LOG_WINDOW`]; the others are counted.
const LOG_MESSAGES_MAX: u32 = 10;
/// See [`LOG_MESSAGES_MAX`].
const LOG_WINDOW: Duration = Duration::from_secs(1);
/// The longest message; the rest is cut off. Characters.
const LOG_CHARS_MAX: usize = 1024;
/// Names a module may count under; the others are ignored with a warning.
const COUNTS_MAX: usize = 64;
/// The longest name. Bytes.
const COUNT_NAME_BYTES_MAX: usize = 64;

/// What a module says beyond what it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Messages that were not logged.
    pub messages: u64,
    /// Times that it counted under a name it may not have.
    pub counts: u64,
}

/// The log and the counters of one filter.
#[derive(Debug)]
pub(super) struct Voice {
    entry: EntryName,
    module: String,
    window: Instant,
    logged: u32,
    suppressed: u64,
    ignored: Ignored,
    counts: BTreeMap<String, u64>,
    /// Whether it was said that a name was refused.
    complained: bool,
}

impl Voice {
    pub(super) fn new(entry: EntryName, digest: Digest) -> Self {
        Self {
            entry,
            module: digest.short(),
            window: Instant::now(),
            logged: 0,
            suppressed: 0,
            ignored: Ignored::default(),
            counts: BTreeMap::new(),
            complained: false,
        }
    }

    /// Writes a message to the agent's log, unless there were too many lately.
    pub(super) fn log(&mut self, level: u8, message: &str) {
        if self.window.elapsed() >= LOG_WINDOW {
            self.say_suppressed();
            (self.window, self.logged) = (Instant::now(), 0);
        }
        if self.logged == LOG_MESSAGES_MAX {
            self.suppressed += 1;
            self.ignored.messages += 1;
            return;
        }
        self.logged += 1;
        let (entry, module, message) = (self.entry.as_str(), self.module.as_str(), tame(message));
        match level {
            0 | 1 => tracing::error!(target: "weir::module", entry, module, "{message}"),
            2 => tracing::warn!(target: "weir::module", entry, module, "{message}"),
            3 => tracing::info!(target: "weir::module", entry, module, "{message}"),
            _ => tracing::debug!(target: "weir::module", entry, module, "{message}"),
        }
    }

    fn say_suppressed(&mut self) {
        let suppressed = std::mem::take(&mut self.suppressed);
        if suppressed > 0 {
            let (entry, module) = (self.entry.as_str(), self.module.as_str());
            tracing::warn!(target: "weir::module", entry, module, suppressed, "the module logs too much");
        }
    }

    /// Adds what a successful call has counted.
    pub(super) fn count(&mut self, name: &str, by: u64) {
        if let Some(count) = self.counts.get_mut(name) {
            *count = count.saturating_add(by);
        } else if self.counts.len() < COUNTS_MAX && is_name(name) {
            self.counts.insert(name.to_owned(), by);
        } else {
            self.ignore_count(name);
        }
    }

    fn ignore_count(&mut self, name: &str) {
        self.ignored.counts += 1;
        if !std::mem::replace(&mut self.complained, true) {
            let (entry, module) = (self.entry.as_str(), self.module.as_str());
            let name = tame(name);
            tracing::warn!(
                target: "weir::module", entry, module, name,
                "a counter is ignored: a module has at most {COUNTS_MAX}, named by [a-z0-9_], up to \
                 {COUNT_NAME_BYTES_MAX} long"
            );
        }
    }

    /// What was too much so far.
    pub(super) fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// The counters so far.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.clone()
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.say_suppressed();
    }
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=COUNT_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// `text` on one line and not too long, so that it cannot pass for another message.
pub(super) fn tame(text: &str) -> String {
    let mut chars = text.chars();
    let mut tamed: String = chars.by_ref().take(LOG_CHARS_MAX).collect();
    if chars.next().is_some() {
        tamed.push('…');
    }
    tamed.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice() -> Voice {
        Voice::new(EntryName("e".into()), Digest::of(b""))
    }

    #[test]
    fn a_chatterer_is_cut_short_and_counted() {
        let mut voice = voice();
        (0..25).for_each(|_| voice.log(3, "x"));
        assert_eq!((voice.logged, voice.suppressed, voice.ignored().messages), (10, 15, 15));
        voice.window -= LOG_WINDOW;
        voice.log(3, "x");
        assert_eq!((voice.logged, voice.suppressed), (1, 0));
    }

    #[test]
    fn only_good_names_are_counted_and_not_too_many() {
        let mut voice = voice();
        voice.count("Bad Name", 1);
        voice.count("", 1);
        voice.count(&"x".repeat(65), 1);
        assert!(voice.counts().is_empty() && voice.ignored().counts == 3);
        (0..100).for_each(|i| voice.count(&format!("n_{i}"), u64::MAX));
        voice.count("n_0", 1);
        assert_eq!((voice.counts().len(), voice.counts()["n_0"]), (64, u64::MAX));
    }

    #[test]
    fn a_message_stays_on_its_line() {
        assert_eq!(tame("a\nERROR forged\r\x1b[2J"), "a ERROR forged  [2J");
        assert_eq!(tame(&"é".repeat(2000)).chars().count(), 1025);
    }
}
