//! A section of a TOML file, read key by key. Whatever is wrong is noted with its line and column,
//! and reading goes on, so that all problems are known at once.

use std::cell::RefCell;
use std::fmt::Display;

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};

use super::typed::At;
use super::{line_and_column, size};
use crate::model::Problem;

/// How alike two words must be for one to be taken as a slip of the other.
const LIKENESS_MIN: f64 = 0.75;

/// The one of `words` that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &&str| strsim::normalized_damerau_levenshtein(&word.to_lowercase(), other);
    words
        .into_iter()
        .filter(|w| likeness(w) >= LIKENESS_MIN)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// The text, and what was found wrong in it so far.
pub(super) struct Document<'t> {
    pub(super) file: &'t str,
    pub(super) text: &'t str,
    pub(super) problems: RefCell<Vec<(usize, Problem)>>,
}

impl Document<'_> {
    /// `weir.toml:3:10`.
    pub(super) fn at(&self, offset: usize) -> String {
        let (line, column) = line_and_column(self.text.get(..offset).unwrap_or(self.text));
        format!("{}:{line}:{column}", self.file)
    }

    pub(super) fn problem(&self, offset: usize, key: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let place = format!("{}: {key}", self.at(offset));
        self.problems.borrow_mut().push((offset, Problem::new(place, cause, fix)));
    }

    /// In the order of the text.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(offset, _)| *offset);
        problems.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// A table. What nobody asked it for by [`Section::end`] is an unknown key.
pub(super) struct Section<'d, 't> {
    doc: &'d Document<'t>,
    /// `kafka.properties`; empty for the whole file.
    name: String,
    table: DeTable<'t>,
    asked: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    pub(super) fn new(doc: &'d Document<'t>, name: String, table: DeTable<'t>) -> Self {
        Self { doc, name, table, asked: Vec::new() }
    }

    /// Every key that nobody asked for is a problem.
    pub(super) fn end(self) {
        for (key, value) in &self.table {
            let section = self.name.is_empty() && value.get_ref().is_table();
            let dress = |key: &str| if section { format!("[{key}]") } else { format!("{key:?}") };
            let fix = match nearest(key.get_ref(), self.asked.iter().copied()) {
                Some(near) => format!("did you mean {}?", dress(near)),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            let cause = if section { "unknown section" } else { "unknown key" };
            self.doc.problem(key.span().start, &self.path(key.get_ref()), cause, fix);
        }
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<At<String>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.doc.problem(
                    value.span().start,
                    &self.path(key),
                    "empty",
                    "write a value, or delete the line",
                );
                None
            }
            DeValue::String(text) => Some(self.found(&value, key, text.to_string())),
            _ => self.wrong(&value, key, "text", &format!("write {key} = \"…\"")),
        }
    }

    /// Text that is something else, such as a duration; `example` shows one.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let value = self.take(key)?;
        let fix = format!("write {key} = {example}");
        let DeValue::String(text) = value.get_ref() else {
            return self.wrong(&value, key, "text in quotes", &fix);
        };
        match parse(text) {
            Ok(parsed) => Some(self.found(&value, key, parsed)),
            Err(error) => {
                self.doc.problem(value.span().start, &self.path(key), format!("{text:?}: {error}"), fix);
                None
            }
        }
    }

    /// Bytes: `"64MiB"`, or a plain number.
    pub(super) fn size(&mut self, key: &'static str) -> Option<At<u64>> {
        if self.table.get(key).is_some_and(|value| value.get_ref().is_integer()) {
            return self.count(key);
        }
        self.parsed(key, "\"64MiB\"", size::parse)
    }

    pub(super) fn count(&mut self, key: &'static str) -> Option<At<u64>> {
        let value = self.take(key)?;
        let number =
            value.get_ref().as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok());
        match number {
            Some(number) => Some(self.found(&value, key, number)),
            None => self.wrong(&value, key, "a number from 0 up", &format!("write {key} = 1000")),
        }
    }

    pub(super) fn yes_or_no(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(*yes),
            _ => self.wrong(&value, key, "true or false", &format!("write {key} = true")),
        }
    }

    /// An array of texts, or one text; `commas` separate values within it.
    pub(super) fn list(&mut self, key: &'static str, commas: bool) -> Option<At<Vec<At<String>>>> {
        let value = self.take(key)?;
        let mut list = Vec::new();
        let one = std::slice::from_ref(&value);
        for item in value.get_ref().as_array().map_or(one, |items| items) {
            let Some(text) = item.get_ref().as_str() else {
                return self.wrong(
                    item,
                    key,
                    "text, or an array of texts",
                    &format!("write {key} = [\"…\"]"),
                );
            };
            let parts: Vec<_> = if commas { text.split(',').collect() } else { vec![text] };
            list.extend(parts.into_iter().map(|part| self.found(item, key, part.trim().to_string())));
        }
        Some(self.found(&value, key, list))
    }

    pub(super) fn section(&mut self, key: &'static str) -> Option<At<Section<'d, 't>>> {
        let place = self.table.get_key_value(key).map(|(typed, _)| typed.span().start);
        let (value, place) = (self.take(key)?, place?);
        if !value.get_ref().is_table() {
            return self.wrong(
                &value,
                key,
                "a section",
                &format!("write [{}] and its keys below it", self.path(key)),
            );
        }
        let DeValue::Table(table) = value.into_inner() else { return None };
        let name = self.path(key);
        let place = format!("{}: [{name}]", self.doc.at(place));
        Some(At::new(Self::new(self.doc, name, table), place))
    }

    /// All of it as text, nested tables with their names joined by dots: a dotted name needs no
    /// quotes.
    pub(super) fn flat(self) -> Vec<(String, At<String>)> {
        let mut flat = Vec::new();
        let mut tables = vec![(String::new(), self.table)];
        while let Some((prefix, table)) = tables.pop() {
            for (key, value) in table {
                let name = format!("{prefix}{}", key.get_ref());
                let place = format!("{}: {}", self.doc.at(key.span().start), path(&self.name, &name));
                let text = match value.into_inner() {
                    DeValue::Table(table) => {
                        tables.push((format!("{name}."), table));
                        continue;
                    }
                    DeValue::String(text) => text.to_string(),
                    DeValue::Integer(number) => number.to_string(),
                    DeValue::Float(number) => number.to_string(),
                    DeValue::Boolean(yes) => yes.to_string(),
                    other @ (DeValue::Datetime(_) | DeValue::Array(_)) => {
                        let cause = format!("{}, where text belongs", kind(&other));
                        let problem = Problem::new(place, cause, format!("write {name} = \"…\""));
                        self.doc.problems.borrow_mut().push((key.span().start, problem));
                        continue;
                    }
                };
                flat.push((name, At::new(text, place)));
            }
        }
        flat
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.asked.push(key);
        self.table.remove(key)
    }

    fn found<T>(&self, value: &Spanned<DeValue<'_>>, key: &str, found: T) -> At<T> {
        At::new(found, format!("{}: {}", self.doc.at(value.span().start), self.path(key)))
    }

    fn wrong<T>(&self, value: &Spanned<DeValue<'_>>, key: &str, want: &str, fix: &str) -> Option<T> {
        let cause = format!("{}, where {want} belongs", kind(value.get_ref()));
        self.doc.problem(value.span().start, &self.path(key), cause, fix);
        None
    }

    fn path(&self, key: &str) -> String {
        path(&self.name, key)
    }
}

fn path(section: &str, key: &str) -> String {
    if section.is_empty() { key.into() } else { format!("{section}.{key}") }
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(yes) => format!("{yes}"),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
