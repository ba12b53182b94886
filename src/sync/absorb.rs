//! What the engine makes of the outcomes of its reads and writes.

use std::collections::BTreeSet;

use rand::Rng as _;
use tokio::time::Instant;

use super::apply::{Done, Nodes, ReadError};
use super::dirty::{Cause, Due};
use super::engine::{Engine, Written};
use super::report::subject;
use crate::consul::{ConsulError, ErrorClass, TxnError, TxnFailure, TxnOutcome, TxnResult};
use crate::desired::claim::Freeze;
use crate::k8s::EventReason;
use crate::metrics::{KindLabel, OperationLabels};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks::Standing as Mark;
use crate::model::names::NodeName;
use crate::observed::entry::{ObservedCheck, ObservedInstance, ObservedNode};
use crate::observed::mirror::{Completeness, NodeContent, Ticket};
use crate::plan::gate::Why;
use crate::plan::{Finding, InstanceWrite, NodeWrite, Removal, Step};
use crate::status::board::{Reason, Standing, Trouble};

impl Engine {
    pub(super) fn absorb(&mut self, done: Done) {
        match done {
            Done::Wrote {
                id,
                steps,
                outcome,
                at,
            } => {
                self.absorb_write(steps, outcome, at);
                self.own.finish(id);
            }
            Done::Listed { ticket, nodes } => self.absorb_list(ticket, nodes),
            Done::Read {
                ticket,
                name,
                content,
            } => self.absorb_read(ticket, name, content),
        }
    }

    // === reads ===

    fn absorb_list(&mut self, ticket: Ticket, nodes: Result<Nodes, ReadError>) {
        self.reads -= 1;
        self.listing = false;
        let nodes = match nodes {
            Ok(nodes) => nodes,
            Err(error) => {
                self.mirror.abandon_read(ticket);
                self.read_failed(&error);
                if self.loading.is_some() {
                    self.sweeper.signal(Instant::now());
                }
                return;
            }
        };
        self.readable();
        let (nodes, datacenter) = nodes;
        if datacenter.is_some() {
            self.report.datacenter = datacenter;
        }
        let changed = self.mirror.finish_list(ticket, &nodes, self.dirty.busy());
        self.changed(changed);
        if self.loading.is_none() {
            self.loading = Some(nodes.clone());
            self.unread.extend(nodes);
            self.loaded();
        } else {
            let known = |node: &NodeName| self.mirror.node(node).is_some();
            let unknown: Vec<_> = nodes.into_iter().filter(|node| !known(node)).collect();
            self.unread.extend(unknown);
        }
    }

    fn absorb_read(
        &mut self,
        ticket: Ticket,
        name: NodeName,
        content: Result<NodeContent, ReadError>,
    ) {
        self.reads -= 1;
        match content {
            Ok(content) => {
                self.readable();
                let datacenter = content.node.as_ref().map(|node| &*node.datacenter);
                if let Some(datacenter) = datacenter.filter(|name| !name.is_empty())
                    && self.report.datacenter.is_none()
                {
                    self.report.datacenter = Some(datacenter.to_owned());
                }
                let changed = self
                    .mirror
                    .finish_read(ticket, &name, &content, self.dirty.busy());
                if let Some(loading) = &mut self.loading {
                    loading.remove(&name);
                }
                self.changed(changed);
                self.loaded();
                self.go_on(&name);
            }
            Err(error) => {
                self.mirror.abandon_read(ticket);
                self.unread.insert(name);
                self.read_failed(&error);
            }
        }
    }

    /// Whether the first snapshot is complete, and if so, everything is planned.
    fn loaded(&mut self) {
        let complete = self.loading.as_ref().is_some_and(BTreeSet::is_empty);
        if complete && self.mirror.completeness() == Completeness::Unknown {
            self.mirror.complete();
            tracing::info!(
                nodes = self.mirror.owned_nodes(),
                instances = self.mirror.owned_instances(),
                "Consul is known"
            );
            self.touch_all(Cause::Read, Instant::now());
        }
    }

