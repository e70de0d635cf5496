//! Writes a `weir.toml` from what the older form says.

use std::fmt::Write;
use std::path::Path;

use ::toml::Value;

use super::typed::{At, Typed, TypedCollect, TypedEtcd};

/// Where the list goes that the older form had in the settings themselves.
const LIST: &str = "collect.json";

/// The text. What the older form cannot say stands in it as a comment with its default.
pub(super) fn to_toml(typed: &Typed, file: &Path) -> String {
    let file = printable(&file.to_string_lossy());
    let mut text = format!("# Made by `weir check --convert {file}`. What is not here has its default.\n");
    let mut lines = Vec::new();
    if let Some(brokers) = &typed.brokers {
        lines.push(format!("brokers = {}", quoted(&join(&brokers.value))));
    }
    section(&mut text, "kafka", &lines);
    match (&typed.etcd, &typed.collect) {
        (Some(etcd), _) => section(&mut text, "etcd", &etcd_lines(&etcd.value)),
        (None, Some(At { value: TypedCollect::Fixed { path, topic }, .. })) => {
            let path = std::path::absolute(&path.value).unwrap_or_else(|_| path.value.clone().into());
            let entry = serde_json::json!([{"path": path.to_string_lossy(), "topic": topic.value}]);
            let entry = printable(&entry.to_string());
            let hint = format!(
                "# Beside this file, in {LIST}:\n#   {entry}\n# It is watched: files and topics can be added while weir runs."
            );
            section(&mut text, "collect", &[hint, format!("file = {}", quoted(LIST))]);
        }
        (None, _) => {}
    }
    section(
        &mut text,
        "state",
        &["# dir = \"/var/lib/weir\"    # offsets; else $STATE_DIRECTORY, else ~/.local/state/weir".into()],
    );
    section(
        &mut text,
        "policy",
        &["# roots = [\"/var/log\"]    # what a list from etcd may name on this host".into()],
    );
    text
}

fn etcd_lines(etcd: &TypedEtcd) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(endpoints) = &etcd.endpoints {
        lines.push(format!("endpoints = {}", array(&endpoints.value)));
    }
    match etcd.collect_key.as_ref().map(|keys| keys.value.as_slice()) {
        Some([key]) => lines.push(format!("collect_key = {}", quoted(&key.value))),
        Some(keys) => lines.push(format!("collect_key = {}", array(keys))),
        None => {}
    }
    lines.push("# The older agents stop when the key is deleted; weir goes on with the last list.".into());
    lines.push("# on_delete = \"keep\"".into());
    if let Some(username) = &etcd.username {
        lines.push(format!("username = {}", quoted(&username.value)));
    }
    if etcd.password.is_some() {
        lines
            .push("# The password goes into a file of its own that nobody else may read (chmod 600).".into());
        lines.push("password_file = \"etcd.password\"".into());
    }
    lines
}

fn section(text: &mut String, name: &str, lines: &[String]) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\n[{name}]\n{}\n", lines.join("\n"));
}

fn join(list: &[At<String>]) -> String {
    list.iter().map(|at| at.value.as_str()).collect::<Vec<_>>().join(",")
}

fn array(list: &[At<String>]) -> String {
    Value::Array(list.iter().map(|at| Value::String(at.value.clone())).collect()).to_string()
}

/// For a comment, where TOML takes no control characters; JSON means the same by it.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn quoted(text: &str) -> String {
    Value::String(text.into()).to_string()
}
