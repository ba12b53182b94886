//! What the engine makes of how long instances have been critical: when they are planned, and what is kept
//! of it in Consul's KV.

mod looks;

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::apply::{Done, ReadError, sure};
use super::dirty::{Cause, Due};
use super::engine::Engine;
use super::ledgers::{self, Retry};
use super::pass::Pass;
use super::signals::Signal;
use crate::consul::wire::KvPair;
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Txn, TxnOp, TxnOutcome, TxnResult,
};
use crate::k8s::{Question, WatchEvent};
use crate::metrics::OperationLabels;
use crate::model::critical;
use crate::model::facts::{NodeFacts, Tristate};
use crate::model::key::{InstanceKey, Key, Place};
use crate::model::names::{ClusterName, NodeName};
use crate::model::text::Text;
use crate::plan::critical::kept::{Kept, KeptWrite};
use crate::plan::critical::{is_lost, with_proxy};
use crate::plan::gate::Hold;
use crate::plan::guard::Guard;
use crate::plan::{Finding, Mode, Step};

/// What is read and written of how long instances have been critical.
#[derive(Debug)]
pub(super) struct Critical {
    /// The epoch under which what is known was learnt; 0 where nothing is ever written.
    pub(super) epoch: Option<u64>,
    reading: bool,
    /// When it is read again. Until it is out of reach what is critical and not registered waits: it may have
    /// been deregistered.
    retry: Retry,
    /// Whether a side is out of reach.
    is_lost: bool,
    /// Keys that the guard judges for that, and not because something is missing.
    offered: BTreeSet<Key>,
    /// Where it is asked how single pods are.
    questions: mpsc::Sender<Question>,
    /// Why the API server cannot be asked, as was told.
    unanswered: Option<Text>,
}

/// It was read, or not.
#[derive(Debug)]
pub struct CriticalRead {
    pub(super) epoch: u64,
    pub(super) pairs: Result<Vec<KvPair>, ReadError>,
}

/// A key was written, or not.
#[derive(Debug)]
pub struct CriticalWritten {
    epoch: u64,
    write: KeptWrite,
    outcome: Result<TxnOutcome, ConsulError>,
}

async fn read(client: Client, cluster: ClusterName, epoch: u64) -> Done {
    let prefix = critical::prefix(&cluster);
    let pairs = sure(client.kv_list(&prefix, Consistency::Consistent).await);
    Done::ReadCritical(CriticalRead { epoch, pairs })
}

async fn write(client: Client, pass: Pass, txn: Txn, write: KeptWrite) -> Done {
    let outcome = pass.apply(&client, &txn).await;
    Done::WroteCritical(CriticalWritten {
        epoch: pass.epoch(),
        write,
        outcome,
    })
}

/// The transaction of a write.
fn transaction(cluster: &ClusterName, write: &KeptWrite) -> Result<Txn, String> {
    let key = critical::key(cluster, &write.node);
    let (key, index) = (&*key, write.index);
    let value = serde_json::to_vec(&write.times).map_err(|error| error.to_string())?;
    let mut txn = Txn::new();
    let op = if write.times.instances.is_empty() {
        TxnOp::KvDeleteCas { key, index }
    } else {
        let value = &value;
        TxnOp::KvCas { key, value, index }
    };
    txn.push(&op).map_err(|full| full.to_string())?;
    Ok(txn)
}

impl Critical {
    /// Nothing is known yet; of pods is asked there.
    pub(super) fn new(questions: mpsc::Sender<Question>) -> Self {
        Self {
            epoch: None,
            reading: false,
            retry: Retry::default(),
            is_lost: false,
            offered: BTreeSet::new(),
            questions,
            unanswered: None,
        }
    }

    /// The guard judges a key; `claimed` says that it is for its health, and not for being missing.
    pub(super) fn offer(&mut self, key: &Key, claimed: bool) {
        if claimed {
            self.offered.insert(key.clone());
        } else {
            self.offered.remove(key);
        }
    }

    /// Whether the guard judges a key for its health.
    pub(super) fn is_offered(&self, key: &Key) -> bool {
        self.offered.contains(key)
    }

    /// A key is not to be judged any more.
    pub(super) fn withdraw(&mut self, key: &Key) {
        self.offered.remove(key);
    }

    /// When it is to be read again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.retry.at()
    }
}

impl Engine {
    /// How an instance is was found out.
    pub(super) fn follow_critical(&mut self, key: &InstanceKey, finding: &Finding) {
        let criticals = &mut self.rules.criticals;
        match &finding.critical {
            Some(watched) => {
                criticals.observe(&watched.instance, Some(watched), Instant::now());
                if let (Some(Hold::Unseen), Some(pod)) = (&finding.hold, &watched.pod) {
                    let looks = &mut self.rules.criticals.looks;
                    looks.want(&watched.instance, pod, Instant::now());
                }
            }
            // What stands there is not known.
            None if finding.step == Step::Waiting => {}
            None => criticals.observe(key, None, Instant::now()),
        }
    }

