//! Which names objects claim, and whether they may.

use super::resolve::Keepers;
use super::{Holding, Index, PodRow, RegistrationRow, Touched};
use crate::api::PolicyObject;
use crate::desired::claim::{Claim, Claimant, Held, Shape, Target};
use crate::desired::intention::Intention;
use crate::desired::query::{PreparedQuery, QueryClaim};
use crate::desired::registration::{Claims, Source};
use crate::desired::table::ObjectName;
use crate::model::facts::{NamespaceFacts, Phase};
use crate::model::key::{InstanceKey, Key};
use crate::model::kind::Kind;
use crate::model::names::{Destination, QueryName};
use crate::model::owner::Owner;
use crate::model::text::Text;
use crate::policy::admission::accountable;
use crate::policy::compiled::Features;
use crate::policy::{self, InstanceClaim, Refusal, Sort};

/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

fn claim(sort: Sort, namespace: &Text, name: &Text) -> policy::Claim {
    policy::Claim {
        sort,
        namespace: namespace.clone(),
        name: name.clone(),
    }
}

impl Index {
    // === events ===

    /// A namespace was listed, added or changed.
    pub fn apply_namespace(&mut self, facts: NamespaceFacts) {
        self.admission.apply_namespace(facts);
    }

    /// A namespace was deleted.
    pub fn remove_namespace(&mut self, name: &Text) {
        self.admission.remove_namespace(name);
    }

    /// A policy was listed, added or changed. Returns what is wrong with it, if that is news.
    pub fn apply_policy(&mut self, object: &PolicyObject) -> Option<Text> {
        self.admission.apply_policy(object)
    }

    /// A policy was deleted.
    pub fn remove_policy(&mut self, name: &Text) {
        self.admission.remove_policy(name);
    }

    /// What is known of policies and namespaces changed, or how well it is known.
    pub fn renew_admission(&mut self, kind: Kind, touched: &mut Touched) {
        if matches!(kind, Kind::Namespace | Kind::Policy) {
            self.admission.renew(&self.watches);
            self.touch_judged(touched);
        }
    }

    /// What was judged otherwise than before is to be planned again.
    pub fn touch_judged(&mut self, touched: &mut Touched) {
        let news = self.admission.take_news();
        for namespace in &news.namespaces {
            self.touch_namespace(namespace, touched);
        }
        for claim in &news.claims {
            if !news.namespaces.contains(&claim.namespace) {
                self.touch_name(claim, touched);
            }
        }
    }

    fn touch_namespace(&self, namespace: &Text, touched: &mut Touched) {
        self.touch_instances(namespace, None, touched);
        let registrations = self.registrations.in_namespace(namespace);
        for claims in registrations.filter_map(RegistrationRow::last_good) {
            touched.keys.insert(Key::Defaults(claims.service.clone()));
            let queries = claims.queries.iter();
            let keys = queries.map(|claim| Key::Query(claim.name.clone()));
            touched.keys.extend(keys);
        }
        let intentions = self.entries.intentions.in_namespace(namespace);
        for object in intentions {
            touched.entry_holdings.insert(object.owner());
            let claims = object.understood();
            let key = claims.map(|claims| Key::Intentions(claims.destination.clone()));
            touched.keys.extend(key);
        }
        let queries = self.entries.queries.in_namespace(namespace);
        for object in queries {
            touched.entry_holdings.insert(object.owner());
            let key = object
                .understood()
                .map(|claim| Key::Query(claim.name.clone()));
            touched.keys.extend(key);
        }
    }

    fn touch_name(&self, claim: &policy::Claim, touched: &mut Touched) {
        match claim.sort {
            Sort::Service | Sort::Sidecar => {
                self.touch_instances(&claim.namespace, Some(&claim.name), touched);
                if let Ok(service) = claim.name.parse() {
                    touched.keys.insert(Key::Defaults(service));
                }
            }
            Sort::Destination => {
                let destination = Destination::new(&claim.name);
                touched.keys.insert(Key::Intentions(destination));
            }
            Sort::Query | Sort::Template => {
                touched.keys.insert(Key::Query(QueryName::new(&claim.name)));
            }
        }
    }

