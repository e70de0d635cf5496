//! `weir module stats`: what the filter of an entry does on this host.
//!
//! In: the status of this host's agent. Out: its figures since the module was applied. Absent by
//! design: line content; what other hosts' filters do (`weir fleet`).

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};

use crate::admin;
use crate::cli::Common;
use crate::cli::status::{NO_ANSWER, socket};
use crate::cli::visible::plain;
use crate::cli::words::{bytes, count, number};
use crate::status::{EntryStatus, FilterState, FilterStats, FilterStatus, ShadowStatus, Status};

/// Arguments of `stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  weir module stats app

Counts begin when the module was applied to the entry by the agent that runs. The time of a line is the CPU
time of its batch in equal parts, with all attempts at lines on which the module fails. /metrics has the same
for graphs, over all modules of the entry.")]
pub struct StatsArgs {
    /// The entry, as `weir status` names it
    #[arg(value_name = "ENTRY")]
    entry: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn run(common: &Common, args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let socket = socket(common)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(admin::fetch_status(&socket)).context(NO_ANSWER)?;
    let (entry, filter) = filter_of(&status, &args.entry)?;
    let shown = if args.json { serde_json::to_string_pretty(filter)? + "\n" } else { text(entry, filter) };
    match io::stdout().lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing the figures"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn filter_of<'a>(status: &'a Status, name: &str) -> anyhow::Result<(&'a EntryStatus, &'a FilterStatus)> {
    let Some(entry) = status.entries.iter().find(|entry| entry.name == name) else {
        let names: Vec<_> = status.entries.iter().map(|entry| plain(&entry.name)).collect();
        bail!("no entry `{name}` runs here; there are: {}", names.join(", "));
    };
    let filter = entry.filter.as_ref().with_context(|| format!("entry `{name}` has no filter"))?;
    Ok((entry, filter))
}

fn text(entry: &EntryStatus, filter: &FilterStatus) -> String {
    let stats = &filter.stats;
    let mut text = head(entry, filter);
    let share = |lines: u64| match stats.lines {
        0 => String::new(),
        all => format!("  {:5.1} %", 100.0 * lines as f64 / all as f64),
    };
    let kinds: Vec<_> =
        stats.refused.iter().map(|(kind, lines)| format!("{} {kind}", number(*lines))).collect();
    let by = match (stats.replaced, stats.replacements) {
        (replaced, by) if replaced != by => format!(", by {}", count(by, "line", "lines")),
        _ => String::new(),
    };
    let refused = if kinds.is_empty() { String::new() } else { format!(", {}", kinds.join(", ")) };
    for (what, lines, more) in [
        ("lines", stats.lines, String::new()),
        ("kept", stats.kept, String::new()),
        ("dropped", stats.dropped, String::new()),
        ("replaced", stats.replaced, by),
        ("refused", stats.refused_lines(), refused),
    ] {
        let share = if what == "lines" { String::new() } else { share(lines) };
        text += &format!("  {what:9}  {:>13}{share}{more}\n", number(lines));
    }
    text += &costs(stats);
    let counts: Vec<_> =
        stats.counts.iter().map(|(name, count)| format!("{name} {}", number(*count))).collect();
    if !counts.is_empty() {
        text += &format!("  counts     {}\n", counts.join(", "));
    }
    if stats.unlogged + stats.uncounted > 0 {
        let (messages, counts) = (number(stats.unlogged), number(stats.uncounted));
        text += &format!(
            "  too much   {messages} messages not logged, {counts} counts under names that it may not have\n"
        );
    }
    if let Some(shadow) = &filter.shadow {
        text += &shadow_text(shadow);
    }
    text
}

/// Which module, since when, and in which state.
fn head(entry: &EntryStatus, filter: &FilterStatus) -> String {
    let (name, module) = (plain(&entry.name), plain(&filter.module));
    let mut text = format!("{name}: {module}");
    if filter.digest.is_empty() {
        text += ", none runs";
    } else {
        let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(filter.stats.since));
        text += &format!(", {} since {since}", plain(&filter.digest));
    }
    let state = match filter.state {
        FilterState::Applied => "",
        FilterState::Failed => "; the wanted one failed",
        FilterState::RolledBack => "; rolled back to it",
    };
    text += state;
    if !filter.cause.is_empty() {
        text += &format!(": {}", plain(&filter.cause));
    }
    text + "\n"
}

fn shadow_text(shadow: &ShadowStatus) -> String {
    let mut text = format!("\nshadow: {}", plain(&shadow.module));
    if !shadow.digest.is_empty() {
        text += &format!(", {}", plain(&shadow.digest));
    }
    if shadow.state != FilterState::Applied {
        text += &format!("; it does not run: {}", plain(&shadow.cause));
    }
    let tally = &shadow.tally;
    let [same, differing, errors, skipped] =
        [tally.same, tally.differing, tally.errors, tally.skipped].map(number);
    text + &format!(
        "\n  {same} lines the same, {differing} differing, {errors} errors, {skipped} skipped; {:.3} s of CPU, {} at most\n",
        tally.cpu_seconds,
        bytes(tally.memory_max)
    )
}

