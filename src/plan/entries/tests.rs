//! Decisions about what is on no node, carried out on a Consul of a few maps.

mod defaults;
mod policy;
mod queries;
mod removal;
mod sources;

use std::collections::{BTreeMap, BTreeSet};

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
#[derive(Clone, Default)]
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
    fn restart(&self) -> Self {
        let mut after = Self::new();
        after.consul = self.consul.clone();
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
        let mut rows: BTreeMap<_, _> = rows.collect();
        for (name, row) in &mut rows {
            if let Some(known) = self.mirror.defaults.get(name) {
                row.recognise(known);
            }
        }
        let ticket = self.mirror.defaults.start_read();
        self.mirror
            .defaults
            .finish_read(&ticket, rows, Knowledge::Whole, |_| false);
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

/// So many sources with long names.
fn many(prefix: &str, count: usize) -> Value {
    let sources =
        (0..count).map(|n| json!({"name": format!("{prefix}-{n:090}"), "action": "allow"}));
    json!({"destination": {"name": "payment"}, "sources": sources.collect::<Vec<_>>()})
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
