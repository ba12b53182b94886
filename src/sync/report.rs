//! What people are told: status, Events, logs, metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::complaints::{Complaints, Subject};
use super::gates::Gates;
use crate::api::object::Object;
use crate::desired::claim::Target;
use crate::desired::index::Index;
use crate::k8s::{
    EventReason, EventRecord, EventSender, ObjectStatus, Regarding, StatusSender, StatusUpdate,
};
use crate::metrics::Metrics;
use crate::model::key::{InstanceKey, Key};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::status::board::{Board, Reason, Standing, Trouble, beside};
use crate::status::derive;

/// How long a status may lag behind while writes are under way.
const LAG: Duration = Duration::from_secs(1);

/// Where people are told.
#[derive(Debug)]
pub struct Report {
    /// Kubernetes Events.
    pub events: EventSender,
    /// The status of objects.
    pub statuses: StatusSender,
    /// Counters.
    pub metrics: Metrics,
    /// Whether no Events are sent: by `--policy dry-run`, and by a process that does not lead.
    pub mute: bool,
    /// Whether another process writes statuses: what the API server shows counts then.
    pub follows: bool,
    /// The pod that this process runs as, for what belongs to no object.
    pub own_pod: Option<Regarding>,
    /// Consul's datacenter, once it is known.
    pub datacenter: Option<String>,
    /// The readiness gates of pods.
    pub gates: Gates,
    board: Board,
    /// What registrations are to hear of their instances.
    complaints: Complaints,
    /// Objects of which something is wrong as far as was known when not everything was listed yet.
    untold: BTreeSet<Owner>,
    /// Objects whose status may have changed since the last flush.
    changed: BTreeSet<Owner>,
    /// Objects whose status waits for a write, and since when.
    late: BTreeMap<Owner, Instant>,
    /// The status that each object has, or is to have, and the uid of that object.
    last: HashMap<Owner, (Text, ObjectStatus)>,
}

impl Report {
    /// Tells by these means.
    #[must_use]
    pub fn new(events: EventSender, statuses: StatusSender, metrics: Metrics) -> Self {
        Self {
            events,
            statuses,
            metrics,
            mute: false,
            follows: false,
            own_pod: None,
            datacenter: None,
            gates: Gates::default(),
            board: Board::default(),
            complaints: Complaints::default(),
            untold: BTreeSet::new(),
            changed: BTreeSet::new(),
            late: BTreeMap::new(),
            last: HashMap::new(),
        }
    }

    /// The status of an object may have changed.
    pub fn touch(&mut self, owner: Owner) {
        if owner.kind != OwnerKind::Pod {
            self.changed.insert(owner);
        }
    }

    /// The API server shows this object. Its status counts until this process derives one.
    pub fn observed<S, T: Clone>(
        &mut self,
        kind: OwnerKind,
        object: &Object<S, T>,
        status: impl FnOnce(T) -> ObjectStatus,
    ) {
        let owner = Owner {
            kind,
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        };
        let known = self.last.get(&owner);
        if !self.follows && known.is_some_and(|(uid, _)| *uid == object.uid) {
            return;
        }
        match &object.status {
            Some(known) => {
                let status = status((**known).clone());
                self.last.insert(owner, (object.uid.clone(), status));
            }
            None => {
                self.last.remove(&owner);
            }
        }
    }

    /// Whatever changed is another process's to tell.
    pub fn let_go(&mut self) {
        self.changed.clear();
        self.late.clear();
        self.untold.clear();
    }

    /// Another process tells from now on: what waits to be told is not sent any more, and would only hide
    /// what that one tells.
    pub fn fall_silent(&mut self) {
        self.let_go();
        self.events.withdraw();
        for (kind, namespace, name) in self.statuses.withdraw() {
            if kind == OwnerKind::Pod {
                self.gates.unsent((namespace, name));
                continue;
            }
            self.last.remove(&Owner {
                kind,
                namespace,
                name,
            });
        }
    }

    /// Forgets how everything stands, and what was told of it, but for what the API server shows.
    pub fn start_over(&mut self) {
        self.let_go();
        self.board = Board::default();
        self.complaints = Complaints::default();
    }

