//! Troubles of instances that one object is to hear of, gathered: an object with a mistake in it and a
//! thousand pods is told of it once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::k8s::EventReason;
use crate::model::key::Key;
use crate::model::owner::Owner;
use crate::model::text::Text;

/// How long it is waited for more of the same.
const LAG: Duration = Duration::from_secs(1);
/// The least time between two Events of one subject: their number may go up and down for long.
const PAUSE: Duration = Duration::from_secs(10);

/// An object, and why it is told of something.
pub(super) type Subject = (Owner, EventReason);

/// Troubles that are told by object and not by instance.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// The instances that are in trouble.
    open: BTreeMap<Subject, BTreeSet<Key>>,
    /// What changed since the last look.
    changed: BTreeSet<Subject>,
    due: BTreeMap<Subject, Instant>,
    /// What was told last, to the object of which uid, and when.
    told: BTreeMap<Subject, (Text, String, Instant)>,
}

impl Complaints {
    /// An instance is in trouble, or in another one of this sort.
    pub fn begin(&mut self, subject: Subject, key: &Key) {
        let open = self.open.entry(subject.clone()).or_default();
        open.insert(key.clone());
        self.changed.insert(subject);
    }

    /// An instance is out of trouble.
    pub fn end(&mut self, subject: &Subject, key: &Key) {
        let Some(open) = self.open.get_mut(subject) else {
            return;
        };
        if open.remove(key) {
            if open.is_empty() {
                self.open.remove(subject);
            }
            self.changed.insert(subject.clone());
        }
    }

    /// What there may be to tell now.
    pub fn take_due(&mut self, now: Instant) -> Vec<Subject> {
        for subject in std::mem::take(&mut self.changed) {
            let soon = now + LAG;
            let told = self.told.get(&subject);
            let at = told.map_or(soon, |(_, _, at)| soon.max(*at + PAUSE));
            self.due.entry(subject).or_insert(at);
        }
        let is_due = |(subject, at): (&Subject, &Instant)| (*at <= now).then(|| subject.clone());
        let due: Vec<Subject> = self.due.iter().filter_map(is_due).collect();
        for subject in &due {
            self.due.remove(subject);
        }
        due
    }

    /// When there may be something to tell.
    pub fn wake_at(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// The first instance that is in trouble, and how many others are.
    pub fn first(&self, subject: &Subject) -> Option<(&Key, usize)> {
        let open = self.open.get(subject)?;
        Some((open.first()?, open.len() - 1))
    }

    /// Notes what is told. Returns whether it is news to the object of this uid.
    pub fn tell(&mut self, subject: &Subject, uid: &Text, note: &str, now: Instant) -> bool {
        let told = self.told.get(subject);
        if told.is_some_and(|(known, last, _)| known == uid && last == note) {
            return false;
        }
        let told = (uid.clone(), note.to_owned(), now);
        self.told.insert(subject.clone(), told);
        true
    }

    /// Nothing is left to tell: the next trouble is news.
    pub fn forget(&mut self, subject: &Subject) {
        self.told.remove(subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::InstanceKey;
    use crate::model::names::{InstanceId, NodeName};

    fn key(id: &str) -> Key {
        let cluster = "a".parse().unwrap();
        Key::Instance(InstanceKey {
            node: NodeName::for_kubernetes(&cluster, "n1"),
            id: InstanceId::observed(id),
        })
    }

    fn subject() -> Subject {
        let owner = Owner::registration(&"shop".into(), &"web".into());
        (owner, EventReason::InvalidAnnotation)
    }

    /// Looks once, and tells the number of the others.
    fn look(complaints: &mut Complaints, now: Instant) -> Option<usize> {
        let due = complaints.take_due(now).pop()?;
        let Some((_, others)) = complaints.first(&due) else {
            complaints.forget(&due);
            return None;
        };
        let news = complaints.tell(&due, &"uid".into(), &others.to_string(), now);
        news.then_some(others)
    }

    #[test]
    fn many_are_told_as_one_and_again_only_when_that_changes() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for id in 0..1000 {
            complaints.begin(subject(), &key(&format!("a.{id}")));
        }
        assert_eq!(look(&mut complaints, start), None, "more may come");
        assert_eq!(complaints.wake_at(), Some(after(1)));
        assert_eq!(look(&mut complaints, after(1)), Some(999));
        // One less and one more is no news.
        complaints.end(&subject(), &key("a.7"));
        complaints.begin(subject(), &key("a.7"));
        assert_eq!(look(&mut complaints, after(2)), None);
        assert_eq!(look(&mut complaints, after(11)), None);
        complaints.end(&subject(), &key("a.7"));
        assert_eq!(look(&mut complaints, after(12)), None, "it waits");
        assert_eq!(look(&mut complaints, after(13)), Some(998));
        assert_eq!(complaints.wake_at(), None);
    }

    #[test]
    fn what_ended_is_forgotten_and_is_news_when_it_comes_back() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        complaints.end(&subject(), &key("a.1"));
        assert!(complaints.changed.is_empty());
        for round in [0, 100] {
            complaints.begin(subject(), &key("a.1"));
            assert_eq!(look(&mut complaints, after(round)), None);
            assert_eq!(look(&mut complaints, after(round + 1)), Some(0));
            complaints.end(&subject(), &key("a.1"));
            assert_eq!(look(&mut complaints, after(round + 20)), None);
            assert_eq!(look(&mut complaints, after(round + 30)), None);
            let left = (complaints.open.len(), complaints.told.len());
            assert_eq!(left, (0, 0));
        }
    }
}
