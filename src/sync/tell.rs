//! What the engine tells people of what it finds, writes and removes.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::engine::{Engine, LostRemoval};
use super::report::subject;
use crate::audit::{self, Removed};
use crate::desired::claim::{Freeze, Refused};
use crate::k8s::EventReason;
use crate::metrics::OperationLabels;
use crate::model::key::{InstanceKey, Key};
use crate::model::marks::Standing as Mark;
use crate::model::names::NodeName;
use crate::model::owner::Owner;
use crate::observed::entry::ObservedNode;
use crate::plan::critical::Watched;
use crate::plan::gate::Hold;
use crate::plan::{Finding, InstanceWrite, Removal, Step};
use crate::policy::Refusal;
use crate::status::board::{Reason, Standing, Trouble};

impl Engine {
    pub(super) fn count(&self, step: &Step, outcome: &'static str) {
        let (kind, verb) = match step {
            Step::PutNode(write) if matches!(write.node, Some((_, 0))) => ("node", "create"),
            Step::PutNode(_) => ("node", "update"),
            Step::Put(write) if write.creates() => ("instance", "create"),
            Step::Put(_) => ("instance", "update"),
            Step::Remove(_) => ("instance", "delete"),
            Step::RemoveNode(_) => ("node", "delete"),
            _ => return,
        };
        let labels = OperationLabels {
            kind,
            verb,
            outcome,
        };
        self.report.metrics.operations.get_or_create(&labels).inc();
    }

    pub(super) fn tell_written(
        &mut self,
        key: &InstanceKey,
        write: &InstanceWrite,
        drift: bool,
        index: u64,
    ) {
        let owner = &write.owner;
        self.report.wrote(owner, index);
        let verb = if write.creates() {
            "registered"
        } else {
            "updated"
        };
        let fields = write.fields.join(", ");
        tracing::info!(key = %key, owner = %owner, index, fields = &*fields, drift, "{verb}");
        if drift {
            let what = if write.creates() {
                "was removed"
            } else {
                "was changed"
            };
            let fields = match &*fields {
                "" => String::new(),
                fields => format!(" ({fields})"),
            };
            let note = format!("{key} {what} in Consul by another hand and is repaired{fields}");
            self.report.event(
                owner,
                self.index.uid(owner),
                EventReason::DriftRepaired,
                note,
            );
        } else if write.creates() {
            let about = subject(key, owner, &self.index);
            let note = format!("{} is registered in Consul as {key}", write.name);
            self.report.event(
                &about,
                self.index.uid(&about),
                EventReason::Registered,
                note,
            );
        }
    }

    pub(super) fn tell_removed(&mut self, key: &InstanceKey, removal: &Removal, epoch: u64) {
        let Removal {
            owner, index, why, ..
        } = removal;
        self.held.remove(&Key::Instance(key.clone()));
        self.index.forget_absence(key);
        audit::removed(&Removed {
            kind: "instance",
            key: &key.to_string(),
            owner: &owner.to_string(),
            why: &why.to_string(),
            seen: !why.is_found(),
            epoch,
            index: *index,
        });
        let note = format!("{key} is removed from Consul: {why}");
        self.report.event(
            owner,
            self.index.uid(owner),
            EventReason::Deregistered,
            note,
        );
    }

    /// Tells of what the guard holds.
    pub(super) fn tell_guarded(&mut self, would_go: usize, of: usize) {
        let hold = Hold::TooMany { would_go, of };
        tracing::error!(
            reason = "DeletesHeld",
            held = self.rules.guard.waiting().count(),
            "found missing: {hold}"
        );
        let mut owners = BTreeSet::new();
        for key in self.rules.guard.waiting() {
            match key {
                Key::Instance(instance) => {
                    if let Some(there) = self.mirror.instance(instance)
                        && let Mark::Ours(owner) = self.mirror.standing(instance, there)
                    {
                        owners.insert(owner);
                    }
                }
                Key::Source(source) => {
                    let there = self.mirror.intentions.get(&source.destination);
                    owners
                        .extend(there.and_then(|there| there.owners.get(&source.source).cloned()));
                }
                Key::Defaults(service) => {
                    let there = self.mirror.defaults.get(service);
                    owners.extend(there.and_then(|there| there.owner.clone()));
                }
                Key::Node(_) | Key::Intentions(_) | Key::Query(_) => {}
            }
        }
        for owner in owners {
            let uid = self.index.uid(&owner);
            self.report
                .event(&owner, uid, EventReason::DeletesHeld, hold.to_string());
        }
        self.report
            .own_event(EventReason::DeletesHeld, hold.to_string());
    }

