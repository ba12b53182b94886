//! A release whose Deployment runs here, as the cluster `prod`, with its own rights in Kubernetes and in
//! Consul and no others.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::PostParams};
use lictor_testbed::{
    Bed, BedOptions,
    kubelet::{TestNode, TestPod},
};
use serde_json::{Value, json};

use super::{Place, Started, container_there};
use crate::support::{Lictor, RELEASE, acl_policy, condition, until};

pub struct Release {
    pub bed: Bed,
    token: String,
}

impl Release {
    /// On a bed of its own, where nothing is installed yet.
    pub async fn on_bed(options: BedOptions) -> Result<Self> {
        let bed = Bed::start(BedOptions {
            consul_acls: true,
            ..options
        })
        .await?;
        let policy = acl_policy("prod").await?;
        let token = bed.consul()?.create_token(&policy).await?.secret;
        let node = TestNode::new("node-a").address("InternalIP", "192.168.7.1");
        node.create(&bed.kube_client()?).await?;
        Ok(Self { bed, token })
    }

    /// Installs a chart with these values, and those that say where it is.
    pub async fn install(&self, chart: &str, mut values: Value) -> Result<()> {
        values["cluster"] = "prod".into();
        values["consul"] = json!({
            "address": self.bed.consul_addr(), "tokenSecret": {"name": "consul"},
        });
        let values = self.file("values.json", &values.to_string())?;
        let install = [
            "install",
            "lictor",
            chart,
            "--create-namespace",
            "--values",
            &values,
        ];
        self.helm(&install).await.map(drop)
    }

    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        super::helm(&self.bed, args).await
    }

    /// What `kubectl get` shows.
    pub async fn json(&self, what: &[&str]) -> Result<Value> {
        let args = [&["get", "--output=json"], what].concat();
        Ok(serde_json::from_str(&self.bed.kubectl(&args).await?)?)
    }

    /// A pod of its Deployment as that is now.
    pub async fn run(&self, pod: &str) -> Result<Lictor> {
        let container = container_there(&self.bed).await?;
        let account = self.bed.service_account_kubeconfig(RELEASE, "lictor");
        let kubeconfig = account.await?;
        let place = Place {
            folder: self.bed.dir(),
            kubeconfig: &kubeconfig,
            token: Some(&self.token),
            pod: pod.to_owned(),
        };
        let Started { args, env } = place.started(&container)?;
        let log = self.bed.dir().join(format!("{pod}.log"));
        let mut lictor = Lictor::start(&log, &args, &env).await?;
        lictor.ready().await?;
        Ok(lictor)
    }

    /// Another pod in the place of one, as a rolling update does it.
    pub async fn replaced(&self, old: Lictor, pod: &str) -> Result<Lictor> {
        let new = self.run(pod).await?;
        old.stop().await?;
        new.shows("lictor_leader", 1.0).await?;
        new.idle().await?;
        Ok(new)
    }

    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let namespaces = Api::<Namespace>::all(self.bed.kube_client()?);
        let created = namespaces.create(&PostParams::default(), &object).await;
        created.map(drop).context("no namespace")
    }

    /// Waits until Consul holds what all objects of a namespace claim.
    pub async fn all_ready(&self, namespace: &str) -> Result<()> {
        until("all to be ready", async || {
            // For a moment after a change of their CRD objects are not served.
            let objects = ["sreg,intent,pq", "--namespace", namespace];
            let objects = self.json(&objects).await?;
            let objects = objects["items"].as_array().context("no list")?;
            ensure!(!objects.is_empty(), "there is none");
            for object in objects {
                let status = &object["status"];
                let current = status["observedGeneration"] == object["metadata"]["generation"];
                let ready = condition(status, "Ready").0 == "True";
                ensure!(current && ready, "{object:#}");
            }
            Ok(())
        })
        .await
    }

    /// A file in the folder of the bed.
    pub fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.bed.dir().join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }
}

/// A pod on the node of a release, with a port `http`.
pub fn pod(namespace: &str, name: &str, ip: &str) -> TestPod {
    let pod = TestPod::new(namespace, name).node("node-a").ip(ip);
    pod.port("http", 8080)
}
