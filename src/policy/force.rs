//! The policies that are in force in each namespace.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::compiled::Policy;
use crate::api::PolicyObject;
use crate::desired::table::Table;
use crate::model::facts::NamespaceFacts;
use crate::model::text::Text;

/// Policies, namespaces, and which choose which.
#[derive(Debug, Default)]
pub(super) struct Force {
    policies: Table<Result<Arc<Policy>, Text>>,
    namespaces: Table<NamespaceFacts>,
    /// The policies that choose each namespace, as of when all was known last.
    chosen: HashMap<Text, Vec<Arc<Policy>>>,
    /// Namespaces to be looked at anew.
    stale: BTreeSet<Text>,
    /// Whether all are.
    all_stale: bool,
    /// Namespaces that went, or are others under the same name, since they were looked at last.
    gone: BTreeSet<Text>,
    /// Policies that went one after the other, while none came and no list showed that others stay.
    went: BTreeSet<Text>,
    /// Of those that were there before none was any more, those that are not back yet.
    awaited: BTreeSet<Text>,
}

fn cluster_scoped(name: &Text) -> (Text, Text) {
    (Text::default(), name.clone())
}

impl Force {
    // === events ===

    pub fn begin_list_of_namespaces(&mut self) {
        self.namespaces.begin_list();
    }

    pub fn end_list_of_namespaces(&mut self) {
        for (_, name) in self.namespaces.end_list() {
            self.remove_namespace(&name);
        }
    }

    pub fn apply_namespace(&mut self, facts: NamespaceFacts) {
        let name = cluster_scoped(&facts.name);
        let known = self.namespaces.get(&name);
        if known == Some(&facts) {
            self.namespaces.confirm(&name);
            return;
        }
        if known.is_some_and(|known| known.uid != facts.uid) {
            self.gone.insert(facts.name.clone());
        }
        self.stale.insert(facts.name.clone());
        self.namespaces.put(name, facts);
    }

    pub fn remove_namespace(&mut self, name: &Text) {
        if self.namespaces.remove(&cluster_scoped(name)).is_some() {
            self.stale.insert(name.clone());
            self.gone.insert(name.clone());
        }
    }

    pub fn begin_list_of_policies(&mut self) {
        self.policies.begin_list();
    }

    pub fn end_list_of_policies(&mut self) {
        for (_, name) in self.policies.end_list() {
            self.remove_policy(&name);
        }
        if self.has_policies() {
            self.went.clear();
        }
    }

    /// Returns what is wrong with it, if that is news.
    pub fn apply_policy(&mut self, object: &PolicyObject) -> Option<Text> {
        let name = cluster_scoped(&object.name);
        let policy = Policy::of(object).map(Arc::new);
        self.awaited.remove(&object.name);
        if self.policies.get(&name) == Some(&policy) {
            self.policies.confirm(&name);
            return None;
        }
        let wrong = policy.as_ref().err().cloned();
        self.policies.put(name, policy);
        self.went.clear();
        self.all_stale = true;
        wrong
    }

    pub fn remove_policy(&mut self, name: &Text) {
        if self.policies.remove(&cluster_scoped(name)).is_none() {
            return;
        }
        self.all_stale = true;
        self.went.insert(name.clone());
        if !self.has_policies() {
            self.awaited.append(&mut self.went);
        }
    }

    // === questions ===

    /// Policies that are not understood, and why.
    pub fn not_understood(&self) -> Option<String> {
        let name = self.policies.named(Result::is_err)?;
        let policy = self.policies.get(&cluster_scoped(name))?;
        let why = policy.as_ref().err()?;
        Some(format!(
            "RegistrationPolicy {name} is not understood: {why}"
        ))
    }

    /// Whether there is such a namespace.
    pub fn knows_namespace(&self, name: &Text) -> bool {
        self.namespaces.get(&cluster_scoped(name)).is_some()
    }

    /// Whether there are policies.
    pub fn has_policies(&self) -> bool {
        self.policies.values().next().is_some()
    }

    /// The policies that went, all that there were, and are not back yet: the first that is says nothing
    /// of what the others allowed.
    pub fn awaited(&self) -> &BTreeSet<Text> {
        &self.awaited
    }

    /// The policies that choose a namespace; `None` where the namespace is not known.
    pub fn of(&self, namespace: &str) -> Option<&[Arc<Policy>]> {
        self.chosen.get(namespace).map(Vec::as_slice)
    }

    /// The namespaces that policies choose.
    pub fn chosen(&self) -> impl Iterator<Item = &Text> {
        let chosen = self.chosen.iter().filter(|(_, by)| !by.is_empty());
        chosen.map(|(namespace, _)| namespace)
    }

    /// A namespace as it is now.
    pub fn namespace(&self, name: &Text) -> Option<&NamespaceFacts> {
        self.namespaces.get(&cluster_scoped(name))
    }

    // === what is in force ===

    /// Puts in force what is known now. Returns the namespaces in which something is other than before.
    pub fn renew(&mut self) -> BTreeSet<Text> {
        let stale = std::mem::take(&mut self.stale);
        let names: BTreeSet<Text> = if std::mem::take(&mut self.all_stale) {
            let all = self.namespaces.values().map(|facts| facts.name.clone());
            all.chain(self.chosen.keys().cloned()).collect()
        } else {
            stale
        };
        let mut changed = BTreeSet::new();
        for name in names {
            let now = self.namespace(&name).map(|facts| {
                let policies = self.policies.values().filter_map(|it| it.as_ref().ok());
                let choose = policies.filter(|policy| policy.chooses(&facts.labels));
                choose.cloned().collect::<Vec<_>>()
            });
            if self.chosen.get(&name) == now.as_ref() {
                continue;
            }
            match now {
                Some(now) => self.chosen.insert(name.clone(), now),
                None => self.chosen.remove(&name),
            };
            changed.insert(name);
        }
        changed
    }

    /// Namespaces that went since this was asked last.
    pub fn take_gone(&mut self) -> BTreeSet<Text> {
        std::mem::take(&mut self.gone)
    }
}
