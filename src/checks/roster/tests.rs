use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::desired::probe::{self, Asked};
use crate::model::names::{InstanceId, NodeName};

const INTERVAL: Duration = Duration::from_secs(10);
const ROOM: usize = 512;

fn key(id: &str) -> InstanceKey {
    InstanceKey {
        node: NodeName::external(&"a".parse().unwrap()),
        id: InstanceId::observed(id),
    }
}

fn asked(checks: &Value) -> Vec<AskedCall> {
    let probes = probe::of(&serde_json::from_value::<Vec<_>>(checks.clone()).unwrap()).unwrap();
    let with_port = |probe: &Arc<Probe>| Asked {
        probe: probe.clone(),
        port: 80,
        lease: Text::default(),
    };
    let asked = probes.iter().map(with_port);
    asked.map(|asked| asked.call().unwrap()).collect()
}

fn one() -> Vec<AskedCall> {
    asked(&json!([{"name": "api", "tcp": {}}]))
}

fn to_follow<'a>(host: &'a Text, asked: &'a [AskedCall], known: &'a [Option<Known>]) -> Follow<'a> {
    Follow {
        host,
        asked,
        known,
        order: 1,
    }
}

fn answered(status: Health) -> Known {
    Known {
        status,
        is_answer: true,
    }
}

fn follow(roster: &mut Roster, id: &str, known: Option<Health>, now: Instant, chance: f64) {
    let (host, asked) = ("h".into(), one());
    let known = known.map(answered);
    roster.follow(&key(id), &to_follow(&host, &asked, &[known]), now, || {
        chance
    });
}

#[test]
fn a_new_check_runs_at_once_and_then_on_a_grid_of_its_own() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.3);
    let run = roster.take(now, ROOM, || 0.0).unwrap();
    assert_eq!(run.due, now);
    roster.ended(run.id, Health::Passing);
    let first = now + INTERVAL.mul_f64(0.3);
    assert_eq!(roster.next(), Some(first));
    for number in 0..100 {
        let slot = first + INTERVAL * number;
        // Each run starts a little late, and the next is as early as ever.
        let late = slot + Duration::from_millis(900);
        let run = roster.take(late, ROOM, || 0.0).unwrap();
        assert_eq!(run.due, slot);
        roster.ended(run.id, Health::Passing);
    }
}

#[test]
fn what_is_known_already_is_spread_over_an_interval() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    for number in 0..100_u32 {
        let chance = f64::from(number) / 100.0;
        follow(
            &mut roster,
            &number.to_string(),
            Some(Health::Passing),
            now,
            chance,
        );
    }
    let mut started = 0;
    while roster.take(now + INTERVAL / 2, ROOM, || 0.0).is_some() {
        started += 1;
    }
    assert_eq!(started, 51);
}

#[test]
fn chance_delays_a_run_and_not_the_ones_after_it() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.0);
    let run = roster.take(now, ROOM, || 1.0).unwrap();
    roster.ended(run.id, Health::Passing);
    let late = now + INTERVAL + INTERVAL / JITTER;
    assert_eq!(roster.next(), Some(late));
    roster.take(late, ROOM, || 0.0).unwrap();
    assert_eq!(roster.next(), Some(now + INTERVAL * 2));
}

#[test]
fn missed_runs_are_not_made_up_for() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.0);
    let later = now + INTERVAL * 7 + INTERVAL / 2;
    let run = roster.take(later, ROOM, || 0.0).unwrap();
    roster.ended(run.id, Health::Passing);
    assert!(roster.take(later, ROOM, || 0.0).is_none());
    assert_eq!(roster.next(), Some(now + INTERVAL * 8));
}

#[test]
fn no_run_starts_while_the_one_before_lasts_and_others_do() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.0);
    let slow = roster.take(now, ROOM, || 0.0).unwrap();
    follow(&mut roster, "b", None, now, 0.0);
    let next = now + INTERVAL;
    let other = roster.take(next, ROOM, || 0.0).unwrap();
    assert_ne!(other.id, slow.id);
    assert!(roster.take(next, ROOM, || 0.0).is_none());
    roster.ended(slow.id, Health::Passing);
    assert!(roster.take(next + INTERVAL, ROOM, || 0.0).is_some());
}

