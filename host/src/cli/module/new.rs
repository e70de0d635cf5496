//! `weir module new`: a crate that is a filter already.
//!
//! In: a name, a template. Out: a directory that builds and passes its tests as it is. The SDK goes
//! into it as source, in `weir-guest/`: the one that this agent was built with, so that module and
//! agent agree, and nothing has to be published or found. What the SDK stands on, five small crates,
//! cargo fetches.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use toml::{Table, Value};

/// The sources of the SDK, but for its manifests.
const SDK: [(&str, &str); 15] = [
    ("src/bindings.rs", include_str!("../../../../guest-sdk/src/bindings.rs")),
    ("src/config.rs", include_str!("../../../../guest-sdk/src/config.rs")),
    ("src/host.rs", include_str!("../../../../guest-sdk/src/host.rs")),
    ("src/json.rs", include_str!("../../../../guest-sdk/src/json.rs")),
    ("src/lib.rs", include_str!("../../../../guest-sdk/src/lib.rs")),
    ("src/logfmt.rs", include_str!("../../../../guest-sdk/src/logfmt.rs")),
    ("src/output.rs", include_str!("../../../../guest-sdk/src/output.rs")),
    ("src/rate.rs", include_str!("../../../../guest-sdk/src/rate.rs")),
    ("src/runtime.rs", include_str!("../../../../guest-sdk/src/runtime.rs")),
    ("src/sample.rs", include_str!("../../../../guest-sdk/src/sample.rs")),
    ("src/search.rs", include_str!("../../../../guest-sdk/src/search.rs")),
    ("src/testing.rs", include_str!("../../../../guest-sdk/src/testing.rs")),
    ("src/truncate.rs", include_str!("../../../../guest-sdk/src/truncate.rs")),
    ("wit/filter.wit", include_str!("../../../../guest-sdk/wit/filter.wit")),
    ("macros/src/lib.rs", include_str!("../../../../guest-sdk/macros/src/lib.rs")),
];
/// Its manifests, which stand in weir's workspace.
const MANIFESTS: [(&str, &str); 2] = [
    ("Cargo.toml", include_str!("../../../../guest-sdk/Cargo.toml")),
    ("macros/Cargo.toml", include_str!("../../../../guest-sdk/macros/Cargo.toml")),
];
/// The manifest of that workspace.
const WORKSPACE: &str = include_str!("../../../../Cargo.toml");
/// Where the SDK lies in that workspace.
const SDK_DIR: &str = "guest-sdk/";

/// Names that cargo, rustc or the filter's own dependencies have taken.
const TAKEN: [&str; 11] = [
    "alloc",
    "core",
    "memchr",
    "proc-macro",
    "serde",
    "serde-json",
    "std",
    "test",
    "weir-guest",
    "weir-guest-macros",
    "wit-bindgen",
];
/// Those that are words of Rust.
const WORDS: &str = "abstract as async await become box break const continue crate do dyn else enum \
                     extern false final fn for gen if impl in let loop macro match mod move mut \
                     override priv pub ref return self static struct super trait true try type \
                     typeof unsafe unsized use virtual where while yield";

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, from nothing to a module:
  weir module new quiet
  cd quiet
  cargo test
  weir module build
  weir module test target/weir/quiet.wasm sample.log

Templates:
  function   a function from a line to a verdict; the smallest and the fastest
  stateful   the trait Filter: configuration, state, counters
  json       fields of JSON lines, by serde

The SDK is written beside the filter, in weir-guest/, as it was when this weir was built: to have
another, replace the directory.")]
pub struct NewArgs {
    /// The directory to make; its last part is the filter's name
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// What to begin with
    #[arg(long, value_enum, default_value = "function")]
    template: Template,
}

/// What to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// A function from a line to a verdict.
    Function,
    /// The trait `Filter`.
    Stateful,
    /// The trait `Filter`, with serde.
    Json,
}