    /// Counts nothing: another process does.
    pub fn count_nothing(&self) {
        self.metrics.pending.set(0);
        self.metrics.held_deletes.set(0);
        self.metrics.gates_waiting.set(0);
        self.metrics.conflicts.set(0);
        self.metrics.deregistered_critical.set(0);
        self.metrics.rejections.set(0);
    }

    /// A key was touched by Kubernetes: until it is planned, nobody is told that all is well.
    pub fn expect(&mut self, key: &Key, index: &Index) {
        let known = self.board.standings(key);
        let writing = || Trouble {
            reason: Reason::Writing,
            message: format!("{key} is being written to Consul"),
        };
        // Whoever claims it from now on waits as well.
        let new = index.owners_of(key).into_iter().filter(|claimant| {
            let mut owners = known.iter().map(|(owner, _)| owner);
            !owners.any(|owner| owner == claimant)
        });
        let new = new.map(|claimant| {
            (
                claimant,
                Standing {
                    claimed: true,
                    registered: None,
                    settled: false,
                    trouble: Some(writing()),
                },
            )
        });
        let expecting = |(owner, standing): &(Owner, Standing)| {
            let trouble = standing.trouble.clone().or_else(|| Some(writing()));
            (
                owner.clone(),
                Standing {
                    settled: false,
                    trouble,
                    ..standing.clone()
                },
            )
        };
        let standings = known.iter().map(expecting).chain(new).collect();
        self.set(key, standings);
    }

    /// Notes how an instance stands, and tells of new troubles.
    pub fn stand(&mut self, key: &Key, standings: Vec<(Owner, Standing)>, index: &Index) {
        let before = self.board.standings(key).to_vec();
        for (owner, standing) in &before {
            if let Some(trouble) = &standing.trouble
                && trouble_of(&standings, owner) != Some(trouble)
                && let Some(reason) = event_reason(trouble.reason)
            {
                self.complaints.end(&(owner.clone(), reason), key);
            }
        }
        for (owner, standing) in &standings {
            if let Some(trouble) = &standing.trouble
                && trouble_of(&before, owner) != Some(trouble)
            {
                self.tell(key, owner, trouble, index);
            }
        }
        self.set(key, standings);
    }

    fn set(&mut self, key: &Key, standings: Vec<(Owner, Standing)>) {
        self.gates.touch(key);
        for owner in self.board.set(key, standings) {
            self.touch(owner);
        }
    }

    /// How an instance stands as far as people were told.
    #[must_use]
    pub fn standings(&self, key: &Key) -> &[(Owner, Standing)] {
        self.board.standings(key)
    }

    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    fn tell(&mut self, key: &Key, owner: &Owner, trouble: &Trouble, index: &Index) {
        let Some(reason) = event_reason(trouble.reason) else {
            return;
        };
        tracing::warn!(
            key = %key, owner = %owner, reason = trouble.reason.as_str(), "{}", trouble.message
        );
        let about = match (trouble.reason, key) {
            (Reason::Invalid, Key::Instance(key)) => index.at_fault(key, owner),
            _ => owner.clone(),
        };
        match about.kind {
            OwnerKind::Pod => {
                self.event(&about, index.uid(&about), reason, trouble.message.clone());
            }
            _ => self.complaints.begin((about, reason), key),
        }
    }

    /// Sends what registrations are to hear of their instances: the first trouble of each sort, and
    /// how many others there are.
    fn tell_complaints(&mut self, index: &Index, now: Instant) {
        for subject in self.complaints.take_due(now) {
            let (owner, reason) = &subject;
            let uid = index.uid(owner);
            if let (Some(note), Some(uid)) = (self.complaint(&subject), uid) {
                if self.complaints.tell(&subject, uid, &note, now) {
                    self.event(owner, Some(uid), *reason, note);
                }
            } else {
                self.complaints.forget(&subject);
            }
        }
    }

    fn complaint(&self, subject: &Subject) -> Option<String> {
        let (key, others) = self.complaints.first(subject)?;
        let trouble = trouble_of(self.board.standings(key), &subject.0)?;
        Some(beside(&trouble.message, others))
    }