    /// Touches the instances of a service in a namespace, or all in it.
    fn touch_instances(&self, namespace: &Text, service: Option<&Text>, touched: &mut Touched) {
        let is_meant = |key: &&InstanceKey| {
            service.is_none_or(|service| {
                let first = self.claimants(key).first();
                first.is_some_and(|first| first.service.text() == service)
            })
        };
        for row in self.pods.in_namespace(namespace) {
            let keys = row.keys.iter().filter(is_meant).cloned();
            touched.keys.extend(keys.map(Key::Instance));
            if row.annotations.holds_unclaimed() {
                touched.holdings.extend(self.pod_holding(&row.facts));
            }
        }
        for row in self.registrations.in_namespace(namespace) {
            let keys = row.keys.iter().filter(is_meant).cloned();
            touched.keys.extend(keys.map(Key::Instance));
            if row.registration.claims().is_none() {
                let owner = row.registration.owner();
                touched.entry_holdings.insert(owner.clone());
                touched.holdings.insert(Holding { owner, node: None });
            }
        }
    }

    // === names ===

    /// A pod was put into the index, or is out of it.
    pub(super) fn pod_claims_names(
        &mut self,
        name: &ObjectName,
        before: Option<&PodRow>,
        touched: &mut Touched,
    ) {
        if !self.admission.is_on() || self.is_excluded(&name.0) {
            return;
        }
        let after = self.pods.get(name);
        let services = |row: Option<&PodRow>| row.map_or(0, |row| row.annotations.services.len());
        if services(before) == 0 && services(after) == 0 {
            return;
        }
        let (before, after) = (names_of_pod(before), names_of_pod(after));
        self.claim_names(&before, &after, touched);
    }

    /// A registration was put into the index, or is out of it.
    pub(super) fn registration_claims_names(
        &mut self,
        name: &ObjectName,
        before: Option<&RegistrationRow>,
        touched: &mut Touched,
    ) {
        if !self.admission.is_on() || self.is_excluded(&name.0) {
            return;
        }
        let names = |row: Option<&RegistrationRow>| {
            let claims = row.and_then(RegistrationRow::last_good);
            claims.map_or_else(Vec::new, |claims| names_of(&name.0, claims))
        };
        let (before, after) = (names(before), names(self.registrations.get(name)));
        self.claim_names(&before, &after, touched);
    }

    /// An Intention was put into the index, or is out of it.
    pub(super) fn intention_claims_name(
        &mut self,
        name: &ObjectName,
        before: Option<&Intention>,
        touched: &mut Touched,
    ) {
        if !self.admission.is_on() || self.is_excluded(&name.0) {
            return;
        }
        let names = |object: Option<&Intention>| {
            let claims = object.and_then(Intention::understood);
            let of = claims.map(|it| claim(Sort::Destination, &name.0, it.destination.text()));
            of.into_iter().collect::<Vec<_>>()
        };
        let after = names(self.entries.intentions.get(name));
        self.claim_names(&names(before), &after, touched);
    }

    /// A query was put into the index, or is out of it.
    pub(super) fn query_claims_name(
        &mut self,
        name: &ObjectName,
        before: Option<&PreparedQuery>,
        touched: &mut Touched,
    ) {
        if !self.admission.is_on() || self.is_excluded(&name.0) {
            return;
        }
        let names = |object: Option<&PreparedQuery>| {
            let claims = object.and_then(PreparedQuery::understood);
            let of = claims.map(|it| claim(sort_of(it), &name.0, it.name.text()));
            of.into_iter().collect::<Vec<_>>()
        };
        let after = names(self.entries.queries.get(name));
        self.claim_names(&names(before), &after, touched);
    }

    fn claim_names(
        &mut self,
        before: &[policy::Claim],
        after: &[policy::Claim],
        touched: &mut Touched,
    ) {
        if before == after {
            return;
        }
        // First what comes: what stays is claimed all through.
        for claim in after {
            self.admission.claim(claim);
        }
        for claim in before {
            self.admission.release(claim);
        }
        self.touch_judged(touched);
    }

    // === questions ===

