//! The engine: one task that owns all state, takes events, plans what they touched, and starts
//! writes and reads of which there is a bounded number at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::{self, Done};
use super::asking::Asking;
use super::beats::Beats;
use super::claim::Claimant;
use super::contest::Contests;
use super::critical::Critical;
use super::dirty::{Dirty, Due};
use super::entries::{self, TableState};
use super::fence::Fence;
use super::gc::Shown;
use super::lead::Lead;
use super::names::NamesState;
use super::nodes::Confirmation;
use super::outage::Outage;
use super::own::OwnWrites;
use super::pace::Pace;
use super::readiness::Readiness;
use super::report::Report;
use super::rounds::Rounds;
use super::signals::{Signal, Topic};
use super::sweep::Sweeper;
use crate::checks::forbidden::Forbidden;
use crate::checks::{Orders, Told};
use crate::consul::Client;
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::k8s::{Answer, KubeEvent, Question, Relist};
use crate::leader::Candidate;
use crate::model::epoch::{self, Epoch};
use crate::model::key::{Key, Place, Table};
use crate::model::kind::Kind;
use crate::model::names::NodeName;
use crate::model::text::Text;
use crate::observed::mirror::{Completeness, Mirror};
use crate::plan::batch::BatchedStep;
use crate::plan::entries::Gone;
use crate::plan::{Mode, Removal, Rules};
use crate::settings::{Settings, Values};
use crate::status::board::Trouble;
use crate::telemetry::LogLevel;

/// Transactions under way at once.
const WRITES: usize = 8;
/// Reads under way at once.
const READS: usize = 8;
/// Events taken in a row.
const EVENTS_IN_A_ROW: usize = 256;
/// How long writes that are under way may take at the end.
const LAST_WRITES: Duration = Duration::from_millis(2500);

/// Settings of the engine.
#[derive(Debug)]
pub struct Options {
    /// What may change later, as the flags say it.
    pub settings: Values,
    /// Changes which lines are logged.
    pub log_level: Option<LogLevel>,
    /// `--take-over`: UID of the Kubernetes cluster that this one replaces.
    pub take_over: Option<String>,
    /// What holds for all keys together; `settings` win over it.
    pub rules: Rules,
}

