//! The status of a `ServiceRegistration`.

use jiff::Timestamp;

use super::board::{Reason, Tally, Trouble};
use crate::api::conditions::{self, ConditionType, Verdict};
use crate::api::service_registration::{ConsulState, Instances};
use crate::api::{Condition, ServiceRegistrationStatus};
use crate::desired::registration::{Content, Registration};

/// `Ready=True`: Consul equals what the object claims.
const REGISTERED: &str = "Registered";

/// What the status is derived from beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The sums.
    pub tally: &'a Tally,
    /// Consul's datacenter, where it is known.
    pub datacenter: Option<&'a str>,
    /// The conditions as they are, from which the times of transition are kept.
    pub before: &'a [Condition],
    /// The index of the last write as the status has it, which outlives a restart.
    pub index: Option<u64>,
    /// Now, for conditions that change.
    pub now: Timestamp,
}

/// Derives the status.
#[must_use]
pub fn registration(registration: &Registration, facts: &Facts<'_>) -> ServiceRegistrationStatus {
    let tally = facts.tally;
    let trouble = worst(registration, tally);
    let mut status = ServiceRegistrationStatus {
        observed_generation: Some(registration.generation),
        service: registration
            .claims()
            .map(|claims| claims.service.to_string()),
        conditions: facts.before.to_vec(),
        instances: Some(Instances {
            desired: tally.desired,
            registered: tally.registered,
            passing: tally.passing,
            warning: tally.warning,
            critical: tally.critical,
            summary: format!("{}/{}", tally.registered, tally.desired),
        }),
        consul: Some(ConsulState {
            datacenter: facts.datacenter.map(str::to_owned),
            index: Some(tally.index).filter(|index| *index > 0).or(facts.index),
        }),
        last_error: trouble
            .as_ref()
            .filter(|worst| is_error(worst.reason))
            .map(text),
    };
    let ready = match &trouble {
        None => verdict(true, REGISTERED, registered_message(tally)),
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

fn registered_message(tally: &Tally) -> String {
    match tally.desired {
        0 => "nothing to register: no running pod is selected".to_owned(),
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
    match worst.others {
        0 => worst.message.to_owned(),
        others => format!("{} (and {others} more)", worst.message),
    }
}

fn is_error(reason: Reason) -> bool {
    !matches!(reason, Reason::Paused | Reason::Held | Reason::Writing)
}

/// What the user should hear of first: the object's own state, then the worst of its instances.
fn worst<'a>(registration: &'a Registration, tally: &'a Tally) -> Option<Worst<'a>> {
    match &registration.content {
        Content::Invalid(problem) => {
            return Some(Worst {
                reason: Reason::Invalid,
                message: problem,
                others: 0,
            });
        }
        Content::Paused => {
            let message = "held as it is by the annotation lictor.io/paused; health and removal of \
                           pods go on; remove the annotation to go on";
            return Some(Worst {
                reason: Reason::Paused,
                message,
                others: 0,
            });
        }
        Content::Valid(_) => {}
    }
    let first: &Trouble = tally
        .troubles
        .values()
        .min_by_key(|trouble| trouble.reason)?;
    let others = tally.troubles.len() - 1;
    Some(Worst {
        reason: first.reason,
        message: &first.message,
        others,
    })
}

#[cfg(test)]
mod tests;
