//! Maps compiled code from the cache: the one place where bytes become code.

#![allow(unsafe_code)]

use std::path::Path;

use wasmtime::component::Component;

/// The component in `code`, a file that `ModuleCache::code` handed out.
pub(super) fn map(engine: &wasmtime::Engine, code: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by `Engine::precompile_component` of this very program and is
    // just now verified against the digest that was stored beside it then. It lies in a directory
    // that only the agent's user can enter, and is never written in place but only replaced. What
    // another version or configuration of wasmtime wrote is refused by its header.
    unsafe { Component::deserialize_file(engine, code) }
}
