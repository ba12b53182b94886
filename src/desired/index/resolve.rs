//! What is to stand under a key, worked out when it is asked.

use std::ops::Bound;

use super::claims::not_a_service;
use super::{Index, PodRow, RegistrationRow};
use crate::desired::annotations::Annotations;
use crate::desired::claim::{
    Absence, Claim, Claimant, DesiredNode, Freeze, Held, Live, Refused, Resolved, Shape, Target,
    endpoint,
};
use crate::desired::esm::Runner;
use crate::desired::probe::Asked;
use crate::desired::registration::{Claims, Content, Registration, Source};
use crate::desired::shape::{self, Context};
use crate::desired::spec::{InstanceSpec, Terminating};
use crate::desired::watches::Watch;
use crate::desired::{health, probe};
use crate::model::entry::{Health, Node};
use crate::model::facts::{NodeFacts, PodFacts};
use crate::model::key::InstanceKey;
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::names::{InstanceId, NodeName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::{Pairs, Text};

/// The address of the node for endpoints outside of the cluster: nobody connects to it.
const EXTERNAL_NODE_ADDRESS: &str = "127.0.0.1";

/// The objects that may keep what an entry says that it is of.
#[derive(Clone, Copy)]
pub(super) struct Keepers<'a> {
    pub(super) registration: Option<&'a RegistrationRow>,
    pub(super) pod: Option<&'a PodRow>,
}

impl Index {
    /// What is to stand under an instance key; `held` is what an entry of ours there says.
    #[must_use]
    pub fn resolve(&self, key: &InstanceKey, held: Option<&Held<'_>>) -> Resolved {
        let claimants = self.claimants(key);
        let holder = claimants.first();
        if let Some(held) = held
            && holder.is_none_or(|holder| holder.owner != held.owner)
            && let Some((freeze, live)) = self.frozen(key, held)
        {
            // The annotation of a pod that names the service of its registration contests nothing.
            let contests = |claimant: &&Claimant| {
                held.owner.kind == OwnerKind::Pod || claimant.owner.kind != OwnerKind::Pod
            };
            let losers = claimants.iter().filter(contests);
            let losers = losers.map(|claimant| claimant.owner.clone()).collect();
            if let Err(refusal) = self.admits_kept(held) {
                let owners = vec![held.owner.clone()];
                return Resolved::Refused(Box::new(Refused { owners, refusal }));
            }
            let shape = Shape::Frozen(freeze);
            return Resolved::Claimed(Box::new(Claim {
                owner: held.owner.clone(),
                losers,
                shape,
                live,
                adopt: false,
                adopt_refused: None,
            }));
        }
        let claim = holder.and_then(|holder| {
            let claim = self.claim(key, holder, &claimants[1..], held)?;
            Some((holder, claim))
        });
        let Some((holder, claim)) = claim else {
            return Resolved::Unclaimed(self.absence_of(key, held));
        };
        match self.admits(holder, &claim, held.is_some()) {
            Ok(()) => Resolved::Claimed(Box::new(claim)),
            Err(refusal) => {
                let owners = claimants.iter().map(|claimant| claimant.owner.clone());
                let owners = owners.collect();
                Resolved::Refused(Box::new(Refused { owners, refusal }))
            }
        }
    }

    /// Whether there is anything to be registered on a node that is not there yet.
    fn is_needed(&self, node: &NodeName) -> bool {
        let mut keys = self.claims_on(node).map(|(key, _)| key);
        keys.any(|key| match self.resolve(key, None) {
            Resolved::Claimed(claim) => matches!(claim.shape, Shape::Valid(_)),
            _ => false,
        })
    }

