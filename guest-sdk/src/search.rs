//! Texts that few lines have.

use std::ops::Range;

use memchr::arch::all::packedpair::Pair;
use memchr::memmem::Finder;

use crate::{Batch, Output};

/// Looks for texts in all lines of a batch at once: a search that begins anew for each line takes
/// longer, the more so the shorter the lines are. For filters that leave most lines alone.
///
/// ```
/// use weir_guest::{Batch, Context, Filter, Output, Result, Search, Verdict, export};
///
/// struct WithoutHealthChecks(Search);
///
/// export!(WithoutHealthChecks);
///
/// impl Filter for WithoutHealthChecks {
///     fn init(_ctx: &Context, _config: &[u8]) -> Result<Self> {
///         Ok(Self(Search::new(["GET /health", "GET /ready"])))
///     }
///
///     fn begin(&mut self, batch: &Batch) {
///         self.0.begin(batch);
///     }
///
///     fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
///         (!self.0.may_be_in(out) || !self.0.is_in(line)).into()
///     }
/// }
/// # let found = weir_guest::testing::run::<WithoutHealthChecks>("", ["GET /", "GET /health"]).unwrap();
/// # assert_eq!(found.fates, [weir_guest::testing::Fate::Kept, weir_guest::testing::Fate::Dropped]);
/// ```
#[derive(Debug, Default)]
pub struct Search {
    texts: Vec<Text>,
    /// The bytes of the file that were looked through.
    looked: Range<u64>,
    /// Where the lines begin that may have one of the texts.
    lines: Vec<u64>,
    /// Of these, the first that was not asked for yet.
    next: usize,
}

impl Search {
    /// For one of these texts.
    pub fn new(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let texts = texts.into_iter().map(|text| Text::new(text.as_ref()));
        Self { texts: texts.collect(), ..Self::default() }
    }

    /// Looks through a batch; for [`crate::Filter::begin`].
    pub fn begin(&mut self, batch: &Batch) {
        self.looked = batch.offset..batch.offset + batch.bytes.len() as u64;
        self.lines.clear();
        self.next = 0;
        for text in &self.texts {
            let mut from = 0;
            while let Some(at) = text.find_from(&batch.bytes, from) {
                // What begins between two lines is in neither; then the next one is looked at in vain.
                let line = batch.ends.partition_point(|end| *end as usize <= at);
                let (Some(start), Some(end)) = (batch.starts.get(line), batch.ends.get(line)) else { break };
                self.lines.push(batch.offset + u64::from(*start));
                from = *end as usize;
            }
        }
        if self.texts.len() > 1 {
            self.lines.sort_unstable();
        }
    }

    /// Whether the line that is asked about may have one of the texts. Lines are asked about in their
    /// order; of one that was not looked through it is not known, so it may.
    pub fn may_be_in(&mut self, out: &Output) -> bool {
        let line = out.offset();
        while self.lines.get(self.next).is_some_and(|at| *at < line) {
            self.next += 1;
        }
        self.lines.get(self.next) == Some(&line) || !self.looked.contains(&line)
    }

    /// Whether a line has one of the texts.
    pub fn is_in(&self, line: &[u8]) -> bool {
        self.texts.iter().any(|text| text.finder.find(line).is_some())
    }

    /// Where the first text in `bytes` ends.
    pub fn end_of_first(&self, bytes: &[u8]) -> Option<usize> {
        let finders = self.texts.iter().map(|text| &text.finder);
        let found = finders.filter_map(|finder| Some((finder.find(bytes)?, finder.needle().len())));
        found.min().map(|(at, length)| at + length)
    }
}

/// Places that are looked at together: enough for the loop over them to be a few vectors.
const BLOCK: usize = 64;

/// One of the texts.
#[derive(Debug)]
struct Text {
    finder: Finder<'static>,
    /// Its two rarest bytes and where in it they stand; of one byte there are no two.
    pair: Option<[(usize, u8); 2]>,
}

impl Text {
    fn new(text: &[u8]) -> Self {
        let pair = Pair::new(text).map(|pair| [pair.index1(), pair.index2()].map(usize::from));
        let pair = pair.map(|pair| pair.map(|at| (at, text[at])));
        Self { finder: Finder::new(text).into_owned(), pair }
    }

