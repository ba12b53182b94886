//! The unit in which everything is asked: who claims it, what is there, what to do.

use std::fmt;
use std::sync::Arc;

use super::kind::Kind;
use super::names::{ClusterName, Destination, InstanceId, NodeName, QueryName, ServiceName};
use super::source::SourceName;

/// The place of a service instance in Consul's catalog: ids are unique on their node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    /// The synthetic node.
    pub node: NodeName,
    /// The id on that node.
    pub id: InstanceId,
}

impl InstanceKey {
    /// The key of the proxy beside the instance; where it is one itself, that of its instance.
    #[must_use]
    pub fn counterpart(&self, cluster: &ClusterName) -> Option<Self> {
        Some(Self {
            node: self.node.clone(),
            id: self.id.counterpart(cluster)?,
        })
    }
}

/// A source of the intentions of a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// The destination.
    pub destination: Destination,
    /// The source.
    pub source: SourceName,
}

/// One thing in Consul that is planned, written and removed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A synthetic node and the check `lictor-node` on it.
    Node(NodeName),
    /// A service instance and our checks of it.
    Instance(InstanceKey),
    /// The `service-defaults` of a service. Before the intentions, of which some need its protocol.
    Defaults(ServiceName),
    /// The `service-intentions` of a destination, whatever their sources.
    Intentions(Destination),
    /// One source of them: claimed, judged and lost by itself, and written with all of its destination.
    Source(Arc<SourceKey>),
    /// A prepared query and its entry in the ledger.
    Query(QueryName),
}

/// A kind of entry that stands on no node: all of a kind are read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `service-defaults`.
    Defaults,
    /// `service-intentions`.
    Intentions,
    /// Prepared queries and their ledger.
    Queries,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Defaults, Self::Intentions, Self::Queries];

    /// What it holds, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Defaults => "service-defaults",
            Self::Intentions => "service-intentions",
            Self::Queries => "prepared queries",
        }
    }
}

/// Where in Consul a key is read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On this node.
    Node(NodeName),
    /// Among all of its kind.
    Table(Table),
}

impl Key {
    /// Where the key is read.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Node(node) | Self::Instance(InstanceKey { node, .. }) => {
                Place::Node(node.clone())
            }
            Self::Defaults(_) => Place::Table(Table::Defaults),
            Self::Intentions(_) | Self::Source(_) => Place::Table(Table::Intentions),
            Self::Query(_) => Place::Table(Table::Queries),
        }
    }

    /// The key that it is planned and written under.
    #[must_use]
    pub fn planned(self) -> Self {
        match self {
            Self::Source(key) => Self::Intentions(key.destination.clone()),
            planned => planned,
        }
    }

    /// The kinds of objects that can claim it. Which nodes there are says where pods are.
    #[must_use]
    pub fn claimed_by(&self) -> &'static [Kind] {
        match self {
            Self::Node(_) | Self::Instance(_) => &[Kind::Pod, Kind::Node, Kind::Registration],
            Self::Defaults(_) => &[Kind::Registration],
            Self::Intentions(_) | Self::Source(_) => &[Kind::Intention],
            Self::Query(_) => &[Kind::Registration, Kind::PreparedQuery],
        }
    }

    /// The kind, as metrics and logs name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Instance(_) => "instance",
            Self::Defaults(_) => "service-defaults",
            Self::Intentions(_) => "intentions",
            Self::Source(_) => "intention",
            Self::Query(_) => "query",
        }
    }
}

/// The key of one thing that a destination has.
#[must_use]
pub fn source_key(destination: &Destination, source: SourceName) -> Key {
    Key::Source(Arc::new(SourceKey {
        destination: destination.clone(),
        source,
    }))
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
            Self::Defaults(service) => write!(f, "service-defaults/{service}"),
            Self::Intentions(destination) => write!(f, "service-intentions/{destination}"),
            Self::Source(key) => {
                write!(f, "service-intentions/{}: {}", key.destination, key.source)
            }
            Self::Query(name) => write!(f, "query/{name}"),
        }
    }
}
