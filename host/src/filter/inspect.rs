//! Says what a WebAssembly file is and whether a filter may be what it is.
//!
//! In: bytes. Out: a [`ModuleInfo`], a [`Report`], or a component to compile. Nothing is executed.

use std::borrow::Cow;
use std::collections::BTreeSet;

use wasmparser::{
    ComponentTypeRef, CustomSectionReader, Encoding, KnownCustom, Parser, Payload, TypeBounds, Validator,
    WasmFeatures,
};

use super::FilterError;
use crate::model::Digest;

/// The largest module that is taken: Python and JavaScript filters have some 20 MB. Bytes.
pub const MODULE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The interfaces a filter may import, in any 0.1 version.
const IMPORTS: [&str; 2] = ["weir:filter/types@0.1.", "weir:filter/host@0.1."];
/// Where the interfaces come from.
const PACKAGE: &str = "weir:filter/";
/// What it must export.
const EXPORTS: [&str; 2] = ["init", "process"];
/// Where a core module says which world it is made for.
const WIT_SECTION: &str = "component-type";

/// What a module is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// What it is known by.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Whether it is a core module, which is made a component when it is loaded.
    pub is_core: bool,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

/// What a file is, whether or not it may be a filter.
#[derive(Debug)]
pub struct Report {
    /// What it is known by.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// `component` or `core module`; none where it is no WebAssembly.
    pub form: Option<&'static str>,
    /// What it imports: of a core module that is taken, the component it becomes.
    pub imports: Vec<String>,
    /// What it exports; likewise.
    pub exports: Vec<String>,
    /// The version of the interface it was made for, if it tells.
    pub wit: Option<String>,
    /// What it was made with, as its `producers` sections have it: field, name, version.
    pub producers: BTreeSet<[String; 3]>,
    /// Why it would be refused.
    pub refused: Option<FilterError>,
}

/// Says what can be found out about `bytes`, whatever they are.
pub fn report(bytes: &[u8]) -> Report {
    let (component, refused) = match component(bytes) {
        Ok(component) => (Some(component), None),
        Err(error) => (None, Some(error)),
    };
    // What is too large or no WebAssembly is not looked into.
    let readable = bytes.starts_with(b"\0asm") && bytes.len() as u64 <= MODULE_BYTES_MAX;
    let readable = if readable { bytes } else { &[] };
    let surface = surface(component.as_deref().unwrap_or(readable)).unwrap_or_default();
    let form = if is_core(bytes) { "core module" } else { "component" };
    let version = |import: &String| Some(import.strip_prefix(PACKAGE)?.split_once('@')?.1.to_owned());
    Report {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        form: (!readable.is_empty()).then_some(form),
        // Of a core module the version may be followed by the function.
        wit: surface.imports.iter().find_map(version).and_then(|v| v.split("::").next().map(str::to_owned)),
        imports: surface.imports,
        exports: surface.exports,
        producers: producers(readable),
        refused,
    }
}

/// What stands in all `producers` sections of a file, up to the first thing that cannot be read.
fn producers(bytes: &[u8]) -> BTreeSet<[String; 3]> {
    let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
    let sections = payloads.filter_map(|payload| match payload {
        Payload::CustomSection(section) => Some(section),
        _ => None,
    });
    sections.flat_map(|section| producers_in(&section).unwrap_or_default()).collect()
}

fn producers_in(section: &CustomSectionReader<'_>) -> wasmparser::Result<Vec<[String; 3]>> {
    let KnownCustom::Producers(fields) = section.as_known() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for field in fields {
        let field = field?;
        for value in field.values {
            let value = value?;
            found.push([field.name, value.name, value.version].map(str::to_owned));
        }
    }
    Ok(found)
}

/// Says what `bytes` are, if they are a filter.
pub fn inspect(bytes: &[u8]) -> Result<ModuleInfo, FilterError> {
    let component = component(bytes)?;
    let Surface { imports, exports, .. } = surface(&component)?;
    let size = bytes.len() as u64;
    Ok(ModuleInfo { digest: Digest::of(bytes), size, is_core: is_core(bytes), imports, exports })
}

/// The filter in `bytes` as a component: as it is, or made from a core module.
pub fn component(bytes: &[u8]) -> Result<Cow<'_, [u8]>, FilterError> {
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(FilterError::TooLarge { bytes: bytes.len() as u64 });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(FilterError::NotWasm);
    }
    let component = if is_core(bytes) { Cow::Owned(componentize(bytes)?) } else { Cow::Borrowed(bytes) };
    let Surface { imports, exports, .. } = surface(&component)?;
    check_imports(&imports)?;
    for export in EXPORTS {
        if !exports.iter().any(|name| name == export) {
            return Err(FilterError::Export { export });
        }
    }
    Validator::new_with_features(features()).validate_all(&component).map_err(invalid)?;
    Ok(component)
}

/// What the engine offers; see `engine::config`.
fn features() -> WasmFeatures {
    WasmFeatures::WASM2.difference(WasmFeatures::GC_TYPES)
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::COMPONENT_MODEL
}

fn is_core(bytes: &[u8]) -> bool {
    Parser::is_core_wasm(bytes)
}

fn componentize(core: &[u8]) -> Result<Vec<u8>, FilterError> {
    let Surface { imports, exports, has_wit } = surface(core)?;
    check_imports(&imports)?;
    if !has_wit {
        return Err(FilterError::NoWit);
    }
    for export in EXPORTS {
        if !exports.iter().any(|name| name == export) {
            return Err(FilterError::Export { export });
        }
    }
    let made =
        wit_component::ComponentEncoder::default().module(core).and_then(|mut encoder| encoder.encode());
    made.map_err(|error| FilterError::Componentize(error.into()))
}

fn check_imports(imports: &[String]) -> Result<(), FilterError> {
    let allowed = |import: &str| IMPORTS.iter().any(|allowed| import.starts_with(allowed));
    let Some(import) = imports.iter().find(|import| !allowed(import)) else { return Ok(()) };
    let hint = if import.starts_with("wasi") {
        ": build it for wasm32-unknown-unknown, without WASI"
    } else if import.starts_with(PACKAGE) {
        ": it was made for another version of weir"
    } else {
        ""
    };
    Err(FilterError::Import { import: import.clone(), hint })
}

/// What a module shows to the outside.
#[derive(Default)]
struct Surface {
    imports: Vec<String>,
    exports: Vec<String>,
    has_wit: bool,
}

fn surface(bytes: &[u8]) -> Result<Surface, FilterError> {
    let mut surface = Surface::default();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            payload if depth == 1 => surface.add(payload).map_err(invalid)?,
            _ => {}
        }
    }
    Ok(surface)
}

impl Surface {
    fn add(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    self.imports.push(format!("{}::{}", import.module, import.name));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    self.exports.push(export?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import?;
                    // A name for a type that is known already asks for nothing.
                    if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                        self.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    self.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) => self.has_wit |= section.name().starts_with(WIT_SECTION),
            _ => {}
        }
        Ok(())
    }
}

fn invalid(error: wasmparser::BinaryReaderError) -> FilterError {
    FilterError::Invalid(error.into())
}
