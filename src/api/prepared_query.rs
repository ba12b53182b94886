//! `PreparedQuery`: a named lookup in Consul, with filters and failover.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::conditions::Condition;
use super::schema;
use super::status::ConsulState;
use crate::model::limits::MAX_QUERIES;

/// What a lookup by this name finds. Also an item of the queries of a `ServiceRegistration`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "lictor.io",
    version = "v1alpha1",
    kind = "PreparedQuery",
    plural = "preparedqueries",
    shortname = "pq",
    category = "lictor",
    namespaced,
    status = "PreparedQueryStatus",
    derive = "PartialEq",
    doc = "A prepared query of Consul: a named lookup of a service, with filters and failover, answered at NAME.query.consul and over HTTP.",
    printcolumn(
        name = "Name",
        type_ = "string",
        json_path = ".status.name",
        description = "The name in Consul: NAME.query.consul"
    ),
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".spec.service",
        description = "The Consul service that is looked up"
    ),
    printcolumn(
        name = "Id",
        type_ = "string",
        json_path = ".status.id",
        description = "The id in Consul"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether Consul equals what this object claims"
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
        "has(self.spec.name) || (self.metadata.name.size() <= 63 && !self.metadata.name.contains('.'))"
    ).message(
        "without spec.name the query is named like this object, whose name must then have no dots and at \
         most 63 characters: set spec.name or choose another name"
    ).field_path(".spec.name"),
    validation = Rule::new("has(self.spec.service)").message(
        "say which Consul service is looked up"
    ).field_path(".spec.service")
)]
#[serde(rename_all = "camelCase")]
pub struct QuerySpec {
    /// The name that is looked up, as NAME.query.consul; with a template, how the names begin that it
    /// answers. Capital and small letters are the same. Default: the name of this object; required in
    /// a `ServiceRegistration`.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9-]{0,62}$')").message(
        "a query's name is 1 to 63 of A-Z, a-z, 0-9 and '-', the first not '-'"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The Consul service that is looked up; in a template it may be put together, such as
    /// `${name.suffix}` or `${match(1)}`. Default in a `ServiceRegistration`: its service; else required.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Tags that an instance must have; with a `!` before it, that it must not have.
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata that an instance must have.
    #[schemars(schema_with = "schema::meta_filter")]
    #[x_kube(validation = schema::meta_keys())]
    #[x_kube(validation = schema::meta_values())]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub service_meta: BTreeMap<String, String>,
    /// Metadata that the Consul node of an instance must have, such as `topology-zone`.
    #[schemars(schema_with = "schema::meta_filter")]
    #[x_kube(validation = schema::meta_keys())]
    #[x_kube(validation = schema::meta_values())]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_meta: BTreeMap<String, String>,
    /// Sorts the answer by distance from this Consul node; `_agent` is the agent that is asked, `_ip`
    /// the node with the address of who asks.
    #[schemars(length(max = 256))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub near: Option<String>,
    /// Whether instances whose worst check warns are left out, as critical ones are. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_passing: Option<bool>,
    /// Ids of checks that do not count.
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore_check_ids: Vec<String>,
    /// Whether only what speaks mutual TLS is found: native instances, and proxies of the service.
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<bool>,
    /// Where else is looked when nothing healthy is found here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<QueryFailover>,
    /// How DNS answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<QueryDns>,
    /// Makes it answer every name that begins with its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<QueryTemplate>,
    /// Whether a query of this name that stands in Consul without an owner is taken over. Default:
    /// false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<bool>,
}

/// Where else is looked: the nearest datacenters and then those listed, or the targets in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new(
    "self.?targets.orValue([]).size() == 0 || (self.?nearestN.orValue(0) == 0 \
     && self.?datacenters.orValue([]).size() == 0)"
).message("targets go without nearestN and datacenters: list the datacenters as targets").field_path(".targets"))]
#[serde(rename_all = "camelCase")]
pub struct QueryFailover {
    /// How many of the other datacenters are tried, the nearest first.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_n: Option<u32>,
    /// Datacenters that are tried then, in this order.
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datacenters: Vec<String>,
    /// Datacenters, peers, partitions and namespaces that are tried, in this order. Without nearestN
    /// and datacenters.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<QueryTarget>,
}

/// Where the service is looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = schema::at_most_one(&["peer", "partition", "datacenter"]).message(
        "a target is at most one of peer, partition and datacenter"
    ),
    validation = Rule::new(
        "self.?peer.orValue('') != '' || self.?partition.orValue('') != '' \
         || self.?__namespace__.orValue('') != '' || self.?datacenter.orValue('') != ''"
    ).message("say where: peer, partition, namespace or datacenter")
)]
#[serde(rename_all = "camelCase")]
pub struct QueryTarget {
    /// A cluster peering.
    #[schemars(length(max = 256))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer: Option<String>,
    /// An admin partition (Consul Enterprise).
    #[schemars(length(max = 256))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub partition: Option<String>,
    /// A Consul namespace (Consul Enterprise), alone or of the peer, partition or datacenter.
    #[schemars(length(max = 256))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub namespace: Option<String>,
    /// A datacenter.
    #[schemars(length(max = 256))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub datacenter: Option<String>,
}

/// How DNS answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryDns {
    /// How long an answer may be kept, such as `10s` or `1m30s`. Default: what Consul has configured.
    #[schemars(length(max = 32))]
    #[x_kube(validation = schema::duration("ttl"))]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl: Option<String>,
}

/// How a query answers names that begin with its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryTemplate {
    /// `name_prefix_match`: of the templates whose name begins what is looked up, the longest answers.
    #[serde(rename = "type")]
    pub kind: TemplateKind,
    /// A regular expression (RE2) whose groups the texts of the query may use, as `${match(1)}`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = schema::regular_expression())]
    #[serde(
        default,
        deserialize_with = "schema::some_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub regexp: Option<String>,
    /// Whether tags that come out empty are left out. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_empty_tags: Option<bool>,
}

/// The type of a template: `name_prefix_match`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateKind {
    /// By how a name begins.
    #[default]
    NamePrefixMatch,
}

/// A [`QuerySpec`] in a list, where the name tells one from the other.
pub(super) fn named(generator: &mut SchemaGenerator) -> Schema {
    let mut items = QuerySpec::json_schema(generator);
    items.insert("required".to_owned(), serde_json::json!(["name"]));
    schemars::json_schema!({"type": "array", "maxItems": MAX_QUERIES, "items": items})
}

/// What Lictor last saw and did. Written by Lictor only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreparedQueryStatus {
    /// The generation of the spec that this status is about.
    #[schemars(schema_with = "schema::index")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The name in Consul; absent while the object cannot be understood.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id in Consul, which stays for as long as the query is there.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ready (Consul equals what this object claims), Reconciling, Stalled.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulState>,
    /// The last error, while it lasts.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
