//! What the engine reads and writes of whose names are, and when claims are judged by it.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::apply::{Done, ReadError, sure};
use super::engine::Engine;
use super::ledgers::{self, Retry};
use super::pass::Pass;
use crate::consul::wire::KvPair;
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Txn, TxnOp, TxnOutcome, TxnResult,
};
use crate::desired::index::Touched;
use crate::metrics::OperationLabels;
use crate::model::key::{Place, Table};
use crate::model::names::ClusterName;
use crate::model::text::Text;
use crate::plan::Mode;
use crate::policy::admission::Memory;
use crate::policy::ledger::{self, Entry, Ledger, Write};
use crate::policy::names::Moment;
use crate::policy::there;

/// How soon it is read again where records of names are not understood: somebody may mend them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is read and written of whose names are.
#[derive(Debug, Default)]
pub(super) struct NamesState {
    /// The epoch under which what is known was learnt; 0 where nothing is ever written.
    epoch: Option<u64>,
    /// What Consul keeps, once it is known.
    ledger: Option<Ledger>,
    reading: bool,
    writing: bool,
    /// When it is read again. Until it is out of reach nothing is written; then present claims go on without
    /// it.
    retry: Retry,
    /// When it is looked whether all of it is understood by now.
    look_at: Option<Instant>,
    /// What of it is not understood, as was told.
    garbled: Vec<String>,
    /// What happened since claims were judged last.
    since: Since,
    /// Tables of which all that is there stays, because the rule only begins.
    kept: BTreeSet<Table>,
    /// Why nothing new is allowed, as was told.
    told: Option<Text>,
}

/// Most records that are read one by one.
const MOST_ALONE: usize = 10;

/// What happened since claims were judged last.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// Whether another process may have written.
    was_anothers: bool,
    /// Whether Consul lost what it kept.
    was_lost: bool,
}

impl Since {
    /// What it is worth what this process knows of names.
    fn memory(self) -> Memory {
        match (self.was_anothers, self.was_lost) {
            (false, _) => Memory::Holds,
            (true, true) => Memory::Outlived,
            (true, false) => Memory::Superseded,
        }
    }
}

/// What of it is read.
#[derive(Clone, Debug)]
enum Part {
    All,
    Names(BTreeSet<Text>),
}

/// It was read, or not.
#[derive(Debug)]
pub struct NamesRead {
    epoch: u64,
    part: Part,
    pairs: Result<Vec<KvPair>, ReadError>,
}

/// Keys were written, or not.
#[derive(Debug)]
pub struct NamesWritten {
    epoch: u64,
    writes: Vec<Write>,
    outcome: Result<TxnOutcome, ConsulError>,
}

/// Reads what Consul keeps of names.
///
/// # Errors
///
/// What may not be read, or not all of it: that is not missing.
pub async fn read_pairs(client: &Client, cluster: &ClusterName) -> Result<Vec<KvPair>, ReadError> {
    let prefix = ledger::prefix(cluster);
    let pairs = sure(client.kv_list(&prefix, Consistency::Consistent).await)?;
    let rule = ledger::rule_key(cluster);
    if !pairs.iter().any(|pair| *pair.key == *rule) {
        // Consul leaves keys out of a list without a word where the token may not read them; asked for
        // one alone it says so.
        client.kv_get(&rule, Consistency::Consistent).await?;
    }
    Ok(pairs)
}

/// Reads the records of these names alone.
async fn read_records(
    client: &Client,
    cluster: &ClusterName,
    names: &BTreeSet<Text>,
) -> Result<Vec<KvPair>, ReadError> {
    let mut pairs = Vec::with_capacity(names.len());
    for name in names {
        let key = ledger::key(cluster, name);
        pairs.extend(sure(client.kv_get(&key, Consistency::Consistent).await)?);
    }
    Ok(pairs)
}

async fn read(client: Client, cluster: ClusterName, epoch: u64, part: Part) -> Done {
    let pairs = match &part {
        Part::All => read_pairs(&client, &cluster).await,
        Part::Names(names) => read_records(&client, &cluster, names).await,
    };
    Done::ReadNames(NamesRead { epoch, part, pairs })
}

