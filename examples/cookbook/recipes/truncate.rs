//! Cuts lines to so many bytes, between two characters: `"config": 1024`.
//!
//! What was cut is counted as `truncated`.

use weir_guest::{Context, Filter, Output, Result, Verdict, config, count, truncate};

struct Truncate {
    bytes: usize,
}

weir_guest::export!(Truncate);

impl Filter for Truncate {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        Ok(Self { bytes: config(text)? })
    }

    fn line<'a>(&'a mut self, line: &'a [u8], _out: &mut Output) -> Verdict<'a> {
        if line.len() <= self.bytes {
            return Verdict::Keep;
        }
        count("truncated", 1);
        Verdict::replace(truncate(line, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn what_is_longer_is_cut_between_characters_and_counted() {
        let found = run::<Truncate>("3", ["abc", "abcd", "naïve"]).unwrap();
        assert_eq!(found.fates, [Fate::Kept, Fate::replaced(["abc"]), Fate::replaced(["na"])]);
        assert_eq!(found.counts["truncated"], 2);
    }
}
