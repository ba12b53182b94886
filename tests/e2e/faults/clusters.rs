//! Whole clusters and namespaces that go.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use lictor_testbed::kubelet::{TestPod, create_all, for_each};
use tokio::time::Instant;

use super::settle;
use crate::support::{Annotated as _, Oracle, Scene, until};

/// What Consul holds on the node of a cluster.
fn held(scene: &Scene) -> Vec<String> {
    let node = scene.consul_node();
    ["catalog", "health"]
        .map(|api| format!("/v1/{api}/node/{node}?consistent"))
        .into()
}

#[tokio::test]
async fn what_happens_to_one_cluster_does_not_touch_the_other() -> Result<()> {
    let (lost, other) = (Scene::new().await?, Scene::new().await?);
    let names = ["web-0", "web-1", "web-2"];
    let first = lost.lictor().await?;
    let second = other.lictor().await?;
    settle(&lost, &names).await?;
    let others = settle(&other, &names).await?;
    second.idle().await?;
    let foreign: Vec<_> = held(&other)
        .into_iter()
        .chain(super::foreign(&other))
        .collect();
    let oracle = Oracle::watch(&other.consul, "web", &others, &foreign).await?;

    // Killed, and its pods go: nobody removes what it held, the other least of all.
    first.kill();
    for name in &names[..2] {
        lost.pod(name).finish_deletion(&lost.client).await?;
    }
    second.stop().await?;
    let second = other.lictor().await?;
    for name in names {
        lost.status("web", name, "passing").await?;
    }
    // It comes back, and loses all.
    let first = lost.lictor().await?;
    lost.gone("web", "web-0").await?;
    lost.gone("web", "web-1").await?;
    lost.pod("web-2").finish_deletion(&lost.client).await?;
    lost.gone("web", "web-2").await?;
    first.stop().await?;
    second.idle().await?;
    oracle.verdict().await?;
    other.barrier().await
}

/// Pods of the namespace that goes.
const MANY: usize = 500;
/// What Lictor may take after the last of them.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Far more than the guard lets go of what is only found missing: this was seen.
#[tokio::test]
async fn a_namespace_that_is_deleted_goes_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &["web-0", "web-1"]).await?;
    let namespace = format!("{}-large", scene.namespace);
    scene.create_namespace(&namespace).await?;
    let pod = |number: usize| {
        TestPod::new(&namespace, &format!("large-{number:03}"))
            .node(&scene.node)
            .ip(&format!("10.60.{}.{}", number / 250, number % 250 + 1))
            .port("http", 8080)
            .lictor("service", "web")
    };
    create_all(&scene.client, (0..MANY).map(pod), 16).await?;
    let prefix = format!("{}.{namespace}.", scene.cluster);
    let left = async |count: usize| {
        until(&format!("{count} instances"), async || {
            let all = scene.consul.health("web").await?;
            let id = |one: &serde_json::Value| one["Service"]["ID"].as_str().map(str::to_owned);
            let ids = all.iter().filter_map(id);
            let there = ids.filter(|id| id.starts_with(&prefix)).count();
            ensure!(there == count, "there are {there}");
            Ok(())
        })
        .await
    };
    left(MANY).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &super::foreign(&scene)).await?;
    let began = Instant::now();
    let namespaces = Api::<Namespace>::all(scene.client.clone());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await?;
    // The kubelets' part.
    let end = async |pod: TestPod| pod.finish_deletion(&scene.client).await;
    for_each((0..MANY).map(pod), 16, end).await?;
    let gone = Instant::now();
    left(0).await?;
    println!(
        "{MANY} pods: {:?}, instances {:?} later",
        gone - began,
        gone.elapsed()
    );
    ensure!(gone.elapsed() < AT_ONCE, "{:?}", gone.elapsed());
    let held = lictor.metric("lictor_held_deletes", &[]).await?;
    ensure!(held == 0.0, "{held} are held");
    scene.barrier().await?;
    oracle.verdict().await
}