    /// Whether what an object claims under an instance key is allowed. `present` says whether Consul holds
    /// something of the namespace there.
    pub(super) fn admits(
        &self,
        holder: &Claimant,
        shape: &Claim,
        present: bool,
    ) -> Result<(), Refusal> {
        if !self.admission.is_on() {
            return Ok(());
        }
        let namespace = &holder.owner.namespace;
        let claims = self
            .registration(&holder.owner)
            .and_then(|found| found.claims());
        let sort = sort_under(claims, holder.service.as_ref());
        let asked = claim(sort, namespace, holder.service.text());
        let account = match &holder.target {
            Target::Pod(pod) => Some(self.account(namespace, pod)),
            Target::Endpoint(_) => None,
        };
        let (tags, checks): (&[Text], bool) = match &shape.shape {
            Shape::Valid(service) => {
                let asked = shape.live.asked.as_ref();
                (&service.tags, asked.is_some_and(|asked| !asked.is_empty()))
            }
            // What is kept as it was is judged by its name and its pod.
            Shape::Frozen(_) => (&[], false),
        };
        let features = Features {
            service: accountable(sort, holder.service.as_ref()),
            account,
            tags,
            checks,
        };
        let asked = InstanceClaim {
            claim: &asked,
            features: Some(features),
        };
        self.admission.admits_instance(&asked, present)
    }

    /// The service names of a registration that selects pods which are not allowed, and why; of others the
    /// instances tell.
    #[must_use]
    pub fn refused_names(&self, owner: &Owner) -> Vec<(Text, Refusal)> {
        let claims = self.registration(owner).and_then(|found| found.claims());
        let Some(claims) = claims.filter(|it| matches!(it.source, Source::Pods(_))) else {
            return Vec::new();
        };
        let names = names_of(&owner.namespace, claims).into_iter();
        let names = names.filter(|claim| claim.sort.is_service());
        let refused = |claim: policy::Claim| {
            let refusal = self.admission.admits(&claim, false).err()?;
            Some((claim.name, refusal))
        };
        names.filter_map(refused).collect()
    }

    /// Whether what a paused or invalid object keeps as it is may stay.
    pub(super) fn admits_kept(&self, held: &Held<'_>) -> Result<(), Refusal> {
        if !self.admission.is_on() {
            return Ok(());
        }
        let namespace = &held.owner.namespace;
        let Keepers { registration, .. } = self.keepers(held);
        let claims = registration.and_then(RegistrationRow::last_good);
        let sort = sort_under(claims, held.service);
        let features = Features {
            service: accountable(sort, held.service),
            account: held.pod.map(|pod| self.account(namespace, pod)),
            tags: &[],
            checks: false,
        };
        let asked = InstanceClaim {
            claim: &claim(sort, namespace, &held.service.into()),
            features: Some(features),
        };
        self.admission.admits_instance(&asked, true)
    }

    /// Whether an instance that nobody owns may be taken over for a claimant.
    pub(super) fn admits_adopt_of(&self, holder: &Claimant) -> Result<(), Refusal> {
        let claims = self
            .registration(&holder.owner)
            .and_then(|found| found.claims());
        let sort = sort_under(claims, holder.service.as_ref());
        let asked = claim(sort, &holder.owner.namespace, holder.service.text());
        self.admission.admits_adopt(&asked)
    }

    fn account(&self, namespace: &Text, pod: &Text) -> &str {
        let account = self
            .pod(namespace, pod)
            .and_then(|pod| pod.service_account.as_deref());
        account.unwrap_or(DEFAULT_ACCOUNT)
    }
}

/// What a query is claimed as.
#[must_use]
pub fn sort_of(claim: &QueryClaim) -> Sort {
    match claim.query.template {
        Some(_) => Sort::Template,
        None => Sort::Query,
    }
}

/// As what a service is registered.
fn sort_under(claims: Option<&Claims>, service: &str) -> Sort {
    match claims.and_then(|claims| claims.proxy_under(service)) {
        Some(_) => Sort::Sidecar,
        None => Sort::Service,
    }
}

fn names_of_pod(row: Option<&PodRow>) -> Vec<policy::Claim> {
    let lives = |row: &&PodRow| !matches!(row.facts.phase, Phase::Succeeded | Phase::Failed);
    let of = |row: &PodRow| {
        let services = row.annotations.services.iter();
        let claims =
            services.map(|service| claim(Sort::Service, &row.facts.namespace, service.text()));
        claims.collect()
    };
    row.filter(lives).map(of).unwrap_or_default()
}

fn names_of(namespace: &Text, claims: &Claims) -> Vec<policy::Claim> {
    let sidecar = claims.sidecar.iter();
    let sidecar = sidecar.map(|it| claim(Sort::Sidecar, namespace, it.service.text()));
    let queries = claims.queries.iter();
    let queries = queries.map(|it| claim(sort_of(it), namespace, it.name.text()));
    let service = claim(Sort::Service, namespace, claims.service.text());
    std::iter::once(service)
        .chain(sidecar)
        .chain(queries)
        .collect()
}
