//! Drops JSON lines by their level, and removes fields of the others.
//!
//! ```json
//! {"drop_levels": ["debug"], "remove": ["password"]}
//! ```
//! under `config` in the collect list is what it does without. Fields keep their order, and their
//! values as they stood. A line that is no JSON object is set aside: what becomes of it is for the
//! entry's `on_error` to say.

use std::collections::HashSet;

use serde::Deserialize;
use weir_guest::json::Object;
use weir_guest::{Context, Filter, Output, Result, Verdict};

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
    fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
        weir_guest::config(config)
    }

    fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> {
        let Ok(mut fields) = Object::parse(line) else { return Verdict::SetAside };
        if fields.str("level").is_some_and(|level| self.drop_levels.contains(&*level)) {
            return Verdict::Drop;
        }
        let mut removed = false;
        self.remove.iter().for_each(|name| removed |= fields.remove(name));
        if !removed {
            return Verdict::Keep;
        }
        fields.write(out);
        Verdict::Written
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
        assert_eq!(fate("", line), Fate::replaced([r#"{"took":1.50,"id":12345678901234567890}"#]));
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