    pub(super) fn tell_node_removed(name: &NodeName, index: u64, epoch: u64) {
        audit::removed(&Removed {
            kind: "node",
            key: name.as_ref(),
            owner: "",
            why: "it is empty, and its Kubernetes node is gone",
            seen: false,
            epoch,
            index,
        });
    }

    /// Notes what was found under a key, for status and Events.
    pub(super) fn note(&mut self, key: &Key, finding: &Finding) {
        if let Key::Instance(key) = key {
            self.ask(key, &finding.asks);
            self.follow_beats(key, finding, Instant::now());
            self.follow_critical(key, finding);
        }
        match (&finding.step, finding.held()) {
            // What stands there is not known: how it stands is what was told last.
            (Step::Waiting, _) => return,
            (_, Some(hold)) => {
                self.held.insert(key.clone());
                if hold.is_guards() {
                    self.guard_finds(key, finding.refused.is_some());
                    self.critical.offer(key, finding.owner.is_some());
                }
            }
            (Step::Remove(Removal { why, .. }), None) if why.is_found() => {
                self.held.remove(key);
            }
            (Step::Settled, None) => {
                self.dirty.absolve(key);
                self.alone.remove(key);
                self.held.remove(key);
                self.drifted.remove(key);
                self.not_missing(key, finding);
            }
            _ => {
                self.held.remove(key);
                self.not_missing(key, finding);
            }
        }
        self.tell_lost_removal(key);
        if let Key::Node(name) = key {
            self.follow_node(name, Instant::now());
            match finding.step {
                Step::Lingering => self.rules.vacancies.found(name, Instant::now()),
                Step::RemoveNode(_) => {}
                _ => self.rules.vacancies.dismiss(name),
            }
        }
        let whole = key;
        let Key::Instance(key) = key else {
            if let (Key::Node(name), Step::OwnedByAnother { holder }) = (key, &finding.step) {
                let message = format!(
                    "it is held by {holder}: no pod on it is registered; give this cluster another name, or \
                     remove the node"
                );
                self.tell_node(name, Reason::OwnedByAnother, &message);
            }
            return;
        };
        let registered = self.registered(key);
        let mut standings = Vec::new();
        if let Some(owner) = &finding.owner {
            let trouble = trouble_of(key, finding, registered.is_some());
            let trouble = trouble.or_else(|| self.beat_trouble(key));
            standings.push((
                owner.clone(),
                Standing {
                    claimed: true,
                    registered,
                    settled: finding.step == Step::Settled,
                    trouble,
                },
            ));
            // What a frozen object held stays its own, whoever is older.
            let claimants = self.index.claimants(key);
            let older = claimants.first().is_some_and(|first| first.owner == *owner);
            let how = if older {
                "which is older, holds"
            } else {
                "which is paused or invalid, keeps"
            };
            for loser in &finding.losers {
                let message = format!(
                    "{owner}, {how} {key}: give one of the two another service name, or another \
                     selector"
                );
                let trouble = Some(Trouble {
                    reason: Reason::Conflict,
                    message,
                });
                standings.push((
                    loser.clone(),
                    Standing {
                        claimed: true,
                        registered: None,
                        settled: false,
                        trouble,
                    },
                ));
            }
        } else {
            standings = self.standings_of_unclaimed(key, finding);
        }
        self.report.stand(whole, standings, &self.index);
        if finding.step == Step::Settled && finding.owner.is_none() {
            self.index.forget_absence(key);
        }
    }

