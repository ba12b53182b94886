//! Each way to install, by the very commands that the documentation has, to services that are registered.
//!
//! What there is not are nodes: a stand-in for the scheduler and the kubelet runs pods, and Lictor's own
//! process runs here, as its Deployment says.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Binding, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use lictor_testbed::kubelet::{TestNode, TestPod};
use lictor_testbed::{Bed, BedOptions};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::sleep;

use super::{Place, Started, container_there};
use crate::support::{Lictor, RELEASE, run_in, until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../../../README.md");
const START: &str = include_str!("../../../docs/start.md");
const INSTALL: &str = include_str!("../../../docs/install.md");

/// The blocks of commands under a heading.
fn blocks<'a>(page: &'a str, heading: &str) -> Result<Vec<&'a str>> {
    let (_, under) = page
        .split_once(&format!("\n## {heading}\n"))
        .with_context(|| format!("no heading {heading}"))?;
    let under = under.split("\n## ").next().unwrap_or_default();
    let blocks = under.split("```sh\n").skip(1);
    Ok(blocks
        .filter_map(|block| block.split("```").next())
        .collect())
}

/// Someone at a shell, in a clone of the repository.
struct Reader {
    bed: Bed,
}

impl Reader {
    async fn new() -> Result<Self> {
        let bed = Bed::start(BedOptions {
            workloads: true,
            ..BedOptions::default()
        })
        .await?;
        let node = TestNode::new("node-a").address("InternalIP", "192.168.7.1");
        node.create(&bed.kube_client()?).await?;
        Ok(Self { bed })
    }

    /// Types commands, with the addresses of the bed in the place of those of the text.
    async fn types(&self, commands: &str) -> Result<String> {
        let consul = self.bed.consul_addr();
        let commands = commands
            .replace("http://consul.example.com:8500", &consul)
            .replace("http://CONSUL:8500", &consul)
            .replace("=NAME", "=prod-eu")
            .replace("=REGISTRY/", "=registry.example.com/");
        let helm = self.bed.helm_command();
        let tools = self.bed.tools().kubectl.parent().context("no folder")?;
        let path = std::env::var("PATH")?;
        let mut shell = Command::new("bash");
        let environment = helm.as_std().get_envs();
        shell
            .args(["-euo", "pipefail", "-c", &commands])
            .envs(environment.filter_map(|(name, value)| Some((name, value?))))
            .env("PATH", format!("{}:{path}", tools.display()))
            .env("CONSUL_HTTP_ADDR", consul)
            .current_dir(ROOT)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = shell.output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{commands}\n{said}{error}");
        Ok(said)
    }

