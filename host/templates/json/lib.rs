//! Drops JSON lines by their level, and removes fields of the others.
//!
//! ```json
//! {"drop_levels": ["debug"], "remove": ["password"]}
//! ```
//! under `config` in the collect list is what it does without. Fields come out sorted by name,
//! their values as they stood. A line that is no JSON object is set aside: what becomes of it is
//! for the entry's `on_error` to say.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;
use weir_guest::{Context, Filter, Output, Verdict};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fields {
    drop_levels: HashSet<String>,
    remove: HashSet<String>,
}

impl Default for Fields {
    fn default() -> Self {
        let set = |name: &str| HashSet::from([name.to_owned()]);
        Self { drop_levels: set("debug"), remove: set("password") }
    }
}

weir_guest::export!(Fields);

impl Filter for Fields {
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self, String> {
        if config.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(config).map_err(|error| format!("config: {error}"))
    }

    fn line(&mut self, line: &[u8], _out: &mut Output) -> Verdict<'_> {
        // Values are not looked into: numbers and escapes go on as they are.
        let Ok(mut fields) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(line) else {
            return Verdict::SetAside;
        };
        if fields.get("level").is_some_and(|level| self.drops(level)) {
            return Verdict::Drop;
        }
        let before = fields.len();
        fields.retain(|name, _| !self.remove.contains(name));
        if fields.len() == before {
            return Verdict::Keep;
        }
        serde_json::to_vec(&fields).map_or(Verdict::SetAside, Verdict::replace)
    }
}

impl Fields {
    fn drops(&self, level: &RawValue) -> bool {
        serde_json::from_str::<String>(level.get()).is_ok_and(|level| self.drop_levels.contains(&level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_guest::testing::{Fate, run};

    fn fate(config: &str, line: &str) -> Fate {
        run::<Fields>(config, [line]).unwrap().fates.remove(0)
    }

    #[test]
    fn lines_are_dropped_by_level() {
        assert_eq!(fate("", r#"{"level":"debug","msg":"x"}"#), Fate::Dropped);
        assert_eq!(fate("", r#"{"level":"info","msg":"x"}"#), Fate::Kept);
        assert_eq!(fate(r#"{"drop_levels":["info"]}"#, r#"{"level":"info"}"#), Fate::Dropped);
    }

    #[test]
    fn fields_are_removed_and_values_stay() {
        let line = r#"{"took":1.50,"password":"x","id":12345678901234567890}"#;
        assert_eq!(fate("", line), Fate::replaced([r#"{"id":12345678901234567890,"took":1.50}"#]));
    }

    #[test]
    fn what_is_no_object_is_set_aside() {
        assert_eq!(fate("", "started"), Fate::SetAside);
    }

    #[test]
    fn a_bad_config_says_what_is_wrong() {
        let error = run::<Fields>(r#"{"delete":[]}"#, [""; 0]).unwrap_err();
        assert!(error.contains("unknown field `delete`"), "{error}");
    }
}
