//! The older form, `config.ini`, with the spellings that agents of its kind used.
//!
//! Read as go-ini reads it: `=` or `:`, comments from `;` or `#`, quotes kept together, indented
//! keys, names without case, the last of two equal keys holds. Beside it `//` after a blank begins
//! a comment, which occurs. Keys that weir does not know or need are noted, never fatal.

use super::Secret;
use super::section::nearest;
use super::typed::{At, Form, Typed, TypedCollect, TypedEtcd};
use crate::model::Problem;

/// What a key of the older form is to weir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Brokers,
    KafkaHost,
    KafkaPort,
    Topic,
    Endpoints,
    CollectKey,
    /// A key to which the ip is added.
    CollectPrefix,
    Username,
    Password,
    LogPath,
    /// Nothing: why not.
    Unused(&'static str),
}

const QUEUE: Known = Known::Unused("limits.memory bounds what is under way");
const TIMEOUT: Known = Known::Unused("weir tries etcd again until it answers");
const LOGGING: Known = Known::Unused("RUST_LOG says how much weir logs");

/// Section and key, in lower case. The last few stand before any section.
const SPELLINGS: [(&str, &str, Known); 37] = [
    ("kafka", "address", Known::Brokers),
    ("kafka", "produceraddr", Known::Brokers),
    ("kafka", "server_addr", Known::Brokers),
    ("kafka", "kafkahost", Known::KafkaHost),
    ("kafka", "kafkaport", Known::KafkaPort),
    ("kafka", "topic", Known::Topic),
    ("kafka", "chan_size", QUEUE),
    ("kafka", "chan_max_size", QUEUE),
    ("kafka", "log_chan_max_size", QUEUE),
    ("kafka", "queue_size", QUEUE),
    ("etcd", "address", Known::Endpoints),
    ("etcd", "addr", Known::Endpoints),
    ("etcd", "endpoints", Known::Endpoints),
    ("etcd", "collect_key", Known::CollectKey),
    ("etcd", "collect_log_key", Known::CollectKey),
    ("etcd", "collect_conf_key", Known::CollectKey),
    ("etcd", "log_key", Known::CollectKey),
    ("etcd", "storekey", Known::CollectKey),
    ("etcd", "collectkey", Known::CollectKey),
    ("etcd", "configkey", Known::CollectPrefix),
    ("etcd", "timeout", TIMEOUT),
    ("etcd", "dialtimeout", TIMEOUT),
    ("etcd", "username", Known::Username),
    ("etcd", "password", Known::Password),
    ("collect", "logfile_path", Known::LogPath),
    ("collect", "filename", Known::LogPath),
    ("collect", "log_path", Known::LogPath),
    ("taillog", "logfile_path", Known::LogPath),
    ("taillog", "filename", Known::LogPath),
    ("taillog", "log_path", Known::LogPath),
    ("", "kafka_addr", Known::Brokers),
    ("", "etcd_addr", Known::Endpoints),
    ("", "etcd_watch_key", Known::CollectKey),
    ("", "etcd_timeout", TIMEOUT),
    ("", "thread_num", Known::Unused("each entry has a thread of its own")),
    ("", "log", LOGGING),
    ("", "level", LOGGING),
];

/// The values that count, as they are met.
#[derive(Default)]
struct Met {
    host: Option<At<String>>,
    port: Option<At<String>>,
    topic: Option<At<String>>,
    path: Option<At<String>>,
    etcd: TypedEtcd,
}

/// Reads the older form; what is wrong is beside what could be read.
pub(super) fn parse(text: &str, file: &str) -> (Typed, Vec<Problem>) {
    let (mut typed, mut met, mut problems) =
        (Typed { form: Form::Ini, ..Typed::default() }, Met::default(), Vec::new());
    let mut section = String::new();
    for (number, line) in text.lines().enumerate() {
        let at = |column: usize| format!("{file}:{}:{column}", number + 1);
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with([';', '#']) || trimmed.starts_with("//") {
            continue;
        }
        if let Some(header) = trimmed.strip_prefix('[') {
            match header.split_once(']') {
                Some((name, _)) => section = name.trim().to_lowercase(),
                None => {
                    problems.push(Problem::new(at(indent + 1), "a section without its `]`", "write [name]"))
                }
            }
            continue;
        }
        let Some((key, rest)) = trimmed.split_once(['=', ':']) else {
            let cause = format!("{:?} is neither a section nor a key", shortened(trimmed));
            problems.push(Problem::new(at(indent + 1), cause, "write key = value, or begin the line with #"));
            continue;
        };
        let key = key.trim();
        let dotted = if section.is_empty() { key.to_string() } else { format!("{section}.{key}") };
        let place = format!("{}: {dotted}", at(indent + 1));
        match value(rest) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => keep(&section, key, At::new(text, place), &mut typed, &mut met),
            Err(cause) => problems.push(Problem::new(place, cause, "close the quotes on the same line")),
        }
    }
    assemble(&mut typed, met, &mut problems);
    (typed, problems)
}

