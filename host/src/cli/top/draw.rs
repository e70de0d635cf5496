//! The screen of `weir top`, as lines that fit.
//!
//! Everything that comes from lists and file names has its control characters made visible.

use super::state::{Column, Top};
use crate::cli::rates;
use crate::cli::status::text::{filter, problems, sentence, severity};
use crate::cli::visible::plain;
use crate::cli::words::{bytes, count, cut, number, seconds};
use crate::status::{EntryState, EntryStatus, FileStatus, Status};

const BOLD: u8 = 1;
const FAINT: u8 = 2;
const TURNED: u8 = 7;
const RED: u8 = 31;
/// Problems below the entries.
const PROBLEMS_SHOWN: usize = 5;

/// A piece of text in one style; 0 is none.
type Span = (u8, String);
type Spans = Vec<Span>;

/// Draws what `top` knows, in so many columns and rows.
pub(super) fn draw(top: &Top, columns: usize, rows: usize, colours: bool) -> Vec<String> {
    let Some(status) = top.status() else { return Vec::new() };
    let mut lines = vec![headline(top, status), Spans::new()];
    let room = rows.saturating_sub(3);
    match top.opened().and(top.chosen()) {
        Some(entry) => lines.extend(of_entry(top, entry)),
        None => lines.extend(of_entries(top, status, room)),
    }
    lines.truncate(rows.saturating_sub(1));
    lines.resize(rows.saturating_sub(1), Spans::new());
    lines.push(vec![(FAINT, keys(top))]);
    lines.truncate(rows);
    lines.iter().map(|spans| fit(spans, columns, colours)).collect()
}

/// What fits of a line, with its styles.
fn fit(spans: &[Span], columns: usize, colours: bool) -> String {
    let (mut line, mut left) = (String::new(), columns);
    for (style, text) in spans {
        let text: String = text.chars().take(left).collect();
        left -= text.chars().count();
        match style {
            1.. if colours => line += &format!("\x1b[{style}m{text}\x1b[0m"),
            _ => line += &text,
        }
    }
    line.truncate(line.trim_end_matches(' ').len());
    line
}

fn headline(top: &Top, status: &Status) -> Spans {
    let worst = status.entries.iter().map(|entry| entry.state).max_by_key(|state| severity(*state));
    match &top.trouble {
        Some(trouble) => vec![(RED, format!("old: {}", plain(trouble)))],
        None => vec![(worst.map_or(0, colour), sentence(status))],
    }
}

fn keys(top: &Top) -> String {
    let paused = if top.paused { "  PAUSED" } else { "" };
    let order = if top.reversed { ", turned" } else { "" };
    match top.opened() {
        Some(_) => format!("↑↓ files  Esc back  p pause  q end{paused}"),
        None => {
            let sort = top.sort.word();
            format!("↑↓ choose  Enter files  <> sort by: {sort}{order}  r turn  p pause  q end{paused}")
        }
    }
}

const HEADS: [&str; 10] =
    ["entry", "state", "files", "lag", "for", "lines/s", "bytes/s", "delivered", "aside", "filter"];

/// A row an entry around the chosen one, and what somebody should mend.
fn of_entries(top: &Top, status: &Status, room: usize) -> Vec<Spans> {
    let problems = problems(status);
    let below = if problems.is_empty() { 0 } else { problems.len().min(PROBLEMS_SHOWN) + 2 };
    let entries = top.rows();
    let rows: Vec<_> = entries.iter().map(|entry| cells(top, entry)).collect();
    let table = Table::new(&HEADS, &rows);
    let sorted = HEADS.iter().position(|head| top.sort != Column::List && top.sort.word() == *head);
    let mut lines = vec![table.head(sorted)];
    let most = room.saturating_sub(below + 1).max(1);
    let chosen = top.chosen_row().unwrap_or(0);
    let first = (chosen + 1).saturating_sub(most);
    for (i, row) in rows.iter().enumerate().skip(first).take(most) {
        let state = colour(entries[i].state);
        let style = |column| {
            if i == chosen {
                TURNED
            } else if column == 1 {
                state
            } else {
                0
            }
        };
        lines.push(table.row(row, style));
    }
    if below > 0 {
        lines.push(Spans::new());
        lines.push(vec![(BOLD, count(problems.len() as u64, "problem", "problems"))]);
    }
    lines.extend(problems.iter().take(PROBLEMS_SHOWN).map(|problem| {
        let said = format!("{}: {}", plain(&problem.place), plain(&problem.cause));
        vec![(0, said), (FAINT, format!("  {}", plain(&problem.fix)))]
    }));
    lines
}

