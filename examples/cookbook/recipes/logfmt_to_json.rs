//! Makes a JSON object of the `key=value` pairs of a line.
//!
//! Values become strings, since a line does not say what they are; a word without `=` becomes
//! `true`. Of equal keys the last holds. Bytes that are no UTF-8 become U+FFFD.

use weir_guest::json::Object;
use weir_guest::{Context, Filter, Output, Result, Verdict, logfmt};

struct LogfmtToJson;

weir_guest::export!(LogfmtToJson);

fn converted(line: &[u8], out: &mut Output) -> Result<Verdict<'static>> {
    let mut object = Object::parse(b"{}")?;
    for pair in logfmt::pairs(line) {
        let key = String::from_utf8_lossy(pair.key);
        if pair.raw.is_some() {
            object.set(&key, &String::from_utf8_lossy(&pair.value()))?;
        } else {
            object.set(&key, &true)?;
        }
    }
    object.write(out);
    Ok(Verdict::Written)
}

impl Filter for LogfmtToJson {
    fn init(_ctx: &Context, _config: &[u8]) -> Result<Self> {
        Ok(Self)
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        converted(line, out).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn pairs_become_fields_and_words_become_true() {
        let lines: [&[u8]; 2] = [br#"level=info msg="disk \"a\" full" retry ms=7 ms=8"#, b"a=\xff"];
        let found = run::<LogfmtToJson>("", lines).unwrap().fates;
        let first = r#"{"level":"info","msg":"disk \"a\" full","retry":true,"ms":"8"}"#;
        assert_eq!(found, [Fate::replaced([first]), Fate::replaced(["{\"a\":\"\u{fffd}\"}"])]);
    }
}
