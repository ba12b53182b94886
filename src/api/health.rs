//! How the health of an instance is found: by the state of its pod, and by checks that Lictor runs.

use std::collections::BTreeMap;
use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::service_registration::Port;

/// How the health of an instance is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Health of a pod that is not ready: Critical (default) or Warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<NotReady>,
    /// Health of a pod that is terminating: Critical (default), Warning, or Deregister.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminating: Option<Terminating>,
    /// Checks of every instance, beside the readiness of the pod: the worst of all counts. Lictor runs them,
    /// or consul-esm where it is set up so.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// How long the instance's own checks must be critical before it is deregistered, 30s to 8760h; it is
    /// registered again when they are not. Default: it stays.
    #[schemars(length(max = 32))]
    #[x_kube(validation = schema::duration_between("deregisterCriticalServiceAfter", "30s", "8760h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregister_critical_service_after: Option<String>,
}

/// Health of a pod that is not ready: `Critical` (the default: left out of discovery) or `Warning`
/// (still discovered, with the weight for warning).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NotReady {
    /// Left out of discovery.
    #[default]
    Critical,
    /// Still discovered, with the weight for warning.
    Warning,
}

/// What becomes of a pod that is terminating: `Critical` (the default) or `Warning` until it is gone, or
/// `Deregister`, which removes it at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Terminating {
    /// Critical until it is gone.
    #[default]
    Critical,
    /// Warning until it is gone.
    Warning,
    /// Removed at once.
    Deregister,
}

/// A check: one that Lictor runs over http, tcp or grpc, or the ttl of a Lease that the workload renews.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "[has(self.http), has(self.tcp), has(self.grpc), has(self.ttl)].filter(given, given).size() == 1"
    ).message("give exactly one of http, tcp, grpc and ttl"),
    validation = Rule::new(
        "!has(self.ttl) || !(has(self.interval) || has(self.timeout) || has(self.failuresBeforeCritical) || has(self.successesBeforePassing))"
    ).message("nothing is run for a ttl check: leave out interval, timeout, failuresBeforeCritical and successesBeforePassing")
)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Name of the check within this object: a lower-case DNS label, but not `ready` or `alias`.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = schema::dns_label("a check's name"))]
    #[x_kube(validation = Rule::new("!(self in ['ready', 'alias'])").message(
        "ready and alias are checks that every instance has: choose another name"
    ))]
    pub name: String,
    /// A request over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// The health service of gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A Lease that the workload renews while it makes progress. Needs Consul 1.21 or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TtlCheck>,
    /// Time from one run to the next, 1s to 24h. Default: 10s.
    #[schemars(length(max = 32))]
    #[x_kube(validation = schema::duration_between("interval", "1s", "24h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Time that a run may take, 100ms to 1m. Default: 3s.
    #[schemars(length(max = 32))]
    #[x_kube(validation = schema::duration_between("timeout", "100ms", "1m"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Runs in a row that must fail before the check turns critical. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_before_critical: Option<u32>,
    /// Runs in a row that must succeed before the check passes or warns. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes_before_passing: Option<u32>,
}

/// A Lease that the workload renews while it makes progress: it passes while that was renewed within ttl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TtlCheck {
    /// Name of the Lease, in the namespace of this object; of a pod it may say `${pod.name}` and whatever
    /// else tags may.
    #[schemars(length(min = 1, max = 512))]
    pub lease: String,
    /// How long a renewal is good for, 10s to 24h, in whole seconds.
    #[schemars(length(max = 32))]
    #[x_kube(validation = schema::duration_between("ttl", "10s", "24h"))]
    pub ttl: String,
}

/// A request over HTTP: 2xx passes, 429 warns, everything else is critical.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Path, with a query if need be. Default: `/`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^/[!-~]*$') && !self.contains('#')").message(
        "path starts with / and holds neither spaces nor '#'; write other characters as %XX"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Name of a container port, or a number that the pod declares or is registered with. Default: the
    /// instance's own port.
    #[x_kube(validation = schema::port_number_in_range())]
    #[x_kube(validation = schema::port_name_in_list())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// `http` (default) or `https`, whose certificate is not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Method. Default: GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Header fields of the request. They are no secret: whoever may read this object sees them.
    #[schemars(schema_with = "schema::headers")]
    #[x_kube(validation = schema::header_names())]
    #[x_kube(validation = schema::header_values())]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

// By hand: people put tokens into headers all the same.
impl fmt::Debug for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            port,
            scheme,
            method,
            headers,
        } = self;
        f.debug_struct("HttpCheck")
            .field("path", path)
            .field("port", port)
            .field("scheme", scheme)
            .field("method", method)
            .field("headers", &headers.keys())
            .finish()
    }
}

/// `http` (the default), or `https`, whose certificate is not verified: it is not for the address of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// In the clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The text, as in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The method of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// HEAD.
    Head,
    /// OPTIONS.
    Options,
    /// POST, with an empty body.
    Post,
    /// PUT, with an empty body.
    Put,
}

impl Method {
    /// The method, as in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }
}

/// A TCP connection: it passes when it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpCheck {
    /// Name of a container port, or a number that the pod declares or is registered with. Default: the
    /// instance's own port.
    #[x_kube(validation = schema::port_number_in_range())]
    #[x_kube(validation = schema::port_name_in_list())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
}

/// The standard health service of gRPC: SERVING passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcCheck {
    /// Name of a container port, or a number that the pod declares or is registered with. Default: the
    /// instance's own port.
    #[x_kube(validation = schema::port_number_in_range())]
    #[x_kube(validation = schema::port_name_in_list())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// The service that is asked for. Default: none, the server as a whole.
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]*$')").message(
        "service is the name of a gRPC service, without spaces"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}