fn costs(stats: &FilterStats) -> String {
    let mut text = String::new();
    if stats.lines > 0 {
        let (mean, p50, p99) =
            (stats.cpu_seconds / stats.lines as f64, stats.line_seconds_at(50), stats.line_seconds_at(99));
        text +=
            &format!("  a line     {} of CPU; half {}, 99 % {}\n", time(mean), at_most(p50), at_most(p99));
        let batches = count(stats.batches, "batch", "batches");
        text += &format!("  CPU        {:.3} s in {batches}\n", stats.cpu_seconds);
    }
    text += &format!("  memory     {} at most\n", bytes(stats.memory_max));
    text + &format!("  instances  {} after failures\n", number(stats.restarts))
}

fn at_most(seconds: f64) -> String {
    if seconds.is_finite() { format!("at most {}", time(seconds)) } else { "over 1 ms".into() }
}

fn time(seconds: f64) -> String {
    match seconds * 1e9 {
        ns if ns < 9_950.0 => format!("{ns:.0} ns"),
        ns if ns < 9_950_000.0 => format!("{:.0} µs", ns / 1e3),
        ns => format!("{:.0} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ShadowTally;
    use crate::status::EntryState;

    fn entry(filter: Option<FilterStatus>) -> EntryStatus {
        EntryStatus {
            name: "app".into(),
            path: "/a".into(),
            topic: "t".into(),
            state: EntryState::Following,
            cause: String::new(),
            obstacle: None,
            bytes_read: 0,
            files: 1,
            lag_bytes: 0,
            lag_seconds: 0.0,
            lines: Default::default(),
            filter,
        }
    }

    #[test]
    fn the_figures_of_a_module_are_one_screen() {
        let stats = FilterStats {
            since: 1_795_000_000,
            lines: 2_000,
            kept: 1_500,
            dropped: 400,
            replaced: 90,
            replacements: 180,
            refused: [("trap".to_string(), 4), ("set-aside".to_string(), 6)].into(),
            batches: 3,
            cpu_seconds: 0.002,
            line_seconds: [0, 0, 1_200, 0, 800, 0, 0, 0, 0, 0],
            memory_max: 1_179_648,
            restarts: 12,
            unlogged: 990,
            uncounted: 0,
            counts: [("masked".to_string(), 5)].into(),
        };
        let filter = FilterStatus {
            module: "redact".into(),
            digest: "sha256:3f".into(),
            state: FilterState::RolledBack,
            cause: "the newer one fails".into(),
            obstacle: None,
            stats,
            shadow: Some(ShadowStatus {
                module: "redact2".into(),
                digest: "sha256:4f".into(),
                state: FilterState::Applied,
                tally: ShadowTally {
                    same: 1_980,
                    differing: 20,
                    cpu_seconds: 0.004,
                    memory_max: 1 << 21,
                    ..ShadowTally::default()
                },
                ..ShadowStatus::default()
            }),
        };
        let entry = entry(Some(filter.clone()));
        let expected = "\
app: redact, sha256:3f since 2026-11-18T11:06:40Z; rolled back to it: the newer one fails
  lines              2,000
  kept               1,500   75.0 %
  dropped              400   20.0 %
  replaced              90    4.5 %, by 180 lines
  refused               10    0.5 %, 6 set-aside, 4 trap
  a line     1000 ns of CPU; half at most 100 ns, 99 % at most 1000 ns
  CPU        0.002 s in 3 batches
  memory     1.1 MiB at most
  instances  12 after failures
  counts     masked 5
  too much   990 messages not logged, 0 counts under names that it may not have

shadow: redact2, sha256:4f
  1,980 lines the same, 20 differing, 0 errors, 0 skipped; 0.004 s of CPU, 2.0 MiB at most
";
        assert_eq!(text(&entry, &filter), expected);
        assert!(text(&entry, &FilterStatus::default()).contains("none runs"));
    }

    #[test]
    fn an_entry_that_is_not_there_or_has_no_filter_is_told() {
        let status = Status {
            agent: crate::status::AgentStatus { name: "h".into(), version: "1".into(), started: 0 },
            list: Default::default(),
            entries: vec![entry(None)],
            quarantine: None,
        };
        assert!(filter_of(&status, "other").unwrap_err().to_string().contains("there are: app"));
        assert!(filter_of(&status, "app").unwrap_err().to_string().contains("has no filter"));
    }
}
