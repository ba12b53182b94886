//! Removing, behind the fence, with a line of the audit log for all that went.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::sleep;

use super::entries::DoomedEntry;
use super::{Doomed, audit, read_table, sure};
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Fence, Txn, TxnError, TxnFailure, TxnOp,
    TxnOutcome,
};
use crate::model::key::{Key, Place};
use crate::model::names::{ClusterName, InstanceId, NodeName};
use crate::observed::mirror::Mirror;
use crate::plan::entries::{Change, owner_of};
use crate::sync::apply::ReadError;
use crate::sync::carry::{Carried, carry_out};
use crate::sync::pass::Pass;

/// Removals in a transaction.
const TOGETHER: usize = 100;
/// How often Consul is asked where its answer does not come.
pub(super) const ATTEMPTS: u32 = 5;
/// The pause before it is asked again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Something in Consul that is to be removed, as it was read.
#[derive(Clone, Copy, Debug)]
pub enum Thing<'a> {
    /// An instance.
    Instance(&'a Doomed),
    /// A node, which was seen to be empty directly before.
    Node {
        /// Its name.
        name: &'a NodeName,
        /// Its `ModifyIndex`.
        index: u64,
    },
    /// A key in the KV store.
    Key {
        /// The key.
        key: &'a str,
        /// Its `ModifyIndex`.
        index: u64,
    },
}

/// How much was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Removed {
    /// Instances.
    pub instances: usize,
    /// Sources of intentions.
    pub intentions: usize,
    /// Prepared queries.
    pub queries: usize,
    /// Defaults of services.
    pub defaults: usize,
    /// Nodes.
    pub nodes: usize,
    /// Keys in the KV store.
    pub keys: usize,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            instances,
            intentions,
            queries,
            defaults,
            nodes,
            keys,
        } = self;
        write!(
            f,
            "{instances} instances, {intentions} intentions, {queries} queries, {defaults} \
             service-defaults, {nodes} nodes and {keys} keys"
        )
    }
}

impl Removed {
    /// How much it is when these things are removed.
    pub fn add(&mut self, entries: &[DoomedEntry]) {
        for doomed in entries {
            for (key, _) in &doomed.gone {
                self.count(key);
            }
            let strikes = |change: &&Change| matches!(change, Change::DeleteLedger(_));
            self.keys += doomed.changes.iter().filter(strikes).count();
        }
    }

    fn count(&mut self, key: &Key) {
        match key {
            Key::Node(_) => self.nodes += 1,
            Key::Instance(_) => self.instances += 1,
            Key::Defaults(_) => self.defaults += 1,
            Key::Intentions(_) | Key::Source(_) => self.intentions += 1,
            Key::Query(_) => self.queries += 1,
        }
    }
}

/// Removes things behind a fence.
pub struct Remover<'a> {
    client: &'a Client,
    fence: Fence<'a>,
    /// Why it is removed, for the audit log.
    pub(super) why: &'a str,
    /// How much was removed.
    pub removed: Removed,
    /// What was not removed, and why.
    pub stayed: Vec<String>,
}

impl<'a> Remover<'a> {
    /// Removes behind this fence; `why` is for the audit log.
    #[must_use]
    pub fn new(client: &'a Client, fence: Fence<'a>, why: &'a str) -> Self {
        Self {
            client,
            fence,
            why,
            removed: Removed::default(),
            stayed: Vec::new(),
        }
    }

