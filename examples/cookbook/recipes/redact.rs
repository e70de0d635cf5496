//! Blanks out what stands behind fixed texts: `"config": ["password=", "Bearer "]`.
//!
//! A secret ends at a blank, a quote, `&`, `;` or `,`. Searching for fixed texts needs no regular
//! expressions, and a line without any of them is neither copied nor changed: they are looked for in
//! all lines of a batch at once.

use weir_guest::{Batch, Context, Filter, Output, Result, Search, Verdict, config};

const BLANK: &[u8] = b"***";

struct Redact {
    markers: Search,
}

weir_guest::export!(Redact);

impl Redact {
    /// Where the first secret of `text` begins and ends.
    fn secret(&self, text: &[u8]) -> Option<(usize, usize)> {
        let begin = self.markers.end_of_first(text)?;
        let length = text[begin..].iter().position(|byte| b" \t\"'&;,".contains(byte));
        Some((begin, length.map_or(text.len(), |length| begin + length)))
    }
}

impl Filter for Redact {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        let markers: Vec<String> = config(text)?;
        if markers.is_empty() || markers.iter().any(String::is_empty) {
            return Err("config: the texts that stand before secrets".into());
        }
        Ok(Self { markers: Search::new(markers) })
    }

    fn begin(&mut self, batch: &Batch) {
        self.markers.begin(batch);
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        if !self.markers.may_be_in(out) {
            return Verdict::Keep;
        }
        let mut redacted = Vec::new();
        let mut rest = line;
        while let Some((begin, end)) = self.secret(rest) {
            redacted.extend_from_slice(&rest[..begin]);
            redacted.extend_from_slice(BLANK);
            rest = &rest[end..];
        }
        if redacted.is_empty() {
            return Verdict::Keep;
        }
        redacted.extend_from_slice(rest);
        Verdict::replace(redacted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn every_secret_of_a_line_is_blanked() {
        let lines = ["password=a&x=1 password=b", "Authorization: Bearer abc.d", "fine"];
        let found = run::<Redact>(r#"["password=", "Bearer "]"#, lines).unwrap().fates;
        let first = Fate::replaced(["password=***&x=1 password=***"]);
        assert_eq!(found, [first, Fate::replaced(["Authorization: Bearer ***"]), Fate::Kept]);
    }

    #[test]
    fn nothing_to_look_for_is_refused() {
        for config in ["[]", r#"[""]"#] {
            assert!(run::<Redact>(config, [""; 0]).unwrap_err().contains("config: the texts"));
        }
    }
}