    /// Tells what is wrong with objects as such. Before everything was listed, what other objects say
    /// about them is not known, and nobody is to hear of what is not wrong at all.
    pub fn tell_problems(&mut self, owners: BTreeSet<Owner>, index: &Index) {
        self.untold.extend(owners);
        if !index.watches.all_listed() {
            return;
        }
        for owner in std::mem::take(&mut self.untold) {
            for problem in index.problems(&owner) {
                tracing::warn!(object = %owner, reason = "InvalidAnnotation", "{problem}");
                let reason = EventReason::InvalidAnnotation;
                self.event(&owner, index.uid(&owner), reason, problem.clone());
            }
        }
    }

    /// Sends an Event, unless the object is not known any more.
    pub fn event(&self, about: &Owner, uid: Option<&Text>, reason: EventReason, note: String) {
        let Some(uid) = uid.filter(|_| !self.mute) else {
            return;
        };
        let Owner {
            kind,
            namespace,
            name,
        } = about.clone();
        let regarding = match kind {
            OwnerKind::Pod => Regarding::pod(namespace, name, uid.clone()),
            kind => Regarding::ours(kind.as_str(), namespace, name, uid.clone()),
        };
        self.events.send(EventRecord {
            regarding,
            reason,
            note,
        });
    }

    /// Sends an Event about this process itself, where it runs as a pod.
    pub fn own_event(&self, reason: EventReason, note: String) {
        if let Some(regarding) = self.own_pod.clone().filter(|_| !self.mute) {
            self.events.send(EventRecord {
                regarding,
                reason,
                note,
            });
        }
    }

    /// How many sources of others are in the entry that an object's own are in.
    pub fn note_foreign(&mut self, owner: &Owner, foreign: u32) {
        if self.board.note_foreign(owner, foreign) {
            self.touch(owner.clone());
        }
    }

    /// The id of a query that Consul holds for an object, if it does.
    pub fn note_query(&mut self, owner: &Owner, name: &Text, id: Option<&Text>) {
        if self.board.note_query(owner, name, id) {
            self.touch(owner.clone());
        }
    }

    /// A write for an object was acknowledged.
    pub fn wrote(&mut self, owner: &Owner, index: u64) {
        self.board.wrote(owner, index);
        self.touch(owner.clone());
    }

    /// Sends what changed in statuses, and what registrations are to hear. A status that waits for a write lags behind for a moment, so
    /// that a change shows as done and not first as begun.
    ///
    /// `outage` is why Consul takes no writes, if it does not.
    pub fn flush(&mut self, index: &Index, outage: Option<&str>, now: Instant) {
        self.tell_complaints(index, now);
        for owner in std::mem::take(&mut self.changed) {
            if self.board.tally(&owner).writing > 0 {
                self.late.entry(owner).or_insert(now);
            } else {
                self.late.remove(&owner);
                self.send_status(&owner, index, outage);
            }
        }
        let due: Vec<Owner> = self
            .late
            .iter()
            .filter(|(_, since)| **since + LAG <= now)
            .map(|(owner, _)| owner.clone())
            .collect();
        for owner in due {
            self.late.remove(&owner);
            self.send_status(&owner, index, outage);
        }
        let troubled = |reasons: &[Reason]| -> i64 {
            let sum: usize = reasons
                .iter()
                .map(|reason| self.board.troubles(*reason))
                .sum();
            i64::try_from(sum).unwrap_or(i64::MAX)
        };
        let metrics = &self.metrics;
        let dropped = self.events.dropped();
        metrics
            .events_dropped
            .inner()
            .store(dropped, Ordering::Relaxed);
        metrics
            .conflicts
            .set(troubled(&[Reason::Conflict, Reason::OwnedByAnother]));
        metrics
            .deregistered_critical
            .set(troubled(&[Reason::DeregisteredCritical]));
        let objects = i64::try_from(index.problem_count()).unwrap_or(i64::MAX);
        let instances = [
            Reason::Invalid,
            Reason::TooManySources,
            Reason::ConsulRefused,
            Reason::AccessDenied,
        ];
        metrics
            .rejections
            .set(objects.saturating_add(troubled(&instances)));
    }

