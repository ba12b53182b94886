use super::*;
use crate::api::LabelSelector;
use crate::api::conditions::find;
use crate::desired::registration::{Claims, Content, Source};
use crate::desired::spec::InstanceSpec;
use crate::model::entry::Health;
use crate::model::key::{InstanceKey, Key, source_key};
use crate::model::names::{Destination, InstanceId, NodeName};
use crate::model::owner::Owner;
use crate::status::board::{Board, Standing};

fn object(content: Content) -> Registration {
    Registration {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "uid".into(),
        created: 1,
        generation: 7,
        content,
    }
}

fn valid() -> Registration {
    object(Content::Valid(Claims {
        service: "web".parse().unwrap(),
        spec: InstanceSpec::default(),
        source: Source::Endpoints(Vec::new()),
        adopt: false,
        protocol: None,
        queries: Vec::new(),
        sidecar: None,
    }))
}

/// A board with these instances of the object.
fn board(instances: &[(Option<Health>, Option<Reason>)]) -> Board {
    let mut board = Board::default();
    for (number, (registered, reason)) in instances.iter().enumerate() {
        let key = Key::Instance(InstanceKey {
            node: NodeName::external(&"a".parse().unwrap()),
            id: InstanceId::observed(&format!("a.shop.web.{number}")),
        });
        let trouble = reason.map(|reason| Trouble {
            reason,
            message: format!("{} of {number}", reason.as_str()),
        });
        let standing = Standing {
            claimed: true,
            registered: *registered,
            settled: reason.is_none(),
            trouble,
        };
        board.set(&key, vec![(owner(), standing)]);
    }
    board
}

fn owner() -> Owner {
    Owner::registration(&"shop".into(), &"web".into())
}

fn derived(
    object: &Registration,
    board: &Board,
    before: Option<&ServiceRegistrationStatus>,
    second: i64,
) -> ServiceRegistrationStatus {
    let facts = Facts {
        tally: board.tally(&owner()),
        datacenter: Some("dc1"),
        outage: None,
        remark: None,
        now: Timestamp::from_second(second).unwrap(),
    };
    registration(object, &facts, before)
}

/// Ready, Reconciling, Stalled, and the reason of Ready.
fn verdicts(status: &ServiceRegistrationStatus) -> (String, String) {
    let of = |kind| find(&status.conditions, kind).unwrap();
    let kinds = [
        ConditionType::Ready,
        ConditionType::Reconciling,
        ConditionType::Stalled,
    ];
    let letters = kinds.map(|kind| of(kind).status[..1].to_owned());
    (letters.concat(), of(ConditionType::Ready).reason.clone())
}

fn expected(letters: &str, reason: &str) -> (String, String) {
    (letters.to_owned(), reason.to_owned())
}

#[test]
fn nothing_to_do_is_ready_whatever_the_health() {
    let good = expected("TFF", "Registered");
    assert_eq!(verdicts(&derived(&valid(), &board(&[]), None, 1)), good);
    let sick = board(&[
        (Some(Health::Critical), None),
        (Some(Health::Warning), None),
    ]);
    let status = derived(&valid(), &sick, None, 1);
    assert_eq!(verdicts(&status), good);
    let instances = status.instances.unwrap();
    assert_eq!(
        (instances.critical, instances.warning, &*instances.summary),
        (1, 1, "2/2")
    );
    assert_eq!(
        (status.last_error, status.observed_generation),
        (None, Some(7))
    );
    assert_eq!(status.service.as_deref(), Some("web"));
}

#[test]
fn why_there_is_nothing_to_register_is_told() {
    let message = |object: &Registration| {
        let status = derived(object, &board(&[]), None, 1);
        let ready = find(&status.conditions, ConditionType::Ready).unwrap();
        ready.message.clone()
    };
    assert!(message(&valid()).contains("spec.endpoints is empty"));
    let pods = object(Content::Valid(Claims {
        service: "web".parse().unwrap(),
        spec: InstanceSpec::default(),
        source: Source::Pods(LabelSelector::default()),
        adopt: false,
        protocol: None,
        queries: Vec::new(),
        sidecar: None,
    }));
    assert!(message(&pods).contains("no pod is selected that runs and is not paused"));
}

