//! Instances that are critical for long.

use super::state::{instance, n1, ready};
use super::*;
use crate::consul::wire::KvPair;
use crate::consul::{Consistency, Quality, TxnOutcome, TxnResult};
use crate::desired::index::Touched;
use crate::desired::registration::Registration;
use crate::k8s::{Answer, Question, Seen};
use crate::model::critical;
use crate::model::entry::Health;
use crate::model::facts::LeaseFacts;
use crate::model::key::{InstanceKey, Key};
use crate::model::names::{InstanceId, NodeName};
use crate::model::owner::Owner;
use crate::plan::batch::{Batch, BatchedStep};
use crate::plan::critical::{OwnHealth, Watched};
use crate::plan::gate::Why;
use crate::plan::{self, Asks, Finding, Removal, Step};
use crate::sync::apply::{Done, ReadError};
use crate::sync::claim::{Before, Claimed};
use crate::sync::critical::CriticalRead;
use crate::sync::dirty::{Cause, Due};
use crate::sync::sessions::Read;

fn read(engine: &mut Engine, epoch: u64, pairs: Result<Vec<KvPair>, ReadError>) {
    engine.absorb(Done::ReadCritical(CriticalRead { epoch, pairs }));
}

/// An engine that reads what is kept.
fn reading() -> Engine {
    let mut engine = ready();
    engine.keep_critical_times(Instant::now());
    assert_eq!(engine.jobs.len(), 1);
    engine
}

async fn unreachable() -> ReadError {
    let client = client("127.0.0.1:1".to_owned());
    let read = client.kv_list("x", Consistency::Consistent).await;
    ReadError::Failed(read.unwrap_err())
}

#[tokio::test]
async fn a_read_that_fails_in_passing_registers_nothing_that_was_deregistered() {
    let mut engine = reading();
    read(&mut engine, 5, Err(unreachable().await));
    let stale = Err(ReadError::NotAuthoritative(Quality::Stale));
    read(&mut engine, 5, stale);
    assert!(engine.rules.criticals.kept.is_unread());
    let again = engine.critical.wake_at().unwrap();
    let pause = again.saturating_duration_since(Instant::now());
    assert!(pause <= Duration::from_secs(2), "{pause:?}");
    // It is read again then, and not before.
    engine.keep_critical_times(Instant::now());
    assert_eq!(engine.jobs.len(), 1);
    engine.keep_critical_times(again);
    assert_eq!(engine.jobs.len(), 2);
    read(&mut engine, 5, Ok(Vec::new()));
    assert!(engine.rules.criticals.kept.is_read());
}

#[tokio::test]
async fn what_cannot_be_read_for_a_minute_or_would_never_be_is_given_up() {
    let mut engine = reading();
    let denied = ReadError::NotAuthoritative(Quality::Filtered);
    read(&mut engine, 5, Err(denied));
    assert!(!engine.rules.criticals.kept.is_unread());
    let mut engine = reading();
    let (error, began) = (unreachable().await, Instant::now());
    for passed in 0..60 {
        engine.cannot_read(&error, began + Duration::from_secs(passed));
        assert!(engine.rules.criticals.kept.is_unread());
    }
    engine.cannot_read(&error, began + Duration::from_mins(1));
    assert!(!engine.rules.criticals.kept.is_unread());
    // What is registered for that stays so while it is tried again.
    let again = engine.critical.wake_at().unwrap();
    engine.keep_critical_times(again);
    assert!(!engine.rules.criticals.kept.is_unread());
    engine.cannot_read(&error, again);
    assert!(!engine.rules.criticals.kept.is_unread());
}

