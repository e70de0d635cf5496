//! Drops lines that came already in the same batch, and counts them as `repeated`.
//!
//! A batch is what was read of a file at once: up to 256 KiB or 4,096 lines. Memory is bounded by
//! that; and whatever is repeated later comes through once more.

use std::collections::HashSet;

use weir_guest::{Batch, Context, Filter, Output, Result, Verdict, count};

struct Dedup {
    seen: HashSet<Vec<u8>>,
}

weir_guest::export!(Dedup);

impl Filter for Dedup {
    fn init(_ctx: &Context, _config: &[u8]) -> Result<Self> {
        Ok(Self { seen: HashSet::new() })
    }

    fn begin(&mut self, _batch: &Batch) {
        self.seen.clear();
    }

    fn line(&mut self, line: &[u8], _out: &mut Output) -> Verdict<'_> {
        if self.seen.contains(line) {
            count("repeated", 1);
            return Verdict::Drop;
        }
        self.seen.insert(line.to_vec());
        Verdict::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, Host};

    #[test]
    fn a_line_comes_once_a_batch() {
        let mut host = Host::<Dedup>::new("").unwrap();
        let first = host.run(["a", "b", "a", "a"]);
        assert_eq!(first.fates, [Fate::Kept, Fate::Kept, Fate::Dropped, Fate::Dropped]);
        assert_eq!(first.counts["repeated"], 2);
        assert_eq!(host.run(["a"]).fates, [Fate::Kept]);
    }
}
