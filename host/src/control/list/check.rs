//! What the members of an entry mean, and which of them cannot be meant.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use encoding_rs::{Encoding, ISO_2022_JP, REPLACEMENT};
use globset::GlobBuilder;
use serde_json::value::RawValue;

use super::raw::{
    Member, Members, Misfit, RawBytes, RawEntry, RawFilter, RawKey, RawLongLine, RawMultiline, RawOnError,
    RawPartition, RawShadow, RawStartAt, names_of,
};
use super::{Fault, Origin, message};
use crate::model::{
    Digest, Entry, EntryName, FILTER_MEMORY, FILTER_TIMEOUT, FilterSpec, LINE_BYTES_MAX, LineStart, LongLine,
    ModuleRef, Multiline, OnError, Partition, RecordKey, ShadowSpec, StartAt, Topic,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Bytes. Below this a line would become a record a word.
const LINE_BYTES_LEAST: u64 = 16;
/// Bytes. Kafka's `message.max.bytes` is 1 MiB by default; 1 KiB of it is for the record's frame.
const LINE_BYTES_MOST: u64 = MIB - KIB;
/// Bytes a second. A lower rate never reads one chunk in sensible time.
const READ_RATE_LEAST: u64 = KIB;
/// Milliseconds. A batch that takes longer holds up a stop (10 s by default).
const TIMEOUT_MS_MOST: u64 = 10_000;
/// Bytes. A guest's stack alone takes 1 MiB.
const MEMORY_LEAST: u64 = MIB;
/// Bytes. More than all filters of a host may have by default (256 MiB), with room for large hosts.
const MEMORY_MOST: u64 = GIB;
/// Bytes. Linux's PATH_MAX.
const PATH_BYTES_MOST: usize = 4096;
/// Bytes. The longest default name is `path@topic`; names are labels of metrics.
const NAME_BYTES_MOST: usize = PATH_BYTES_MOST + 250;
/// Bytes.
const TAG_BYTES_MOST: usize = 128;

/// Of one entry.
const LABELS_MOST: usize = 16;
/// Bytes, of a label's name and of its value.
const LABEL_BYTES_MOST: (usize, usize) = (63, 256);
/// Headers that are no labels.
const HEADERS: [&str; 3] = ["host", "path", "offset"];
/// Bytes. What headers may take of a record: the labels, a path, a host.
const HEADER_BYTES_MOST: u64 = 16 * KIB;
/// Bytes. Smaller ones would hold a line or two; larger ones than what is read at once are never filled.
const PACK_BYTES: std::ops::RangeInclusive<u64> = KIB..=256 * KIB;

/// Bytes, of a regular expression.
const START_BYTES_MOST: usize = 1024;
/// Lines of one record, and how many where it is not said.
const RECORD_LINES: (std::ops::RangeInclusive<u64>, u64) = (2..=10_000, 500);
/// Milliseconds that a record waits for more, and how many where it is not said.
const FLUSH_MS: (std::ops::RangeInclusive<u64>, u64) = (10..=600_000, 1000);

static ENTRY_NAMES: LazyLock<Vec<String>> = LazyLock::new(names_of::<RawEntry>);
static MULTILINE_NAMES: LazyLock<Vec<String>> = LazyLock::new(names_of::<RawMultiline>);
static FILTER_NAMES: LazyLock<Vec<String>> = LazyLock::new(names_of::<RawFilter>);
static SHADOW_NAMES: LazyLock<Vec<String>> = LazyLock::new(names_of::<RawShadow>);

/// The checked entry.
pub(super) fn entry<'a>(members: &Members<'a>, name: EntryName, origin: &Origin) -> Result<Entry, Fault<'a>> {
    let RawEntry {
        name: given,
        path: file,
        exclude,
        topic: to,
        filter: through,
        start_at,
        partition,
        key,
        line_bytes_max,
        long_line,
        read_bytes_per_second: rate,
        skip_empty,
        labels,
        headers,
        multiline: join,
        encoding: written,
        pack,
    } = members.read().map_err(|misfit| misfit_fault("", misfit))?;
    check_name(given.as_deref())?;
    let headers = headers.unwrap_or(false);
    let most = if headers { LINE_BYTES_MOST - HEADER_BYTES_MOST } else { LINE_BYTES_MOST };
    // A byte of the file becomes up to three.
    let most = if written.is_some() { most / 3 } else { most };
    if join.is_some() && pack.is_some() {
        let cause = "lines that `multiline` joined could not be told from those that `pack` puts together";
        return Err(Fault::new("pack", cause, "remove one of the two"));
    }
    let line_bytes = size("line_bytes_max", line_bytes_max, LINE_BYTES_LEAST..=most)?;
    Ok(Entry {
        name,
        path: path(file)?,
        exclude: exclude.unwrap_or_default().into_iter().map(glob).collect::<Result<_, _>>()?,
        topic: topic("topic", &to.ok_or_else(|| missing("topic", r#""topic": "app""#))?)?,
        filter: match through {
            Some(_) => Some(filter(members, origin)?),
            None => None,
        },
        start_at: start_at.map_or_else(StartAt::default, |at| match at {
            RawStartAt::End => StartAt::End,
            RawStartAt::Beginning => StartAt::Beginning,
        }),
        partition: partition.map_or_else(Partition::default, |partition| match partition {
            RawPartition::File => Partition::File,
            RawPartition::Spread => Partition::Spread,
        }),
        key: key.map_or_else(RecordKey::default, |key| match key {
            RawKey::None => RecordKey::None,
            RawKey::Path => RecordKey::Path,
            RawKey::Host => RecordKey::Host,
        }),
        line_bytes_max: line_bytes.map_or(LINE_BYTES_MAX, |bytes| bytes as u32),
        long_line: long_line.map_or_else(LongLine::default, |long| match long {
            RawLongLine::Split => LongLine::Split,
            RawLongLine::Truncate => LongLine::Truncate,
            RawLongLine::Quarantine => LongLine::Quarantine,
        }),
        read_bytes_per_second: size("read_bytes_per_second", rate, READ_RATE_LEAST..=u64::MAX)?,
        skip_empty: skip_empty.unwrap_or(true),
        labels: check_labels(labels.unwrap_or_default())?,
        headers,
        multiline: match join {
            Some(_) => Some(multiline(members)?),
            None => None,
        },
        encoding: written.map(|label| encoding(&label)).transpose()?,
        pack: size("pack", pack, PACK_BYTES)?.map(|bytes| bytes as u32),
    })
}

fn multiline<'a>(members: &Members<'a>) -> Result<Multiline, Fault<'a>> {
    let example = r#""multiline": {"start": "^[0-9]{4}-"}"#;
    let value = members.value("multiline").ok_or_else(|| missing("multiline", example))?;
    let members: Members<'a> = serde_json::from_str(value.get())
        .map_err(|_| Fault::new("multiline", "it is an object with `start`", format!("write {example}")))?;
    let RawMultiline { start, max_lines, flush_ms } =
        members.read().map_err(|misfit| misfit_fault("multiline.", misfit))?;
    let start = start.ok_or_else(|| missing("multiline.start", example))?;
    if start.is_empty() || start.len() > START_BYTES_MOST {
        let cause = format!("a regular expression has 1 to {START_BYTES_MOST} bytes here");
        return Err(Fault::new("multiline.start", cause, "change it"));
    }
    let begins = LineStart::new(&start).map_err(|cause| {
        Fault::new("multiline.start", format!("{start:?} is no regular expression: {cause}"), "mend it")
    })?;
    Ok(Multiline {
        start: begins,
        max_lines: number("multiline.max_lines", max_lines, RECORD_LINES)? as usize,
        flush: Duration::from_millis(number("multiline.flush_ms", flush_ms, FLUSH_MS)?),
    })
}

