//! Keeps, removes and renames fields of JSON lines.
//!
//! Configuration, each key optional:
//! ```json
//! {"keep": ["time", "msg"], "remove": ["debug"], "rename": {"msg": "message"}}
//! ```
//! With `keep`, only those fields go on; names are the ones before renaming. Fields keep their
//! order, and values are copied as they stand, so no number or escape changes. A line that is not
//! a JSON object is set aside: what to do with it is for the entry's `on_error` to say.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use weir_guest::json::Object;
use weir_guest::{Context, Filter, Output, Result, Verdict};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonFields {
    keep: Option<HashSet<String>>,
    #[serde(default)]
    remove: HashSet<String>,
    #[serde(default)]
    rename: HashMap<String, String>,
}

weir_guest::export!(JsonFields);

impl Filter for JsonFields {
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
        weir_guest::config(config)
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let Ok(mut fields) = Object::parse(line) else { return Verdict::SetAside };
        fields.retain(|name, _| {
            !self.remove.contains(name) && self.keep.as_ref().is_none_or(|keep| keep.contains(name))
        });
        fields.rename_each(|name| self.rename.get(name).map(String::as_str));
        fields.write(out);
        Verdict::Written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    fn fate(config: &str, line: &str) -> Fate {
        run::<JsonFields>(config, [line]).unwrap().fates.remove(0)
    }

    #[test]
    fn fields_are_removed_and_renamed_in_their_order() {
        let config = r#"{"remove":["b"],"rename":{"a":"first"}}"#;
        let line = r#"{"z":1.50, "a": {"b":"\u00e9"}, "b":[1,2]}"#;
        assert_eq!(fate(config, line), Fate::replaced([r#"{"z":1.50,"first":{"b":"\u00e9"}}"#]));
    }

    #[test]
    fn names_can_be_swapped() {
        let config = r#"{"rename":{"a":"b","b":"a"}}"#;
        assert_eq!(fate(config, r#"{"a":1,"b":2}"#), Fate::replaced([r#"{"b":1,"a":2}"#]));
    }

    #[test]
    fn with_keep_only_those_go_on() {
        assert_eq!(fate(r#"{"keep":["a","c"]}"#, r#"{"b":2,"a":1}"#), Fate::replaced([r#"{"a":1}"#]));
        assert_eq!(fate(r#"{"keep":[]}"#, r#"{"b":2}"#), Fate::replaced(["{}"]));
    }

    #[test]
    fn a_name_with_escapes_is_understood() {
        assert_eq!(fate(r#"{"remove":["a\"b"]}"#, r#"{"a\"b":1,"c\t":2}"#), Fate::replaced([r#"{"c\t":2}"#]));
    }

    #[test]
    fn what_is_no_object_is_set_aside() {
        for line in ["", "text", "[1]", r#"{"a":1"#, r#"{"a":1} x"#] {
            assert_eq!(fate("{}", line), Fate::SetAside, "{line}");
        }
    }

    #[test]
    fn a_bad_config_says_what_is_wrong() {
        let error = run::<JsonFields>(r#"{"remove":"x"}"#, [""; 0]).unwrap_err();
        assert!(error.contains("line 1 column"), "{error}");
    }
}
