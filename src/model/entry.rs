//! What stands, or should stand, under a key: in canonical form, so that equal means equal.

use super::definition::Definition;
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
    /// How it takes part in the service mesh. In a box, because most do not.
    pub mesh: Option<Box<Mesh>>,
}

impl Service {
    /// The check of ours that carries its readiness.
    #[must_use]
    pub fn check_kind(&self) -> CheckKind {
        if self.is_proxy() {
            CheckKind::Alias
        } else {
            CheckKind::Readiness
        }
    }

    /// Whether it is the proxy of another instance.
    #[must_use]
    pub fn is_proxy(&self) -> bool {
        matches!(self.mesh.as_deref(), Some(Mesh::Proxy(_)))
    }

    /// Whether a transaction of Consul's would leave something of it out without a word.
    #[must_use]
    pub fn needs_register(&self) -> bool {
        match self.mesh.as_deref() {
            None => false,
            Some(Mesh::Native) => true,
            Some(Mesh::Proxy(proxy)) => !proxy.upstreams.is_empty(),
        }
    }
}

/// How an instance takes part in the service mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// It speaks the mesh's protocol itself.
    Native,
    /// It is the proxy of another instance.
    Proxy(Proxy),
}

/// The proxy of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// The service of the instance.
    pub destination: Text,
    /// The id of the instance.
    pub destination_id: Text,
    /// Where the proxy reaches the instance.
    pub local_address: Text,
    /// The port there, 0 for none.
    pub local_port: u16,
    /// Sorted by local port.
    pub upstreams: Box<[Upstream]>,
}

/// A service that an instance calls through its proxy; what is not set is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upstream {
    /// The port where the proxy takes the calls.
    pub local_port: u16,
    /// The service.
    pub service: Text,
    /// The datacenter that it is looked up in.
    pub datacenter: Text,
    /// The peer that it comes from.
    pub peer: Text,
    /// Its Consul namespace.
    pub namespace: Text,
    /// Its admin partition.
    pub partition: Text,
}

/// The kind of a connect proxy, as Consul calls it.
pub const CONNECT_PROXY: &str = "connect-proxy";
/// The tagged address that Consul gives to instances of the mesh. It follows the service's name and the
/// port, and comes back whatever is written.
pub const VIRTUAL_ADDRESS: &str = "consul-virtual";

/// A check as the catalog holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its status.
    pub status: Health,
    /// What people read beside the status.
    pub output: Text,
}

/// What a check of ours on an instance is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The readiness of the pod behind the instance.
    Readiness,
    /// Of a proxy: how the instance beside it is.
    Alias,
    /// What is found when the instance is asked.
    Probe {
        /// Its name within the registration.
        name: Text,
        /// How it is asked.
        protocol: Protocol,
        /// What consul-esm is to do for it, where it is the one that asks.
        definition: Option<Definition>,
    },
}

/// How an instance is asked how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A request over HTTP.
    Http,
    /// A TCP connection.
    Tcp,
    /// The health service of gRPC.
    Grpc,
    /// Not at all: it follows a session of the check's own name, in which somebody vouches for it.
    Session,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Http, Self::Tcp, Self::Grpc, Self::Session];

    /// The type of such a check, as Consul calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
            // Consul itself acts on this one (`SessionCheckType` is no constant of its API).
            Self::Session => "session",
        }
    }

    /// Reads the type of a check.
    #[must_use]
    pub fn parse(check_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == check_type)
    }
}

const READINESS_SUFFIX: &str = "ready";
const ALIAS_SUFFIX: &str = "alias";

impl CheckKind {
    /// Whether a check of a registration cannot have this name, because an instance has another one
    /// under it.
    #[must_use]
    pub fn is_reserved(name: &str) -> bool {
        [READINESS_SUFFIX, ALIAS_SUFFIX].contains(&name)
    }

    /// What stands under an id with this after the colon, for what of it the id tells.
    #[must_use]
    pub fn fixed(suffix: &str) -> Option<Self> {
        match suffix {
            READINESS_SUFFIX => Some(Self::Readiness),
            ALIAS_SUFFIX => Some(Self::Alias),
            _ => None,
        }
    }

    /// The same, for consul-esm to run.
    #[must_use]
    pub fn defined(self, by: Option<Definition>) -> Self {
        match self {
            Self::Probe { name, protocol, .. } => Self::Probe {
                name,
                protocol,
                definition: by,
            },
            Self::Readiness | Self::Alias => self,
        }
    }

    /// What consul-esm is to do for it.
    #[must_use]
    pub fn definition(&self) -> Option<&Definition> {
        match self {
            Self::Probe { definition, .. } => definition.as_ref(),
            Self::Readiness | Self::Alias => None,
        }
    }

    /// Its id: that of its instance, a colon and a word.
    #[must_use]
    pub fn id(&self, instance: &InstanceId) -> String {
        let suffix = match self {
            Self::Readiness => READINESS_SUFFIX,
            Self::Alias => ALIAS_SUFFIX,
            Self::Probe { name, .. } => name,
        };
        format!("{instance}:{suffix}")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Text {
        match self {
            Self::Readiness => "Kubernetes readiness".into(),
            Self::Alias => "Kubernetes readiness of the service".into(),
            Self::Probe { name, .. } => name.clone(),
        }
    }

    /// Whether it follows a session.
    #[must_use]
    pub fn follows_session(&self) -> bool {
        matches!(
            self,
            Self::Probe {
                protocol: Protocol::Session,
                ..
            }
        )
    }

    /// Its type. That of a readiness check is what consul-k8s calls it, those of the others are Consul's.
    #[must_use]
    pub fn check_type(&self) -> &'static str {
        match self {
            Self::Readiness => "kubernetes-readiness",
            Self::Alias => "kubernetes-alias",
            Self::Probe { protocol, .. } => protocol.as_str(),
        }
    }
}

/// The id of the check on a synthetic node that follows the Kubernetes node's condition `Ready`.
pub const NODE_CHECK_ID: &str = "lictor-node";
/// The id of the check on a synthetic node by which Consul itself notices that Lictor is dead, and the name of
/// the session that it follows.
pub const ALIVE_CHECK_ID: &str = "lictor-alive";
/// The name of that check.
pub const ALIVE_CHECK_NAME: &str = "Lictor is alive";
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
