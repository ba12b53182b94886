//! What the engine makes of the outcomes of its writes.

use rand::Rng as _;
use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::{Engine, LostRemoval, Written};
use crate::consul::{ConsulError, ErrorClass, TxnError, TxnFailure, TxnOutcome, TxnResult};
use crate::metrics::KindLabel;
use crate::model::key::{InstanceKey, Key, Place};
use crate::model::names::NodeName;
use crate::model::text::Text;
use crate::observed::entry::{ObservedCheck, ObservedInstance, ObservedNode};
use crate::plan::{InstanceWrite, NodeWrite, Removal, Step};
use crate::status::board::{CHANGE, GRANT, Reason, Trouble};

impl Engine {
    pub(super) fn absorb_write(
        &mut self,
        epoch: u64,
        steps: Vec<Written>,
        outcome: Result<TxnOutcome, ConsulError>,
        at: Instant,
    ) {
        for step in &steps {
            self.dirty.finish(&step.key);
        }
        match outcome {
            // It may have been undone since: by the restore of a snapshot, or by whoever took over.
            Ok(TxnOutcome::Applied(_)) if self.fence.index() != Some(epoch) => {
                for step in steps {
                    self.count(&step.step, "ok");
                    self.lost_removal(&step, epoch);
                    self.doubt(step.key.place());
                    self.again(step);
                }
            }
            Ok(TxnOutcome::Applied(results)) => {
                self.writable();
                self.sweeper.wrote(at);
                for step in steps {
                    let results = &results[step.ops.clone()];
                    self.count(&step.step, "ok");
                    self.applied(step.key, step.step, step.tag, results, (at, epoch));
                }
            }
            Ok(TxnOutcome::Fenced { what, reason }) => {
                tracing::warn!(epoch, "the transaction was fenced off: {what}");
                self.fence.failed(epoch, reason);
                if self.fence.index() == Some(epoch) {
                    self.write_failed_for(&format!("the epoch may not be read: {what}"));
                }
                for step in steps {
                    self.count(&step.step, "fenced");
                    self.again(step);
                }
            }
            Ok(TxnOutcome::RolledBack(errors)) => {
                self.writable();
                self.rolled_back(steps, &errors);
            }
            Err(error) => self.write_failed(steps, epoch, &error),
        }
    }

    fn applied(
        &mut self,
        key: Key,
        step: Step,
        due: Due,
        results: &[TxnResult],
        (at, epoch): (Instant, u64),
    ) {
        self.alone.remove(&key);
        self.allowed(&key, at);
        if results.contains(&TxnResult::Dropped) {
            // The entry that the check belongs to went meanwhile.
            self.doubt(key.place());
            let cause = due.cause.max(Cause::Drift);
            self.dirty.touch(key, Due { cause, ..due });
            return;
        }
        if due.cause >= Cause::Found {
            self.report
                .metrics
                .propagation
                .observe((at - due.since).as_secs_f64());
        }
        let rest = match &step {
            Step::Put(write) => write.rest,
            Step::PutNode(write) => write.rest,
            _ => false,
        };
        let drift = due.cause == Cause::Drift;
        if drift {
            let label = KindLabel { kind: key.kind() };
            self.report.metrics.drift.get_or_create(&label).inc();
            self.contests.repaired(&key, at);
            self.sweeper.found();
        }
        match (&key, step) {
            (Key::Node(name), Step::PutNode(write)) => {
                self.applied_node(name, &write, results);
                self.node_troubles.remove(name);
                self.told_of_nodes.remove(name);
                tracing::info!(key = %name, "node written");
                self.look_again_on(name);
                self.go_on(&key.place());
            }
            (Key::Instance(key), Step::Put(write)) => {
                let index = self.applied_instance(key, &write, results);
                if write.creates() {
                    self.rules.guard.restored(&Key::Instance(key.clone()));
                }
                self.tell_written(key, &write, drift, index);
                self.occupied(&key.node, at);
            }
            (Key::Instance(instance), Step::Remove(removal)) => {
                self.mirror.wrote_instance(instance, None);
                self.own.removed(at);
                self.lost_removals.remove(&key);
                self.removed(instance, &removal, epoch, at);
                self.occupied(&instance.node, at);
            }
            (Key::Node(name), Step::RemoveNode(index)) => {
                self.mirror.removed_node(name);
                self.own.removed(at);
                self.lost_removals.remove(&key);
                self.rules.vacancies.dismiss(name);
                Self::tell_node_removed(name, index, epoch);
            }
            _ => {}
        }
        let written = Due {
            cause: Cause::Written,
            since: at,
        };
        self.dirty.touch(key, if rest { due } else { written });
    }

