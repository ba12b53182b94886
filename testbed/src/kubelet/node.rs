use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::now;

/// A node to be created, and then the handle with which its status is written.
#[derive(Debug, Clone)]
pub struct TestNode {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    addresses: Vec<Value>,
}

impl TestNode {
    /// A node without addresses.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            addresses: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an address; `kind` is `InternalIP`, `ExternalIP`, `Hostname` ...
    #[must_use]
    pub fn address(mut self, kind: &str, address: &str) -> Self {
        self.addresses
            .push(json!({"type": kind, "address": address}));
        self
    }

    /// Creates it, with its addresses and Ready.
    pub async fn create(&self, client: &Client) -> Result<Node> {
        let node = serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "status": {"addresses": self.addresses, "conditions": [ready_condition("True")]},
        }))?;
        let created = self.api(client).create(&PostParams::default(), &node).await;
        created.with_context(|| format!("cannot create the node {}", self.name))
    }

    /// Sets its Ready condition: `True`; `False`, which its kubelet says itself; or `Unknown`, which
    /// the control plane says of a kubelet that is silent.
    pub async fn ready(&self, client: &Client, status: &str) -> Result<Node> {
        self.patch_status(client, json!({"conditions": [ready_condition(status)]}))
            .await
    }

    /// Gives it other addresses, as pairs of kind and address.
    pub async fn set_addresses(&self, client: &Client, addresses: &[(&str, &str)]) -> Result<Node> {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(kind, address)| json!({"type": kind, "address": address}))
            .collect();
        self.patch_status(client, json!({"addresses": addresses}))
            .await
    }

    /// Deletes it; its pods stay, since nothing here collects them.
    pub async fn delete(&self, client: &Client) -> Result<()> {
        self.api(client)
            .delete(&self.name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    async fn patch_status(&self, client: &Client, status: Value) -> Result<Node> {
        let patch = Patch::Merge(json!({"status": status}));
        let sent = self
            .api(client)
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await;
        sent.with_context(|| format!("no status for the node {}", self.name))
    }

    #[allow(clippy::unused_self, reason = "reads like the other handles")]
    fn api(&self, client: &Client) -> Api<Node> {
        Api::all(client.clone())
    }
}

fn ready_condition(status: &str) -> Value {
    let reason = match status {
        "True" => "KubeletReady",
        "False" => "KubeletNotReady",
        _ => "NodeStatusUnknown",
    };
    json!({
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": now(),
        "lastHeartbeatTime": now(),
    })
}
