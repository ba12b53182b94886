//! The status of a `ServiceRegistration`.

use jiff::Timestamp;

use super::board::{Reason, Tally, Trouble, beside};
use crate::api::ServiceRegistrationStatus;
use crate::api::conditions::{self, ConditionType, Verdict, cut};
use crate::api::service_registration::{ConsulState, Instances};
use crate::desired::registration::{Content, Registration, Source};

/// Longest `lastError`, in bytes: the CRD's `maxLength`.
const LAST_ERROR_BYTES: usize = 4096;

/// `Ready=True`: Consul equals what the object claims.
const REGISTERED: &str = "Registered";

/// What the status is derived from beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The sums.
    pub tally: &'a Tally,
    /// Consul's datacenter, where it is known.
    pub datacenter: Option<&'a str>,
    /// Why Consul takes no writes at the moment, if it does not.
    pub outage: Option<&'a str>,
    /// The status as it is: times of transition, and what this process has not learnt yet, are kept.
    pub before: Option<&'a ServiceRegistrationStatus>,
    /// Now, for conditions that change.
    pub now: Timestamp,
}

/// Derives the status.
#[must_use]
pub fn registration(registration: &Registration, facts: &Facts<'_>) -> ServiceRegistrationStatus {
    let tally = facts.tally;
    let trouble = worst(registration, facts);
    let known = facts.before.and_then(|before| before.consul.as_ref());
    let mut status = ServiceRegistrationStatus {
        queries: Vec::new(),
        observed_generation: Some(registration.generation),
        service: registration
            .understood()
            .map(|claims| claims.service.to_string()),
        conditions: facts
            .before
            .map(|before| before.conditions.clone())
            .unwrap_or_default(),
        instances: Some(Instances {
            desired: tally.desired,
            registered: tally.registered,
            passing: tally.passing,
            warning: tally.warning,
            critical: tally.critical,
            summary: format!("{}/{}", tally.registered, tally.desired),
        }),
        consul: Some(ConsulState {
            datacenter: facts
                .datacenter
                .map(str::to_owned)
                .or_else(|| known?.datacenter.clone()),
            index: Some(tally.index)
                .filter(|index| *index > 0)
                .or_else(|| known?.index),
        }),
        last_error: trouble
            .as_ref()
            .filter(|worst| is_error(worst.reason))
            .map(|worst| cut(text(worst), LAST_ERROR_BYTES)),
    };
    let ready = match &trouble {
        None => verdict(true, REGISTERED, registered_message(registration, tally)),
        Some(trouble) => verdict(false, trouble.reason.as_str(), text(trouble)),
    };
    let transient = trouble
        .as_ref()
        .is_some_and(|trouble| trouble.reason.is_transient());
    let blocked = trouble
        .as_ref()
        .is_some_and(|trouble| !trouble.reason.is_transient());
    let beside = |is: bool| match &trouble {
        Some(trouble) if is => verdict(true, trouble.reason.as_str(), text(trouble)),
        _ => verdict(false, ready.reason, String::new()),
    };
    for (kind, verdict) in [
        (ConditionType::Reconciling, beside(transient)),
        (ConditionType::Stalled, beside(blocked)),
        (ConditionType::Ready, ready.clone()),
    ] {
        let generation = Some(registration.generation);
        conditions::set(&mut status.conditions, kind, verdict, generation, facts.now);
    }
    status
}

fn verdict(status: bool, reason: &'static str, message: String) -> Verdict {
    Verdict {
        status: Some(status),
        reason,
        message,
    }
}

fn registered_message(registration: &Registration, tally: &Tally) -> String {
    let source = registration.claims().map(|claims| &claims.source);
    match tally.desired {
        0 if matches!(source, Some(Source::Endpoints(_))) => {
            "nothing to register: spec.endpoints is empty".to_owned()
        }
        0 => "nothing to register: no pod is selected that runs and is not paused".to_owned(),
        1 => "Consul holds the instance as claimed".to_owned(),
        many => format!("Consul holds all {many} instances as claimed"),
    }
}

/// A trouble with how many others there are beside it.
struct Worst<'a> {
    reason: Reason,
    message: &'a str,
    others: usize,
}

fn text(worst: &Worst<'_>) -> String {
    beside(worst.message, worst.others)
}

fn is_error(reason: Reason) -> bool {
    !matches!(reason, Reason::Paused | Reason::Held | Reason::Writing)
}

/// What the user should hear of first: the object's own state, then the worst of its instances.
fn worst<'a>(registration: &'a Registration, facts: &Facts<'a>) -> Option<Worst<'a>> {
    let tally = facts.tally;
    let own = |reason, message| Worst {
        reason,
        message,
        others: 0,
    };
    if let Some(problem) = registration.problem() {
        return Some(own(Reason::Invalid, problem));
    }
    if matches!(registration.content, Content::Paused { .. }) {
        let message = "held as it is by the annotation lictor.io/paused; health and removal of pods \
                       go on; remove the annotation to go on";
        return Some(own(Reason::Paused, message));
    }
    let first: &Trouble = tally
        .troubles
        .values()
        .min_by_key(|trouble| trouble.reason)?;
    let others = tally.troubles.len() - 1;
    if first.reason == Reason::Writing
        && let Some(outage) = facts.outage
    {
        let reason = Reason::ConsulUnavailable;
        return Some(Worst {
            reason,
            message: outage,
            others,
        });
    }
    Some(Worst {
        reason: first.reason,
        message: &first.message,
        others,
    })
}

#[cfg(test)]
mod tests;
