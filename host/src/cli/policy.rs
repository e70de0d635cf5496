//! `weir policy explain`: what this host's policy says to an entry, rule by rule, and why.
//!
//! In: an entry as JSON, or the name of one in the list; the settings. Out: a line a rule, with where
//! the rule is written, and a line a file that matches now. Files are opened as the agent would, and
//! nothing is read from them.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Common;
use super::list::{runtime, with_endpoints};
use super::visible::plain;
use crate::config::{self, ListSource, Settings, size};
use crate::control::list::{self, Origin};
use crate::control::lists::Lists;
use crate::model::{Entry, ModuleRef, OnError, Problem};
use crate::policy::{OpenError, Policy};
use crate::source::discovery::Pattern;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say what the policy of this host allows an entry, and why
    Explain(ExplainArgs),
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = r#"Examples:
  weir policy explain nginx
  weir policy explain '{"path": "/srv/*/log/*.log", "topic": "app"}'

Run it as the agent's user: what a file's permissions allow is part of the answer. Exit code 0: all of it is
allowed. 1: something is refused."#)]
pub struct ExplainArgs {
    /// The name of an entry in the list of this host, or an entry as JSON
    entry: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What one rule says.
#[derive(Debug, Serialize)]
struct Ruling {
    allowed: bool,
    /// Of what: `path`, `file`, `topic`, `module`.
    what: &'static str,
    /// What was asked for.
    asked: String,
    /// Why.
    why: String,
    /// Where the rule is written; `default` where it is not.
    rule: String,
    /// What to do where it is refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

/// A cap, and where it is written.
#[derive(Debug, Serialize)]
struct Cap {
    name: &'static str,
    value: String,
    rule: String,
}

#[derive(Debug, Serialize)]
struct Explanation {
    entry: String,
    allowed: bool,
    rulings: Vec<Ruling>,
    caps: Vec<Cap>,
}

/// Runs it.
pub fn run(common: &Common, command: PolicyCommand) -> anyhow::Result<ExitCode> {
    let PolicyCommand::Explain(args) = command;
    let settings = config::load_without_kafka(common, None)?;
    let entry = entry(&settings, &args.entry)?;
    let explanation = explain(&settings, &entry)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&explanation)?);
    } else {
        explanation.write(io::stdout().lock())?;
    }
    Ok(if explanation.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The entry that is meant, checked as a list would be.
fn entry(settings: &Settings, text: &str) -> anyhow::Result<Arc<Entry>> {
    if text.trim_start().starts_with('{') {
        let origin = match &settings.list {
            ListSource::Etcd(etcd) => Origin::Key(etcd.collect_keys.first().cloned().unwrap_or_default()),
            ListSource::File(file) => Origin::File(file.clone()),
            ListSource::Fixed { .. } => Origin::Settings,
        };
        let list = list::parse(format!("[{text}]").as_bytes(), &origin);
        let list = list.map_err(|problem| anyhow::anyhow!("the entry is not JSON: {}", problem.cause))?;
        let item = list.items.into_iter().next().context("there is no entry")?;
        return item.checked.map_err(|refused| anyhow::anyhow!("{}", refused.problem));
    }
    let lists = lists(settings).map_err(|error| with_endpoints(error, settings))?;
    let mut names = Vec::new();
    for item in lists.iter().flat_map(|list| &list.items) {
        if item.name() == text {
            return item.checked.clone().map_err(|refused| anyhow::anyhow!("{}", refused.problem));
        }
        names.push(plain(item.name()));
    }
    bail!("the list of this host has no entry {text:?}; it has: {}", names.join(", "))
}

/// The lists of this host as they stand now.
fn lists(settings: &Settings) -> anyhow::Result<Vec<list::List>> {
    let parse = |text: &[u8], origin: &Origin| {
        list::parse(text, origin).map_err(|problem| anyhow::anyhow!("{problem}"))
    };
    match &settings.list {
        ListSource::Etcd(etcd) => runtime()?.block_on(async {
            let mut found = Vec::new();
            for key in &etcd.collect_keys {
                let mut lists = Lists::in_etcd(etcd, key).await?;
                if let Some(text) = lists.read().await?.text {
                    found.push(parse(&text, &lists.origin())?);
                }
            }
            Ok(found)
        }),
        ListSource::File(file) => {
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(vec![parse(&text, &Origin::File(file.clone()))?])
        }
        ListSource::Fixed { path, topic } => {
            let text = serde_json::json!([{ "path": path, "topic": topic }]).to_string();
            Ok(vec![parse(text.as_bytes(), &Origin::Settings)?])
        }
    }
}

fn explain(settings: &Settings, entry: &Entry) -> anyhow::Result<Explanation> {
    let rules = Rulings { settings, policy: &settings.policy };
    let mut rulings = vec![rules.path(entry), rules.topic(entry)];
    rulings.extend(rules.dead_letter(entry));
    rulings.extend(rules.module(entry));
    rulings.extend(rules.signatures(entry));
    rulings.extend(rules.files(entry)?);
    Ok(Explanation {
        entry: entry.name.to_string(),
        allowed: rulings.iter().all(|ruling| ruling.allowed),
        rulings,
        caps: rules.caps(entry),
    })
}

/// Asks the policy one rule after another.
struct Rulings<'a> {
    settings: &'a Settings,
    policy: &'a Policy,
}

