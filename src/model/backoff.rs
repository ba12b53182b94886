//! How long to wait after failures. Pure: chance is passed in.

use std::time::Duration;

/// The longest wait after so many failures before this one: doubled each time, up to `most`.
#[must_use]
pub fn ceiling(first: Duration, failures: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// A wait of up to `ceiling`. `chance` is from 0 to 1: full jitter spreads those who failed together.
#[must_use]
pub fn jittered(ceiling: Duration, chance: f64) -> Duration {
    ceiling.mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_chance_shortens_them() {
        let (first, most) = (Duration::from_secs(1), Duration::from_mins(1));
        let waits = [0, 1, 5, 6, u32::MAX].map(|failures| ceiling(first, failures, most).as_secs());
        assert_eq!(waits, [1, 2, 32, 60, 60]);
        assert_eq!(jittered(most, 0.5), most / 2);
        assert_eq!(jittered(most, 7.0), most);
    }
}
