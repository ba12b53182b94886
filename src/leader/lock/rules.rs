//! When a lock in Consul is taken and its session renewed, and what that makes of this process. Pure:
//! time is passed in.
//!
//! Who holds the key leads as long as its session lives, which is at least its time to live after it was
//! last renewed: Consul ends it after up to twice that, and lets nobody lock the key for the lock delay.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::leader::pause::Pause;
use crate::leader::{IdentityTaken, Leadership, RENEWAL, RETRY, Reign};
use crate::model::text::Text;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Read the key.
    Read,
    /// See to it that the node is there that the session is on.
    Prepare,
    /// Create a session.
    Create,
    /// Renew a session.
    Renew(Text),
    /// Lock the key for a session.
    Lock(Text),
    /// End a session that is not needed.
    End(Text),
    /// Nothing until then, unless the key changes; `None` for ever.
    Wait(Option<Instant>),
}

/// The value of the key, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// The identity of the process that leads.
    pub(super) holder: String,
    /// A number that no other process has, also where it has the same identity.
    #[serde(default)]
    pub(super) process: String,
}

/// The key, as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its `ModifyIndex`; 0 where it is not there.
    pub(super) index: u64,
    /// The session that holds it; empty for none.
    pub(super) session: Text,
    /// What it says, if that can be understood.
    pub(super) holder: Option<Holder>,
}

/// A session of ours.
#[derive(Debug)]
struct Session {
    id: Text,
    /// When its last renewal was sent; `None` where that is not known.
    renewed: Option<Instant>,
}

/// The lock, and this process's part in it.
#[derive(Debug)]
pub(super) struct Rules {
    ours: Holder,
    /// The key, for people.
    what: String,
    reign: Reign,
    seen: Option<Seen>,
    /// Whether the key is to be read before anything is done.
    doubted: bool,
    /// Until when nothing is asked.
    pause: Pause,
    /// Not before this time the key is locked again.
    locks_from: Option<Instant>,
    session: Option<Session>,
    prepared: bool,
    /// Whether it led when it was asked last.
    led: bool,
}

impl Rules {
    /// Of a process that has seen nothing yet. `what` names the key.
    pub(super) fn new(ours: Holder, what: String) -> Self {
        Self {
            ours,
            what,
            reign: Reign::default(),
            seen: None,
            doubted: true,
            pause: Pause::default(),
            locks_from: None,
            session: None,
            prepared: false,
            led: false,
        }
    }

    /// What the key says while this process holds it.
    pub(super) fn ours(&self) -> &Holder {
        &self.ours
    }

    /// How this process stands.
    pub(super) fn leadership(&self, now: Instant) -> Leadership {
        self.reign.leadership(now).unwrap_or_else(|| {
            let held = self.seen.as_ref().filter(|seen| !seen.session.is_empty());
            let holder = held.and_then(|seen| seen.holder.as_ref());
            let leader = holder.filter(|holder| **holder != self.ours);
            Leadership::StandsBy {
                leader: leader.map(|holder| holder.holder.clone()),
            }
        })
    }

