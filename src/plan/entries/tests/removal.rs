//! When sources go, and when they are kept.

use super::*;

#[test]
fn with_the_last_source_of_ours_the_entry_goes_unless_it_is_others_too() {
    for with_foreign in [false, true] {
        let mut bed = Bed::new();
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.settle(&payment());
        if with_foreign {
            let entry = bed.consul.intentions.get_mut("payment").unwrap();
            entry.sources.push(wire::SourceIntention {
                name: "theirs".into(),
                action: "deny".into(),
                ..wire::SourceIntention::default()
            });
            bed.read();
            let finding = bed.settle(&payment());
            assert_eq!((finding.foreign, bed.writes), (1, 1));
        }
        bed.remove_intention("one");
        bed.settle(&payment());
        if with_foreign {
            assert_eq!(bed.sources("payment"), ["theirs deny"]);
            assert!(bed.consul.intentions["payment"].meta.is_empty());
        } else {
            assert!(bed.consul.intentions.is_empty());
        }
    }
}

#[test]
fn a_source_that_is_only_found_missing_waits_and_one_that_was_seen_going_does_not() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow"), ("api", "allow")]));
    bed.settle(&payment());
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["web allow"]);

    let mut after = bed.restart();
    let finding = after.settle(&payment());
    assert_eq!(after.writes, 0);
    let (key, hold) = finding.held().next().unwrap();
    assert_eq!(*hold, Hold::Unjudged);
    after.rules.guard.found(key);
    for list in 1..=3 {
        assert_eq!(after.sources("payment"), ["web allow"], "list {list}");
        after.rules.guard.judge(100, Instant::now());
        after.settle(&payment());
        after.rules.guard.listed(&Kind::ALL.into());
    }
    assert!(after.consul.intentions.is_empty());
}

#[test]
fn a_source_that_one_of_two_lets_go_is_not_seen_going() {
    let lets_go: [fn(&mut Bed); 2] = [
        |bed| bed.remove_intention("two"),
        |bed| bed.intention("two", 2, to_payment(&[("api", "allow")])),
    ];
    for let_go in lets_go {
        let mut bed = Bed::new();
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.intention("two", 2, to_payment(&[("web", "allow")]));
        bed.settle(&payment());
        let_go(&mut bed);
        // All Intentions are missing from a list, as after their CRD was made anew.
        bed.index.begin_list(Kind::Intention);
        bed.index.end_list(Kind::Intention, &mut Touched::default());
        let finding = bed.settle(&payment());
        assert!(bed.sources("payment").contains(&"web allow".to_owned()));
        let name = SourceName::parse("web").unwrap();
        let web = source_key(&Destination::new("payment"), name);
        assert!(finding.held().any(|held| held == (&web, &Hold::Unjudged)));
    }
}

#[test]
fn paused_and_invalid_ones_keep_what_they_hold() {
    for (annotations, spec) in [
        (
            &[("lictor.io/paused", "true")][..],
            to_payment(&[("api", "allow")]),
        ),
        (&[][..], json!({"destination": 7})),
    ] {
        let mut bed = Bed::new();
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.settle(&payment());
        let mut after = bed.restart();
        let frozen = || Intention::of(&object("one", 1, annotations, spec.clone()));
        after
            .index
            .apply_intention(frozen(), &mut Touched::default());
        after.intention("two", 2, to_payment(&[("web", "deny"), ("db", "allow")]));
        let finding = after.settle(&payment());
        assert_eq!(after.sources("payment"), ["db allow", "web allow"]);
        let kept = state(&finding, "web", &intention("one"));
        assert!(matches!(kept, State::Frozen(_)), "{kept:?}");
        // It is understood again: what it held and does not ask for was seen going.
        let mut touched = Touched::default();
        let valid = object("one", 1, &[], to_payment(&[("api", "allow")]));
        after
            .index
            .apply_intention(Intention::of(&valid), &mut touched);
        assert!(touched.entries_let_go.contains(&intention("one")));
        for key in after.mirror.entries_held_by(&intention("one")) {
            after.index.withdraw_entry(key);
        }
        after.settle(&payment());
        assert_eq!(
            after.sources("payment"),
            ["api allow", "db allow", "web deny"]
        );
    }
}

/// Without its last claim is only what nobody else claims.
#[test]
fn a_claim_in_vain_that_is_seen_going_says_nothing_of_the_source() {
    for excluded in [false, true] {
        let mut bed = Bed::new();
        if excluded {
            bed.index = Index::new(cluster(), globs("elsewhere"));
            bed.list_nothing();
        }
        bed.intention("one", 1, to_payment(&[("web", "allow")]));
        bed.settle(&payment());
        let mut vain = object("vain", 2, &[], to_payment(&[("web", "deny")]));
        if excluded {
            vain.namespace = "elsewhere".into();
        }
        let touched = &mut Touched::default();
        bed.index.apply_intention(Intention::of(&vain), touched);
        bed.index
            .remove_intention(&vain.namespace, &vain.name, true, touched);
        // A list without the object that has it, as another API server has it.
        bed.index.begin_list(Kind::Intention);
        bed.index.end_list(Kind::Intention, touched);
        let finding = bed.settle(&payment());
        assert_eq!(bed.sources("payment"), ["web allow"]);
        assert_eq!(finding.held().count(), 1, "{excluded}: {finding:?}");
    }
}

#[test]
fn a_policy_without_removals_takes_no_source_out() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow"), ("api", "allow")]));
    bed.settle(&payment());
    bed.rules.mode = Mode::UpsertOnly;
    bed.intention("one", 1, to_payment(&[("web", "deny")]));
    bed.settle(&payment());
    assert_eq!(bed.sources("payment"), ["api allow", "web deny"]);
}

#[test]
fn what_is_known_in_part_loses_nothing() {
    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    bed.settle(&payment());
    bed.remove_intention("one");
    let ticket = bed.mirror.intentions.start_read();
    let rows = bed
        .mirror
        .intentions
        .iter()
        .map(|(key, row)| (key.clone(), row.clone()));
    let rows = rows.collect();
    let partial = Knowledge::Partial("no rights".to_owned());
    bed.mirror
        .intentions
        .finish_read(&ticket, rows, partial, |_| false);
    let finding = bed.decide(&payment());
    assert_eq!(finding.step, EntryStep::Settled);
    assert!(matches!(
        finding.held().next(),
        Some((_, Hold::Incomplete { .. }))
    ));
}
