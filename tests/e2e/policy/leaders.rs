//! What Consul keeps of names, where another process leads, and where it was spoilt.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::holders::{instances, refused_to_own, two};
use super::{EXCLUSIVE, bed, operations};
use crate::leader::{AFTER_KILL, AFTER_STOP, follows, leads_within, pair, pod, stands_by};
use crate::support::{Annotated as _, Scene, until};

/// Who leads next knows whose a name is, and pays no write for it.
#[tokio::test]
async fn a_hand_over_keeps_whose_names_are() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let other = two(&scene).await?;
    let web = scene.named("web");
    let (first, second) = pair(&scene, &[EXCLUSIVE]).await?;
    // The younger namespace claims it first.
    let theirs = scene
        .pod_of(&other, "theirs", "10.250.6.1")
        .lictor("service", &web);
    theirs.create_ready(&scene.client).await?;
    instances(&scene, &web, 1).await?;
    scene.pod_refused("own", &web, &other).await?;
    until("the rule to be kept", async || {
        let path = format!("/v1/kv/lictor/v1/{}/names?raw", scene.cluster);
        scene.consul.find(&path).await?.context("it is not")
    })
    .await?;
    first.idle().await?;
    let kept = scene.kept(&web).await?.context("nothing is kept")?;
    ensure!(kept["holder"] == json!(other), "{kept}");
    ensure!(operations(&second).await? == 0.0, "who stands by writes");

    first.terminate()?;
    follows(&scene, "second", AFTER_STOP).await?;
    first.stop().await?;
    // What it does later is done: so all before was judged.
    let late = scene.pod("late").lictor("service", &scene.named("api"));
    late.create_ready(&scene.client).await?;
    scene.status(&scene.named("api"), "late", "passing").await?;
    second.idle().await?;
    ensure!(scene.kept(&web).await?.as_ref() == Some(&kept));
    ensure!(scene.instances_of(&web).await? == 1, "the other is there");
    scene.pod_refused("own-2", &web, &other).await
}

/// One that led before, and leads again, goes by what the one between kept.
#[tokio::test]
async fn one_that_leads_again_goes_by_what_was_kept_meanwhile() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let other = two(&scene).await?;
    let web = scene.named("web");
    let args = [EXCLUSIVE, "--name-hold=1s"];
    let (first, second) = pair(&scene, &args).await?;
    let theirs = scene
        .pod_of(&other, "theirs", "10.250.7.1")
        .lictor("service", &web);
    theirs.create_ready(&scene.client).await?;
    instances(&scene, &web, 1).await?;
    first.idle().await?;
    // It sleeps while the name is freed, and taken by this namespace.
    first.pause()?;
    follows(&scene, "second", AFTER_KILL).await?;
    theirs.finish_deletion(&scene.client).await?;
    instances(&scene, &web, 0).await?;
    until("the name to be free", async || {
        ensure!(scene.kept(&web).await?.is_none(), "it is kept");
        anyhow::Ok(())
    })
    .await?;
    let own = scene.pod("own").lictor("service", &web);
    own.create_ready(&scene.client).await?;
    scene.status(&web, "own", "passing").await?;
    let again = scene
        .pod_of(&other, "again", "10.250.7.2")
        .lictor("service", &web);
    again.create_ready(&scene.client).await?;
    let kept = until("the holder to be kept", async || {
        scene.kept(&web).await?.context("nothing is kept")
    })
    .await?;
    ensure!(kept["holder"] == json!(scene.namespace), "{kept}");
    second.idle().await?;
    first.resume()?;
    stands_by(&first, "second").await?;
    second.terminate()?;
    leads_within(&first, AFTER_KILL).await?;
    second.stop().await?;
    let late = scene.pod("late").lictor("service", &scene.named("api"));
    late.create_ready(&scene.client).await?;
    scene.status(&scene.named("api"), "late", "passing").await?;
    first.idle().await?;
    ensure!(scene.kept(&web).await? == Some(kept));
    let found = scene.find(&web, "own").await?;
    ensure!(found.is_some(), "its instance is gone");
    ensure!(scene.instances_of(&web).await? == 1);
    Ok(())
}

/// What is kept of a name was spoilt by hand: nobody loses it, nobody new gets it, and that is said.
#[tokio::test]
async fn a_record_that_is_not_understood_withdraws_nothing() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let (web, other) = refused_to_own(&scene, "10.250.8.1").await?;
    let path = format!("/v1/kv/lictor/v1/{}/name/{web}", scene.cluster);
    scene.consul.put(&path, &json!(["spoilt"])).await?;

    let lictor = pod(&scene, "second", &[EXCLUSIVE]).await?;
    scene.event("NotAllowed", "own", "not understood").await?;
    // Another one of who has it joins in, and the one that was there stays in step.
    let more = scene
        .pod_of(&other, "more", "10.250.8.2")
        .lictor("service", &web);
    more.create_ready(&scene.client).await?;
    instances(&scene, &web, 2).await?;
    lictor.idle().await?;
    ensure!(scene.find(&web, "own").await?.is_none());
    let kept: Value = scene.kept(&web).await?.context("it is gone")?;
    ensure!(kept == json!(["spoilt"]), "{kept}");
    // Put right, it counts without a restart.
    scene.consul.delete(&path).await?;
    let kept = until("the holder to be kept", async || {
        scene.kept(&web).await?.context("nothing is kept")
    })
    .await?;
    ensure!(kept["holder"] == json!(other), "{kept}");
    scene.event("NotAllowed", "own", &other).await?;
    Ok(())
}
