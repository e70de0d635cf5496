//! A look at the lines of an entry as they pass its filter, for `weir tap`.
//!
//! In: from a pipeline, chunk by chunk, its lines and what became of them. Out: copies of some of them, for
//! whoever looks. A pipeline never waits for that: it looks at a bounded number of lines a second, and what
//! nobody takes at once is passed over and counted. While nobody looks, a chunk costs one relaxed load.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Lines a second that a pipeline looks at, for each that looks.
const LINES_PER_SECOND: f64 = 2000.0;
/// Lines that it looks at without a pause, after one.
const LINES_IN_HAND: f64 = 1000.0;
/// Of a larger chunk it looks at so many lines at least, or at none: short looks cost more a line.
const LINES_AT_ONCE: usize = 64;
/// Copies that may wait to be taken.
const WAITING: usize = 1024;
/// So much of a line is shown. Bytes.
const SHOWN_BYTES: usize = 4096;
/// So many lines of those that stand for one are shown.
const SHOWN_LINES: usize = 16;

/// Which lines somebody wants to see; none of them named is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wants {
    /// Those that the filter drops.
    pub dropped: bool,
    /// Those that it replaces.
    pub rewritten: bool,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It goes out as it was read.
    Kept,
    /// The filter dropped it.
    Dropped,
    /// Others stand for it.
    Rewritten,
    /// The filter or a rule refused it; `on_error` or `long_line` says what became of it.
    Refused,
}

/// A line as it passes.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Where it stands in its file.
    pub offset: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// As it was read.
    pub before: &'a [u8],
    /// What stands for it.
    pub after: After<'a>,
    /// Why it was refused: the kind, and in words.
    pub cause: (&'a str, &'a str),
}

/// Lines that stand for another, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct After<'a> {
    /// They stand in here.
    pub bytes: &'a [u8],
    /// Where the first begins.
    pub from: u32,
    /// Where each ends.
    pub ends: &'a [u32],
}

/// A copy of a line, long ones cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The file.
    pub path: String,
    /// Where it stands there.
    pub offset: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was refused; empty where it was not.
    pub cause: String,
    /// As it was read.
    pub before: Vec<u8>,
    /// What stands for it.
    pub after: Vec<Vec<u8>>,
    /// Whether something was cut off.
    pub cut: bool,
}

/// Where a pipeline offers its lines.
#[derive(Debug, Default)]
pub struct Tap {
    open: AtomicUsize,
    takers: Mutex<Vec<Taker>>,
}

/// Somebody who looks.
#[derive(Debug)]
struct Taker {
    wants: Wants,
    sender: mpsc::Sender<Seen>,
    passed_over: Arc<AtomicU64>,
    in_hand: f64,
    at: Instant,
}

/// What somebody who looks sees. Dropping it ends the look.
#[derive(Debug)]
pub struct Look {
    /// Ends when the entry is gone.
    pub lines: mpsc::Receiver<Seen>,
    passed_over: Arc<AtomicU64>,
}

impl Tap {
    /// Whether anybody looks.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Looks from now on.
    pub fn look(&self, wants: Wants) -> Look {
        let (sender, lines) = mpsc::channel(WAITING);
        let passed_over = Arc::new(AtomicU64::new(0));
        let (in_hand, at) = (LINES_IN_HAND, Instant::now());
        let mut takers = self.takers.lock().unwrap_or_else(PoisonError::into_inner);
        takers.push(Taker { wants, sender, passed_over: passed_over.clone(), in_hand, at });
        self.open.store(takers.len(), Ordering::Relaxed);
        Look { lines, passed_over }
    }

