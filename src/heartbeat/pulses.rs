//! Which session is created, renewed or ended next.
//!
//! A check follows the sessions of its name on its node, but trusts what it was told last: one that is
//! registered while a session lives stays critical, and of two sessions the end of one turns it critical
//! while the other lives. So there is never more than one on purpose, and where a check is critical
//! although its session lives the session is made anew.
//!
//! Source: `updateSessionCheck` in Consul's `agent/consul/state/session.go`, and trials.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;
use crate::model::entry::Health;
use crate::model::names::NodeName;
use crate::model::text::Text;

/// A session is renewed so often while it lives.
const RENEWALS: u32 = 3;
/// And at least this often: whether it still lives is not known before.
const LONGEST_INTERVAL: Duration = Duration::from_mins(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

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

#[derive(Debug)]
struct Row {
    ttl: Duration,
    want: Want,
    /// What the check is in Consul; `None` where it is not there.
    check: Option<Health>,
    /// Since when it is critical, if it is.
    critical: Option<Critical>,
    sessions: Vec<Text>,
    /// Whether these are all.
    sure: bool,
    /// When something was done about them, or they were doubted, last.
    changed: Option<Instant>,
    /// How long the session lives that was found.
    found_ttl: Option<Duration>,
    busy: bool,
    renew_at: Instant,
    /// Whether all of its sessions are to make room for a new one.
    remake: bool,
    /// Acts that failed in a row.
    failures: u32,
    /// Sessions made anew, since the check passed last, for a check that does not follow them.
    remakes: u32,
    /// Sessions made, since it was to end last, so that a check that another hand turned follows their end.
    amends: u32,
    /// Under what it is in the order of what is due.
    due: Option<Instant>,
}

/// All checks that follow sessions.
#[derive(Debug, Default)]
pub struct Pulses {
    rows: HashMap<Place, Row>,
    due: BTreeSet<(Instant, Place)>,
    unsure: HashSet<Place>,
}

enum Next {
    Act(Act),
    At(Instant),
    Never,
    Drop,
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
            self.unsure.insert(place.clone());
            Row {
                ttl,
                want,
                check: None,
                critical: None,
                sessions: Vec::new(),
                sure: false,
                changed: None,
                found_ttl: None,
                busy: false,
                renew_at: now,
                remake: false,
                failures: 0,
                remakes: 0,
                amends: 0,
                due: None,
            }
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

    /// Its node is gone, and the sessions on it with that.
    pub fn drop(&mut self, place: &Place) {
        self.unsure.remove(place);
        if let Some(row) = self.rows.remove(place)
            && let Some(at) = row.due
        {
            self.due.remove(&(at, place.clone()));
        }
    }

    /// What was known of sessions may be wrong.
    pub fn doubt(&mut self, now: Instant) {
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
        let row = self.rows.get(place)?;
        row.sure.then_some(!row.sessions.is_empty())
    }

    /// How many sessions are known to live.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.rows
            .values()
            .filter(|row| !row.sessions.is_empty())
            .count()
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
            if row.busy || row.changed.is_some_and(|changed| changed > asked) {
                continue;
            }
            let ttl = found.iter().filter_map(|found| found.ttl).min();
            let found: Vec<Text> = found.into_iter().map(|found| found.id).collect();
            if !row.sure || row.sessions != found {
                row.sure = true;
                row.sessions = found;
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
    pub fn next(&mut self, changes: Option<Instant>, now: Instant) -> Option<Act> {
        let leads = changes.is_some_and(|from| from <= now);
        let later = changes.filter(|from| *from > now);
        while let Some((at, place)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.due.remove(&(at, place.clone()));
            let Some(row) = self.rows.get_mut(&place) else {
                continue;
            };
            row.due = None;
            let next = match (row.next(&place, leads, now), later) {
                (Next::Never, Some(later)) if !row.busy => Next::At(later),
                (Next::At(at), Some(later)) => Next::At(at.min(later)),
                (next, _) => next,
            };
            match next {
                Next::Act(act) => {
                    row.busy = true;
                    return Some(act);
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
        act: &Act,
        outcome: Outcome,
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) {
        let place = act.place();
        let Some(row) = self.rows.get_mut(place) else {
            return;
        };
        row.busy = false;
        row.changed = Some(now);
        let mut again = now;
        match outcome {
            Outcome::Created(id) => {
                row.sessions = vec![id];
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

/// A check that is critical although it is to pass.
#[derive(Clone, Copy, Debug)]
struct Critical {
    since: Instant,
    /// Whether its session was seen to live since then.
    verified: bool,
}

impl Row {
    fn lives(&mut self) {
        if let Some(critical) = &mut self.critical {
            critical.verified = true;
        }
    }

    fn next(&mut self, place: &Place, leads: bool, now: Instant) -> Next {
        if self.busy {
            return Next::Never;
        }
        if let Want::Ended | Want::Forgotten = self.want {
            let is_forgotten = self.want == Want::Forgotten;
            return match self.sessions.first() {
                // Until it is gone nobody is to see it critical.
                _ if is_forgotten && self.check.is_some() => self.renew(place, now),
                Some(id) if leads => Next::Act(Act::End(place.clone(), id.clone())),
                None if is_forgotten && self.sure => Next::Drop,
                None if leads && self.sure => self.amend(place, now),
                Some(_) | None => Next::Never,
            };
        }
        if !self.sure {
            // A session that is known is none that is missing.
            return self.renew(place, now);
        }
        if self.want == Want::Kept || !leads {
            return self.renew(place, now);
        }
        if self.sessions.len() > 1 {
            self.remake = true;
        }
        match self.sessions.first() {
            None => {
                self.remake = false;
                // A check that comes after its session would stay critical.
                match self.check {
                    None => Next::Never,
                    Some(_) => Next::Act(Act::Create(place.clone(), self.ttl)),
                }
            }
            // Its instance is not there.
            Some(id) if self.check.is_none() => Next::Act(Act::End(place.clone(), id.clone())),
            Some(id) if self.remake => Next::Act(Act::End(place.clone(), id.clone())),
            Some(id) => match self.critical {
                None => self.renew(place, now),
                // It was renewed since: it lives, and the check does not follow it.
                Some(Critical {
                    since,
                    verified: true,
                }) => {
                    let patience = backoff::ceiling(FIRST_PAUSE, self.remakes, LONGEST_PAUSE);
                    if self.remakes > 0 && now < since + patience {
                        return Next::At(since + patience);
                    }
                    self.remakes = self.remakes.saturating_add(1);
                    self.remake = true;
                    Next::Act(Act::End(place.clone(), id.clone()))
                }
                // It may have expired, or been ended by hand.
                Some(_) => Next::Act(Act::Renew(place.clone(), id.clone())),
            },
        }
    }

    /// A check that another hand turned although there is no session turns critical with the end of one.
    fn amend(&mut self, place: &Place, now: Instant) -> Next {
        if self.check.is_none_or(|check| check == Health::Critical) {
            return Next::Never;
        }
        // What it is now may have been seen before its session ended.
        let pause = backoff::ceiling(FIRST_PAUSE, self.amends, LONGEST_PAUSE);
        match self.changed.map(|changed| changed + pause) {
            Some(at) if now < at => Next::At(at),
            _ => {
                self.amends = self.amends.saturating_add(1);
                Next::Act(Act::Create(place.clone(), self.ttl))
            }
        }
    }

    fn renew(&self, place: &Place, now: Instant) -> Next {
        let Some(id) = self.sessions.first() else {
            return Next::Never;
        };
        if now < self.renew_at {
            return Next::At(self.renew_at);
        }
        Next::Act(Act::Renew(place.clone(), id.clone()))
    }

    /// From one renewal to the next.
    fn interval(&self) -> Duration {
        let ttl = self.found_ttl.map_or(self.ttl, |found| found.min(self.ttl));
        (ttl / RENEWALS).min(LONGEST_INTERVAL)
    }

    fn pause(&mut self, chance: f64) -> Duration {
        let longest = LONGEST_PAUSE.min(self.interval());
        let ceiling = backoff::ceiling(FIRST_PAUSE, self.failures, longest);
        self.failures = self.failures.saturating_add(1);
        backoff::jittered(ceiling, chance)
    }
}

#[cfg(test)]
mod tests;
