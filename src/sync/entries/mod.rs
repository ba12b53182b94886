//! How the engine plans and writes what is on no node.

mod read;
mod tell;

pub use self::read::TableRead;
use self::read::with_one_index;
pub(super) use self::read::{TableState, states};

use rand::Rng as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::apply::Done;
use super::carry::{self, Carried, Row};
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::pass::Pass;
use crate::consul::{Client, ConsulError, ErrorClass};
use crate::metrics::{KindLabel, OperationLabels};
use crate::model::key::{Key, Place, Table};
use crate::model::names::ClusterName;
use crate::model::owner::Owner;
use crate::plan;
use crate::plan::entries::{Change, EntryStep, EntryWrite, Gone, Put};
use crate::status::board::{CHANGE, GRANT, Reason};
use crate::traces;

/// A write that was answered, or not.
#[derive(Debug)]
pub struct EntryWritten {
    id: u64,
    epoch: u64,
    key: Key,
    write: EntryWrite,
    due: Due,
    outcome: Result<Carried, ConsulError>,
    at: Instant,
}

async fn write(
    client: Client,
    cluster: ClusterName,
    pass: Pass,
    (id, key, due): (u64, Key, Due),
    write: EntryWrite,
) -> Done {
    let outcome = carry::carry_out(&client, &cluster, &pass, &key, &write.change).await;
    Done::WroteEntry(Box::new(EntryWritten {
        id,
        epoch: pass.epoch(),
        key,
        write,
        due,
        outcome,
        at: Instant::now(),
    }))
}

impl Engine {
    /// Plans a key that is on no node, and starts its write if there is one.
    pub(super) fn plan_entry(&mut self, key: Key, due: Due, now: Instant) {
        let finding = plan::entries::decide(&key, &self.index, &self.mirror, &self.rules);
        if finding.step == EntryStep::Waiting {
            if let Place::Table(table) = key.place()
                && let Some(why) = self.table(table).trouble().map(str::to_owned)
            {
                self.trouble(&key, Reason::ConsulUnavailable, why);
            }
            self.wait(key, due);
            return;
        }
        self.settle_lost(&key, now);
        self.note_entry(&key, &finding);
        let EntryStep::Write(planned) = finding.step else {
            // Without those that Consul refused there is nothing to write.
            if let Key::Intentions(destination) = &key
                && self.rules.refusals.accepted(destination)
            {
                self.dirty.touch(key, due);
            }
            return;
        };
        if !self.strange.is_empty() {
            return;
        }
        if due.cause == Cause::Written {
            tracing::warn!(key = %key, "Consul does not hold what was written: {planned}");
            let due = Due {
                cause: Cause::Read,
                ..due
            };
            self.penalise(&key, due);
            return;
        }
        if self.leaves_drift(&key, due) {
            return;
        }
        if self.protocol_comes_first(&key, &planned, now) {
            self.wait(key, due);
            return;
        }
        if due.cause == Cause::Audit {
            tracing::warn!(key = %key, "found by the total pass, missed before: {planned}");
            self.report.metrics.audit_findings.inc();
        }
        let Some(pass) = self.pass() else {
            return;
        };
        let Place::Table(table) = key.place() else {
            return;
        };
        let mut id = 0;
        for table in with_one_index(table) {
            id = self.table(*table).own.start();
        }
        self.dirty.start(key.clone());
        self.entry_writes += 1;
        self.pace.begun(1, now);
        let cluster = self.index.cluster().clone();
        let job = write(self.consul.clone(), cluster, pass, (id, key, due), *planned);
        self.jobs.spawn(job.instrument(traces::flush(1)));
    }

    /// Whether the defaults of the destination are being written, or are to be: without the protocol
    /// Consul would refuse rules for requests, and with the old one may take them.
    fn protocol_comes_first(&mut self, key: &Key, write: &EntryWrite, now: Instant) -> bool {
        let (Key::Intentions(destination), Change::PutIntentions(entry, _)) = (key, &write.change)
        else {
            return false;
        };
        let has_rules = entry.sources.iter().any(|it| !it.permissions.is_empty());
        let Some(service) = destination.as_ref().parse().ok().filter(|_| has_rules) else {
            return false;
        };
        let defaults = Key::Defaults(service);
        if let Some(due) = self.dirty.take_key(&defaults) {
            self.plan_entry(defaults.clone(), due, now);
        }
        self.dirty.busy().contains(&defaults)
    }

    /// Tells what would be written (`--policy dry-run`).
    pub(super) fn rehearse_entry(&mut self, key: &Key) {
        let finding = plan::entries::decide(key, &self.index, &self.mirror, &self.rules);
        let judged = self.rules.guard.held().is_some();
        for (key, hold) in finding.held() {
            if !hold.is_guards() || judged {
                tracing::info!(key = %key, "{hold}");
            }
        }
        self.judge_parts(key, &finding);
        if let EntryStep::Write(planned) = &finding.step {
            tracing::info!(key = %key, "would {planned}");
        }
    }

