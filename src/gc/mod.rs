//! `lictor gc`: shows and releases what is held, by the hand of the process that writes or, where none
//! runs, by its own; removes what a dead cluster left, or hands it over to the name that it has now.

pub mod ask;
pub mod copies;
pub mod dead;
pub mod entries;
pub mod findings;
pub mod handed;
pub mod handover;
pub mod offline;
pub mod remark;
pub mod remove;

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};

use crate::audit::{self, Removed};
use crate::consul::{Client, Consistency, TokenStanding};
use crate::model::key::{InstanceKey, Table};
use crate::model::names::{ClusterName, NodeName};
use crate::model::owner::Owner;
use crate::observed::mirror::Mirror;
use crate::observed::table::Knowledge;
use crate::sync::apply::{self, Done, sure};
use crate::sync::carry::{self, Rows};

/// An instance that is to be removed.
#[derive(Clone, Debug)]
pub struct Doomed {
    /// Where it is.
    pub key: InstanceKey,
    /// Whose it was.
    pub owner: Owner,
    /// The service's name.
    pub service: String,
    /// Its `ModifyIndex`.
    pub index: u64,
}

impl Doomed {
    /// Whether another reading found the same, unchanged.
    fn is(&self, other: &Self) -> bool {
        (&self.key, &self.owner, self.index) == (&other.key, &other.owner, other.index)
    }
}

/// Makes sure that reads leave nothing out for want of a token.
pub async fn verify_token(client: &Client) -> anyhow::Result<()> {
    match client
        .check_token()
        .await
        .context("cannot reach Consul: see CONSUL_HTTP_ADDR")?
    {
        TokenStanding::AclsOff | TokenStanding::Token { .. } => Ok(()),
        TokenStanding::Anonymous | TokenStanding::Unknown => bail!(
            "Consul has ACLs and does not know the token: reads would be silently empty; set \
             CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE or CONSUL_AUTH_METHOD"
        ),
    }
}

/// Reads all nodes of a cluster with all that is on them, and all that is on none; only what is known
/// for sure.
///
/// # Errors
///
/// What cannot be read, or only in part.
pub async fn read_all(client: &Client, cluster: &ClusterName) -> anyhow::Result<Mirror> {
    let mut mirror = Mirror::new(cluster.clone());
    for name in nodes(client, cluster).await? {
        let ticket = mirror.start_read();
        let Done::Read {
            content, ticket, ..
        } = apply::read(client.clone(), name.clone(), ticket).await
        else {
            continue;
        };
        let content = content.with_context(|| format!("cannot read the Consul node {name}"))?;
        let _ = mirror.finish_read(ticket, &name, &content, &std::collections::HashSet::new());
    }
    for table in Table::ALL {
        read_table(client, cluster, table, &mut mirror).await?;
    }
    mirror.complete();
    Ok(mirror)
}

/// Reads all that is on no node of a kind.
async fn read_table(
    client: &Client,
    cluster: &ClusterName,
    table: Table,
    mirror: &mut Mirror,
) -> anyhow::Result<()> {
    let read = carry::read_table(client, cluster, table).await;
    let what = table.as_str();
    let (rows, knowledge) = read.with_context(|| format!("cannot read the {what} in Consul"))?;
    if let Knowledge::Partial(why) = knowledge {
        bail!("{why}");
    }
    match rows {
        Rows::Defaults(rows) => {
            let ticket = mirror.defaults.start_read();
            mirror
                .defaults
                .finish_read(&ticket, rows, knowledge, |_| false);
        }
        Rows::Intentions(rows) => {
            let ticket = mirror.intentions.start_read();
            mirror
                .intentions
                .finish_read(&ticket, rows, knowledge, |_| false);
        }
        Rows::Queries(rows) => {
            let ticket = mirror.queries.start_read();
            mirror
                .queries
                .finish_read(&ticket, rows, knowledge, |_| false);
        }
    }
    Ok(())
}

async fn nodes(client: &Client, cluster: &ClusterName) -> anyhow::Result<BTreeSet<NodeName>> {
    let filter = apply::node_filter(cluster);
    let answer = client.nodes(Some(&filter), Consistency::Consistent).await;
    let nodes = sure(answer).context("cannot list the nodes in Consul")?;
    let names = nodes.iter();
    Ok(names
        .filter_map(|node| NodeName::parse(cluster, &node.name))
        .collect())
}

/// The line of the audit log for a removal.
fn audit(kind: &str, key: &str, owner: &str, why: &str, epoch: u64, index: u64) {
    audit::removed(&Removed {
        kind,
        key,
        owner,
        why,
        seen: false,
        epoch,
        index,
    });
}
