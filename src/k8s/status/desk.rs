//! What is to be written, what was, and when. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{ObjectStatus, StatusUpdate};
use crate::model::backoff;
use crate::model::owner::OwnerKind;
use crate::model::text::Text;

/// The least time between two writes of one object.
const SPACING: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    /// The object does not exist any more.
    Gone,
    Failed,
}

type Key = (OwnerKind, Text, Text);

#[derive(Debug, Default)]
pub(super) struct Desk {
    objects: BTreeMap<Key, Entry>,
    /// The objects whose wanted status is not written, and which are not being written.
    open: BTreeSet<Key>,
    round: u64,
}

#[derive(Debug)]
struct Entry {
    uid: Text,
    wanted: Option<ObjectStatus>,
    /// What the API server holds, as far as is known.
    held: Option<ObjectStatus>,
    writing: bool,
    not_before: Option<Instant>,
    failures: u32,
}

impl Entry {
    fn new(uid: Text) -> Self {
        Self {
            uid,
            wanted: None,
            held: None,
            writing: false,
            not_before: None,
            failures: 0,
        }
    }

    fn is_open(&self) -> bool {
        !self.writing && self.wanted.is_some() && self.wanted != self.held
    }
}

impl Desk {
    pub(super) fn want(&mut self, update: StatusUpdate) {
        let key = (update.status.kind(), update.namespace, update.name);
        let entry = entry(&mut self.objects, &key, update.uid);
        entry.wanted = Some(update.status);
        self.file(key);
    }

    pub(super) fn forget(&mut self, kind: OwnerKind, namespace: &Text, name: &Text) {
        let key = (kind, namespace.clone(), name.clone());
        self.objects.remove(&key);
        self.open.remove(&key);
    }

    /// Drops what is not written yet, or of which no answer came, and tells of what. That a gate is open
    /// stays: it was decided, nobody decides it anew, and it is never taken back.
    pub(super) fn withdraw(&mut self) -> Vec<Key> {
        self.round += 1;
        self.open.clear();
        let mut withdrawn = Vec::new();
        for (key, mut entry) in std::mem::take(&mut self.objects) {
            let opens = matches!(&entry.wanted, Some(ObjectStatus::Pod(gate)) if gate.open);
            let is_written = entry.wanted == entry.held && !entry.writing;
            entry.writing = false;
            if opens {
                self.objects.insert(key.clone(), entry);
                self.file(key);
            } else if !is_written {
                withdrawn.push(key);
            }
        }
        withdrawn
    }

    /// Changes whenever writes that are under way are not to go on.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    pub(super) fn waiting(&self) -> usize {
        let writing = self.objects.values().filter(|entry| entry.writing);
        self.open.len() + writing.count()
    }

    /// Takes what is to be written now, at most `limit`.
    pub(super) fn due(&mut self, now: Instant, limit: usize) -> Vec<StatusUpdate> {
        let ready = |key: &&Key| {
            self.objects
                .get(*key)
                .is_some_and(|entry| entry.not_before.is_none_or(|at| at <= now))
        };
        let keys: Vec<Key> = self
            .open
            .iter()
            .filter(ready)
            .take(limit)
            .cloned()
            .collect();
        let mut due = Vec::with_capacity(keys.len());
        for key in keys {
            self.open.remove(&key);
            let Some(entry) = self.objects.get_mut(&key) else {
                continue;
            };
            let Some(status) = entry.wanted.clone() else {
                continue;
            };
            entry.writing = true;
            let (_, namespace, name) = key;
            due.push(StatusUpdate {
                namespace,
                name,
                uid: entry.uid.clone(),
                status,
            });
        }
        due
    }

    /// When something is to be written next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.open
            .iter()
            .filter_map(|key| self.objects.get(key)?.not_before)
            .min()
    }

    /// What came of a write. `dice` is a number from 0 up to 1. Returns whether it is the first in a row
    /// for the object that failed.
    pub(super) fn done(
        &mut self,
        update: StatusUpdate,
        outcome: Outcome,
        now: Instant,
        dice: f64,
    ) -> bool {
        let key = (update.status.kind(), update.namespace, update.name);
        // The object may have been forgotten, or be another by now.
        let Some(entry) = self
            .objects
            .get_mut(&key)
            .filter(|entry| entry.uid == update.uid)
        else {
            return false;
        };
        entry.writing = false;
        let first = outcome == Outcome::Failed && entry.failures == 0;
        match outcome {
            Outcome::Written => {
                entry.held = Some(update.status);
                entry.failures = 0;
                entry.not_before = Some(now + SPACING);
            }
            Outcome::Gone => {
                self.objects.remove(&key);
                return false;
            }
            Outcome::Failed => {
                let longest = backoff::ceiling(SPACING, entry.failures, LONGEST_PAUSE);
                entry.failures += 1;
                // It may have been written all the same.
                entry.held = None;
                entry.not_before = Some(now + SPACING.max(backoff::jittered(longest, dice)));
            }
        }
        self.file(key);
        first
    }

    fn file(&mut self, key: Key) {
        if self.objects.get(&key).is_some_and(Entry::is_open) {
            self.open.insert(key);
        } else {
            self.open.remove(&key);
        }
    }
}

