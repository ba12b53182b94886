//! A single Consul that fails.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::{alone, foreign, not_ready, ready_but, settle};
use crate::support::{Annotated as _, Oracle, Scene, condition, until};

/// Longer than it takes until the watches of Consul told what was written, and wait again.
const SIGNALLED: Duration = Duration::from_secs(4);

#[tokio::test]
async fn consul_is_down_at_the_start_and_later() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let consul = &installed.bed.consul_server;
    consul.stop().await?;
    let mut lictor = scene.spawn_lictor(&[], &[]).await?;
    not_ready(&lictor, "consul:").await?;
    assert_eq!(lictor.http("/livez").await?.0, 200);
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    consul.start().await?;
    lictor.ready().await?;
    let before = scene.status("web", "web-0", "passing").await?;

    consul.stop().await?;
    until("the outage to be told", async || {
        let age = lictor
            .metric("lictor_consul_last_contact_seconds", &[])
            .await?;
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200, "{status}: {body}");
        ensure!(age > 0.5 && body.contains("consul"), "{age} {body}");
        Ok(())
    })
    .await?;
    pod.not_ready(&scene.client, "app").await?;
    scene
        .pod("web-1")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    // It stays ready also once it has something to write.
    ready_but(&lictor, "consul: cannot ").await?;
    consul.start().await?;
    let seen = scene.status("web", "web-0", "critical").await?;
    assert_eq!(seen.raw["Service"], before.raw["Service"]);
    scene.status("web", "web-1", "passing").await?;
    Ok(())
}

#[tokio::test]
async fn a_restart_moves_no_index_of_the_catalog() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene, &["web-0", "web-1"]).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "db.example.com"}]}),
        )
        .await?;
    scene
        .registration("db", |status| condition(status, "Ready").0 == "True")
        .await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let indexes = async || -> Result<Vec<String>> {
        let mut indexes = Vec::new();
        for path in ["catalog/services", "catalog/nodes", "health/state/any"] {
            let url = format!("{}/v1/{path}?consistent", installed.bed.consul_addr());
            let answer = http.get(url).send().await?.error_for_status()?;
            let index = answer.headers().get("X-Consul-Index").context("no index")?;
            indexes.push(format!("{path} {}", index.to_str()?));
        }
        Ok(indexes)
    };
    let before = indexes().await?;
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    // A change that needs no write comes through after all that the start brought.
    scene
        .edit(
            "db",
            json!({"metadata": {"annotations": {"lictor.io/paused": "true"}}}),
        )
        .await?;
    scene
        .registration("db", |status| condition(status, "Ready").1 == "Paused")
        .await?;
    lictor.idle().await?;
    assert_eq!(indexes().await?, before);
    let (_, metrics) = lictor.http("/metrics").await?;
    ensure!(!metrics.contains("lictor_operations_total{"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_wiped_consul_is_filled_again() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene, &["web-0", "web-1"]).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let db = format!("{}.{}.db.db.a", scene.cluster, scene.namespace);
    scene.instance_id("db", &db, |_| true).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    consul.wipe()?;
    consul.start().await?;
    let started = std::time::Instant::now();
    for name in ["web-0", "web-1"] {
        let seen = scene.status("web", name, "passing").await?;
        ensure!(seen.node_status == "passing", "{seen:#?}");
    }
    scene.instance_id("db", &db, |_| true).await?;
    ensure!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    // The same process did it.
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    scene.barrier().await
}

#[tokio::test]
async fn a_consul_that_restarts_loses_and_repeats_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &["web-0", "web-1", "goes"]).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids[..2], &foreign(&scene)).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.annotate("web-1", &[("tags", Some("v2"))]).await?;
    scene
        .pod("comes")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    consul.start().await?;
    scene.gone("web", "goes").await?;
    scene
        .instance("web", "web-1", |seen| seen.tags == ["v2"])
        .await?;
    scene.status("web", "comes", "passing").await?;
    scene.barrier().await?;
    oracle.verdict().await
}

/// Nobody else writes here, and no sweep is due: it knows the changes that it is told of.
#[tokio::test]
async fn what_it_writes_itself_is_not_read_again() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor_with(&["--drift-interval=60s"]).await?;
    settle(&scene, &["web-0", "web-1"]).await?;
    let reads = async || {
        let name = "lictor_consul_requests_total";
        lictor.metric(name, &["health/node"]).await
    };
    // The entry by hand, and what Consul does at its own start, is looked at before.
    let before = until("it to have looked at all", async || {
        let before = reads().await?;
        sleep(SIGNALLED).await;
        let now = reads().await?;
        ensure!(before > 0.0 && now.to_bits() == before.to_bits(), "{now}");
        Ok::<_, anyhow::Error>(now)
    })
    .await?;
    for turn in 0..3 {
        let tag = format!("t{turn}");
        scene.annotate("web-0", &[("tags", Some(&tag))]).await?;
        scene
            .instance("web", "web-0", |seen| seen.tags == [&*tag])
            .await?;
        scene.barrier().await?;
        sleep(SIGNALLED).await;
    }
    lictor.idle().await?;
    let count = reads().await?;
    ensure!(
        count.to_bits() == before.to_bits(),
        "{count} reads after {before}"
    );
    Ok(())
}