impl Rulings<'_> {
    /// Where a rule is written.
    fn place(&self, key: &str) -> String {
        config::policy_place(self.settings, key).unwrap_or_else(|| "default".into())
    }

    fn ruling(
        &self,
        what: &'static str,
        asked: impl Into<String>,
        key: &str,
        said: Result<String, Problem>,
    ) -> Ruling {
        let (asked, rule) = (asked.into(), self.place(key));
        match said {
            Ok(why) => Ruling { allowed: true, what, asked, why, rule, fix: String::new() },
            Err(Problem { cause, fix, .. }) => Ruling { allowed: false, what, asked, why: cause, rule, fix },
        }
    }

    fn path(&self, entry: &Entry) -> Ruling {
        let roots = match &self.policy.rules().roots {
            None => "no root bounds it".into(),
            Some(_) => "it may lead to files below a root".into(),
        };
        let said = self.policy.check_path(entry.name.as_str(), &entry.path).map(|()| roots);
        self.ruling("path", entry.path.as_str(), "roots", said)
    }

    fn topic(&self, entry: &Entry) -> Ruling {
        let said = self.policy.check_topic(entry.name.as_str(), &entry.topic);
        self.ruling("topic", entry.topic.as_str(), "topics", said.map(|()| self.topics()))
    }

    fn dead_letter(&self, entry: &Entry) -> Option<Ruling> {
        let OnError::DeadLetter(topic) = &entry.filter.as_ref()?.on_error else { return None };
        let said = self.policy.check_topic(entry.name.as_str(), topic);
        Some(self.ruling("topic", format!("{topic} (dead_letter)"), "topics", said.map(|()| self.topics())))
    }

    fn topics(&self) -> String {
        match &self.policy.rules().topics {
            None => "all topics are allowed".into(),
            Some(topics) => format!("it matches one of {}", topics.join(", ")),
        }
    }

    fn module(&self, entry: &Entry) -> Option<Ruling> {
        let module = &entry.filter.as_ref()?.module;
        let modules = &self.policy.rules().modules;
        let said = match (module, modules) {
            (_, None) => Ok("all modules are allowed".into()),
            (ModuleRef::Digest(digest), Some(_)) => self
                .policy
                .check_module(entry.name.as_str(), digest)
                .map(|()| "it is one of the modules of the policy".into()),
            (ModuleRef::Tag(_) | ModuleRef::File(_), Some(modules)) => {
                Ok(format!("when it is loaded, if it is one of the {} modules of the policy", modules.len()))
            }
        };
        Some(self.ruling("module", module.to_string(), "modules", said))
    }

    fn signatures(&self, entry: &Entry) -> Option<Ruling> {
        if !self.policy.keys().are_set() {
            return None;
        }
        let what = if entry.filter.is_some() { "list and module" } else { "list" };
        let why = format!("if one of {} keys signed it", self.policy.rules().keys.len());
        Some(self.ruling("signed", what, "keys", Ok(why)))
    }

    /// Every file that matches now.
    fn files(&self, entry: &Entry) -> anyhow::Result<Vec<Ruling>> {
        let mut found = Pattern::new(&entry.path, &entry.exclude)?.scan(self.policy.rules().max_files);
        found.files.sort();
        let mut rulings: Vec<_> = found.files.iter().map(|path| self.file(entry, path)).collect();
        if found.too_many {
            let most = self.policy.rules().max_files;
            let problem = Problem::new("", format!("more than {most} files match"), "raise max_files");
            rulings.push(self.ruling("file", "the others", "max_files", Err(problem)));
        }
        Ok(rulings)
    }

    fn file(&self, entry: &Entry, path: &Path) -> Ruling {
        let asked = path.to_string_lossy().into_owned();
        match self.policy.open(path) {
            Ok(opened) => {
                let led = match opened.real == path {
                    true => String::new(),
                    false => format!("leads to {}, ", opened.real.display()),
                };
                let why = match self.policy.root_of(&opened.real) {
                    Some(root) => format!("{led}below root {}", root.display()),
                    None => format!("{led}no root bounds it"),
                };
                self.ruling("file", asked, "roots", Ok(why))
            }
            Err(error) => {
                let key = match &error {
                    OpenError::Refused(rule, _) => rule.key(),
                    _ => None,
                };
                let problem = error.problem(entry.name.as_str(), path);
                let ruling = self.ruling("file", asked, key.unwrap_or_default(), Err(problem));
                // What no key says is built in.
                Ruling { rule: key.map_or("always".into(), |_| ruling.rule), ..ruling }
            }
        }
    }

    fn caps(&self, entry: &Entry) -> Vec<Cap> {
        let (rules, limits) = (self.policy.rules(), &self.settings.limits);
        let rate = |rate: Option<u64>| rate.map_or("none".into(), |rate| format!("{}/s", size::show(rate)));
        let cap = |name, value: String| Cap { name, value, rule: self.place(name) };
        let limit = |name: &'static str, value: u64| {
            let place = config::place(self.settings, &format!("limits.{name}"));
            let rule = if place.matches(':').count() > 1 { place } else { "default".into() };
            Cap { name, value: size::show(value), rule }
        };
        let mut caps = vec![
            cap("max_entries", rules.max_entries.to_string()),
            cap("max_files", format!("{} of all entries", rules.max_files)),
            cap("read_bytes_per_second", rate(self.policy.pace(entry.read_bytes_per_second))),
            limit("memory", limits.memory),
        ];
        if entry.filter.is_some() {
            caps.push(limit("filter_memory", limits.filter_memory));
        }
        caps
    }
}

impl Explanation {
    fn write(&self, mut out: impl Write) -> io::Result<()> {
        let said = if self.allowed { "all of it is allowed" } else { "something is refused" };
        writeln!(out, "{}: {said}", plain(&self.entry))?;
        for ruling in &self.rulings {
            let word = if ruling.allowed { "allowed" } else { "refused" };
            let Ruling { what, asked, why, rule, fix, .. } = ruling;
            writeln!(out, "{word}  {what:6}  {}: {}  [{rule}]", plain(asked), plain(why))?;
            if !fix.is_empty() {
                writeln!(out, "                 {}", plain(fix))?;
            }
        }
        if !self.rulings.iter().any(|ruling| ruling.what == "file") {
            writeln!(out, "no file matches now")?;
        }
        self.caps
            .iter()
            .try_for_each(|cap| writeln!(out, "cap      {}: {}  [{}]", cap.name, cap.value, cap.rule))
    }
}
