//! What is asked of a pipeline about a line in quarantine, and what it answers.

use super::Item;

/// A line that is to be sent again.
pub struct Replay {
    /// Which one; its entry says to which pipeline it goes.
    pub item: Item,
    /// Called once with what became of it; dropped where the pipeline ends before that is known.
    pub answer: Box<dyn FnOnce(Replayed) + Send>,
}

/// What became of a line that was to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Kafka has acknowledged it; it is no longer in quarantine.
    Delivered,
    /// The filter drops it now; it is no longer in quarantine.
    Dropped,
    /// It is still in quarantine.
    Kept(String),
}
