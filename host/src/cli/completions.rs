//! `weir completions` and the man pages: what other programs show of the command line.
//!
//! In: the command line itself. Out: a script for a shell; a directory of pages.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weir completions bash > /etc/bash_completion.d/weir
  weir completions zsh > \"${fpath[1]}/_weir\"
  weir completions fish > ~/.config/fish/completions/weir.fish")]
pub struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory; weir.1 and a page for each command are written there
    dir: PathBuf,
}

/// Prints the script.
pub(super) fn completions(command: &mut Command, args: CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "weir", &mut script);
    match std::io::stdout().write_all(&script) {
        // Whoever reads may have read enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write the script"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Writes the pages.
pub(super) fn man(command: Command, args: ManArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make {dir}"))?;
    clap_mangen::generate_to(command, &args.dir).with_context(|| format!("write into {dir}"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;
    use crate::cli::Cli;

    /// The names of all commands that are shown, with those they stand below: `list edit`.
    fn names(command: &Command, before: &str) -> Vec<String> {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        shown
            .flat_map(|command| {
                let name = format!("{before}{}", command.get_name());
                let below = names(command, &format!("{name} "));
                std::iter::once(name).chain(below)
            })
            .collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        let names = names(&Cli::command(), "");
        assert!(names.iter().any(|name| name == "list edit"), "{names:?}");
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "weir", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in &names {
                let last = name.rsplit(' ').next().unwrap();
                assert!(script.contains(last), "{shell} does not complete {name}");
            }
            assert!(script.contains("--config") || script.contains("-l config"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page_and_hidden_ones_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let args = ManArgs { dir: dir.path().join("man1") };
        man(Cli::command(), args).unwrap();
        let files = std::fs::read_dir(dir.path().join("man1")).unwrap().flatten();
        let found: BTreeSet<_> = files.map(|file| file.file_name().into_string().unwrap()).collect();
        let pages = names(&Cli::command(), "").into_iter();
        let expected: BTreeSet<_> =
            pages.map(|name| format!("weir-{}.1", name.replace(' ', "-"))).chain(["weir.1".into()]).collect();
        assert_eq!(found, expected);
        let edit = std::fs::read_to_string(dir.path().join("man1/weir-list-edit.1")).unwrap();
        assert!(edit.contains("$EDITOR") && edit.contains("\\-\\-yes"), "{edit}");
    }
}