    /// What a synthetic node is to be; `observed` is what Consul holds of ours under the name.
    ///
    /// `None` where nothing needs the node, where its address is not known yet, and where it would have
    /// a name that is not for us.
    #[must_use]
    pub fn resolve_node(&self, name: &NodeName, observed: Option<&Node>) -> Option<DesiredNode> {
        let claimed = self.claims_on(name).next().is_some();
        let may_be_made = || claimed && !name.is_like_consul_k8s() && self.is_needed(name);
        if observed.is_none() && !may_be_made() {
            return None;
        }
        let Some(kubernetes) = name.kubernetes_node(&self.cluster) else {
            let node = self.external_node();
            return Some(DesiredNode { node, check: None });
        };
        let kubernetes = Text::from(kubernetes);
        let facts = self.nodes.get(&(Text::from(""), kubernetes.clone()));
        // A node that is not known is gone only where all nodes are known. One that nobody saw going
        // matters only to pods that are there still, by a list that is younger: where they are missing
        // too, as in an etcd that was wiped, it may be the view that is wrong, and what the guard holds
        // stays as healthy as it was.
        let complete = |kind| *self.watches.state(kind) == Watch::Complete;
        let seen = self.nodes_seen_going.contains(&kubernetes);
        let found = claimed && complete(Kind::Pod) && self.is_loss_confirmed(&kubernetes);
        let gone = self.watches.watches(Kind::Node) && complete(Kind::Node) && (seen || found);
        let known = facts.is_some() || gone;
        let check = known.then(|| health::node_check(&kubernetes, facts));
        if let Some(observed) = observed
            && !self.watches.watches(Kind::Node)
        {
            // Its pods alone say where it is.
            let address = self.host_ip_on(name).unwrap_or(&observed.address).clone();
            let meta = self.node_meta(Some((&kubernetes, None)));
            let node = Node { address, meta };
            return Some(DesiredNode { node, check: None });
        }
        if facts.is_none()
            && let Some(observed) = observed
        {
            // Of a node that is gone the address and the topology stay, and the marks all the same.
            let marks = self.node_meta(Some((&kubernetes, None)));
            let shared = |(key, value): (&Text, &Text)| (key.clone(), value.clone());
            // Whether consul-esm is to look at it is no part of what it was.
            let kept = observed.meta.iter();
            let kept = kept.filter(|(key, _)| ***key != *marks::NODE_EXTERNAL);
            let meta = kept.chain(marks.iter()).map(shared);
            let node = Node {
                address: observed.address.clone(),
                meta: meta.collect(),
            };
            return Some(DesiredNode { node, check });
        }
        let address = self.address_of(name, facts)?.clone();
        let meta = self.node_meta(Some((&kubernetes, facts)));
        Some(DesiredNode {
            node: Node { address, meta },
            check,
        })
    }

    /// Whether a synthetic node can be made: it has an address.
    #[must_use]
    pub fn has_address(&self, name: &NodeName) -> bool {
        let Some(kubernetes) = name.kubernetes_node(&self.cluster) else {
            return true;
        };
        let facts = self.nodes.get(&(Text::from(""), kubernetes.into()));
        self.address_of(name, facts).is_some()
    }

    fn address_of<'a>(&'a self, name: &NodeName, facts: Option<&'a NodeFacts>) -> Option<&'a Text> {
        let address = facts.and_then(|facts| facts.internal_ip.as_ref());
        address.or_else(|| self.host_ip_on(name))
    }

    /// `held` is what Consul holds there of ours.
    fn claim(
        &self,
        key: &InstanceKey,
        holder: &Claimant,
        others: &[Claimant],
        held: Option<&Held<'_>>,
    ) -> Option<Claim> {
        let (shape, live) = match &holder.target {
            Target::Pod(pod) => self.pod_claim(key, holder, pod, held)?,
            Target::Endpoint(name) => self.endpoint_claim(key, holder, name, held)?,
        };
        let losers = others
            .iter()
            .map(|claimant| claimant.owner.clone())
            .collect();
        let claims = self
            .registration(&holder.owner)
            .and_then(Registration::claims);
        let asks = claims.is_some_and(|claims| claims.adopt);
        let adopt_refused = asks.then(|| self.admits_adopt_of(holder).err()).flatten();
        Some(Claim {
            owner: holder.owner.clone(),
            losers,
            shape,
            live,
            adopt: asks && adopt_refused.is_none(),
            adopt_refused,
        })
    }

    fn pod_claim(
        &self,
        key: &InstanceKey,
        holder: &Claimant,
        pod: &Text,
        held: Option<&Held<'_>>,
    ) -> Option<(Shape, Live)> {
        let row = self
            .pods
            .get(&(holder.owner.namespace.clone(), pod.clone()))?;
        let (pod, annotations) = (&row.facts, &row.annotations);
        let claims = match holder.owner.kind {
            OwnerKind::Pod => None,
            _ => Some(self.registration(&holder.owner)?.claims()?),
        };
        let base = claims.map_or_else(InstanceSpec::default, |claims| claims.spec.clone());
        // What is said about the service holds for the proxy beside it.
        let service = claims.map_or(&holder.service, |claims| &claims.service);
        let health = annotations.overlay_health(service, base.clone());
        let mut live = Live::of_pod(pod, health.address, health::readiness(pod, &health)?);
        live.deregister_after = health.deregister_after;
        let context = self.context(key, service, &holder.owner);
        let shape = annotations.overlay(service, base).and_then(|spec| {
            let instance = shape::of_pod(context, pod, &spec)?;
            self.runner.accepts(&spec.probes)?;
            live.asked = Some(probe::of_pod(&spec, pod, instance.port)?);
            Ok(instance)
        });
        if shape.is_err() {
            // Health goes on.
            live.asked = Some(kept_on_pod(&health, pod, &live, held));
        }
        let sidecar = claims.and_then(|claims| claims.proxy_under(holder.service.as_ref()));
        let shape = shape.map(|instance| match sidecar {
            None => instance,
            Some(sidecar) => {
                let id = InstanceId::of_pod(&self.cluster, &pod.namespace, service, &pod.name);
                sidecar.beside(instance, &id)
            }
        });
        Some((
            shape.map_or_else(|why| Shape::Frozen(Freeze::Invalid(why)), Shape::Valid),
            live,
        ))
    }

