//! What is found under a key, and what is to be done about it. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::time::Duration;

use super::checks::CheckWrite;
use super::critical::Watched;
use super::gate::{self, Hold};
use crate::desired::claim::{Freeze, Refused};
use crate::desired::probe::Asked;
use crate::model::entry::{Check, Health, Node, Service};
use crate::model::owner::Owner;
use crate::model::text::Text;

/// What is found under a key and what is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The object that holds the key, if any does.
    pub owner: Option<Owner>,
    /// Objects that claim it too.
    pub losers: Vec<Owner>,
    /// Why the shape is kept as it is, if it is.
    pub freeze: Option<Freeze>,
    /// Why the claim, or what it asks for beside, is not allowed, if it is not.
    pub refused: Option<Refused>,
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
    /// Nothing for now: it would be created, and its node cannot be, which has no address.
    NoNodeAddress {
        /// The Kubernetes node.
        node: Text,
        /// The pod, as `namespace/name`.
        pod: Text,
    },
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
            Self::NoNodeAddress { node, pod } => write!(
                f,
                "Kubernetes node {node}, on which pod {pod} runs, has no address: it has no Node object \
                 with an InternalIP, and its pods have no status.hostIP; one of them is enough"
            ),
            Self::PutNode(write) if matches!(write.node, Some((_, 0))) => {
                f.write_str("create the node")
            }
            Self::PutNode(_) => f.write_str("update the node"),
            Self::Put(write) if write.creates() => write!(f, "register {}", write.name),
            Self::Put(write) => write!(f, "update {}", write.fields.join(", ")),
            Self::Remove(Removal { name, why, .. }) => match why {
                gate::Why::Critical(_) => write!(f, "remove {name}: {why}"),
                gate::Why::Seen | gate::Why::Found | gate::Why::NotAllowed => {
                    write!(f, "remove {name}")
                }
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
    pub(super) fn nothing(step: Step) -> Self {
        Self {
            owner: None,
            losers: Vec::new(),
            freeze: None,
            refused: None,
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