#[test]
fn what_stays_the_same_keeps_its_time_and_what_changes_runs_at_once() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let both = json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}}]);
    let known = [Some(answered(Health::Passing)); 2];
    roster.follow(
        &key("a"),
        &to_follow(&"h".into(), &asked(&both), &known),
        now,
        || 0.5,
    );
    let changed = json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}, "timeout": "1s"}]);
    roster.follow(
        &key("a"),
        &to_follow(&"h".into(), &asked(&changed), &known),
        now,
        || 0.5,
    );
    assert_eq!(roster.len(), 2);
    let run = roster.take(now, ROOM, || 0.0).unwrap();
    assert_eq!(run.target.timeout, Duration::from_secs(1), "it is db");
    assert!(roster.take(now, ROOM, || 0.0).is_none());
    // Elsewhere, both are asked.
    roster.ended(run.id, Health::Passing);
    roster.follow(
        &key("a"),
        &to_follow(&"i".into(), &asked(&changed), &known),
        now,
        || 0.5,
    );
    assert!(roster.take(now, ROOM, || 0.0).is_some());
    assert!(roster.take(now, ROOM, || 0.0).is_some());
}

#[test]
fn what_stays_the_same_is_of_the_order_that_it_was_of() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let both = json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}}]);
    let changed = json!([{"name": "api", "tcp": {}}, {"name": "db", "tcp": {}, "timeout": "1s"}]);
    let host = "h".into();
    for (checks, order) in [(both, 1), (changed, 2)] {
        let asked = asked(&checks);
        let follow = Follow {
            order,
            ..to_follow(&host, &asked, &[None; 2])
        };
        roster.follow(&key("a"), &follow, now, || 0.5);
    }
    let mut orders: Vec<(Text, u64)> = (0..2)
        .map(|_| {
            let run = roster.take(now, ROOM, || 0.0).unwrap();
            let ended = roster.ended(run.id, Health::Passing).unwrap();
            (ended.name, ended.order)
        })
        .collect();
    orders.sort();
    assert_eq!(orders, [("api".into(), 1), ("db".into(), 2)]);
}

#[test]
fn what_is_forgotten_is_not_run_and_its_last_run_says_nothing() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.0);
    let run = roster.take(now, ROOM, || 0.0).unwrap();
    roster.forget(&key("a"));
    assert_eq!(roster.ended(run.id, Health::Passing), None);
    assert_eq!((roster.len(), roster.next()), (0, None));
}

#[test]
fn only_news_is_told() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", Some(Health::Passing), now, 0.0);
    let outcomes = [
        Health::Passing,
        Health::Passing,
        Health::Critical,
        Health::Critical,
    ];
    let told: Vec<bool> = (0..)
        .zip(outcomes)
        .map(|(number, outcome)| {
            let run = roster.take(now + INTERVAL * number, ROOM, || 0.0).unwrap();
            roster.ended(run.id, outcome).is_some()
        })
        .collect();
    assert_eq!(told, [true, false, true, false]);
}

#[test]
fn what_waits_for_its_turn_is_on_the_grid_and_runs_once() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let room = 3;
    for id in ["c.a.w.1", "c.a.w.2", "c.b.w.1"] {
        follow(&mut roster, id, None, now, 0.0);
    }
    let first = roster.take(now, room, || 0.0).unwrap();
    let second = roster.take(now, room, || 0.0).unwrap();
    assert_ne!(first.id, second.id);
    // One of each namespace; of `a` one waits, and does not wait twice.
    let late = now + INTERVAL;
    assert!(roster.take(now, room, || 0.0).is_none());
    assert!(roster.take(late, room, || 0.0).is_none());
    assert_eq!(roster.next(), Some(late + INTERVAL));
    roster.ended(first.id, Health::Passing);
    let third = roster.take(late, room, || 0.0).unwrap();
    assert_eq!(third.due, now, "it is late by what it waited");
    assert_ne!(third.id, second.id);
    roster.ended(second.id, Health::Passing);
    roster.ended(third.id, Health::Passing);
    assert!(roster.take(late, room, || 0.0).is_none());
    assert_eq!(roster.next(), Some(late + INTERVAL));
}

