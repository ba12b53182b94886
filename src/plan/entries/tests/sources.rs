//! Whose sources are, and what the entry of a destination becomes.

use super::*;

#[test]
fn many_intentions_become_one_entry_and_a_second_pass_writes_nothing() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow"), ("*", "deny")]));
    bed.intention("two", 2, to_payment(&[("api", "allow")]));
    let finding = bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["* deny", "api allow", "web allow"]);
    assert_eq!(bed.writes, 1);
    let all_fine = finding.parts.iter().flat_map(|part| &part.stands);
    assert!(
        all_fine
            .clone()
            .all(|stand| stand.state == State::Fine && stand.there)
    );
    assert_eq!(all_fine.count(), 3);
    let mut after = bed.restart();
    after.intention("one", 1, to_payment(&[("web", "allow"), ("*", "deny")]));
    after.intention("two", 2, to_payment(&[("api", "allow")]));
    assert_eq!(after.settle(&payment()).step, EntryStep::Settled);
    assert_eq!(after.writes, 0);
}

#[test]
fn the_older_of_two_holds_a_source_and_the_younger_takes_over_in_place() {
    let mut bed = Bed::new();
    bed.intention("old", 1, to_payment(&[("web", "allow")]));
    bed.intention("young", 2, to_payment(&[("web", "deny"), ("api", "allow")]));
    let finding = bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["api allow", "web allow"]);
    let conflict = State::Conflict(intention("old"));
    assert_eq!(*state(&finding, "web", &intention("young")), conflict);
    bed.remove_intention("old");
    let finding = bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["api allow", "web deny"]);
    assert_eq!(*state(&finding, "web", &intention("young")), State::Fine);
    assert_eq!(bed.writes, 2);
}

#[test]
fn what_others_hold_is_left_alone_and_taken_over_where_nobody_does() {
    let theirs = |meta: &[(&str, &str)]| wire::ServiceIntentions {
        name: "payment".into(),
        sources: vec![wire::SourceIntention {
            name: "web".into(),
            action: "deny".into(),
            ..wire::SourceIntention::default()
        }],
        meta: meta
            .iter()
            .map(|(key, value)| (Text::from(*key), Text::from(*value)))
            .collect(),
        modify_index: 7,
        ..wire::ServiceIntentions::default()
    };
    for (meta, adoptable) in [
        (&[][..], true),
        (
            &[("lictor-cluster", "b"), ("external-source", "kubernetes")][..],
            false,
        ),
        (
            &[("consul.hashicorp.com/source-datacenter", "dc1")][..],
            false,
        ),
        (&[("external-source", "kubernetes")][..], false),
        // Some of our marks make it nobody's less, and ours no more.
        (&[("lictor-cluster", "a")][..], false),
        (&[("lictor-src-0", "shop/one=web")][..], false),
        (&[("lictor-jwt", "shop/one")][..], false),
        (
            &[("lictor-cluster", "a"), ("external-source", "kubernetes")][..],
            false,
        ),
        (
            &[
                ("lictor-cluster", "a"),
                ("external-source", "kubernetes"),
                ("lictor-src-0", "web"),
            ][..],
            false,
        ),
        (
            &[("lictor-cluster", "a"), ("lictor-src-0", "shop/one=web")][..],
            false,
        ),
    ] {
        for adopt in [false, true] {
            let mut bed = Bed::new();
            bed.consul
                .intentions
                .insert("payment".to_owned(), theirs(meta));
            bed.read();
            let mut spec = to_payment(&[("web", "allow"), ("api", "allow")]);
            spec["adopt"] = adopt.into();
            bed.intention("one", 1, spec);
            let finding = bed.settle(&payment());
            if adopt && adoptable {
                assert_eq!(bed.sources("payment"), ["api allow", "web allow"]);
            } else {
                assert_eq!(bed.writes, 0, "{meta:?}");
                let state = state(&finding, "api", &intention("one"));
                assert!(matches!(state, State::OwnedByAnother(_)), "{state:?}");
            }
        }
    }
}

#[test]
fn an_entry_that_lost_its_marks_is_repaired() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    bed.settle(&payment());
    let entry = bed.consul.intentions.get_mut("payment").unwrap();
    entry.meta = Pairs::default();
    entry.sources[0].action = "deny".into();
    entry.modify_index = 99;
    bed.read();
    bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["web allow"]);
    assert!(
        bed.consul.intentions["payment"]
            .meta
            .get("lictor-cluster")
            .is_some()
    );
}

