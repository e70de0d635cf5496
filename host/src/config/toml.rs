//! `weir.toml`: text becomes what was typed. Unknown keys and wrong types are errors.

use std::cell::RefCell;
use std::net::SocketAddr;

use ::toml::de::{DeTable, DeValue};

use super::OnDelete;
use super::section::{Document, Section};
use super::typed::{At, Typed, TypedCollect, TypedEtcd, TypedLimits, TypedPolicy};
use crate::model::Problem;

/// How a duration is written.
const DURATION: &str = "\"10s\", \"5m\" or \"1h 30m\"";

/// What could be read, and what is wrong in it; or why nothing could be read.
pub(super) type Read<T> = Result<(T, Vec<Problem>), Vec<Problem>>;

/// Reads a settings file.
pub(super) fn parse(text: &str, file: &str) -> Read<Typed> {
    read(text, file, settings)
}

/// Reads a policy file: the keys of `[policy]` without that header.
pub(super) fn parse_policy(text: &str, file: &str) -> Read<TypedPolicy> {
    read(text, file, |mut top| {
        let policy = policy(&mut top, false);
        top.end();
        policy
    })
}

/// Where `key` stands, as in `kafka.brokers`; `None` if it stands nowhere.
pub(super) fn place(text: &str, file: &str, key: &str) -> Option<String> {
    let doc = Document { file, text, problems: RefCell::default() };
    let at = find(DeTable::parse(text).ok()?.get_ref(), key)?;
    Some(format!("{}: {key}", doc.at(at)))
}

/// Where `key` begins; a name may have dots of its own.
fn find(table: &DeTable<'_>, key: &str) -> Option<usize> {
    table.iter().find_map(|(name, value)| {
        let rest = key.strip_prefix(name.get_ref().as_ref())?;
        match (rest.strip_prefix('.'), value.get_ref()) {
            (None, _) => rest.is_empty().then(|| name.span().start),
            (Some(rest), DeValue::Table(table)) => find(table, rest),
            (Some(_), _) => None,
        }
    })
}

fn read<T>(text: &str, file: &str, read: impl for<'d, 't> FnOnce(Section<'d, 't>) -> T) -> Read<T> {
    let doc = Document { file, text, problems: RefCell::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What stands after a slip of the pen may be read as something it is not.
        for error in errors {
            let offset = error.span().map_or(text.len(), |span| span.start);
            let cause = format!("not TOML: {}", error.message().trim_end_matches(", expected nothing"));
            let problem = Problem::new(doc.at(offset), cause, unquoted(text, offset));
            doc.problems.borrow_mut().push((offset, problem));
        }
        return Err(doc.into_problems());
    }
    let typed = read(Section::new(&doc, String::new(), table.into_inner()));
    Ok((typed, doc.into_problems()))
}

/// The line with its quotes, where it looks as if they were forgotten.
fn unquoted(text: &str, offset: usize) -> String {
    let line_start = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let line = line.split_once(" #").map_or(line, |(line, _)| line);
    match line.split_once('=') {
        Some((key, value)) if !value.trim().is_empty() && !value.contains(['"', '\'', '[', '{']) => {
            format!("put text in quotes: {} = \"{}\"", key.trim(), value.trim())
        }
        _ => String::new(),
    }
}

fn settings(mut top: Section<'_, '_>) -> Typed {
    let mut typed = Typed::default();
    if let Some(agent) = top.section("agent") {
        read_agent(agent.value, &mut typed);
    }
    if let Some(kafka) = top.section("kafka") {
        read_kafka(kafka.value, &mut typed);
    }
    typed.etcd = top.section("etcd").map(|etcd| At::new(read_etcd(etcd.value), etcd.place));
    typed.collect = top.section("collect").map(|mut collect| {
        let file = collect.value.string("file");
        collect.value.end();
        At::new(TypedCollect::File(file), collect.place)
    });
    if let Some(mut state) = top.section("state") {
        typed.state_dir = state.value.string("dir");
        state.value.end();
    }
    if let Some(mut admin) = top.section("admin") {
        let listen = admin.value.parsed("listen", "\"127.0.0.1:9477\"", str::parse::<SocketAddr>);
        typed.listen = listen.map(|listen| listen.value);
        typed.socket = admin.value.string("socket");
        admin.value.end();
    }
    if let Some(limits) = top.section("limits") {
        typed.limits = read_limits(limits.value);
    }
    typed.policy = top.section("policy").map(|mut section| {
        let policy = policy(&mut section.value, true);
        section.value.end();
        policy
    });
    top.end();
    typed
}

fn read_agent(mut agent: Section<'_, '_>, typed: &mut Typed) {
    typed.name = agent.string("name");
    typed.ip = agent.string("ip");
    typed.drain = agent.parsed("drain", DURATION, humantime::parse_duration).map(|drain| drain.value);
    if let Some(labels) = agent.section("labels") {
        typed.labels = labels.value.flat().into_iter().map(|(name, label)| (name, label.value)).collect();
    }
    agent.end();
}

fn read_kafka(mut kafka: Section<'_, '_>, typed: &mut Typed) {
    typed.brokers = kafka.list("brokers", true);
    typed.sasl_password_file = kafka.string("sasl_password_file");
    if let Some(properties) = kafka.section("properties") {
        typed.properties = properties.value.flat().into_iter().collect();
    }
    kafka.end();
}

fn read_etcd(mut etcd: Section<'_, '_>) -> TypedEtcd {
    let on_delete = |text: &str| match text {
        "keep" => Ok(OnDelete::Keep),
        "stop" => Ok(OnDelete::Stop),
        _ => Err("unknown"),
    };
    let typed = TypedEtcd {
        endpoints: etcd.list("endpoints", true),
        collect_key: etcd.list("collect_key", false),
        modules_prefix: etcd.string("modules_prefix"),
        agents_prefix: etcd.string("agents_prefix"),
        on_delete: etcd
            .parsed("on_delete", "\"keep\" or \"stop\"", on_delete)
            .map_or_else(OnDelete::default, |on_delete| on_delete.value),
        username: etcd.string("username"),
        password_file: etcd.string("password_file"),
        password: None,
        ca_file: etcd.string("ca_file"),
        cert_file: etcd.string("cert_file"),
        key_file: etcd.string("key_file"),
    };
    etcd.end();
    typed
}

fn read_limits(mut limits: Section<'_, '_>) -> TypedLimits {
    let mut typed = TypedLimits {
        memory: limits.size("memory"),
        filter_memory: limits.size("filter_memory"),
        quarantine: limits.size("quarantine"),
        ..TypedLimits::default()
    };
    if let Some(mut held) = limits.section("held_files") {
        let age = held.value.parsed("age", DURATION, humantime::parse_duration);
        typed.held_files_age = age.map(|age| age.value);
        typed.held_files_bytes = held.value.size("bytes");
        held.value.end();
    }
    limits.end();
    typed
}

fn policy(section: &mut Section<'_, '_>, may_point: bool) -> TypedPolicy {
    TypedPolicy {
        roots: section.list("roots", false),
        deny: section.list("deny", false).map_or_else(Vec::new, |deny| deny.value),
        topics: section.list("topics", false).map(|topics| topics.value),
        modules: section.list("modules", false).map(|modules| modules.value),
        max_entries: section.count("max_entries").map(|count| count.value),
        max_files: section.count("max_files").map(|count| count.value),
        read_bytes_per_second: section.size("read_bytes_per_second"),
        keys: section.list("keys", false).map_or_else(Vec::new, |keys| keys.value),
        confine: section.yes_or_no("confine"),
        file: if may_point { section.string("file") } else { None },
    }
}