fn number<'a>(
    field: &str,
    given: Option<u64>,
    (range, default): (std::ops::RangeInclusive<u64>, u64),
) -> Result<u64, Fault<'a>> {
    let number = given.unwrap_or(default);
    if !range.contains(&number) {
        let cause = format!("{number} is not between {} and {}", range.start(), range.end());
        return Err(Fault::new(field, cause, "change it"));
    }
    Ok(number)
}

fn encoding<'a>(label: &str) -> Result<&'static Encoding, Fault<'a>> {
    let fault = |cause: String, fix: &str| Err(Fault::new("encoding", cause, fix));
    match Encoding::for_label(label.as_bytes()) {
        None => fault(
            format!("weir does not know the encoding {label:?}"),
            "write a label of the Encoding Standard, such as gbk, utf-16le, latin1 or shift_jis",
        ),
        Some(encoding) if encoding == ISO_2022_JP || encoding == REPLACEMENT => {
            fault(format!("files in {label:?} cannot be cut into lines"), "have them written in another one")
        }
        Some(encoding) => Ok(encoding),
    }
}

fn check_labels<'a>(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Fault<'a>> {
    if labels.len() > LABELS_MOST {
        let cause = format!("there are {} labels; an entry has at most {LABELS_MOST}", labels.len());
        return Err(Fault::new("labels", cause, "remove some"));
    }
    let (name_most, value_most) = LABEL_BYTES_MOST;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
    for (name, value) in &labels {
        let fault = |cause: String, fix: &str| Err(Fault::new("labels", cause, fix));
        if name.is_empty() || name.len() > name_most || !name.chars().all(fits) {
            let cause = format!("{name:?} cannot name a label");
            return fault(cause, "write 1 to 63 of `a-z`, `0-9`, `_`, `.` and `-`");
        }
        if HEADERS.contains(&name.as_str()) {
            return fault(format!("`{name}` is a header of every record"), "name the label otherwise");
        }
        if value.len() > value_most {
            let cause = format!("label `{name}` has {} bytes; at most {value_most} are taken", value.len());
            return fault(cause, "shorten it");
        }
    }
    Ok(labels)
}

