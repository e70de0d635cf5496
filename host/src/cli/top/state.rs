//! What `weir top` knows and what is chosen. No terminal in here.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::keys::Key;
use crate::cli::rates::{Rate, rates};
use crate::cli::status::text::severity;
use crate::status::{EntryStatus, Files, Status};

/// Rates are taken over so long.
const WINDOW: Duration = Duration::from_secs(10);

/// What the screen is drawn from.
#[derive(Debug, Default)]
pub(super) struct Top {
    /// Looks of the last [`WINDOW`], the oldest first; the last one is shown.
    looks: VecDeque<(Instant, Status)>,
    pub(super) rates: HashMap<String, Rate>,
    /// Why there is no newer look.
    pub(super) trouble: Option<String>,
    pub(super) sort: Column,
    pub(super) reversed: bool,
    pub(super) paused: bool,
    /// The chosen entry, by name: rows move.
    chosen: Option<String>,
    opened: bool,
    pub(super) files: Option<Files>,
    /// The first file that is shown.
    pub(super) first_file: usize,
}

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Column {
    #[default]
    List,
    Name,
    State,
    Lag,
    Age,
    Rate,
    Delivered,
    Aside,
}

impl Column {
    pub(super) const ALL: [Self; 8] =
        [Self::List, Self::Name, Self::State, Self::Lag, Self::Age, Self::Rate, Self::Delivered, Self::Aside];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::List => "the list's order",
            Self::Name => "entry",
            Self::State => "state",
            Self::Lag => "lag",
            Self::Age => "for",
            Self::Rate => "lines/s",
            Self::Delivered => "delivered",
            Self::Aside => "aside",
        }
    }

    fn beside(self, step: usize) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self).unwrap_or(0);
        Self::ALL[(at + step) % Self::ALL.len()]
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Look now.
    Look,
    End,
}

impl Top {
    /// A new look at the agent.
    pub(super) fn look(&mut self, status: Status, now: Instant) {
        self.trouble = None;
        let restarted = self.looks.back().is_some_and(|(_, last)| last.agent.started != status.agent.started);
        if restarted {
            self.looks.clear();
        }
        self.looks.push_back((now, status));
        while self.looks.len() > 2 && now.saturating_duration_since(self.looks[0].0) > WINDOW {
            self.looks.pop_front();
        }
        let (Some((begun, first)), Some((_, last))) = (self.looks.front(), self.looks.back()) else { return };
        let seconds = now.saturating_duration_since(*begun).as_secs_f64();
        self.rates = if seconds > 0.0 { rates(first, last, seconds) } else { HashMap::new() };
    }

    pub(super) fn status(&self) -> Option<&Status> {
        self.looks.back().map(|(_, status)| status)
    }

