//! The index: from objects to claims on keys, kept up to date event by event.

mod addresses;
mod admission;
mod claims;
pub mod entries;
pub mod gate;
mod keys;
mod let_go;
mod resolve;
pub mod take_out;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use globset::GlobSet;

use self::addresses::Addresses;
use self::entries::Entries;
use self::keys::Keys;
pub use self::let_go::LetGo;
use self::let_go::Was;
use super::annotations::Annotations;
use super::claim::{Absence, Claimant};
use super::esm::Runner;
use super::registration::{Claims, Registration};
use super::table::Table;
use super::watches::{Moment, Watches};
use crate::model::facts::{NodeFacts, PodFacts, Tristate};
use crate::model::key::{InstanceKey, Key};
use crate::model::kind::Kind;
use crate::model::names::{ClusterName, NodeName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::policy::Admission;

/// What an event may have changed, collected over any number of events.
#[derive(Debug, Default)]
pub struct Touched {
    /// Keys to plan again.
    pub keys: BTreeSet<Key>,
    /// Objects of which all that Consul shows as theirs is to be planned again, because they are, or
    /// were, frozen and hold what they do not claim.
    pub holdings: BTreeSet<Holding>,
    /// Objects that this process saw changing or going while they held what they did not claim: each
    /// of their holdings is to be [withdrawn](Index::withdraw).
    pub let_go: Vec<LetGo>,
    /// Objects whose [`Index::problems`] changed.
    pub problems: BTreeSet<Owner>,
    /// Registrations whose status may have changed.
    pub registrations: BTreeSet<Owner>,
    /// Addresses that pods have got.
    pub addresses: Vec<Text>,
    /// Objects of which all that Consul shows as theirs, and is on no node, is to be planned again,
    /// because they are, or were, frozen and hold what they do not claim.
    pub entry_holdings: BTreeSet<Owner>,
    /// Objects that this process saw changing or going while they held so: each key of theirs is to be
    /// [withdrawn](Index::withdraw_entry).
    pub entries_let_go: BTreeSet<Owner>,
}

/// What Consul shows as an object's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// The object.
    pub owner: Owner,
    /// The node to look on; `None` for all.
    pub node: Option<NodeName>,
}

#[derive(Debug)]
struct PodRow {
    facts: PodFacts,
    annotations: Annotations,
    keys: Keys,
    /// Those of its keys for which it asks for something invalid, and so may keep what it held under
    /// other names.
    spoilt: Keys,
}

#[derive(Debug)]
struct RegistrationRow {
    registration: Registration,
    /// The keys of its endpoints.
    keys: Vec<InstanceKey>,
    /// What it said when it was understood last, while it is not: the health of its pods goes on.
    last_good: Option<Claims>,
}

impl RegistrationRow {
    fn last_good(&self) -> Option<&Claims> {
        self.registration.understood().or(self.last_good.as_ref())
    }
}

/// What all Kubernetes objects together ask Consul to hold.
#[derive(Debug)]
pub struct Index {
    cluster: ClusterName,
    excluded: GlobSet,
    /// Who runs the checks of registrations.
    runner: Runner,
    pods: Table<PodRow>,
    registrations: Table<RegistrationRow>,
    nodes: Table<NodeFacts>,
    /// Nodes that were seen going, as long as something is claimed on them.
    nodes_seen_going: HashSet<Text>,
    /// Nodes that a list did not bring any more, and when.
    nodes_lost: HashMap<Text, Moment>,
    /// When the first list of nodes was complete.
    nodes_known: Option<Moment>,
    /// Every key has one producer (a pod, or the registration of an endpoint), which replaces the
    /// claimants under it as a whole; they are sorted by seniority.
    claims: BTreeMap<InstanceKey, Vec<Claimant>>,
    /// Keys whose last claim this process saw going.
    withdrawn: HashSet<InstanceKey>,
    problems: BTreeMap<Owner, Vec<String>>,
    addresses: Addresses,
    entries: Entries,
    /// What may be claimed.
    pub admission: Admission,
    /// How complete the view of each kind is.
    pub watches: Watches,
}