    fn applied_node(&mut self, name: &NodeName, write: &NodeWrite, results: &[TxnResult]) {
        let before = self.mirror.node(name);
        let mut checks = before.map(|node| node.checks.clone()).unwrap_or_default();
        let mut node = before.cloned();
        for result in results {
            match result {
                TxnResult::Node(written) => {
                    self.own.wrote(written.modify_index);
                    let mut written = ObservedNode::of(written);
                    if let Some((wanted, _)) = &write.node
                        && written.node == *wanted
                    {
                        // Texts that are shared with what is wanted take no memory of their own.
                        written.node = wanted.clone();
                    }
                    node = Some(written);
                }
                TxnResult::Check(check) => {
                    self.own.wrote(check.modify_index);
                    replace(&mut checks, ObservedCheck::of(check, None));
                }
                _ => {}
            }
        }
        if let Some(mut node) = node {
            let removed = |id: &Text| write.surplus.iter().any(|(surplus, _)| surplus == id);
            checks.retain(|check| !removed(&check.id));
            node.checks = checks;
            self.mirror.wrote_node(name, node);
        }
    }

    fn applied_instance(
        &mut self,
        key: &InstanceKey,
        write: &InstanceWrite,
        results: &[TxnResult],
    ) -> u64 {
        let before = self.mirror.instance(key);
        let mut checks = before
            .map(|instance| instance.checks.clone())
            .unwrap_or_default();
        let mut instance = before.cloned();
        let mut index = 0;
        for result in results {
            match result {
                TxnResult::Service(written) => {
                    index = index.max(written.modify_index);
                    let mut written = ObservedInstance::of(written);
                    if let Some((wanted, _)) = &write.service
                        && written.service == *wanted
                    {
                        written.service = wanted.clone();
                    }
                    instance = Some(written);
                }
                TxnResult::Check(check) => {
                    index = index.max(check.modify_index);
                    let mut written = ObservedCheck::of(check, Some(&key.id));
                    let mut wanted = write.checks.iter().map(|it| &it.check);
                    if let Some(wanted) = wanted.find(|wanted| written.check == **wanted) {
                        written.check = wanted.clone();
                    }
                    replace(&mut checks, written);
                }
                _ => {}
            }
        }
        self.own.wrote(index);
        if let Some(mut instance) = instance {
            let removed = |id: &Text| write.surplus.iter().any(|(surplus, _)| surplus == id);
            checks.retain(|check| !removed(&check.id));
            instance.checks = checks;
            self.mirror.wrote_instance(key, Some(instance));
        }
        index
    }

    /// The removal of an instance was carried out.
    pub(super) fn removed(
        &mut self,
        key: &InstanceKey,
        removal: &Removal,
        epoch: u64,
        at: Instant,
    ) {
        if removal.why.is_found() {
            self.rules.guard.removed(&Key::Instance(key.clone()), at);
        }
        self.tell_removed(key, removal, epoch);
    }

    /// Something came onto a node or went from it: when it was empty last counts for its own end.
    pub(super) fn occupied(&mut self, node: &NodeName, now: Instant) {
        let empty = self.mirror.on_node(node).next().is_none();
        if empty || self.rules.vacancies.knows(node) {
            let due = Due {
                cause: Cause::Read,
                since: now,
            };
            self.dirty.touch(Key::Node(node.clone()), due);
        }
    }

    /// Nodes that were empty long enough are planned again.
    pub(super) fn ripen_vacancies(&mut self, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for node in self.rules.vacancies.ripen(now) {
            self.dirty.touch(Key::Node(node), due);
        }
    }

    /// Keys that waited for their place are planned again.
    pub(super) fn go_on(&mut self, place: &Place) {
        for (key, due) in self.waiting.remove(place).unwrap_or_default() {
            self.dirty.touch(key, due);
        }
    }

    /// A step that was not carried out, through no fault of its own, is planned again.
    pub(super) fn again(&mut self, step: Written) {
        if let Key::Node(_) = &step.key {
            self.go_on(&step.key.place());
        }
        self.dirty.touch(step.key, step.tag);
    }

    fn rolled_back(&mut self, steps: Vec<Written>, errors: &[TxnError]) {
        for step in steps {
            let at_fault = |error: &&TxnError| step.ops.contains(&error.op_index);
            let Some(error) = errors.iter().find(at_fault) else {
                self.again(step);
                continue;
            };
            self.count(&step.step, outcome_of(error.reason));
            match error.reason {
                TxnFailure::PermissionDenied => {
                    let message = format!("Consul denies the write: {}; {GRANT}", error.what);
                    self.give_up(&step, Reason::AccessDenied, message);
                }
                TxnFailure::Refused => {
                    let message = format!("Consul refuses the entry: {}; {CHANGE}", error.what);
                    self.give_up(&step, Reason::ConsulRefused, message);
                }
                _ => {
                    // What is there is read, and planned with.
                    tracing::debug!(key = %step.key, "planned on old knowledge: {}", error.what);
                    self.doubt(step.key.place());
                    let chance = rand::rng().random::<f64>();
                    self.dirty
                        .stumble(&step.key, step.tag, Instant::now(), chance);
                }
            }
        }
    }

