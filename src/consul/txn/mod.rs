//! Transactions: `PUT /v1/txn`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/txn>. Observed on Consul 1.22.7, and
//! tried again by `tests/consul_client`:
//! - Of a service, `Kind`, `Tags`, `Address`, `TaggedAddresses`, `Port`, `Meta`, `Weights` and
//!   `EnableTagOverride` are stored; `Ports`, `Connect` and `Locality` are dropped without a word.
//!   So is most of `Proxy`, `Upstreams` and `Config` among it; what it is the proxy of stays. Weights
//!   outside 1..=65535 become 1 and 1.
//! - Results hold what was stored, with its indexes. All objects of one transaction get the same
//!   `ModifyIndex`; what was equal before keeps its own.
//! - Writing a service does not touch its checks. Removing a service removes them.
//! - The compare-and-set of a check whose node or service is missing is dropped without an error
//!   ([`TxnResult::Dropped`]); `set` fails as it should.
//! - All operations that fail are reported, not only the first. What is wrong in itself, like a
//!   service without a name, is reported alone.
//! - The removal of a key that is not there succeeds, unlike that of a node, service or check.
//! - A key that is set to the value that it has keeps its `ModifyIndex`.
//! - Rights are judged by the names in the operation alone: a check of a service needs
//!   `ServiceName` in it, or is denied.
//! - `ns` and `partition` in the query are ignored, so they are written into every operation.

mod encode;
mod op;
mod outcome;

use std::ops::Range;

use self::outcome::{Answer, Expected, assign};
use super::config::Tenancy;
use super::{Client, ConsulError, ErrorClass, Request};

pub use op::TxnOp;
pub use outcome::{TxnError, TxnFailure, TxnOutcome, TxnResult};

/// Most operations that Consul takes in one transaction; more is a 413.
pub const MAX_OPS: usize = 128;
/// Longest body that Consul takes with its default `limits.txn_max_req_len`, in bytes; more is a
/// 413. The limit is inclusive.
pub const MAX_BODY_BYTES: usize = 512 * 1024;
/// What is kept free of it for a fence, and for namespace and partition in every operation.
const RESERVED_BYTES: usize = 24 * 1024;

/// A transaction in the making: operations are encoded once, as they are added.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// The operations with commas between them.
    body: Vec<u8>,
    expected: Vec<Expected>,
}

/// What a transaction depends on: a key of the store that nobody has written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence<'a> {
    /// The key.
    pub key: &'a str,
    /// Its `ModifyIndex`.
    pub index: u64,
}

/// An operation does not fit; the transaction is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnFull {
    /// There would be more than [`MAX_OPS`] operations.
    #[error("a transaction holds at most {MAX_OPS} operations")]
    Ops,
    /// The body would be too long for [`MAX_BODY_BYTES`].
    #[error("a transaction is at most {MAX_BODY_BYTES} bytes long")]
    Bytes,
    /// The operations are too long for [`MAX_BODY_BYTES`] even alone; no transaction can hold them.
    #[error("the operations alone are longer than {MAX_BODY_BYTES} bytes")]
    TooLarge,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an operation and gives its position, or says why it does not fit.
    pub fn push(&mut self, op: &TxnOp<'_>) -> Result<usize, TxnFull> {
        self.push_all(std::slice::from_ref(op))
            .map(|positions| positions.start)
    }

    /// Adds operations, all of them or none, and gives their positions.
    pub fn push_all(&mut self, ops: &[TxnOp<'_>]) -> Result<Range<usize>, TxnFull> {
        let positions = self.len()..self.len() + ops.len();
        if positions.end > MAX_OPS {
            return Err(if ops.len() > MAX_OPS {
                TxnFull::TooLarge
            } else {
                TxnFull::Ops
            });
        }
        let before = self.body.len();
        let mut written = Ok(());
        for op in ops {
            if !self.body.is_empty() {
                self.body.push(b',');
            }
            // Texts, numbers and JSON values can always be written to memory.
            written = written.and(serde_json::to_writer(&mut self.body, op));
        }
        let limit = MAX_BODY_BYTES - RESERVED_BYTES;
        let added = self.body.len() - before;
        if written.is_ok() && self.body.len() <= limit {
            self.expected.extend(ops.iter().map(TxnOp::expected));
            return Ok(positions);
        }
        self.body.truncate(before);
        Err(if written.is_err() || added > limit {
            TxnFull::TooLarge
        } else {
            TxnFull::Bytes
        })
    }

    /// How many operations there are, a fence not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.expected.len()
    }

    /// Whether there is no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    fn to_body(&self, fence: Option<Fence<'_>>, tenancy: &Tenancy) -> serde_json::Result<Vec<u8>> {
        let mut body = Vec::with_capacity(self.body.len() + 256);
        body.push(b'[');
        if let Some(Fence { key, index }) = fence {
            serde_json::to_writer(&mut body, &TxnOp::KvCheckIndex { key, index })?;
            if !self.is_empty() {
                body.push(b',');
            }
        }
        body.extend_from_slice(&self.body);
        body.push(b']');
        if tenancy.is_default() {
            Ok(body)
        } else {
            encode::place(&body, tenancy)
        }
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
    /// Carries out a transaction: all of it, or nothing.
    ///
    /// `Err` says whether it may have been applied ([`ErrorClass::may_be_applied`]); an operation
    /// that Consul refuses is no error but [`TxnOutcome::RolledBack`]. An empty transaction is
    /// applied without asking Consul.
    pub async fn apply(&self, txn: &Txn) -> Result<TxnOutcome, ConsulError> {
        if txn.is_empty() {
            return Ok(TxnOutcome::Applied(Vec::new()));
        }
        self.apply_with(None, txn).await
    }

    /// The same behind a fence: nothing is applied once someone wrote the fence's key
    /// ([`TxnOutcome::Fenced`]). The fence is one of the [`MAX_OPS`] operations, so that the
    /// transaction may hold one less; positions in results and errors do not count it.
    pub async fn apply_fenced(
        &self,
        fence: Fence<'_>,
        txn: &Txn,
    ) -> Result<TxnOutcome, ConsulError> {
        self.apply_with(Some(fence), txn).await
    }

    async fn apply_with(
        &self,
        fence: Option<Fence<'_>>,
        txn: &Txn,
    ) -> Result<TxnOutcome, ConsulError> {
        let request = Request::put("txn");
        let body = txn.to_body(fence, self.tenancy());
        let body = body.map_err(|error| request.error(ErrorClass::Refused, &error.to_string()))?;
        let response = self.send(&request.body(body)).await?;
        if response.status == 409 {
            let Answer { errors, .. } = response.decode()?;
            let outcome = TxnOutcome::failed(errors, fence.is_some());
            return outcome.ok_or_else(|| response.malformed("a conflict without an error"));
        }
        let response = response.success()?;
        let Answer { mut results, .. } = response.decode()?;
        if fence.is_some() && !results.is_empty() {
            results.remove(0);
        }
        let results = assign(&txn.expected, results);
        let why = "the results are not those of the operations";
        results
            .map(TxnOutcome::Applied)
            .ok_or_else(|| response.malformed(why))
    }
}

#[cfg(test)]
mod tests;
