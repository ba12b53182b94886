//! Which session is created, renewed or ended next.
//!
//! A check follows the sessions of its name on its node, but trusts what it was told last: one that is
//! registered while a session lives stays critical, and of two sessions the end of one turns it critical
//! while the other lives. So there is never more than one on purpose, and where a check is critical
//! although its session lives the session is made anew.
//!
//! Source: `updateSessionCheck` in Consul's `agent/consul/state/session.go`, and trials.

mod row;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::entry::Health;
use crate::model::names::NodeName;
use crate::model::text::Text;
use row::{Critical, Doing, Next, Row};

/// A check that follows sessions: its node, and its id, which is the name of the sessions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The node.
    pub node: NodeName,
    /// The id of the check.
    pub check: Text,
}

/// What is to become of the session of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It is to be there.
    Alive,
    /// It is to end, and the check to be critical.
    Ended,
    /// It cannot be told: it stays as it is, and does not expire.
    Kept,
    /// Nobody asks for it any more: it is to end once its check is gone.
    Forgotten,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Create a session that lives for so long without being renewed.
    Create(Place, Duration),
    /// Renew the session of this id.
    Renew(Place, Text),
    /// End the session of this id.
    End(Place, Text),
}

impl Act {
    /// The check that it is for.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Self::Create(place, _) | Self::Renew(place, _) | Self::End(place, _) => place,
        }
    }
}

/// An act that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// What is to be done.
    pub act: Act,
    /// The row that it is for: another one may take its place before it is answered.
    row: u64,
}

/// A session that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The check that follows it.
    pub place: Place,
    /// Its id.
    pub id: Text,
    /// How long it lives without being renewed; `None` for ever.
    pub ttl: Option<Duration>,
}

/// What became of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The session of this id was created.
    Created(Text),
    /// The session was renewed.
    Renewed,
    /// The session is not there: it was ended, or there was none to renew.
    Gone,
    /// It failed, and nothing changed.
    Failed,
    /// It is not known whether it was done.
    Lost,
}

/// All checks that follow sessions.
#[derive(Debug, Default)]
pub struct Pulses {
    rows: HashMap<Place, Row>,
    due: BTreeSet<(Instant, Place)>,
    unsure: HashSet<Place>,
    /// Checks that have, or may have, sessions and are not followed.
    strays: HashMap<Place, Stray>,
    /// Whether these are all: a check that is followed from now on and is not among them has none. Not where
    /// others make some.
    relies: bool,
    /// The number of the row that came last.
    last: u64,
    /// How many rows have sessions.
    alive: usize,
    /// When all that was known was doubted last.
    doubted: Option<Instant>,
}

/// A check that has, or may have, sessions and is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stray {
    /// As of this moment: a list that was asked for later tells.
    Since(Instant),
    /// One is being created or ended for the row with this number, which is not there any more.
    UnderWay(u64),
}

impl Pulses {
    /// A check is to be followed like this; `check` is its status in Consul, `None` where it is not there.
    pub fn follow(
        &mut self,
        place: &Place,
        (ttl, want): (Duration, Want),
        check: Option<Health>,
        now: Instant,
    ) {
        let row = self.rows.entry(place.clone()).or_insert_with(|| {
            let stray = self.strays.remove(place);
            let sure = self.relies && stray.is_none();
            if !sure {
                self.unsure.insert(place.clone());
            }
            let mut row = Row::new((ttl, want), sure, now);
            if let Some(Stray::UnderWay(number)) = stray {
                // What is under way is for this one now: nothing else is begun before it is answered.
                row.number = number;
                row.doing = Some(Doing::Changes);
            } else {
                self.last += 1;
                row.number = self.last;
            }
            row
        });
        if row.check == Some(Health::Passing) && row.ttl != ttl {
            // A session keeps the time that it was created with.
            row.remake = true;
        }
        let same = (row.ttl, row.want, row.check) == (ttl, want, check);
        row.ttl = ttl;
        row.want = want;
        if check == Some(Health::Passing) {
            row.remakes = 0;
        }
        if want != Want::Ended {
            row.amends = 0;
        }
        row.check = check;
        let was_critical = row.critical.is_some();
        row.critical = (check == Some(Health::Critical)).then(|| {
            row.critical.unwrap_or(Critical {
                since: now,
                verified: false,
            })
        });
        let same = same && was_critical == row.critical.is_some();
        if !same || row.due.is_none() {
            self.schedule(place, now);
        }
    }

