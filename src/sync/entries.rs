//! How the engine reads and writes what is on no node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use super::apply::{Done, ReadError};
use super::carry::{self, Carried, Row, Rows};
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::outage::Outage;
use super::own::OwnWrites;
use super::sweep::Sweeper;
use crate::audit::{self, Removed};
use crate::consul::{Client, ConsulError, ErrorClass, Fence, TxnFailure};
use crate::desired::claim::Freeze;
use crate::k8s::EventReason;
use crate::metrics::{KindLabel, OperationLabels};
use crate::model::entry::Health;
use crate::model::key::{Key, Place, Table, source_key};
use crate::model::names::{ClusterName, Destination};
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::observed::table::{Knowledge, TableTicket};
use crate::plan;
use crate::plan::entries::{Change, EntryFinding, EntryStep, EntryWrite, Gone, Stand, State};
use crate::plan::gate::Why;
use crate::status::board::{Reason, Standing, Trouble};

/// When a table is read, and which signals our own writes explain.
#[derive(Debug)]
pub(super) struct TableState {
    /// Signals that it lacks: what changed before them would go unnoticed.
    pub unwatched: u32,
    pub sweeper: Sweeper,
    pub own: OwnWrites,
    reading: bool,
    /// Why it cannot be read, if it cannot.
    outage: Outage,
}

impl TableState {
    pub fn new(table: Table, interval: Duration) -> Self {
        Self {
            unwatched: match table {
                Table::Defaults | Table::Intentions => 1,
                Table::Queries => 2,
            },
            sweeper: Sweeper::new(interval),
            own: OwnWrites::default(),
            reading: false,
            outage: Outage::default(),
        }
    }

    /// When there is something to do without an event.
    pub fn wake_at(&self) -> Option<Instant> {
        let sweep = self.sweeper.wake_at().filter(|_| !self.reading);
        sweep.into_iter().chain(self.outage.wake_at()).min()
    }

    /// Why it cannot be read, if it cannot.
    pub fn trouble(&self) -> Option<&str> {
        self.outage.reason()
    }
}

/// The states of all tables.
pub(super) fn states(interval: Duration) -> BTreeMap<Table, TableState> {
    let state = |table| (table, TableState::new(table, interval));
    Table::ALL.into_iter().map(state).collect()
}

/// The tables of which a signal may have the index of a write to this one: Consul counts config entries
/// of all kinds together. Writes are noted for all of them at once, under one number.
fn with_one_index(table: Table) -> &'static [Table] {
    match table {
        Table::Defaults | Table::Intentions => &[Table::Defaults, Table::Intentions],
        Table::Queries => &[Table::Queries],
    }
}

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

/// A table that was read, or not.
#[derive(Debug)]
pub struct TableRead {
    table: Table,
    ticket: TableTicket,
    rows: Result<(Rows, Knowledge), ReadError>,
}

#[cfg(test)]
impl TableRead {
    /// One that was read so.
    #[must_use]
    pub fn of(
        table: Table,
        ticket: TableTicket,
        rows: Result<(Rows, Knowledge), ReadError>,
    ) -> Self {
        Self {
            table,
            ticket,
            rows,
        }
    }
}

async fn read(client: Client, cluster: ClusterName, table: Table, ticket: TableTicket) -> Done {
    let rows = carry::read_table(&client, &cluster, table).await;
    Done::ReadTable(TableRead {
        table,
        ticket,
        rows,
    })
}

async fn write(
    client: Client,
    cluster: ClusterName,
    (fence_key, epoch): (Text, u64),
    (id, key, due): (u64, Key, Due),
    write: EntryWrite,
) -> Done {
    let fence = Fence {
        key: &fence_key,
        index: epoch,
    };
    let outcome = carry::carry_out(&client, &cluster, fence, &key, &write.change).await;
    Done::WroteEntry(Box::new(EntryWritten {
        id,
        epoch,
        key,
        write,
        due,
        outcome,
        at: Instant::now(),
    }))
}

impl Engine {
    fn table(&mut self, table: Table) -> &mut TableState {
        let interval = self.drift_interval;
        let state = || TableState::new(table, interval);
        self.tables.entry(table).or_insert_with(state)
    }

    // === reads ===

