//! All checks and when each is run next. Pure: time and chance are passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::ask::Target;
use super::shares::{Id, Shares};
use super::tally::{Tally, Thresholds};
use crate::desired::probe::{AskedCall, Probe};
use crate::model::entry::Health;
use crate::model::key::InstanceKey;
use crate::model::text::Text;

/// How soon one that could not be run is tried again, at the latest; it counts as never run.
const AGAIN: Duration = Duration::from_secs(5);
/// A run is up to this part of its interval late, so that what began together does not stay together.
const JITTER: u32 = 10;

/// A run that is due.
#[derive(Clone, Debug)]
pub struct Run {
    /// What of.
    pub id: Id,
    /// When it was to start.
    pub due: Instant,
    /// The namespace that it is of.
    pub namespace: Text,
    /// What is asked, and where.
    pub target: Target,
}

/// What is known of a check before it was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its status.
    pub status: Health,
    /// Whether that is the answer to what is asked now: then it may wait for its time.
    pub is_answer: bool,
}

/// What an instance is to be asked from now on.
#[derive(Clone, Copy, Debug)]
pub struct Follow<'a> {
    /// Where.
    pub host: &'a Text,
    /// What.
    pub asked: &'a [AskedCall],
    /// What is known of each check.
    pub known: &'a [Option<Known>],
    /// The number of the order.
    pub order: u64,
}

/// A run that ended with news.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The instance.
    pub key: InstanceKey,
    /// The name of the check.
    pub name: Text,
    /// The number of the order since which it is asked like this.
    pub order: u64,
}

#[derive(Debug)]
struct Row {
    key: InstanceKey,
    host: Text,
    asked: AskedCall,
    order: u64,
    tally: Tally,
    /// When it is run next, without what chance adds. Counted on by whole intervals, it does not drift.
    slot: Instant,
    due: Instant,
    /// Whether a run is due, and waits for its turn.
    waiting: bool,
    running: bool,
}

/// All checks.
#[derive(Debug, Default)]
pub struct Roster {
    rows: HashMap<Id, Row>,
    of: HashMap<InstanceKey, Vec<Id>>,
    due: BTreeSet<(Instant, Id)>,
    shares: Shares,
    last: Id,
}

impl Roster {
    /// An instance is to be asked this, and nothing else.
    ///
    /// A check of which nothing is known, or which was asked something else before, is run at once; the next
    /// run falls anywhere within an interval, as does the first of one whose status is known, so that
    /// thousands that begin together are spread. `chance` gives numbers from 0 to 1.
    pub fn follow(
        &mut self,
        key: &InstanceKey,
        follow: &Follow<'_>,
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) {
        let Follow {
            host,
            asked,
            known,
            order,
        } = *follow;
        let before = self.of.remove(key).unwrap_or_default();
        let mut kept = Vec::with_capacity(asked.len());
        for (asked, known) in asked.iter().zip(known) {
            let is_it = |id: &&Id| {
                let row = self.rows.get(*id);
                row.is_some_and(|row| row.asked.probe.name == asked.probe.name)
            };
            let same = before.iter().find(is_it).copied();
            let unchanged = same.filter(|id| {
                let row = self.rows.get(id);
                row.is_some_and(|row| row.asked == *asked && row.host == *host)
            });
            // The order that it is of holds on: what is found of it may be on its way already.
            if let Some(id) = unchanged {
                kept.push(id);
                continue;
            }
            let tally = same
                .and_then(|id| self.remove(id))
                .map(|row| row.tally.anew());
            let may_wait = tally.is_none() && known.is_some_and(|known| known.is_answer);
            let spread = asked.probe.interval.mul_f64(chance());
            let row = Row {
                key: key.clone(),
                host: host.clone(),
                asked: asked.clone(),
                order,
                tally: tally.unwrap_or_else(|| Tally::new(known.map(|known| known.status))),
                slot: now + spread,
                due: if may_wait { now + spread } else { now },
                waiting: false,
                running: false,
            };
            self.last += 1;
            self.due.insert((row.due, self.last));
            self.rows.insert(self.last, row);
            kept.push(self.last);
        }
        for id in before.into_iter().filter(|id| !kept.contains(id)) {
            self.remove(id);
        }
        if !kept.is_empty() {
            self.of.insert(key.clone(), kept);
        }
    }

