//! What objects ask of Consul that stands on no node: intentions, prepared queries, defaults.

mod claims;
mod intentions;
mod queries;

use std::collections::HashSet;

use self::claims::{Claims, Seniority};
use super::{Index, Touched};
use crate::consul::wire;
use crate::desired::claim::{Absence, Freeze};
use crate::desired::intention::{Intention, IntentionClaims};
use crate::desired::parsed::{Asked, Content, Parsed};
use crate::desired::query::PreparedQuery;
use crate::desired::table::{ObjectName, Table};
use crate::model::key::Key;
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

/// What objects ask for that stands on no node.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) intentions: Table<Intention>,
    pub(super) queries: Table<PreparedQuery>,
    /// The Intentions of each destination.
    destinations: Claims<Destination, ObjectName>,
    query_claims: Claims<QueryName, QueryClaimant>,
    defaults: Claims<ServiceName, DefaultsClaimant>,
    /// Keys whose last claim this process saw going.
    withdrawn: HashSet<Key>,
}

impl Index {
    // === events ===

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
            _ => {}
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
            _ => {}
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
        let names = self.entries.destinations.of(destination);
        let found = names.filter_map(|name| self.entries.intentions.get(name));
        found.filter_map(|found| Some((found, found.claims()?)))
    }

    /// The objects that claim a query, the one that holds it first.
    pub fn queries_of(&self, name: &QueryName) -> impl Iterator<Item = &QueryClaimant> {
        self.entries.query_claims.of(name)
    }

    /// The objects that claim the defaults of a service, the one that holds them first.
    pub fn defaults_of(&self, service: &ServiceName) -> impl Iterator<Item = &DefaultsClaimant> {
        self.entries.defaults.of(service)
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

    /// The same for all keys that have nothing of ours under them any more.
    pub fn forget_entries(&mut self, is_gone: impl Fn(&Key) -> bool) {
        self.entries.withdrawn.retain(|key| !is_gone(key));
    }

    /// Why an object keeps what it holds as it is, without claiming it, if it does.
    #[must_use]
    pub fn freeze_of(&self, owner: &Owner) -> Option<Freeze> {
        if self.is_excluded(&owner.namespace) {
            return None;
        }
        if !self.watches.covers(&owner.namespace) {
            return Some(Freeze::NotWatched);
        }
        match owner.kind {
            OwnerKind::Pod => None,
            OwnerKind::ServiceRegistration => freeze(self.registration(owner)?),
            OwnerKind::Intention => freeze(self.intention(owner)?),
            OwnerKind::PreparedQuery => freeze(self.prepared_query(owner)?),
        }
    }

    /// The objects that claim what is on no node.
    pub(super) fn objects_of_entries(&self) -> impl Iterator<Item = Owner> {
        let intentions = self.entries.intentions.values().map(Parsed::owner);
        let queries = self.entries.queries.values().map(Parsed::owner);
        intentions.chain(queries)
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
