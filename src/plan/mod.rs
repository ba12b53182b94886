//! What to do about the difference between what is wanted and what is there. Pure.
//!
//! [`decide`] is asked for one key at a time, after a change for the few keys that it touched and
//! after a start or a re-list for all: the two cannot disagree, because they are one function.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

pub mod batch;
pub mod checks;
pub mod critical;
pub mod diff;
pub mod entries;
mod esm;
pub mod gate;
pub mod guard;
mod let_go;
mod node;
pub mod panic;
mod step;
pub mod vacancy;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::checks::forbidden::Forbidden;
use crate::desired::claim::{Absence, Claim, Held, Refused, Resolved, Shape};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::desired::probe::Asked;
use crate::model::entry::{Check, Health, Service};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks::{self, Standing};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::observed::entry::ObservedInstance;
use crate::observed::mirror::Mirror;
use crate::settings::Values;
use checks::{CheckWrite, Verdicts};
use critical::Criticals;
use entries::refusals::Refusals;
use guard::{Guard, Limits};
pub use let_go::end_let_go;
use panic::NodePanic;
pub use step::{Asks, Finding, InstanceWrite, NodeWrite, Removal, Step, Subject};
use vacancy::Vacancies;

/// What may be written (`--policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Everything that differs.
    #[default]
    Sync,
    /// Everything but removals.
    UpsertOnly,
    /// Nothing, anywhere: what would be written is logged.
    DryRun,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sync => "sync",
            Self::UpsertOnly => "upsert-only",
            Self::DryRun => "dry-run",
        })
    }
}

/// What is done about a change by another hand (`--drift`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DriftMode {
    /// It is undone.
    #[default]
    Repair,
    /// It is told, and left until Kubernetes changes what is wanted.
    Report,
}

impl std::fmt::Display for DriftMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Repair => "repair",
            Self::Report => "report",
        })
    }
}

/// What holds for all keys together.
#[derive(Debug)]
pub struct Rules {
    /// What may be written.
    pub mode: Mode,
    /// What is done about changes by other hands.
    pub drift: DriftMode,
    /// What may be removed of all that is found missing.
    pub guard: Guard,
    /// Whether the checks of nodes are held.
    pub nodes: NodePanic,
    /// Nodes that are empty.
    pub vacancies: Vacancies,
    /// Intentions that Consul refuses.
    pub refusals: Refusals,
    /// What was found when instances were asked.
    pub verdicts: Verdicts,
    /// What Leases say of instances, whether Consul has them or not.
    pub heartbeats: Verdicts,
    /// `--dead-after`: after how long without Lictor a node turns critical.
    pub dead_after: Option<Duration>,
    /// Whether Consul has checks that follow sessions; else why not.
    pub sessions: Result<(), Text>,
    /// How long instances have been critical.
    pub criticals: Criticals,
    /// Where consul-esm may not be sent, once that is known.
    pub forbidden: Option<Arc<Forbidden>>,
}

impl Rules {
    /// Takes over what of them may change while Lictor runs.
    pub fn obey(&mut self, settings: &Values) {
        self.mode = settings.policy;
        self.drift = settings.drift;
        self.guard.set_limits(settings.limits);
        self.criticals.set_after(settings.sweep_critical_after);
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            drift: DriftMode::default(),
            guard: Guard::new(Limits::default()),
            nodes: NodePanic::default(),
            vacancies: Vacancies::default(),
            refusals: Refusals::default(),
            verdicts: Verdicts::default(),
            heartbeats: Verdicts::default(),
            dead_after: None,
            sessions: Ok(()),
            criticals: Criticals::default(),
            forbidden: None,
        }
    }
}

/// Decides what to do under a key.
#[must_use]
pub fn decide(key: &Key, desired: &Index, observed: &Mirror, rules: &Rules) -> Finding {
    if observed.is_unsure(&key.place()) {
        return Finding {
            asks: Asks::Kept,
            ..Finding::nothing(Step::Waiting)
        };
    }
    match key {
        Key::Node(name) => Finding::nothing(node::decide_node(name, desired, observed, rules)),
        Key::Instance(instance) => decide_instance(key, instance, desired, observed, rules),
        Key::Defaults(_) | Key::Intentions(_) | Key::Source(_) | Key::Query(_) => {
            Finding::nothing(Step::Settled)
        }
    }
}

/// All that a decision is made from.
struct Scope<'a> {
    desired: &'a Index,
    observed: &'a Mirror,
    rules: &'a Rules,
}

