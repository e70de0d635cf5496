//! Keeps, removes and renames fields of JSON lines.
//!
//! Configuration, each key optional:
//! ```json
//! {"keep": ["time", "msg"], "remove": ["debug"], "rename": {"msg": "message"}}
//! ```
//! With `keep`, only those fields go on; names are the ones before renaming. Fields keep their
//! order, and values are copied as they stand, so no number or escape changes. A line that is not
//! a JSON object is set aside: what to do with it is for the entry's `on_error` to say.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write as _;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use weir_guest::{Context, Filter, Output, Verdict};

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
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(config).map_err(|error| format!("config: {error}"))
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let Ok(Fields(fields)) = serde_json::from_slice(line) else {
            return Verdict::SetAside;
        };
        match self.write(&fields, out) {
            Ok(()) => Verdict::Written,
            Err(_) => Verdict::SetAside,
        }
    }
}

impl JsonFields {
    fn write(&self, fields: &[(Key<'_>, &RawValue)], out: &mut Output) -> std::io::Result<()> {
        let mut before = "{";
        for (Key(name), value) in fields {
            if self.remove.contains(&**name) || self.keep.as_ref().is_some_and(|keep| !keep.contains(&**name))
            {
                continue;
            }
            out.write_all(before.as_bytes())?;
            serde_json::to_writer(&mut *out, self.rename.get(&**name).map_or(&**name, String::as_str))?;
            out.write_all(b":")?;
            out.write_all(value.get().as_bytes())?;
            before = ",";
        }
        out.write_all(if before == "{" { b"{}" } else { b"}" })
    }
}

/// The fields of an object in their order, values unread.
struct Fields<'a>(Vec<(Key<'a>, &'a RawValue)>);

/// A name, borrowed from the line unless it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
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
