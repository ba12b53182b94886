//! What somebody tries who may write objects in one namespace.

use anyhow::{Context as _, Result, ensure};
use kube::api::PostParams;
use lictor_testbed::kubelet::TestPod;
use serde_json::{Value, json};

use super::{EXCLUSIVE, bed, operations};
use crate::support::{Annotated as _, Kind, Scene, condition, until};

/// The namespace of the scene is the one that tries; another one was first.
#[tokio::test]
async fn a_name_of_another_namespace_is_refused_in_every_form() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let shop = format!("{}-shop", scene.namespace);
    scene.create_namespace(&shop).await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    let payment = scene.named("payment");
    let own = scene
        .pod_of(&shop, "p", "10.250.1.1")
        .lictor("service", &payment);
    own.create_ready(&scene.client).await?;
    until("the first to be registered", async || {
        ensure!(scene.instances_of(&payment).await? == 1, "not yet");
        anyhow::Ok(())
    })
    .await?;

    // The service name, by a pod, by a selector and by endpoints.
    scene.pod_refused("thief", &payment, &shop).await?;
    let endpoint = json!([{"name": "a", "address": "10.9.9.9", "port": 1}]);
    let spec = json!({"service": payment, "endpoints": endpoint, "protocol": "http"});
    scene.register("thief", spec).await?;
    let why = scene.refused_registration("thief").await?;
    ensure!(
        why.contains(&shop) && why.contains("RegistrationPolicy"),
        "{why}"
    );
    let spec = json!({"service": payment, "selector": {"matchLabels": {"app": "x"}}});
    scene.register("chosen", spec).await?;
    let pod = scene.pod("chosen").label("app", "x");
    pod.create_ready(&scene.client).await?;
    scene.refused_registration("chosen").await?;
    // The name of its proxies.
    let proxy = format!("{payment}-sidecar-proxy");
    scene.pod_refused("proxy", &proxy, &shop).await?;
    // Destinations.
    let sources = json!([{"name": "thief", "action": "allow"}]);
    for (name, destination) in [("opens", &*payment), ("opens-all", "*")] {
        let spec = json!({"destination": {"name": destination}, "sources": sources});
        scene.create(Kind::Intention, name, spec).await?;
        scene.not_allowed(Kind::Intention, name).await?;
        let entry = scene
            .config_entry("service-intentions", destination)
            .await?;
        ensure!(entry.is_null(), "{entry}");
    }
    // Queries, and templates.
    let template = json!({"type": "name_prefix_match"});
    let begins = scene.named("pay");
    let query = json!({"name": payment, "service": "thief"});
    scene.create(Kind::PreparedQuery, "same", query).await?;
    let query = json!({"name": begins, "service": "thief", "template": template});
    scene.create(Kind::PreparedQuery, "template", query).await?;
    for name in ["same", "template"] {
        scene.not_allowed(Kind::PreparedQuery, name).await?;
    }
    // What another tool registered.
    let taken = scene.named("taken");
    let id = format!("{}.{}.{taken}.taken.a", scene.cluster, scene.namespace);
    let entry = json!({
        "Node": format!("lictor-{}-external", scene.cluster), "Address": "127.0.0.1",
        "NodeMeta": {"external-source": "kubernetes", "lictor-cluster": scene.cluster},
        "Service": {"ID": id, "Service": taken, "Address": "10.7.7.7", "Port": 7},
    });
    scene.by_hand(&entry).await?;
    let spec = json!({"service": taken, "endpoints": endpoint, "adopt": true});
    scene.register("taken", spec).await?;
    let why = scene.refused_registration("taken").await?;
    ensure!(why.contains("spec.adopt"), "{why}");
    let seen = scene.find_id(&taken, &id).await?.context("it is gone")?;
    ensure!(seen.address == "10.7.7.7", "{seen:#?}");

    lictor.idle().await?;
    ensure!(scene.instances_of(&payment).await? == 1);
    let all = scene.consul.get("/v1/query").await?;
    ensure!(!all.to_string().contains("thief"), "{all}");
    let rejections = lictor.metric("lictor_rejections", &[]).await?;
    ensure!(rejections >= 8.0, "{rejections}");

    // An administrator may allow all of it.
    let all = json!({"services": ["*"], "destinations": ["*"], "queries": ["*"], "adopt": "Allow"});
    scene.policy("all", all).await?;
    for name in ["thief", "chosen", "taken"] {
        let ready = |status: &Value| condition(status, "Ready").0 == "True";
        scene.registration(name, ready).await?;
    }
    for name in ["opens", "opens-all"] {
        scene.allowed(Kind::Intention, name).await?;
    }
    for name in ["same", "template"] {
        scene.allowed(Kind::PreparedQuery, name).await?;
    }
    scene.instance(&payment, "thief", |_| true).await?;
    scene.instance(&proxy, "proxy", |_| true).await?;
    let seen = scene
        .instance_id(&taken, &id, |seen| seen.address == "10.9.9.9")
        .await?;
    ensure!(seen.node.ends_with("-external"));
    ensure!(operations(&lictor).await? > 0.0);
    Ok(())
}