async fn write(client: Client, pass: Pass, txn: Txn, writes: Vec<Write>) -> Done {
    let outcome = pass.apply(&client, &txn).await;
    Done::WroteNames(NamesWritten {
        epoch: pass.epoch(),
        writes,
        outcome,
    })
}

fn key_of(cluster: &ClusterName, entry: &Entry) -> String {
    match entry {
        Entry::Name(name) => ledger::key(cluster, name),
        Entry::Rule => ledger::rule_key(cluster),
    }
}

fn transaction(cluster: &ClusterName, writes: &[Write]) -> Result<Txn, String> {
    let mut txn = Txn::new();
    for write in writes {
        let key = key_of(cluster, &write.entry);
        let (key, index) = (&*key, write.index);
        let op = match &write.value {
            Some(value) => TxnOp::KvCas { key, value, index },
            None => TxnOp::KvDeleteCas { key, index },
        };
        txn.push(&op).map_err(|full| full.to_string())?;
    }
    Ok(txn)
}

/// This moment, on both clocks.
#[must_use]
pub fn moment(now: Instant) -> Moment {
    let wall = jiff::Timestamp::now().as_second();
    Moment { now, wall }
}

impl NamesState {
    /// When it is to be read again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.retry.at().into_iter().chain(self.look_at).min()
    }
}

impl Engine {
    /// What it is worth what this process knows of names.
    pub(super) fn memory_of_names(&self) -> Memory {
        self.names.since.memory()
    }

    /// Another process led: what it kept of names decides.
    pub(super) fn followed_names(&mut self) {
        self.names.since = Since {
            was_anothers: true,
            was_lost: false,
        };
    }

    /// Consul lost what it kept of names; `followed` says whether another process led since this one did.
    pub(super) fn lost_names(&mut self, followed: bool) {
        self.names.since.was_anothers |= followed;
        self.names.since.was_lost = true;
    }

    /// Judges claims once all that they are judged by is known, and keeps in Consul whose names are.
    pub(super) fn keep_names(&mut self, now: Instant) {
        if !self.index.admission.is_on() {
            return;
        }
        let rehearses = self.rules.mode == Mode::DryRun && self.is_ready();
        let epoch = self.fence.index().or(rehearses.then_some(0));
        if self.names.epoch != epoch {
            self.names = NamesState {
                epoch,
                reading: self.names.reading,
                since: self.names.since,
                garbled: std::mem::take(&mut self.names.garbled),
                retry: self.names.retry.begun_anew(),
                told: self.names.told.take(),
                ..NamesState::default()
            };
            self.index.admission.unsettle();
        }
        let Some(epoch) = epoch.filter(|_| self.is_ready()) else {
            return;
        };
        if !self.index.admission.needs_ledger() && !self.index.admission.is_settled() {
            self.settle(Ok(&Ledger::default()), now);
        }
        let unread = self.names.ledger.is_none();
        let is_over = |at: Instant| at <= now;
        let looks = self.names.look_at.is_some_and(is_over);
        let due = self.names.retry.at().map_or(unread || looks, is_over);
        if due && !self.names.reading && self.outage.limit(now, 1) > 0 {
            self.names.retry.begins();
            self.names.look_at = None;
            self.names.reading = true;
            let lacking = self.names.ledger.as_ref().map(|ledger| {
                let names = ledger.not_understood();
                names.take(MOST_ALONE + 1).collect::<BTreeSet<_>>()
            });
            let few = lacking.filter(|names| (1..=MOST_ALONE).contains(&names.len()));
            let part = few.map_or(Part::All, Part::Names);
            let cluster = self.index.cluster().clone();
            self.jobs
                .spawn(read(self.consul.clone(), cluster, epoch, part));
        }
        self.keep_what_is_there();
        let used = OnceCell::new();
        let mut tables = there::TABLES.into_iter();
        // What is not known for sure may be there.
        let unsure = tables.any(|table| self.mirror.is_unsure(&Place::Table(table)));
        let has = |name: &Text, namespace: &Text| {
            // It is asked for only when a name is due to be let go.
            let all = || used.get_or_init(|| there::used(&self.mirror));
            unsure || all().contains(&(name.clone(), namespace.clone()))
        };
        self.index.admission.tick(moment(now), has);
        self.touch_judged(now);
        self.write_names(now);
        self.tell_freeze();
    }

