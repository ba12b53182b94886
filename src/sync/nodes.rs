//! What the engine makes of Kubernetes nodes that are not Ready, or missing.

use std::time::Duration;

use tokio::time::Instant;

use super::dirty::{Cause, Due};
use super::engine::Engine;
use crate::desired::watches::Watch;
use crate::k8s::{Change, EventReason, WatchEvent};
use crate::model::facts::{NodeFacts, Tristate};
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::text::Text;

/// The least time between lists that are asked for to confirm that nodes are missing.
const SPACING: Duration = Duration::from_secs(30);

/// What an event may mean for the nodes that are missing.
pub(super) enum News {
    /// Nothing, or no more than that one of them is no longer missed.
    Little,
    /// All nodes, or all pods, were listed.
    Listed,
    /// A pod is on this node, which is not known.
    PodOn(Text),
}

/// When lists are asked for that confirm that nodes are missing.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
    wanted: bool,
    asked_at: Option<Instant>,
}

impl Confirmation {
    /// Whether lists are to be asked for now.
    fn is_due(&self, now: Instant) -> bool {
        let recently = self.asked_at.is_some_and(|at| now < at + SPACING);
        self.wanted && !recently
    }

    /// When lists are to be asked for.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.asked_at
            .filter(|_| self.wanted)
            .map(|asked_at| asked_at + SPACING)
    }
}

impl Engine {
    /// Counts the nodes that are not Ready, for the case that most are.
    pub(super) fn count_nodes(&mut self, event: &WatchEvent<NodeFacts>, at: Instant) {
        let panic = &mut self.rules.nodes;
        let mut observe = |node: &NodeFacts| {
            panic.observe(&node.name, node.ready == Tristate::True, at);
        };
        match event {
            WatchEvent::Page(nodes) => nodes.iter().for_each(observe),
            WatchEvent::Applied(node) => observe(node),
            WatchEvent::Deleted { object, .. } => panic.remove(&object.name),
            _ => {}
        }
        // A page is not all of them.
        if matches!(event, WatchEvent::Applied(_) | WatchEvent::Deleted { .. }) {
            self.judge_nodes(at);
        }
    }

    /// What an event that was not put into the index yet may mean for the nodes that are missing.
    pub(super) fn news_of_nodes(&self, change: &Change) -> News {
        match change {
            Change::Node(WatchEvent::Listed { .. }) | Change::Pod(WatchEvent::Listed { .. }) => {
                News::Listed
            }
            Change::Pod(WatchEvent::Applied(pod)) => match &pod.node {
                Some(node) if !self.index.has_node(node) => News::PodOn(node.clone()),
                _ => News::Little,
            },
            _ => News::Little,
        }
    }

    /// Counts the nodes that are missing although pods are on them.
    pub(super) fn count_missing(&mut self, news: News, at: Instant) {
        let (index, panic) = (&self.index, &mut self.rules.nodes);
        match news {
            News::Listed => {
                for node in index.missed_nodes() {
                    panic.miss(&node, at);
                }
            }
            News::PodOn(node) if index.misses_node(&node) => panic.miss(&node, at),
            News::Little | News::PodOn(_) if panic.misses_any() => {}
            News::Little | News::PodOn(_) => return,
        }
        panic.retain(|node| index.has_node(node) || index.misses_node(node));
        self.confirmation.wanted = panic.missing().any(|node| !index.is_loss_confirmed(node));
        self.judge_nodes(at);
    }

    /// Asks for lists where it is not known for sure that a node is missing.
    pub(super) fn confirm_missing(&mut self, now: Instant) {
        // A list that is under way would begin anew; at its end it is judged again.
        let listing = |kind: &Kind| *self.index.watches.state(*kind) == Watch::Listing;
        if !self.confirmation.is_due(now) || Kind::ALL.iter().any(listing) {
            return;
        }
        self.confirmation.wanted = false;
        self.confirmation.asked_at = Some(now);
        tracing::info!("everything is listed anew, to confirm that nodes are missing");
        self.relist.send_replace(());
    }

    fn judge_nodes(&mut self, now: Instant) {
        if self.rules.nodes.judge(now) {
            self.nodes_turned(now);
        }
    }

    /// Sends an Event that the checks of nodes are held, if they are.
    pub(super) fn tell_nodes_held(&self) {
        if self.rules.nodes.holds() {
            let (down, of) = self.rules.nodes.share();
            let note = nodes_held(down, of);
            self.report.own_event(EventReason::NodesHeld, note);
        }
    }

    /// The checks of nodes are held from now on, or not any more.
    fn nodes_turned(&mut self, now: Instant) {
        let (down, of) = self.rules.nodes.share();
        if self.rules.nodes.holds() {
            tracing::error!(reason = "NodesHeld", "{}", nodes_held(down, of));
            self.tell_nodes_held();
        } else {
            tracing::warn!(
                "{down} of {of} nodes are not Ready or missing: their checks are no longer held"
            );
        }
        let due = Due {
            cause: Cause::Kubernetes,
            since: now,
        };
        let nodes: Vec<Key> = self.mirror.node_names().cloned().map(Key::Node).collect();
        for key in nodes {
            self.dirty.touch(key, due);
        }
    }
}

fn nodes_held(down: usize, of: usize) -> String {
    format!(
        "{down} of {of} nodes turned not Ready, or went missing, at once: their checks in Consul stay as \
         they are until it is no more than --node-panic allows"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_asked_for_at_once_and_then_not_too_often() {
        let now = Instant::now();
        let mut confirmation = Confirmation::default();
        assert!(!confirmation.is_due(now));
        confirmation.wanted = true;
        assert!(confirmation.is_due(now));
        assert_eq!(confirmation.wake_at(), None, "nothing to wait for");
        confirmation.asked_at = Some(now);
        assert!(!confirmation.is_due(now));
        assert_eq!(confirmation.wake_at(), Some(now + SPACING));
        assert!(confirmation.is_due(now + SPACING));
        confirmation.wanted = false;
        assert_eq!(confirmation.wake_at(), None);
    }
}
