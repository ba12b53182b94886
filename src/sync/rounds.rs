//! Rounds of lists: all kinds are listed anew, to confirm what is found missing. A kind that cannot be
//! listed holds no round up. Pure: time is passed in.
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
    /// Kinds that were listed in it.
    done: BTreeSet<Kind>,
    /// Kinds that are not watched: of these no list will say anything else.
    unwatched: BTreeSet<Kind>,
}

impl Rounds {
    /// Rounds without lists of these kinds, which are not watched.
    #[must_use]
    pub fn without(unwatched: BTreeSet<Kind>) -> Self {
        Self {
            unwatched,
            ..Self::default()
        }
    }

    /// Whether a round is wanted now, of these kinds. Returns whether one begins: they are to be listed.
    pub fn want(&mut self, wanted: bool, kinds: &BTreeSet<Kind>, now: Instant) -> bool {
        let kinds = kinds - &self.unwatched;
        if !wanted || kinds.is_empty() {
            self.wanted = None;
            return false;
        }
        let since = *self.wanted.get_or_insert(now);
        if !self.lacking.is_empty() || now < since + SPACING {
            return false;
        }
        self.lacking = kinds;
        self.begun.clear();
        self.done.clear();
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

    /// A list of the kind is complete. Returns the kinds that were listed in the round, once it is over.
    pub fn listed(&mut self, kind: Kind) -> Option<BTreeSet<Kind>> {
        // One that began before the round says nothing new.
        if !self.begun.remove(&kind) || !self.lacking.remove(&kind) {
            return None;
        }
        self.done.insert(kind);
        self.over()
    }

    /// The kind cannot be listed now: the round is one of the others. Returns these, once it is over.
    pub fn broken(&mut self, kind: Kind) -> Option<BTreeSet<Kind>> {
        self.begun.remove(&kind);
        if !self.lacking.remove(&kind) {
            return None;
        }
        self.over()
    }

    fn over(&mut self) -> Option<BTreeSet<Kind>> {
        if !self.lacking.is_empty() {
            return None;
        }
        self.wanted = None;
        Some(&std::mem::take(&mut self.done) | &self.unwatched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<Kind> {
        Kind::ALL.into()
    }

    #[test]
    fn a_round_begins_after_a_while_and_ends_with_the_last_list() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert!(!rounds.want(true, &all(), now));
        assert_eq!(rounds.wake_at(), Some(now + SPACING));
        assert!(rounds.want(true, &all(), now + SPACING));
        assert!(!rounds.want(true, &all(), now + SPACING), "one at a time");
        let mut ended = Vec::new();
        for kind in Kind::ALL {
            assert_eq!(rounds.listed(kind), None, "that list began before");
            rounds.listing(kind);
            ended.extend(rounds.listed(kind));
        }
        assert_eq!(ended, [all()]);
        assert!(
            !rounds.want(true, &all(), now + SPACING),
            "the next is due later"
        );
    }

    #[test]
    fn a_kind_that_cannot_be_listed_holds_no_round_up() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        let mut kinds = all();
        kinds.remove(&Kind::Intention);
        rounds.want(true, &kinds, now);
        assert!(rounds.want(true, &kinds, now + SPACING));
        let mut ended = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pod) {
            rounds.listing(kind);
            ended.extend(rounds.listed(kind));
        }
        assert_eq!(ended, [], "pods are not listed yet");
        rounds.listing(Kind::Pod);
        ended.extend(rounds.broken(Kind::Pod));
        kinds.remove(&Kind::Pod);
        assert_eq!(ended, [kinds]);
        rounds.listing(Kind::Pod);
        assert_eq!(rounds.listed(Kind::Pod), None, "it is over");
    }

    #[test]
    fn nothing_is_listed_that_nobody_wants() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        rounds.want(true, &all(), now);
        rounds.want(false, &all(), now);
        assert_eq!(rounds.wake_at(), None);
        assert!(
            !rounds.want(true, &all(), now + SPACING),
            "the wait begins anew"
        );
    }

    #[test]
    fn a_round_is_one_of_the_kinds_that_are_watched() {
        let (mut rounds, now) = (Rounds::without([Kind::Node].into()), Instant::now());
        let (pods, nodes) = ([Kind::Pod, Kind::Node].into(), [Kind::Node].into());
        rounds.want(true, &pods, now);
        assert!(rounds.want(true, &pods, now + SPACING));
        rounds.listing(Kind::Pod);
        assert_eq!(rounds.listed(Kind::Pod), Some(pods));
        // What cannot be listed is not asked for again and again.
        rounds.want(true, &nodes, now + SPACING);
        assert!(!rounds.want(true, &nodes, now + 3 * SPACING));
        assert_eq!(rounds.wake_at(), None);
    }
}