    /// What it removes behind.
    #[must_use]
    pub fn fence(&self) -> Fence<'a> {
        self.fence
    }

    /// Removes instances, many at once; one that changed since it was read stays. Fails where another
    /// process took the epoch.
    pub async fn instances(&mut self, doomed: &[Doomed]) -> anyhow::Result<()> {
        let things: Vec<Thing<'_>> = doomed.iter().map(Thing::Instance).collect();
        for batch in things.chunks(TOGETHER) {
            if self.together(batch).await? {
                continue;
            }
            for thing in batch {
                self.one(*thing).await?;
            }
        }
        Ok(())
    }

    /// Removes one thing; it stays if it changed since it was read.
    pub async fn one(&mut self, thing: Thing<'_>) -> anyhow::Result<()> {
        if !self.together(&[thing]).await? {
            let name = thing.name();
            self.stayed.push(format!("{name}: it changed meanwhile"));
        }
        Ok(())
    }

    /// Removes what is on no node, in this order; what changed since it was read stays, and so does what
    /// Consul refuses to remove.
    pub async fn entries(
        &mut self,
        cluster: &ClusterName,
        doomed: &[DoomedEntry],
    ) -> anyhow::Result<()> {
        for doomed in doomed {
            for change in &doomed.changes {
                if let Err(why) = self.carry(cluster, doomed, change).await? {
                    self.stayed.push(format!("{}: {why}", doomed.key));
                    break;
                }
                self.went(cluster, doomed, change);
            }
        }
        Ok(())
    }

    /// Carries out a change, or says why it stays.
    async fn carry(
        &self,
        cluster: &ClusterName,
        doomed: &DoomedEntry,
        change: &Change,
    ) -> anyhow::Result<Result<(), String>> {
        let mut lost: Option<ConsulError> = None;
        let pass = Pass::of(self.fence);
        for _ in 0..ATTEMPTS {
            let outcome = carry_out(self.client, cluster, &pass, &doomed.key, change).await;
            let done = matches!(outcome, Ok(Carried::Done(..) | Carried::Unseen(_)));
            if done || (lost.is_some() && self.is_done(cluster, doomed, change).await?) {
                return Ok(Ok(()));
            }
            match outcome {
                Ok(Carried::Done(..) | Carried::Unseen(_)) => return Ok(Ok(())),
                Ok(Carried::Outdated) => return Ok(Err("it changed meanwhile".to_owned())),
                Ok(Carried::Fenced { what, .. }) => return Err(replaced(&what)),
                Ok(Carried::Denied(what) | Carried::NoEpoch(what)) => {
                    bail!("Consul refuses the removal: {what}")
                }
                Err(error) if error.class().may_be_applied() => {
                    lost = Some(error);
                    sleep(PAUSE).await;
                }
                Err(error) if error.class() == ErrorClass::Refused => {
                    return Ok(Err(format!("Consul refuses it: {}", error.text())));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let lost = lost.map(|error| error.to_string()).unwrap_or_default();
        if self.is_done(cluster, doomed, change).await? {
            return Ok(Ok(()));
        }
        bail!(
            "{}: Consul does not say whether it is removed: {lost}",
            doomed.key
        )
    }

    /// Whether a change whose answer was lost was carried out.
    async fn is_done(
        &self,
        cluster: &ClusterName,
        doomed: &DoomedEntry,
        change: &Change,
    ) -> anyhow::Result<bool> {
        let Place::Table(table) = doomed.key.place() else {
            return Ok(false);
        };
        let mut mirror = Mirror::new(cluster.clone());
        for attempt in 1.. {
            match read_table(self.client, cluster, table, &mut mirror).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => {
                    let key = &doomed.key;
                    let context = format!("it is not known whether this was removed: {key}");
                    return Err(error.context(context));
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
        if let (Change::DeleteLedger(_), Key::Query(name)) = (change, &doomed.key) {
            let there = mirror.queries.get(name);
            return Ok(there.is_none_or(|there| there.ledger.is_none()));
        }
        let mut gone = doomed.gone.iter();
        Ok(gone.all(|(key, owner)| owner_of(key, &mirror).as_ref() != Some(owner)))
    }

    /// Counts and tells what went with a change.
    fn went(&mut self, cluster: &ClusterName, doomed: &DoomedEntry, change: &Change) {
        let (epoch, index) = (self.fence.index, change.index());
        if let Change::DeleteLedger(_) = change {
            self.removed.keys += 1;
            let key = doomed.ledger(cluster).unwrap_or_default();
            audit("key", &key, "", self.why, epoch, index);
            return;
        }
        for (key, owner) in &doomed.gone {
            self.removed.count(key);
            let (kind, key, owner) = (key.kind(), key.to_string(), owner.to_string());
            audit(kind, &key, &owner, self.why, epoch, index);
        }
    }

    /// Removes the things, and tells so, or leaves them all: `false` if one of them changed.
    async fn together(&mut self, things: &[Thing<'_>]) -> anyhow::Result<bool> {
        let removed = self.apply(things).await?;
        if removed {
            for thing in things {
                self.gone(thing);
            }
        }
        Ok(removed)
    }

    async fn apply(&self, things: &[Thing<'_>]) -> anyhow::Result<bool> {
        let mut txn = Txn::new();
        for thing in things {
            txn.push(&thing.op())?;
        }
        let mut lost: Option<ConsulError> = None;
        for attempt in 1.. {
            let outcome = self.client.apply_fenced(self.fence, &txn).await;
            if let Err(error) = &outcome
                && error.class().may_be_applied()
            {
                lost = Some(error.clone());
            }
            if let (Some(lost), false) = (&lost, matches!(outcome, Ok(TxnOutcome::Applied(_))))
                && self.are_gone(things, lost).await?
            {
                return Ok(true);
            }
            match outcome {
                Ok(TxnOutcome::Applied(_)) => return Ok(true),
                Ok(TxnOutcome::RolledBack(errors)) => return changed(&errors),
                Ok(TxnOutcome::Fenced { what, .. }) => return Err(replaced(&what)),
                // What is still there may go yet, by the request whose answer was lost: asking once
                // more does no harm, since each goes by its index, and its answer decides.
                Err(error) if error.class().may_be_applied() && attempt < ATTEMPTS => {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Whether a removal whose answer was lost was carried out: all of it was, or nothing.
    async fn are_gone(&self, things: &[Thing<'_>], lost: &ConsulError) -> anyhow::Result<bool> {
        for thing in things {
            let mut gone = thing.is_gone(self.client).await;
            for _ in 1..ATTEMPTS {
                if gone.is_ok() {
                    break;
                }
                sleep(PAUSE).await;
                gone = thing.is_gone(self.client).await;
            }
            let gone = gone.with_context(|| {
                let names: Vec<String> = things.iter().map(Thing::name).collect();
                let names = names.join(", ");
                format!("it is not known whether these were removed ({lost}): {names}")
            })?;
            if !gone {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn gone(&mut self, thing: &Thing<'_>) {
        let (kind, owner) = match thing {
            Thing::Instance(doomed) => {
                self.removed.instances += 1;
                ("instance", doomed.owner.to_string())
            }
            Thing::Node { .. } => {
                self.removed.nodes += 1;
                ("node", String::new())
            }
            Thing::Key { .. } => {
                self.removed.keys += 1;
                ("key", String::new())
            }
        };
        let (name, epoch) = (thing.name(), self.fence.index);
        audit(kind, &name, &owner, self.why, epoch, thing.index());
    }
}

pub(super) fn replaced(what: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "another process took the epoch: it writes for the cluster now, and this one stops ({what})"
    )
}

/// `false`: something changed since it was read. Else Consul refuses it as it is.
fn changed(errors: &[TxnError]) -> anyhow::Result<bool> {
    let stale = |error: &&TxnError| error.reason == TxnFailure::StaleIndex;
    match errors.iter().find(|error| !stale(error)) {
        Some(error) => bail!("Consul refuses the removal: {}", error.what),
        None => Ok(false),
    }
}

impl Thing<'_> {
    fn name(&self) -> String {
        match self {
            Self::Instance(doomed) => doomed.key.to_string(),
            Self::Node { name, .. } => name.to_string(),
            Self::Key { key, .. } => (*key).to_owned(),
        }
    }

    fn index(&self) -> u64 {
        match self {
            Self::Instance(doomed) => doomed.index,
            Self::Node { index, .. } | Self::Key { index, .. } => *index,
        }
    }

    fn op(&self) -> TxnOp<'_> {
        match *self {
            Self::Instance(doomed) => TxnOp::ServiceDeleteCas {
                node: doomed.key.node.as_ref(),
                id: doomed.key.id.as_ref(),
                service: &doomed.service,
                index: doomed.index,
            },
            Self::Node { name, index } => TxnOp::NodeDeleteCas {
                name: name.as_ref(),
                index,
            },
            Self::Key { key, index } => TxnOp::KvDeleteCas { key, index },
        }
    }

    /// Whether it is there no more; what stands in its place, if anything, came later.
    async fn is_gone(&self, client: &Client) -> Result<bool, ReadError> {
        let created = match self {
            Self::Instance(doomed) => {
                let node = doomed.key.node.as_ref();
                let there = sure(client.node_services(node, Consistency::Consistent).await)?;
                let services = there.map(|(_, services)| services).unwrap_or_default();
                let is_it = |id: &str| InstanceId::observed(id) == doomed.key.id;
                let found = services.iter().find(|service| is_it(&service.id));
                found.map(|service| service.create_index)
            }
            Self::Node { name, .. } => {
                let there = client.node_services(name.as_ref(), Consistency::Consistent);
                sure(there.await)?.map(|(node, _)| node.create_index)
            }
            Self::Key { key, .. } => {
                let there = client.kv_get(key, Consistency::Consistent);
                sure(there.await)?.map(|pair| pair.create_index)
            }
        };
        Ok(created.is_none_or(|created| created > self.index()))
    }
}

#[cfg(test)]
mod tests;
