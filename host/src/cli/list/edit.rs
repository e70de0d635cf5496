//! `weir list edit`: the list in an editor.
//!
//! In: what stands there, and what somebody makes of it. Out: the difference, what will happen, and a write
//! that fails where somebody else wrote meanwhile. A draft that was not written is kept, and named.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use super::EditArgs;
use super::change::Change;
use crate::control::list::envelope;
use crate::control::lists::Lists;

/// When neither `$VISUAL` nor `$EDITOR` is set.
const EDITOR: &str = "vi";
/// What a new list begins as.
const NEW: &[u8] = b"[\n]\n";

pub(super) async fn edit(lists: &mut Lists, args: &EditArgs) -> anyhow::Result<ExitCode> {
    let old = lists.read().await?;
    // Of a signed list people edit what was signed.
    let begun = old.text.as_deref().map_or_else(|| NEW.into(), plain);
    let draft = Draft::new(&begun)?;
    loop {
        draft.edit()?;
        let new = std::fs::read(&draft.path).with_context(|| draft.kept("it cannot be read again"))?;
        if new == begun {
            println!("{}: nothing to change", lists.origin());
            draft.remove();
            return Ok(ExitCode::SUCCESS);
        }
        let change = Change { old: old.clone(), new, origin: lists.origin() }.signed(&args.signing);
        let change = change.with_context(|| draft.kept("nothing was written"))?;
        if !change.check() {
            match ask("go on editing? [Y/n] ") {
                Some(answer) if !answer.starts_with('n') => continue,
                _ => bail!(draft.kept("nothing was written")),
            }
        }
        change.show();
        let answer = if args.yes { None } else { ask("write it? [y/e/N] (e: go on editing) ") };
        match answer.as_deref() {
            None | Some("y" | "yes") => {}
            Some("e" | "edit") => continue,
            Some(_) => bail!(draft.kept("nothing was written")),
        }
        let written = change.write_checked(lists, false).await;
        let code = written.with_context(|| draft.kept("nothing was written"))?;
        draft.remove();
        return Ok(code);
    }
}

/// The list without its signature.
fn plain(text: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) if envelope::serial(text.as_bytes()).is_some() => {
            format!("{}\n", envelope::array(text)).into()
        }
        _ => text.into(),
    }
}

/// The answer of whoever sits at the terminal; `None` where nobody does.
fn ask(question: &str) -> Option<String> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    eprint!("{question}");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(answer.trim().to_lowercase())
}

/// The list while it is edited, in a file that only this user may read.
struct Draft {
    path: PathBuf,
}

impl Draft {
    /// Editors know by its name what it is: see docs/operating.md.
    fn new(text: &[u8]) -> anyhow::Result<Self> {
        let mut file = tempfile::Builder::new().prefix("weir-collect-").suffix(".json").tempfile()?;
        file.write_all(text)?;
        let (_, path) = file.keep().context("make a file for the draft")?;
        Ok(Self { path })
    }

    fn edit(&self) -> anyhow::Result<()> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| EDITOR.into());
        // As git does: the variable may hold arguments.
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&self.path);
        let status = command.status().with_context(|| self.kept("sh cannot be started"))?;
        if !status.success() {
            bail!(self.kept(&format!("the editor {editor:?} failed ({status}); nothing was written")));
        }
        Ok(())
    }

    fn kept(&self, why: &str) -> String {
        let path = self.path.display();
        format!("{why}; the draft is {path}; mend it, then `weir list put {path}`")
    }

    fn remove(self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        eprintln!("note: the draft {} is still there: {error}", path.display());
    }
}
