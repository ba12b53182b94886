//! When a Lease is read, taken and renewed, and what that makes of this process. Pure: time is passed in.
//!
//! Whether another's Lease has ended is judged by when it was last *seen* to change, on this process's
//! own clock; times in it are never compared with a clock. Every write is bound to the
//! `resourceVersion` that it was decided on.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

use crate::leader::pause::Pause;
use crate::leader::{IdentityTaken, LEASE, Leadership, RENEWAL, Reign};

/// Attempts to write that are remembered: any of them may turn out to have been carried out.
const REMEMBERED: usize = 16;
/// Longest time that a Lease may ask to be waited for. This process writes [`LEASE`].
const LONGEST: Duration = Duration::from_mins(1);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// Read the Lease.
    Read,
    /// Create it.
    Create(Box<Lease>),
    /// Replace what has the same `resourceVersion`.
    Replace(Box<Lease>),
    /// Nothing until then, unless it changes; `None` for ever.
    Wait(Option<Instant>),
}

/// What became of a write.
#[derive(Clone, Debug)]
pub(super) enum Wrote {
    /// It was done: the Lease as it is now.
    Done(Box<Lease>),
    /// It was not, since the Lease is another than it was decided on, or is there, or is not.
    Conflict,
}

/// What kind of act is next, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Read,
    Write,
    /// Nothing until then, unless the Lease changes; `None` for ever.
    Wait(Option<Instant>),
}

/// How well it is known what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Nothing was ever read.
    Nothing,
    /// It is to be read again before anything is done.
    Doubtful,
    /// A write was begun of which nothing was heard yet.
    Writing,
    /// As it was seen last.
    Sure,
}

/// An attempt to write.
#[derive(Debug)]
struct Attempt {
    renewed: Timestamp,
    sent: Instant,
}

/// The Lease, and this process's part in it.
#[derive(Debug)]
pub(super) struct Rules {
    identity: String,
    /// The Lease, for people.
    what: String,
    reign: Reign,
    knowledge: Knowledge,
    /// The Lease as it was seen last.
    seen: Option<Box<Lease>>,
    /// Until when nothing is asked.
    pause: Pause,
    /// When the Lease was last written, by which the next renewal is due.
    renewed: Option<Instant>,
    attempts: VecDeque<Attempt>,
    /// Whether a write of this process was ever carried out.
    ever_held: bool,
    /// The holder that was seen last and has not released it, and until when it keeps others away.
    other: Option<(String, Instant)>,
}

impl Rules {
    /// Of a process that has seen nothing yet. `what` names the Lease.
    pub(super) fn new(identity: String, what: String) -> Self {
        Self {
            identity,
            what,
            reign: Reign::default(),
            knowledge: Knowledge::Nothing,
            seen: None,
            pause: Pause::default(),
            renewed: None,
            attempts: VecDeque::new(),
            ever_held: false,
            other: None,
        }
    }

    /// How this process stands.
    pub(super) fn leadership(&self, now: Instant) -> Leadership {
        self.reign.leadership(now).unwrap_or_else(|| {
            let holder = self.lease().and_then(holder);
            let leader = holder.filter(|holder| *holder != self.identity);
            Leadership::StandsBy {
                leader: leader.map(str::to_owned),
            }
        })
    }

    fn lease(&self) -> Option<&Lease> {
        self.seen.as_deref()
    }

    /// The `resourceVersion` that was seen last, from which changes are watched; `None` where the Lease
    /// is not there.
    pub(super) fn version(&self) -> Option<&str> {
        self.lease()?.metadata.resource_version.as_deref()
    }

