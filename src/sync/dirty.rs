//! The keys that are to be planned, are being written, or wait after a failure. Pure: time is
//! passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;
use crate::model::key::Key;

/// Why a key is to be planned. Of several causes the greatest is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A total pass: nothing should be found that the incremental ones missed.
    Audit,
    /// It was written, and is looked at once more: nothing should be left to do.
    Written,
    /// Consul was read at the start or after a doubt, or a write failed.
    Read,
    /// Consul changed by another hand.
    Drift,
    /// An instance was asked, and is otherwise than before: as when Kubernetes says so, except that it mends
    /// nothing that a write failed for.
    Found,
    /// Kubernetes changed.
    Kubernetes,
}

/// A key that is to be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Why.
    pub cause: Cause,
    /// When the first event that it is for was received.
    pub since: Instant,
}

impl Due {
    /// Both in one: the greater cause and the earlier time.
    #[must_use]
    pub fn merged(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        Self {
            cause: self.cause.max(other.cause),
            since: self.since.min(other.since),
        }
    }
}

#[derive(Debug)]
struct Penalty {
    failures: u32,
    /// Until when the key waits, and what for; `None` while it is tried again.
    parked: Option<(Instant, Due)>,
}

/// First ceiling of the wait of a key that failed.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Highest ceiling of the wait of a key that failed.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// The keys that are to be planned.
#[derive(Debug, Default)]
pub struct Dirty {
    ready: BTreeMap<Key, Due>,
    /// Where the next key is taken from: each has its turn, however often others come back.
    turn: Option<Bound<Key>>,
    /// Keys that are being written: one write in flight a key. What is due meanwhile waits here.
    again: HashMap<Key, Due>,
    busy: HashSet<Key>,
    penalties: HashMap<Key, Penalty>,
    ripening: BTreeSet<(Instant, Key)>,
}

impl Dirty {
    /// Forgets what is to be planned, and what was learned of keys that failed; what is being written is
    /// still waited for.
    pub fn clear(&mut self) {
        let busy = std::mem::take(&mut self.busy);
        *self = Self {
            busy,
            ..Self::default()
        };
    }

    /// A key is to be planned. An event of Kubernetes' lifts a penalty, because it may mend the fault; how an
    /// instance was found lifts only a wait for another hand.
    pub fn touch(&mut self, key: Key, due: Due) {
        let key = key.planned();
        if self.busy.contains(&key) {
            let due = due.merged(self.again.get(&key).copied());
            self.again.insert(key, due);
            return;
        }
        if let Some(Penalty {
            failures,
            parked: Some((until, waiting)),
        }) = self.penalties.get_mut(&key)
        {
            let merged = due.merged(Some(*waiting));
            let lifts = match due.cause {
                Cause::Kubernetes => true,
                Cause::Found => *failures == 0,
                Cause::Drift | Cause::Read | Cause::Written | Cause::Audit => false,
            };
            if !lifts {
                *waiting = merged;
                return;
            }
            self.ripening.remove(&(*until, key.clone()));
            self.penalties.remove(&key);
            self.ready.insert(key, merged);
            return;
        }
        let due = due.merged(self.ready.get(&key).copied());
        self.ready.insert(key, due);
    }

    /// A key failed: it is planned again after a wait whose ceiling doubles each time, unless
    /// Kubernetes changes first. `chance` is from 0 to 1: keys that failed together are spread.
    pub fn penalise(&mut self, key: &Key, due: Due, now: Instant, chance: f64) {
        let failures = self
            .penalties
            .get(key)
            .map_or(0, |penalty| penalty.failures);
        let ceiling = backoff::ceiling(FIRST_WAIT, failures, LONGEST_WAIT);
        let wait = backoff::jittered(ceiling, chance).max(FIRST_WAIT / 4);
        self.absolve(key);
        if self.ready.contains_key(key) {
            return;
        }
        self.park(key, due, now + wait);
        if let Some(penalty) = self.penalties.get_mut(key) {
            penalty.failures = failures + 1;
        }
    }

