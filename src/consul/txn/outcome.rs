//! What became of a transaction.

use serde::Deserialize;

use crate::consul::error::one_line;
use crate::consul::wire::{HealthCheck, KvPair, Node, NodeService, null_is_default};

/// What became of a transaction that Consul answered.
#[derive(Clone, Debug, PartialEq)]
pub enum TxnOutcome {
    /// All of it was applied. One element for each operation, in order.
    Applied(Vec<TxnResult>),
    /// Nothing of it was applied, because of these operations; never empty.
    RolledBack(Vec<TxnError>),
    /// Nothing of it was applied, because the fence is down, or may not be read.
    Fenced {
        /// What Consul said.
        what: Box<str>,
        /// What that means: [`TxnFailure::FailedIndexCheck`], [`TxnFailure::Missing`],
        /// [`TxnFailure::PermissionDenied`] or [`TxnFailure::Lapsed`].
        reason: TxnFailure,
    },
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
    /// Nothing: a removal, or `check-not-exists`.
    Nothing,
    /// **The operation was not carried out, and everything else was.** Consul 1.22.7 drops the
    /// compare-and-set of a check whose node or service is not there, and reports no error.
    Dropped,
}

/// An operation that made a transaction fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnError {
    /// Which one, counted from 0, the fence not counted.
    pub op_index: usize,
    /// What Consul said, in one line.
    pub what: Box<str>,
    /// What that means.
    pub reason: TxnFailure,
}

/// Why an operation failed. A transaction reports all operations that do, not only the first.
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
    /// Consul was not asked: the leadership that the transaction was to be sent under is over.
    Lapsed,
}

/// What result an operation has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Node,
    Service,
    Check,
    /// The compare-and-set of a check; what is kept of it tells whether it was dropped.
    CheckCas {
        node: Box<str>,
        check_id: Box<str>,
        service_id: Box<str>,
    },
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
pub(super) fn assign(expected: &[Expected], results: Vec<RawResult>) -> Option<Vec<TxnResult>> {
    let mut results = results.into_iter().peekable();
    let mut assigned = Vec::with_capacity(expected.len());
    for expected in expected {
        assigned.push(match expected {
            Expected::Nothing => TxnResult::Nothing,
            Expected::Node => TxnResult::Node(results.next()?.node?),
            Expected::Service => TxnResult::Service(results.next()?.service?),
            Expected::Check => TxnResult::Check(results.next()?.check?),
            Expected::Kv => TxnResult::Kv(results.next()?.kv?),
            Expected::CheckCas {
                node,
                check_id,
                service_id,
            } => {
                let is_it = |result: &RawResult| {
                    result.check.as_ref().is_some_and(|check| {
                        same(&check.node, node) && same(&check.check_id, check_id)
                    })
                };
                match results.next_if(is_it).and_then(|result| result.check) {
                    // What was there before is returned also where the write was dropped. Then
                    // the service is missing, so that it cannot be that of the old check.
                    Some(check) if same(&check.service_id, service_id) => TxnResult::Check(check),
                    _ => TxnResult::Dropped,
                }
            }
        });
    }
    results.next().is_none().then_some(assigned)
}

/// Consul compares names and ids without case.
fn same(a: &str, b: &str) -> bool {
    a == b || a.to_lowercase() == b.to_lowercase()
}

impl TxnOutcome {
    /// What the errors of a transaction mean; `None` if there is none.
    pub(super) fn failed(errors: Vec<RawError>, fenced: bool) -> Option<Self> {
        let mut errors: Vec<_> = errors.into_iter().map(TxnError::from).collect();
        if fenced {
            if let Some(at) = errors.iter().position(|error| error.op_index == 0) {
                let TxnError { what, reason, .. } = errors.swap_remove(at);
                return Some(Self::Fenced { what, reason });
            }
            for error in &mut errors {
                error.op_index -= 1;
            }
        }
        (!errors.is_empty()).then_some(Self::RolledBack(errors))
    }
}

impl From<RawError> for TxnError {
    fn from(RawError { op_index, what }: RawError) -> Self {
        Self {
            op_index,
            reason: TxnFailure::of(&what),
            what: one_line(&what).into(),
        }
    }
}

impl TxnFailure {
    /// Reads Consul's text. Names that others chose are quoted in it, so that it is matched where
    /// no name can be: at its ends.
    fn of(what: &str) -> Self {
        let starts = |fragment| what.starts_with(fragment);
        let ends = |fragment| what.ends_with(fragment);
        if ends("index is stale") {
            Self::StaleIndex
        } else if starts("failed index check") {
            index_check(what).unwrap_or(Self::Refused)
        } else if starts("failed session check") {
            Self::FailedSessionCheck
        } else if starts("Missing node registration") {
            Self::MissingNode
        } else if starts("Missing service registration") {
            Self::MissingService
        } else if starts("Permission denied") {
            Self::PermissionDenied
        } else if ends("doesn't exist") {
            Self::Missing
        } else if starts("key \"") && ends("\" exists") {
            Self::KeyExists
        } else {
            Self::Refused
        }
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
