//! What objects claim of prepared queries, and of the defaults of services.

use std::collections::BTreeSet;

use super::{
    Claims, DefaultsClaimant, Entries, QueryClaimant, Seniority, let_go_of_entries, seniority_of,
};
use crate::desired::claim::Absence;
use crate::desired::index::{Index, Touched};
use crate::desired::parsed::Parsed;
use crate::desired::query::{PreparedQuery, QueryClaim};
use crate::desired::registration::Registration;
use crate::desired::table::ObjectName;
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::names::{QueryName, ServiceName};
use crate::model::owner::Owner;
use crate::model::text::Text;

/// Claims of one sort.
struct Sort<K, V> {
    claims: fn(&mut Entries) -> &mut Claims<K, V>,
    key: fn(K) -> Key,
}

const QUERIES: Sort<QueryName, QueryClaimant> = Sort {
    claims: |entries| &mut entries.query_claims,
    key: Key::Query,
};

const DEFAULTS: Sort<ServiceName, DefaultsClaimant> = Sort {
    claims: |entries| &mut entries.defaults,
    key: Key::Defaults,
};

/// How an object changed.
struct Turn<'a> {
    owner: &'a Owner,
    uid: &'a Text,
    /// The seniority that its earlier form claimed with.
    was: Option<Seniority>,
    seniority: Seniority,
    /// Whether what it does not claim any more was seen going, and is not kept either.
    withdraws: bool,
}

impl Turn<'_> {
    fn query(&self, claim: QueryClaim) -> (QueryName, QueryClaimant) {
        let QueryClaim { name, query, adopt } = claim;
        let claimant = QueryClaimant {
            owner: self.owner.clone(),
            uid: self.uid.clone(),
            query,
            adopt,
        };
        (name, claimant)
    }
}

impl Index {
    /// A `PreparedQuery` was listed, added or changed.
    pub fn apply_query(&mut self, query: PreparedQuery, touched: &mut Touched) {
        let name = (query.namespace.clone(), query.name.clone());
        if self.entries.queries.get(&name) == Some(&query) {
            self.entries.queries.confirm(&name);
            return;
        }
        self.tell_of(&query, touched);
        let absence = self.absence(Kind::PreparedQuery);
        let (owner, uid, seniority) = (query.owner(), query.uid.clone(), seniority_of(&query));
        let frozen = query.claims().is_none();
        let excluded = self.is_excluded(&name.0);
        let after = query.claims().filter(|_| !excluded).cloned();
        let before = self.entries.queries.put(name.clone(), query);
        self.query_claims_name(&name, before.as_ref(), touched);
        let turn = Turn {
            owner: &owner,
            uid: &uid,
            was: before.as_ref().map(seniority_of),
            seniority,
            withdraws: absence == Absence::Seen && !frozen,
        };
        let old = before.as_ref().and_then(Parsed::claims);
        let old = old.map(|claim| claim.name.clone());
        let new = after.map(|claim| turn.query(claim));
        self.claim_instead(&QUERIES, old, new, &turn, touched);
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

    pub(super) fn drop_query(
        &mut self,
        name: &ObjectName,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(before) = self.entries.queries.remove(name) else {
            return;
        };
        self.query_claims_name(name, Some(&before), touched);
        let owner = before.owner();
        self.is_gone(&owner, touched);
        let turn = Turn {
            owner: &owner,
            uid: &before.uid,
            was: Some(seniority_of(&before)),
            seniority: seniority_of(&before),
            withdraws: absence == Absence::Seen,
        };
        let old = before.claims().map(|claim| claim.name.clone());
        self.claim_instead(&QUERIES, old, None, &turn, touched);
        let_go_of_entries(Some(&before), false, &owner, absence, touched);
    }

    /// What a registration asks for beside its instances changed.
    pub(in crate::desired::index) fn reclaim_entries(
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
        let (old, new) = (
            before.and_then(Registration::claims),
            after.and_then(Registration::claims),
        );
        let (old, new) = (old.filter(|_| !excluded), new.filter(|_| !excluded));
        let frozen = after.is_some_and(|after| after.claims().is_none());
        let owner = object.owner();
        let turn = Turn {
            owner: &owner,
            uid: &object.uid,
            was: before.map(seniority_of),
            seniority: seniority_of(object),
            withdraws: absence == Absence::Seen && !frozen,
        };
        let old_queries = old.iter().flat_map(|claims| &claims.queries);
        let old_queries = old_queries.map(|claim| claim.name.clone());
        let new_queries = new.iter().flat_map(|claims| &claims.queries);
        let new_queries = new_queries.map(|claim| turn.query(claim.clone()));
        self.claim_instead(&QUERIES, old_queries, new_queries, &turn, touched);
        let old_defaults = old.filter(|claims| claims.protocol.is_some());
        let old_defaults = old_defaults.map(|claims| claims.service.clone());
        let new_defaults = new.and_then(|claims| {
            let claimant = DefaultsClaimant {
                owner: owner.clone(),
                protocol: claims.protocol.clone()?,
                adopt: claims.adopt,
            };
            Some((claims.service.clone(), claimant))
        });
        self.claim_instead(&DEFAULTS, old_defaults, new_defaults, &turn, touched);
        let_go_of_entries(before, frozen, &owner, absence, touched);
    }

    /// Puts an object's claims in the place of those that it had.
    fn claim_instead<K: Ord + Clone, V>(
        &mut self,
        sort: &Sort<K, V>,
        old: impl IntoIterator<Item = K>,
        new: impl IntoIterator<Item = (K, V)>,
        turn: &Turn<'_>,
        touched: &mut Touched,
    ) {
        let mut lost = BTreeSet::new();
        for name in old {
            let claims = (sort.claims)(&mut self.entries);
            if let Some(was) = &turn.was
                && claims.remove(&name, was)
            {
                lost.insert(name.clone());
            }
            self.touch_claimants(&(sort.key)(name), touched);
        }
        for (name, claimant) in new {
            lost.remove(&name);
            let claims = (sort.claims)(&mut self.entries);
            claims.insert(name.clone(), turn.seniority.clone(), claimant);
            let key = (sort.key)(name);
            self.entries.withdrawn.remove(&key);
            self.touch_claimants(&key, touched);
        }
        if turn.withdraws {
            let lost = lost.into_iter().map(sort.key);
            self.entries.withdrawn.extend(lost);
        }
    }
}