    /// A key is left alone until then, unless Kubernetes changes first.
    pub fn park(&mut self, key: &Key, due: Due, until: Instant) {
        let failures = self
            .penalties
            .get(key)
            .map_or(0, |penalty| penalty.failures);
        self.absolve(key);
        let penalty = Penalty {
            failures,
            parked: Some((until, due)),
        };
        self.penalties.insert(key.clone(), penalty);
        self.ripening.insert((until, key.clone()));
    }

    /// A key was planned on old knowledge: it goes again at once, and waits if that was in vain.
    pub fn stumble(&mut self, key: &Key, due: Due, now: Instant, chance: f64) {
        if self.penalties.contains_key(key) {
            self.penalise(key, due, now, chance);
            return;
        }
        let penalty = Penalty {
            failures: 0,
            parked: None,
        };
        self.penalties.insert(key.clone(), penalty);
        self.touch(key.clone(), due);
    }

    /// Whether a key is to be planned, now or later, or is being written.
    #[must_use]
    pub fn is_due(&self, key: &Key) -> bool {
        self.ready.contains_key(key) || self.busy.contains(key) || self.is_parked(key)
    }

    /// Whether a key waits after a failure.
    #[must_use]
    pub fn is_parked(&self, key: &Key) -> bool {
        let penalty = self.penalties.get(key);
        penalty.is_some_and(|penalty| penalty.parked.is_some())
    }

    /// A key is as it should be: its next failure is a first one.
    pub fn absolve(&mut self, key: &Key) {
        if let Some(Penalty {
            parked: Some((until, _)),
            ..
        }) = self.penalties.remove(key)
        {
            self.ripening.remove(&(until, key.clone()));
        }
    }

    /// Lets keys go on whose wait is over.
    pub fn ripen(&mut self, now: Instant) {
        while let Some((until, _)) = self.ripening.first()
            && *until <= now
            && let Some((_, key)) = self.ripening.pop_first()
        {
            let parked = self
                .penalties
                .get_mut(&key)
                .and_then(|penalty| penalty.parked.take());
            if let Some((_, due)) = parked {
                self.touch(key, due);
            }
        }
    }

    /// When the next wait is over.
    #[must_use]
    pub fn next_ripe(&self) -> Option<Instant> {
        self.ripening.first().map(|(until, _)| *until)
    }

    /// Takes the next key that can be planned, in turn.
    pub fn take(&mut self) -> Option<(Key, Due)> {
        let from = self.turn.take().unwrap_or(Bound::Unbounded);
        let next = self.ready.range((from, Bound::Unbounded)).next();
        let (key, _) = next.or_else(|| self.ready.first_key_value())?;
        let taken = self.ready.remove_entry(&key.clone());
        self.turn = taken.as_ref().map(|(key, _)| Bound::Excluded(key.clone()));
        taken
    }

    /// Puts back a key that was taken and not looked at: it is the next one again.
    pub fn put_back(&mut self, key: Key, due: Due) {
        self.turn = Some(Bound::Included(key.clone()));
        self.touch(key, due);
    }

    /// Takes this key, whether it was due or not.
    pub fn take_key(&mut self, key: &Key) -> Option<Due> {
        self.ready.remove(key)
    }

    /// A key is being written from now on.
    pub fn start(&mut self, key: Key) {
        self.busy.insert(key);
    }

    /// A key is not being written any more.
    pub fn finish(&mut self, key: &Key) {
        self.busy.remove(key);
        if let Some(due) = self.again.remove(key) {
            self.touch(key.clone(), due);
        }
    }

    /// The keys that are being written.
    #[must_use]
    pub fn busy(&self) -> &HashSet<Key> {
        &self.busy
    }

