//! The collect list as it is typed: JSON values with names, nothing checked.
//!
//! In: one JSON object and the place where it stands. Out: a raw struct, or the member that does
//! not fit. The shipped JSON Schema is made from these types. Absent by design: what the values mean.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// One thing to collect.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Entry")]
pub(super) struct RawEntry {
    /// Unique over all lists of a host; offsets belong to it. Default: the path.
    pub(super) name: Option<String>,
    /// An absolute path, or a glob: `*`, `?`, `[ab]`, `{a,b}`, and `**` for any directories.
    #[schemars(required)]
    pub(super) path: Option<String>,
    /// Globs of files to leave out, matched against the whole path and against the file name.
    pub(super) exclude: Option<Vec<String>>,
    /// The Kafka topic.
    #[schemars(required)]
    pub(super) topic: Option<String>,
    /// The module that the lines pass through: its name, or an object.
    #[schemars(with = "Option<FilterForm>")]
    pub(super) filter: Option<Box<RawValue>>,
    /// Where files begin that are there when the entry is first applied. Default: `end`.
    pub(super) start_at: Option<RawStartAt>,
    /// `file`: one partition a file, order kept (default). `spread`: any partition.
    pub(super) partition: Option<RawPartition>,
    /// The key of each record. Default: `none`.
    pub(super) key: Option<RawKey>,
    /// The longest line: 16 B to 1023 KiB. Default: 256 KiB.
    pub(super) line_bytes_max: Option<RawBytes>,
    /// What happens to a longer line. Default: `split`.
    pub(super) long_line: Option<RawLongLine>,
    /// At most so many bytes a second are read; at least 1 KiB. Default: no limit.
    pub(super) read_bytes_per_second: Option<RawBytes>,
    /// Whether empty lines are left out. Default: true.
    pub(super) skip_empty: Option<bool>,
    /// Up to 16 texts of at most 256 bytes; names of 1 to 63 of `a-z0-9_.-`. They travel with `headers`.
    #[schemars(extend("maxProperties" = 16, "propertyNames" = {"pattern": "^[a-z0-9_.-]{1,63}$"}))]
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// Whether each record has the headers `host`, `path`, `offset` and the labels. Default: false.
    pub(super) headers: Option<bool>,
    /// Joins lines to records: a stack trace, a statement of several lines. Not with `pack`.
    #[schemars(with = "Option<RawMultiline>")]
    pub(super) multiline: Option<Box<RawValue>>,
    /// How characters are written in the files, such as `gbk`, `utf-16le` or `latin1`: what is sent is
    /// UTF-8. Default: bytes are sent as they are.
    pub(super) encoding: Option<String>,
    /// Lines that stand together travel as one record of up to so many bytes, a newline between them:
    /// 1 KiB to 256 KiB. Default: a record a line.
    pub(super) pack: Option<RawBytes>,
}

/// Which lines are one record.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Multiline")]
pub(super) struct RawMultiline {
    /// A regular expression that finds something in each line that begins a record, and in no other.
    #[schemars(required)]
    pub(super) start: Option<String>,
    /// At most so many lines are joined. Default: 500.
    #[schemars(range(min = 2, max = 10_000))]
    pub(super) max_lines: Option<u64>,
    /// A record that nothing followed for so many milliseconds is sent. Default: 1000.
    #[schemars(range(min = 10, max = 600_000))]
    pub(super) flush_ms: Option<u64>,
}

/// A filter with its options.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Filter")]
pub(super) struct RawFilter {
    /// A tag of the module store, `sha256:<hex>`, or, in a local list, a file: a path with `/`, or
    /// ending in `.wasm`.
    #[schemars(required)]
    pub(super) module: Option<String>,
    /// Any JSON value; the module is given its bytes.
    #[schemars(with = "Option<serde_json::Value>")]
    pub(super) config: Option<Box<RawValue>>,
    /// What happens to a line that the filter fails on. Default: `quarantine`.
    pub(super) on_error: Option<RawOnError>,
    /// CPU time that a batch of lines may take. Default: 100.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) timeout_ms: Option<u64>,
    /// Memory that an instance may take: 1 MiB to 1 GiB. Default: 32 MiB.
    pub(super) memory: Option<RawBytes>,
    /// A second module that sees the same lines: what it would make of them is compared and counted,
    /// never sent. Its name, or an object.
    #[schemars(with = "Option<ShadowForm>")]
    pub(super) shadow: Option<Box<RawValue>>,
    /// Percent of the hosts that adopt a change of module, config or limits; by a hash of host and
    /// entry name, so that a larger share has the hosts of a smaller one. Default: 100.
    #[schemars(range(max = 100))]
    pub(super) rollout: Option<u64>,
}

