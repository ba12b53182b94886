//! Names, parsed once: whoever holds one of these types need not check it again.

use std::fmt;
use std::str::FromStr;

use super::text::Text;

/// Whether `name` is a DNS subdomain, as the names of most Kubernetes objects are: at most 253 lower-case letters,
/// digits, `-` and `.`, where each part between dots begins and ends with a letter or digit.
#[must_use]
pub fn is_dns_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

/// Whether `name` is a lower-case DNS label (RFC 1123): 1 to 63 of `[a-z0-9-]`, no hyphen at an end.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Whether `name` has only the characters of names of Kubernetes objects.
///
/// Anyone who may write to Consul can put any text into an id or a mark. What is no name of an
/// object cannot be ours, and never gets as far as a log line.
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
    };
    !name.is_empty() && name.bytes().all(allowed)
}

/// Why a text is not the name that it was meant to be; says what is allowed instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} must be {rule}")]
pub struct InvalidName {
    what: &'static str,
    given: String,
    rule: &'static str,
}

/// The name under which one Kubernetes cluster writes to Consul (`--cluster`).
///
/// Unique among all writers to one Consul; part of every node name and instance id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Text);

impl FromStr for ClusterName {
    type Err = InvalidName;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        if is_dns_label(given) && given.len() <= 32 && !given.contains("--") {
            Ok(Self(given.into()))
        } else {
            Err(InvalidName {
                what: "the cluster name",
                given: given.to_owned(),
                rule: "a lower-case DNS label of at most 32 characters without \"--\"",
            })
        }
    }
}

/// What the name of a service's proxies has after the service's own.
const SIDECAR_SUFFIX: &str = "-sidecar-proxy";

/// The service whose proxies have this name, if it is such a name.
#[must_use]
pub fn stem_of_sidecar(name: &str) -> Option<&str> {
    name.strip_suffix(SIDECAR_SUFFIX)
        .filter(|stem| !stem.is_empty())
}

/// The name of the proxies of a service.
#[must_use]
pub fn sidecar_name(service: &str) -> String {
    format!("{service}{SIDECAR_SUFFIX}")
}

/// The name of a Consul service: a lower-case DNS label, so that Consul's DNS can answer for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Text);

impl ServiceName {
    /// The name of the service that the proxies beside its instances are, if that is still a name.
    #[must_use]
    pub fn sidecar(&self) -> Option<Self> {
        sidecar_name(&self.0).parse().ok()
    }

    /// The name as a shared text.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = InvalidName;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        if is_dns_label(given) {
            Ok(Self(given.into()))
        } else {
            Err(InvalidName {
                what: "the service name",
                given: given.to_owned(),
                rule: "a lower-case DNS label: 1 to 63 of a-z, 0-9 and \"-\", beginning and ending with a letter or digit",
            })
        }
    }
}

/// The name of one of our synthetic nodes in Consul's catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Text);

impl NodeName {
    /// The synthetic node that stands for a Kubernetes node.
    #[must_use]
    pub fn for_kubernetes(cluster: &ClusterName, node: &str) -> Self {
        Self(format!("lictor-{cluster}--{node}").into())
    }

    /// The synthetic node for endpoints outside of the cluster.
    #[must_use]
    pub fn external(cluster: &ClusterName) -> Self {
        Self(format!("lictor-{cluster}-external").into())
    }

    /// A node name as Consul returned it, if it is one that `cluster` may use.
    ///
    /// Consul compares node names without case, so that the lower-case form is the name.
    #[must_use]
    pub fn parse(cluster: &ClusterName, name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let rest = name
            .strip_prefix("lictor-")?
            .strip_prefix(cluster.as_ref())?;
        let ours = rest == "-external" || rest.strip_prefix("--").is_some_and(is_object_name);
        ours.then(|| Self(name.into()))
    }

    /// Whether consul-k8s takes it for one of its own (`<node>-virtual`), which it removes with all
    /// that is on it.
    #[must_use]
    pub fn is_like_consul_k8s(&self) -> bool {
        self.0.ends_with("-virtual")
    }

    /// The Kubernetes node that this one stands for; `None` for the external one.
    #[must_use]
    pub fn kubernetes_node(&self, cluster: &ClusterName) -> Option<&str> {
        self.0
            .strip_prefix("lictor-")?
            .strip_prefix(cluster.as_ref())?
            .strip_prefix("--")
    }

    /// The name as a shared text.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.0
    }
}

/// The id of a service instance in Consul, unique on its node.
///
/// `<cluster>.<namespace>.<service>.<pod>`, or for an endpoint outside of the cluster
/// `<cluster>.<namespace>.<service>.<ServiceRegistration>.<endpoint>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Text);

impl InstanceId {
    /// The id of a pod's instance.
    #[must_use]
    pub fn of_pod(
        cluster: &ClusterName,
        namespace: &str,
        service: &ServiceName,
        pod: &str,
    ) -> Self {
        Self(format!("{cluster}.{namespace}.{service}.{pod}").into())
    }

    /// The id of an endpoint that a `ServiceRegistration` lists.
    #[must_use]
    pub fn of_endpoint(
        cluster: &ClusterName,
        namespace: &str,
        service: &ServiceName,
        registration: &str,
        endpoint: &str,
    ) -> Self {
        Self(format!("{cluster}.{namespace}.{service}.{registration}.{endpoint}").into())
    }

