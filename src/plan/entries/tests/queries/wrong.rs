//! What goes wrong.

use super::*;

#[test]
fn a_query_that_is_changed_before_its_id_is_noted_stays_known_after_any_crash() {
    let changed = |bed: &mut Bed| bed.query("nearest", json!({"name": "Nearest", "service": "b"}));
    for first_life in 0..=3 {
        for second_life in 0..=4 {
            let mut bed = Bed::new();
            asks(&mut bed);
            for _ in 0..first_life {
                bed.step(&nearest());
            }
            let mut second = bed.restart();
            changed(&mut second);
            for _ in 0..second_life {
                second.step(&nearest());
            }
            let mut third = second.restart();
            changed(&mut third);
            let finding = third.settle(&nearest());
            let lives = (first_life, second_life);
            assert_eq!(finding.parts[0].stands[0].state, State::Fine, "{lives:?}");
            let (id, query) = third.consul.queries.first_key_value().unwrap();
            assert_eq!(
                (&*query.service.service, third.consul.queries.len()),
                ("b", 1)
            );
            assert_eq!(ledger(&third).unwrap().id, *id);
        }
    }
}

#[test]
fn a_change_is_noted_and_then_made_and_what_a_hand_changed_is_one_write() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    bed.writes = 0;
    bed.query(
        "nearest",
        json!({"name": "Nearest", "service": "b", "near": "_agent"}),
    );
    assert!(bed.step(&nearest()), "the note");
    let EntryStep::Write(write) = bed.decide(&nearest()).step else {
        panic!("nothing to write")
    };
    assert_eq!(write.fields, ["service", "only passing", "near"]);
    bed.settle(&nearest());
    assert_eq!(bed.writes, 2);
    let query = bed.consul.queries.values_mut().next().unwrap();
    query.token = true;
    query.session = "s".into();
    bed.read();
    bed.settle(&nearest());
    let query = bed.consul.queries.values().next().unwrap();
    assert!(!query.token && query.session.is_empty());
    assert_eq!(bed.writes, 3);
}

/// The same manifest is applied to two clusters at once: both note it, and one creates it.
#[test]
fn of_two_clusters_that_note_the_same_query_the_one_that_created_it_has_it() {
    for with_id in [false, true] {
        let mut bed = Bed::new();
        asks(&mut bed);
        assert!(bed.step(&nearest()), "the note");
        let mut of_b = ledger(&bed).unwrap();
        let name = QueryName::new("nearest");
        let query = bed.index.queries_of(&name).last().unwrap().query.clone();
        let id = bed.consul.create(query);
        if with_id {
            of_b.id = id;
        }
        bed.consul.others = Some(vec![noted_by_b(&of_b)]);
        let mut after = bed.restart();
        asks(&mut after);
        let finding = after.settle(&nearest());
        assert!(
            held_by(&finding).contains("the cluster \"b\""),
            "{finding:?}"
        );
        assert_eq!(
            (after.consul.ledger.len(), after.consul.queries.len()),
            (0, 1)
        );
    }
    // The one that created it knows, whatever the other one notes.
    let mut bed = Bed::new();
    asks(&mut bed);
    assert!(bed.step(&nearest()), "the note");
    let of_b = ledger(&bed).unwrap();
    assert!(bed.step(&nearest()), "the query");
    bed.consul.others = Some(vec![noted_by_b(&of_b)]);
    bed.read();
    let finding = bed.settle(&nearest());
    assert_eq!(finding.parts[0].stands[0].state, State::Fine);
    assert!(!ledger(&bed).unwrap().id.is_empty());
}

/// No query that Lictor creates has a token.
#[test]
fn a_query_that_differs_from_the_noted_one_by_its_token_is_anothers() {
    let mut bed = Bed::new();
    asks(&mut bed);
    assert!(bed.step(&nearest()), "the note");
    let name = QueryName::new("nearest");
    let mut query = bed.index.queries_of(&name).last().unwrap().query.clone();
    query.token = true;
    bed.consul.create(query);
    let mut after = bed.restart();
    asks(&mut after);
    let finding = after.settle(&nearest());
    assert!(held_by(&finding).contains("of nobody's"), "{finding:?}");
    assert!(after.consul.queries.values().all(|query| query.token));
}

