//! The writes of instances of which a transaction would leave something out: one call each.
//!
//! Such a call has neither compare-and-set nor a fence. What stands there is read directly before it, and
//! the epoch after that: between those reads and the write, a few milliseconds, another process may take
//! the epoch, or another hand change the entry.

use std::borrow::Cow;

use tokio::time::Instant;

use super::apply::Done;
use super::carry::{self, Carried};
use super::dirty::Due;
use super::pass::Pass;
use crate::consul::wire::{HealthCheck, Node, NodeService};
use crate::consul::{
    Client, Consistency, ConsulError, RegisteredNode, Registration, Txn, TxnError, TxnFailure,
    TxnOp, TxnOutcome, TxnResult,
};
use crate::model::entry::{ALIVE_CHECK_ID, Health};
use crate::model::key::{InstanceKey, Key};
use crate::model::marks;
use crate::model::names::{ClusterName, InstanceId, NodeName};
use crate::observed::entry::{wire_alive_check, wire_check, wire_service};
use crate::plan::batch::BatchedStep;
use crate::plan::{InstanceWrite, NodeWrite, Step};

/// Carries out the write of an instance behind the epoch with this index, and answers like a
/// transaction would.
pub async fn write(
    client: Client,
    cluster: ClusterName,
    id: u64,
    pass: Pass,
    (key, step, tag): (Key, Step, Due),
) -> Done {
    let outcome = match (&key, &step) {
        (Key::Instance(key), Step::Put(write)) => {
            registered(&client, &cluster, &pass, key, write).await
        }
        (
            Key::Node(name),
            Step::PutNode(NodeWrite {
                alive: Some(status),
                ..
            }),
        ) => alive(&client, &cluster, &pass, name, *status).await,
        _ => Ok(outdated("it is no write of an instance or a node")),
    };
    let ops = match &outcome {
        Ok(TxnOutcome::Applied(results)) => 0..results.len(),
        _ => 0..1,
    };
    let step = BatchedStep {
        key,
        step,
        ops,
        tag,
    };
    Done::Wrote {
        id,
        epoch: pass.epoch(),
        steps: vec![step],
        outcome,
        at: Instant::now(),
    }
}

async fn registered(
    client: &Client,
    cluster: &ClusterName,
    pass: &Pass,
    key: &InstanceKey,
    write: &InstanceWrite,
) -> Result<TxnOutcome, ConsulError> {
    let Some((service, index)) = &write.service else {
        return Ok(outdated("it writes no service"));
    };
    let node = match still(client, cluster, key, *index).await? {
        Ok(node) => node,
        Err(why) => return Ok(outdated(why)),
    };
    if let Some(why_not) = fenced(client, pass).await? {
        return Ok(why_not);
    }
    let checks = write.checks.iter();
    let checks = checks.map(|it| wire_check(key, &write.name, &it.kind, &it.check));
    let checks: Vec<HealthCheck> = checks.collect();
    let registration = Registration {
        // With an address, since Consul creates a node that went meanwhile.
        node: RegisteredNode::Kept {
            name: &node.name,
            address: &node.address,
        },
        service: Some(Cow::Owned(wire_service(key, service))),
        checks: &checks,
    };
    client.register(&registration).await?;
    remove_surplus(client, pass, key, write).await?;
    stored(client, key, write).await
}

/// Writes the check by which Consul notices that Lictor is dead.
async fn alive(
    client: &Client,
    cluster: &ClusterName,
    pass: &Pass,
    name: &NodeName,
    status: Health,
) -> Result<TxnOutcome, ConsulError> {
    let node = match own_node(client, cluster, name).await? {
        Ok((node, _)) => node,
        Err(why) => return Ok(outdated(why)),
    };
    if let Some(why_not) = fenced(client, pass).await? {
        return Ok(why_not);
    }
    let registration = Registration {
        node: RegisteredNode::Kept {
            name: &node.name,
            address: &node.address,
        },
        service: None,
        checks: &[wire_alive_check(name.text(), status)],
    };
    client.register(&registration).await?;
    let checks = client
        .node_checks(name.as_ref(), Consistency::Consistent)
        .await?;
    let is_it = |check: &HealthCheck| *check.check_id == *ALIVE_CHECK_ID;
    let written = checks.value.into_iter().filter(is_it);
    Ok(TxnOutcome::Applied(
        written
            .map(|check| TxnResult::Check(Box::new(check)))
            .collect(),
    ))
}

