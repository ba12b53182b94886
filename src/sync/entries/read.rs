//! How the engine reads what is on no node: whole tables, when Consul tells that they changed.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use crate::consul::{Client, ErrorClass};
use crate::model::key::{Key, Place, Table};
use crate::model::names::{ClusterName, Destination};
use crate::observed::table::{Knowledge, TableTicket};
use crate::sync::apply::{Done, ReadError};
use crate::sync::carry::{self, Rows};
use crate::sync::dirty::{Cause, Due};
use crate::sync::engine::Engine;
use crate::sync::outage::Outage;
use crate::sync::own::OwnWrites;
use crate::sync::sweep::Sweeper;

/// When a table is read, and which signals our own writes explain.
#[derive(Debug)]
pub(in crate::sync) struct TableState {
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
pub(in crate::sync) fn states(interval: Duration) -> BTreeMap<Table, TableState> {
    let state = |table| (table, TableState::new(table, interval));
    Table::ALL.into_iter().map(state).collect()
}

/// The tables of which a signal may have the index of a write to this one: Consul counts config entries
/// of all kinds together. Writes are noted for all of them at once, under one number.
pub(super) fn with_one_index(table: Table) -> &'static [Table] {
    match table {
        Table::Defaults | Table::Intentions => &[Table::Defaults, Table::Intentions],
        Table::Queries => &[Table::Queries],
    }
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

impl Engine {
    pub(super) fn table(&mut self, table: Table) -> &mut TableState {
        let interval = self.settings.values().drift_interval;
        let state = || TableState::new(table, interval);
        self.tables.entry(table).or_insert_with(state)
    }

    // === reads ===

    /// A signal of a table: the first of its kind, or that something in it changed.
    pub(in crate::sync) fn table_changed(
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
    pub(in crate::sync) fn start_table_reads(&mut self, now: Instant, limit: usize) {
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

    pub(in crate::sync) fn absorb_table(&mut self, read: TableRead) {
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
        self.forget_what_went();
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
    pub(in crate::sync) fn is_unwatched(&self, table: Table) -> bool {
        let state = self.tables.get(&table);
        state.is_some_and(|state| state.unwatched > 0)
    }

    pub(in crate::sync) fn table_unread(&mut self, table: Table, error: &ReadError) {
        let reason = format!("cannot read {}: {error}", table.as_str());
        let chance = rand::rng().random::<f64>();
        let now = Instant::now();
        if let ReadError::Failed(error) = error
            && error.class() == ErrorClass::SlowDown
        {
            self.pace.slow_down(now);
        }
        let state = self.table(table);
        if state.outage.is_news(&reason, now) {
            tracing::warn!("{reason}");
        }
        state.outage.failed(reason, now, chance);
        state.sweeper.signal(now);
    }

    /// Plans every key of a table that is claimed or there.
    pub(super) fn touch_table(&mut self, table: Table, cause: Cause, now: Instant) {
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
    pub(super) fn depends_on(&mut self, key: &Key, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        match key {
            Key::Defaults(service) => {
                let destination = Destination::new(service.as_ref());
                let key = Key::Intentions(destination.clone());
                let under_way = self.dirty.busy().contains(&key);
                if self.rules.refusals.reconsider(&destination, under_way) {
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
}
