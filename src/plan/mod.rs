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
mod node;
pub mod panic;
pub mod vacancy;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::checks::forbidden::Forbidden;
use crate::desired::claim::{Claim, Freeze, Held, Resolved, Shape};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::desired::probe::Asked;
use crate::model::entry::{Check, Health, Node, Service};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks::{self, Standing};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::observed::entry::ObservedInstance;
use crate::observed::mirror::Mirror;
use checks::{CheckWrite, Verdicts};
use critical::{Criticals, Watched};
use entries::refusals::Refusals;
use gate::Hold;
use guard::{Guard, Limits};
use panic::NodePanic;
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

/// What is found under a key and what is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The object that holds the key, if any does.
    pub owner: Option<Owner>,
    /// Objects that claim it too.
    pub losers: Vec<Owner>,
    /// Why the shape is kept as it is, if it is.
    pub freeze: Option<Freeze>,
    /// Why what nothing claims, or was critical for long, may not be removed, where something else is to
    /// be done with it first.
    pub hold: Option<Hold>,
    /// How an instance is that may be deregistered while it is critical.
    pub critical: Option<Watched>,
    /// What the instance is to be asked.
    pub asks: Asks,
    /// What to do.
    pub step: Step,
}

/// What to do under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing: it is as it should be.
    Settled,
    /// Nothing for now: it is not known what Consul holds here.
    Waiting,
    /// Nothing: someone else holds the key.
    OwnedByAnother {
        /// Who, for people.
        holder: Text,
    },
    /// Nothing: it would be removed, and may not be yet.
    Held(Hold),
    /// Nothing: it was critical for so long, and is not registered until it is no more.
    KeptOut(Duration),
    /// Write a node.
    PutNode(NodeWrite),
    /// Write an instance.
    Put(InstanceWrite),
    /// Remove an instance.
    Remove(Removal),
    /// Nothing for now: an empty node, whose Kubernetes node is gone, which goes after a while.
    Lingering,
    /// Remove an empty node, which must have this `ModifyIndex`.
    RemoveNode(u64),
}

impl Step {
    /// Whether it cannot be in a transaction: Consul would leave something out without a word.
    #[must_use]
    pub fn needs_register(&self) -> bool {
        match self {
            Self::PutNode(write) => write.alive.is_some(),
            Self::Put(write) => write.needs_register(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Settled => f.write_str("nothing to do"),
            Self::Waiting => f.write_str("wait until it is known what Consul holds"),
            Self::OwnedByAnother { holder } => write!(f, "leave alone, it is held by {holder}"),
            Self::Held(hold) => write!(f, "{hold}"),
            Self::KeptOut(after) => {
                write!(
                    f,
                    "leave it deregistered, its checks were critical for {after:?}"
                )
            }
            Self::PutNode(write) if matches!(write.node, Some((_, 0))) => {
                f.write_str("create the node")
            }
            Self::PutNode(_) => f.write_str("update the node"),
            Self::Put(write) if write.creates() => write!(f, "register {}", write.name),
            Self::Put(write) => write!(f, "update {}", write.fields.join(", ")),
            Self::Remove(Removal { name, why, .. }) => match why {
                gate::Why::Critical(_) => write!(f, "remove {name}: {why}"),
                gate::Why::Seen | gate::Why::Found => write!(f, "remove {name}"),
            },
            Self::Lingering => f.write_str("remove the node later, because it is empty"),
            Self::RemoveNode(_) => f.write_str("remove the node, which is empty"),
        }
    }
}

/// A write of a node; the parts that are equal are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeWrite {
    /// The node, and the `ModifyIndex` that it must have; 0 to create it.
    pub node: Option<(Node, u64)>,
    /// The node check, likewise.
    pub check: Option<(Check, u64)>,
    /// Further checks of ours by their id, to be removed; the `ModifyIndex` of each.
    pub surplus: Vec<(Text, u64)>,
    /// The check `lictor-alive`, with this status. It cannot be in a transaction, so that nothing else is
    /// written with it.
    pub alive: Option<Health>,
    /// Whether that check is left for the next write.
    pub rest: bool,
}

/// A write of an instance; the parts that are equal are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceWrite {
    /// The object that it is for.
    pub owner: Owner,
    /// The service's name, which Consul judges the right to write by.
    pub name: Text,
    /// The entry, and the `ModifyIndex` that it must have; 0 to create it.
    pub service: Option<(Service, u64)>,
    /// Its checks, likewise.
    pub checks: Vec<CheckWrite>,
    /// Checks of ours that nobody asks for, by id, to be removed; the `ModifyIndex` of each.
    pub surplus: Vec<(Text, u64)>,
    /// What differs, for logs.
    pub fields: Vec<&'static str>,
    /// Whether the entry differs too, and is left for the next write because it cannot be in a
    /// transaction: the readiness of an instance and of its proxy changes in one.
    pub rest: bool,
}

impl InstanceWrite {
    /// Whether it creates the instance.
    #[must_use]
    pub fn creates(&self) -> bool {
        matches!(self.service, Some((_, 0)))
    }

    /// Whether it cannot be in a transaction: Consul would leave something out without a word.
    #[must_use]
    pub fn needs_register(&self) -> bool {
        let service = self.service.as_ref();
        service.is_some_and(|(service, _)| service.needs_register())
            || self.checks.iter().any(|it| it.kind.follows_session())
    }
}

/// The removal of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// The object that owned it.
    pub owner: Owner,
    /// The service's name, which Consul judges the right to remove by.
    pub name: Text,
    /// The `ModifyIndex` that it must have.
    pub index: u64,
    /// How it is known that nothing claims it.
    pub why: gate::Why,
}

impl Finding {
    fn nothing(step: Step) -> Self {
        Self {
            owner: None,
            losers: Vec::new(),
            freeze: None,
            hold: None,
            critical: None,
            asks: Asks::Nothing,
            step,
        }
    }

    /// Why what nothing claims may not be removed, if it would be.
    #[must_use]
    pub fn held(&self) -> Option<&Hold> {
        match &self.step {
            Step::Held(hold) => Some(hold),
            _ => self.hold.as_ref(),
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
                    step
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
            } = *claim;
            let freeze = match shape {
                Shape::Frozen(freeze) => Some(freeze),
                Shape::Valid(_) => None,
            };
            Finding {
                owner: Some(owner),
                losers,
                freeze,
                hold: why_not,
                critical,
                asks,
                step,
            }
        }
        Resolved::Unclaimed(absence) => match (there, standing) {
            (Some(there), Some(Standing::Ours(owner))) => {
                let candidate = gate::Candidate {
                    key: full_key,
                    absence,
                    watches: &desired.watches,
                };
                match gate::may_remove(&candidate, rules) {
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
            _ => Finding::nothing(Step::Settled),
        },
    }
}

/// What an instance is to be asked, so that it is known how it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Asks {
    /// Nothing: it is not claimed, or has no checks.
    Nothing,
    /// What it is asked already: it is not known what should be.
    Kept,
    /// This.
    These(Subject, Box<[Asked]>),
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The address or host name.
    pub host: Text,
    /// The uid of the pod or registration: another one has nothing to do with what was found of this one.
    pub uid: Text,
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

fn update(key: &InstanceKey, claim: &Claim, there: &ObservedInstance, scope: &Scope<'_>) -> Step {
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
    let service = (!fields.is_empty()).then(|| (wanted.clone(), there.modify_index));
    let service_in_transaction = service.is_some() && !wanted.needs_register();
    let checks = checks::differing(key, &wanted_checks, Some(there));
    let surplus = checks::surplus(key, claim, &wanted_checks, there, scope.rules.mode);
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
