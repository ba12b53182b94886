//! Two hands that fight over an entry: each repair is undone by another controller, a script, a second
//! Lictor. Repairing ever again would only load Consul, so that the pauses between repairs grow. Pure:
//! time is passed in.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::backoff;
use crate::model::key::Key;

/// A key that was left alone for so long is not fought over any more.
const PEACE: Duration = Duration::from_mins(10);
/// Repairs that are made without a pause.
const AT_ONCE: u32 = 3;
/// The first pause; doubled with each further repair.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// How often keys were repaired of late.
#[derive(Debug, Default)]
pub struct Contests {
    keys: HashMap<Key, Fight>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Fight {
    repairs: u32,
    last: Instant,
}

impl Contests {
    /// What another hand did to the key was undone.
    pub fn repaired(&mut self, key: &Key, now: Instant) {
        if self.swept.is_none_or(|at| now - at >= PEACE) {
            self.keys.retain(|_, fight| now - fight.last < PEACE);
            self.swept = Some(now);
        }
        let fight = self.keys.entry(key.clone()).or_insert(Fight {
            repairs: 0,
            last: now,
        });
        if now - fight.last >= PEACE {
            fight.repairs = 0;
        }
        fight.repairs += 1;
        fight.last = now;
    }

    /// Until when the key is to be left alone, and how often it was repaired, if it is fought over.
    #[must_use]
    pub fn pause(&self, key: &Key, now: Instant) -> Option<(Instant, u32)> {
        let fight = self.keys.get(key)?;
        let beyond = fight.repairs.checked_sub(AT_ONCE)?;
        let pause = backoff::ceiling(FIRST_PAUSE, beyond, LONGEST_PAUSE);
        let until = fight.last + pause;
        (until > now).then_some((until, fight.repairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::NodeName;

    fn key() -> Key {
        Key::Node(NodeName::external(&"a".parse().unwrap()))
    }

    #[test]
    fn a_fight_is_slowed_down_more_and_more() {
        let (mut contests, mut now) = (Contests::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            contests.repaired(&key(), now);
            let until = contests.pause(&key(), now).map_or(now, |(until, _)| until);
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(&pauses[..6], [0, 0, 5, 10, 20, 40]);
        assert_eq!(pauses[11], LONGEST_PAUSE.as_secs());
    }

    #[test]
    fn a_repair_now_and_then_is_no_fight() {
        let (mut contests, mut now) = (Contests::default(), Instant::now());
        for _ in 0..12 {
            contests.repaired(&key(), now);
            assert_eq!(contests.pause(&key(), now), None);
            now += PEACE;
        }
        assert_eq!(contests.keys.len(), 1);
    }
}