#[test]
fn what_may_be_another_clusters_is_not_adopted() {
    for unknown in [false, true] {
        let mut bed = Bed::new();
        let id = bed.consul.create(theirs("nearest"));
        let of_b = Ledger {
            id: id.clone(),
            ..Ledger::default()
        };
        bed.consul.others = (!unknown).then(|| vec![noted_by_b(&of_b)]);
        bed.read();
        let spec = json!({"name": "nearest", "service": "payment", "adopt": true});
        bed.query("nearest", spec);
        let finding = bed.settle(&nearest());
        let holder = held_by(&finding);
        let said = if unknown {
            "cannot be read"
        } else {
            "the cluster \"b\""
        };
        assert!(holder.contains(said), "{holder}");
        assert_eq!(
            (bed.writes, &*bed.consul.queries[&id].service.service),
            (0, "")
        );
    }
}

#[test]
fn an_entry_of_the_ledger_that_a_hand_removes_is_written_again() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    let before = ledger(&bed);
    bed.consul.ledger.clear();
    bed.read();
    let finding = bed.settle(&nearest());
    assert_eq!(finding.parts[0].stands[0].state, State::Fine);
    assert_eq!(ledger(&bed), before);
    // A process that never saw it does not know whose the query is.
    bed.consul.ledger.clear();
    let mut after = bed.restart();
    asks(&mut after);
    let finding = after.settle(&nearest());
    assert!(held_by(&finding).contains("of nobody's"), "{finding:?}");
}

#[test]
fn ours_that_was_renamed_while_another_took_its_name_stays_ours() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    let id = ledger(&bed).unwrap().id;
    bed.consul.queries.get_mut(&id).unwrap().name = "aside".into();
    let other = bed.consul.create(theirs("nearest"));
    bed.read();
    let writes = bed.writes;
    let finding = bed.settle(&nearest());
    assert!(held_by(&finding).contains(&other), "{finding:?}");
    assert_eq!((bed.writes, ledger(&bed).unwrap().id), (writes, id.clone()));
    // Nor is it taken over under its new name by another object of the cluster.
    let spec = json!({"name": "aside", "service": "payment", "adopt": true});
    bed.query("aside", spec);
    let finding = bed.settle(&Key::Query(QueryName::new("aside")));
    assert!(held_by(&finding).contains("shop/nearest"), "{finding:?}");
    bed.index.remove_query(
        &"shop".into(),
        &"aside".into(),
        true,
        &mut Touched::default(),
    );

    let mut free = bed.restart();
    asks(&mut free);
    free.consul.queries.remove(&other);
    free.read();
    free.settle(&nearest());
    assert_eq!(&*free.consul.queries[&id].name, "Nearest");

    // It goes with its object, and the other one stays.
    free.consul.queries.get_mut(&id).unwrap().name = "aside".into();
    let other = free.consul.create(theirs("nearest"));
    free.read();
    goes(&mut free);
    free.settle(&nearest());
    let left: Vec<&String> = free.consul.queries.keys().collect();
    assert_eq!((left, free.consul.ledger.len()), (vec![&other], 0));
}

#[test]
fn what_is_known_in_part_loses_neither_query_nor_note() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    bed.knowledge = Knowledge::Partial("hidden".to_owned());
    bed.read();
    goes(&mut bed);
    let finding = bed.settle(&nearest());
    assert_eq!(finding.held().count(), 1);
    // It is not shown any more.
    bed.consul.queries.clear();
    bed.read();
    let finding = bed.settle(&nearest());
    assert_eq!((finding.held().count(), bed.consul.ledger.len()), (1, 1));
    bed.consul.create(theirs("nearest"));
    bed.read();
    asks(&mut bed);
    let finding = bed.settle(&nearest());
    assert!(held_by(&finding).contains("of nobody's"), "{finding:?}");
    assert_eq!(bed.consul.ledger.len(), 1);
}

