//! Decisions about what is on no node, carried out on a Consul of a few maps.

mod queries;

use std::collections::BTreeMap;

use globset::GlobSet;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::api::object::Object;
use crate::desired::index::Touched;
use crate::desired::intention::Intention;
use crate::desired::query::PreparedQuery;
use crate::desired::registration::Registration;
use crate::model::key::source_key;
use crate::model::kind::Kind;
use crate::model::ledger::Ledger;
use crate::model::names::{ClusterName, Destination, QueryName};
use crate::model::source::SourceName;
use crate::model::text::Pairs;
use crate::observed::entries::{self, ObservedDefaults, ObservedIntentions};
use crate::plan::Mode;

fn cluster() -> ClusterName {
    "a".parse().unwrap()
}

/// A Consul as far as entries on no node go.
#[derive(Default)]
struct Consul {
    index: u64,
    intentions: BTreeMap<String, wire::ServiceIntentions>,
    defaults: BTreeMap<String, wire::ServiceDefaults>,
    queries: BTreeMap<String, wire::PreparedQuery>,
    ledger: BTreeMap<String, (Vec<u8>, u64)>,
    /// Entries of the ledgers of other clusters; `None` where they cannot be read.
    others: Option<Vec<wire::KvPair>>,
}

impl Consul {
    fn next(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    fn carry_out(&mut self, key: &Key, change: &Change) {
        let index = self.next();
        match (key, change) {
            (Key::Intentions(name), Change::PutIntentions(entry, cas)) => {
                let there = self.intentions.get(name.as_ref());
                assert_eq!(there.map_or(0, |there| there.modify_index), *cas);
                let create_index = there.map_or(index, |there| there.create_index);
                let mut entry = entry.clone();
                entry.create_index = create_index;
                entry.modify_index = index;
                entry.sources.reverse();
                entry
                    .sources
                    .iter_mut()
                    .for_each(|source| source.precedence = 9);
                self.intentions.insert(name.to_string(), entry);
            }
            (Key::Intentions(name), Change::DeleteIntentions(cas)) => {
                let gone = self.intentions.remove(name.as_ref()).unwrap();
                assert_eq!(gone.modify_index, *cas);
            }
            (Key::Defaults(name), Change::PutDefaults(entry, cas)) => {
                let there = self.defaults.get(name.as_ref());
                assert_eq!(there.map_or(0, |there| there.modify_index), *cas);
                let mut entry = entry.clone();
                entry.create_index = there.map_or(index, |there| there.create_index);
                entry.modify_index = index;
                self.defaults.insert(name.to_string(), entry);
            }
            (Key::Defaults(name), Change::DeleteDefaults(cas)) => {
                let gone = self.defaults.remove(name.as_ref()).unwrap();
                assert_eq!(gone.modify_index, *cas);
            }
            (Key::Query(name), Change::PutLedger(entry, cas)) => {
                let there = self.ledger.get(name.as_ref());
                assert_eq!(there.map_or(0, |(_, index)| *index), *cas);
                let value = serde_json::to_vec(entry).unwrap();
                self.ledger.insert(name.to_string(), (value, index));
            }
            (Key::Query(name), Change::DeleteLedger(cas)) => {
                let (_, index) = self.ledger.remove(name.as_ref()).unwrap();
                assert_eq!(index, *cas);
            }
            (Key::Query(_), Change::CreateQuery(query)) => drop(self.create(query.clone())),
            (Key::Query(_), Change::UpdateQuery(query, cas)) => {
                let there = self.queries.get_mut(&*query.id).unwrap();
                assert_eq!(there.modify_index, *cas);
                let create_index = there.create_index;
                *there = wire::PreparedQuery {
                    create_index,
                    modify_index: index,
                    ..query.clone()
                };
            }
            (Key::Query(_), Change::DeleteQuery(id, cas)) => {
                let gone = self.queries.remove(&**id).unwrap();
                assert_eq!(gone.modify_index, *cas);
            }
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, query: wire::PreparedQuery) -> String {
        let index = self.next();
        let taken = |known: &wire::PreparedQuery| known.name.eq_ignore_ascii_case(&query.name);
        assert!(!self.queries.values().any(taken), "the name is taken");
        let id = format!("id-{index}");
        let query = wire::PreparedQuery {
            id: id.as_str().into(),
            create_index: index,
            modify_index: index,
            ..query
        };
        self.queries.insert(id.clone(), query);
        id
    }
}

struct Bed {
    index: Index,
    mirror: Mirror,
    rules: Rules,
    consul: Consul,
    /// How whole queries are read.
    knowledge: Knowledge,
    writes: usize,
}

impl Bed {
    fn new() -> Self {
        let consul = Consul {
            others: Some(Vec::new()),
            ..Consul::default()
        };
        let mut bed = Self {
            index: Index::new(cluster(), GlobSet::empty()),
            mirror: Mirror::new(cluster()),
            rules: Rules::default(),
            consul,
            knowledge: Knowledge::Whole,
            writes: 0,
        };
        bed.list_nothing();
        bed.read();
        bed
    }

    /// All kinds are known completely: there is nothing of them.
    fn list_nothing(&mut self) {
        for kind in Kind::ALL {
            self.index.begin_list(kind);
            self.index.end_list(kind, &mut Touched::default());
        }
    }

    /// A new process, which knows what stands and nothing of what was seen.
    fn restart(self) -> Self {
        let mut after = Self::new();
        after.consul = self.consul;
        after.read();
        after
    }

    fn read(&mut self) {
        let of = |entry: &wire::ServiceIntentions| {
            let row = ObservedIntentions::of(&cluster(), entry.clone());
            (Destination::new(&entry.name), row)
        };
        let mut rows: BTreeMap<_, _> = self.consul.intentions.values().map(of).collect();
        for (name, row) in &mut rows {
            if let Some(known) = self.mirror.intentions.get(name) {
                row.recognise(known);
            }
        }
        let ticket = self.mirror.intentions.start_read();
        self.mirror
            .intentions
            .finish_read(&ticket, rows, Knowledge::Whole, |_| false);
        let defaults = self.consul.defaults.values();
        let rows = defaults.filter_map(|entry| ObservedDefaults::of(&cluster(), entry.clone()));
        let ticket = self.mirror.defaults.start_read();
        self.mirror
            .defaults
            .finish_read(&ticket, rows.collect(), Knowledge::Whole, |_| false);
        let pairs = self
            .consul
            .ledger
            .iter()
            .map(|(name, (value, index))| wire::KvPair {
                key: format!("lictor/v1/a/query/{name}").into(),
                value: value.as_slice().into(),
                modify_index: *index,
                ..wire::KvPair::default()
            });
        let found = self.consul.queries.values().cloned().collect();
        let others = self.consul.others.as_deref();
        let mut rows = entries::queries(&cluster(), found, pairs.collect(), others);
        for (name, row) in &mut rows {
            row.recognise(self.mirror.queries.get(name));
        }
        let ticket = self.mirror.queries.start_read();
        self.mirror
            .queries
            .finish_read(&ticket, rows, self.knowledge.clone(), |_| false);
    }

    fn decide(&self, key: &Key) -> EntryFinding {
        decide(key, &self.index, &self.mirror, &self.rules)
    }

    /// One write, if there is one to do.
    fn step(&mut self, key: &Key) -> bool {
        let EntryStep::Write(write) = self.decide(key).step else {
            return false;
        };
        self.consul.carry_out(key, &write.change);
        self.writes += 1;
        self.read();
        for gone in &write.removed {
            self.index.forget_entry(&gone.key);
        }
        true
    }

    /// All that is to do.
    fn settle(&mut self, key: &Key) -> EntryFinding {
        for _ in 0..10 {
            if !self.step(key) {
                return self.decide(key);
            }
        }
        panic!("no end: {:?}", self.decide(key));
    }

    fn intention(&mut self, name: &str, created: i64, spec: Value) {
        let object = object(name, created, &[], spec);
        self.index
            .apply_intention(Intention::of(&object), &mut Touched::default());
    }

    fn query(&mut self, name: &str, spec: Value) {
        let object = object(name, 1, &[], spec);
        self.index
            .apply_query(PreparedQuery::of(&object), &mut Touched::default());
    }

    fn registration(&mut self, name: &str, created: i64, spec: Value) {
        let object = object(name, created, &[], spec);
        let registration = Registration::of(&object);
        self.index
            .apply_registration(registration, &mut Touched::default());
    }

    fn remove_intention(&mut self, name: &str) {
        self.index
            .remove_intention(&"shop".into(), &name.into(), true, &mut Touched::default());
    }

    fn sources(&self, destination: &str) -> Vec<String> {
        let Some(entry) = self.consul.intentions.get(destination) else {
            return Vec::new();
        };
        let mut named: Vec<String> = entry
            .sources
            .iter()
            .map(|source| format!("{} {}", source.name, source.action))
            .collect();
        named.sort();
        named
    }
}

fn object<S: serde::de::DeserializeOwned, T>(
    name: &str,
    created: i64,
    annotations: &[(&str, &str)],
    spec: Value,
) -> Object<S, T> {
    let pair = |(key, value): &(&str, &str)| (Text::from(*key), Text::from(*value));
    Object {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        created,
        generation: 1,
        annotations: annotations.iter().map(pair).collect(),
        spec: serde_json::from_value(spec)
            .map(Box::new)
            .map_err(|error| error.to_string().into()),
        status: None,
    }
}

fn globs(glob: &str) -> GlobSet {
    let mut globs = globset::GlobSetBuilder::new();
    globs.add(globset::Glob::new(glob).unwrap());
    globs.build().unwrap()
}

fn payment() -> Key {
    Key::Intentions(Destination::new("payment"))
}

fn to_payment(sources: &[(&str, &str)]) -> Value {
    let source = |(name, action): &(&str, &str)| json!({"name": name, "action": action});
    json!({"destination": {"name": "payment"}, "sources": sources.iter().map(source).collect::<Vec<_>>()})
}

fn intention(name: &str) -> Owner {
    Owner::intention(&"shop".into(), &name.into())
}

/// How a source stands for an object.
fn state<'a>(finding: &'a EntryFinding, source: &str, owner: &Owner) -> &'a State {
    let name = SourceName::parse(source).unwrap();
    let key = source_key(&Destination::new("payment"), name);
    let part = finding.parts.iter().find(|part| part.key == key);
    let mut stands = part
        .unwrap_or_else(|| panic!("{source}: {finding:?}"))
        .stands
        .iter();
    &stands.find(|stand| stand.owner == *owner).unwrap().state
}

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
            is_new: true
        }]
    );
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

#[test]
fn too_many_sources_are_told_of_the_youngest_and_the_rest_is_written() {
    let many = |prefix: &str, count: usize| {
        let sources =
            (0..count).map(|n| json!({"name": format!("{prefix}-{n:090}"), "action": "allow"}));
        json!({"destination": {"name": "payment"}, "sources": sources.collect::<Vec<_>>()})
    };
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

// === defaults ===

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
fn the_protocol_stays_for_as_long_as_intentions_need_it() {
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
    bed.settle(&defaults());
    assert_eq!(bed.consul.defaults.len(), 1);
    bed.remove_intention("one");
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
}
