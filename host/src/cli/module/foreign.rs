//! A module that another tool made, as a filter.
//!
//! In: a core module or a component. Out: a component that imports nothing but the interface of
//! weir, or why there can be none. What a core module wants of WASI is stubbed out, as `wasi.rs`
//! says; one that does not say which world it is made for is taken as a filter.

use std::borrow::Cow;

use anyhow::Context as _;
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::wasi;
use crate::filter::inspect;

/// The interface.
const WIT: &str = include_str!("../../../../guest-sdk/wit/filter.wit");
/// What an adapter for WASI imports.
const STUBS: &str = "package weir:stubs; world stubs { import weir:filter/host@0.1.0; }";
/// Where a core module says which world it is made for.
const WIT_SECTION: &str = "component-type";

/// A filter, and what was done to make it one.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) component: Vec<u8>,
    /// The functions of WASI that were stubbed out.
    pub(super) stubbed: Vec<String>,
}

/// Makes a filter of `bytes`.
pub(super) fn component(bytes: &[u8]) -> anyhow::Result<Made> {
    if !Parser::is_core_wasm(bytes) {
        let component = inspect::component(bytes).context(
            "it is a component, in which WASI cannot be stubbed out; where that is what it wants, have its tool \
             leave it away or make a core module (docs/filters/languages.md)",
        )?;
        return Ok(Made { component: component.into_owned(), stubbed: Vec::new() });
    }
    let wanted = wasi::wanted(bytes).context("it cannot be read")?;
    let core = with_world(bytes)?;
    let mut encoder = ComponentEncoder::default().module(&core)?;
    if !wanted.is_empty() {
        let mut adapter = wasi::adapter(&wanted)?;
        embed(&mut adapter, "stubs")?;
        encoder = encoder.adapter(wasi::MODULE, &adapter)?;
    }
    let component = encoder.encode().context("no component can be made of it")?;
    inspect::component(&component)?;
    Ok(Made { component, stubbed: wanted.into_iter().map(|function| function.name).collect() })
}

/// A core module that says that it is a filter.
pub(super) fn with_world(core: &[u8]) -> anyhow::Result<Cow<'_, [u8]>> {
    for payload in Parser::new(0).parse_all(core) {
        if let Payload::CustomSection(section) = payload.context("it cannot be read")?
            && section.name().starts_with(WIT_SECTION)
        {
            return Ok(core.into());
        }
    }
    let mut core = core.to_vec();
    embed(&mut core, "line-filter")?;
    Ok(core.into())
}

