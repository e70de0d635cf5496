//! Generated from `wit/filter.wit`.

#![allow(unsafe_code, missing_docs, unreachable_pub, clippy::too_many_arguments)]

wit_bindgen::generate!({
    path: "wit",
    world: "line-filter",
    pub_export_macro: true,
    default_bindings_module: "weir_guest::bindings",
    runtime_path: "::wit_bindgen::rt",
});
