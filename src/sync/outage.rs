//! Backing off from a Consul that fails. Pure: time and chance are passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;

/// First ceiling of the wait after a failure.
const FIRST: Duration = Duration::from_millis(100);
/// Highest ceiling of the wait.
const CEILING: Duration = Duration::from_secs(10);
/// How long a failure that goes on may change its reason untold: calls of several sorts fail in turn, each with
/// a text of its own.
const UNTOLD: Duration = Duration::from_secs(30);

/// How Consul fails, if it does.
#[derive(Debug, Default)]
pub struct Outage {
    failures: u32,
    until: Option<Instant>,
    reason: Option<String>,
    /// What was told last, and when.
    told: Option<(String, Instant)>,
    /// Whether that goes on, as far as was told.
    is_told: bool,
}

impl Outage {
    /// A call failed in a way that has nothing to do with what was asked. `chance` is from 0 to 1:
    /// full jitter spreads those who wait.
    pub fn failed(&mut self, reason: String, now: Instant, chance: f64) {
        self.reason = Some(reason);
        if self.until.is_some_and(|until| until > now) {
            // One of several calls that failed together.
            return;
        }
        let ceiling = backoff::ceiling(FIRST, self.failures, CEILING);
        self.failures += 1;
        self.until = Some(now + backoff::jittered(ceiling, chance).max(FIRST / 4));
    }

    /// Whether it is to be told that calls fail for this reason: where they begin to, or where they have for a
    /// while, and not for the reason that was told last.
    pub fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let told = self.told.as_ref();
        let goes_on = self.is_told;
        let known =
            |(last, at): &(String, Instant)| now - *at < UNTOLD || (goes_on && *last == reason);
        if told.is_some_and(known) {
            return false;
        }
        self.told = Some((reason.to_owned(), now));
        self.is_told = true;
        true
    }

    /// A call was answered. Returns whether that is to be told: failures that come and go are not, each time.
    pub fn over(&mut self) -> bool {
        let is_news = self.is_told;
        *self = Self {
            told: self.told.take(),
            ..Self::default()
        };
        is_news
    }

    /// Why Consul is left alone, if it fails.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// How many calls may be under way at once: none while waiting, one to try, else `most`.
    #[must_use]
    pub fn limit(&self, now: Instant, most: usize) -> usize {
        match self.until {
            Some(until) if until > now => 0,
            Some(_) => 1,
            None => most,
        }
    }

    /// When the next call may be tried.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_ceiling_and_end_with_an_answer() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..10 {
            outage.failed("refused".to_owned(), at, 1.0);
            // Calls that were under way at the same time and fail after it count once.
            outage.failed("refused".to_owned(), at, 1.0);
            waits.push((outage.wake_at().unwrap() - at).as_millis());
            at = outage.wake_at().unwrap();
        }
        assert_eq!(&waits[..3], [100, 200, 400]);
        assert_eq!(waits[9], CEILING.as_millis());
        assert_eq!(outage.limit(now, 8), 0);
        assert_eq!(outage.limit(at, 8), 1);
        outage.over();
        assert_eq!((outage.limit(now, 8), outage.reason()), (8, None));
    }

    #[test]
    fn reasons_that_take_turns_are_told_twice_a_minute_at_most() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let told = |outage: &mut Outage, reason: &str, seconds: u64| {
            outage.is_news(reason, start + Duration::from_secs(seconds))
        };
        assert!(told(&mut outage, "nodes: refused", 0));
        let turns = (0..60).filter(|&second| {
            let reason = ["nodes: refused", "txn: refused"][usize::from(second % 2 == 1)];
            told(&mut outage, reason, second)
        });
        assert_eq!(turns.count(), 1);
        let same = (60..3_600).filter(|&second| told(&mut outage, "txn: refused", second));
        assert_eq!(same.count(), 0);
        assert!(outage.over() && !outage.over());
        assert!(told(&mut outage, "txn: refused", 3_600), "it begins anew");
        // It comes and goes, each second.
        let turns = (3_601..3_661).filter(|&second| {
            let began = told(&mut outage, "txn: refused", second);
            let ended = outage.over();
            began || ended
        });
        assert!(turns.count() <= 4);
    }

    #[test]
    fn chance_shortens_a_wait_but_not_to_nothing() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        outage.failed(String::new(), now, 0.0);
        assert!(outage.wake_at().unwrap() > now);
    }
}