    /// A chunk of `count` lines passes. Does not wait, not even for one who begins to look.
    pub fn offer<'a, I>(&self, path: &str, count: usize, now: Instant, lines: impl Fn() -> I)
    where
        I: Iterator<Item = Line<'a>>,
    {
        let Ok(mut takers) = self.takers.try_lock() else { return };
        takers.retain(|taker| !taker.sender.is_closed());
        self.open.store(takers.len(), Ordering::Relaxed);
        for taker in takers.iter_mut() {
            let looked_at = taker.may_look_at(count, now);
            let lost = if looked_at > 0 { taker.take(path, lines().take(looked_at)) } else { 0 };
            let passed_over = count - looked_at + lost;
            if passed_over > 0 {
                taker.passed_over.fetch_add(passed_over as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Taker {
    /// How many lines of a chunk are looked at.
    fn may_look_at(&mut self, count: usize, now: Instant) -> usize {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * LINES_PER_SECOND;
        (self.in_hand, self.at) = ((self.in_hand + earned).min(LINES_IN_HAND), now);
        let most = self.in_hand as usize;
        let lines = if most < count.min(LINES_AT_ONCE) { 0 } else { count.min(most) };
        self.in_hand -= lines as f64;
        lines
    }

    /// Copies those that are wanted; how many found no room.
    fn take<'a>(&self, path: &str, lines: impl Iterator<Item = Line<'a>>) -> usize {
        let wanted = lines.filter(|line| self.wants.includes(line.verdict));
        wanted
            .filter(|line| self.sender.try_reserve().map(|room| room.send(Seen::of(path, line))).is_err())
            .count()
    }
}

impl Wants {
    fn includes(self, verdict: Verdict) -> bool {
        let all = !self.dropped && !self.rewritten;
        match verdict {
            Verdict::Dropped => all || self.dropped,
            Verdict::Rewritten => all || self.rewritten,
            Verdict::Kept | Verdict::Refused => all,
        }
    }
}

impl Look {
    /// Lines that passed unseen since this was last asked.
    pub fn take_passed_over(&self) -> u64 {
        self.passed_over.swap(0, Ordering::Relaxed)
    }
}

impl Seen {
    fn of(path: &str, line: &Line<'_>) -> Self {
        let After { bytes, mut from, ends } = line.after;
        let mut cut = ends.len() > SHOWN_LINES;
        let mut copy = |bytes: &[u8]| {
            cut |= bytes.len() > SHOWN_BYTES;
            bytes[..bytes.len().min(SHOWN_BYTES)].to_vec()
        };
        let before = copy(line.before);
        let parts = ends.iter().map(|end| &bytes[std::mem::replace(&mut from, *end) as usize..*end as usize]);
        let after = parts.take(SHOWN_LINES).map(&mut copy).collect();
        let (kind, message) = line.cause;
        let cause = if message.is_empty() { kind.into() } else { format!("{kind}: {message}") };
        Self { path: path.into(), offset: line.offset, verdict: line.verdict, cause, before, after, cut }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(verdict: Verdict) -> Line<'static> {
        Line { offset: 7, verdict, before: b"before", after: After::default(), cause: ("", "") }
    }

    fn offer(tap: &Tap, count: usize, now: Instant, verdict: Verdict) {
        tap.offer("/a", count, now, || std::iter::repeat_n(line(verdict), count));
    }

    fn drain(look: &mut Look) -> usize {
        std::iter::from_fn(|| look.lines.try_recv().ok()).count()
    }

    #[test]
    fn it_is_open_while_somebody_looks() {
        let tap = Tap::default();
        assert!(!tap.is_open());
        let look = tap.look(Wants::default());
        assert!(tap.is_open());
        drop(look);
        offer(&tap, 1, Instant::now(), Verdict::Kept);
        assert!(!tap.is_open());
    }

    #[test]
    fn each_sees_what_it_wants() {
        let tap = Tap::default();
        let mut looks = [(false, false), (true, false), (false, true), (true, true)]
            .map(|(dropped, rewritten)| tap.look(Wants { dropped, rewritten }));
        use Verdict::{Dropped, Kept, Refused, Rewritten};
        for verdict in [Kept, Dropped, Dropped, Rewritten, Rewritten, Rewritten, Refused] {
            offer(&tap, 1, Instant::now(), verdict);
        }
        assert_eq!(looks.each_mut().map(drain), [7, 2, 3, 5]);
        assert_eq!(looks.map(|look| look.take_passed_over()), [0; 4]);
    }

    #[test]
    fn a_slow_log_is_seen_whole_and_a_fast_one_in_part_with_the_rest_counted() {
        let (tap, begun) = (Tap::default(), Instant::now());
        let mut look = tap.look(Wants::default());
        let at = |ms| begun + Duration::from_millis(ms);
        let mut seen = 0;
        for ms in 0..3000 {
            offer(&tap, 1, at(ms), Verdict::Kept);
            seen += drain(&mut look);
        }
        assert_eq!((seen, look.take_passed_over()), (3000, 0));
        // A million lines a second.
        let mut seen = 0;
        for ms in 3000..5000 {
            offer(&tap, 1000, at(ms), Verdict::Kept);
            seen += drain(&mut look);
        }
        let most = LINES_IN_HAND as usize + 2 * LINES_PER_SECOND as usize;
        assert!(seen > most / 2 && seen <= most, "{seen}");
        assert_eq!(seen as u64 + look.take_passed_over(), 2_000_000);
    }

    #[test]
    fn who_takes_nothing_holds_up_nobody_and_is_told_what_it_missed() {
        let (tap, begun) = (Tap::default(), Instant::now());
        let mut look = tap.look(Wants::default());
        for second in 0..10 {
            offer(&tap, 1000, begun + Duration::from_secs(second), Verdict::Kept);
        }
        assert_eq!(drain(&mut look), WAITING);
        assert_eq!(look.take_passed_over(), 10_000 - WAITING as u64);
    }

    #[test]
    fn who_begins_to_look_holds_up_nobody() {
        let tap = Tap::default();
        let mut look = tap.look(Wants::default());
        let held = tap.takers.lock().unwrap();
        offer(&tap, 1, Instant::now(), Verdict::Kept);
        drop(held);
        assert_eq!(drain(&mut look), 0);
    }

    #[test]
    fn a_copy_is_cut_where_it_is_long() {
        let (bytes, ends) = (vec![b'x'; 40], (1..=40).collect::<Vec<u32>>());
        let long = vec![b'y'; SHOWN_BYTES + 1];
        let after = After { bytes: &bytes, from: 0, ends: &ends };
        let line = Line { before: &long, after, ..line(Verdict::Rewritten) };
        let seen = Seen::of("/a", &line);
        assert_eq!((seen.before.len(), seen.after.len(), seen.cut), (SHOWN_BYTES, SHOWN_LINES, true));
        let after = After { bytes: b"-abc", from: 1, ends: &[2, 2, 4] };
        let line = Line { after, ..self::line(Verdict::Rewritten) };
        assert_eq!(Seen::of("/a", &line).after, [b"a".to_vec(), b"".to_vec(), b"bc".to_vec()]);
    }
}