    /// The entries as they are shown.
    pub(super) fn rows(&self) -> Vec<&EntryStatus> {
        let mut rows: Vec<_> = self.status().into_iter().flat_map(|status| &status.entries).collect();
        rows.sort_by(|a, b| self.compare(a, b));
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    /// What wants attention comes first.
    fn compare(&self, a: &EntryStatus, b: &EntryStatus) -> Ordering {
        let rate = |entry: &EntryStatus| self.rates.get(&entry.name).map_or(0.0, |rate| rate.lines);
        match self.sort {
            Column::List => Ordering::Equal,
            Column::Name => a.name.cmp(&b.name),
            Column::State => severity(b.state).cmp(&severity(a.state)),
            Column::Lag => b.lag_bytes.cmp(&a.lag_bytes),
            Column::Age => b.lag_seconds.total_cmp(&a.lag_seconds),
            Column::Rate => rate(b).total_cmp(&rate(a)),
            Column::Delivered => b.lines.delivered.cmp(&a.lines.delivered),
            Column::Aside => b.lines.quarantined.cmp(&a.lines.quarantined),
        }
    }

    /// The row that is chosen.
    pub(super) fn chosen_row(&self) -> Option<usize> {
        let rows = self.rows();
        let at = rows.iter().position(|entry| Some(&entry.name) == self.chosen.as_ref());
        at.or((!rows.is_empty()).then_some(0))
    }

    /// The entry that is chosen.
    pub(super) fn chosen(&self) -> Option<&EntryStatus> {
        self.chosen_row().map(|row| self.rows()[row])
    }

    /// The entry whose files are shown.
    pub(super) fn opened(&self) -> Option<&str> {
        self.opened.then(|| self.chosen().map(|entry| entry.name.as_str())).flatten()
    }

    pub(super) fn key(&mut self, key: Key) -> Action {
        match key {
            Key::Char('q') | Key::Interrupt => return Action::End,
            Key::Escape | Key::Left => self.opened = false,
            Key::Enter | Key::Right if !self.opened => return self.open(),
            Key::Char('p') => {
                self.paused = !self.paused;
                return Action::Look;
            }
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Char('>' | '.') => self.sort = self.sort.beside(1),
            Key::Char('<' | ',') => self.sort = self.sort.beside(Column::ALL.len() - 1),
            Key::Up | Key::Char('k') => self.move_by(-1),
            Key::Down | Key::Char('j') => self.move_by(1),
            Key::PageUp => self.move_by(-10),
            Key::PageDown => self.move_by(10),
            Key::Home => self.move_by(isize::MIN / 2),
            Key::End => self.move_by(isize::MAX / 2),
            _ => {}
        }
        Action::Nothing
    }

    fn open(&mut self) -> Action {
        self.chosen = self.chosen().map(|entry| entry.name.clone());
        (self.opened, self.files, self.first_file) = (self.chosen.is_some(), None, 0);
        Action::Look
    }

    fn move_by(&mut self, by: isize) {
        let moved = |from: usize, count: usize| {
            (from as isize).saturating_add(by).clamp(0, (count as isize - 1).max(0)) as usize
        };
        if self.opened {
            let files = self.files.as_ref().map_or(0, |files| files.files.len());
            self.first_file = moved(self.first_file, files);
            return;
        }
        let Some(row) = self.chosen_row() else { return };
        let rows = self.rows();
        self.chosen = Some(rows[moved(row, rows.len())].name.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Lines;
    use crate::status::{AgentStatus, EntryState, ListStatus};

    pub(in crate::cli::top) fn entry(
        name: &str,
        state: EntryState,
        lag_bytes: u64,
        read: u64,
    ) -> EntryStatus {
        EntryStatus {
            name: name.into(),
            path: format!("/var/log/{name}.log"),
            topic: "logs".into(),
            state,
            files: 3,
            lag_bytes,
            lines: Lines { read, delivered: read, ..Lines::default() },
            ..EntryStatus::default()
        }
    }

    pub(in crate::cli::top) fn status(entries: Vec<EntryStatus>) -> Status {
        let agent = AgentStatus { name: "web1".into(), version: "1".into(), started: 5 };
        Status {
            agent,
            list: ListStatus { source: "x".into(), ..ListStatus::default() },
            entries,
            quarantine: None,
        }
    }

    fn names(top: &Top) -> Vec<&str> {
        top.rows().iter().map(|entry| entry.name.as_str()).collect()
    }

    /// Entries after a second in which `b` read 100 lines.
    fn top() -> Top {
        let (mut top, now) = (Top::default(), Instant::now());
        for (second, read) in [(0, 0), (1, 100)] {
            let entries = vec![
                entry("a", EntryState::Following, 10, 7),
                entry("b", EntryState::Following, 0, read),
                entry("c", EntryState::Stalled, 30, 8),
            ];
            top.look(status(entries), now + Duration::from_secs(second));
        }
        top
    }

    #[test]
    fn rows_are_sorted_by_each_column_and_the_chosen_one_stays_chosen() {
        let mut top = top();
        top.key(Key::Down);
        let mut orders = Vec::new();
        for column in Column::ALL {
            assert_eq!(top.sort, column);
            assert_eq!(top.chosen().unwrap().name, "b");
            orders.push(names(&top).concat());
            top.key(Key::Char('>'));
        }
        assert_eq!(orders, ["abc", "abc", "cab", "cab", "abc", "bac", "bca", "abc"]);
        top.key(Key::Char('<'));
        assert_eq!(top.sort, Column::Aside);
        top.key(Key::Char('r'));
        assert_eq!(names(&top).concat(), "cba");
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_begin_anew_with_the_agent() {
        let mut top = top();
        assert_eq!(top.rates["b"].lines, 100.0);
        let mut restarted = status(vec![entry("b", EntryState::Following, 0, 5)]);
        restarted.agent.started = 6;
        top.look(restarted, Instant::now() + Duration::from_secs(2));
        assert!(top.rates.is_empty());
        let begun = Instant::now();
        for second in 0..100 {
            let read = if second < 50 { 0 } else { (second - 50) * 10 };
            top.look(
                status(vec![entry("b", EntryState::Following, 0, read)]),
                begun + Duration::from_secs(second),
            );
        }
        assert_eq!((top.rates["b"].lines, top.looks.len()), (10.0, 11));
    }

    #[test]
    fn keys_move_open_go_back_and_end() {
        let mut top = top();
        top.key(Key::End);
        assert_eq!(top.chosen().unwrap().name, "c");
        top.key(Key::Down);
        assert_eq!(top.chosen_row(), Some(2));
        assert_eq!(top.key(Key::Enter), Action::Look);
        assert_eq!(top.opened(), Some("c"));
        top.key(Key::Escape);
        top.key(Key::Home);
        assert_eq!((top.opened(), top.chosen_row()), (None, Some(0)));
        assert_eq!(top.key(Key::Char('q')), Action::End);
        assert_eq!(top.key(Key::Interrupt), Action::End);
        // An entry that is gone is no longer chosen, and nothing breaks where there is none at all.
        top.key(Key::End);
        top.key(Key::Enter);
        top.look(status(vec![]), Instant::now() + Duration::from_secs(3));
        assert_eq!(top.opened(), None);
        assert_eq!(top.key(Key::Up), Action::Nothing);
    }
}
