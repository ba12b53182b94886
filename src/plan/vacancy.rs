//! Synthetic nodes that nothing is on any more, and whose Kubernetes node is gone: they go after a
//! while. A cluster that replaces its nodes would fill Consul with empty ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::names::NodeName;

/// The default of `--node-grace`.
pub const DEFAULT_GRACE: Duration = Duration::from_mins(10);

/// Since when nodes are empty.
#[derive(Debug)]
pub struct Vacancies {
    /// `--node-grace`.
    grace: Duration,
    since: BTreeMap<NodeName, Instant>,
    ripe: BTreeSet<NodeName>,
}

impl Default for Vacancies {
    fn default() -> Self {
        Self::new(DEFAULT_GRACE)
    }
}

impl Vacancies {
    /// No node is known to be empty yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            since: BTreeMap::new(),
            ripe: BTreeSet::new(),
        }
    }

    /// A node is found empty, its Kubernetes node being gone.
    pub fn found(&mut self, node: &NodeName, now: Instant) {
        if !self.ripe.contains(node) {
            self.since.entry(node.clone()).or_insert(now);
        }
    }

    /// A node is in use, or gone.
    pub fn dismiss(&mut self, node: &NodeName) {
        self.since.remove(node);
        self.ripe.remove(node);
    }

    /// The nodes that may go from now on.
    pub fn ripen(&mut self, now: Instant) -> Vec<NodeName> {
        let grace = self.grace;
        let ripe = |since: &Instant| now.saturating_duration_since(*since) >= grace;
        let nodes: Vec<NodeName> = self
            .since
            .extract_if(.., |_, since| ripe(since))
            .map(|(node, _)| node)
            .collect();
        self.ripe.extend(nodes.iter().cloned());
        nodes
    }

    /// Whether a node was found empty.
    #[must_use]
    pub fn knows(&self, node: &NodeName) -> bool {
        self.since.contains_key(node) || self.ripe.contains(node)
    }

    /// Whether a node was empty for long enough.
    #[must_use]
    pub fn is_ripe(&self, node: &NodeName) -> bool {
        self.ripe.contains(node)
    }

    /// When the next node may go.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.since.values().min().map(|since| *since + self.grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NodeName {
        NodeName::for_kubernetes(&"a".parse().unwrap(), name)
    }

    #[test]
    fn a_node_goes_when_it_was_empty_long_enough_without_a_break() {
        let (mut vacancies, now) = (Vacancies::default(), Instant::now());
        vacancies.found(&name("n1"), now);
        vacancies.found(&name("n2"), now);
        let half = now + DEFAULT_GRACE / 2;
        vacancies.dismiss(&name("n2"));
        vacancies.found(&name("n2"), half);
        vacancies.found(&name("n1"), half);
        assert_eq!(vacancies.ripen(half), []);
        assert_eq!(vacancies.wake_at(), Some(now + DEFAULT_GRACE));
        assert_eq!(vacancies.ripen(now + DEFAULT_GRACE), [name("n1")]);
        assert!(vacancies.is_ripe(&name("n1")) && !vacancies.is_ripe(&name("n2")));
        vacancies.dismiss(&name("n1"));
        assert!(!vacancies.is_ripe(&name("n1")));
    }
}
