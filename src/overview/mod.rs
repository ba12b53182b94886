//! What Lictor has in Consul for a cluster, and how it stands: `lictor status`. Pure.
//!
//! What is there comes from Consul, what should be there from a [`Preview`], which is the plan that
//! `lictor run` would carry out: whatever that would still do is drift here.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

pub mod show;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::model::entry::Health;
use crate::model::key::{InstanceKey, Key, source_key};
use crate::observed::entry::ObservedInstance;
use crate::observed::mirror::Mirror;
use crate::plan;
use crate::preview::{Action, Item, Preview};

/// What Lictor has in Consul, and what is the matter with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The Kubernetes cluster, by the name that it has in Consul.
    pub cluster: String,
    /// The process that writes.
    pub writer: Writer,
    /// By name: those of which an instance is in Consul, or is to be.
    pub services: Vec<Service>,
    /// All else that is in Consul or is to be: nodes, intentions, queries and the like.
    pub others: Vec<Entry>,
    /// What asks for something that cannot be had, and is no entry of Consul.
    pub objects: Vec<Entry>,
    /// How many of all there are.
    pub summary: Tally,
    /// What is not known, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Who writes for the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Writer {
    /// The process that took the epoch last, and so is the only one whose writes Consul takes; none where
    /// none ever wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The process that leads, by the Lease or the lock; none where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Seconds since it showed, at last, that it lives: by the time in its Lease and the clock here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_seconds_ago: Option<i64>,
}

/// How many of something there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// In Consul, of this cluster's.
    pub owned: usize,
    /// Instances whose checks, and those of their node, all pass.
    pub passing: usize,
    /// Instances of which one of these warns, and none is critical.
    pub warning: usize,
    /// Instances of which one is critical.
    pub critical: usize,
    /// Not as it should be, or not there: written at once where `lictor run` works.
    pub drift: usize,
    /// To be changed or removed, but held back.
    pub held: usize,
    /// Another object's, or another hand's.
    pub conflicts: usize,
    /// Asked for in a way that cannot be used.
    pub rejected: usize,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// How its instances stand.
    pub tally: Tally,
    /// The objects that they are of, as `Kind/namespace/name`; pods as `Pod/namespace/*`.
    pub owners: BTreeSet<String>,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// An instance that is in Consul, or is to be.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// As the logs name it: node and id.
    pub key: String,
    /// `address:port`; none where it is not in Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The worst of its checks and its node's; none where it is not in Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<&'static str>,
    /// The object that asks for it: the pod by its annotations, or the `ServiceRegistration` that selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What is the matter with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matters: Vec<Matter>,
}

/// Something else that is in Consul, or is to be.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `node`, `intention`, `query`, …, or `object`.
    pub kind: String,
    /// As the logs name it.
    pub key: String,
    /// The object that it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What is the matter with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matters: Vec<Matter>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Matter {
    /// What a plan has for it.
    pub action: Action,
    /// The objects that it is about, as `Kind/namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<String>,
    /// Why, and what to do about it; the names of the fields that differ.
    pub message: String,
}

impl Matter {
    fn of(item: &Item) -> Self {
        let fields = item.fields.iter().map(|field| &*field.name);
        let fields = fields.collect::<Vec<_>>().join(", ");
        let message = match (&item.message, item.action) {
            (Some(message), _) => message.clone(),
            (None, Action::Create) => "is not in Consul".to_owned(),
            (None, _) => format!("differs: {fields}"),
        };
        Self {
            action: item.action,
            objects: item.owners.clone(),
            message,
        }
    }
}

impl Tally {
    fn counts(&mut self, health: Health) {
        match health {
            Health::Passing => self.passing += 1,
            Health::Warning => self.warning += 1,
            Health::Critical => self.critical += 1,
        }
    }

