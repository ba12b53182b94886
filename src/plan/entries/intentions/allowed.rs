//! What of intentions is not allowed.

use super::Merge;
use crate::model::key::{Key, Table};
use crate::model::names::Destination;
use crate::model::owner::Owner;
use crate::model::source::SourceName;
use crate::observed::entries::ObservedIntentions;
use crate::plan::entries::{Context, Gone, State};
use crate::policy::{Refusal, Sort};

/// Why the namespace of an object may not claim the destination, if it may not.
pub(super) fn not_allowed(
    destination: &Destination,
    owner: &Owner,
    there: Option<&ObservedIntentions>,
    context: Context<'_>,
) -> Option<Refusal> {
    let mut owners = there.into_iter().flat_map(|there| there.owners.values());
    let present = owners.any(|of| of.namespace == owner.namespace);
    let asked = (Sort::Destination, &owner.namespace, destination.text());
    context.admits(asked, present).err()
}

impl Merge<'_> {
    /// What of ours is claimed and may not be goes, where it may.
    pub(super) fn withdraw(
        &mut self,
        name: &SourceName,
        owner: &Owner,
        key: Key,
        refusal: &Refusal,
        context: Context<'_>,
    ) {
        match context.may_withdraw(&key, owner, Table::Intentions, refusal) {
            Ok(why) => {
                let state = State::NotAllowed(refusal.clone(), None);
                self.stand(name, owner, true, true, state);
                self.removed.push(Gone {
                    key,
                    owner: owner.clone(),
                    why,
                });
            }
            Err(hold) => {
                let state = State::NotAllowed(refusal.clone(), Some(hold));
                self.keep_one(name, owner, true, state);
            }
        }
    }
}
