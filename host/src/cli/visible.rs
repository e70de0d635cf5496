//! Text from outside, so that it can be shown on a terminal.
//!
//! In: text or bytes that anybody may have written. Out: text in which everything is visible.

use std::io::{self, IsTerminal as _};

/// Whether standard output shows colours: a terminal whose user has not asked for none.
pub(super) fn colours() -> bool {
    let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    io::stdout().is_terminal() && unset("NO_COLOR")
}

/// The text with everything visible that could steer a terminal: control characters, and those
/// that turn the direction of writing or take no room.
pub(super) fn plain(text: &str) -> String {
    let show = |c: char| if is_hidden(c) { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(show).collect()
}

/// A line as text: what is hidden is made visible, tabs aside; what is no UTF-8 is shown as `\xff`.
pub(super) fn line(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_hidden(c) && c != '\t' { text.extend(c.escape_default()) } else { text.push(c) }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

fn is_hidden(c: char) -> bool {
    let ranges = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}'];
    c.is_control() || matches!(c, '\u{61c}' | '\u{feff}') || ranges.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_steer_the_terminal() {
        assert_eq!(line(b"a\tb\x1b[2J\xff\r"), "a\tb\\u{1b}[2J\\xff\\r");
        assert_eq!(line("é\u{202e}".as_bytes()), "é\\u{202e}");
        assert_eq!(plain("a\tb\n"), "a\\tb\\n");
    }
}
