//! What Consul must hold, worked out from the pods alone, and whether it does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lictor_testbed::ConsulApi;
use serde_json::Value;

use super::scene::{CLUSTER, Instance, PORT};

/// Between two looks at the same node: seldom enough to leave Consul to the one that is measured.
const LOOK: Duration = Duration::from_millis(10);

/// The instances that Consul must hold, all passing, and no others of ours.
#[derive(Debug)]
pub struct Expected {
    /// Consul node -> service id -> instance.
    nodes: BTreeMap<String, BTreeMap<String, Instance>>,
}

impl Expected {
    /// All these, and on these Kubernetes nodes nothing else.
    pub fn of(nodes: usize, instances: &[Instance]) -> Self {
        let mut expected: BTreeMap<String, BTreeMap<String, Instance>> = (0..nodes)
            .map(|node| (Instance::consul_node(node), BTreeMap::new()))
            .collect();
        for instance in instances {
            expected
                .entry(Instance::consul_node(instance.node))
                .or_default()
                .insert(instance.id(), *instance);
        }
        Self { nodes: expected }
    }

    /// Waits until Consul holds exactly this, and gives the moment at which that was seen.
    ///
    /// While it waits, node after node is looked at until its readiness checks are right: nothing
    /// changes a node back afterwards, so that no node is read more often than needed and Consul is
    /// left to the one that is measured. Then all is compared.
    pub async fn wait(&self, consul: &ConsulApi, deadline: Duration) -> Result<Instant> {
        let limit = Instant::now() + deadline;
        for (node, expected) in &self.nodes {
            while !Self::looks_right(consul, node, expected).await? {
                if Instant::now() > limit {
                    let seen = self.verify(consul).await;
                    bail!("{node} is not exact after {deadline:?}: {seen:?}");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        let seen = Instant::now();
        self.verify(consul).await?;
        Ok(seen)
    }

    async fn looks_right(
        consul: &ConsulApi,
        node: &str,
        expected: &BTreeMap<String, Instance>,
    ) -> Result<bool> {
        let checks = consul.get(&format!("/v1/health/node/{node}")).await?;
        let mut right = 0;
        for check in checks.as_array().into_iter().flatten() {
            let service = text(check, "ServiceID");
            if service.is_empty() {
                continue;
            }
            if !expected.contains_key(service) || check["Status"] != "passing" {
                return Ok(false);
            }
            right += 1;
        }
        Ok(right == expected.len())
    }

    /// Compares all that Consul holds of ours; an error says what differs.
    pub async fn verify(&self, consul: &ConsulApi) -> Result<()> {
        let nodes = consul.get("/v1/catalog/nodes?consistent").await?;
        let prefix = format!("lictor-{CLUSTER}-");
        let nodes = nodes.as_array().context("no list of nodes")?.iter();
        let nodes = nodes.map(|node| text(node, "Node")).collect::<Vec<_>>();
        for node in nodes.iter().filter(|node| node.starts_with(&prefix)) {
            if !self.nodes.contains_key(*node) {
                bail!("{node} should not be there");
            }
        }
        for (node, expected) in &self.nodes {
            if expected.is_empty() && !nodes.contains(&node.as_str()) {
                continue;
            }
            Self::verify_node(consul, node, expected)
                .await
                .with_context(|| format!("on {node}"))?;
        }
        Ok(())
    }

    async fn verify_node(
        consul: &ConsulApi,
        node: &str,
        expected: &BTreeMap<String, Instance>,
    ) -> Result<()> {
        let services = consul
            .get(&format!("/v1/catalog/node-services/{node}?consistent"))
            .await?;
        let services = services["Services"].as_array().context("no services")?;
        if services.len() != expected.len() {
            bail!("{} services instead of {}", services.len(), expected.len());
        }
        for service in services {
            let id = text(service, "ID");
            let instance = expected.get(id).with_context(|| format!("stray {id}"))?;
            let right = text(service, "Service") == instance.service()
                && text(service, "Address") == instance.ip()
                && service["Port"] == PORT
                && service["Meta"]["lictor-cluster"] == CLUSTER;
            if !right {
                bail!("{id} is wrong: {service}");
            }
        }
        if !Self::looks_right(consul, node, expected).await? {
            bail!("the readiness checks are wrong");
        }
        Ok(())
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