/// Why the epoch or the leadership forbids to write, if one does.
async fn fenced(client: &Client, pass: &Pass) -> Result<Option<TxnOutcome>, ConsulError> {
    Ok(match carry::check(client, pass).await? {
        None => None,
        Some(Carried::Fenced { what, reason }) => {
            let what = what.into();
            Some(TxnOutcome::Fenced { what, reason })
        }
        Some(Carried::NoEpoch(what) | Carried::Denied(what)) => Some(TxnOutcome::Fenced {
            what: what.into(),
            reason: TxnFailure::PermissionDenied,
        }),
        Some(Carried::Done(..) | Carried::Unseen(_) | Carried::Outdated) => {
            Some(outdated("the epoch"))
        }
    })
}

/// The node and what is on it, if it is ours; else why not.
async fn own_node(
    client: &Client,
    cluster: &ClusterName,
    name: &NodeName,
) -> Result<Result<(Node, Vec<NodeService>), &'static str>, ConsulError> {
    let read = client.node_services(name.as_ref(), Consistency::Consistent);
    let Some(Some((node, services))) = read.await?.authoritative() else {
        return Ok(Err("the node is not there, or not known to be"));
    };
    let mark = node.meta.get(marks::CLUSTER);
    if mark.is_none_or(|mark| **mark != *cluster.as_ref()) {
        return Ok(Err("the node is not marked as ours"));
    }
    Ok(Ok((node, services)))
}

/// The node, if it is ours and the instance there has this index; else why not.
async fn still(
    client: &Client,
    cluster: &ClusterName,
    key: &InstanceKey,
    index: u64,
) -> Result<Result<Node, &'static str>, ConsulError> {
    let (node, services) = match own_node(client, cluster, &key.node).await? {
        Ok(own) => own,
        Err(why) => return Ok(Err(why)),
    };
    if of(key, services).map_or(0, |there| there.modify_index) != index {
        return Ok(Err("the instance has another index"));
    }
    Ok(Ok(node))
}

fn of(key: &InstanceKey, services: Vec<NodeService>) -> Option<NodeService> {
    let is_it = |there: &NodeService| {
        there.peer_name.is_empty() && InstanceId::observed(&there.id) == key.id
    };
    services.into_iter().find(is_it)
}

async fn remove_surplus(
    client: &Client,
    pass: &Pass,
    key: &InstanceKey,
    write: &InstanceWrite,
) -> Result<(), ConsulError> {
    let mut txn = Txn::new();
    for (check_id, index) in &write.surplus {
        let op = TxnOp::CheckDeleteCas {
            node: key.node.as_ref(),
            check_id,
            service_id: key.id.as_ref(),
            service: &write.name,
            index: *index,
        };
        if txn.push(&op).is_err() {
            break;
        }
    }
    if !txn.is_empty() {
        // What is left is found with the next read, and planned again.
        pass.apply(client, &txn).await?;
    }
    Ok(())
}

/// What stands there now: the answer to the write does not say.
async fn stored(
    client: &Client,
    key: &InstanceKey,
    write: &InstanceWrite,
) -> Result<TxnOutcome, ConsulError> {
    let (services, checks) = tokio::try_join!(
        client.node_services(key.node.as_ref(), Consistency::Consistent),
        client.node_checks(key.node.as_ref(), Consistency::Consistent),
    )?;
    let services = services.value.map(|(_, services)| services);
    let Some(service) = of(key, services.unwrap_or_default()) else {
        return Ok(outdated("the instance went at once"));
    };
    let written: Vec<String> = write.checks.iter().map(|it| it.kind.id(&key.id)).collect();
    let checks = checks.value.into_iter();
    let checks = checks.filter(|check| written.iter().any(|id| **id == *check.check_id));
    let checks = checks.map(|check| TxnResult::Check(Box::new(check)));
    let service = TxnResult::Service(Box::new(service));
    Ok(TxnOutcome::Applied(
        std::iter::once(service).chain(checks).collect(),
    ))
}

fn outdated(what: &str) -> TxnOutcome {
    TxnOutcome::RolledBack(vec![TxnError {
        op_index: 0,
        what: what.into(),
        reason: TxnFailure::StaleIndex,
    }])
}
