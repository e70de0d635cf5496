//! How many files the entries of a host follow together: `max_files`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Policy;

/// Files of all entries of a host.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

/// The files of one entry among them; given back when it is dropped.
#[derive(Debug)]
pub struct FileShare {
    all: Count,
    most: usize,
    mine: usize,
}

impl Policy {
    /// A share for an entry, which follows nothing yet.
    pub fn file_share(&self) -> FileShare {
        FileShare { all: self.files.clone(), most: self.rules.max_files, mine: 0 }
    }
}

impl FileShare {
    /// How many of `wanted` files the entry may follow from now on; the others leave the rest.
    pub fn take(&mut self, wanted: usize) -> usize {
        let mut granted = 0;
        let change = |all: usize| {
            let others = all - self.mine;
            granted = wanted.min(self.most.saturating_sub(others));
            Some(others + granted)
        };
        // The closure always gives a number.
        let _ = self.all.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        self.mine = granted;
        granted
    }

    /// How many files all entries may follow together.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl Drop for FileShare {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use super::*;

    #[test]
    fn entries_share_the_files_of_the_host() {
        let policy = Policy::new(Rules { max_files: 10, ..Rules::default() }).unwrap();
        let (mut one, mut other) = (policy.file_share(), policy.clone().file_share());
        assert_eq!((one.take(7), other.take(7)), (7, 3));
        assert_eq!((one.take(12), other.take(12)), (7, 3));
        assert_eq!((one.take(2), other.take(12)), (2, 8));
        drop(other);
        assert_eq!(one.take(12), 10);
        drop(one);
        assert_eq!(policy.file_share().take(12), 10);
    }
}