    /// Whether any registration has a check that looks at a Lease.
    #[must_use]
    pub fn has_heartbeats(&self) -> bool {
        self.registrations.values().any(|row| {
            let claims = row.registration.claims();
            claims.is_some_and(|claims| {
                let mut probes = claims.spec.probes.iter();
                probes.any(|probe| matches!(probe.question, probe::Question::Lease(_)))
            })
        })
    }

    fn context<'a>(
        &'a self,
        key: &'a InstanceKey,
        service: &'a ServiceName,
        owner: &'a Owner,
    ) -> Context<'a> {
        Context {
            cluster: &self.cluster,
            key,
            service,
            owner,
        }
    }

    /// The object that is to mend what an instance of this owner cannot be made of: its pod where the
    /// pod's own annotations add to what is wrong, else the owner.
    #[must_use]
    pub fn at_fault(&self, key: &InstanceKey, owner: &Owner) -> Owner {
        let pod = self.pod_at_fault(key, owner);
        pod.unwrap_or_else(|| owner.clone())
    }

    fn pod_at_fault(&self, key: &InstanceKey, owner: &Owner) -> Option<Owner> {
        let claimants = self.claimants(key).first();
        let holder = claimants.filter(|holder| holder.owner == *owner)?;
        let Target::Pod(name) = &holder.target else {
            return None;
        };
        let Freeze::Invalid(problems) = self.freeze_of_claim(key)? else {
            return None;
        };
        let claims = self.registration(owner)?.claims()?;
        let pod = self.pod(&owner.namespace, name)?;
        let context = self.context(key, &claims.service, owner);
        let without = shape::of_pod(context, pod, &claims.spec);
        let without = without.and_then(|instance| {
            self.runner.accepts(&claims.spec.probes)?;
            probe::of_pod(&claims.spec, pod, instance.port)
        });
        let without = without.err().unwrap_or_default();
        let adds = problems.iter().any(|problem| !without.contains(problem));
        adds.then(|| Owner::pod(&owner.namespace, name))
    }

    fn endpoint_claim(
        &self,
        key: &InstanceKey,
        holder: &Claimant,
        name: &str,
        held: Option<&Held<'_>>,
    ) -> Option<(Shape, Live)> {
        let registration = self.registration(&holder.owner)?;
        let claims = registration.claims()?;
        let Claims {
            service,
            spec,
            source: Source::Endpoints(endpoints),
            ..
        } = claims
        else {
            return None;
        };
        let context = self.context(key, service, &holder.owner);
        let endpoint = endpoint(endpoints, name)?;
        let mut live = Live::of_endpoint(claims, holder.service.as_ref(), None);
        live.deregister_after = spec.deregister_after;
        let shape = shape::of_endpoint(context, &registration.uid, endpoint, spec);
        let shape = shape.and_then(|instance| {
            self.runner.accepts(&spec.probes)?;
            live.asked = Some(probe::of_endpoint(spec, endpoint)?);
            Ok(instance)
        });
        if shape.is_err() {
            let own = held.map_or(0, |held| held.port);
            live.asked = Some(probe::of_kept_endpoint(spec, own));
        }
        let sidecar = claims.proxy_under(holder.service.as_ref());
        let shape = shape.map(|instance| match sidecar {
            None => instance,
            Some(sidecar) => {
                let Owner {
                    namespace, name, ..
                } = &holder.owner;
                let cluster = &self.cluster;
                let id = InstanceId::of_endpoint(cluster, namespace, service, name, &endpoint.name);
                sidecar.beside(instance, &id)
            }
        });
        let shape = shape.map_or_else(|why| Shape::Frozen(Freeze::Invalid(why)), Shape::Valid);
        Some((shape, live))
    }

    /// The objects that may keep what an entry says that it is of.
    pub(super) fn keepers(&self, held: &Held<'_>) -> Keepers<'_> {
        let Owner {
            kind,
            namespace,
            name,
        } = &held.owner;
        let registration = (*kind == OwnerKind::ServiceRegistration).then(|| {
            let name = (namespace.clone(), name.clone());
            self.registrations.get(&name)
        });
        let pod = held.pod.and_then(|pod| {
            let name = (namespace.clone(), pod.clone());
            self.pods.get(&name)
        });
        Keepers {
            registration: registration.flatten(),
            pod,
        }
    }

    /// Whether an object that is paused or invalid keeps what Consul holds under the key.
    pub(super) fn frozen(&self, key: &InstanceKey, held: &Held<'_>) -> Option<(Freeze, Live)> {
        self.frozen_by(key, held, self.keepers(held))
    }

    /// Whether one of these objects does, in these forms of them.
    pub(super) fn frozen_by(
        &self,
        key: &InstanceKey,
        held: &Held<'_>,
        keepers: Keepers<'_>,
    ) -> Option<(Freeze, Live)> {
        let owner = &held.owner;
        if self.is_excluded(&owner.namespace) {
            return None;
        }
        let registration = keepers.registration;
        let owner_freeze = registration.and_then(|row| match &row.registration.content {
            Content::Valid(_) => None,
            Content::Paused { .. } => Some(Freeze::Paused),
            Content::Invalid(problem) => Some(Freeze::Invalid(vec![problem.clone()])),
        });
        let known = registration.and_then(RegistrationRow::last_good);
        if held.pod.is_none() {
            let live = known.map(|claims| {
                let asked = probe::of_kept_endpoint(&claims.spec, held.port);
                Live::of_endpoint(claims, held.service, Some(asked))
            });
            return owner_freeze.map(|freeze| (freeze, live.unwrap_or_default()));
        }
        let row = keepers.pod?;
        let (pod, annotations) = (&row.facts, &row.annotations);
        if !health::is_registrable(pod) {
            return None;
        }
        let node = NodeName::for_kubernetes(&self.cluster, pod.node.as_ref()?);
        if node != key.node {
            return None;
        }
        let claimed = self.claims.contains_key(key);
        let freeze = owner_freeze
            .or_else(|| pod_freeze(annotations, held, claimed))
            .or_else(|| self.renamed(key, held, row))?;
        let service: ServiceName = match known {
            Some(claims) if claims.proxy_under(held.service).is_some() => claims.service.clone(),
            _ => held.service.parse().ok()?,
        };
        let base = known.map_or_else(|| health_of(held), |claims| claims.spec.clone());
        let spec = annotations.overlay_health(&service, base);
        let readiness = health::readiness(pod, &spec)?;
        let mut live = Live::of_pod(pod, spec.address, readiness);
        live.asked = known.map(|_| kept_on_pod(&spec, pod, &live, Some(held)));
        Some((freeze, live))
    }

    /// Whether the owner names another service for the pod now, and what it asks for there is invalid:
    /// then the name stays as last good too, and the pod does not disappear.
    fn renamed(&self, key: &InstanceKey, held: &Held<'_>, pod: &PodRow) -> Option<Freeze> {
        if self.claims.contains_key(key) {
            return None;
        }
        pod.spoilt.iter().find_map(|other| {
            let holder = self.claimants(other).first()?;
            (holder.owner == held.owner)
                .then(|| self.freeze_of_claim(other))
                .flatten()
        })
    }

    /// Why what the holder of a key asks for cannot be registered.
    pub(super) fn freeze_of_claim(&self, key: &InstanceKey) -> Option<Freeze> {
        let holder = self.claimants(key).first()?;
        match self.claim(key, holder, &[], None)?.shape {
            Shape::Frozen(freeze) => Some(freeze),
            Shape::Valid(_) => None,
        }
    }

    fn absence_of(&self, key: &InstanceKey, held: Option<&Held<'_>>) -> Absence {
        if !self.withdrawn.contains(key) {
            return Absence::Found;
        }
        // Each kind is watched on its own. A pod that lives on may be claimed by what a list that is
        // under way has not brought yet: its own new annotations, or another registration.
        let listing = |kind: &Kind| *self.watches.state(*kind) == Watch::Listing;
        if [Kind::Pod, Kind::Registration].iter().any(listing)
            && held.is_some_and(|held| self.lives_on(key, held))
        {
            return Absence::Found;
        }
        Absence::Seen
    }

    /// Whether an entry was seen losing its claim while its pod lives on: a registration or an annotation
    /// that takes the place of the other may be on its way.
    #[must_use]
    pub fn may_be_handed_over(&self, key: &InstanceKey, held: &Held<'_>) -> bool {
        self.withdrawn.contains(key) && !self.claims.contains_key(key) && self.lives_on(key, held)
    }

    /// Whether the pod that an entry stands for still runs where the entry is, and is to stay.
    pub(super) fn lives_on(&self, key: &InstanceKey, held: &Held<'_>) -> bool {
        let pod = held
            .pod
            .and_then(|pod| self.pod(&held.owner.namespace, pod));
        pod.is_some_and(|pod| {
            let node = pod.node.as_ref();
            let node = node.map(|node| NodeName::for_kubernetes(&self.cluster, node));
            !pod.deleting && health::is_registrable(pod) && node.as_ref() == Some(&key.node)
        })
    }

    pub(super) fn claims_on(
        &self,
        node: &NodeName,
    ) -> impl Iterator<Item = (&InstanceKey, &Vec<Claimant>)> {
        let first = InstanceKey {
            node: node.clone(),
            id: InstanceId::observed(""),
        };
        self.claims
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.node == *node)
    }

    /// The host IP of the first pod that claims something on the node.
    fn host_ip_on(&self, node: &NodeName) -> Option<&Text> {
        self.claims_on(node)
            .flat_map(|(_, claimants)| claimants)
            .find_map(|claimant| {
                let Target::Pod(pod) = &claimant.target else {
                    return None;
                };
                self.pod(&claimant.owner.namespace, pod)?.host_ip.as_ref()
            })
    }

    /// The node of what is outside the cluster.
    #[must_use]
    pub fn external_node(&self) -> Node {
        Node {
            address: EXTERNAL_NODE_ADDRESS.into(),
            meta: self.node_meta(None),
        }
    }

    fn node_meta(&self, kubernetes: Option<(&Text, Option<&NodeFacts>)>) -> Pairs {
        let mut meta = vec![
            (
                Text::from(marks::EXTERNAL_SOURCE),
                Text::from(marks::KUBERNETES),
            ),
            (
                Text::from(marks::CLUSTER),
                Text::from(self.cluster.as_ref()),
            ),
        ];
        if self.runner == Runner::Esm {
            meta.push((marks::NODE_EXTERNAL.into(), "true".into()));
        }
        if let Some((name, facts)) = kubernetes {
            meta.push((marks::NODE_K8S_NODE.into(), name.clone()));
            let mut topology = |key: &str, value: Option<&Text>| {
                meta.extend(value.map(|value| (Text::from(key), value.clone())));
            };
            topology(
                marks::NODE_REGION,
                facts.and_then(|facts| facts.region.as_ref()),
            );
            topology(
                marks::NODE_ZONE,
                facts.and_then(|facts| facts.zone.as_ref()),
            );
        }
        meta.into_iter().collect()
    }
}

