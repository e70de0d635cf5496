//! Unwraps lines of containers: what the runtime put around what the program wrote is taken away.
//!
//! ```text
//! 2026-11-26T07:00:00.1Z stdout F hello                          CRI (containerd, CRI-O)
//! {"log":"hello\n","stream":"stdout","time":"2026-11-26T07…"}    Docker's json-file
//! ```
//!
//! Both become `hello`. A line in neither form is set aside. A runtime cuts a line of more than 16 KiB; its
//! parts stay lines of their own, since a filter holds no line back.

use weir_guest::{Verdict, json, memchr::memchr};

#[weir_guest::filter]
fn unwrap(line: &[u8]) -> Verdict<'_> {
    let inner = if line.starts_with(b"{") { docker(line) } else { cri(line).map(Verdict::replace) };
    inner.unwrap_or(Verdict::SetAside)
}

/// Behind the time, the stream, and `F` or `P` for a full or a partial line.
fn cri(line: &[u8]) -> Option<&[u8]> {
    let (_time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    let (tag, rest) = word(rest)?;
    let known = matches!(stream, b"stdout" | b"stderr") && matches!(tag, b"F" | b"P");
    known.then_some(rest)
}

fn word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr(b' ', line)?;
    Some((&line[..at], &line[at + 1..]))
}

fn docker(line: &[u8]) -> Option<Verdict<'_>> {
    let object = json::Object::parse(line).ok()?;
    let log = object.str("log")?;
    let text = log.strip_suffix('\n').unwrap_or(&log);
    Some(Verdict::replace(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cri_are_unwrapped() {
        assert_eq!(unwrap(b"2026-11-26T07:00:00.1Z stdout F hello world"), Verdict::replace(b"hello world"));
        assert_eq!(unwrap(b"2026-11-26T07:00:00.1Z stderr P part"), Verdict::replace(b"part"));
        assert_eq!(unwrap(b"2026-11-26T07:00:00.1Z stdout F "), Verdict::replace(b""));
    }

    #[test]
    fn lines_of_docker_are_unwrapped() {
        let line = br#"{"log":"say \"hi\"\n","stream":"stdout","time":"2026-11-26T07:00:00Z"}"#;
        assert_eq!(unwrap(line), Verdict::replace(br#"say "hi""#));
    }

    #[test]
    fn what_is_in_neither_form_is_set_aside() {
        for line in [&b"hello"[..], b"a b c d", b"{\"msg\":1}", b"{not json", b""] {
            assert_eq!(unwrap(line), Verdict::SetAside, "{line:?}");
        }
    }
}