/// What the engine hears from, until it is stopped.
#[derive(Debug)]
pub struct Inputs {
    /// Events of Kubernetes.
    pub kubernetes: mpsc::Receiver<KubeEvent>,
    /// Changes in Consul.
    pub signals: mpsc::Receiver<Signal>,
    /// How instances are that were asked.
    pub told: mpsc::Receiver<Told>,
    /// Where no check may connect to, once it is known.
    pub forbidden: watch::Receiver<Option<Arc<Forbidden>>>,
    /// How pods are that were asked for.
    pub looked: mpsc::Receiver<Answer>,
    /// What the epoch is to say, once it is known.
    pub epoch: oneshot::Receiver<Epoch>,
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
    /// Why Consul takes no writes, if it does not: an answer to a read is no end of that.
    pub(super) unwritable: Outage,
    pub(super) pace: Pace,
    /// Why nodes could not be written, for the instances that wait for them.
    pub(super) node_troubles: BTreeMap<NodeName, Trouble>,
    /// What was told of nodes that are not as they should be.
    pub(super) told_of_nodes: BTreeMap<NodeName, String>,
    pub(super) sweeper: Sweeper,
    /// Nodes to read out of turn: at the start, or because it is not known what stands there.
    pub(super) unread: BTreeSet<NodeName>,
    /// The nodes that the first snapshot still lacks; `None` until they were listed.
    pub(super) loading: Option<BTreeSet<NodeName>>,
    pub(super) listing: bool,
    /// Kinds that the API server does not serve: their CRD is missing.
    pub(super) missing: BTreeSet<Kind>,
    /// Tables of which no signal came yet: what changes in them would go unnoticed, so that the
    /// first snapshot is not taken before.
    pub(super) unwatched: BTreeSet<Topic>,
    /// Keys that wait for their place, which is being written or read.
    pub(super) waiting: BTreeMap<Place, BTreeMap<Key, Due>>,
    /// What holds for all keys together.
    pub(super) rules: Rules,
    /// Lists that are to confirm what is found missing.
    pub(super) rounds: Rounds,
    /// Lists that are to confirm that nodes are missing.
    pub(super) confirmation: Confirmation,
    pub(super) relist: watch::Sender<()>,
    /// Keys that would be removed, were it safe.
    pub(super) held: BTreeSet<Key>,
    /// Keys that another hand changed, where that is only told.
    pub(super) drifted: BTreeSet<Key>,
    pub(super) contests: Contests,
    /// Keys that go into a transaction of their own, because Consul refused one that they were in.
    pub(super) alone: HashSet<Key>,
    /// Removals whose answer was lost: whether they were carried out is told once that is read.
    pub(super) lost_removals: BTreeMap<Key, LostRemoval>,
    /// Keys whose writes the token does not allow.
    pub(super) denied: HashSet<Key>,
    /// Nodes whose content could not be understood, and until when they are left alone.
    pub(super) garbled: BTreeMap<NodeName, Outage>,
    pub(super) own: OwnWrites,
    /// What is on no node: when it is read, and what our own writes explain.
    pub(super) tables: BTreeMap<Table, TableState>,
    /// Writes of that under way.
    pub(super) entry_writes: usize,
    /// The things that were found under a key of that last.
    pub(super) parts: BTreeMap<Key, BTreeSet<Key>>,
    /// Removals of that whose answer was lost, by the key that was written: what went with the write, with
    /// its index and the epoch.
    pub(super) lost_entries: BTreeMap<Key, (Vec<Gone>, u64, u64)>,
    /// Tables that are known in part, and why, as was told.
    pub(super) told_partial: BTreeMap<Table, String>,
    /// What may change while it works; nothing is written before it is known.
    pub(super) settings: Settings,
    /// Why the settings in Consul cannot be read, if they cannot.
    pub(super) unread_settings: Option<String>,
    pub(super) log_level: Option<LogLevel>,
    pub(super) fence: Fence,
    /// Whether this process leads.
    pub(super) lead: Lead,
    pub(super) fence_key: Text,
    /// What `lictor gc` was shown last, and may release.
    pub(super) shown: Option<Shown>,
    /// Why what stands under the key of the epoch is none, if it is not: nothing is written until somebody
    /// mends it.
    pub(super) no_epoch: Option<String>,
    /// The kinds for which another cluster than at the start answers: all is judged, and nothing written.
    pub(super) strange: BTreeSet<Kind>,
    /// What the epoch is claimed with; not known before the cluster's UID is.
    pub(super) claimant: Option<Claimant>,
    /// The UID of the Kubernetes cluster that this one replaces (`--take-over`).
    take_over: Option<String>,
    /// What instances are asked.
    pub(super) asking: Asking,
    /// Checks that follow sessions.
    pub(super) beats: Beats,
    /// What is read and written of how long instances have been critical.
    pub(super) critical: Critical,
    /// What is read and written of whose names are.
    pub(super) names: NamesState,
    pub(super) reads: usize,
    pub(super) jobs: JoinSet<Done>,
    pub(super) audit_at: Option<Instant>,
    /// Whether everything was known once.
    pub(super) known_once: bool,
    pub(super) readiness: watch::Sender<Readiness>,
}

impl Engine {
    /// An engine that knows nothing yet, and where to see how far it is. It asks there how single pods are,
    /// no more than [`looks::AT_ONCE`](crate::plan::critical::looks::AT_ONCE) at once.
    #[must_use]
    pub fn new(
        consul: Client,
        index: Index,
        mut report: Report,
        (orders, questions): (Orders, mpsc::Sender<Question>),
        candidate: Candidate,
        options: Options,
    ) -> (Self, watch::Receiver<Readiness>) {
        let Options {
            settings,
            log_level,
            take_over,
            mut rules,
        } = options;
        let drift_interval = settings.drift_interval;
        rules.obey(&settings);
        let cluster = index.cluster().clone();
        let mirror = Mirror::new(cluster.clone());
        let fence_key = epoch::key(index.cluster()).into();
        let unwatched = Kind::ALL.into_iter();
        let unwatched = unwatched
            .filter(|kind| !index.watches.watches(*kind))
            .collect();
        // Until it is known who tells.
        report.mute = true;
        let settings = Settings::new(&cluster, settings);
        let (readiness, ready) = watch::channel(Readiness {
            settings: settings.lines(),
            ..Readiness::default()
        });
        let engine = Self {
            consul,
            rounds: Rounds::without(unwatched),
            index,
            mirror,
            dirty: Dirty::default(),
            report,
            outage: Outage::default(),
            unreadable: Outage::default(),
            unwritable: Outage::default(),
            pace: Pace::new(WRITES, settings.values().consul_write_rate),
            node_troubles: BTreeMap::new(),
            told_of_nodes: BTreeMap::new(),
            sweeper: Sweeper::new(drift_interval),
            unread: BTreeSet::new(),
            loading: None,
            listing: false,
            missing: BTreeSet::new(),
            unwatched: Topic::OF_NODES.into(),
            waiting: BTreeMap::new(),
            rules,
            confirmation: Confirmation::default(),
            relist: watch::Sender::new(()),
            held: BTreeSet::new(),
            drifted: BTreeSet::new(),
            contests: Contests::default(),
            alone: HashSet::new(),
            lost_removals: BTreeMap::new(),
            denied: HashSet::new(),
            garbled: BTreeMap::new(),
            own: OwnWrites::default(),
            tables: entries::states(drift_interval),
            entry_writes: 0,
            parts: BTreeMap::new(),
            lost_entries: BTreeMap::new(),
            told_partial: BTreeMap::new(),
            settings,
            unread_settings: None,
            log_level,
            fence: Fence::new(),
            lead: Lead::new(candidate),
            fence_key,
            shown: None,
            no_epoch: None,
            strange: BTreeSet::new(),
            claimant: None,
            take_over,
            asking: Asking::new(orders),
            beats: Beats::new(),
            critical: Critical::new(questions),
            names: NamesState::default(),
            reads: 0,
            jobs: JoinSet::new(),
            audit_at: None,
            known_once: false,
            readiness,
        };
        (engine, ready)
    }

