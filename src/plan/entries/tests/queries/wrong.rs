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

/// How a hand, or a stray script, writes the entry of the ledger.
fn spoil(bed: &mut Bed, value: &[u8]) {
    let index = bed.consul.next();
    let entry = (value.to_vec(), index);
    bed.consul.ledger.insert("nearest".to_owned(), entry);
    bed.read();
}

/// The entry with another id.
fn spoil_id(bed: &mut Bed, id: &str) {
    let noted = Ledger {
        id: id.to_owned(),
        ..ledger(bed).unwrap()
    };
    spoil(bed, &serde_json::to_vec(&noted).unwrap());
}

fn of_service(name: &str, service: &str) -> wire::PreparedQuery {
    let mut query = theirs(name);
    query.service.service = service.into();
    query
}

/// Whatever is written into our ledger: a query that has another name is a stranger's, or another
/// cluster's, and neither is it changed nor does it go with the object.
#[test]
fn a_query_of_another_whose_id_is_written_into_our_ledger_is_not_touched() {
    for noted_elsewhere in [false, true] {
        for ours_is_there in [false, true] {
            for restarted in [false, true] {
                // The last one is like ours in all but the name.
                for like_ours in [false, true] {
                    let mut bed = Bed::new();
                    asks(&mut bed);
                    bed.settle(&nearest());
                    let id = ledger(&bed).unwrap().id;
                    let mut query = of_service("their1", "theirs");
                    if like_ours {
                        query = wire::PreparedQuery {
                            name: "their1".into(),
                            ..entries::definition(&bed.consul.queries[&id])
                        };
                    }
                    let foreign = bed.consul.create(query);
                    if noted_elsewhere {
                        let of_b = Ledger {
                            id: foreign.clone(),
                            ..Ledger::default()
                        };
                        let pair = wire::KvPair {
                            key: "lictor/v1/b/query/their1".into(),
                            ..noted_by_b(&of_b)
                        };
                        bed.consul.others = Some(vec![pair]);
                    }
                    let before = bed.consul.queries[&foreign].clone();
                    if !ours_is_there {
                        bed.consul.queries.remove(&id);
                    }
                    spoil_id(&mut bed, &foreign);
                    if restarted {
                        if like_ours && !ours_is_there && !noted_elsewhere {
                            // Then it is as if ours had been renamed.
                            continue;
                        }
                        bed = bed.restart();
                        asks(&mut bed);
                    }
                    let case = (noted_elsewhere, ours_is_there, restarted, like_ours);
                    let finding = bed.settle(&nearest());
                    assert_eq!(finding.parts[0].stands[0].state, State::Fine, "{case:?}");
                    let now = ledger(&bed).unwrap().id;
                    assert_eq!(now == id, ours_is_there, "{case:?}");
                    assert_eq!(bed.consul.queries[&foreign], before, "{case:?}");
                    // Nor where it is spoilt when the object goes.
                    spoil_id(&mut bed, &foreign);
                    goes(&mut bed);
                    bed.settle(&nearest());
                    let left: Vec<_> = bed.consul.queries.values().collect();
                    assert_eq!(left, [&before], "{case:?}");
                    assert!(bed.consul.ledger.is_empty(), "{case:?}");
                }
            }
        }
    }
}

#[test]
fn an_entry_of_the_ledger_that_a_hand_spoils_is_written_again() {
    let garbage = |bed: &mut Bed| spoil(bed, b"{");
    let no_id = |bed: &mut Bed| spoil_id(bed, "nobody-has-it");
    let of_ours = |bed: &mut Bed| {
        let aside = Key::Query(QueryName::new("aside"));
        bed.query("aside", json!({"name": "aside", "service": "payment"}));
        bed.settle(&aside);
        let (value, _) = &bed.consul.ledger["aside"];
        let id = serde_json::from_slice::<Ledger>(value).unwrap().id;
        spoil_id(bed, &id);
    };
    let spoils: [&dyn Fn(&mut Bed); 3] = [&garbage, &no_id, &of_ours];
    for (case, spoils) in spoils.into_iter().enumerate() {
        for restarted in [false, true] {
            if restarted && case == 0 {
                continue;
            }
            let mut bed = Bed::new();
            asks(&mut bed);
            bed.settle(&nearest());
            let before = ledger(&bed);
            spoils(&mut bed);
            if restarted {
                bed = bed.restart();
                asks(&mut bed);
            }
            let queries = bed.consul.queries.clone();
            let finding = bed.settle(&nearest());
            let at = (case, restarted);
            assert_eq!(finding.parts[0].stands[0].state, State::Fine, "{at:?}");
            assert_eq!(ledger(&bed), before, "{at:?}");
            assert_eq!(bed.consul.queries, queries, "{at:?}");
            // It is spoilt once more, and the object goes before it is written again.
            spoils(&mut bed);
            goes(&mut bed);
            bed.settle(&nearest());
            let id = &before.unwrap().id;
            assert!(!bed.consul.queries.contains_key(id), "{at:?}");
            assert!(!bed.consul.ledger.contains_key("nearest"), "{at:?}");
        }
    }
}

