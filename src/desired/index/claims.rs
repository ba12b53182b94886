//! What objects claim, worked out event by event.

use std::collections::{BTreeMap, BTreeSet};

use super::{Holding, Index, Touched};
use crate::desired::annotations::Annotations;
use crate::desired::claim::{Absence, Claimant, Held, Target};
use crate::desired::health;
use crate::desired::registration::{Claims, Registration, Source};
use crate::desired::spec::InstanceSpec;
use crate::desired::table::ObjectName;
use crate::desired::watches::{Kind, Watch};
use crate::model::facts::PodFacts;
use crate::model::key::{InstanceKey, Key};
use crate::model::names::{InstanceId, NodeName, ServiceName};
use crate::model::owner::Owner;
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
    pub(super) fn pod_holding(&self, pod: &PodFacts, gone: bool) -> Option<Holding> {
        let node = NodeName::for_kubernetes(&self.cluster, pod.node.as_ref()?);
        Some(Holding {
            owner: Owner::pod(&pod.namespace, &pod.name),
            node: Some(node),
            gone,
        })
    }

    /// The problems of a pod that belong to none of its claims.
    pub(super) fn remarks(&self, pod: &PodFacts, annotations: &Annotations) -> Vec<String> {
        if self.is_excluded(&pod.namespace) {
            return Vec::new();
        }
        let mut problems: Vec<String> = annotations.list_problem.iter().cloned().collect();
        problems.extend(annotations.remarks.iter().cloned());
        let selected = |service: &Text| {
            self.registrations
                .in_namespace(&pod.namespace)
                .filter_map(|row| row.registration.selects(&pod.labels))
                .any(|claims| claims.service.text() == service)
        };
        let unknown: BTreeSet<_> = annotations
            .mentioned()
            .filter(|service| !selected(service))
            .collect();
        problems.extend(unknown.into_iter().map(|service| not_a_service(service)));
        problems
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
        let Some(row) = self.pods.remove(name) else {
            return;
        };
        let owner = Owner::pod(&name.0, &name.1);
        self.note_problems(owner.clone(), Vec::new(), touched);
        if row.spoilt || row.annotations.holds_unclaimed() || self.any_frozen_registration(&name.0)
        {
            let gone = absence == Absence::Seen;
            touched.holdings.extend(self.pod_holding(&row.facts, gone));
        }
        self.replace_claims(&row.keys, Vec::new(), absence, touched);
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
            touched.holdings.push(Holding {
                owner,
                node: None,
                gone: absence == Absence::Seen,
            });
        }
        self.replace_claims(&row.keys, Vec::new(), absence, touched);
        self.reclaim_selected(&name.0, [Some(&row.registration), None], absence, touched);
    }

    /// Works out anew the claims of the pods that either form of a registration selects.
    pub(super) fn reclaim_selected(
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
            let row = self.pods.get(&name);
            if let Some(problems) = row.map(|row| self.remarks(&row.facts, &row.annotations)) {
                self.note_problems(Owner::pod(&name.0, &name.1), problems, touched);
            }
        }
    }

    /// Works out anew what a pod claims; `before` are the keys that it claimed until now.
    pub(super) fn reclaim_pod(
        &mut self,
        name: &ObjectName,
        before: &[InstanceKey],
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(row) = self.pods.get(name) else {
            return;
        };
        if row.annotations.holds_unclaimed() || self.any_frozen_registration(&name.0) {
            touched.holdings.extend(self.pod_holding(&row.facts, false));
        }
        let (was_spoilt, holding) = (row.spoilt, self.pod_holding(&row.facts, false));
        let claims = self.claims_of_pod(&row.facts, &row.annotations);
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
            touched.holdings.extend(holding);
        }
    }

    pub(super) fn claims_of_pod(
        &self,
        pod: &PodFacts,
        annotations: &Annotations,
    ) -> Vec<(InstanceKey, Vec<Claimant>)> {
        let Some(node) = pod.node.as_ref().filter(|_| health::is_registrable(pod)) else {
            return Vec::new();
        };
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
        let holders = by_service
            .into_iter()
            .filter_map(|(service, mut claimants)| {
                claimants.sort_by(|(a, _), (b, _)| a.seniority().cmp(&b.seniority()));
                // The holder's word counts: nobody takes over what it removes.
                if claimants.first().is_none_or(|(_, ends)| *ends) {
                    return None;
                }
                let id = InstanceId::of_pod(&self.cluster, &pod.namespace, &service, &pod.name);
                let node = node.clone();
                let claimants = claimants.into_iter().map(|(claimant, _)| claimant);
                Some((InstanceKey { node, id }, claimants.collect()))
            });
        holders.collect()
    }

    pub(super) fn endpoint_keys(&self, registration: &Registration) -> Vec<InstanceKey> {
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

    pub(super) fn endpoint_claims(
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

    pub(super) fn replace_claims(
        &mut self,
        before: &[InstanceKey],
        after: Vec<(InstanceKey, Vec<Claimant>)>,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let is_lost = |key: &&InstanceKey| !after.iter().any(|(kept, _)| kept == *key);
        let lost: Vec<_> = before.iter().filter(is_lost).collect();
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
            let owners = claimants.into_iter().map(|claimant| claimant.owner);
            touched.registrations.extend(owners);
        }
    }
}

/// What is wrong with a setting for a service that the pod does not have.
pub(super) fn not_a_service(service: &str) -> String {
    format!(
        "lictor.io/*.{service}: the pod has no service {service:?}: add it to lictor.io/service, or \
         remove the annotation"
    )
}