    /// How an instance stands that nothing claims, or that nothing may.
    fn standings_of_unclaimed(
        &self,
        key: &InstanceKey,
        finding: &Finding,
    ) -> Vec<(Owner, Standing)> {
        if let Some(refused) = &finding.refused {
            return self.refused(key, finding, refused);
        }
        let standing = |(owner, trouble)| {
            let standing = Standing {
                claimed: false,
                registered: self.registered(key),
                settled: false,
                trouble,
            };
            (owner, standing)
        };
        let leaving = self.leaving(key, finding).map(standing);
        leaving.into_iter().collect()
    }

    /// How an instance stands for those that may not claim it.
    fn refused(
        &self,
        key: &InstanceKey,
        finding: &Finding,
        refused: &Refused,
    ) -> Vec<(Owner, Standing)> {
        let there = self.mirror.instance(key);
        let of = there.map(|there| self.mirror.standing(key, there));
        let standing = |owner: &Owner| {
            let is_there = matches!(&of, Some(Mark::Ours(of)) if of == owner);
            let standing = Standing {
                claimed: true,
                registered: self.registered(key).filter(|_| is_there),
                settled: false,
                trouble: Some(not_allowed(key, &refused.refusal, finding.held())),
            };
            (owner.clone(), standing)
        };
        refused.owners.iter().map(standing).collect()
    }

    /// A key is no found absence: because something claims it, or for another reason.
    pub(super) fn not_missing(&mut self, key: &Key, finding: &Finding) {
        // That an instance is well says nothing of the view in which others are missing.
        let returns = !self.critical.is_offered(key) || self.judges_health_alone();
        self.critical.withdraw(key);
        if finding.owner.is_some() && returns {
            self.rules.guard.returned(key);
        } else {
            self.rules.guard.lapsed(key);
        }
    }

    /// Tells of a removal whose answer was lost, if what was read since shows that it was carried out.
    fn tell_lost_removal(&mut self, key: &Key) {
        let Some(lost) = self.lost_removals.remove(key) else {
            return;
        };
        match (key, lost) {
            (Key::Instance(key), LostRemoval::Instance(removal, epoch))
                if self.mirror.instance(key).is_none() =>
            {
                self.removed(key, &removal, epoch, Instant::now());
            }
            (Key::Node(name), LostRemoval::Node(index, epoch))
                if self.mirror.node(name).is_none() =>
            {
                Self::tell_node_removed(name, index, epoch);
            }
            _ => {}
        }
    }

    /// Who an entry that nothing claims any more belonged to, while it is still there.
    fn leaving(&self, key: &InstanceKey, finding: &Finding) -> Option<(Owner, Option<Trouble>)> {
        let there = self.mirror.instance(key)?;
        let Mark::Ours(owner) = self.mirror.standing(key, there) else {
            return None;
        };
        self.index.registration(&owner)?;
        let (reason, message) = match (&finding.step, finding.held()) {
            (_, Some(hold)) => (Reason::Held, format!("{key}: {hold}")),
            (Step::Remove(_), None) => (
                Reason::Writing,
                format!("{key} is being removed from Consul"),
            ),
            _ => return None,
        };
        Some((owner, Some(Trouble { reason, message })))
    }

    /// Puts a trouble on all that claim a key.
    pub(super) fn trouble(&mut self, key: &Key, reason: Reason, message: String) {
        let trouble = Trouble { reason, message };
        match key {
            Key::Node(name) => self.tell_node(name, reason, &trouble.message),
            Key::Instance(_) => self.put_trouble(key, &trouble),
            _ => {
                for part in self.parts.get(key).cloned().unwrap_or_default() {
                    self.put_trouble(&part, &trouble);
                }
            }
        }
    }

    /// Tells in the log that a node is not as it should be, once: no object of a user's stands for it.
    pub(super) fn tell_node(&mut self, node: &NodeName, reason: Reason, message: &str) {
        let told = self.told_of_nodes.get(node);
        if told.is_none_or(|told| told != message) {
            tracing::warn!(key = %node, reason = reason.as_str(), "{message}");
            self.told_of_nodes.insert(node.clone(), message.to_owned());
        }
    }

