//! The memory that chunks may take: of all pipelines together, and a reserve for each.
//!
//! In: how much is asked for. Out: a [`Charge`] that gives it back when dropped. A pipeline can
//! always read one chunk from its reserve, so a stuck neighbour cannot stop it; from what is
//! shared it takes at most a quarter. When nothing is left, reading stops: the file is the buffer.
//! What is known of very many files is part of it, too: see [`Share::hold`].

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::allocator;

/// What librdkafka and weir keep for a record beside its bytes. librdkafka's part was measured as
/// 185 bytes (RSS per queued message less its payload, librdkafka 2.12).
pub const RECORD_BYTES: u64 = 256;

/// What weir keeps for a chunk beside its bytes and records: where it comes from and goes to, its
/// place in tables, what an allocator adds.
pub const CHUNK_BYTES: u64 = 1024;

/// The smallest reserve of a pipeline. Bytes.
pub const RESERVE_BYTES_MIN: u64 = 16 * 1024;

/// What part of the budget may lie in buffers that nobody uses, on top of it.
const SPARE_PART: usize = 16;

/// Buffers that nobody needed for so long are given back, and so is what the allocator keeps.
const SPARE_KEPT: Duration = Duration::from_secs(1);

/// What part of the budget files may take from what is shared. Those that are more come on top of it.
const HELD_PART: u64 = 4;

/// The budget of the agent.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    shared: AtomicI64,
    shares: Mutex<Shares>,
    spare: Mutex<Spare>,
    /// Whether anything was taken since the allocator last gave back what it keeps.
    untidy: AtomicBool,
}

#[derive(Debug, Default)]
struct Shares {
    all: Vec<Weak<Share>>,
    /// What they hold, as far as it is part of the budget. Bytes.
    held: u64,
}

/// Buffers for whichever pipeline reads next. An allocator keeps what is freed for the thread that took
/// it; with many pipelines that comes to several times what is in use.
#[derive(Debug)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    /// The fewest there were since then.
    fewest: usize,
    since: Instant,
}

/// A pipeline's share: its reserve, and its part of what is shared.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// What is left of the reserve; below zero for a while after it was made smaller.
    reserve: AtomicI64,
    reserve_size: AtomicU64,
    taken: AtomicU64,
    held: AtomicU64,
}

/// Memory that is in use. Given back on drop.
#[derive(Debug)]
pub struct Charge {
    share: Arc<Share>,
    bytes: u64,
    from_reserve: bool,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            shared: AtomicI64::new(total as i64),
            shares: Mutex::default(),
            spare: Mutex::new(Spare { buffers: Vec::new(), fewest: 0, since: Instant::now() }),
            untidy: AtomicBool::new(false),
        })
    }

    /// A share for one more pipeline. Half of the budget is divided evenly into reserves, so those
    /// of the others become smaller.
    pub fn share(self: &Arc<Self>) -> Arc<Share> {
        let share = Arc::new(Share {
            budget: self.clone(),
            reserve: AtomicI64::new(0),
            reserve_size: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            held: AtomicU64::new(0),
        });
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).all.push(Arc::downgrade(&share));
        self.divide();
        share
    }

    fn divide(&self) {
        // One of these may be the last hold on a share, whose drop divides again: they are let go
        // of when the lock is free.
        let alive: Vec<Arc<Share>>;
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.all.retain(|share| share.strong_count() > 0);
        alive = shares.all.iter().filter_map(Weak::upgrade).collect();
        let size = (self.total / 2 / alive.len().max(1) as u64).max(RESERVE_BYTES_MIN);
        for share in &alive {
            let change = size as i64 - share.reserve_size.swap(size, Ordering::AcqRel) as i64;
            share.reserve.fetch_add(change, Ordering::AcqRel);
            self.shared.fetch_sub(change, Ordering::AcqRel);
        }
        let held: u64 = alive.iter().map(|share| share.held.load(Ordering::Relaxed)).sum();
        let held = held.min(self.total / HELD_PART);
        self.shared.fetch_sub(held as i64 - shares.held as i64, Ordering::AcqRel);
        shares.held = held;
        drop(shares);
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in use or reserved. Bytes.
    pub fn used(&self) -> u64 {
        (self.total as i64 - self.shared.load(Ordering::Relaxed)).max(0) as u64
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.shared.fetch_add(self.reserve_size.load(Ordering::Acquire) as i64, Ordering::AcqRel);
        self.budget.divide();
    }
}

