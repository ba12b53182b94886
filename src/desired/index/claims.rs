//! What objects claim, worked out event by event.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::let_go::Was;
use super::{Holding, Index, PodRow, Touched};
use crate::desired::annotations::Annotations;
use crate::desired::claim::{Absence, Claimant, Held, Target};
use crate::desired::health;
use crate::desired::mesh::Sidecar;
use crate::desired::problems::Problems;
use crate::desired::registration::{Claims, Registration, Source};
use crate::desired::spec::InstanceSpec;
use crate::desired::table::ObjectName;
use crate::desired::watches::Watch;
use crate::model::facts::PodFacts;
use crate::model::key::{InstanceKey, Key};
use crate::model::kind::Kind;
use crate::model::names::{InstanceId, NodeName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;

impl Index {
    /// How a claim goes with a change that the watch of a kind brings.
    pub(super) fn absence(&self, kind: Kind) -> Absence {
        match self.watches.state(kind) {
            Watch::Complete => Absence::Seen,
            Watch::Listing | Watch::Broken(_) => Absence::Found,
        }
    }

    pub(super) fn pod(&self, namespace: &Text, name: &Text) -> Option<&PodFacts> {
        self.pods
            .get(&(namespace.clone(), name.clone()))
            .map(|row| &row.facts)
    }

    /// What Consul shows as a pod's, on the node that it is on.
    pub(super) fn pod_holding(&self, pod: &PodFacts) -> Option<Holding> {
        let node = NodeName::for_kubernetes(&self.cluster, pod.node.as_ref()?);
        Some(Holding {
            owner: Owner::pod(&pod.namespace, &pod.name),
            node: Some(node),
        })
    }

    /// The problems of a pod that belong to none of its claims.
    pub(super) fn remarks(&self, pod: &PodFacts, annotations: &Annotations) -> Vec<String> {
        if self.is_excluded(&pod.namespace) {
            return Vec::new();
        }
        let mut problems = Problems::default();
        let told = annotations.list_problem.iter().chain(&annotations.remarks);
        told.for_each(|problem| problems.push(problem.clone()));
        for service in self.unknown_services(pod, annotations) {
            problems.push(not_a_service(service));
        }
        problems.into_vec()
    }

    /// Services that a pod has settings for and does not have, as far as is known.
    pub(super) fn unknown_services<'a>(
        &self,
        pod: &PodFacts,
        annotations: &'a Annotations,
    ) -> BTreeSet<&'a Text> {
        // A registration that is paused selects as before; one that is not understood may be the one
        // that is meant.
        let may_be_selected = |service: &Text| {
            let named =
                |claims: &Claims| claims.service.text() == service && claims.select(&pod.labels);
            let mut registrations = self.registrations_in(&pod.namespace);
            registrations.any(|registration| registration.understood().is_none_or(named))
        };
        let mentioned = annotations.mentioned();
        mentioned
            .filter(|service| !may_be_selected(service))
            .collect()
    }

    pub(super) fn note_problems(
        &mut self,
        owner: Owner,
        problems: Vec<String>,
        touched: &mut Touched,
    ) {
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

    pub(super) fn drop_pod(&mut self, name: &ObjectName, absence: Absence, touched: &mut Touched) {
        let Some(mut row) = self.pods.remove(name) else {
            return;
        };
        self.addresses.moved(name, Some(&row.facts), None, touched);
        let owner = Owner::pod(&name.0, &name.1);
        self.note_problems(owner, Vec::new(), touched);
        let keys = std::mem::take(&mut row.keys);
        self.pod_lets_go(name, row, absence, touched);
        self.drop_claims(keys.into_vec(), absence, touched);
    }

    pub(super) fn any_frozen_registration(&self, namespace: &Text) -> bool {
        let mut rows = self.registrations.in_namespace(namespace);
        rows.any(|row| row.registration.claims().is_none())
    }

    pub(super) fn drop_registration(
        &mut self,
        name: &ObjectName,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(row) = self.registrations.remove(name) else {
            return;
        };
        let owner = row.registration.owner();
        self.note_problems(owner.clone(), Vec::new(), touched);
        touched.registrations.insert(owner.clone());
        if row.registration.claims().is_none() {
            let holding = Holding { owner, node: None };
            touched.holds_no_more(holding, Was::Ended, absence);
        }
        self.reclaim_entries(Some(&row.registration), None, absence, touched);
        self.replace_claims(&row.keys, Vec::new(), absence, touched);
        self.reclaim_selected(&name.0, [Some(&row.registration), None], absence, touched);
    }

    /// Works out anew what either form of a registration bears on: the services that they name, of
    /// the pods that they select. A pod's other services have nothing to do with it.
    pub(super) fn reclaim_selected(
        &mut self,
        namespace: &Text,
        forms: [Option<&Registration>; 2],
        absence: Absence,
        touched: &mut Touched,
    ) {
        let forms = forms.iter().flatten();
        self.remark_again(namespace, forms.clone().copied(), touched);
        let claims = forms.clone().filter_map(|form| form.claims());
        let services: BTreeSet<ServiceName> = claims.flat_map(Claims::services).cloned().collect();
        let (services, namesakes) = self.namesakes(namespace, services);
        let selected = |row: &&PodRow| {
            let mut forms = forms.clone();
            forms.any(|form| form.selects(&row.facts.labels).is_some())
        };
        let reclaim = |row: &PodRow| {
            let pod = &row.facts;
            let before = services
                .iter()
                .filter_map(|service| self.key_of_pod(pod, service))
                .filter(|key| row.keys.contains(key));
            let annotated = row.annotations.services.iter();
            let annotated = annotated.filter(|service| services.contains(service));
            let registrations = namesakes.iter().copied();
            Reclaim {
                pod: (pod.namespace.clone(), pod.name.clone()),
                before: before.collect(),
                after: self.claims_of_pod(row, registrations, annotated),
            }
        };
        let pods = self.pods.in_namespace(namespace).filter(selected);
        let reclaims: Vec<Reclaim> = pods.map(reclaim).collect();
        for reclaim in reclaims {
            let name = reclaim.pod.clone();
            self.reclaim(reclaim, absence, touched);
            let Some(row) = self.pods.get(&name) else {
                continue;
            };
            if row.annotations.paused {
                // The health of what it holds may follow the registration.
                touched.holdings.extend(self.pod_holding(&row.facts));
            }
        }
    }

    /// The registrations of a namespace that have to do with any of these services, and all services of
    /// theirs. Who holds a service holds that of its proxies too, so that one leads to the other.
    fn namesakes(
        &self,
        namespace: &Text,
        mut services: BTreeSet<ServiceName>,
    ) -> (BTreeSet<ServiceName>, Vec<&Registration>) {
        loop {
            let concerned = |claims: &&Claims| {
                let mut names = claims.services();
                names.any(|service| services.contains(service))
            };
            let with_claims = |registration| {
                let claims = Registration::claims(registration)?;
                concerned(&claims).then_some((registration, claims))
            };
            let found: Vec<_> = self
                .registrations_in(namespace)
                .filter_map(with_claims)
                .collect();
            let names = found.iter().flat_map(|(_, claims)| claims.services());
            let all: BTreeSet<ServiceName> = names.chain(&services).cloned().collect();
            if all == services {
                return (all, found.into_iter().map(|(found, _)| found).collect());
            }
            services = all;
        }
    }

    /// Works out anew what is wrong with pods that have an annotation for a service which a
    /// registration may give them, in either of its forms.
    fn remark_again<'a>(
        &mut self,
        namespace: &Text,
        forms: impl Iterator<Item = &'a Registration>,
        touched: &mut Touched,
    ) {
        let said: Vec<Option<&Claims>> = forms.map(Registration::understood).collect();
        let may_be_meant = |service: &Text| {
            let named = |claims: &Claims| claims.service.text() == service;
            said.iter().any(|claims| claims.is_none_or(named))
        };
        let concerned = |row: &&PodRow| row.annotations.mentioned().any(may_be_meant);
        let remarks = |row: &PodRow| {
            let owner = Owner::pod(&row.facts.namespace, &row.facts.name);
            (owner, self.remarks(&row.facts, &row.annotations))
        };
        let pods = self.pods.in_namespace(namespace).filter(concerned);
        let remarks: Vec<_> = pods.map(remarks).collect();
        for (owner, problems) in remarks {
            self.note_problems(owner, problems, touched);
        }
    }

    /// Works out anew all that a pod claims; `before` are the keys that it claimed until now.
    pub(super) fn reclaim_pod(
        &mut self,
        name: &ObjectName,
        before: Vec<InstanceKey>,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(row) = self.pods.get(name) else {
            return;
        };
        if row.annotations.holds_unclaimed() || self.any_frozen_registration(&name.0) {
            touched.holdings.extend(self.pod_holding(&row.facts));
        }
        let registrations = self.registrations_in(&name.0);
        let reclaim = Reclaim {
            pod: name.clone(),
            before,
            after: self.claims_of_pod(row, registrations, row.annotations.services.iter()),
        };
        self.reclaim(reclaim, absence, touched);
    }

    fn reclaim(&mut self, reclaim: Reclaim, absence: Absence, touched: &mut Touched) {
        let Reclaim { pod, before, after } = reclaim;
        let lost = lost(&before, &after);
        let claimed: Vec<InstanceKey> = after.iter().map(|(key, _)| key.clone()).collect();
        self.put_claims(after, touched);
        let invalid = claimed
            .iter()
            .filter(|key| self.freeze_of_claim(key).is_some());
        let invalid: Vec<InstanceKey> = invalid.cloned().collect();
        let Some(row) = self.pods.get_mut(&pod) else {
            return;
        };
        let mut spoilt = !invalid.is_empty();
        for key in &before {
            row.keys.remove(key);
            spoilt |= row.spoilt.remove(key);
        }
        row.keys.extend(claimed);
        row.spoilt.extend(invalid);
        self.drop_claims(lost, absence, touched);
        if spoilt {
            let row = self.pods.get(&pod);
            let holding = row.and_then(|row| self.pod_holding(&row.facts));
            touched.holdings.extend(holding);
        }
    }

    fn registrations_in(&self, namespace: &Text) -> impl Iterator<Item = &Registration> {
        let rows = self.registrations.in_namespace(namespace);
        rows.map(|row| &row.registration)
    }

    pub(super) fn key_of_pod(&self, pod: &PodFacts, service: &ServiceName) -> Option<InstanceKey> {
        let node = NodeName::for_kubernetes(&self.cluster, pod.node.as_ref()?);
        let id = InstanceId::of_pod(&self.cluster, &pod.namespace, service, &pod.name);
        Some(InstanceKey { node, id })
    }

    /// What these registrations of a pod's namespace and these services of its annotations claim.
    fn claims_of_pod<'a>(
        &self,
        row: &PodRow,
        registrations: impl Iterator<Item = &'a Registration>,
        annotated: impl Iterator<Item = &'a ServiceName>,
    ) -> Vec<(InstanceKey, Vec<Claimant>)> {
        let (pod, annotations) = (&row.facts, &row.annotations);
        let out = annotations.paused || !health::is_registrable(pod);
        if out || self.is_excluded(&pod.namespace) {
            return Vec::new();
        }
        let mut by_service: BTreeMap<ServiceName, Vec<PodClaim<'a>>> = BTreeMap::new();
        let mut claim = |owner: Owner, created, uid: &Text, service: &ServiceName, spec, beside| {
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
            claimants.push(PodClaim {
                claimant,
                ends,
                beside,
            });
        };
        let mut selected = BTreeSet::new();
        for registration in registrations {
            if let Some(claims) = registration.selects(&pod.labels) {
                selected.insert(&claims.service);
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
                    claims.sidecar.as_ref(),
                );
            }
        }
        for service in annotated.filter(|service| !selected.contains(service)) {
            let owner = Owner::pod(&pod.namespace, &pod.name);
            claim(
                owner,
                pod.created,
                &pod.uid,
                service,
                InstanceSpec::default(),
                None,
            );
        }
        let mut held = Vec::new();
        // In the order of their names, so that a service comes before that of its proxies.
        while let Some((service, mut claims)) = by_service.pop_first() {
            claims.sort_by(|a, b| a.claimant.seniority().cmp(&b.claimant.seniority()));
            // The holder's word counts: nobody takes over what it removes.
            let Some(holder) = claims.first().filter(|holder| !holder.ends) else {
                continue;
            };
            if let Some(sidecar) = holder.beside {
                let claimant = Claimant {
                    service: sidecar.service.clone(),
                    ..holder.claimant.clone()
                };
                let others = by_service.entry(sidecar.service.clone()).or_default();
                // As with any service of a registration, the annotation contests nothing.
                others.retain(|other| other.claimant.owner.kind != OwnerKind::Pod);
                others.push(PodClaim {
                    claimant,
                    ends: false,
                    beside: None,
                });
            }
            let claimants = claims.into_iter().map(|claim| claim.claimant).collect();
            held.extend(self.key_of_pod(pod, &service).map(|key| (key, claimants)));
        }
        held
    }

    /// What a registration claims for its endpoints.
    pub(super) fn endpoint_claims(
        &self,
        registration: &Registration,
    ) -> Vec<(InstanceKey, Vec<Claimant>)> {
        let Some(claims) = registration.claims() else {
            return Vec::new();
        };
        let Source::Endpoints(endpoints) = &claims.source else {
            return Vec::new();
        };
        if self.is_excluded(&registration.namespace) {
            return Vec::new();
        }
        let Registration {
            namespace, name, ..
        } = registration;
        let node = NodeName::external(&self.cluster);
        let of = |service: &ServiceName, endpoint: &Text| {
            let id = InstanceId::of_endpoint(&self.cluster, namespace, service, name, endpoint);
            let claimant = Claimant {
                created: registration.created,
                uid: registration.uid.clone(),
                owner: registration.owner(),
                service: service.clone(),
                target: Target::Endpoint(endpoint.clone()),
            };
            let node = node.clone();
            (InstanceKey { node, id }, vec![claimant])
        };
        let services = claims.services();
        let all = services.flat_map(|service| {
            let endpoints = endpoints.iter();
            endpoints.map(move |endpoint| (service, &endpoint.name))
        });
        all.map(|(service, endpoint)| of(service, endpoint))
            .collect()
    }

    pub(super) fn replace_claims(
        &mut self,
        before: &[InstanceKey],
        after: Vec<(InstanceKey, Vec<Claimant>)>,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let lost = lost(before, &after);
        self.put_claims(after, touched);
        self.drop_claims(lost, absence, touched);
    }

    fn put_claims(&mut self, after: Vec<(InstanceKey, Vec<Claimant>)>, touched: &mut Touched) {
        for (key, claimants) in after {
            self.withdrawn.remove(&key);
            touched.keys.insert(Key::Instance(key.clone()));
            touched
                .registrations
                .extend(claimants.iter().map(|claimant| claimant.owner.clone()));
            let replaced = self.claims.insert(key.clone(), claimants);
            if replaced.is_none() {
                let node = key.node.kubernetes_node(&self.cluster).map(Text::from);
                self.touch_by_address(node.as_ref(), touched);
            }
            touched.registrations.extend(
                replaced
                    .into_iter()
                    .flatten()
                    .map(|claimant| claimant.owner),
            );
        }
    }

    fn drop_claims(&mut self, lost: Vec<InstanceKey>, absence: Absence, touched: &mut Touched) {
        for key in lost {
            let claimants = self.claims.remove(&key).unwrap_or_default();
            // What is kept frozen was not withdrawn.
            let frozen = claimants.iter().any(|claimant| {
                let held = Held {
                    owner: claimant.owner.clone(),
                    service: claimant.service.as_ref(),
                    address: "",
                    port: 0,
                    pod: match &claimant.target {
                        Target::Pod(pod) => Some(pod),
                        Target::Endpoint(_) => None,
                    },
                    readiness: None,
                };
                self.frozen(&key, &held).is_some()
            });
            if absence == Absence::Seen && !frozen {
                self.withdrawn.insert(key.clone());
            }
            touched.keys.insert(Key::Instance(key));
            let owners = claimants.into_iter().map(|claimant| claimant.owner);
            touched.registrations.extend(owners);
        }
    }
}

/// A claim on a service for a pod.
struct PodClaim<'a> {
    claimant: Claimant,
    /// Whether it has the instance removed because the pod terminates.
    ends: bool,
    /// The proxy that goes with it.
    beside: Option<&'a Sidecar>,
}

/// A pod, and claims that take the place of those that it had.
struct Reclaim {
    pod: ObjectName,
    before: Vec<InstanceKey>,
    after: Vec<(InstanceKey, Vec<Claimant>)>,
}

fn lost(before: &[InstanceKey], after: &[(InstanceKey, Vec<Claimant>)]) -> Vec<InstanceKey> {
    let kept: HashSet<&InstanceKey> = after.iter().map(|(key, _)| key).collect();
    let lost = before.iter().filter(|key| !kept.contains(key));
    lost.cloned().collect()
}

/// What is wrong with a setting for a service that the pod does not have.
pub(super) fn not_a_service(service: &str) -> String {
    format!(
        "lictor.io/*.{service}: the pod has no service {service:?}: add it to lictor.io/service, or \
         remove the annotation"
    )
}
