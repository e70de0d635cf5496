//! Drops DEBUG lines, and takes INFO off the others.

use weir_guest::Verdict;

#[weir_guest::filter]
fn without_level(line: &[u8]) -> Verdict<'_> {
    if line.starts_with(b"DEBUG ") {
        return Verdict::Drop;
    }
    match line.strip_prefix(b"INFO ") {
        Some(rest) => Verdict::replace(rest),
        None => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_lines_are_dropped() {
        assert_eq!(without_level(b"DEBUG cache miss"), Verdict::Drop);
    }

    #[test]
    fn other_lines_go_on_without_info() {
        assert_eq!(without_level(b"INFO started"), Verdict::replace(&b"started"[..]));
        assert_eq!(without_level(b"ERROR disk full"), Verdict::Keep);
    }
}
