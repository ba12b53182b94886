//! Election by a lock in Consul: the calls that its [rules] ask for.

mod rules;

use std::borrow::Cow;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use self::rules::{Act, Holder, Rules, Seen};
use super::pause::Complaint;
use super::{CALL, Elector, IdentityTaken, LEASE, Leadership, RELEASE};
use crate::consul::wire::{self, KvPair};
use crate::consul::{Client, Consistency, ConsulError, Observed, Quality, Txn, TxnOp, TxnOutcome};
use crate::model::entry::Node;
use crate::model::marks;
use crate::model::names::{ClusterName, NodeName};

/// The name of the session. No check follows one of this name.
const SESSION: &str = "lictor-leader";

/// The key of the lock in Consul's KV.
#[must_use]
pub fn key(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/leader")
}

/// What a watch of the key told.
type News = Result<Seen, LockError>;

/// Campaigns for a lock.
pub struct LockElector {
    /// Whose calls leave time for another attempt.
    client: Client,
    cluster: ClusterName,
    key: String,
    /// The node that the session is on, as it is to be created.
    node: Node,
    rules: Rules,
    watch: Option<(mpsc::Receiver<News>, AbortOnDropHandle<()>)>,
    news: Option<News>,
    complaint: Complaint,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
enum LockError {
    #[error(transparent)]
    Consul(#[from] ConsulError),
    #[error("the answer may be stale, or lack something")]
    Unsure,
    #[error("the Consul node {node} that its session is to be on is {holder}'s")]
    NodeTaken { node: String, holder: String },
    #[error("Consul refuses the node {node} that its session is to be on: {what}")]
    NodeRefused { node: String, what: String },
}

impl LockElector {
    /// For a cluster, under this identity, which no other process has. `node` is the node of what is
    /// outside the cluster.
    #[must_use]
    pub fn new(client: &Client, cluster: ClusterName, identity: String, node: Node) -> Self {
        let key = key(&cluster);
        let ours = Holder {
            holder: identity,
            process: format!("{:016x}", rand::random::<u64>()),
        };
        let rules = Rules::new(ours, format!("the lock {key} in Consul"));
        Self {
            client: client.within(CALL),
            cluster,
            key,
            node,
            rules,
            watch: None,
            news: None,
            complaint: Complaint::default(),
        }
    }

    async fn read(&self) -> Result<Seen, LockError> {
        let read = self.client.kv_get(&self.key, Consistency::Consistent);
        let pair = read.await?.authoritative().ok_or(LockError::Unsure)?;
        Ok(seen(pair.as_ref()))
    }

    /// Creates the node that the session is on, where it is not there, and fails where it is another's.
    async fn prepare(&self) -> Result<(), LockError> {
        let name = NodeName::external(&self.cluster);
        let read = self
            .client
            .node_services(name.as_ref(), Consistency::Consistent);
        let there = read.await?.authoritative().ok_or(LockError::Unsure)?;
        let Some((node, _)) = there else {
            return self.create_node(&name).await;
        };
        // Whoever registers something by hand erases the mark, which only the one that leads repairs; a
        // session writes nothing into the node.
        let mark = node.meta.get(marks::CLUSTER);
        if mark.is_none_or(|mark| **mark == *self.cluster.as_ref()) {
            return Ok(());
        }
        let holder = marks::holder(&self.cluster, &node.meta).to_string();
        let node = name.to_string();
        Err(LockError::NodeTaken { node, holder })
    }

    async fn create_node(&self, name: &NodeName) -> Result<(), LockError> {
        let node = wire::Node {
            name: name.text().clone(),
            address: self.node.address.clone(),
            meta: self.node.meta.clone(),
            ..wire::Node::default()
        };
        let refused = |what: String| LockError::NodeRefused {
            node: name.to_string(),
            what,
        };
        let mut txn = Txn::new();
        txn.push(&TxnOp::NodeCas {
            node: Cow::Owned(node),
            index: 0,
        })
        .map_err(|full| refused(full.to_string()))?;
        match self.client.apply(&txn).await? {
            TxnOutcome::Applied(_) => {
                tracing::info!(%name, "created the node for the session of the lock");
                Ok(())
            }
            // Where another process was faster, it is looked at again.
            TxnOutcome::RolledBack(errors) => Err(refused(
                errors
                    .first()
                    .map_or_else(String::new, |error| error.what.to_string()),
            )),
            TxnOutcome::Fenced { what, .. } => Err(refused(what.into())),
        }
    }

    async fn create(&mut self) -> Result<(), LockError> {
        let sent = Instant::now();
        let node = NodeName::external(&self.cluster);
        let create = self
            .client
            .create_session(node.as_ref(), SESSION, LEASE, LEASE);
        // One whose answer is lost ends by itself.
        self.rules.created(create.await?, sent);
        Ok(())
    }

