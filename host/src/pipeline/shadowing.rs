//! The second module of an entry, which sees what its filter saw.

use super::filtering::unix_ms;
use super::{Piece, Pipeline};
use crate::filter::shadow::{Shadow, Tally};
use crate::filter::{Batch, Outcome};
use crate::sink::Chunk;
use crate::source::lines::Lines;
use crate::status::{Figures, ShadowStatus};

impl Pipeline {
    /// Adopted between two chunks; what the old one counted stays counted.
    pub(super) fn change_shadow(&mut self, shadow: Option<(ShadowStatus, Option<Shadow>)>) {
        if let Some((_, Some(old))) = &self.shadow {
            self.shadow_lines.add(&old.tally());
        }
        self.shadow = shadow;
    }

    /// Shows the shadow lines that go on, and what the filter made of them.
    pub(super) fn show_shadow(&self, piece: &Piece, chunk: &Chunk, lines: &Lines, outcome: &Outcome) {
        let Some((_, Some(shadow))) = &self.shadow else { return };
        let path = piece.path.to_string_lossy();
        let batch = Batch {
            path: &path,
            offset: piece.offset,
            unix_ms: unix_ms(),
            bytes: &chunk.read[..lines.span()],
            starts: &lines.starts,
            ends: &lines.ends,
        };
        shadow.see(&batch, outcome, |bytes| self.share.take(bytes));
    }

    pub(super) fn shadow_status(&self) -> Option<ShadowStatus> {
        let (status, shadow) = self.shadow.as_ref()?;
        let Some(shadow) = shadow else { return Some(status.clone()) };
        let Tally { same, differing, errors, skipped, cpu_seconds, memory_max } = shadow.tally();
        let digest = shadow.digest().to_string();
        let (module, state, cause) = (status.module.clone(), status.state, status.cause.clone());
        Some(ShadowStatus {
            module,
            digest,
            state,
            cause,
            same,
            differing,
            errors,
            skipped,
            cpu_seconds,
            memory_max,
        })
    }

    /// Counts what all shadows of the entry saw in this run of the agent.
    pub(super) fn count_shadow(&mut self) {
        let mut tally = self.shadow_lines;
        if let Some((_, Some(shadow))) = &self.shadow {
            tally.add(&shadow.tally());
        } else if tally == Tally::default() {
            return;
        }
        let lines = [tally.same, tally.differing, tally.errors, tally.skipped];
        self.figures.shadow_lines = RESULTS.into_iter().zip(lines).collect();
    }
}

/// As they stand in metrics.
const RESULTS: [&str; 4] = ["same", "differing", "error", "skipped"];

/// What pipelines of the entry before this one counted.
pub(super) fn counted(figures: &Figures) -> Tally {
    let [same, differing, errors, skipped] =
        RESULTS.map(|result| figures.shadow_lines.get(result).copied().unwrap_or_default());
    Tally { same, differing, errors, skipped, ..Tally::default() }
}
