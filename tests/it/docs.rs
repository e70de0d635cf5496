//! What `docs/filters` shows is what the sources are and what the commands do.

use std::collections::BTreeSet;
use std::path::Path;

use weir_tests::{guests, workspace};

use crate::unconnected;

fn page(name: &str) -> String {
    let path = workspace().join("docs/filters").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// What stands in the first block of `text` that is fenced as `fence` says.
#[track_caller]
fn block<'a>(text: &'a str, fence: &str) -> &'a str {
    let (_, behind) =
        text.split_once(&format!("```{fence}\n")).unwrap_or_else(|| panic!("no {fence} in {text}"));
    behind.split_once("```\n").expect("the end of a block").0
}

/// A filter of the cookbook.
struct Recipe<'a> {
    name: &'a str,
    config: Option<&'a str>,
    source: &'a str,
    /// What `weir module test` prints.
    shown: &'a str,
}

impl Recipe<'_> {
    /// The lines that it was shown with.
    fn lines(&self) -> Vec<&str> {
        let lines = self.shown.lines().take_while(|line| !line.is_empty());
        let before = lines.filter(|line| !line.starts_with('+') && !line.starts_with("!  "));
        before.map(|line| &line[2..]).collect()
    }
}

fn recipes(page: &str) -> Vec<Recipe<'_>> {
    let sections = page.split("\n## ").skip(1);
    let recipe = |section| {
        let head = str::split_once(section, "[`").expect("a link to the source").1;
        let (name, rest) = head.split_once(".rs`]").expect("a link to the source");
        let config = rest.split_once("\"config\": ").and_then(|(before, rest)| {
            (!before.contains('\n')).then(|| rest.split_once("`:\n").expect("a config in a line").0)
        });
        Recipe { name, config, source: block(section, "rust"), shown: block(section, "text") }
    };
    sections.map(recipe).collect()
}

#[test]
fn the_cookbook_shows_every_recipe_as_it_is() {
    let page = page("cookbook.md");
    let recipes = recipes(&page);
    let dir = workspace().join("examples/cookbook/recipes");
    for Recipe { name, source, .. } in &recipes {
        let file = std::fs::read_to_string(dir.join(name).with_extension("rs")).expect("a recipe");
        let (code, _) = file.split_once("\n#[cfg(test)]\n").expect("a recipe has tests");
        assert_eq!(source.trim_end(), code.trim_end(), "{name}: the page and the source differ");
    }
    let shown: BTreeSet<_> = recipes.iter().map(|recipe| format!("{}.rs", recipe.name)).collect();
    let files = std::fs::read_dir(dir).expect("the recipes").flatten();
    let there: BTreeSet<_> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    assert_eq!(shown, there);
    assert_eq!(shown.len(), 12);
}

#[test]
fn the_recipes_do_in_webassembly_what_the_cookbook_shows() {
    let page = page("cookbook.md");
    let weir = unconnected();
    for recipe in recipes(&page) {
        write(&weir.file("sample.log"), &(recipe.lines().join("\n") + "\n"));
        write(&weir.file("sample.expected"), recipe.shown);
        let wasm = guests::recipe(recipe.name);
        let mut args = vec!["module", "test", wasm.to_str().expect("text"), "sample.log"];
        args.extend(["--expect", "sample.expected"]);
        args.extend(recipe.config.into_iter().flat_map(|config| ["--with-config", config]));
        let said = weir.bare(&args);
        assert_eq!(said.code(), 0, "{}: {}{}", recipe.name, said.stdout, said.stderr);
    }
}

#[track_caller]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
