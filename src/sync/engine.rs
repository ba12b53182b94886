//! The engine: one task that owns all state, takes events, plans what they touched, and starts
//! writes and reads of which there is a bounded number at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::{self, Done};
use super::dirty::{Cause, Dirty, Due};
use super::outage::Outage;
use super::own::OwnWrites;
use super::report::Report;
use super::signals::{Signal, Table};
use super::sweep::Sweeper;
use crate::consul::Client;
use crate::desired::index::{Index, Touched};
use crate::desired::registration::Registration;
use crate::desired::watches::Kind;
use crate::k8s::{BrokenKind, Change, EventReason, KubeEvent, WatchEvent};
use crate::metrics::KindLabel;
use crate::model::key::Key;
use crate::model::names::NodeName;
use crate::observed::mirror::{Completeness, Mirror};
use crate::plan::batch::{Batch, BatchedStep, Overflow};
use crate::plan::{self, Finding, Step};
use crate::status::board::{Reason, Trouble};

/// Transactions under way at once.
const WRITES: usize = 8;
/// Reads under way at once.
const READS: usize = 8;
/// Keys planned in a row before events are looked at again.
const PLANNED_IN_A_ROW: usize = 512;
/// Events taken in a row.
const EVENTS_IN_A_ROW: usize = 256;
/// How often all keys are planned, to find what incremental passes missed.
const AUDIT_INTERVAL: Duration = Duration::from_mins(10);
/// How long writes that are under way may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// Whether the engine knows enough to work, for `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whether all watches and Consul's snapshot have been complete once, and no CRD is missing.
    pub ready: bool,
    /// What is missing or broken at this moment, for people.
    pub remarks: Vec<String>,
}

/// Why the engine ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A job of the engine's broke down: its state cannot be relied on any more.
    #[error("a job of the engine broke down: {0}")]
    Job(#[from] JoinError),
    /// The watches of Kubernetes ended.
    #[error("the watches of Kubernetes ended")]
    WatchesEnded,
}

/// The engine's state; everything is changed by its one task only.
pub struct Engine {
    pub(super) consul: Client,
    pub(super) index: Index,
    pub(super) mirror: Mirror,
    pub(super) dirty: Dirty,
    pub(super) report: Report,
    pub(super) outage: Outage,
    /// Why Consul's answers to reads say nothing, if they do not: a write that is answered is no end
    /// of that.
    pub(super) unreadable: Outage,
    /// Why nodes could not be written, for the instances that wait for them.
    pub(super) node_troubles: BTreeMap<NodeName, Trouble>,
    pub(super) sweeper: Sweeper,
    /// Nodes to read out of turn: at the start, or because it is not known what stands there.
    pub(super) unread: BTreeSet<NodeName>,
    /// The nodes that the first snapshot still lacks; `None` until they were listed.
    pub(super) loading: Option<BTreeSet<NodeName>>,
    pub(super) listing: bool,
    /// Kinds that the API server does not serve: their CRD is missing.
    missing: BTreeSet<Kind>,
    /// Tables of which no signal came yet: what changes in them would go unnoticed, so that the
    /// first snapshot is not taken before.
    unwatched: BTreeSet<Table>,
    /// Keys that wait for their node, which is being written or read.
    pub(super) on_node: BTreeMap<NodeName, BTreeMap<Key, Due>>,
    /// Keys that would be removed, were it safe.
    pub(super) held: BTreeSet<Key>,
    /// Keys that go into a transaction of their own, because Consul refused one that they were in.
    pub(super) alone: HashSet<Key>,
    pub(super) own: OwnWrites,
    pub(super) reads: usize,
    jobs: JoinSet<Done>,
    audit_at: Option<Instant>,
    /// Whether everything was known once.
    known_once: bool,
    readiness: watch::Sender<Readiness>,
}