#[test]
fn every_reason_is_either_reconciling_or_stalled() {
    for (reason, letters, error) in [
        (Reason::Invalid, "FFT", true),
        (Reason::Conflict, "FFT", true),
        (Reason::OwnedByAnother, "FFT", true),
        (Reason::ConsulRefused, "FFT", true),
        (Reason::AccessDenied, "FFT", true),
        (Reason::Paused, "FFT", false),
        (Reason::DriftContested, "FTF", true),
        (Reason::Drifted, "FFT", true),
        (Reason::Held, "FTF", false),
        (Reason::ConsulUnavailable, "FTF", true),
        (Reason::Writing, "FTF", false),
    ] {
        let status = derived(&valid(), &board(&[(None, Some(reason))]), None, 1);
        assert_eq!(verdicts(&status), expected(letters, reason.as_str()));
        assert_eq!(status.last_error.is_some(), error, "{reason:?}");
    }
}

#[test]
fn the_worst_trouble_is_told_and_the_others_counted() {
    let board = board(&[
        (None, Some(Reason::Writing)),
        (None, Some(Reason::Conflict)),
        (Some(Health::Passing), None),
    ]);
    let status = derived(&valid(), &board, None, 1);
    assert_eq!(verdicts(&status), expected("FFT", "Conflict"));
    let message = &find(&status.conditions, ConditionType::Ready)
        .unwrap()
        .message;
    assert_eq!(message, "Conflict of 1 (and 1 more)");
}

#[test]
fn the_objects_own_state_goes_before_its_instances() {
    let troubled = board(&[(None, Some(Reason::Conflict))]);
    let invalid = object(Content::Invalid("spec.port: what?".to_owned()));
    let status = derived(&invalid, &troubled, None, 1);
    assert_eq!(verdicts(&status), expected("FFT", "Invalid"));
    assert_eq!(status.last_error.as_deref(), Some("spec.port: what?"));
    assert_eq!(status.service, None);
    for (problem, reason) in [(None, "Paused"), (Some("what?"), "Invalid")] {
        let Content::Valid(claims) = valid().content else {
            panic!("it is valid");
        };
        let paused = object(Content::Paused {
            claims: Some(claims),
            problem: problem.map(str::to_owned),
        });
        let status = derived(&paused, &troubled, None, 1);
        assert_eq!(verdicts(&status), expected("FFT", reason));
        assert_eq!(status.last_error.as_deref(), problem);
        assert_eq!(status.service.as_deref(), Some("web"));
    }
}

#[test]
fn a_condition_changes_its_time_with_its_status_alone() {
    let time = |status: &ServiceRegistrationStatus, kind| {
        let condition = find(&status.conditions, kind).unwrap();
        condition.last_transition_time.0.as_second()
    };
    let writing = board(&[(None, Some(Reason::Writing))]);
    let first = derived(&valid(), &writing, None, 10);
    let held = board(&[(None, Some(Reason::Held))]);
    let second = derived(&valid(), &held, Some(&first), 20);
    assert_eq!(time(&second, ConditionType::Ready), 10);
    assert_eq!(time(&second, ConditionType::Reconciling), 10);
    let done = derived(&valid(), &board(&[]), Some(&second), 30);
    assert_eq!(time(&done, ConditionType::Ready), 30);
    assert_eq!(time(&done, ConditionType::Reconciling), 30);
    assert_eq!(time(&done, ConditionType::Stalled), 10);
    // The same once more is the same to the byte: nothing to write.
    assert_eq!(derived(&valid(), &board(&[]), Some(&done), 40), done);
}

