//! The collect list: JSON text becomes checked entries.
//!
//! In: the bytes of one key or file, and which it is. Out: a [`List`]: each entry checked or refused
//! with the reason, or one [`Problem`] where the text is no list at all. Nothing here reads a file
//! or asks etcd. Absent by design: what the host allows (that is the policy's), several keys (that
//! is `kept`'s).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::Refused;
use crate::model::{Entry, EntryName, Problem};

mod check;
pub mod envelope;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod raw;

pub(super) use check::check_tag;
pub use raw::schema;

/// Where a list stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A key in etcd. Module files mean nothing there.
    Key(String),
    /// A file on this host. Module files are relative to its directory.
    File(PathBuf),
    /// The settings themselves, in the older INI form.
    Settings,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "etcd key {key}"),
            Self::File(path) => path.display().fmt(f),
            Self::Settings => f.write_str("settings"),
        }
    }
}

impl Origin {
    /// The directory that module files are relative to; `None` where a list may not name any.
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path.parent().unwrap_or(Path::new(""))),
            Self::Key(_) | Self::Settings => None,
        }
    }
}

/// A text that is a list, entry by entry. Names are unique among the good entries.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// All entries, in their order.
    pub items: Vec<Item>,
    /// What is odd but stops nothing: unknown names.
    pub problems: Vec<Problem>,
}

/// One entry of a list.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its JSON, as it was typed.
    pub text: String,
    /// Checked, or refused.
    pub checked: Result<Arc<Entry>, Refused>,
}

impl Item {
    /// The entry's name; `#3` where a refused one has neither name nor path.
    pub fn name(&self) -> &str {
        match &self.checked {
            Ok(entry) => entry.name.as_str(),
            Err(refused) => &refused.name,
        }
    }
}

/// Reads the list in `text`. An error means that it is no list; what runs should stay.
pub fn parse(text: &[u8], origin: &Origin) -> Result<List, Problem> {
    let document = Document::new(text, origin)?;
    let raws = document.entries()?;
    let mut names = Names::default();
    let mut unknown = Unknown::default();
    let items = raws
        .into_iter()
        .enumerate()
        .map(|(i, raw)| item(&document, i + 1, raw, &mut names, &mut unknown))
        .collect();
    Ok(List { items, problems: unknown.problems() })
}

fn item(
    document: &Document<'_>,
    number: usize,
    raw: &RawValue,
    names: &mut Names,
    unknown: &mut Unknown,
) -> Item {
    let text = raw.get().to_string();
    let members: raw::Members<'_> = match serde_json::from_str(raw.get()) {
        Ok(members) => members,
        Err(error) => {
            let entry = format!("entry #{number}");
            let fix = r#"an entry is an object such as {"path": "/var/log/app.log", "topic": "app"}"#;
            let problem = Problem::new(document.place(raw, &entry), message(&error), fix);
            let (path, topic) = (String::new(), String::new());
            return Item { text, checked: Err(Refused { name: format!("#{number}"), path, topic, problem }) };
        }
    };
    let member = |name| members.text(name).unwrap_or_default();
    let (path, topic) = (member("path"), member("topic"));
    let name = names.name(members.text("name"), &path, &topic).unwrap_or_else(|| format!("#{number}"));
    let entry = format!("entry #{number} ({name})");
    unknown.note(&members, || document.place(raw, &entry));
    let checked = names
        .take(&name, number)
        .and_then(|()| check::entry(&members, EntryName(name.as_str().into()), document.origin));
    let checked = checked.map(Arc::new).map_err(|fault| {
        let at = fault.value.or_else(|| members.value(fault.field.split('.').next().unwrap_or_default()));
        let field = if fault.field.is_empty() { entry } else { format!("{entry}, `{}`", fault.field) };
        let problem = Problem::new(document.place(at.unwrap_or(raw), &field), fault.cause, fault.fix);
        Refused { name, path, topic, problem }
    });
    Item { text, checked }
}

/// Something in an entry that cannot stay so.
#[derive(Debug)]
struct Fault<'a> {
    /// `topic`, `filter.memory`; empty for the entry as a whole.
    field: String,
    /// Where exactly, if known.
    value: Option<&'a RawValue>,
    cause: String,
    fix: String,
}

impl Fault<'_> {
    fn new(field: &str, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { field: field.into(), value: None, cause: cause.into(), fix: fix.into() }
    }
}