    /// A signal of a table: the first of its kind, or that something in it changed.
    pub(super) fn table_changed(
        &mut self,
        table: Table,
        index: u64,
        (first, interrupted): (bool, bool),
        now: Instant,
    ) {
        let state = self.table(table);
        if first {
            state.unwatched = state.unwatched.saturating_sub(1);
            state.sweeper.signal(now);
        } else if interrupted {
            state.own.forget();
            state.sweeper.signal(now);
        } else {
            state.own.signalled(index);
            // Were it wrongly taken for our own, a read finds what it told of.
            state.sweeper.wrote(now);
        }
    }

    /// Reads the tables that are to be read.
    pub(super) fn start_table_reads(&mut self, now: Instant, limit: usize) {
        for table in Table::ALL {
            let unknown = self.mirror.is_unsure(&Place::Table(table));
            let room = self.reads < limit;
            let state = self.table(table);
            if state.own.unexplained(now) {
                state.sweeper.signal(now);
            }
            let due = unknown || state.sweeper.should_start(now);
            let watched = state.unwatched == 0;
            if !due || !watched || state.reading || !room || state.outage.limit(now, 1) == 0 {
                continue;
            }
            state.reading = true;
            state.sweeper.start(now, std::iter::empty());
            self.reads += 1;
            let ticket = match table {
                Table::Defaults => self.mirror.defaults.start_read(),
                Table::Intentions => self.mirror.intentions.start_read(),
                Table::Queries => self.mirror.queries.start_read(),
            };
            let cluster = self.index.cluster().clone();
            self.jobs
                .spawn(read(self.consul.clone(), cluster, table, ticket));
        }
    }

    pub(super) fn absorb_table(&mut self, read: TableRead) {
        let TableRead {
            table,
            ticket,
            rows,
        } = read;
        self.reads -= 1;
        self.table(table).reading = false;
        let (rows, knowledge) = match rows {
            Ok(rows) => rows,
            Err(error) => {
                self.table_unread(table, &error);
                return;
            }
        };
        self.answered();
        self.table(table).outage.over();
        let partial = matches!(knowledge, Knowledge::Partial(_));
        let was_partial = self.told_partial.contains_key(&table);
        let was_known = !self.mirror.is_unsure(&Place::Table(table));
        if let Knowledge::Partial(why) = &knowledge
            && self.told_partial.get(&table) != Some(why)
        {
            tracing::warn!(
                "{why}: until then nothing of them is removed that is only found missing"
            );
        }
        if let Knowledge::Partial(why) = &knowledge {
            self.told_partial.insert(table, why.clone());
            // Consul does not tell of rights that come.
            self.table(table).sweeper.wrote(Instant::now());
        } else {
            self.told_partial.remove(&table);
        }
        let busy = self.dirty.busy();
        let changed: Vec<Key> = match rows {
            Rows::Defaults(mut rows) => {
                for (name, row) in &mut rows {
                    if let Some(known) = self.mirror.defaults.get(name) {
                        row.recognise(known);
                    }
                }
                let is_busy = |name: &_| busy.contains(&Key::Defaults(Clone::clone(name)));
                let found = self
                    .mirror
                    .defaults
                    .finish_read(&ticket, rows, knowledge, is_busy);
                found.into_iter().map(Key::Defaults).collect()
            }
            Rows::Intentions(mut rows) => {
                for (name, row) in &mut rows {
                    if let Some(known) = self.mirror.intentions.get(name) {
                        row.recognise(known);
                    }
                }
                let is_busy = |name: &_| busy.contains(&Key::Intentions(Clone::clone(name)));
                let found = self
                    .mirror
                    .intentions
                    .finish_read(&ticket, rows, knowledge, is_busy);
                found.into_iter().map(Key::Intentions).collect()
            }
            Rows::Queries(mut rows) => {
                for (name, row) in &mut rows {
                    row.recognise(self.mirror.queries.get(name));
                }
                let is_busy = |name: &_| busy.contains(&Key::Query(Clone::clone(name)));
                let found = self
                    .mirror
                    .queries
                    .finish_read(&ticket, rows, knowledge, is_busy);
                found.into_iter().map(Key::Query).collect()
            }
        };
        if self.mirror.is_unsure(&Place::Table(table)) {
            return;
        }
        let now = Instant::now();
        if !was_known {
            tracing::info!("{} of Consul are known", table.as_str());
            self.touch_table(table, Cause::Read, now);
            self.go_on(&Place::Table(table));
            return;
        }
        if was_partial && !partial {
            // What was held for want of it, and what was taken for missing.
            self.touch_table(table, Cause::Read, now);
        }
        let due = Due {
            cause: Cause::Drift,
            since: now,
        };
        for key in changed {
            self.depends_on(&key, due.since);
            self.dirty.touch(key, due);
        }
    }