#[test]
fn an_entry_that_is_not_understood_is_named_and_left() {
    let mut bed = Bed::new();
    bed.consul
        .ledger
        .insert("nearest".to_owned(), (b"{".to_vec(), 5));
    bed.consul
        .ledger
        .insert("NEAREST".to_owned(), (Vec::new(), 6));
    bed.read();
    asks(&mut bed);
    let finding = bed.settle(&nearest());
    let holder = held_by(&finding);
    assert!(holder.contains("lictor/v1/a/query/nearest"), "{holder}");
    assert_eq!((bed.writes, bed.consul.queries.len()), (0, 0));
}

/// What an older release noted tells its query after an upgrade too.
#[test]
fn the_hash_of_a_definition_is_the_same_in_every_release() {
    let mut bed = Bed::new();
    let spec = json!({
        "name": "Nearest", "service": "payment", "tags": ["v2", "!canary"],
        "serviceMeta": {"version": "2", "a": "b"}, "nodeMeta": {"zone": "a"}, "near": "_agent",
        "onlyPassing": true, "ignoreCheckIds": ["x"], "connect": true,
        "failover": {"nearestN": 2, "datacenters": ["dc2", "dc3"]}, "dns": {"ttl": "10s"},
        "template": {"type": "name_prefix_match", "regexp": "^a", "removeEmptyTags": true},
    });
    bed.query("nearest", spec);
    bed.settle(&nearest());
    assert_eq!(
        ledger(&bed).unwrap().hash,
        "RsVRaek0ExmVLbLioAZobjZIT4wl09Rd0nekqhTc93k"
    );
}

#[test]
fn a_query_that_changes_before_its_id_is_noted_stays_ours() {
    for written in 0..=3 {
        let mut bed = Bed::new();
        asks(&mut bed);
        for _ in 0..written {
            assert!(bed.step(&nearest()));
        }
        bed.query("nearest", json!({"name": "Nearest", "service": "ledger"}));
        let finding = bed.settle(&nearest());
        assert_eq!(finding.parts[0].stands[0].state, State::Fine, "{written}");
        let (id, query) = bed.consul.queries.first_key_value().unwrap();
        assert_eq!(*query.service.service, *"ledger");
        let noted = ledger(&bed).unwrap();
        let definition = entries::definition(query);
        assert_eq!((&noted.id, noted.hash), (id, entries::hash(&definition)));
    }
}

#[test]
fn a_query_that_may_only_be_hidden_keeps_its_entry_in_the_ledger() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    let noted = ledger(&bed);
    bed.query("nearest", json!({"name": "Nearest", "service": "ledger"}));
    let hidden = std::mem::take(&mut bed.consul.queries);
    bed.read();
    let rows = bed.mirror.queries.iter();
    let rows = rows.map(|(key, row)| (key.clone(), row.clone())).collect();
    let ticket = bed.mirror.queries.start_read();
    let partial = Knowledge::Partial("no rights".to_owned());
    bed.mirror
        .queries
        .finish_read(&ticket, rows, partial, |_| false);
    let finding = bed.decide(&nearest());
    assert_eq!(finding.step, EntryStep::Settled);
    assert!(matches!(
        finding.held().next(),
        Some((_, Hold::Incomplete { .. }))
    ));
    bed.consul.queries = hidden;
    bed.read();
    let finding = bed.settle(&nearest());
    assert_eq!(finding.parts[0].stands[0].state, State::Fine);
    let (id, query) = bed.consul.queries.first_key_value().unwrap();
    assert_eq!(*query.service.service, *"ledger");
    assert_eq!(
        (Some(id), noted.map(|noted| noted.id).as_ref()),
        (ledger(&bed).map(|noted| noted.id).as_ref(), Some(id))
    );
}
