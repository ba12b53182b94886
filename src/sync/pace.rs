//! How much is written at once, and how fast. Pure: time is passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// After a halving, one more call at once is allowed each time that this has passed.
const RAISE: Duration = Duration::from_secs(2);

/// The pace of writes.
#[derive(Debug)]
pub struct Pace {
    most: usize,
    allowed: usize,
    raise_at: Option<Instant>,
    /// `--consul-write-rate`: entries a second.
    rate: Option<NonZeroU32>,
    next: Option<Instant>,
}

impl Pace {
    /// At most so many calls at once, and so many entries a second.
    #[must_use]
    pub fn new(most: usize, rate: Option<NonZeroU32>) -> Self {
        Self {
            most,
            allowed: most,
            raise_at: None,
            rate,
            next: None,
        }
    }

    /// From now on so many entries a second.
    pub fn set_rate(&mut self, rate: Option<NonZeroU32>) {
        self.rate = rate;
        if rate.is_none() {
            self.next = None;
        }
    }

    /// Consul asks for less (429, 503): half as much is done at once, and slowly more again.
    pub fn slow_down(&mut self, now: Instant) {
        // Calls that were under way together are refused together, and mean one thing.
        if self.raise_at.is_some_and(|at| at > now + RAISE / 2) {
            return;
        }
        self.allowed = (self.allowed / 2).max(1);
        self.raise_at = Some(now + RAISE);
    }

    /// Time passes.
    pub fn ripen(&mut self, now: Instant) {
        while let Some(at) = self.raise_at.filter(|at| *at <= now) {
            self.allowed += 1;
            self.raise_at = (self.allowed < self.most).then_some(at + RAISE);
        }
    }

    /// Calls that may be under way at once.
    #[must_use]
    pub fn allowed(&self) -> usize {
        self.allowed
    }

    /// Whether the rate lets a transaction begin.
    #[must_use]
    pub fn may_begin(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// From when on the rate lets one begin, where it ever kept one waiting.
    #[must_use]
    pub fn begins_at(&self) -> Option<Instant> {
        self.next
    }

    /// Most entries in a transaction: no more than the rate allows in a second.
    #[must_use]
    pub fn most_entries(&self) -> usize {
        self.rate.map_or(usize::MAX, |rate| {
            usize::try_from(rate.get()).unwrap_or(usize::MAX)
        })
    }

    /// A transaction with so many entries begins.
    pub fn begun(&mut self, entries: usize, now: Instant) {
        if let Some(rate) = self.rate {
            let entries = u32::try_from(entries).unwrap_or(u32::MAX);
            let takes = Duration::from_secs(1) * entries / rate.get();
            self.next = Some(self.next.map_or(now, |next| next.max(now)) + takes);
        }
    }

    /// When there may be more to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        [self.raise_at, self.next].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_halved_and_slowly_raised() {
        let (mut pace, now) = (Pace::new(8, None), Instant::now());
        for _ in 0..5 {
            pace.slow_down(now);
        }
        assert_eq!(pace.allowed(), 4, "refused together");
        let later = now + RAISE;
        pace.slow_down(later);
        assert_eq!(pace.allowed(), 2);
        pace.slow_down(later + RAISE);
        pace.slow_down(later + RAISE * 2);
        assert_eq!(pace.allowed(), 1);
        let mut at = later + RAISE * 2;
        for allowed in 2..=8 {
            at += RAISE;
            pace.ripen(at);
            assert_eq!(pace.allowed(), allowed);
        }
        pace.ripen(at + RAISE * 10);
        assert_eq!((pace.allowed(), pace.wake_at()), (8, None));
    }

    #[test]
    fn a_rate_spreads_entries_over_time() {
        let (mut pace, now) = (Pace::new(8, NonZeroU32::new(10)), Instant::now());
        assert_eq!(pace.most_entries(), 10);
        assert!(pace.may_begin(now));
        pace.begun(10, now);
        assert!(!pace.may_begin(now));
        assert_eq!(pace.wake_at(), Some(now + Duration::from_secs(1)));
        assert!(pace.may_begin(now + Duration::from_secs(1)));
        let mut free = Pace::new(8, None);
        free.begun(1000, now);
        assert!(free.may_begin(now));
    }
}
