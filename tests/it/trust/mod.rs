//! What a hostile list, module, line or neighbour cannot do: the tests that SECURITY.md names.

mod confine;
mod names;
mod policy;
mod roles;
mod secrets;
mod signed;

use std::path::Path;

/// Every test that SECURITY.md names, as the path of its file and its function.
#[test]
fn every_test_that_the_security_page_names_is_there() {
    let root = weir_tests::workspace();
    let page = std::fs::read_to_string(root.join("SECURITY.md")).expect("SECURITY.md");
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains("::"));
    let names: Vec<&str> = rows.flat_map(|row| row.split('`').filter(|word| word.contains("::"))).collect();
    assert!(names.len() > 30, "{names:?}");
    let missing: Vec<_> = names.into_iter().filter(|name| !is_there(&root, name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

fn is_there(root: &Path, name: &str) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let Some((function, modules)) = parts.split_last() else { return false };
    let inner: Vec<&str> = modules.iter().copied().filter(|module| *module != "tests").collect();
    let path = inner.join("/");
    let files = ["host/src", "tests/it"].into_iter().flat_map(|base| {
        [
            format!("{path}.rs"),
            format!("{path}/mod.rs"),
            format!("{path}/tests.rs"),
            format!("{path}/tests/mod.rs"),
        ]
        .map(|file| root.join(base).join(file))
    });
    let has = |text: &str| text.contains(&format!("fn {function}()"));
    files.into_iter().filter_map(|file| std::fs::read_to_string(file).ok()).any(|text| has(&text))
}