/// The checks of an instance of a pod that is kept as Consul holds it: at the ports of the address that it
/// keeps, and not of the one that is asked for by now.
fn kept_on_pod(
    spec: &InstanceSpec,
    pod: &PodFacts,
    live: &Live,
    held: Option<&Held<'_>>,
) -> Box<[Asked]> {
    let keeps_other = held.is_some_and(|held| live.keeps_other(held.address));
    let choice = if keeps_other {
        spec.address.other()
    } else {
        spec.address
    };
    probe::of_kept_pod(spec, pod, choice, held.map_or(0, |held| held.port))
}

/// Settings for the health of what an owner holds which was not understood since the start, or has
/// none: where Consul shows a warning, somebody asked for it.
fn health_of(held: &Held<'_>) -> InstanceSpec {
    let mut spec = InstanceSpec::default();
    if held.owner.kind == OwnerKind::ServiceRegistration && held.readiness == Some(Health::Warning)
    {
        spec.not_ready = Health::Warning;
        spec.terminating = Terminating::Health(Health::Warning);
    }
    spec
}

/// Whether a pod's own annotations freeze an entry that they do not claim themselves; `claimed` says
/// whether anything claims it, so that the pod does have the service.
fn pod_freeze(annotations: &Annotations, held: &Held<'_>, claimed: bool) -> Option<Freeze> {
    if annotations.paused {
        return Some(Freeze::Paused);
    }
    if held.owner.kind != OwnerKind::Pod {
        return None;
    }
    if let Some(problem) = &annotations.list_problem {
        return Some(Freeze::Invalid(vec![problem.clone()]));
    }
    let mut mentioned = annotations.mentioned();
    (!claimed && mentioned.any(|service| **service == *held.service))
        .then(|| Freeze::Invalid(vec![not_a_service(held.service)]))
}
