//! Plays the scheduler and the kubelet, of which a bed has none.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use lictor_testbed::kubelet::{TestNode, TestPod};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Name, address and zone of the nodes.
const NODES: [(&str, &str, &str); 2] = [
    ("node-a", "192.168.10.11", "eu-1a"),
    ("node-b", "192.168.10.12", "eu-1b"),
];
/// The annotation by which a person lets a pod fail its readiness.
pub const READY: &str = "demo/ready";
/// How long containers take to end.
const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(250);

/// All nodes and their pods.
pub struct Kubelet {
    client: Client,
    /// Pods bound so far: the next one's address and node follow from it.
    bound: u8,
    /// Since when pods are terminating, by uid.
    terminating: HashMap<String, Instant>,
}

impl Kubelet {
    /// Creates the nodes.
    pub async fn start(client: &Client) -> Result<Self> {
        for (name, address, zone) in NODES {
            let node = TestNode::new(name)
                .label("topology.kubernetes.io/region", "eu-1")
                .label("topology.kubernetes.io/zone", zone)
                .address("InternalIP", address);
            node.create(client).await?;
        }
        Ok(Self {
            client: client.clone(),
            bound: 0,
            terminating: HashMap::new(),
        })
    }

    /// The names of the nodes.
    pub fn nodes() -> String {
        NODES.map(|(name, _, _)| name).join(", ")
    }

    /// Binds the pods of a namespace that have no node yet, and returns them in the order of their
    /// names, not running.
    pub async fn schedule(&mut self, namespace: &str) -> Result<Vec<TestPod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut scheduled = Vec::new();
        for pod in pods.list(&ListParams::default()).await? {
            if node_of(&pod).is_none() {
                scheduled.push(self.bind(&pod).await?);
            }
        }
        Ok(scheduled)
    }

    /// Lets all pods of the cluster run and end as a cluster would, without end.
    pub async fn run(mut self) -> Result<()> {
        loop {
            let pods: Api<Pod> = Api::all(self.client.clone());
            for pod in pods.list(&ListParams::default()).await? {
                // A pod may be gone or changed since the list: it gets another turn.
                let _ = self.tend(&pod).await;
            }
            sleep(PAUSE).await;
        }
    }

    async fn tend(&mut self, pod: &Pod) -> Result<()> {
        let handle = handle(pod);
        if pod.metadata.deletion_timestamp.is_some() {
            let uid = pod.uid().unwrap_or_default();
            let since = *self
                .terminating
                .entry(uid.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() >= GRACE {
                handle.finish_deletion(&self.client).await?;
                self.terminating.remove(&uid);
            }
            return Ok(());
        }
        if node_of(pod).is_none() {
            let bound = self.bind(pod).await?;
            bound.running_ready(&self.client).await?;
            return Ok(());
        }
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let wanted = pod
            .annotations()
            .get(READY)
            .is_none_or(|ready| ready != "false");
        match (ready, wanted) {
            (true, false) => {
                let spec = pod.spec.as_ref().context("a pod without spec")?;
                let container = spec.containers.first().context("a pod without container")?;
                handle.not_ready(&self.client, &container.name).await?;
            }
            (false, true) => {
                handle.running_ready(&self.client).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn bind(&mut self, pod: &Pod) -> Result<TestPod> {
        let (node, host, _) = NODES[usize::from(self.bound) % NODES.len()];
        self.bound = self.bound.wrapping_add(1);
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        pods.create_subresource::<_, Value>("binding", &name, &PostParams::default(), &binding)
            .await
            .with_context(|| format!("cannot bind the pod {name}"))?;
        let handle = TestPod::of(pod).node(node).host_ips([host]);
        Ok(handle.ip(&format!("10.244.0.{}", 9 + self.bound)))
    }
}

fn handle(pod: &Pod) -> TestPod {
    let node = node_of(pod);
    let host = NODES.iter().find(|(name, _, _)| Some(*name) == node);
    TestPod::of(pod).host_ips(host.map(|(_, host, _)| *host))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}
