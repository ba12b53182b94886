//! What stands, or should stand, under a key: in canonical form, so that equal means equal.

use super::names::InstanceId;
use super::text::{Pairs, Text};

/// The status of a check. Ordered from best to worst: of several, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// `passing`.
    Passing,
    /// `warning`: still discoverable, deprioritised by its weight.
    Warning,
    /// `critical`: not discoverable.
    Critical,
}

impl Health {
    /// The status as Consul writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads a status of Consul's. One that Consul does not know counts as critical: it does not
    /// pass, and Consul's catalog accepts any text.
    #[must_use]
    pub fn parse(status: &str) -> Self {
        match status {
            "passing" => Self::Passing,
            "warning" => Self::Warning,
            _ => Self::Critical,
        }
    }
}

/// DNS weights of an instance, by its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// While passing, 1..65535.
    pub passing: u16,
    /// While in warning, 1..65535.
    pub warning: u16,
}

impl Default for Weights {
    /// What Consul stores where none are given.
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// An address under a name, e.g. `lan_ipv6`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaggedAddress {
    /// The name.
    pub tag: Text,
    /// The address.
    pub address: Text,
    /// The port.
    pub port: u16,
}

/// A service instance as the catalog holds it, without its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's name.
    pub name: Text,
    /// The instance's own address.
    pub address: Text,
    /// The instance's port, 0 for none.
    pub port: u16,
    /// Sorted by tag; empty but for dual-stack pods.
    pub tagged_addresses: Box<[TaggedAddress]>,
    /// Sorted, without repeats: Consul takes another order for a change.
    pub tags: Box<[Text]>,
    /// All meta, marks included.
    pub meta: Pairs,
    /// The weights.
    pub weights: Weights,
    /// Whether agents may change the tags.
    pub enable_tag_override: bool,
}

/// A check as the catalog holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its status.
    pub status: Health,
    /// What people read beside the status.
    pub output: Text,
}

/// The id of the check that carries a pod's readiness.
#[must_use]
pub fn readiness_check_id(id: &InstanceId) -> String {
    format!("{id}{READINESS_SUFFIX}")
}

/// What the id of a readiness check has after the id of its instance.
pub const READINESS_SUFFIX: &str = ":ready";

/// The name of the readiness check.
pub const READINESS_CHECK_NAME: &str = "Kubernetes readiness";
/// The type of the readiness check, as consul-k8s calls it.
pub const READINESS_CHECK_TYPE: &str = "kubernetes-readiness";
/// The id of the check on a synthetic node that follows the Kubernetes node's condition `Ready`.
pub const NODE_CHECK_ID: &str = "lictor-node";
/// The id of the check on a synthetic node by which Consul itself would notice that Lictor is dead. This
/// release writes none.
pub const ALIVE_CHECK_ID: &str = "lictor-alive";
/// The name of the node check.
pub const NODE_CHECK_NAME: &str = "Kubernetes node";
/// The type of the node check.
pub const NODE_CHECK_TYPE: &str = "kubernetes-node";

/// A synthetic node as the catalog holds it, without its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's address.
    pub address: Text,
    /// All meta, marks included.
    pub meta: Pairs,
}
