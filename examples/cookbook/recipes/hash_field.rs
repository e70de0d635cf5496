//! Puts a keyed hash in the place of fields of JSON lines, so that equal values can still be counted.
//!
//! `"config": {"fields": ["user"], "key": "some long secret"}`. The hash is the first 16 hex digits
//! of the SHA-256 of key and value: without the key nobody finds a value by trying all of them.
//! A line that is no JSON object is set aside.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use weir_guest::json::Object;
use weir_guest::{Context, Filter, Output, Result, Verdict, config};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashField {
    fields: Vec<String>,
    key: String,
}

weir_guest::export!(HashField);

impl HashField {
    fn hash(&self, value: &str) -> String {
        let hash = Sha256::new().chain_update(&self.key).chain_update(value).finalize();
        hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn hashed(&self, line: &[u8], out: &mut Output) -> Result<Verdict<'static>> {
        let mut object = Object::parse(line)?;
        for field in &self.fields {
            let Some(value) = object.get(field) else { continue };
            let hash = self.hash(value.get());
            object.set(field, &hash)?;
        }
        object.write(out);
        Ok(Verdict::Written)
    }
}

impl Filter for HashField {
    fn init(_ctx: &Context, text: &[u8]) -> Result<Self> {
        let filter: Self = config(text)?;
        if filter.key.len() < 16 {
            return Err("config: `key` has at least 16 characters".into());
        }
        Ok(filter)
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        self.hashed(line, out).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    fn fates(key: &str, lines: &[&str]) -> Vec<Fate> {
        let config = format!(r#"{{"fields": ["user"], "key": "{key}"}}"#);
        run::<HashField>(config, lines).unwrap().fates
    }

    #[test]
    fn equal_values_have_equal_hashes_under_one_key_only() {
        let lines = [r#"{"user":"ann"}"#, r#"{ "user": "ann" }"#, r#"{"user":"bob"}"#];
        let found = fates("0123456789abcdef", &lines);
        assert_eq!(found[0], found[1]);
        assert_ne!(found[0], found[2]);
        assert_ne!(found[0], fates("another key, long", &lines)[0]);
    }

    #[test]
    fn what_lacks_the_field_stays_and_what_is_no_json_is_set_aside() {
        let found = fates("0123456789abcdef", &[r#"{"n":1}"#, "text"]);
        assert_eq!(found, [Fate::replaced([r#"{"n":1}"#]), Fate::SetAside]);
    }

    #[test]
    fn a_short_key_is_refused() {
        let error = run::<HashField>(r#"{"fields":[],"key":"short"}"#, [""; 0]).unwrap_err();
        assert!(error.contains("at least 16"), "{error}");
    }
}
