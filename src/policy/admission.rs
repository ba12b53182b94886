//! What may be claimed.

mod questions;
mod settle;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::DefaultPolicy;
use super::compiled::{Features, Policy};
use super::force::Force;
use super::names::{Names, Who};
use super::uses::{Claim, Sort, Use, Uses};
use crate::api::PolicyObject;
use crate::desired::watches::{Watch, Watches};
use crate::model::facts::NamespaceFacts;
use crate::model::kind::Kind;
use crate::model::names::{sidecar_name, stem_of_sidecar};
use crate::model::text::Text;

/// Most policies that are named where they are missed.
const MOST_NAMED: usize = 5;

/// That a claim is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For people: what is not allowed, by what, and what to do.
    pub message: String,
    /// Why what it holds is not withdrawn for that, if it is not: it may be allowed.
    pub unsure: Option<Text>,
    /// Whether nobody has to do anything about it: it is not known yet, or not at the moment.
    pub waits: bool,
}

/// An instance that is claimed.
#[derive(Clone, Copy, Debug)]
pub struct InstanceClaim<'a> {
    /// The name that it is registered under.
    pub claim: &'a Claim,
    /// What it is beside that; `None` where that is not known, or kept as it was.
    pub features: Option<Features<'a>>,
}

/// What changed since this was asked last.
#[derive(Debug, Default)]
pub struct News {
    /// Claims that were allowed and are not, or the other way round.
    pub claims: BTreeSet<Claim>,
    /// Namespaces in which other policies are in force.
    pub namespaces: BTreeSet<Text>,
}

/// Judges claims.
#[derive(Debug, Default)]
pub struct Admission {
    /// `None` where everything is allowed, whatever policies say.
    rule: Option<DefaultPolicy>,
    /// Whether namespaces and policies are watched.
    watched: bool,
    hold: Duration,
    force: Force,
    uses: Uses,
    names: Names,
    /// Whether all that is claimed was judged once under the present leadership.
    settled: bool,
    /// What is known of the rule that names belong to namespaces.
    learnt: Learnt,
    /// The services that namespaces had instances of in Consul, until that was judged.
    registered: BTreeSet<(Text, Text)>,
    /// Why what Consul keeps of names cannot be used, if it cannot.
    unread: Option<Text>,
    /// Why nothing new is allowed and nothing withdrawn, if that is so.
    freeze: Option<Text>,
    /// Whether that passes without anybody doing anything.
    freeze_passes: bool,
    news: News,
}

/// What is known of the rule that names belong to namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Learnt {
    /// Nothing yet.
    #[default]
    Nothing,
    /// It only begins: what is in Consul already stays.
    Begins,
    /// It stands: whatever is claimed anew is judged by it.
    Stands,
}

impl Admission {
    /// Judges by policies, and by `rule` where there is none. A name belongs to a namespace for `hold`
    /// after its last claim.
    #[must_use]
    pub fn new(rule: DefaultPolicy, hold: Duration) -> Self {
        Self {
            rule: Some(rule),
            watched: true,
            hold,
            ..Self::default()
        }
    }

    /// The same where neither policies nor namespaces are watched: `rule` alone decides.
    #[must_use]
    pub fn by_default_alone(rule: DefaultPolicy, hold: Duration) -> Self {
        Self {
            watched: false,
            ..Self::new(rule, hold)
        }
    }

    /// The policies that choose a namespace; `None` where the namespace is not known.
    fn policies(&self, namespace: &str) -> Option<&[Arc<Policy>]> {
        if self.watched {
            self.force.of(namespace)
        } else {
            Some(&[])
        }
    }

    fn is_exclusive(&self) -> bool {
        self.rule == Some(DefaultPolicy::Exclusive)
    }

    // === events ===

    /// A list of namespaces or policies begins.
    pub fn begin_list(&mut self, kind: Kind) {
        match kind {
            Kind::Namespace => self.force.begin_list_of_namespaces(),
            Kind::Policy => self.force.begin_list_of_policies(),
            _ => {}
        }
    }

    /// A list of namespaces or policies is complete.
    pub fn end_list(&mut self, kind: Kind) {
        match kind {
            Kind::Namespace => self.force.end_list_of_namespaces(),
            Kind::Policy => self.force.end_list_of_policies(),
            _ => {}
        }
    }

    /// A namespace was listed, added or changed.
    pub fn apply_namespace(&mut self, facts: NamespaceFacts) {
        self.force.apply_namespace(facts);
    }

    /// A namespace was deleted.
    pub fn remove_namespace(&mut self, name: &Text) {
        self.force.remove_namespace(name);
    }

    /// A policy was listed, added or changed. Returns what is wrong with it, if that is news.
    pub fn apply_policy(&mut self, object: &PolicyObject) -> Option<Text> {
        self.force.apply_policy(object)
    }

    /// A policy was deleted.
    pub fn remove_policy(&mut self, name: &Text) {
        self.force.remove_policy(name);
    }

    /// What is known of policies and namespaces changed, or how well it is known.
    pub fn renew(&mut self, watches: &Watches) {
        if self.rule.is_none() {
            return;
        }
        let was_frozen = self.look(watches);
        if !self.settled || self.freeze.is_some() {
            return;
        }
        let changed = self.force.renew();
        let freed = self.free_gone();
        if was_frozen {
            self.thaw();
        } else if !changed.is_empty() || !freed.is_empty() {
            let is_of = |(claim, _): &(Claim, &Use)| changed.contains(&claim.namespace);
            let claims: Vec<Claim> = self.uses.all().filter(is_of).map(|it| it.0).collect();
            self.judge(claims);
            self.judge_names(freed);
        }
        self.news.namespaces.extend(changed);
    }

