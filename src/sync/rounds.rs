//! Rounds of lists: all kinds are listed anew, to confirm what is found missing. Pure: time is passed
//! in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::kind::Kind;

/// The time between rounds.
const SPACING: Duration = Duration::from_secs(30);

/// The rounds. A kind that cannot be listed, because its CRD is missing, holds up no other.
#[derive(Debug, Default)]
pub struct Rounds {
    /// The kinds of which lists are wanted.
    wanted: BTreeSet<Kind>,
    /// Since when one is wanted, or the last one began.
    since: Option<Instant>,
    /// Kinds whose list the present round still lacks; empty where none is under way.
    lacking: BTreeSet<Kind>,
    /// Those of them whose list is under way.
    begun: BTreeSet<Kind>,
}

impl Rounds {
    /// Lists of these kinds are wanted. Returns whether a round begins: all kinds are to be listed.
    pub fn want(&mut self, wanted: BTreeSet<Kind>, now: Instant) -> bool {
        self.wanted = wanted;
        if self.wanted.is_empty() {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        if self.waits() || now < since + SPACING {
            return false;
        }
        self.since = Some(now);
        self.lacking.clone_from(&self.wanted);
        self.begun.clear();
        true
    }

    /// Whether the present round is all that can be done.
    fn waits(&self) -> bool {
        !self.begun.is_empty() || self.wanted.is_subset(&self.lacking)
    }

    /// When a round is to begin.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.since
            .filter(|_| !self.waits())
            .map(|since| since + SPACING)
    }

    /// A list of the kind begins.
    pub fn listing(&mut self, kind: Kind) {
        if self.lacking.contains(&kind) {
            self.begun.insert(kind);
        }
    }

    /// The kind cannot be listed for now.
    pub fn broken(&mut self, kind: Kind) {
        self.begun.remove(&kind);
    }

    /// A list of the kind is complete. Returns whether it is one that was asked for.
    pub fn listed(&mut self, kind: Kind) -> bool {
        // One that began before the round says nothing new.
        self.begun.remove(&kind) && self.lacking.remove(&kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<Kind> {
        Kind::ALL.into()
    }

    #[test]
    fn a_round_begins_after_a_while_and_counts_each_list_once() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(!rounds.want(all(), now));
        assert_eq!(rounds.wake_at(), Some(now + SPACING));
        let now = now + SPACING;
        assert!(rounds.want(all(), now));
        assert!(!rounds.want(all(), now), "one at a time");
        for kind in Kind::ALL {
            assert!(!rounds.listed(kind), "that list began before");
            rounds.listing(kind);
            assert!(rounds.listed(kind));
            rounds.listing(kind);
            assert!(!rounds.listed(kind), "nobody asked for a second one");
        }
        assert!(!rounds.want(all(), now), "the next is due later");
        assert!(rounds.want(all(), now + SPACING));
    }

    #[test]
    fn nothing_is_listed_that_nobody_wants() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        rounds.want(all(), now);
        rounds.want(BTreeSet::new(), now);
        assert_eq!(rounds.wake_at(), None);
        assert!(!rounds.want(all(), now + SPACING), "the wait begins anew");
    }

    #[test]
    fn a_kind_that_cannot_be_listed_holds_up_no_other() {
        let (mut rounds, mut now) = (Rounds::default(), Instant::now());
        rounds.want(all(), now);
        for _ in 0..3 {
            now += SPACING;
            assert!(rounds.want(all(), now));
            for kind in Kind::ALL {
                rounds.listing(kind);
            }
            for kind in Kind::ALL {
                if kind == Kind::Intention {
                    rounds.broken(kind);
                } else {
                    assert!(rounds.listed(kind));
                }
            }
        }
        // But for its own sake alone the others are not listed again and again.
        now += SPACING;
        assert!(!rounds.want([Kind::Intention].into(), now));
        assert_eq!(rounds.wake_at(), None);
        rounds.listing(Kind::Intention);
        assert!(rounds.listed(Kind::Intention));
        assert!(rounds.want([Kind::Intention].into(), now + SPACING));
    }

    #[test]
    fn a_list_that_takes_long_is_not_begun_anew() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        rounds.want(all(), now);
        assert!(rounds.want(all(), now + SPACING));
        for kind in Kind::ALL {
            rounds.listing(kind);
        }
        for kind in Kind::ALL {
            assert!(
                !rounds.want(all(), now + 9 * SPACING),
                "{kind:?} is under way"
            );
            rounds.listed(kind);
        }
        assert!(rounds.want(all(), now + 9 * SPACING));
    }
}
