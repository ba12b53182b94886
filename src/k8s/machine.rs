//! What a watch does next, as a pure function of what happened: no clock, no chance, no network.
//!
//! ```text
//!            ┌────────── more pages ─────────┐
//!            ▼                               │
//!   ──▶ List ── last page: Listed ──▶ Watch ─┤ ended by its timeout: Watch from the last version
//!        ▲                              │    │ (List, if a full list is due)
//!        ├── 410, undecodable, 404 ─────┘    │
//!        ├── any failure while listing ◀─────┘ other failures: Broken, pause, Watch; then Healthy
//!        └── the store went back ◀── before that Watch
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::kinds::{Broken, BrokenKind};
use crate::model::backoff;
use crate::model::text::Text;

/// The time between full lists is between this and half as much again.
const RELIST: Duration = Duration::from_mins(12);
/// Shortest and longest `timeoutSeconds` of a watch.
const WATCH_SECONDS: (u32, u32) = (50, 60);
/// A watch that lived this long did work.
const ALIVE: Duration = Duration::from_secs(1);
/// So many watches that end at once, one after the other, are a failure.
const STILLBORN: u32 = 3;
/// How long a watch that was broken must be open without an error before it counts as healthy.
pub(super) const PROBATION: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A handful of watches that knock every few seconds are no load, and what a pause costs is how long
/// pods that fail stay in discovery after the API server is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The server may ask for more, up to this.
const LONGEST_ASKED: Duration = Duration::from_secs(30);
/// The time until a kind that is not served is looked for again is between this and twice as much.
const MISSING_PAUSE: Duration = Duration::from_secs(2);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait.
    Pause(Duration),
    /// Get a page of a full list; without a token the first.
    List { token: Option<String> },
    /// Watch from this version on, and let the server end it after so many seconds.
    Watch { from: Text, seconds: u32 },
}

/// What the receiver is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Listing,
    Listed(Text),
    Broken(Broken),
    Healthy,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The version or the token is too old: only a full list helps.
    Gone,
    /// What came cannot be decoded. To ask for it again would bring the same.
    Undecodable(Text),
    /// The kind's CRD is being deleted: its objects go one by one, and nobody meant these.
    Leaving(Text),
    /// Anything else.
    Other {
        why: Broken,
        /// The least pause that the server asked for.
        pause: Option<Duration>,
    },
}

impl Failure {
    /// A sentence for people.
    pub(super) fn message(self) -> Text {
        match self {
            Self::Gone => "the API server does not keep that version any more".into(),
            Self::Undecodable(message) | Self::Leaving(message) => message,
            Self::Other { why, .. } => why.message,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    List(Option<String>),
    Watch(Text),
}

/// The state of one watch.
#[derive(Debug)]
pub(super) struct Machine {
    next: Next,
    pause: Option<Duration>,
    broken: Option<Broken>,
    relist_at: Option<Instant>,
    opened_at: Option<Instant>,
    /// Whether something good came through the open watch.
    lively: bool,
    /// Failures since the last sign of life, for the back-off.
    failures: u32,
    stillborn: u32,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            next: Next::List(None),
            pause: None,
            broken: None,
            relist_at: None,
            opened_at: None,
            lively: false,
            failures: 0,
            stillborn: 0,
        }
    }

    /// What to do now. `dice` gives numbers from 0 up to 1.
    pub(super) fn step(&mut self, dice: &mut impl FnMut() -> f64) -> (Option<Say>, Step) {
        if let Some(pause) = self.pause.take() {
            return (None, Step::Pause(pause));
        }
        match &self.next {
            Next::List(None) => (Some(Say::Listing), Step::List { token: None }),
            Next::List(token) => (
                None,
                Step::List {
                    token: token.clone(),
                },
            ),
            Next::Watch(from) => {
                let (shortest, longest) = WATCH_SECONDS;
                let span = f64::from(longest - shortest + 1);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let seconds = shortest + (dice() * span) as u32;
                (
                    None,
                    Step::Watch {
                        from: from.clone(),
                        seconds,
                    },
                )
            }
        }
    }

    /// A page came.
    pub(super) fn page(
        &mut self,
        version: &Text,
        token: Option<String>,
        now: Instant,
        dice: &mut impl FnMut() -> f64,
    ) -> Option<Say> {
        if token.is_some() {
            self.next = Next::List(token);
            return None;
        }
        self.next = Next::Watch(version.clone());
        self.relist_at = Some(now + RELIST + (RELIST / 2).mul_f64(dice()));
        self.broken = None;
        Some(Say::Listed(version.clone()))
    }

