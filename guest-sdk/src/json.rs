//! Fields of lines that are JSON objects.
//!
//! Values are not looked into unless asked: they stay the text that stands in the line, so that no
//! number and no escape changes on its way through.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
pub use serde_json::value::RawValue;

use crate::{Output, Result};

/// The value of the field `name`, without any allocation, if `line` is a JSON object that has it;
/// of equal names the first.
///
/// ```
/// use weir_guest::{Verdict, json};
///
/// fn drop_debug(line: &[u8]) -> Verdict<'_> {
///     let level = json::field(line, "level").map(|level| level.get());
///     (level != Some("\"debug\"")).into()
/// }
///
/// assert_eq!(drop_debug(br#"{"level": "debug"}"#), Verdict::Drop);
/// assert_eq!(drop_debug(br#"{"level": "info"}"#), Verdict::Keep);
/// ```
pub fn field<'a>(line: &'a [u8], name: &str) -> Option<&'a RawValue> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let found = deserializer.deserialize_map(Wanted(name)).ok()?;
    deserializer.end().ok().and(found)
}

/// Looks for one field.
struct Wanted<'n>(&'n str);

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key()? {
            if found.is_none() && name == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A JSON object: its fields in their order.
///
/// ```
/// use weir_guest::json::Object;
/// use weir_guest::{Output, Result, Verdict};
///
/// fn tidy(line: &[u8], out: &mut Output) -> Result<Verdict<'static>> {
///     let mut fields = Object::parse(line)?;
///     if fields.str("level").as_deref() == Some("debug") {
///         return Ok(Verdict::Drop);
///     }
///     fields.remove("password");
///     fields.rename("msg", "message");
///     fields.set("bytes", &line.len())?;
///     fields.write(out);
///     Ok(Verdict::Written)
/// }
/// # use weir_guest::{Context, Filter, testing::{Fate, run}};
/// # struct Tidy;
/// # impl Filter for Tidy {
/// #     fn init(_: &Context, _: &[u8]) -> Result<Self> { Ok(Self) }
/// #     fn line(&mut self, line: &[u8], out: &mut Output) -> Verdict<'_> { tidy(line, out).into() }
/// # }
/// # let lines = [r#"{"msg":"a","password":"b","t":1.50}"#, r#"{"level":"debug"}"#, "no JSON"];
/// # let fates = run::<Tidy>("", lines).unwrap().fates;
/// # let tidied = Fate::replaced([r#"{"message":"a","t":1.50,"bytes":35}"#]);
/// # assert_eq!(fates, [tidied, Fate::Dropped, Fate::SetAside]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Object<'a> {
    fields: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
}

impl<'a> Object<'a> {
    /// Reads a line that is one JSON object. The error says where it is none.
    pub fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }

    /// The value of a field as it stands in the line; of equal names the first.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The value of a field that is a string, borrowed where it has no escapes.
    pub fn str(&self, name: &str) -> Option<Cow<'_, str>> {
        serde_json::from_str::<Name<'_>>(self.get(name)?.get()).ok().map(|Name(text)| text)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.fields.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Keeps those fields that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &RawValue) -> bool) {
        self.fields.retain(|(name, value)| keep(name, value));
    }

    /// Removes a field; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.fields.len();
        self.retain(|known, _| known != name);
        self.fields.len() < before
    }

    /// Gives a field another name, at its place; says whether there was one.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let mut found = false;
        self.rename_each(|name| {
            let hit = name == from;
            found |= hit;
            hit.then_some(to)
        });
        found
    }

    /// Gives each field the name that `to` says, if it says one: all at once, so that names can
    /// be swapped.
    pub fn rename_each<'n>(&mut self, mut to: impl FnMut(&str) -> Option<&'n str>) {
        for (name, _) in &mut self.fields {
            if let Some(new) = to(name) {
                *name = Cow::Owned(new.to_owned());
            }
        }
    }

    /// Sets a field, at its place or at the end. An error is one of `value`'s own.
    pub fn set<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), serde_json::Error> {
        let value = Cow::Owned(serde_json::value::to_raw_value(value)?);
        match self.fields.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.fields.push((Cow::Owned(name.to_owned()), value)),
        }
        Ok(())
    }

    /// Writes the object as one line; the verdict is then [`Verdict::Written`](crate::Verdict).
    pub fn write(&self, out: &mut Output) {
        let mut before: &[u8] = b"{";
        for (name, value) in self.iter() {
            // A replacement is in memory: writing to it does not fail, nor does a string as JSON.
            let _ = out.write_all(before);
            let _ = serde_json::to_writer(&mut *out, name);
            let _ = out.write_all(b":");
            let _ = out.write_all(value.get().as_bytes());
            before = b",";
        }
        out.line(if self.fields.is_empty() { b"{}" } else { b"}" });
    }
}

/// A string, borrowed from the line unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a, 'de: 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    fields.push((name, Cow::Borrowed(value)));
                }
                Ok(Object { fields })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_escapes_are_understood_and_values_stay_as_they_stand() {
        let object = Object::parse(br#" { "a\"b" : 1.50, "c" : "\u00e9" } "#).unwrap();
        assert_eq!(object.get("a\"b").unwrap().get(), "1.50");
        assert_eq!(object.str("c").unwrap(), "é");
        assert_eq!(object.str("a\"b"), None);
        assert_eq!(field(br#"{"a\"b": [1, 2] }"#, "a\"b").unwrap().get(), "[1, 2]");
    }

    #[test]
    fn what_is_no_object_is_none() {
        for line in ["", "text", "[1]", r#"{"a":1"#, r#"{"a":1} x"#, r#"{"a":1,}"#] {
            assert!(Object::parse(line.as_bytes()).is_err(), "{line}");
            assert!(field(line.as_bytes(), "a").is_none(), "{line}");
        }
    }

    #[test]
    fn a_field_is_set_where_it_stands_and_of_equal_names_the_first_counts() {
        let mut object = Object::parse(br#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(object.get("a").unwrap().get(), "1");
        object.set("a", "x").unwrap();
        object.set("c", &[1]).unwrap();
        let fields: Vec<_> = object.iter().map(|(name, value)| (name, value.get())).collect();
        assert_eq!(fields, [("a", r#""x""#), ("b", "2"), ("a", "3"), ("c", "[1]")]);
        assert!(object.remove("a") && !object.remove("a"), "all of that name");
        assert!(object.rename("b", "bb") && !object.rename("b", "bb"));
    }
}
