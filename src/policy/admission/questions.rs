//! Whether a claim is allowed.

use std::sync::Arc;

use super::{Admission, InstanceClaim, Refusal, refused};
use crate::model::text::Text;
use crate::policy::DefaultPolicy;
use crate::policy::compiled::Policy;
use crate::policy::uses::Claim;

impl Admission {
    /// Whether a claim is allowed. `present` says whether Consul holds something for it: that stays as it
    /// is where the answer is not known.
    pub fn admits(&self, claim: &Claim, present: bool) -> Result<(), Refusal> {
        let Some(why) = self.freeze.as_ref().filter(|_| self.rule.is_some()) else {
            let allowed = self.evaluate(claim);
            let stays = present && self.names.unread(&claim.name).is_some();
            return allowed.or_else(|refusal| match refusal.unsure {
                Some(_) if stays => Ok(()),
                _ => Err(refusal),
            });
        };
        match self.uses.get(claim).and_then(|of| of.admitted) {
            Some(true) => Ok(()),
            None if present => Ok(()),
            Some(false) | None => {
                Err(self.frozen(&format!("the {} {:?}", claim.sort, claim.name), why))
            }
        }
    }

    fn frozen(&self, what: &str, why: &Text) -> Refusal {
        Refusal {
            message: format!("{what} is new, and nothing new is allowed while {why}"),
            unsure: Some(why.clone()),
            waits: self.freeze_passes,
        }
    }

    /// Whether an instance is allowed.
    pub fn admits_instance(&self, asked: &InstanceClaim<'_>, present: bool) -> Result<(), Refusal> {
        if self.rule.is_none() {
            return Ok(());
        }
        let InstanceClaim { claim, features } = asked;
        self.admits(claim, present)?;
        let policies = self.policies(&claim.namespace).unwrap_or_default();
        let (Some(features), false) = (features, policies.is_empty()) else {
            return Ok(());
        };
        let Claim {
            sort,
            namespace,
            name,
        } = claim;
        let allow = |policy: &&Arc<Policy>| policy.allows(*sort, name, namespace);
        let mut why = None;
        for policy in policies.iter().filter(allow) {
            let forbidden = policy.forbids(features, namespace);
            let Some(what) = forbidden else {
                return Ok(());
            };
            why.get_or_insert((policy, what));
        }
        match why {
            // It is allowed by what was known before.
            None => Ok(()),
            Some((policy, what)) => Err(Refusal {
                unsure: self.freeze.clone(),
                ..refused(format!(
                    "the RegistrationPolicy {} allows the {sort} {name:?} in the namespace {namespace}, but \
                     not {what}: change it, or ask an administrator to allow it",
                    policy.name
                ))
            }),
        }
    }

    /// Whether what nobody owns may be taken over for a claim.
    pub fn admits_adopt(&self, claim: &Claim) -> Result<(), Refusal> {
        let Some(rule) = self.rule else {
            return Ok(());
        };
        if let Some(why) = &self.freeze {
            return Err(self.frozen("spec.adopt", why));
        }
        let Claim {
            sort,
            namespace,
            name,
        } = claim;
        let policies = self.policies(namespace).unwrap_or_default();
        let allows =
            |policy: &Arc<Policy>| policy.allows_adopt && policy.allows(*sort, name, namespace);
        if policies.is_empty() && rule == DefaultPolicy::Shared || policies.iter().any(allows) {
            return Ok(());
        }
        if !self.watched {
            return Err(refused(
                "spec.adopt takes over what others wrote: it needs --default-policy shared, since no policies \
                 are read with --namespace"
                    .to_owned(),
            ));
        }
        Err(refused(format!(
            "spec.adopt takes over what others wrote: it needs a RegistrationPolicy that chooses the \
             namespace {namespace}, allows the {sort} {name:?}, and has spec.adopt: Allow"
        )))
    }
}