/// Whoever takes some of the marks away does not make it another's: it is the same entry.
#[test]
fn an_entry_that_lost_any_of_its_marks_is_repaired_by_whom_saw_it_whole() {
    for lost in ["lictor-cluster", "external-source", "lictor-src-0"] {
        let mut bed = Bed::new();
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.settle(&payment());
        let entry = bed.consul.intentions.get_mut("payment").unwrap();
        let whole = entry.meta.clone();
        let marks = whole.iter().filter(|(key, _)| ***key != *lost);
        entry.meta = marks.map(|(k, v)| (k.clone(), v.clone())).collect();
        entry.sources[0].action = "deny".into();
        entry.modify_index = 99;
        bed.read();
        let mut after = bed.restart();
        bed.settle(&payment());
        assert_eq!(bed.sources("payment"), ["web allow"], "{lost}");
        assert_eq!(bed.consul.intentions["payment"].meta, whole);
        // One that never saw it whole cannot tell it from a copy.
        after.intention("one", 1, to_payment(&[("web", "allow")]));
        let finding = after.settle(&payment());
        let another = state(&finding, "web", &intention("one"));
        let State::OwnedByAnother(holder) = another else {
            panic!("{lost}: {another:?}");
        };
        assert_eq!(after.writes, 0);
        if lost != "lictor-cluster" {
            assert!(holder.contains("incomplete marks"), "{holder}");
        }
    }
}

/// Another hand takes some marks away, or all: whose the sources are is known nevertheless.
#[test]
fn sources_whose_marks_were_taken_away_stay_whose_they_are() {
    for all in [false, true] {
        let mut bed = Bed::new();
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.intention("two", 2, to_payment(&[("api", "allow")]));
        bed.settle(&payment());
        let pause = |annotation: &str, actions: &[(&str, &str)]| {
            let annotations = [("lictor.io/paused", annotation)];
            Intention::of(&object("two", 2, &annotations, to_payment(actions)))
        };
        let paused = pause("true", &[("api", "deny")]);
        bed.index.apply_intention(paused, &mut Touched::default());
        let entry = bed.consul.intentions.get_mut("payment").unwrap();
        entry.sources.push(wire::SourceIntention {
            name: "theirs".into(),
            action: "deny".into(),
            source_type: "consul".into(),
            ..wire::SourceIntention::default()
        });
        let marks = entry.meta.iter();
        let marks = marks.filter(|(key, _)| !all && !key.starts_with("lictor-src"));
        entry.meta = marks.map(|(k, v)| (k.clone(), v.clone())).collect();
        entry.modify_index = 99;
        bed.read();
        // What was never ours is not taken for it, though an Intention asks for it.
        bed.intention(
            "one",
            1,
            to_payment(&[("web", "allow"), ("theirs", "allow")]),
        );
        let finding = bed.settle(&payment());
        let theirs = state(&finding, "theirs", &intention("one"));
        assert!(matches!(theirs, State::OwnedByAnother(_)), "{theirs:?}");
        assert_eq!(
            bed.sources("payment"),
            ["api allow", "theirs deny", "web allow"]
        );
        let marked = |bed: &Bed| {
            bed.mirror
                .intentions
                .get(&Destination::new("payment"))
                .unwrap()
                .owners
                .len()
        };
        assert_eq!(marked(&bed), 2);
        let resumed = pause("false", &[("api", "deny")]);
        bed.index.apply_intention(resumed, &mut Touched::default());
        bed.settle(&payment());
        assert_eq!(
            bed.sources("payment"),
            ["api deny", "theirs deny", "web allow"]
        );
    }
}

#[test]
fn a_write_names_the_objects_that_change_something_and_no_others() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    bed.settle(&payment());
    // One asks in vain, one is as it was.
    bed.intention("vain", 2, to_payment(&[("web", "deny")]));
    bed.intention("new", 3, to_payment(&[("api", "allow")]));
    let EntryStep::Write(write) = bed.decide(&payment()).step else {
        panic!("nothing to write");
    };
    let owner = intention("new");
    assert_eq!(write.owner, owner);
    assert_eq!(
        write.puts,
        [Put {
            owner,
            generation: 1,
            is_new: true
        }]
    );
}

#[test]
fn too_many_sources_are_told_of_the_youngest_and_the_rest_is_written() {
    let mut bed = Bed::new();
    bed.intention("one", 1, many("a", 200));
    bed.intention("two", 2, many("b", 200));
    let finding = bed.settle(&payment());
    assert_eq!((bed.sources("payment").len(), bed.writes), (200, 1));
    let stands = finding.parts.iter().flat_map(|part| &part.stands);
    let left: Vec<&Stand> = stands
        .filter(|stand| stand.state == State::TooManySources)
        .collect();
    assert!(left.len() == 200 && left.iter().all(|stand| stand.owner == intention("two")));
}

