//! The reference filter of the conformance kit: `conformance/README.md` says what it does.

use std::io::Write as _;

use weir_guest::{Context, Filter, Level, Output, Result, Verdict, count, log};

struct Reference {
    context: String,
    prefix: Vec<u8>,
    seen: u64,
}

weir_guest::export!(Reference);

impl Filter for Reference {
    fn init(ctx: &Context, config: &[u8]) -> Result<Self> {
        let prefix = match config {
            [] => b"> ",
            [b'"', text @ .., b'"'] if !text.contains(&b'\\') => text,
            _ => return Err("config: a string without escapes".into()),
        };
        let context = format!("{} {} {}", ctx.entry, ctx.topic, ctx.host);
        Ok(Self { context, prefix: prefix.to_vec(), seen: 0 })
    }

    fn line<'a>(&'a mut self, line: &'a [u8], out: &mut Output) -> Verdict<'a> {
        let seen = self.seen;
        self.seen += 1;
        match line {
            b"aside" => return Verdict::SetAside,
            b"trap" => panic!("trap was asked for"),
            b"context" => return Verdict::replace(self.context.as_bytes()),
            b"seen" => return Verdict::replace(seen.to_string().into_bytes()),
            b"where" => {
                let place = format!("{}@{}@{}", out.path(), out.offset(), out.unix_ms());
                return Verdict::replace(place.into_bytes());
            }
            _ => {}
        }
        let (word, rest) = match line.iter().position(|byte| *byte == b' ') {
            Some(blank) => (&line[..blank], &line[blank + 1..]),
            None => (line, &b""[..]),
        };
        match word {
            b"DEBUG" => Verdict::Drop,
            b"one" => {
                // What is written to memory is written.
                let _ = out.write_all(&self.prefix);
                out.line(rest);
                Verdict::Written
            }
            b"split" => {
                rest.split(|byte| *byte == b';').for_each(|part| out.line(part));
                Verdict::Written
            }
            b"many" => {
                let lines = std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                (0..lines).for_each(|_| out.line(b"x"));
                Verdict::Written
            }
            b"log" => {
                log(Level::Info, &String::from_utf8_lossy(rest));
                Verdict::Keep
            }
            b"count" => {
                count(&String::from_utf8_lossy(rest), 1);
                Verdict::Keep
            }
            _ => Verdict::Keep,
        }
    }
}
