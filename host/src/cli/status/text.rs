//! The status as one screen of text: a sentence, a row an entry, what somebody should mend.
//!
//! Everything that comes from lists and file names has its control characters made visible, so
//! that none of it can steer the terminal.

use std::collections::HashMap;
use std::fmt::Write;

use crate::cli::rates::{self, Rate};
use crate::cli::visible::plain;
use crate::cli::words::{bytes, count, cut, number, seconds};
use crate::control::ListState;
use crate::model::Problem;
use crate::status::{EntryState, EntryStatus, FilterState, Status};

/// The whole screen; `now` is in seconds since 1970.
pub(super) fn render(status: &Status, rates: &HashMap<String, Rate>, now: u64, colours: bool) -> String {
    let worst = status.entries.iter().map(|entry| entry.state).max_by_key(|state| severity(*state));
    let mut screen = paint(&sentence(status), worst, colours) + "\n";
    if !status.entries.is_empty() {
        screen += "\n";
        screen += &table(&status.entries, rates, colours);
    }
    let problems = problems(status);
    if !problems.is_empty() {
        screen += "\nproblems\n";
        for problem in problems {
            // A String takes everything.
            let _ = writeln!(screen, "  {}: {}", plain(&problem.place), plain(&problem.cause));
            if !problem.fix.is_empty() {
                let _ = writeln!(screen, "    fix: {}", plain(&problem.fix));
            }
        }
    }
    screen + "\n" + &footer(status, now)
}

/// Whether everything is delivered, and if not, what stands in the way.
pub(in crate::cli) fn sentence(status: &Status) -> String {
    let agent = plain(&status.agent.name);
    if status.entries.is_empty() {
        let why = if status.list.source.is_empty() { "no list was read yet" } else { "the list is empty" };
        return format!("{agent}: nothing to collect: {why}");
    }
    let sum = |of: fn(&EntryStatus) -> u64| status.entries.iter().map(of).sum();
    let entries = status.entries.len() as u64;
    let following = sum(|entry| u64::from(entry.state == EntryState::Following));
    let all = count(entries, "entry", "entries");
    let follow = if entries == 1 { "follows" } else { "follow" };
    let (lag, in_flight) = (sum(|entry| entry.lag_bytes), sum(|entry| entry.lines.in_flight));
    let mut sentence = if following < entries {
        let waiting = if lag > 0 { format!("; {} wait", bytes(lag)) } else { String::new() };
        format!("{agent}: {following} of {all} {follow}; {}{waiting}", trouble(&status.entries))
    } else if lag > 0 || in_flight > 0 {
        let age = status.entries.iter().map(|entry| entry.lag_seconds).fold(0.0, f64::max);
        format!("{agent}: {all} {follow}; {} on the way for {}", bytes(lag), seconds(age))
    } else {
        let files = count(sum(|entry| entry.files), "file", "files");
        let lines = count(sum(|entry| entry.lines.delivered), "line", "lines");
        format!("{agent}: everything is delivered: {all}, {files}, {lines}")
    };
    for (lines, what) in [
        (sum(|entry| entry.lines.quarantined), "set aside in quarantine"),
        (sum(|entry| entry.lines.discarded), "discarded"),
    ] {
        if lines > 0 {
            sentence += &format!("; {} {what}", count(lines, "line", "lines"));
        }
    }
    sentence
}

/// The worst entry with its cause, and how many more do not follow.
fn trouble(entries: &[EntryStatus]) -> String {
    let mut troubled: Vec<_> = entries.iter().filter(|entry| severity(entry.state) > 0).collect();
    troubled.sort_by_key(|entry| std::cmp::Reverse(severity(entry.state)));
    let Some(worst) = troubled.first() else { return String::new() };
    let cause = if worst.cause.is_empty() { String::new() } else { format!(": {}", plain(&worst.cause)) };
    let first = format!("{} is {}{cause}", cut(&plain(&worst.name)), words(worst.state));
    match troubled.len() - 1 {
        0 => first,
        more => format!("{first}; {more} more below"),
    }
}

