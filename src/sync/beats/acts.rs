//! What became of sessions that were created, renewed or ended.

use tokio::time::Instant;

use super::{TELL_PAUSE, instance_of};
use crate::consul::{ConsulError, ErrorClass};
use crate::heartbeat::pulses::{Act, Outcome, Place};
use crate::k8s::EventReason;
use crate::model::entry::ALIVE_CHECK_ID;
use crate::model::key::{Key, Place as KeyPlace};
use crate::observed::entry::ObservedCheck;
use crate::status::board::{Reason, Trouble, beside};
use crate::sync::dirty::{Cause, Due};
use crate::sync::engine::Engine;
use crate::sync::sessions::{Acted, Checked};
use crate::sync::wrote::replace;

impl Engine {
    /// A session was created, renewed or ended, or was not.
    pub(in crate::sync) fn absorb_act(&mut self, acted: Acted) {
        let Acted {
            id,
            begun,
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
        match (&begun.act, &outcome) {
            (Act::Create(..), Outcome::Created(_)) => {
                if let Some(index) = index {
                    self.own.wrote(index);
                }
            }
            (Act::End(..), Outcome::Gone) => self.own.removed(at),
            _ => {}
        }
        // Where the epoch kept it back Consul was not asked, and said nothing.
        let took = !matches!(outcome, Outcome::Failed | Outcome::Lost);
        let place = begun.act.place().clone();
        if let Outcome::Created(_) | Outcome::Gone = outcome {
            self.see_check(&place, check);
        }
        self.beats
            .pulses
            .done(&begun, outcome, at, rand::random::<f64>);
        if changed {
            self.count_sessions();
        }
        let is_own = *place.check == *ALIVE_CHECK_ID;
        if took {
            self.beats.refused.remove(&place);
            if is_own {
                self.beats.denied.remove(&place.node);
            }
        }
        let Some(beating) = self.beats.of.get(&place).map(|row| row.beating.clone()) else {
            match error {
                Some(error) if is_own && error.class() == ErrorClass::AccessDenied => {
                    self.deny_own(&place, &error);
                }
                Some(error) => self.tell_failed(&place, &error, at),
                None => {}
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

    /// Consul does not allow the session of Lictor's own check. No object stands for it: it is told once for
    /// all nodes, on Lictor's own pod.
    fn deny_own(&mut self, place: &Place, error: &ConsulError) {
        // Its node may have gone meanwhile, or another process writes: nobody would take it back.
        if !self.beats.leads || !self.beats.pulses.follows(place) {
            return;
        }
        let began = self.beats.denied.is_empty();
        let why = error.to_string();
        self.beats.denied.insert(place.node.clone(), why);
        if let Some(note) = self.own_denied().filter(|_| began) {
            tracing::warn!(reason = "ConsulRefused", "{note}");
            self.report.own_event(EventReason::ConsulRefused, note);
        }
    }

    /// That Consul does not allow the sessions of Lictor's own checks, if it does not.
    pub(in crate::sync) fn own_denied(&self) -> Option<String> {
        let denied = &self.beats.denied;
        let (node, why) = denied.first_key_value()?;
        let message = format!(
            "--dead-after: Consul does not allow the session of {ALIVE_CHECK_ID} on the node {node}, which \
             stays passing if Lictor dies: give the token session:write there: {why}"
        );
        Some(beside(&message, denied.len() - 1))
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