/// Where Consul lost the epoch, it may be another one, or one of before.
#[tokio::test]
async fn what_a_consul_keeps_that_went_back_is_read_after_all_else_and_not_believed() {
    let mut engine = reading();
    read(&mut engine, 5, Ok(Vec::new()));
    let (index, before) = (9, Before::Lost);
    engine.absorb(Done::Claimed(Ok(Claimed {
        index,
        before,
        retaken: false,
    })));
    let under_way = engine.jobs.len();
    engine.keep_critical_times(Instant::now());
    assert_eq!(engine.jobs.len(), under_way, "Consul is not known");
    engine.mirror.complete();
    register(&mut engine);
    engine.keep_critical_times(Instant::now());
    assert_eq!(engine.jobs.len(), under_way + 1);
    let id = instance("p").id;
    let value = format!(r#"{{"instances":{{"{id}":{{"since":5,"uid":"u"}}}}}}"#);
    let pair = KvPair {
        key: critical::key(&"a".parse().unwrap(), &n1()).into(),
        value: value.into_bytes().into(),
        modify_index: 8,
        ..KvPair::default()
    };
    read(&mut engine, 9, Ok(vec![pair]));
    // The time is to be taken out.
    let write = engine.rules.criticals.next_write().unwrap();
    assert_eq!((write.index, write.times.instances.len()), (8, 0));
}

/// The pod's instance is written.
fn register(engine: &mut Engine) {
    let key = Key::Instance(instance("p"));
    let step = plan::decide(&key, &engine.index, &engine.mirror, &engine.rules).step;
    let Step::Put(write) = &step else {
        panic!("{step:?}")
    };
    let service = write.service.as_ref().map(|(service, _)| service).unwrap();
    let written = crate::observed::entry::wire_service(&instance("p"), service);
    let id = engine.own.start();
    engine.absorb(Done::Wrote {
        id,
        epoch: engine.fence.index().unwrap(),
        outcome: Ok(TxnOutcome::Applied(vec![TxnResult::Service(Box::new(
            written,
        ))])),
        steps: vec![BatchedStep {
            key,
            step,
            ops: 0..1,
            tag: Due {
                cause: Cause::Kubernetes,
                since: Instant::now(),
            },
        }],
        at: Instant::now(),
    });
    assert!(engine.mirror.instance(&instance("p")).is_some());
}

#[tokio::test]
async fn what_is_registered_again_is_not_missing_any_more() {
    let now = Instant::now();
    for registered in [true, false] {
        let mut engine = ready();
        engine
            .rules
            .guard
            .removed(&Key::Instance(instance("p")), now);
        if registered {
            register(&mut engine);
        }
        for number in 0..10 {
            let key = Key::Instance(instance(&format!("gone-{number}")));
            engine.rules.guard.found(&key);
        }
        let gone = engine.rules.guard.judge(20, now).len();
        assert_eq!(gone, if registered { 10 } else { 0 });
    }
}

/// An engine of which this instance has no heartbeat, as far as the Leases listed at this moment show; it is of
/// `registration`, with a check of a Lease.
fn without_heartbeat(key: &InstanceKey, mut registration: Value, listed: Instant) -> Engine {
    let mut engine = ready();
    let check = json!({"name": "progress", "ttl": {"lease": "beat", "ttl": "30s"}});
    registration["health"] = json!({"checks": [check]});
    let registration = Registration::of(&object("web", registration));
    engine
        .index
        .apply_registration(registration, &mut Touched::default());
    let whole = Key::Instance(key.clone());
    let finding = plan::decide(&whole, &engine.index, &engine.mirror, &engine.rules);
    engine.follow_beats(key, &finding, listed);
    engine.beat(listed);
    let asked = Instant::now();
    let (sessions, version) = (Ok(Vec::new()), None);
    engine.absorb_sessions(Read {
        asked,
        sessions,
        version,
    });
    list_leases(&mut engine, "1", listed);
    let found = engine.rules.heartbeats.get(key, "progress");
    assert_eq!(found.map(|found| found.status), Some(Health::Critical));
    engine
}

/// The Lease is listed, as it was renewed last.
fn list_leases(engine: &mut Engine, renewed: &str, at: Instant) {
    let lease = LeaseFacts {
        namespace: "shop".into(),
        name: "beat".into(),
        renewed: renewed.into(),
        critical: false,
    };
    let listed = WatchEvent::Listed {
        resource_version: "1".into(),
    };
    for event in [WatchEvent::Listing, WatchEvent::Page(vec![lease]), listed] {
        engine.hear_leases(&"shop".into(), event, at);
    }
}

/// How often the Leases were to be listed anew.
fn lists(engine: &Engine) -> Option<u64> {
    engine.lease_namespaces().borrow().get("shop").copied()
}

/// The instance was critical for long, and the API server shows its pod as it is known.
fn looked_at(engine: &mut Engine) -> bool {
    let (key, now) = (instance("p"), Instant::now());
    let pod = Owner::pod(&"shop".into(), &"p".into());
    let watched = Watched {
        instance: key.clone(),
        uid: "uid-p".into(),
        after: Duration::from_secs(30),
        health: OwnHealth::Critical,
        there: true,
        pod: Some(pod.clone()),
    };
    let criticals = &mut engine.rules.criticals;
    criticals.observe(&key, Some(&watched), now);
    while let Some(wake) = criticals.wake_at() {
        criticals.ripen(|_| true, wake, 1_000_000);
    }
    criticals.looks.want(&key, &pod, now);
    let look = criticals.next_look(now).unwrap();
    assert_eq!(look.instance, key);
    let question = Question {
        id: look.id,
        namespace: "shop".into(),
        name: "p".into(),
    };
    let seen = Ok(Seen {
        pod: Some(web("p", "n1")),
        node: Some(node("n1")),
    });
    engine.absorb_look(Answer { question, seen });
    engine.rules.criticals.looks.shows(&key)
}

#[tokio::test]
async fn leases_are_listed_before_an_instance_goes_for_want_of_a_heartbeat() {
    let now = Instant::now();
    let without_heartbeat =
        |listed| without_heartbeat(&instance("p"), json!({"selector": {}}), listed);
    assert!(looked_at(&mut without_heartbeat(now)));

    let mut engine = without_heartbeat(now - Duration::from_mins(1));
    assert_eq!(lists(&engine), Some(0));
    assert!(!looked_at(&mut engine), "the watch may be silent");
    assert_eq!(lists(&engine), Some(1));
    list_leases(&mut engine, "1", Instant::now());
    assert!(engine.lapses_are_read(&instance("p"), Instant::now()));
}

/// There is no pod to ask for.
#[tokio::test]
async fn leases_are_listed_before_an_endpoint_goes_for_want_of_a_heartbeat() {
    let (cluster, service) = ("a".parse().unwrap(), "web".parse().unwrap());
    let key = InstanceKey {
        node: NodeName::external(&cluster),
        id: InstanceId::of_endpoint(&cluster, "shop", &service, "web", "db"),
    };
    let whole = Key::Instance(key.clone());
    let after = Duration::from_secs(30);
    // Whether it goes, where its time is over.
    let goes = |engine: &mut Engine| {
        let owner = Owner::registration(&"shop".into(), &"web".into());
        let removal = Removal {
            owner: owner.clone(),
            name: "web".into(),
            index: 3,
            why: Why::Critical(after),
        };
        let finding = Finding {
            owner: Some(owner),
            critical: Some(Watched {
                instance: key.clone(),
                uid: "web".into(),
                after,
                health: OwnHealth::Critical,
                there: true,
                pod: None,
            }),
            losers: Vec::new(),
            freeze: None,
            hold: None,
            asks: Asks::Kept,
            step: Step::Remove(removal),
        };
        let (mut batch, now) = (Batch::default(), Instant::now());
        let due = Due {
            cause: Cause::Read,
            since: now,
        };
        engine.add(&mut batch, whole.clone(), due, finding, now);
        !batch.is_empty()
    };
    let endpoint = json!({"name": "db", "address": "db.example.com", "port": 5432});
    let without_heartbeat =
        |listed| without_heartbeat(&key, json!({"endpoints": [endpoint]}), listed);
    assert!(goes(&mut without_heartbeat(Instant::now())));

    let silent = || {
        let mut engine = without_heartbeat(Instant::now() - Duration::from_mins(1));
        assert!(!goes(&mut engine), "the watch may be silent");
        assert_eq!(lists(&engine), Some(1));
        assert!(engine.dirty.is_parked(&whole));
        engine
    };
    let mut engine = silent();
    list_leases(&mut engine, "1", Instant::now());
    assert!(goes(&mut engine));

    let mut engine = silent();
    list_leases(&mut engine, "2", Instant::now());
    let found = engine.rules.heartbeats.get(&key, "progress");
    assert_eq!(found.map(|found| found.status), Some(Health::Passing));
    assert!(engine.dirty.take_key(&whole).is_some(), "it waits in vain");
}
