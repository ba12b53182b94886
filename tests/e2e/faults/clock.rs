//! A wall clock that jumps, as where somebody sets it or a machine wakes up.

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use lictor_testbed::{WallClock, kubelet::TestNode};
use serde_json::json;

use super::{Churn, foreign, settle};
use crate::support::{Annotated as _, Lictor, Oracle, Scene, json_lines, until};

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// By how much its last log line is ahead of us.
fn ahead(lictor: &Lictor) -> Result<SignedDuration> {
    let lines = json_lines(&lictor.log())?;
    let time = lines.last().and_then(|line| line["timestamp"].as_str());
    let time: Timestamp = time.context("no time in the log")?.parse()?;
    Ok(time.duration_since(Timestamp::now()))
}

/// An empty node whose Kubernetes node is gone, which has ten minutes yet.
async fn leave_a_node(scene: &Scene) -> Result<String> {
    let name = format!("{}-left", scene.node);
    let node = TestNode::new(&name).address("InternalIP", "192.168.7.2");
    node.create(&scene.client).await?;
    let pod = scene.pod("left").node(&name).lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "left", "passing").await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", "left").await?;
    node.delete(&scene.client).await?;
    let consul_node = format!("lictor-{}--{name}", scene.cluster);
    let checks = format!("/v1/health/node/{consul_node}?consistent");
    until("the node to be known to be gone", async || {
        let checks = scene.consul.get(&checks).await?;
        ensure!(checks[0]["Status"] == "critical", "{checks}");
        Ok(())
    })
    .await?;
    Ok(consul_node)
}

#[tokio::test]
async fn a_clock_that_jumps_costs_and_delays_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let clock = WallClock::new(&scene.bed.dir().join(format!("clock-{}", scene.cluster)))?;
    let env = clock.env();
    let env = env.each_ref().map(|(key, value)| (*key, &**value));
    let more = ["--log-format=json", "--drift-interval=1s"];
    let mut lictor = scene.spawn_lictor(&more, &env).await?;
    lictor.ready().await?;
    let ids = settle(&scene, &STAY).await?;
    let left = leave_a_node(&scene).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let node = format!("/v1/catalog/node/{left}?consistent");
    let kept: Vec<_> = foreign(&scene).into_iter().chain([node]).collect();
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &kept).await?;
    let mut before = Vec::new();
    for name in STAY {
        before.push(scene.status("web", name, "passing").await?);
    }
    let requests = "lictor_consul_requests_total";

    for hours in [5, -7, 30 * 24, 0] {
        let asked = lictor.metric(requests, &[]).await?;
        clock.set(hours * 3600)?;
        churn.turns(10).await?;
        churn.exact().await?;
        let off = ahead(&lictor)? - SignedDuration::from_hours(hours);
        ensure!(off.abs() < SignedDuration::from_mins(1), "{off} off");
        // Another hand is undone as ever.
        let gone = churn.want.keys().next().context("nobody is there")?;
        let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", gone)});
        scene.away_by_hand(&away).await?;
        churn.exact().await?;
        lictor.idle().await?;
        let asked = lictor.metric(requests, &[]).await? - asked;
        ensure!(asked < 200.0, "{asked} requests after {hours} h");
        until("it to have nothing to complain about", async || {
            let (status, body) = lictor.http("/readyz").await?;
            let fine = body == "ok\n" || body.contains("last contact");
            ensure!(status == 200 && fine, "{status}: {body}");
            Ok(())
        })
        .await?;
        let silence = "lictor_consul_last_contact_seconds";
        let silence = lictor.metric(silence, &[]).await?;
        ensure!((0.0..60.0).contains(&silence), "{silence} s");
    }
    // Nothing was written again, and no watch was taken for one that hangs.
    for (name, before) in STAY.iter().zip(&before) {
        assert_eq!(scene.find("web", name).await?.as_ref(), Some(before));
    }
    let restarts = lictor.metric("lictor_watch_restarts_total", &[]).await?;
    ensure!(restarts == 0.0, "{restarts} watches broke");
    oracle.verdict().await
}