fn decide_instance(
    full_key: &Key,
    key: &InstanceKey,
    desired: &Index,
    observed: &Mirror,
    rules: &Rules,
) -> Finding {
    let scope = Scope {
        desired,
        observed,
        rules,
    };
    let there = observed.instance(key);
    let standing = there.map(|there| observed.standing(key, there));
    let held = match (&standing, there) {
        (Some(Standing::Ours(owner)), Some(there)) => Some(held(key, owner, there)),
        _ => None,
    };
    match desired.resolve(key, held.as_ref()) {
        Resolved::Claimed(claim) => {
            // Nothing is written to a node that is another's, whatever stands on it.
            let foreign_node = observed
                .node(&key.node)
                .filter(|node| !observed.is_our_node(&key.node, node))
                .map(|node| node::node_holder(desired, node));
            let mut critical = critical::watched(key, &claim, &scope);
            let mut why_not = None;
            let step = match (there, standing) {
                (Some(there), Some(Standing::Foreign(holder)))
                    if !observed.lost_marks(there) && !adopts(&claim, there) =>
                {
                    Step::OwnedByAnother { holder }
                }
                _ if foreign_node.is_some() => Step::OwnedByAnother {
                    holder: foreign_node.unwrap_or_default(),
                },
                (there, standing) => {
                    let ours = matches!(standing, Some(Standing::Ours(_)));
                    let watched = critical.as_ref();
                    let (step, why) =
                        critical::take(full_key, key, &claim, (there, ours), watched, &scope);
                    why_not = why;
                    without_address(&step, key, &scope).unwrap_or(step)
                }
            };
            let asks = match &step {
                Step::OwnedByAnother { .. } => Asks::Nothing,
                _ => asks(&claim, there, desired.runner()),
            };
            if matches!(step, Step::OwnedByAnother { .. }) {
                critical = None;
            }
            let Claim {
                owner,
                losers,
                shape,
                live: _,
                adopt: _,
                adopt_refused,
            } = *claim;
            // It matters only where there is something to take over.
            let stands_there = matches!(step, Step::OwnedByAnother { .. })
                && there.is_some_and(|there| marks::is_unmarked(&there.service.meta));
            let refused = adopt_refused.filter(|_| stands_there).map(|refusal| {
                let owners = vec![owner.clone()];
                Refused { owners, refusal }
            });
            let freeze = match shape {
                Shape::Frozen(freeze) => Some(freeze),
                Shape::Valid(_) => None,
            };
            Finding {
                owner: Some(owner),
                losers,
                freeze,
                refused,
                hold: why_not,
                critical,
                asks,
                step,
            }
        }
        Resolved::Refused(refused) => {
            let ours = there.and_then(|there| match standing {
                Some(Standing::Ours(owner)) => Some((there, owner)),
                _ => None,
            });
            withdraw((full_key, key), ours, *refused, &scope)
        }
        Resolved::Unclaimed(absence) => match (there, standing) {
            (Some(there), Some(Standing::Ours(owner))) => {
                let candidate = gate::Candidate {
                    key: full_key,
                    owner: &owner,
                    absence,
                    watches: &desired.watches,
                };
                let may = gate::may_remove(&candidate, rules);
                leave(key, desired, there, owner, may)
            }
            _ => Finding::nothing(Step::Settled),
        },
    }
}

/// What to do about an instance whose claim is not allowed; `ours` is what is there of ours.
fn withdraw(
    (full_key, key): (&Key, &InstanceKey),
    ours: Option<(&ObservedInstance, Owner)>,
    refused: Refused,
    scope: &Scope<'_>,
) -> Finding {
    let finding = match ours {
        Some((there, owner)) => {
            let candidate = gate::Candidate {
                key: full_key,
                owner: &owner,
                absence: Absence::Found,
                watches: &scope.desired.watches,
            };
            let may = gate::may_withdraw(&candidate, scope.rules, &refused.refusal);
            leave(key, scope.desired, there, owner, may)
        }
        None => Finding::nothing(Step::Settled),
    };
    Finding {
        refused: Some(refused),
        ..finding
    }
}

