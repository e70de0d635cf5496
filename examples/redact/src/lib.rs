//! Blanks out what must not leave the host.
//!
//! Configuration, each key optional:
//! ```json
//! {"fields": ["password"], "patterns": ["[0-9]{16}"], "with": "***"}
//! ```
//! A field is blanked out in `password=x`, `password: x` and `"password":"x"`, in any case of
//! letters; of a pattern, all that matches is. JSON stays JSON.

use regex::bytes::{Captures, Regex, RegexBuilder};
use serde::Deserialize;
use weir_guest::{Context, Filter, Output, Result, Verdict};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    patterns: Vec<String>,
    #[serde(default = "stars")]
    with: String,
}

fn stars() -> String {
    "***".into()
}

struct Redact {
    fields: Option<Regex>,
    patterns: Option<Regex>,
    with: Vec<u8>,
}

weir_guest::export!(Redact);

impl Filter for Redact {
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
        let Config { fields, patterns, with } = weir_guest::config(config)?;
        if fields.is_empty() && patterns.is_empty() {
            return Err("config: `fields` or `patterns` must say what to redact".into());
        }
        for pattern in &patterns {
            compile(pattern)?;
        }
        Ok(Self { fields: field_regex(&fields)?, patterns: any_of(&patterns)?, with: with.into_bytes() })
    }

    fn line<'a>(&'a mut self, line: &'a [u8], _out: &mut Output) -> Verdict<'a> {
        let Self { fields, patterns, with } = self;
        let mut redacted = None;
        if let Some(regex) = fields {
            redacted = replaced(regex, line, |found: &Captures<'_>| blank_field(found, with));
        }
        if let Some(regex) = patterns {
            let so_far = redacted.as_deref().unwrap_or(line);
            redacted = replaced(regex, so_far, |_: &Captures<'_>| with.clone()).or(redacted);
        }
        redacted.map_or(Verdict::Keep, Verdict::replace)
    }
}

fn replaced(regex: &Regex, line: &[u8], with: impl FnMut(&Captures<'_>) -> Vec<u8>) -> Option<Vec<u8>> {
    match regex.replace_all(line, with) {
        std::borrow::Cow::Borrowed(_) => None,
        std::borrow::Cow::Owned(line) => Some(line),
    }
}

/// The key and its separator as they were, and the blank in quotes if either was quoted.
fn blank_field(found: &Captures<'_>, with: &[u8]) -> Vec<u8> {
    let (key, value) = (&found[1], &found[2]);
    let quote: &[u8] = if key.contains(&b'"') || value.starts_with(b"\"") { b"\"" } else { b"" };
    [key, quote, with, quote].concat()
}

fn field_regex(fields: &[String]) -> Result<Option<Regex>> {
    if fields.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = fields.iter().map(|name| regex::escape(name)).collect();
    let names = names.join("|");
    compile(&format!(r#"(?i)\b((?:{names})"?\s*[:=]\s*)("(?:[^"\\]|\\.)*"|[^\s"',;&}}\]]+)"#)).map(Some)
}

fn any_of(patterns: &[String]) -> Result<Option<Regex>> {
    let each: Vec<_> = patterns.iter().map(|pattern| format!("(?:{pattern})")).collect();
    if each.is_empty() { Ok(None) } else { compile(&each.join("|")).map(Some) }
}

fn compile(pattern: &str) -> Result<Regex> {
    let regex = RegexBuilder::new(pattern).unicode(false).build();
    regex.map_err(|error| format!("config: pattern {pattern:?}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    fn fates(config: &str, lines: &[&str]) -> Vec<Fate> {
        run::<Redact>(config, lines).unwrap().fates
    }

    #[test]
    fn fields_are_blanked_in_every_spelling() {
        let lines = [
            "user=ann password=s3cret ok",
            r#"{"user":"ann","Password": "a\"b","pin":1}"#,
            "passwordless login",
            r#"{"password":12,"n":1}"#,
        ];
        assert_eq!(
            fates(r#"{"fields":["password"]}"#, &lines),
            [
                Fate::replaced(["user=ann password=*** ok"]),
                Fate::replaced([r#"{"user":"ann","Password": "***","pin":1}"#]),
                Fate::Kept,
                Fate::replaced([r#"{"password":"***","n":1}"#]),
            ]
        );
    }

    #[test]
    fn patterns_are_blanked_on_bytes() {
        let config = r##"{"patterns":["[0-9]{4,}","\\bkey-\\w+"],"with":"#"}"##;
        let found = run::<Redact>(config, [&b"\xff 1234 key-abc 99"[..], b"99"]).unwrap().fates;
        assert_eq!(found, [Fate::replaced([&b"\xff # # 99"[..]]), Fate::Kept]);
    }

    #[test]
    fn fields_and_patterns_go_together() {
        let config = r#"{"fields":["token"],"patterns":["ann"]}"#;
        assert_eq!(fates(config, &["ann token=x"]), [Fate::replaced(["*** token=***"])]);
    }

    #[test]
    fn a_bad_config_says_what_is_wrong() {
        let error = |config| run::<Redact>(config, [""; 0]).unwrap_err();
        assert!(error("").contains("`fields` or `patterns`"), "{}", error(""));
        assert!(error("{}").contains("`fields` or `patterns`"));
        assert!(error(r#"{"patterns":["("]}"#).contains("unclosed group"));
        assert!(error(r#"{"field":[]}"#).contains("unknown field `field`"));
    }
}