    /// Keys that a read found other than they were known.
    fn changed(&mut self, keys: Vec<Key>) {
        if self.mirror.completeness() == Completeness::Unknown || keys.is_empty() {
            return;
        }
        let due = Due {
            cause: Cause::Drift,
            since: Instant::now(),
        };
        for key in keys {
            if let Key::Node(node) = &key {
                self.look_again_on(node);
                self.try_again_on(node);
            }
            self.dirty.touch(key, due);
        }
    }

    /// What is claimed on a node and not there may have been kept away by the node's holder.
    fn try_again_on(&mut self, node: &NodeName) {
        let due = Due {
            cause: Cause::Read,
            since: Instant::now(),
        };
        for key in self.index.claimed_on(node) {
            if self.mirror.instance(key).is_none() {
                self.dirty.touch(Key::Instance(key.clone()), due);
            }
        }
    }

    /// The health of a node counts for its instances: how they stand is worked out again.
    fn look_again_on(&mut self, node: &NodeName) {
        let due = Due {
            cause: Cause::Written,
            since: Instant::now(),
        };
        let keys: Vec<_> = self
            .mirror
            .on_node(node)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.dirty.touch(Key::Instance(key), due);
        }
    }

    pub(super) fn answered(&mut self) {
        if self.outage.reason().is_some() {
            tracing::info!("Consul answers again");
            self.outage.over();
        }
    }

    /// A read was answered with authority.
    fn readable(&mut self) {
        self.answered();
        if self.unreadable.reason().is_some() {
            tracing::info!("Consul can be read again");
            self.unreadable.over();
        }
    }

    fn read_failed(&mut self, error: &ReadError) {
        let reason = format!("cannot read Consul: {error}");
        match error {
            ReadError::Failed(_) => self.failed(&reason),
            ReadError::NotAuthoritative(_) => {
                if self.unreadable.reason() != Some(&*reason) {
                    tracing::warn!("{reason}");
                }
                let chance = rand::rng().random::<f64>();
                self.unreadable.failed(reason, Instant::now(), chance);
            }
        }
    }

    pub(super) fn failed(&mut self, reason: &str) {
        if self.outage.reason() != Some(reason) {
            tracing::warn!("{reason}");
        }
        let chance = rand::rng().random::<f64>();
        self.outage
            .failed(reason.to_owned(), Instant::now(), chance);
    }

    // === writes ===

    fn absorb_write(
        &mut self,
        steps: Vec<Written>,
        outcome: Result<TxnOutcome, ConsulError>,
        at: Instant,
    ) {
        for step in &steps {
            self.dirty.finish(&step.key);
        }
        match outcome {
            Ok(TxnOutcome::Applied(results)) => {
                self.answered();
                self.sweeper.wrote(at);
                for step in steps {
                    let results = &results[step.ops.clone()];
                    self.count(&step.step, "ok");
                    self.applied(step.key, step.step, step.tag, results, at);
                }
            }
            Ok(TxnOutcome::Fenced { what, .. }) => {
                self.failed(&format!("the transaction was fenced off: {what}"));
                for step in steps {
                    self.count(&step.step, "fenced");
                    self.again(step);
                }
            }
            Ok(TxnOutcome::RolledBack(errors)) => {
                self.answered();
                self.rolled_back(steps, &errors);
            }
            Err(error) => self.write_failed(steps, &error),
        }
    }

    fn applied(&mut self, key: Key, step: Step, due: Due, results: &[TxnResult], at: Instant) {
        self.alone.remove(&key);
        if results.contains(&TxnResult::Dropped) {
            // The entry that the check belongs to went meanwhile.
            self.doubt(key.node().clone());
            let cause = due.cause.max(Cause::Drift);
            self.dirty.touch(key, Due { cause, ..due });
            return;
        }
        if due.cause == Cause::Kubernetes {
            self.report
                .metrics
                .propagation
                .observe((at - due.since).as_secs_f64());
        }
        let drift = due.cause == Cause::Drift;
        if drift {
            let label = KindLabel { kind: key.kind() };
            self.report.metrics.drift.get_or_create(&label).inc();
            self.sweeper.found();
        }
        match (&key, step) {
            (Key::Node(name), Step::PutNode(write)) => {
                self.applied_node(name, &write, results);
                self.node_troubles.remove(name);
                tracing::info!(key = %name, "node written");
                self.look_again_on(name);
                self.go_on(name);
            }
            (Key::Instance(key), Step::Put(write)) => {
                let index = self.applied_instance(key, &write, results);
                self.tell_written(key, &write, drift, index);
            }
            (Key::Instance(key), Step::Remove(removal)) => {
                self.mirror.wrote_instance(key, None);
                self.own.removed(at);
                self.tell_removed(key, &removal);
            }
            _ => {}
        }
        self.dirty.touch(
            key,
            Due {
                cause: Cause::Written,
                since: at,
            },
        );
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
                    if let Some((wanted, _)) = &write.check
                        && written.check == *wanted
                    {
                        written.check = wanted.clone();
                    }
                    replace(&mut checks, written);
                }
                _ => {}
            }
        }
        self.own.wrote(index);
        if let Some(mut instance) = instance {
            instance.checks = checks;
            self.mirror.wrote_instance(key, Some(instance));
        }
        index
    }

    /// Keys that waited for their node are planned again.
    pub(super) fn go_on(&mut self, node: &NodeName) {
        for (key, due) in self.on_node.remove(node).unwrap_or_default() {
            self.dirty.touch(key, due);
        }
    }

    /// A step that was not carried out, through no fault of its own, is planned again.
    fn again(&mut self, step: Written) {
        if let Key::Node(node) = &step.key {
            self.go_on(node);
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
                    let message = format!("Consul denies the write: {}", error.what);
                    self.give_up(&step, Reason::AccessDenied, message);
                }
                TxnFailure::Refused => {
                    let message = format!("Consul refuses the entry: {}", error.what);
                    self.give_up(&step, Reason::ConsulRefused, message);
                }
                _ => {
                    // What is there is read, and planned with.
                    tracing::debug!(key = %step.key, "planned on old knowledge: {}", error.what);
                    self.doubt(step.key.node().clone());
                    self.dirty.stumble(&step.key, step.tag, Instant::now());
                }
            }
        }
    }

    fn write_failed(&mut self, steps: Vec<Written>, error: &ConsulError) {
        let class = error.class();
        let refused = matches!(class, ErrorClass::Refused | ErrorClass::AccessDenied);
        if !refused {
            self.failed(&format!("cannot write to Consul: {error}"));
        }
        let single = steps.len() == 1;
        for step in steps {
            self.count(&step.step, class.as_str());
            if class.may_be_applied() || class == ErrorClass::Conflict {
                self.doubt(step.key.node().clone());
            }
            if !refused {
                let message = format!("Consul did not take the write yet: {error}");
                self.trouble(&step.key, Reason::ConsulUnavailable, message);
                self.again(step);
            } else if single {
                let reason = match class {
                    ErrorClass::AccessDenied => Reason::AccessDenied,
                    _ => Reason::ConsulRefused,
                };
                self.give_up(&step, reason, format!("Consul refuses the write: {error}"));
            } else {
                // Which of the steps is at fault cannot be told: each is tried alone.
                self.alone.insert(step.key.clone());
                self.again(step);
            }
        }
    }

    /// It is not known what stands on the node: it is read before anything on it is planned.
    fn doubt(&mut self, node: NodeName) {
        self.mirror.doubt(&node);
        self.unread.insert(node);
    }

    fn give_up(&mut self, step: &Written, reason: Reason, message: String) {
        let now = Instant::now();
        self.dirty.penalise(&step.key, step.tag, now);
        match &step.key {
            Key::Node(node) => {
                tracing::warn!(key = %node, reason = reason.as_str(), "{message}");
                let trouble = Trouble { reason, message };
                self.node_troubles.insert(node.clone(), trouble);
                self.go_on(node);
            }
            Key::Instance(_) => self.trouble(&step.key, reason, message),
        }
    }

    /// A write was acknowledged, and yet something is left to do: Consul stored it otherwise, or
    /// another hand changed it at once. Trying again without end would help nobody.
    pub(super) fn contested(&mut self, key: &Key, due: Due, step: &Step) {
        tracing::warn!(key = %key, "Consul does not hold what was written: {step:?}");
        self.dirty.penalise(
            key,
            Due {
                cause: Cause::Read,
                ..due
            },
            Instant::now(),
        );
    }

    // === telling ===

    fn count(&self, step: &Step, outcome: &'static str) {
        let (kind, verb) = match step {
            Step::PutNode(write) if matches!(write.node, Some((_, 0))) => ("node", "create"),
            Step::PutNode(_) => ("node", "update"),
            Step::Put(write) if write.creates() => ("instance", "create"),
            Step::Put(_) => ("instance", "update"),
            Step::Remove(_) => ("instance", "delete"),
            _ => return,
        };
        let labels = OperationLabels {
            kind,
            verb,
            outcome,
        };
        self.report.metrics.operations.get_or_create(&labels).inc();
    }

    fn tell_written(&mut self, key: &InstanceKey, write: &InstanceWrite, drift: bool, index: u64) {
        let owner = &write.owner;
        self.report.wrote(owner, index);
        let verb = if write.creates() {
            "registered"
        } else {
            "updated"
        };
        let fields = write.fields.join(", ");
        tracing::info!(key = %key, owner = %owner, index, fields = &*fields, drift, "{verb}");
        if drift {
            let what = if write.creates() {
                "was removed"
            } else {
                "was changed"
            };
            let fields = match &*fields {
                "" => String::new(),
                fields => format!(" ({fields})"),
            };
            let note = format!("{key} {what} in Consul by another hand and is repaired{fields}");
            self.report.event(
                owner,
                self.index.uid(owner),
                EventReason::DriftRepaired,
                note,
            );
        } else if write.creates() {
            let about = subject(key, owner, &self.index);
            let note = format!("{} is registered in Consul as {key}", write.name);
            self.report.event(
                &about,
                self.index.uid(&about),
                EventReason::Registered,
                note,
            );
        }
    }

    fn tell_removed(&mut self, key: &InstanceKey, removal: &Removal) {
        let Removal {
            owner, index, why, ..
        } = removal;
        self.held.remove(&Key::Instance(key.clone()));
        self.index.forget_absence(key);
        let (why, seen) = match why {
            Why::Seen => ("its claim was seen going", true),
            Why::Found => ("no object claims it", false),
        };
        tracing::info!(
            target: "audit", kind = "instance", key = %key, owner = %owner, why, seen, index,
            "removed"
        );
        let note = format!("{key} is removed from Consul: {why}");
        self.report.event(
            owner,
            self.index.uid(owner),
            EventReason::Deregistered,
            note,
        );
    }

    /// Notes what was found under a key, for status and Events.
    pub(super) fn note(&mut self, key: &Key, finding: &Finding) {
        match &finding.step {
            // What stands there is not known: how it stands is what was told last.
            Step::Waiting => return,
            Step::Held(_) => {
                self.held.insert(key.clone());
            }
            Step::Settled => {
                self.dirty.absolve(key);
                self.alone.remove(key);
                self.held.remove(key);
            }
            _ => {
                self.held.remove(key);
            }
        }
        let Key::Instance(key) = key else {
            if let Step::OwnedByAnother { holder } = &finding.step {
                tracing::warn!(key = %key, reason = "OwnedByAnother", "{holder}");
            }
            return;
        };
        let registered = self.registered(key);
        let mut standings = Vec::new();
        if let Some(owner) = &finding.owner {
            let trouble = trouble_of(key, finding, registered.is_some());
            standings.push((
                owner.clone(),
                Standing {
                    claimed: true,
                    registered,
                    trouble,
                },
            ));
            for loser in &finding.losers {
                let message = format!(
                    "{owner}, which is older, holds {key}: give one of the two another service \
                     name, or another selector"
                );
                let trouble = Some(Trouble {
                    reason: Reason::Conflict,
                    message,
                });
                standings.push((
                    loser.clone(),
                    Standing {
                        claimed: true,
                        registered: None,
                        trouble,
                    },
                ));
            }
        } else if let Some((owner, trouble)) = self.leaving(key, finding) {
            standings.push((
                owner,
                Standing {
                    claimed: false,
                    registered,
                    trouble,
                },
            ));
        }
        self.report.stand(key, standings, &self.index);
        if finding.step == Step::Settled && finding.owner.is_none() {
            self.index.forget_absence(key);
        }
    }

    /// Who an entry that nothing claims any more belonged to, while it is still there.
    fn leaving(
        &self,
        key: &InstanceKey,
        finding: &Finding,
    ) -> Option<(crate::model::owner::Owner, Option<Trouble>)> {
        let there = self.mirror.instance(key)?;
        let Mark::Ours(owner) = self.mirror.standing(key, there) else {
            return None;
        };
        self.index.registration(&owner)?;
        let (reason, message) = match &finding.step {
            Step::Held(hold) => (Reason::Held, format!("{key}: {hold}")),
            Step::Remove(_) => (
                Reason::Writing,
                format!("{key} is being removed from Consul"),
            ),
            _ => return None,
        };
        Some((owner, Some(Trouble { reason, message })))
    }

    /// Puts a trouble on all that claim a key.
    pub(super) fn trouble(&mut self, key: &Key, reason: Reason, message: String) {
        let Key::Instance(key) = key else { return };
        let trouble = Trouble { reason, message };
        let standings = self.report.standings(key).iter().map(|(owner, standing)| {
            (
                owner.clone(),
                Standing {
                    trouble: Some(trouble.clone()),
                    ..standing.clone()
                },
            )
        });
        let standings = standings.collect();
        self.report.stand(key, standings, &self.index);
    }

    /// The health of an instance of ours, that of its node included.
    fn registered(&self, key: &InstanceKey) -> Option<crate::model::entry::Health> {
        let there = self.mirror.instance(key)?;
        let ours = matches!(self.mirror.standing(key, there), Mark::Ours(_));
        let node = self.mirror.node(&key.node).map(ObservedNode::health);
        ours.then(|| node.map_or(there.health(), |node| node.max(there.health())))
    }
}

