//! What objects ask of Consul that stands on no node: intentions, prepared queries, defaults.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Index, Touched};
use crate::consul::wire;
use crate::desired::claim::{Absence, Freeze};
use crate::desired::intention::{Intention, IntentionClaims};
use crate::desired::parsed::{Asked, Content, Parsed};
use crate::desired::query::{PreparedQuery, QueryClaim};
use crate::desired::registration::{self, Registration};
use crate::desired::table::{ObjectName, Table};
use crate::model::key::{Key, source_key};
use crate::model::kind::Kind;
use crate::model::names::{Destination, QueryName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;

/// An object's claim on a prepared query.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryClaimant {
    /// The object.
    pub owner: Owner,
    /// Its uid.
    pub uid: Text,
    /// The query.
    pub query: wire::PreparedQuery,
    /// Whether one without an owner that has the name is taken over.
    pub adopt: bool,
}

/// An object's claim on the defaults of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultsClaimant {
    /// The object.
    pub owner: Owner,
    /// The protocol.
    pub protocol: Text,
    /// Whether an entry without an owner that stands there is taken over.
    pub adopt: bool,
}

/// The older holds a key: `metadata.creationTimestamp`, then the uid.
type Seniority = (i64, Text);

/// What objects ask for that stands on no node.
#[derive(Debug, Default)]
pub(super) struct Entries {
    intentions: Table<Intention>,
    queries: Table<PreparedQuery>,
    /// The Intentions of each destination.
    destinations: BTreeMap<Destination, BTreeMap<Seniority, ObjectName>>,
    query_claims: BTreeMap<QueryName, BTreeMap<Seniority, QueryClaimant>>,
    defaults: BTreeMap<ServiceName, BTreeMap<Seniority, DefaultsClaimant>>,
    /// Keys whose last claim this process saw going.
    withdrawn: HashSet<Key>,
}

impl Index {
    // === events ===

    /// An `Intention` was listed, added or changed.
    pub fn apply_intention(&mut self, intention: Intention, touched: &mut Touched) {
        let name = (intention.namespace.clone(), intention.name.clone());
        if self.entries.intentions.get(&name) == Some(&intention) {
            self.entries.intentions.confirm(&name);
            return;
        }
        self.tell_of(&intention, touched);
        let (absence, seniority) = (self.absence(Kind::Intention), seniority_of(&intention));
        let excluded = self.is_excluded(&name.0);
        let after = intention.claims().filter(|_| !excluded).cloned();
        let owner = intention.owner();
        let frozen = intention.claims().is_none();
        let before = self.entries.intentions.put(name.clone(), intention);
        self.claim_no_more(before.as_ref(), after.as_ref(), frozen, absence, touched);
        if let Some(claims) = after {
            for source in claims.names() {
                let key = source_key(&claims.destination, source);
                self.entries.withdrawn.remove(&key);
            }
            let key = Key::Intentions(claims.destination.clone());
            touched.keys.insert(key);
            let of = self.entries.destinations.entry(claims.destination);
            of.or_default().insert(seniority, name);
        }
        let_go_of_entries(before.as_ref(), frozen, &owner, absence, touched);
    }

    /// An `Intention` was deleted; `by_itself` unless it went with its CRD.
    pub fn remove_intention(
        &mut self,
        namespace: &Text,
        name: &Text,
        by_itself: bool,
        touched: &mut Touched,
    ) {
        let absence = self.absence_by_deletion(Kind::Intention, by_itself);
        self.drop_intention(&(namespace.clone(), name.clone()), absence, touched);
    }

    fn drop_intention(&mut self, name: &ObjectName, absence: Absence, touched: &mut Touched) {
        let Some(before) = self.entries.intentions.remove(name) else {
            return;
        };
        let owner = before.owner();
        self.is_gone(&owner, touched);
        self.claim_no_more(Some(&before), None, false, absence, touched);
        let_go_of_entries(Some(&before), false, &owner, absence, touched);
    }

    /// A `PreparedQuery` was listed, added or changed.
    pub fn apply_query(&mut self, query: PreparedQuery, touched: &mut Touched) {
        let name = (query.namespace.clone(), query.name.clone());
        if self.entries.queries.get(&name) == Some(&query) {
            self.entries.queries.confirm(&name);
            return;
        }
        self.tell_of(&query, touched);
        let (absence, seniority) = (self.absence(Kind::PreparedQuery), seniority_of(&query));
        let (owner, uid) = (query.owner(), query.uid.clone());
        let frozen = query.claims().is_none();
        let excluded = self.is_excluded(&name.0);
        let after: Vec<QueryClaim> = query
            .claims()
            .filter(|_| !excluded)
            .cloned()
            .into_iter()
            .collect();
        let before = self.entries.queries.put(name, query);
        let claimed = before.as_ref().and_then(Parsed::claims);
        let old = claimed.map(|claims| claims.name.clone());
        let was = before.as_ref().map(seniority_of);
        let asked = Claimer {
            owner: &owner,
            uid: &uid,
            seniority,
        };
        self.claim_queries((old, was), after, &asked, absence, !frozen, touched);
        let_go_of_entries(before.as_ref(), frozen, &owner, absence, touched);
    }