    fn touch_judged(&mut self, now: Instant) {
        if !self.index.admission.has_news() {
            return;
        }
        let mut touched = Touched::default();
        self.index.touch_judged(&mut touched);
        self.touch(touched, now);
    }

    fn settle(&mut self, ledger: Result<&Ledger, &Text>, now: Instant) {
        let registered = there::registered(&self.mirror);
        let memory = self.memory_of_names();
        // Until it is known what the other one kept, nothing that was known before counts.
        if ledger.is_ok() {
            self.names.since = Since::default();
        }
        let moment = moment(now);
        let index = &mut self.index;
        index
            .admission
            .settle(ledger, registered, memory, moment, &index.watches);
        self.touch_judged(now);
    }

    /// Where the rule only begins, what is in Consul already stays, also what is on no node.
    fn keep_what_is_there(&mut self) {
        if !self.index.admission.begins() {
            return;
        }
        for table in there::TABLES {
            if self.mirror.is_unsure(&Place::Table(table)) || !self.names.kept.insert(table) {
                continue;
            }
            for claim in there::in_table(table, &self.mirror) {
                self.index.admission.keep_there(&claim);
            }
        }
        if self.names.kept.len() == there::TABLES.len() {
            self.index.admission.begun();
        }
    }

    fn tell_freeze(&mut self) {
        let freeze = self.index.admission.freeze().cloned();
        if self.names.told != freeze {
            if let Some(why) = &freeze {
                tracing::warn!(
                    "nothing new may be claimed, and nothing is withdrawn for a policy: {why}"
                );
            } else {
                tracing::info!("policies are known, and claims are judged by them");
            }
            self.names.told = freeze;
        }
    }

    // === what Consul keeps ===

    pub(super) fn absorb_names_read(&mut self, read: NamesRead) {
        let now = Instant::now();
        self.names.reading = false;
        let NamesRead { epoch, part, pairs } = read;
        if self.names.epoch != Some(epoch) {
            return;
        }
        let pairs = match pairs {
            Ok(pairs) => pairs,
            Err(error) => return self.cannot_read_names(&error, now),
        };
        self.answered();
        self.names.retry.succeeded();
        self.names.retry.is_well();
        let (read, garbled) = Ledger::of(self.index.cluster(), &pairs);
        let (mut ledger, of) = match (part, self.names.ledger.take()) {
            (Part::Names(names), Some(mut ledger)) => {
                ledger.renew(&names, read);
                (ledger, Some(names))
            }
            // Something made all of it doubtful meanwhile.
            (Part::Names(_), None) => return,
            (Part::All, _) => (read, None),
        };
        if self.names.garbled != garbled {
            for line in &garbled {
                tracing::warn!("{line}");
            }
            self.names.garbled = garbled;
        }
        if self.index.admission.needs_ledger() {
            // What was not written yet is looked at again.
            let admission = &self.index.admission;
            if admission.is_settled() && !admission.lacks_ledger() {
                self.index.admission.reread(&ledger, of, moment(now));
                self.touch_judged(now);
            } else {
                self.settle(Ok(&ledger), now);
            }
            if self.index.admission.lacks_names() {
                self.names.look_at = Some(now + LOOK_AGAIN);
            }
        } else {
            let names: Vec<Text> = ledger.names().collect();
            ledger.want(names);
        }
        self.names.ledger = Some(ledger);
    }

    fn cannot_read_names(&mut self, error: &ReadError, now: Instant) {
        if !self.names.retry.failed(error, now, rand::random()) {
            return;
        }
        self.cannot_keep_names(&error.to_string(), now);
        if self.index.admission.needs_ledger() && !self.index.admission.is_settled() {
            let prefix = ledger::prefix(self.index.cluster());
            let why = format!("{prefix} in Consul's KV cannot be read: {error}").into();
            self.settle(Err(&why), now);
        }
    }

