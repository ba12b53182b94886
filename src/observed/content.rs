//! What a read of one node brought, sorted by what it belongs to.

use std::collections::{BTreeMap, HashSet};

use super::entry::{ObservedCheck, ObservedInstance, ObservedNode};
use crate::consul::wire;
use crate::model::entry::NODE_CHECK_ID;
use crate::model::key::InstanceKey;
use crate::model::names::{InstanceId, NodeName};

/// What a read of one node brought.
#[derive(Debug, Default)]
pub struct NodeContent {
    /// The node; `None` where Consul has none of the name.
    pub node: Option<wire::Node>,
    /// The services on it.
    pub services: Vec<wire::NodeService>,
    /// The checks on it, of the node and of the services.
    pub checks: Vec<wire::HealthCheck>,
}

pub(super) fn instances_of(
    node: &NodeName,
    content: &NodeContent,
) -> BTreeMap<InstanceKey, ObservedInstance> {
    let local = content
        .services
        .iter()
        .filter(|service| service.peer_name.is_empty());
    let mut instances: BTreeMap<InstanceKey, ObservedInstance> = local
        .map(|service| {
            let id = InstanceId::observed(&service.id);
            (
                InstanceKey {
                    node: node.clone(),
                    id,
                },
                ObservedInstance::of(service),
            )
        })
        .collect();
    for check in &content.checks {
        if let Some(id) = home(check, |id| instances.contains_key(&at(node, id)))
            && let Some(instance) = instances.get_mut(&at(node, &id))
        {
            instance.checks.push(ObservedCheck::of(check, Some(&id)));
        }
    }
    for instance in instances.values_mut() {
        instance.checks.sort_by(|a, b| a.id.cmp(&b.id));
    }
    instances
}

fn at(node: &NodeName, id: &InstanceId) -> InstanceKey {
    InstanceKey {
        node: node.clone(),
        id: id.clone(),
    }
}

/// The instance that a check is about: by its id where that is of our form, so that a check of ours
/// that another hand moved is still known for ours; else the one that it names.
fn home(check: &wire::HealthCheck, exists: impl Fn(&InstanceId) -> bool) -> Option<InstanceId> {
    if *check.check_id == *NODE_CHECK_ID {
        return None;
    }
    // No id of ours has a colon in it.
    let by_id = check.check_id.rsplit_once(':');
    let by_id = by_id.map(|(id, _)| InstanceId::observed(id));
    let by_id = by_id.filter(|id| exists(id));
    let named = || (!check.service_id.is_empty()).then(|| InstanceId::observed(&check.service_id));
    by_id.or_else(named)
}

pub(super) fn node_of(content: &NodeContent) -> Option<ObservedNode> {
    let mut node = ObservedNode::of(content.node.as_ref()?);
    let services = content.services.iter();
    let ids: HashSet<InstanceId> = services
        .map(|service| InstanceId::observed(&service.id))
        .collect();
    let is_own = |check: &&wire::HealthCheck| home(check, |id| ids.contains(id)).is_none();
    let own = content.checks.iter().filter(is_own);
    node.checks
        .extend(own.map(|check| ObservedCheck::of(check, None)));
    node.checks.sort_by(|a, b| a.id.cmp(&b.id));
    Some(node)
}