/// The value without quotes and comment.
fn value(rest: &str) -> Result<String, String> {
    let rest = rest.trim();
    if let Some(quote) = rest.chars().next().filter(|c| "\"'`".contains(*c)) {
        let inner = &rest[1..];
        let end = inner.find(quote).ok_or_else(|| format!("a {quote} that is not closed"))?;
        return Ok(inner[..end].to_string());
    }
    let comment = rest.find([';', '#']).into_iter().chain(rest.find(" //")).chain(rest.find("\t//")).min();
    Ok(rest[..comment.unwrap_or(rest.len())].trim().to_string())
}

fn keep(section: &str, key: &str, value: At<String>, typed: &mut Typed, met: &mut Met) {
    let lower = key.to_lowercase();
    let known = SPELLINGS.iter().find(|(s, k, _)| *s == section && *k == lower);
    let Some((_, _, known)) = known else {
        let here = SPELLINGS.iter().filter(|(s, ..)| *s == section).map(|(_, k, _)| *k);
        let hint = nearest(&lower, here).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        typed.notes.push(format!("{}: unknown here and ignored{hint}", value.place));
        return;
    };
    let etcd = &mut met.etcd;
    match known {
        Known::Brokers => typed.brokers = Some(addresses(value)),
        Known::KafkaHost => met.host = Some(value),
        Known::KafkaPort => met.port = Some(value),
        Known::Topic => met.topic = Some(value),
        Known::Endpoints => etcd.endpoints = Some(addresses(value)),
        Known::CollectKey => etcd.collect_key = Some(one(value)),
        Known::CollectPrefix => etcd.collect_key = Some(one(with_ip(value))),
        Known::Username => etcd.username = Some(value),
        Known::Password => etcd.password = Some(Secret(value.value)),
        Known::LogPath => met.path = Some(value),
        Known::Unused(why) => typed.notes.push(format!("{}: not used: {why}", value.place)),
    }
}

fn one(value: At<String>) -> At<Vec<At<String>>> {
    let place = value.place.clone();
    At::new(vec![value], place)
}

fn addresses(value: At<String>) -> At<Vec<At<String>>> {
    let part = |part: &str| At::new(part.trim().to_string(), &*value.place);
    At::new(value.value.split(',').map(part).filter(|part| !part.value.is_empty()).collect(), &*value.place)
}

/// The oldest agents of this kind took a prefix and put their ip behind it.
fn with_ip(mut value: At<String>) -> At<String> {
    if !value.value.contains('%') {
        let slash = if value.value.ends_with('/') { "" } else { "/" };
        value.value = format!("{}{slash}%s", value.value);
    }
    value
}

fn assemble(typed: &mut Typed, met: Met, problems: &mut Vec<Problem>) {
    if let (None, Some(host), Some(port)) = (&typed.brokers, &met.host, &met.port) {
        let address = format!("{}:{}", host.value, port.value.trim_start_matches(':'));
        typed.brokers = Some(one(At::new(address, &*host.place)));
    }
    if let Some(key) = &met.etcd.collect_key {
        for (ignored, name) in [(&met.path, "the log file"), (&met.topic, "the topic")] {
            if let Some(ignored) = ignored {
                typed.notes.push(format!("{}: not used: the list in etcd names {name}", ignored.place));
            }
        }
        let place = key.place.clone();
        typed.etcd = Some(At::new(met.etcd, place));
        return;
    }
    let Some(path) = met.path else { return };
    let place = path.place.clone();
    let topic = met.topic.unwrap_or_else(|| {
        let fix = "write topic = NAME under [kafka], or collect_key = KEY under [etcd]";
        problems.push(Problem::new(&*place, "a log file without a topic", fix));
        At::new(String::new(), &*place)
    });
    typed.collect = Some(At::new(TypedCollect::Fixed { path, topic }, place));
}

/// Enough of a line to find it by.
fn shortened(line: &str) -> String {
    const CHARS_MAX: usize = 40;
    if line.chars().count() <= CHARS_MAX {
        return line.into();
    }
    line.chars().take(CHARS_MAX).chain(['…']).collect()
}