fn embed(core: &mut Vec<u8>, world: &str) -> anyhow::Result<()> {
    let mut resolve = Resolve::default();
    resolve.push_str("filter.wit", WIT)?;
    resolve.push_str("stubs.wit", STUBS)?;
    let found = resolve.worlds.iter().find(|(_, known)| known.name == world).map(|(id, _)| id);
    embed_component_metadata(
        core,
        &resolve,
        found.context("the world is in the interface")?,
        StringEncoding::UTF8,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use tracing_subscriber::layer::SubscriberExt as _;
    use weir_tests::guests;

    use crate::cli::module::cases::Heard;
    use crate::cli::module::sample::{compile, context};
    use crate::filter::{Batch, Compiler, ErrorKind};
    use crate::model::FILTER_MEMORY;

    /// A filter whose `init` does what `start` says, and traps unless that leaves 0; whose `process`
    /// does `line`. `$at` is where 1 KiB of its memory is free.
    fn guest(start: &str, line: &str) -> Vec<u8> {
        let text = format!(
            r#"(module
              (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
              (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
              (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
              (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
              (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
              (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
              (memory (export "memory") 1)
              (global $at i32 (i32.const 4096))
              (data (i32.const 64) "hello\n")
              (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
              (func (export "init") (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                (if {start} (then unreachable))
                (i32.const 16))
              (func (export "process") (param i32 i32 i64 i64 i32 i32 i32 i32 i32 i32) (result i32)
                {line}
                unreachable))"#
        );
        component(&wat::parse_str(text).unwrap()).unwrap().component
    }

    /// What becomes of one line, and what is logged.
    fn run(start: &str, line: &str) -> (Result<ErrorKind, String>, Vec<String>) {
        let module =
            compile(Path::new("a guest"), &guest(start, line), FILTER_MEMORY, Compiler::InProcess).unwrap();
        let heard = Heard::default();
        let ears = tracing_subscriber::registry().with(heard.clone());
        let kind = tracing::subscriber::with_default(ears, || {
            let mut filter =
                module.prepare(context(Vec::new()).unwrap()).map_err(|error| error.to_string())?;
            let batch = Batch { path: "a", offset: 0, unix_ms: 0, bytes: b"x\n", starts: &[0], ends: &[1] };
            Ok(filter.process(&batch).refused[0].kind)
        });
        // A line that fails is tried again, alone.
        let mut logs = heard.take();
        logs.dedup();
        (kind, logs)
    }

    #[test]
    fn what_is_harmless_is_answered() {
        for start in [
            "(call $clock (i32.const 0) (i64.const 0) (global.get $at))",
            "(i64.ne (i64.const 1000000000)
               (block (result i64) (drop (call $clock (i32.const 0) (i64.const 0) (global.get $at))) (i64.load (global.get $at))))",
            "(block (result i32)
               (i32.store (global.get $at) (i32.const 7))
               (drop (call $environ (global.get $at) (i32.add (global.get $at) (i32.const 4))))
               (i32.load (global.get $at)))",
            "(i32.ne (i32.const 0x5a5a5a5a)
               (block (result i32) (drop (call $random (global.get $at) (i32.const 4))) (i32.load (global.get $at))))",
            "(i32.ne (i32.const 8) (call $prestat (i32.const 3) (global.get $at)))",
            "(i32.ne (i32.const 8) (call $write (i32.const 3) (global.get $at) (i32.const 0) (global.get $at)))",
        ] {
            assert_eq!(run(start, "").0, Ok(ErrorKind::Trap), "{start}");
        }
        assert!(run("(i32.const 1)", "").0.is_err());
    }

    #[test]
    fn what_is_written_is_logged_and_counted_as_written() {
        let parts = "(i32.store (global.get $at) (i32.const 64)) (i32.store offset=4 (global.get $at) (i32.const 6))
             (i32.store offset=8 (global.get $at) (i32.const 69)) (i32.store offset=12 (global.get $at) (i32.const 1))";
        let start = |fd| {
            format!(
                "(i32.ne (i32.const 7) (block (result i32) {parts}
                   (drop (call $write (i32.const {fd}) (global.get $at) (i32.const 2) (i32.const 4000)))
                   (i32.load (i32.const 4000))))"
            )
        };
        assert_eq!(run(&start(1), ""), (Ok(ErrorKind::Trap), vec!["info hello".to_owned()]));
        assert_eq!(run(&start(2), ""), (Ok(ErrorKind::Trap), vec!["warn hello".to_owned()]));
    }

    #[test]
    fn any_other_call_traps_and_says_which() {
        let (kind, logs) = run("(i32.const 0)", "(call $exit (i32.const 0))");
        assert_eq!(kind, Ok(ErrorKind::Trap));
        assert_eq!(logs, ["error the module called proc_exit of WASI, which a filter has not"]);
    }

    #[test]
    fn a_module_that_knows_its_world_keeps_it_and_one_that_imports_more_is_refused() {
        let core = guests::bytes("drop_debug");
        assert_eq!(with_world(&core).unwrap(), &core[..]);
        let made = component(&core).unwrap();
        assert!(made.stubbed.is_empty() && made.component == *inspect::component(&core).unwrap());
        let again = component(&made.component).unwrap();
        assert!(again.component == made.component, "a component is as it was");
        let other = wat::parse_str(r#"(module (import "env" "x" (func)))"#).unwrap();
        assert!(
            format!("{:#}", component(&other).unwrap_err()).contains("env"),
            "{:#}",
            component(&other).unwrap_err()
        );
        assert!(component(b"no module").is_err());
    }
}
