//! `weir module inspect`: what a module is, and whether an agent would take it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::visible::plain;
use crate::filter::inspect::{Report, report};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module inspect target/weir/redact.wasm

Exit code 0: an agent would take the module as it is. 1: it would refuse it; the last line says why.
A core module is shown as the component that it becomes when it is loaded. Nothing of it is executed.")]
pub struct InspectArgs {
    /// The module
    wasm: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(&args.wasm).with_context(|| format!("cannot read {}", args.wasm.display()))?;
    let report = report(&bytes);
    let text =
        if args.json { serde_json::to_string_pretty(&as_json(&report))? + "\n" } else { as_text(&report) };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if report.refused.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The error with its causes: those of wasmparser say where in the file.
fn cause(report: &Report) -> Option<String> {
    let error = report.refused.as_ref()?;
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    Some(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

fn as_json(report: &Report) -> Value {
    let producers = report
        .producers
        .iter()
        .map(|[field, name, version]| json!({"field": field, "name": name, "version": version}));
    json!({
        "digest": report.digest.to_string(),
        "bytes": report.size,
        "form": report.form,
        "interface": report.wit,
        "imports": report.imports,
        "exports": report.exports,
        "producers": producers.collect::<Vec<_>>(),
        "accepted": report.refused.is_none(),
        "cause": cause(report),
    })
}

fn as_text(report: &Report) -> String {
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let interface = report.wit.as_ref().map_or("unknown".into(), |version| format!("weir:filter@{version}"));
    let makers = report.producers.iter().map(|[field, name, version]| format!("{name} {version} ({field})"));
    let rows = [
        ("form", report.form.unwrap_or("no WebAssembly").to_owned()),
        ("interface", interface),
        ("imports", list(&report.imports)),
        ("exports", list(&report.exports)),
        ("made with", list(&makers.collect::<Vec<_>>())),
        ("size", format!("{} bytes", report.size)),
        ("digest", report.digest.to_string()),
        ("accepted", cause(report).map_or("yes".into(), |cause| format!("no: {cause}"))),
    ];
    rows.iter().map(|(name, value)| format!("{name:9}  {}\n", plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_tests::guests;

    #[test]
    fn a_filter_is_described_and_accepted() {
        let text = as_text(&report(&guests::bytes("drop_debug")));
        for line in ["form       core module\n", "interface  weir:filter@0.1.0\n", "accepted   yes\n"] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.contains("exports    init, process\n"), "{text}");
    }

    #[test]
    fn the_producers_of_a_component_are_named() {
        let core = guests::bytes("drop_debug");
        let component = crate::filter::inspect::component(&core).unwrap();
        let json = as_json(&report(&component));
        assert_eq!(json["form"], "component");
        let names = json["producers"].as_array().unwrap().iter().map(|maker| &maker["name"]);
        assert!(names.into_iter().any(|name| name == "wit-component"), "{json}");
    }

    #[test]
    fn what_is_refused_says_why_and_shows_what_it_has() {
        // A core module that imports the function x of the module `wasi_y`.
        let wasm = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0c\x01\x06wasi_y\x01x\0\0";
        let json = as_json(&report(wasm));
        assert_eq!((&json["accepted"], &json["imports"]), (&json!(false), &json!(["wasi_y::x"])));
        assert!(json["cause"].as_str().unwrap().contains("without WASI"), "{json}");
        let text = as_text(&report(b"\x1b[2J"));
        assert!(text.contains("form       no WebAssembly\n") && text.contains("accepted   no: "), "{text}");
    }

    #[test]
    fn what_is_cut_off_is_invalid_and_says_where() {
        let core = guests::bytes("drop_debug");
        let json = as_json(&report(&core[..core.len() / 2]));
        assert!(json["cause"].as_str().unwrap().contains("offset"), "{json}");
    }
}
