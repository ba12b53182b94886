//! What is on no node and is to be removed: intentions, prepared queries, defaults of services.

use std::collections::BTreeSet;

use crate::consul::wire;
use crate::desired::index::Index;
use crate::model::key::{Key, source_key};
use crate::model::ledger;
use crate::model::names::{ClusterName, Destination, QueryName, ServiceName};
use crate::model::owner::Owner;
use crate::model::source::{self, SourceName};
use crate::observed::entries::ObservedIntentions;
use crate::observed::mirror::Mirror;
use crate::plan::Rules;
use crate::plan::entries::{Change, EntryStep, EntryWrite, decide};
use crate::sync::carry::{self, Row};

/// Something on no node that is to be removed, or of which something is.
#[derive(Clone, Debug)]
pub struct DoomedEntry {
    /// The key that is written.
    pub key: Key,
    /// What goes, and whose it was; nothing where only the ledger is left of a query.
    pub gone: Vec<(Key, Owner)>,
    /// What is done, one after the other.
    pub changes: Vec<Change>,
}

impl DoomedEntry {
    fn new(key: Key) -> Self {
        Self {
            key,
            gone: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn add(&mut self, write: EntryWrite) {
        let gone = write.removed.into_iter();
        self.gone.extend(gone.map(|gone| (gone.key, gone.owner)));
        self.changes.push(write.change);
    }

    /// Whether another reading found the same, unchanged.
    pub(super) fn is(&self, other: &Self) -> bool {
        let indices = |of: &Self| of.changes.iter().map(Change::index).collect::<Vec<_>>();
        (&self.key, &self.gone, indices(self)) == (&other.key, &other.gone, indices(other))
    }

    /// The key of its entry in the ledger, where that goes too.
    #[must_use]
    pub fn ledger(&self, cluster: &ClusterName) -> Option<String> {
        let strikes = |change: &Change| matches!(change, Change::DeleteLedger(_));
        match &self.key {
            Key::Query(name) if self.changes.iter().any(strikes) => {
                Some(ledger::key(cluster, name))
            }
            _ => None,
        }
    }
}

/// Finds what of a cluster's no object claims, in the order in which it can go: Consul keeps a protocol
/// for as long as intentions need it, and the ledger says whose a query is. The queries of `kept` stay.
/// The mirror shows afterwards what is left.
pub(super) fn doomed(
    index: &Index,
    mirror: &mut Mirror,
    kept: &BTreeSet<QueryName>,
) -> Vec<DoomedEntry> {
    let rules = released(mirror);
    let destinations: Vec<Destination> = mirror.intentions.iter().map(first).collect();
    let services: Vec<ServiceName> = mirror.defaults.iter().map(first).collect();
    let names: Vec<QueryName> = mirror.queries.iter().map(first).collect();
    let mut all = Vec::new();
    all.extend(
        destinations
            .iter()
            .filter_map(|destination| intentions(destination, index, mirror, &rules)),
    );
    all.extend(services.into_iter().filter_map(|service| {
        let key = Key::Defaults(service);
        let EntryStep::Write(write) = decide(&key, index, mirror, &rules).step else {
            return None;
        };
        let mut doomed = DoomedEntry::new(key);
        doomed.add(*write);
        (!doomed.gone.is_empty()).then_some(doomed)
    }));
    let names = names.iter().filter(|name| !kept.contains(name));
    all.extend(names.filter_map(|name| query(name, index, mirror, &rules)));
    all
}

fn first<K: Clone, V>((key, _): (&K, V)) -> K {
    key.clone()
}

/// Rules by which all that nothing claims may go: whoever asks judges how much.
fn released(mirror: &Mirror) -> Rules {
    let mut rules = Rules::default();
    for key in mirror.entry_keys() {
        if let Key::Intentions(destination) = &key
            && let Some(there) = mirror.intentions.get(destination)
        {
            for name in there.owners.keys() {
                rules.guard.found(&source_key(destination, name.clone()));
            }
        } else {
            rules.guard.found(&key);
        }
    }
    rules.guard.release();
    rules
}

/// The sources that go, and the entry without them: nothing else in it is changed.
fn intentions(
    destination: &Destination,
    index: &Index,
    mirror: &mut Mirror,
    rules: &Rules,
) -> Option<DoomedEntry> {
    let key = Key::Intentions(destination.clone());
    let EntryStep::Write(mut write) = decide(&key, index, mirror, rules).step else {
        return None;
    };
    let there = mirror.intentions.get(destination)?;
    let names = write.removed.iter().filter_map(|gone| match &gone.key {
        Key::Source(source) => Some(source.source.clone()),
        _ => None,
    });
    let names: BTreeSet<SourceName> = names.collect();
    if names.is_empty() {
        return None;
    }
    let (cluster, at) = (index.cluster(), there.modify_index);
    let rest = without(cluster, there, &names);
    let row = rest.clone();
    let row = row.map(|entry| ObservedIntentions::of(cluster, entry));
    write.change = match rest {
        Some(entry) => Change::PutIntentions(entry, at),
        None => Change::DeleteIntentions(at),
    };
    mirror.intentions.set(destination, row);
    let mut doomed = DoomedEntry::new(key);
    doomed.add(*write);
    Some(doomed)
}

/// An entry without some of its sources; `None` where none is left.
fn without(
    cluster: &ClusterName,
    there: &ObservedIntentions,
    gone: &BTreeSet<SourceName>,
) -> Option<wire::ServiceIntentions> {
    let stays = |name: &SourceName| !gone.contains(name);
    let sources = there.sources.iter().filter(|(name, _)| stays(name));
    let sources: Vec<_> = sources.map(|(_, source)| source.clone()).collect();
    if sources.is_empty() {
        return None;
    }
    let mut owners = there.owners.clone();
    owners.retain(|name, _| stays(name));
    let meta = if owners.is_empty() {
        source::without_marks(&there.meta)
    } else {
        // Fewer than there were: there is room for them.
        source::meta(cluster, &owners, &there.meta).unwrap_or_else(|_| there.meta.clone())
    };
    Some(wire::ServiceIntentions {
        name: there.name.clone(),
        jwt: there.jwt.clone().filter(|_| stays(&SourceName::Jwt)),
        sources,
        meta,
        other: there.other.clone(),
        ..wire::ServiceIntentions::default()
    })
}

/// A query that goes, and then its entry in the ledger.
fn query(
    name: &QueryName,
    index: &Index,
    mirror: &mut Mirror,
    rules: &Rules,
) -> Option<DoomedEntry> {
    if index.queries_of(name).next().is_some() {
        return None;
    }
    let mut doomed = DoomedEntry::new(Key::Query(name.clone()));
    while let EntryStep::Write(write) = decide(&doomed.key, index, mirror, rules).step {
        let row = match &write.change {
            Change::DeleteQuery(..) => Row::Query(None),
            Change::DeleteLedger(_) => Row::Ledger(None),
            _ => break,
        };
        let row = carry::placed(mirror.queries.get(name), row);
        mirror.queries.set(name, row);
        doomed.add(*write);
    }
    (!doomed.changes.is_empty()).then_some(doomed)
}
