//! What strangers may hand to weir, as functions that take any bytes: one a target.
//!
//! In: bytes. Out: nothing, or a panic where a promise does not hold. The rooms have the targets,
//! beside what they try; libFuzzer calls them from `fuzz/` (`make fuzz`), the tests below with the
//! same corpora. Only built for these two.

pub use crate::config::fuzz::{ini, toml};
pub use crate::control::list::fuzz::list;
pub use crate::filter::fuzz::output;
pub use crate::source::checkpoint::fuzz::state;
pub use crate::source::fuzz::lines;

/// Fails unless `place`, where it is `<file>:<line>:<column>…`, stands in `text` or just behind it.
pub(crate) fn assert_within(text: &str, file: &str, place: &str) {
    let Some(rest) = place.strip_prefix(file).and_then(|rest| rest.strip_prefix(':')) else { return };
    let mut numbers = rest.split([':', ',']).map(str::parse::<usize>);
    let (Some(Ok(line)), Some(Ok(column))) = (numbers.next(), numbers.next()) else { return };
    let found = text.split('\n').nth(line.wrapping_sub(1));
    let found = found.unwrap_or_else(|| panic!("{place}: there is no such line in {text:?}"));
    assert!(
        (1..=found.chars().count() + 1).contains(&column),
        "{place}: there is no such column in {found:?}"
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

    use super::*;

    /// The longest run of bytes that one edit moves.
    const RUN_MAX: usize = 32;

    #[derive(Clone, Debug)]
    enum Edit {
        Put(Index, u8),
        Insert(Index, u8),
        Remove(Index, usize),
        /// So many bytes of any seed, from a place in it.
        Splice(Index, Index, Index, usize),
        Repeat(Index, usize),
    }

    impl Edit {
        fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
            let within = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
            let run = |from: usize, len: usize, bytes: &[u8]| from..(from + len).min(bytes.len());
            match self {
                Self::Put(at, byte) => {
                    let at = within(at, bytes);
                    bytes.splice(run(at, 1, bytes), [*byte]);
                }
                Self::Insert(at, byte) => bytes.insert(within(at, bytes), *byte),
                Self::Remove(at, len) => _ = bytes.drain(run(within(at, bytes), *len, bytes)),
                Self::Splice(at, seed, from, len) => {
                    let seed = seed.get(seeds);
                    let part = seed[run(within(from, seed), *len, seed)].to_vec();
                    let at = within(at, bytes);
                    bytes.splice(at..at, part);
                }
                Self::Repeat(at, len) => {
                    let part = run(within(at, bytes), *len, bytes);
                    let again = bytes[part.clone()].to_vec();
                    bytes.splice(part.start..part.start, again);
                }
            }
        }
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let byte = || prop_oneof![any::<u8>(), prop::sample::select(b"\n\r\0\"'\\[]{}=:,#;%/*0".as_slice())];
        let (at, len) = (any::<Index>, || 1..=RUN_MAX);
        prop_oneof![
            (at(), byte()).prop_map(|(at, byte)| Edit::Put(at, byte)),
            (at(), byte()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
            (at(), len()).prop_map(|(at, len)| Edit::Remove(at, len)),
            (at(), at(), at(), len()).prop_map(|(at, seed, from, len)| Edit::Splice(at, seed, from, len)),
            (at(), len()).prop_map(|(at, len)| Edit::Repeat(at, len)),
        ]
    }

    /// Every seed, and `cases` edits of seeds that are the same at each run.
    fn replay(name: &str, target: fn(&[u8]), cases: u32) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        seeds.iter().for_each(|seed| target(seed));
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let edits = (any::<Index>(), prop::collection::vec(edit(), 1..8));
        let edited = edits.prop_map(|(seed, edits)| {
            let mut bytes = seed.get(&seeds).clone();
            edits.iter().for_each(|edit| edit.apply(&mut bytes, &seeds));
            bytes
        });
        let run = runner.run(&edited, |bytes| {
            target(&bytes);
            Ok(())
        });
        match run {
            Err(TestError::Fail(reason, bytes)) => {
                panic!("{name}: {reason} of b\"{}\"", bytes.escape_ascii())
            }
            run => run.unwrap(),
        }
    }

    #[test]
    fn any_list_is_read_or_refused() {
        replay("list", list, 5_000);
    }

    #[test]
    fn any_text_is_cut_into_lines() {
        replay("lines", lines, 20_000);
    }

    #[test]
    fn only_output_that_fits_is_taken() {
        replay("output", output, 20_000);
    }

    #[test]
    fn any_stored_state_is_read_or_known_as_lost() {
        replay("state", state, 5_000);
    }

    #[test]
    fn any_ini_is_read_or_refused_and_means_what_it_is_converted_to() {
        replay("ini", ini, 5_000);
    }

    #[test]
    fn any_toml_is_read_or_refused() {
        replay("toml", toml, 5_000);
    }

    #[test]
    #[should_panic(expected = "there is no such column")]
    fn a_place_outside_the_text_is_noticed() {
        assert_within("one\ntwo", "f", "f:2:4: kafka");
        assert_within("one\ntwo", "f", "f:2:5, entry #1");
    }
}