impl Engine {
    /// An engine that knows nothing yet, and where to see how far it is.
    #[must_use]
    pub fn new(
        consul: Client,
        index: Index,
        report: Report,
        drift_interval: Duration,
    ) -> (Self, watch::Receiver<Readiness>) {
        let (readiness, ready) = watch::channel(Readiness::default());
        let mirror = Mirror::new(index.cluster().clone());
        let engine = Self {
            consul,
            index,
            mirror,
            dirty: Dirty::default(),
            report,
            outage: Outage::default(),
            unreadable: Outage::default(),
            node_troubles: BTreeMap::new(),
            sweeper: Sweeper::new(drift_interval),
            unread: BTreeSet::new(),
            loading: None,
            listing: false,
            missing: BTreeSet::new(),
            unwatched: Table::ALL.into(),
            on_node: BTreeMap::new(),
            held: BTreeSet::new(),
            alone: HashSet::new(),
            own: OwnWrites::default(),
            reads: 0,
            jobs: JoinSet::new(),
            audit_at: None,
            known_once: false,
            readiness,
        };
        (engine, ready)
    }

    /// Works until stopped; then waits a moment for the writes that are under way.
    pub async fn run(
        mut self,
        mut kubernetes: mpsc::Receiver<KubeEvent>,
        mut signals: mpsc::Receiver<Signal>,
        stop: CancellationToken,
    ) -> Result<(), EngineError> {
        let mut events = Vec::with_capacity(EVENTS_IN_A_ROW);
        loop {
            // One moment for both: what falls due after it is what there is to wake up for.
            let now = Instant::now();
            self.work(now);
            let wake = self.wake_at(now);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.jobs.join_next() => {
                    self.absorb(done?);
                    while let Some(done) = self.jobs.try_join_next() {
                        self.absorb(done?);
                    }
                }
                count = kubernetes.recv_many(&mut events, EVENTS_IN_A_ROW) => {
                    if count == 0 {
                        return Err(EngineError::WatchesEnded);
                    }
                    for event in events.drain(..) {
                        self.take(event);
                    }
                }
                Some(signal) = signals.recv() => self.heed(&signal, Instant::now()),
                () = sleep_until(wake), if wake.is_some() => {}
            }
        }
        let last = async { while self.jobs.join_next().await.is_some() {} };
        // Whatever is left may or may not be applied; the next process reads before it writes.
        let _ = tokio::time::timeout(LAST_WRITES, last).await;
        Ok(())
    }

    /// When there is something to do without an event.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.may_write(now) && self.dirty.has_ready() {
            return Some(now);
        }
        // What is overdue waits for a job to end or for an outage to pass, and both wake the engine.
        [
            self.dirty.next_ripe(),
            self.sweeper.wake_at(),
            self.outage.wake_at(),
            self.unreadable.wake_at(),
            self.report.wake_at(),
            self.audit_at,
        ]
        .into_iter()
        .flatten()
        .filter(|at| *at > now)
        .min()
    }

    /// Does all that can be done now.
    fn work(&mut self, now: Instant) {
        self.dirty.ripen(now);
        self.audit(now);
        if self.own.unexplained(now) {
            self.sweeper.signal(now);
        }
        self.start_reads(now);
        self.start_writes(now);
        let outage = self.outage.reason().or(self.unreadable.reason());
        // Before Consul is known, only its absence is worth telling.
        let known = self.mirror.completeness() == Completeness::Complete || outage.is_some();
        if self.index.watches.all_listed() && known {
            self.report.flush(&self.index, outage, now);
        }
        self.tell_readiness();
    }

    // === events of Kubernetes ===

    fn take(&mut self, event: KubeEvent) {
        let at = event.at;
        let mut touched = Touched::default();
        let complete = self.index.watches.all_complete();
        match event.change {
            Change::Pod(event) => {
                self.watched(
                    Kind::Pod,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(pod) => index.apply_pod(pod, touched),
                        One::Deleted(pod) => index.remove_pod(&pod.namespace, &pod.name, touched),
                    },
                );
            }
            Change::Node(event) => {
                self.watched(
                    Kind::Node,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(node) => index.apply_node(node, touched),
                        One::Deleted(node) => index.remove_node(&node.name, touched),
                    },
                );
            }
            Change::Registration(event) => {
                match &event {
                    WatchEvent::Applied(object) => self.report.observed(object),
                    WatchEvent::Page(page) => {
                        for object in page {
                            self.report.observed(object);
                        }
                    }
                    _ => {}
                }
                self.watched(
                    Kind::Registration,
                    event,
                    &mut touched,
                    |index, change, touched| match change {
                        One::Applied(object) => {
                            index.apply_registration(Registration::of(&object), touched);
                        }
                        One::Deleted(object) => {
                            index.remove_registration(&object.namespace, &object.name, touched);
                        }
                    },
                );
            }
        }
        self.touch(touched, at);
        if !complete && self.index.watches.all_complete() {
            self.complete_again(at);
        }
    }

    fn watched<T>(
        &mut self,
        kind: Kind,
        event: WatchEvent<T>,
        touched: &mut Touched,
        change: impl Fn(&mut Index, One<T>, &mut Touched),
    ) {
        let index = &mut self.index;
        match event {
            WatchEvent::Listing => index.begin_list(kind),
            WatchEvent::Page(page) => {
                for object in page {
                    change(index, One::Applied(object), touched);
                }
            }
            WatchEvent::Listed { .. } => {
                index.end_list(kind, touched);
                self.missing.remove(&kind);
            }
            WatchEvent::Applied(object) => change(index, One::Applied(object), touched),
            WatchEvent::Deleted(object) => change(index, One::Deleted(object), touched),
            WatchEvent::Broken(broken) => {
                index.watches.broken(kind, broken.message.to_string());
                if broken.kind == BrokenKind::Missing {
                    self.missing.insert(kind);
                }
                let label = KindLabel {
                    kind: kind.resource(),
                };
                let restarts = &self.report.metrics.watch_restarts;
                restarts.get_or_create(&label).inc();
            }
            WatchEvent::Healthy => index.watches.healthy(kind),
        }
    }

    /// All kinds are known completely, for the first time or once more.
    fn complete_again(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.held) {
            self.dirty.touch(
                key,
                Due {
                    cause: Cause::Read,
                    since: now,
                },
            );
        }
        if self.mirror.completeness() == Completeness::Complete {
            // Before the first time, nothing was planned that could have been missed.
            let cause = if self.known_once {
                Cause::Audit
            } else {
                Cause::Read
            };
            self.touch_all(cause, now);
        }
    }

    pub(super) fn touch(&mut self, touched: Touched, now: Instant) {
        let due = Due {
            cause: Cause::Kubernetes,
            since: now,
        };
        let Touched {
            keys,
            holdings,
            problems,
            registrations,
        } = touched;
        let mut touched = keys;
        for holding in holdings {
            let held = self.mirror.held_by(&holding.owner, holding.node.as_ref());
            for key in &held {
                if let (true, Key::Instance(key)) = (holding.gone, key) {
                    self.index.withdraw(key);
                }
            }
            touched.extend(held);
        }
        for key in touched {
            match &key {
                Key::Instance(instance) => self.report.expect(instance, &self.index),
                // Its address may be known by now.
                Key::Node(node) => self.go_on(node),
            }
            self.dirty.touch(key, due);
        }
        for owner in registrations {
            self.report.touch(owner);
        }
        for owner in problems {
            for problem in self.index.problems(&owner) {
                tracing::warn!(object = %owner, reason = "InvalidAnnotation", "{problem}");
                let uid = self.index.uid(&owner);
                self.report
                    .event(&owner, uid, EventReason::InvalidAnnotation, problem.clone());
            }
        }
    }

    /// Plans every key that is claimed or held.
    pub(super) fn touch_all(&mut self, cause: Cause, now: Instant) {
        let due = Due { cause, since: now };
        for key in self.index.claimed_keys().chain(self.mirror.keys()) {
            self.dirty.touch(key, due);
        }
        self.audit_at = Some(now + AUDIT_INTERVAL);
    }

    fn audit(&mut self, now: Instant) {
        if self.audit_at.is_some_and(|at| at <= now) {
            self.touch_all(Cause::Audit, now);
        }
    }

    // === signals of Consul ===

    fn heed(&mut self, signal: &Signal, now: Instant) {
        match signal {
            Signal::Changed {
                table,
                index,
                first,
                interrupted,
            } => {
                self.answered();
                if *first {
                    self.unwatched.remove(table);
                } else if *interrupted {
                    self.own.forget();
                    self.sweeper.signal(now);
                } else {
                    self.own
                        .signalled(index.map_or(0, std::num::NonZeroU64::get));
                    // Were it wrongly taken for our own, a sweep finds what it told of.
                    self.sweeper.wrote(now);
                }
            }
            Signal::Failed { table, error } if self.unwatched.contains(table) => {
                self.failed(&format!("cannot watch Consul: {error}"));
            }
            Signal::Failed { table, error } => {
                tracing::debug!(?table, "cannot watch Consul: {error}");
            }
        }
    }

    // === reads ===

    fn start_reads(&mut self, now: Instant) {
        let limit = self
            .outage
            .limit(now, READS)
            .min(self.unreadable.limit(now, READS));
        let watched = self.unwatched.is_empty();
        if self.loading.is_none() && watched && !self.listing && self.reads < limit {
            self.start_list();
        }
        while self.reads < limit
            && let Some(node) = self.unread.pop_first()
        {
            self.start_read(node);
        }
        if self.mirror.completeness() == Completeness::Unknown {
            return;
        }
        if self.sweeper.should_start(now) && !self.listing && self.reads < limit {
            self.start_list();
            let nodes: Vec<_> = self.mirror.node_names().cloned().collect();
            self.sweeper.start(now, nodes.into_iter());
        }
        while self.reads < limit
            && let Some(node) = self.sweeper.next_node(now)
        {
            self.start_read(node);
        }
    }

    fn start_list(&mut self) {
        self.listing = true;
        self.reads += 1;
        let ticket = self.mirror.start_read();
        let cluster = self.index.cluster().clone();
        let locate = self.report.datacenter.is_none();
        self.jobs
            .spawn(apply::list(self.consul.clone(), cluster, locate, ticket));
    }

    fn start_read(&mut self, node: NodeName) {
        self.reads += 1;
        let ticket = self.mirror.start_read();
        self.jobs
            .spawn(apply::read(self.consul.clone(), node, ticket));
    }

    // === writes ===

    /// Whether enough is known to write: all that is wanted, and all that is there.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        self.index.watches.all_listed() && self.mirror.completeness() == Completeness::Complete
    }

    fn may_write(&self, now: Instant) -> bool {
        self.is_ready() && self.own.under_way() < self.outage.limit(now, WRITES)
    }

    fn start_writes(&mut self, now: Instant) {
        let mut planned = 0;
        while self.may_write(now) && self.dirty.has_ready() && planned < PLANNED_IN_A_ROW {
            let mut batch = Batch::default();
            while planned < PLANNED_IN_A_ROW
                && let Some((key, due)) = self.dirty.take()
            {
                planned += 1;
                let alone = self.alone.contains(&key);
                if alone && !batch.is_empty() {
                    self.dirty.touch(key, due);
                    break;
                }
                let finding = plan::decide(&key, &self.index, &self.mirror);
                let full = self.add(&mut batch, key, due, finding);
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
            let id = self.own.start();
            self.jobs
                .spawn(apply::write(self.consul.clone(), id, txn, steps));
        }
    }

    /// Adds what a finding asks for to the batch. Returns whether the batch is full.
    fn add(&mut self, batch: &mut Batch<Due>, key: Key, due: Due, finding: Finding) -> bool {
        self.note(&key, &finding);
        let step = match finding.step {
            Step::Settled | Step::OwnedByAnother { .. } | Step::Held(_) => {
                if let Key::Node(node) = &key {
                    self.go_on(node);
                }
                return false;
            }
            Step::Waiting => {
                self.wait_for_node(key, due);
                return false;
            }
            step @ (Step::PutNode(_) | Step::Put(_) | Step::Remove(_)) => step,
        };
        if due.cause == Cause::Written {
            self.contested(&key, due, &step);
            return false;
        }
        if due.cause == Cause::Audit {
            tracing::warn!(key = %key, "found by the total pass, missed before: {step:?}");
            self.report.metrics.audit_findings.inc();
        }
        if let (Key::Instance(instance), Step::Put(write)) = (&key, &step)
            && write.creates()
            && self.mirror.node(&instance.node).is_none()
        {
            let node = Key::Node(instance.node.clone());
            if self.dirty.busy().contains(&node) || self.dirty.is_parked(&node) {
                if let Some(Trouble { reason, message }) = self.node_troubles.get(&instance.node) {
                    self.trouble(&key, *reason, message.clone());
                }
                self.wait_for_node(key, due);
                return false;
            }
            if !batch.contains(&node) {
                let first = self.dirty.take_key(&node).unwrap_or(due);
                let finding = plan::decide(&node, &self.index, &self.mirror);
                if !matches!(finding.step, Step::PutNode(_)) {
                    let message = format!(
                        "the Kubernetes node of {instance} has no InternalIP, and the pod no host \
                         IP, yet"
                    );
                    self.trouble(&key, Reason::Writing, message);
                    self.wait_for_node(key, due);
                    return false;
                }
                if batch.push(node.clone(), finding.step, first).is_err() {
                    self.dirty.touch(node, first);
                    self.dirty.touch(key, due);
                    return true;
                }
            }
        }
        let again = key.clone();
        match batch.push(key, step, due) {
            Ok(()) => return false,
            Err(Overflow::Full) => self.dirty.touch(again, due),
            Err(Overflow::TooLarge) => {
                self.too_large(&again, due);
                return false;
            }
        }
        true
    }

    /// A key waits until its node is written, read, or known better.
    fn wait_for_node(&mut self, key: Key, due: Due) {
        let waiting = self.on_node.entry(key.node().clone()).or_default();
        waiting
            .entry(key)
            .and_modify(|known| *known = due.merged(Some(*known)))
            .or_insert(due);
    }

    fn too_large(&mut self, key: &Key, due: Due) {
        let message = "the entry is larger than a transaction of Consul's may be: use fewer or \
                       shorter tags and meta";
        self.trouble(key, Reason::ConsulRefused, message.to_owned());
        self.dirty.penalise(key, due, Instant::now());
    }

    fn tell_readiness(&mut self) {
        let mut remarks: Vec<String> = Vec::new();
        for kind in Kind::ALL {
            use crate::desired::watches::Watch;
            match self.index.watches.state(kind) {
                Watch::Complete => {}
                Watch::Listing => remarks.push(format!("{}: being listed", kind.resource())),
                Watch::Broken(why) => remarks.push(format!("{}: {why}", kind.resource())),
            }
        }
        if let Some(why) = self.outage.reason().or(self.unreadable.reason()) {
            remarks.push(format!("consul: {why}"));
        } else if self.mirror.completeness() == Completeness::Unknown {
            remarks.push("consul: being read".to_owned());
        }
        let ready = self.is_ready();
        self.known_once |= ready;
        let ready = self.known_once && self.missing.is_empty();
        let now = Readiness { ready, remarks };
        self.readiness.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        let waiting: usize = self.on_node.values().map(BTreeMap::len).sum();
        let pending = i64::try_from(self.dirty.pending() + waiting).unwrap_or(i64::MAX);
        self.report.metrics.pending.set(pending);
        let held = i64::try_from(self.held.len()).unwrap_or(i64::MAX);
        self.report.metrics.held_deletes.set(held);
        let owned = |kind: &'static str, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.report
                .metrics
                .owned
                .get_or_create(&KindLabel { kind })
                .set(count);
        };
        owned("instance", self.mirror.owned_instances());
        owned("node", self.mirror.owned_nodes());
    }
}

/// A step of a batch that is under way.
pub(super) type Written = BatchedStep<Due>;

/// A change of one object.
enum One<T> {
    Applied(T),
    Deleted(T),
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