    /// When a status that lags behind, or something to tell, is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let late = self.late.values().min().map(|since| *since + LAG);
        let late = late.into_iter().chain(self.complaints.wake_at());
        late.chain(self.gates.wake_at()).min()
    }

    fn send_status(&mut self, owner: &Owner, index: &Index, outage: Option<&str>) {
        if index.is_excluded(&owner.namespace) {
            return;
        }
        let Some(uid) = index.uid(owner).cloned() else {
            self.last.remove(owner);
            self.board.forget(owner);
            self.statuses
                .forget(owner.kind, &owner.namespace, &owner.name);
            return;
        };
        let before = self.last.get(owner);
        let before = before.filter(|(known, _)| *known == uid);
        let before = before.map(|(_, status)| status);
        let facts = derive::Facts {
            tally: self.board.tally(owner),
            outage,
            datacenter: self.datacenter.as_deref(),
            remark: index.problems(owner).first().map(String::as_str),
            now: jiff::Timestamp::now(),
        };
        let Some(status) = status(owner, index, &facts, before) else {
            return;
        };
        if before == Some(&status) {
            return;
        }
        self.last
            .insert(owner.clone(), (uid.clone(), status.clone()));
        self.statuses.send(StatusUpdate {
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
            uid,
            status,
        });
    }
}

/// Derives the status of an object.
fn status(
    owner: &Owner,
    index: &Index,
    facts: &derive::Facts<'_>,
    before: Option<&ObjectStatus>,
) -> Option<ObjectStatus> {
    Some(match owner.kind {
        OwnerKind::Pod => return None,
        OwnerKind::ServiceRegistration => {
            let before = before.and_then(|before| match before {
                ObjectStatus::Registration(before) => Some(before),
                _ => None,
            });
            let status = derive::registration(index.registration(owner)?, facts, before);
            ObjectStatus::Registration(status)
        }
        OwnerKind::Intention => {
            let before = before.and_then(|before| match before {
                ObjectStatus::Intention(before) => Some(before),
                _ => None,
            });
            ObjectStatus::Intention(derive::intention(index.intention(owner)?, facts, before))
        }
        OwnerKind::PreparedQuery => {
            let before = before.and_then(|before| match before {
                ObjectStatus::PreparedQuery(before) => Some(before),
                _ => None,
            });
            let query = index.prepared_query(owner)?;
            ObjectStatus::PreparedQuery(derive::prepared_query(query, facts, before))
        }
    })
}

fn trouble_of<'a>(standings: &'a [(Owner, Standing)], owner: &Owner) -> Option<&'a Trouble> {
    let (_, standing) = standings.iter().find(|(known, _)| known == owner)?;
    standing.trouble.as_ref()
}

/// The reason of the Event that a trouble is told by, if it is told of instances as such.
fn event_reason(reason: Reason) -> Option<EventReason> {
    match reason {
        Reason::Invalid => Some(EventReason::InvalidAnnotation),
        Reason::Conflict => Some(EventReason::Conflict),
        Reason::OwnedByAnother => Some(EventReason::OwnedByAnother),
        Reason::ConsulRefused | Reason::AccessDenied => Some(EventReason::ConsulRefused),
        Reason::TooManySources => Some(EventReason::TooManySources),
        Reason::DriftContested => Some(EventReason::DriftContested),
        Reason::NoNodeAddress => Some(EventReason::NoNodeAddress),
        // These are told where they arise.
        Reason::Paused
        | Reason::Drifted
        | Reason::Held
        | Reason::DeregisteredCritical
        | Reason::ConsulUnavailable
        | Reason::Writing => None,
    }
}

/// The object that an instance is of: the pod, where it stands for one.
#[must_use]
pub fn subject(key: &InstanceKey, owner: &Owner, index: &Index) -> Owner {
    match index
        .claimants(key)
        .first()
        .map(|claimant| &claimant.target)
    {
        Some(Target::Pod(pod)) => Owner::pod(&owner.namespace, pod),
        _ => owner.clone(),
    }
}