/// A row an entry, aligned; numbers to the right.
fn table(entries: &[EntryStatus], rates: &HashMap<String, Rate>, colours: bool) -> String {
    let head = ["entry", "state", "files", "lag", "for", "lines/s", "delivered", "aside", "filter"];
    let rows = entries.iter().map(|entry| row(entry, rates.get(&entry.name)));
    let rows: Vec<_> = std::iter::once(head.map(String::from)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let states = std::iter::once(None).chain(entries.iter().map(|entry| Some(entry.state)));
    let mut table = String::new();
    for (row, state) in rows.iter().zip(states) {
        let [name, word, numbers @ .., filter] = row;
        let word = paint(&format!("{word:<0$}", widths[1]), state, colours);
        let mut line = format!("  {name:<0$}  {word}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[2..]) {
            let _ = write!(line, "  {number:>width$}");
        }
        let _ = write!(line, "  {filter}");
        table += line.trim_end();
        table += "\n";
    }
    table
}

fn row(entry: &EntryStatus, rate: Option<&Rate>) -> [String; 9] {
    let age = if entry.lag_bytes > 0 { seconds(entry.lag_seconds) } else { String::new() };
    [
        cut(&plain(&entry.name)),
        rates::state(entry, rate),
        number(entry.files),
        bytes(entry.lag_bytes),
        age,
        rate.map_or_else(String::new, |rate| number(rate.lines.round() as u64)),
        number(entry.lines.delivered),
        number(entry.lines.quarantined),
        filter(entry),
    ]
}

/// The module, what runs of it, and whether that is what is wanted.
pub(in crate::cli) fn filter(entry: &EntryStatus) -> String {
    let Some(filter) = &entry.filter else { return String::new() };
    let digest: String = filter.digest.trim_start_matches("sha256:").chars().take(12).collect();
    let digest = plain(&digest);
    let module = cut(&plain(&filter.module));
    match filter.state {
        FilterState::Applied => format!("{module} {digest}"),
        FilterState::Failed if digest.is_empty() => format!("{module}: none runs"),
        FilterState::Failed => format!("{module}: failed, {digest} runs on"),
        FilterState::RolledBack => format!("{module}: rolled back to {digest}"),
    }
}

/// What the list says, then what entries and filters say that the list does not.
pub(in crate::cli) fn problems(status: &Status) -> Vec<Problem> {
    let said = &status.list.problems;
    let mut problems = said.clone();
    let mut add = |place: String, cause: &str| {
        if !cause.is_empty() && !said.iter().any(|problem| problem.cause == cause) {
            problems.push(Problem::new(place, cause, ""));
        }
    };
    for entry in &status.entries {
        add(entry.name.clone(), &entry.cause);
        if let Some(filter) = &entry.filter {
            add(format!("{}, filter {}", entry.name, filter.module), &filter.cause);
        }
    }
    problems
}

fn footer(status: &Status, now: u64) -> String {
    let list = &status.list;
    let sure = match list.state {
        ListState::Current => "",
        ListState::Cached => ", last good one: the source does not answer",
        ListState::Missing => ", last good one: it is gone from its source",
        ListState::Invalid => ", last good one: what stands there now is not valid",
    };
    let source = if list.source.is_empty() { "none".into() } else { plain(&list.source) };
    let up = seconds(now.saturating_sub(status.agent.started) as f64);
    format!(
        "list: {source}, revision {}{sure}\nweir {}, up {up}\n",
        list.revision,
        plain(&status.agent.version)
    )
}

/// A state as it stands in JSON.
pub(in crate::cli) fn word(state: EntryState) -> &'static str {
    match state {
        EntryState::Following => "following",
        EntryState::CatchingUp => "catching-up",
        EntryState::Waiting => "waiting",
        EntryState::Stalled => "stalled",
        EntryState::Holding => "holding",
        EntryState::Refused => "refused",
    }
}

/// A state in a sentence.
pub(in crate::cli) fn words(state: EntryState) -> &'static str {
    if state == EntryState::CatchingUp { "catching up" } else { word(state) }
}

