//! Instances that were critical for so long that they are deregistered (`deregisterCriticalServiceAfter`,
//! `--sweep-critical-after`), and come back when they are not critical any more. Pure.
//!
//! How long is judged by this process's own monotonic clock, from when it saw an instance critical. What
//! another process saw before, a predecessor or the one that led, is [kept](kept) in Consul and counts as
//! well; but nothing goes by that alone: a wall clock may be wrong, and something may have happened
//! meanwhile that is seen in a moment. So an instance must be [seen critical](clock::PROOF) for some seconds
//! before it counts, is kept, or goes. Where the view was lost (a side, the node, this process stood still)
//! the time begins anew: what was not seen is not known to have been critical. That it was lost may not be
//! known yet, so that the API server is [asked](looks) for the pod directly before its instance goes.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

mod clock;
pub mod kept;
pub mod looks;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::clock::{Criticals, Out};
use super::gate::{self, Hold, Why};
use super::{Removal, Scope, Step, create, update};
use crate::desired::claim::{Claim, Live, Shape};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::desired::watches::{Watch, Watches};
use crate::model::entry::{Health, Service};
use crate::model::key::{InstanceKey, Key};
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::observed::entry::ObservedInstance;
use crate::observed::mirror::Mirror;

/// How an instance is that may be deregistered while it is critical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The instance; of a proxy, the one that it is beside.
    pub instance: InstanceKey,
    /// The uid of its pod or registration: another one has nothing to do with what was seen of this one.
    pub uid: Text,
    /// After so long.
    pub after: Duration,
    /// How it is.
    pub health: OwnHealth,
    /// Whether Consul has it.
    pub there: bool,
    /// Its pod, if it is one's: an endpoint is judged by what this process itself asks it, and by Leases.
    pub pod: Option<Owner>,
}

/// How an instance is by the checks that Lictor answers for. What others say of it is no sign that it is
/// dead: an operator's maintenance means the contrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnHealth {
    /// No check is critical.
    Well,
    /// None is, as far as they were asked.
    Unknown,
    /// One is, while its node, or most nodes, are not Ready, or Kubernetes is out of reach: that says
    /// nothing of the instance itself.
    Doubted,
    /// One is.
    Critical,
}

/// What follows for an instance.
#[derive(Clone, Debug, PartialEq)]
enum Course {
    /// Nothing: it is registered as ever.
    Registered,
    /// It goes.
    Goes(Why),
    /// It would go, and may not.
    Held(Hold),
    /// It stays away, after it was critical for so long.
    StaysAway(Duration),
    /// It is not known yet whether it went before.
    Waits,
}

/// How an instance is, where it may be deregistered. The proxy beside it has no health of its own.
///
/// Where the input is invalid or paused nothing is: what it is registered with would be lost, and it could
/// not come back.
pub(super) fn watched(key: &InstanceKey, claim: &Claim, scope: &Scope<'_>) -> Option<Watched> {
    let Shape::Valid(service) = &claim.shape else {
        return None;
    };
    let asked_for = [claim.live.deregister_after, scope.rules.criticals.after()];
    let after = asked_for.into_iter().flatten().min()?;
    let instance = if service.is_proxy() {
        key.counterpart(scope.desired.cluster())?
    } else {
        key.clone()
    };
    let health = match own_health(&instance, &claim.live, scope) {
        OwnHealth::Critical if is_doubtful(&instance, scope) => OwnHealth::Doubted,
        health => health,
    };
    Some(Watched {
        uid: service.meta.get(marks::UID).cloned().unwrap_or_default(),
        after,
        health,
        there: scope.observed.instance(&instance).is_some(),
        pod: pod_of(service),
        instance,
    })
}

/// The pod that an entry of ours is of, if it is one's.
pub(super) fn pod_of(service: &Service) -> Option<Owner> {
    let meta = |key: &str| service.meta.get(key);
    let is_pod = meta(marks::K8S_REF_KIND).is_some_and(|kind| **kind == *OwnerKind::Pod.as_str());
    let (namespace, name) = (meta(marks::K8S_NAMESPACE)?, meta(marks::K8S_REF_NAME)?);
    is_pod.then(|| Owner::pod(namespace, name))
}

fn own_health(key: &InstanceKey, live: &Live, scope: &Scope<'_>) -> OwnHealth {
    let readiness = live.readiness.as_ref().map(|check| check.status);
    if readiness == Some(Health::Critical) {
        return OwnHealth::Critical;
    }
    let Some(asked) = &live.asked else {
        return OwnHealth::Unknown;
    };
    let mut health = OwnHealth::Well;
    for asked in asked {
        // An instance that is not there is run no check of by consul-esm: it could not come back.
        if asked.heartbeat().is_none() && scope.desired.runner() == Runner::Esm {
            continue;
        }
        let verdicts = match asked.heartbeat() {
            None => &scope.rules.verdicts,
            Some(_) => &scope.rules.heartbeats,
        };
        match verdicts.get(key, &asked.probe.name) {
            Some(found) if found.status == Health::Critical => return OwnHealth::Critical,
            Some(_) => {}
            None => health = OwnHealth::Unknown,
        }
    }
    health
}

