//! Blocking queries: reads that return when something changed.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/features/blocking>; observed on
//! Consul 1.22.7: an index beyond that of the store (after a loss of data or the restore of a
//! snapshot) blocks for the whole wait, and a query that blocks during a restore returns at once, with
//! old data and the old index. Hence the short wait, the fresh start after every failure, and the look
//! without an index after every answer that came early for no visible reason.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Client, ConsulError, Observed, Request, Response};
use crate::model::backoff;

/// How long Consul holds a query without a change: shorter than the 60 s after which many load
/// balancers cut an idle connection.
const WAIT: Duration = Duration::from_secs(45);
/// Queries that follow each other at once, before [`Watch::pace`] holds them back.
const BURST: u32 = 2;

/// What to make of an answer to a blocking query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The same index as before: the wait ended, nothing moved.
    Unmoved,
    /// Something moved, though not necessarily what is asked for.
    Moved,
    /// The index went back: Consul was restored, wiped or replaced. Unless it was read without an
    /// index, what is read must be read again.
    WentBack,
}

/// The rules for the index of a blocking query. Pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexTracker {
    /// What to send; none asks for an answer at once.
    send: Option<NonZeroU64>,
    /// The last index seen, kept for comparison also when it is not sent.
    seen: Option<NonZeroU64>,
    /// Whether the next answer only tells whether the last one was true.
    doubted: bool,
}

impl IndexTracker {
    /// The index to send; `None` asks for an answer at once.
    #[must_use]
    pub fn to_send(&self) -> Option<NonZeroU64> {
        self.send
    }

    /// Takes in the index of a success; none, or 0, counts as 1. The first one has moved.
    pub fn observe(&mut self, index: Option<NonZeroU64>) -> Step {
        let index = index.unwrap_or(NonZeroU64::MIN);
        let asked_blocking = self.send.is_some();
        let compares = std::mem::take(&mut self.doubted) || asked_blocking;
        let seen = self.seen.replace(index);
        if seen.is_some_and(|seen| index < seen) {
            // What was asked for without an index is current already.
            self.send = (!asked_blocking).then_some(index);
            return Step::WentBack;
        }
        self.send = Some(index);
        if compares && seen == Some(index) {
            Step::Unmoved
        } else {
            Step::Moved
        }
    }

    /// After a failure the next answer is wanted at once: the old index could block on a store
    /// that is younger than it.
    pub fn failed(&mut self) {
        self.send = None;
        self.doubted = false;
    }

    /// The last answer came before its wait was over, and nothing had moved: it may be the last one of
    /// a store that is no more, and its index could block on the one that took its place. The next
    /// answer is wanted at once.
    pub fn doubt(&mut self) {
        self.send = None;
        self.doubted = true;
    }
}

/// Exponential back-off with full jitter. Pure but for the jitter's randomness.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits between nothing and `base`, then between nothing and twice that, and so on to `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            failures: 0,
        }
    }

    /// How long to wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        backoff::jittered(ceiling, rand::random())
    }

    /// The longest that the next delay can be.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        backoff::ceiling(self.base, self.failures, self.cap)
    }

    /// All is well again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Why a [`Watch`] gives a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first one.
    First,
    /// The index moved on.
    Moved,
    /// The first one after failures; what happened meanwhile is unknown.
    Recovered,
    /// The index went back: Consul was restored, wiped or replaced.
    WentBack,
}

/// A value of a [`Watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Why it is given.
    pub cause: Cause,
    /// What was read.
    pub observed: Observed<T>,
}

/// A query that is asked again and again, each time waiting for a change.
pub struct Watch<T> {
    client: Client,
    request: Request<'static>,
    decode: fn(Response) -> Result<Observed<T>, ConsulError>,
    wait: Duration,
    interval: Duration,
    index: IndexTracker,
    /// What the next value will be given for, where that is known already.
    cause: Option<Cause>,
    backoff: Backoff,
    /// How to go on after answers that come early for no visible reason, so that a proxy that cuts
    /// every wait short is not asked without end.
    doubts: Backoff,
    not_before: Option<Instant>,
    /// When the last query would have been sent, had they been spread evenly.
    spread: Option<Instant>,
}

impl<T> Watch<T> {
    pub(super) fn new(
        client: Client,
        request: Request<'static>,
        decode: fn(Response) -> Result<Observed<T>, ConsulError>,
    ) -> Self {
        Self {
            client,
            request,
            decode,
            wait: WAIT,
            interval: Duration::from_secs(1),
            index: IndexTracker::default(),
            cause: Some(Cause::First),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
            doubts: Backoff::new(Duration::from_millis(50), Duration::from_secs(10)),
            not_before: None,
            spread: None,
        }
    }

