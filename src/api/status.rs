//! Pieces that the statuses of several kinds share.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsulState {
    /// The Consul datacenter.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// `ModifyIndex` of the last write for this object.
    #[schemars(schema_with = "schema::index")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}
