//! What the engine does about changes by other hands.

use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::Engine;
use crate::k8s::EventReason;
use crate::metrics::KindLabel;
use crate::model::key::Key;
use crate::plan::DriftMode;
use crate::status::board::Reason;

impl Engine {
    /// Whether a key that differs from what is wanted is left as it is, because another hand changed
    /// it: for good where that is only to be told, or for a while where two hands fight.
    pub(super) fn leaves_drift(&mut self, key: &Key, due: Due) -> bool {
        let now = Instant::now();
        match self.rules.drift {
            DriftMode::Report => {
                if due.cause >= Cause::Found {
                    self.drifted.remove(key);
                    return false;
                }
                if due.cause == Cause::Drift && self.drifted.insert(key.clone()) {
                    self.tell_drifted(key);
                }
                let left = self.drifted.contains(key);
                if left {
                    let message = format!(
                        "{key} was changed in Consul by another hand, and is left so by --drift report: change \
                         it back, or use repair"
                    );
                    self.trouble(key, Reason::Drifted, message);
                }
                left
            }
            DriftMode::Repair => {
                if due.cause != Cause::Drift {
                    return false;
                }
                let Some((until, repairs)) = self.contests.pause(key, now) else {
                    return false;
                };
                let message = format!(
                    "{key} was repaired {repairs} times of late and changed by another hand again: \
                     find out who writes it; the next repair waits"
                );
                if matches!(key, Key::Node(_)) {
                    // No object of a user's stands for it.
                    self.report
                        .own_event(EventReason::DriftContested, message.clone());
                }
                self.trouble(key, Reason::DriftContested, message);
                self.dirty.park(key, due, until);
                true
            }
        }
    }

    fn tell_drifted(&mut self, key: &Key) {
        let label = KindLabel { kind: key.kind() };
        self.report.metrics.drift.get_or_create(&label).inc();
        tracing::warn!(key = %key, "changed in Consul by another hand, and left so: --drift is report");
        let mut owners = self.index.owners_of(key);
        // Others than those of intentions ask for a whole key: the first one holds it.
        if !matches!(key, Key::Intentions(_)) {
            owners.truncate(1);
        }
        let note =
            format!("{key} was changed or removed in Consul by another hand, and is left so");
        for owner in owners {
            let uid = self.index.uid(&owner);
            self.report
                .event(&owner, uid, EventReason::DriftRepaired, note.clone());
        }
    }
}