    /// How long Consul may hold a query; 45 s unless told otherwise.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Time between queries, on average; 1 s unless told otherwise. Two may follow each other at
    /// once. Most indexes are those of a whole table, so that a query returns for any write.
    #[must_use]
    pub fn pace(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The next change, or the next failure, after which it goes on with back-off.
    ///
    /// Cancel-safe: a call that is dropped loses nothing but its query.
    pub async fn next(&mut self) -> Result<Change<T>, ConsulError> {
        loop {
            self.pause().await;
            let (blocks, asked_at) = (self.index.to_send().is_some(), Instant::now());
            match self.ask().await {
                Ok(observed) => {
                    self.backoff.reset();
                    self.not_before = None;
                    let step = self.index.observe(observed.index);
                    if blocks && step == Step::Unmoved && self.is_early(asked_at.elapsed()) {
                        self.index.doubt();
                        self.not_before = Some(Instant::now() + self.doubts.next_delay());
                    } else if blocks {
                        self.doubts.reset();
                    }
                    match step {
                        Step::WentBack if blocks => self.cause = Some(Cause::WentBack),
                        Step::WentBack => {
                            self.cause = None;
                            let cause = Cause::WentBack;
                            return Ok(Change { cause, observed });
                        }
                        Step::Unmoved if self.cause.is_none() => {}
                        Step::Unmoved | Step::Moved => {
                            let cause = self.cause.take().unwrap_or(Cause::Moved);
                            return Ok(Change { cause, observed });
                        }
                    }
                }
                Err(error) => {
                    self.index.failed();
                    self.cause.get_or_insert(Cause::Recovered);
                    self.not_before = Some(Instant::now() + self.backoff.next_delay());
                    return Err(error);
                }
            }
        }
    }

    /// Whether a wait ended so soon that it did not end by itself; Consul only ever adds to it.
    fn is_early(&self, elapsed: Duration) -> bool {
        elapsed < self.wait * 7 / 8
    }

    async fn pause(&mut self) {
        let evenly = self
            .spread
            .and_then(|spread| spread.checked_sub(self.interval * (BURST - 1)));
        if let Some(until) = self.not_before.max(evenly) {
            sleep_until(until).await;
        }
        let now = Instant::now();
        self.spread = Some(self.spread.map_or(now, |spread| spread.max(now)) + self.interval);
    }

    async fn ask(&self) -> Result<Observed<T>, ConsulError> {
        let mut request = self.request.clone();
        if let Some(index) = self.index.to_send() {
            request = request.blocking(index, self.wait);
        }
        (self.decode)(self.client.send(&request).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(number: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(number)
    }

    #[test]
    fn the_first_answer_moves_and_the_same_index_does_not() {
        let mut tracker = IndexTracker::default();
        assert_eq!(tracker.to_send(), None);
        assert_eq!(tracker.observe(index(7)), Step::Moved);
        assert_eq!(tracker.to_send(), index(7));
        assert_eq!(tracker.observe(index(7)), Step::Unmoved);
        assert_eq!(tracker.observe(index(9)), Step::Moved);
        assert_eq!(tracker.to_send(), index(9));
    }

    #[test]
    fn an_index_that_goes_back_starts_again() {
        let mut tracker = IndexTracker::default();
        tracker.observe(index(73));
        assert_eq!(tracker.observe(index(33)), Step::WentBack);
        assert_eq!(tracker.to_send(), None);
        // The answer to the query without an index counts, although the index is not new.
        assert_eq!(tracker.observe(index(33)), Step::Moved);
        assert_eq!(tracker.to_send(), index(33));
    }

    #[test]
    fn an_answer_in_doubt_is_compared_with_one_that_is_current() {
        let mut tracker = IndexTracker::default();
        tracker.observe(index(73));
        assert_eq!(tracker.observe(index(73)), Step::Unmoved);
        tracker.doubt();
        assert_eq!(tracker.to_send(), None);
        assert_eq!({ tracker }.observe(index(74)), Step::Moved);
        // That was no restore, and nothing moved.
        assert_eq!({ tracker }.observe(index(73)), Step::Unmoved);
        // What is read now is what the restored store holds: it need not be read again.
        assert_eq!(tracker.observe(index(33)), Step::WentBack);
        assert_eq!(tracker.to_send(), index(33));
        tracker.doubt();
        tracker.failed();
        assert_eq!(tracker.observe(index(33)), Step::Moved, "after a failure");
    }

    #[test]
    fn no_index_counts_as_one() {
        let mut tracker = IndexTracker::default();
        assert_eq!(tracker.observe(None), Step::Moved);
        assert_eq!(tracker.to_send(), index(1));
        assert_eq!(tracker.observe(None), Step::Unmoved);
        tracker.observe(index(5));
        assert_eq!(tracker.observe(None), Step::WentBack);
    }

    #[test]
    fn after_a_failure_the_next_answer_is_wanted_at_once_and_still_compared() {
        let mut tracker = IndexTracker::default();
        tracker.observe(index(73));
        tracker.failed();
        assert_eq!(tracker.to_send(), None);
        assert_eq!({ tracker }.observe(index(73)), Step::Moved);
        assert_eq!(tracker.observe(index(20)), Step::WentBack);
    }

    #[test]
    fn back_off_doubles_up_to_its_cap_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        let ceilings: Vec<_> = std::iter::repeat_with(|| {
            let ceiling = backoff.ceiling();
            assert!(backoff.next_delay() <= ceiling);
            ceiling.as_millis()
        })
        .take(8)
        .collect();
        assert_eq!(ceilings, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        for _ in 0..100 {
            backoff.next_delay();
        }
        assert_eq!(backoff.ceiling(), Duration::from_secs(10));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(250));
    }
}
