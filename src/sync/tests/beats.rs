//! Sessions, against a Consul that answers as it is told to.

use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::state::{n1, ready_with};
use super::*;
use crate::model::entry::Health;
use crate::model::kind::Kind;
use crate::observed::entry::{ObservedCheck, wire_alive_check};

/// The index of the epoch of [`ready_with`].
const EPOCH: u64 = 5;

fn table(body: &Value) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("X-Consul-Index", "7")
        .insert_header("X-Consul-KnownLeader", "true")
        .set_body_string(body.to_string())
}

/// From now on the epoch has this index, and a session that is to be created is answered like this.
async fn answer(consul: &MockServer, epoch: u64, created: ResponseTemplate) {
    consul.reset().await;
    let epoch = json!([{"Key": "lictor/v1/a/epoch", "Value": null, "ModifyIndex": epoch}]);
    let off = ResponseTemplate::new(401).set_body_string("ACL support disabled");
    for (how, at, answer) in [
        ("GET", "/v1/acl/token/self", off),
        ("GET", "/v1/kv/lictor/v1/a/epoch", table(&epoch)),
        ("GET", "/v1/session/list", table(&json!([]))),
        ("PUT", "/v1/session/create", created),
    ] {
        let asked = Mock::given(method(how)).and(path(at));
        asked.respond_with(answer).mount(consul).await;
    }
}

fn denied() -> ResponseTemplate {
    ResponseTemplate::new(403).set_body_string("Permission denied: session:write")
}

/// An engine with `--dead-after`, whose own check is on `n1`, and which knows that it has no session.
async fn engine_with_own_check(consul: &MockServer, now: Instant) -> Engine {
    let client = client(consul.uri());
    client.check_token().await.unwrap();
    let mut engine = ready_with(client);
    engine.rules.dead_after = Some(Duration::from_mins(1));
    let mut there = engine.mirror.node(&n1()).unwrap().clone();
    let check = wire_alive_check(&n1().as_ref().into(), Health::Passing);
    there.checks.push(ObservedCheck::of(&check, None));
    engine.mirror.wrote_node(&n1(), there);
    engine.follow_node(&n1(), now);
    beat(&mut engine, now).await;
    engine
}

/// Does what is due, and hears what becomes of it.
async fn beat(engine: &mut Engine, now: Instant) {
    engine.beat(now);
    while let Some(done) = engine.jobs.join_next().await {
        engine.absorb(done.unwrap());
    }
}

/// Whoever wrote before may have stood still between its look at the epoch and the creation of a session.
#[tokio::test]
async fn sessions_are_listed_once_more_a_while_after_this_process_began_to_write() {
    let (consul, now) = (MockServer::start().await, Instant::now());
    answer(&consul, EPOCH, denied()).await;
    let mut engine = engine_with_own_check(&consul, now).await;
    for (seconds, count) in [(1, 1), (29, 1), (30, 2), (40, 2), (600, 2)] {
        beat(&mut engine, now + Duration::from_secs(seconds)).await;
        let asked = consul.received_requests().await.unwrap();
        let lists = asked
            .iter()
            .filter(|it| it.url.path() == "/v1/session/list");
        assert_eq!(lists.count(), count, "after {seconds} s");
    }
}

#[tokio::test]
async fn a_session_that_is_denied_is_told_of_until_consul_takes_it() {
    let (consul, now) = (MockServer::start().await, Instant::now());
    answer(&consul, EPOCH, denied()).await;
    let mut engine = engine_with_own_check(&consul, now).await;
    beat(&mut engine, Instant::now()).await;
    assert!(engine.own_denied().is_some());
    // Of the session Consul is not asked.
    answer(&consul, EPOCH + 1, denied()).await;
    beat(&mut engine, now + Duration::from_mins(5)).await;
    assert!(engine.own_denied().is_some());
    let created = table(&json!({"ID": "s"}));
    answer(&consul, EPOCH, created).await;
    beat(&mut engine, now + Duration::from_mins(10)).await;
    assert_eq!(engine.own_denied(), None);
}

/// What happens while a call is under way.
type Event<'a> = &'a dyn Fn(&mut Engine, Instant);

#[tokio::test]
async fn a_session_that_is_denied_too_late_is_not_told_of() {
    let its_node_goes = |engine: &mut Engine, now| {
        engine.mirror.removed_node(&n1());
        engine.follow_node(&n1(), now);
    };
    let another_one_leads = |engine: &mut Engine, now| {
        engine.strange.insert(Kind::Pod);
        engine.beat(now);
    };
    let nothing = |_: &mut Engine, _| {};
    let meanwhile: [(Event<'_>, bool); 3] = [
        (&nothing, true),
        (&its_node_goes, false),
        (&another_one_leads, false),
    ];
    let consul = MockServer::start().await;
    for (happens, is_told) in meanwhile {
        answer(&consul, EPOCH, denied()).await;
        let mut engine = engine_with_own_check(&consul, Instant::now()).await;
        let now = Instant::now();
        engine.beat(now);
        let done = engine.jobs.join_next().await.unwrap().unwrap();
        happens(&mut engine, now);
        engine.absorb(done);
        assert_eq!(engine.own_denied().is_some(), is_told);
    }
}