impl Share {
    /// The largest charge that the reserve alone can carry.
    pub fn reserve(&self) -> u64 {
        self.reserve_size.load(Ordering::Relaxed)
    }

    /// The largest charge that can ever be had.
    pub fn largest(&self) -> u64 {
        self.reserve().max(self.budget.total / 4)
    }

    /// A buffer that was used before, or an empty one.
    pub fn buffer(&self) -> Vec<u8> {
        let mut spare = self.budget.spare();
        let buffer = spare.buffers.pop().unwrap_or_default();
        spare.fewest = spare.fewest.min(spare.buffers.len());
        buffer
    }

    /// Keeps a buffer for whoever reads next, where there are not too many.
    pub fn keep(&self, buffer: Vec<u8>) {
        let mut spare = self.budget.spare();
        let most = self.budget.total as usize / SPARE_PART / buffer.capacity().max(1);
        if spare.buffers.len() < most {
            spare.buffers.push(buffer);
        }
    }

    /// To be called when there is nothing to read, or no room: gives back buffers that nobody needed for a
    /// while, and what the allocator keeps. Chunks of all sizes come and go among what stays, and leave holes
    /// that only the kernel has a use for.
    pub fn tidy(&self, now: Instant) {
        let mut spare = self.budget.spare();
        if now.saturating_duration_since(spare.since) < SPARE_KEPT {
            return;
        }
        let needed = spare.buffers.len() - spare.fewest;
        spare.buffers.truncate(needed);
        (spare.fewest, spare.since) = (needed, now);
        drop(spare);
        if self.budget.untidy.swap(false, Ordering::Relaxed) {
            allocator::give_back();
        }
    }

    /// This much is in use as long as the pipeline is there, whether or not there is room: what is known of
    /// its files. Less is left for chunks then, but three quarters of the budget always are.
    pub fn hold(&self, bytes: u64) {
        if self.held.swap(bytes, Ordering::Relaxed) != bytes {
            self.budget.divide();
        }
    }

    /// Takes `bytes` from what is shared or else from the reserve; `None` when neither has them.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.budget.untidy.store(true, Ordering::Relaxed);
        let shared_max = self.budget.total / 4;
        if self.taken.load(Ordering::Relaxed) + bytes <= shared_max && take(&self.budget.shared, bytes) {
            self.taken.fetch_add(bytes, Ordering::Relaxed);
            return Some(Charge { share: self.clone(), bytes, from_reserve: false });
        }
        take(&self.reserve, bytes).then(|| Charge { share: self.clone(), bytes, from_reserve: true })
    }
}

fn take(room: &AtomicI64, bytes: u64) -> bool {
    room.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| {
        let rest = left - bytes as i64;
        (rest >= 0).then_some(rest)
    })
    .is_ok()
}

