//! What the engine plans, and what it starts to write.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::apply;
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::register;
use crate::desired::watches::Watch;
use crate::model::key::{InstanceKey, Key, Place};
use crate::model::kind::Kind;
use crate::plan::batch::{Batch, Overflow};
use crate::plan::critical::Watched;
use crate::plan::gate::Hold;
use crate::plan::{self, Finding, Mode, Step};
use crate::status::board::{Reason, Trouble};
use crate::traces;

/// Room for an instance and for the proxy beside it, in operations: more than they commonly need.
const ROOM_FOR_TWO: usize = 44;
/// How long what goes for want of a heartbeat waits for the list of the Leases.
const LEASES_ARE_LISTED: Duration = Duration::from_secs(1);
/// Keys planned in a row before events are looked at again.
const PLANNED_IN_A_ROW: usize = 512;

impl Engine {
    pub(super) fn start_writes(&mut self, now: Instant) {
        let Some(pass) = self.pass() else {
            return;
        };
        let mut planned = 0;
        while self.may_write(now) && self.dirty.has_ready() && planned < PLANNED_IN_A_ROW {
            let mut batch = Batch::default();
            while planned < PLANNED_IN_A_ROW
                && let Some((key, due)) = self.dirty.take()
            {
                planned += 1;
                if let Place::Table(_) = key.place() {
                    self.plan_entry(key, due, now);
                    if self.may_write(now) {
                        continue;
                    }
                    break;
                }
                let alone = self.alone.contains(&key);
                if alone && !batch.is_empty() {
                    self.dirty.put_back(key, due);
                    break;
                }
                let finding = plan::decide(&key, &self.index, &self.mirror, &self.rules);
                let full = self.add(&mut batch, key, due, finding, now)
                    || batch.len() >= self.pace.most_entries();
                if full || (alone && !batch.is_empty()) {
                    break;
                }
            }
            if batch.is_empty() {
                continue;
            }
            let (txn, steps) = batch.into_parts();
            for step in &steps {
                self.dirty.start(step.key.clone());
            }
            self.pace.begun(steps.len(), now);
            let id = self.own.start();
            let cluster = self.index.cluster().clone();
            let span = traces::flush(steps.len());
            let consul = self.consul.clone();
            let job = apply::write(consul, cluster, id, pass.clone(), (txn, steps));
            self.jobs.spawn(job.instrument(span));
        }
    }

    /// Tells what would be written (`--policy dry-run`).
    pub(super) fn rehearse(&mut self) {
        if self.lead.follows() {
            return;
        }
        let mut planned = 0;
        while self.is_judged()
            && planned < PLANNED_IN_A_ROW
            && let Some((key, _)) = self.dirty.take()
        {
            planned += 1;
            if let Place::Table(_) = key.place() {
                self.rehearse_entry(&key);
                continue;
            }
            let finding = plan::decide(&key, &self.index, &self.mirror, &self.rules);
            if let Key::Instance(key) = &key {
                self.follow_critical(key, &finding);
            }
            let guarded = finding.held().is_some_and(Hold::is_guards);
            let judged = self.rules.guard.held().is_some();
            if guarded {
                self.guard_finds(&key, finding.refused.is_some());
                self.critical.offer(&key, finding.owner.is_some());
            }
            if let Some(refused) = &finding.refused {
                let refusal = &refused.refusal;
                tracing::info!(key = %key, "not allowed: {}", refusal.message);
            }
            match &finding.step {
                Step::Settled if finding.hold.is_some() => {
                    if let Some(hold) = finding.held().filter(|_| !guarded || judged) {
                        tracing::info!(key = %key, "{hold}");
                    }
                }
                Step::Settled | Step::Waiting | Step::Lingering | Step::KeptOut(_) => {
                    self.not_missing(&key, &finding);
                }
                Step::Held(_) if guarded && !judged => {}
                Step::Held(hold) => tracing::info!(key = %key, "{hold}"),
                step @ Step::NoNodeAddress { .. } => tracing::info!(key = %key, "{step}"),
                step => tracing::info!(key = %key, "would {step}"),
            }
        }
    }

