//! A share of all lines.

/// Keeps a share of what it is asked about, by a hash: the same key is kept or dropped on every
/// host and after every restart. So all lines of a kept request are kept.
///
/// ```
/// use weir_guest::{Sample, Verdict, logfmt};
///
/// fn one_request_in_ten(line: &[u8]) -> Verdict<'_> {
///     let request = logfmt::get(line, b"request");
///     Sample::percent(10.0).keeps(request.as_deref().unwrap_or(line)).into()
/// }
/// # let lines = (0..10_000).map(|n| format!("request={n}"));
/// # let kept = lines.filter(|line| one_request_in_ten(line.as_bytes()) == Verdict::Keep).count();
/// # assert!((900..1100).contains(&kept), "{kept}");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What the upper bits of a hash must be below.
    below: u64,
}

/// As many bits of a hash as a float holds exactly.
const BITS: u32 = f64::MANTISSA_DIGITS;

impl Sample {
    /// Keeps `percent` of all keys: none below 0, all above 100.
    pub fn percent(percent: f64) -> Self {
        Self { below: (percent / 100.0 * (1_u64 << BITS) as f64) as u64 }
    }

    /// Whether `key` belongs to the share.
    pub fn keeps(self, key: &[u8]) -> bool {
        hash(key) >> (u64::BITS - BITS) < self.below
    }
}

/// A hash that is the same on every host and in every version of weir: FNV-1a of 64 bits, its bits
/// mixed as in MurmurHash3, so that each of them depends on the whole key. It keeps no secrets: who
/// knows what the keys may be finds them by trying.
///
/// ```
/// assert_eq!(weir_guest::hash(b"weir"), 0x928e_bc5f_622c_ac17);
/// ```
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_whatever_the_keys_look_like() {
        for key in [|n: u32| n.to_string(), |n| format!("{n:08}-request"), |n| "x".repeat(n as usize % 3000)]
        {
            let keys = (0..3000).map(key);
            let kept = keys.filter(|key| Sample::percent(30.0).keeps(key.as_bytes())).count();
            assert!((800..1000).contains(&kept), "{kept} of 3000");
        }
    }

    #[test]
    fn nothing_and_everything_are_shares_too() {
        let kept =
            |percent| (0..1000_u32).filter(|n| Sample::percent(percent).keeps(&n.to_le_bytes())).count();
        assert_eq!([-1.0, 0.0, f64::NAN, 100.0, 1e9].map(kept), [0, 0, 0, 1000, 1000]);
    }

    #[test]
    fn a_larger_share_holds_the_smaller_one() {
        let keys = (0..1000_u32).map(u32::to_le_bytes);
        let mut of_small = keys.filter(|key| Sample::percent(5.0).keeps(key));
        assert!(of_small.all(|key| Sample::percent(6.0).keeps(&key)));
    }
}
