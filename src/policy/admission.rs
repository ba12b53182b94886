//! What may be claimed.

mod judge;
mod questions;
mod settle;

pub use settle::Memory;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::DefaultPolicy;
use super::compiled::{Features, Policy};
use super::force::Force;
use super::names::Names;
use super::uses::{Claim, Sort, Use, Uses};
use crate::api::PolicyObject;
use crate::desired::watches::{Watch, Watches};
use crate::model::facts::NamespaceFacts;
use crate::model::kind::Kind;
use crate::model::names::stem_of_sidecar;
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

    // === what is known ===

    /// Whether there are policies.
    #[must_use]
    pub fn has_policies(&self) -> bool {
        self.force.has_policies()
    }

    /// Whether there is such a namespace, as far as namespaces are watched.
    #[must_use]
    pub fn knows_namespace(&self, name: &Text) -> bool {
        self.force.knows_namespace(name)
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
