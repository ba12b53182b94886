//! How long instances have been critical. Time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::kept::{Credit, Kept};
use super::looks::{Look, Looks};
use super::{OwnHealth, Watched};
use crate::model::key::InstanceKey;
use crate::model::names::{InstanceId, NodeName};
use crate::model::text::Text;
use crate::plan::guard::WINDOW;

/// So long this process must have seen an instance critical before that counts: until then it is neither
/// kept in Consul nor deregistered, whatever was kept of it before. What recovers sooner, as every pod that
/// starts does, costs nothing.
pub const PROOF: Duration = Duration::from_secs(10);
/// A wake-up that comes so late shows that this process stood still. What happened meanwhile, it learns only
/// now.
const LATE: Duration = Duration::from_secs(5);

/// Whether an instance that Consul does not have stays away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Yes: it was critical for so long.
    Yes,
    /// No.
    No,
    /// It is not known yet: what was kept of it was not read.
    Unread,
}

/// An instance that is critical.
#[derive(Debug)]
struct Row {
    uid: Text,
    after: Duration,
    /// Since when this process sees it so without a break; `None` while it cannot tell.
    seen: Option<Instant>,
    /// How long it was so before.
    credit: Duration,
    /// Whether this process has seen it for long enough.
    proven: bool,
    /// How long it was so at least, when that was looked at last.
    age: Duration,
    /// Since when it is, as it is kept; 0 until that is known.
    since: i64,
    /// Whether Consul has it.
    there: bool,
    wake: Option<Instant>,
}

/// How long instances have been critical.
#[derive(Debug, Default)]
pub struct Criticals {
    /// `--sweep-critical-after`.
    after: Option<Duration>,
    rows: BTreeMap<InstanceKey, Row>,
    wakes: BTreeSet<(Instant, InstanceKey)>,
    /// What is kept of them in Consul.
    pub kept: Kept,
    /// Looks at the pods of those that are to go.
    pub looks: Looks,
}

impl Row {
    fn new(uid: Text, after: Duration, there: bool) -> Self {
        Self {
            uid,
            after,
            seen: None,
            credit: Duration::ZERO,
            proven: false,
            age: Duration::ZERO,
            since: 0,
            there,
            wake: None,
        }
    }

    fn age_at(&self, now: Instant) -> Duration {
        let seen = self.seen.map(|seen| now.saturating_duration_since(seen));
        self.credit.saturating_add(seen.unwrap_or_default())
    }

    /// When there is something to find out about it.
    fn next(&self) -> Option<Instant> {
        let seen = self.seen?;
        if !self.proven {
            return Some(seen + PROOF);
        }
        let rest = self.after.saturating_sub(self.credit);
        (self.age < self.after).then(|| seen + rest)
    }

    /// Whether it is known to have been critical for its time.
    fn is_ripe(&self) -> bool {
        self.proven && self.seen.is_some() && self.age >= self.after
    }

    /// It begins anew, once it is seen.
    fn restart(&mut self) {
        self.seen = None;
        self.credit = Duration::ZERO;
        self.age = Duration::ZERO;
        self.since = 0;
        self.proven = false;
    }

    fn add(&mut self, credit: Credit) {
        let Credit { since, age } = credit;
        self.credit = age;
        self.age = age;
        self.since = since;
    }
}

impl Criticals {
    /// No instance is known to be critical yet; `after` is `--sweep-critical-after`.
    #[must_use]
    pub fn new(after: Option<Duration>) -> Self {
        Self {
            after,
            ..Self::default()
        }
    }

    /// `--sweep-critical-after`.
    #[must_use]
    pub fn after(&self) -> Option<Duration> {
        self.after
    }

    /// From now on `--sweep-critical-after` is this.
    pub fn set_after(&mut self, after: Option<Duration>) {
        self.after = after;
    }

    /// How an instance is was found out; `None` for one that may not be deregistered, or that nothing
    /// claims.
    pub fn observe(&mut self, key: &InstanceKey, watched: Option<&Watched>, now: Instant) {
        match watched {
            None => self.dismiss(key),
            Some(watched) => match watched.health {
                OwnHealth::Well => self.dismiss(key),
                OwnHealth::Unknown => self.pause(key, watched, now),
                OwnHealth::Doubted => self.doubt(key, watched, now),
                OwnHealth::Critical => self.critical(key, watched, now),
            },
        }
    }

    fn dismiss(&mut self, key: &InstanceKey) {
        if let Some(row) = self.rows.remove(key) {
            self.unschedule(key, &row);
            self.kept.changed(&key.node);
        }
        self.kept.drop_credit(key);
        self.looks.forget(key);
    }