/// The names of one list. A refused entry has its name too, so that mending it renames no other.
#[derive(Default)]
struct Names {
    unnamed_paths: HashSet<String>,
    taken: HashMap<String, usize>,
}

impl Names {
    fn name(&mut self, given: Option<String>, path: &str, topic: &str) -> Option<String> {
        match given {
            Some(name) => Some(name),
            None if path.is_empty() => None,
            None if self.unnamed_paths.insert(path.into()) => Some(path.into()),
            None => Some(format!("{path}@{topic}")),
        }
    }

    fn take<'a>(&mut self, name: &str, number: usize) -> Result<(), Fault<'a>> {
        if let Some(first) = self.taken.get(name) {
            let cause = format!("entry #{first} is already called `{name}`");
            return Err(Fault::new("name", cause, "give each entry a `name` of its own"));
        }
        self.taken.insert(name.into(), number);
        Ok(())
    }
}

/// Names that no entry has: each is reported once, with the first place and how often.
#[derive(Default)]
struct Unknown(Vec<(String, Problem, usize)>);

impl Unknown {
    fn note(&mut self, members: &raw::Members<'_>, place: impl Fn() -> String) {
        for (typed, fix) in check::unknown_names(members) {
            match self.0.iter_mut().find(|(known, ..)| *known == typed) {
                Some((.., count)) => *count += 1,
                None => {
                    let cause = format!("weir does not know `{typed}` and ignores it");
                    self.0.push((typed, Problem::new(place(), cause, fix), 1));
                }
            }
        }
    }

    fn problems(self) -> Vec<Problem> {
        let told = |(_, mut problem, count): (String, Problem, usize)| {
            if count > 1 {
                problem.cause.push_str(&format!(" ({count} entries)"));
            }
            problem
        };
        self.0.into_iter().map(told).collect()
    }
}

/// The text of a list, and where things stand in it.
struct Document<'a> {
    text: &'a str,
    origin: &'a Origin,
}

impl<'a> Document<'a> {
    fn new(text: &'a [u8], origin: &'a Origin) -> Result<Self, Problem> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let document = |text| Self { text, origin };
        match std::str::from_utf8(text) {
            Ok(text) => Ok(document(text)),
            Err(error) => {
                let good = String::from_utf8_lossy(&text[..error.valid_up_to()]);
                let place = Document { text: &good, origin }.place_at(good.len());
                Err(Problem::new(place, "a byte that is not UTF-8", "write the list as UTF-8"))
            }
        }
    }

    /// The entries of a plain list, or of a signed one.
    fn entries(&self) -> Result<Vec<&'a RawValue>, Problem> {
        // Of a signed one a part of the same text, so that places stay right.
        let array = Self { text: envelope::array(self.text), origin: self.origin };
        serde_json::from_str(array.text).map_err(|error| array.broken(&error))
    }

    fn broken(&self, error: &serde_json::Error) -> Problem {
        let place = self.place_of(error);
        if self.text.trim().is_empty() {
            return Problem::new(place, "there is no text", "write [] to collect nothing");
        }
        let fix = match error.classify() {
            serde_json::error::Category::Data => {
                r#"a collect list is an array such as [{"path": "/var/log/app.log", "topic": "app"}]"#
            }
            _ => "mend the JSON",
        };
        Problem::new(place, message(error), fix)
    }

    /// serde_json counts bytes, and none before the first one.
    fn place_of(&self, error: &serde_json::Error) -> String {
        let line = self.text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        let before = line.floor_char_boundary(error.column().saturating_sub(1));
        self.line_column(error.line(), line[..before].chars().count() + 1)
    }

    /// `raw` must be a part of the text.
    fn place(&self, raw: &RawValue, what: &str) -> String {
        let offset = (raw.get().as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        format!("{}, {what}", self.place_at(offset))
    }

    fn place_at(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        self.line_column(before.matches('\n').count() + 1, line.chars().count() + 1)
    }

    fn line_column(&self, line: usize, column: usize) -> String {
        match self.origin {
            Origin::File(path) => format!("{}:{line}:{column}", path.display()),
            Origin::Key(_) => format!("{}, line {line}, column {column}", self.origin),
            Origin::Settings => self.origin.to_string(),
        }
    }
}

/// What serde_json says, without the position: that stands in the place.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).unwrap_or(&text).to_string()
}

#[cfg(test)]
mod tests;
