//! The status of objects of our kinds.

use jiff::Timestamp;

use super::board::{Reason, Tally, Trouble, beside};
use crate::api::conditions::{self, Condition, ConditionType, Verdict, cut};
use crate::api::intention::SourceCounts;
use crate::api::service_registration::{Instances, QueryState};
use crate::api::status::ConsulState;
use crate::api::{IntentionStatus, PreparedQueryStatus, ServiceRegistrationStatus};
use crate::desired::intention::Intention;
use crate::desired::parsed::{Asked, Content, Parsed};
use crate::desired::query::PreparedQuery;
use crate::desired::registration::{Registration, Source};

/// Longest `lastError`, in bytes: the CRD's `maxLength`.
const LAST_ERROR_BYTES: usize = 4096;

/// `Ready=True` of a registration: Consul equals what the object claims.
const REGISTERED: &str = "Registered";
/// The same of an intention or a prepared query.
const APPLIED: &str = "Applied";

/// What the status is derived from beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The sums.
    pub tally: &'a Tally,
    /// Consul's datacenter, where it is known.
    pub datacenter: Option<&'a str>,
    /// Why Consul takes no writes at the moment, if it does not.
    pub outage: Option<&'a str>,
    /// What of the object does not count, though nothing is wrong with it.
    pub remark: Option<&'a str>,
    /// Now, for conditions that change.
    pub now: Timestamp,
}

/// Derives the status of a `ServiceRegistration`. Of the one before, times of transition, and what this
/// process has not learnt yet, are kept.
#[must_use]
pub fn registration(
    registration: &Registration,
    facts: &Facts<'_>,
    before: Option<&ServiceRegistrationStatus>,
) -> ServiceRegistrationStatus {
    let tally = facts.tally;
    let trouble = worst(registration, facts, PAUSED_REGISTRATION);
    let known = before.and_then(|before| before.consul.as_ref());
    let mut conditions = before
        .map(|before| before.conditions.clone())
        .unwrap_or_default();
    let mut message = registered_message(registration, tally);
    if let Some(remark) = facts.remark {
        message = format!("{message}; {remark}");
    }
    let ready = (REGISTERED, message);
    judge(
        &mut conditions,
        registration.generation,
        trouble.as_ref(),
        ready,
        facts.now,
    );
    let query = |(name, id): (&crate::model::text::Text, &crate::model::text::Text)| QueryState {
        name: name.to_string(),
        id: id.to_string(),
    };
    ServiceRegistrationStatus {
        observed_generation: Some(registration.generation),
        service: registration
            .understood()
            .map(|claims| claims.service.to_string()),
        conditions,
        instances: Some(Instances {
            desired: tally.desired,
            registered: tally.registered,
            passing: tally.passing,
            warning: tally.warning,
            critical: tally.critical,
            summary: format!("{}/{}", tally.registered, tally.desired),
        }),
        queries: tally.queries.iter().map(query).collect(),
        consul: Some(written(facts, known)),
        last_error: last_error(trouble.as_ref()),
    }
}

/// Derives the status of an `Intention`, likewise.
#[must_use]
pub fn intention(
    intention: &Intention,
    facts: &Facts<'_>,
    before: Option<&IntentionStatus>,
) -> IntentionStatus {
    let tally = facts.tally;
    let trouble = worst(intention, facts, PAUSED);
    let known = before.and_then(|before| before.consul.as_ref());
    let mut conditions = before
        .map(|before| before.conditions.clone())
        .unwrap_or_default();
    let message = match tally.sources {
        1 => "Consul holds the source as claimed".to_owned(),
        many => format!("Consul holds all {many} sources as claimed"),
    };
    let ready = (APPLIED, message);
    judge(
        &mut conditions,
        intention.generation,
        trouble.as_ref(),
        ready,
        facts.now,
    );
    IntentionStatus {
        observed_generation: Some(intention.generation),
        destination: intention
            .understood()
            .map(|claims| claims.destination.to_string()),
        conditions,
        sources: Some(SourceCounts {
            desired: tally.sources,
            applied: tally.applied,
            foreign: tally.foreign,
            summary: format!("{}/{}", tally.applied, tally.sources),
        }),
        consul: Some(written(facts, known)),
        last_error: last_error(trouble.as_ref()),
    }
}