    /// All is judged that could not be. Also what stays refused is news: until now it was kept.
    fn thaw(&mut self) {
        let is_refused = |(_, of): &(Claim, &Use)| of.admitted != Some(true);
        let refused: Vec<Claim> = self.uses.all().filter(is_refused).map(|it| it.0).collect();
        self.news.claims.extend(refused);
        self.news.namespaces.extend(self.force.chosen().cloned());
        self.keep_registered();
        self.judge_all();
    }

    fn free_gone(&mut self) -> BTreeSet<Text> {
        let gone = self.force.take_gone();
        let freed = gone.iter().flat_map(|name| self.names.lose_all(name));
        freed.collect()
    }

    /// Looks how well policies are known. Returns whether nothing new was allowed until now.
    fn look(&mut self, watches: &Watches) -> bool {
        let unwatched = self.why_unwatched(watches);
        self.freeze_passes = unwatched.is_some();
        let freeze = unwatched.or_else(|| self.why_frozen());
        std::mem::replace(&mut self.freeze, freeze).is_some()
    }

    fn why_unwatched(&self, watches: &Watches) -> Option<Text> {
        let kinds = [Kind::Policy, Kind::Namespace].into_iter();
        kinds.filter(|_| self.watched).find_map(|kind| {
            let resource = kind.resource();
            if let Watch::Broken(why) = watches.state(kind) {
                return Some(format!("{resource} cannot be watched: {why}").into());
            }
            let listed = watches.was_listed(kind);
            (!listed).then(|| format!("{resource} are not known yet").into())
        })
    }

    fn why_frozen(&self) -> Option<Text> {
        let awaited = self.force.awaited();
        if self.watched && !awaited.is_empty() {
            let named: Vec<&str> = awaited
                .iter()
                .take(MOST_NAMED)
                .map(|name| &**name)
                .collect();
            let more = awaited.len() - named.len();
            let more = (more > 0).then(|| format!(" and {more} more"));
            let why = format!(
                "all RegistrationPolicies went, and {}{} are not back: if that is meant, restart lictor, and \
                 what there is then decides, --default-policy where there is nothing",
                named.join(", "),
                more.unwrap_or_default()
            );
            return Some(why.into());
        }
        let not_understood = self.force.not_understood().map(Text::from);
        not_understood.or_else(|| self.unread.clone().filter(|_| self.is_exclusive()))
    }

    /// An object claims a name.
    pub fn claim(&mut self, claim: &Claim) {
        if self.rule.is_none() {
            return;
        }
        let found = self.uses.entry(claim);
        found.count += 1;
        if found.count > 1 {
            return;
        }
        self.names.look_at(&claim.name, &claim.namespace);
        if !self.settled {
            return;
        }
        if self.freeze.is_none() {
            self.judge([claim.clone()]);
        } else if self.names.keeps(&claim.name, &claim.namespace, claim.sort) {
            self.uses.entry(claim).admitted.get_or_insert(true);
        }
    }

    /// An object claims a name no more.
    pub fn release(&mut self, claim: &Claim) {
        let Some(found) = self.uses.get_mut(claim) else {
            return;
        };
        found.count = found.count.saturating_sub(1);
        if found.count > 0 {
            return;
        }
        // While nothing new is allowed, what was comes back.
        if self.freeze.is_none() || found.admitted != Some(true) {
            self.uses.remove(claim);
        }
        self.names.look_at(&claim.name, &claim.namespace);
    }

    // === judging ===

    fn judge_all(&mut self) {
        let all: Vec<(Claim, u32)> = self.uses.all().map(|(it, of)| (it, of.count)).collect();
        let (used, unused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, count)| *count > 0);
        for (claim, _) in unused {
            self.uses.remove(&claim);
        }
        self.judge(used.into_iter().map(|(claim, _)| claim));
    }

    fn judge_names(&mut self, names: impl IntoIterator<Item = Text>) {
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
    fn judge(&mut self, claims: impl IntoIterator<Item = Claim>) {
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
    fn note(&mut self, claim: &Claim, as_holder: bool) -> bool {
        let namespace = self.force.namespace(&claim.namespace);
        let uid = namespace.map(|facts| facts.uid.clone()).unwrap_or_default();
        let who = Who {
            name: &claim.namespace,
            uid: &uid,
        };
        self.names.keep(&claim.name, who, claim.sort, as_holder)
    }

    /// Whether a claim is allowed, by what is known now.
    fn evaluate(&self, claim: &Claim) -> Result<(), Refusal> {
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

    // === what is known ===

    /// Whether there are policies.
    #[must_use]
    pub fn has_policies(&self) -> bool {
        self.force.has_policies()
    }

    /// Why nothing new is allowed and nothing withdrawn, if that is so.
    #[must_use]
    pub fn freeze(&self) -> Option<&Text> {
        self.freeze.as_ref()
    }

    /// Whether anything changed since [`Self::take_news`] was asked last.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.news.claims.is_empty() || !self.news.namespaces.is_empty()
    }

    /// Takes what changed since this was asked last.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }
}

fn refused(message: String) -> Refusal {
    Refusal {
        message,
        unsure: None,
        waits: false,
    }
}

fn listed(policies: &[Arc<Policy>]) -> String {
    let names: Vec<&str> = policies.iter().map(|policy| &*policy.name).collect();
    names.join(", ")
}

/// The service that a service account is named like: of proxies, that beside them.
#[must_use]
pub fn accountable(sort: Sort, name: &str) -> &str {
    match sort {
        Sort::Sidecar => stem_of_sidecar(name).unwrap_or(name),
        _ => name,
    }
}

#[cfg(test)]
mod tests;
