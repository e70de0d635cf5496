//! Keeps the first of equal lines that follow one another, and counts the others as `repeated`.
//!
//! `"config": 3` in the collect list keeps the first three. One instance sees the lines of all
//! files of its entry, each file's in order, so the last line is remembered for each file.

use std::collections::BTreeMap;

use weir_guest::{Context, Filter, Output, Result, Verdict, count};

struct Repeats {
    /// How many equal lines may follow one another.
    most: u64,
    /// By path: the last line, and how often it has come.
    last: BTreeMap<String, (Vec<u8>, u64)>,
}

weir_guest::export!(Repeats);

impl Filter for Repeats {
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
        let most = match config {
            [] => 1,
            config => std::str::from_utf8(config)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .filter(|most| *most > 0)
                .ok_or("config: how many equal lines to keep, a number above 0")?,
        };
        Ok(Self { most, last: BTreeMap::new() })
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let (last, times) = self.last.entry(out.path().to_owned()).or_default();
        if last != line {
            last.clear();
            last.extend_from_slice(line);
            *times = 0;
        }
        *times += 1;
        if *times > self.most {
            count("repeated", 1);
            return Verdict::Drop;
        }
        Verdict::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn a_repeated_line_is_dropped_and_counted() {
        let run = run::<Repeats>("", ["a", "a", "b", "a"]).unwrap();
        assert_eq!(run.fates, [Fate::Kept, Fate::Dropped, Fate::Kept, Fate::Kept]);
        assert_eq!(run.counts["repeated"], 1);
    }

    #[test]
    fn the_config_says_how_many_are_kept() {
        let run = run::<Repeats>("2", ["a", "a", "a"]).unwrap();
        assert_eq!(run.fates, [Fate::Kept, Fate::Kept, Fate::Dropped]);
    }

    #[test]
    fn a_bad_config_says_what_is_wanted() {
        let error = run::<Repeats>("0", [""; 0]).unwrap_err();
        assert!(error.contains("a number above 0"), "{error}");
    }
}