impl Index {
    /// An empty index; objects in namespaces that `excluded` matches claim nothing. All that is claimed is
    /// allowed.
    #[must_use]
    pub fn new(cluster: ClusterName, excluded: GlobSet) -> Self {
        Self {
            cluster,
            excluded,
            runner: Runner::default(),
            pods: Table::default(),
            registrations: Table::default(),
            nodes: Table::default(),
            nodes_seen_going: HashSet::new(),
            nodes_lost: HashMap::new(),
            nodes_known: None,
            claims: BTreeMap::new(),
            withdrawn: HashSet::new(),
            problems: BTreeMap::new(),
            addresses: Addresses::default(),
            entries: Entries::default(),
            admission: Admission::default(),
            watches: Watches::default(),
        }
    }

    /// Says who runs the checks of registrations; to be said before there are objects.
    #[must_use]
    pub fn with_runner(mut self, runner: Runner) -> Self {
        self.runner = runner;
        self
    }

    /// Says what may be claimed; to be said before there are objects.
    #[must_use]
    pub fn with_admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// Says that only these namespaces are watched, or all if there is none; to be said before there are objects.
    #[must_use]
    pub fn in_namespaces(mut self, namespaces: BTreeSet<Text>) -> Self {
        self.watches = Watches::of(namespaces);
        self
    }

    // === events ===

    /// A list of the kind begins.
    pub fn begin_list(&mut self, kind: Kind) {
        self.watches.listing(kind);
        match kind {
            Kind::Pod => self.pods.begin_list(),
            Kind::Registration => self.registrations.begin_list(),
            Kind::Node => self.nodes.begin_list(),
            Kind::Namespace | Kind::Policy => self.admission.begin_list(kind),
            Kind::Intention | Kind::PreparedQuery | Kind::Lease => {
                self.begin_list_of_entries(kind);
            }
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
            Kind::Node => {}
            Kind::Namespace | Kind::Policy => self.admission.end_list(kind),
            Kind::Intention | Kind::PreparedQuery | Kind::Lease => {
                self.end_list_of_entries(kind, touched);
            }
        }
        self.watches.complete(kind);
        if kind == Kind::Node {
            self.end_list_of_nodes(touched);
        }
    }

    fn end_list_of_nodes(&mut self, touched: &mut Touched) {
        let now = self.watches.now();
        self.nodes_known.get_or_insert(now);
        // What nothing is claimed on need not be remembered.
        let mut going = std::mem::take(&mut self.nodes_seen_going);
        going.retain(|node| self.is_claimed_on(node));
        self.nodes_seen_going = going;
        let mut lost = std::mem::take(&mut self.nodes_lost);
        lost.retain(|node, _| self.is_claimed_on(node));
        for (_, node) in self.nodes.end_list() {
            self.drop_node(&node, touched);
            lost.insert(node, now);
        }
        self.nodes_lost = lost;
    }

    /// A pod was listed, added or changed.
    pub fn apply_pod(&mut self, facts: PodFacts, touched: &mut Touched) {
        let name = (facts.namespace.clone(), facts.name.clone());
        if self.pods.get(&name).is_some_and(|row| row.facts == facts) {
            self.pods.confirm(&name);
            return;
        }
        let known = self.pods.get(&name).map(|row| &row.facts);
        self.addresses.moved(&name, known, Some(&facts), touched);
        if known.and_then(|known| known.host_ip.as_ref()) != facts.host_ip.as_ref() {
            self.touch_by_address(facts.node.as_ref(), touched);
        }
        let owner = Owner::pod(&name.0, &name.1);
        let annotations = Annotations::of(&facts);
        let problems = self.remarks(&facts, &annotations);
        self.note_problems(owner, problems, touched);
        let absence = self.absence(Kind::Pod);
        let row = PodRow {
            facts,
            annotations,
            keys: Keys::default(),
            spoilt: Keys::default(),
        };
        let before = self.pods.put(name.clone(), row);
        self.pod_claims_names(&name, before.as_ref(), touched);
        let keys = before.map(|mut before| {
            let keys = std::mem::take(&mut before.keys);
            self.pod_lets_go(&name, before, absence, touched);
            keys.into_vec()
        });
        self.reclaim_pod(&name, keys.unwrap_or_default(), absence, touched);
    }

