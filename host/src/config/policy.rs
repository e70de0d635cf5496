//! `[policy]`, its defaults, and the roots that are allowed for one run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf, absolute};

use globset::Glob;

use super::resolve::{Resolver, values};
use super::typed::{At, TypedPolicy};
use super::{ListSource, read_text, toml, trust};
use crate::model::Digest;
use crate::policy::{ENTRIES_MAX, FILES_MAX, Policy, ROOT_DEFAULT, Rules, keys};

/// Bytes a second, as for an entry.
const READ_RATE_LEAST: u64 = 1024;

impl Resolver<'_> {
    pub(super) fn policy(
        &mut self,
        typed: Option<TypedPolicy>,
        list: Option<&ListSource>,
        state_dir: Option<&Path>,
    ) -> Option<Policy> {
        let (typed, file) = self.policy_file(typed.unwrap_or_default());
        for glob in typed.deny.iter().chain(typed.topics.iter().flatten()) {
            if let Err(error) = Glob::new(&glob.value) {
                let cause = format!("{:?}: {}", glob.value, error.kind());
                self.problem(&glob.place, cause, "write a glob such as \"app-*\"");
            }
        }
        for key in &typed.keys {
            if let Err(error) = keys::check(&key.value) {
                let cause = format!("{:?}: {error}", key.value);
                self.problem(&key.place, cause, "write the second line of a .pub file of minisign");
            }
        }
        let least = typed.read_bytes_per_second.as_ref().filter(|rate| rate.value < READ_RATE_LEAST);
        if let Some(rate) = least {
            let cause = format!("{} bytes a second never read one chunk in sensible time", rate.value);
            self.problem(&rate.place, cause, format!("write {READ_RATE_LEAST} or more"));
        }
        let modules = typed.modules.map(|modules| self.digests(&modules));
        let roots = match typed.roots {
            Some(roots) => Some(roots.value.iter().map(|root| self.path(&root.value)).collect()),
            None => self.default_roots(list?),
        };
        let rules = Rules {
            roots: roots.map(|roots| self.with_allowed(roots)),
            deny: values(typed.deny),
            topics: typed.topics.map(values),
            modules,
            max_entries: count(typed.max_entries, ENTRIES_MAX),
            max_files: count(typed.max_files, FILES_MAX),
            read_bytes_per_second: typed.read_bytes_per_second.map(|rate| rate.value),
            keys: values(typed.keys),
            confine: typed.confine.unwrap_or(true),
            state_dir: state_dir.map(Path::to_path_buf),
            file,
        };
        let place = format!("{}: policy", rules.file.display());
        Policy::new(rules).map_err(|error| self.problem(&place, error.to_string(), "write fewer globs")).ok()
    }

    /// The keys of the file that `[policy]` points at, and the file that holds the keys.
    fn policy_file(&mut self, typed: TypedPolicy) -> (TypedPolicy, PathBuf) {
        let Some(at) = &typed.file else { return (typed, self.file.into()) };
        let path = self.path(&at.value);
        let shown = path.display().to_string();
        if typed.says_something() {
            self.problem(&at.place, "other keys stand beside it", "write the policy here or in that file");
        }
        if let Some(why) = trust::others_may_change(&path) {
            let cause = format!("{shown} may be changed by others: {why}");
            self.problem(&at.place, cause, "let only root or the agent's user write it");
        }
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(problem) => {
                self.problem(&at.place, problem.to_string(), "");
                return (typed, path);
            }
        };
        let read = toml::parse_policy(&text, &shown);
        let (policy, problems) = read.unwrap_or_else(|problems| (TypedPolicy::default(), problems));
        self.problems.extend(problems);
        (policy, path)
    }

    fn digests(&mut self, modules: &[At<String>]) -> BTreeSet<Digest> {
        let mut digests = BTreeSet::new();
        for module in modules {
            match module.value.parse() {
                Ok(digest) => drop(digests.insert(digest)),
                Err(error) => {
                    let cause = format!("{:?}: {error}", module.value);
                    self.problem(&module.place, cause, "weir module inspect FILE prints it");
                }
            }
        }
        digests
    }

    /// Whoever may write the list may read what the agent may read: without a bound only where that
    /// is root or the agent's user.
    fn default_roots(&mut self, list: &ListSource) -> Option<Vec<PathBuf>> {
        let file = match list {
            ListSource::Etcd(_) => return Some(vec![ROOT_DEFAULT.into()]),
            ListSource::File(file) => file,
            ListSource::Fixed { .. } => self.file,
        };
        let why = trust::others_may_change(file)?;
        self.notes.push(format!(
            "{}: others may change it ({why}), so it may name files below {ROOT_DEFAULT} only; \
             let root or the agent's user alone write it, or write roots under [policy]",
            file.display()
        ));
        Some(vec![ROOT_DEFAULT.into()])
    }

    fn with_allowed(&self, roots: Vec<PathBuf>) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for root in roots.iter().chain(&self.instead.allow).chain(&self.host.allow) {
            let root = absolute(root).unwrap_or_else(|_| root.clone());
            if !all.contains(&root) {
                all.push(root);
            }
        }
        all
    }
}

fn count(typed: Option<u64>, default: usize) -> usize {
    typed.map_or(default, |count| count.try_into().unwrap_or(usize::MAX))
}
