//! How long a leadership lasts. Pure: time is passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use tokio::time::Instant;

use super::{Leadership, TENURE};

/// A leadership, from one renewal to the next.
#[derive(Clone, Debug, Default)]
pub struct Reign {
    /// How many there were.
    term: u64,
    until: Option<Instant>,
}

impl Reign {
    /// It was won or renewed by a request that was sent at `sent`, and is known to be so now. What
    /// lapsed meanwhile does not come back: that is another one. An answer that comes too late is worth
    /// nothing.
    pub fn renew(&mut self, sent: Instant, now: Instant) {
        let until = sent + TENURE;
        if until <= now {
            return;
        }
        if !self.holds(now) {
            self.term += 1;
            self.until = None;
        }
        self.until = self.until.max(Some(until));
    }

    /// It is over.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Until when it holds, if it does now.
    #[must_use]
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// As it is published.
    #[must_use]
    pub fn leadership(&self, now: Instant) -> Option<Leadership> {
        let until = self.until(now)?;
        Some(Leadership::Leads {
            term: self.term,
            until: Some(until),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn term(reign: &Reign, now: Instant) -> Option<u64> {
        reign.leadership(now).and_then(|it| it.term(now))
    }

    #[test]
    fn it_lasts_from_before_the_request_and_is_renewed_in_time_only() {
        let start = Instant::now();
        let mut reign = Reign::default();
        assert_eq!(term(&reign, start), None);
        reign.renew(start, start + SECOND);
        assert_eq!(term(&reign, start + TENURE - SECOND / 10), Some(1));
        assert_eq!(term(&reign, start + TENURE), None);
        reign.renew(start + SECOND * 4, start + SECOND * 5);
        assert_eq!(term(&reign, start + SECOND * 13), Some(1));
        // An older answer does not shorten it.
        reign.renew(start, start + SECOND * 6);
        assert_eq!(term(&reign, start + SECOND * 13), Some(1));
    }

    #[test]
    fn what_lapsed_is_another_one_when_it_comes_back() {
        let start = Instant::now();
        let mut reign = Reign::default();
        reign.renew(start, start);
        let late = start + TENURE + SECOND;
        reign.renew(late - SECOND, late);
        assert_eq!(term(&reign, late), Some(2));
        reign.end();
        assert_eq!(term(&reign, late), None);
        reign.renew(late, late);
        assert_eq!(term(&reign, late), Some(3));
    }

    #[test]
    fn an_answer_that_comes_too_late_is_worth_nothing() {
        let start = Instant::now();
        let mut reign = Reign::default();
        reign.renew(start, start + TENURE);
        assert_eq!(term(&reign, start + TENURE), None);
        assert!(!reign.holds(start + TENURE));
    }
}