    /// A `PreparedQuery` was deleted; `by_itself` unless it went with its CRD.
    pub fn remove_query(
        &mut self,
        namespace: &Text,
        name: &Text,
        by_itself: bool,
        touched: &mut Touched,
    ) {
        let absence = self.absence_by_deletion(Kind::PreparedQuery, by_itself);
        self.drop_query(&(namespace.clone(), name.clone()), absence, touched);
    }

    fn drop_query(&mut self, name: &ObjectName, absence: Absence, touched: &mut Touched) {
        let Some(before) = self.entries.queries.remove(name) else {
            return;
        };
        let owner = before.owner();
        self.is_gone(&owner, touched);
        let asked = Claimer {
            owner: &owner,
            uid: &before.uid,
            seniority: seniority_of(&before),
        };
        let old = before.claims().map(|claims| claims.name.clone());
        let was = Some(seniority_of(&before));
        self.claim_queries((old, was), Vec::new(), &asked, absence, true, touched);
        let_go_of_entries(Some(&before), false, &owner, absence, touched);
    }

    /// What a registration asks for beside its instances changed.
    pub(super) fn reclaim_entries(
        &mut self,
        before: Option<&Registration>,
        after: Option<&Registration>,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(object) = after.or(before) else {
            return;
        };
        let excluded = self.is_excluded(&object.namespace);
        let claims = |form: Option<&Registration>| -> Option<registration::Claims> {
            form.and_then(Registration::claims)
                .filter(|_| !excluded)
                .cloned()
        };
        let (old, new) = (claims(before), claims(after));
        let frozen = after.is_some_and(|after| after.claims().is_none());
        let owner = object.owner();
        let asked = Claimer {
            owner: &owner,
            uid: &object.uid,
            seniority: seniority_of(object),
        };
        let was = before.map(seniority_of);
        let old_queries = old
            .as_ref()
            .map(|claims| claims.queries.clone())
            .unwrap_or_default();
        let new_queries = new
            .as_ref()
            .map(|claims| claims.queries.clone())
            .unwrap_or_default();
        let old_names = old_queries.into_iter().map(|claim| claim.name);
        self.claim_queries(
            (old_names, was.clone()),
            new_queries,
            &asked,
            absence,
            !frozen,
            touched,
        );
        let protocol = |claims: &registration::Claims| {
            let protocol = claims.protocol.clone()?;
            Some((claims.service.clone(), protocol, claims.adopt))
        };
        let old = old.as_ref().and_then(protocol).map(|(service, ..)| service);
        let new = new.as_ref().and_then(protocol);
        self.claim_defaults((old, was), new, &asked, absence, !frozen, touched);
        let_go_of_entries(before, frozen, &owner, absence, touched);
    }

    // === claims ===

    /// Takes out what the earlier form of an Intention claimed; `frozen` says whether it keeps it.
    fn claim_no_more(
        &mut self,
        before: Option<&Intention>,
        after: Option<&IntentionClaims>,
        frozen: bool,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some((before, claims)) = before.and_then(|it| Some((it, it.claims()?))) else {
            return;
        };
        let destination = &claims.destination;
        if let Some(of) = self.entries.destinations.get_mut(destination) {
            of.remove(&seniority_of(before));
            if of.is_empty() {
                self.entries.destinations.remove(destination);
            }
        }
        touched.keys.insert(Key::Intentions(destination.clone()));
        if absence == Absence::Found || frozen || self.is_excluded(&before.namespace) {
            return;
        }
        let is_kept = |name: &_| {
            after.is_some_and(|after| {
                after.destination == *destination && after.names().any(|kept| kept == *name)
            })
        };
        let lost = claims.names().filter(|name| !is_kept(name));
        let lost: Vec<Key> = lost.map(|name| source_key(destination, name)).collect();
        for key in lost {
            self.withdraw_entry(key);
        }
    }

