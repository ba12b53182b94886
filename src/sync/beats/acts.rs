//! What became of sessions that were created, renewed or ended.

use tokio::time::Instant;

use super::{TELL_PAUSE, instance_of};
use crate::consul::{ConsulError, ErrorClass};
use crate::heartbeat::pulses::{Act, Outcome, Place};
use crate::model::entry::ALIVE_CHECK_ID;
use crate::model::key::{Key, Place as KeyPlace};
use crate::observed::entry::ObservedCheck;
use crate::status::board::{Reason, Trouble};
use crate::sync::dirty::{Cause, Due};
use crate::sync::engine::Engine;
use crate::sync::sessions::{Acted, Checked};
use crate::sync::wrote::replace;

impl Engine {
    /// A session was created, renewed or ended, or was not.
    pub(in crate::sync) fn absorb_act(&mut self, acted: Acted) {
        let Acted {
            id,
            act,
            outcome,
            error,
            index,
            check,
            at,
        } = acted;
        if let Some(id) = id {
            self.own.finish(id);
            self.beats.changing -= 1;
        }
        self.beats.under_way -= 1;
        let changed = !matches!(outcome, Outcome::Renewed | Outcome::Failed);
        match (&act, &outcome) {
            (Act::Create(..), Outcome::Created(_)) => {
                if let Some(index) = index {
                    self.own.wrote(index);
                }
            }
            (Act::End(..), Outcome::Gone) => self.own.removed(at),
            _ => {}
        }
        let place = act.place().clone();
        if let Outcome::Created(_) | Outcome::Gone = outcome {
            self.see_check(&place, check);
        }
        self.beats
            .pulses
            .done(&act, outcome, at, rand::random::<f64>);
        if changed {
            self.count_sessions();
        }
        if error.is_none() {
            self.beats.refused.remove(&place);
        }
        let Some(beating) = self.beats.of.get(&place).map(|row| row.beating.clone()) else {
            if let Some(error) = error {
                self.tell_failed(&place, &error, at);
            }
            return;
        };
        match error {
            None => self.judge_beat(&place, at),
            Some(error) if error.class() == ErrorClass::AccessDenied => {
                let message = format!(
                    "{}: Consul does not allow its session: give the token session:write on the node {}: {error}",
                    place.check, place.node
                );
                let trouble = Trouble {
                    reason: Reason::AccessDenied,
                    message,
                };
                self.beats.refused.insert(place.clone(), trouble);
                let trouble = self.trouble_of_beat(&place, &beating);
                self.tell_beat(&place, &beating.key, trouble, at);
            }
            Some(error) => self.tell_failed(&place, &error, at),
        }
    }

    /// One line for all that fail together.
    fn tell_failed(&mut self, place: &Place, error: &ConsulError, at: Instant) {
        if self
            .beats
            .told_at
            .is_some_and(|told| at < told + TELL_PAUSE)
        {
            self.beats.untold += 1;
            return;
        }
        self.beats.told_at = Some(at);
        let others = std::mem::take(&mut self.beats.untold);
        tracing::warn!(node = %place.node, check = &*place.check, others, "its session: {error}");
    }

    /// This is what a check is now.
    fn see_check(&mut self, place: &Place, check: Checked) {
        let check = match check {
            Checked::Is(check) => check,
            Checked::Gone => return,
            Checked::Unread => return self.doubt(KeyPlace::Node(place.node.clone())),
        };
        if *place.check == *ALIVE_CHECK_ID {
            let node = self.mirror.node(&place.node);
            if let Some(mut node) = node.filter(|node| node.alive_check().is_some()).cloned() {
                replace(&mut node.checks, ObservedCheck::of(&check, None));
                self.mirror.wrote_node(&place.node, node);
                self.follow_node(&place.node, Instant::now());
            }
            return;
        }
        let Some(key) = instance_of(place) else {
            return;
        };
        let there = self.mirror.instance(&key);
        if let Some(mut there) = there
            .filter(|there| there.check(&place.check).is_some())
            .cloned()
        {
            replace(&mut there.checks, ObservedCheck::of(&check, Some(&key.id)));
            self.mirror.wrote_instance(&key, Some(there));
            let due = Due {
                cause: Cause::Read,
                since: Instant::now(),
            };
            self.dirty.touch(Key::Instance(key), due);
        }
    }
}