/// A process that never saw what the entry said has nothing to tell by whose the query is.
#[test]
fn an_entry_that_was_spoilt_while_nobody_looked_is_left_with_its_query() {
    let mut bed = Bed::new();
    asks(&mut bed);
    bed.settle(&nearest());
    spoil(&mut bed, b"{");
    let mut after = bed.restart();
    asks(&mut after);
    let finding = after.settle(&nearest());
    assert!(held_by(&finding).contains("not understood"), "{finding:?}");
    goes(&mut after);
    after.settle(&nearest());
    let left = (after.consul.queries.len(), after.consul.ledger.len());
    assert_eq!(left, (1, 1));
}

/// Nor does one with our name become ours by what is written into our ledger.
#[test]
fn a_query_of_our_name_that_another_cluster_has_is_not_taken_by_an_entry_of_ours() {
    let mut bed = Bed::new();
    let foreign = bed.consul.create(of_service("nearest", "theirs"));
    let before = bed.consul.queries[&foreign].clone();
    let of_b = Ledger {
        id: foreign.clone(),
        ..Ledger::default()
    };
    bed.consul.others = Some(vec![noted_by_b(&of_b)]);
    bed.read();
    asks(&mut bed);
    let owner = Owner::prepared_query(&"shop".into(), &"nearest".into());
    let forged = Ledger {
        id: foreign.clone(),
        ..Ledger::new(&owner, "uid-nearest", "h".to_owned())
    };
    spoil(&mut bed, &serde_json::to_vec(&forged).unwrap());
    let finding = bed.settle(&nearest());
    assert!(
        held_by(&finding).contains("the cluster \"b\""),
        "{finding:?}"
    );
    goes(&mut bed);
    bed.settle(&nearest());
    assert_eq!(bed.consul.queries[&foreign], before);
    assert!(bed.consul.ledger.is_empty());
}

/// By its definition alone it would be ours.
#[test]
fn one_that_takes_the_place_of_ours_is_anothers_where_that_is_known() {
    for (restarted, unknown) in [(false, false), (false, true), (true, true)] {
        let mut bed = Bed::new();
        asks(&mut bed);
        bed.settle(&nearest());
        let id = ledger(&bed).unwrap().id;
        let ours = bed.consul.queries.remove(&id).unwrap();
        let other = bed.consul.create(entries::definition(&ours));
        if unknown {
            bed.consul.others = None;
        }
        bed.read();
        if restarted {
            bed = bed.restart();
            asks(&mut bed);
        }
        let before = bed.consul.queries.clone();
        let finding = bed.settle(&nearest());
        assert!(held_by(&finding).contains(&other), "{finding:?}");
        goes(&mut bed);
        bed.settle(&nearest());
        assert_eq!(bed.consul.queries, before);
    }
}

/// Ours is told by all but its name where nobody saw it being renamed; a query that is another in
/// anything else may be a stranger's.
#[test]
fn ours_that_was_renamed_while_nobody_looked_is_told_by_its_definition() {
    for changed in [false, true] {
        let mut bed = Bed::new();
        asks(&mut bed);
        bed.settle(&nearest());
        let id = ledger(&bed).unwrap().id;
        let query = bed.consul.queries.get_mut(&id).unwrap();
        query.name = "aside".into();
        if changed {
            query.service.near = "_agent".into();
        }
        let renamed = query.clone();
        let mut after = bed.restart();
        asks(&mut after);
        let finding = after.settle(&nearest());
        assert_eq!(finding.parts[0].stands[0].state, State::Fine);
        let now = ledger(&after).unwrap().id;
        assert_eq!(now != id, changed);
        let there = &after.consul.queries[&id];
        assert_eq!(*there == renamed, changed);
    }
}
