//! The checks that an instance is to have, and what differs from them.

use std::collections::HashMap;

use super::{Mode, Scope, esm};
use crate::desired::claim::{Claim, Live, Shape};
use crate::desired::esm::Runner;
use crate::desired::probe::Asked;
use crate::model::entry::{Check, CheckKind, Health, Protocol, Service};
use crate::model::key::InstanceKey;
use crate::model::marks;
use crate::model::owner::OwnerKind;
use crate::model::text::Text;
use crate::observed::entry::{ObservedCheck, ObservedInstance};

/// What a check says that was never run.
pub(super) const NOT_ASKED: &str = "not asked yet";
/// What a check says for which nobody has vouched yet.
const NO_SESSION: &str = "no sign of life yet";
/// What is between the question and the answer in the output of a check.
pub const ANSWER: &str = ": ";
/// What is between the answer and the body of it, where consul-esm writes: Lictor never has a body.
const BODY: &str = " Output: ";
/// The end of an output.
const TAKEN: &str = " ms)";

/// A write of a check of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckWrite {
    /// Which one it is.
    pub kind: CheckKind,
    /// What it is to say.
    pub check: Check,
    /// The `ModifyIndex` that it must have; 0 to create it.
    pub index: u64,
}

/// What was found when instances were asked, as far as they were since the start.
#[derive(Debug, Default)]
pub struct Verdicts(HashMap<InstanceKey, Found>);

#[derive(Debug, Default)]
struct Found {
    /// Of which pod or registration.
    uid: Text,
    checks: Vec<(Text, Check)>,
}

impl Verdicts {
    /// What was found by the check of this name.
    #[must_use]
    pub fn get(&self, key: &InstanceKey, name: &str) -> Option<&Check> {
        self.0.get(key)?.get(name)
    }

    /// The same, if it was found of the pod or registration with this uid.
    fn get_of(&self, key: &InstanceKey, uid: Option<&Text>, name: &str) -> Option<&Check> {
        let found = self.0.get(key)?;
        found.get(name).filter(|_| Some(&found.uid) == uid)
    }

    /// A check was run of the pod or registration with this uid; of any other nothing is known any more.
    pub fn found(&mut self, key: InstanceKey, uid: &Text, name: Text, check: Check) {
        let found = self.0.entry(key).or_default();
        if found.uid != *uid {
            found.uid = uid.clone();
            found.checks.clear();
        }
        match found.checks.iter_mut().find(|(of, _)| *of == name) {
            Some((_, known)) => *known = check,
            None => found.checks.push((name, check)),
        }
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Of an instance only the checks of which this holds are known any more.
    pub fn retain(&mut self, key: &InstanceKey, is_known: impl Fn(&str) -> bool) {
        if let Some(found) = self.0.get_mut(key) {
            found.checks.retain(|(of, _)| is_known(of));
            if found.checks.is_empty() {
                self.0.remove(key);
            }
        }
    }
}

impl Found {
    fn get(&self, name: &str) -> Option<&Check> {
        let mut found = self.checks.iter();
        let found = found.find(|(of, _)| **of == *name);
        found.map(|(_, check)| check)
    }
}

/// All checks that an instance is to have, as far as it is known which.
pub(super) fn wanted(
    key: &InstanceKey,
    service: &Service,
    claim: &Claim,
    scope: &Scope<'_>,
) -> Vec<(CheckKind, Check)> {
    let live = &claim.live;
    let is_kept = matches!(claim.shape, Shape::Frozen(_));
    let can_follow = |asked: &&Asked| asked.heartbeat().is_none() || scope.rules.sessions.is_ok();
    let asked = live.asked.iter().flatten().filter(can_follow);
    if !service.is_proxy() {
        let readiness = live.readiness.clone();
        let readiness = readiness.map(|check| (CheckKind::Readiness, check));
        let probes = asked.map(|asked| match scope.desired.runner() {
            Runner::Lictor => (asked.probe.kind(), found(key, service, asked, scope)),
            Runner::Esm => esm::handed(key, service, asked, scope),
        });
        return readiness.into_iter().chain(probes).collect();
    }
    let beside = key.counterpart(scope.desired.cluster());
    let worst = beside.and_then(|beside| {
        let found = asked.map(|asked| {
            let check = match scope.desired.runner() {
                Runner::Lictor => found(&beside, service, asked, scope),
                Runner::Esm => esm::handed(&beside, service, asked, scope).1,
            };
            (asked.probe.name.clone(), check)
        });
        let kept = is_kept.then(|| unasked(&beside, live, scope));
        let found = found.chain(kept.into_iter().flatten());
        // Of several that are as bad, the first.
        found.reduce(|worst, next| {
            if next.1.status > worst.1.status {
                next
            } else {
                worst
            }
        })
    });
    let alias = match (live.readiness.clone(), worst) {
        (Some(ready), Some((_, found))) if ready.status >= found.status => Some(ready),
        // What consul-esm writes beside a status has the body of an answer in it.
        (_, Some((name, found))) if scope.desired.runner() == Runner::Esm => Some(Check {
            status: found.status,
            output: format!("{name} is {}", found.status.as_str()).into(),
        }),
        (_, Some((name, found))) => Some(Check {
            status: found.status,
            output: format!("{name}: {}", found.output).into(),
        }),
        (ready, None) => ready,
    };
    alias
        .map(|check| (CheckKind::Alias, check))
        .into_iter()
        .collect()
}

/// The checks of an instance of which it cannot be told here whether and where to ask.
fn unasked<'a>(
    key: &'a InstanceKey,
    live: &'a Live,
    scope: &Scope<'a>,
) -> impl Iterator<Item = (Text, Check)> + 'a {
    let there = scope.observed.instance(key).into_iter();
    let checks = there.flat_map(|there| &there.checks);
    checks.filter_map(|there| {
        let (_, name) = there.id.rsplit_once(':')?;
        let mut asked = live.asked.iter().flatten();
        let is_asked = asked.any(|asked| *asked.probe.name == *name);
        let found = scope.rules.verdicts.get(key, name);
        let check = found.unwrap_or(&there.check);
        (there.protocol.is_some() && !is_asked).then(|| (name.into(), check.clone()))
    })
}

