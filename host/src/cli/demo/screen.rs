//! Where the demo is seen: sentences that stay, and in a terminal a picture below them that moves.
//!
//! Where standard output is no terminal there are only sentences, and no escapes.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::status::EntryStatus;

/// Lines of the picture above its last, the bar.
const ROWS: usize = 9;
/// A column of the picture, and what flows between two. Characters.
const COLUMN: usize = 18;
const ARROW: usize = 8;
/// Under the times of the sentences. Characters.
const INDENT: &str = "        ";

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";

/// Standard output.
pub(super) struct Screen {
    begun: Instant,
    picture: Option<(MultiProgress, Vec<ProgressBar>)>,
    colours: bool,
}

/// What the picture shows.
pub(super) struct Picture {
    /// Lines in the log.
    pub(super) written: u64,
    /// Records on the topic.
    pub(super) records: u64,
    /// The latest records, as text.
    pub(super) latest: Vec<String>,
    /// What the agent says of its entry.
    pub(super) entry: Option<EntryStatus>,
}

impl Screen {
    /// One for a show of that length.
    pub(super) fn new(length: Duration) -> Self {
        let moves = io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colours = moves && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { begun: Instant::now(), picture: moves.then(|| picture(length)), colours }
    }

    /// A sentence or two that stay, with the time in front.
    pub(super) fn say(&self, text: &str) -> io::Result<()> {
        let time = self.paint(DIM, &format!("{:5.1} s", self.begun.elapsed().as_secs_f32()));
        self.print(&format!("{time} {}", text.replace('\n', &format!("\n{INDENT}"))))
    }

    /// A sentence about lines on the topic. Where no picture shows them, they follow it.
    pub(super) fn quote<'a>(
        &self,
        text: &str,
        lines: impl IntoIterator<Item = &'a String>,
    ) -> io::Result<()> {
        if self.picture.is_some() {
            return self.say(&format!("{text}."));
        }
        self.say(&format!("{text}:"))?;
        lines.into_iter().try_for_each(|line| self.print(&format!("{INDENT}  {line}")))
    }

    /// Something that stands alone.
    pub(super) fn print(&self, text: &str) -> io::Result<()> {
        match &self.picture {
            Some((picture, _)) => picture.println(text),
            None => writeln!(io::stdout(), "{text}"),
        }
    }

    /// The last line: green if all is well.
    pub(super) fn conclude(&self, text: &str, well: bool) -> io::Result<()> {
        self.print(&self.paint(BOLD, &self.paint(if well { GREEN } else { RED }, text)))
    }

    /// Moves the picture.
    pub(super) fn show(&self, now: &Picture) {
        let Some((_, rows)) = &self.picture else { return };
        let elapsed = self.begun.elapsed();
        let mut texts = self.flow(now, elapsed.as_millis() as usize / 100);
        texts.push(String::new());
        texts.extend(now.latest.iter().map(|line| format!("{INDENT}{}", self.record(line))));
        texts.resize(ROWS, String::new());
        rows.iter().zip(texts).for_each(|(row, text)| row.set_message(text));
        rows[ROWS].set_position(elapsed.as_millis() as u64);
    }

    /// Takes the picture away.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self.picture.take() {
            Some((picture, _)) => picture.clear(),
            None => Ok(()),
        }
    }

    /// From the log through the filter to the topic, with what each of them counts.
    fn flow(&self, now: &Picture, frame: usize) -> Vec<String> {
        let entry = now.entry.as_ref();
        let filter = entry.and_then(|entry| entry.filter.as_ref());
        let lines = entry.map(|entry| entry.lines).unwrap_or_default();
        let name = filter.map_or("no filter", |filter| stem(&filter.module));
        let digest = filter.map(|filter| filter.digest.chars().take(15).collect()).unwrap_or_default();
        let topic = entry.map_or(String::new(), |entry| format!("topic {}", entry.topic));
        let arrow: String =
            (0..ARROW - 2).map(|at| if (at + frame * 2).is_multiple_of(3) { '╌' } else { '─' }).collect();
        let row = |cells: [String; 3], between: &str| {
            let [first, second, third] = cells.map(|cell| format!("{cell:<COLUMN$}"));
            format!("{INDENT}{first}{between:<ARROW$}{second}{between:<ARROW$}{third}")
        };
        let count = |count, what: &str| format!("{} {what}", HumanCount(count));
        let head = row(["app.log".into(), name.into(), topic], "");
        let dropped = if filter.is_some() { count(lines.filtered, "dropped") } else { String::new() };
        let middle = [count(now.written, "written"), dropped, count(now.records, "records")];
        let under = [count(lines.in_flight, "under way"), digest, String::new()];
        let state = self.paint(DIM, &row(under, ""));
        vec![String::new(), self.paint(BOLD, &head), row(middle, &format!("{arrow}▶")), state]
    }

    fn record(&self, line: &str) -> String {
        let line = line.replace("***", &self.paint(GREEN, "***"));
        match line.strip_prefix("DEBUG") {
            Some(rest) => format!("{}{rest}", self.paint(YELLOW, "DEBUG")),
            None => line,
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.into() }
    }
}

fn picture(length: Duration) -> (MultiProgress, Vec<ProgressBar>) {
    let picture = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
    let row = ProgressStyle::with_template("{wide_msg}").expect("a template that this file holds");
    let bar = ProgressStyle::with_template("        {bar:52} {elapsed} of {len}")
        .expect("a template that this file holds")
        .progress_chars("━╸─")
        .with_key("elapsed", |state: &indicatif::ProgressState, text: &mut dyn std::fmt::Write| {
            // Writing to a string does not fail.
            let _ = write!(text, "{}", state.pos() / 1000);
        })
        .with_key("len", |state: &indicatif::ProgressState, text: &mut dyn std::fmt::Write| {
            // As above.
            let _ = write!(text, "{} s", state.len().unwrap_or_default() / 1000);
        });
    let mut rows = vec![row; ROWS];
    rows.push(bar);
    let rows = rows
        .into_iter()
        .map(|style| picture.add(ProgressBar::new(length.as_millis() as u64).with_style(style)));
    let rows = rows.collect();
    (picture, rows)
}

/// `redact` of `/some/where/redact.wasm`.
fn stem(module: &str) -> &str {
    let name = module.rsplit('/').next().unwrap_or(module);
    name.strip_suffix(".wasm").unwrap_or(name)
}
