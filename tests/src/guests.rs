//! Filters compiled to WebAssembly, each built once a process.
//!
//! Absent by design: making components of them. What cargo builds is what users push.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::workspace;

/// What guests are built for.
const TARGET: &str = "wasm32-unknown-unknown";

/// The module of the package `name`, built where it is not up to date.
#[track_caller]
pub fn path(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

/// Its bytes.
#[track_caller]
pub fn bytes(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The same module under another digest: a custom section named `weir-tests` with `mark` in it is
/// put behind. It does what it did.
pub fn variant(module: &[u8], mark: u32) -> Vec<u8> {
    let name = b"weir-tests";
    let body_bytes = 1 + name.len() + 4;
    let mut bytes = module.to_vec();
    // Section id 0 is custom; both lengths fit one LEB128 byte.
    bytes.extend([0, body_bytes as u8, name.len() as u8]);
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&mark.to_le_bytes());
    bytes
}

#[track_caller]
fn build(name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "-p", name]);
    command.current_dir(workspace()).arg("--target-dir").arg(&target_dir);
    let output = command.output().expect("run cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "build the guest {name}: {}\n{said}", output.status);
    target_dir.join(TARGET).join("guest").join(format!("{}.wasm", name.replace('-', "_")))
}
