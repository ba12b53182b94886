//! Protocols.

use super::*;

fn defaults() -> Key {
    Key::Defaults("payment".parse().unwrap())
}

fn speaks(protocol: &str) -> Value {
    json!({"service": "payment", "endpoints": [], "protocol": protocol})
}

#[test]
fn equal_protocols_are_shared_and_of_two_different_ones_the_older_counts() {
    let mut bed = Bed::new();
    bed.registration("one", 1, speaks("http"));
    bed.registration("two", 2, speaks("http"));
    bed.registration("three", 3, speaks("grpc"));
    let finding = bed.settle(&defaults());
    assert_eq!(
        (&*bed.consul.defaults["payment"].protocol, bed.writes),
        ("http", 1)
    );
    let states: Vec<bool> = finding.parts[0]
        .stands
        .iter()
        .map(|stand| stand.state == State::Fine)
        .collect();
    assert_eq!(states, [true, true, false]);
    for name in ["one", "two"] {
        let touched = &mut Touched::default();
        bed.index
            .remove_registration(&"shop".into(), &name.into(), true, touched);
        bed.settle(&defaults());
    }
    assert_eq!(&*bed.consul.defaults["payment"].protocol, "grpc");
    bed.registration("three", 3, json!({"service": "payment", "endpoints": []}));
    bed.settle(&defaults());
    assert!(bed.consul.defaults.is_empty());
}

/// What a paused registration wrote is not another's to change.
#[test]
fn a_protocol_that_is_frozen_stays() {
    let mut bed = Bed::new();
    bed.registration("one", 1, speaks("http"));
    bed.settle(&defaults());
    let paused = object("one", 1, &[("lictor.io/paused", "true")], speaks("tcp"));
    let paused = Registration::of(&paused);
    bed.index
        .apply_registration(paused, &mut Touched::default());
    bed.registration("same", 2, speaks("http"));
    bed.registration("other", 3, speaks("grpc"));
    let finding = bed.settle(&defaults());
    assert_eq!(
        (&*bed.consul.defaults["payment"].protocol, bed.writes),
        ("http", 1)
    );
    let one = Owner::registration(&"shop".into(), &"one".into());
    let states = finding.parts[0].stands.iter().map(|stand| &stand.state);
    let states: Vec<&State> = states.collect();
    let paused = State::Frozen(Freeze::Paused);
    assert_eq!(states, [&paused, &State::Fine, &State::Conflict(one)]);
}

#[test]
fn defaults_of_others_serve_where_they_say_the_same_and_are_never_written() {
    for (protocol, serves) in [("http", true), ("tcp", false)] {
        let mut bed = Bed::new();
        let theirs = wire::ServiceDefaults {
            name: "payment".into(),
            protocol: protocol.into(),
            modify_index: 3,
            ..wire::ServiceDefaults::default()
        };
        bed.consul.defaults.insert("payment".to_owned(), theirs);
        bed.read();
        bed.registration("one", 1, speaks("http"));
        let finding = bed.settle(&defaults());
        assert_eq!(bed.writes, 0);
        let fine = finding.parts[0].stands[0].state == State::Fine;
        assert_eq!(fine, serves);
    }
}

#[test]
fn the_protocol_goes_after_the_rules_that_go_with_it() {
    let mut bed = Bed::new();
    bed.registration("one", 1, speaks("http"));
    bed.settle(&defaults());
    let rules = json!([{"name": "web", "permissions": [
        {"action": "allow", "http": {"pathExact": "/"}}]}]);
    bed.intention(
        "one",
        1,
        json!({"destination": {"name": "payment"}, "sources": rules}),
    );
    bed.settle(&payment());
    bed.index
        .remove_registration(&"shop".into(), &"one".into(), true, &mut Touched::default());
    bed.remove_intention("one");
    bed.settle(&defaults());
    assert_eq!(bed.consul.defaults.len(), 1);
    bed.settle(&payment());
    bed.settle(&defaults());
    assert!(bed.consul.defaults.is_empty());
}

#[test]
fn what_somebody_added_to_our_defaults_stays_when_we_go() {
    let mut bed = Bed::new();
    bed.registration("one", 1, speaks("http"));
    bed.settle(&defaults());
    let entry = bed.consul.defaults.get_mut("payment").unwrap();
    entry
        .other
        .insert("MaxInboundConnections".to_owned(), 7.into());
    bed.read();
    assert!(!bed.step(&defaults()), "it is no drift");
    bed.index
        .remove_registration(&"shop".into(), &"one".into(), true, &mut Touched::default());
    bed.settle(&defaults());
    let left = &bed.consul.defaults["payment"];
    assert!(left.meta.is_empty() && !left.other.is_empty());
    assert_eq!(&*left.protocol, "", "only what is theirs stays");
    assert!(!bed.step(&defaults()));
}

/// Some of our marks make an entry nobody's less, and ours no more.
#[test]
fn defaults_with_some_of_our_marks_are_anothers_unless_they_were_seen_with_all() {
    const MARKS: [(&str, &str); 3] = [
        ("external-source", "kubernetes"),
        ("lictor-cluster", "a"),
        ("lictor-owner", "ServiceRegistration/shop/one"),
    ];
    let without = |lost: usize| -> Pairs {
        let marks = MARKS.iter().enumerate().filter(|(n, _)| *n != lost);
        marks
            .map(|(_, (k, v))| ((*k).into(), (*v).into()))
            .collect()
    };
    for lost in 0..MARKS.len() {
        let mut seen = Bed::new();
        seen.registration("one", 1, speaks("http"));
        seen.settle(&defaults());
        let whole = seen.consul.defaults["payment"].meta.clone();
        let entry = seen.consul.defaults.get_mut("payment").unwrap();
        entry.protocol = "tcp".into();
        entry.meta = without(lost);
        entry.modify_index = 99;
        seen.read();
        let mut after = seen.restart();
        seen.settle(&defaults());
        let repaired = &seen.consul.defaults["payment"];
        assert_eq!((&*repaired.protocol, &repaired.meta), ("http", &whole));

        let mut spec = speaks("http");
        spec["adopt"] = true.into();
        after.registration("one", 1, spec);
        let finding = after.settle(&defaults());
        let state = &finding.parts[0].stands[0].state;
        assert!(
            matches!(state, State::OwnedByAnother(_)),
            "{lost}: {state:?}"
        );
        let touched = &mut Touched::default();
        after
            .index
            .remove_registration(&"shop".into(), &"one".into(), true, touched);
        after.settle(&defaults());
        assert_eq!((after.writes, after.consul.defaults.len()), (0, 1));
    }
}

/// `proxy-defaults` may give rules the protocol that they need: whether it does, Consul knows.
#[test]
fn a_protocol_waits_only_for_rules_that_go_as_well() {
    let mut bed = Bed::new();
    bed.registration("one", 1, speaks("http"));
    bed.settle(&defaults());
    let rules = json!([{"name": "web", "permissions": [
        {"action": "allow", "http": {"pathExact": "/"}}]}]);
    let spec = json!({"destination": {"name": "payment"}, "sources": rules});
    bed.intention("stays", 1, spec);
    bed.settle(&payment());
    bed.index
        .remove_registration(&"shop".into(), &"one".into(), true, &mut Touched::default());
    let EntryStep::Write(write) = bed.decide(&defaults()).step else {
        panic!("it is not tried");
    };
    assert!(matches!(write.change, Change::DeleteDefaults(_)));
    bed.remove_intention("stays");
    assert_eq!(bed.decide(&defaults()).step, EntryStep::Settled);
}