    /// A node that is not Ready, or just became so, says nothing of what is on it.
    pub(super) fn nodes_turn(&mut self, event: &WatchEvent<NodeFacts>, at: Instant) {
        let gone = match event {
            WatchEvent::Deleted { object, .. } => Some(&object.name),
            _ => None,
        };
        let shown = match event {
            WatchEvent::Page(nodes) => &**nodes,
            WatchEvent::Applied(node) => std::slice::from_ref(node),
            _ => &[],
        };
        let is_news = |node: &&NodeFacts| {
            node.ready != Tristate::True || !self.index.is_node_ready(&node.name)
        };
        let shown = shown.iter().filter(is_news).map(|node| &node.name);
        let names: Vec<NodeName> = shown
            .chain(gone)
            .map(|name| NodeName::for_kubernetes(self.index.cluster(), name))
            .collect();
        for name in names {
            let is_there = |key: &InstanceKey| self.mirror.instance(key).is_some();
            self.rules.criticals.interrupt(Some(&name), is_there, at);
        }
    }

    /// While Consul is out of reach, so may be what is asked: what is seen says nothing.
    pub(super) fn miss_contact(&mut self, signal: &Signal, now: Instant) {
        let is_lost = match signal {
            Signal::Failed { topic, .. } => topic.table().is_none(),
            Signal::Changed { interrupted, .. } => *interrupted,
            _ => false,
        };
        if is_lost {
            let is_there = |key: &InstanceKey| self.mirror.instance(key).is_some();
            self.rules.criticals.interrupt(None, is_there, now);
        }
    }

    /// Plans what was critical for long enough, and keeps in Consul for how long that was.
    pub(super) fn keep_critical_times(&mut self, now: Instant) {
        let rehearses = self.rules.mode == Mode::DryRun && self.is_ready();
        let epoch = self.fence.index().or(rehearses.then_some(0));
        if self.critical.epoch != epoch {
            self.critical = Critical {
                epoch,
                is_lost: self.critical.is_lost,
                reading: self.critical.reading,
                unanswered: self.critical.unanswered.take(),
                ..Critical::new(self.critical.questions.clone())
            };
            self.rules.criticals.forget();
        }
        let is_there = |key: &InstanceKey| self.mirror.instance(key).is_some();
        let outages = [&self.outage, &self.unreadable, &self.unwritable];
        let is_lost =
            outages.iter().any(|outage| outage.reason().is_some()) || is_lost(&self.index.watches);
        let criticals = &mut self.rules.criticals;
        if std::mem::replace(&mut self.critical.is_lost, is_lost) != is_lost {
            criticals.interrupt(None, is_there, now);
        }
        let wall = jiff::Timestamp::now().as_second();
        let ripe = criticals.ripen(is_there, now, wall);
        self.touch_instances(ripe, now);
        let Some(epoch) = epoch else {
            return;
        };
        let unread = self.rules.criticals.kept.is_unread();
        let due = self.critical.retry.at().map_or(unread, |at| at <= now);
        // After Consul, by which it is known what is still to go and what already went.
        let free = !self.critical.reading && self.outage.limit(now, 1) > 0 && self.is_ready();
        if free && due {
            self.critical.retry.begins();
            self.critical.reading = true;
            let cluster = self.index.cluster().clone();
            self.jobs.spawn(read(self.consul.clone(), cluster, epoch));
        }
        self.write_critical_times(now);
    }

    fn write_critical_times(&mut self, now: Instant) {
        if self.rules.mode == Mode::DryRun {
            // What would go is told as if it were kept.
            while let Some(planned) = self.rules.criticals.next_write() {
                self.rules.criticals.kept.written(planned, Some(0));
            }
            return;
        }
        while self.rules.criticals.has_changed()
            && self.strange.is_empty()
            && self.may_write(now)
            && let Some(pass) = self.pass()
            && let Some(planned) = self.rules.criticals.next_write()
        {
            let txn = match transaction(self.index.cluster(), &planned) {
                Ok(txn) => txn,
                Err(why) => return self.cannot_keep(&why, now),
            };
            self.entry_writes += 1;
            self.pace.begun(1, now);
            self.jobs
                .spawn(write(self.consul.clone(), pass, txn, planned));
        }
    }

    /// Tells the guard how many more are on their way to it.
    pub(super) fn expect_critical(&mut self, now: Instant) {
        let soon = if self.critical.offered.is_empty() {
            0
        } else {
            self.rules.criticals.soon(now)
        };
        let offered = &self.critical.offered;
        let health_alone = |guard: &Guard| guard.waiting().all(|waiting| offered.contains(waiting));
        self.rules.guard.expect(soon, health_alone);
    }