/// Whoever finds no room for its marks takes nothing over, and nothing away.
#[test]
fn what_was_to_be_taken_over_stays_where_the_marks_have_no_room() {
    let mut bed = Bed::new();
    bed.intention("one", 1, many("a", 200));
    bed.intention("two", 2, to_payment(&[("db", "allow")]));
    bed.settle(&payment());
    let entry = bed.consul.intentions.get_mut("payment").unwrap();
    entry.sources.push(wire::SourceIntention {
        name: "theirs".into(),
        action: "deny".into(),
        source_type: "consul".into(),
        ..wire::SourceIntention::default()
    });
    // Another hand takes the mark of the one of them away, too.
    let marks = entry.meta.iter();
    let marks = marks.filter(|(_, value)| ***value != *"shop/two=db");
    entry.meta = marks.map(|(k, v)| (k.clone(), v.clone())).collect();
    entry.modify_index = 99;
    bed.read();
    let mut spec = many("b", 200);
    let more = to_payment(&[("db", "allow"), ("theirs", "allow")]);
    let sources = spec["sources"].as_array_mut().unwrap();
    sources.extend(more["sources"].as_array().unwrap().clone());
    spec["adopt"] = true.into();
    bed.intention("two", 2, spec);
    let finding = bed.settle(&payment());
    let left = bed.sources("payment");
    assert_eq!(left.len(), 202);
    for kept in ["db allow", "theirs deny"] {
        assert!(left.contains(&kept.to_owned()), "{kept} is gone");
    }
    assert_eq!(finding.foreign, 2);
}

/// Names may be so long that the mark of one source alone has no room.
#[test]
fn a_source_that_no_mark_has_room_for_holds_nobody_up() {
    let mut bed = Bed::new();
    let long = json!({"name": "x".repeat(250), "peer": "y".repeat(250), "action": "allow"});
    let web = json!({"name": "web", "action": "allow"});
    let spec = json!({"destination": {"name": "payment"}, "sources": [long, web]});
    bed.intention("old", 1, spec);
    bed.intention("young", 2, to_payment(&[("api", "allow")]));
    let finding = bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["api allow", "web allow"]);
    let name = format!("{}|peer:{}", "x".repeat(250), "y".repeat(250));
    let told = state(&finding, &name, &intention("old"));
    assert_eq!(*told, State::TooManySources);
    assert_eq!(*state(&finding, "api", &intention("young")), State::Fine);
}

/// Each Intention takes a pair of meta at least.
#[test]
fn of_more_intentions_than_an_entry_has_pairs_the_oldest_are_written() {
    let mut bed = Bed::new();
    for n in 0..1000 {
        let name = format!("n{n:04}");
        bed.intention(&name, n, to_payment(&[(&name, "allow")]));
    }
    let finding = bed.settle(&payment());
    let expected: Vec<String> = (0..60).map(|n| format!("n{n:04} allow")).collect();
    assert_eq!(bed.sources("payment"), expected);
    assert_eq!(bed.writes, 1);
    let told = finding.parts.iter().flat_map(|part| &part.stands);
    let told = told.filter(|stand| stand.state == State::TooManySources);
    assert_eq!(told.count(), 940);
}

/// Sixty Intentions that fill an entry, and sixty older ones that wait for a place in it.
fn full() -> Bed {
    let mut bed = Bed::new();
    for n in 0..60 {
        let spec = to_payment(&[(&format!("s{n:02}"), "allow")]);
        bed.intention(&format!("f{n:02}"), 1000 + n, spec);
    }
    bed.settle(&payment());
    for n in 0..60 {
        let spec = to_payment(&[(&format!("w{n:02}"), "allow")]);
        bed.intention(&format!("wait{n:02}"), n, spec);
    }
    bed.settle(&payment());
    assert_eq!((bed.sources("payment").len(), bed.writes), (60, 1));
    bed
}

fn waits(finding: &EntryFinding) -> BTreeSet<(String, String)> {
    let mut waits = BTreeSet::new();
    for part in &finding.parts {
        let stands = part.stands.iter();
        for stand in stands.filter(|stand| stand.state == State::TooManySources) {
            waits.insert((stand.owner.name.to_string(), part.key.to_string()));
        }
    }
    waits
}

