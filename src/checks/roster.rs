//! All checks and when each is run next. Pure: time and chance are passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ask::Target;
use super::tally::{Tally, Thresholds};
use crate::desired::probe::{Asked, Probe};
use crate::model::entry::Health;
use crate::model::key::InstanceKey;
use crate::model::text::Text;

/// A run is up to this part of its interval late, so that what began together does not stay together.
const JITTER: u32 = 10;

/// A check of an instance, for as long as it is to be run.
type Id = u64;

/// A run that is due.
#[derive(Clone, Debug)]
pub struct Run {
    /// What of.
    pub id: Id,
    /// When it was to start.
    pub due: Instant,
    /// What is asked, and where.
    pub target: Target,
}

/// What an instance is to be asked from now on.
#[derive(Clone, Copy, Debug)]
pub struct Follow<'a> {
    /// Where.
    pub host: &'a Text,
    /// What.
    pub asked: &'a [Asked],
    /// What is known of each check.
    pub known: &'a [Option<Health>],
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
    /// The number of the order that holds for it.
    pub order: u64,
}

#[derive(Debug)]
struct Row {
    key: InstanceKey,
    host: Text,
    asked: Asked,
    order: u64,
    tally: Tally,
    /// When it is run next, without what chance adds. Counted on by whole intervals, it does not drift.
    slot: Instant,
    due: Instant,
    running: bool,
}

/// All checks.
#[derive(Debug, Default)]
pub struct Roster {
    rows: HashMap<Id, Row>,
    of: HashMap<InstanceKey, Vec<Id>>,
    due: BTreeSet<(Instant, Id)>,
    last: Id,
}

impl Roster {
    /// An instance is to be asked this, and nothing else.
    ///
    /// A check of which nothing is known, or which is asked something else now, is run at once; the next
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
            if let Some(id) = unchanged {
                if let Some(row) = self.rows.get_mut(&id) {
                    row.order = order;
                }
                kept.push(id);
                continue;
            }
            let tally = same
                .and_then(|id| self.remove(id))
                .map(|row| row.tally.anew());
            let is_new = tally.is_none() && known.is_some();
            let spread = asked.probe.interval.mul_f64(chance());
            let row = Row {
                key: key.clone(),
                host: host.clone(),
                asked: asked.clone(),
                order,
                tally: tally.unwrap_or_else(|| Tally::new(*known)),
                slot: now + spread,
                due: if is_new { now + spread } else { now },
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

    /// Takes a run that is due. One that was missed altogether is not made up for, and none is started
    /// while the one before it lasts.
    pub fn take(&mut self, now: Instant, mut chance: impl FnMut() -> f64) -> Option<Run> {
        loop {
            let (due, id) = self.due.first().copied().filter(|(due, _)| *due <= now)?;
            self.due.remove(&(due, id));
            let Some(row) = self.rows.get_mut(&id) else {
                continue;
            };
            let interval = row.asked.probe.interval;
            row.slot = following(row.slot, interval, now);
            row.due = row.slot + (interval / JITTER).mul_f64(chance());
            self.due.insert((row.due, id));
            if !row.running {
                row.running = true;
                let target = target(&row.host, &row.asked);
                return Some(Run { id, due, target });
            }
        }
    }

    /// A run ended like this. What is to be told, if it is news.
    pub fn ended(&mut self, id: Id, outcome: Health) -> Option<Ended> {
        let row = self.rows.get_mut(&id)?;
        row.running = false;
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

fn target(host: &Text, Asked { probe, port, .. }: &Asked) -> Target {
    Target {
        host: host.clone(),
        port: *port,
        probe: Arc::clone(probe),
    }
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::desired::probe;
    use crate::model::names::{InstanceId, NodeName};

    const INTERVAL: Duration = Duration::from_secs(10);

    fn key(id: &str) -> InstanceKey {
        InstanceKey {
            node: NodeName::external(&"a".parse().unwrap()),
            id: InstanceId::observed(id),
        }
    }

    fn asked(checks: &Value) -> Vec<Asked> {
        let probes = probe::of(&serde_json::from_value::<Vec<_>>(checks.clone()).unwrap()).unwrap();
        let with_port = |probe: &Arc<Probe>| Asked {
            probe: probe.clone(),
            port: 80,
            lease: Text::default(),
        };
        probes.iter().map(with_port).collect()
    }

    fn one() -> Vec<Asked> {
        asked(&json!([{"name": "api", "tcp": {}}]))
    }

    fn to_follow<'a>(
        host: &'a Text,
        asked: &'a [Asked],
        known: &'a [Option<Health>],
    ) -> Follow<'a> {
        Follow {
            host,
            asked,
            known,
            order: 1,
        }
    }

    fn follow(roster: &mut Roster, id: &str, known: Option<Health>, now: Instant, chance: f64) {
        let (host, asked) = ("h".into(), one());
        roster.follow(&key(id), &to_follow(&host, &asked, &[known]), now, || {
            chance
        });
    }

    #[test]
    fn a_new_check_runs_at_once_and_then_on_a_grid_of_its_own() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", None, now, 0.3);
        let run = roster.take(now, || 0.0).unwrap();
        assert_eq!(run.due, now);
        roster.ended(run.id, Health::Passing);
        let first = now + INTERVAL.mul_f64(0.3);
        assert_eq!(roster.next(), Some(first));
        for number in 0..100 {
            let slot = first + INTERVAL * number;
            // Each run starts a little late, and the next is as early as ever.
            let late = slot + Duration::from_millis(900);
            let run = roster.take(late, || 0.0).unwrap();
            assert_eq!(run.due, slot);
            roster.ended(run.id, Health::Passing);
        }
    }

