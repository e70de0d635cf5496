//! Templates of keys in etcd: `/weir/{host}/collect`, and `%s` of the older form.

use super::AgentSettings;

/// Why a template cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey {
    /// Where in the template, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

/// Fills in `{host}`, `{ip}`, `{label.X}` and `%s` (the ip). A `%` is written `%%`.
pub fn fill(template: &str, agent: &AgentSettings) -> Result<String, BadKey> {
    if template.is_empty() {
        return Err(BadKey { column: 1, cause: "the key is empty".into(), fix: "write a key".into() });
    }
    let mut key = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}', '%']) {
        key.push_str(&rest[..at]);
        rest = &rest[at..];
        let column = template[..template.len() - rest.len()].chars().count() + 1;
        let (value, length) =
            placeholder(rest, agent).map_err(|(cause, fix)| BadKey { column, cause, fix })?;
        key.push_str(&value);
        rest = &rest[length..];
    }
    key.push_str(rest);
    Ok(key)
}

/// What the placeholder at the beginning of `rest` stands for, and its length.
fn placeholder(rest: &str, agent: &AgentSettings) -> Result<(String, usize), (String, String)> {
    let known = || format!("known are {}", known(agent).join(", "));
    if rest.starts_with("%s") {
        return Ok((agent.ip.clone(), 2));
    }
    if rest.starts_with("%%") {
        return Ok(("%".into(), 2));
    }
    if rest.starts_with('%') {
        let found: String = rest.chars().take(2).collect();
        let cause = format!("`{found}` is no placeholder");
        return Err((cause, "write %s where the ip belongs, and %% for a plain %".into()));
    }
    let Some(end) = rest.find('}').filter(|end| *end > 0) else {
        return Err((format!("`{}` stands alone", &rest[..1]), known()));
    };
    let name = &rest[1..end];
    let value = match name.strip_prefix("label.") {
        Some(label) => agent.labels.get(label),
        None if name == "host" => Some(&agent.name),
        None if name == "ip" => Some(&agent.ip),
        None => None,
    };
    match value {
        Some(value) => Ok((value.clone(), end + 1)),
        None if name.starts_with("label.") => {
            let label = &name["label.".len()..];
            let fix = format!("write labels = {{ {label} = \"…\" }} under [agent]; {}", known());
            Err((format!("`{{{name}}}`: this agent has no label `{label}`"), fix))
        }
        None => Err((format!("`{{{name}}}` is no placeholder"), known())),
    }
}

/// All keys that a template may stand for, whichever host fills it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// Of a template that [`fill`] takes.
    pub fn of(template: &str) -> Self {
        let (mut parts, mut part, mut rest) = (Vec::new(), String::new(), template);
        while let Some(first) = rest.chars().next() {
            let placeholder = match first {
                '{' => rest.find('}').map(|end| end + 1),
                '%' if rest.starts_with("%s") => Some(2),
                _ => None,
            };
            if let Some(length) = placeholder {
                parts.push(std::mem::take(&mut part));
                rest = &rest[length..];
            } else {
                part.push(first);
                rest = rest.strip_prefix("%%").unwrap_or(&rest[first.len_utf8()..]);
            }
        }
        parts.push(part);
        Self(parts)
    }

    /// What all of its keys begin with.
    pub fn prefix(&self) -> &str {
        &self.0[0]
    }

    /// Whether some host may mean `key`.
    pub fn matches(&self, key: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else { return key == self.0[0] };
        let Some(mut rest) =
            key.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
        else {
            return false;
        };
        for part in middle {
            // What a placeholder stands for is not empty.
            let begin = rest.char_indices().nth(1).map_or(rest.len(), |(at, _)| at);
            let Some(at) = rest[begin..].find(part.as_str()) else { return false };
            rest = &rest[begin + at + part.len()..];
        }
        !rest.is_empty()
    }
}

fn known(agent: &AgentSettings) -> Vec<String> {
    let labels = agent.labels.keys().map(|label| format!("{{label.{label}}}"));
    ["{host}".into(), "{ip}".into(), "%s".into()].into_iter().chain(labels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn agent() -> AgentSettings {
        let labels = [("role".to_string(), "web".to_string())].into();
        AgentSettings { name: "web1".into(), ip: "10.0.0.7".into(), labels, drain: Duration::ZERO }
    }

    fn refusal(template: &str) -> (usize, String, String) {
        let BadKey { column, cause, fix } = fill(template, &agent()).expect_err(template);
        (column, cause, fix)
    }

    #[test]
    fn placeholders_are_filled_in() {
        for (template, key) in [
            ("/weir/{host}/collect", "/weir/web1/collect"),
            ("/logagent/%s/collect_config", "/logagent/10.0.0.7/collect_config"),
            ("collect_log_%s_conf", "collect_log_10.0.0.7_conf"),
            ("%s:all_logs_config", "10.0.0.7:all_logs_config"),
            ("/weir/{label.role}/{ip}/", "/weir/web/10.0.0.7/"),
            ("collect_conf", "collect_conf"),
            ("100%%", "100%"),
        ] {
            assert_eq!(fill(template, &agent()).as_deref(), Ok(key));
        }
    }

    #[test]
    fn a_pattern_matches_the_keys_of_all_hosts() {
        let matches = |template, key| Pattern::of(template).matches(key);
        for (template, key, other) in [
            ("/weir/{host}/collect", "/weir/web2/collect", "/weir/web2/other"),
            ("/weir/{host}/collect", "/weir/a/b/collect", "/weir/collect"),
            ("/logagent/%s/conf", "/logagent/::1/conf", "/logagent//conf"),
            ("%s:all", "10.0.0.7:all", ":all"),
            ("/{label.role}/{ip}/", "/web/10.0.0.7/", "/web/"),
            ("100%%", "100%", "100%%"),
            ("/plain", "/plain", "/plain/x"),
        ] {
            assert!(matches(template, key) && !matches(template, other), "{template}");
            assert!(key.starts_with(Pattern::of(template).prefix()));
        }
    }

    #[test]
    fn a_malformed_percent_is_refused_with_its_column() {
        let fix = "write %s where the ip belongs, and %% for a plain %";
        assert_eq!(refusal("/logagent/%_/collect"), (11, "`%_` is no placeholder".into(), fix.into()));
        assert_eq!(refusal("collect_%"), (9, "`%` is no placeholder".into(), fix.into()));
    }

    #[test]
    fn an_unknown_placeholder_names_the_known_ones() {
        let known = "known are {host}, {ip}, %s, {label.role}";
        assert_eq!(refusal("/weir/{hots}/x"), (7, "`{hots}` is no placeholder".into(), known.into()));
        assert_eq!(refusal("/wéir/{host"), (7, "`{` stands alone".into(), known.into()));
        assert_eq!(refusal("/a}").1, "`}` stands alone");
        let (_, cause, fix) = refusal("{label.zone}");
        assert_eq!(cause, "`{label.zone}`: this agent has no label `zone`");
        assert_eq!(fix, format!("write labels = {{ zone = \"…\" }} under [agent]; {known}"));
    }
}