fn cells(top: &Top, entry: &EntryStatus) -> Vec<String> {
    let rate = top.rates.get(&entry.name);
    vec![
        cut(&plain(&entry.name)),
        rates::state(entry, rate),
        number(entry.files),
        bytes(entry.lag_bytes),
        if entry.lag_bytes > 0 { seconds(entry.lag_seconds) } else { String::new() },
        rate.map_or_else(String::new, |rate| number(rate.lines.round() as u64)),
        rate.map_or_else(String::new, |rate| bytes(rate.bytes.round() as u64)),
        number(entry.lines.delivered),
        number(entry.lines.quarantined),
        filter(entry),
    ]
}

/// Columns as wide as what stands in them; numbers to the right.
struct Table<'a> {
    heads: &'a [&'a str],
    widths: Vec<usize>,
}

impl<'a> Table<'a> {
    fn new(heads: &'a [&'a str], rows: &[Vec<String>]) -> Self {
        let width = |column: usize| {
            let texts = rows.iter().map(|row| row[column].as_str()).chain([heads[column]]);
            texts.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        Self { heads, widths: (0..heads.len()).map(width).collect() }
    }

    fn head(&self, sorted: Option<usize>) -> Spans {
        let heads: Vec<_> = self.heads.iter().map(ToString::to_string).collect();
        self.row(&heads, |column| if sorted == Some(column) { TURNED } else { BOLD })
    }

    fn row(&self, cells: &[String], style: impl Fn(usize) -> u8) -> Spans {
        let mut spans = Spans::new();
        for (column, text) in cells.iter().enumerate() {
            let width = self.widths[column];
            let left = matches!(self.heads[column], "entry" | "state" | "filter" | "file");
            spans.push((
                style(column),
                if left { format!("{text:<width$}") } else { format!("{text:>width$}") },
            ));
            spans.push((0, "  ".into()));
        }
        spans
    }
}

/// What is known of an entry, and its files.
fn of_entry(top: &Top, entry: &EntryStatus) -> Vec<Spans> {
    let lines = &entry.lines;
    let state = rates::state(entry, top.rates.get(&entry.name));
    let cause = if entry.cause.is_empty() { String::new() } else { format!(": {}", plain(&entry.cause)) };
    let filter = match &entry.filter {
        Some(status) if status.cause.is_empty() => filter(entry),
        Some(status) => format!("{}: {}", filter(entry), plain(&status.cause)),
        None => "none".into(),
    };
    let sums = [
        (lines.delivered, "delivered"),
        (lines.filtered, "filtered"),
        (lines.skipped, "skipped"),
        (lines.quarantined, "quarantined"),
        (lines.discarded, "discarded"),
        (lines.in_flight, "in flight"),
    ];
    let sums: Vec<_> = sums.iter().map(|(count, what)| format!("{} {what}", number(*count))).collect();
    let mut shown = vec![
        vec![(BOLD, cut(&plain(&entry.name)))],
        vec![(0, format!("{} → {}", plain(&entry.path), plain(&entry.topic)))],
        vec![(colour(entry.state), state + &cause)],
        vec![(0, format!("filter {filter}"))],
        vec![(0, format!("{} read = {}", number(lines.read), sums.join(" + ")))],
        Spans::new(),
    ];
    let Some(files) = &top.files else {
        shown.push(vec![(FAINT, "asking for its files…".into())]);
        return shown;
    };
    let rows: Vec<_> = files.files.iter().map(file_cells).collect();
    let table = Table::new(&["lag", "read", "size", "file"], &rows);
    shown.push(table.head(None));
    shown.extend(rows.iter().skip(top.first_file).map(|row| table.row(row, |_| 0)));
    let more = files.total.saturating_sub(rows.len() as u64);
    if more > 0 {
        shown.push(vec![(FAINT, format!("{} that lag less", count(more, "more file", "more files")))]);
    }
    shown
}

fn file_cells(file: &FileStatus) -> Vec<String> {
    let mut name = plain(&file.path);
    if file.moved {
        name += if file.open { " (moved or deleted, still open)" } else { " (moved or deleted)" };
    }
    if !file.cause.is_empty() {
        name = format!("{name}: {}", plain(&file.cause));
    }
    let part = (file.read_to.min(file.size) * 100).checked_div(file.size).unwrap_or(100);
    vec![bytes(file.lag_bytes), format!("{part} %"), bytes(file.size), name]
}