    /// A pod was deleted.
    pub fn remove_pod(&mut self, namespace: &Text, name: &Text, touched: &mut Touched) {
        let absence = self.absence(Kind::Pod);
        self.drop_pod(&(namespace.clone(), name.clone()), absence, touched);
    }

    /// A registration was listed, added or changed.
    pub fn apply_registration(&mut self, registration: Registration, touched: &mut Touched) {
        let name = (registration.namespace.clone(), registration.name.clone());
        let known = self.registrations.get(&name).map(|row| &row.registration);
        if known == Some(&registration) {
            self.registrations.confirm(&name);
            return;
        }
        let owner = registration.owner();
        // What is excluded is another's to tell about: it may be watched by another process.
        let excluded = self.is_excluded(&name.0);
        let problem = registration.problem().filter(|_| !excluded);
        let claims = registration.claims().filter(|_| !excluded);
        let remark = claims.and_then(|claims| self.runner.remark(claims));
        self.note_problems(
            owner.clone(),
            problem.cloned().into_iter().chain(remark).collect(),
            touched,
        );
        if !excluded {
            touched.registrations.insert(owner.clone());
        }
        let holding = Holding { owner, node: None };
        if registration.claims().is_none() {
            touched.holdings.insert(holding.clone());
        }
        let claimants = self.endpoint_claims(&registration);
        let keys = claimants.iter().map(|(key, _)| key.clone()).collect();
        let after = registration.clone();
        let known = self.registrations.get(&name);
        let known = known.filter(|known| known.registration.uid == registration.uid);
        let last_good = match registration.understood() {
            Some(_) => None,
            None => known.and_then(RegistrationRow::last_good).cloned(),
        };
        let row = RegistrationRow {
            registration,
            keys,
            last_good,
        };
        let mut before = self.registrations.put(name.clone(), row);
        self.registration_claims_names(&name, before.as_ref(), touched);
        let absence = self.absence(Kind::Registration);
        let old = before.as_ref().map(|row| &row.registration);
        self.reclaim_entries(old, Some(&after), absence, touched);
        let old_keys = before.as_mut().map(|row| std::mem::take(&mut row.keys));
        self.replace_claims(&old_keys.unwrap_or_default(), claimants, absence, touched);
        let forms = [before.as_ref().map(|row| &row.registration), Some(&after)];
        self.reclaim_selected(&name.0, forms, absence, touched);
        if let Some(before) = before.filter(|before| before.registration.claims().is_none()) {
            touched.holds_no_more(holding, Was::Registration(Box::new(before)), absence);
        }
    }

    /// A registration was deleted; `by_itself` unless it went with its CRD, which nobody meant to be
    /// a deletion of what is registered.
    pub fn remove_registration(
        &mut self,
        namespace: &Text,
        name: &Text,
        by_itself: bool,
        touched: &mut Touched,
    ) {
        let absence = if by_itself {
            self.absence(Kind::Registration)
        } else {
            Absence::Found
        };
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
        self.nodes_seen_going.remove(&facts.name);
        self.nodes_lost.remove(&facts.name);
        self.nodes.put(name, facts);
    }

    /// A node was deleted.
    pub fn remove_node(&mut self, name: &Text, touched: &mut Touched) {
        if self.drop_node(name, touched) {
            self.nodes_seen_going.insert(name.clone());
        }
    }

    /// Returns whether it was known.
    fn drop_node(&mut self, name: &Text, touched: &mut Touched) -> bool {
        let known = self.nodes.remove(&(Text::from(""), name.clone())).is_some();
        if known {
            let key = NodeName::for_kubernetes(&self.cluster, name);
            touched.keys.insert(Key::Node(key));
        }
        known
    }

    /// A pod tells the address of its node anew: where the node itself has none that counts for all that is
    /// on it, whatever becomes of the pod.
    fn touch_by_address(&self, node: Option<&Text>, touched: &mut Touched) {
        let Some(name) = node else {
            return;
        };
        let facts = self.nodes.get(&(Text::from(""), name.clone()));
        if facts.is_none_or(|facts| facts.internal_ip.is_none()) {
            let key = NodeName::for_kubernetes(&self.cluster, name);
            touched.keys.insert(Key::Node(key));
        }
    }

    // === questions ===

    /// Who runs the checks of registrations.
    #[must_use]
    pub fn runner(&self) -> Runner {
        self.runner
    }