    /// Whether it leads.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.reign.holds(now)
    }

    /// Whether what stands under the key is not known for sure.
    pub(super) fn is_unsure(&self) -> bool {
        self.doubted
    }

    /// Whether nothing failed since all succeeded.
    pub(super) fn is_well(&self) -> bool {
        self.pause.is_forgotten()
    }

    /// The session that this process has.
    pub(super) fn session(&self) -> Option<&Text> {
        self.session.as_ref().map(|session| &session.id)
    }

    /// What is to be done now.
    pub(super) fn next(&mut self, now: Instant) -> Act {
        let act = self.due(now);
        if matches!(act, Act::Wait(_)) && self.pause.until(now).is_none() {
            self.pause.forget();
        }
        act
    }

    fn due(&mut self, now: Instant) -> Act {
        let leads = self.reign.holds(now);
        if std::mem::replace(&mut self.led, leads) && !leads {
            // It stood still, or could not renew: what it knew may be true no more.
            self.reign.end();
            self.doubted = true;
        }
        if let Some(at) = self.pause.until(now) {
            return Act::Wait(Some(
                self.reign.until(now).map_or(at, |until| until.min(at)),
            ));
        }
        let Some(seen) = self.seen.clone().filter(|_| !self.doubted) else {
            return Act::Read;
        };
        let mut due = None;
        if let Some(Session { id, renewed }) = &self.session {
            due = renewed.map(|renewed| renewed + RENEWAL);
            if seen.session != *id && !seen.session.is_empty() {
                return Act::End(id.clone());
            }
            if due.is_none_or(|due| due <= now) {
                return Act::Renew(id.clone());
            }
            if seen.session == *id {
                return Act::Wait(due);
            }
        }
        if !seen.session.is_empty() {
            // The session of the process that this one follows: the lock is its own.
            if self.is_predecessor(&seen) {
                return Act::Lock(seen.session);
            }
            return Act::Wait(None);
        }
        if let Some(at) = self.locks_from.filter(|at| *at > now) {
            return Act::Wait(Some(due.map_or(at, |due| due.min(at))));
        }
        if !self.prepared {
            return Act::Prepare;
        }
        match &self.session {
            None => Act::Create,
            Some(session) => Act::Lock(session.id.clone()),
        }
    }

    /// Whether the key is held by another process of the same identity. Any that is seen to write it
    /// while this one runs is refused before.
    fn is_predecessor(&self, seen: &Seen) -> bool {
        let holder = seen.holder.as_ref();
        holder.is_some_and(|it| it.holder == self.ours.holder && it.process != self.ours.process)
    }

    /// The key is this, as a read or a watch shows. None of it is from before the last lock of this
    /// process.
    pub(super) fn see(&mut self, seen: Seen, now: Instant) -> Result<(), IdentityTaken> {
        let changed = self.seen.as_ref().is_some_and(|known| *known != seen);
        if changed && !seen.session.is_empty() && self.is_predecessor(&seen) {
            return Err(IdentityTaken {
                identity: self.ours.holder.clone(),
                what: self.what.clone(),
            });
        }
        self.doubted = false;
        self.pause.end();
        match &self.session {
            Some(session) if session.id == seen.session => {
                if let Some(sent) = session.renewed {
                    self.reign.renew(sent, now);
                }
            }
            _ => self.reign.end(),
        }
        self.led = self.reign.holds(now);
        self.seen = Some(seen);
        Ok(())
    }

    /// The node is there.
    pub(super) fn prepared(&mut self) {
        self.prepared = true;
    }

    /// A session was created by a request that was sent at `sent`.
    pub(super) fn created(&mut self, id: Text, sent: Instant) {
        self.session = Some(Session {
            id,
            renewed: Some(sent),
        });
    }

    /// A session was renewed by a request that was sent at `sent`, or is not there any more.
    pub(super) fn renewed(&mut self, lives: bool, sent: Instant, now: Instant) {
        let Some(session) = &mut self.session else {
            return;
        };
        if !lives {
            self.session = None;
            self.reign.end();
            self.doubted = true;
            return;
        }
        session.renewed = session.renewed.max(Some(sent));
        let holds = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.session == session.id);
        if holds {
            self.reign.renew(sent, now);
            self.led = self.reign.holds(now);
        }
    }

    /// The key was locked for a session, or was not. It is read again either way: a watch may tell of it
    /// as it was before.
    pub(super) fn locked(&mut self, session: &Text, won: bool, now: Instant) {
        self.doubted = true;
        if !won {
            // Its former session ended a moment ago, or another process was faster.
            self.locks_from = Some(now + RETRY);
            return;
        }
        if self.session() != Some(session) {
            self.session = Some(Session {
                id: session.clone(),
                renewed: None,
            });
        }
        // What this process wrote is no other's.
        self.seen = None;
    }

    /// A session was ended.
    pub(super) fn ended(&mut self, id: &Text) {
        self.session.take_if(|session| session.id == *id);
    }

    /// A call failed, or a watch: what is there is to be read after a pause, whose length `chance`, from 0
    /// to 1, decides.
    pub(super) fn failed(&mut self, now: Instant, chance: f64) {
        self.doubted = true;
        self.prepared = false;
        self.pause.begin(self.leads(now), now, chance);
    }

    /// This process gives up what it has.
    pub(super) fn release(&mut self) -> Option<Text> {
        self.reign.end();
        self.led = false;
        self.doubted = true;
        self.session.take().map(|session| session.id)
    }
}

#[cfg(test)]
mod tests;