    /// Tells the guard of what is to go that nobody was seen deleting.
    pub(super) fn guard_finds(&mut self, key: &Key, refused: bool) {
        if refused {
            self.rules.guard.refused(key);
        } else {
            self.rules.guard.found(key);
        }
    }

    /// Judges what is found missing, once all that is due was planned: together, and not one by one.
    pub(super) fn judge(&mut self, now: Instant) {
        let rehearses = self.rules.mode == Mode::DryRun && self.is_judged();
        if !(rehearses || self.may_write(now)) || self.dirty.has_ready() {
            return;
        }
        self.expect_critical(now);
        let before = self.rules.guard.held();
        let judged = self.rules.guard.is_open();
        let mut again = self.rules.guard.judge(
            self.mirror.owned_instances() + self.mirror.owned_entries(),
            now,
        );
        if judged {
            // How it stands is told anew.
            again.extend(self.rules.guard.waiting().cloned());
        }
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for key in again {
            self.dirty.touch(key, due);
        }
        if let Some((would_go, of)) = self.rules.guard.held().filter(|held| Some(*held) != before) {
            self.tell_guarded(would_go, of);
        }
        let broken = |kind: &Kind| matches!(self.index.watches.state(*kind), Watch::Broken(_));
        let kinds = Kind::ALL.into_iter().filter(|kind| !broken(kind)).collect();
        let wanted = self.rules.guard.wants_lists(&kinds);
        if self.rounds.want(wanted, &kinds, now) {
            tracing::info!("everything is listed anew, to confirm what is found missing");
            self.rules.guard.listing();
            self.relist.send_replace(());
        }
    }

    /// Adds what a finding asks for to the batch. Returns whether the batch is full.
    pub(super) fn add(
        &mut self,
        batch: &mut Batch<Due>,
        key: Key,
        due: Due,
        finding: Finding,
        now: Instant,
    ) -> bool {
        self.note(&key, &finding);
        let step = match finding.step {
            Step::Settled
            | Step::OwnedByAnother { .. }
            | Step::Held(_)
            | Step::KeptOut(_)
            | Step::Lingering => {
                if let Key::Node(_) = &key {
                    self.go_on(&key.place());
                } else {
                    // Such as one whose pod went while its node had no address.
                    self.wait_no_more(&key);
                }
                return false;
            }
            // The node is planned again when there is news of it.
            Step::Waiting | Step::NoNodeAddress { .. } => {
                self.wait(key, due);
                return false;
            }
            step @ (Step::PutNode(_) | Step::Put(_) | Step::Remove(_) | Step::RemoveNode(_)) => {
                step
            }
        };
        if !self.strange.is_empty() {
            return false;
        }
        if due.cause == Cause::Written {
            self.contested(&key, due, &step);
            return false;
        }
        if self.leaves_drift(&key, due) {
            return false;
        }
        if self.awaits_leases((&key, due), &step, finding.critical.as_ref(), now) {
            return false;
        }
        if due.cause == Cause::Audit {
            tracing::warn!(key = %key, "found by the total pass, missed before: {step:?}");
            self.report.metrics.audit_findings.inc();
        }
        if let (Key::Instance(instance), Step::Put(write)) = (&key, &step)
            && write.creates()
            && let node = Key::Node(instance.node.clone())
            // Also a node that is there may be on its way out, with all that comes onto it.
            && (self.mirror.node(&instance.node).is_none() || self.dirty.busy().contains(&node))
        {
            if self.dirty.busy().contains(&node) || self.dirty.is_parked(&node) {
                if let Some(Trouble { reason, message }) = self.node_troubles.get(&instance.node) {
                    self.trouble(&key, *reason, message.clone());
                }
                self.wait(key, due);
                return false;
            }
            if !batch.contains(&node) {
                let first = self.dirty.take_key(&node).unwrap_or(due);
                let finding = plan::decide(&node, &self.index, &self.mirror, &self.rules);
                if !matches!(finding.step, Step::PutNode(_)) {
                    self.wait(key, due);
                    return false;
                }
                if batch.push(node.clone(), finding.step, first).is_err() {
                    self.dirty.touch(node, first);
                    self.dirty.put_back(key, due);
                    return true;
                }
            }
        }
        if step.needs_register() {
            if let Key::Instance(InstanceKey { node, .. }) = &key
                && batch.contains(&Key::Node(node.clone()))
            {
                self.wait(key, due);
                return false;
            }
            return self.register(key, step, due, now);
        }
        let beside = self.take_beside(&key, &step);
        if let Some((other, other_due)) = &beside
            && batch.room() < ROOM_FOR_TWO
        {
            self.dirty.touch(other.clone(), *other_due);
            self.dirty.put_back(key, due);
            return true;
        }
        let again = key.clone();
        let pushed = batch.push(key, step, due);
        if let Some((other, due)) = beside {
            if pushed.is_ok() {
                let finding = plan::decide(&other, &self.index, &self.mirror, &self.rules);
                return self.add(batch, other, due, finding, now);
            }
            self.dirty.touch(other, due);
        }
        match pushed {
            Ok(()) => return false,
            Err(Overflow::Full) => self.dirty.put_back(again, due),
            Err(Overflow::TooLarge) => {
                self.too_large(&again, due);
                return false;
            }
        }
        true
    }

