//! Instances that are critical for long.

use super::state::{instance, n1, ready};
use super::*;
use crate::consul::wire::KvPair;
use crate::consul::{Consistency, Quality, TxnOutcome, TxnResult};
use crate::model::critical;
use crate::model::key::Key;
use crate::plan::batch::BatchedStep;
use crate::plan::{self, Step};
use crate::sync::apply::{Done, ReadError};
use crate::sync::claim::{Before, Claimed};
use crate::sync::critical::CriticalRead;
use crate::sync::dirty::{Cause, Due};

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
