//! Keeps the named fields of JSON lines: `"config": ["time", "level", "msg"]`.
//!
//! Fields stay in the order of the line, and values as they stand. A line that is no JSON object is
//! set aside.

use weir_guest::json::Object;
use weir_guest::{Context, Filter, Output, Result, Verdict, config};

struct JsonSelect {
    fields: Vec<String>,
}

weir_guest::export!(JsonSelect);

impl Filter for JsonSelect {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        Ok(Self { fields: config(text)? })
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let Ok(mut object) = Object::parse(line) else { return Verdict::SetAside };
        object.retain(|name, _| self.fields.iter().any(|field| field == name));
        object.write(out);
        Verdict::Written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    #[test]
    fn named_fields_stay_as_they_are() {
        let lines = [r#"{"b":1.50,"c":{"a":1},"a":"x"}"#, "{}", "[1]"];
        let found = run::<JsonSelect>(r#"["a","b"]"#, lines).unwrap().fates;
        let first = Fate::replaced([r#"{"b":1.50,"a":"x"}"#]);
        assert_eq!(found, [first, Fate::replaced(["{}"]), Fate::SetAside]);
    }
}