    /// An id as Consul returned it, of whatever form; compared without case, as Consul does.
    #[must_use]
    pub fn observed(id: &str) -> Self {
        if id.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Self(id.to_lowercase().into())
        } else {
            Self(id.into())
        }
    }

    /// Whether a check with this id is of the form that ours of this instance have; compared without case.
    #[must_use]
    pub fn names_check(&self, check_id: &str) -> bool {
        let id = check_id.to_lowercase();
        id.strip_prefix(&*self.0)
            .is_some_and(|rest| rest.starts_with(':'))
    }

    /// What the id names, if it has the form that `cluster` gives to instances of `service` in
    /// `namespace`: the pod, or the `ServiceRegistration` and its endpoint.
    #[must_use]
    pub fn named(&self, cluster: &ClusterName, namespace: &str, service: &str) -> Option<&str> {
        let rest = self
            .0
            .strip_prefix(cluster.as_ref())
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_prefix(namespace))
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_prefix(service))
            .and_then(|rest| rest.strip_prefix('.'));
        rest.filter(|rest| is_object_name(rest))
    }

    /// The namespace and what the id names in it, if it has the form of an id of ours: of a pod's instance,
    /// the pod.
    #[must_use]
    pub fn object(&self) -> Option<(&str, &str)> {
        let (_cluster, rest) = self.0.split_once('.')?;
        let (namespace, rest) = rest.split_once('.')?;
        let (_service, name) = rest.split_once('.')?;
        Some((namespace, name))
    }

    /// The id of the proxy beside the instance; where it is one itself, that of its instance.
    #[must_use]
    pub fn counterpart(&self, cluster: &ClusterName) -> Option<Self> {
        let rest = self.0.strip_prefix(cluster.as_ref())?.strip_prefix('.')?;
        let (namespace, rest) = rest.split_once('.')?;
        let (service, rest) = rest.split_once('.')?;
        let counterpart = match service.strip_suffix(SIDECAR_SUFFIX) {
            Some(service) => format!("{cluster}.{namespace}.{service}.{rest}"),
            None => format!("{cluster}.{namespace}.{service}{SIDECAR_SUFFIX}.{rest}"),
        };
        Some(Self(counterpart.into()))
    }

    /// The id as a shared text.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.0
    }
}

/// The destination of intentions: a Consul service, or `*` for all.
///
/// In lower case: Consul compares the names of config entries without case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination(Text);

impl Destination {
    /// The destination of this name, however it is written.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_lowercase().into())
    }

    /// The name as a shared text.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.0
    }
}

/// The name of a prepared query, in lower case: Consul compares these names without case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryName(Text);

impl QueryName {
    /// The query of this name, however it is written.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_lowercase().into())
    }

    /// The name as a shared text.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.0
    }
}

macro_rules! text_like {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}
text_like!(
    ClusterName,
    ServiceName,
    NodeName,
    InstanceId,
    Destination,
    QueryName
);

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    #[test]
    fn cluster_names_are_short_labels_without_a_double_hyphen() {
        for good in ["a", "prod", "eu-west-1", &"x".repeat(32)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "a--b", "-a", "a-", "Prod", "a.b", &"x".repeat(33)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_of_another_cluster_is_never_taken_for_ours() {
        let a = cluster("a");
        assert!(NodeName::parse(&a, "lictor-a--n1").is_some());
        assert!(NodeName::parse(&a, "Lictor-A--N1").is_some());
        assert!(NodeName::parse(&a, "lictor-a-external").is_some());
        for other in [
            "lictor-ab--n1",
            "lictor-a-b--n1",
            "lictor-a--",
            "lictor-a--n1\u{1b}[2J",
            "n1",
            "lictor-a-virtual",
        ] {
            assert!(NodeName::parse(&a, other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_kubernetes_node_called_external_is_not_the_external_node() {
        let a = cluster("a");
        let node = NodeName::for_kubernetes(&a, "external");
        assert_ne!(node, NodeName::external(&a));
        assert_eq!(node.kubernetes_node(&a), Some("external"));
        assert_eq!(NodeName::external(&a).kubernetes_node(&a), None);
    }

    #[test]
    fn ids_keep_dots_of_pod_names_and_know_their_form() {
        let a = cluster("a");
        let id = InstanceId::of_pod(&a, "shop", &"web".parse().unwrap(), "web.0");
        assert_eq!(id.as_ref(), "a.shop.web.web.0");
        assert_eq!(id.named(&a, "shop", "web"), Some("web.0"));
        assert_eq!(id.object(), Some(("shop", "web.0")));
        assert_eq!(id.named(&a, "shop", "web.web.0"), None);
        let broken = InstanceId::observed("a.shop.web.web-0\nINFO audit: removed");
        assert_eq!(broken.named(&a, "shop", "web"), None);
        assert_eq!(id.named(&cluster("b"), "shop", "web"), None);
        let proxy = id.counterpart(&a).unwrap();
        assert_eq!(proxy.as_ref(), "a.shop.web-sidecar-proxy.web.0");
        assert_eq!(proxy.counterpart(&a), Some(id));
    }
}
