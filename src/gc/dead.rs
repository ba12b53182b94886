//! What a dead cluster left.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use globset::GlobSet;
use tokio::time::{Instant, sleep};

use super::entries::{self, DoomedEntry};
use super::findings::DEAD;
use super::remove::{Removed, Remover, Thing};
use super::{Doomed, read_all, sure};
use crate::consul::wire::KvPair;
use crate::consul::{Client, Consistency, Fence};
use crate::desired::index::{Index, Touched};
use crate::model::epoch::{self, Epoch, EpochKind};
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::ledger;
use crate::model::marks::{self, Standing};
use crate::model::names::{ClusterName, NodeName};
use crate::model::text::Pairs;
use crate::observed::entries::{Holder, definition, hash};
use crate::observed::mirror::Mirror;
use crate::sync::{claim, fence};

/// How long a process of the cluster may take to show that it lives. Any that runs takes its epoch back
/// at once, if it reaches Consul.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often the epoch is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Answers that are further apart tell nothing of the time between them.
const APART: Duration = Duration::from_secs(5);
/// When to give up where Consul does not answer for [`PATIENCE`] in a row.
const ENOUGH: Duration = Duration::from_mins(15);

/// All that a cluster has in Consul.
#[derive(Debug)]
pub struct Estate {
    pub(super) cluster: ClusterName,
    /// Its instances.
    pub instances: Vec<Doomed>,
    /// The nodes that have its mark and nothing of others on them.
    pub nodes: Vec<NodeName>,
    /// What it has on no node.
    pub entries: Vec<DoomedEntry>,
    /// The nodes with a name of its, and its queries, that stay, and why.
    pub kept: Vec<(String, String)>,
    /// Entries of others on nodes with a name of its, which stay.
    pub foreign: usize,
    /// Its keys in Consul's KV, with their `ModifyIndex`, without those that go with a query, or stay
    /// with one.
    pub keys: Vec<(String, u64)>,
    /// Config entries that have its mark, and nothing else of it by now.
    pub(super) marked: Vec<Key>,
    of_queries: BTreeSet<String>,
}

/// Reads what a cluster has in Consul.
pub async fn find(client: &Client, cluster: &ClusterName) -> anyhow::Result<Estate> {
    let mut mirror = read_all(client, cluster).await?;
    let mut estate = Estate::of(cluster, &mirror);
    estate.add_entries(&mut mirror);
    let keys = keys(client, cluster).await?;
    let keys = keys
        .iter()
        .filter(|pair| !estate.of_queries.contains(&*pair.key));
    estate.keys = keys
        .map(|pair| (pair.key.to_string(), pair.modify_index))
        .collect();
    Ok(estate)
}

async fn keys(client: &Client, cluster: &ClusterName) -> anyhow::Result<Vec<KvPair>> {
    let prefix = format!("lictor/v1/{cluster}/");
    let keys = client.kv_list(&prefix, Consistency::Consistent);
    sure(keys.await).context("cannot list the keys of the cluster in Consul")
}

/// Why a node stays, if it does. That its name is one of the cluster's does not make it the cluster's.
fn stays(cluster: &ClusterName, meta: &Pairs, others: usize) -> Option<String> {
    match meta.get(marks::CLUSTER) {
        Some(mark) if **mark == *cluster.as_ref() => {
            (others > 0).then(|| format!("{others} entries that stay are on it"))
        }
        Some(mark) => Some(format!("it is marked as the cluster {mark}'s")),
        None => Some(format!("it does not carry the mark of {cluster}")),
    }
}

/// The epoch of a cluster as Consul has it.
pub(super) async fn epoch_of(
    client: &Client,
    cluster: &ClusterName,
) -> anyhow::Result<Option<fence::Standing>> {
    let key = epoch::key(cluster);
    let there = claim::read(client, &key).await;
    there.with_context(|| format!("cannot read {key} in Consul"))
}