    /// Where the watches of Kubernetes hear that everything is to be listed anew.
    #[must_use]
    pub fn relists(&self) -> Relist {
        self.relist.subscribe()
    }

    /// Works until stopped; then waits a moment for the writes that are under way. Returns whether all of
    /// them have ended: only then another process may be let write.
    pub async fn run(
        mut self,
        inputs: Inputs,
        stop: CancellationToken,
    ) -> Result<bool, EngineError> {
        let Inputs {
            mut kubernetes,
            mut signals,
            mut told,
            mut forbidden,
            mut looked,
            mut epoch,
        } = inputs;
        let hands_over = self.index.runner() == Runner::Esm;
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
                Ok(known) = &mut epoch, if self.claimant.is_none() => self.introduce(known),
                () = self.lead.candidate.changed() => {}
                Some(answer) = looked.recv() => self.absorb_look(answer),
                Some(signal) = signals.recv() => self.heed(&signal, Instant::now()),
                Some(news) = told.recv() => {
                    self.heard(news);
                    while let Ok(news) = told.try_recv() {
                        self.heard(news);
                    }
                }
                Ok(()) = forbidden.changed(), if hands_over => {
                    let known = forbidden.borrow_and_update().clone();
                    self.forbid(known, Instant::now());
                }
                () = sleep_until(wake), if wake.is_some() => {}
            }
        }
        let last = async {
            while let Some(done) = self.jobs.join_next().await {
                // What was removed is told to the last.
                self.absorb(done?);
            }
            Ok::<_, JoinError>(())
        };
        let ended = tokio::time::timeout(LAST_WRITES, last).await;
        // The next process tells how things stand.
        drop(self.report.statuses.withdraw());
        // Whatever is left may or may not be applied; the next process reads before it writes.
        Ok(match ended {
            Ok(all) => all.map(|()| true)?,
            Err(_) => false,
        })
    }

    /// When there is something to do without an event.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let rehearses = self.rules.mode == Mode::DryRun && self.is_judged();
        if (rehearses || self.may_write(now)) && self.dirty.has_ready() {
            return Some(now);
        }
        // What is overdue waits for a job to end or for an outage to pass, and both wake the engine.
        [
            self.dirty.next_ripe(),
            self.sweeper.wake_at(),
            self.outage.wake_at(),
            self.unreadable.wake_at(),
            self.unwritable.wake_at(),
            self.pace.wake_at(),
            self.fence.wake_at(),
            self.rounds.wake_at(),
            self.confirmation.wake_at(),
            self.rules.vacancies.wake_at(),
            self.rules.criticals.wake_at(),
            self.rules.criticals.looks.wake_at(),
            self.critical.wake_at(),
            self.names.wake_at(),
            self.index.admission.wake_at(),
            self.report.wake_at(),
            self.rules.refusals.wake_at(),
            self.beats.wake_at(),
            self.audit_at,
        ]
        .into_iter()
        .chain(self.lead.wakes_at())
        .chain(self.garbled.values().map(Outage::wake_at))
        .chain(self.tables.values().map(TableState::wake_at))
        .flatten()
        .filter(|at| *at > now)
        .min()
    }

    /// Does all that can be done now.
    fn work(&mut self, now: Instant) {
        self.follow_election(now);
        self.dirty.ripen(now);
        self.pace.ripen(now);
        self.audit(now);
        if self.own.unexplained(now) {
            self.sweeper.signal(now);
        }
        self.confirm_missing(now);
        self.start_reads(now);
        self.claim(now);
        self.begin_or_end_asking(now);
        self.beat(now);
        self.ripen_vacancies(now);
        self.keep_critical_times(now);
        self.keep_names(now);
        self.ripen_refusals(now);
        if self.rules.mode == Mode::DryRun {
            self.rehearse();
        } else {
            self.start_writes(now);
        }
        self.look_at_pods(now);
        self.judge(now);
        // Before Consul is known, only its absence is worth telling.
        let outage = self.why_not().map(str::to_owned);
        let known = self.mirror.completeness() == Completeness::Complete || outage.is_some();
        let outage = outage.as_deref().or(self.fence.name_taken());
        // Whoever replaced this process tells people from now on, and another cluster's objects are
        // nobody's that are known here.
        let replaced = self.fence.is_replaced() || !self.strange.is_empty();
        let silent = self.lead.is_silent() && self.fence.name_taken().is_none();
        let tells = !replaced && !silent && self.rules.mode != Mode::DryRun;
        if self.index.watches.all_listed() && known && tells {
            self.report.flush(&self.index, outage, now);
            if self.fence.index().is_some() && self.is_ready() {
                let (dirty, waiting) = (&self.dirty, &self.waiting);
                let waits = |key: &Key| {
                    let keys = waiting.get(&key.place());
                    keys.is_some_and(|keys| keys.contains_key(key))
                };
                let is_due = |key: &Key| dirty.is_due(key) || waits(key);
                self.report.flush_gates(&self.index, &is_due, outage, now);
            }
        }
        self.tell_readiness();
    }

    /// Why Consul is not known or not written to, if it is not.
    pub(super) fn why_not(&self) -> Option<&str> {
        let unknown = self.mirror.completeness() == Completeness::Unknown;
        let garbled = self.garbled.values().filter(|_| unknown);
        let failures = [&self.outage, &self.unreadable, &self.unwritable];
        failures.into_iter().chain(garbled).find_map(Outage::reason)
    }

    // === reads ===

    fn start_reads(&mut self, now: Instant) {
        let limit = self
            .outage
            .limit(now, READS)
            .min(self.unreadable.limit(now, READS))
            .min(self.pace.allowed());
        let watched = self.unwatched.is_empty();
        self.start_table_reads(now, limit);
        if self.loading.is_none() && watched && !self.listing && self.reads < limit {
            self.start_list();
        }
        let waiting = |node: &NodeName| {
            let outage = self.garbled.get(node);
            outage.is_some_and(|outage| outage.limit(now, 1) == 0)
        };
        let room = limit.saturating_sub(self.reads);
        let due = self.unread.iter().filter(|node| !waiting(node)).take(room);
        for node in due.cloned().collect::<Vec<_>>() {
            self.unread.remove(&node);
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

    /// Whether, beside that, it is known what may be claimed.
    #[must_use]
    pub(super) fn is_judged(&self) -> bool {
        self.is_ready() && self.index.admission.is_settled()
    }

    pub(super) fn may_write(&self, now: Instant) -> bool {
        let limit = self
            .outage
            .limit(now, WRITES)
            .min(self.unwritable.limit(now, WRITES))
            .min(self.pace.allowed());
        self.fence.index().is_some()
            && self.is_judged()
            && self
                .own
                .under_way()
                .saturating_sub(self.sessions_changing())
                + self.entry_writes
                < limit
            && self.pace.may_begin(now)
    }

    fn introduce(&mut self, epoch: Epoch) {
        self.claimant = Some(Claimant {
            cluster: self.index.cluster().clone(),
            epoch,
            take_over: self.take_over.take(),
        });
    }

    /// Claims the epoch, once it is known what is to be written with it: a process that cannot work
    /// takes it from nobody.
    fn claim(&mut self, now: Instant) {
        let Some(claimant) = self
            .claimant
            .as_ref()
            .filter(|_| self.known_once || self.is_ready())
        else {
            return;
        };
        if self.rules.mode != Mode::DryRun
            && self.settings.is_known()
            && self.outage.limit(now, 1) > 0
            && let Some(mandate) = self.mandate(now)
            && let Some(last) = self.fence.begin(now)
        {
            let claim = apply::claim(self.consul.clone(), claimant.clone(), last, mandate);
            self.jobs.spawn(claim);
        }
    }
}

/// A removal whose answer was lost, and the epoch that it was fenced with.
#[derive(Clone, Debug)]
pub(super) enum LostRemoval {
    Instance(Removal, u64),
    /// With the `ModifyIndex` that the node had.
    Node(u64, u64),
}

/// A step of a batch that is under way.
pub(super) type Written = BatchedStep<Due>;

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
