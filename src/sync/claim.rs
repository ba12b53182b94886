//! Taking the epoch in Consul.

use tokio::time::Instant;

use super::apply::{ReadError, check_token, sure};
use super::fence::{self, Claim, Last, Refusal, Standing};
use crate::consul::{
    Client, Consistency, ConsulError, Txn, TxnFailure, TxnOp, TxnOutcome, TxnResult,
};
use crate::leader::{Tenure, Verifier};
use crate::model::epoch::{self, Epoch};
use crate::model::names::ClusterName;

/// What a claim is made with.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The cluster.
    pub cluster: ClusterName,
    /// The epoch of this process.
    pub epoch: Epoch,
    /// The UID of the Kubernetes cluster that this one replaces (`--take-over`).
    pub take_over: Option<String>,
}

/// What the epoch is claimed by.
#[derive(Clone, Debug)]
pub struct Mandate {
    /// The leadership.
    pub tenure: Tenure,
    /// Who knows whether this process leads, where that was elected.
    pub verifier: Option<Verifier>,
    /// Whether the epoch may be taken back from another process now.
    pub may_retake: bool,
}

impl Mandate {
    /// Of a process that nobody competes with, as `lictor gc`.
    #[must_use]
    pub fn unopposed() -> Self {
        Self {
            tenure: Tenure::unlimited(),
            verifier: None,
            may_retake: false,
        }
    }
}

/// The epoch is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The key's `ModifyIndex`.
    pub index: u64,
    /// What became of the one that this process had before, if it had one.
    pub before: Before,
    /// Whether it was taken back from a process that took it while this one led.
    pub retaken: bool,
}

/// What became of the epoch that this process had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was none.
    None,
    /// It is the same.
    Kept,
    /// Nobody else had it, and the leadership that it was had under is over.
    Lapsed,
    /// Someone took it meanwhile, in a Consul that kept what it holds.
    Taken,
    /// Consul lost it, or went back to an earlier one: so it may have with everything.
    Lost,
}

/// Whose the name of a cluster is, of which a process may take the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameIs {
    /// This Kubernetes cluster's.
    Ours,
    /// Nobody's, or that of a cluster that this one replaces.
    ToBeHad,
}

/// Why the epoch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Consul could not be read, or not written.
    #[error(transparent)]
    Failed(#[from] ReadError),
    /// Another process was faster.
    #[error("another process took the epoch at the same moment")]
    Raced,
    /// Consul refuses the write.
    #[error("Consul refuses the epoch: {0}")]
    RefusedByConsul(String),
    /// What stands under the key is no epoch.
    #[error(
        "the key {key} in Consul holds no epoch that can be read ({error}): remove it, or repair it"
    )]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// It may not be taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another process took it, though this one leads, and it was taken back often enough of late.
    #[error("{0} took the epoch")]
    Contested(String),
    /// This process does not lead any more, or that is not known.
    #[error("this process does not lead any more, or cannot be told that it does")]
    NotLeading,
}

impl From<ConsulError> for ClaimError {
    fn from(error: ConsulError) -> Self {
        Self::Failed(error.into())
    }
}

impl Claimant {
    /// Looks whether this process may have the name of the cluster. Writes nothing.
    pub async fn look(self, client: &Client) -> Result<NameIs, ClaimError> {
        check_token(client).await?;
        let there = read(client, &epoch::key(&self.cluster)).await?;
        let before = there.map(|there| there.epoch);
        // Of another scope it is only for whoever takes it over.
        let ours = &self.epoch;
        let is_ours = before
            .as_ref()
            .is_some_and(|it| it.uid == ours.uid && it.scope == ours.scope);
        let taken = self
            .epoch
            .succeed(before.as_ref(), &self.cluster, self.take_over.as_deref());
        taken.map_err(Refusal::from)?;
        Ok(if is_ours {
            NameIs::Ours
        } else {
            NameIs::ToBeHad
        })
    }

