//! What weir is made of may be given away, and comes from crates.io: as `deny.toml` says.
//!
//! `cargo deny` would say the same and more, but takes longer to build than all tests.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The packages that are built on this kind of machine, as cargo describes them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", &platform]);
    let output = command.current_dir(weir_tests::workspace()).output().expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array_mut().map(std::mem::take).unwrap_or_default();
    assert!(packages.len() > 100, "cargo names the packages");
    packages
}

fn strings(table: &toml::Value, key: &str) -> Vec<String> {
    let list = table[key].as_array().unwrap_or_else(|| panic!("{key} is a list")).iter();
    list.map(|item| item.as_str().expect("text").to_owned()).collect()
}

#[test]
fn dependencies_have_the_licences_and_sources_that_deny_toml_allows() {
    let file = weir_tests::workspace().join("deny.toml");
    let rules: toml::Value = toml::from_str(&read(&file)).expect("TOML");
    let licences = strings(&rules["licenses"], "allow");
    let registries = strings(&rules["sources"], "allow-registry");
    let mut bad = Vec::new();
    for package in packages() {
        let Some(source) = package["source"].as_str() else { continue };
        let (name, version) = (&package["name"], &package["version"]);
        if !registries.iter().any(|registry| source.strip_prefix("registry+") == Some(registry)) {
            bad.push(format!("{name} {version} comes from {source}"));
        }
        let licence = package["license"].as_str().unwrap_or("none");
        if !may(licence, &licences) {
            bad.push(format!("{name} {version} has the licence {licence}"));
        }
    }
    assert!(bad.is_empty(), "deny.toml does not allow this:\n{}", bad.join("\n"));
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()))
}

/// Whether an SPDX expression can be met with the allowed licences alone. `/` is an older `OR`.
fn may(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut tokens = spaced.split_whitespace().peekable();
    let met = any(&mut tokens, allowed);
    met && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(tokens: &mut Tokens<'_>, allowed: &[String]) -> bool {
    let mut met = all(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        met |= all(tokens, allowed);
    }
    met
}

fn all(tokens: &mut Tokens<'_>, allowed: &[String]) -> bool {
    let mut met = one(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        met &= one(tokens, allowed);
    }
    met
}

fn one(tokens: &mut Tokens<'_>, allowed: &[String]) -> bool {
    let Some(token) = tokens.next() else { return false };
    if token == "(" {
        let met = any(tokens, allowed);
        return tokens.next() == Some(")") && met;
    }
    let mut name = token.to_owned();
    if tokens.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", tokens.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

#[test]
fn a_licence_expression_is_read_as_it_is_meant() {
    let allowed = ["MIT".to_owned(), "BSD-3-Clause".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(GPL-3.0 OR MIT) AND BSD-3-Clause", &allowed[2]]
    {
        assert!(may(good, &allowed), "{good}");
    }
    for bad in ["", "none", "Apache-2.0", "MIT AND GPL-3.0", "(MIT", "MIT MIT", "GPL-3.0 AND (MIT OR MIT)"] {
        assert!(!may(bad, &allowed), "{bad}");
    }
}
