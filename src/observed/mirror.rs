//! The mirror: what Consul is known to hold on our nodes, and how sure that is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use super::content::{NodeContent, instances_of, node_of};
use super::entries::{ObservedDefaults, ObservedIntentions, ObservedQuery};
use super::entry::{ObservedInstance, ObservedNode};
use super::table::{Entries, Knowledge};
use crate::model::key::source_key;
use crate::model::key::{InstanceKey, Key, Place, Table};
use crate::model::marks::{self, Standing};
use crate::model::names::{ClusterName, Destination, InstanceId, NodeName, QueryName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};

/// A moment in the order of reads and writes; it has nothing to do with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

/// A read that is under way. What was written since it began is not taken from it.
#[derive(Debug)]
#[must_use]
pub struct Ticket(Tick);

/// How sure the mirror is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// Not all of our nodes were read yet: nothing is written.
    #[default]
    Unknown,
    /// All were read.
    Complete,
}

/// What Consul is known to hold on our nodes.
#[derive(Debug)]
pub struct Mirror {
    cluster: ClusterName,
    completeness: Completeness,
    nodes: BTreeMap<NodeName, ObservedNode>,
    instances: BTreeMap<InstanceKey, ObservedInstance>,
    /// How many of the instances are ours.
    owned: usize,
    /// Nodes that carried our mark once, by their `CreateIndex`: a hand-made register without meta
    /// erases the mark and keeps the index.
    marked: HashMap<NodeName, u64>,
    /// Nodes of which it is not known whether a write arrived: nothing is planned on them.
    unsure: BTreeMap<NodeName, Tick>,
    clock: Tick,
    /// Reads that began before are void.
    since: Tick,
    reading: BTreeSet<Tick>,
    /// When the newest complete reads of nodes began, for as long as an older one is under way.
    read: HashMap<NodeName, Tick>,
    /// When keys were last written, for as long as a read that began before is under way.
    written: HashMap<Key, Tick>,
    /// The defaults of services.
    pub defaults: Entries<ServiceName, ObservedDefaults>,
    /// The intentions of destinations.
    pub intentions: Entries<Destination, ObservedIntentions>,
    /// Prepared queries and their ledger.
    pub queries: Entries<QueryName, ObservedQuery>,
}

