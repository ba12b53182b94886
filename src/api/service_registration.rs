//! `ServiceRegistration`: pods, or addresses outside the cluster, as instances of a Consul service.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::conditions::Condition;
use super::selector::LabelSelector;

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
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRegistrationSpec {
    /// Name of the Consul service: a lower-case DNS label. Default: the name of this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Registers the pods of this namespace that it chooses. Exactly one of selector and endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Registers these addresses, which lie outside the cluster. Exactly one of selector and endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<Endpoint>>,
    /// Port of the pods: the name of a container port, or a number. Default: the first declared
    /// container port. Only with selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Which address of a pod is registered: `PodIP` (default) or `HostIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressFrom>,
    /// Tags of every instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata of every instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Weights for DNS SRV answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Whether tags may be changed in Consul: if true, they are written at creation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_tag_override: Option<bool>,
    /// How the state of a pod becomes the health of its instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// An address outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the endpoint within this object: a lower-case DNS label.
    pub name: String,
    /// IP address or host name.
    pub address: String,
    /// Port. Default: 0, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Tags of this endpoint, beside those of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata of this endpoint; wins over that of all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// The port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Port {
    /// A number, declared by a container or not.
    Number(u16),
    /// The name of a declared container port.
    Name(String),
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

/// Which address of a pod is registered.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passing: Option<u16>,
    /// While warning. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<u16>,
}

/// How the state of a pod becomes the health of its instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Health of a pod that is not ready: Critical (default) or Warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<NotReady>,
    /// Health of a pod that is terminating: Critical (default), Warning, or Deregister.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminating: Option<Terminating>,
}

/// Health of a pod that is not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NotReady {
    /// Left out of discovery.
    #[default]
    Critical,
    /// Still discovered, with the weight for warning.
    Warning,
}

/// What becomes of a pod that is terminating.
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

/// What Lictor last saw and did. Written by Lictor only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRegistrationStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The Consul service in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Ready (Consul equals what this object claims), Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Instances of this registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Instances>,
    /// Where it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulState>,
    /// The last error, while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Counts of instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instances {
    /// Instances that this object asks for.
    pub desired: u32,
    /// Those of them that Consul has.
    pub registered: u32,
    /// Those in Consul that pass all checks, the node's included.
    pub passing: u32,
    /// Those in Consul whose worst check warns.
    pub warning: u32,
    /// Those in Consul with a critical check.
    pub critical: u32,
    /// `registered/desired`, for `kubectl get`.
    pub summary: String,
}

/// Where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsulState {
    /// The Consul datacenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// `ModifyIndex` of the last write for this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}
