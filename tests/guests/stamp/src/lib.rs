//! A guest that says of each line which version of it was at work, and the means to make as many
//! versions of it as a test wants from one build.
//!
//! A line `x` becomes `VERSION x`, where the version is the config (a JSON string) or else the one
//! that stands in the module; [`with_version`] puts it there.

use std::ops::Range;

use weir_guest::{Context, Filter, Output, Result, Verdict};

/// Stands in the module's data; what follows the colon is the version.
static VERSION: [u8; 32] = *b"weir-stamp-version:0000000000000";
const DIGITS: Range<usize> = 19..32;

/// The filter.
pub struct Stamp {
    prefix: Vec<u8>,
}

weir_guest::export!(Stamp);

impl Filter for Stamp {
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
        let version = match config {
            [] | b"null" => baked_version(),
            [b'"', version @ .., b'"'] => version.to_vec(),
            _ => return Err("config: a string".into()),
        };
        Ok(Self { prefix: [&version[..], b" "].concat() })
    }

    fn line<'a>(&'a mut self, line: &'a [u8], _out: &mut Output) -> Verdict<'a> {
        Verdict::replace([&self.prefix[..], line].concat())
    }
}

/// The version in the data, read so that the compiler cannot know it.
fn baked_version() -> Vec<u8> {
    let version = std::hint::black_box(&VERSION);
    version[DIGITS].iter().copied().skip_while(|digit| *digit == b'0').collect()
}

/// The stamp module with `version` in it; a version above 0 is what its lines begin with.
///
/// # Panics
/// If `wasm` is not the stamp module.
pub fn with_version(wasm: &[u8], version: u64) -> Vec<u8> {
    let marker = &VERSION[..DIGITS.start];
    let mut places = wasm.windows(marker.len()).enumerate().filter(|(_, window)| *window == marker);
    let (place, _) = places.next().expect("the stamp module");
    assert!(places.next().is_none(), "the version stands in one place");
    let mut stamped = wasm.to_vec();
    let digits = format!("{version:0width$}", width = DIGITS.len());
    stamped[place + DIGITS.start..place + DIGITS.end].copy_from_slice(digits.as_bytes());
    stamped
}

/// `wasm`, a core module or a component, with one more custom section at its end: another digest,
/// the same behaviour.
pub fn with_custom_section(wasm: &[u8], name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut content = leb128(name.len());
    content.extend_from_slice(name.as_bytes());
    content.extend_from_slice(bytes);
    [wasm, &[0], &leb128(content.len()), &content].concat()
}

fn leb128(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn a_line_is_stamped_with_the_version_of_the_config() {
        assert_eq!(run::<Stamp>("\"v7\"", ["x"]).unwrap().fates, [Fate::replaced(["v7 x"])]);
    }

    #[test]
    fn a_version_is_put_where_the_marker_stands() {
        let stamped = with_version(&[b"ab", &VERSION[..], b"cd"].concat(), 42);
        assert_eq!(stamped, b"abweir-stamp-version:0000000000042cd");
    }

    #[test]
    fn a_custom_section_is_appended() {
        assert_eq!(with_custom_section(b"\0asm", "n", b"xy"), b"\0asm\0\x04\x01nxy");
    }
}
