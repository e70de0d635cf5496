//! The memory that chunks may take: of all pipelines together, and a reserve for each.
//!
//! In: how much is asked for. Out: a [`Charge`] that gives it back when dropped. A pipeline can
//! always read one chunk from its reserve, so a stuck neighbour cannot stop it; from what is
//! shared it takes at most a quarter. When nothing is left, reading stops: the file is the buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What librdkafka and weir keep for a record beside its bytes. librdkafka's part was measured as
/// 185 bytes (RSS per queued message less its payload, librdkafka 2.12).
pub const RECORD_BYTES: u64 = 256;

/// The smallest reserve of a pipeline. Bytes.
pub const RESERVE_BYTES_MIN: u64 = 16 * 1024;

/// The budget of the agent.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    shared: AtomicI64,
    reserved: AtomicU64,
}

/// A pipeline's share: its reserve, and its part of what is shared.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    reserve: AtomicI64,
    reserve_size: u64,
    taken: AtomicU64,
    shared_max: u64,
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
        Arc::new(Self { total, shared: AtomicI64::new(total as i64), reserved: AtomicU64::new(0) })
    }

    /// A share for one of `entries` pipelines: half of the budget is divided into reserves.
    pub fn share(self: &Arc<Self>, entries: usize) -> Arc<Share> {
        let reserve_size = (self.total / 2 / entries.max(1) as u64).max(RESERVE_BYTES_MIN);
        self.reserved.fetch_add(reserve_size, Ordering::Relaxed);
        self.shared.fetch_sub(reserve_size as i64, Ordering::Relaxed);
        Arc::new(Share {
            budget: self.clone(),
            reserve: AtomicI64::new(reserve_size as i64),
            reserve_size,
            taken: AtomicU64::new(0),
            shared_max: self.total / 4,
        })
    }

    /// What is in use or reserved. Bytes.
    pub fn used(&self) -> u64 {
        (self.total as i64 - self.shared.load(Ordering::Relaxed)).max(0) as u64
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.shared.fetch_add(self.reserve_size as i64, Ordering::Relaxed);
        self.budget.reserved.fetch_sub(self.reserve_size, Ordering::Relaxed);
    }
}

impl Share {
    /// The largest charge that the reserve alone can carry.
    pub fn reserve(&self) -> u64 {
        self.reserve_size
    }

    /// The largest charge that can ever be had.
    pub fn largest(&self) -> u64 {
        self.reserve_size.max(self.shared_max)
    }

    /// Takes `bytes` from what is shared or else from the reserve; `None` when neither has them.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        if self.taken.load(Ordering::Relaxed) + bytes <= self.shared_max && take(&self.budget.shared, bytes) {
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

    /// Gives back what is above `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        self.give_back(back);
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
        let (greedy, quiet) = (budget.share(2), budget.share(2));
        let mut held = Vec::new();
        while let Some(charge) = greedy.take(4096) {
            held.push(charge);
        }
        assert!(quiet.take(quiet.reserve()).is_some());
    }

    #[test]
    fn what_is_dropped_comes_back() {
        let budget = Budget::new(1 << 20);
        let share = budget.share(1);
        let before = budget.used();
        let mut charge = share.take(100_000).unwrap();
        charge.shrink(10);
        assert_eq!(charge.bytes(), 10);
        drop(charge);
        assert_eq!(budget.used(), before);
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