    /// Intentions that Consul refused a while ago are tried once more.
    pub(super) fn ripen_refusals(&mut self, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for destination in self.rules.refusals.ripen(now) {
            self.dirty.touch(Key::Intentions(destination), due);
        }
    }

    pub(super) fn absorb_entry(&mut self, written: EntryWritten) {
        let EntryWritten {
            id,
            epoch,
            key,
            write,
            due,
            outcome,
            at,
        } = written;
        self.entry_writes -= 1;
        self.dirty.finish(&key);
        let Place::Table(table) = key.place() else {
            return;
        };
        match outcome {
            // It may have been undone since: by the restore of a snapshot, or by whoever took over.
            Ok(Carried::Done(..)) if self.fence.index() != Some(epoch) => {
                self.count_entry(&key, &write, "ok");
                self.lost_entry(&key, &write, epoch);
                self.doubt(Place::Table(table));
                self.dirty.touch(key, due);
            }
            Ok(Carried::Done(row, index)) => {
                self.count_entry(&key, &write, "ok");
                self.writable();
                self.carried(&key, &write, *row, index, due, (at, epoch));
            }
            Ok(Carried::Unseen(error)) => {
                self.count_entry(&key, &write, "ok");
                tracing::warn!(key = %key, "what was written cannot be read: {error}");
                self.lost_entry(&key, &write, epoch);
                self.doubt(Place::Table(table));
                self.dirty.touch(key, due);
            }
            Ok(Carried::Outdated) => {
                self.count_entry(&key, &write, "conflict");
                self.writable();
                self.doubt(Place::Table(table));
                let chance = rand::rng().random::<f64>();
                self.dirty.stumble(&key, due, at, chance);
            }
            Ok(Carried::Fenced { what, reason }) => {
                self.count_entry(&key, &write, "fenced");
                self.fenced_off(epoch, &what, reason);
                self.dirty.touch(key, due);
            }
            Ok(Carried::NoEpoch(why)) => {
                self.count_entry(&key, &write, "fenced");
                self.write_failed_for(&format!("the epoch may not be read: {why}"));
                self.dirty.touch(key, due);
            }
            Ok(Carried::Denied(what)) => {
                self.count_entry(&key, &write, "denied");
                self.writable();
                let message = format!("Consul denies the write: {what}; {GRANT}");
                self.give_up_entry(&key, due, Reason::AccessDenied, message);
            }
            Err(error) => {
                if error.class().may_be_applied() {
                    self.lost_entry(&key, &write, epoch);
                }
                self.entry_failed(&key, &write, due, &error);
            }
        }
        for table in with_one_index(table) {
            self.table(*table).own.finish(id);
        }
        if table == Table::Defaults {
            // Rules that waited for the protocol, whatever became of it.
            self.go_on(&Place::Table(Table::Intentions));
        }
    }

    fn carried(
        &mut self,
        key: &Key,
        write: &EntryWrite,
        row: Row,
        index: u64,
        due: Due,
        (at, epoch): (Instant, u64),
    ) {
        let Place::Table(table) = key.place() else {
            return;
        };
        self.table(table).sweeper.wrote(at);
        for table in with_one_index(table) {
            let own = &mut self.table(*table).own;
            if index > 0 {
                own.wrote(index);
            } else {
                own.removed(at);
            }
        }
        self.allowed(key, at);
        match (key, row) {
            // Another hand may have changed it between the write and the read after it.
            (Key::Defaults(service), Row::Defaults(row)) => {
                let mut found = row;
                if let (Some(found), Change::PutDefaults(wrote, _)) = (&mut found, &write.change) {
                    let before = self.mirror.defaults.get(service);
                    found.was_written(self.index.cluster(), wrote, before);
                }
                self.mirror.defaults.set(service, found);
            }
            (Key::Intentions(destination), Row::Intentions(row)) => {
                let mut found = row;
                if let (Some(found), Change::PutIntentions(wrote, _)) = (&mut found, &write.change)
                {
                    let before = self.mirror.intentions.get(destination);
                    found.was_written(self.index.cluster(), wrote, before);
                }
                self.mirror.intentions.set(destination, found);
                if self.rules.refusals.accepted(destination) {
                    self.dirty.touch(key.clone(), due);
                }
            }
            (Key::Query(name), row) => {
                let row = carry::placed(self.mirror.queries.get(name), row);
                self.mirror.queries.set(name, row);
            }
            _ => {}
        }
        self.depends_on(key, at);
        self.lost_entries.remove(key);
        let is_drift = due.cause == Cause::Drift;
        self.tell_entry(key, write, is_drift, index);
        for gone in &write.removed {
            self.is_gone(gone, write.change.index(), epoch, at);
        }
        if due.cause == Cause::Kubernetes && !write.is_note() {
            let took = (at - due.since).as_secs_f64();
            self.report.metrics.propagation.observe(took);
        }
        if is_drift && !write.is_note() {
            let label = KindLabel { kind: key.kind() };
            self.report.metrics.drift.get_or_create(&label).inc();
            self.contests.repaired(key, at);
            self.table(table).sweeper.found();
        }
        if write.is_half() {
            // What is left of a repair that was counted is none of its own.
            let repaired = is_drift && !write.is_note();
            let cause = if repaired { Cause::Read } else { due.cause };
            self.dirty.touch(key.clone(), Due { cause, ..due });
            return;
        }
        let due = Due {
            cause: Cause::Written,
            since: at,
        };
        self.dirty.touch(key.clone(), due);
    }

