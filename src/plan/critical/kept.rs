//! What Consul keeps of how long instances have been critical, and what is to be written there.
//!
//! Wall clocks jump, and differ between the processes of one cluster. A time in the future counts for
//! nothing, and one of the past no more than as an age at the moment in which it is read; from then on the
//! monotonic clock goes on from it. One that jumps while a process runs changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::Criticals;
use crate::consul::wire::KvPair;
use crate::model::critical::{self, CriticalTime, CriticalTimes};
use crate::model::key::InstanceKey;
use crate::model::names::{ClusterName, InstanceId, NodeName};
use crate::model::text::Text;

/// How long kubelets may take to tell an API server that is back how their pods are.
const CATCH_UP: Duration = Duration::from_mins(1);

/// What counts of the time before this process saw an instance critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Since when it is, as it is kept.
    pub since: i64,
    /// How long that was ago.
    pub age: Duration,
}

/// What Consul keeps.
#[derive(Debug, Default)]
pub struct Kept {
    state: State,
    /// Nodes whose key may differ from what is known.
    changed: BTreeSet<NodeName>,
    /// When the view was lost, or was back, the last time.
    interrupted: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    /// It was not read yet.
    #[default]
    Unread,
    /// It cannot be read, or not be written: nothing goes by it.
    Failed,
    /// It was read then.
    Read {
        at: Instant,
        nodes: BTreeMap<NodeName, Node>,
    },
}

/// The key of a node.
#[derive(Debug, Default)]
struct Node {
    /// Its `ModifyIndex`; 0 where there is none.
    index: u64,
    /// Its value; `None` where that is not understood, and left alone.
    content: Option<CriticalTimes>,
    /// What of it counts, as far as this process has not seen the instance itself.
    credits: BTreeMap<InstanceId, (Credit, Text)>,
    /// Whether it is being written.
    busy: bool,
}

/// A write of the key of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptWrite {
    /// The node.
    pub node: NodeName,
    /// The `ModifyIndex` that the key must have; 0 to create it.
    pub index: u64,
    /// The value; one without instances removes the key.
    pub times: CriticalTimes,
}

/// A key that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key} in Consul is not understood, and on {node} nothing is deregistered for being critical while it \
     is there: remove the key, unless a newer release wrote it ({why})"
)]
pub struct Garbled {
    key: Text,
    node: NodeName,
    why: String,
}

impl Kept {
    /// What these keys say, at a moment in which the clock on the wall shows `wall`, in seconds since 1970.
    #[must_use]
    pub fn of(
        cluster: &ClusterName,
        pairs: &[KvPair],
        now: Instant,
        wall: i64,
    ) -> (Self, Vec<Garbled>) {
        let (mut nodes, mut garbled) = (BTreeMap::new(), Vec::new());
        for pair in pairs {
            let Some(name) = critical::parse(cluster, &pair.key) else {
                continue;
            };
            let mut node = Node {
                index: pair.modify_index,
                ..Node::default()
            };
            match CriticalTimes::parse(&pair.value) {
                Ok(times) => {
                    let credits = times.instances.iter().filter_map(|(id, time)| {
                        let age = wall.checked_sub(time.since)?;
                        let age = Duration::from_secs(u64::try_from(age).ok()?);
                        let since = time.since;
                        let credit = Credit { since, age };
                        let is_one = since > 0;
                        is_one.then(|| (InstanceId::observed(id), (credit, (&*time.uid).into())))
                    });
                    node.credits = credits.collect();
                    node.content = Some(times);
                }
                Err(error) => garbled.push(Garbled {
                    key: pair.key.clone(),
                    node: name.clone(),
                    why: error,
                }),
            }
            nodes.insert(name, node);
        }
        // Each is compared with what is wanted: one without instances is named by nothing else.
        let kept = Self {
            changed: nodes.keys().cloned().collect(),
            state: State::Read { at: now, nodes },
            ..Self::default()
        };
        (kept, garbled)
    }

    /// It is not known what is there, until it is read again.
    pub fn doubt(&mut self) {
        self.state = State::Unread;
    }

    /// It cannot be read, or not be written.
    pub fn failed(&mut self) {
        self.state = State::Failed;
    }

