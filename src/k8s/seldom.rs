//! Telling now and then of what fails all the time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one line through now and then, and counts those that it does not.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    left_out: usize,
}

impl Seldom {
    /// Whether to tell now; if so, how many were left out since the last time.
    pub(super) fn lets(&self, now: Instant) -> Option<usize> {
        // The state is whole after every statement, so a panic elsewhere does not spoil it.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now < last + PAUSE) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_let_through_with_how_many_there_were() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let told = (0..1_000).filter_map(|step| seldom.lets(start + PAUSE * step / 100));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [0, 99, 99, 99, 99, 99, 99, 99, 99, 99]
        );
    }
}