fn trouble_of(key: &InstanceKey, finding: &Finding, registered: bool) -> Option<Trouble> {
    let trouble = |reason, message| Some(Trouble { reason, message });
    match &finding.step {
        Step::OwnedByAnother { holder } => trouble(
            Reason::OwnedByAnother,
            format!(
                "{key} is not written: it is held by {holder}; remove what is there, or choose another \
                 name"
            ),
        ),
        Step::Held(hold) => trouble(Reason::Held, format!("{key}: {hold}")),
        Step::Put(_) | Step::PutNode(_) | Step::Remove(_) | Step::Waiting => {
            trouble(Reason::Writing, format!("{key} is being written to Consul"))
        }
        Step::Settled => match &finding.freeze {
            None => None,
            Some(Freeze::Paused) => trouble(
                Reason::Paused,
                format!("{key} is held as it is by the annotation lictor.io/paused"),
            ),
            Some(Freeze::Invalid(problems)) => {
                let state = if registered {
                    "is kept as it was"
                } else {
                    "is not registered"
                };
                let problems = problems.join("; ");
                trouble(Reason::Invalid, format!("{key} {state}: {problems}"))
            }
        },
    }
}

/// Puts a check in the place of the one of the same id.
fn replace(checks: &mut Vec<ObservedCheck>, check: ObservedCheck) {
    match checks.iter_mut().find(|known| known.id == check.id) {
        Some(known) => *known = check,
        None => checks.push(check),
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
    use crate::model::entry::readiness_check_id;

    #[test]
    fn a_check_is_replaced_by_its_id() {
        let id = readiness_check_id(&crate::model::names::InstanceId::observed("a.b.c.d"));
        let check = |modify_index| ObservedCheck {
            id: id.as_str().into(),
            check: crate::model::entry::Check {
                status: crate::model::entry::Health::Passing,
                output: "".into(),
            },
            well_formed: true,
            modify_index,
        };
        let mut checks = vec![check(1)];
        replace(&mut checks, check(2));
        assert_eq!(checks, [check(2)]);
    }
}