    fn unschedule(&mut self, key: &InstanceKey, row: &Row) {
        if let Some(wake) = row.wake {
            self.wakes.remove(&(wake, key.clone()));
        }
    }

    /// Changes the row of an instance, and when it is looked at again.
    fn change(
        &mut self,
        key: &InstanceKey,
        now: Instant,
        change: impl FnOnce(&mut Row) -> Option<Instant>,
    ) {
        let Some(row) = self.rows.get_mut(key) else {
            return;
        };
        let before = row.wake;
        let since = row.since;
        row.wake = change(row).map(|wake| wake.max(now));
        if row.since != since {
            self.kept.changed(&key.node);
        }
        if before == row.wake {
            return;
        }
        if let Some(wake) = before {
            self.wakes.remove(&(wake, key.clone()));
        }
        if let Some(wake) = row.wake {
            self.wakes.insert((wake, key.clone()));
        }
    }

    /// The row of the instance, without one of another of its name.
    fn know(&mut self, key: &InstanceKey, watched: &Watched, now: Instant) {
        let Watched {
            uid, after, there, ..
        } = watched;
        if self.rows.get(key).is_some_and(|row| row.uid != *uid) {
            self.dismiss(key);
        }
        if !self.rows.contains_key(key) {
            let mut row = Row::new(uid.clone(), *after, *there);
            match self.kept.take_credit(key, uid, now) {
                Some(credit) => row.add(credit),
                None => self.kept.drop_credit(key),
            }
            self.rows.insert(key.clone(), row);
        }
        if let Some(row) = self.rows.get_mut(key) {
            row.after = *after;
            row.there = *there;
        }
    }

    fn critical(&mut self, key: &InstanceKey, watched: &Watched, now: Instant) {
        self.know(key, watched, now);
        self.change(key, now, |row| {
            row.seen.get_or_insert(now);
            row.next()
        });
    }

    /// It cannot be told how it is, for now. What was seen until then counts, once it is critical again.
    fn pause(&mut self, key: &InstanceKey, watched: &Watched, now: Instant) {
        if !self.rows.contains_key(key) {
            return;
        }
        self.know(key, watched, now);
        self.change(key, now, |row| {
            row.credit = row.age_at(now);
            row.seen = None;
            row.proven = false;
            None
        });
    }

    /// What is seen of it says nothing, for now. One that was deregistered before stays away.
    fn doubt(&mut self, key: &InstanceKey, watched: &Watched, now: Instant) {
        self.know(key, watched, now);
        let after = watched.after;
        self.change(key, now, |row| {
            if row.there {
                row.restart();
            }
            // It is looked at now and then: when that ends, nobody may tell of this instance.
            Some(now + after)
        });
    }

    /// What is seen was not seen without a break: of all instances, or those on one node. The time of those
    /// that Consul has begins anew; what was deregistered stays away.
    pub fn interrupt(
        &mut self,
        on: Option<&NodeName>,
        is_there: impl Fn(&InstanceKey) -> bool,
        now: Instant,
    ) {
        self.kept.distrust(on, &is_there);
        if on.is_none() {
            self.kept.interrupted(now);
        }
        let keys: Vec<InstanceKey> = match on {
            Some(node) => self.on_node(node).cloned().collect(),
            None => self.rows.keys().cloned().collect(),
        };
        for key in keys.into_iter().filter(is_there) {
            self.change(&key, now, |row| {
                row.restart();
                // How it is, is looked at.
                Some(now)
            });
        }
    }

    /// Another process may write from now on: what this one knows is worth nothing any more.
    pub fn forget(&mut self) {
        self.rows.clear();
        self.wakes.clear();
        self.kept.forget();
        self.looks.forget_all();
    }

    /// What was kept was read.
    pub fn read(
        &mut self,
        read: Kept,
        is_there: impl Fn(&InstanceKey) -> bool,
        now: Instant,
    ) -> Vec<InstanceKey> {
        self.kept.replace(read);
        if self.kept.was_interrupted(now) {
            self.kept.distrust(None, &is_there);
        }
        let known = self.kept.instances(None);
        let keys: BTreeSet<InstanceKey> =
            known.into_iter().chain(self.rows.keys().cloned()).collect();
        for key in &keys {
            self.kept.changed(&key.node);
        }
        for key in self.rows.keys().cloned().collect::<Vec<_>>() {
            let Some(row) = self.rows.get(&key) else {
                continue;
            };
            let uid = row.uid.clone();
            let credit = self.kept.take_credit(&key, &uid, now);
            self.kept.drop_credit(&key);
            // What this process itself has told Consul, it knows better.
            let Some(credit) = credit.filter(|_| row.since == 0) else {
                continue;
            };
            self.change(&key, now, |row| {
                let seen = row.seen.map(|seen| now.saturating_duration_since(seen));
                let before = credit.age.saturating_sub(seen.unwrap_or_default());
                row.add(Credit {
                    age: before,
                    ..credit
                });
                row.age = row.age_at(now);
                row.next()
            });
        }
        keys.into_iter().collect()
    }

