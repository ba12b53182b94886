//! Transactions: `PUT /v1/txn`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/txn>; observed on Consul 1.22.7.

mod encode;
mod op;
mod outcome;

pub use op::TxnOp;
pub use outcome::{TxnError, TxnFailure, TxnOutcome, TxnResult};

use std::ops::Range;

use self::outcome::{Answer, Yield, assign};
use super::{Client, ConsulError, Request};

/// Most operations that Consul takes in one transaction; more is a 413.
pub const MAX_OPS: usize = 128;
/// Longest body that Consul takes with its default `limits.txn_max_req_len`, in bytes.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// A transaction in the making: operations are encoded once, as they are added.
#[derive(Clone, Debug)]
pub struct Txn {
    /// `[` and the operations with commas between them.
    body: Vec<u8>,
    yields: Vec<Yield>,
}

/// An operation does not fit; the transaction is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnFull {
    /// There are [`MAX_OPS`] operations already.
    #[error("a transaction holds at most {MAX_OPS} operations")]
    Ops,
    /// The body would be longer than [`MAX_BODY_BYTES`].
    #[error("a transaction is at most {MAX_BODY_BYTES} bytes long")]
    Bytes,
    /// The operation is longer than [`MAX_BODY_BYTES`] even alone; no transaction can hold it.
    #[error("the operation alone is longer than {MAX_BODY_BYTES} bytes")]
    TooLarge,
}

impl Default for Txn {
    fn default() -> Self {
        Self::new()
    }
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self {
            body: vec![b'['],
            yields: Vec::new(),
        }
    }

    /// Adds an operation, or says why it does not fit.
    pub fn push(&mut self, op: &TxnOp<'_>) -> Result<(), TxnFull> {
        if self.len() == MAX_OPS {
            return Err(TxnFull::Ops);
        }
        let before = self.body.len();
        if !self.is_empty() {
            self.body.push(b',');
        }
        // Writing texts and numbers into memory cannot fail, except for a definition of a check
        // with a map that has other keys than texts, which `serde_json::Value` cannot have.
        let written = serde_json::to_writer(&mut self.body, op);
        let fits = written.is_ok() && self.body.len() < MAX_BODY_BYTES;
        if !fits {
            let alone = self.body.len() - before;
            self.body.truncate(before);
            let too_large = written.is_err() || alone + 1 >= MAX_BODY_BYTES || self.is_empty();
            return Err(if too_large {
                TxnFull::TooLarge
            } else {
                TxnFull::Bytes
            });
        }
        self.yields.push(op.yields());
        Ok(())
    }

    /// Adds operations that belong together, all or none; returns which ones of the transaction they
    /// are.
    ///
    /// [`TxnFull::TooLarge`] where not even a transaction of their own could hold them.
    pub fn push_all(&mut self, ops: &[TxnOp<'_>]) -> Result<Range<usize>, TxnFull> {
        let (bytes, before) = (self.body.len(), self.len());
        for op in ops {
            if let Err(full) = self.push(op) {
                self.body.truncate(bytes);
                self.yields.truncate(before);
                return Err(if before == 0 { TxnFull::TooLarge } else { full });
            }
        }
        Ok(before..self.len())
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.yields.len()
    }

    /// Whether there is no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.yields.is_empty()
    }

    fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.body.len() + 1);
        body.extend_from_slice(&self.body);
        body.push(b']');
        body
    }
}

impl TxnOp<'_> {
    fn yields(&self) -> Yield {
        match self {
            Self::NodeSet { .. } | Self::NodeCas { .. } | Self::NodeGet { .. } => Yield::Node,
            Self::ServiceSet { .. } | Self::ServiceCas { .. } | Self::ServiceGet { .. } => {
                Yield::Service
            }
            Self::CheckSet { .. } | Self::CheckCas { .. } => Yield::Check,
            Self::KvSet { .. }
            | Self::KvCas { .. }
            | Self::KvGet { .. }
            | Self::KvCheckIndex { .. }
            | Self::KvCheckSession { .. } => Yield::Kv,
            Self::NodeDeleteCas { .. }
            | Self::ServiceDeleteCas { .. }
            | Self::CheckDeleteCas { .. }
            | Self::KvDeleteCas { .. }
            | Self::KvCheckNotExists { .. } => Yield::Nothing,
        }
    }
}

impl Client {
    /// Carries out a transaction: all of it, or nothing.
    ///
    /// `Err` says whether it may have been applied ([`ErrorClass::may_be_applied`]); an operation
    /// that Consul refuses is no error but [`TxnOutcome::RolledBack`].
    ///
    /// [`ErrorClass::may_be_applied`]: super::ErrorClass::may_be_applied
    pub async fn apply(&self, txn: &Txn) -> Result<TxnOutcome, ConsulError> {
        if txn.is_empty() {
            return Ok(TxnOutcome::Applied(Vec::new()));
        }
        let response = self.send(&Request::put("txn").body(txn.to_body())).await?;
        if response.status == 409 {
            let Answer { errors, .. } = response.decode()?;
            if errors.is_empty() {
                return Err(response.malformed("a conflict without an error"));
            }
            return Ok(TxnOutcome::RolledBack(
                errors.into_iter().map(TxnError::from).collect(),
            ));
        }
        let response = response.success()?;
        let Answer { results, .. } = response.decode()?;
        let results = assign(&txn.yields, results);
        let why = "the results are not those of the operations";
        results
            .map(TxnOutcome::Applied)
            .ok_or_else(|| response.malformed(why))
    }
}
