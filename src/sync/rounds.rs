//! Rounds of lists: all kinds are listed anew, to confirm what is found missing. Pure: time is passed
//! in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::kind::Kind;

/// The time between rounds.
const SPACING: Duration = Duration::from_secs(30);

/// The rounds.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Since when one is wanted.
    wanted: Option<Instant>,
    /// Kinds whose list the present round still lacks; empty where none is under way.
    lacking: BTreeSet<Kind>,
    /// Kinds whose list began since the round did.
    begun: BTreeSet<Kind>,
}

impl Rounds {
    /// Whether a round is wanted now. Returns whether one begins: all kinds are to be listed.
    pub fn want(&mut self, wanted: bool, now: Instant) -> bool {
        if !wanted {
            self.wanted = None;
            return false;
        }
        let since = *self.wanted.get_or_insert(now);
        if !self.lacking.is_empty() || now < since + SPACING {
            return false;
        }
        self.lacking = Kind::ALL.into();
        self.begun.clear();
        true
    }

    /// When a round is to begin.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.wanted
            .filter(|_| self.lacking.is_empty())
            .map(|since| since + SPACING)
    }

    /// A list of the kind begins.
    pub fn listing(&mut self, kind: Kind) {
        if self.lacking.contains(&kind) {
            self.begun.insert(kind);
        }
    }

    /// A list of the kind is complete. Returns whether the round is.
    pub fn listed(&mut self, kind: Kind) -> bool {
        // One that began before the round says nothing new.
        if !self.begun.remove(&kind) || !self.lacking.remove(&kind) || !self.lacking.is_empty() {
            return false;
        }
        self.wanted = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_begins_after_a_while_and_ends_with_the_last_list() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(!rounds.want(true, now));
        assert_eq!(rounds.wake_at(), Some(now + SPACING));
        assert!(rounds.want(true, now + SPACING));
        assert!(!rounds.want(true, now + SPACING), "one at a time");
        let mut ended = 0;
        for kind in Kind::ALL {
            assert!(!rounds.listed(kind), "that list began before");
            rounds.listing(kind);
            ended += usize::from(rounds.listed(kind));
        }
        assert_eq!(ended, 1);
        assert!(!rounds.want(true, now + SPACING), "the next is due later");
    }

    #[test]
    fn nothing_is_listed_that_nobody_wants() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        rounds.want(true, now);
        rounds.want(false, now);
        assert_eq!(rounds.wake_at(), None);
        assert!(!rounds.want(true, now + SPACING), "the wait begins anew");
    }
}