#[test]
fn what_is_in_a_full_entry_keeps_its_place_when_it_is_edited() {
    let mut bed = full();
    bed.intention("f31", 1031, to_payment(&[("g31", "allow")]));
    let finding = bed.settle(&payment());
    let sources = bed.sources("payment");
    assert_eq!(sources.len(), 60);
    assert!(sources.contains(&"g31 allow".to_owned()), "{sources:?}");
    assert!(!sources.contains(&"s31 allow".to_owned()));
    assert_eq!(*state(&finding, "g31", &intention("f31")), State::Fine);
    assert_eq!(waits(&finding).len(), 60);
    // The place of one that goes is the oldest's.
    bed.remove_intention("f31");
    bed.settle(&payment());
    let sources = bed.sources("payment");
    assert!(sources.contains(&"w00 allow".to_owned()), "{sources:?}");
}

#[test]
fn places_are_the_same_in_whatever_order_all_are_edited() {
    let edit = |bed: &mut Bed, n: usize| {
        if n < 60 {
            let source = format!("g{n:02}");
            let spec = to_payment(&[(&source, "deny")]);
            bed.intention(&format!("f{n:02}"), 1000 + i64::try_from(n).unwrap(), spec);
        } else {
            let source = format!("v{:02}", n - 60);
            let spec = to_payment(&[(&source, "deny")]);
            let created = i64::try_from(n - 60).unwrap();
            bed.intention(&format!("wait{:02}", n - 60), created, spec);
        }
    };
    let expected: Vec<String> = (0..60).map(|n| format!("g{n:02} deny")).collect();
    for order in [1, 7, 119] {
        for each in [false, true] {
            let mut bed = full();
            for n in 0..120 {
                edit(&mut bed, n * order % 120);
                if each {
                    bed.settle(&payment());
                }
            }
            let finding = bed.settle(&payment());
            assert_eq!(bed.sources("payment"), expected, "{order} {each}");
            assert_eq!(waits(&finding).len(), 60);
        }
    }
}

#[test]
fn an_edit_that_needs_more_than_its_place_waits_and_what_it_had_stays() {
    let mut bed = full();
    let long = |n: usize| format!("{n}{}", "x".repeat(200));
    let more: Vec<String> = (0..4).map(long).collect();
    let mut sources: Vec<(&str, &str)> = more.iter().map(|it| (&**it, "allow")).collect();
    sources.push(("s31", "deny"));
    bed.intention("f31", 1031, to_payment(&sources));
    let finding = bed.settle(&payment());
    let there = bed.sources("payment");
    assert_eq!(there.len(), 60);
    assert!(there.contains(&"s31 deny".to_owned()), "{there:?}");
    let told = waits(&finding);
    let theirs = told.iter().filter(|(owner, _)| owner == "f31");
    assert_eq!((theirs.count(), told.len()), (4, 64));
}

/// Whoever is left out takes from nobody what is asked for, and what nobody has is not let go for it.
#[test]
fn what_one_that_is_left_out_asks_for_stays_with_whom_has_it() {
    let mut bed = full();
    let mut spec = many("b", 200);
    let s31 = json!({"name": "s31", "action": "deny"});
    spec["sources"].as_array_mut().unwrap().push(s31);
    bed.intention("wait00", 0, spec);
    bed.intention("f31", 1031, to_payment(&[("s31", "deny")]));
    let finding = bed.settle(&payment());
    let is_there = |bed: &Bed| bed.sources("payment").contains(&"s31 deny".to_owned());
    assert!(is_there(&bed));
    assert_eq!(*state(&finding, "s31", &intention("f31")), State::Fine);
    bed.remove_intention("f31");
    bed.settle(&payment());
    assert!(is_there(&bed));
}

/// While it is found out who is to blame for a refusal, an older one may still turn out not to be.
#[test]
fn what_a_suspect_asks_for_is_given_to_no_younger_one() {
    let mut bed = Bed::new();
    bed.intention("bad", 1, to_payment(&[("db", "allow")]));
    bed.intention("old", 2, to_payment(&[("web", "deny")]));
    bed.intention(
        "young",
        3,
        to_payment(&[("web", "allow"), ("api", "allow")]),
    );
    let changing = [intention("bad"), intention("old")];
    let destination = Destination::new("payment");
    let refusals = &mut bed.rules.refusals;
    refusals.refused(&destination, &changing, false, "no", Instant::now());
    let finding = bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["api allow", "db allow"]);
    let waits = state(&finding, "web", &intention("young"));
    assert_eq!(*waits, State::Pending);
    // It is to blame after all: then nobody older asks for it.
    bed.rules.refusals.accepted(&destination);
    bed.settle(&payment());
    assert_eq!(
        bed.sources("payment"),
        ["api allow", "db allow", "web allow"]
    );
}
