//! What a dead cluster left.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::{Instant, timeout_at};

use super::remove::{Remover, entry};
use super::{Doomed, nodes, read_all, sure};
use crate::consul::{Client, Consistency, TxnOp};
use crate::model::epoch::{self, Epoch, EpochKind};
use crate::model::marks::Standing;
use crate::model::names::ClusterName;
use crate::observed::mirror::Mirror;

/// How long a process of the cluster may take to show that it lives. Any that runs takes its epoch back
/// at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// All that a cluster has in Consul.
#[derive(Debug)]
pub struct Estate {
    cluster: ClusterName,
    /// Its instances.
    pub instances: Vec<Doomed>,
    /// Its nodes.
    pub nodes: usize,
    /// Entries of others on its nodes, which stay.
    pub foreign: usize,
    /// Its keys in Consul's KV.
    pub keys: usize,
}

/// Reads what a cluster has in Consul.
pub async fn find(client: &Client, cluster: &ClusterName) -> anyhow::Result<Estate> {
    let mirror = read_all(client, cluster).await?;
    let (instances, foreign) = divided(&mirror);
    let prefix = prefix(cluster);
    let keys = client.kv_list(&prefix, Consistency::Consistent);
    let keys = sure(keys.await).context("cannot list the keys of the cluster in Consul")?;
    Ok(Estate {
        cluster: cluster.clone(),
        instances,
        nodes: mirror.owned_nodes(),
        foreign,
        keys: keys.len(),
    })
}

fn prefix(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/")
}

/// Its instances, and how many entries on its nodes are others'.
fn divided(mirror: &Mirror) -> (Vec<Doomed>, usize) {
    let names: Vec<_> = mirror.node_names().cloned().collect();
    let all = names.iter().flat_map(|name| mirror.on_node(name));
    let (mut ours, mut foreign) = (Vec::new(), 0);
    for (key, instance) in all {
        match mirror.standing(key, instance) {
            Standing::Ours(owner) => ours.push(Doomed {
                key: key.clone(),
                owner,
                service: instance.service.name.to_string(),
                index: instance.modify_index,
            }),
            Standing::Foreign(_) => foreign += 1,
        }
    }
    (ours, foreign)
}

/// Takes the epoch of the cluster and waits whether one of its processes takes it back.
pub async fn take_epoch(
    client: &Client,
    cluster: &ClusterName,
    holder: String,
    say: impl Fn(&str),
) -> anyhow::Result<u64> {
    let key = epoch::key(cluster);
    let there = sure(client.kv_get(&key, Consistency::Consistent).await)
        .with_context(|| format!("cannot read {key} in Consul"))?;
    let before: Option<Epoch> = there
        .as_ref()
        .map(|pair| serde_json::from_slice(&pair.value))
        .transpose()
        .with_context(|| format!("{key} in Consul holds no epoch that can be read"))?;
    let ours = match before {
        Some(before) => Epoch {
            holder,
            kind: EpochKind::Gc,
            term: before.term + 1,
            ..before
        },
        None => Epoch {
            holder,
            uid: String::new(),
            scope: Vec::new(),
            kind: EpochKind::Gc,
            term: 1,
            other: serde_json::Map::new(),
        },
    };
    let at = there.map_or(0, |pair| pair.modify_index);
    let index = crate::sync::claim::write(client, &key, &ours, at).await?;
    let seconds = PATIENCE.as_secs();
    say(&format!(
        "waiting for {seconds} s whether a process of {cluster} still runs ..."
    ));
    let until = Instant::now() + PATIENCE;
    let mut watch = client.watch_kv(&key);
    while let Ok(change) = timeout_at(until, watch.next()).await {
        // A failure is followed by another try, with a pause.
        let Ok(change) = change else { continue };
        let now = change.observed.value.first().map(|pair| pair.modify_index);
        if now.is_some_and(|now| now > index) {
            bail!(
                "the cluster {cluster} lives: one of its processes took its epoch back; nothing was \
                 removed"
            );
        }
    }
    let there = sure(client.kv_get(&key, Consistency::Consistent).await)
        .with_context(|| format!("cannot read {key} in Consul"))?;
    if there.map(|pair| pair.modify_index) != Some(index) {
        bail!("the epoch of {cluster} changed meanwhile: nothing was removed");
    }
    Ok(index)
}

impl Estate {
    /// Removes it: instances, then the nodes that are empty by then, then the keys, the epoch last.
    /// Returns what stayed and why.
    pub async fn remove(self, client: &Client, epoch: u64) -> anyhow::Result<Vec<String>> {
        let fence = epoch::key(&self.cluster);
        let mut remover = Remover::new(client, fence.clone(), epoch);
        remover
            .instances(&self.instances, "its cluster is dead")
            .await?;
        let mut stayed = remover.stayed;
        for name in nodes(client, &self.cluster).await? {
            let services = client.node_services(name.as_ref(), Consistency::Consistent);
            let Some((node, services)) = sure(services.await)? else {
                continue;
            };
            if !services.is_empty() {
                stayed.push(format!(
                    "{name}: {} entries of others are on it",
                    services.len()
                ));
                continue;
            }
            let op = TxnOp::NodeDeleteCas {
                name: name.as_ref(),
                index: node.modify_index,
            };
            if entry(client, &fence, epoch, &op).await? {
                super::audit(
                    "node",
                    name.as_ref(),
                    "",
                    "its cluster is dead",
                    epoch,
                    node.modify_index,
                );
            } else {
                stayed.push(format!("{name}: it changed meanwhile"));
            }
        }
        let prefix = prefix(&self.cluster);
        let keys = client.kv_list(&prefix, Consistency::Consistent);
        for pair in sure(keys.await)? {
            if *pair.key == *fence {
                continue;
            }
            let op = TxnOp::KvDeleteCas {
                key: &pair.key,
                index: pair.modify_index,
            };
            if !entry(client, &fence, epoch, &op).await? {
                stayed.push(format!("{}: it changed meanwhile", pair.key));
            }
        }
        if stayed.is_empty() {
            let _ = client.kv_delete_cas(&fence, epoch).await?;
        }
        Ok(stayed)
    }
}
