//! What the engine does when it wins and loses the leadership, without any Consul.

use super::state::{informed, instance};
use super::*;
use crate::api::ServiceRegistrationStatus;
use crate::desired::claim::Absence;
use crate::k8s::{ObjectStatus, StatusUpdate};
use crate::leader::{self, Election, Leadership, Seat};
use crate::model::facts::GateCondition;
use crate::model::key::{Key, source_key};
use crate::model::kind::Kind;
use crate::model::names::Destination;
use crate::model::source::SourceName;
use crate::sync::apply::Done;
use crate::sync::claim::{Before, ClaimError, Claimant, Claimed, NameIs};

fn leads(term: u64) -> Leadership {
    Leadership::Leads { term, until: None }
}

fn other_leads() -> Leadership {
    Leadership::StandsBy {
        leader: Some("other".to_owned()),
    }
}

/// An engine that leads and may write, and the elector's end.
fn elected() -> (Engine, Seat) {
    let (seat, candidate) = leader::channel(Election::Lease);
    let mut engine = informed(engine_of(client("127.0.0.1:1".to_owned()), candidate));
    engine.known_once = true;
    turns(&mut engine, &seat, leads(1));
    engine.fence.begin(Instant::now());
    engine.fence.claimed(5);
    (engine, seat)
}

fn turns(engine: &mut Engine, seat: &Seat, leadership: Leadership) {
    seat.publish(leadership);
    engine.follow_election(Instant::now());
}

fn claimant() -> Claimant {
    let epoch = json!({"holder": "h", "uid": "u", "kind": "run"});
    Claimant {
        cluster: "a".parse().unwrap(),
        epoch: serde_json::from_value(epoch).unwrap(),
        take_over: Some("old".to_owned()),
    }
}

fn update(name: &str, status: ObjectStatus) -> StatusUpdate {
    StatusUpdate {
        namespace: "shop".into(),
        name: name.into(),
        uid: "1".into(),
        status,
    }
}

#[tokio::test]
async fn what_a_leader_could_not_tell_is_not_told_after_it_lost() {
    let (mut engine, seat) = elected();
    let statuses = engine.report.statuses.clone();
    let status = ServiceRegistrationStatus::default();
    statuses.send(update("web", ObjectStatus::Registration(status)));
    for (pod, open) in [("waits", false), ("goes-on", true)] {
        let gate = GateCondition {
            open,
            reason: "".into(),
            message: "".into(),
        };
        statuses.send(update(pod, ObjectStatus::Pod(gate)));
    }
    assert_eq!(statuses.waiting(), 3);
    turns(&mut engine, &seat, other_leads());
    // Nobody would open that gate again.
    assert_eq!(statuses.waiting(), 1);
}

#[tokio::test]
async fn who_does_not_lead_counts_nothing() {
    let (mut engine, seat) = elected();
    let key = Key::Instance(instance("p"));
    engine.held.insert(key.clone());
    engine.report.metrics.gates_waiting.set(3);
    engine.tell_readiness();
    let metrics = engine.report.metrics.clone();
    assert_eq!(metrics.held_deletes.get(), 1);
    turns(&mut engine, &seat, other_leads());
    // As an audit would.
    engine.audit_at = Some(Instant::now());
    engine.audit(Instant::now());
    engine.tell_readiness();
    let shown = [
        &metrics.held_deletes,
        &metrics.gates_waiting,
        &metrics.pending,
    ];
    assert_eq!(
        shown.map(prometheus_client::metrics::gauge::Gauge::get),
        [0; 3]
    );
    assert!(!engine.dirty.has_ready(), "it plans");
}

#[tokio::test]
async fn what_may_go_is_judged_anew_after_another_led() {
    let (mut engine, seat) = elected();
    let key = Key::Instance(instance("p"));
    engine.rules.guard.found(&key);
    engine.rules.guard.release_these(&[key.clone()].into());
    assert!(engine.rules.guard.admits(&key).is_ok());
    turns(&mut engine, &seat, other_leads());
    assert!(engine.rules.guard.admits(&key).is_err());
}

#[tokio::test]
async fn a_name_is_taken_over_once_whichever_process_does_it() {
    let (mut engine, _seat) = elected();
    for (name, left) in [(NameIs::ToBeHad, Some("old")), (NameIs::Ours, None)] {
        engine.claimant = Some(claimant());
        engine.absorb(Done::LookedAtName(Ok(name)));
        let claimant = engine.claimant.as_ref().unwrap();
        assert_eq!(claimant.take_over.as_deref(), left, "{name:?}");
    }
}

#[tokio::test]
async fn what_consul_lost_is_read_anew_even_if_the_claim_that_tells_of_it_came_too_late() {
    for (before, lost) in [(Before::Lapsed, false), (Before::Lost, true)] {
        let (mut engine, seat) = elected();
        engine.fence.seen(None);
        engine.fence.begin(Instant::now());
        turns(&mut engine, &seat, other_leads());
        engine.absorb(Done::Claimed(Ok(Claimed {
            index: 9,
            before,
            retaken: false,
        })));
        assert_eq!(engine.fence.index(), None);
        let known = engine.mirror.node_names().next().is_some();
        assert_eq!(known, !lost, "{before:?}");
    }
}

#[tokio::test]
async fn who_gives_up_lets_its_writes_end_first() {
    let (mut engine, seat) = elected();
    engine.absorb(Done::LookedAtName(Ok(NameIs::Ours)));
    turns(&mut engine, &seat, leads(1));
    assert!(seat.is_wanted());
    let write = engine.own.start();
    engine.strange.insert(Kind::Pod);
    engine.follow_election(Instant::now());
    assert!(seat.is_wanted());
    engine.own.finish(write);
    engine.follow_election(Instant::now());
    assert!(!seat.is_wanted());
}

#[tokio::test]
async fn who_follows_keeps_in_mind_only_what_is_still_there() {
    let (mut engine, seat) = elected();
    turns(&mut engine, &seat, other_leads());
    let key = source_key(
        &Destination::new("payment"),
        SourceName::new("api", [""; 4]),
    );
    engine.index.withdraw_entry(key.clone());
    assert_eq!(engine.index.absence_of_entry(&key), Absence::Seen);
    engine.forget_what_went();
    assert_eq!(engine.index.absence_of_entry(&key), Absence::Found);
}

#[tokio::test]
async fn it_wakes_up_for_its_own_end_whatever_was_looked_at() {
    let (mut engine, seat) = elected();
    let end = Instant::now() + Duration::from_secs(9);
    let until = Some(end);
    seat.publish(Leadership::Leads { term: 1, until });
    engine.follow_election(Instant::now());
    // The name is to be looked at again before.
    engine.absorb(Done::LookedAtName(Err(ClaimError::Raced)));
    assert!(engine.lead.wakes_at().contains(&until));
}
