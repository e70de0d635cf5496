//! What a pipeline says about itself, between two chunks.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Gate, Pipeline, REPORT_INTERVAL, REPORT_INTERVAL_MAX, REPORT_PART};
use crate::filter::Filter;
use crate::source::Standing;
use crate::status::{EntryReport, EntryState, EntryStatus, FilterStats, FilterStatus, Obstacle};

/// Lag above which an entry that is behind counts as catching up. Bytes.
const CATCHING_UP_BYTES: u64 = 4 * 1024 * 1024;

/// Without an acknowledgement for so long, an entry waits for Kafka.
const KAFKA_SILENT_AFTER: Duration = Duration::from_secs(10);

/// Without memory for so long, an entry waits for it.
const CRAMPED_AFTER: Duration = Duration::from_secs(2);

impl Pipeline {
    pub(super) fn report(&mut self, now: Instant) {
        self.stale = false;
        let begun = Instant::now();
        let Standing { files, lag_bytes, lag_since, held_bytes } = self.source.standing();
        let (state, obstacle, cause) = self.state(files, lag_bytes, now);
        self.figures.held_bytes = held_bytes;
        for (reason, bytes) in self.source.take_lost() {
            *self.figures.lost_bytes.entry(reason).or_default() += bytes;
        }
        for (reason, files) in self.source.take_rewinds() {
            *self.figures.rewinds.entry(reason).or_default() += files;
        }
        self.figures.module_counts = self.module_counts();
        self.count_shadow();
        let status = EntryStatus {
            name: self.entry.name.to_string(),
            path: self.entry.path.clone(),
            topic: self.entry.topic.to_string(),
            state,
            cause,
            obstacle,
            files,
            lag_bytes,
            lag_seconds: lag_since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
            bytes_read: self.figures.bytes_read,
            lines: self.counts,
            filter: self.filter_status(),
        };
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) =
            EntryReport { status, figures: self.figures.clone() };
        let pause = (begun.elapsed() * REPORT_PART).clamp(REPORT_INTERVAL, REPORT_INTERVAL_MAX);
        self.report_due = Instant::now() + pause;
    }

    fn filter_status(&self) -> Option<FilterStatus> {
        let digest = self.filter.as_ref().map(|filter| filter.digest().to_string()).unwrap_or_default();
        let counts = self.filter.as_ref().map(Filter::counts).unwrap_or_default();
        let stats = FilterStats { counts, ..self.stats.clone() };
        let shadow = self.shadow_status();
        let status = self.filter_status.clone();
        let status = status.map(|status| FilterStatus { digest, stats, shadow, ..status });
        status.or_else(|| {
            let wanted = self.entry.filter.as_ref()?;
            Some(FilterStatus { module: wanted.module.to_string(), ..FilterStatus::default() })
        })
    }

    /// In one word, what stands in the way, and why in words.
    fn state(&self, files: u64, lag: u64, now: Instant) -> (EntryState, Option<Obstacle>, String) {
        if let Some((state, obstacle, cause)) = self.recovery.trouble() {
            return (state, Some(obstacle), cause);
        }
        match &self.gate {
            Gate::Hold(cause, until) => {
                let obstacle = if until.is_some() { Obstacle::Quarantine } else { Obstacle::Lines };
                return (EntryState::Holding, Some(obstacle), cause.clone());
            }
            Gate::Filter(cause) => {
                let obstacle = self.filter_status.as_ref().and_then(|status| status.obstacle);
                return (EntryState::Waiting, obstacle, format!("waits for its filter: {cause}"));
            }
            Gate::Open => {}
        }
        if let Some(trouble) = &self.partitions.trouble {
            let (state, obstacle) = if self.partitions.is_topic {
                (EntryState::Stalled, Obstacle::Topic)
            } else {
                (EntryState::Waiting, Obstacle::Kafka)
            };
            return (state, Some(obstacle), trouble.clone());
        }
        if self.cramped.is_some_and(|since| now.saturating_duration_since(since) > CRAMPED_AFTER)
            && self.flights.is_empty()
        {
            return (
                EntryState::Waiting,
                Some(Obstacle::Memory),
                "waits for memory that other entries have; raise [limits] memory".into(),
            );
        }
        let oldest = self.flights.values().map(|flight| flight.sent).min();
        if let Some(silent) =
            oldest.map(|sent| now.saturating_duration_since(sent)).filter(|s| *s > KAFKA_SILENT_AFTER)
        {
            return (
                EntryState::Waiting,
                Some(Obstacle::Kafka),
                format!("no acknowledgement from Kafka for {} s", silent.as_secs()),
            );
        }
        if let Some((_, trouble)) = self.source.troubles().first_key_value() {
            let more = self.source.troubles().len() - 1;
            let others = if more > 0 { format!(" (and {more} more files)") } else { String::new() };
            return (self.progress(lag), Some(Obstacle::Files), format!("{trouble}{others}"));
        }
        if files == 0 {
            return (EntryState::Waiting, Some(Obstacle::Files), "no file matches yet".into());
        }
        (self.progress(lag), None, String::new())
    }

    fn progress(&self, lag: u64) -> EntryState {
        if lag > CATCHING_UP_BYTES { EntryState::CatchingUp } else { EntryState::Following }
    }
}