    fn put_trouble(&mut self, key: &Key, trouble: &Trouble) {
        let standings = self.report.standings(key).iter().map(|(owner, standing)| {
            (
                owner.clone(),
                Standing {
                    settled: false,
                    trouble: Some(trouble.clone()),
                    ..standing.clone()
                },
            )
        });
        let standings = standings.collect();
        self.report.stand(key, standings, &self.index);
    }

    /// The health of an instance of ours, that of its node included.
    fn registered(&self, key: &InstanceKey) -> Option<crate::model::entry::Health> {
        let there = self.mirror.instance(key)?;
        let ours = matches!(self.mirror.standing(key, there), Mark::Ours(_));
        let node = self.mirror.node(&key.node).map(ObservedNode::health);
        ours.then(|| node.map_or(there.health(), |node| node.max(there.health())))
    }
}

/// That a claim is not allowed, and what becomes of what it held.
pub(super) fn not_allowed(
    key: &impl std::fmt::Display,
    refusal: &Refusal,
    hold: Option<&Hold>,
) -> Trouble {
    if refusal.waits {
        return Trouble {
            reason: Reason::Writing,
            message: format!("{key} waits: {}", refusal.message),
        };
    }
    let message = match hold {
        // That is over in a moment.
        None | Some(Hold::Unjudged) => format!("{key} is not allowed: {}", refusal.message),
        Some(hold) => format!(
            "{key} is not allowed: {}; what Consul holds is {hold}",
            refusal.message
        ),
    };
    Trouble {
        reason: Reason::NotAllowed,
        message,
    }
}

fn trouble_of(key: &InstanceKey, finding: &Finding, registered: bool) -> Option<Trouble> {
    let trouble = |reason, message| Some(Trouble { reason, message });
    if let (Some(hold), Some(Watched { after, .. })) = (&finding.hold, &finding.critical) {
        let message = format!("{key}: its checks were critical for {after:?}: {hold}");
        let reason = match hold {
            // That is over in a moment, and nobody has to do anything about it.
            Hold::Unjudged | Hold::Unseen => Reason::Writing,
            _ => Reason::Held,
        };
        return trouble(reason, message);
    }
    match &finding.step {
        Step::OwnedByAnother { .. } if finding.refused.is_some() => {
            let refused = finding.refused.as_ref();
            refused.map(|refused| not_allowed(key, &refused.refusal, None))
        }
        Step::OwnedByAnother { holder } => trouble(
            Reason::OwnedByAnother,
            format!(
                "{key} is not written: it is held by {holder}; remove what is there, or choose another \
                 name"
            ),
        ),
        Step::Held(hold) => trouble(Reason::Held, format!("{key}: {hold}")),
        Step::KeptOut(after) => trouble(
            Reason::DeregisteredCritical,
            format!(
                "{key} is deregistered, because its checks were critical for {after:?}; it is registered \
                 again when they are not"
            ),
        ),
        Step::NoNodeAddress { .. } => trouble(
            Reason::NoNodeAddress,
            format!("{key} is not registered: {}", finding.step),
        ),
        Step::Put(_) | Step::PutNode(_) | Step::Remove(_) | Step::Waiting => {
            trouble(Reason::Writing, format!("{key} is being written to Consul"))
        }
        Step::Lingering | Step::RemoveNode(_) => None,
        Step::Settled => match &finding.freeze {
            None => None,
            Some(Freeze::Paused) => trouble(
                Reason::Paused,
                format!(
                    "{key} is held as it is by the annotation lictor.io/paused: remove it to go on"
                ),
            ),
            Some(Freeze::NotWatched) => trouble(
                Reason::Held,
                format!(
                    "{key} is kept as it is: its namespace is not among those of --namespace, add it there"
                ),
            ),
            Some(Freeze::Invalid(problems)) => {
                let state = if registered {
                    "is kept as it was"
                } else {
                    "is not registered"
                };
                let problems = problems.join("; ");
                trouble(Reason::Invalid, format!("{key} {state}: {problems}"))
            }
        },
    }
}

#[cfg(test)]
mod tests;