/// Runs it.
pub fn run(args: &NewArgs) -> anyhow::Result<ExitCode> {
    let NewArgs { path, template } = args;
    let name = path.file_name().and_then(|name| name.to_str()).context("the name is no name")?;
    check_name(name)?;
    make(path, name, *template).with_context(|| format!("make {}", path.display()))?;
    println!("{} is a filter. Next:", path.display());
    println!("  cd {}\n{}", path.display(), steps(name));
    Ok(ExitCode::SUCCESS)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    ensure!(
        begins && name.len() <= 64 && name.chars().all(fits),
        "{name:?} is no name of a filter: it begins with a letter and is of a-z, 0-9, - and _, up to 64"
    );
    let dashed = name.replace('_', "-");
    let taken = TAKEN.contains(&dashed.as_str()) || WORDS.split_whitespace().any(|word| word == name);
    ensure!(!taken, "{name} is taken by Rust or by what a filter is made of; take another name");
    Ok(())
}

/// Made beside and renamed: there is the whole of it, or nothing.
fn make(path: &Path, name: &str, template: Template) -> anyhow::Result<()> {
    ensure!(!path.exists(), "it is there already");
    let beside = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = tempfile::Builder::new()
        .prefix(".weir-new-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(beside)?;
    for (file, text) in files(name, template)? {
        let file = dir.path().join(file);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(file, text)?;
    }
    fs::rename(dir.path(), path)?;
    // It is no longer where its guard would remove it.
    drop(dir.keep());
    Ok(())
}

/// All files of the crate, by path.
fn files(name: &str, template: Template) -> anyhow::Result<Vec<(String, String)>> {
    let workspace: Table = WORKSPACE.parse().context("read the manifest of weir")?;
    let mut files: Vec<_> = template.files().map(|(path, text)| (path.to_owned(), text.to_owned())).into();
    files.push(("Cargo.toml".into(), template.manifest(name)));
    files.push((".gitignore".into(), "/target\n".into()));
    files.push(("README.md".into(), readme(name)));
    files.extend(SDK.map(|(path, text)| (format!("weir-guest/{path}"), text.to_owned())));
    for (path, text) in MANIFESTS {
        files.push((format!("weir-guest/{path}"), alone(text, &workspace)?));
    }
    Ok(files)
}

impl Template {
    fn files(self) -> [(&'static str, &'static str); 3] {
        macro_rules! files {
            ($dir:literal) => {
                [
                    ("src/lib.rs", include_str!(concat!("../../../templates/", $dir, "/lib.rs"))),
                    ("sample.log", include_str!(concat!("../../../templates/", $dir, "/sample.log"))),
                    (
                        "sample.expected",
                        include_str!(concat!("../../../templates/", $dir, "/sample.expected")),
                    ),
                ]
            };
        }
        match self {
            Self::Function => files!("function"),
            Self::Stateful => files!("stateful"),
            Self::Json => files!("json"),
        }
    }

    fn manifest(self, name: &str) -> String {
        let (more, features) = match self {
            Self::Function | Self::Stateful => ("", ""),
            Self::Json => {
                ("serde = { version = \"1\", features = [\"derive\"] }\n", ", features = [\"json\"]")
            }
        };
        format!(
            "[package]\n\
             name = \"{name}\"\n\
             version = \"0.1.0\"\n\
             edition = \"2024\"\n\
             publish = false\n\
             \n\
             # The module, and what its tests link.\n\
             [lib]\n\
             crate-type = [\"cdylib\", \"rlib\"]\n\
             \n\
             [dependencies]\n\
             {more}weir-guest = {{ path = \"weir-guest\"{features} }}\n\
             \n\
             # Its own, wherever the directory stands.\n\
             [workspace]\n"
        )
    }
}

/// What to do next, a command a line.
fn steps(name: &str) -> String {
    let wasm = format!("target/weir/{}.wasm", name.replace('-', "_"));
    [
        "cargo test".to_owned(),
        "weir module build".to_owned(),
        format!("weir module test {wasm} sample.log --expect sample.expected"),
        format!("weir module push {wasm} --tag {name}"),
    ]
    .map(|step| format!("  {step}"))
    .join("\n")
}

fn readme(name: &str) -> String {
    let steps = steps(name).replace("  ", "    ");
    format!(
        "# {name}\n\nA filter of weir; `src/lib.rs` says what it does.\n\n{steps}\n\n\
         `sample.expected` is what becomes of the lines of `sample.log`: `weir module test --help` explains it.\n"
    )
}

/// A manifest without its workspace: what it takes from there is written out. The tests of the SDK
/// stay at home.
fn alone(manifest: &str, workspace: &Table) -> anyhow::Result<String> {
    let mut manifest: Table = manifest.parse()?;
    manifest.remove("dev-dependencies");
    for section in ["package", "dependencies"] {
        let (Some(here), Some(there)) =
            (manifest.get_mut(section).and_then(Value::as_table_mut), workspace["workspace"].get(section))
        else {
            continue;
        };
        for (key, value) in here.iter_mut().filter(|(_, value)| value.get("workspace").is_some()) {
            let whole = there.get(key).with_context(|| format!("{key} is not in the workspace"))?;
            *value = inherited(whole, value.get("optional"));
        }
    }
    Ok(toml::to_string(&manifest)?)
}

/// What the workspace says of a key, and what the manifest adds to it.
fn inherited(whole: &Value, optional: Option<&Value>) -> Value {
    let mut value = whole.clone();
    if let Some(Value::String(path)) = value.get_mut("path") {
        *path = path.trim_start_matches(SDK_DIR).to_owned();
    }
    if let Some(optional) = optional {
        if let Value::String(_) = value {
            value = Table::from_iter([("version".to_owned(), value)]).into();
        }
        if let Value::Table(table) = &mut value {
            table.insert("optional".into(), optional.clone());
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn the_whole_sdk_is_written() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-sdk"));
        for dir in ["src", "wit", "macros/src"] {
            for file in fs::read_dir(root.join(dir)).unwrap() {
                let name = format!("{dir}/{}", file.unwrap().file_name().to_str().unwrap());
                let (_, text) = SDK.iter().find(|(path, _)| *path == name).expect(&name);
                assert_eq!(*text, fs::read_to_string(root.join(&name)).unwrap());
            }
        }
    }

    #[test]
    fn no_manifest_needs_a_workspace() {
        for template in Template::value_variants() {
            let files = files("x", *template).unwrap();
            let manifests: Vec<_> = files.iter().filter(|(path, _)| path.ends_with("Cargo.toml")).collect();
            assert_eq!(manifests.len(), 3);
            for (path, text) in manifests {
                assert!(
                    text.parse::<Table>().is_ok() && !text.contains("workspace = true"),
                    "{path}: {text}"
                );
            }
        }
        let files = files("x", Template::Json).unwrap();
        let manifest = |path: &str| files.iter().find(|(known, _)| known == path).unwrap().1.parse::<Table>();
        let sdk = manifest("weir-guest/Cargo.toml").unwrap();
        assert_eq!(sdk["dependencies"]["serde"]["optional"].as_bool(), Some(true));
        let macros = manifest("weir-guest/macros/Cargo.toml").unwrap();
        assert_eq!(macros["package"]["edition"].as_str(), Some("2024"));
    }

    #[test]
    fn the_readme_shows_the_template_and_what_it_does() {
        let readme = include_str!("../../../../README.md");
        let [(_, code), _, (_, expected)] = Template::Function.files();
        let code = &code[code.find("use weir_guest").unwrap()..code.find("\n#[cfg(test)]").unwrap()];
        assert!(readme.contains(code) && readme.contains(expected));
    }

    #[test]
    fn a_name_is_one_of_a_crate() {
        for good in ["quiet", "drop-2", "a_b"] {
            check_name(good).unwrap();
        }
        for bad in ["", "2a", "Quiet", "a.b", "é", "match", "test", "serde_json", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quiet");
        make(&path, "quiet", Template::Function).unwrap();
        fs::write(path.join("src/lib.rs"), "mine").unwrap();
        let again = make(&path, "quiet", Template::Json).unwrap_err().to_string();
        assert!(again.contains("already"), "{again}");
        assert_eq!(fs::read_to_string(path.join("src/lib.rs")).unwrap(), "mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o700, 0o700);
    }
}
