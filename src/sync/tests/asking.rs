//! What the engine makes of what is found when instances are asked.

use super::state::{instance, ready};
use super::*;
use crate::checks::Told;
use crate::desired::probe::{self, Asked};
use crate::model::entry::{Check, Health, Protocol};
use crate::model::key::Key;
use crate::observed::entry::{ObservedCheck, ObservedInstance};
use crate::plan::{Asks, DriftMode, Subject};
use crate::sync::dirty::{Cause, Due};

fn subject() -> Subject {
    Subject {
        host: "10.0.0.1".into(),
        uid: "uid".into(),
    }
}

fn asked(checks: &Value) -> Box<[Asked]> {
    let checks = serde_json::from_value::<Vec<_>>(checks.clone()).unwrap();
    let with_port = |probe: &Arc<probe::Probe>| Asked {
        probe: probe.clone(),
        port: 80,
        lease: "".into(),
    };
    probe::of(&checks).unwrap().iter().map(with_port).collect()
}

/// An engine that asks the instance this.
fn asking(checks: &Value) -> Engine {
    let mut engine = ready();
    engine.begin_or_end_asking(Instant::now());
    while engine.dirty.take().is_some() {}
    ask(&mut engine, checks);
    engine
}

fn ask(engine: &mut Engine, checks: &Value) {
    engine.ask(&instance("p"), &Asks::These(subject(), asked(checks)));
}

fn told(name: &str, order: u64) -> Told {
    Told {
        key: instance("p"),
        name: name.into(),
        check: Check {
            status: Health::Critical,
            output: "TCP 10.0.0.1:80: connection refused (1 ms)".into(),
        },
        order,
        at: Instant::now(),
    }
}

fn is_known(engine: &Engine, name: &str) -> bool {
    engine.rules.verdicts.get(&instance("p"), name).is_some()
}

#[tokio::test]
async fn what_is_on_its_way_of_one_check_counts_when_another_changes() {
    let mut engine = asking(&json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}}]));
    ask(
        &mut engine,
        &json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}, "timeout": "1s"}]),
    );
    engine.heard(told("db", 1));
    assert!(!is_known(&engine, "db"), "it is asked otherwise by now");
    engine.heard(told("api", 1));
    assert!(is_known(&engine, "api"));
    assert!(engine.dirty.is_due(&Key::Instance(instance("p"))));
    engine.heard(told("db", 2));
    assert!(is_known(&engine, "db"));
    // Elsewhere, nothing of it counts.
    let moved = Subject {
        host: "10.0.0.2".into(),
        ..subject()
    };
    let checks = asked(&json!([{"name": "api", "tcp": {}}]));
    engine.ask(&instance("p"), &Asks::These(moved, checks));
    assert!(!is_known(&engine, "api"));
    engine.heard(told("api", 1));
    assert!(!is_known(&engine, "api"));
    engine.heard(told("api", 3));
    assert!(is_known(&engine, "api"));
}

#[tokio::test]
async fn what_consul_shows_already_is_no_news() {
    let mut engine = asking(&json!([{"name": "api", "tcp": {}}]));
    let service = crate::consul::wire::NodeService::default();
    let mut there = ObservedInstance::of(&service);
    there.checks.push(ObservedCheck {
        id: format!("{}:api", instance("p").id).into(),
        check: Check {
            status: Health::Critical,
            output: "TCP 10.0.0.1:80: connection refused (7 ms)".into(),
        },
        well_formed: true,
        protocol: Some(Protocol::Tcp),
        definition: None,
        modify_index: 3,
    });
    engine.mirror.wrote_instance(&instance("p"), Some(there));
    // Nor does it end that a change by another hand is left.
    let key = Key::Instance(instance("p"));
    engine.rules.drift = DriftMode::Report;
    engine.drifted.insert(key.clone());
    let heard = |engine: &mut Engine, told: Told| {
        engine.heard(told);
        let (taken, due) = engine.dirty.take().unwrap();
        assert_eq!(taken, key);
        due
    };
    let due = heard(&mut engine, told("api", 1));
    assert!(engine.leaves_drift(&key, due), "{due:?}");
    let mut news = told("api", 1);
    news.check.status = Health::Passing;
    let due = heard(&mut engine, news);
    assert_eq!(due.cause, Cause::Found);
    assert!(!engine.leaves_drift(&key, due));
    let later = Due {
        cause: Cause::Read,
        ..due
    };
    assert!(!engine.leaves_drift(&key, later), "that is over");
}
