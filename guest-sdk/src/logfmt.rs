//! Lines of `key=value` pairs, as many services write them: `level=info msg="disk full" retry`.
//!
//! Nothing is allocated unless a quoted value has escapes.

use std::borrow::Cow;

/// A key and what stands behind its `=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The key; of a word without `=`, the word.
    pub key: &'a [u8],
    /// The value as it stands, with its quotes; none for a word without `=`.
    pub raw: Option<&'a [u8]>,
}

impl<'a> Pair<'a> {
    /// The value without its quotes and escapes (`\"`, `\\`, `\n`, `\r`, `\t`; another backslash
    /// stands for itself); empty for a word without `=`.
    pub fn value(&self) -> Cow<'a, [u8]> {
        match self.raw.unwrap_or_default() {
            [b'"', inner @ .., b'"'] => unescape(inner),
            [b'"', inner @ ..] => unescape(inner),
            raw => Cow::Borrowed(raw),
        }
    }
}

/// The pairs of a line.
///
/// ```
/// let mut pairs = weir_guest::logfmt::pairs(br#"level=info msg="a \"b\"" retry"#);
/// assert_eq!(pairs.next().unwrap().key, b"level");
/// assert_eq!(*pairs.next().unwrap().value(), *br#"a "b""#);
/// assert_eq!(pairs.next().unwrap().raw, None);
/// assert_eq!(pairs.next(), None);
/// ```
pub fn pairs(line: &[u8]) -> Pairs<'_> {
    Pairs { rest: line }
}

/// The value of the first pair with `key`, unquoted.
///
/// ```
/// let line = br#"level=info msg="disk full""#;
/// assert_eq!(weir_guest::logfmt::get(line, b"msg").as_deref(), Some(&b"disk full"[..]));
/// assert_eq!(weir_guest::logfmt::get(line, b"ms"), None);
/// ```
pub fn get<'a>(line: &'a [u8], key: &[u8]) -> Option<Cow<'a, [u8]>> {
    pairs(line).find(|pair| pair.key == key).map(|pair| pair.value())
}

/// See [`pairs`].
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Pair<'a>> {
        let rest = self.rest.trim_ascii_start();
        if rest.is_empty() {
            self.rest = rest;
            return None;
        }
        let key_end = rest.iter().position(|byte| *byte == b'=' || byte.is_ascii_whitespace());
        let (key, behind) = rest.split_at(key_end.unwrap_or(rest.len()));
        let Some(behind) = behind.strip_prefix(b"=") else {
            self.rest = behind;
            return Some(Pair { key, raw: None });
        };
        let (raw, rest) = behind.split_at(value_end(behind));
        self.rest = rest;
        Some(Pair { key, raw: Some(raw) })
    }
}

/// Where a value ends: behind its closing quote, or before the next blank.
fn value_end(text: &[u8]) -> usize {
    let blank = || text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    if !text.starts_with(b"\"") {
        return blank();
    }
    let mut escaped = false;
    let closing = text[1..].iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    closing.map_or(text.len(), |at| at + 2)
}

fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        let (byte, taken) = match (byte, behind.first()) {
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(&escaped @ (b'"' | b'\\'))) => (escaped, 2),
            _ => (byte, 1),
        };
        plain.push(byte);
        rest = &rest[taken..];
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        pairs(line.as_bytes()).map(|pair| (text(pair.key), pair.raw.map(|_| text(&pair.value())))).collect()
    }

    fn pair(key: &str, value: &str) -> (String, Option<String>) {
        (key.into(), Some(value.into()))
    }

    #[test]
    fn values_are_plain_quoted_or_absent() {
        assert_eq!(
            all(r#"a=1  b="x y" c= d"#),
            [pair("a", "1"), pair("b", "x y"), pair("c", ""), ("d".into(), None)]
        );
        assert_eq!(all(""), []);
        assert_eq!(all(" \t "), []);
    }

    #[test]
    fn escapes_are_undone_and_what_is_unfinished_ends_with_the_line() {
        assert_eq!(all(r#"a="\"\\\n\x" b=2"#), [pair("a", "\"\\\n\\x"), pair("b", "2")]);
        assert_eq!(all(r#"a="open b=2"#), [pair("a", "open b=2")]);
        assert_eq!(all(r#"a=""#), [pair("a", "")]);
        assert_eq!(all(r#"a="\"#), [pair("a", "\\")]);
        assert_eq!(all("=x y"), [pair("", "x"), ("y".into(), None)]);
    }
}