#[test]
fn what_is_forgotten_while_it_waits_takes_nobodys_place() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    for id in ["c.a.w.1", "c.a.w.2", "c.a.w.3"] {
        follow(&mut roster, id, None, now, 0.0);
    }
    let room = 2;
    let run = roster.take(now, room, || 0.0).unwrap();
    assert!(roster.take(now, room, || 0.0).is_none());
    roster.forget(&key("c.a.w.2"));
    roster.ended(run.id, Health::Passing);
    let next = roster.take(now, room, || 0.0).unwrap();
    roster.ended(next.id, Health::Passing);
    assert!(roster.take(now, room, || 0.0).is_none());
}

#[test]
fn a_run_from_before_all_was_forgotten_is_nobodys() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    follow(&mut roster, "a", None, now, 0.0);
    let old = roster.take(now, ROOM, || 0.0).unwrap();
    roster.forget_all();
    assert_eq!((roster.len(), roster.next()), (0, None));
    follow(&mut roster, "b", None, now, 0.0);
    assert_eq!(roster.ended(old.id, Health::Passing), None);
    let new = roster.take(now, ROOM, || 0.0).unwrap();
    assert!(roster.ended(new.id, Health::Passing).is_some());
}

#[test]
fn what_was_asked_something_else_runs_at_once_and_its_status_counts() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let checks = asked(&json!([{"name": "api", "tcp": {}, "failuresBeforeCritical": 2}]));
    let known = Known {
        is_answer: false,
        ..answered(Health::Passing)
    };
    let (host, known) = ("h".into(), [Some(known)]);
    let follow = to_follow(&host, &checks, &known);
    roster.follow(&key("a"), &follow, now, || 0.5);
    let run = roster.take(now, ROOM, || 0.0).unwrap();
    assert_eq!(
        roster.ended(run.id, Health::Critical),
        None,
        "once is not enough"
    );
}

#[test]
fn what_is_forgotten_while_it_runs_gives_its_place_back_when_it_ends() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let room = 2;
    follow(&mut roster, "c.a.w.1", None, now, 0.0);
    let run = roster.take(now, room, || 0.0).unwrap();
    roster.forget(&key("c.a.w.1"));
    follow(&mut roster, "c.a.w.2", None, now, 0.0);
    assert!(roster.take(now, room, || 0.0).is_none(), "it still runs");
    assert_eq!(roster.ended(run.id, Health::Passing), None);
    assert!(roster.take(now, room, || 0.0).is_some());
}

#[test]
fn what_could_not_be_run_counts_for_nothing_and_is_run_soon() {
    let (mut roster, now) = (Roster::default(), Instant::now());
    let checks = asked(&json!([{"name": "api", "tcp": {}, "interval": "1h"}]));
    let host = "h".into();
    roster.follow(&key("a"), &to_follow(&host, &checks, &[None]), now, || 0.5);
    let run = roster.take(now, ROOM, || 0.0).unwrap();
    roster.not_run(run.id, now, || 1.0);
    assert_eq!(roster.next(), Some(now + AGAIN));
    let run = roster.take(now + AGAIN, ROOM, || 0.0).unwrap();
    assert!(roster.ended(run.id, Health::Passing).is_some());
    let on_the_grid = now + Duration::from_mins(30);
    assert_eq!(roster.next(), Some(on_the_grid));
    // What is due sooner anyway is not put off, and what is forgotten stays so.
    let run = roster.take(on_the_grid, ROOM, || 0.0).unwrap();
    let late = on_the_grid + Duration::from_secs(3599);
    roster.not_run(run.id, late, || 1.0);
    assert_eq!(roster.next(), Some(on_the_grid + Duration::from_hours(1)));
    roster.forget(&key("a"));
    roster.not_run(run.id, late, || 1.0);
    assert_eq!((roster.len(), roster.next()), (0, None));
}