    /// Whether all that the guard judges is judged for its health: then whatever recovers of it tells of the
    /// rest, as objects that come back do.
    pub(super) fn judges_health_alone(&self) -> bool {
        let offered = &self.critical.offered;
        let mut waiting = self.rules.guard.waiting();
        !offered.is_empty() && waiting.all(|waiting| offered.contains(waiting))
    }

    fn touch_instances(&mut self, keys: impl IntoIterator<Item = InstanceKey>, now: Instant) {
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        for key in keys {
            for key in with_proxy(key, &self.index, &self.mirror) {
                self.dirty.touch(key, due);
            }
        }
    }

    pub(super) fn absorb_critical_read(&mut self, read: CriticalRead) {
        let now = Instant::now();
        self.critical.reading = false;
        let CriticalRead { epoch, pairs } = read;
        if self.critical.epoch != Some(epoch) {
            return;
        }
        match pairs {
            Ok(pairs) => {
                self.answered();
                self.critical.retry.succeeded();
                let wall = jiff::Timestamp::now().as_second();
                let (kept, garbled) = Kept::of(self.index.cluster(), &pairs, now, wall);
                for key in garbled {
                    tracing::warn!("{key}");
                }
                let is_there = |key: &InstanceKey| self.mirror.instance(key).is_some();
                let keys = self.rules.criticals.read(kept, is_there, now);
                self.touch_instances(keys, now);
            }
            Err(error) => self.cannot_read(&error, now),
        }
        // What waited to know whether it was deregistered before.
        let places: Vec<Place> = self.waiting.keys().cloned().collect();
        for place in places {
            self.go_on(&place);
        }
    }

    /// It could not be read. Where that may be over in a moment, what may have been deregistered waits: it
    /// would be registered once more.
    pub(super) fn cannot_read(&mut self, error: &ReadError, now: Instant) {
        if self.critical.retry.failed(error, now, rand::random()) {
            self.cannot_keep(&error.to_string(), now);
        } else {
            tracing::debug!("what was deregistered for being critical cannot be read: {error}");
        }
    }

    /// How long something was critical cannot be read, or not be kept: nothing goes by it meanwhile.
    fn cannot_keep(&mut self, why: &str, now: Instant) {
        self.rules.criticals.kept.failed();
        if self.critical.retry.gives_up(why, now) {
            let prefix = critical::prefix(self.index.cluster());
            tracing::warn!(
                "nothing is deregistered for being critical: {prefix} in Consul's KV cannot be used: {why}"
            );
        }
    }

    pub(super) fn absorb_critical_write(&mut self, written: CriticalWritten) {
        let now = Instant::now();
        let CriticalWritten {
            epoch,
            write,
            outcome,
        } = written;
        self.entry_writes -= 1;
        self.count_critical(&write, &outcome);
        let is_current = self.critical.epoch == Some(epoch);
        match outcome {
            Ok(TxnOutcome::Applied(results)) => {
                self.writable();
                if !is_current {
                    return;
                }
                let index = results.iter().find_map(|result| match result {
                    TxnResult::Kv(pair) => Some(pair.modify_index),
                    _ => None,
                });
                let node = write.node.clone();
                self.critical.retry.is_well();
                self.rules.criticals.kept.written(write, index);
                let keys: Vec<_> = self.rules.criticals.on_node(&node).cloned().collect();
                self.touch_instances(keys, now);
            }
            Ok(TxnOutcome::Fenced { what, reason }) => {
                self.fenced_off(epoch, &what, reason);
                self.rules.criticals.kept.doubt();
            }
            _ if !is_current => {}
            Ok(TxnOutcome::RolledBack(errors)) => {
                self.writable();
                match ledgers::refusal(&errors) {
                    Some(error) => self.cannot_keep(&error.what, now),
                    // Another hand was there.
                    None => self.rules.criticals.kept.doubt(),
                }
            }
            Err(error) => match error.class() {
                ErrorClass::Refused | ErrorClass::AccessDenied => {
                    self.cannot_keep(&error.to_string(), now);
                }
                _ => {
                    self.not_written(&error, now);
                    self.rules.criticals.kept.doubt();
                }
            },
        }
    }

    fn count_critical(&self, write: &KeptWrite, outcome: &Result<TxnOutcome, ConsulError>) {
        let labels = OperationLabels {
            kind: "critical",
            verb: match write.index {
                _ if write.times.instances.is_empty() => "delete",
                0 => "create",
                _ => "update",
            },
            outcome: ledgers::label(outcome),
        };
        self.report.metrics.operations.get_or_create(&labels).inc();
    }
}