/// What to do about an instance that is to go, if it may.
fn leave(
    key: &InstanceKey,
    desired: &Index,
    there: &ObservedInstance,
    owner: Owner,
    may: Result<gate::Why, gate::Hold>,
) -> Finding {
    match may {
        Ok(why) => Finding::nothing(Step::Remove(Removal {
            owner,
            name: there.service.name.clone(),
            index: there.modify_index,
            why,
        })),
        Err(why_not) => match yield_address(key, desired, there, &owner) {
            Some(write) => Finding {
                hold: Some(why_not),
                ..Finding::nothing(Step::Put(write))
            },
            None => Finding::nothing(Step::Held(why_not)),
        },
    }
}

/// That an instance cannot be created, if its node cannot be for want of an address.
fn without_address(step: &Step, key: &InstanceKey, scope: &Scope<'_>) -> Option<Step> {
    let Step::Put(write) = step else {
        return None;
    };
    if !write.creates() || scope.observed.node(&key.node).is_some() {
        return None;
    }
    let (service, _) = write.service.as_ref()?;
    let node = key.node.kubernetes_node(scope.desired.cluster())?;
    if scope.desired.has_address(&key.node) {
        return None;
    }
    let pod = critical::pod_of(service)?;
    Some(Step::NoNodeAddress {
        node: node.into(),
        pod: format!("{}/{}", pod.namespace, pod.name).into(),
    })
}

fn asks(claim: &Claim, there: Option<&ObservedInstance>, runner: Runner) -> Asks {
    let service = match &claim.shape {
        Shape::Valid(service) => Some(Cow::Borrowed(service)),
        Shape::Frozen(_) => there.map(|there| Cow::Owned(claim.live.onto(&there.service))),
    };
    let Some(service) = service.filter(|service| !service.is_proxy()) else {
        return Asks::Nothing;
    };
    match &claim.live.asked {
        None => Asks::Kept,
        Some(asked) => {
            // Leases are looked at by Lictor, whoever runs checks.
            let counts = |asked: &&Asked| runner == Runner::Lictor || asked.heartbeat().is_some();
            let asked: Box<[Asked]> = asked.iter().filter(counts).cloned().collect();
            if asked.is_empty() {
                return Asks::Nothing;
            }
            let uid = service.meta.get(marks::UID).cloned().unwrap_or_default();
            let host = service.address.clone();
            Asks::These(Subject { host, uid }, asked)
        }
    }
}

/// Whether an entry without any owner's mark is taken over (`spec.adopt`). Where the input is invalid
/// nothing is.
fn adopts(claim: &Claim, there: &ObservedInstance) -> bool {
    let valid = matches!(claim.shape, Shape::Valid(_));
    claim.adopt && valid && marks::is_unmarked(&there.service.meta)
}

/// Takes an instance that may not be removed out of service, where its address is another pod's now:
/// nobody is to reach that pod under a name that is not its own.
fn yield_address(
    key: &InstanceKey,
    desired: &Index,
    there: &ObservedInstance,
    owner: &Owner,
) -> Option<InstanceWrite> {
    let address = &there.service.address;
    let pod = desired.pod_at(address)?;
    let stood_for = held(key, owner, there).pod.cloned();
    if pod.namespace == owner.namespace && Some(&pod.name) == stood_for.as_ref() {
        return None;
    }
    let known = there.readiness(key);
    if known.is_some_and(|known| known.check.status == Health::Critical) {
        return None;
    }
    let check = Check {
        status: Health::Critical,
        output: format!("the address {address} belongs to {pod} now").into(),
    };
    Some(InstanceWrite {
        owner: owner.clone(),
        name: there.service.name.clone(),
        service: None,
        checks: vec![CheckWrite {
            kind: there.service.check_kind(),
            check,
            index: known.map_or(0, |known| known.modify_index),
        }],
        surplus: Vec::new(),
        fields: vec!["check"],
        rest: false,
    })
}

/// What an entry of ours under a key says about itself.
#[must_use]
pub fn held_under<'a>(key: &InstanceKey, observed: &'a Mirror) -> Option<Held<'a>> {
    let there = observed.instance(key)?;
    match observed.standing(key, there) {
        Standing::Ours(owner) => Some(held(key, &owner, there)),
        Standing::Foreign(_) => None,
    }
}

fn held<'a>(key: &InstanceKey, owner: &Owner, there: &'a ObservedInstance) -> Held<'a> {
    let meta = &there.service.meta;
    let is_pod = meta
        .get(marks::K8S_REF_KIND)
        .is_some_and(|kind| **kind == *OwnerKind::Pod.as_str());
    let pod = meta.get(marks::K8S_REF_NAME).filter(|_| is_pod);
    Held {
        owner: owner.clone(),
        service: &there.service.name,
        address: &there.service.address,
        port: there.service.port,
        pod,
        readiness: there.readiness(key).map(|there| there.check.status),
    }
}