    /// Takes the epoch by compare-and-set, if it may be taken. `last` is the one that this process
    /// had.
    ///
    /// Where another process took it, whoever was elected asks first whether it still leads, and takes it
    /// back.
    pub async fn claim(
        self,
        client: &Client,
        last: Option<Last>,
        mandate: &Mandate,
    ) -> Result<Claimed, ClaimError> {
        let Self {
            cluster,
            epoch,
            take_over,
        } = self;
        let key = epoch::key(&cluster);
        let there = read(client, &key).await?;
        let index = there.as_ref().map_or(0, |there| there.index);
        let decide = |last| {
            let (ours, there) = (epoch.clone(), there.as_ref());
            fence::decide(ours, there, last, &cluster, take_over.as_deref())
        };
        let mut retaken = false;
        let claim = match (decide(last), &mandate.verifier) {
            (Err(Refusal::Replaced { holder }), Some(_)) if !mandate.may_retake => {
                return Err(ClaimError::Contested(holder));
            }
            (Err(Refusal::Replaced { .. }), Some(verifier)) => {
                if !verifier.leads().await {
                    return Err(ClaimError::NotLeading);
                }
                retaken = true;
                decide(last.map(|last| Last { over: true, ..last }))?
            }
            (claim, _) => claim?,
        };
        if !mandate.tenure.holds(Instant::now()) {
            return Err(ClaimError::NotLeading);
        }
        match claim {
            Claim::Keep => Ok(Claimed {
                index,
                before: Before::Kept,
                retaken,
            }),
            Claim::Write(next) => {
                let before = before(last, there.as_ref(), &epoch.holder);
                let index = write(client, &key, &next, index).await?;
                Ok(Claimed {
                    index,
                    before,
                    retaken,
                })
            }
        }
    }
}

/// What became of the epoch that this process had, by what is there now.
fn before(last: Option<Last>, there: Option<&Standing>, holder: &str) -> Before {
    let Some(last) = last else {
        return Before::None;
    };
    match there {
        Some(there) if there.index > last.index => Before::Taken,
        Some(there)
            if there.index == last.index && there.epoch.holder == holder && !last.failed =>
        {
            Before::Lapsed
        }
        _ => Before::Lost,
    }
}

/// Reads the epoch under a key.
pub async fn read(client: &Client, key: &str) -> Result<Option<Standing>, ClaimError> {
    let there = sure(client.kv_get(key, Consistency::Consistent).await)?;
    let Some(pair) = there else { return Ok(None) };
    match serde_json::from_slice(&pair.value) {
        Ok(epoch) => Ok(Some(Standing {
            epoch,
            index: pair.modify_index,
        })),
        Err(error) => Err(ClaimError::Unreadable {
            key: key.to_owned(),
            error,
        }),
    }
}

/// Writes the epoch over what has this index (0: over nothing). Returns its index.
pub async fn write(
    client: &Client,
    key: &str,
    next: &Epoch,
    index: u64,
) -> Result<u64, ClaimError> {
    let value = serde_json::to_vec(next).map_err(|error| ClaimError::Unreadable {
        key: key.to_owned(),
        error,
    })?;
    let mut txn = Txn::new();
    txn.push(&TxnOp::KvCas {
        key,
        value: &value,
        index,
    })
    .map_err(|full| ClaimError::RefusedByConsul(full.to_string()))?;
    // A transaction tells the new index, which a plain compare-and-set does not.
    match client.apply(&txn).await? {
        TxnOutcome::Applied(results) => match results.first() {
            Some(TxnResult::Kv(pair)) => Ok(pair.modify_index),
            _ => Err(ClaimError::RefusedByConsul(
                "the answer names no index".to_owned(),
            )),
        },
        TxnOutcome::RolledBack(errors) => match errors.first() {
            Some(error) if error.reason != TxnFailure::StaleIndex => {
                Err(ClaimError::RefusedByConsul(error.what.to_string()))
            }
            _ => Err(ClaimError::Raced),
        },
        TxnOutcome::Fenced { what, .. } => Err(ClaimError::RefusedByConsul(what.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::epoch::fixtures;

    #[test]
    fn a_leadership_that_lapsed_is_no_consul_that_lost_what_it_held() {
        let last = |failed| {
            Some(Last {
                index: 9,
                failed,
                over: true,
            })
        };
        let there = |index, holder: &str| Standing {
            epoch: Epoch {
                holder: holder.to_owned(),
                ..fixtures::epoch("uid", &[])
            },
            index,
        };
        let ours = there(9, "we");
        assert_eq!(before(None, Some(&ours), "we"), Before::None);
        assert_eq!(before(last(false), Some(&ours), "we"), Before::Lapsed);
        // A restored snapshot may have what failed as it was, or another's under the very same index.
        assert_eq!(before(last(true), Some(&ours), "we"), Before::Lost);
        let theirs = there(9, "they");
        assert_eq!(before(last(false), Some(&theirs), "we"), Before::Lost);
        for (index, expected) in [(8, Before::Lost), (10, Before::Taken)] {
            let there = there(index, "they");
            assert_eq!(before(last(false), Some(&there), "we"), expected);
        }
        assert_eq!(before(last(false), None, "we"), Before::Lost);
    }
}