    #[test]
    fn what_is_known_already_is_spread_over_an_interval() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        for number in 0..100_u32 {
            let chance = f64::from(number) / 100.0;
            follow(
                &mut roster,
                &number.to_string(),
                Some(Health::Passing),
                now,
                chance,
            );
        }
        let mut started = 0;
        while roster.take(now + INTERVAL / 2, || 0.0).is_some() {
            started += 1;
        }
        assert_eq!(started, 51);
    }

    #[test]
    fn chance_delays_a_run_and_not_the_ones_after_it() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", None, now, 0.0);
        let run = roster.take(now, || 1.0).unwrap();
        roster.ended(run.id, Health::Passing);
        let late = now + INTERVAL + INTERVAL / JITTER;
        assert_eq!(roster.next(), Some(late));
        roster.take(late, || 0.0).unwrap();
        assert_eq!(roster.next(), Some(now + INTERVAL * 2));
    }

    #[test]
    fn missed_runs_are_not_made_up_for() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", None, now, 0.0);
        let later = now + INTERVAL * 7 + INTERVAL / 2;
        let run = roster.take(later, || 0.0).unwrap();
        roster.ended(run.id, Health::Passing);
        assert!(roster.take(later, || 0.0).is_none());
        assert_eq!(roster.next(), Some(now + INTERVAL * 8));
    }

    #[test]
    fn no_run_starts_while_the_one_before_lasts_and_others_do() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", None, now, 0.0);
        let slow = roster.take(now, || 0.0).unwrap();
        follow(&mut roster, "b", None, now, 0.0);
        let next = now + INTERVAL;
        let other = roster.take(next, || 0.0).unwrap();
        assert_ne!(other.id, slow.id);
        assert!(roster.take(next, || 0.0).is_none());
        roster.ended(slow.id, Health::Passing);
        assert!(roster.take(next + INTERVAL, || 0.0).is_some());
    }

    #[test]
    fn what_stays_the_same_keeps_its_time_and_what_changes_runs_at_once() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let both = json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}}]);
        let known = [Some(Health::Passing); 2];
        roster.follow(
            &key("a"),
            &to_follow(&"h".into(), &asked(&both), &known),
            now,
            || 0.5,
        );
        let changed =
            json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}, "timeout": "1s"}]);
        roster.follow(
            &key("a"),
            &to_follow(&"h".into(), &asked(&changed), &known),
            now,
            || 0.5,
        );
        assert_eq!(roster.len(), 2);
        let run = roster.take(now, || 0.0).unwrap();
        assert_eq!(run.target.probe.name.as_ref(), "db");
        assert!(roster.take(now, || 0.0).is_none());
        // Elsewhere, both are asked.
        roster.ended(run.id, Health::Passing);
        roster.follow(
            &key("a"),
            &to_follow(&"i".into(), &asked(&changed), &known),
            now,
            || 0.5,
        );
        assert!(roster.take(now, || 0.0).is_some());
        assert!(roster.take(now, || 0.0).is_some());
    }

    #[test]
    fn what_is_forgotten_is_not_run_and_its_last_run_says_nothing() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", None, now, 0.0);
        let run = roster.take(now, || 0.0).unwrap();
        roster.forget(&key("a"));
        assert_eq!(roster.ended(run.id, Health::Passing), None);
        assert_eq!((roster.len(), roster.next()), (0, None));
    }

    #[test]
    fn only_news_is_told() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        follow(&mut roster, "a", Some(Health::Passing), now, 0.0);
        let outcomes = [
            Health::Passing,
            Health::Passing,
            Health::Critical,
            Health::Critical,
        ];
        let told: Vec<bool> = (0..)
            .zip(outcomes)
            .map(|(number, outcome)| {
                let run = roster.take(now + INTERVAL * number, || 0.0).unwrap();
                roster.ended(run.id, outcome).is_some()
            })
            .collect();
        assert_eq!(told, [true, false, true, false]);
    }
}