    /// Whether a signal of a table is still lacking.
    pub(super) fn is_unwatched(&self, table: Table) -> bool {
        let state = self.tables.get(&table);
        state.is_some_and(|state| state.unwatched > 0)
    }

    pub(super) fn table_unread(&mut self, table: Table, error: &ReadError) {
        let reason = format!("cannot read {}: {error}", table.as_str());
        let chance = rand::rng().random::<f64>();
        let now = Instant::now();
        if let ReadError::Failed(error) = error
            && error.class() == ErrorClass::SlowDown
        {
            self.pace.slow_down(now);
        }
        let state = self.table(table);
        if state.outage.reason() != Some(&*reason) {
            tracing::warn!("{reason}");
        }
        state.outage.failed(reason, now, chance);
        state.sweeper.signal(now);
    }

    /// Plans every key of a table that is claimed or there.
    fn touch_table(&mut self, table: Table, cause: Cause, now: Instant) {
        let due = Due { cause, since: now };
        let is_in = |key: &Key| key.place() == Place::Table(table);
        let keys = self.index.claimed_entries().chain(self.mirror.entry_keys());
        let keys: Vec<Key> = keys.filter(is_in).collect();
        for key in keys {
            self.dirty.touch(key, due);
        }
    }

    /// What Consul judges one entry by may be another: intentions by the protocol of their
    /// destination, and the other way round.
    fn depends_on(&mut self, key: &Key, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        match key {
            Key::Defaults(service) => {
                let destination = Destination::new(service.as_ref());
                if self.rules.refusals.reconsider(&destination) {
                    let key = Key::Intentions(destination);
                    self.dirty.absolve(&key);
                    self.dirty.touch(key, due);
                }
            }
            Key::Intentions(destination) => {
                if let Ok(service) = destination.as_ref().parse()
                    && self.mirror.defaults.get(&service).is_some()
                {
                    let key = Key::Defaults(service);
                    self.dirty.absolve(&key);
                    self.dirty.touch(key, due);
                }
            }
            _ => {}
        }
    }