/// How much a state wants somebody's attention; 0 is not at all.
pub(in crate::cli) fn severity(state: EntryState) -> u8 {
    match state {
        EntryState::Following => 0,
        EntryState::CatchingUp => 1,
        EntryState::Waiting => 2,
        EntryState::Holding => 3,
        EntryState::Stalled => 4,
        EntryState::Refused => 5,
    }
}

/// Green, yellow or red, where colours are wanted.
fn paint(text: &str, state: Option<EntryState>, colours: bool) -> String {
    let colour = match state.map(severity) {
        _ if !colours => return text.into(),
        None => return text.into(),
        Some(0) => 32,
        Some(1 | 2) => 33,
        Some(_) => 31,
    };
    format!("\x1b[{colour}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::words::NAME_WIDTH_MAX;
    use crate::model::Lines;
    use crate::status::{AgentStatus, FilterStatus, ListStatus};

    /// Without rates, as in a first look.
    fn render(status: &Status, now: u64, colours: bool) -> String {
        super::render(status, &HashMap::new(), now, colours)
    }

    fn entry(name: &str, state: EntryState, cause: &str) -> EntryStatus {
        EntryStatus {
            name: name.into(),
            path: format!("/var/log/{name}.log"),
            topic: name.into(),
            state,
            cause: cause.into(),
            files: 4,
            lines: Lines { read: 1_604_115, delivered: 1_604_115, ..Lines::default() },
            ..EntryStatus::default()
        }
    }

    fn status(entries: Vec<EntryStatus>) -> Status {
        Status {
            agent: AgentStatus { name: "web1".into(), version: "0.1.0".into(), started: 1_000 },
            list: ListStatus {
                source: "etcd /weir/web1/collect".into(),
                revision: 42,
                ..ListStatus::default()
            },
            entries,
            quarantine: None,
        }
    }

    #[test]
    fn it_says_that_everything_is_delivered() {
        let names = ["nginx", "app", "audit"];
        let status = status(names.iter().map(|name| entry(name, EntryState::Following, "")).collect());
        let expected = "\
web1: everything is delivered: 3 entries, 12 files, 4,812,345 lines

  entry  state      files  lag  for  lines/s  delivered  aside  filter
  nginx  following      4  0 B         1,200  1,604,115      0
  app    following      4  0 B                1,604,115      0
  audit  following      4  0 B                1,604,115      0

list: etcd /weir/web1/collect, revision 42
weir 0.1.0, up 3 h 25 min
";
        let rates = [("nginx".to_string(), Rate { lines: 1200.4, ..Rate::default() })].into();
        assert_eq!(super::render(&status, &rates, 13_345, false), expected);
    }

    #[test]
    fn it_says_what_stands_in_the_way_and_what_to_do() {
        let mut app = entry("app", EntryState::Stalled, "topic app does not exist");
        (app.lag_bytes, app.lag_seconds, app.lines.delivered) = (3_565_158, 192.0, 0);
        app.filter = Some(FilterStatus {
            module: "redact".into(),
            digest: format!("sha256:{}", "3f2a9c01b2cd".repeat(5)),
            state: FilterState::Failed,
            cause: "init refused the config".into(),
            ..FilterStatus::default()
        });
        let waiting = entry("batch", EntryState::Waiting, "no file matches");
        let mut status = status(vec![entry("nginx", EntryState::Following, ""), waiting, app]);
        status.list.state = ListState::Cached;
        status.list.problems = vec![Problem::new(
            "entry app",
            "topic app does not exist",
            "create the topic, or correct its name",
        )];
        let expected = "\
web1: 1 of 3 entries follow; app is stalled: topic app does not exist; 1 more below; 3.4 MiB wait

  entry  state      files      lag         for  lines/s  delivered  aside  filter
  nginx  following      4      0 B                       1,604,115      0
  batch  waiting        4      0 B                       1,604,115      0
  app    stalled        4  3.4 MiB  3 min 12 s                   0      0  redact: failed, 3f2a9c01b2cd runs on

problems
  entry app: topic app does not exist
    fix: create the topic, or correct its name
  batch: no file matches
  app, filter redact: init refused the config

list: etcd /weir/web1/collect, revision 42, last good one: the source does not answer
weir 0.1.0, up 0.0 s
";
        assert_eq!(render(&status, 0, false), expected);
    }

    #[test]
    fn lines_on_the_way_are_not_called_delivered() {
        let mut busy = entry("nginx", EntryState::Following, "");
        (busy.lag_bytes, busy.lag_seconds, busy.lines.in_flight) = (12_345, 0.21, 100);
        let screen = render(&status(vec![busy]), 0, false);
        assert!(screen.starts_with("web1: 1 entry follows; 12 KiB on the way for 0.2 s\n"), "{screen}");
    }

    #[test]
    fn lines_that_did_not_go_out_are_named_in_the_first_sentence() {
        let mut lossy = entry("nginx", EntryState::Following, "");
        (lossy.lines.quarantined, lossy.lines.discarded) = (1, 1200);
        let screen = render(&status(vec![lossy]), 0, false);
        let end = "1,604,115 lines; 1 line set aside in quarantine; 1,200 lines discarded\n";
        assert!(screen.lines().next().unwrap().ends_with(end.trim_end()), "{screen}");
    }

    #[test]
    fn nothing_to_collect_is_said_with_the_reason() {
        assert!(
            render(&status(vec![]), 0, false).starts_with("web1: nothing to collect: the list is empty\n")
        );
        let mut new = status(vec![]);
        new.list = ListStatus::default();
        assert!(render(&new, 0, false).starts_with("web1: nothing to collect: no list was read yet\n"));
    }

    #[test]
    fn states_are_coloured_without_moving_columns() {
        let status = status(vec![
            entry("nginx", EntryState::Following, ""),
            entry("app", EntryState::CatchingUp, ""),
            entry("db", EntryState::Refused, ""),
        ]);
        let coloured = render(&status, 0, true);
        for part in ["\x1b[32mfollowing  \x1b[0m", "\x1b[33mcatching up\x1b[0m", "\x1b[31mrefused    \x1b[0m"]
        {
            assert!(coloured.contains(part), "{coloured}");
        }
        let stripped = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_string()).collect::<Vec<_>>();
        assert_eq!(lines(&stripped), lines(&render(&status, 0, false)));
    }

    #[test]
    fn quantities_are_in_human_units() {
        let shown: Vec<_> = [0, 1023, 1024, 10_188, 10_240, 1_048_575, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "9.9 KiB", "10 KiB", "1.0 MiB", "16 EiB"]);
        let shown: Vec<_> = [-1.0, 0.04, 9.94, 9.96, 59.4, 59.6, 7_500.0, 273_600.0].map(seconds).into();
        let expected = ["0.0 s", "0.0 s", "9.9 s", "10 s", "59 s", "1 min 0 s", "2 h 5 min", "3 d 4 h"];
        assert_eq!(shown, expected);
        assert_eq!([0, 999, 1000, 1_000_000].map(number), ["0", "999", "1,000", "1,000,000"]);
    }

    #[test]
    fn long_names_are_cut_in_the_middle() {
        let name = format!("/srv/{}/access.log", "x".repeat(100));
        let shown = cut(&name);
        assert_eq!(shown.chars().count(), NAME_WIDTH_MAX);
        assert!(shown.starts_with("/srv/xxx") && shown.ends_with("xxx/access.log"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_from_outside_steers_the_terminal(
            text in "[\\PC\u{0}-\u{1f}\u{7f}-\u{9f}\u{202e}\u{2066}\u{200b}]{1,60}",
        ) {
            let mut entry = entry(&text, EntryState::Waiting, &text);
            entry.filter = Some(FilterStatus {
                module: text.clone(),
                digest: text.clone(),
                cause: text.clone(),
                ..FilterStatus::default()
            });
            let mut status = status(vec![entry]);
            (status.agent.name, status.agent.version) = (text.clone(), text.clone());
            status.list.source = text.clone();
            status.list.problems = vec![Problem::new(text.clone(), text.clone(), text)];
            let screen = render(&status, 0, false);
            prop_assert_eq!(screen.lines().count(), 11, "{}", screen);
            for c in screen.chars().filter(|c| *c != '\n') {
                let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                prop_assert!(!c.is_control() && !turns, "{:?} in {}", c, screen);
            }
        }
    }
}