    fn notes(&mut self, matters: &[Matter]) {
        for matter in matters {
            match matter.action {
                Action::Create | Action::Update | Action::Delete => self.drift += 1,
                Action::Held => self.held += 1,
                Action::Conflict => self.conflicts += 1,
                Action::Rejected => self.rejected += 1,
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.owned += other.owned;
        self.passing += other.passing;
        self.warning += other.warning;
        self.critical += other.critical;
        self.drift += other.drift;
        self.held += other.held;
        self.conflicts += other.conflicts;
        self.rejected += other.rejected;
    }

    /// Whether all is as it should be, whatever the health.
    #[must_use]
    pub fn is_settled(self) -> bool {
        self.drift + self.held + self.conflicts + self.rejected == 0
    }
}

/// Shows what Consul has of the cluster's. `plan` is what is to be done to it, where that is known.
#[must_use]
pub fn overview(cluster: String, observed: &Mirror, plan: Option<&Preview>) -> Overview {
    let mut open: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
    for item in plan.into_iter().flat_map(|plan| &plan.items) {
        open.entry(&item.key).or_default().push(item);
    }
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let mut others = Vec::new();
    let mut take = |key: &str| {
        let items = open.remove(key).unwrap_or_default();
        items.into_iter().map(Matter::of).collect::<Vec<_>>()
    };
    for key in observed.keys() {
        match &key {
            Key::Instance(at) => {
                let Some((service, instance, health)) = instance(at, observed, &mut take) else {
                    continue;
                };
                let service = of_name(&mut services, &service);
                service.tally.owned += 1;
                service.tally.counts(health);
                service.insert(instance);
            }
            Key::Node(name) => {
                let there = observed.node(name);
                if there.is_some_and(|there| observed.is_our_node(name, there)) {
                    others.push(entry(&key, None, &mut take));
                }
            }
            _ => {}
        }
    }
    for key in entries(observed) {
        let owner = plan::entries::owner_of(&key, observed);
        others.push(entry(&key, owner.map(|owner| owner.to_string()), &mut take));
    }
    let mut summary = Tally {
        owned: others.len(),
        ..Tally::default()
    };
    // What is not there, or is another's.
    let mut objects = Vec::new();
    for item in open.into_values().flatten() {
        let matters = vec![Matter::of(item)];
        let owner = (!item.owners.is_empty()).then(|| item.owners.join(", "));
        let key = item.key.clone();
        if let Some(service) = &item.service {
            of_name(&mut services, service).insert(Instance {
                key,
                address: None,
                health: None,
                owner,
                matters,
            });
            continue;
        }
        let entry = Entry {
            kind: item.kind.to_owned(),
            key,
            owner,
            matters,
        };
        if item.kind == "object" {
            objects.push(entry);
        } else {
            others.push(entry);
        }
    }
    for entry in others.iter().chain(&objects) {
        summary.notes(&entry.matters);
    }
    for service in services.values() {
        summary.add(service.tally);
    }
    others.sort_by(|one, other| (&one.kind, &one.key).cmp(&(&other.kind, &other.key)));
    Overview {
        cluster,
        services: services.into_values().collect(),
        others,
        objects,
        summary,
        ..Overview::default()
    }
}

impl Service {
    fn insert(&mut self, instance: Instance) {
        self.tally.notes(&instance.matters);
        if let Some(owner) = &instance.owner {
            self.owners.insert(in_short(owner));
        }
        self.instances.push(instance);
    }
}

/// A pod is one of many.
fn in_short(owner: &str) -> String {
    match owner
        .strip_prefix("Pod/")
        .and_then(|name| name.split_once('/'))
    {
        Some((namespace, _)) => format!("Pod/{namespace}/*"),
        None => owner.to_owned(),
    }
}

fn of_name<'a>(services: &'a mut BTreeMap<String, Service>, name: &str) -> &'a mut Service {
    services.entry(name.to_owned()).or_insert_with(|| Service {
        name: name.to_owned(),
        ..Service::default()
    })
}

/// An instance of this cluster's, its service, and how it is.
fn instance(
    key: &InstanceKey,
    observed: &Mirror,
    take: &mut impl FnMut(&str) -> Vec<Matter>,
) -> Option<(String, Instance, Health)> {
    let held = plan::held_under(key, observed)?;
    let health = observed.instance(key).map(ObservedInstance::health)?;
    let node = observed.node(&key.node);
    let health = node.map_or(health, |node| node.health().max(health));
    let text = key.to_string();
    let instance = Instance {
        matters: take(&text),
        key: text,
        address: Some(format!("{}:{}", held.address, held.port)),
        health: Some(health.as_str()),
        owner: Some(held.owner.to_string()),
    };
    Some((held.service.to_owned(), instance, health))
}

fn entry(key: &Key, owner: Option<String>, take: &mut impl FnMut(&str) -> Vec<Matter>) -> Entry {
    let text = key.to_string();
    Entry {
        kind: key.kind().to_owned(),
        matters: take(&text),
        key: text,
        owner,
    }
}

/// The keys of all that is on no node and of this cluster's.
fn entries(observed: &Mirror) -> Vec<Key> {
    let sources = observed.intentions.iter().flat_map(|(destination, there)| {
        let names = there.owners.keys();
        names.map(|name| source_key(destination, name.clone()))
    });
    let keys = observed.entry_keys().chain(sources);
    keys.filter(|key| plan::entries::owner_of(key, observed).is_some())
        .collect()
}

#[cfg(test)]
mod tests;
