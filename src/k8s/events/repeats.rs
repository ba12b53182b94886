//! Events that say the same again: they are counted on the first of them. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::EventRecord;

/// After so long without it, the same is news again.
const MEMORY: Duration = Duration::from_mins(6);
/// More than can be written in [`MEMORY`].
const SWEEP_AT: usize = 4096;

/// A repetition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repeat {
    /// The name of the first Event.
    pub name: String,
    /// How often it was said by now.
    pub count: i32,
}

#[derive(Debug, Default)]
pub(super) struct Repeats {
    known: HashMap<EventRecord, (Repeat, Instant)>,
}

impl Repeats {
    /// Counts the repetition, if it is one.
    pub fn again(&mut self, record: &EventRecord, now: Instant) -> Option<Repeat> {
        let (repeat, last) = self.known.get_mut(record)?;
        if now.duration_since(*last) >= MEMORY {
            self.known.remove(record);
            return None;
        }
        repeat.count = repeat.count.saturating_add(1);
        *last = now;
        Some(repeat.clone())
    }

    /// Remembers what was said under the name of an Event.
    pub fn first(&mut self, record: EventRecord, name: String, now: Instant) {
        if self.known.len() >= SWEEP_AT {
            self.known
                .retain(|_, (_, last)| now.duration_since(*last) < MEMORY);
        }
        self.known.insert(record, (Repeat { name, count: 1 }, now));
    }
}
