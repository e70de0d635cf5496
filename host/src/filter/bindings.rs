//! Generated from the WIT that guests are built with.

#![allow(missing_docs, unreachable_pub)]

wasmtime::component::bindgen!({
    path: "../guest-sdk/wit",
    world: "line-filter",
    ownership: Borrowing { duplicate_if_necessary: true },
});
