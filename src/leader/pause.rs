//! What follows a call that failed: how long nothing is asked, and what is told. Pure: time and chance are
//! passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::time::Duration;

use tokio::time::Instant;

use super::RETRY;
use crate::model::backoff;

/// The longest pause of a process that does not lead.
const LONGEST: Duration = Duration::from_secs(8);

/// A time without questions after calls that failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    failures: u32,
}

impl Pause {
    /// A call failed. Whoever leads asks again soon, before its time is over; others wait longer each time.
    /// `chance` is from 0 to 1: those that failed together do not ask together.
    pub(super) fn begin(&mut self, leads: bool, now: Instant, chance: f64) {
        let pause = if leads {
            RETRY
        } else {
            let half = backoff::ceiling(RETRY, self.failures, LONGEST) / 2;
            half + backoff::jittered(half, chance)
        };
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
    }

    /// A call was answered: the next one need not wait. Whether that succeeds is not known yet.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// There is nothing left to do: all calls succeeded.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Until when nothing is asked.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|at| *at > now)
    }

    /// Whether a call failed since all succeeded.
    pub(super) fn is_forgotten(&self) -> bool {
        self.failures == 0
    }
}

/// How long what is wrong may be something else untold: several calls may fail in turn, each with a text of its
/// own.
const UNTOLD: Duration = Duration::from_secs(30);

/// What is wrong, so that it is told once and not at each attempt.
#[derive(Debug, Default)]
pub(super) struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Warns of this, unless it was the last that was warned of.
    pub(super) fn tell(&mut self, text: String, now: Instant) {
        let told = self.0.as_ref();
        let is_old = |(last, at): &(String, Instant)| *last == text || now < *at + UNTOLD;
        if !told.is_some_and(is_old) {
            tracing::warn!("{text}");
            self.0 = Some((text, now));
        }
    }

    /// All is well with `what`.
    pub(super) fn over(&mut self, what: &str) {
        if self.0.take().is_some() {
            tracing::info!("{what} can be read and written again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leads_asks_again_soon_and_others_ever_later() {
        let now = Instant::now();
        let mut pause = Pause::default();
        let mut waits = |leads, chance| {
            pause.begin(leads, now, chance);
            (pause.until(now).unwrap() - now).as_millis()
        };
        let seen = [1.0, 1.0, 0.0, 1.0, 1.0].map(|chance| waits(false, chance));
        assert_eq!(seen, [1000, 2000, 2000, 8000, 8000]);
        assert_eq!(waits(true, 1.0), 1000);
        pause.end();
        assert_eq!(pause.until(now), None);
        assert!(!pause.is_forgotten());
        pause.begin(false, now, 1.0);
        assert_eq!(pause.until(now), Some(now + LONGEST));
        pause.forget();
        pause.begin(false, now, 1.0);
        assert_eq!(pause.until(now), Some(now + RETRY));
        assert_eq!(pause.until(now + RETRY), None);
    }
}