    /// Puts claims on queries in the place of others. `withdraws`: what is not claimed any more is
    /// not kept either.
    fn claim_queries(
        &mut self,
        (old, was): (impl IntoIterator<Item = QueryName>, Option<Seniority>),
        new: Vec<QueryClaim>,
        asked: &Claimer<'_>,
        absence: Absence,
        withdraws: bool,
        touched: &mut Touched,
    ) {
        let mut lost = BTreeSet::new();
        for name in old {
            if let Some(claims) = self.entries.query_claims.get_mut(&name) {
                if let Some(was) = &was {
                    claims.remove(was);
                }
                if claims.is_empty() {
                    self.entries.query_claims.remove(&name);
                    lost.insert(name.clone());
                }
            }
            self.touch_claimants(&Key::Query(name), touched);
        }
        for claim in new {
            let QueryClaim { name, query, adopt } = claim;
            lost.remove(&name);
            let key = Key::Query(name.clone());
            self.entries.withdrawn.remove(&key);
            let claimant = QueryClaimant {
                owner: asked.owner.clone(),
                uid: asked.uid.clone(),
                query,
                adopt,
            };
            let claims = self.entries.query_claims.entry(name).or_default();
            claims.insert(asked.seniority.clone(), claimant);
            self.touch_claimants(&key, touched);
        }
        if absence == Absence::Seen && withdraws {
            let lost = lost.into_iter().map(Key::Query);
            self.entries.withdrawn.extend(lost);
        }
    }

    fn claim_defaults(
        &mut self,
        (old, was): (Option<ServiceName>, Option<Seniority>),
        new: Option<(ServiceName, Text, bool)>,
        asked: &Claimer<'_>,
        absence: Absence,
        withdraws: bool,
        touched: &mut Touched,
    ) {
        let mut lost = None;
        if let Some(service) = old {
            if let Some(claims) = self.entries.defaults.get_mut(&service) {
                if let Some(was) = &was {
                    claims.remove(was);
                }
                if claims.is_empty() {
                    self.entries.defaults.remove(&service);
                    lost = Some(service.clone());
                }
            }
            self.touch_claimants(&Key::Defaults(service), touched);
        }
        if let Some((service, protocol, adopt)) = new {
            lost = lost.filter(|lost| *lost != service);
            let key = Key::Defaults(service.clone());
            self.entries.withdrawn.remove(&key);
            let claimant = DefaultsClaimant {
                owner: asked.owner.clone(),
                protocol,
                adopt,
            };
            let claims = self.entries.defaults.entry(service).or_default();
            claims.insert(asked.seniority.clone(), claimant);
            self.touch_claimants(&key, touched);
        }
        if absence == Absence::Seen && withdraws {
            self.entries.withdrawn.extend(lost.map(Key::Defaults));
        }
    }

    fn touch_claimants(&self, key: &Key, touched: &mut Touched) {
        touched.keys.insert(key.clone());
        touched.registrations.extend(self.owners_of(key));
    }

    /// Takes what was seen of the object that held it for the end of a key that nothing claims now.
    pub fn withdraw_entry(&mut self, key: Key) {
        if self.owners_of(&key).is_empty() {
            self.entries.withdrawn.insert(key);
        }
    }

    fn tell_of<C: Asked>(&mut self, object: &Parsed<C>, touched: &mut Touched) {
        let excluded = self.is_excluded(&object.namespace);
        let problem = object.problem().filter(|_| !excluded);
        let problems = problem.cloned().into_iter().collect();
        self.note_problems(object.owner(), problems, touched);
        if !excluded {
            touched.registrations.insert(object.owner());
        }
    }

    fn is_gone(&mut self, owner: &Owner, touched: &mut Touched) {
        self.note_problems(owner.clone(), Vec::new(), touched);
        touched.registrations.insert(owner.clone());
    }

    fn absence_by_deletion(&self, kind: Kind, by_itself: bool) -> Absence {
        if by_itself {
            self.absence(kind)
        } else {
            Absence::Found
        }
    }

    pub(super) fn begin_list_of_entries(&mut self, kind: Kind) {
        match kind {
            Kind::Intention => self.entries.intentions.begin_list(),
            Kind::PreparedQuery => self.entries.queries.begin_list(),
            Kind::Pod | Kind::Node | Kind::Registration => {}
        }
    }

    pub(super) fn end_list_of_entries(&mut self, kind: Kind, touched: &mut Touched) {
        match kind {
            Kind::Intention => {
                for name in self.entries.intentions.end_list() {
                    self.drop_intention(&name, Absence::Found, touched);
                }
            }
            Kind::PreparedQuery => {
                for name in self.entries.queries.end_list() {
                    self.drop_query(&name, Absence::Found, touched);
                }
            }
            Kind::Pod | Kind::Node | Kind::Registration => {}
        }
    }

    // === questions ===

    /// The `Intention` that is this owner.
    #[must_use]
    pub fn intention(&self, owner: &Owner) -> Option<&Intention> {
        let name = (owner.namespace.clone(), owner.name.clone());
        let found = self.entries.intentions.get(&name);
        found.filter(|_| owner.kind == OwnerKind::Intention)
    }

