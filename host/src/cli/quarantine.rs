//! `weir quarantine`: the lines set aside on this host.
//!
//! In: what the running agent says on its socket, the only place where line content is shown. Out: a
//! list, a line, what became of lines that were sent again or removed.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::status::{NO_ANSWER, socket};
use super::visible::{line, plain};
use super::words::{bytes, count};
use super::{Common, list};
use crate::admin::quarantine::{
    Page, REPLAY_LINES, ReplayResult, fetch_line, fetch_page, remove_lines, replay_lines,
};
use crate::quarantine::Item;

/// What to do.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Lines are set aside that a filter fails on or refuses (`on_error`), that Kafka refuses for good, or that are
too long (`long_line`). They are counted as quarantined and stay so. [limits] quarantine bounds what they take;
when it is full, entries with a line to set aside hold before it until there is room.

Example:
  weir quarantine ls --entry app
  weir quarantine show 17
  weir module push fixed.wasm --tag redact
  weir quarantine replay --entry app")]
pub enum QuarantineCommand {
    /// List the lines, oldest first
    Ls(LsArgs),
    /// Show a line, and why it was set aside
    Show(ShowArgs),
    /// Send lines again, through their entry's filter and to its topic as these are now
    Replay(ReplayArgs),
    /// Remove lines for good
    Rm(WhichArgs),
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only those of one entry
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Print them for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which line, as `ls` numbers them
    id: u64,
    /// Print the bytes of the line as they are, and nothing else
    #[arg(long)]
    raw: bool,
}

/// Which lines.
#[derive(Debug, Args)]
pub struct WhichArgs {
    /// Which lines, as `ls` numbers them
    #[arg(value_name = "ID", required_unless_present = "entry")]
    ids: Vec<u64>,
    /// All those of one entry, in place of numbers
    #[arg(long, value_name = "NAME", conflicts_with = "ids")]
    entry: Option<String>,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
A line leaves the quarantine when Kafka has acknowledged it, or when the filter drops it now. What the filter or
Kafka still refuses stays. A line can arrive twice where the agent ends between the two, and comes later than the
lines that stood behind it in its file. Exit code 1: some lines are still there; the output says why.")]
pub struct ReplayArgs {
    /// Which lines.
    #[command(flatten)]
    which: WhichArgs,
    /// Print what became of each for programs
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(common: &Common, command: QuarantineCommand) -> anyhow::Result<ExitCode> {
    let socket = socket(common)?;
    list::runtime()?
        .block_on(async {
            match &command {
                QuarantineCommand::Ls(args) => ls(&socket, args).await,
                QuarantineCommand::Show(args) => show(&socket, args).await,
                QuarantineCommand::Replay(args) => replay(&socket, args).await,
                QuarantineCommand::Rm(args) => rm(&socket, args).await,
            }
        })
        .map_err(
            |error| if error.is::<crate::admin::AdminError>() { error.context(NO_ANSWER) } else { error },
        )
}

async fn ls(socket: &Path, args: &LsArgs) -> anyhow::Result<ExitCode> {
    let all = fetch_all(socket, args.entry.as_deref()).await?;
    let shown = if args.json { serde_json::to_string_pretty(&all)? + "\n" } else { table(&all) };
    print(shown.as_bytes())
}

/// All items, or those of one entry.
async fn fetch_all(socket: &Path, entry: Option<&str>) -> anyhow::Result<Page> {
    let mut all = fetch_page(socket, 0).await?;
    let mut last = all.items.last().map(|item| item.id);
    while let Some(after) = last {
        let mut page = fetch_page(socket, after).await?;
        last = page.items.last().map(|item| item.id);
        all.items.append(&mut page.items);
    }
    all.items.retain(|item| entry.is_none_or(|entry| item.entry.as_str() == entry));
    Ok(all)
}

/// A row an item, and how full it is.
fn table(page: &Page) -> String {
    let mut table = String::new();
    if !page.items.is_empty() {
        table +=
            &format!("{:>6}  {:<20}  {:<16}  {:<9}  {:>8}  where\n", "id", "time", "entry", "kind", "size");
    }
    for item in &page.items {
        table += &format!(
            "{:>6}  {:<20}  {:<16}  {:<9}  {:>8}  {} at byte {}\n",
            item.id,
            time(item),
            plain(item.entry.as_str()),
            plain(&item.kind),
            bytes(item.bytes),
            plain(&item.path),
            item.offset,
        );
    }
    let lines = count(page.items.len() as u64, "line", "lines");
    table + &format!("{lines}; {} of {} are taken\n", bytes(page.used), bytes(page.limit))
}

fn time(item: &Item) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(item.time));
    time.map_or_else(String::new, |time| humantime::format_rfc3339_seconds(time).to_string())
}

