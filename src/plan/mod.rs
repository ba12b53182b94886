//! What to do about the difference between what is wanted and what is there. Pure.
//!
//! [`decide`] is asked for one key at a time, after a change for the few keys that it touched and
//! after a start or a re-list for all: the two cannot disagree, because they are one function.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod batch;
pub mod diff;
pub mod gate;

use crate::desired::claim::{Claim, DesiredNode, Freeze, Held, Resolved, Shape};
use crate::desired::index::Index;
use crate::model::entry::{Check, Node, Service, readiness_check_id};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks::{self, Standing};
use crate::model::names::NodeName;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::observed::entry::{ObservedInstance, ObservedNode};
use crate::observed::mirror::{Completeness, Mirror};
use gate::Hold;

/// What is found under a key and what is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The object that holds the key, if any does.
    pub owner: Option<Owner>,
    /// Objects that claim it too.
    pub losers: Vec<Owner>,
    /// Why the shape is kept as it is, if it is.
    pub freeze: Option<Freeze>,
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
    /// Write a node.
    PutNode(NodeWrite),
    /// Write an instance.
    Put(InstanceWrite),
    /// Remove an instance.
    Remove(Removal),
}

/// A write of a node; the parts that are equal are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeWrite {
    /// The node, and the `ModifyIndex` that it must have; 0 to create it.
    pub node: Option<(Node, u64)>,
    /// The node check, likewise.
    pub check: Option<(Check, u64)>,
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
    /// The readiness check, likewise.
    pub check: Option<(Check, u64)>,
    /// What differs, for logs.
    pub fields: Vec<&'static str>,
}

impl InstanceWrite {
    /// Whether it creates the instance.
    #[must_use]
    pub fn creates(&self) -> bool {
        matches!(self.service, Some((_, 0)))
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
            step,
        }
    }
}

/// Decides what to do under a key.
#[must_use]
pub fn decide(key: &Key, desired: &Index, observed: &Mirror) -> Finding {
    if observed.completeness() == Completeness::Unknown || observed.is_unsure(key.node()) {
        return Finding::nothing(Step::Waiting);
    }
    match key {
        Key::Node(name) => Finding::nothing(decide_node(name, desired, observed)),
        Key::Instance(key) => decide_instance(key, desired, observed),
    }
}

fn decide_node(name: &NodeName, desired: &Index, observed: &Mirror) -> Step {
    let there = observed.node(name);
    let ours = there.filter(|node| observed.is_our_node(name, node));
    if let (Some(node), None) = (there, ours) {
        return Step::OwnedByAnother {
            holder: node_holder(desired, node),
        };
    }
    let Some(DesiredNode { node, check }) = desired.resolve_node(name, ours.map(|node| &node.node))
    else {
        return Step::Settled;
    };
    let index = ours.map_or(0, |ours| ours.modify_index);
    let node = ours
        .is_none_or(|ours| ours.node != node)
        .then_some((node, index));
    let check = check.and_then(|check| {
        let there = ours.and_then(ObservedNode::own_check);
        let equal = there.is_some_and(|there| there.well_formed && there.check == check);
        (!equal).then(|| (check, there.map_or(0, |there| there.modify_index)))
    });
    match (&node, &check) {
        (None, None) => Step::Settled,
        _ => Step::PutNode(NodeWrite { node, check }),
    }
}

fn node_holder(desired: &Index, node: &ObservedNode) -> Text {
    let holder = marks::holder(desired.cluster(), &node.node.meta);
    format!("{holder}, which has the Consul node").into()
}

fn decide_instance(key: &InstanceKey, desired: &Index, observed: &Mirror) -> Finding {
    let there = observed.instance(key);
    let standing = there.map(|there| observed.standing(key, there));
    let held = match (&standing, there) {
        (Some(Standing::Ours(owner)), Some(there)) => Some(held(owner, there)),
        _ => None,
    };
    match desired.resolve(key, held.as_ref()) {
        Resolved::Claimed(claim) => {
            // Nothing is written to a node that is another's, whatever stands on it.
            let foreign_node = observed
                .node(&key.node)
                .filter(|node| !observed.is_our_node(&key.node, node))
                .map(|node| node_holder(desired, node));
            let step = match (there, standing) {
                (Some(_), Some(Standing::Foreign(holder))) => Step::OwnedByAnother { holder },
                _ if foreign_node.is_some() => Step::OwnedByAnother {
                    holder: foreign_node.unwrap_or_default(),
                },
                (Some(there), _) => update(key, &claim, there),
                (None, _) => create(&claim),
            };
            let Claim {
                owner,
                losers,
                shape,
                live: _,
            } = *claim;
            let freeze = match shape {
                Shape::Frozen(freeze) => Some(freeze),
                Shape::Valid(_) => None,
            };
            Finding {
                owner: Some(owner),
                losers,
                freeze,
                step,
            }
        }
        Resolved::Unclaimed(absence) => match (there, standing) {
            (Some(there), Some(Standing::Ours(owner))) => {
                let candidate = gate::Candidate {
                    absence,
                    watches: &desired.watches,
                };
                Finding::nothing(match gate::may_remove(&candidate) {
                    Ok(why) => Step::Remove(Removal {
                        owner,
                        name: there.service.name.clone(),
                        index: there.modify_index,
                        why,
                    }),
                    Err(why_not) => Step::Held(why_not),
                })
            }
            _ => Finding::nothing(Step::Settled),
        },
    }
}

fn held<'a>(owner: &Owner, there: &'a ObservedInstance) -> Held<'a> {
    let meta = &there.service.meta;
    let is_pod = meta
        .get(marks::K8S_REF_KIND)
        .is_some_and(|kind| **kind == *OwnerKind::Pod.as_str());
    let pod = meta.get(marks::K8S_REF_NAME).filter(|_| is_pod);
    Held {
        owner: owner.clone(),
        service: &there.service.name,
        pod,
    }
}

fn create(claim: &Claim) -> Step {
    match &claim.shape {
        // Nothing is registered from invalid input.
        Shape::Frozen(_) => Step::Settled,
        Shape::Valid(service) => Step::Put(InstanceWrite {
            owner: claim.owner.clone(),
            name: service.name.clone(),
            service: Some((service.clone(), 0)),
            check: claim.live.readiness.clone().map(|check| (check, 0)),
            fields: Vec::new(),
        }),
    }
}

fn update(key: &InstanceKey, claim: &Claim, there: &ObservedInstance) -> Step {
    let mut wanted = match &claim.shape {
        Shape::Valid(service) => service.clone(),
        Shape::Frozen(_) => claim.live.onto(&there.service),
    };
    if wanted.enable_tag_override {
        // Tags are written at creation only: whoever overrides them may.
        wanted.tags.clone_from(&there.service.tags);
    }
    let frozen = matches!(claim.shape, Shape::Frozen(_));
    let mut fields = diff::fields(&there.service, &wanted);
    if there.embellished && !frozen {
        fields.push("kind");
    }
    let service = (!fields.is_empty()).then_some((wanted, there.modify_index));
    let check = claim.live.readiness.as_ref().and_then(|check| {
        let there = there.check(&readiness_check_id(&key.id));
        let equal = there.is_some_and(|there| there.well_formed && there.check == *check);
        (!equal).then(|| (check.clone(), there.map_or(0, |there| there.modify_index)))
    });
    if check.is_some() {
        fields.push("check");
    }
    if fields.is_empty() {
        return Step::Settled;
    }
    Step::Put(InstanceWrite {
        owner: claim.owner.clone(),
        name: there.service.name.clone(),
        service,
        check,
        fields,
    })
}

#[cfg(test)]
mod tests;
