//! `ServiceRegistration`: pods, or addresses outside the cluster, as instances of a Consul service.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::conditions::Condition;
pub use super::health::{Health, NotReady, Terminating};
use super::mesh::Connect;
use super::prepared_query::{self, QuerySpec};
use super::schema;
use super::selector::LabelSelector;
pub use super::status::ConsulState;

/// What is to be registered in Consul, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "lictor.io",
    version = "v1alpha1",
    kind = "ServiceRegistration",
    plural = "serviceregistrations",
    shortname = "sreg",
    category = "lictor",
    namespaced,
    status = "ServiceRegistrationStatus",
    derive = "PartialEq",
    doc = "Registers pods, or addresses outside the cluster, as instances of a Consul service.",
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".status.service",
        description = "The Consul service"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether Consul equals what this object claims"
    ),
    printcolumn(
        name = "Instances",
        type_ = "string",
        json_path = ".status.instances.summary",
        description = "Instances in Consul / instances asked for"
    ),
    printcolumn(
        name = "Passing",
        type_ = "integer",
        json_path = ".status.instances.passing",
        description = "Instances that pass all checks"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the object was created"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not, in a word",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why it is ready or not",
        priority = 1
    ),
    validation = Rule::new(
        "has(self.spec.service) || (self.metadata.name.size() <= 63 && !self.metadata.name.contains('.'))"
    ).message(
        "without spec.service the Consul service is named like this object, whose name must then be a \
         lower-case DNS label (no dots, at most 63 characters): set spec.service or choose another name"
    ).field_path(".spec.service"),
    validation = Rule::new(
        "!has(self.spec.connect) || !has(self.spec.connect.sidecar) \
         || self.spec.?service.orValue(self.metadata.name).size() <= 49"
    ).message(
        "with connect.sidecar the service's name has at most 49 characters: its proxy is registered as \
         NAME-sidecar-proxy"
    ).field_path(".spec.service")
)]
#[x_kube(
    validation = Rule::new("has(self.selector) != has(self.endpoints)").message(
        "give exactly one of selector (registers pods) and endpoints (registers addresses outside the cluster)"
    ),
    validation = Rule::new("!has(self.port) || has(self.selector)").message(
        "port goes with selector only: give each of the endpoints its own port"
    ).field_path(".port"),
    validation = Rule::new(
        "!has(self.endpoints) || !has(self.tags) || self.endpoints.all(endpoint, !has(endpoint.tags) \
         || endpoint.tags.size() + self.tags.size() <= 64)"
    ).message("an endpoint has at most 64 tags, those of spec.tags included").field_path(".endpoints"),
    validation = Rule::new(
        "!has(self.endpoints) || !has(self.meta) || self.endpoints.all(endpoint, !has(endpoint.meta) \
         || endpoint.meta.filter(key, !(key in self.meta)).size() + self.meta.size() <= 48)"
    ).message("an endpoint has at most 48 pairs of meta, those of spec.meta included").field_path(".endpoints")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRegistrationSpec {
    /// Name of the Consul service: a lower-case DNS label. Default: the name of this object.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = schema::dns_label("service"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Registers the pods of this namespace that it chooses, each as an instance for as long as it
    /// exists. Exactly one of selector and endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Registers these addresses, which lie outside the cluster, such as a database's. Exactly one of
    /// selector and endpoints.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<Endpoint>>,
    /// Port of the pods: the name of a container port, or a number, which need not be declared.
    /// Default: the first declared container port, else 0. Only with selector.
    #[x_kube(validation = schema::port_number_in_range())]
    #[x_kube(validation = schema::port_name())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Which address of a pod is registered: `PodIP` (default) or `HostIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressFrom>,
    /// Tags of every instance. In them `${pod.name}`, `${pod.namespace}`, `${pod.node}`, `${pod.ip}`,
    /// `${pod.labels['KEY']}` and `${pod.annotations['KEY']}` are replaced, and `$$` is a `$`; a tag with
    /// a label that the pod lacks is left out.
    #[schemars(schema_with = "schema::tags")]
    #[x_kube(validation = schema::tags_without_comma())]
    #[x_kube(validation = schema::tags_without_control_characters())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata of every instance; in the values the same is replaced as in tags. Keys that say who
    /// owns an entry in Consul are reserved.
    #[schemars(schema_with = "schema::meta")]
    #[x_kube(validation = schema::meta_keys())]
    #[x_kube(validation = schema::meta_reserved())]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Weights of an instance in DNS SRV answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Whether tags may be changed in Consul by others: if true, they are written at creation only.
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_tag_override: Option<bool>,
    /// Whether an entry that stands in Consul under the id of an instance and has no owner's mark of
    /// any kind, such as one that was made by hand, is taken over. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<bool>,
    /// How the health of every instance is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What the service speaks, told to the mesh for the service as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Prepared queries that belong to this registration: named lookups of its service, or of another
    /// one, with filters and failover.
    #[schemars(schema_with = "prepared_query::named")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = schema::query_names_once())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QuerySpec>,
    /// How instances take part in the service mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
}

