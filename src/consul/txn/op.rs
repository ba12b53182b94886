//! What a transaction can do.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/txn>; observed on Consul 1.22.7.

use std::borrow::Cow;

use crate::consul::wire::{HealthCheck, Node, NodeService};

/// One operation of a transaction.
///
/// `cas` with index 0 creates and fails where something is there already; `delete-cas` fails with
/// [`TxnFailure::StaleIndex`](super::TxnFailure::StaleIndex) also where nothing is there.
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
