//! The unit in which everything is asked: who claims it, what is there, what to do.

use std::fmt;

use super::names::{InstanceId, NodeName};

/// The place of a service instance in Consul's catalog: ids are unique on their node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    /// The synthetic node.
    pub node: NodeName,
    /// The id on that node.
    pub id: InstanceId,
}

/// One thing in Consul that is planned, written and removed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A synthetic node and the check `lictor-node` on it.
    Node(NodeName),
    /// A service instance and our checks of it.
    Instance(InstanceKey),
}

impl Key {
    /// The Consul node that the key is on.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        match self {
            Self::Node(node) | Self::Instance(InstanceKey { node, .. }) => node,
        }
    }

    /// The kind, as metrics and logs name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Instance(_) => "instance",
        }
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.id)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Instance(instance) => instance.fmt(f),
        }
    }
}
