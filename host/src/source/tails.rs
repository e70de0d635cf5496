//! The files that are followed, by their numbers: in the order in which they came.

use std::collections::BTreeMap;

use super::tail::Tail;

/// Each in a box of its own: numbers that only grow leave the nodes of a B-tree half empty.
#[derive(Debug, Default)]
pub(super) struct Tails(BTreeMap<u64, Box<Tail>>);

impl Tails {
    pub(super) fn get(&self, key: &u64) -> Option<&Tail> {
        self.0.get(key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: &u64) -> Option<&mut Tail> {
        self.0.get_mut(key).map(Box::as_mut)
    }

    pub(super) fn insert(&mut self, tail: Tail) {
        self.0.insert(tail.incarnation, Box::new(tail));
    }

    pub(super) fn remove(&mut self, key: &u64) -> Option<Box<Tail>> {
        self.0.remove(key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains_key(&self, key: &u64) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Tail> {
        self.0.values().map(Box::as_ref)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Tail> {
        self.0.values_mut().map(Box::as_mut)
    }
}
