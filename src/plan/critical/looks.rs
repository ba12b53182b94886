//! Looks at single pods, directly before their instances are deregistered. Pure: time and chance are
//! passed in.
//!
//! A watch that hangs looks like one over which nothing happens: that a pod was not ready for long is known
//! from it alone. So the API server is asked once for this one pod, and only while its answer is young and
//! says the same does the instance go.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;
use crate::model::key::InstanceKey;
use crate::model::owner::Owner;

/// For so long after the API server was asked its answer counts.
const VALID: Duration = Duration::from_secs(10);
/// Looks under way at once.
pub const AT_ONCE: usize = 4;
/// First ceiling of the pause after a look that showed something else, or nothing.
const FIRST: Duration = Duration::from_secs(1);
/// Highest ceiling of that pause.
const CEILING: Duration = Duration::from_secs(30);

/// A look that is to be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which one.
    pub id: u64,
    /// The instance that would go.
    pub instance: InstanceKey,
    /// The pod to look at.
    pub pod: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is to be looked at, from this moment on.
    Due(Instant),
    /// Asked with this id, at this moment.
    Asked(u64, Instant),
    /// The answer was that it is as it is known, and counts until then.
    Shown(Instant),
}

#[derive(Debug)]
struct Row {
    pod: Owner,
    state: State,
    failures: u32,
}

/// The looks at the pods of instances that are to go.
#[derive(Debug, Default)]
pub struct Looks {
    rows: BTreeMap<InstanceKey, Row>,
    due: BTreeSet<(Instant, InstanceKey)>,
    shown: BTreeSet<(Instant, InstanceKey)>,
    /// Those under way, also where nobody waits for the answer any more.
    asked: BTreeMap<u64, InstanceKey>,
    last: u64,
}

impl Looks {
    /// An instance would go, once its pod was looked at.
    pub fn want(&mut self, key: &InstanceKey, pod: &Owner, now: Instant) {
        if self.rows.contains_key(key) {
            return;
        }
        let row = Row {
            pod: pod.clone(),
            state: State::Due(now),
            failures: 0,
        };
        self.rows.insert(key.clone(), row);
        self.due.insert((now, key.clone()));
    }

    /// Whether the API server just showed the pod of an instance to be as it is known.
    #[must_use]
    pub fn shows(&self, key: &InstanceKey) -> bool {
        let row = self.rows.get(key);
        row.is_some_and(|row| matches!(row.state, State::Shown(_)))
    }

    /// An instance does not go: what was seen of its pod is worth nothing.
    pub fn forget(&mut self, key: &InstanceKey) {
        let Some(row) = self.rows.remove(key) else {
            return;
        };
        match row.state {
            State::Due(at) => self.due.remove(&(at, key.clone())),
            State::Shown(until) => self.shown.remove(&(until, key.clone())),
            State::Asked(..) => false,
        };
    }

    /// No instance does.
    pub(super) fn forget_all(&mut self) {
        self.rows.clear();
        self.due.clear();
        self.shown.clear();
    }

