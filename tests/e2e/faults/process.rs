//! `lictor` itself fails, or runs twice.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use rand::Rng as _;
use serde_json::json;
use tokio::time::Instant;

use super::{Churn, foreign, not_ready, settle};
use crate::support::{Annotated as _, Lictor, OFF, Oracle, Scene, until};

/// How often it is killed.
const KILLS: u32 = 15;
/// It is known what there is and the first writes are out within this, with some luck.
const LONGEST_LIFE: u64 = 600;

#[tokio::test]
async fn killed_at_random_moments_it_loses_nothing() -> Result<()> {
    // More than the guard lets go may happen while nobody looks, life after life.
    let flags = ["--max-delete-percent=100"];
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&flags).await?;
    let stay = ["web-0", "web-1", "web-2"];
    let ids = settle(&scene, &stay).await?;
    let mut churn = Churn::beside(&scene, &stay);
    churn.turns(10).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    lictor.kill();
    for _ in 0..KILLS {
        let lictor = scene.spawn_lictor(&flags, &[]).await?;
        let life = Duration::from_millis(rand::rng().random_range(0..LONGEST_LIFE));
        let end = Instant::now() + life;
        while Instant::now() < end {
            churn.turn().await?;
        }
        lictor.kill();
        // Some of it happens while nobody looks.
        churn.turn().await?;
    }
    let _lictor = scene.lictor_with(&flags).await?;
    churn.exact().await?;
    scene.barrier().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn stopped_for_a_while_it_catches_up() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let stay = ["web-0", "web-1", "web-2"];
    let ids = settle(&scene, &stay).await?;
    let mut churn = Churn::beside(&scene, &stay);
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    for _ in 0..3 {
        churn.turns(5).await?;
        lictor.pause()?;
        churn.turns(15).await?;
        lictor.resume()?;
    }
    churn.exact().await?;
    // What another hand did meanwhile is seen too.
    let pod = scene.pod("drift").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "drift", "passing").await?;
    lictor.idle().await?;
    lictor.pause()?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", "drift")});
    scene.away_by_hand(&away).await?;
    lictor.resume()?;
    scene.status("web", "drift", "passing").await?;
    pod.finish_deletion(&scene.client).await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// The sum of what it wrote, or tried to.
async fn operations(lictor: &Lictor) -> Result<f64> {
    lictor.metric("lictor_operations_total", &[]).await
}

#[tokio::test]
async fn of_two_the_first_stands_by_until_it_is_started_again() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor_with(&[OFF]).await?;
    let stay = ["web-0", "web-1"];
    let ids = settle(&scene, &stay).await?;
    let mut churn = Churn::beside(&scene, &stay);
    churn.turns(10).await?;
    churn.exact().await?;
    first.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let before = scene.dump().await?;

    let second = scene.lictor_with(&[OFF]).await?;
    not_ready(&first, "replaced").await?;
    second.idle().await?;
    assert_eq!(scene.dump().await?, before);
    let wrote = operations(&first).await?;
    churn.turns(15).await?;
    churn.exact().await?;
    // Not even what another hand did is repaired by the one that stands by.
    second.stop().await?;
    churn.turns(5).await?;
    let after = scene.dump().await?;
    not_ready(&first, "replaced").await?;
    ensure!(
        operations(&first).await?.to_bits() == wrote.to_bits(),
        "it writes"
    );
    first.stop().await?;
    assert_eq!(scene.dump().await?, after);

    let again = scene.lictor_with(&[OFF]).await?;
    churn.exact().await?;
    churn.turns(5).await?;
    churn.exact().await?;
    assert_eq!(again.http("/readyz").await?.0, 200);
    oracle.verdict().await
}

#[tokio::test]
async fn one_that_was_stopped_while_another_took_over_writes_nothing_late() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor_with(&[OFF]).await?;
    let stay = ["web-0", "web-1"];
    let ids = settle(&scene, &stay).await?;
    let mut churn = Churn::beside(&scene, &stay);
    churn.turns(10).await?;
    churn.exact().await?;
    first.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;

    first.pause()?;
    // What is in its sockets when it goes on: all of the past.
    churn.turns(15).await?;
    let second = scene.lictor_with(&[OFF]).await?;
    churn.exact().await?;
    churn.turns(5).await?;
    churn.exact().await?;
    second.idle().await?;
    let before = scene.dump().await?;
    first.resume()?;
    not_ready(&first, "replaced").await?;
    assert_eq!(scene.dump().await?, before);
    let applied = first
        .metric("lictor_operations_total", &["outcome=\"ok\""])
        .await?;
    churn.turns(5).await?;
    churn.exact().await?;
    let now = first
        .metric("lictor_operations_total", &["outcome=\"ok\""])
        .await?;
    ensure!(now.to_bits() == applied.to_bits(), "it writes");
    oracle.verdict().await
}

/// One that cannot see that it was replaced finds out by its first write.
#[tokio::test]
async fn late_writes_are_fenced_off() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let first = scene
        .lictor_through_with(&kubernetes, &consul, &[OFF])
        .await?;
    let ids = settle(&scene, &["web-0", "web-1"]).await?;
    let pod = scene.pod("changes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "changes", "passing").await?;
    first.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;

    let blind = Answer::new(500).only("/v1/kv/lictor/");
    consul.set(Fault::Reset).await?;
    consul.set(Fault::Answer(blind)).await?;
    let fenced = async || {
        let with = ["outcome=\"fenced\""];
        first.metric("lictor_operations_total", &with).await
    };
    // The first one gets to hear of changes in Kubernetes only later.
    kubernetes.set(Fault::Reset).await?;
    let second = scene.lictor_with(&[OFF]).await?;
    pod.not_ready(&scene.client, "app").await?;
    let before = scene.status("web", "changes", "critical").await?;
    second.stop().await?;
    kubernetes.set(Fault::Pass).await?;
    pod.running_ready(&scene.client).await?;
    until("the late write to be fenced off", async || {
        let count = fenced().await?;
        ensure!(count > 0.0, "{count} operations were");
        Ok(())
    })
    .await?;
    let after = scene.find("web", "changes").await?;
    assert_eq!(after.as_ref(), Some(&before));
    consul.set(Fault::Pass).await?;
    not_ready(&first, "replaced").await?;

    let _again = scene.lictor_with(&[OFF]).await?;
    scene.status("web", "changes", "passing").await?;
    oracle.verdict().await
}