    /// Runs all pods as a scheduler and kubelets do, without end.
    async fn run_pods(&self) -> Result<()> {
        let client = self.bed.kube_client()?;
        let mut number = 0_u8;
        loop {
            for pod in Api::<Pod>::all(client.clone())
                .list(&ListParams::default())
                .await?
            {
                if pod.metadata.deletion_timestamp.is_some() {
                    TestPod::of(&pod).finish_deletion(&client).await?;
                    continue;
                }
                let ip = pod.status.as_ref().and_then(|it| it.pod_ip.as_ref());
                if ip.is_none() {
                    // A pod may go at any time.
                    let _ = bind(&client, &pod).await;
                    let handle = TestPod::of(&pod).node("node-a");
                    let handle = handle.ip(&format!("10.8.77.{}", number + 1));
                    if handle.running_ready(&client).await.is_ok() {
                        number += 1;
                    }
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The Deployment's process, once `lictor check` said with its environment that all is well.
    async fn lictor(&self) -> Result<Lictor> {
        let container = container_there(&self.bed).await?;
        let account = self.bed.service_account_kubeconfig(RELEASE, "lictor");
        let place = Place {
            folder: self.bed.dir(),
            kubeconfig: &account.await?,
            token: None,
            pod: "lictor-0".to_owned(),
        };
        let Started { args, mut env } = place.started(&container)?;
        // Nobody resolves the name that Consul's Service has.
        for (name, value) in &mut env {
            if name == "CONSUL_HTTP_ADDR" && value.contains("consul-server.consul.svc") {
                *value = self.bed.consul_addr();
            }
        }
        let (code, said, error) = run_in(&env, &["check"]).await?;
        ensure!(code == Some(0), "{said}{error}");
        let log = self.bed.dir().join("lictor.log");
        let mut lictor = Lictor::start(&log, &args, &env).await?;
        lictor.ready().await?;
        Ok(lictor)
    }

    /// Waits until so many instances of a service pass.
    async fn passing(&self, service: &str, count: usize) -> Result<()> {
        let path = format!("/v1/health/service/{service}?passing");
        until(&format!("{count} of {service}"), async || {
            let seen = self.bed.consul()?.get(&path).await?;
            let seen = seen.as_array().context("not a list")?;
            let ours = seen
                .iter()
                .all(|it| it["Service"]["Meta"]["lictor-cluster"] == "prod-eu");
            ensure!(seen.len() == count && ours, "{seen:#?}");
            Ok(())
        })
        .await
    }

    /// From the command that installs to what docs/start.md has after it.
    async fn goes_through(&self, install: &str) -> Result<()> {
        self.types(install).await?;
        let [.., look] = blocks(START, "In a cluster")?[..] else {
            bail!("no commands")
        };
        // `lictor check` in the pod is that of `lictor` above.
        let (rollout, check) = look.trim().split_once('\n').context("one command")?;
        ensure!(check.ends_with("-- lictor check"), "{check}");
        self.types(rollout).await?;
        let lictor = self.lictor().await?;
        let [create, look, events] = blocks(START, "The first pod")?[..] else {
            bail!("other commands than there were")
        };
        self.types(create).await?;
        self.passing("web", 1).await?;
        let (curl, dig) = look.trim().split_once('\n').context("one command")?;
        ensure!(dig.starts_with("dig "), "{dig}");
        let seen: Value = serde_json::from_str(&self.types(curl).await?)?;
        assert_eq!(seen.as_array().map(Vec::len), Some(1), "{seen:#}");
        // It is sent after the write.
        until("the Event", async || {
            let events = self.types(events).await?;
            ensure!(events.contains("Registered"), "{events}");
            Ok(())
        })
        .await?;
        let [first] = blocks(START, "The first ServiceRegistration")?[..] else {
            bail!("other commands than there were")
        };
        let shown = self.types(first).await?;
        ensure!(shown.contains("2/2"), "{shown}");
        self.passing("api", 2).await?;
        let [delete, uninstall] = blocks(START, "Deleting it again")?[..] else {
            bail!("other commands than there were")
        };
        self.types(delete).await?;
        for service in ["web", "api"] {
            self.passing(service, 0).await?;
        }
        lictor.stop().await?;
        if install.contains("helm install") {
            self.types(uninstall).await?;
        }
        Ok(())
    }
}

/// As a scheduler does it.
async fn bind(client: &kube::Client, pod: &Pod) -> Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let binding = json!({
        "metadata": {"name": pod.name_any(), "namespace": namespace},
        "target": {"kind": "Node", "name": "node-a"},
    });
    let binding: Binding = serde_json::from_value(binding)?;
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let (name, params) = (pod.name_any(), PostParams::default());
    let _: Value = pods
        .create_subresource("binding", &name, &params, &binding)
        .await?;
    Ok(())
}

/// Installs by this command, and goes on as the text does.
async fn by(install: &str) -> Result<()> {
    let reader = Reader::new().await?;
    tokio::select! {
        ended = reader.run_pods() => ended,
        gone = reader.goes_through(install) => gone,
    }
}

#[tokio::test]
async fn by_helm_as_the_first_steps_have_it() -> Result<()> {
    by(blocks(START, "In a cluster")?[0]).await
}

#[tokio::test]
async fn by_helm_as_the_readme_has_it() -> Result<()> {
    by(blocks(README, "Install")?[0]).await
}

#[tokio::test]
async fn by_one_file() -> Result<()> {
    by(blocks(START, "In a cluster")?[1]).await
}

#[tokio::test]
async fn by_kustomize() -> Result<()> {
    let line = |line: &&str| line.starts_with("kubectl apply -k ");
    by(INSTALL.lines().find(line).context("no such command")?).await
}
