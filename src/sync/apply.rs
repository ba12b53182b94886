//! The one place where Consul is read and written.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::consul::{Client, Consistency, ConsulError, Quality, Txn, TxnOutcome};
use crate::model::names::{ClusterName, NodeName};
use crate::observed::mirror::{NodeContent, Ticket};
use crate::plan::batch::BatchedStep;
use crate::sync::dirty::Due;

/// A piece of work that is done.
#[derive(Debug)]
pub enum Done {
    /// A transaction was answered, or not.
    Wrote {
        /// Which one.
        id: u64,
        /// What it was to do.
        steps: Vec<BatchedStep<Due>>,
        /// What became of it.
        outcome: Result<TxnOutcome, ConsulError>,
        /// When.
        at: Instant,
    },
    /// The list of our nodes was read.
    Listed {
        /// The read.
        ticket: Ticket,
        /// The nodes.
        nodes: Result<Nodes, ReadError>,
    },
    /// A node was read.
    Read {
        /// The read.
        ticket: Ticket,
        /// The node.
        name: NodeName,
        /// What is on it.
        content: Result<NodeContent, ReadError>,
    },
}

/// Why a read says nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The call failed.
    #[error(transparent)]
    Failed(#[from] ConsulError),
    /// It was answered, but what is missing in the answer may be there all the same.
    #[error("{}", quality(*.0))]
    NotAuthoritative(Quality),
}

fn quality(quality: Quality) -> &'static str {
    match quality {
        Quality::Authoritative => "the answer is authoritative",
        Quality::Leased | Quality::Stale => "the answer may be stale",
        Quality::Unverified => {
            "Consul has ACLs and the token is anonymous or not known to be valid: reads would be \
             silently empty; set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE"
        }
        Quality::Filtered => {
            "Consul left entries out for want of rights: give the token node:read and service:read \
             on all"
        }
    }
}

/// Carries out a transaction.
pub async fn write(client: Client, id: u64, txn: Txn, steps: Vec<BatchedStep<Due>>) -> Done {
    let outcome = client.apply(&txn).await;
    let at = Instant::now();
    Done::Wrote {
        id,
        steps,
        outcome,
        at,
    }
}

/// Our nodes, and the datacenter that they are in, where that was asked for and told.
pub type Nodes = (BTreeSet<NodeName>, Option<String>);

/// Reads which of our nodes there are, and, if `locate`, in which datacenter.
pub async fn list(client: Client, cluster: ClusterName, locate: bool, ticket: Ticket) -> Done {
    let nodes = list_nodes(&client, &cluster, locate).await;
    Done::Listed { ticket, nodes }
}

async fn list_nodes(
    client: &Client,
    cluster: &ClusterName,
    locate: bool,
) -> Result<Nodes, ReadError> {
    let filter = node_filter(cluster);
    let answer = client.nodes(Some(&filter), Consistency::Consistent).await?;
    let quality = answer.quality;
    let nodes = answer
        .authoritative()
        .ok_or(ReadError::NotAuthoritative(quality))?;
    let ours = |name: &str| NodeName::parse(cluster, name);
    let nodes = nodes.iter().filter_map(|node| ours(&node.name)).collect();
    // The right to ask the agent is not needed for anything else: nodes tell the datacenter too.
    let datacenter = if locate {
        let agent = client.agent().await.ok();
        agent.map(|agent| agent.datacenter.to_string())
    } else {
        None
    };
    Ok((nodes, datacenter))
}

/// Selects the nodes that the cluster may use, whoever's they are.
#[must_use]
pub fn node_filter(cluster: &ClusterName) -> String {
    format!("Node matches \"(?i)^lictor-{cluster}(--.+|-external)$\"")
}

/// Reads what is on one of our nodes.
pub async fn read(client: Client, name: NodeName, ticket: Ticket) -> Done {
    let content = read_node(&client, &name).await;
    Done::Read {
        ticket,
        name,
        content,
    }
}

/// Services and checks come in two answers. A write between them can only make the later one newer,
/// and what was written since the read began is not taken from either; what another hand wrote
/// between them moves Consul's index, which signals another sweep.
async fn read_node(client: &Client, name: &NodeName) -> Result<NodeContent, ReadError> {
    let (services, checks) = tokio::try_join!(
        client.node_services(name.as_ref(), Consistency::Consistent),
        client.node_checks(name.as_ref(), Consistency::Consistent),
    )?;
    let quality = services.quality.max(checks.quality);
    match (services.authoritative(), checks.authoritative()) {
        (Some(Some((node, services))), Some(checks)) => Ok(NodeContent {
            node: Some(node),
            services,
            checks,
        }),
        (Some(None), Some(_)) => Ok(NodeContent::default()),
        _ => Err(ReadError::NotAuthoritative(quality)),
    }
}
