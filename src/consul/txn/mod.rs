//! Transactions: `PUT /v1/txn`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/txn>. Observed on Consul 1.22.7, and
//! tried again by `tests/consul_client.rs`:
//! - Of a service, `Kind`, `Tags`, `Address`, `TaggedAddresses`, `Port`, `Meta`, `Weights` and
//!   `EnableTagOverride` are stored; `Ports`, `Connect` and `Locality` are dropped without a word.
//!   Weights outside 1..=65535 become 1 and 1.
//! - Results hold what was stored, with its indexes. All objects of one transaction get the same
//!   `ModifyIndex`; what was equal before keeps its own.
//! - Writing a service does not touch its checks. Removing a service removes them.
//! - The compare-and-set of a check whose node or service is missing is dropped without an error
//!   ([`TxnResult::Dropped`]); `set` fails as it should.
//! - All operations that fail are reported, not only the first.
//! - `ns` and `partition` in the query are ignored, so they are written into every operation.

mod encode;
mod op;
mod outcome;

pub use op::TxnOp;
pub use outcome::{TxnError, TxnFailure, TxnOutcome, TxnResult};

use std::ops::Range;
use std::sync::Arc;

use self::encode::Encoded;
use self::outcome::{Answer, Expected, assign};
use super::config::Tenancy;
use super::{Client, ConsulError, Request};

/// Most operations that Consul takes in one transaction; more is a 413.
pub const MAX_OPS: usize = 128;
/// Longest body that Consul takes with its default `limits.txn_max_req_len`, in bytes.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// A transaction in the making: operations are encoded once, as they are added.
#[derive(Clone, Debug)]
pub struct Txn {
    tenancy: Arc<Tenancy>,
    /// `[` and the operations with commas between them.
    body: Vec<u8>,
    expected: Vec<Expected>,
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

impl Txn {
    fn new(tenancy: Arc<Tenancy>) -> Self {
        Self {
            tenancy,
            body: vec![b'['],
            expected: Vec::new(),
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
        // Texts, numbers and JSON values can always be written to memory.
        let written = serde_json::to_writer(&mut self.body, &Encoded::new(op, &self.tenancy));
        let op_length = self.body.len() - before;
        // One byte more for the `]`.
        if written.is_ok() && self.body.len() < MAX_BODY_BYTES {
            self.expected.push(op.expected());
            return Ok(());
        }
        self.body.truncate(before);
        let never_fits = written.is_err() || self.is_empty() || op_length + 1 >= MAX_BODY_BYTES;
        Err(if never_fits {
            TxnFull::TooLarge
        } else {
            TxnFull::Bytes
        })
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
                self.expected.truncate(before);
                return Err(if before == 0 { TxnFull::TooLarge } else { full });
            }
        }
        Ok(before..self.len())
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.expected.len()
    }

    /// Whether there is no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.body.len() + 1);
        body.extend_from_slice(&self.body);
        body.push(b']');
        body
    }
}

impl TxnOp<'_> {
    fn expected(&self) -> Expected {
        match self {
            Self::NodeSet { .. } | Self::NodeCas { .. } | Self::NodeGet { .. } => Expected::Node,
            Self::ServiceSet { .. } | Self::ServiceCas { .. } | Self::ServiceGet { .. } => {
                Expected::Service
            }
            Self::CheckSet { .. } => Expected::Check,
            Self::CheckCas { check, .. } => Expected::CheckCas {
                node: (*check.node).into(),
                check_id: (*check.check_id).into(),
                service_id: (*check.service_id).into(),
            },
            Self::KvSet { .. }
            | Self::KvCas { .. }
            | Self::KvGet { .. }
            | Self::KvCheckIndex { .. }
            | Self::KvCheckSession { .. } => Expected::Kv,
            Self::NodeDeleteCas { .. }
            | Self::ServiceDeleteCas { .. }
            | Self::CheckDeleteCas { .. }
            | Self::KvDeleteCas { .. }
            | Self::KvCheckNotExists { .. } => Expected::Nothing,
        }
    }
}

impl Client {
    /// An empty transaction, in the namespace and partition of this client.
    #[must_use]
    pub fn txn(&self) -> Txn {
        Txn::new(self.tenancy())
    }

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
        let results = assign(&txn.expected, results);
        let why = "the results are not those of the operations";
        results
            .map(TxnOutcome::Applied)
            .ok_or_else(|| response.malformed(why))
    }
}