    /// How many keys are to be planned, being written or waiting.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.ready.len() + self.busy.len() + self.ripening.len()
    }

    /// Whether a key can be planned now.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::NodeName;

    fn key(name: &str) -> Key {
        Key::Node(NodeName::for_kubernetes(&"a".parse().unwrap(), name))
    }

    fn due(cause: Cause, since: Instant) -> Due {
        Due { cause, since }
    }

    #[test]
    fn several_causes_become_one_with_the_first_time() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.touch(key("n"), due(Cause::Kubernetes, now + FIRST_WAIT));
        dirty.touch(key("n"), due(Cause::Read, now));
        assert_eq!(dirty.take(), Some((key("n"), due(Cause::Kubernetes, now))));
        assert_eq!(dirty.take(), None);
    }

    #[test]
    fn a_key_has_its_turn_however_often_others_come_back() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let due = due(Cause::Kubernetes, now);
        for name in ["a", "b", "c"] {
            dirty.touch(key(name), due);
        }
        let mut taken = Vec::new();
        for _ in 0..6 {
            let (next, due) = dirty.take().unwrap();
            taken.push(next.clone());
            // It flaps.
            dirty.touch(next, due);
        }
        assert_eq!(taken, ["a", "b", "c", "a", "b", "c"].map(key));
        let (next, due) = dirty.take().unwrap();
        dirty.put_back(next, due);
        assert_eq!(dirty.take(), Some((key("a"), due)));
    }

    #[test]
    fn what_comes_while_a_key_is_written_waits_for_the_end() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.start(key("n"));
        dirty.touch(key("n"), due(Cause::Kubernetes, now));
        assert_eq!(dirty.take(), None);
        dirty.finish(&key("n"));
        assert!(dirty.take().is_some());
    }

    #[test]
    fn a_failed_key_waits_longer_each_time() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let due = due(Cause::Read, now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            dirty.penalise(&key("n"), due, now, 1.0);
            let ripe = dirty.next_ripe().unwrap();
            waits.push((ripe - now).as_secs());
            dirty.ripen(ripe - Duration::from_millis(1));
            assert_eq!(dirty.take(), None);
            dirty.ripen(ripe);
            assert!(dirty.take().is_some());
        }
        assert_eq!(&waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[11], LONGEST_WAIT.as_secs());
        dirty.absolve(&key("n"));
        dirty.penalise(&key("n"), due, now, 1.0);
        assert_eq!(dirty.next_ripe().unwrap() - now, FIRST_WAIT);
    }

    #[test]
    fn a_key_that_stumbles_goes_again_once_at_once() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let due = due(Cause::Kubernetes, now);
        dirty.stumble(&key("n"), due, now, 1.0);
        assert!(dirty.take().is_some());
        dirty.stumble(&key("n"), due, now, 1.0);
        assert_eq!(dirty.take(), None);
        assert!(dirty.is_parked(&key("n")));
        dirty.absolve(&key("n"));
        dirty.stumble(&key("n"), due, now, 1.0);
        assert!(dirty.take().is_some());
    }

    #[test]
    fn a_change_in_kubernetes_lifts_the_wait_and_drift_does_not() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.penalise(&key("n"), due(Cause::Read, now), now, 1.0);
        dirty.touch(key("n"), due(Cause::Drift, now));
        assert_eq!(dirty.take(), None);
        dirty.touch(key("n"), due(Cause::Kubernetes, now));
        assert!(dirty.take().is_some());
        assert_eq!(dirty.next_ripe(), None);
        assert_eq!(dirty.pending(), 0);
    }

    #[test]
    fn how_an_instance_is_lifts_no_wait_after_a_failure() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let found = due(Cause::Found, now);
        dirty.penalise(&key("n"), due(Cause::Read, now), now, 1.0);
        dirty.touch(key("n"), found);
        assert_eq!(dirty.take(), None);
        dirty.ripen(now + FIRST_WAIT);
        assert_eq!(dirty.take(), Some((key("n"), found)));
        // Where two hands fight it does not wait until they have done.
        dirty.absolve(&key("n"));
        dirty.park(&key("n"), due(Cause::Drift, now), now + FIRST_WAIT);
        dirty.touch(key("n"), found);
        assert_eq!(dirty.take(), Some((key("n"), found)));
    }

    #[test]
    fn a_key_is_parked_from_its_failure_to_its_next_try() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        assert!(!dirty.is_parked(&key("n")));
        dirty.penalise(&key("n"), due(Cause::Read, now), now, 1.0);
        assert!(dirty.is_parked(&key("n")));
        dirty.ripen(now + FIRST_WAIT);
        assert!(!dirty.is_parked(&key("n")));
    }
}