    /// Where it stands first in `bytes`, not before `from`.
    fn find_from(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let bytes = bytes.get(from..)?;
        let Some([(first_at, first), (second_at, second)]) = self.pair else {
            return self.finder.find(bytes).map(|at| from + at);
        };
        let firsts = bytes.get(first_at..)?.as_chunks::<BLOCK>().0;
        let seconds = bytes.get(second_at..)?.as_chunks::<BLOCK>().0;
        for (block, (firsts, seconds)) in firsts.iter().zip(seconds).enumerate() {
            let start = block * BLOCK;
            let end = bytes.len().min(start + BLOCK + self.finder.needle().len() - 1);
            if has_pair(firsts, first, seconds, second)
                && let Some(at) = self.finder.find(&bytes[start..end])
            {
                return Some(from + start + at);
            }
        }
        let rest = firsts.len().min(seconds.len()) * BLOCK;
        self.finder.find(&bytes[rest..]).map(|at| from + rest + at)
    }
}

/// Whether both stand at one place. The compiler makes a few comparisons of vectors of it, which is why it
/// looks at all places where one would do.
fn has_pair(firsts: &[u8; BLOCK], first: u8, seconds: &[u8; BLOCK], second: u8) -> bool {
    let pairs = firsts.iter().zip(seconds).map(|(a, b)| u8::from(*a == first) & u8::from(*b == second));
    pairs.fold(0, |any, pair| any | pair) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;
    use crate::testing::{Fate, Host};
    use crate::{Context, Filter, Result, Verdict};

    /// Drops lines that have a text, and sets aside those that may have one and have not.
    struct Find {
        search: Search,
        is_told: bool,
    }

    impl Filter for Find {
        fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
            Ok(Self { search: Search::new(["ab", "b\n", "c"]), is_told: config.is_empty() })
        }

        fn begin(&mut self, batch: &Batch) {
            if self.is_told {
                self.search.begin(batch);
            }
        }

        fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
            match (self.search.may_be_in(out), self.search.is_in(line)) {
                (true, true) => Verdict::Drop,
                (true, false) => Verdict::SetAside,
                (false, is_in) => {
                    assert!(!is_in, "{line:?}");
                    Verdict::Keep
                }
            }
        }
    }

    #[test]
    fn every_line_with_a_text_is_found_and_few_others() {
        let mut host = Host::<Find>::new("").unwrap();
        let lines = ["x", "ab ab c", "", "a", "b", "b", "x c", "", "x", "ab"];
        use Fate::{Dropped as D, Kept as K, SetAside as S};
        // The two are taken for `b` and a newline.
        let expected = [K, D, K, K, S, S, D, K, K, D];
        assert_eq!(host.run(lines).fates, expected);
        assert_eq!(host.run(lines).fates, expected, "and so in the next batch");
    }

    #[test]
    fn a_text_is_found_wherever_it_stands() {
        for text in ["k", "ke", "key=", "a longer text than most, with blanks"] {
            let search = Text::new(text.as_bytes());
            for length in [0, 1, 63, 64, 65, 130, 400] {
                // All of it but its last byte, again and again.
                let noise: Vec<u8> =
                    text.bytes().take(text.len() - 1).chain(*b"x").cycle().take(length).collect();
                for at in 0..=length {
                    let bytes = [&noise[..at], text.as_bytes(), &noise[at..]].concat();
                    for from in [0, at / 2, at, at + 1] {
                        let wanted =
                            bytes[from..].windows(text.len()).position(|found| found == text.as_bytes());
                        assert_eq!(
                            search.find_from(&bytes, from),
                            wanted.map(|found| from + found),
                            "{text} {at}"
                        );
                    }
                }
                assert_eq!(search.find_from(&noise, length + 1), None);
            }
        }
    }

    #[test]
    fn what_was_not_looked_through_may_have_it() {
        let mut host = Host::<Find>::new("not told").unwrap();
        assert_eq!(host.run(["x", "ab"]).fates, [Fate::SetAside, Fate::Dropped]);
    }

    #[test]
    fn random_lines_are_judged_as_by_a_search_in_each() {
        let mut host = Host::<Find>::new("").unwrap();
        let mut state = 7_u64;
        for _ in 0..2_000 {
            let mut line = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let letters = (0..state >> 61).map(|n| b"abx"[(state >> (8 * n) & 63) as usize % 3]);
                letters.collect::<Vec<u8>>()
            };
            let lines: Vec<_> = (0..10).map(|_| line()).collect();
            for (line, fate) in lines.iter().zip(host.run(&lines).fates) {
                let is_in = line.windows(2).any(|two| two == b"ab");
                assert_eq!(fate == Fate::Dropped, is_in, "{lines:?}");
            }
        }
    }

    #[test]
    fn a_batch_that_is_no_batch_is_looked_through_as_far_as_it_goes() {
        let batch = Batch {
            path: String::new(),
            offset: 0,
            unix_ms: 0,
            bytes: b"ab\nab".to_vec(),
            starts: vec![0, 3],
            ends: vec![2],
        };
        let mut find = Find { search: Search::new(["ab"]), is_told: true };
        assert_eq!(runtime::process(&mut find, batch).verdicts.len(), 1);
    }
}