    /// A check is not followed any more: its session ends once the check is gone, so that nobody sees it
    /// critical; `check` is its status in Consul, `None` where it is not there.
    pub fn forget(&mut self, place: &Place, check: Option<Health>, now: Instant) {
        if let Some(row) = self.rows.get_mut(place) {
            row.want = Want::Forgotten;
            row.check = check;
            self.schedule(place, now);
        }
    }

    /// Its node is gone, and the sessions on it with that, but for what is under way.
    pub fn drop(&mut self, place: &Place) {
        self.unsure.remove(place);
        let Some(row) = self.rows.remove(place) else {
            return;
        };
        if let Some(at) = row.due {
            self.due.remove(&(at, place.clone()));
        }
        self.alive -= usize::from(!row.sessions.is_empty());
        if row.doing == Some(Doing::Changes) {
            let stray = Stray::UnderWay(row.number);
            self.strays.insert(place.clone(), stray);
        }
    }

    /// Its node is not ours any more, and the sessions on it stay.
    pub fn leave(&mut self, place: &Place, now: Instant) {
        if self.rows.contains_key(place) {
            self.drop(place);
            let since = Stray::Since(now);
            self.strays.entry(place.clone()).or_insert(since);
        }
    }

    /// What was known of sessions may be wrong.
    pub fn doubt(&mut self, now: Instant) {
        self.relies = false;
        self.doubted = Some(now);
        let places: Vec<Place> = self.rows.keys().cloned().collect();
        for place in places {
            self.doubt_one(&place, now);
        }
    }

    fn doubt_one(&mut self, place: &Place, now: Instant) {
        if let Some(row) = self.rows.get_mut(place) {
            row.sure = false;
            row.changed = Some(now);
            self.unsure.insert(place.clone());
        }
    }

    /// Whether it is not known of each check which sessions it has.
    #[must_use]
    pub fn wants_list(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// Whether a check is followed.
    #[must_use]
    pub fn follows(&self, place: &Place) -> bool {
        self.rows.contains_key(place)
    }

    /// The checks that are followed.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.rows.keys()
    }

    /// Whether a check stays critical however often its session is made anew.
    #[must_use]
    pub fn is_deaf(&self, place: &Place) -> bool {
        self.rows.get(place).is_some_and(|row| row.remakes > 1)
    }

    /// Whether a session of a check lives; `None` where that is not known.
    #[must_use]
    pub fn is_alive(&self, place: &Place) -> Option<bool> {
        if let Some(row) = self.rows.get(place) {
            return row.sure.then_some(!row.sessions.is_empty());
        }
        // It is not followed yet.
        let has_none = self.relies && !self.strays.contains_key(place);
        has_none.then_some(false)
    }

    /// Only this process makes sessions, and these are those of no check here, of all that there were when
    /// it was `asked`: for what is made from now on there is no need to list them again.
    pub fn rely_on(&mut self, strays: &[Found], asked: Instant) {
        if self.doubted.is_some_and(|doubted| doubted > asked) {
            return;
        }
        self.relies = true;
        // What came since then is not in that list.
        self.strays.retain(|_, stray| match stray {
            Stray::Since(since) => *since >= asked,
            Stray::UnderWay(_) => true,
        });
        for stray in strays {
            let since = Stray::Since(asked);
            self.strays.entry(stray.place.clone()).or_insert(since);
        }
    }