/// Derives the status of a `PreparedQuery`, likewise.
#[must_use]
pub fn prepared_query(
    query: &PreparedQuery,
    facts: &Facts<'_>,
    before: Option<&PreparedQueryStatus>,
) -> PreparedQueryStatus {
    let trouble = worst(query, facts, PAUSED);
    let known = before.and_then(|before| before.consul.as_ref());
    let mut conditions = before
        .map(|before| before.conditions.clone())
        .unwrap_or_default();
    let ready = (APPLIED, "Consul holds the query as claimed".to_owned());
    judge(
        &mut conditions,
        query.generation,
        trouble.as_ref(),
        ready,
        facts.now,
    );
    let claims = query.understood();
    let id = claims.and_then(|claims| facts.tally.queries.get(claims.name.text()));
    PreparedQueryStatus {
        observed_generation: Some(query.generation),
        name: claims.map(|claims| claims.query.name.to_string()),
        id: id.map(ToString::to_string),
        conditions,
        consul: Some(written(facts, known)),
        last_error: last_error(trouble.as_ref()),
    }
}

/// Where it was written.
fn written(facts: &Facts<'_>, known: Option<&ConsulState>) -> ConsulState {
    ConsulState {
        datacenter: facts
            .datacenter
            .map(str::to_owned)
            .or_else(|| known?.datacenter.clone()),
        index: Some(facts.tally.index)
            .filter(|index| *index > 0)
            .or_else(|| known?.index),
    }
}

fn last_error(trouble: Option<&Worst<'_>>) -> Option<String> {
    let error = trouble.filter(|worst| is_error(worst.reason));
    error.map(|worst| cut(text(worst), LAST_ERROR_BYTES))
}

/// Sets the conditions; `ready` is the reason and the message where nothing is wrong.
fn judge(
    conditions: &mut Vec<Condition>,
    generation: i64,
    trouble: Option<&Worst<'_>>,
    (reason, message): (&'static str, String),
    now: Timestamp,
) {
    let ready = match trouble {
        None => verdict(true, reason, message),
        Some(trouble) => verdict(false, trouble.reason.as_str(), text(trouble)),
    };
    let transient = trouble.is_some_and(|trouble| trouble.reason.is_transient());
    let blocked = trouble.is_some_and(|trouble| !trouble.reason.is_transient());
    let beside = |is: bool| match trouble {
        Some(trouble) if is => verdict(true, trouble.reason.as_str(), text(trouble)),
        _ => verdict(false, ready.reason, String::new()),
    };
    for (kind, verdict) in [
        (ConditionType::Reconciling, beside(transient)),
        (ConditionType::Stalled, beside(blocked)),
        (ConditionType::Ready, ready.clone()),
    ] {
        conditions::set(conditions, kind, verdict, Some(generation), now);
    }
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
    !matches!(
        reason,
        Reason::Paused | Reason::Held | Reason::DeregisteredCritical | Reason::Writing
    )
}

const PAUSED_REGISTRATION: &str = "held as it is by the annotation lictor.io/paused; health and removal \
                                   of pods go on; remove the annotation to go on";
const PAUSED: &str =
    "held as it is by the annotation lictor.io/paused; remove the annotation to go on";

/// What the user should hear of first: the object's own state, then the worst of what it claims.
fn worst<'a, C: Asked>(
    object: &'a Parsed<C>,
    facts: &Facts<'a>,
    paused: &'static str,
) -> Option<Worst<'a>> {
    let tally = facts.tally;
    let own = |reason, message| Worst {
        reason,
        message,
        others: 0,
    };
    if let Some(problem) = object.problem() {
        return Some(own(Reason::Invalid, problem));
    }
    if matches!(object.content, Content::Paused { .. }) {
        return Some(own(Reason::Paused, paused));
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
