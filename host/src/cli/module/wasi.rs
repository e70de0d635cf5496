//! What a module that was built for WASI gets in its place: nothing, as harmlessly as that goes.
//!
//! In: a core module that imports `wasi_snapshot_preview1`. Out: an adapter for it, a core module that
//! has just these functions, over the memory of the module that calls them. There are no files, no
//! environment, no time and no chance in a filter, so:
//!
//! | function | does |
//! |---|---|
//! | `args_*`, `environ_*` | tell that there are none |
//! | `clock_time_get` | begins at 1970-01-01 00:00:01 and goes on by 1 µs with each call |
//! | `clock_res_get` | 1 µs |
//! | `random_get` | the same bytes, always |
//! | `sched_yield` | returns |
//! | `fd_write` to 1 or 2 | logs what is written, as information or as a warning |
//! | every other `fd_*` | returns `EBADF`: there is no such file |
//! | all else | says in the log what was called, and traps |

use std::fmt::Write as _;

use anyhow::Context as _;
use wasmparser::{FuncType, Parser, Payload, TypeRef, ValType};

/// Where modules for WASI import from.
pub(super) const MODULE: &str = "wasi_snapshot_preview1";

/// What does no harm: name, signature, body. An error number is returned; 8 is `EBADF`.
const HARMLESS: [(&str, &str, &str); 9] = [
    ("args_get", "(param i32 i32) (result i32)", "(i32.const 0)"),
    ("args_sizes_get", "(param i32 i32) (result i32)", NO_SIZES),
    ("environ_get", "(param i32 i32) (result i32)", "(i32.const 0)"),
    ("environ_sizes_get", "(param i32 i32) (result i32)", NO_SIZES),
    (
        "clock_time_get",
        "(param i32 i64 i32) (result i32)",
        "(i64.store (local.get 2) (global.get $clock))
         (global.set $clock (i64.add (global.get $clock) (i64.const 1000)))
         (i32.const 0)",
    ),
    (
        "clock_res_get",
        "(param i32 i32) (result i32)",
        "(i64.store (local.get 1) (i64.const 1000)) (i32.const 0)",
    ),
    (
        "random_get",
        "(param i32 i32) (result i32)",
        "(memory.fill (local.get 0) (i32.const 0x5a) (local.get 1)) (i32.const 0)",
    ),
    ("sched_yield", "(result i32)", "(i32.const 0)"),
    ("fd_write", "(param i32 i32 i32 i32) (result i32)", FD_WRITE),
];

/// `(count: *u32, bytes: *u32)`
const NO_SIZES: &str =
    "(i32.store (local.get 0) (i32.const 0)) (i32.store (local.get 1) (i32.const 0)) (i32.const 0)";

/// `(fd: u32, parts: *(at, length), count: u32, written: *u32)`: each part is a message, without the
/// newline at its end; one that then is empty is none.
const FD_WRITE: &str = "
    (local $at i32) (local $length i32) (local $written i32)
    (if (i32.gt_u (i32.sub (local.get 0) (i32.const 1)) (i32.const 1)) (then (return (i32.const 8))))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get 2)))
        (local.set $at (i32.load (local.get 1)))
        (local.set $length (i32.load offset=4 (local.get 1)))
        (local.set $written (i32.add (local.get $written) (local.get $length)))
        (if (local.get $length) (then
          (if (i32.eq (i32.load8_u (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 1))) (i32.const 10))
            (then (local.set $length (i32.sub (local.get $length) (i32.const 1)))))))
        (if (local.get $length) (then
          (call $log
            (select (i32.const 3) (i32.const 2) (i32.eq (local.get 0) (i32.const 1)))
            (local.get $at) (local.get $length))))
        (local.set 1 (i32.add (local.get 1) (i32.const 8)))
        (local.set 2 (i32.sub (local.get 2) (i32.const 1)))
        (br $next)))
    (i32.store (local.get 3) (local.get $written))
    (i32.const 0)";

/// A function that is imported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    ty: FuncType,
}

/// What a core module wants of WASI; each function once.
pub(super) fn wanted(core: &[u8]) -> anyhow::Result<Vec<Wanted>> {
    let (mut types, mut wanted) = (Vec::new(), Vec::<Wanted>::new());
    for payload in Parser::new(0).parse_all(core) {
        match payload? {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    types.push(ty?);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let TypeRef::Func(index) = import.ty else { continue };
                    if import.module == MODULE && wanted.iter().all(|known| known.name != import.name) {
                        let ty = types.get(index as usize).context("a function has no type")?.clone();
                        wanted.push(Wanted { name: import.name.to_owned(), ty });
                    }
                }
            }
            _ => {}
        }
    }
    Ok(wanted)
}

/// The functions, as a core module that imports the host's `log`.
pub(super) fn adapter(wanted: &[Wanted]) -> anyhow::Result<Vec<u8>> {
    let mut text = String::from(
        "(module
           (import \"weir:filter/host@0.1.0\" \"log\" (func $log (param i32 i32 i32)))
           (import \"env\" \"memory\" (memory 0))
           (global $clock (mut i64) (i64.const 1_000_000_000))",
    );
    for function in wanted {
        let (name, signature) = (&function.name, function.signature());
        _ = write!(text, "(func (export {name:?}) {signature} {})", function.body(&signature));
    }
    Ok(wat::parse_str(text + ")")?)
}

impl Wanted {
    fn signature(&self) -> String {
        let part = |word: &str, types: &[ValType]| match types {
            [] => None,
            types => Some(format!(
                "({word} {})",
                types.iter().map(ValType::to_string).collect::<Vec<_>>().join(" ")
            )),
        };
        let parts = [part("param", self.ty.params()), part("result", self.ty.results())];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn body(&self, signature: &str) -> String {
        let harmless = HARMLESS.iter().find(|(name, known, _)| *name == self.name && *known == signature);
        match harmless {
            Some((_, _, body)) => (*body).to_owned(),
            None if self.name.starts_with("fd_") && self.ty.results() == [ValType::I32] => {
                "(i32.const 8)".into()
            }
            None => trap(&self.name),
        }
    }
}

/// Says in the log that `name` was called, and traps. The message overwrites what the memory begins
/// with: nobody will read that any more, and an adapter has no memory of its own.
fn trap(name: &str) -> String {
    let message = format!("the module called {name} of WASI, which a filter has not");
    let mut text = String::new();
    for (at, part) in (0..).step_by(8).zip(message.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        _ = write!(text, "(i64.store (i32.const {at}) (i64.const {}))", i64::from_le_bytes(bytes));
    }
    text + &format!("(call $log (i32.const 1) (i32.const 0) (i32.const {})) unreachable", message.len())
}