/// Takes the epoch of the cluster and waits whether one of its processes takes it back.
pub async fn take_epoch(
    client: &Client,
    cluster: &ClusterName,
    holder: String,
    say: impl Fn(&str),
) -> anyhow::Result<u64> {
    let key = epoch::key(cluster);
    let there = epoch_of(client, cluster).await?;
    let at = there.as_ref().map_or(0, |there| there.index);
    let ours = match there {
        Some(fence::Standing { epoch: before, .. }) => Epoch {
            holder,
            kind: EpochKind::Gc,
            term: before.term.wrapping_add(1),
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
    let index = claim::write(client, &key, &ours, at).await?;
    let seconds = PATIENCE.as_secs();
    say(&format!(
        "waiting for {seconds} s whether a process of {cluster} still runs ..."
    ));
    let (mut quiet, began) = (Quiet::default(), Instant::now());
    loop {
        match sure(client.kv_get(&key, Consistency::Consistent).await) {
            Ok(there) if there.as_ref().map(|pair| pair.modify_index) == Some(index) => {
                if quiet.answered(Instant::now()) >= PATIENCE {
                    return Ok(index);
                }
            }
            Ok(_) => bail!(
                "the cluster {cluster} lives: one of its processes took its epoch back; nothing was \
                 removed"
            ),
            Err(error) => {
                if quiet.failed() {
                    say(&format!(
                        "Consul does not answer ({error}): the {seconds} s begin anew when it does"
                    ));
                }
            }
        }
        if began.elapsed() >= ENOUGH {
            bail!("Consul did not answer for {seconds} s in a row: nothing was removed");
        }
        sleep(LOOK).await;
    }
}

/// For how long Consul has answered without a break. A process that lives cannot take its epoch back while
/// Consul does not answer, nor be seen to.
#[derive(Clone, Copy, Debug, Default)]
struct Quiet {
    /// The first answer of the row, and the last.
    answers: Option<(Instant, Instant)>,
}

impl Quiet {
    /// Consul answered. Returns for how long it has.
    fn answered(&mut self, now: Instant) -> Duration {
        let goes_on = |(_, last): &(Instant, Instant)| now.duration_since(*last) <= APART;
        let first = self.answers.filter(goes_on).map_or(now, |(first, _)| first);
        self.answers = Some((first, now));
        now.duration_since(first)
    }

    /// Consul did not answer. Returns whether it did before.
    fn failed(&mut self) -> bool {
        self.answers.take().is_some()
    }
}

impl Estate {
    pub(super) fn empty(cluster: &ClusterName) -> Self {
        Self {
            cluster: cluster.clone(),
            instances: Vec::new(),
            nodes: Vec::new(),
            entries: Vec::new(),
            kept: Vec::new(),
            foreign: 0,
            keys: Vec::new(),
            marked: Vec::new(),
            of_queries: BTreeSet::new(),
        }
    }

    /// What the mirror shows of the cluster, which knows nothing of keys.
    fn of(cluster: &ClusterName, mirror: &Mirror) -> Self {
        let mut estate = Self::empty(cluster);
        for name in mirror.node_names() {
            let mut foreign = 0;
            for (key, instance) in mirror.on_node(name) {
                match mirror.standing(key, instance) {
                    Standing::Ours(owner) => estate.instances.push(Doomed {
                        key: key.clone(),
                        owner,
                        service: instance.service.name.to_string(),
                        index: instance.modify_index,
                    }),
                    Standing::Foreign(_) => foreign += 1,
                }
            }
            estate.foreign += foreign;
            let meta = mirror.node(name).map(|node| &node.node.meta);
            match meta.and_then(|meta| stays(cluster, meta, foreign)) {
                Some(why) => estate.kept.push((name.to_string(), why)),
                None => estate.nodes.push(name.clone()),
            }
        }
        estate
    }

    /// Adds what the mirror shows of the cluster that is on no node. A query is the cluster's where it has
    /// the id and the definition that the ledger says.
    fn add_entries(&mut self, mirror: &mut Mirror) {
        let mut kept = BTreeSet::new();
        for (name, there) in mirror.queries.iter() {
            let Some((ledger, _)) = &there.ledger else {
                continue;
            };
            let why = match there.ours() {
                // What has its id would be nobody's without it.
                _ if ledger.owner().is_none() => {
                    "its entry in the cluster's ledger is not understood, a newer release may: remove \
                     both by hand"
                }
                None if there.renamed.is_some() => {
                    "what has the id that the cluster's ledger says has another name and definition: mend or \
                     remove it, and its entry in the ledger"
                }
                Some(query) if !there.says(query) && !ledger.id.is_empty() => {
                    "the cluster's ledger says another id: it was changed by another hand: remove it if it is not \
                     needed, and its entry in the ledger"
                }
                Some(query) if hash(&definition(query)) != ledger.hash => {
                    "it is not as the cluster's ledger says: it was changed by another hand: remove it if it is \
                     not needed, and its entry in the ledger"
                }
                _ => continue,
            };
            kept.insert(name.clone());
            self.of_queries.insert(ledger::key(&self.cluster, name));
            self.kept.push((format!("query/{name}"), why.to_owned()));
        }
        let marked = self.add_marked(mirror);
        let mut nothing = Index::new(self.cluster.clone(), GlobSet::empty());
        for kind in Kind::ALL {
            nothing.begin_list(kind);
            nothing.end_list(kind, &mut Touched::default());
        }
        self.entries = entries::doomed(&nothing, mirror, &kept);
        let goes: BTreeSet<&Key> = self.entries.iter().map(|doomed| &doomed.key).collect();
        self.marked = marked;
        self.marked.retain(|key| !goes.contains(key));
        let ledgers = self.entries.iter();
        let ledgers = ledgers.filter_map(|doomed| doomed.ledger(&self.cluster));
        self.of_queries.extend(ledgers);
    }

    /// The config entries that have all of the cluster's marks; those that lost some stay.
    fn add_marked(&mut self, mirror: &Mirror) -> Vec<Key> {
        let intentions = mirror.intentions.iter().map(|(destination, there)| {
            let key = Key::Intentions(destination.clone());
            (key, &there.holder, &there.meta)
        });
        let defaults = mirror.defaults.iter().map(|(service, there)| {
            let key = Key::Defaults(service.clone());
            (key, &there.holder, &there.entry.meta)
        });
        let mut marked = Vec::new();
        for (key, holder, meta) in intentions.chain(defaults) {
            match holder {
                Holder::Ours => marked.push(key),
                // Of another cluster's it would be `Another`.
                Holder::Incomplete(_) if meta.get(marks::CLUSTER).is_some() => {
                    let why = "it lost some of the cluster's marks: take the rest out of its Meta, or remove it";
                    self.kept.push((key.to_string(), why.to_owned()));
                }
                _ => {}
            }
        }
        marked
    }

    /// How much goes.
    #[must_use]
    pub fn count(&self) -> Removed {
        let mut count = Removed {
            instances: self.instances.len(),
            nodes: self.nodes.len(),
            keys: self.keys.len(),
            ..Removed::default()
        };
        count.add(&self.entries);
        count
    }

    /// Removes what was shown of it: instances, what is on no node, then the nodes that are empty by then, then
    /// the keys, the epoch last. Tells what went and what stayed also where it fails half-way.
    pub async fn remove(&self, client: &Client, epoch: u64) -> (Outcome, anyhow::Result<()>) {
        let key = epoch::key(&self.cluster);
        let fence = Fence {
            key: &key,
            index: epoch,
        };
        let mut remover = Remover::new(client, fence, DEAD);
        let done = self.remove_by(client, &mut remover).await;
        (remover.into(), done)
    }

    async fn remove_by(&self, client: &Client, remover: &mut Remover<'_>) -> anyhow::Result<()> {
        remover.instances(&self.instances).await?;
        remover.entries(&self.cluster, &self.entries).await?;
        self.remove_nodes(client, remover).await?;
        self.remove_keys(client, remover).await
    }

    /// Removes the nodes that are empty by now, and tells of what stays.
    pub(super) async fn remove_nodes(
        &self,
        client: &Client,
        remover: &mut Remover<'_>,
    ) -> anyhow::Result<()> {
        for (name, why) in &self.kept {
            remover.stayed.push(format!("{name}: {why}"));
        }
        for name in &self.nodes {
            let there = client.node_services(name.as_ref(), Consistency::Consistent);
            let there = sure(there.await).with_context(|| format!("cannot read {name}"))?;
            let Some((node, services)) = there else {
                continue;
            };
            if let Some(why) = stays(&self.cluster, &node.meta, services.len()) {
                remover.stayed.push(format!("{name}: {why}"));
                continue;
            }
            let index = node.modify_index;
            remover.one(Thing::Node { name, index }).await?;
        }
        Ok(())
    }

    /// Removes the keys, the epoch last and only if nothing stayed.
    pub(super) async fn remove_keys(
        &self,
        client: &Client,
        remover: &mut Remover<'_>,
    ) -> anyhow::Result<()> {
        let fence = remover.fence();
        let there = keys(client, &self.cluster).await?;
        let others = there.iter().filter(|pair| *pair.key != *fence.key);
        for pair in others.filter(|pair| !self.of_queries.contains(&*pair.key)) {
            let (key, index) = (&*pair.key, pair.modify_index);
            let shown = |(known, at): &(String, u64)| *known == *key && *at == index;
            if self.keys.iter().any(shown) {
                remover.one(Thing::Key { key, index }).await?;
            } else {
                remover.stayed.push(format!("{key}: it changed meanwhile"));
            }
        }
        if remover.stayed.is_empty() {
            let Fence { key, index } = fence;
            remover.one(Thing::Key { key, index }).await?;
        }
        Ok(())
    }
}

/// What became of an estate.
#[derive(Debug)]
pub struct Outcome {
    /// What went.
    pub removed: Removed,
    /// What stayed, and why.
    pub stayed: Vec<String>,
}

impl From<Remover<'_>> for Outcome {
    fn from(remover: Remover<'_>) -> Self {
        let Remover {
            removed, stayed, ..
        } = remover;
        Self { removed, stayed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::Destination;
    use crate::observed::entries::ObservedIntentions;
    use crate::observed::table::Knowledge;

    #[test]
    fn only_time_in_which_consul_answered_counts() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut quiet = Quiet::default();
        assert_eq!(quiet.answered(at(0)), Duration::ZERO);
        for second in 1..=50 {
            assert_eq!(quiet.answered(at(second)), Duration::from_secs(second));
        }
        assert!(quiet.failed() && !quiet.failed());
        assert_eq!(quiet.answered(at(59)), Duration::ZERO);
        assert_eq!(quiet.answered(at(60)), Duration::from_secs(1));
        // No failure was seen, but neither was anything else.
        assert_eq!(quiet.answered(at(120)), Duration::ZERO);
    }

    #[test]
    fn what_has_the_mark_and_nothing_else_of_the_cluster_is_known() {
        let cluster: ClusterName = "a".parse().unwrap();
        let mut mirror = Mirror::new(cluster.clone());
        let of = |name: &str, meta: serde_json::Value| {
            let entry = serde_json::json!({"Kind": "service-intentions", "Name": name, "ModifyIndex": 4,
                "Sources": [{"Name": "another", "Action": "deny"}], "Meta": meta});
            let there = ObservedIntentions::of(&cluster, serde_json::from_value(entry).unwrap());
            (Destination::new(name), there)
        };
        let source = "shop/one=web";
        let rows = [
            of(
                "whole",
                serde_json::json!({"external-source": "kubernetes", "lictor-cluster": "a", "lictor-src-0": source}),
            ),
            of(
                "part",
                serde_json::json!({"lictor-cluster": "a", "lictor-src-0": source}),
            ),
            of(
                "others",
                serde_json::json!({"external-source": "kubernetes", "lictor-cluster": "b"}),
            ),
        ];
        let ticket = mirror.intentions.start_read();
        let intentions = &mut mirror.intentions;
        intentions.finish_read(&ticket, rows.into(), Knowledge::Whole, |_| false);
        let mut estate = Estate::of(&cluster, &mirror);
        estate.add_entries(&mut mirror);
        assert_eq!(estate.marked, [Key::Intentions(Destination::new("whole"))]);
        let kept: Vec<&str> = estate.kept.iter().map(|(key, _)| &**key).collect();
        assert_eq!(kept, ["service-intentions/part"]);
    }

    #[test]
    fn a_node_goes_by_its_mark_and_not_by_its_name() {
        let cluster = "a".parse().unwrap();
        let meta = |mark: &str| {
            [("lictor-cluster".into(), mark.into())]
                .into_iter()
                .collect()
        };
        assert_eq!(stays(&cluster, &meta("a"), 0), None);
        assert!(
            stays(&cluster, &meta("a"), 1)
                .unwrap()
                .contains("1 entries")
        );
        assert!(stays(&cluster, &meta("b"), 0).unwrap().contains('b'));
        let unmarked = stays(&cluster, &Pairs::default(), 0).unwrap();
        assert!(unmarked.contains("the mark of a"), "{unmarked}");
    }
}