    /// A full list is asked for.
    pub(super) fn list_now(&mut self) {
        self.opened_at = None;
        self.pause = None;
        self.next = Next::List(None);
    }

    /// The watch is open. That alone heals nothing: the server tells only in the stream that a
    /// version is too old.
    pub(super) fn opened(&mut self, now: Instant) {
        self.opened_at = Some(now);
        self.lively = false;
    }

    /// Whether the receiver believes the watch to be broken.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The store is at this version now. Returns whether it was taken back, as from a backup: a watch
    /// from a version of the future would stay silent, and only a full list helps. Versions are
    /// numbers that grow.
    pub(super) fn went_back(&mut self, version: &str) -> bool {
        let Next::Watch(from) = &self.next else {
            return false;
        };
        let back = match (version.parse::<u64>(), from.parse::<u64>()) {
            (Ok(version), Ok(from)) => version < from,
            _ => false,
        };
        if back {
            self.next = Next::List(None);
        }
        back
    }

    /// The open watch is good: something good came through, or nothing bad in [`PROBATION`].
    pub(super) fn vouched(&mut self) -> Option<Say> {
        self.broken.take().map(|_| Say::Healthy)
    }

    /// An event or a bookmark brought the watch to this version.
    pub(super) fn seen(&mut self, version: Text) -> Option<Say> {
        self.next = Next::Watch(version);
        self.lively = true;
        self.vouched()
    }

    /// The watch ended without an error.
    pub(super) fn ended(&mut self, now: Instant, dice: &mut impl FnMut() -> f64) -> Option<Say> {
        if self.close(now) {
            return None;
        }
        self.stillborn += 1;
        self.pause = Some(self.back_off(dice));
        let broken = || Broken {
            kind: BrokenKind::Failed,
            message: "the API server ends the watch as soon as it is open".into(),
        };
        (self.stillborn >= STILLBORN)
            .then(broken)
            .and_then(|broken| self.break_down(broken))
    }

    /// A call failed, or a watch broke off.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        now: Instant,
        dice: &mut impl FnMut() -> f64,
    ) -> Option<Say> {
        self.close(now);
        let listing = matches!(self.next, Next::List(_));
        match failure {
            Failure::Gone => {
                self.next = Next::List(None);
                // The first time there is nothing to wait for.
                let again = self.failures > 0;
                let pause = self.back_off(dice);
                self.pause = again.then_some(pause);
                None
            }
            Failure::Undecodable(message) => self.list_anew(BrokenKind::Failed, message, dice),
            Failure::Leaving(message) => self.list_anew(BrokenKind::Leaving, message, dice),
            Failure::Other { why, pause } => {
                // What was deleted while the kind was not served was told to nobody.
                if listing || why.kind == BrokenKind::Missing {
                    self.next = Next::List(None);
                }
                let back_off = self.back_off(dice);
                self.pause = Some(if why.kind == BrokenKind::Missing {
                    MISSING_PAUSE + MISSING_PAUSE.mul_f64(dice())
                } else {
                    back_off.max(pause.unwrap_or_default().min(LONGEST_ASKED))
                });
                self.break_down(why)
            }
        }
    }

    /// Ends the watch, if one was open; whether it lived. Then is the time for a full list that is due.
    fn close(&mut self, now: Instant) -> bool {
        let lived = self
            .opened_at
            .take()
            .is_some_and(|opened| self.lively || now - opened >= ALIVE);
        if lived {
            self.failures = 0;
            self.stillborn = 0;
        }
        if self.relist_at.is_some_and(|due| now >= due) {
            self.next = Next::List(None);
        }
        lived
    }

    /// A random pause, of which the longest possible doubles with each failure.
    fn back_off(&mut self, dice: &mut impl FnMut() -> f64) -> Duration {
        let longest = backoff::ceiling(FIRST_PAUSE, self.failures, LONGEST_PAUSE);
        self.failures += 1;
        backoff::jittered(longest, dice())
    }

    fn list_anew(
        &mut self,
        kind: BrokenKind,
        message: Text,
        dice: &mut impl FnMut() -> f64,
    ) -> Option<Say> {
        self.next = Next::List(None);
        self.pause = Some(self.back_off(dice));
        self.break_down(Broken { kind, message })
    }

    fn break_down(&mut self, why: Broken) -> Option<Say> {
        if self.broken.as_ref() == Some(&why) {
            return None;
        }
        self.broken = Some(why.clone());
        Some(Say::Broken(why))
    }
}

#[cfg(test)]
mod tests;