fn colour(state: EntryState) -> u8 {
    match severity(state) {
        0 => 32,
        1 | 2 => 33,
        _ => RED,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::keys::Key;
    use super::super::state::tests::{entry, status};
    use super::*;
    use crate::status::Files;

    fn screen(top: &Top, columns: usize, rows: usize) -> String {
        draw(top, columns, rows, false).join("\n")
    }

    fn top() -> Top {
        let (mut top, now) = (Top::default(), Instant::now());
        for (second, lag, read) in [(0, 9 << 20, 0), (1, 8 << 20, 12_000)] {
            let mut stalled = entry("app\x1b[2J", EntryState::Stalled, 2048, 7);
            (stalled.cause, stalled.lag_seconds) = ("topic app does not exist".into(), 75.0);
            let busy = entry("nginx", EntryState::CatchingUp, lag, read);
            top.look(status(vec![busy, stalled]), now + Duration::from_secs(second));
        }
        top
    }

    #[test]
    fn entries_are_shown_with_rates_time_left_problems_and_keys() {
        let expected = "\
web1: 0 of 2 entries follow; app\\u{1b}[2J is stalled: topic app does not exist; 1 more below; 8.0 MiB wait

entry         state                    files      lag         for  lines/s  bytes/s  delivered  aside  filter
nginx         catching up, 8.0 s left      3  8.0 MiB       0.0 s   12,000      0 B     12,000      0
app\\u{1b}[2J  stalled                      3  2.0 KiB  1 min 15 s        0      0 B          7      0

1 problem
app\\u{1b}[2J: topic app does not exist

↑↓ choose  Enter files  <> sort by: the list's order  r turn  p pause  q end";
        assert_eq!(screen(&top(), 130, 10), expected);
    }

    #[test]
    fn the_files_of_an_entry_are_shown_with_its_sums_and_cause() {
        let mut top = top();
        top.key(Key::Down);
        top.key(Key::Enter);
        let file = |path: &str, lag_bytes, moved| FileStatus {
            path: path.into(),
            size: 4096,
            read_to: 1024,
            lag_bytes,
            open: true,
            moved,
            cause: String::new(),
        };
        let files = vec![file("/var/log/a\n.log", 2048, false), file("/var/log/a.log.1", 0, true)];
        top.files = Some(Files { total: 3, files });
        let shown = screen(&top, 120, 16);
        for part in [
            "\napp\\u{1b}[2J\n",
            "\nstalled: topic app does not exist\n",
            "\n7 read = 7 delivered + 0 filtered",
            "\n    lag  read     size  file\n2.0 KiB  25 %  4.0 KiB  /var/log/a\\n.log\n",
            "/var/log/a.log.1 (moved or deleted, still open)\n1 more file that lag less\n",
            "Esc back",
        ] {
            assert!(shown.contains(part), "no {part:?} in\n{shown}");
        }
        top.key(Key::Down);
        assert!(!screen(&top, 120, 16).contains("a\\n.log"), "the list of files moves");
    }

    #[test]
    fn every_size_fits_and_the_chosen_row_is_seen() {
        let mut top = top();
        top.trouble = Some("no agent answers".into());
        for (columns, rows) in [(1, 1), (10, 3), (40, 5), (300, 100)] {
            let lines = draw(&top, columns, rows, false);
            assert_eq!(lines.len(), rows);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:#?}");
        }
        assert!(screen(&top, 80, 10).starts_with("old: no agent answers\n"));
        assert_eq!(screen(&Top::default(), 80, 24), "");
        let entries = (0..100).map(|n| entry(&format!("e{n:02}"), EntryState::Following, 0, n)).collect();
        top.look(status(entries), Instant::now() + Duration::from_secs(2));
        top.key(Key::End);
        let shown = screen(&top, 80, 10);
        assert!(shown.contains("\ne99") && !shown.contains("e00"), "{shown}");
    }

    #[test]
    fn styles_take_no_room_and_end_where_they_began() {
        let plain = draw(&top(), 60, 10, false);
        for (line, plain) in draw(&top(), 60, 10, true).iter().zip(plain) {
            let mut bare = line.clone();
            for style in ["0", "1", "2", "7", "31", "32", "33"] {
                bare = bare.replace(&format!("\x1b[{style}m"), "");
            }
            assert_eq!(bare.trim_end(), plain);
        }
    }
}
