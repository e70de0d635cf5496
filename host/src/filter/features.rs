//! What of WebAssembly a filter may use: each feature and import that is not wanted is refused when
//! a module is pushed and when it is loaded, and the engine would refuse it too.

use super::{FilterError, engine, inspect};

/// A component that is a filter by its names, with this in its core module, and this beside that.
fn with(core: &str, component: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
            {component}
            (core module $m {core} (func (export "init")) (func (export "process")))
            (core instance $i (instantiate $m))
            (func $init (canon lift (core func $i "init")))
            (func $process (canon lift (core func $i "process")))
            (export "init" (func $init))
            (export "process" (func $process)))"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn engine_takes(component: &[u8]) -> bool {
    wasmtime::Engine::new(&engine::config()).unwrap().precompile_component(component).is_ok()
}

/// What filters are built with: the compilers' defaults, and what makes code fast.
const WANTED: [(&str, &str); 8] = [
    ("nothing", ""),
    ("vectors", "(func (drop (i8x16.splat (i32.const 1))))"),
    ("bulk memory", "(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1)))"),
    ("several results", "(func (result i32 i32) (i32.const 1) (i32.const 2))"),
    ("references to functions", "(table 1 funcref) (func (drop (ref.is_null (ref.null func))))"),
    ("several tables", "(table 1 funcref) (table 2 funcref)"),
    ("extended constants", "(global i32 (i32.add (i32.const 1) (i32.const 1)))"),
    ("tail calls", "(func $f (return_call $f))"),
];

/// What no filter needs: each is more code that must be right.
const UNWANTED: [(&str, &str); 12] = [
    ("shared memory", "(memory 1 1 shared)"),
    ("atomics", "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))"),
    ("64-bit memory", "(memory i64 1)"),
    ("several memories", "(memory 1) (memory 1)"),
    ("pages of another size", "(memory 1 (pagesize 1))"),
    ("garbage collection", "(type (struct (field i32)))"),
    ("references to things of the host", "(table 1 externref)"),
    ("exceptions", "(tag)"),
    ("exceptions of the older kind", "(func try catch_all end)"),
    ("stack switching", "(type $f (func)) (type (cont $f))"),
    (
        "vectors without one meaning",
        "(func (param v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 0)))",
    ),
    ("128-bit arithmetic", "(func (result i64 i64) (i64.mul_wide_s (i64.const 1) (i64.const 1)))"),
];

#[test]
fn what_filters_are_built_with_is_taken() {
    for (name, core) in WANTED {
        let component = with(core, "");
        inspect::component(&component).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(engine_takes(&component), "{name}");
    }
}

#[test]
fn what_no_filter_needs_is_refused_before_it_is_compiled_and_by_the_engine() {
    for (name, core) in UNWANTED {
        let component = with(core, "");
        let refused = inspect::component(&component);
        assert!(matches!(refused, Err(FilterError::Invalid(_))), "{name}: {refused:?}");
        assert!(!engine_takes(&component), "{name}");
    }
    // The engine has these in any case, so the first wall is the only one.
    let component = with("(type $t (func)) (func (param (ref $t)))", "");
    let refused = inspect::component(&component);
    assert!(matches!(refused, Err(FilterError::Invalid(_))), "typed references: {refused:?}");
    // Of the component model: what runs beside the caller.
    for (name, component) in [("streams", "(type (stream u8))"), ("futures", "(type (future u8))")] {
        let component = with("", component);
        let refused = inspect::component(&component);
        assert!(matches!(refused, Err(FilterError::Invalid(_))), "{name}: {refused:?}");
        assert!(!engine_takes(&component), "{name}");
    }
}

#[test]
fn every_import_but_the_two_interfaces_is_refused_by_name() {
    for import in [
        "wasi:cli/environment@0.2.0",
        "wasi:cli/stdout@0.2.0",
        "wasi:clocks/wall-clock@0.2.0",
        "wasi:filesystem/preopens@0.2.0",
        "wasi:http/outgoing-handler@0.2.0",
        "wasi:random/random@0.2.0",
        "wasi:sockets/tcp@0.2.0",
        "weir:filter/host@0.2.0",
        "weir:filter/shell@0.1.0",
        "weir:other/host@0.1.0",
    ] {
        let component = with("", &format!("(import {import:?} (instance))"));
        let refused = inspect::component(&component);
        assert!(
            matches!(&refused, Err(FilterError::Import { import: named, .. }) if named == import),
            "{refused:?}"
        );
    }
    for (module, item) in [
        ("wasi_snapshot_preview1", "(func)"),
        ("env", "(memory 1)"),
        ("env", "(table 1 funcref)"),
        ("env", "(global (mut i32))"),
    ] {
        let core = wat::parse_str(format!("(module (import {module:?} \"it\" {item}))")).unwrap();
        let refused = inspect::component(&core);
        let named = format!("{module}::it");
        assert!(
            matches!(&refused, Err(FilterError::Import { import, .. }) if *import == named),
            "{refused:?}"
        );
    }
}

#[test]
fn the_two_interfaces_are_taken() {
    for interface in ["weir:filter/types@0.1.0", "weir:filter/host@0.1.7"] {
        inspect::component(&with("", &format!("(import {interface:?} (instance))"))).unwrap();
    }
}