    /// The `PreparedQuery` that is this owner.
    #[must_use]
    pub fn prepared_query(&self, owner: &Owner) -> Option<&PreparedQuery> {
        let name = (owner.namespace.clone(), owner.name.clone());
        let found = self.entries.queries.get(&name);
        found.filter(|_| owner.kind == OwnerKind::PreparedQuery)
    }

    /// The Intentions that claim sources of a destination, the oldest first.
    pub fn intentions_of(
        &self,
        destination: &Destination,
    ) -> impl Iterator<Item = (&Intention, &IntentionClaims)> {
        let of = self.entries.destinations.get(destination).into_iter();
        let names = of.flat_map(BTreeMap::values);
        let found = names.filter_map(|name| self.entries.intentions.get(name));
        found.filter_map(|found| Some((found, found.claims()?)))
    }

    /// The objects that claim a query, the one that holds it first.
    pub fn queries_of(&self, name: &QueryName) -> impl Iterator<Item = &QueryClaimant> {
        let of = self.entries.query_claims.get(name).into_iter();
        of.flat_map(BTreeMap::values)
    }

    /// The objects that claim the defaults of a service, the one that holds them first.
    pub fn defaults_of(&self, service: &ServiceName) -> impl Iterator<Item = &DefaultsClaimant> {
        let of = self.entries.defaults.get(service).into_iter();
        of.flat_map(BTreeMap::values)
    }

    /// The objects that claim a key.
    #[must_use]
    pub fn owners_of(&self, key: &Key) -> Vec<Owner> {
        match key {
            Key::Node(_) => Vec::new(),
            Key::Instance(key) => self
                .claimants(key)
                .iter()
                .map(|it| it.owner.clone())
                .collect(),
            Key::Defaults(service) => self
                .defaults_of(service)
                .map(|it| it.owner.clone())
                .collect(),
            Key::Query(name) => self.queries_of(name).map(|it| it.owner.clone()).collect(),
            Key::Intentions(destination) => self
                .intentions_of(destination)
                .map(|(it, _)| it.owner())
                .collect(),
            Key::Source(key) => {
                let of = self.intentions_of(&key.destination);
                let claims = of.filter(|(_, claims)| claims.names().any(|name| name == key.source));
                claims.map(|(it, _)| it.owner()).collect()
            }
        }
    }

    /// How it is known that nothing claims a key.
    #[must_use]
    pub fn absence_of_entry(&self, key: &Key) -> Absence {
        if self.entries.withdrawn.contains(key) {
            Absence::Seen
        } else {
            Absence::Found
        }
    }

    /// A key has nothing of ours under it any more: how its claim went need not be remembered.
    pub fn forget_entry(&mut self, key: &Key) {
        self.entries.withdrawn.remove(key);
    }

    /// Why an object keeps what it holds as it is, without claiming it, if it does.
    #[must_use]
    pub fn freeze_of(&self, owner: &Owner) -> Option<Freeze> {
        if self.is_excluded(&owner.namespace) {
            return None;
        }
        match owner.kind {
            OwnerKind::Pod => None,
            OwnerKind::ServiceRegistration => freeze(self.registration(owner)?),
            OwnerKind::Intention => freeze(self.intention(owner)?),
            OwnerKind::PreparedQuery => freeze(self.prepared_query(owner)?),
        }
    }

    /// All keys that objects claim and that are on no node.
    pub fn claimed_entries(&self) -> impl Iterator<Item = Key> {
        let entries = &self.entries;
        let defaults = entries.defaults.keys().cloned().map(Key::Defaults);
        let intentions = entries.destinations.keys().cloned().map(Key::Intentions);
        let queries = entries.query_claims.keys().cloned().map(Key::Query);
        defaults.chain(intentions).chain(queries)
    }
}

/// Who claims.
struct Claimer<'a> {
    owner: &'a Owner,
    uid: &'a Text,
    seniority: Seniority,
}

fn seniority_of<C: Asked>(object: &Parsed<C>) -> Seniority {
    (object.created, object.uid.clone())
}

fn freeze<C: Asked>(object: &Parsed<C>) -> Option<Freeze> {
    match &object.content {
        Content::Valid(_) => None,
        Content::Paused { .. } => Some(Freeze::Paused),
        Content::Invalid(problem) => Some(Freeze::Invalid(vec![problem.clone()])),
    }
}

/// What a frozen object kept without claiming it is to be looked at; where this process saw the
/// object change or go, that is the end of what it does not claim now.
fn let_go_of_entries<C: Asked>(
    before: Option<&Parsed<C>>,
    frozen: bool,
    owner: &Owner,
    absence: Absence,
    touched: &mut Touched,
) {
    let was_frozen = before.is_some_and(|before| before.claims().is_none());
    if frozen || was_frozen {
        touched.entry_holdings.insert(owner.clone());
    }
    if was_frozen && !frozen && absence == Absence::Seen {
        touched.entries_let_go.insert(owner.clone());
    }
}
