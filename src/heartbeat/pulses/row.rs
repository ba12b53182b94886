//! What is known of one check that follows sessions, and what is done about it next.

use std::time::Duration;

use tokio::time::Instant;

use super::{Act, Place, Want};
use crate::model::backoff;
use crate::model::entry::Health;
use crate::model::text::Text;

/// A session is renewed so often while it lives.
const RENEWALS: u32 = 3;
/// And at least this often: whether it still lives is not known before.
const LONGEST_INTERVAL: Duration = Duration::from_mins(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What is known of one check, and what is wanted of it.
#[derive(Debug)]
pub(super) struct Row {
    /// Which one of all that there ever were.
    pub(super) number: u64,
    pub(super) ttl: Duration,
    pub(super) want: Want,
    /// What the check is in Consul; `None` where it is not there.
    pub(super) check: Option<Health>,
    /// Since when it is critical, if it is.
    pub(super) critical: Option<Critical>,
    pub(super) sessions: Vec<Text>,
    /// Whether these are all.
    pub(super) sure: bool,
    /// When something was done about them, or they were doubted, last.
    pub(super) changed: Option<Instant>,
    /// How long the session lives that was found.
    pub(super) found_ttl: Option<Duration>,
    /// What is under way, if something is.
    pub(super) doing: Option<Doing>,
    pub(super) renew_at: Instant,
    /// Whether all of its sessions are to make room for a new one.
    pub(super) remake: bool,
    /// Acts that failed in a row.
    pub(super) failures: u32,
    /// Sessions made anew, since the check passed last, for a check that does not follow them.
    pub(super) remakes: u32,
    /// Sessions made, since it was to end last, so that a check that another hand turned follows their end.
    pub(super) amends: u32,
    /// Under what it is in the order of what is due.
    pub(super) due: Option<Instant>,
}

/// What an act does to the sessions of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing that a list would show.
    Renews,
    /// There is one more, or one less.
    Changes,
}

/// What is to be done about a check.
pub(super) enum Next {
    Act(Act),
    At(Instant),
    Never,
    Drop,
}

/// A check that is critical although it is to pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Critical {
    pub(super) since: Instant,
    /// Whether its session was seen to live since then.
    pub(super) verified: bool,
}

impl Row {
    /// Of one that is followed from now on; `sure` says that it has no sessions.
    pub(super) fn new((ttl, want): (Duration, Want), sure: bool, now: Instant) -> Self {
        Self {
            number: 0,
            ttl,
            want,
            check: None,
            critical: None,
            sessions: Vec::new(),
            sure,
            changed: None,
            found_ttl: None,
            doing: None,
            renew_at: now,
            remake: false,
            failures: 0,
            remakes: 0,
            amends: 0,
            due: None,
        }
    }

    pub(super) fn lives(&mut self) {
        if let Some(critical) = &mut self.critical {
            critical.verified = true;
        }
    }

    pub(super) fn next(&mut self, place: &Place, leads: bool, now: Instant) -> Next {
        if self.doing.is_some() {
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
    pub(super) fn interval(&self) -> Duration {
        let ttl = self.found_ttl.map_or(self.ttl, |found| found.min(self.ttl));
        (ttl / RENEWALS).min(LONGEST_INTERVAL)
    }

    pub(super) fn pause(&mut self, chance: f64) -> Duration {
        let longest = LONGEST_PAUSE.min(self.interval());
        let ceiling = backoff::ceiling(FIRST_PAUSE, self.failures, longest);
        self.failures = self.failures.saturating_add(1);
        backoff::jittered(ceiling, chance)
    }
}