    /// Whether it was not read yet.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        matches!(self.state, State::Unread)
    }

    /// Whether it was read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self.state, State::Read { .. })
    }

    pub(super) fn forget(&mut self) {
        self.state = State::Unread;
        self.changed.clear();
    }

    /// What was read takes the place of what was known. When the view was lost stays known: what Consul has
    /// may still be from before.
    pub(super) fn replace(&mut self, read: Self) {
        *self = Self {
            interrupted: self.interrupted,
            ..read
        };
    }

    /// Also where this was read before: it may have to be read again before what counts no more is gone
    /// from Consul.
    pub(super) fn interrupted(&mut self, now: Instant) {
        self.interrupted = Some(now);
    }

    /// Whether the view is just back, and may be behind what it is of.
    pub(super) fn was_interrupted(&self, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < CATCH_UP;
        self.interrupted.is_some_and(recent)
    }

    fn nodes(&self) -> Option<&BTreeMap<NodeName, Node>> {
        match &self.state {
            State::Read { nodes, .. } => Some(nodes),
            _ => None,
        }
    }

    fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes()?.get(name)
    }

    fn node_mut(&mut self, name: &NodeName) -> Option<&mut Node> {
        match &mut self.state {
            State::Read { nodes, .. } => nodes.get_mut(name),
            _ => None,
        }
    }

    /// The instances that are named, all or those on one node.
    pub(super) fn instances(&self, on: Option<&NodeName>) -> Vec<InstanceKey> {
        let all = self.nodes().filter(|_| on.is_none());
        let one = on.and_then(|name| self.nodes()?.get_key_value(name));
        let nodes = all.into_iter().flatten().chain(one);
        let named = nodes.flat_map(|(name, node)| {
            let ids = node.content.iter().flat_map(|times| times.instances.keys());
            ids.map(|id| InstanceKey {
                node: name.clone(),
                id: InstanceId::observed(id),
            })
        });
        named.collect()
    }

    /// How long this instance was critical at least, as far as this process has not seen it itself.
    pub(super) fn age(&self, key: &InstanceKey, uid: &Text) -> Option<Duration> {
        let (credit, of) = self.node(&key.node)?.credits.get(&key.id)?;
        (of == uid).then_some(credit.age)
    }

    /// Whether Consul has this time of an instance.
    pub(super) fn has(&self, key: &InstanceKey, uid: &Text, since: i64) -> bool {
        let time = self.time(key);
        time.is_some_and(|time| time.since == since && *time.uid == **uid)
    }

    fn time(&self, key: &InstanceKey) -> Option<&CriticalTime> {
        let content = self.node(&key.node)?.content.as_ref()?;
        content.instances.get(key.id.as_ref())
    }

    /// Takes what counts for this instance.
    pub(super) fn take_credit(
        &mut self,
        key: &InstanceKey,
        uid: &Text,
        now: Instant,
    ) -> Option<Credit> {
        let State::Read { at, nodes } = &mut self.state else {
            return None;
        };
        let credits = &mut nodes.get_mut(&key.node)?.credits;
        let (credit, _) = credits.get(&key.id).filter(|(_, of)| of == uid)?;
        let credit = Credit {
            age: credit.age + now.saturating_duration_since(*at),
            ..*credit
        };
        credits.remove(&key.id);
        Some(credit)
    }

    /// What counted for this instance counts no more.
    pub(super) fn drop_credit(&mut self, key: &InstanceKey) {
        if let Some(node) = self.node_mut(&key.node)
            && node.credits.remove(&key.id).is_some()
        {
            self.changed(&key.node);
        }
    }

    /// What counted for these instances, of all or of those on one node, counts no more.
    pub(super) fn distrust(
        &mut self,
        on: Option<&NodeName>,
        is_meant: impl Fn(&InstanceKey) -> bool,
    ) {
        for key in self.instances(on) {
            if is_meant(&key) {
                self.drop_credit(&key);
            }
        }
    }

    /// The key of a node may differ from what is known.
    pub(super) fn changed(&mut self, node: &NodeName) {
        self.changed.insert(node.clone());
    }

    /// A node whose key may differ, and is not being written; none while it is not known what is there.
    fn next_changed(&self) -> Option<NodeName> {
        let nodes = self.nodes()?;
        let is_free = |name: &&NodeName| nodes.get(*name).is_none_or(|node| !node.busy);
        self.changed.iter().find(is_free).cloned()
    }

    /// A write was carried out: the key has this index now, or is gone.
    pub fn written(&mut self, write: KeptWrite, index: Option<u64>) {
        let State::Read { nodes, .. } = &mut self.state else {
            return;
        };
        let Some(index) = index else {
            nodes.remove(&write.node);
            return;
        };
        let node = nodes.entry(write.node).or_default();
        node.index = index;
        node.content = Some(write.times);
        node.busy = false;
    }
}

impl Criticals {
    /// Takes a write of what differs from what Consul keeps; nothing while that is not known.
    pub fn next_write(&mut self) -> Option<KeptWrite> {
        while let Some(name) = self.kept.next_changed() {
            self.kept.changed.remove(&name);
            let times = self.wanted(&name);
            let Some(node) = self.kept.node(&name) else {
                if times.instances.is_empty() {
                    continue;
                }
                return self.start(name, times);
            };
            let differs = |there: &CriticalTimes| {
                let is_empty = times.instances.is_empty();
                times != *there || is_empty
            };
            if node.content.as_ref().is_some_and(differs) {
                return self.start(name, times);
            }
        }
        None
    }

    /// Whether there may be something to write.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.kept.is_read() && !self.kept.changed.is_empty()
    }

    fn start(&mut self, name: NodeName, times: CriticalTimes) -> Option<KeptWrite> {
        let State::Read { nodes, .. } = &mut self.kept.state else {
            return None;
        };
        let node = nodes.entry(name.clone()).or_insert_with(|| Node {
            content: Some(CriticalTimes::default()),
            ..Node::default()
        });
        node.busy = true;
        Some(KeptWrite {
            node: name,
            index: node.index,
            times,
        })
    }

    /// What is to be kept of a node: what this process knows, and what counts of what it does not.
    fn wanted(&self, name: &NodeName) -> CriticalTimes {
        let node = self.kept.node(name);
        let content = node.and_then(|node| node.content.as_ref());
        let known = |id: &InstanceId| content?.instances.get(id.as_ref());
        let mut instances = BTreeMap::new();
        let credits = node.into_iter().flat_map(|node| node.credits.keys());
        for id in credits {
            if let Some(time) = known(id) {
                instances.insert(id.to_string(), time.clone());
            }
        }
        for (key, uid, since) in self.times(name) {
            let before = known(&key.id).filter(|time| *time.uid == **uid);
            let time = CriticalTime {
                since,
                uid: uid.to_string(),
                other: before.map(|time| time.other.clone()).unwrap_or_default(),
            };
            instances.insert(key.id.to_string(), time);
        }
        let other = content.map(|content| content.other.clone());
        let times = CriticalTimes {
            instances,
            other: other.unwrap_or_default(),
        };
        times.fitted()
    }
}