#[test]
fn the_index_of_the_last_write_outlives_a_restart() {
    let mut board = board(&[(Some(Health::Passing), None)]);
    let before = ServiceRegistrationStatus {
        consul: Some(ConsulState {
            datacenter: None,
            index: Some(3),
        }),
        ..ServiceRegistrationStatus::default()
    };
    let index = |board: &Board| {
        let status = derived(&valid(), board, Some(&before), 1);
        status.consul.unwrap().index
    };
    assert_eq!(index(&board), Some(3));
    board.wrote(&owner(), 12);
    board.wrote(&owner(), 9);
    assert_eq!(index(&board), Some(12));
}

#[test]
fn an_intention_shows_its_sources_and_a_query_its_id() {
    let spec = serde_json::json!({
        "destination": {"name": "db"},
        "sources": [{"name": "web", "action": "allow"}, {"name": "api", "action": "deny"}],
    });
    let object = crate::api::object::Object {
        namespace: "shop".into(),
        name: "db".into(),
        uid: "uid".into(),
        created: 1,
        generation: 7,
        annotations: crate::model::text::Pairs::default(),
        spec: Ok(serde_json::from_value(spec).unwrap()),
        status: None,
    };
    let object = Intention::of(&object);
    let mut board = Board::default();
    let mut stand = |name: &str, reason: Option<Reason>| {
        let name = crate::model::source::SourceName::parse(name).unwrap();
        let trouble = reason.map(|reason| Trouble {
            reason,
            message: "why".to_owned(),
        });
        let standing = Standing {
            claimed: true,
            registered: reason.is_none().then_some(Health::Passing),
            settled: reason.is_none(),
            trouble,
        };
        let key = source_key(&Destination::new("db"), name);
        board.set(&key, vec![(object.owner(), standing)]);
        board.note_foreign(&object.owner(), 3);
        let facts = Facts {
            tally: board.tally(&object.owner()),
            datacenter: Some("dc1"),
            outage: None,
            remark: None,
            now: Timestamp::from_second(1).unwrap(),
        };
        intention(&object, &facts, None)
    };
    stand("api", None);
    let status = stand("web", Some(Reason::TooManySources));
    let sources = status.sources.unwrap();
    let shown = (
        sources.desired,
        sources.applied,
        sources.foreign,
        &*sources.summary,
    );
    assert_eq!(shown, (2, 1, 3, "1/2"));
    assert_eq!(status.destination.as_deref(), Some("db"));
    assert_eq!(status.last_error.as_deref(), Some("why"));
    let stalled = find(&status.conditions, ConditionType::Stalled).unwrap();
    assert_eq!(
        (&*stalled.status, &*stalled.reason),
        ("True", "TooManySources")
    );
    let status = stand("web", None);
    let ready = find(&status.conditions, ConditionType::Ready).unwrap();
    assert_eq!((&*ready.status, &*ready.reason), ("True", "Applied"));

    let spec = serde_json::json!({"name": "Nearest", "service": "db"});
    let object = crate::api::object::Object {
        namespace: "shop".into(),
        name: "q".into(),
        uid: "uid".into(),
        created: 1,
        generation: 2,
        annotations: crate::model::text::Pairs::default(),
        spec: Ok(serde_json::from_value(spec).unwrap()),
        status: None,
    };
    let object = PreparedQuery::of(&object);
    let mut board = Board::default();
    board.note_query(&object.owner(), &"nearest".into(), Some(&"id-1".into()));
    let facts = Facts {
        tally: board.tally(&object.owner()),
        datacenter: None,
        outage: None,
        remark: None,
        now: Timestamp::from_second(1).unwrap(),
    };
    let status = prepared_query(&object, &facts, None);
    assert_eq!(status.name.as_deref(), Some("Nearest"));
    assert_eq!(status.id.as_deref(), Some("id-1"));
}