/// Names that an entry or its filter does not have, each with what to do.
pub(super) fn unknown_names(members: &Members<'_>) -> Vec<(String, String)> {
    let mut found = unknown(&members.0, "", &ENTRY_NAMES);
    if let Some(filter) = object(members, "filter") {
        found.extend(unknown(&filter.0, "filter.", &FILTER_NAMES));
        if let Some(shadow) = object(&filter, "shadow") {
            found.extend(unknown(&shadow.0, "filter.shadow.", &SHADOW_NAMES));
        }
    }
    if let Some(multiline) = object(members, "multiline") {
        found.extend(unknown(&multiline.0, "multiline.", &MULTILINE_NAMES));
    }
    found
}

/// The members of a member that is an object.
fn object<'a>(members: &Members<'a>, name: &str) -> Option<Members<'a>> {
    serde_json::from_str(members.value(name)?.get()).ok()
}

fn unknown(members: &[Member<'_>], of: &str, known: &[String]) -> Vec<(String, String)> {
    let strange = |m: &&Member<'_>| !known.contains(&m.name);
    members
        .iter()
        .filter(strange)
        .map(|member| {
            let near = known.iter().find(|name| strsim::damerau_levenshtein(name, &member.name) <= 2);
            let fix = near.map_or("remove it".into(), |name| format!("did you mean `{of}{name}`?"));
            (format!("{of}{}", member.typed), fix)
        })
        .collect()
}

fn misfit_fault<'a>(of: &str, misfit: Misfit<'a>) -> Fault<'a> {
    Fault {
        field: format!("{of}{}", misfit.typed),
        value: misfit.value,
        cause: message(&misfit.error),
        fix: "the list's JSON Schema says what goes there".into(),
    }
}

fn missing<'a>(field: &str, example: &str) -> Fault<'a> {
    Fault::new("", format!("there is no `{field}`"), format!("add one, such as {example}"))
}