    fn rows_on(&self, node: &NodeName) -> impl Iterator<Item = (&InstanceKey, &Row)> {
        let first = InstanceKey {
            node: node.clone(),
            id: InstanceId::observed(""),
        };
        let node = node.clone();
        self.rows
            .range(first..)
            .take_while(move |(key, _)| key.node == node)
    }

    /// The instances on a node that this process knows to be critical.
    pub fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &InstanceKey> {
        self.rows_on(node).map(|(key, _)| key)
    }

    /// The instances that are to be planned because time has passed. `wall` is what the clock on the wall
    /// shows, in seconds since 1970: by it a successor will know how long it was.
    pub fn ripen(
        &mut self,
        is_there: impl Fn(&InstanceKey) -> bool,
        now: Instant,
        wall: i64,
    ) -> Vec<InstanceKey> {
        self.looks.expire(now);
        let late = |wake: Instant| now.saturating_duration_since(wake) > LATE;
        if self.wake_at().is_some_and(late) {
            self.interrupt(None, is_there, now);
        }
        let mut ripe = Vec::new();
        while let Some((wake, key)) = self.wakes.first().cloned()
            && wake <= now
        {
            self.wakes.pop_first();
            let Some(row) = self.rows.get_mut(&key) else {
                continue;
            };
            row.wake = None;
            self.change(&key, now, |row| {
                let seen = row.seen.map(|seen| now.saturating_duration_since(seen));
                row.proven |= seen.is_some_and(|seen| seen >= PROOF);
                row.age = row.age_at(now);
                if row.proven && row.since == 0 {
                    row.since = wall.saturating_sub(seconds(row.age)).max(1);
                }
                row.next().filter(|next| *next > now)
            });
            ripe.push(key);
        }
        ripe
    }

    /// How many are on their way to be deregistered: critical for so long that they may well remain so, and
    /// due while the guard still counts what goes now.
    #[must_use]
    pub fn soon(&self, now: Instant) -> usize {
        let on_its_way = |row: &&Row| {
            let rest = row.after.saturating_sub(row.age_at(now));
            row.proven && row.there && row.age < row.after && rest <= WINDOW
        };
        self.rows.values().filter(on_its_way).count()
    }

    /// When the next is to be looked at.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.wakes.first().map(|(wake, _)| *wake)
    }

    /// Takes the next look at the pod of an instance that is to go.
    pub fn next_look(&mut self, now: Instant) -> Option<Look> {
        let rows = &self.rows;
        let would_go = |key: &InstanceKey| rows.get(key).is_some_and(Row::is_ripe);
        self.looks.next(would_go, now)
    }

    /// Whether an instance that Consul has was critical for so long, is known to be by this process, and is
    /// known to be in Consul: else whoever comes next would register it again.
    #[must_use]
    pub fn may_go(&self, key: &InstanceKey, uid: &Text, after: Duration) -> bool {
        self.rows.get(key).is_some_and(|row| {
            let long = row.is_ripe() && row.age >= after;
            long && row.uid == *uid && self.kept.has(key, uid, row.since)
        })
    }

    /// Whether an instance that Consul does not have stays away.
    #[must_use]
    pub fn out(&self, key: &InstanceKey, uid: &Text, after: Duration) -> Out {
        let row = self.rows.get(key).filter(|row| row.uid == *uid);
        let age = row.map(|row| row.age).or_else(|| self.kept.age(key, uid));
        match age {
            Some(age) if age >= after => Out::Yes,
            _ if self.kept.is_unread() => Out::Unread,
            _ => Out::No,
        }
    }

    /// Since when the instances on a node are critical that this process knows of, with their uid.
    pub(super) fn times(
        &self,
        node: &NodeName,
    ) -> impl Iterator<Item = (&InstanceKey, &Text, i64)> {
        self.rows_on(node)
            .filter(|(_, row)| row.since != 0)
            .map(|(key, row)| (key, &row.uid, row.since))
    }
}

fn seconds(age: Duration) -> i64 {
    i64::try_from(age.as_secs()).unwrap_or(i64::MAX)
}
