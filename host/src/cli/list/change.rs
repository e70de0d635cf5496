//! A list that is to take the place of another: what is wrong with it, the difference, and what an agent
//! will do about it.
//!
//! In: the text that stands there, and the new one. Out: words, and a write by compare-and-swap. Absent by
//! design: what the host allows; an agent's policy may still refuse an entry.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use similar::TextDiff;

use crate::agent::same_source;
use crate::cli::signing::Signing;
use crate::cli::visible::plain;
use crate::cli::words::count;
use crate::control::list::{self, Item, List, Origin};
use crate::control::lists::{Lists, Version};
use crate::model::Entry;

/// A list that is to take the place of another.
pub(in crate::cli) struct Change {
    pub(in crate::cli) old: Version,
    pub(in crate::cli) new: Vec<u8>,
    pub(super) origin: Origin,
}

impl Change {
    pub(in crate::cli) async fn new(lists: &mut Lists, new: Vec<u8>) -> anyhow::Result<Self> {
        Ok(Self { old: lists.read().await?, new, origin: lists.origin() })
    }

    /// The same with the new list signed, where a key is named.
    pub(in crate::cli) fn signed(self, signing: &Signing) -> anyhow::Result<Self> {
        let new = signing.seal(self.new, self.old.text.as_deref(), &self.origin)?;
        Ok(Self { new, ..self })
    }

    /// Says what is wrong or odd; whether an agent would run all of it. What was refused before the
    /// change is odd, not wrong: otherwise one bad entry would stop every other change.
    pub(in crate::cli) fn check(&self) -> bool {
        let list = match list::parse(&self.new, &self.origin) {
            Ok(list) => list,
            Err(problem) => {
                eprintln!("error: {problem}");
                return false;
            }
        };
        let old = self.old_list();
        let known_bad: HashSet<_> =
            old.items.iter().filter(|item| item.checked.is_err()).map(|item| item.text.as_str()).collect();
        for problem in &list.problems {
            eprintln!("note: {problem}");
        }
        let mut good = true;
        for item in &list.items {
            let Err(refused) = &item.checked else { continue };
            let known = known_bad.contains(item.text.as_str());
            eprintln!("{}: {}", if known { "note" } else { "error" }, refused.problem);
            good &= known;
        }
        good
    }

    /// In the unified form; empty where nothing changes.
    pub(in crate::cli) fn difference(&self) -> String {
        difference(self.old.text.as_deref(), &self.new, &self.origin.to_string(), "new")
    }

    /// What an agent that follows the list will do.
    pub(super) fn effects(&self) -> Effects {
        Effects::of(&self.old_list(), &list::parse(&self.new, &self.origin).unwrap_or_default())
    }

    fn old_list(&self) -> List {
        let text = self.old.text.as_deref();
        text.and_then(|text| list::parse(text, &self.origin).ok()).unwrap_or_default()
    }

    pub(super) fn changes(&self) -> bool {
        self.old.text.as_deref() != Some(self.new.as_slice())
    }

    /// The difference and what it means.
    pub(super) fn show(&self) {
        print!("{}{}", self.difference(), self.effects());
    }

    pub(super) async fn write(&self, lists: &mut Lists, json: bool) -> anyhow::Result<ExitCode> {
        if !self.check() {
            eprintln!("nothing was written");
            return Ok(ExitCode::FAILURE);
        }
        if !json && self.changes() {
            self.show();
        }
        self.write_checked(lists, json).await
    }