    /// The cluster whose objects these are.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The live pod, with a network of its own, that has this address.
    #[must_use]
    pub fn pod_at(&self, address: &Text) -> Option<Owner> {
        let (namespace, name) = self.addresses.holder(address)?;
        Some(Owner::pod(namespace, name))
    }

    /// Whether the Kubernetes node exists.
    #[must_use]
    pub fn has_node(&self, name: &Text) -> bool {
        self.nodes.get(&(Text::from(""), name.clone())).is_some()
    }

    /// Whether the Kubernetes node exists and is Ready; where nodes are not watched, nothing speaks against it.
    #[must_use]
    pub fn is_node_ready(&self, name: &Text) -> bool {
        if !self.watches.watches(Kind::Node) {
            return true;
        }
        let node = self.nodes.get(&(Text::from(""), name.clone()));
        node.is_some_and(|node| node.ready == Tristate::True)
    }

    /// Whether a pod, and the node that it is on, are known as they were seen just now.
    #[must_use]
    pub fn agrees(&self, owner: &Owner, pod: Option<&PodFacts>, node: Option<&NodeFacts>) -> bool {
        let Some(known) = self.pod(&owner.namespace, &owner.name) else {
            return false;
        };
        let name = known.node.as_ref();
        let known_node = name.and_then(|name| self.nodes.get(&(Text::from(""), name.clone())));
        Some(known) == pod && known_node == node
    }

    /// Whether the Kubernetes node is missing although pods are claimed to be on it: nobody saw it go.
    #[must_use]
    pub fn misses_node(&self, name: &Text) -> bool {
        let is_known = self.has_node(name) || self.nodes_seen_going.contains(name);
        self.nodes_known.is_some() && !is_known && self.is_claimed_on(name)
    }

    /// All such nodes.
    pub fn missed_nodes(&self) -> impl Iterator<Item = Text> {
        self.claimed_keys().filter_map(|key| {
            let Key::Node(node) = key else { return None };
            let name = Text::from(node.kubernetes_node(&self.cluster)?);
            self.misses_node(&name).then_some(name)
        })
    }

    /// Whether a Kubernetes node that nobody saw going is missing for sure, as far as lists can tell:
    /// the pods on it were listed after it was not.
    #[must_use]
    pub fn is_loss_confirmed(&self, name: &Text) -> bool {
        let since = self.nodes_lost.get(name).copied().or(self.nodes_known);
        since.is_some_and(|since| self.watches.was_listed_after(Kind::Pod, since))
    }

    fn is_claimed_on(&self, kubernetes: &Text) -> bool {
        let node = NodeName::for_kubernetes(&self.cluster, kubernetes);
        self.claims_on(&node).next().is_some()
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
            OwnerKind::Intention => self.intention(owner).map(|found| &found.uid),
            OwnerKind::PreparedQuery => self.prepared_query(owner).map(|found| &found.uid),
        }
    }

    /// What is wrong with an object as such, beside what its single services show.
    #[must_use]
    pub fn problems(&self, owner: &Owner) -> &[String] {
        self.problems.get(owner).map_or(&[], Vec::as_slice)
    }

    /// The objects that have [`Self::problems`].
    pub fn all_problems(&self) -> impl Iterator<Item = &Owner> {
        self.problems.keys()
    }

    /// All objects of our kinds.
    pub fn all_objects(&self) -> impl Iterator<Item = Owner> {
        let registrations = self.registrations.values();
        let registrations = registrations.map(|row| row.registration.owner());
        registrations.chain(self.objects_of_entries())
    }

    /// How many objects have [`Self::problems`].
    #[must_use]
    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// Whether objects in the namespace claim nothing.
    #[must_use]
    pub fn is_excluded(&self, namespace: &str) -> bool {
        self.excluded.is_match(namespace)
    }

    /// A key has nothing under it any more: how its claim went need not be remembered.
    pub fn forget_absence(&mut self, key: &InstanceKey) {
        self.withdrawn.remove(key);
    }

    /// The same for all keys that have nothing under them any more.
    pub fn forget_absences(&mut self, is_gone: impl Fn(&InstanceKey) -> bool) {
        self.withdrawn.retain(|key| !is_gone(key));
    }
}

#[cfg(test)]
mod tests;
