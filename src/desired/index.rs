//! The index: from objects to claims on keys, kept up to date event by event.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use globset::GlobSet;

use super::annotations::Annotations;
use super::claim::{
    Absence, Claim, Claimant, DesiredNode, Freeze, Held, Live, Resolved, Shape, Target, endpoint,
};
use super::health;
use super::registration::{Claims, Content, Registration, Source};
use super::shape::{self, Context};
use super::spec::InstanceSpec;
use super::table::{ObjectName, Table};
use super::watches::{Kind, Watches};
use crate::model::entry::Node;
use crate::model::facts::{NodeFacts, PodFacts};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks;
use crate::model::names::{ClusterName, InstanceId, NodeName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::{Pairs, Text};

/// The address of the node for endpoints outside of the cluster: nobody connects to it.
const EXTERNAL_NODE_ADDRESS: &str = "127.0.0.1";

/// What an event may have changed, collected over any number of events.
#[derive(Debug, Default)]
pub struct Touched {
    /// Keys to plan again.
    pub keys: BTreeSet<Key>,
    /// Objects of which all that Consul shows as theirs is to be planned again.
    pub holdings: BTreeSet<Owner>,
    /// Objects whose [`Index::problems`] changed.
    pub problems: BTreeSet<Owner>,
    /// Registrations whose status may have changed.
    pub registrations: BTreeSet<Owner>,
}

#[derive(Debug)]
struct PodRow {
    facts: PodFacts,
    keys: Vec<InstanceKey>,
    /// Whether something that it claims is invalid, and so may keep what it held under other names.
    spoilt: bool,
}

#[derive(Debug)]
struct RegistrationRow {
    registration: Registration,
    /// The keys of its endpoints.
    keys: Vec<InstanceKey>,
}

/// What all Kubernetes objects together ask Consul to hold.
#[derive(Debug)]
pub struct Index {
    cluster: ClusterName,
    excluded: GlobSet,
    pods: Table<PodRow>,
    registrations: Table<RegistrationRow>,
    nodes: Table<NodeFacts>,
    /// Every key has one producer (a pod, or the registration of an endpoint), which replaces the
    /// claimants under it as a whole; they are sorted by seniority.
    claims: BTreeMap<InstanceKey, Vec<Claimant>>,
    /// Keys whose last claim this process saw going.
    withdrawn: HashSet<InstanceKey>,
    /// Objects that held keys while frozen, without claims, and that this process saw going.
    gone: HashSet<Owner>,
    problems: BTreeMap<Owner, Vec<String>>,
    /// How complete the view of each kind is.
    pub watches: Watches,
}

impl Index {
    /// An empty index; objects in namespaces that `excluded` matches claim nothing.
    #[must_use]
    pub fn new(cluster: ClusterName, excluded: GlobSet) -> Self {
        Self {
            cluster,
            excluded,
            pods: Table::default(),
            registrations: Table::default(),
            nodes: Table::default(),
            claims: BTreeMap::new(),
            withdrawn: HashSet::new(),
            gone: HashSet::new(),
            problems: BTreeMap::new(),
            watches: Watches::default(),
        }
    }

    // === events ===

    /// A list of the kind begins.
    pub fn begin_list(&mut self, kind: Kind) {
        self.watches.listing(kind);
        match kind {
            Kind::Pod => self.pods.begin_list(),
            Kind::Registration => self.registrations.begin_list(),
            Kind::Node => self.nodes.begin_list(),
        }
    }

    /// A list of the kind is complete; what it did not bring is gone, found and not seen.
    pub fn end_list(&mut self, kind: Kind, touched: &mut Touched) {
        match kind {
            Kind::Pod => {
                for name in self.pods.end_list() {
                    self.drop_pod(&name, Absence::Found, touched);
                }
            }
            Kind::Registration => {
                for name in self.registrations.end_list() {
                    self.drop_registration(&name, Absence::Found, touched);
                }
            }
            Kind::Node => {
                for name in self.nodes.end_list() {
                    self.remove_node(&name.1, touched);
                }
            }
        }
        self.watches.complete(kind);
    }

    /// A pod was listed, added or changed.
    pub fn apply_pod(&mut self, facts: PodFacts, touched: &mut Touched) {
        let name = (facts.namespace.clone(), facts.name.clone());
        if self.pods.get(&name).is_some_and(|row| row.facts == facts) {
            self.pods.confirm(&name);
            return;
        }
        let owner = Owner::pod(&name.0, &name.1);
        self.gone.remove(&owner);
        self.note_problems(owner, self.remarks(&facts), touched);
        let spoilt = self.pods.get(&name).is_some_and(|row| row.spoilt);
        let before = self.pods.put(
            name.clone(),
            PodRow {
                facts,
                keys: Vec::new(),
                spoilt,
            },
        );
        let held = before.map(|row| {
            // A pod that froze keys without claiming them may let them go, or follow them elsewhere.
            if !Self::is_plain(&row.facts) {
                touched.holdings.insert(Owner::pod(&name.0, &name.1));
            }
            row.keys
        });
        let absence = self.absence();
        self.reclaim_pod(&name, &held.unwrap_or_default(), absence, touched);
    }

    /// A pod was deleted.
    pub fn remove_pod(&mut self, namespace: &Text, name: &Text, touched: &mut Touched) {
        self.drop_pod(&(namespace.clone(), name.clone()), self.absence(), touched);
    }

    /// A registration was listed, added or changed.
    pub fn apply_registration(&mut self, registration: Registration, touched: &mut Touched) {
        let name = (registration.namespace.clone(), registration.name.clone());
        let known = self.registrations.get(&name).map(|row| &row.registration);
        if known == Some(&registration) {
            self.registrations.confirm(&name);
            return;
        }
        let was_frozen = known.is_none_or(|known| known.claims().is_none());
        let owner = registration.owner();
        self.gone.remove(&owner);
        let invalid = match &registration.content {
            Content::Invalid(problem) => vec![problem.clone()],
            Content::Valid(_) | Content::Paused => Vec::new(),
        };
        self.note_problems(owner.clone(), invalid, touched);
        touched.registrations.insert(owner.clone());
        if was_frozen || registration.claims().is_none() {
            touched.holdings.insert(owner);
        }
        let keys = self.endpoint_keys(&registration);
        let claimants = Self::endpoint_claims(&registration, &keys);
        let after = registration.clone();
        let row = RegistrationRow { registration, keys };
        let before = self.registrations.put(name.clone(), row);
        let absence = self.absence();
        let old_keys = before
            .as_ref()
            .map(|row| row.keys.clone())
            .unwrap_or_default();
        self.replace_claims(&old_keys, claimants, absence, touched);
        let before = before.map(|row| row.registration);
        self.reclaim_selected(&name.0, [before.as_ref(), Some(&after)], absence, touched);
    }

    /// A registration was deleted.
    pub fn remove_registration(&mut self, namespace: &Text, name: &Text, touched: &mut Touched) {
        let absence = self.absence();
        self.drop_registration(&(namespace.clone(), name.clone()), absence, touched);
    }

    /// A node was listed, added or changed.
    pub fn apply_node(&mut self, facts: NodeFacts, touched: &mut Touched) {
        let name = (Text::from(""), facts.name.clone());
        if self.nodes.get(&name) == Some(&facts) {
            self.nodes.confirm(&name);
            return;
        }
        touched.keys.insert(Key::Node(NodeName::for_kubernetes(
            &self.cluster,
            &facts.name,
        )));
        self.nodes.put(name, facts);
    }

    /// A node was deleted.
    pub fn remove_node(&mut self, name: &Text, touched: &mut Touched) {
        if self.nodes.remove(&(Text::from(""), name.clone())).is_some() {
            touched
                .keys
                .insert(Key::Node(NodeName::for_kubernetes(&self.cluster, name)));
        }
    }

    // === questions ===

    /// The cluster whose objects these are.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// All keys that objects claim, the nodes that they are on included.
    pub fn claimed_keys(&self) -> impl Iterator<Item = Key> {
        let mut last: Option<&NodeName> = None;
        self.claims.keys().flat_map(move |key| {
            let first_on_node = last.replace(&key.node) != Some(&key.node);
            let node = first_on_node.then(|| Key::Node(key.node.clone()));
            node.into_iter().chain([Key::Instance(key.clone())])
        })
    }

    /// The instance keys that objects claim on a node.
    pub fn claimed_on(&self, node: &NodeName) -> impl Iterator<Item = &InstanceKey> {
        self.claims_on(node).map(|(key, _)| key)
    }

    /// The objects that claim an instance key, the one that holds it first.
    #[must_use]
    pub fn claimants(&self, key: &InstanceKey) -> &[Claimant] {
        self.claims.get(key).map_or(&[], Vec::as_slice)
    }

    /// All registrations.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.registrations.iter().map(|row| &row.registration)
    }

    /// The registration that is this owner.
    #[must_use]
    pub fn registration(&self, owner: &Owner) -> Option<&Registration> {
        if owner.kind != OwnerKind::ServiceRegistration {
            return None;
        }
        let name = (owner.namespace.clone(), owner.name.clone());
        self.registrations.get(&name).map(|row| &row.registration)
    }

    /// The uid of the object that is this owner.
    #[must_use]
    pub fn uid(&self, owner: &Owner) -> Option<&Text> {
        match owner.kind {
            OwnerKind::Pod => self.pod(&owner.namespace, &owner.name).map(|pod| &pod.uid),
            OwnerKind::ServiceRegistration => self.registration(owner).map(|found| &found.uid),
        }
    }

    /// What is wrong with an object as such, beside what its single services show.
    #[must_use]
    pub fn problems(&self, owner: &Owner) -> &[String] {
        self.problems.get(owner).map_or(&[], Vec::as_slice)
    }

    /// How many objects have [`Self::problems`].
    #[must_use]
    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// What is to stand under an instance key; `held` is what an entry of ours there says.
    #[must_use]
    pub fn resolve(&self, key: &InstanceKey, held: Option<&Held<'_>>) -> Resolved {
        let claimants = self.claimants(key);
        let holder = claimants.first();
        if let Some(held) = held
            && holder.is_none_or(|holder| holder.owner != held.owner)
            && let Some((freeze, live)) = self.frozen(key, held)
        {
            let losers = claimants
                .iter()
                .map(|claimant| claimant.owner.clone())
                .collect();
            let shape = Shape::Frozen(freeze);
            return Resolved::Claimed(Box::new(Claim {
                owner: held.owner.clone(),
                losers,
                shape,
                live,
            }));
        }
        let claim = holder.and_then(|holder| self.claim(key, holder, &claimants[1..]));
        match claim {
            Some(claim) => Resolved::Claimed(Box::new(claim)),
            None => Resolved::Unclaimed(self.absence_of(key, held)),
        }
    }

    /// What a synthetic node is to be; `observed` is what Consul holds of ours under the name.
    ///
    /// `None` where nothing needs the node.
    #[must_use]
    pub fn resolve_node(&self, name: &NodeName, observed: Option<&Node>) -> Option<DesiredNode> {
        let claimed = self.claims_on(name).next().is_some();
        if !claimed && observed.is_none() {
            return None;
        }
        let Some(kubernetes) = name.kubernetes_node(&self.cluster) else {
            let node = Node {
                address: EXTERNAL_NODE_ADDRESS.into(),
                meta: self.node_meta(None),
            };
            return Some(DesiredNode { node, check: None });
        };
        let kubernetes = Text::from(kubernetes);
        let facts = self.nodes.get(&(Text::from(""), kubernetes.clone()));
        let check = Some(health::node_check(&kubernetes, facts));
        if facts.is_none()
            && let Some(observed) = observed
        {
            // Of a node that is gone the address and the topology stay, and the marks all the same.
            let marks = self.node_meta(Some((&kubernetes, None)));
            let shared = |(key, value): (&Text, &Text)| (key.clone(), value.clone());
            let node = Node {
                address: observed.address.clone(),
                meta: observed
                    .meta
                    .iter()
                    .chain(marks.iter())
                    .map(shared)
                    .collect(),
            };
            return Some(DesiredNode { node, check });
        }
        let address = facts.and_then(|facts| facts.internal_ip.clone());
        let address = address.or_else(|| self.host_ip_on(name))?;
        let meta = self.node_meta(Some((&kubernetes, facts)));
        Some(DesiredNode {
            node: Node { address, meta },
            check,
        })
    }

    /// A key has nothing under it any more: how its claim went need not be remembered.
    pub fn forget_absence(&mut self, key: &InstanceKey) {
        self.withdrawn.remove(key);
    }

    // === claims ===

    fn absence(&self) -> Absence {
        if self.watches.all_complete() {
            Absence::Seen
        } else {
            Absence::Found
        }
    }

    fn pod(&self, namespace: &Text, name: &Text) -> Option<&PodFacts> {
        self.pods
            .get(&(namespace.clone(), name.clone()))
            .map(|row| &row.facts)
    }

    fn is_excluded(&self, namespace: &str) -> bool {
        self.excluded.is_match(namespace)
    }

    /// Whether nothing in the annotations of a pod can make it hold what it does not claim.
    fn is_plain(pod: &PodFacts) -> bool {
        let annotations = Annotations::of(pod);
        !annotations.paused
            && annotations.list_problem.is_none()
            && annotations.mentioned().next().is_none()
    }

    /// The problems of a pod that belong to none of its claims.
    fn remarks(&self, pod: &PodFacts) -> Vec<String> {
        if self.is_excluded(&pod.namespace) {
            return Vec::new();
        }
        let annotations = Annotations::of(pod);
        let mut problems: Vec<String> = annotations.list_problem.iter().cloned().collect();
        problems.extend(annotations.remarks.iter().cloned());
        let claimed = |service: &Text| {
            annotations
                .services
                .iter()
                .any(|known| known.text() == service)
                || self.registrations.in_namespace(&pod.namespace).any(|row| {
                    row.registration
                        .selects(&pod.labels)
                        .is_some_and(|claims| claims.service.text() == service)
                })
        };
        let unknown: BTreeSet<_> = annotations
            .mentioned()
            .filter(|service| !claimed(service))
            .collect();
        problems.extend(unknown.into_iter().map(|service| {
            format!(
                "lictor.io/*.{service}: the pod has no service \"{service}\": add it to \
                 lictor.io/service, or remove the annotation"
            )
        }));
        problems
    }

    fn note_problems(&mut self, owner: Owner, problems: Vec<String>, touched: &mut Touched) {
        if self.problems(&owner) == problems {
            return;
        }
        touched.problems.insert(owner.clone());
        if problems.is_empty() {
            self.problems.remove(&owner);
        } else {
            self.problems.insert(owner, problems);
        }
    }

    fn drop_pod(&mut self, name: &ObjectName, absence: Absence, touched: &mut Touched) {
        let Some(row) = self.pods.remove(name) else {
            return;
        };
        let owner = Owner::pod(&name.0, &name.1);
        self.note_problems(owner.clone(), Vec::new(), touched);
        if row.spoilt || !Self::is_plain(&row.facts) || self.any_frozen_registration(&name.0) {
            touched.holdings.insert(owner.clone());
            if absence == Absence::Seen {
                self.gone.insert(owner);
            }
        }
        self.replace_claims(&row.keys, Vec::new(), absence, touched);
    }

    fn any_frozen_registration(&self, namespace: &Text) -> bool {
        let mut rows = self.registrations.in_namespace(namespace);
        rows.any(|row| row.registration.claims().is_none())
    }

    fn drop_registration(&mut self, name: &ObjectName, absence: Absence, touched: &mut Touched) {
        let Some(row) = self.registrations.remove(name) else {
            return;
        };
        let owner = row.registration.owner();
        self.note_problems(owner.clone(), Vec::new(), touched);
        touched.registrations.insert(owner.clone());
        if row.registration.claims().is_none() {
            touched.holdings.insert(owner.clone());
            if absence == Absence::Seen {
                self.gone.insert(owner);
            }
        }
        self.replace_claims(&row.keys, Vec::new(), absence, touched);
        self.reclaim_selected(&name.0, [Some(&row.registration), None], absence, touched);
    }

    /// Works out anew the claims of the pods that either form of a registration selects.
    fn reclaim_selected(
        &mut self,
        namespace: &Text,
        forms: [Option<&Registration>; 2],
        absence: Absence,
        touched: &mut Touched,
    ) {
        let selected = |pod: &PodFacts| {
            forms
                .iter()
                .flatten()
                .any(|form| form.selects(&pod.labels).is_some())
        };
        let names: Vec<ObjectName> = self
            .pods
            .in_namespace(namespace)
            .filter(|row| selected(&row.facts))
            .map(|row| (row.facts.namespace.clone(), row.facts.name.clone()))
            .collect();
        for name in names {
            let Some(row) = self.pods.get_mut(&name) else {
                continue;
            };
            let keys = std::mem::take(&mut row.keys);
            self.reclaim_pod(&name, &keys, absence, touched);
            if let Some(problems) = self.pod(&name.0, &name.1).map(|pod| self.remarks(pod)) {
                self.note_problems(Owner::pod(&name.0, &name.1), problems, touched);
            }
        }
    }

    /// Works out anew what a pod claims; `before` are the keys that it claimed until now.
    fn reclaim_pod(
        &mut self,
        name: &ObjectName,
        before: &[InstanceKey],
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(row) = self.pods.get(name) else {
            return;
        };
        if !Self::is_plain(&row.facts) || self.any_frozen_registration(&name.0) {
            touched.holdings.insert(Owner::pod(&name.0, &name.1));
        }
        let was_spoilt = row.spoilt;
        let claims = self.claims_of_pod(&row.facts);
        if let Some(row) = self.pods.get_mut(name) {
            row.keys = claims.iter().map(|(key, _)| key.clone()).collect();
        }
        self.replace_claims(before, claims, absence, touched);
        let spoilt = self.pods.get(name).is_some_and(|row| {
            let mut freezes = row.keys.iter().map(|key| self.freeze_of_claim(key));
            freezes.any(|freeze| freeze.is_some())
        });
        if let Some(row) = self.pods.get_mut(name) {
            row.spoilt = spoilt;
        }
        if was_spoilt || spoilt {
            touched.holdings.insert(Owner::pod(&name.0, &name.1));
        }
    }

    fn claims_of_pod(&self, pod: &PodFacts) -> Vec<(InstanceKey, Vec<Claimant>)> {
        let Some(node) = pod.node.as_ref().filter(|_| health::is_registrable(pod)) else {
            return Vec::new();
        };
        let annotations = Annotations::of(pod);
        if annotations.paused || self.is_excluded(&pod.namespace) {
            return Vec::new();
        }
        // Claimants, and whether they have the instance removed because the pod terminates.
        let mut by_service: BTreeMap<ServiceName, Vec<(Claimant, bool)>> = BTreeMap::new();
        let mut claim = |owner: Owner, created, uid: &Text, service: &ServiceName, spec| {
            let ends = pod.deleting
                && health::readiness(pod, &annotations.overlay_health(service, spec)).is_none();
            let claimant = Claimant {
                created,
                uid: uid.clone(),
                owner,
                service: service.clone(),
                target: Target::Pod(pod.name.clone()),
            };
            let claimants = by_service.entry(service.clone()).or_default();
            claimants.push((claimant, ends));
        };
        let mut selected = Vec::new();
        for row in self.registrations.in_namespace(&pod.namespace) {
            let registration = &row.registration;
            if let Some(claims) = registration.selects(&pod.labels) {
                selected.push(&claims.service);
                let spec = if pod.deleting {
                    claims.spec.clone()
                } else {
                    InstanceSpec::default()
                };
                claim(
                    registration.owner(),
                    registration.created,
                    &registration.uid,
                    &claims.service,
                    spec,
                );
            }
        }
        for service in annotations
            .services
            .iter()
            .filter(|service| !selected.contains(service))
        {
            let owner = Owner::pod(&pod.namespace, &pod.name);
            claim(
                owner,
                pod.created,
                &pod.uid,
                service,
                InstanceSpec::default(),
            );
        }
        let node = NodeName::for_kubernetes(&self.cluster, node);
        by_service
            .into_iter()
            .filter_map(|(service, mut claimants)| {
                claimants.sort_by(|(a, _), (b, _)| a.seniority().cmp(&b.seniority()));
                // The holder's word counts: nobody takes over what it removes.
                if claimants.first().is_none_or(|(_, ends)| *ends) {
                    return None;
                }
                let id = InstanceId::of_pod(&self.cluster, &pod.namespace, &service, &pod.name);
                let key = InstanceKey {
                    node: node.clone(),
                    id,
                };
                Some((
                    key,
                    claimants
                        .into_iter()
                        .map(|(claimant, _)| claimant)
                        .collect(),
                ))
            })
            .collect()
    }

    fn endpoint_keys(&self, registration: &Registration) -> Vec<InstanceKey> {
        let Some(Claims {
            service,
            source: Source::Endpoints(endpoints),
            ..
        }) = registration.claims()
        else {
            return Vec::new();
        };
        if self.is_excluded(&registration.namespace) {
            return Vec::new();
        }
        let Registration {
            namespace, name, ..
        } = registration;
        let node = NodeName::external(&self.cluster);
        let id = |endpoint: &Text| {
            InstanceId::of_endpoint(&self.cluster, namespace, service, name, endpoint)
        };
        endpoints
            .iter()
            .map(|endpoint| InstanceKey {
                node: node.clone(),
                id: id(&endpoint.name),
            })
            .collect()
    }

    fn endpoint_claims(
        registration: &Registration,
        keys: &[InstanceKey],
    ) -> Vec<(InstanceKey, Vec<Claimant>)> {
        let Some(Claims {
            service,
            source: Source::Endpoints(endpoints),
            ..
        }) = registration.claims()
        else {
            return Vec::new();
        };
        let claimant = |name: &Text| Claimant {
            created: registration.created,
            uid: registration.uid.clone(),
            owner: registration.owner(),
            service: service.clone(),
            target: Target::Endpoint(name.clone()),
        };
        keys.iter()
            .zip(endpoints)
            .map(|(key, endpoint)| (key.clone(), vec![claimant(&endpoint.name)]))
            .collect()
    }

    fn replace_claims(
        &mut self,
        before: &[InstanceKey],
        after: Vec<(InstanceKey, Vec<Claimant>)>,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let lost: Vec<_> = before
            .iter()
            .filter(|key| !after.iter().any(|(kept, _)| kept == *key))
            .collect();
        for (key, claimants) in after {
            self.withdrawn.remove(&key);
            touched.keys.insert(Key::Instance(key.clone()));
            touched
                .registrations
                .extend(claimants.iter().map(|claimant| claimant.owner.clone()));
            let replaced = self.claims.insert(key, claimants).unwrap_or_default();
            touched
                .registrations
                .extend(replaced.into_iter().map(|claimant| claimant.owner));
        }
        for key in lost {
            let claimants = self.claims.remove(key).unwrap_or_default();
            // What is kept frozen was not withdrawn.
            let frozen = claimants.iter().any(|claimant| {
                let held = Held {
                    owner: claimant.owner.clone(),
                    service: claimant.service.as_ref(),
                    pod: match &claimant.target {
                        Target::Pod(pod) => Some(pod),
                        Target::Endpoint(_) => None,
                    },
                };
                self.frozen(key, &held).is_some()
            });
            if absence == Absence::Seen && !frozen {
                self.withdrawn.insert(key.clone());
            }
            touched.keys.insert(Key::Instance(key.clone()));
            touched
                .registrations
                .extend(claimants.into_iter().map(|claimant| claimant.owner));
        }
    }

    // === resolution ===

    fn claim(&self, key: &InstanceKey, holder: &Claimant, others: &[Claimant]) -> Option<Claim> {
        let (shape, live) = match &holder.target {
            Target::Pod(pod) => self.pod_claim(key, holder, pod)?,
            Target::Endpoint(name) => (self.endpoint_shape(key, holder, name)?, Live::default()),
        };
        let losers = others
            .iter()
            .map(|claimant| claimant.owner.clone())
            .collect();
        Some(Claim {
            owner: holder.owner.clone(),
            losers,
            shape,
            live,
        })
    }

    fn pod_claim(&self, key: &InstanceKey, holder: &Claimant, pod: &Text) -> Option<(Shape, Live)> {
        let pod = self.pod(&holder.owner.namespace, pod)?;
        let base = match holder.owner.kind {
            OwnerKind::Pod => InstanceSpec::default(),
            OwnerKind::ServiceRegistration => {
                self.registration(&holder.owner)?.claims()?.spec.clone()
            }
        };
        let annotations = Annotations::of(pod);
        let context = Context {
            cluster: &self.cluster,
            key,
            service: &holder.service,
            owner: &holder.owner,
        };
        let health = annotations.overlay_health(&holder.service, base.clone());
        let live = Live::of_pod(pod, health.address, health::readiness(pod, &health)?);
        let shape = annotations
            .overlay(&holder.service, base)
            .and_then(|spec| shape::of_pod(context, pod, &spec));
        Some((
            shape.map_or_else(|why| Shape::Frozen(Freeze::Invalid(why)), Shape::Valid),
            live,
        ))
    }

    fn endpoint_shape(&self, key: &InstanceKey, holder: &Claimant, name: &str) -> Option<Shape> {
        let registration = self.registration(&holder.owner)?;
        let Claims {
            service,
            spec,
            source: Source::Endpoints(endpoints),
        } = registration.claims()?
        else {
            return None;
        };
        let context = Context {
            cluster: &self.cluster,
            key,
            service,
            owner: &holder.owner,
        };
        let endpoint = endpoint(endpoints, name)?;
        let shape = shape::of_endpoint(context, &registration.uid, endpoint, spec);
        Some(shape.map_or_else(|why| Shape::Frozen(Freeze::Invalid(why)), Shape::Valid))
    }

    /// Whether an object that is paused or invalid keeps what Consul holds under the key.
    fn frozen(&self, key: &InstanceKey, held: &Held<'_>) -> Option<(Freeze, Live)> {
        let owner = &held.owner;
        if self.is_excluded(&owner.namespace) {
            return None;
        }
        let owner_freeze = self
            .registration(owner)
            .and_then(|found| match &found.content {
                Content::Valid(_) => None,
                Content::Paused => Some(Freeze::Paused),
                Content::Invalid(problem) => Some(Freeze::Invalid(vec![problem.clone()])),
            });
        let Some(pod_name) = held.pod else {
            return owner_freeze.map(|freeze| (freeze, Live::default()));
        };
        let pod = self
            .pod(&owner.namespace, pod_name)
            .filter(|pod| health::is_registrable(pod))?;
        let node = NodeName::for_kubernetes(&self.cluster, pod.node.as_ref()?);
        if node != key.node {
            return None;
        }
        let annotations = Annotations::of(pod);
        let claimed = self.claims.contains_key(key);
        let freeze = owner_freeze
            .or_else(|| pod_freeze(&annotations, held, claimed))
            .or_else(|| self.renamed(key, held, pod_name))?;
        let service: ServiceName = held.service.parse().ok()?;
        let base = self.registration(owner).and_then(Registration::claims);
        let base = base.map_or_else(InstanceSpec::default, |claims| claims.spec.clone());
        let spec = annotations.overlay_health(&service, base);
        let readiness = health::readiness(pod, &spec)?;
        Some((freeze, Live::of_pod(pod, spec.address, readiness)))
    }

    /// Whether the owner names another service for the pod now, and what it asks for there is invalid:
    /// then the name stays as last good too, and the pod does not disappear.
    fn renamed(&self, key: &InstanceKey, held: &Held<'_>, pod: &Text) -> Option<Freeze> {
        if self.claims.contains_key(key) {
            return None;
        }
        let name = (held.owner.namespace.clone(), pod.clone());
        self.pods.get(&name)?.keys.iter().find_map(|other| {
            let holder = self.claimants(other).first()?;
            (holder.owner == held.owner)
                .then(|| self.freeze_of_claim(other))
                .flatten()
        })
    }

    /// Why what the holder of a key asks for cannot be registered.
    fn freeze_of_claim(&self, key: &InstanceKey) -> Option<Freeze> {
        let holder = self.claimants(key).first()?;
        match self.claim(key, holder, &[])?.shape {
            Shape::Frozen(freeze) => Some(freeze),
            Shape::Valid(_) => None,
        }
    }

    fn absence_of(&self, key: &InstanceKey, held: Option<&Held<'_>>) -> Absence {
        let gone = |held: &Held<'_>| {
            let pod = held.pod.map(|pod| Owner::pod(&held.owner.namespace, pod));
            self.gone.contains(&held.owner) || pod.is_some_and(|pod| self.gone.contains(&pod))
        };
        if self.withdrawn.contains(key) || held.is_some_and(gone) {
            Absence::Seen
        } else {
            Absence::Found
        }
    }

    fn claims_on(&self, node: &NodeName) -> impl Iterator<Item = (&InstanceKey, &Vec<Claimant>)> {
        let first = InstanceKey {
            node: node.clone(),
            id: InstanceId::observed(""),
        };
        self.claims
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.node == *node)
    }

    /// The host IP of the first pod that claims something on the node.
    fn host_ip_on(&self, node: &NodeName) -> Option<Text> {
        self.claims_on(node)
            .flat_map(|(_, claimants)| claimants)
            .find_map(|claimant| {
                let Target::Pod(pod) = &claimant.target else {
                    return None;
                };
                self.pod(&claimant.owner.namespace, pod)?.host_ip.clone()
            })
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
    (!claimed && mentioned.any(|service| **service == *held.service)).then(|| {
        let service = held.service;
        Freeze::Invalid(vec![format!(
            "lictor.io/*.{service}: the pod has no service \"{service}\": add it to \
             lictor.io/service, or remove the annotation"
        )])
    })
}

#[cfg(test)]
mod tests;