fn check_name<'a>(given: Option<&str>) -> Result<(), Fault<'a>> {
    let Some(name) = given else { return Ok(()) };
    if name.is_empty() || name.len() > NAME_BYTES_MOST || name.chars().any(char::is_control) {
        let cause = format!("a name has 1 to {NAME_BYTES_MOST} bytes and no control characters");
        return Err(Fault::new("name", cause, "change it, or leave it out to use the path"));
    }
    Ok(())
}

fn path<'a>(given: Option<String>) -> Result<String, Fault<'a>> {
    let path = given.ok_or_else(|| missing("path", r#""path": "/var/log/app.log""#))?;
    let fault = |cause: String, fix: &str| Err(Fault::new("path", cause, fix));
    if path.is_empty() {
        return fault("the path is empty".into(), r#"write one, such as "/var/log/app.log""#);
    }
    if !path.starts_with('/') {
        return fault(format!("{path:?} is relative"), "write the whole path, from `/`");
    }
    if path.split('/').any(|part| part == "..") {
        return fault(format!("{path:?} has `..` in it"), "write the path that it leads to");
    }
    if path.ends_with('/') {
        return fault(format!("{path:?} is a directory"), "name files, such as with `*.log` behind it");
    }
    if path.len() > PATH_BYTES_MOST || path.chars().any(char::is_control) {
        let cause = format!("a path has at most {PATH_BYTES_MOST} bytes and no control characters");
        return fault(cause, "change it");
    }
    check_glob("path", &path)?;
    Ok(path)
}

fn glob<'a>(pattern: String) -> Result<String, Fault<'a>> {
    if pattern.is_empty() {
        return Err(Fault::new("exclude", "a glob is empty", "remove it"));
    }
    check_glob("exclude", &pattern)?;
    Ok(pattern)
}

fn check_glob<'a>(field: &str, pattern: &str) -> Result<(), Fault<'a>> {
    let fix = "write a literal `[`, `{`, `*` or `?` as `[[]`, `[{]`, `[*]` or `[?]`";
    match GlobBuilder::new(pattern).literal_separator(true).build() {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(field, format!("{pattern:?} cannot be a glob: {}", error.kind()), fix)),
    }
}

fn topic<'a>(field: &str, name: &str) -> Result<Topic, Fault<'a>> {
    Topic::parse(name).map_err(|cause| Fault::new(field, cause, "change it"))
}

fn filter<'a>(members: &Members<'a>, origin: &Origin) -> Result<FilterSpec, Fault<'a>> {
    let Some(value) = members.value("filter") else {
        return Err(missing("filter", r#""filter": "redact""#));
    };
    let raw = match serde_json::from_str::<String>(value.get()) {
        Ok(module) => RawFilter { module: Some(module), ..RawFilter::default() },
        Err(_) => {
            let members: Members<'a> = serde_json::from_str(value.get()).map_err(|_| {
                Fault::new(
                    "filter",
                    "a filter is a module's name or an object",
                    r#"write "filter": "redact""#,
                )
            })?;
            members.read().map_err(|misfit| misfit_fault("filter.", misfit))?
        }
    };
    let RawFilter { module: named, config, on_error, timeout_ms, memory, shadow: second, rollout } = raw;
    let named = named.ok_or_else(|| missing("filter.module", r#""module": "redact""#))?;
    let config = config.map(|raw| raw.get().as_bytes().to_vec()).unwrap_or_default();
    if let Some(ms) = timeout_ms.filter(|ms| !(1..=TIMEOUT_MS_MOST).contains(ms)) {
        let cause = format!("{ms} ms is not between 1 and {TIMEOUT_MS_MOST}");
        return Err(Fault::new("filter.timeout_ms", cause, "change it"));
    }
    if let Some(percent) = rollout.filter(|percent| *percent > 100) {
        let cause = format!("{percent} percent is more than all hosts");
        return Err(Fault::new("filter.rollout", cause, "write 0 to 100"));
    }
    Ok(FilterSpec {
        module: module("filter.module", named, origin)?,
        shadow: second.map(|second| shadow(&second, &config, origin)).transpose()?,
        rollout: rollout.map_or(100, |percent| percent as u8),
        config,
        on_error: on_error.map_or(Ok(OnError::default()), |rule| match rule {
            RawOnError::Quarantine => Ok(OnError::Quarantine),
            RawOnError::Pass => Ok(OnError::Pass),
            RawOnError::Drop => Ok(OnError::Drop),
            RawOnError::Hold => Ok(OnError::Hold),
            RawOnError::DeadLetter(name) => topic("filter.on_error", &name).map(OnError::DeadLetter),
        })?,
        timeout: timeout_ms.map_or(FILTER_TIMEOUT, Duration::from_millis),
        memory: size("filter.memory", memory, MEMORY_LEAST..=MEMORY_MOST)?.unwrap_or(FILTER_MEMORY),
    })
}

fn shadow<'a>(value: &RawValue, config: &[u8], origin: &Origin) -> Result<ShadowSpec, Fault<'a>> {
    let fault = |cause: &str| Fault::new("filter.shadow", cause, r#"write "shadow": "redact""#);
    let raw = match serde_json::from_str::<String>(value.get()) {
        Ok(module) => RawShadow { module: Some(module), config: None },
        Err(_) => {
            let members: Result<Members<'_>, _> = serde_json::from_str(value.get());
            let members = members.map_err(|_| fault("a shadow is a module's name or an object"))?;
            members.read().map_err(|misfit| {
                let fix = "the list's JSON Schema says what goes there";
                Fault::new(&format!("filter.shadow.{}", misfit.typed), message(&misfit.error), fix)
            })?
        }
    };
    let named = raw.module.ok_or_else(|| fault("there is no `module`"))?;
    Ok(ShadowSpec {
        module: module("filter.shadow", named, origin)?,
        config: raw.config.map_or_else(|| config.to_vec(), |raw| raw.get().as_bytes().to_vec()),
    })
}

fn module<'a>(field: &str, named: String, origin: &Origin) -> Result<ModuleRef, Fault<'a>> {
    let fault = |cause: String, fix: &str| Err(Fault::new(field, cause, fix));
    if named.starts_with("sha256:") {
        return named.parse::<Digest>().map(ModuleRef::Digest).or_else(|cause| fault(cause, "change it"));
    }
    if named.contains('/') || named.ends_with(".wasm") {
        return match origin.directory() {
            Some(directory) => Ok(ModuleRef::File(directory.join(PathBuf::from(named)))),
            None => fault(
                format!("{named:?} is a file, and only a list in a local file can name one"),
                "push it with `weir module push FILE --tag NAME` and write the tag",
            ),
        };
    }
    match check_tag(&named) {
        Ok(()) => Ok(ModuleRef::Tag(named)),
        Err(cause) => fault(cause, "write a tag, `sha256:` and 64 hex digits, or a path with `/`"),
    }
}

/// A tag is 1 to 128 of `[a-zA-Z0-9._-]`, and no name of a file.
pub(crate) fn check_tag(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > TAG_BYTES_MOST || !name.chars().all(fits) || name.ends_with(".wasm") {
        return Err(format!(
            "{name:?} cannot be a tag: 1 to {TAG_BYTES_MOST} letters, digits, '.', '_' and '-', not ending in .wasm"
        ));
    }
    Ok(())
}

fn size<'a>(
    field: &str,
    given: Option<RawBytes>,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Fault<'a>> {
    let bytes = match given {
        None => return Ok(None),
        Some(RawBytes::Number(bytes)) => bytes,
        Some(RawBytes::Text(text)) => bytes_of(&text).ok_or_else(|| {
            Fault::new(
                field,
                format!("{text:?} is no size"),
                "write a number of bytes, or text such as \"64KiB\"",
            )
        })?,
    };
    if !range.contains(&bytes) {
        let cause = match *range.end() {
            u64::MAX => format!("{bytes} bytes is less than {}", range.start()),
            most => format!("{bytes} bytes is not between {} and {most}", range.start()),
        };
        return Err(Fault::new(field, cause, "change it"));
    }
    Ok(Some(bytes))
}

fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim_start() {
        "" | "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}