    /// An instance is not asked any more.
    pub fn forget(&mut self, key: &InstanceKey) {
        for id in self.of.remove(key).unwrap_or_default() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: Id) -> Option<Row> {
        let row = self.rows.remove(&id)?;
        self.due.remove(&(row.due, id));
        Some(row)
    }

    /// How many checks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// When the next run is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Nothing is asked any more. What is under way is heard no more of, and keeps its place until it ends.
    pub fn forget_all(&mut self) {
        self.rows.clear();
        self.of.clear();
        self.due.clear();
        self.shares.forget_waiting();
    }

    /// Takes a run that is due, if there is room for it: for so many in all, and of each namespace for its
    /// share. One that was missed altogether is not made up for, and none is started while the one before it
    /// lasts or waits.
    pub fn take(
        &mut self,
        now: Instant,
        room: usize,
        mut chance: impl FnMut() -> f64,
    ) -> Option<Run> {
        while let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, id));
            let Some(row) = self.rows.get_mut(&id) else {
                continue;
            };
            let interval = row.asked.probe.interval;
            row.slot = following(row.slot, interval, now);
            row.due = row.slot + (interval / JITTER).mul_f64(chance());
            self.due.insert((row.due, id));
            if !row.running && !row.waiting {
                row.waiting = true;
                self.shares.wait(&namespace(&row.key), due, id);
            }
        }
        loop {
            let (due, id) = self.shares.begin(room)?;
            if let Some(row) = self.rows.get_mut(&id) {
                row.waiting = false;
                row.running = true;
                return Some(Run {
                    id,
                    due,
                    namespace: namespace(&row.key),
                    target: Target::of(&row.host, &row.asked),
                });
            }
            // It was forgotten meanwhile.
            self.shares.end(id);
        }
    }

    /// A run could not be made: it counts for nothing, and is made soon.
    pub fn not_run(&mut self, id: Id, now: Instant, chance: impl FnOnce() -> f64) {
        let again = now + AGAIN.mul_f64(0.5 + chance() / 2.0);
        if let Some(row) = self.end(id)
            && again < row.due
        {
            let before = std::mem::replace(&mut row.due, again);
            self.due.remove(&(before, id));
            self.due.insert((again, id));
        }
    }

    fn end(&mut self, id: Id) -> Option<&mut Row> {
        self.shares.end(id);
        let row = self.rows.get_mut(&id)?;
        row.running = false;
        Some(row)
    }

    /// A run ended like this. What is to be told, if it is news.
    pub fn ended(&mut self, id: Id, outcome: Health) -> Option<Ended> {
        let row = self.end(id)?;
        let Probe {
            name,
            failures,
            successes,
            ..
        } = &*row.asked.probe;
        let thresholds = Thresholds {
            failures: *failures,
            successes: *successes,
        };
        let tells = row.tally.count(outcome, thresholds);
        tells.then(|| Ended {
            key: row.key.clone(),
            name: name.clone(),
            order: row.order,
        })
    }
}

/// The namespace that an instance is of: the second part of its id, since the cluster's name has no dots.
fn namespace(key: &InstanceKey) -> Text {
    let id: &str = key.id.as_ref();
    id.split('.').nth(1).unwrap_or_default().into()
}

/// The slot after this one that is not over.
fn following(slot: Instant, interval: Duration, now: Instant) -> Instant {
    let next = if slot > now { slot } else { slot + interval };
    if next > now {
        return next;
    }
    let behind = (now - next).as_secs_f64() / interval.as_secs_f64();
    next + interval.mul_f64(behind.floor() + 1.0)
}

#[cfg(test)]
mod tests;
