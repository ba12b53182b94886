//! What `lictor run` would do to Consul, without doing it: `lictor plan`. Pure.
//!
//! The decisions are those of [`crate::plan`]: what is shown here is what they say, with what is there
//! and what would be there beside each other.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

mod compute;
mod fields;
pub mod manifests;
pub mod show;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

pub use self::compute::{Scope, preview};

/// All that would be done, and all that would not although something asks for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// The Kubernetes cluster, by the name that it has in Consul.
    pub cluster: String,
    /// One for each thing, in the order of their keys; those of one key beside each other.
    pub items: Vec<Item>,
    /// How many there are of each.
    pub summary: BTreeMap<Action, usize>,
    /// What is not judged, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What would become of something in Consul, or of what an object asks for.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// What would be done.
    pub action: Action,
    /// The sort of thing: `node`, `instance`, `service-defaults`, `intentions`, `intention` (one
    /// source), `query`, or `object` where no entry of Consul is meant.
    pub kind: &'static str,
    /// Which one, as the logs name it.
    pub key: String,
    /// The service's name, where it is an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The objects that it is of, as `Kind/namespace/name`; none where nothing claims it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
    /// What would be another than it is, by its name in Consul's API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// Why, where that is not plain; for what is held, in conflict or rejected, what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What would be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It would be made.
    Create,
    /// It would be changed.
    Update,
    /// It would be removed.
    Delete,
    /// It would be made, changed or removed, but for what the message says.
    Held,
    /// Another object, or somebody else, has it.
    Conflict,
    /// What asks for it cannot be used.
    Rejected,
}

impl Action {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 6] = [
        Self::Create,
        Self::Update,
        Self::Delete,
        Self::Held,
        Self::Conflict,
        Self::Rejected,
    ];
}

/// A part of an entry that would be another than it is.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Field {
    /// Its name in Consul's API, with dots: `Meta.version`.
    pub name: String,
    /// What is there; left out where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What would be there; left out where nothing would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What a plan comes to, for a pipeline (`--detailed-exitcode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Consul is as it should be.
    Settled,
    /// Something would be done, now or later.
    Changes,
    /// Something is asked for that cannot be.
    Refused,
}

impl Preview {
    fn new(cluster: String, items: Vec<Item>) -> Self {
        let mut preview = Self {
            cluster,
            summary: Action::ALL.map(|action| (action, 0)).into(),
            ..Self::default()
        };
        preview.add(items);
        preview
    }

    /// Adds more.
    pub fn add(&mut self, items: Vec<Item>) {
        for item in &items {
            *self.summary.entry(item.action).or_default() += 1;
        }
        self.items.extend(items);
        // What is of no entry comes last.
        let order = |item: &Item| (item.kind == "object", item.key.clone());
        self.items.sort_by_key(order);
    }

    /// Of this, only what another plan did not show. Returns how much that one showed, too.
    pub fn leave_out(&mut self, before: &Self) -> usize {
        let mut shown = BTreeMap::<&str, Vec<&Item>>::new();
        for item in &before.items {
            shown.entry(&item.key).or_default().push(item);
        }
        let is_shown = |item: &Item| {
            let of_key = shown.get(&*item.key);
            of_key.is_some_and(|items| items.contains(&item))
        };
        let all = std::mem::take(self);
        let (known, news): (Vec<Item>, Vec<Item>) = all.items.into_iter().partition(is_shown);
        *self = Self::new(all.cluster, news);
        self.notes = all.notes;
        known.len()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self, action: Action) -> usize {
        self.summary.get(&action).copied().unwrap_or_default()
    }

    /// What it comes to.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let any = |actions: &[Action]| actions.iter().any(|action| self.count(*action) > 0);
        if any(&[Action::Conflict, Action::Rejected]) {
            Outcome::Refused
        } else if any(&[Action::Create, Action::Update, Action::Delete, Action::Held]) {
            Outcome::Changes
        } else {
            Outcome::Settled
        }
    }
}

#[cfg(test)]
mod messages;
#[cfg(test)]
mod tests;