    fn cannot_keep_names(&mut self, why: &str, now: Instant) {
        if self.names.retry.gives_up(why, now) {
            let prefix = ledger::prefix(self.index.cluster());
            tracing::warn!("whose names are is not kept: {prefix} in Consul's KV: {why}");
        }
    }

    fn write_names(&mut self, now: Instant) {
        let exclusive = self.index.admission.needs_ledger();
        let Some(ledger) = &mut self.names.ledger else {
            return;
        };
        ledger.want(self.index.admission.take_dirty());
        if !exclusive || self.index.admission.rule_stands() {
            ledger.want_rule(exclusive);
        }
        let again = self.names.retry.at().is_some_and(|at| at > now);
        if !ledger.is_dirty()
            || self.names.writing
            || again
            || self.rules.mode == Mode::DryRun
            || !self.strange.is_empty()
            || !self.may_write(now)
        {
            return;
        }
        let (Some(pass), Some(ledger)) = (self.pass(), &mut self.names.ledger) else {
            return;
        };
        let wall = jiff::Timestamp::now().as_second();
        let admission = &self.index.admission;
        let writes = ledger.next_writes(wall, |name| admission.record(name));
        if writes.is_empty() {
            return;
        }
        let txn = match transaction(self.index.cluster(), &writes) {
            Ok(txn) => txn,
            Err(why) => return self.cannot_keep_names(&why, now),
        };
        self.names.writing = true;
        self.entry_writes += 1;
        self.pace.begun(writes.len(), now);
        self.jobs
            .spawn(write(self.consul.clone(), pass, txn, writes));
    }

    pub(super) fn absorb_names_write(&mut self, written: NamesWritten) {
        let now = Instant::now();
        let NamesWritten {
            epoch,
            writes,
            outcome,
        } = written;
        self.entry_writes -= 1;
        let is_current = self.names.epoch == Some(epoch);
        if is_current {
            self.names.writing = false;
        }
        self.count_names(&writes, &outcome);
        match outcome {
            Ok(TxnOutcome::Applied(results)) => {
                self.writable();
                let cluster = self.index.cluster();
                let index_of = |entry: &Entry| {
                    let key = key_of(cluster, entry);
                    results.iter().find_map(|result| match result {
                        TxnResult::Kv(pair) if *pair.key == *key => Some(pair.modify_index),
                        _ => None,
                    })
                };
                if let Some(ledger) = self.names.ledger.as_mut().filter(|_| is_current) {
                    for write in &writes {
                        let index = index_of(&write.entry).unwrap_or_default();
                        ledger.written(write, index);
                    }
                }
            }
            Ok(TxnOutcome::Fenced { what, reason }) => {
                self.fenced_off(epoch, &what, reason);
                self.doubt_names(is_current, &writes);
            }
            Ok(TxnOutcome::RolledBack(errors)) => {
                self.writable();
                self.doubt_names(is_current, &writes);
                let refused = ledgers::refusal(&errors);
                if let Some(error) = refused.filter(|_| is_current) {
                    self.cannot_keep_names(&error.what, now);
                }
            }
            Err(error) => {
                self.doubt_names(is_current, &writes);
                match error.class() {
                    ErrorClass::Refused | ErrorClass::AccessDenied if is_current => {
                        self.cannot_keep_names(&error.to_string(), now);
                    }
                    _ => self.not_written(&error, now),
                }
            }
        }
    }

    /// It is not known what Consul keeps of these: all is read anew.
    fn doubt_names(&mut self, is_current: bool, writes: &[Write]) {
        let names = writes.iter().filter_map(|write| match &write.entry {
            Entry::Name(name) => Some(name.clone()),
            Entry::Rule => None,
        });
        self.index.admission.doubt_records(names);
        if is_current {
            self.names.ledger = None;
        }
    }

    fn count_names(&self, writes: &[Write], outcome: &Result<TxnOutcome, ConsulError>) {
        for write in writes {
            let labels = OperationLabels {
                kind: "name",
                verb: match (&write.value, write.index) {
                    (None, _) => "delete",
                    (Some(_), 0) => "create",
                    (Some(_), _) => "update",
                },
                outcome: ledgers::label(outcome),
            };
            self.report.metrics.operations.get_or_create(&labels).inc();
        }
    }
}
