//! When the outcome of runs becomes the status of a check. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use crate::model::entry::Health;

/// The runs of one check, as far as they count.
#[derive(Clone, Debug)]
pub struct Tally {
    status: Health,
    /// What was told last, if anything was.
    told: Option<Health>,
    /// Runs in a row that failed.
    failures: u32,
    /// Runs in a row that did not.
    successes: u32,
}

/// How many runs in a row it takes.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// To turn critical.
    pub failures: u32,
    /// To pass or warn.
    pub successes: u32,
}

impl Tally {
    /// Of a check whose status is known to be this one, or of which nothing is known: then it is
    /// critical, as with Consul's own agents.
    #[must_use]
    pub fn new(known: Option<Health>) -> Self {
        Self {
            status: known.unwrap_or(Health::Critical),
            told: None,
            failures: 0,
            successes: 0,
        }
    }

    /// The same of another question: how it is answered is news, whatever was told before.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { told: None, ..self }
    }

    /// Counts a run. Whether its outcome is to be told: it is the status of the check, and was not told
    /// yet.
    pub fn count(&mut self, outcome: Health, thresholds: Thresholds) -> bool {
        if outcome == Health::Critical {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= thresholds.failures {
                self.status = outcome;
            }
        } else {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.status != Health::Critical || self.successes >= thresholds.successes {
                self.status = outcome;
            }
        }
        let tells = self.status == outcome && self.told != Some(outcome);
        if tells {
            self.told = Some(outcome);
        }
        tells
    }
}

#[cfg(test)]
mod tests {
    use super::Health::{Critical, Passing, Warning};
    use super::*;

    fn told(known: Option<Health>, failures: u32, successes: u32, runs: &[Health]) -> Vec<bool> {
        let mut tally = Tally::new(known);
        let thresholds = Thresholds {
            failures,
            successes,
        };
        let count = |run: &Health| tally.count(*run, thresholds);
        runs.iter().map(count).collect()
    }

    #[test]
    fn the_first_status_is_told_and_then_only_changes() {
        let runs = [Passing, Passing, Warning, Critical, Critical, Passing];
        let expected = [true, false, true, true, false, true];
        assert_eq!(told(None, 1, 1, &runs), expected);
        assert_eq!(told(Some(Passing), 1, 1, &runs), expected);
    }

    #[test]
    fn it_takes_so_many_failures_in_a_row_to_turn_critical() {
        let runs = [
            Passing, Critical, Critical, Passing, Critical, Critical, Critical,
        ];
        let expected = [true, false, false, false, false, false, true];
        assert_eq!(told(None, 3, 1, &runs), expected);
    }

    #[test]
    fn it_takes_so_many_successes_in_a_row_to_pass_again() {
        let runs = [Critical, Passing, Critical, Passing, Warning];
        assert_eq!(told(None, 1, 2, &runs), [true, false, false, false, true]);
        // What passes may warn at once, and the other way round.
        assert_eq!(told(Some(Passing), 1, 3, &[Warning, Passing]), [true, true]);
    }

    #[test]
    fn a_failure_below_the_threshold_says_nothing_of_what_is_known() {
        assert_eq!(
            told(Some(Passing), 2, 1, &[Critical, Critical]),
            [false, true]
        );
        assert_eq!(
            told(Some(Critical), 2, 1, &[Critical, Critical]),
            [true, false]
        );
    }
}
