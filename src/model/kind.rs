//! The kinds of Kubernetes objects that decide what Consul shall hold.

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Pod.
    Pod,
    /// `v1` Node.
    Node,
    /// `lictor.io/v1alpha1` `ServiceRegistration`.
    Registration,
    /// `lictor.io/v1alpha1` `Intention`.
    Intention,
    /// `lictor.io/v1alpha1` `PreparedQuery`.
    PreparedQuery,
    /// `v1` Namespace. Its labels say which policies choose it.
    Namespace,
    /// `lictor.io/v1alpha1` `RegistrationPolicy`.
    Policy,
    /// `coordination.k8s.io/v1` Lease. It claims nothing, and is watched only in namespaces where a check
    /// looks at one.
    Lease,
}

impl Kind {
    /// All kinds whose objects claim something in Consul, or are needed to tell what is claimed and
    /// allowed.
    pub const ALL: [Self; 7] = [
        Self::Pod,
        Self::Node,
        Self::Registration,
        Self::Intention,
        Self::PreparedQuery,
        Self::Namespace,
        Self::Policy,
    ];

    /// Whether its objects are in namespaces. The others are watched only where all namespaces are.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace | Self::Policy)
    }

    /// The name of the CRD of a kind of ours.
    #[must_use]
    pub const fn crd(self) -> Option<&'static str> {
        match self {
            Self::Pod | Self::Node | Self::Namespace | Self::Lease => None,
            Self::Registration => Some("serviceregistrations.lictor.io"),
            Self::Intention => Some("intentions.lictor.io"),
            Self::PreparedQuery => Some("preparedqueries.lictor.io"),
            Self::Policy => Some("registrationpolicies.lictor.io"),
        }
    }

    /// The name of the resource, as the API server's URLs, logs and metrics have it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Node => "nodes",
            Self::Registration => "serviceregistrations",
            Self::Intention => "intentions",
            Self::PreparedQuery => "preparedqueries",
            Self::Namespace => "namespaces",
            Self::Policy => "registrationpolicies",
            Self::Lease => "leases",
        }
    }
}
