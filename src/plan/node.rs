//! What to do about a synthetic node. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use super::{Mode, NodeWrite, Rules, Step};
use crate::desired::claim::DesiredNode;
use crate::desired::index::Index;
use crate::model::entry::{ALIVE_CHECK_ID, Health, NODE_CHECK_ID};
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::names::NodeName;
use crate::model::text::Text;
use crate::observed::entry::{ObservedCheck, ObservedNode};
use crate::observed::mirror::Mirror;

/// Decides what to do about a synthetic node and its checks.
pub(super) fn decide_node(
    name: &NodeName,
    desired: &Index,
    observed: &Mirror,
    rules: &Rules,
) -> Step {
    let there = observed.node(name);
    let ours = there.filter(|node| observed.is_our_node(name, node));
    if let (Some(node), None) = (there, ours) {
        return Step::OwnedByAnother {
            holder: node_holder(desired, node),
        };
    }
    let Some(DesiredNode { mut node, check }) =
        desired.resolve_node(name, ours.map(|node| &node.node))
    else {
        return Step::Settled;
    };
    if let Some(ours) = ours {
        marks::keep_unknown(&ours.node.meta, &mut node.meta);
    }
    let index = ours.map_or(0, |ours| ours.modify_index);
    let node = ours
        .is_none_or(|ours| ours.node != node || ours.embellished)
        .then_some((node, index));
    let check = check.and_then(|check| {
        let there = ours.and_then(ObservedNode::own_check);
        let equal = there.is_some_and(|there| there.well_formed && there.check == check);
        let worse = there.is_some_and(|there| check.status > there.check.status);
        let settled = equal || (worse && rules.nodes.holds());
        (!settled).then(|| (check, there.map_or(0, |there| there.modify_index)))
    });
    // Nobody renews the session of one then, and all that is on the node would turn critical: so it goes under
    // every policy.
    let is_surplus = |check: &&ObservedCheck| match &*check.id {
        ALIVE_CHECK_ID => rules.dead_after.is_none() || rules.sessions.is_err(),
        // From a time when nodes were watched: nobody would change it any more.
        NODE_CHECK_ID => !desired.watches.watches(Kind::Node),
        _ => false,
    };
    let surplus: Vec<(Text, u64)> = ours
        .into_iter()
        .flat_map(|ours| ours.checks.iter().filter(is_surplus))
        .map(|check| (check.id.clone(), check.modify_index))
        .collect();
    let alive = alive(ours, rules);
    match (&node, &check) {
        (None, None) if !surplus.is_empty() => Step::PutNode(NodeWrite {
            node: None,
            check: None,
            surplus,
            alive: None,
            rest: false,
        }),
        (None, None) if index > 0 && is_vacant(name, desired, observed, rules) => {
            if rules.vacancies.is_ripe(name) {
                Step::RemoveNode(index)
            } else {
                Step::Lingering
            }
        }
        (None, None) if alive.is_some() => Step::PutNode(NodeWrite {
            node: None,
            check: None,
            surplus,
            alive,
            rest: false,
        }),
        (None, None) => Step::Settled,
        _ => Step::PutNode(NodeWrite {
            node,
            check,
            surplus,
            alive: None,
            rest: alive.is_some(),
        }),
    }
}

/// The status that the check `lictor-alive` is to be written with, if it is not there as it should be. A new
/// one passes: else the node would be out of service until its session is there.
fn alive(ours: Option<&ObservedNode>, rules: &Rules) -> Option<Health> {
    rules.dead_after.filter(|_| rules.sessions.is_ok())?;
    match ours.and_then(ObservedNode::alive_check) {
        None => Some(Health::Passing),
        Some(there) if !there.well_formed => Some(there.check.status),
        Some(_) => None,
    }
}

/// Whether a node of ours is empty, and its Kubernetes node is gone, as far as everything is known.
fn is_vacant(name: &NodeName, desired: &Index, observed: &Mirror, rules: &Rules) -> bool {
    let gone = name
        .kubernetes_node(desired.cluster())
        .is_some_and(|node| !desired.has_node(&Text::from(node)));
    gone && rules.mode != Mode::UpsertOnly
        && desired.watches.all_complete()
        && desired.claimed_on(name).next().is_none()
        && observed.on_node(name).next().is_none()
}

/// Who has a node that is not ours, for people.
pub(super) fn node_holder(desired: &Index, node: &ObservedNode) -> Text {
    let holder = marks::holder(desired.cluster(), &node.node.meta);
    format!("{holder}, which has the Consul node").into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_check_of_lictors_own_begins_as_passing_where_it_is_asked_for() {
        let mut rules = Rules::default();
        assert_eq!(alive(None, &rules), None);
        rules.dead_after = Some(Duration::from_mins(1));
        assert_eq!(alive(None, &rules), Some(Health::Passing));
    }
}