    /// Whether an instance would go for want of a heartbeat, and the Leases are to be listed before it does.
    fn awaits_leases(
        &mut self,
        (key, due): (&Key, Due),
        step: &Step,
        critical: Option<&Watched>,
        now: Instant,
    ) -> bool {
        let awaits = match (step, critical) {
            (Step::Remove(removal), Some(watched)) if removal.why.is_critical() => {
                !self.lapses_are_read(&watched.instance, now)
            }
            _ => false,
        };
        if awaits {
            // What the list shows may keep it, and then it is planned at once.
            self.dirty.park(key, due, now + LEASES_ARE_LISTED);
        }
        awaits
    }

    /// Starts a write that cannot be in a transaction. Returns whether there is no room for it now.
    fn register(&mut self, key: Key, step: Step, due: Due, now: Instant) -> bool {
        let Some(pass) = self.pass().filter(|_| self.may_write(now)) else {
            self.dirty.put_back(key, due);
            return true;
        };
        self.dirty.start(key.clone());
        self.pace.begun(1, now);
        let id = self.own.start();
        let cluster = self.index.cluster().clone();
        let job = register::write(self.consul.clone(), cluster, id, pass, (key, step, due));
        self.jobs.spawn(job.instrument(traces::flush(1)));
        false
    }

    /// Takes the key of the proxy beside an instance, or the other way round, if it is due too: what
    /// carries the readiness of both changes in one transaction.
    fn take_beside(&mut self, key: &Key, step: &Step) -> Option<(Key, Due)> {
        let (Key::Instance(instance), Step::Put(write)) = (key, step) else {
            return None;
        };
        write.checks.first()?;
        let other = Key::Instance(instance.counterpart(self.index.cluster())?);
        if self.alone.contains(key) || self.alone.contains(&other) {
            return None;
        }
        let due = self.dirty.take_key(&other)?;
        Some((other, due))
    }

    /// A key waits until its place is written, read, or known better.
    pub(super) fn wait(&mut self, key: Key, due: Due) {
        let waiting = self.waiting.entry(key.place()).or_default();
        waiting
            .entry(key)
            .and_modify(|known| *known = due.merged(Some(*known)))
            .or_insert(due);
    }

    fn wait_no_more(&mut self, key: &Key) {
        let place = key.place();
        if let Some(waiting) = self.waiting.get_mut(&place) {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(&place);
            }
        }
    }

    fn too_large(&mut self, key: &Key, due: Due) {
        let message = "the entry is larger than a transaction of Consul's may be: use fewer or \
                       shorter tags and meta";
        self.trouble(key, Reason::ConsulRefused, message.to_owned());
        self.penalise(key, due);
    }
}
