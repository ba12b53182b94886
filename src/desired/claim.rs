//! What an object claims under a key.

use std::time::Duration;

use super::mesh;
use super::probe::Asked;
use super::registration::Claims;
use super::shape::{self, Endpoint};
use super::spec::AddressChoice;
use crate::model::entry::{Check, Health, Node, Service, TaggedAddress};
use crate::model::facts::PodFacts;
use crate::model::names::ServiceName;
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::policy::Refusal;

/// One object's claim on an instance key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// `metadata.creationTimestamp` of the owner: the older of several holds the key.
    pub created: i64,
    /// uid of the owner: decides where two are of one age.
    pub uid: Text,
    /// The object that claims.
    pub owner: Owner,
    /// The service.
    pub service: ServiceName,
    /// What is to be registered.
    pub target: Target,
}

impl Claimant {
    /// Sorts by seniority: the least holds the key.
    #[must_use]
    pub fn seniority(&self) -> (i64, &Text) {
        (self.created, &self.uid)
    }
}

/// What an instance stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The pod of this name, in the owner's namespace.
    Pod(Text),
    /// The endpoint of this name, of the owning `ServiceRegistration`.
    Endpoint(Text),
}

/// What is to stand under an instance key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The object that holds the key.
    pub owner: Owner,
    /// Objects that claim it too and do not hold it.
    pub losers: Vec<Owner>,
    /// The service entry.
    pub shape: Shape,
    /// What follows the pod even while the shape is frozen.
    pub live: Live,
    /// Whether an entry without an owner that stands there is taken over.
    pub adopt: bool,
    /// Why it is not, although that is asked for.
    pub adopt_refused: Option<Refusal>,
}

/// A claim that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The objects that claim the key, or keep what is there.
    pub owners: Vec<Owner>,
    /// Why.
    pub refusal: Refusal,
}

/// The service entry of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// This one.
    Valid(Service),
    /// The one that Consul holds, if any, stays.
    Frozen(Freeze),
}

/// Why a shape is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// The annotation `lictor.io/paused`.
    Paused,
    /// Invalid input; each problem names the field and the remedy.
    Invalid(Vec<String>),
    /// It is in a namespace that is not watched: what it asks for is not known.
    NotWatched,
}

/// What follows the pod even while its shape is frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The address, where it is known which one.
    pub address: Option<Text>,
    /// The address that the pod would have by the other choice.
    pub other_address: Option<Text>,
    /// The addresses of a dual-stack pod; their ports are those of the shape.
    pub tagged_addresses: Box<[TaggedAddress]>,
    /// The check that carries the readiness; `None` for an endpoint, of which the proxy alone has one.
    pub readiness: Option<Check>,
    /// The checks that Lictor runs; of a proxy, those of the instance beside it. `None` where it is not
    /// known which: what is there stays.
    pub asked: Option<Box<[Asked]>>,
    /// For how long its checks must be critical before it is deregistered.
    pub deregister_after: Option<Duration>,
}

impl Live {
    /// Of a pod.
    #[must_use]
    pub fn of_pod(pod: &PodFacts, choice: AddressChoice, readiness: Check) -> Self {
        Self {
            address: shape::address_of(pod, choice).ok(),
            other_address: shape::address_of(pod, choice.other()).ok(),
            tagged_addresses: shape::tagged_addresses(pod, choice, 0),
            readiness: Some(readiness),
            asked: None,
            deregister_after: None,
        }
    }

    /// Of an endpoint, or of the proxy beside it where that is what this service is.
    #[must_use]
    pub fn of_endpoint(claims: &Claims, service: &str, asked: Option<Box<[Asked]>>) -> Self {
        let proxy = claims.proxy_under(service);
        Self {
            readiness: proxy.map(|_| mesh::alias_of_endpoint()),
            asked,
            ..Self::default()
        }
    }

    /// Whether a frozen shape with this address keeps the choice of it against the one that is asked for by
    /// now: the address is still the pod's.
    #[must_use]
    pub fn keeps_other(&self, address: &str) -> bool {
        self.other_address.as_deref() == Some(address)
    }

    /// A frozen shape with what follows the pod put onto it.
    ///
    /// An address that is still the pod's stays, even where another one is asked for by now: the
    /// choice is part of the shape, and its port would not be that of the other address.
    #[must_use]
    pub fn onto(&self, frozen: &Service) -> Service {
        if self.keeps_other(&frozen.address) {
            return frozen.clone();
        }
        let with_port = |tagged: &TaggedAddress| TaggedAddress {
            port: frozen.port,
            ..tagged.clone()
        };
        match &self.address {
            Some(address) => Service {
                address: address.clone(),
                tagged_addresses: self.tagged_addresses.iter().map(with_port).collect(),
                ..frozen.clone()
            },
            None => frozen.clone(),
        }
    }
}

/// How it is known that nothing claims a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// This process saw the claim go, on a complete watch.
    Seen,
    /// No list shows a claim.
    Found,
}

/// What the index answers for an instance key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// An object claims it.
    Claimed(Box<Claim>),
    /// An object claims it, and may not: what is there of ours is to go, found and not seen.
    Refused(Box<Refused>),
    /// Nothing does.
    Unclaimed(Absence),
}

/// What an entry of ours in Consul says about itself, for the question whether a frozen object holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// The owner mark.
    pub owner: Owner,
    /// The service's name.
    pub service: &'a str,
    /// Its address.
    pub address: &'a str,
    /// Its port.
    pub port: u16,
    /// The pod that it stands for, if it is not an endpoint.
    pub pod: Option<&'a Text>,
    /// The status of its readiness check, where it has one.
    pub readiness: Option<Health>,
}

/// A synthetic node as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredNode {
    /// The node.
    pub node: Node,
    /// The check `lictor-node`; `None` for the external node.
    pub check: Option<Check>,
}

/// The endpoint of `name` in a list.
#[must_use]
pub fn endpoint<'a>(endpoints: &'a [Endpoint], name: &str) -> Option<&'a Endpoint> {
    endpoints.iter().find(|endpoint| *endpoint.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::pod;
    use crate::model::text::Pairs;

    fn frozen(address: &str) -> Service {
        Service {
            name: "web".into(),
            address: address.into(),
            port: 8080,
            tagged_addresses: Box::default(),
            tags: Box::default(),
            meta: Pairs::default(),
            weights: crate::model::entry::Weights::default(),
            enable_tag_override: false,
            mesh: None,
        }
    }

    #[test]
    fn a_frozen_shape_follows_the_pod_and_keeps_the_choice_of_its_address() {
        let check = Check {
            status: Health::Passing,
            output: "".into(),
        };
        let facts = pod("p").ips(&["10.0.0.9"]).facts();
        for choice in [AddressChoice::PodIp, AddressChoice::HostIp] {
            let live = Live::of_pod(&facts, choice, check.clone());
            for kept in ["10.0.0.9", "192.168.0.1"] {
                assert_eq!(&*live.onto(&frozen(kept)).address, kept, "{choice:?}");
            }
        }
        let live = Live::of_pod(&facts, AddressChoice::PodIp, check);
        assert_eq!(&*live.onto(&frozen("10.0.0.8")).address, "10.0.0.9");
    }
}
