//! A bed with nodes and pods on it.

use std::{path::PathBuf, process::Output, time::Duration};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::DeleteParams};
use lictor_testbed::{
    Bed, BedOptions, ConsulApi,
    kubelet::{self, TestNode, TestPod},
    wait,
};

use super::{
    Setup,
    subject::{self, Lictor},
};

/// The name of the cluster.
pub const CLUSTER: &str = "bench";
/// The namespace of all pods.
pub const NAMESPACE: &str = "shop";
/// The port of all pods.
pub const PORT: u16 = 8080;
/// Services that the pods are spread over.
const SERVICES: usize = 20;
/// Calls of the API server at once.
const CONCURRENCY: usize = 24;

/// A pod, and the instance that it must become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// Its number; none is used twice.
    pub number: usize,
    /// The number of its node.
    pub node: usize,
}

impl Instance {
    /// The Consul node that stands for a node.
    pub fn consul_node(node: usize) -> String {
        format!("lictor-{CLUSTER}--node-{node:03}")
    }

    /// The id in Consul.
    pub fn id(&self) -> String {
        format!("{CLUSTER}.{NAMESPACE}.{}.{}", self.service(), self.name())
    }

    /// The name of the pod.
    pub fn name(&self) -> String {
        format!("web-{:05}", self.number)
    }

    /// The service in Consul.
    pub fn service(&self) -> String {
        format!("service-{:02}", self.number % SERVICES)
    }

    /// The address.
    pub fn ip(&self) -> String {
        let Self { number, .. } = self;
        format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)
    }

    /// The pod.
    pub fn pod(&self) -> TestPod {
        pod(&self.name(), &self.service(), self.node, &self.ip())
    }
}

/// A pod with the annotations and labels that a pod of a Deployment may well have.
pub fn pod(name: &str, service: &str, node: usize, ip: &str) -> TestPod {
    TestPod::new(NAMESPACE, name)
        .node(&format!("node-{node:03}"))
        .label("app.kubernetes.io/name", service)
        .label("app.kubernetes.io/part-of", "shop")
        .label("pod-template-hash", "5d4f8c7b9")
        .annotation("lictor.io/service", service)
        .annotation(
            "lictor.io/tags",
            "v1,${pod.labels['app.kubernetes.io/part-of']}",
        )
        .annotation("lictor.io/meta", "team=checkout")
        .annotation("prometheus.io/scrape", "true")
        .port("http", PORT)
        .ip(ip)
}

/// A bed with nodes.
pub struct Scene {
    /// The servers.
    pub bed: Bed,
    /// A client that may do everything.
    pub kube: Client,
    /// A look at Consul.
    pub consul: ConsulApi,
    /// How many nodes there are.
    pub nodes: usize,
    lictor: PathBuf,
}

impl Scene {
    /// Starts the servers and creates the CRDs, the namespace and the nodes.
    pub async fn start(setup: &Setup, nodes: usize) -> Result<Self> {
        let bed = Bed::start(BedOptions::default()).await?;
        let kube = bed.kube_client()?;
        let consul = bed.consul()?;
        bed.kubectl_apply(&subject::crds(&setup.lictor).await?)
            .await?;
        // A kind that was created a moment ago is refused at first, which no restart would see.
        wait::until("the new kinds", Duration::from_secs(30), async || {
            let kinds = "serviceregistrations,intentions,preparedqueries,registrationpolicies";
            bed.kubectl(&["get", kinds, "--all-namespaces"]).await
        })
        .await?;
        bed.kubectl(&["create", "namespace", NAMESPACE]).await?;
        kubelet::for_each(0..nodes, CONCURRENCY, async |node| {
            let ip = format!("172.31.{}.{}", node >> 8, node & 255);
            TestNode::new(&format!("node-{node:03}"))
                .label("topology.kubernetes.io/region", "here")
                .label("topology.kubernetes.io/zone", "here-a")
                .address("InternalIP", &ip)
                .create(&kube)
                .await
                .map(drop)
        })
        .await?;
        Ok(Self {
            bed,
            kube,
            consul,
            nodes,
            lictor: setup.lictor.clone(),
        })
    }

    /// Pods with these numbers, evenly on all nodes; they are not created yet.
    pub fn instances(&self, numbers: std::ops::Range<usize>) -> Vec<Instance> {
        let node = |number| number % self.nodes;
        numbers
            .map(|number| Instance {
                number,
                node: node(number),
            })
            .collect()
    }

    /// Creates pods, running and ready.
    pub async fn create(&self, instances: &[Instance]) -> Result<()> {
        kubelet::create_all(&self.kube, instances.iter().map(Instance::pod), CONCURRENCY).await
    }

    /// Deletes pods at once.
    pub async fn delete(&self, instances: &[Instance]) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.kube.clone(), NAMESPACE);
        let now = DeleteParams::default().grace_period(0);
        kubelet::for_each(instances.iter(), CONCURRENCY, async |instance| {
            pods.delete(&instance.name(), &now).await?;
            Ok(())
        })
        .await
    }

    /// Starts lictor.
    pub fn lictor(&self) -> Result<Lictor> {
        self.lictor_with(&[])
    }

    /// The same with more arguments.
    pub fn lictor_with(&self, more: &[&str]) -> Result<Lictor> {
        Lictor::start(&self.lictor, &self.bed, more)
    }

    /// What another command of lictor prints.
    pub async fn output(&self, name: &str, more: &[&str]) -> Result<Output> {
        subject::output(&self.lictor, &self.bed, name, more).await
    }

    /// The number of entries in Consul's raft log.
    pub async fn raft_index(&self) -> Result<f64> {
        let this = self.consul.get("/v1/agent/self").await?;
        let index = this["Stats"]["raft"]["last_log_index"].as_str();
        Ok(index.unwrap_or_default().parse()?)
    }
}
