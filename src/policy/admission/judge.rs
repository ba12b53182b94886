//! How claims are judged, and what depends on them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Admission, Refusal, refused};
use crate::model::names::sidecar_name;
use crate::model::text::Text;
use crate::policy::DefaultPolicy;
use crate::policy::compiled::Policy;
use crate::policy::names::Who;
use crate::policy::uses::{Claim, Sort};

impl Admission {
    pub(super) fn judge_all(&mut self) {
        let all: Vec<(Claim, u32)> = self.uses.all().map(|(it, of)| (it, of.count)).collect();
        let (used, unused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, count)| *count > 0);
        for (claim, _) in unused {
            self.uses.remove(&claim);
        }
        self.judge(used.into_iter().map(|(claim, _)| claim));
    }

    pub(super) fn judge_names(&mut self, names: impl IntoIterator<Item = Text>) {
        let mut claims = Vec::new();
        for name in names {
            // The proxies of a service go with it.
            let proxies = Text::from(sidecar_name(&name));
            let of = self.uses.of(&name).chain(self.uses.of(&proxies));
            claims.extend(of.map(|(claim, _)| claim));
        }
        self.judge(claims);
    }

    /// Judges claims, and what depends on them: services first, and of these the oldest namespace's.
    pub(super) fn judge(&mut self, claims: impl IntoIterator<Item = Claim>) {
        let mut next: BTreeSet<(bool, i64, Claim)> = BTreeSet::new();
        let rank = |this: &Self, claim: Claim| {
            let namespace = this.force.namespace(&claim.namespace);
            let created = namespace.map_or(i64::MAX, |facts| facts.created);
            (!claim.sort.is_service(), created, claim)
        };
        for claim in claims {
            next.insert(rank(self, claim));
        }
        while let Some((_, _, claim)) = next.pop_first() {
            let Some(count) = self.uses.get(&claim).map(|of| of.count) else {
                continue;
            };
            let judged = match self.evaluate(&claim) {
                Ok(()) => Some(true),
                Err(refusal) => refusal.unsure.is_none().then_some(false),
            };
            let is_allowed = judged == Some(true);
            let of = self.uses.entry(&claim);
            if std::mem::replace(&mut of.admitted, judged) != judged {
                self.news.claims.insert(claim.clone());
            }
            if count == 0 || !claim.sort.is_service() || !self.is_exclusive() {
                continue;
            }
            let changes = if is_allowed {
                self.note(&claim, true)
            } else {
                !self.has_admitted(&claim) && self.names.lose_service(&claim.name, &claim.namespace)
            };
            if !changes {
                continue;
            }
            let proxies = Text::from(sidecar_name(&claim.name));
            let of = self.uses.of(&claim.name).chain(self.uses.of(&proxies));
            let others = of.map(|(other, _)| other).filter(|other| *other != claim);
            for other in others.collect::<Vec<_>>() {
                next.insert(rank(self, other));
            }
        }
    }

    /// Whether a namespace may use a name as a service, by another claim than this one at the latest.
    fn has_admitted(&self, claim: &Claim) -> bool {
        let mut sorts = [Sort::Service, Sort::Sidecar].into_iter();
        sorts.any(|sort| {
            let of = self.uses.get(&Claim {
                sort,
                ..claim.clone()
            });
            of.is_some_and(|of| of.admitted == Some(true))
        })
    }

    /// Notes that a namespace may use a name. Returns whether that is news.
    pub(super) fn note(&mut self, claim: &Claim, as_holder: bool) -> bool {
        let namespace = self.force.namespace(&claim.namespace);
        let uid = namespace.map(|facts| facts.uid.clone()).unwrap_or_default();
        let who = Who {
            name: &claim.namespace,
            uid: &uid,
        };
        self.names.keep(&claim.name, who, claim.sort, as_holder)
    }

    /// Whether a claim is allowed, by what is known now.
    pub(super) fn evaluate(&self, claim: &Claim) -> Result<(), Refusal> {
        let Some(rule) = self.rule else {
            return Ok(());
        };
        let Claim {
            sort,
            namespace,
            name,
        } = claim;
        let Some(policies) = self.policies(namespace) else {
            return Err(Refusal {
                message: format!("the namespace {namespace} is not known yet"),
                unsure: Some("their namespace is not known yet".into()),
                waits: true,
            });
        };
        if !policies.is_empty() {
            let allows = |policy: &Arc<Policy>| policy.allows(*sort, name, namespace);
            return if policies.iter().any(allows) {
                Ok(())
            } else {
                Err(refused(format!(
                    "no RegistrationPolicy that chooses the namespace {namespace} ({}) allows the {sort} \
                     {name:?}: choose another name, or ask an administrator to add it to {}",
                    listed(policies),
                    sort.field()
                )))
            };
        }
        match rule {
            DefaultPolicy::Shared => Ok(()),
            DefaultPolicy::Deny => Err(refused(format!(
                "nothing allows the {sort} {name:?}, and --default-policy is deny: ask an administrator for {}",
                self.leave(namespace, sort.field())
            ))),
            DefaultPolicy::Exclusive => self.exclusive(claim),
        }
    }

    /// By what an administrator may allow what the rule does not.
    fn leave(&self, namespace: &str, field: &str) -> String {
        if self.watched {
            format!(
                "a RegistrationPolicy that chooses the namespace {namespace} and allows it in {field}"
            )
        } else {
            "--default-policy shared, since no policies are read with --namespace".to_owned()
        }
    }

    fn exclusive(&self, claim: &Claim) -> Result<(), Refusal> {
        let Claim {
            sort,
            namespace,
            name,
        } = claim;
        if self.names.keeps(name, namespace, *sort) {
            return Ok(());
        }
        if let Some(name) = self.names.unread(name) {
            let why = format!(
                "what Consul's KV keeps of the name {name:?} is not understood: remove its key under \
                 lictor/v1/, in the folder name of this cluster, unless a newer release wrote it"
            );
            return Err(Refusal {
                message: format!(
                    "whether the {sort} {name:?} is another namespace's is not known: {why}"
                ),
                unsure: Some(why.into()),
                waits: false,
            });
        }
        if *sort == Sort::Template || (*sort == Sort::Destination && **name == *"*") {
            return Err(refused(format!(
                "the {sort} {name:?} concerns names of others: it needs {}",
                self.leave(namespace, sort.field())
            )));
        }
        match self.names.other_holder(name, namespace, *sort) {
            None => Ok(()),
            Some(holder) => Err(refused(format!(
                "the {sort} {name:?} has the name of a service of the namespace {holder}, which claimed it \
                 first: choose another name, or ask an administrator for {}",
                self.leave(namespace, sort.field())
            ))),
        }
    }
}

fn listed(policies: &[Arc<Policy>]) -> String {
    let names: Vec<&str> = policies.iter().map(|policy| &*policy.name).collect();
    names.join(", ")
}