    /// Time has passed: answers that are too old count no more.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((until, key)) = self.shown.first().cloned()
            && until <= now
        {
            self.forget(&key);
        }
    }

    /// Takes the next look, if one is due and not too many are under way. `would_go` says whether an
    /// instance is still to go.
    pub(super) fn next(
        &mut self,
        would_go: impl Fn(&InstanceKey) -> bool,
        now: Instant,
    ) -> Option<Look> {
        while self.asked.len() < AT_ONCE
            && let Some((at, key)) = self.due.first().cloned()
            && at <= now
        {
            if !would_go(&key) {
                self.forget(&key);
                continue;
            }
            self.due.pop_first();
            let Some(row) = self.rows.get_mut(&key) else {
                continue;
            };
            self.last += 1;
            row.state = State::Asked(self.last, now);
            let look = Look {
                id: self.last,
                instance: key.clone(),
                pod: row.pod.clone(),
            };
            self.asked.insert(self.last, key);
            return Some(look);
        }
        None
    }

    /// The instance that a look which is under way is for.
    #[must_use]
    pub fn asked_for(&self, id: u64) -> Option<&InstanceKey> {
        self.asked.get(&id)
    }

    /// A look was answered; `agrees` if the pod is as it is known. Returns the instance that may go by it.
    /// `chance` is from 0 to 1.
    pub fn answered(
        &mut self,
        id: u64,
        agrees: bool,
        now: Instant,
        chance: f64,
    ) -> Option<InstanceKey> {
        let key = self.asked.remove(&id)?;
        let row = self.rows.get_mut(&key)?;
        let State::Asked(_, at) = row.state else {
            return None;
        };
        if row.state != State::Asked(id, at) {
            return None;
        }
        // It is from when it was asked on that the answer may be of.
        let until = at + VALID;
        if agrees && now < until {
            row.state = State::Shown(until);
            self.shown.insert((until, key.clone()));
            return Some(key);
        }
        let ceiling = backoff::ceiling(FIRST, row.failures, CEILING);
        row.failures += 1;
        let again = now + backoff::jittered(ceiling, chance).max(FIRST / 2);
        row.state = State::Due(again);
        self.due.insert((again, key));
        None
    }

    /// When there is a look to be had.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let due = self.due.first().filter(|_| self.asked.len() < AT_ONCE);
        due.map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{InstanceId, NodeName};

    fn key(number: usize) -> InstanceKey {
        InstanceKey {
            node: NodeName::for_kubernetes(&"a".parse().unwrap(), "n1"),
            id: InstanceId::observed(&format!("a.shop.web.p{number}")),
        }
    }

    fn pod(number: usize) -> Owner {
        Owner::pod(&"shop".into(), &format!("p{number}").into())
    }

    fn wanted(now: Instant) -> Looks {
        let mut looks = Looks::default();
        looks.want(&key(0), &pod(0), now);
        looks
    }

    #[test]
    fn what_is_as_it_is_known_may_go_for_a_while_after_it_was_asked() {
        let now = Instant::now();
        let mut looks = wanted(now);
        let look = looks.next(|_| true, now).unwrap();
        assert_eq!(look.pod, pod(0));
        assert!(!looks.shows(&key(0)));
        let later = now + Duration::from_secs(4);
        looks.want(&key(0), &pod(0), later);
        assert_eq!(looks.next(|_| true, later), None, "it is under way");
        assert_eq!(looks.answered(look.id, true, later, 1.0), Some(key(0)));
        looks.expire(now + VALID - Duration::from_millis(1));
        assert!(looks.shows(&key(0)));
        looks.expire(now + VALID);
        assert!(!looks.shows(&key(0)));
        // Then it is asked anew, if it is still to go.
        assert_eq!(looks.wake_at(), None);
        looks.want(&key(0), &pod(0), now + VALID);
        assert!(looks.next(|_| true, now + VALID).is_some());
    }

    #[test]
    fn an_answer_that_was_long_in_coming_counts_for_nothing() {
        let now = Instant::now();
        let mut looks = wanted(now);
        let look = looks.next(|_| true, now).unwrap();
        assert_eq!(looks.answered(look.id, true, now + VALID, 1.0), None);
        assert!(!looks.shows(&key(0)));
    }

    #[test]
    fn what_is_otherwise_or_cannot_be_read_is_asked_again_ever_later() {
        let now = Instant::now();
        let mut looks = wanted(now);
        let (mut at, mut pauses) = (now, Vec::new());
        for _ in 0..8 {
            let look = looks.next(|_| true, at).unwrap();
            assert_eq!(looks.answered(look.id, false, at, 1.0), None);
            assert_eq!(looks.next(|_| true, at), None, "not at once");
            pauses.push((looks.wake_at().unwrap() - at).as_secs());
            at = looks.wake_at().unwrap();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        let look = looks.next(|_| true, at).unwrap();
        assert_eq!(looks.answered(look.id, true, at, 1.0), Some(key(0)));
    }

    #[test]
    fn few_are_asked_at_once_and_nobody_of_whom_it_is_not_wanted_any_more() {
        let now = Instant::now();
        let mut looks = Looks::default();
        for number in 0..10 {
            looks.want(&key(number), &pod(number), now);
        }
        let first: Vec<Look> = std::iter::from_fn(|| looks.next(|_| true, now)).collect();
        assert_eq!((first.len(), looks.wake_at()), (AT_ONCE, None));
        // The answer to a question that nobody has any more is no answer to the next one.
        looks.forget(&key(0));
        looks.want(&key(0), &pod(0), now);
        assert_eq!(looks.answered(first[0].id, true, now, 1.0), None);
        assert!(!looks.shows(&key(0)));
        let next = looks.next(|key| *key == self::key(9), now).unwrap();
        assert_eq!(next.pod, pod(9));
        assert_eq!(looks.wake_at(), None);
    }
}