    async fn act(&mut self, act: Act) -> Result<Result<(), LockError>, IdentityTaken> {
        Ok(match act {
            Act::Wait(_) => Ok(()),
            Act::Read => {
                // What was read is newer than what an old watch tells.
                self.watch = None;
                self.news = None;
                match self.read().await {
                    Ok(seen) => {
                        self.rules.see(seen, Instant::now())?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Act::Prepare => {
                let prepared = self.prepare().await;
                if prepared.is_ok() {
                    self.rules.prepared();
                }
                prepared
            }
            Act::Create => self.create().await,
            Act::Renew(id) => {
                let sent = Instant::now();
                match self.client.renew_session(&id).await {
                    Ok(lives) => {
                        self.rules.renewed(lives, sent, Instant::now());
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Act::Lock(session) => {
                let value = serde_json::to_vec(self.rules.ours()).unwrap_or_default();
                let lock = self.client.kv_acquire(&self.key, &value, &session);
                match lock.await {
                    Ok(won) => {
                        self.rules.locked(&session, won, Instant::now());
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Act::End(id) => {
                self.rules.ended(&id);
                // Where that fails it ends by itself.
                let ended = self.client.destroy_session(&id).await;
                ended.map_err(LockError::from)
            }
        })
    }

    fn failed(&mut self, error: &LockError) {
        let text = format!("the lock {} in Consul cannot be had: {error}", self.key);
        let now = Instant::now();
        self.complaint.tell(text, now);
        self.rules.failed(now, rand::random());
    }

    /// Watches the key in a task of its own: a query that waits is not to be asked anew for each renewal.
    fn watch(&mut self) -> &mut mpsc::Receiver<News> {
        let (client, key) = (&self.client, &self.key);
        let (receiver, _) = self.watch.get_or_insert_with(|| {
            let mut watch = client.watch_kv(key);
            let (sender, receiver) = mpsc::channel(1);
            let task = tokio::spawn(async move {
                loop {
                    let news = watch.next().await;
                    let news = news
                        .map_err(LockError::from)
                        .and_then(|change| told(&change.observed));
                    if sender.send(news).await.is_err() {
                        return;
                    }
                }
            });
            (receiver, AbortOnDropHandle::new(task))
        });
        receiver
    }
}

/// What a watch told, if that can be relied on.
fn told(observed: &Observed<Vec<KvPair>>) -> News {
    if observed.quality > Quality::Leased {
        return Err(LockError::Unsure);
    }
    Ok(seen(observed.value.first()))
}

fn seen(pair: Option<&KvPair>) -> Seen {
    pair.map_or_else(Seen::default, |pair| Seen {
        index: pair.modify_index,
        session: pair.session.clone(),
        holder: serde_json::from_slice(&pair.value).ok(),
    })
}

impl Elector for LockElector {
    async fn step(&mut self, mut tell: impl FnMut(Leadership) + Send) -> Result<(), IdentityTaken> {
        match self.news.take() {
            Some(Ok(seen)) => self.rules.see(seen, Instant::now())?,
            // Else a leader would go on by what was seen before.
            Some(Err(error)) => {
                tracing::debug!("cannot watch {}: {error}", self.key);
                self.rules.failed(Instant::now(), rand::random());
            }
            None => {}
        }
        loop {
            let now = Instant::now();
            let act = self.rules.next(now);
            tell(self.rules.leadership(now));
            match act {
                Act::Wait(_) => {
                    if self.rules.is_well() {
                        self.complaint
                            .over(&format!("the lock {} in Consul", self.key));
                    }
                    return Ok(());
                }
                act => {
                    if let Err(error) = self.act(act).await? {
                        self.failed(&error);
                    }
                }
            }
        }
    }

    async fn rest(&mut self) {
        let Act::Wait(until) = self.rules.next(Instant::now()) else {
            return;
        };
        let wake = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let watch = self.watch();
        tokio::select! {
            () = wake => {}
            news = watch.recv() => self.news = news,
        }
    }

    async fn verify(&mut self) -> Result<bool, IdentityTaken> {
        if let Err(error) = self.act(Act::Read).await? {
            self.failed(&error);
            return Ok(false);
        }
        Ok(!self.rules.is_unsure() && self.rules.leads(Instant::now()))
    }

    async fn release(&mut self) {
        self.watch = None;
        self.news = None;
        let Some(session) = self.rules.release() else {
            return;
        };
        let value = serde_json::to_vec(self.rules.ours()).unwrap_or_default();
        // Before the session ends: else nobody could lock it for the lock delay.
        let client = self.client.within(RELEASE);
        let released = async {
            client.kv_release(&self.key, &value, &session).await?;
            // Which ends by itself otherwise.
            let client = client.within(RELEASE / 2);
            client.destroy_session(&session).await
        };
        match released.await {
            Ok(()) => tracing::info!("the lock {} in Consul is released", self.key),
            Err(error) => self.failed(&error.into()),
        }
    }
}
