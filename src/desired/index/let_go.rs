//! What an object held without claiming it, and was seen letting go.
//!
//! The index does not know what Consul holds, and so which keys a paused or invalid object keeps. It
//! remembers the object as it was until what Consul shows as its own is looked at.

use super::resolve::Keepers;
use super::{Holding, Index, PodRow, RegistrationRow, Touched};
use crate::desired::claim::{Absence, Held};
use crate::desired::table::ObjectName;
use crate::model::facts::Phase;
use crate::model::key::InstanceKey;
use crate::model::owner::OwnerKind;

/// An object that was seen changing or going, as it was before.
#[derive(Debug)]
pub struct LetGo {
    /// What Consul shows as the object's.
    pub holding: Holding,
    was: Was,
}

/// How an object was.
#[derive(Debug)]
pub(super) enum Was {
    /// It does not matter: it is at its end, and so is all that it held.
    Ended,
    /// This pod, which runs on.
    Pod(Box<PodRow>),
    /// This registration.
    Registration(Box<RegistrationRow>),
}

impl Touched {
    /// What an object held is to be looked at; where this process saw the object change, that is
    /// remembered.
    pub(super) fn holds_no_more(&mut self, holding: Holding, was: Was, absence: Absence) {
        self.holdings.insert(holding.clone());
        if absence == Absence::Seen {
            self.let_go.push(LetGo { holding, was });
        }
    }
}

impl Index {
    /// A pod was replaced by another form of it, or is gone.
    pub(super) fn pod_lets_go(
        &self,
        name: &ObjectName,
        before: PodRow,
        absence: Absence,
        touched: &mut Touched,
    ) {
        let held = !before.spoilt.is_empty()
            || before.annotations.holds_unclaimed()
            || self.any_frozen_registration(&name.0);
        let Some(holding) = self.pod_holding(&before.facts).filter(|_| held) else {
            return;
        };
        let has_ended = |phase| matches!(phase, Phase::Succeeded | Phase::Failed);
        let after = self.pods.get(name).map(|row| row.facts.phase);
        let was = if after.is_none_or(|after| has_ended(after) && !has_ended(before.facts.phase)) {
            Was::Ended
        } else {
            Was::Pod(Box::new(before))
        };
        touched.holds_no_more(holding, was, absence);
    }

    /// Takes the change of an object for the end of a key in its holding, if the object kept the key
    /// as it was and nothing keeps it now: then that was seen. What nothing kept before waits for
    /// something else.
    pub fn withdraw(&mut self, key: &InstanceKey, held: &Held<'_>, let_go: &LetGo) {
        if self.claims.contains_key(key) || self.frozen(key, held).is_some() {
            return;
        }
        let now = self.keepers(held);
        let kept = match &let_go.was {
            Was::Ended => true,
            Was::Pod(before) => {
                let before = Keepers {
                    pod: Some(before),
                    ..now
                };
                // A pod that runs on held it for an owner that may only be missing from view.
                let known = held.owner.kind == OwnerKind::Pod || now.registration.is_some();
                (known || !self.lives_on(key, held)) && self.frozen_by(key, held, before).is_some()
            }
            Was::Registration(before) => {
                let before = Keepers {
                    registration: Some(before),
                    ..now
                };
                self.frozen_by(key, held, before).is_some()
            }
        };
        if kept {
            self.withdrawn.insert(key.clone());
        }
    }
}
