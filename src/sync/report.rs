//! What people are told: status, Events, logs, metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::{RegistrationObject, ServiceRegistrationStatus};
use crate::desired::claim::Target;
use crate::desired::index::Index;
use crate::k8s::{EventReason, EventRecord, EventSender, Regarding, StatusSender, StatusUpdate};
use crate::metrics::Metrics;
use crate::model::key::InstanceKey;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::status::board::{Board, Reason, Standing, Trouble};
use crate::status::derive;

/// How long a status may lag behind while writes are under way.
const LAG: Duration = Duration::from_secs(1);

/// Where people are told.
#[derive(Debug)]
pub struct Report {
    /// Kubernetes Events.
    pub events: EventSender,
    /// The status of `ServiceRegistration`s.
    pub statuses: StatusSender,
    /// Counters.
    pub metrics: Metrics,
    /// Whether no Events are sent (`--policy dry-run`).
    pub mute: bool,
    /// The pod that this process runs as, for what belongs to no object.
    pub own_pod: Option<Regarding>,
    /// Consul's datacenter, once it is known.
    pub datacenter: Option<String>,
    board: Board,
    /// Objects of which something is wrong as far as was known when not everything was listed yet.
    untold: BTreeSet<Owner>,
    /// Objects whose status may have changed since the last flush.
    changed: BTreeSet<Owner>,
    /// Objects whose status waits for a write, and since when.
    late: BTreeMap<Owner, Instant>,
    /// The status that each object has, or is to have, and the uid of that object.
    last: HashMap<Owner, (Text, ServiceRegistrationStatus)>,
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
            own_pod: None,
            datacenter: None,
            board: Board::default(),
            untold: BTreeSet::new(),
            changed: BTreeSet::new(),
            late: BTreeMap::new(),
            last: HashMap::new(),
        }
    }

    /// The status of an object may have changed.
    pub fn touch(&mut self, owner: Owner) {
        if owner.kind == OwnerKind::ServiceRegistration {
            self.changed.insert(owner);
        }
    }

    /// The API server shows this object. Its status counts until this process derives one.
    pub fn observed(&mut self, object: &RegistrationObject) {
        let owner = Owner::registration(&object.namespace, &object.name);
        let known = self.last.get(&owner);
        if known.is_some_and(|(uid, _)| *uid == object.uid) {
            return;
        }
        match &object.status {
            Some(status) => {
                let status = (**status).clone();
                self.last.insert(owner, (object.uid.clone(), status));
            }
            None => {
                self.last.remove(&owner);
            }
        }
    }

    /// A key was touched by Kubernetes: until it is planned, nobody is told that all is well.
    pub fn expect(&mut self, key: &InstanceKey, index: &Index) {
        let known = self.board.standings(key);
        let writing = || Trouble {
            reason: Reason::Writing,
            message: format!("{key} is being written to Consul"),
        };
        // Whoever claims it from now on waits as well.
        let new = index.claimants(key).iter().filter(|claimant| {
            let mut owners = known.iter().map(|(owner, _)| owner);
            !owners.any(|owner| *owner == claimant.owner)
        });
        let new = new.map(|claimant| {
            (
                claimant.owner.clone(),
                Standing {
                    claimed: true,
                    registered: None,
                    trouble: Some(writing()),
                },
            )
        });
        let expecting = |(owner, standing): &(Owner, Standing)| {
            let trouble = standing.trouble.clone().or_else(|| Some(writing()));
            (
                owner.clone(),
                Standing {
                    trouble,
                    ..standing.clone()
                },
            )
        };
        let standings = known.iter().map(expecting).chain(new).collect();
        self.set(key, standings);
    }

    /// Notes how an instance stands, and tells of new troubles.
    pub fn stand(&mut self, key: &InstanceKey, standings: Vec<(Owner, Standing)>, index: &Index) {
        let before = self.board.standings(key).to_vec();
        for (owner, standing) in &standings {
            let Some(trouble) = &standing.trouble else {
                continue;
            };
            let known = before.iter().find(|(known, _)| known == owner);
            if known.and_then(|(_, standing)| standing.trouble.as_ref()) != Some(trouble) {
                self.tell(key, owner, trouble, index);
            }
        }
        self.set(key, standings);
    }

    fn set(&mut self, key: &InstanceKey, standings: Vec<(Owner, Standing)>) {
        for owner in self.board.set(key, standings) {
            self.touch(owner);
        }
    }

    /// How an instance stands as far as people were told.
    #[must_use]
    pub fn standings(&self, key: &InstanceKey) -> &[(Owner, Standing)] {
        self.board.standings(key)
    }

    fn tell(&self, key: &InstanceKey, owner: &Owner, trouble: &Trouble, index: &Index) {
        let reason = match trouble.reason {
            Reason::Invalid => EventReason::InvalidAnnotation,
            Reason::Conflict => EventReason::Conflict,
            Reason::OwnedByAnother => EventReason::OwnedByAnother,
            Reason::ConsulRefused | Reason::AccessDenied => EventReason::ConsulRefused,
            Reason::DriftContested => EventReason::DriftContested,
            // These are told where they arise.
            Reason::Paused
            | Reason::Drifted
            | Reason::Held
            | Reason::ConsulUnavailable
            | Reason::Writing => return,
        };
        tracing::warn!(
            key = %key, owner = %owner, reason = trouble.reason.as_str(), "{}", trouble.message
        );
        let about = match trouble.reason {
            Reason::Invalid => subject(key, owner, index),
            _ => owner.clone(),
        };
        self.event(&about, index.uid(&about), reason, trouble.message.clone());
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
            OwnerKind::ServiceRegistration => {
                Regarding::service_registration(namespace, name, uid.clone())
            }
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

    /// A write for an object was acknowledged.
    pub fn wrote(&mut self, owner: &Owner, index: u64) {
        self.board.wrote(owner, index);
        self.touch(owner.clone());
    }

    /// Sends what changed in statuses. A status that waits for a write lags behind for a moment, so
    /// that a change shows as done and not first as begun.
    ///
    /// `outage` is why Consul takes no writes, if it does not.
    pub fn flush(&mut self, index: &Index, outage: Option<&str>, now: Instant) {
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
        let objects = i64::try_from(index.problem_count()).unwrap_or(i64::MAX);
        let instances = [Reason::Invalid, Reason::ConsulRefused, Reason::AccessDenied];
        metrics
            .rejections
            .set(objects.saturating_add(troubled(&instances)));
    }

    /// When a status that lags behind is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.late.values().min().map(|since| *since + LAG)
    }

    fn send_status(&mut self, owner: &Owner, index: &Index, outage: Option<&str>) {
        if index.is_excluded(&owner.namespace) {
            return;
        }
        let Some(registration) = index.registration(owner) else {
            self.last.remove(owner);
            self.board.forget(owner);
            self.statuses.forget(&owner.namespace, &owner.name);
            return;
        };
        let before = self.last.get(owner);
        let before = before.filter(|(uid, _)| *uid == registration.uid);
        let before = before.map(|(_, status)| status);
        let facts = derive::Facts {
            tally: self.board.tally(owner),
            outage,
            datacenter: self.datacenter.as_deref(),
            before,
            now: jiff::Timestamp::now(),
        };
        let status = derive::registration(registration, &facts);
        if before == Some(&status) {
            return;
        }
        let uid = registration.uid.clone();
        self.last
            .insert(owner.clone(), (uid.clone(), status.clone()));
        self.statuses.send(StatusUpdate {
            namespace: registration.namespace.clone(),
            name: registration.name.clone(),
            uid,
            status,
        });
    }
}

/// The object whose input an instance is made of: the pod, where it stands for one.
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