impl Charge {
    /// How much it is. Bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it `bytes`, or leaves it as it is where there is no room for what is more.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let budget = &self.share.budget;
        let has_room = if more == 0 {
            true
        } else if self.from_reserve {
            take(&self.share.reserve, more)
        } else {
            self.share.taken.load(Ordering::Relaxed) + more <= budget.total / 4 && take(&budget.shared, more)
        };
        if has_room {
            if !self.from_reserve {
                self.share.taken.fetch_add(more, Ordering::Relaxed);
            }
            self.bytes += more;
        }
        has_room
    }

    /// Makes it `bytes`. What is more is taken even when there is no room: one line goes on however
    /// much a filter makes of it. The room is missing for the next chunk then.
    pub fn settle(&mut self, bytes: u64) {
        if bytes <= self.bytes {
            self.give_back(self.bytes - bytes);
        } else {
            let more = bytes - self.bytes;
            if self.from_reserve {
                self.share.reserve.fetch_sub(more as i64, Ordering::AcqRel);
            } else {
                self.share.taken.fetch_add(more, Ordering::Relaxed);
                self.share.budget.shared.fetch_sub(more as i64, Ordering::AcqRel);
            }
        }
        self.bytes = bytes;
    }

    /// As much for something beside it, taken even when there is no room.
    pub fn another(&self, bytes: u64) -> Self {
        let mut another = Self { share: self.share.clone(), bytes: 0, from_reserve: self.from_reserve };
        another.settle(bytes);
        another
    }

    fn give_back(&self, bytes: u64) {
        if self.from_reserve {
            self.share.reserve.fetch_add(bytes as i64, Ordering::AcqRel);
        } else {
            self.share.taken.fetch_sub(bytes, Ordering::Relaxed);
            self.share.budget.shared.fetch_add(bytes as i64, Ordering::AcqRel);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_neighbour_leaves_the_reserve() {
        let budget = Budget::new(1 << 20);
        let (greedy, quiet) = (budget.share(), budget.share());
        let mut held = Vec::new();
        while let Some(charge) = greedy.take(4096) {
            held.push(charge);
        }
        assert!(quiet.take(quiet.reserve()).is_some());
    }

    #[test]
    fn pipelines_may_come_and_go_at_the_same_time() {
        let budget = Budget::new(1 << 20);
        let (done, all) = std::sync::mpsc::channel();
        for _ in 0..4 {
            let (budget, done) = (budget.clone(), done.clone());
            std::thread::spawn(move || {
                for turn in 0..20_000 {
                    let share = budget.share();
                    (0..turn % 500).for_each(|_| std::hint::spin_loop());
                    drop(share);
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            all.recv_timeout(std::time::Duration::from_secs(30)).expect("no thread waits for itself");
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn reserves_never_take_more_than_half() {
        let budget = Budget::new(64 << 20);
        let shares: Vec<_> = (0..1000).map(|_| budget.share()).collect();
        assert_eq!(budget.used(), 1000 * shares[0].reserve());
        assert!(budget.used() <= 32 << 20);
        drop(shares);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn buffers_are_used_again_and_given_back_when_nobody_needs_them() {
        let budget = Budget::new(1 << 20);
        let (one, other) = (budget.share(), budget.share());
        assert_eq!(one.buffer().capacity(), 0);
        (0..20).for_each(|_| one.keep(vec![0; 16 << 10]));
        let kept = || budget.spare().buffers.len();
        assert_eq!(kept(), 4, "a sixteenth of the budget");
        assert_eq!(other.buffer().len(), 16 << 10);
        let now = Instant::now();
        other.tidy(now + SPARE_KEPT);
        assert_eq!(kept(), 3, "some were needed when there were none");
        one.keep(other.buffer());
        other.tidy(now + SPARE_KEPT * 3 / 2);
        assert_eq!(kept(), 3);
        other.tidy(now + SPARE_KEPT * 2);
        assert_eq!(kept(), 1, "of three one was needed");
        other.tidy(now + SPARE_KEPT * 3);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn what_files_take_is_missing_for_chunks_up_to_a_quarter() {
        let budget = Budget::new(1 << 20);
        let (one, other) = (budget.share(), budget.share());
        let reserved = budget.used();
        one.hold(1000);
        other.hold(500);
        assert_eq!(budget.used(), reserved + 1500);
        one.hold(1 << 30);
        assert_eq!(budget.used(), reserved + (1 << 18));
        let mut taken = Vec::new();
        while let Some(charge) = other.take(4096) {
            taken.push(charge);
        }
        assert_eq!(taken.len() as u64 * 4096, (1 << 20) / 2, "its reserve, and a quarter");
        drop(one);
        assert_eq!(budget.used(), (1 << 20) * 3 / 4 + 500);
        drop(taken);
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_dropped_comes_back() {
        let budget = Budget::new(1 << 20);
        let share = budget.share();
        let before = budget.used();
        let mut charge = share.take(100_000).unwrap();
        charge.settle(10);
        assert_eq!(charge.bytes(), 10);
        assert!(charge.grow(1000) && charge.grow(500) && !charge.grow(1 << 20));
        assert_eq!((charge.bytes(), budget.used()), (1000, before + 1000));
        charge.settle(200_000);
        assert_eq!(budget.used(), before + 200_000);
        drop(charge);
        assert_eq!(budget.used(), before);
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
