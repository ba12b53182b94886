//! What became of a transaction.

use serde::Deserialize;

use crate::consul::wire::{HealthCheck, KvPair, Node, NodeService, null_is_default};

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

/// What kind of result an operation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Yield {
    Node,
    Service,
    Check,
    Kv,
    Nothing,
}

/// The body of an answer to a transaction, applied or not.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Answer {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) results: Vec<RawResult>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) errors: Vec<RawError>,
}

/// Exactly one of these is there.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawResult {
    node: Option<Box<Node>>,
    service: Option<Box<NodeService>>,
    check: Option<Box<HealthCheck>>,
    #[serde(rename = "KV")]
    kv: Option<KvPair>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawError {
    op_index: usize,
    what: Box<str>,
}

/// Gives each operation its result. Consul leaves out those that have none, in order.
///
/// `None` if the results are not those of these operations.
pub(super) fn assign(yields: &[Yield], results: Vec<RawResult>) -> Option<Vec<TxnResult>> {
    let mut results = results.into_iter();
    let mut assigned = Vec::with_capacity(yields.len());
    for wanted in yields {
        assigned.push(match wanted {
            Yield::Nothing => TxnResult::Nothing,
            Yield::Node => TxnResult::Node(results.next()?.node?),
            Yield::Service => TxnResult::Service(results.next()?.service?),
            Yield::Check => TxnResult::Check(results.next()?.check?),
            Yield::Kv => TxnResult::Kv(results.next()?.kv?),
        });
    }
    results.next().is_none().then_some(assigned)
}

impl From<RawError> for TxnError {
    fn from(RawError { op_index, what }: RawError) -> Self {
        Self {
            op_index,
            reason: TxnFailure::of(&what),
            what,
        }
    }
}

impl TxnFailure {
    /// Reads Consul's text. Names that others chose are quoted in it, so that it is matched where
    /// no name can be: at its ends.
    fn of(what: &str) -> Self {
        if what.ends_with("index is stale") {
            return Self::StaleIndex;
        }
        if what.starts_with("failed index check") {
            return index_check(what).unwrap_or(Self::Refused);
        }
        if what.starts_with("failed session check") {
            return Self::FailedSessionCheck;
        }
        if what.starts_with("Missing node registration") {
            return Self::MissingNode;
        }
        if what.starts_with("Missing service registration") {
            return Self::MissingService;
        }
        if what.starts_with("Permission denied") {
            return Self::PermissionDenied;
        }
        if what.ends_with("doesn't exist") {
            return Self::Missing;
        }
        if what.ends_with("exists") {
            return Self::KeyExists;
        }
        Self::Refused
    }
}

/// `... current modify index 21 != 19`.
fn index_check(what: &str) -> Option<TxnFailure> {
    let (front, expected) = what.rsplit_once(" != ")?;
    let (_, current) = front.rsplit_once(' ')?;
    Some(TxnFailure::FailedIndexCheck {
        current: current.parse().ok()?,
        expected: expected.parse().ok()?,
    })
}