    /// A thing of ours was removed.
    fn is_gone(&mut self, gone: &Gone, index: u64, epoch: u64, at: Instant) {
        if gone.why.is_found() {
            self.rules.guard.removed(&gone.key, at);
        }
        self.held.remove(&gone.key);
        self.index.forget_entry(&gone.key);
        self.tell_gone(gone, index, epoch);
    }

    /// It is not known whether a write that removes something was carried out, or lasts: if so, that is
    /// told once it is read.
    fn lost_entry(&mut self, key: &Key, write: &EntryWrite, epoch: u64) {
        if !write.removed.is_empty() {
            let lost = (write.removed.clone(), write.change.index(), epoch);
            self.lost_entries.insert(key.clone(), lost);
        }
    }

    /// What became of a removal whose answer was lost, now that it is known what is there.
    fn settle_lost(&mut self, key: &Key, now: Instant) {
        // What may only be hidden is not known to be gone.
        if let Place::Table(table) = key.place()
            && self.told_partial.contains_key(&table)
        {
            return;
        }
        let Some((removed, index, epoch)) = self.lost_entries.remove(key) else {
            return;
        };
        for gone in removed {
            if plan::entries::owner_of(&gone.key, &self.mirror).as_ref() != Some(&gone.owner) {
                self.is_gone(&gone, index, epoch, now);
            }
        }
    }

    fn entry_failed(&mut self, key: &Key, write: &EntryWrite, due: Due, error: &ConsulError) {
        let class = error.class();
        self.count_entry(key, write, class.as_str());
        match class {
            ErrorClass::Refused => {
                self.writable();
                if self.blame(key, write, error.text()) {
                    self.dirty.touch(key.clone(), due);
                    return;
                }
                let message = format!("Consul refuses it: {}; {CHANGE}", error.text());
                self.give_up_entry(key, due, Reason::ConsulRefused, message);
            }
            ErrorClass::AccessDenied => {
                self.writable();
                let message = format!("Consul denies the write: {}; {GRANT}", error.text());
                self.give_up_entry(key, due, Reason::AccessDenied, message);
            }
            ErrorClass::Conflict | ErrorClass::NotFound => {
                self.writable();
                self.doubt(key.place());
                let chance = rand::rng().random::<f64>();
                self.dirty.stumble(key, due, Instant::now(), chance);
                // A second look did not show who has the name: it is hidden, or is like this one in
                // another way, as the id of a query is.
                if class == ErrorClass::Conflict && self.dirty.is_parked(key) {
                    let message = format!(
                        "{key} is not written: Consul gave its name to something that is not shown \
                         here: {}",
                        error.text()
                    );
                    self.trouble(key, Reason::OwnedByAnother, message);
                }
            }
            _ => {
                self.write_failed_for(&format!("cannot write to Consul: {error}"));
                if class == ErrorClass::SlowDown {
                    self.pace.slow_down(Instant::now());
                }
                if class.may_be_applied() {
                    self.doubt(key.place());
                }
                let message =
                    format!("Consul did not take the write yet: {error}; it is tried again");
                self.trouble(key, Reason::ConsulUnavailable, message);
                self.dirty.touch(key.clone(), due);
            }
        }
    }

    /// Finds the Intention that is to blame for a refusal, by leaving one out. Returns whether there
    /// is something else to try.
    fn blame(&mut self, key: &Key, write: &EntryWrite, message: &str) -> bool {
        let Key::Intentions(destination) = key else {
            return false;
        };
        let changing: Vec<Owner> = write.owners().cloned().collect();
        let is_outdated = |put: &Put| {
            let now = self.index.intention(&put.owner);
            now.is_none_or(|now| now.generation != put.generation)
        };
        let outdated = write.puts.iter().any(is_outdated);
        let now = Instant::now();
        self.rules
            .refusals
            .refused(destination, &changing, outdated, message, now)
    }

    fn give_up_entry(&mut self, key: &Key, due: Due, reason: Reason, message: String) {
        self.penalise(key, due);
        if reason == Reason::AccessDenied {
            self.denied.insert(key.clone());
        }
        self.trouble(key, reason, message);
    }

    fn count_entry(&self, key: &Key, write: &EntryWrite, outcome: &'static str) {
        let labels = OperationLabels {
            kind: key.kind(),
            verb: write.verb(),
            outcome,
        };
        self.report.metrics.operations.get_or_create(&labels).inc();
    }
}