/// Whether an entry is of another pod that had the name of the one that is registered like this: then its
/// checks say nothing of that one.
///
/// One without a uid has lost its marks. An endpoint is what it was, whichever registration lists it.
pub(super) fn is_of_another(there: &ObservedInstance, service: &Service) -> bool {
    let uid = there.service.meta.get(marks::UID);
    let kind = service.meta.get(marks::K8S_REF_KIND);
    kind.is_some_and(|kind| **kind == *OwnerKind::Pod.as_str())
        && uid.is_some_and(|uid| service.meta.get(marks::UID) != Some(uid))
}

/// What a check of an instance is to say, which, or whose proxy, is registered like this.
fn found(key: &InstanceKey, service: &Service, asked: &Asked, scope: &Scope<'_>) -> Check {
    let there = scope.observed.instance(key);
    let is_new = there.is_some_and(|there| is_of_another(there, service));
    let there = there.and_then(|there| there.check_of(key, &asked.probe.kind()));
    let (found, there) = match asked.heartbeat() {
        None => {
            let uid = service.meta.get(marks::UID);
            let found = scope.rules.verdicts.get_of(key, uid, &asked.probe.name);
            (found, there.filter(|_| !is_new))
        }
        // Its session says how it is, and nobody else.
        Some(_) => (None, there),
    };
    match (found, there) {
        // What is beside the status tells of the run in which it came about.
        (Some(found), Some(there)) if is_same(found, there) => there.check.clone(),
        (Some(found), _) => found.clone(),
        // It stays until it was asked again.
        (None, Some(there)) => there.check.clone(),
        (None, None) => Check {
            status: Health::Critical,
            output: match asked.heartbeat() {
                None => NOT_ASKED.into(),
                Some(_) => NO_SESSION.into(),
            },
        },
    }
}

/// Whether a run asked and found the same as the one that Consul shows, which was Lictor's own.
#[must_use]
pub fn is_same(found: &Check, there: &ObservedCheck) -> bool {
    there.definition.is_none()
        && found.status == there.check.status
        && question(found) == question(&there.check)
}

/// How long a run took, in milliseconds, as the output of a check ends.
#[must_use]
pub fn taken(milliseconds: u128) -> String {
    format!(" ({milliseconds}{TAKEN}")
}

/// What was asked, as the output of a check tells it that Lictor ran. That of one that consul-esm ran may
/// begin with the same words.
#[must_use]
pub fn question(check: &Check) -> Option<&str> {
    let (question, answer) = check.output.split_once(ANSWER)?;
    (answer.ends_with(TAKEN) && !answer.contains(BODY)).then_some(question)
}

/// Those of the wanted checks that are not there as they are to be; all, where nothing is there.
pub(super) fn differing(
    key: &InstanceKey,
    wanted: &[(CheckKind, Check)],
    there: Option<&ObservedInstance>,
) -> Vec<CheckWrite> {
    let differs = |(kind, check): &(CheckKind, Check)| {
        let there = there.and_then(|there| there.check(&kind.id(&key.id)));
        let equal = there.is_some_and(|there| {
            there.is_of(kind)
                && there.check == *check
                && there.definition.as_ref() == kind.definition()
        });
        (!equal).then(|| CheckWrite {
            kind: kind.clone(),
            check: check.clone(),
            index: there.map_or(0, |there| there.modify_index),
        })
    };
    wanted.iter().filter_map(differs).collect()
}

/// The checks of an instance that are ours by their id and that nobody asks for: what is left of a
/// newer release, or of another hand, would keep it out of service for good. Checks of operators have
/// other ids.
pub(super) fn surplus(
    key: &InstanceKey,
    claim: &Claim,
    wanted: &[(CheckKind, Check)],
    there: &ObservedInstance,
    mode: Mode,
) -> Vec<(Text, u64)> {
    let is_known = matches!(claim.shape, Shape::Valid(_)) && claim.live.asked.is_some();
    if !is_known {
        return Vec::new();
    }
    // A check whose session nobody renews any more would turn critical.
    let goes = |check: &&ObservedCheck| {
        mode != Mode::UpsertOnly || check.protocol == Some(Protocol::Session)
    };
    let prefix = format!("{}:", key.id);
    let wanted: Vec<String> = wanted.iter().map(|(kind, _)| kind.id(&key.id)).collect();
    let checks = there.checks.iter();
    checks
        .filter(|check| check.id.starts_with(&prefix))
        .filter(|check| !wanted.iter().any(|wanted| **wanted == *check.id))
        .filter(goes)
        .map(|check| (check.id.clone(), check.modify_index))
        .collect()
}
