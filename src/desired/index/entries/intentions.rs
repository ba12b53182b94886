//! What Intentions claim.

use super::{let_go_of_entries, seniority_of};
use crate::desired::claim::Absence;
use crate::desired::index::{Index, Touched};
use crate::desired::intention::{Intention, IntentionClaims};
use crate::desired::table::ObjectName;
use crate::model::key::{Key, source_key};
use crate::model::kind::Kind;
use crate::model::text::Text;

impl Index {
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
        self.intention_claims_name(&name, before.as_ref(), touched);
        self.claim_no_more(before.as_ref(), after.as_ref(), frozen, absence, touched);
        if let Some(claims) = after {
            for source in claims.names() {
                let key = source_key(&claims.destination, source);
                self.entries.withdrawn.remove(&key);
            }
            let key = Key::Intentions(claims.destination.clone());
            touched.keys.insert(key);
            let destinations = &mut self.entries.destinations;
            destinations.insert(claims.destination, seniority, name);
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

    pub(super) fn drop_intention(
        &mut self,
        name: &ObjectName,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let Some(before) = self.entries.intentions.remove(name) else {
            return;
        };
        self.intention_claims_name(name, Some(&before), touched);
        let owner = before.owner();
        self.is_gone(&owner, touched);
        self.claim_no_more(Some(&before), None, false, absence, touched);
        let_go_of_entries(Some(&before), false, &owner, absence, touched);
    }

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
        let was = seniority_of(before);
        self.entries.destinations.remove(destination, &was);
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
}