/// Whether that an instance is critical may come of its node, or of the view.
fn is_doubtful(key: &InstanceKey, scope: &Scope<'_>) -> bool {
    let kubernetes = key.node.kubernetes_node(scope.desired.cluster());
    let is_ready = kubernetes.is_none_or(|node| scope.desired.is_node_ready(&node.into()));
    !is_ready || scope.rules.nodes.holds() || is_lost(&scope.desired.watches)
}

/// Whether Kubernetes is out of reach, for what an instance depends on.
///
/// Leases are no part of it: where those of a namespace cannot be watched nothing is known of the heartbeats
/// that look at them, so that they make no instance critical, and those of other namespaces go on. A watch of
/// theirs that is only silent is found out by a list, before an instance goes.
#[must_use]
pub fn is_lost(watches: &Watches) -> bool {
    let broken = |kind: &Kind| matches!(watches.state(*kind), Watch::Broken(_));
    [Kind::Pod, Kind::Node, Kind::Registration]
        .iter()
        .any(broken)
}

/// What follows of how long an instance was critical. `ours` says whether Consul has it and it is ours.
fn course(
    full_key: &Key,
    (there, ours): (bool, bool),
    watched: &Watched,
    scope: &Scope<'_>,
) -> Course {
    let criticals = &scope.rules.criticals;
    let Watched {
        instance,
        uid,
        after,
        health,
        ..
    } = watched;
    if !there {
        return match criticals.out(instance, uid, *after) {
            _ if *health == OwnHealth::Well => Course::Registered,
            Out::Yes => Course::StaysAway(*after),
            Out::Unread => Course::Waits,
            Out::No => Course::Registered,
        };
    }
    let goes = *health == OwnHealth::Critical && criticals.may_go(instance, uid, *after);
    if !goes || !ours || !is_bare(instance, scope) {
        return Course::Registered;
    }
    let may_go = gate::may_deregister(full_key, &scope.desired.watches, scope.rules, watched);
    may_go.map_or_else(Course::Held, Course::Goes)
}

/// What to do under a claimed key, as far as how long the instance was critical says; and why it stays, if
/// it would go. `ours` says whether what Consul has there is ours.
pub(super) fn take(
    full_key: &Key,
    key: &InstanceKey,
    claim: &Claim,
    (there, ours): (Option<&ObservedInstance>, bool),
    watched: Option<&Watched>,
    scope: &Scope<'_>,
) -> (Step, Option<Hold>) {
    let course = watched.map_or(Course::Registered, |watched| {
        course(full_key, (there.is_some(), ours), watched, scope)
    });
    let hold = match (course, there) {
        (Course::Goes(why), Some(there)) => {
            let removal = Removal {
                owner: claim.owner.clone(),
                name: there.service.name.clone(),
                index: there.modify_index,
                why,
            };
            return (Step::Remove(removal), None);
        }
        (Course::StaysAway(after), None) => return (Step::KeptOut(after), None),
        (Course::Waits, None) => return (Step::Waiting, None),
        (Course::Held(hold), Some(_)) => Some(hold),
        _ => None,
    };
    let step = match there {
        Some(there) => update(key, claim, there, scope),
        None => create(key, claim, scope),
    };
    (step, hold)
}

/// Whether nobody else has a check on the instance, or on the proxy beside it: it would go with them, and
/// an instance in maintenance would come back without.
fn is_bare(key: &InstanceKey, scope: &Scope<'_>) -> bool {
    let proxy = key.counterpart(scope.desired.cluster());
    let own = |key: &InstanceKey| {
        let checks = scope.observed.instance(key);
        let mut checks = checks.iter().flat_map(|there| &there.checks);
        checks.all(|check| key.id.names_check(&check.id))
    };
    own(key) && proxy.is_none_or(|proxy| own(&proxy))
}

/// The keys of an instance, and of the proxy beside it where something claims one or Consul has it.
#[must_use]
pub fn with_proxy(key: InstanceKey, desired: &Index, observed: &Mirror) -> Vec<Key> {
    let proxy = key.counterpart(desired.cluster());
    let exists = |proxy: &InstanceKey| {
        !desired.claimants(proxy).is_empty() || observed.instance(proxy).is_some()
    };
    let proxy = proxy.filter(exists);
    [Some(key), proxy]
        .into_iter()
        .flatten()
        .map(Key::Instance)
        .collect()
}
