//! Filters compiled to WebAssembly, each built once a process.
//!
//! Absent by design: making components of them. What cargo builds is what users push.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use crate::workspace;

/// What guests are built for.
const TARGET: &str = "wasm32-unknown-unknown";

/// The module of the package `name`, built where it is not up to date.
#[track_caller]
pub fn path(name: &str) -> PathBuf {
    built(name, &[]).join(file_name(name))
}

/// A recipe of the cookbook. All are built at once.
#[track_caller]
pub fn recipe(name: &str) -> PathBuf {
    built("cookbook", &["--examples"]).join("examples").join(file_name(name))
}

fn file_name(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}

/// Its bytes.
#[track_caller]
pub fn bytes(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The filter that puts `VERSION` and a blank before each line, with `version` (from 1) in it.
/// Each version is a module of its own, made from one build.
#[track_caller]
pub fn stamp(version: u64) -> Vec<u8> {
    guest_stamp::with_version(&bytes("guest_stamp"), version)
}

/// Where the modules of a package lie.
#[track_caller]
fn built(package: &str, what: &[&str]) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = crate::lock(&BUILT);
    built.entry(package.to_owned()).or_insert_with(|| build(package, what)).clone()
}

#[track_caller]
fn build(package: &str, what: &[&str]) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target_dir = workspace().join(target_dir);
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "-p", package]).args(what);
    command.current_dir(workspace()).arg("--target-dir").arg(&target_dir);
    let output = command.output().expect("run cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "build the guest {package}: {}\n{said}", output.status);
    target_dir.join(TARGET).join("guest")
}
