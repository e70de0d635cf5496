//! The bindings in `src/bindings.rs` are those of `wit/filter.wit`. They are kept and not made in
//! each build, so that a filter builds without the generator and its thirty crates.
//!
//! After a change of the WIT: `WEIR_BLESS=1 cargo test -p weir-guest --test bindings`

use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};

#[test]
fn the_bindings_are_those_of_the_wit() {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(concat!(env!("CARGO_MANIFEST_DIR"), "/wit")).unwrap();
    let world = resolve.select_world(&[package], Some("line-filter")).unwrap();
    let options = wit_bindgen_rust::Opts {
        format: true,
        pub_export_macro: true,
        default_bindings_module: Some("weir_guest::bindings".into()),
        runtime_path: Some("::wit_bindgen::rt".into()),
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).unwrap();
    let (_, wanted) = files.iter().next().unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bindings.rs");
    if std::env::var_os("WEIR_BLESS").is_some() {
        std::fs::write(path, wanted).unwrap();
    }
    assert!(std::fs::read(path).unwrap() == wanted, "the WIT has changed: run this test with WEIR_BLESS=1");
}
