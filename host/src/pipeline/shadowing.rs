//! The second module of an entry, which sees what its filter saw.

use super::filtering::unix_ms;
use super::{Piece, Pipeline};
use crate::filter::shadow::Shadow;
use crate::filter::{Batch, Outcome};
use crate::sink::Chunk;
use crate::source::lines::Lines;
use crate::status::ShadowStatus;

impl Pipeline {
    /// Adopted between two chunks; what the old one counted stays counted.
    pub(super) fn change_shadow(&mut self, shadow: Option<(ShadowStatus, Option<Shadow>)>) {
        if let Some((_, Some(old))) = &self.shadow {
            self.shadow_lines.get_or_insert_default().add(&old.tally());
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
        let (digest, tally) = (shadow.digest().to_string(), shadow.tally());
        Some(ShadowStatus { digest, tally, ..status.clone() })
    }

    /// Counts what all shadows of the entry saw in this run of the agent.
    pub(super) fn count_shadow(&mut self) {
        if let Some((_, Some(shadow))) = &self.shadow {
            let mut tally = self.shadow_lines.unwrap_or_default();
            tally.add(&shadow.tally());
            self.figures.shadow = Some(tally);
        } else {
            self.figures.shadow = self.shadow_lines;
        }
    }
}