    /// Whether it leads, and so need not watch.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.reign.holds(now)
    }

    /// Whether what is there is not known for sure.
    pub(super) fn is_unsure(&self) -> bool {
        self.knowledge != Knowledge::Sure
    }

    /// Whether nothing failed since all succeeded.
    pub(super) fn is_well(&self) -> bool {
        self.pause.is_forgotten()
    }

    /// What kind of act is next. Nothing is taken for done by being asked for.
    pub(super) fn due(&self, now: Instant) -> Due {
        if let Some(at) = self.pause.until(now) {
            // Whoever leads until before then is to say in time that it does not any more.
            return Due::Wait(Some(
                self.reign.until(now).map_or(at, |until| until.min(at)),
            ));
        }
        if self.is_unsure() {
            return Due::Read;
        }
        if self.reign.holds(now) {
            let due = self.renewed.map_or(now, |renewed| renewed + RENEWAL);
            if due > now {
                return Due::Wait(Some(due));
            }
        } else if let Some((_, until)) = self.other.as_ref().filter(|(_, until)| *until > now) {
            return Due::Wait(Some(*until));
        }
        Due::Write
    }

    /// What is to be done now. A write carries this time on the clock of people; each has another.
    pub(super) fn next(&mut self, now: Instant, wall: Timestamp) -> Act {
        if self.reign.until(now).is_none() {
            self.reign.end();
        }
        match self.due(now) {
            Due::Wait(until) => {
                if self.pause.until(now).is_none() {
                    self.pause.forget();
                }
                return Act::Wait(until);
            }
            Due::Read => return Act::Read,
            Due::Write => {}
        }
        let before = self.lease().cloned();
        let lease = self.written(before.as_ref(), wall, true);
        self.tries(&lease, now);
        self.knowledge = Knowledge::Writing;
        if before.is_some() {
            Act::Replace(Box::new(lease))
        } else {
            Act::Create(Box::new(lease))
        }
    }

    /// The Lease by which this process gives up what it has, if it has it as far as it knows.
    pub(super) fn release(&mut self, wall: Timestamp) -> Option<Lease> {
        self.reign.end();
        let lease = self.lease()?.clone();
        if holder(&lease) != Some(&self.identity) || !self.ever_held {
            return None;
        }
        Some(self.written(Some(&lease), wall, false))
    }

    /// The Lease as it is to be written over `before`.
    fn written(&self, before: Option<&Lease>, wall: Timestamp, held: bool) -> Lease {
        let mut lease = before.cloned().unwrap_or_default();
        let spec = lease.spec.get_or_insert_default();
        let same = spec.holder_identity.as_deref() == Some(&self.identity);
        let wall = self.distinct(wall);
        if !same {
            spec.acquire_time = Some(MicroTime(wall));
            let transitions = spec.lease_transitions.unwrap_or_default();
            let first = before.is_none();
            let transitions = transitions.saturating_add(i32::from(!first));
            spec.lease_transitions = Some(transitions);
        }
        spec.renew_time = Some(MicroTime(wall));
        spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
        spec.holder_identity = Some(if held {
            self.identity.clone()
        } else {
            String::new()
        });
        lease
    }

    /// This time, as exact as a Lease holds it, and unlike that of any attempt before: by it a write of
    /// ours is known.
    fn distinct(&self, wall: Timestamp) -> Timestamp {
        let known = |micros: i64| {
            let mut all = self.attempts.iter();
            all.any(|it| it.renewed.as_microsecond() == micros)
        };
        let mut micros = wall.as_microsecond();
        while known(micros) {
            micros += 1;
        }
        Timestamp::from_microsecond(micros).unwrap_or(wall)
    }

    fn tries(&mut self, lease: &Lease, now: Instant) {
        if self.attempts.len() == REMEMBERED {
            self.attempts.pop_front();
        }
        if let Some(renewed) = renewed(lease) {
            self.attempts.push_back(Attempt { renewed, sent: now });
        }
    }

    /// A write was answered.
    pub(super) fn wrote(&mut self, outcome: Wrote, now: Instant) -> Result<(), IdentityTaken> {
        match outcome {
            Wrote::Done(lease) => self.see(Some(lease), now),
            Wrote::Conflict => {
                self.doubt();
                Ok(())
            }
        }
    }

    /// A call failed, or a watch: what is there is to be read after a pause, whose length `chance`, from 0
    /// to 1, decides. A write may have been done all the same.
    pub(super) fn failed(&mut self, now: Instant, chance: f64) {
        self.doubt();
        self.pause.begin(self.leads(now), now, chance);
    }

    /// The Lease is to be read again.
    pub(super) fn doubt(&mut self) {
        if self.knowledge != Knowledge::Nothing {
            self.knowledge = Knowledge::Doubtful;
        }
    }

    /// The Lease is this, as a read, a watch or the answer to a write shows; `None` where there is none.
    pub(super) fn see(
        &mut self,
        lease: Option<Box<Lease>>,
        now: Instant,
    ) -> Result<(), IdentityTaken> {
        let before = std::mem::replace(&mut self.knowledge, Knowledge::Sure);
        self.pause.end();
        let known = before != Knowledge::Nothing;
        let unchanged = match (self.lease(), lease.as_deref()) {
            (None, None) => known,
            (Some(before), Some(lease)) => is_same(before, lease),
            _ => false,
        };
        let predecessor = !known && !self.ever_held;
        match lease.as_deref() {
            Some(lease) if holder(lease) == Some(&self.identity) => {
                self.other = None;
                let attempt =
                    renewed(lease).and_then(|at| self.attempts.iter().find(|it| it.renewed == at));
                if let Some(Attempt { sent, .. }) = attempt {
                    let sent = *sent;
                    self.ever_held = true;
                    self.renewed = self.renewed.max(Some(sent));
                    self.reign.renew(sent, now);
                } else if !predecessor && !unchanged {
                    return Err(IdentityTaken {
                        identity: self.identity.clone(),
                        what: self.what.clone(),
                    });
                }
            }
            Some(lease) => {
                self.reign.end();
                self.other = match holder(lease) {
                    None => None,
                    Some(_) if unchanged && self.other.is_some() => self.other.take(),
                    Some(holder) => Some((holder.to_owned(), now + duration(lease))),
                };
            }
            None => {
                // Its holder may lead for as long as what was seen of it lasts, and writes it again.
                self.reign.end();
            }
        }
        self.seen = lease;
        Ok(())
    }
}

/// Who holds a Lease, if anybody does.
fn holder(lease: &Lease) -> Option<&str> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity
        .as_deref()
        .filter(|holder| !holder.is_empty())
}

fn renewed(lease: &Lease) -> Option<Timestamp> {
    lease.spec.as_ref()?.renew_time.as_ref().map(|it| it.0)
}

/// Whether nobody renewed it, nor wrote anything else into what counts.
fn is_same(one: &Lease, other: &Lease) -> bool {
    let counts = |lease: &Lease| {
        let spec: Option<&LeaseSpec> = lease.spec.as_ref();
        spec.map(|spec| {
            (
                spec.holder_identity.clone(),
                spec.renew_time.clone(),
                spec.lease_duration_seconds,
            )
        })
    };
    one.metadata.uid == other.metadata.uid && counts(one) == counts(other)
}

/// How long its holder keeps others away.
fn duration(lease: &Lease) -> Duration {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds
        .filter(|seconds| *seconds > 0)
        .map_or(LEASE, Duration::from_secs)
        .min(LONGEST)
}

#[cfg(test)]
mod tests;
