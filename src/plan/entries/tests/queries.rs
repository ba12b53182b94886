//! Prepared queries.

mod wrong;

use super::*;

fn nearest() -> Key {
    Key::Query(QueryName::new("nearest"))
}

fn asks(bed: &mut Bed) {
    bed.query(
        "nearest",
        json!({"name": "Nearest", "service": "payment", "onlyPassing": true}),
    );
}

fn ledger(bed: &Bed) -> Option<Ledger> {
    let (value, _) = bed.consul.ledger.get("nearest")?;
    Some(serde_json::from_slice(value).unwrap())
}

/// What a ledger says of the query of the name, as another cluster writes it.
fn noted_by_b(ledger: &Ledger) -> wire::KvPair {
    wire::KvPair {
        key: "lictor/v1/b/query/nearest".into(),
        value: serde_json::to_vec(ledger).unwrap().into(),
        modify_index: 1,
        ..wire::KvPair::default()
    }
}

fn theirs(name: &str) -> wire::PreparedQuery {
    wire::PreparedQuery {
        name: name.into(),
        ..wire::PreparedQuery::default()
    }
}

fn held_by(finding: &EntryFinding) -> &str {
    match &finding.parts[0].stands[0].state {
        State::OwnedByAnother(holder) => holder,
        other => panic!("{other:?}"),
    }
}

fn goes(bed: &mut Bed) {
    let touched = &mut Touched::default();
    bed.index
        .remove_query(&"shop".into(), &"nearest".into(), true, touched);
}

#[test]
fn the_ledger_comes_before_the_query_and_a_crash_between_any_steps_is_repaired() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    let steps = bed.writes;
    assert_eq!(steps, 3, "noted, created, noted with its id");
    for died_after in 0..steps {
        let mut bed = Bed::new();
        asks(&mut bed);
        for _ in 0..died_after {
            assert!(bed.step(&nearest()));
        }
        let mut after = bed.restart();
        asks(&mut after);
        let finding = after.settle(&nearest());
        assert_eq!(after.consul.queries.len(), 1, "died after {died_after}");
        let (id, query) = after.consul.queries.first_key_value().unwrap();
        assert_eq!(
            (&*query.name, ledger(&after).unwrap().id),
            ("Nearest", id.clone())
        );
        assert_eq!(finding.parts[0].stands[0].state, State::Fine);
        // And what nobody asks for any more goes, wherever it died.
        after.index.remove_query(
            &"shop".into(),
            &"nearest".into(),
            true,
            &mut Touched::default(),
        );
        after.settle(&nearest());
        assert!(after.consul.queries.is_empty() && after.consul.ledger.is_empty());
    }
}

#[test]
fn a_query_that_nobody_asks_for_any_more_goes_wherever_the_process_died() {
    for died_after in 0..=3 {
        let mut bed = Bed::new();
        asks(&mut bed);
        for _ in 0..died_after {
            bed.step(&nearest());
        }
        let mut after = bed.restart();
        let finding = after.settle(&nearest());
        let waits: Vec<Key> = finding.held().map(|(key, _)| key.clone()).collect();
        for key in waits {
            after.rules.guard.found(&key);
            after.rules.guard.release();
        }
        after.settle(&nearest());
        assert!(after.consul.queries.is_empty(), "died after {died_after}");
        assert!(after.consul.ledger.is_empty(), "died after {died_after}");
    }
}

#[test]
fn a_name_that_another_takes_between_the_steps_is_left_to_it() {
    for died_after in 0..=1 {
        let mut bed = Bed::new();
        asks(&mut bed);
        for _ in 0..died_after {
            assert!(bed.step(&nearest()));
        }
        bed.consul.create(theirs("nearest"));
        let mut after = bed.restart();
        asks(&mut after);
        let finding = after.settle(&nearest());
        let state = &finding.parts[0].stands[0].state;
        assert!(matches!(state, State::OwnedByAnother(_)), "{state:?}");
        let query = after.consul.queries.values().next().unwrap();
        assert_eq!(
            (&*query.service.service, after.consul.ledger.len()),
            ("", 0)
        );
    }
}

#[test]
fn a_query_keeps_its_id_when_it_changes_and_gets_another_when_it_was_deleted() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    let id = ledger(&bed).unwrap().id;
    // By the object.
    bed.query("nearest", json!({"name": "Nearest", "service": "ledger"}));
    bed.settle(&nearest());
    assert_eq!(&*bed.consul.queries[&id].service.service, "ledger");
    let writes = bed.writes;
    bed.settle(&nearest());
    assert_eq!(bed.writes, writes, "an identical update is none");
    // By another hand, which renames it too.
    let query = bed.consul.queries.get_mut(&id).unwrap();
    query.name = "other".into();
    query.service.near = "_agent".into();
    bed.read();
    bed.settle(&nearest());
    assert_eq!(&*bed.consul.queries[&id].name, "Nearest");
    bed.consul.queries.clear();
    bed.read();
    bed.settle(&nearest());
    let now = ledger(&bed).unwrap().id;
    assert!(now != id && bed.consul.queries.contains_key(&now));
}

#[test]
fn a_query_of_nobody_is_taken_over_where_that_is_asked_for() {
    for adopt in [false, true] {
        let mut bed = Bed::new();
        let id = bed.consul.create(theirs("NEAREST"));
        bed.read();
        bed.query(
            "nearest",
            json!({"name": "nearest", "service": "payment", "adopt": adopt}),
        );
        bed.settle(&nearest());
        let service = &bed.consul.queries[&id].service.service;
        assert_eq!(**service == *"payment", adopt);
        assert_eq!(bed.consul.ledger.len(), usize::from(adopt));
    }
}

#[test]
fn queries_of_a_registration_are_its_own_and_follow_its_service() {
    let mut bed = Bed::new();
    let spec = |queries: Value| json!({"service": "payment", "endpoints": [], "queries": queries});
    bed.registration("payment", 0, spec(json!([{"name": "nearest"}])));
    bed.settle(&nearest());
    let query = bed.consul.queries.values().next().unwrap();
    assert_eq!(&*query.service.service, "payment");
    assert_eq!(ledger(&bed).unwrap().kind, "ServiceRegistration");
    asks(&mut bed);
    let finding = bed.settle(&nearest());
    let holder = Owner::registration(&"shop".into(), &"payment".into());
    assert_eq!(finding.parts[0].stands[1].state, State::Conflict(holder));
    bed.registration("payment", 0, spec(json!([])));
    bed.settle(&nearest());
    let query = bed.consul.queries.values().next().unwrap();
    assert!(
        query.service.only_passing,
        "the other one took over in place"
    );
    assert_eq!(ledger(&bed).unwrap().kind, "PreparedQuery");
}