    fn write_failed(&mut self, steps: Vec<Written>, epoch: u64, error: &ConsulError) {
        let class = error.class();
        let refused = matches!(class, ErrorClass::Refused | ErrorClass::AccessDenied);
        if !refused {
            self.write_failed_for(&format!("cannot write to Consul: {error}"));
        }
        if class == ErrorClass::SlowDown {
            self.pace.slow_down(Instant::now());
        }
        let single = steps.len() == 1;
        for step in steps {
            self.count(&step.step, class.as_str());
            if class.may_be_applied() {
                self.lost_removal(&step, epoch);
            }
            if class.may_be_applied() || class == ErrorClass::Conflict {
                self.doubt(step.key.place());
            }
            if !refused {
                let message =
                    format!("Consul did not take the write yet: {error}; it is tried again");
                self.trouble(&step.key, Reason::ConsulUnavailable, message);
                self.again(step);
            } else if single {
                let reason = match class {
                    ErrorClass::AccessDenied => Reason::AccessDenied,
                    _ => Reason::ConsulRefused,
                };
                let remedy = match reason {
                    Reason::AccessDenied => GRANT,
                    _ => CHANGE,
                };
                let message = format!("Consul refuses the write: {error}; {remedy}");
                self.give_up(&step, reason, message);
            } else {
                // Which of the steps is at fault cannot be told: each is tried alone.
                self.alone.insert(step.key.clone());
                self.again(step);
            }
        }
    }

    /// It is not known whether a removal was carried out: if it was, that is told once it is read.
    fn lost_removal(&mut self, step: &Written, epoch: u64) {
        let removal = match &step.step {
            Step::Remove(removal) => LostRemoval::Instance(removal.clone(), epoch),
            Step::RemoveNode(index) => LostRemoval::Node(*index, epoch),
            _ => return,
        };
        self.lost_removals.insert(step.key.clone(), removal);
    }

    /// It is not known what stands there: it is read before anything there is planned.
    pub(super) fn doubt(&mut self, place: Place) {
        match place {
            Place::Node(node) => {
                self.mirror.doubt(&node);
                self.unread.insert(node);
            }
            Place::Table(table) => self.mirror.doubt_table(table),
        }
    }

    fn give_up(&mut self, step: &Written, reason: Reason, message: String) {
        self.penalise(&step.key, step.tag);
        if reason == Reason::AccessDenied {
            self.denied.insert(step.key.clone());
        }
        match &step.key {
            Key::Node(node) => {
                self.tell_node(node, reason, &message);
                let trouble = Trouble { reason, message };
                self.node_troubles.insert(node.clone(), trouble);
                self.go_on(&step.key.place());
            }
            _ => self.trouble(&step.key, reason, message),
        }
    }

    /// A write was acknowledged, and yet something is left to do: Consul stored it otherwise, or
    /// another hand changed it at once. Trying again without end would help nobody.
    pub(super) fn contested(&mut self, key: &Key, due: Due, step: &Step) {
        tracing::warn!(key = %key, "Consul does not hold what was written: {step:?}");
        let due = Due {
            cause: Cause::Read,
            ..due
        };
        self.penalise(key, due);
    }

    pub(super) fn penalise(&mut self, key: &Key, due: Due) {
        let chance = rand::rng().random::<f64>();
        self.dirty.penalise(key, due, Instant::now(), chance);
    }

    /// A write of a key that was denied is allowed now: so may be those of the others.
    pub(super) fn allowed(&mut self, key: &Key, now: Instant) {
        if !self.denied.remove(key) {
            return;
        }
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for key in std::mem::take(&mut self.denied) {
            self.dirty.absolve(&key);
            self.dirty.touch(key, due);
        }
    }
}

/// Puts a check in the place of the one of the same id; they are sorted by it.
/// Puts a check in the place of the one of its id.
pub(super) fn replace(checks: &mut Vec<ObservedCheck>, check: ObservedCheck) {
    match checks.binary_search_by(|known| known.id.cmp(&check.id)) {
        Ok(at) => checks[at] = check,
        Err(at) => checks.insert(at, check),
    }
}

fn outcome_of(failure: TxnFailure) -> &'static str {
    match failure {
        TxnFailure::PermissionDenied => "denied",
        TxnFailure::Refused => "refused",
        _ => "conflict",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::CheckKind;

    #[test]
    fn a_check_is_replaced_by_its_id() {
        let id = CheckKind::Readiness.id(&crate::model::names::InstanceId::observed("a.b.c.d"));
        let check = |modify_index| ObservedCheck {
            id: id.as_str().into(),
            check: crate::model::entry::Check {
                status: crate::model::entry::Health::Passing,
                output: "".into(),
            },
            well_formed: true,
            protocol: None,
            definition: None,
            modify_index,
        };
        let mut checks = vec![check(1)];
        replace(&mut checks, check(2));
        assert_eq!(checks, [check(2)]);
    }
}