/// The entry of this very object; that of an earlier one of the same name is void.
fn entry<'a>(objects: &'a mut BTreeMap<Key, Entry>, key: &Key, uid: Text) -> &'a mut Entry {
    let entry = objects
        .entry(key.clone())
        .or_insert_with(|| Entry::new(uid.clone()));
    if entry.uid != uid {
        *entry = Entry::new(uid);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{IntentionStatus, ServiceRegistrationStatus};
    use crate::model::facts::GateCondition;

    fn update(name: &str, uid: &str, error: &str) -> StatusUpdate {
        StatusUpdate {
            namespace: "shop".into(),
            name: name.into(),
            uid: uid.into(),
            status: ObjectStatus::Registration(ServiceRegistrationStatus {
                last_error: Some(error.to_owned()),
                ..ServiceRegistrationStatus::default()
            }),
        }
    }

    fn a(error: &str) -> StatusUpdate {
        update("a", "1", error)
    }

    /// Writes what is due, with the same outcome for all.
    fn write(desk: &mut Desk, now: Instant, outcome: Outcome) -> Vec<StatusUpdate> {
        let due = desk.due(now, 100);
        for update in &due {
            desk.done(update.clone(), outcome, now, 1.0);
        }
        due
    }

    fn later(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    #[test]
    fn the_first_is_written_at_once_and_the_latest_wins_after_a_second() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        assert_eq!(write(&mut desk, now, Outcome::Written), [a("1")]);
        desk.want(a("2"));
        desk.want(a("3"));
        assert_eq!(desk.next_due(), Some(later(now, 1000)));
        assert_eq!(write(&mut desk, later(now, 999), Outcome::Written), []);
        assert_eq!(
            write(&mut desk, later(now, 1000), Outcome::Written),
            [a("3")]
        );
        assert_eq!(desk.next_due(), None);
    }

    #[test]
    fn what_is_written_is_not_written_again() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        write(&mut desk, now, Outcome::Written);
        desk.want(a("2"));
        desk.want(a("1"));
        assert_eq!(write(&mut desk, later(now, 5000), Outcome::Written), []);
    }

    #[test]
    fn a_change_during_a_write_is_written_after_it() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        let due = desk.due(now, 1);
        desk.want(a("2"));
        assert_eq!(desk.due(now, 1), []);
        desk.done(due[0].clone(), Outcome::Written, now, 1.0);
        assert_eq!(
            write(&mut desk, later(now, 1000), Outcome::Written),
            [a("2")]
        );
    }

    #[test]
    fn failures_are_tried_again_with_growing_pauses() {
        let (mut desk, mut now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        let mut pauses = Vec::new();
        for number in 0..8 {
            let due = desk.due(now, 100);
            assert_eq!(due, [a("1")]);
            let first = desk.done(a("1"), Outcome::Failed, now, 1.0);
            assert_eq!(first, number == 0, "it is told once");
            let next = desk.next_due().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(write(&mut desk, now, Outcome::Written), [a("1")]);
    }

    #[test]
    fn a_write_without_an_answer_leaves_nothing_known() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        write(&mut desk, now, Outcome::Written);
        let now = later(now, 1000);
        desk.want(a("2"));
        write(&mut desk, now, Outcome::Failed);
        desk.want(a("1"));
        assert_eq!(
            write(&mut desk, later(now, 1000), Outcome::Written),
            [a("1")]
        );
    }

    #[test]
    fn objects_that_are_gone_are_dropped() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        write(&mut desk, now, Outcome::Gone);
        assert!(desk.objects.is_empty() && desk.open.is_empty());

        desk.want(a("1"));
        let due = desk.due(now, 1);
        let kind = OwnerKind::ServiceRegistration;
        desk.forget(kind, &"shop".into(), &"a".into());
        desk.done(due[0].clone(), Outcome::Written, now, 1.0);
        assert!(desk.objects.is_empty() && desk.open.is_empty());
    }

    #[test]
    fn an_object_of_the_same_name_is_another() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.want(a("1"));
        let due = desk.due(now, 1);
        let second = update("a", "2", "1");
        desk.want(second.clone());
        desk.done(due[0].clone(), Outcome::Written, now, 1.0);
        assert_eq!(write(&mut desk, now, Outcome::Written), [second]);
    }

    #[test]
    fn objects_of_one_name_and_two_kinds_are_two() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let mut other = a("1");
        other.status = ObjectStatus::Intention(IntentionStatus::default());
        desk.want(a("1"));
        desk.want(other.clone());
        assert_eq!(write(&mut desk, now, Outcome::Written), [a("1"), other]);
    }

    #[test]
    fn what_is_withdrawn_is_not_written_and_gates_that_open_are() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let gate = |name, open| StatusUpdate {
            status: ObjectStatus::Pod(GateCondition {
                open,
                reason: "".into(),
                message: "".into(),
            }),
            ..update(name, "1", "")
        };
        desk.want(update("written", "1", "x"));
        assert_eq!(write(&mut desk, now, Outcome::Written).len(), 1);
        for update in [gate("opens", true), gate("shut", false), a("x"), a("y")] {
            desk.want(update);
        }
        // No answer came to these yet.
        let under_way = desk.due(now, 100);
        assert_eq!(under_way.len(), 3);
        desk.want(update("waits", "1", "x"));
        let mut names: Vec<_> = desk.withdraw().into_iter().map(|key| key.2).collect();
        names.sort();
        assert_eq!(names, ["a", "shut", "waits"].map(Text::from));
        for update in under_way {
            desk.done(update, Outcome::Failed, now, 1.0);
        }
        let later = later(now, 60_000);
        assert_eq!(
            write(&mut desk, later, Outcome::Written),
            [gate("opens", true)]
        );
    }

    #[test]
    fn so_many_at_a_time() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        for name in ["a", "b", "c"] {
            desk.want(update(name, "1", "x"));
        }
        assert_eq!(desk.due(now, 2).len(), 2);
        assert_eq!(desk.due(now, 2).len(), 1);
        assert_eq!(desk.due(now, 2).len(), 0);
    }
}
