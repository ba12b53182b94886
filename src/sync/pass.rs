//! What every write needs: the epoch that it is fenced with, and the leadership that it is made under.

use tokio::time::Instant;

use crate::consul::{Client, ConsulError, Fence, Txn, TxnFailure, TxnOutcome};
use crate::leader::Tenure;
use crate::model::text::Text;

/// What is said of a write whose leadership is over.
pub(super) const LAPSED: &str =
    "the leadership that it was planned under is over: nothing was sent";

/// Lets a write through while the epoch is ours and the leadership holds. Between that look and the
/// arrival of the write in Consul lies what a leadership ends early by
/// ([`LEASE`](crate::leader::LEASE) - [`TENURE`](crate::leader::TENURE)), and the epoch where the write
/// is in a transaction.
#[derive(Clone, Debug)]
pub struct Pass {
    key: Text,
    epoch: u64,
    tenure: Tenure,
}

impl Pass {
    /// Behind the epoch with this key and index, under this leadership.
    #[must_use]
    pub fn new(key: Text, epoch: u64, tenure: Tenure) -> Self {
        Self { key, epoch, tenure }
    }

    /// Behind an epoch alone, as of `lictor gc`.
    #[must_use]
    pub fn of(fence: Fence<'_>) -> Self {
        Self::new(fence.key.into(), fence.index, Tenure::unlimited())
    }

    /// The index of the epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The fence of a transaction.
    #[must_use]
    pub fn fence(&self) -> Fence<'_> {
        Fence {
            key: &self.key,
            index: self.epoch,
        }
    }

    /// Whether the leadership holds at this moment: asked directly before each write is sent.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.tenure.holds(Instant::now())
    }

    /// Carries out a transaction, unless the leadership is over.
    pub async fn apply(&self, client: &Client, txn: &Txn) -> Result<TxnOutcome, ConsulError> {
        if !self.leads() {
            return Ok(TxnOutcome::Fenced {
                what: LAPSED.into(),
                reason: TxnFailure::Lapsed,
            });
        }
        client.apply_fenced(self.fence(), txn).await
    }
}
