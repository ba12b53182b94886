//! The service mesh, as a `ServiceRegistration` takes part in it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// How instances take part in the service mesh: exactly one of native and sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.?native.orValue(false) != has(self.sidecar)").message(
    "give exactly one of native: true (instances speak mutual TLS themselves) and sidecar (a proxy does)"
))]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// `true`: instances speak mutual TLS themselves. Exactly one of native and sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<bool>,
    /// Registers a proxy beside every instance, as the service NAME-sidecar-proxy. The proxy itself is
    /// yours to run. Exactly one of native and sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Sidecar>,
}

/// The proxy beside every instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// The port that the proxy listens on for the mesh, at the address of the instance.
    #[schemars(schema_with = "schema::port_number")]
    pub port: u16,
    /// Services that the instance calls through the proxy, each at a local port of its own.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["localPort".into()]))]
    #[x_kube(validation = schema::upstreams_once())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
}

/// A service that is called through the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = schema::at_most_one(&["datacenter", "peer"]).message(
        "give at most one of datacenter and peer: each says on its own where the service is"
    ),
    validation = Rule::new(
        "self.?datacenter.orValue('') == '' || self.?partition.orValue('') in ['', 'default']"
    ).message("another datacenter is reached from the partition default only").field_path(".partition")
)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// Name of the Consul service that is called.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = schema::name("an upstream's service"))]
    pub service: String,
    /// The port at 127.0.0.1 that the proxy takes the calls at.
    #[schemars(schema_with = "schema::port_number")]
    pub local_port: u16,
    /// The datacenter where the service is looked up. Default: the own. At most one of datacenter and
    /// peer.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("datacenter"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub datacenter: Option<String>,
    /// The cluster peering that the service comes through. At most one of datacenter and peer.
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("peer"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer: Option<String>,
    /// The Consul namespace of the service (Consul Enterprise).
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("namespace"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace: Option<String>,
    /// The admin partition of the service (Consul Enterprise).
    #[schemars(length(max = 256))]
    #[x_kube(validation = schema::empty_or_name("partition"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub partition: Option<String>,
}
