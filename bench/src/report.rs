//! What is printed while it is measured, and kept as `target/bench/results.{md,json}`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weir_tests::workspace;

use crate::agent::Agent;
use crate::plan::Plan;

/// A table of figures.
#[derive(Debug)]
pub(crate) struct Table {
    measure: String,
    title: String,
    markdown: String,
    rows: Vec<Value>,
}

impl Table {
    pub(crate) fn new(measure: &str, title: &str, columns: &[&str]) -> Self {
        let markdown =
            format!("### {title}\n\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        Self { measure: measure.into(), title: title.into(), markdown, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: &[String], json: Value) {
        writeln!(self.markdown, "| {} |", cells.join(" | ")).expect("memory takes every write");
        self.rows.push(json);
    }
}

/// All tables of this run of the benchmark.
#[derive(Debug)]
pub(crate) struct Report {
    markdown: String,
    json: Value,
}

impl Report {
    /// Begins with what was measured where.
    pub(crate) fn start(plan: &Plan, agents: &[Agent], missing: &[String]) -> Self {
        let mut markdown = format!("Machine: {}.\n", machine());
        for agent in agents {
            writeln!(markdown, "- {}: {}", agent.name, agent.version).expect("memory takes every write");
        }
        for reason in missing {
            writeln!(markdown, "- left out: {reason}").expect("memory takes every write");
        }
        println!("{markdown}");
        let versions: Vec<Value> =
            agents.iter().map(|agent| json!({"name": agent.name, "version": agent.version})).collect();
        let json = json!({
            "machine": machine(), "agents": versions, "left_out": missing,
            "rounds": plan.rounds, "lines": plan.lines, "tables": [],
        });
        Self { markdown, json }
    }

    /// Prints a table and keeps it, so that a run that is cut short has left what it had.
    pub(crate) fn add(&mut self, table: Table) -> Result<()> {
        println!("{}", table.markdown);
        write!(self.markdown, "\n{}", table.markdown)?;
        if let Some(tables) = self.json["tables"].as_array_mut() {
            tables.push(json!({"measure": table.measure, "title": table.title, "rows": table.rows}));
        }
        let dir = dir()?;
        std::fs::write(dir.join("results.md"), &self.markdown)?;
        std::fs::write(dir.join("results.json"), format!("{:#}\n", self.json))?;
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<()> {
        println!("kept in {}", dir()?.join("results.{md,json}").display());
        Ok(())
    }
}

fn dir() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let dir = workspace().join(target).join("bench");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} cores, {}, Linux {}", cores, field("model name").unwrap_or_default(), kernel.trim())
}
