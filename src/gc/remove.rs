//! Removing, behind the fence.

use anyhow::bail;

use super::{Doomed, audit};
use crate::consul::{Client, Fence, Txn, TxnFailure, TxnOp, TxnOutcome};

/// Removals in a transaction.
const TOGETHER: usize = 100;

/// Removes instances in batches.
pub struct Remover<'a> {
    client: &'a Client,
    fence: String,
    epoch: u64,
    /// How many were removed.
    pub removed: usize,
    /// What was not removed, and why.
    pub stayed: Vec<String>,
}

impl<'a> Remover<'a> {
    /// Removes behind this fence, which must have this index.
    #[must_use]
    pub fn new(client: &'a Client, fence: String, epoch: u64) -> Self {
        Self {
            client,
            fence,
            epoch,
            removed: 0,
            stayed: Vec::new(),
        }
    }

    /// Removes instances; one that changed since it was read stays. Fails where another process took
    /// the epoch.
    pub async fn instances(&mut self, doomed: &[Doomed], why: &str) -> anyhow::Result<()> {
        for batch in doomed.chunks(TOGETHER) {
            let ops: Vec<TxnOp<'_>> = batch.iter().map(op).collect();
            if apply(self.client, &self.fence, self.epoch, &ops).await? {
                for gone in batch {
                    self.gone(gone, why);
                }
                continue;
            }
            for (one, op) in batch.iter().zip(&ops) {
                if entry(self.client, &self.fence, self.epoch, op).await? {
                    self.gone(one, why);
                } else {
                    self.stayed
                        .push(format!("{}: it changed meanwhile", one.key));
                }
            }
        }
        Ok(())
    }

    fn gone(&mut self, gone: &Doomed, why: &str) {
        self.removed += 1;
        let (key, owner) = (gone.key.to_string(), gone.owner.to_string());
        audit("instance", &key, &owner, why, self.epoch, gone.index);
    }
}

fn op(doomed: &Doomed) -> TxnOp<'_> {
    TxnOp::ServiceDeleteCas {
        node: doomed.key.node.as_ref(),
        id: doomed.key.id.as_ref(),
        service: &doomed.service,
        index: doomed.index,
    }
}

/// Carries out one operation; `false` if what it is about changed.
pub async fn entry(
    client: &Client,
    fence: &str,
    epoch: u64,
    op: &TxnOp<'_>,
) -> anyhow::Result<bool> {
    apply(client, fence, epoch, std::slice::from_ref(op)).await
}

async fn apply(client: &Client, key: &str, index: u64, ops: &[TxnOp<'_>]) -> anyhow::Result<bool> {
    let mut txn = Txn::new();
    for op in ops {
        txn.push(op)?;
    }
    match client.apply_fenced(Fence { key, index }, &txn).await? {
        TxnOutcome::Applied(_) => Ok(true),
        TxnOutcome::RolledBack(errors) => {
            let stale = |reason| matches!(reason, TxnFailure::StaleIndex);
            match errors.iter().find(|error| !stale(error.reason)) {
                Some(error) => bail!("Consul refuses the removal: {}", error.what),
                None => Ok(false),
            }
        }
        TxnOutcome::Fenced { what, .. } => bail!(
            "another process took the epoch: it writes for the cluster now, and this one stops ({what})"
        ),
    }
}