async fn show(socket: &Path, args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let content = fetch_line(socket, args.id).await?;
    if args.raw {
        return print(&content);
    }
    let page = fetch_page(socket, args.id.saturating_sub(1)).await?;
    let Some(item) = page.items.first().filter(|item| item.id == args.id) else {
        bail!("line {} left the quarantine meanwhile", args.id);
    };
    print(text(item, &content).as_bytes())
}

/// All there is to say of a line, and the line.
fn text(item: &Item, content: &[u8]) -> String {
    let module =
        item.digest.as_deref().map(|digest| format!("module  {}\n", plain(digest))).unwrap_or_default();
    format!(
        "line    {}\nentry   {}\ntopic   {}\nfile    {}, at byte {}\ntime    {}\ncause   {}: {}\n{module}size    {}\n\n{}\n",
        item.id,
        plain(item.entry.as_str()),
        plain(&item.topic),
        plain(&item.path),
        item.offset,
        time(item),
        plain(&item.kind),
        plain(&item.message),
        bytes(item.bytes),
        line(content),
    )
}

/// The numbers that are meant, each once, in order.
async fn ids(socket: &Path, which: &WhichArgs) -> anyhow::Result<Vec<u64>> {
    let ids: BTreeSet<u64> = match &which.entry {
        None => which.ids.iter().copied().collect(),
        Some(entry) => fetch_all(socket, Some(entry)).await?.items.iter().map(|item| item.id).collect(),
    };
    Ok(ids.into_iter().collect())
}

async fn replay(socket: &Path, args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let ids = ids(socket, &args.which).await?;
    let mut outcomes = Vec::new();
    for ids in ids.chunks(REPLAY_LINES) {
        outcomes.extend(replay_lines(socket, ids).await?);
    }
    let of = |result| outcomes.iter().filter(move |outcome| outcome.result == result);
    let kept = of(ReplayResult::Kept).count() as u64;
    if args.json {
        print((serde_json::to_string_pretty(&outcomes)? + "\n").as_bytes())?;
    } else {
        for outcome in of(ReplayResult::Kept) {
            eprintln!("line {} stays: {}", outcome.id, plain(&outcome.cause));
        }
        let (delivered, dropped) = (of(ReplayResult::Delivered).count(), of(ReplayResult::Dropped).count());
        println!("{delivered} delivered, {dropped} dropped by the filter, {kept} still in quarantine");
    }
    Ok(if kept == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn rm(socket: &Path, which: &WhichArgs) -> anyhow::Result<ExitCode> {
    let ids = ids(socket, which).await?;
    let removed = remove_lines(socket, &ids).await?;
    println!("{} removed", count(removed as u64, "line", "lines"));
    if removed < ids.len() {
        eprintln!("{} not there", count((ids.len() - removed) as u64, "line was", "lines were"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever reads may have read enough.
fn print(text: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing the answer")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EntryName;

    #[test]
    fn nothing_in_an_item_steers_the_terminal() {
        let item = Item {
            id: 7,
            entry: EntryName("a\x1b[2Jpp".into()),
            topic: "t\x1b".into(),
            path: "/var/log/\x1b]0;x\x07.log".into(),
            file: String::new(),
            offset: 12,
            time: 1_700_000_000,
            kind: "trap\r".into(),
            message: "bad\x1b[31m\nnews".into(),
            digest: Some("sha256:\x1b".into()),
            bytes: 4,
        };
        let page = Page { used: 10, limit: 100, items: vec![item.clone()] };
        for shown in [table(&page), text(&item, b"a\x1b[2J\xff\r\x08")] {
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        }
        assert!(text(&item, b"\xff").ends_with("\\xff\n"));
        assert!(table(&page).contains("2023-11-14T22:13:20Z"), "{}", table(&page));
    }
}