    /// How many sessions are known to live.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.alive
    }

    /// A row has other sessions than before.
    fn count(alive: &mut usize, row: &Row, had_some: bool) {
        match (had_some, !row.sessions.is_empty()) {
            (false, true) => *alive += 1,
            (true, false) => *alive -= 1,
            _ => {}
        }
    }

    /// These are all sessions that there were when it was `asked`. `chance` gives numbers from 0 to 1, by
    /// which renewals are spread. Returns those that no check here has.
    pub fn listed(
        &mut self,
        sessions: Vec<Found>,
        asked: Instant,
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) -> Vec<Found> {
        let mut by_place: HashMap<Place, Vec<Found>> = HashMap::new();
        for found in sessions {
            by_place.entry(found.place.clone()).or_default().push(found);
        }
        let places: Vec<Place> = self.rows.keys().cloned().collect();
        for place in places {
            let found = by_place.remove(&place).unwrap_or_default();
            let Some(row) = self.rows.get_mut(&place) else {
                continue;
            };
            // What happened meanwhile is newer.
            if row.doing == Some(Doing::Changes)
                || row.changed.is_some_and(|changed| changed > asked)
            {
                continue;
            }
            let ttl = found.iter().filter_map(|found| found.ttl).min();
            let found: Vec<Text> = found.into_iter().map(|found| found.id).collect();
            if !row.sure || row.sessions != found {
                row.sure = true;
                let had_some = !row.sessions.is_empty();
                row.sessions = found;
                Self::count(&mut self.alive, row, had_some);
                row.found_ttl = ttl;
                // A session keeps the time that it was created with.
                row.remake |= ttl.is_some_and(|ttl| ttl != row.ttl) && row.want == Want::Alive;
                row.renew_at = now + row.interval().mul_f64(chance());
                self.unsure.remove(&place);
                self.schedule(&place, now);
            }
        }
        by_place.into_values().flatten().collect()
    }

    /// What is to be done now; `changes` is from when on this process may create and end sessions, if at
    /// all. Each act is to be answered with [`Self::done`].
    pub fn next(&mut self, changes: Option<Instant>, now: Instant) -> Option<Begun> {
        let leads = changes.is_some_and(|from| from <= now);
        let later = changes.filter(|from| *from > now);
        while let Some((at, place)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.due.remove(&(at, place.clone()));
            let Some(row) = self.rows.get_mut(&place) else {
                continue;
            };
            row.due = None;
            let next = match (row.next(&place, leads, now), later) {
                (Next::Never, Some(later)) if row.doing.is_none() => Next::At(later),
                (Next::At(at), Some(later)) => Next::At(at.min(later)),
                (next, _) => next,
            };
            match next {
                Next::Act(act) => {
                    row.doing = Some(match act {
                        Act::Renew(..) => Doing::Renews,
                        Act::Create(..) | Act::End(..) => Doing::Changes,
                    });
                    let row = row.number;
                    return Some(Begun { act, row });
                }
                Next::At(at) => self.schedule(&place, at),
                Next::Never => {}
                Next::Drop => self.drop(&place),
            }
        }
        None
    }

    /// An act was answered like this; a check that follows a new session passes, and one whose session
    /// ended does not.
    pub fn done(
        &mut self,
        begun: &Begun,
        outcome: Outcome,
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) {
        let act = &begun.act;
        let place = act.place();
        let row = self.rows.get_mut(place);
        let Some(row) = row.filter(|row| row.number == begun.row) else {
            // A renewal for one that was there before says nothing of the one that is there now.
            if let Some(stray) = self.strays.get_mut(place)
                && *stray == Stray::UnderWay(begun.row)
            {
                *stray = Stray::Since(now);
            }
            return;
        };
        row.doing = None;
        let had_some = !row.sessions.is_empty();
        if outcome != Outcome::Renewed {
            row.changed = Some(now);
        }
        let mut again = now;
        match outcome {
            Outcome::Created(id) => {
                row.sessions = vec![id];
                Self::count(&mut self.alive, row, had_some);
                row.found_ttl = None;
                row.failures = 0;
                // What the check is now is not known before it is read.
                row.critical = None;
                row.renew_at = now + row.interval().mul_f64(0.5 + chance() / 2.0);
            }
            Outcome::Renewed => {
                row.failures = 0;
                row.lives();
                row.renew_at = now + row.interval().mul_f64(0.9 + chance() / 10.0);
            }
            Outcome::Gone => {
                row.failures = 0;
                if let Act::Renew(_, gone) | Act::End(_, gone) = act {
                    row.sessions.retain(|id| id != gone);
                }
                Self::count(&mut self.alive, row, had_some);
                if let Act::Renew(..) = act {
                    // Somebody ended it, and may have made another.
                    self.doubt_one(place, now);
                }
            }
            Outcome::Failed => {
                again = now + row.pause(chance());
            }
            Outcome::Lost => {
                again = now + row.pause(chance());
                self.doubt_one(place, now);
            }
        }
        self.schedule(place, again);
    }

    /// The process may create and end sessions now, or may not any more.
    pub fn reconsider(&mut self, now: Instant) {
        let places: Vec<Place> = self.rows.keys().cloned().collect();
        for place in places {
            self.schedule(&place, now);
        }
    }

    /// When there is something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn schedule(&mut self, place: &Place, at: Instant) {
        let Some(row) = self.rows.get_mut(place) else {
            return;
        };
        if let Some(before) = row.due {
            self.due.remove(&(before, place.clone()));
        }
        row.due = Some(at);
        self.due.insert((at, place.clone()));
    }
}

#[cfg(test)]
mod tests;
