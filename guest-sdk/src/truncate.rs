//! Shorter lines.

/// The first bytes of `line`, at most `bytes`, cut between two characters. Where the line is no
/// UTF-8 it is cut where the limit falls.
///
/// ```
/// assert_eq!(weir_guest::truncate("naïve".as_bytes(), 3), b"na");
/// assert_eq!(weir_guest::truncate(b"naive", 9), b"naive");
/// ```
pub fn truncate(line: &[u8], bytes: usize) -> &[u8] {
    let Some(cut) = line.get(..bytes) else { return line };
    // A character has at most three bytes behind its first; they look like 10xxxxxx.
    let continues = |at: usize| line.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    if !continues(bytes) {
        return cut;
    }
    let begin = (bytes.saturating_sub(3)..bytes).rev().find(|at| !continues(*at));
    let character = |begin: usize| {
        line[begin..line.len().min(begin + 4)].utf8_chunks().next().is_some_and(|chunk| {
            chunk.valid().chars().next().is_some_and(|first| begin + first.len_utf8() > bytes)
        })
    };
    begin.filter(|begin| character(*begin)).map_or(cut, |begin| &line[..begin])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_kept_whole_or_left_out() {
        let text = "aé€😀z";
        for bytes in 0..=text.len() + 1 {
            let cut = std::str::from_utf8(truncate(text.as_bytes(), bytes)).expect("whole characters");
            assert!(
                text.starts_with(cut) && cut.len() <= bytes && bytes - cut.len().min(bytes) < 4,
                "{bytes}: {cut}"
            );
        }
    }

    #[test]
    fn what_is_no_text_is_cut_at_the_limit() {
        assert_eq!(truncate(b"\x80\x80\x80\x80\x80", 4), b"\x80\x80\x80\x80");
        assert_eq!(truncate(b"ab\xff\x80\x80", 4), b"ab\xff\x80");
        assert_eq!(truncate(b"ab\xc3\xa9\x80\x80", 5), b"ab\xc3\xa9\x80");
    }
}
