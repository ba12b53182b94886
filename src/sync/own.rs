//! Which of Consul's signals our own writes explain. Pure: time is passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// Most indexes that are remembered: more than are written in the pace of the signals.
const REMEMBERED: usize = 8192;
/// How long a removal, which leaves no index, explains signals.
const REMOVAL_EXPLAINS: Duration = Duration::from_secs(2);

/// Our writes under way and done, as far as signals need explaining.
#[derive(Debug, Default)]
pub struct OwnWrites {
    next: u64,
    under_way: BTreeSet<u64>,
    indexes: BTreeSet<u64>,
    removed_at: Option<Instant>,
    /// Signalled indexes, and the first write that began after them: one that began before may turn
    /// out to be what they tell of.
    signalled: Vec<(u64, u64)>,
}

impl OwnWrites {
    /// A write begins; returns its number.
    pub fn start(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.under_way.insert(id);
        id
    }

    /// A write ended, whatever came of it.
    pub fn finish(&mut self, id: u64) {
        self.under_way.remove(&id);
    }

    /// How many writes are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// An entry that we wrote has this index.
    pub fn wrote(&mut self, index: u64) {
        self.indexes.insert(index);
        while self.indexes.len() > REMEMBERED {
            self.indexes.pop_first();
        }
    }

    /// An entry of ours was removed.
    pub fn removed(&mut self, now: Instant) {
        self.removed_at = Some(now);
    }

    /// Consul tells that its last change has this index.
    pub fn signalled(&mut self, index: u64) {
        if !self.indexes.contains(&index) {
            self.signalled.push((index, self.next));
        }
    }

    /// Indexes begin anew, or some were missed: what is remembered explains nothing any more.
    pub fn forget(&mut self) {
        self.indexes.clear();
        self.signalled.clear();
        self.removed_at = None;
    }

    /// Whether there is a signal that none of our writes explains. Each is told of once.
    pub fn unexplained(&mut self, now: Instant) -> bool {
        let removed = self
            .removed_at
            .is_some_and(|at| now - at < REMOVAL_EXPLAINS);
        let first = self.under_way.first().copied().unwrap_or(u64::MAX);
        let mut unexplained = false;
        let indexes = &self.indexes;
        self.signalled.retain(|(index, before)| {
            if first < *before {
                return true;
            }
            unexplained |= !removed && !indexes.contains(index);
            false
        });
        unexplained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_of_our_own_write_is_explained_even_before_its_answer() {
        let (mut own, now) = (OwnWrites::default(), Instant::now());
        let id = own.start();
        own.signalled(7);
        assert!(!own.unexplained(now), "the write may explain it");
        own.wrote(7);
        own.finish(id);
        assert!(!own.unexplained(now));
    }

    #[test]
    fn a_signal_of_another_hand_is_told_once_and_not_held_up_by_later_writes() {
        let (mut own, now) = (OwnWrites::default(), Instant::now());
        let id = own.start();
        own.signalled(7);
        own.start();
        own.wrote(8);
        own.finish(id);
        assert!(own.unexplained(now));
        assert!(!own.unexplained(now));
    }

    #[test]
    fn a_removal_explains_signals_for_a_moment() {
        let (mut own, now) = (OwnWrites::default(), Instant::now());
        own.removed(now);
        own.signalled(7);
        assert!(!own.unexplained(now));
        own.signalled(8);
        assert!(own.unexplained(now + REMOVAL_EXPLAINS));
    }
}
