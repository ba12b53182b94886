//! Instances that are critical while a side is out of reach.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{
    proxy::{Fault, Proxy},
    wait,
};
use serde_json::json;
use tokio::time::sleep;

use super::settle;
use crate::support::{BY_LOCK, Lictor, Scene};

/// The least that can be asked for.
const AFTER: Duration = Duration::from_secs(30);

struct Stage {
    scene: Scene,
    kubernetes: Proxy,
    consul: Proxy,
    lictor: Lictor,
}

/// Two pods that are not ready, for half of the time after which they go, beside some that are.
async fn critical() -> Result<Stage> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let lictor = scene
        .lictor_through_with(&kubernetes, &consul, &[BY_LOCK])
        .await?;
    settle(&scene, &["web-0", "web-1", "web-2"]).await?;
    let spec = json!({"selector": {"matchLabels": {"app": "bad"}},
                      "health": {"deregisterCriticalServiceAfter": "30s"}});
    scene.register("bad", spec).await?;
    for name in ["stays", "recovers"] {
        let pod = scene.pod(name).label("app", "bad");
        pod.create_ready(&scene.client).await?;
        scene.status("bad", name, "passing").await?;
        pod.not_ready(&scene.client, "app").await?;
        scene.status("bad", name, "critical").await?;
    }
    sleep(AFTER / 2).await;
    Ok(Stage {
        scene,
        kubernetes,
        consul,
        lictor,
    })
}

impl Stage {
    /// Both are there for so long.
    async fn both_stay(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for name in ["stays", "recovers"] {
                let found = self.scene.find("bad", name).await?;
                found.with_context(|| format!("{name} went"))?;
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// One recovered, and is to be seen passing; the other goes once its whole time is over again.
    async fn ends(&self, since: Instant) -> Result<()> {
        self.both_stay(Duration::from_secs(20)).await?;
        self.scene.status("bad", "recovers", "passing").await?;
        let deadline = AFTER + Duration::from_secs(20);
        wait::until("what stays critical to go", deadline, async || {
            let found = self.scene.find("bad", "stays").await?;
            ensure!(found.is_none(), "{found:#?}");
            Ok(())
        })
        .await?;
        ensure!(since.elapsed() >= AFTER, "after {:?}", since.elapsed());
        ensure!(self.scene.find("bad", "recovers").await?.is_some());
        Ok(())
    }

    async fn recover(&self) -> Result<()> {
        let pod = self.scene.pod("recovers").label("app", "bad");
        pod.running_ready(&self.scene.client).await.map(drop)
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_deregisters_nothing() -> Result<()> {
    let stage = critical().await?;
    stage.kubernetes.set(Fault::Refuse).await?;
    stage.both_stay(AFTER).await?;
    stage.recover().await?;
    let since = Instant::now();
    stage.kubernetes.set(Fault::Pass).await?;
    stage.ends(since).await
}

/// Nobody knows yet that the watches hang: they are silent, as they are where nothing happens.
#[tokio::test]
async fn an_api_server_that_fell_silent_deregisters_nothing() -> Result<()> {
    let stage = critical().await?;
    stage.kubernetes.set(Fault::Blackhole).await?;
    stage.recover().await?;
    // Its time is over after half of this.
    stage.both_stay(AFTER).await?;
    ensure!(
        !stage.lictor.log().contains("watch is broken"),
        "the watches were found to hang before anything could go"
    );
    let told = "nothing of a pod is deregistered for being critical";
    ensure!(stage.lictor.log().contains(told), "it was not asked");
    // What hangs goes on hanging until it is cut off.
    stage.kubernetes.set(Fault::Reset).await?;
    stage.kubernetes.set(Fault::Pass).await?;
    wait::until("it to be seen", AFTER, async || {
        let found = stage.scene.find("bad", "recovers").await?;
        let found = found.context("recovers went")?;
        ensure!(found.status == "passing", "{found:#?}");
        Ok(())
    })
    .await?;
    let deadline = AFTER + Duration::from_secs(30);
    wait::until("what stays critical to go", deadline, async || {
        let found = stage.scene.find("bad", "stays").await?;
        ensure!(found.is_none(), "{found:#?}");
        Ok(())
    })
    .await?;
    ensure!(stage.scene.find("bad", "recovers").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_consul_that_is_away_deregisters_nothing() -> Result<()> {
    let stage = critical().await?;
    stage.consul.set(Fault::Refuse).await?;
    stage.both_stay(AFTER).await?;
    stage.recover().await?;
    let since = Instant::now();
    stage.consul.set(Fault::Pass).await?;
    stage.ends(since).await
}