    // === writes ===

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
        if self.stranger.is_some() {
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
        if due.cause == Cause::Audit {
            tracing::warn!(key = %key, "found by the total pass, missed before: {planned}");
            self.report.metrics.audit_findings.inc();
        }
        let Some(epoch) = self.fence.index() else {
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
        let fence = (self.fence_key.clone(), epoch);
        let cluster = self.index.cluster().clone();
        let job = write(
            self.consul.clone(),
            cluster,
            fence,
            (id, key, due),
            *planned,
        );
        self.jobs.spawn(job);
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
                tracing::warn!(epoch, "the write was fenced off: {what}");
                self.fence.failed(epoch, reason);
                if reason == TxnFailure::PermissionDenied {
                    self.write_failed_for(&format!("the epoch may not be read: {what}"));
                }
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
                let message = format!("Consul denies the write: {what}");
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
        if gone.why == Why::Found {
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
                let message = format!("Consul refuses it: {}", error.text());
                self.give_up_entry(key, due, Reason::ConsulRefused, message);
            }
            ErrorClass::AccessDenied => {
                self.writable();
                let message = format!("Consul denies the write: {}", error.text());
                self.give_up_entry(key, due, Reason::AccessDenied, message);
            }
            ErrorClass::Conflict | ErrorClass::NotFound => {
                self.writable();
                self.doubt(key.place());
                let chance = rand::rng().random::<f64>();
                self.dirty.stumble(key, due, Instant::now(), chance);
            }
            _ => {
                self.write_failed_for(&format!("cannot write to Consul: {error}"));
                if class == ErrorClass::SlowDown {
                    self.pace.slow_down(Instant::now());
                }
                if class.may_be_applied() {
                    self.doubt(key.place());
                }
                let message = format!("Consul did not take the write yet: {error}");
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
        let now = Instant::now();
        self.rules
            .refusals
            .refused(destination, &changing, message, now)
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

    // === what people hear ===

    /// Notes what was found, for status and Events, and for the guard.
    fn note_entry(&mut self, key: &Key, finding: &EntryFinding) {
        let known = self.judge_parts(key, finding);
        if finding.step == EntryStep::Settled {
            self.dirty.absolve(key);
            self.drifted.remove(key);
        }
        self.tell_entry_stands(key, finding, known);
    }

    /// Tells the guard what is missing and what is not. Returns all things that are, or were, under
    /// the key.
    fn judge_parts(&mut self, key: &Key, finding: &EntryFinding) -> BTreeSet<Key> {
        let mut missing: BTreeSet<Key> = BTreeSet::new();
        for (key, hold) in finding.held() {
            missing.insert(key.clone());
            self.held.insert(key.clone());
            if hold.is_guards() {
                self.rules.guard.found(key);
            }
        }
        let leaving: BTreeSet<&Key> = match &finding.step {
            EntryStep::Write(write) => write.removed.iter().map(|gone| &gone.key).collect(),
            _ => BTreeSet::new(),
        };
        let known = self.parts_of(key, finding);
        for part in &known {
            if missing.contains(part) {
                continue;
            }
            self.held.remove(part);
            if leaving.contains(part) {
                continue;
            }
            let stands = finding.parts.iter().find(|found| found.key == *part);
            // It may go, and waits for something else to go first.
            let goes =
                |stand: &Stand| !stand.claimed && stand.there && stand.state == State::Pending;
            if stands.is_some_and(|part| part.stands.iter().any(goes)) {
                continue;
            }
            let claimed = stands.is_some_and(|part| part.stands.iter().any(|stand| stand.claimed));
            if claimed {
                self.rules.guard.returned(part);
            } else {
                self.rules.guard.lapsed(part);
            }
        }
        known
    }

    /// The things under a key: those that are found now, and those that were known before.
    fn parts_of(&mut self, key: &Key, finding: &EntryFinding) -> BTreeSet<Key> {
        let now: BTreeSet<Key> = finding.parts.iter().map(|part| part.key.clone()).collect();
        let before = if now.is_empty() {
            self.parts.remove(key)
        } else {
            self.parts.insert(key.clone(), now.clone())
        };
        now.into_iter().chain(before.unwrap_or_default()).collect()
    }

    /// A key was touched by Kubernetes: until it is planned, nobody is told that all is well.
    pub(super) fn expect_entry(&mut self, key: &Key) {
        let key = key.clone().planned();
        let mut parts = self.parts.get(&key).cloned().unwrap_or_default();
        match &key {
            Key::Intentions(destination) => {
                let claims = self.index.intentions_of(destination);
                let names = claims.flat_map(|(_, claims)| claims.names().collect::<Vec<_>>());
                parts.extend(names.map(|name| source_key(destination, name)));
            }
            key => drop(parts.insert(key.clone())),
        }
        for part in &parts {
            self.report.expect(part, &self.index);
        }
        self.parts.insert(key, parts);
    }

    /// Tells how everything under a key stands.
    fn tell_entry_stands(&mut self, key: &Key, finding: &EntryFinding, known: BTreeSet<Key>) {
        for part in known {
            let found = finding.parts.iter().find(|found| found.key == part);
            let stands = found.map_or(&[][..], |found| &found.stands);
            let standing = |stand: &Stand| {
                let standing = Standing {
                    claimed: stand.claimed,
                    registered: stand.there.then_some(Health::Passing),
                    trouble: trouble_of(&part, stand),
                };
                (stand.owner.clone(), standing)
            };
            let standings = stands.iter().map(standing).collect();
            self.report.stand(&part, standings, &self.index);
        }
        match key {
            Key::Intentions(destination) => {
                let owners = self.index.intentions_of(destination);
                let owners: Vec<Owner> = owners.map(|(it, _)| it.owner()).collect();
                for owner in owners {
                    self.report.note_foreign(&owner, finding.foreign);
                }
            }
            Key::Query(name) => {
                let there = self.mirror.queries.get(name);
                let ledger = there.and_then(|there| there.ledger.as_ref());
                let stands = finding.parts.iter().flat_map(|part| &part.stands);
                for stand in stands {
                    let id = ledger.map(|(ledger, _)| Text::from(ledger.id.as_str()));
                    let id = id.filter(|id| stand.there && !id.is_empty());
                    self.report
                        .note_query(&stand.owner, name.text(), id.as_ref());
                }
            }
            _ => {}
        }
    }

    /// Tells of a removal.
    fn tell_gone(&mut self, Gone { key, owner, why }: &Gone, index: u64, epoch: u64) {
        let (why, seen) = match why {
            Why::Seen => ("its claim was seen going", true),
            Why::Found => ("no object claims it", false),
        };
        audit::removed(&Removed {
            kind: key.kind(),
            key: &key.to_string(),
            owner: &owner.to_string(),
            why,
            seen,
            epoch,
            index,
        });
        let note = format!("{key} is removed from Consul: {why}");
        let uid = self.index.uid(owner);
        self.report
            .event(owner, uid, EventReason::Deregistered, note);
    }

    fn tell_entry(&mut self, key: &Key, write: &EntryWrite, drift: bool, index: u64) {
        let owner = &write.owner;
        self.report.wrote(owner, index);
        let fields = write.fields.join(", ");
        tracing::info!(key = %key, owner = %owner, index, fields = &*fields, drift, "{write}");
        let reason = if drift && !write.is_note() {
            EventReason::DriftRepaired
        } else {
            EventReason::Registered
        };
        let note = match reason {
            EventReason::DriftRepaired if fields.is_empty() => {
                format!("{key} was removed in Consul by another hand and is written again")
            }
            EventReason::DriftRepaired => {
                format!("{key} was changed in Consul by another hand and is repaired ({fields})")
            }
            _ => format!("{key} is written to Consul"),
        };
        let told: Vec<Owner> = match (reason, write.puts.is_empty()) {
            (EventReason::DriftRepaired, false) => write.owners().cloned().collect(),
            (EventReason::DriftRepaired, true) => vec![owner.clone()],
            (_, false) => {
                let new = write.puts.iter().filter(|put| put.is_new);
                new.map(|put| put.owner.clone()).collect()
            }
            (_, true) if write.verb() == "create" => vec![owner.clone()],
            (_, true) => Vec::new(),
        };
        for owner in told {
            let uid = self.index.uid(&owner);
            self.report.event(&owner, uid, reason, note.clone());
        }
    }
}

/// What is not as it should be, for people.
fn trouble_of(key: &Key, stand: &Stand) -> Option<Trouble> {
    let trouble = |reason, message| Some(Trouble { reason, message });
    match &stand.state {
        State::Fine => None,
        State::Pending if !stand.claimed => trouble(
            Reason::Writing,
            format!("{key} is being removed from Consul"),
        ),
        State::Pending => trouble(Reason::Writing, format!("{key} is being written to Consul")),
        State::Conflict(holder) => trouble(
            Reason::Conflict,
            format!(
                "{holder}, which is older or keeps what it has, holds {key}: let one of the two go"
            ),
        ),
        State::OwnedByAnother(holder) => trouble(
            Reason::OwnedByAnother,
            format!(
                "{key} is not written: it is held by {holder}; remove what is there, choose another \
                 name, or take over with spec.adopt what nobody owns"
            ),
        ),
        State::Frozen(Freeze::Paused) => trouble(
            Reason::Paused,
            format!("{key} is held as it is by the annotation lictor.io/paused"),
        ),
        State::Frozen(Freeze::Invalid(problems)) => {
            let problems = problems.join("; ");
            trouble(
                Reason::Invalid,
                format!("{key} is kept as it was: {problems}"),
            )
        }
        State::Held(hold) => trouble(Reason::Held, format!("{key}: {hold}")),
        State::Refused(message) => {
            let state = if stand.there {
                "is kept as it was"
            } else {
                "is not written"
            };
            let message = format!("{key} {state}: Consul refuses it: {message}");
            trouble(Reason::ConsulRefused, message)
        }
        State::TooManySources => trouble(
            Reason::TooManySources,
            format!(
                "{key} is not written: an entry of Consul's has room for the owners of some {} \
                 sources; give this destination fewer, or shorter names",
                300
            ),
        ),
    }
}