/// A shadow with a config of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Shadow")]
pub(super) struct RawShadow {
    /// As in `filter`.
    #[schemars(required)]
    pub(super) module: Option<String>,
    /// Default: the config of the filter.
    #[schemars(with = "Option<serde_json::Value>")]
    pub(super) config: Option<Box<RawValue>>,
}

/// The two ways to write a shadow; for the schema only.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ShadowForm {
    /// Only the module.
    Module(String),
    /// With a config of its own.
    Options(RawShadow),
}

/// The two ways to write a filter; for the schema only.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum FilterForm {
    /// Only the module.
    Module(String),
    /// With options.
    Options(RawFilter),
}

/// A number of bytes, or text such as `64KiB`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of bytes, or text such as \"64KiB\"")]
#[schemars(rename = "Bytes")]
pub(super) enum RawBytes {
    Number(u64),
    Text(#[schemars(regex(pattern = r"^[0-9]+ ?(B|KiB|MiB|GiB)?$"))] String),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "StartAt")]
pub(super) enum RawStartAt {
    End,
    Beginning,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Partition")]
pub(super) enum RawPartition {
    File,
    Spread,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Key")]
pub(super) enum RawKey {
    None,
    Path,
    Host,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "LongLine")]
pub(super) enum RawLongLine {
    Split,
    Truncate,
    Quarantine,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OnError")]
pub(super) enum RawOnError {
    /// Set aside on the host.
    Quarantine,
    /// Sent as it was read.
    Pass,
    /// Dropped and counted.
    Drop,
    /// The entry stops before the line until module or config change.
    Hold,
    /// Sent as it was read to this topic.
    DeadLetter(String),
}

/// One member of an object.
#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    /// The name as somebody typed it.
    pub(super) typed: String,
    /// The name as weir knows it: in lower case, older spellings replaced.
    pub(super) name: String,
    /// The value's bytes.
    pub(super) value: &'a RawValue,
}

/// What does not fit.
#[derive(Debug)]
pub(super) struct Misfit<'a> {
    /// The name as it was typed; empty for the object as a whole.
    pub(super) typed: String,
    /// Where the member begins, where there is one.
    pub(super) value: Option<&'a RawValue>,
    /// Why.
    pub(super) error: serde_json::Error,
}

/// Spellings of older lists.
const ALIASES: [(&str, &str); 2] = [("log_path", "path"), ("filepath", "path")];

/// The members of an object in their order, names without case.
pub(super) struct Members<'a>(pub(super) Vec<Member<'a>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((typed, value)) = map.next_entry::<String, &'de RawValue>()? {
                    let lower = typed.to_lowercase();
                    let name = ALIASES.iter().find(|(old, _)| *old == lower).map(|(_, new)| (*new).into());
                    members.push(Member { name: name.unwrap_or(lower), typed, value });
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'a> Members<'a> {
    /// The text of a member that is a string, for naming an entry that is refused.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.value(name)?.get()).ok()
    }

    /// The value of a member.
    pub(super) fn value(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|member| member.name == name).map(|member| member.value)
    }

    /// The members as `T`, or the one that does not fit. Names that `T` lacks are passed over.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Misfit<'a>> {
        read_members(&self.0).map_err(|error| {
            let alone = |member: &&Member<'a>| read_members::<T>(std::slice::from_ref(member)).is_err();
            match self.0.iter().find(alone) {
                Some(member) => {
                    let error = read_members::<T>(std::slice::from_ref(member)).err().unwrap_or(error);
                    Misfit { typed: member.typed.clone(), value: Some(member.value), error }
                }
                None => self.twice(error),
            }
        })
    }

    /// Every member fits alone, so one stands there twice.
    fn twice(&self, error: serde_json::Error) -> Misfit<'a> {
        let again = self.0.iter().enumerate().find(|(i, m)| self.0[..*i].iter().any(|e| e.name == m.name));
        match again {
            Some((_, member)) => Misfit {
                typed: member.typed.clone(),
                value: Some(member.value),
                error: serde_json::Error::custom(format!("`{}` is given twice", member.name)),
            },
            None => Misfit { typed: String::new(), value: None, error },
        }
    }
}

fn read_members<T: DeserializeOwned>(members: &[Member<'_>]) -> Result<T, serde_json::Error> {
    T::deserialize(MapDeserializer::new(members.iter().map(|member| (member.name.as_str(), member.value))))
}

/// The names that `T` has.
pub(super) fn names_of<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T);
    let properties = schema.get("properties").and_then(|p| p.as_object());
    properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

/// The JSON Schema of a collect list.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Vec<RawEntry>);
    schema.insert("title".into(), "weir collect list".into());
    schema.insert("description".into(), "What a host's agent follows, and where the lines go".into());
    schema.to_value()
}