impl Mirror {
    /// A mirror that knows nothing yet.
    #[must_use]
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            completeness: Completeness::default(),
            nodes: BTreeMap::new(),
            instances: BTreeMap::new(),
            owned: 0,
            marked: HashMap::new(),
            unsure: BTreeMap::new(),
            clock: Tick(0),
            since: Tick(0),
            reading: BTreeSet::new(),
            read: HashMap::new(),
            written: HashMap::new(),
            defaults: Entries::default(),
            intentions: Entries::default(),
            queries: Entries::default(),
        }
    }

    /// How sure the mirror is.
    #[must_use]
    pub fn completeness(&self) -> Completeness {
        self.completeness
    }

    /// All of our nodes were read.
    pub fn complete(&mut self) {
        self.completeness = Completeness::Complete;
    }

    /// A node of ours.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&ObservedNode> {
        self.nodes.get(name)
    }

    /// An instance on one of our nodes, ours or not.
    #[must_use]
    pub fn instance(&self, key: &InstanceKey) -> Option<&ObservedInstance> {
        self.instances.get(key)
    }

    /// Whose an instance is.
    #[must_use]
    pub fn standing(&self, key: &InstanceKey, instance: &ObservedInstance) -> Standing {
        marks::judge(
            &self.cluster,
            key,
            &instance.service.name,
            &instance.service.meta,
        )
    }

    /// Whether an entry that lacks some or all of our marks, and has no other's, is ours all the same:
    /// this process saw it marked, and it was not removed since. The usual hand edit, a register with
    /// another meta or none, makes such entries.
    #[must_use]
    pub fn lost_marks(&self, instance: &ObservedInstance) -> bool {
        instance.was_ours && !marks::is_anothers(&self.cluster, &instance.service.meta)
    }

    /// Whether a node is ours: by its mark; or without any cluster's mark, by having had ours, or by
    /// holding an instance of ours.
    #[must_use]
    pub fn is_our_node(&self, name: &NodeName, node: &ObservedNode) -> bool {
        match node.node.meta.get(marks::CLUSTER) {
            Some(cluster) => **cluster == *self.cluster.as_ref(),
            None => {
                self.marked.get(name) == Some(&node.create_index)
                    || self.on_node(name).any(|(key, instance)| {
                        matches!(self.standing(key, instance), Standing::Ours(_))
                    })
            }
        }
    }

    /// The instances on a node.
    pub fn on_node(
        &self,
        node: &NodeName,
    ) -> impl Iterator<Item = (&InstanceKey, &ObservedInstance)> {
        let first = InstanceKey {
            node: node.clone(),
            id: InstanceId::observed(""),
        };
        let node = node.clone();
        self.instances
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.node == node)
    }

    /// All keys that are known.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let instances = self.instances.keys().cloned().map(Key::Instance);
        self.nodes.keys().cloned().map(Key::Node).chain(instances)
    }

    /// All keys that are known and on no node.
    pub fn entry_keys(&self) -> impl Iterator<Item = Key> {
        let defaults = self
            .defaults
            .iter()
            .map(|(key, _)| Key::Defaults(key.clone()));
        let intentions = self.intentions.iter();
        let intentions = intentions.map(|(key, _)| Key::Intentions(key.clone()));
        let queries = self.queries.iter().map(|(key, _)| Key::Query(key.clone()));
        defaults.chain(intentions).chain(queries)
    }

    /// Keys of all that is on no node and says that it belongs to an object.
    #[must_use]
    pub fn entries_held_by(&self, owner: &Owner) -> Vec<Key> {
        match owner.kind {
            OwnerKind::Pod => Vec::new(),
            OwnerKind::Intention => {
                let of = |(destination, there): (&Destination, &ObservedIntentions)| {
                    let names = there.owners.iter().filter(|(_, of)| *of == owner);
                    let keys = names.map(|(name, _)| source_key(destination, name.clone()));
                    keys.collect::<Vec<Key>>()
                };
                self.intentions.iter().flat_map(of).collect()
            }
            OwnerKind::ServiceRegistration | OwnerKind::PreparedQuery => {
                let is_of = |there: &ObservedQuery| there.owner().as_ref() == Some(owner);
                let queries = self.queries.iter().filter(|(_, there)| is_of(there));
                let queries = queries.map(|(name, _)| Key::Query(name.clone()));
                let defaults = self.defaults.iter();
                let defaults = defaults.filter(|(_, there)| there.owner.as_ref() == Some(owner));
                let defaults = defaults.map(|(service, _)| Key::Defaults(service.clone()));
                queries.chain(defaults).collect()
            }
        }
    }

    /// How many things on no node are ours.
    #[must_use]
    pub fn owned_entries(&self) -> usize {
        self.defaults.owned() + self.intentions.owned() + self.queries.owned()
    }

    /// The names of all nodes that are known.
    pub fn node_names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// Keys of all that says it stands for, or belongs to, an object; on one node, or on all.
    #[must_use]
    pub fn held_by(&self, owner: &Owner, node: Option<&NodeName>) -> Vec<Key> {
        let ours = |(key, instance): (&InstanceKey, &ObservedInstance)| {
            let Standing::Ours(holder) = self.standing(key, instance) else {
                return None;
            };
            let refers = |meta: &str, to: &str| {
                let value = instance.service.meta.get(meta);
                value.is_some_and(|value| **value == *to)
            };
            let stands_for = refers(marks::K8S_REF_KIND, owner.kind.as_str())
                && refers(marks::K8S_REF_NAME, &owner.name)
                && holder.namespace == owner.namespace;
            (holder == *owner || stands_for).then(|| Key::Instance(key.clone()))
        };
        match node {
            Some(node) => self.on_node(node).filter_map(ours).collect(),
            None => self.instances.iter().filter_map(ours).collect(),
        }
    }

    /// How many instances are ours.
    #[must_use]
    pub fn owned_instances(&self) -> usize {
        self.owned
    }

    /// How many nodes carry our mark.
    #[must_use]
    pub fn owned_nodes(&self) -> usize {
        self.marked.len()
    }

    // === sureness ===

    /// Consul lost what it held, or was given other contents: all that is known of it is void, and so
    /// are the reads that are under way.
    pub fn start_over(&mut self) {
        let since = self.advance();
        self.defaults.start_over();
        self.intentions.start_over();
        self.queries.start_over();
        *self = Self {
            clock: since,
            since,
            defaults: std::mem::take(&mut self.defaults),
            intentions: std::mem::take(&mut self.intentions),
            queries: std::mem::take(&mut self.queries),
            ..Self::new(self.cluster.clone())
        };
    }

    /// Whether a read that began with this ticket is void.
    #[must_use]
    pub fn is_void(&self, Ticket(began): &Ticket) -> bool {
        *began < self.since
    }

    /// Whether it is not known what stands there.
    #[must_use]
    pub fn is_unsure(&self, place: &Place) -> bool {
        match place {
            Place::Node(node) => {
                self.completeness == Completeness::Unknown || self.unsure.contains_key(node)
            }
            Place::Table(table) => *self.knowledge(*table) == Knowledge::Unknown,
        }
    }

    /// How far it is known what a table holds.
    #[must_use]
    pub fn knowledge(&self, table: Table) -> &Knowledge {
        match table {
            Table::Defaults => self.defaults.knowledge(),
            Table::Intentions => self.intentions.knowledge(),
            Table::Queries => self.queries.knowledge(),
        }
    }

    /// It is not known any more what a table holds, until a read that begins from now on.
    pub fn doubt_table(&mut self, table: Table) {
        match table {
            Table::Defaults => self.defaults.doubt(),
            Table::Intentions => self.intentions.doubt(),
            Table::Queries => self.queries.doubt(),
        }
    }

    /// It is not known any more what stands on the node, until a read that begins from now on.
    pub fn doubt(&mut self, node: &NodeName) {
        let tick = self.advance();
        self.unsure.insert(node.clone(), tick);
    }

    // === reads ===

    /// A read begins.
    pub fn start_read(&mut self) -> Ticket {
        let tick = self.advance();
        self.reading.insert(tick);
        Ticket(tick)
    }

    /// A read failed.
    pub fn abandon_read(&mut self, Ticket(began): Ticket) {
        self.end_read(began);
    }

    /// A read of a node is complete. Keys that are being written (`busy`) or were written since the
    /// read began stay as they are known; so does all where a younger read was complete before.
    /// Returns the keys of which something changed.
    pub fn finish_read(
        &mut self,
        Ticket(began): Ticket,
        name: &NodeName,
        content: &NodeContent,
        busy: &HashSet<Key>,
    ) -> Vec<Key> {
        if self.read.get(name).is_some_and(|younger| *younger > began) {
            self.end_read(began);
            return Vec::new();
        }
        let current = |this: &Self, key: &Key| {
            busy.contains(key) || this.written.get(key).is_some_and(|at| *at > began)
        };
        let mut changed = Vec::new();
        let node_key = Key::Node(name.clone());
        // What was written to a node that is gone, and was not written anew, went with it.
        let node_is_gone = content.node.is_none() && !current(self, &node_key);
        let mut incoming = instances_of(name, content);
        let known: Vec<InstanceKey> = self.on_node(name).map(|(key, _)| key.clone()).collect();
        for key in known {
            let is_current = !node_is_gone && current(self, &Key::Instance(key.clone()));
            if !incoming.contains_key(&key) && !is_current {
                self.take_instance(&key);
                changed.push(Key::Instance(key));
            }
        }
        for (key, instance) in std::mem::take(&mut incoming) {
            let full_key = Key::Instance(key.clone());
            let instance = self.recognised(&key, instance);
            if !current(self, &full_key) && self.instances.get(&key) != Some(&instance) {
                self.put_instance(key, instance);
                changed.push(full_key);
            }
        }
        let node = node_of(content);
        if !current(self, &node_key) && self.nodes.get(name) != node.as_ref() {
            self.set_node(name, node);
            changed.push(node_key);
        }
        if self.unsure.get(name).is_some_and(|since| *since < began) {
            self.unsure.remove(name);
        }
        self.read.insert(name.clone(), began);
        self.end_read(began);
        changed
    }

    /// A list of our nodes is complete. Nodes that it does not name are gone, with all on them.
    /// Returns the keys of which something changed.
    pub fn finish_list(
        &mut self,
        Ticket(began): Ticket,
        listed: &BTreeSet<NodeName>,
        busy: &HashSet<Key>,
    ) -> Vec<Key> {
        let missing: Vec<NodeName> = self
            .nodes
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        let mut changed = Vec::new();
        for name in missing {
            let node_key = Key::Node(name.clone());
            let written = self.written.get(&node_key).is_some_and(|at| *at > began);
            let read = self.read.get(&name).is_some_and(|at| *at > began);
            if written || read || busy.contains(&node_key) {
                continue;
            }
            let unsure = self.unsure.get(&name).copied();
            changed.extend(self.forget_node(&name));
            if let Some(since) = unsure.filter(|since| *since > began) {
                self.unsure.insert(name, since);
            }
        }
        self.end_read(began);
        changed
    }

    /// Consul has no such node: takes it out with all on it. Returns the keys that went.
    pub fn forget_node(&mut self, name: &NodeName) -> Vec<Key> {
        let keys: Vec<InstanceKey> = self.on_node(name).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.take_instance(key);
        }
        self.set_node(name, None);
        self.unsure.remove(name);
        let node = Key::Node(name.clone());
        keys.into_iter().map(Key::Instance).chain([node]).collect()
    }

    // === writes ===

    /// A write of an instance was acknowledged; `None` for a removal.
    pub fn wrote_instance(&mut self, key: &InstanceKey, instance: Option<ObservedInstance>) {
        self.note_write(Key::Instance(key.clone()));
        match instance {
            Some(instance) => self.put_instance(key.clone(), instance),
            None => self.take_instance(key),
        }
    }

    /// A write of a node was acknowledged.
    pub fn wrote_node(&mut self, name: &NodeName, node: ObservedNode) {
        self.note_write(Key::Node(name.clone()));
        self.set_node(name, Some(node));
    }

    /// The removal of a node was acknowledged.
    pub fn removed_node(&mut self, name: &NodeName) {
        self.note_write(Key::Node(name.clone()));
        let _ = self.forget_node(name);
    }

    fn note_write(&mut self, key: Key) {
        if !self.reading.is_empty() {
            let tick = self.advance();
            self.written.insert(key, tick);
        }
    }

    fn advance(&mut self) -> Tick {
        self.clock.0 += 1;
        self.clock
    }

    fn end_read(&mut self, began: Tick) {
        self.reading.remove(&began);
        match self.reading.first().copied() {
            None => {
                self.written.clear();
                self.read.clear();
            }
            Some(oldest) => {
                self.written.retain(|_, at| *at > oldest);
                self.read.retain(|_, at| *at > oldest);
            }
        }
    }

    /// An entry, with what is known of its past.
    fn recognised(&self, key: &InstanceKey, instance: ObservedInstance) -> ObservedInstance {
        let same = |known: &&ObservedInstance| known.create_index == instance.create_index;
        let known = self.instances.get(key).filter(same);
        let was_ours = known.is_some_and(|known| known.was_ours)
            || matches!(self.standing(key, &instance), Standing::Ours(_));
        ObservedInstance {
            was_ours,
            ..instance
        }
    }

    fn put_instance(&mut self, key: InstanceKey, instance: ObservedInstance) {
        let instance = self.recognised(&key, instance);
        self.take_instance(&key);
        if matches!(self.standing(&key, &instance), Standing::Ours(_)) {
            self.owned += 1;
        }
        self.instances.insert(key, instance);
    }

    fn take_instance(&mut self, key: &InstanceKey) {
        if let Some(before) = self.instances.remove(key)
            && matches!(self.standing(key, &before), Standing::Ours(_))
        {
            self.owned -= 1;
        }
    }

    fn set_node(&mut self, name: &NodeName, node: Option<ObservedNode>) {
        let Some(node) = node else {
            self.nodes.remove(name);
            self.marked.remove(name);
            return;
        };
        let mark = node.node.meta.get(marks::CLUSTER);
        match mark {
            Some(cluster) if **cluster == *self.cluster.as_ref() => {
                self.marked.insert(name.clone(), node.create_index);
            }
            None if self.marked.get(name) == Some(&node.create_index) => {}
            _ => {
                self.marked.remove(name);
            }
        }
        self.nodes.insert(name.clone(), node);
    }
}

#[cfg(test)]
mod tests;
