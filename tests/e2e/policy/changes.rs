//! Policies that come, change, break and vanish.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{EXCLUSIVE, bed};
use crate::support::schema::{set_versions, versions, without_rules};
use crate::support::{Annotated as _, Kind, Oracle, Scene, until};

const CRD: &str = "registrationpolicies.lictor.io";

#[tokio::test]
async fn a_policy_counts_from_the_moment_when_it_comes_or_changes() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE, "--log-format=json"]).await?;
    let (web, api) = (scene.named("web"), scene.named("api"));
    for (pod, service) in [
        ("web-0", &web),
        ("api-0", &api),
        ("api-1", &api),
        ("api-2", &api),
    ] {
        let pod = scene.pod(pod).lictor("service", service);
        pod.create_ready(&scene.client).await?;
    }
    scene.status(&web, "web-0", "passing").await?;
    scene.status(&api, "api-2", "passing").await?;
    let ids = ["api-0", "api-1", "api-2"].map(|pod| scene.id(&api, pod));
    let oracle = Oracle::watch(&scene.consul, &api, &ids, &[]).await?;

    // What it does not allow goes as what is found missing does.
    scene.policy("p", json!({"services": [api]})).await?;
    scene.event("NotAllowed", "web-0", "(p)").await?;
    scene.withdrawn(&web, "web-0").await?;
    until("the audit log to say why", async || {
        let log = lictor.log();
        let line = log.lines().find(|line| line.contains("\"audit\""));
        let said = line.is_some_and(|line| line.contains("is not allowed to"));
        ensure!(said, "{line:?}");
        anyhow::Ok(())
    })
    .await?;
    scene.pod_refused("web-1", &web, "(p)").await?;
    // It changes, and another one comes: one of them is enough.
    scene.policy("q", json!({"services": [web]})).await?;
    scene.status(&web, "web-0", "passing").await?;
    scene.status(&web, "web-1", "passing").await?;

    // Health goes on all the same where it is paused, and so does the judging.
    scene.annotate("web-1", &[("paused", Some("true"))]).await?;
    scene.no_policy("q").await?;
    scene.withdrawn(&web, "web-0").await?;
    scene.withdrawn(&web, "web-1").await?;
    oracle.verdict().await
}

/// A policy that forbids much at once is more likely a mistake than meant.
#[tokio::test]
async fn what_a_policy_takes_away_at_once_is_held_by_the_guard() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let web = scene.named("web");
    let names: Vec<String> = (0..12).map(|number| format!("web-{number}")).collect();
    for name in &names {
        let pod = scene.pod(name).lictor("service", &web);
        pod.create_ready(&scene.client).await?;
    }
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    scene.status(&web, "web-11", "passing").await?;
    lictor.idle().await?;
    let ids: Vec<String> = names.iter().map(|name| scene.id(&web, name)).collect();
    let oracle = Oracle::watch(&scene.consul, &web, &ids, &[]).await?;
    scene.policy("p", json!({"services": ["other"]})).await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;
    scene.event("NotAllowed", "web-0", "kept").await?;
    scene.policy("p", json!({"services": ["*"]})).await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    lictor.idle().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn policies_that_vanish_withdraw_nothing_and_admit_nothing_new() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let (web, api) = (scene.named("web"), scene.named("api"));
    scene
        .policy("p", json!({"services": [web], "destinations": ["*"]}))
        .await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    let pod = scene.pod("web-0").lictor("service", &web);
    pod.create_ready(&scene.client).await?;
    let sources = json!([{"name": "web", "action": "allow"}]);
    let spec = json!({"destination": {"name": "*"}, "sources": sources});
    scene.create(Kind::Intention, "all", spec).await?;
    scene.allowed(Kind::Intention, "all").await?;
    scene.status(&web, "web-0", "passing").await?;
    let ids = [scene.id(&web, "web-0")];
    let oracle = Oracle::watch(&scene.consul, &web, &ids, &[]).await?;
    scene.no_policy("p").await?;
    scene.pod_refused("api-0", &api, "restart").await?;
    // What was allowed goes on.
    let pod = scene.pod("web-1").lictor("service", &web);
    pod.create_ready(&scene.client).await?;
    scene.status(&web, "web-1", "passing").await?;
    scene.allowed(Kind::Intention, "all").await?;
    lictor.stop().await?;
    let _lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    scene.status(&api, "api-0", "passing").await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_policy_that_is_not_understood_withdraws_nothing_and_admits_nothing_new() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let (web, api) = (scene.named("web"), scene.named("api"));
    scene.policy("p", json!({"services": [web, api]})).await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    let pod = scene.pod("web-0").lictor("service", &web);
    pod.create_ready(&scene.client).await?;
    scene.status(&web, "web-0", "passing").await?;
    let ids = [scene.id(&web, "web-0")];
    let oracle = Oracle::watch(&scene.consul, &web, &ids, &[]).await?;

    let strict = versions(&scene, CRD).await?;
    let mut lax = strict.clone();
    without_rules(&mut lax, &["x-kubernetes-validations"]);
    set_versions(&scene, CRD, &lax).await?;
    until("the lax schema to be in force", async || {
        scene.policy("p", json!({"services": ["{ns}-*"]})).await
    })
    .await?;
    set_versions(&scene, CRD, &strict).await?;
    scene.pod_refused("api-0", &api, "spec.services").await?;
    let pod = scene.pod("web-1").lictor("service", &web);
    pod.create_ready(&scene.client).await?;
    scene.status(&web, "web-1", "passing").await?;
    // Also after a restart: what Consul has is what was allowed.
    lictor.stop().await?;
    let _lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    pod.not_ready(&scene.client, "app").await?;
    scene.status(&web, "web-1", "critical").await?;
    scene.pod_refused("api-1", &api, "spec.services").await?;
    scene.policy("p", json!({"services": [web, api]})).await?;
    scene.status(&api, "api-0", "passing").await?;
    scene.status(&api, "api-1", "passing").await?;
    oracle.verdict().await
}