/// What the service speaks: `tcp`, `http`, `http2` or `grpc`, told to the mesh for the service as a whole.
/// Permissions of an Intention, by path, header or method, need one of the last three.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// The text, as Consul has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }
}

/// An address outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the endpoint within this object: a lower-case DNS label.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = schema::dns_label("an endpoint's name"))]
    pub name: String,
    /// IP address or host name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!isIP(self) || !ip(self).isUnspecified()").message(
        "0.0.0.0 and :: are no addresses that a client can reach: give the address of the endpoint"
    ))]
    #[x_kube(validation = Rule::new(
        "isIP(self) || (self.matches('^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$') \
         && !self.matches('(^|[.])[0-9]+[.]?$'))"
    ).message("address must be an IP address or a host name, without scheme, port, path and spaces"))]
    pub address: String,
    /// Port. Default: 0, none.
    #[schemars(schema_with = "schema::port_number")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Tags of this endpoint, beside those of spec.tags.
    #[schemars(schema_with = "schema::tags")]
    #[x_kube(validation = schema::tags_without_comma())]
    #[x_kube(validation = schema::tags_without_control_characters())]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata of this endpoint; wins over that of spec.meta, key by key.
    #[schemars(schema_with = "schema::meta")]
    #[x_kube(validation = schema::meta_keys())]
    #[x_kube(validation = schema::meta_reserved())]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// The port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Port {
    /// A number, declared by a container or not.
    Number(u16),
    /// The name of a declared container port.
    Name(String),
}

// By hand, for an error that says which port it is about.
impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl Visitor<'_> for Shape {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port: a name, or a number from 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Port, E> {
                let port = u16::try_from(number).ok().filter(|port| *port != 0);
                port.map(Port::Number)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Port, E> {
                Ok(Port::Name(name.to_owned()))
            }
        }
        from.deserialize_any(Shape)
    }
}

impl JsonSchema for Port {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true})
    }
}

/// Which address of a pod is registered: its own (`PodIP`, the default), or that of the Kubernetes node
/// that it runs on (`HostIP`; a port by name or by default is then its hostPort).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AddressFrom {
    /// The pod's own address.
    #[default]
    PodIP,
    /// The address of the Kubernetes node that it runs on.
    HostIP,
}

/// Weights of an instance in DNS SRV answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Weights {
    /// While passing. Default: 1.
    #[schemars(schema_with = "schema::weight")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passing: Option<u16>,
    /// While warning. Default: 1.
    #[schemars(schema_with = "schema::weight")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<u16>,
}

/// What Lictor last saw and did. Written by Lictor only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRegistrationStatus {
    /// The generation of the spec that this status is about.
    #[schemars(schema_with = "schema::index")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The Consul service; absent while the object cannot be understood.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Ready (Consul equals what this object claims), Reconciling, Stalled.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Instances of this registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Instances>,
    /// Prepared queries of this registration that Consul has.
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryState>,
    /// Where it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulState>,
    /// The last error, while it lasts.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Counts of instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instances {
    /// Instances that this object asks for.
    #[schemars(schema_with = "schema::count")]
    pub desired: u32,
    /// Those of them that Consul has.
    #[schemars(schema_with = "schema::count")]
    pub registered: u32,
    /// Those in Consul that pass all checks, the node's included.
    #[schemars(schema_with = "schema::count")]
    pub passing: u32,
    /// Those in Consul whose worst check warns.
    #[schemars(schema_with = "schema::count")]
    pub warning: u32,
    /// Those in Consul with a critical check.
    #[schemars(schema_with = "schema::count")]
    pub critical: u32,
    /// `registered/desired`, for `kubectl get`.
    #[schemars(length(max = 32))]
    pub summary: String,
}

/// A prepared query in Consul.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryState {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its id, which stays for as long as the query is there.
    #[schemars(length(max = 64))]
    pub id: String,
}