    pub(super) async fn write_checked(&self, lists: &mut Lists, json: bool) -> anyhow::Result<ExitCode> {
        let changed = self.changes();
        let revision = if changed { lists.write(&self.old, &self.new).await? } else { self.old.modified };
        let place = self.origin.to_string();
        if json {
            println!("{}", serde_json::json!({ "list": place, "changed": changed, "revision": revision }));
        } else {
            match (changed, &self.origin) {
                (false, _) => println!("{place}: nothing to change"),
                (true, Origin::Key(_)) => println!("{place}: written, revision {revision}"),
                (true, _) => println!("{place}: written"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// In the unified form; empty where nothing changes.
pub(super) fn difference(old: Option<&[u8]>, new: &[u8], old_name: &str, new_name: &str) -> String {
    let (old, new) = (String::from_utf8_lossy(old.unwrap_or_default()), String::from_utf8_lossy(new));
    TextDiff::from_lines(old.as_ref(), new.as_ref()).unified_diff().header(old_name, new_name).to_string()
}

/// What an agent does when one list takes the place of another, by name of the entry. Its policy may still
/// refuse one, and another key that it merges may have a name already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Effects {
    /// Entries that were not there, or were refused.
    pub(super) starts: Vec<Effect>,
    /// Entries that are gone, or are refused now.
    pub(super) stops: Vec<Effect>,
    /// Entries whose filter changes, between two chunks.
    pub(super) swaps: Vec<Effect>,
    /// Entries that stop, and go on from their offsets with what changed.
    pub(super) restarts: Vec<Effect>,
    /// Entries that cannot be run as they stand.
    pub(super) refused: Vec<Effect>,
    /// Entries that go on untouched.
    pub(super) unchanged: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Effect {
    name: String,
    /// In words.
    what: String,
}

impl Effects {
    pub(super) fn of(old: &List, new: &List) -> Self {
        let good = |item: &Item| item.checked.as_ref().ok().cloned();
        let before: HashMap<_, _> =
            old.items.iter().filter_map(good).map(|entry| (entry.name.clone(), entry)).collect();
        let mut effects = Self::default();
        for item in &new.items {
            match &item.checked {
                Ok(entry) => effects.entry(before.get(&entry.name), entry),
                Err(refused) => effects.refused.push(Effect::new(item.name(), &refused.problem.cause)),
            }
        }
        let after: HashSet<_> = new.items.iter().filter_map(good).map(|entry| entry.name.clone()).collect();
        let gone = old.items.iter().filter_map(good).filter(|entry| !after.contains(&entry.name));
        let what = "its offsets are kept for 7 days";
        effects.stops.extend(gone.map(|entry| Effect::new(entry.name.as_str(), what)));
        effects
    }

    fn entry(&mut self, before: Option<&Arc<Entry>>, entry: &Arc<Entry>) {
        let effect = |what: &str| Effect::new(entry.name.as_str(), what);
        match before {
            None => {
                let filter = entry.filter.as_ref().map(|filter| format!(", filter {}", filter.module));
                let what = format!("{} to topic {}{}", entry.path, entry.topic, filter.unwrap_or_default());
                self.starts.push(effect(&what));
            }
            Some(before) if before == entry => self.unchanged += 1,
            Some(before) if same_source(before, entry) => self.swaps.push(effect(&swap(before, entry))),
            Some(before) if before.path == entry.path => {
                self.restarts.push(effect("goes on from its offsets, with the new options"));
            }
            Some(before) => {
                let what = format!("reads {} in place of {}", entry.path, before.path);
                self.restarts.push(effect(&what));
            }
        }
    }

    fn lists(&self) -> [(&'static str, &Vec<Effect>); 5] {
        [
            ("starts", &self.starts),
            ("stops", &self.stops),
            ("swaps", &self.swaps),
            ("restarts", &self.restarts),
            ("refused", &self.refused),
        ]
    }

    /// In one line: `starts 2, swaps 1`.
    pub(super) fn short(&self) -> String {
        let some = self.lists().into_iter().filter(|(_, effects)| !effects.is_empty());
        let parts: Vec<_> = some.map(|(verb, effects)| format!("{verb} {}", effects.len())).collect();
        if parts.is_empty() { "no entry changes".into() } else { parts.join(", ") }
    }
}

/// What of a filter changes.
fn swap(before: &Entry, after: &Entry) -> String {
    match (&before.filter, &after.filter) {
        (None, Some(after)) => format!("gets the filter {}", after.module),
        (Some(before), None) => format!("loses the filter {}", before.module),
        (Some(before), Some(after)) if before.module != after.module => {
            format!("filter {} in place of {}", after.module, before.module)
        }
        (_, Some(after)) => format!("filter {}, with other options", after.module),
        (None, None) => String::new(),
    }
}

impl Effect {
    fn new(name: &str, what: &str) -> Self {
        Self { name: name.into(), what: what.into() }
    }
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verb, effects) in self.lists() {
            for Effect { name, what } in effects {
                writeln!(f, "{verb:<8}  {}: {}", plain(name), plain(what))?;
            }
        }
        if self.unchanged > 0 {
            writeln!(f, "{} untouched", count(self.unchanged as u64, "entry goes on", "entries go on"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(old: &str, new: &str) -> Change {
        let old = Version { text: Some(old.into()), modified: 1 };
        Change { old, new: new.into(), origin: Origin::Key("x".into()) }
    }

    #[test]
    fn a_list_with_a_bad_entry_is_not_written() {
        assert!(!change("[]", r#"[{"path": "a"}]"#).check());
        assert!(!change("[]", "[").check());
        assert!(change("[]", r#"[{"path": "/a", "topic": "t", "odd": 1}]"#).check());
    }

    #[test]
    fn an_entry_that_was_bad_before_stops_no_other_change() {
        let bad = r#"{"path": "a"}"#;
        assert!(change(&format!("[{bad}]"), &format!(r#"[{bad}, {{"path": "/a", "topic": "t"}}]"#)).check());
    }

    #[test]
    fn the_difference_is_shown() {
        let difference = change("[\n  1\n]\n", "[\n  2\n]\n").difference();
        assert_eq!(difference, "--- etcd key x\n+++ new\n@@ -1,3 +1,3 @@\n [\n-  1\n+  2\n ]\n");
        assert_eq!(change("[]", "[]").difference(), "");
    }

    #[test]
    fn what_will_happen_is_said_entry_by_entry() {
        let old = r#"[{"path": "/same", "topic": "t"}, {"path": "/gone", "topic": "t"},
            {"path": "/moved", "topic": "t"}, {"name": "n", "path": "/n1", "topic": "t"},
            {"path": "/swap", "topic": "t", "filter": "one"}, {"path": "/bare", "topic": "t"},
            {"path": "/breaks", "topic": "t"}]"#;
        let new = r#"[{"topic": "t", "path": "/same"}, {"path": "/moved", "topic": "other"},
            {"name": "n", "path": "/n2", "topic": "t"}, {"path": "/swap", "topic": "t", "filter": "two"},
            {"path": "/bare", "topic": "t", "filter": "one"}, {"path": "/breaks", "topic": "no/topic"},
            {"path": "/new\u001b", "topic": "t"}, {"path": "/new", "topic": "t"}]"#;
        let effects = change(old, new).effects();
        let said = effects.to_string();
        let expected = "\
starts    /new: /new to topic t
stops     /gone: its offsets are kept for 7 days
stops     /breaks: its offsets are kept for 7 days
swaps     /swap: filter two in place of one
swaps     /bare: gets the filter one
restarts  /moved: goes on from its offsets, with the new options
restarts  n: reads /n2 in place of /n1
refused   /breaks: ";
        assert!(said.starts_with(expected), "{said}");
        assert!(said.contains("\nrefused   /new\\u{1b}: "), "{said}");
        assert!(said.ends_with("\n1 entry goes on untouched\n"), "{said}");
        assert_eq!(effects.short(), "starts 1, stops 2, swaps 2, restarts 2, refused 2");
        assert_eq!(change(old, old).effects().short(), "no entry changes");
    }
}