fn create(key: &InstanceKey, claim: &Claim, scope: &Scope<'_>) -> Step {
    match &claim.shape {
        // Nothing is registered from invalid input.
        Shape::Frozen(_) => Step::Settled,
        Shape::Valid(service) => Step::Put(InstanceWrite {
            owner: claim.owner.clone(),
            name: service.name.clone(),
            service: Some((service.clone(), 0)),
            checks: checks::differing(key, &checks::wanted(key, service, claim, scope), None),
            surplus: Vec::new(),
            fields: Vec::new(),
            rest: false,
        }),
    }
}

/// All that differs between an instance as it is there and as it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Differences {
    /// The entry as it is wanted.
    pub service: Service,
    /// What of the entry differs.
    pub fields: Vec<&'static str>,
    /// The checks that differ, or are missing.
    pub checks: Vec<CheckWrite>,
    /// Checks of ours that nobody asks for, by id; the `ModifyIndex` of each.
    pub surplus: Vec<(Text, u64)>,
}

/// All that differs under a key that is claimed and held by us, or may be adopted. A write may have but
/// a part of it, and leave the rest for the next one.
#[must_use]
pub fn differences(
    key: &InstanceKey,
    desired: &Index,
    observed: &Mirror,
    rules: &Rules,
) -> Option<Differences> {
    let there = observed.instance(key)?;
    let held = held_under(key, observed);
    let Resolved::Claimed(claim) = desired.resolve(key, held.as_ref()) else {
        return None;
    };
    let scope = Scope {
        desired,
        observed,
        rules,
    };
    Some(differing(key, &claim, there, &scope))
}

fn differing(
    key: &InstanceKey,
    claim: &Claim,
    there: &ObservedInstance,
    scope: &Scope<'_>,
) -> Differences {
    let mut wanted = match &claim.shape {
        Shape::Valid(service) => service.clone(),
        Shape::Frozen(_) => claim.live.onto(&there.service),
    };
    if wanted.enable_tag_override {
        // Tags are written at creation only: whoever overrides them may.
        wanted.tags.clone_from(&there.service.tags);
    }
    marks::keep_unknown(&there.service.meta, &mut wanted.meta);
    let frozen = matches!(claim.shape, Shape::Frozen(_));
    let wanted_checks = checks::wanted(key, &wanted, claim, scope);
    let mut fields = diff::fields(&there.service, &wanted);
    if there.embellished && !frozen && !fields.contains(&"kind") {
        fields.push("kind");
    }
    Differences {
        checks: checks::differing(key, &wanted_checks, Some(there)),
        surplus: checks::surplus(key, claim, &wanted_checks, there, scope.rules.mode),
        service: wanted,
        fields,
    }
}

fn update(key: &InstanceKey, claim: &Claim, there: &ObservedInstance, scope: &Scope<'_>) -> Step {
    let Differences {
        service: wanted,
        mut fields,
        checks,
        surplus,
    } = differing(key, claim, there, scope);
    let service = (!fields.is_empty()).then(|| (wanted.clone(), there.modify_index));
    let service_in_transaction = service.is_some() && !wanted.needs_register();
    if !checks.is_empty() {
        fields.push("check");
    }
    if !surplus.is_empty() {
        fields.push("other checks");
    }
    if fields.is_empty() {
        return Step::Settled;
    }
    let mut write = InstanceWrite {
        owner: claim.owner.clone(),
        name: there.service.name.clone(),
        service,
        checks,
        surplus,
        fields,
        rest: false,
    };
    let (sessions, others): (Vec<_>, Vec<_>) = std::mem::take(&mut write.checks)
        .into_iter()
        .partition(|it| it.kind.follows_session());
    write.checks = others;
    if !sessions.is_empty() {
        if write.checks.is_empty() && write.surplus.is_empty() && !service_in_transaction {
            // With the entry as it is to be, whose index is compared.
            write.service = Some((wanted, there.modify_index));
            write.checks = sessions;
            return Step::Put(write);
        }
        write.rest = true;
    }
    if write.needs_register() && !write.checks.is_empty() {
        write.service = None;
        write.surplus.clear();
        write.fields = vec!["check"];
        write.rest = true;
    }
    Step::Put(write)
}

#[cfg(test)]
mod tests;
