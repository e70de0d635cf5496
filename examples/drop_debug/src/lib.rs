//! Drops lines that begin with `DEBUG`.

use weir_guest::Verdict;

#[weir_guest::filter]
fn drop_debug(line: &[u8]) -> Verdict<'_> {
    if line.starts_with(b"DEBUG") { Verdict::Drop } else { Verdict::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_lines_are_dropped_and_others_kept() {
        assert_eq!(drop_debug(b"DEBUG x=1"), Verdict::Drop);
        assert_eq!(drop_debug(b"INFO about DEBUG"), Verdict::Keep);
        assert_eq!(drop_debug(b""), Verdict::Keep);
    }
}
