//! When our nodes in Consul are read again, to see what other hands changed. Pure: time is passed in.
//!
//! Consul tells that some service, check or node changed, but not which, and our own writes are
//! among the changes. So a signal that they do not explain starts a sweep over all of our nodes; and
//! while we write ourselves, when a signal can hide another hand's write, one runs every interval
//! all the same. Without a signal there is none: a standing cluster costs nothing.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::names::NodeName;

/// Nodes read a second in a sweep, beyond the first few.
const NODES_PER_SECOND: u32 = 50;
/// Nodes that a sweep reads without pacing.
const BURST: u32 = 16;
/// Shortest time between the starts of sweeps that find nothing, doubled each time up to the interval.
const FIRST_GAP: Duration = Duration::from_millis(500);

/// When our nodes are read again.
#[derive(Debug)]
pub struct Sweeper {
    interval: Duration,
    queue: VecDeque<NodeName>,
    /// How much of the pace is used up: when the queue may go on.
    paced: Option<Instant>,
    /// When a sweep is to start, if one is.
    due: Option<Instant>,
    last_start: Option<Instant>,
    last_signal: Option<Instant>,
    gap: Duration,
}

impl Sweeper {
    /// Sweeps at least every `interval` while there are writes.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            queue: VecDeque::new(),
            paced: None,
            due: None,
            last_start: None,
            last_signal: None,
            gap: Duration::ZERO,
        }
    }

    /// From now on sweeps at least so often while there are writes.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
        self.gap = self.gap.min(interval);
        if let (Some(due), Some(last)) = (self.due, self.last_start) {
            self.due = Some(due.min(last + interval));
        }
    }

    /// Consul told of a change that our writes do not explain.
    pub fn signal(&mut self, now: Instant) {
        let quiet = self
            .last_signal
            .is_none_or(|last| now - last > self.interval);
        if quiet {
            self.gap = Duration::ZERO;
        }
        self.last_signal = Some(now);
        let earliest = self.last_start.map_or(now, |last| last + self.gap);
        self.schedule(earliest.max(now));
    }

    /// We wrote: for a while, a signal can hide another hand's write.
    pub fn wrote(&mut self, now: Instant) {
        if self.due.is_none() {
            self.schedule(now + self.interval);
        }
    }

    fn schedule(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Whether a sweep is to start now; one that is under way is finished first.
    #[must_use]
    pub fn should_start(&self, now: Instant) -> bool {
        self.queue.is_empty() && self.due.is_some_and(|due| due <= now)
    }

    /// A sweep starts over these nodes.
    pub fn start(&mut self, now: Instant, nodes: impl Iterator<Item = NodeName>) {
        self.due = None;
        self.last_start = Some(now);
        self.gap = (self.gap * 2).clamp(FIRST_GAP, self.interval.max(FIRST_GAP));
        self.queue.extend(nodes);
        let burst = Duration::from_secs(1) * BURST / NODES_PER_SECOND;
        self.paced = now.checked_sub(burst);
    }

    /// A sweep found something: signals are worth following at once.
    pub fn found(&mut self) {
        self.gap = Duration::ZERO;
    }

    /// The next node to read, if one may be read now.
    pub fn next_node(&mut self, now: Instant) -> Option<NodeName> {
        if self.paced.is_some_and(|paced| paced > now) {
            return None;
        }
        let node = self.queue.pop_front()?;
        self.paced = self
            .paced
            .map(|paced| paced + Duration::from_secs(1) / NODES_PER_SECOND);
        Some(node)
    }

    /// When there is something to do next.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if self.queue.is_empty() {
            self.due
        } else {
            self.paced
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn nodes(count: usize) -> impl Iterator<Item = NodeName> {
        let name = |n| NodeName::for_kubernetes(&"a".parse().unwrap(), &format!("n{n}"));
        (0..count).map(name)
    }

    #[test]
    fn without_a_signal_there_is_no_sweep() {
        let sweeper = Sweeper::new(INTERVAL);
        assert_eq!(sweeper.wake_at(), None);
    }

    #[test]
    fn the_first_signal_starts_one_at_once() {
        let (mut sweeper, now) = (Sweeper::new(INTERVAL), Instant::now());
        sweeper.signal(now);
        assert!(sweeper.should_start(now));
    }

    #[test]
    fn our_own_writes_start_one_after_the_interval() {
        let (mut sweeper, now) = (Sweeper::new(INTERVAL), Instant::now());
        sweeper.wrote(now);
        sweeper.wrote(now + INTERVAL / 2);
        assert!(!sweeper.should_start(now + INTERVAL / 2));
        assert!(sweeper.should_start(now + INTERVAL));
        sweeper.start(now + INTERVAL, nodes(0));
        assert_eq!(sweeper.wake_at(), None);
    }

    #[test]
    fn signals_without_end_do_not_mean_sweeps_without_end() {
        let (mut sweeper, begin) = (Sweeper::new(INTERVAL), Instant::now());
        let mut starts = 0;
        for tick in 0..600 {
            let now = begin + Duration::from_millis(100) * tick;
            sweeper.signal(now);
            if sweeper.should_start(now) {
                sweeper.start(now, nodes(0));
                starts += 1;
            }
        }
        assert!((6..=12).contains(&starts), "{starts} in a minute");
        // What is found makes the next signal count at once.
        let now = begin + Duration::from_mins(1);
        sweeper.found();
        sweeper.signal(now);
        assert!(sweeper.should_start(now));
    }

    #[test]
    fn nodes_are_paced_after_a_burst() {
        let (mut sweeper, begin) = (Sweeper::new(INTERVAL), Instant::now());
        sweeper.start(begin, nodes(116));
        let mut read = 0;
        while sweeper.next_node(begin).is_some() {
            read += 1;
        }
        assert_eq!(read, 17);
        assert!(!sweeper.should_start(begin));
        let later = begin + Duration::from_secs(2);
        while sweeper.next_node(later).is_some() {
            read += 1;
        }
        assert_eq!(read, 116);
    }
}
