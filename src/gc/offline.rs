//! What is held, by the hand of `lictor gc` itself, where no process writes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::entries::{self, DoomedEntry};
use super::{Doomed, read_all};
use crate::app::Scope;
use crate::consul::Client;
use crate::desired::index::{Index, Touched};
use crate::desired::watches::Watch;
use crate::k8s::{self, Home};
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::names::ClusterName;
use crate::observed::mirror::Mirror;
use crate::plan::{self, Rules, Step};
use crate::sync::feed::feed;

/// How long the lists of Kubernetes may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// What of a cluster's nothing in Kubernetes claims.
#[derive(Debug)]
pub struct Found {
    /// Instances.
    pub instances: Vec<Doomed>,
    /// What is on no node.
    pub entries: Vec<DoomedEntry>,
    /// How much the cluster has in all.
    pub owned: usize,
}

impl Found {
    /// How much nothing claims.
    #[must_use]
    pub fn count(&self) -> usize {
        let entries = self.entries.iter().map(|entry| entry.gone.len());
        self.instances.len() + entries.sum::<usize>()
    }

    /// Of this, only what another had shown, as it was then. Returns what is left out of what was shown,
    /// with the reason.
    #[must_use]
    pub fn as_shown(mut self, shown: &Self) -> (Self, Vec<String>) {
        let mut instances: BTreeMap<_, _> =
            shown.instances.iter().map(|it| (&it.key, it)).collect();
        let mut entries: BTreeMap<_, _> = shown.entries.iter().map(|it| (&it.key, it)).collect();
        let is_same = |known: Option<&Doomed>, it: &Doomed| known.is_some_and(|known| known.is(it));
        self.instances.retain(|it| {
            let same = is_same(instances.get(&it.key).copied(), it);
            if same {
                instances.remove(&it.key);
            }
            same
        });
        self.entries.retain(|it| {
            let same = entries.get(&it.key).is_some_and(|known| known.is(it));
            if same {
                entries.remove(&it.key);
            }
            same
        });
        let instances = instances.into_keys().map(ToString::to_string);
        let entries = entries.into_keys().map(ToString::to_string);
        let left = instances.chain(entries);
        let left = left.map(|key| format!("{key}: it changed since it was shown"));
        (self, left.collect())
    }
}

/// Finds what of the cluster's nothing in Kubernetes claims. Fails where either side is not known
/// completely.
pub async fn find(
    kube: &kube::Client,
    consul: &Client,
    cluster: &ClusterName,
    scope: &Scope,
) -> anyhow::Result<Found> {
    let index = listed(kube, scope.index(cluster.clone())).await?;
    let mut mirror = read_all(consul, cluster).await?;
    Ok(Found {
        owned: mirror.owned_instances() + mirror.owned_entries(),
        instances: doomed(&index, &mirror),
        entries: entries::doomed(&index, &mut mirror, &BTreeSet::new()),
    })
}

/// Puts all that Kubernetes has into an empty index, each kind listed once from a quorum.
///
/// # Errors
///
/// A kind that cannot be listed, or not within two minutes.
pub async fn listed(kube: &kube::Client, index: Index) -> anyhow::Result<Index> {
    tokio::time::timeout(PATIENCE, list(kube, index))
        .await
        .context("Kubernetes could not be listed completely in time")?
}

async fn list(kube: &kube::Client, mut index: Index) -> anyhow::Result<Index> {
    let (sender, mut events) = mpsc::channel(64);
    let (_asks, relist) = watch::channel(());
    // Ends them all when it is dropped.
    let mut watches = JoinSet::new();
    let namespaces = index.watches.namespaces().clone();
    let home = Home::in_namespaces(kube.clone(), namespaces.clone());
    for kind in Kind::ALL {
        let (home, sender, relist) = (home.clone(), sender.clone(), relist.clone());
        let watch = k8s::watch_in(kind, home, &namespaces, sender, relist);
        watch.map(|watch| watches.spawn(watch));
    }
    while !index.watches.all_complete() {
        let Some(event) = events.recv().await else {
            bail!("the watches of Kubernetes ended");
        };
        feed(&mut index, event.change, &mut Touched::default());
        for kind in Kind::ALL {
            if let Watch::Broken(why) = index.watches.state(kind) {
                bail!("cannot list {}: {why}", kind.resource());
            }
        }
    }
    Ok(index)
}

fn doomed(index: &Index, mirror: &Mirror) -> Vec<Doomed> {
    let mut rules = Rules::default();
    for key in mirror.keys() {
        rules.guard.found(&key);
    }
    // Whoever asks judges how much may go.
    rules.guard.release();
    let doomed = |key: Key| {
        let Key::Instance(instance) = &key else {
            return None;
        };
        let Step::Remove(removal) = plan::decide(&key, index, mirror, &rules).step else {
            return None;
        };
        Some(Doomed {
            key: instance.clone(),
            owner: removal.owner,
            service: removal.name.to_string(),
            index: removal.index,
        })
    };
    mirror.keys().filter_map(doomed).collect()
}
