//! Election by a lock in Consul: the calls that its [rules] ask for.

mod rules;

use std::borrow::Cow;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::rules::{Act, Holder, Rules, Seen};
use super::{CALL, Elector, IdentityTaken, LEASE, Leadership, RELEASE};
use crate::consul::wire::{self, KvPair};
use crate::consul::{Client, Consistency, ConsulError, Txn, TxnOp, TxnOutcome};
use crate::model::entry::Node;
use crate::model::key::InstanceKey;
use crate::model::marks::{self, Standing};
use crate::model::names::{ClusterName, InstanceId, NodeName};

/// The name of the session. No check follows one of this name.
const SESSION: &str = "lictor-leader";

/// The key of the lock in Consul's KV.
#[must_use]
pub fn key(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/leader")
}

/// What a watch of the key told.
type News = Result<Seen, ConsulError>;

/// Campaigns for a lock.
pub struct LockElector {
    client: Client,
    cluster: ClusterName,
    key: String,
    /// The node that the session is on, as it is to be created.
    node: Node,
    rules: Rules,
    watch: Option<(mpsc::Receiver<News>, AbortOnDropHandle<()>)>,
    news: Option<News>,
    /// What is wrong, as it was told last.
    told: Option<String>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
enum LockError {
    #[error(transparent)]
    Consul(#[from] ConsulError),
    #[error("no answer from Consul within {CALL:?}")]
    Deadline,
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
    pub fn new(client: Client, cluster: ClusterName, identity: String, node: Node) -> Self {
        let key = key(&cluster);
        let ours = Holder {
            holder: identity,
            process: format!("{:016x}", rand::random::<u64>()),
        };
        let rules = Rules::new(ours, format!("the lock {key} in Consul"));
        Self {
            client,
            cluster,
            key,
            node,
            rules,
            watch: None,
            news: None,
            told: None,
        }
    }

    async fn read(&self) -> Result<Seen, LockError> {
        let read = self.client.kv_get(&self.key, Consistency::Consistent);
        let read = timeout(CALL, read).await.map_err(|_| LockError::Deadline)?;
        let pair = read?.authoritative().ok_or(LockError::Unsure)?;
        Ok(seen(pair.as_ref()))
    }

    /// Creates the node that the session is on, where it is not there, and fails where it is another's.
    async fn prepare(&self) -> Result<(), LockError> {
        let name = NodeName::external(&self.cluster);
        let read = self
            .client
            .node_services(name.as_ref(), Consistency::Consistent);
        let read = timeout(CALL, read).await.map_err(|_| LockError::Deadline)?;
        let there = read?.authoritative().ok_or(LockError::Unsure)?;
        let Some((node, services)) = there else {
            return self.create_node(&name).await;
        };
        let is_ours = match node.meta.get(marks::CLUSTER) {
            Some(mark) => **mark == *self.cluster.as_ref(),
            // Whoever registers something by hand erases it: what is ours on it shows whose it is, and
            // it is repaired by the one that leads.
            None => services.iter().any(|service| self.is_ours(&name, service)),
        };
        if is_ours {
            return Ok(());
        }
        let holder = marks::holder(&self.cluster, &node.meta).to_string();
        let node = name.to_string();
        Err(LockError::NodeTaken { node, holder })
    }

    fn is_ours(&self, node: &NodeName, service: &wire::NodeService) -> bool {
        let key = InstanceKey {
            node: node.clone(),
            id: InstanceId::observed(&service.id),
        };
        let judged = marks::judge(&self.cluster, &key, &service.service, &service.meta);
        matches!(judged, Standing::Ours(_))
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
        match timeout(CALL, self.client.apply(&txn)).await {
            Err(_) => Err(LockError::Deadline),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(TxnOutcome::Applied(_))) => {
                tracing::info!(%name, "created the node for the session of the lock");
                Ok(())
            }
            // Where another process was faster, it is looked at again.
            Ok(Ok(TxnOutcome::RolledBack(errors))) => Err(refused(
                errors
                    .first()
                    .map_or_else(String::new, |error| error.what.to_string()),
            )),
            Ok(Ok(TxnOutcome::Fenced { what, .. })) => Err(refused(what.into())),
        }
    }

    async fn create(&mut self) -> Result<(), LockError> {
        let sent = Instant::now();
        let node = NodeName::external(&self.cluster);
        let create = self
            .client
            .create_session(node.as_ref(), SESSION, LEASE, LEASE);
        // One whose answer is lost ends by itself.
        let created = timeout(CALL, create).await;
        let id = created.map_err(|_| LockError::Deadline)??;
        self.rules.created(id, sent);
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
                        self.well();
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
                match timeout(CALL, self.client.renew_session(&id)).await {
                    Ok(Ok(lives)) => {
                        self.rules.renewed(lives, sent, Instant::now());
                        Ok(())
                    }
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err(LockError::Deadline),
                }
            }
            Act::Lock(session) => {
                let value = serde_json::to_vec(self.rules.ours()).unwrap_or_default();
                let lock = self.client.kv_acquire(&self.key, &value, &session, CALL);
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
                match timeout(CALL, self.client.destroy_session(&id)).await {
                    Ok(Err(error)) => Err(error.into()),
                    // It ends by itself.
                    Ok(Ok(())) | Err(_) => Ok(()),
                }
            }
        })
    }

    fn failed(&mut self, error: &LockError) {
        let text = format!("the lock {} in Consul cannot be had: {error}", self.key);
        if self.told.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.told = Some(text);
        }
    }

    fn well(&mut self) {
        if self.told.take().is_some() {
            tracing::info!("the lock {} in Consul can be read again", self.key);
        }
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
                    let news = news.map(|change| seen(change.observed.value.first()));
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
            Some(Err(error)) => tracing::debug!("cannot watch {}: {error}", self.key),
            None => {}
        }
        loop {
            let now = Instant::now();
            let act = self.rules.next(now);
            tell(self.rules.leadership(now));
            match act {
                Act::Wait(_) => return Ok(()),
                act => {
                    if let Err(error) = self.act(act).await? {
                        self.failed(&error);
                        self.rules.failed(Instant::now());
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
            self.rules.failed(Instant::now());
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
        let released = async {
            // Before the session ends: else nobody could lock it for the lock delay.
            self.client
                .kv_release(&self.key, &value, &session, RELEASE)
                .await?;
            self.client.destroy_session(&session).await
        };
        match timeout(RELEASE, released).await {
            Ok(Ok(())) => tracing::info!("the lock {} in Consul is released", self.key),
            Ok(Err(error)) => self.failed(&error.into()),
            Err(_) => tracing::warn!(
                "the lock {} in Consul could not be released in time",
                self.key
            ),
        }
    }
}