/// A pod of the scene that runs under a service account.
async fn pod_as(scene: &Scene, name: &str, service: &str, account: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"lictor.io/service": service}},
        "spec": {
            "nodeName": scene.node, "serviceAccountName": account,
            "containers": [{"name": "app", "image": "example.com/app:1"}],
        },
    });
    let pod = serde_json::from_value(pod)?;
    let created = scene.pods().create(&PostParams::default(), &pod).await?;
    let pod = TestPod::of(&created).ip(&format!("10.250.2.{}", name.len()));
    pod.running_ready(&scene.client).await?;
    Ok(())
}

#[tokio::test]
async fn a_policy_judges_service_accounts_tags_and_checks() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let web = scene.named("web");
    let spec = json!({
        "services": [web, "{namespace}-*"], "requireServiceAccountName": true, "tags": ["v?"],
        "checks": "Deny",
    });
    scene.policy("strict", spec).await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    pod_as(&scene, "named", &web, &web).await?;
    scene.status(&web, "named", "passing").await?;
    pod_as(&scene, "other", &web, "default").await?;
    scene
        .event("NotAllowed", "other", "service account")
        .await?;

    scene.annotate("named", &[("tags", Some("v1"))]).await?;
    scene
        .instance(&web, "named", |seen| seen.tags == ["v1"])
        .await?;
    scene
        .annotate("named", &[("tags", Some("v1,canary"))])
        .await?;
    scene.event("NotAllowed", "named", "canary").await?;
    scene.withdrawn(&web, "named").await?;
    scene.annotate("named", &[("tags", None)]).await?;
    scene.status(&web, "named", "passing").await?;

    let own = format!("{}-api", scene.namespace);
    let spec = json!({
        "service": own, "selector": {"matchLabels": {"app": "none"}},
        "health": {"checks": [{"name": "up", "tcp": {"port": 80}}]},
    });
    scene.register("checked", spec).await?;
    let labels = json!({"metadata": {"labels": {"app": "none"}}});
    let patch = kube::api::Patch::Merge(labels);
    let params = kube::api::PatchParams::default();
    scene.pods().patch("named", &params, &patch).await?;
    // Its service account is not named like that service either.
    scene.refused_registration("checked").await?;
    let endpoint = json!([{"name": "a", "address": "10.9.9.9", "port": 1}]);
    let spec = json!({"service": own, "endpoints": endpoint});
    scene.register("outside", spec).await?;
    let why = scene.refused_registration("outside").await?;
    ensure!(why.contains("service account"), "{why}");
    ensure!(scene.find(&web, "other").await?.is_none());
    lictor.idle().await?;
    Ok(())
}
