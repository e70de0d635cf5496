//! `weir module build`: makes a filter from a crate, with nothing but cargo and one target, or from
//! what another tool has made.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};

use super::foreign::{self, Made};
use crate::filter::inspect;
use crate::model::Digest;

const TARGET: &str = "wasm32-unknown-unknown";

/// How filters are compiled, wherever the crate stands: as weir's own examples are.
const CONFIG: [&str; 7] = [
    "profile.guest.inherits='release'",
    "profile.guest.opt-level=3",
    "profile.guest.lto=true",
    "profile.guest.codegen-units=1",
    "profile.guest.panic='abort'",
    "profile.guest.strip='symbols'",
    "target.wasm32-unknown-unknown.rustflags=['-C','target-feature=+simd128']",
];

/// Where to build what.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir module build                        the crate in this directory
  weir module build filter.core.wasm       what clang, Go or another compiler made

A core module becomes a component of the world line-filter. What it imports of WASI (preview 1) is
stubbed out: there are no arguments, variables and files; time stands almost still, random bytes are always
the same, what is written to standard output and standard error is logged; any other call says in the
log what was called, and traps. A component is only checked. The path of the module is printed last.")]
pub struct BuildArgs {
    /// The filter's crate, or a module that another tool made
    #[arg(default_value = ".", value_name = "DIR|FILE")]
    pub from: PathBuf,
    /// Where the module goes [default: DIR/target/weir/NAME.wasm, FILE with .filter.wasm at its end]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What was built.
pub(super) struct Built {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    digest: Digest,
    imports: Vec<String>,
    stubbed: Vec<String>,
}

/// Builds a module and prints its size, imports, digest, and, last, its path.
pub fn run(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let Built { path, size, digest, imports, stubbed } = built(&args.from, args.out)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "size     {size} bytes")?;
    let imports = if imports.is_empty() { "none".into() } else { imports.join(", ") };
    writeln!(stdout, "imports  {imports}")?;
    if !stubbed.is_empty() {
        writeln!(stdout, "stubbed  {}", stubbed.join(", "))?;
    }
    writeln!(stdout, "digest   {digest}")?;
    writeln!(stdout, "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the crate in a directory, or makes a filter of a module.
pub(super) fn built(from: &Path, out: Option<PathBuf>) -> anyhow::Result<Built> {
    let (core, out) = if from.is_file() {
        (from.to_owned(), out.unwrap_or_else(|| from.with_extension("filter.wasm")))
    } else {
        let manifest = from.join("Cargo.toml");
        let manifest = manifest.canonicalize().with_context(|| format!("open {}", manifest.display()))?;
        check_target(from)?;
        let core = build(from, &manifest)?;
        let name = core.file_name().context("cargo built a file without a name")?.to_owned();
        (core, out.unwrap_or_else(|| from.join("target/weir").join(name)))
    };
    let bytes = fs::read(&core).with_context(|| format!("read {}", core.display()))?;
    let Made { component, stubbed } =
        foreign::component(&bytes).with_context(|| format!("{} is no filter", core.display()))?;
    let info = inspect::inspect(&component)?;
    write(&out, &component).with_context(|| format!("write {}", out.display()))?;
    Ok(Built { path: out, size: info.size, digest: info.digest, imports: info.imports, stubbed })
}

/// Asks rustc, not rustup: not everybody has rustup.
fn check_target(dir: &Path) -> anyhow::Result<()> {
    let mut rustc = program("RUSTC", "rustc", dir);
    let asked = rustc.args(["--print=target-libdir", "--target", TARGET]).stderr(Stdio::inherit()).output();
    let asked = asked.context("run rustc; Rust comes from https://rustup.rs")?;
    let libdir = String::from_utf8_lossy(&asked.stdout);
    let installed = asked.status.success() && Path::new(libdir.trim()).is_dir();
    ensure!(installed, "Rust's target {TARGET} is not installed: rustup target add {TARGET}");
    Ok(())
}

/// Builds the crate of `manifest`, in `dir`; the core module that comes out.
fn build(dir: &Path, manifest: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = program("CARGO", "cargo", dir);
    cargo.args([
        "build",
        "--lib",
        "--profile=guest",
        "--message-format=json-render-diagnostics",
        "--target",
        TARGET,
    ]);
    CONFIG.iter().for_each(|setting| _ = cargo.args(["--config", setting]));
    let built =
        cargo.stderr(Stdio::inherit()).output().context("run cargo; Rust comes from https://rustup.rs")?;
    ensure!(built.status.success(), "cargo build failed in {}", dir.display());
    let mut modules = built.stdout.split(|byte| *byte == b'\n').filter_map(|line| module_of(line, manifest));
    match (modules.next(), modules.next()) {
        (Some(module), None) => Ok(module),
        (Some(_), Some(_)) => bail!("{} builds several modules", manifest.display()),
        (None, _) => bail!(
            "{} builds no module: its [lib] needs crate-type = [\"cdylib\", \"rlib\"]",
            manifest.display()
        ),
    }
}

/// The module that a line of cargo's messages tells of, if it comes from the crate of `manifest`.
fn module_of(line: &[u8], manifest: &Path) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_slice(line).ok()?;
    let ours = Path::new(message["manifest_path"].as_str()?) == manifest;
    let mut files = message["filenames"].as_array()?.iter().filter_map(|file| file.as_str());
    files.find(|file| ours && file.ends_with(".wasm")).map(PathBuf::from)
}

/// `name`, or what the environment names in its place, to be run in `dir`.
fn program(variable: &str, name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| OsString::from(name)));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Renamed into place, since an agent may be watching the file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::Builder::new().permissions(permissions()).tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// A module is no secret; the umask still holds.
fn permissions() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

    #[test]
    fn an_example_becomes_a_component() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("new/x.wasm");
        let args = BuildArgs { from: Path::new(ROOT).join("examples/drop_debug"), out: Some(path.clone()) };
        assert_eq!(run(args).unwrap(), ExitCode::SUCCESS);
        let info = inspect::inspect(&fs::read(path).unwrap()).unwrap();
        assert!(!info.is_core && info.exports == ["init", "process"]);
    }

    #[test]
    fn a_crate_that_is_no_filter_says_what_it_lacks() {
        let said = |dir: &str| {
            let args = BuildArgs { from: Path::new(ROOT).join(dir), out: None };
            format!("{:#}", run(args).unwrap_err())
        };
        assert!(said("guest-sdk").contains("crate-type"));
        assert!(said("examples").contains("Cargo.toml"));
    }
}
