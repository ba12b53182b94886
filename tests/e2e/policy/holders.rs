//! Names that belong to the namespace that claimed them first.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{EXCLUSIVE, bed, operations};
use crate::support::{Annotated as _, Kind, Oracle, Scene, condition, until};

pub(super) async fn two(scene: &Scene) -> Result<String> {
    let other = format!("{}-other", scene.namespace);
    scene.create_namespace(&other).await?;
    Ok(other)
}

pub(super) async fn instances(scene: &Scene, service: &str, count: usize) -> Result<()> {
    until("the instances of the service", async || {
        let found = scene.instances_of(service).await?;
        ensure!(found == count, "{found}");
        anyhow::Ok(())
    })
    .await
}

/// A service that another namespace claimed first, with a pod of this address, and that the pod `own` of the
/// scene is refused. Nobody writes any more. Returns its name, and the namespace.
pub(super) async fn refused_to_own(scene: &Scene, ip: &str) -> Result<(String, String)> {
    let other = two(scene).await?;
    let web = scene.named("web");
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    let theirs = scene.pod_of(&other, "theirs", ip).lictor("service", &web);
    theirs.create_ready(&scene.client).await?;
    instances(scene, &web, 1).await?;
    scene.pod_refused("own", &web, &other).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    Ok((web, other))
}

/// The order of claims is remembered, at the price of no write; a name is free when its namespace is gone.
#[tokio::test]
async fn who_was_first_is_remembered_until_the_namespace_is_gone() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    // The younger namespace claims it first.
    let other = two(&scene).await?;
    let web = scene.named("web");
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    let first = scene
        .pod_of(&other, "first", "10.250.3.1")
        .lictor("service", &web);
    first.create_ready(&scene.client).await?;
    instances(&scene, &web, 1).await?;
    scene.pod_refused("second", &web, &other).await?;
    let kept = until("the holder to be kept", async || {
        scene.kept(&web).await?.context("nothing is kept")
    })
    .await?;
    ensure!(kept["holder"] == json!(other), "{kept}");
    lictor.idle().await?;
    lictor.stop().await?;
    let before = scene.dump().await?;
    let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
    scene.event("NotAllowed", "second", &other).await?;
    lictor.idle().await?;
    ensure!(operations(&lictor).await? == 0.0, "a restart writes");
    ensure!(scene.dump().await? == before);
    ensure!(scene.kept(&web).await? == Some(kept));
    lictor.stop().await?;
    let _lictor = scene.lictor_with(&[EXCLUSIVE, "--name-hold=40s"]).await?;

    // Its pod goes: the name is held for a while.
    first.finish_deletion(&scene.client).await?;
    instances(&scene, &web, 0).await?;
    until("the time of the last claim to be kept", async || {
        let kept = scene.kept(&web).await?.context("nothing is kept")?;
        ensure!(kept["namespaces"][&other]["unclaimed"].is_i64(), "{kept}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(scene.find(&web, "second").await?.is_none());
    let args = ["delete", "namespace", &other, "--wait=false"];
    scene.bed.kubectl(&args).await?;
    scene.status(&web, "second", "passing").await?;
    let kept = scene.kept(&web).await?.context("nothing is kept")?;
    ensure!(kept["holder"] == json!(scene.namespace), "{kept}");
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_claims_is_free_after_a_while() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let other = two(&scene).await?;
    let web = scene.named("web");
    let _lictor = scene.lictor_with(&[EXCLUSIVE, "--name-hold=3s"]).await?;
    let first = scene
        .pod_of(&other, "first", "10.250.4.1")
        .lictor("service", &web);
    first.create_ready(&scene.client).await?;
    instances(&scene, &web, 1).await?;
    scene.pod_refused("second", &web, &other).await?;
    first.finish_deletion(&scene.client).await?;
    scene.status(&web, "second", "passing").await?;
    Ok(())
}

/// What is shared when the rule begins goes on, and nobody else joins in.
#[tokio::test]
async fn names_that_are_shared_when_the_rule_begins_stay_shared() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let other = two(&scene).await?;
    let third = format!("{}-third", scene.namespace);
    scene.create_namespace(&third).await?;
    let web = scene.named("web");
    let lictor = scene.lictor_with(&["--default-policy=shared"]).await?;
    let own = scene.pod("own").lictor("service", &web);
    own.create_ready(&scene.client).await?;
    let theirs = scene
        .pod_of(&other, "theirs", "10.250.5.1")
        .lictor("service", &web);
    theirs.create_ready(&scene.client).await?;
    instances(&scene, &web, 2).await?;
    let sources = json!([{"name": "web", "action": "allow"}]);
    let spec = json!({"destination": {"name": "*"}, "sources": sources});
    let all = scene.create(Kind::Intention, "all", spec.clone()).await?;
    let template = json!({"type": "name_prefix_match"});
    let query = json!({"name": scene.named("q"), "service": "x", "template": template});
    scene.create(Kind::PreparedQuery, "template", query).await?;
    scene.allowed(Kind::Intention, "all").await?;
    scene.allowed(Kind::PreparedQuery, "template").await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let id = format!("{}.{other}.{web}.theirs", scene.cluster);
    let ids = [scene.id(&web, "own"), id];
    let oracle = Oracle::watch(&scene.consul, &web, &ids, &[]).await?;
    let late = scene
        .pod_of(&third, "late", "10.250.5.2")
        .lictor("service", &web);
    late.create_ready(&scene.client).await?;

    // Once when the rule begins, and once by what is kept of that.
    for turn in 0..2 {
        let lictor = scene.lictor_with(&[EXCLUSIVE]).await?;
        scene.allowed(Kind::Intention, "all").await?;
        scene.allowed(Kind::PreparedQuery, "template").await?;
        lictor.idle().await?;
        ensure!(scene.instances_of(&web).await? == 2, "the third joined in");
        let name = format!("new-{turn}");
        scene.is_older(&all).await?;
        scene.create(Kind::Intention, &name, spec.clone()).await?;
        // It is of the same namespace, which may have that destination, but not that source twice.
        let is = |status: &Value| condition(status, "Ready").1 == "Conflict";
        scene.shown(Kind::Intention, &name, is).await?;
        until("the rule to be kept", async || {
            let path = format!("/v1/kv/lictor/v1/{}/names?raw", scene.cluster);
            scene.consul.find(&path).await?.context("it is not")
        })
        .await?;
        let pod = scene.pod(&format!("own-{turn}")).lictor("service", &web);
        pod.create_ready(&scene.client).await?;
        scene
            .status(&web, &format!("own-{turn}"), "passing")
            .await?;
        pod.finish_deletion(&scene.client).await?;
        instances(&scene, &web, 2).await?;
        lictor.idle().await?;
        lictor.stop().await?;
    }
    // Without the rule nothing is kept, and the third is let in.
    let _lictor = scene.lictor_with(&["--default-policy=shared"]).await?;
    instances(&scene, &web, 3).await?;
    until("what was kept to go", async || {
        ensure!(scene.kept(&web).await?.is_none(), "it is there");
        anyhow::Ok(())
    })
    .await?;
    oracle.verdict().await
}
