//! Heartbeats while something else fails.

use super::*;
use crate::support::OFF;

/// How many sessions this process has renewed so far.
async fn renewals(lictor: &Lictor) -> Result<f64> {
    let with = ["session/renew", "200"];
    lictor.metric("lictor_consul_requests_total", &with).await
}

/// Waits for longer than a session and a Lease of 10 s would live without being renewed.
async fn renewed_for_long(lictor: &Lictor) -> Result<()> {
    let so_far = renewals(lictor).await?;
    until("it to be renewed for 25 s", async || {
        let more = renewals(lictor).await? - so_far;
        ensure!(more >= 7.0, "{more} renewals");
        Ok(())
    })
    .await
}

async fn watched(scene: &Scene) -> Result<Oracle> {
    Oracle::watch(&scene.consul, "web", &[scene.id("web", "p")], &[]).await
}

/// What cannot be seen is held against nobody, and renewed meanwhile.
#[tokio::test]
async fn while_the_api_server_is_away_sessions_live() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let mut lictor = scene
        .lictor_with(&[&scene.kubeconfig_through(&kubernetes)?])
        .await?;
    lictor.bears_refusals();
    let worker = beating(&scene).await?;
    let before = session_count(&scene, 1).await?;
    kubernetes.set(Fault::Refuse).await?;
    worker.stop();
    renewed_for_long(&lictor).await?;
    is(&scene, "passing").await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    kubernetes.set(Fault::Pass).await?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    Ok(())
}

/// A watch that is silent looks like Leases that nobody renews.
#[tokio::test]
async fn an_api_server_that_says_nothing_lets_no_heartbeat_lapse() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let mut lictor = scene
        .lictor_with(&[&scene.kubeconfig_through(&kubernetes)?])
        .await?;
    lictor.bears_refusals();
    let worker = beating(&scene).await?;
    let before = session_count(&scene, 1).await?;
    let oracle = watched(&scene).await?;
    kubernetes.set(Fault::Blackhole).await?;
    renewed_for_long(&lictor).await?;
    // Those that are half open are closed, so that it is found out at once.
    kubernetes.set(Fault::Reset).await?;
    kubernetes.set(Fault::Pass).await?;
    renewed_for_long(&lictor).await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    worker.stop();
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    Ok(())
}

/// Whoever writes, each process renews; none makes a second session.
#[tokio::test]
async fn a_process_that_stands_by_renews_when_the_other_one_dies() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor_with(&[OFF]).await?;
    let _worker = beating(&scene).await?;
    first.idle().await?;
    let before = session_count(&scene, 1).await?;
    let oracle = watched(&scene).await?;
    let second = scene.lictor_with(&[OFF]).await?;
    first.not_ready("replaced").await?;
    second.shows("lictor_sessions", 1.0).await?;
    second.kill();
    renewed_for_long(&first).await?;
    let third = scene.lictor_with(&[OFF]).await?;
    third.shows("lictor_sessions", 1.0).await?;
    third.idle().await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    // What the third one ends the first one does not keep alive.
    scene.unregister("web").await?;
    scene.gone("web", "p").await?;
    session_count(&scene, 0).await?;
    first.shows("lictor_sessions", 0.0).await
}

/// It knows nothing of Kubernetes yet, and keeps alive what it finds.
#[tokio::test]
async fn a_start_without_the_api_server_keeps_what_is_alive() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let worker = beating(&scene).await?;
    lictor.idle().await?;
    let before = session_count(&scene, 1).await?;
    let oracle = watched(&scene).await?;
    lictor.stop().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let through = scene.kubeconfig_through(&kubernetes)?;
    kubernetes.set(Fault::Refuse).await?;
    let mut lictor = scene.spawn_lictor(&[&through], &[]).await?;
    lictor.bears_refusals();
    renewed_for_long(&lictor).await?;
    kubernetes.set(Fault::Pass).await?;
    lictor.ready().await?;
    lictor.idle().await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    worker.stop();
    is(&scene, "critical").await?;
    Ok(())
}

#[tokio::test]
async fn a_time_to_live_that_is_edited_holds_from_then_on() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let _worker = beating(&scene).await?;
    let first = session_count(&scene, 1).await?.remove(0);
    assert_eq!(first["TTL"], "10s");
    let mut longer = checks();
    longer[0]["ttl"]["ttl"] = json!("20s");
    scene
        .edit("web", json!({"spec": {"health": {"checks": longer}}}))
        .await?;
    until("a session that lives longer", async || {
        let found = sessions(&scene).await?;
        ensure!(found.len() == 1 && found[0]["TTL"] == "20s", "{found:?}");
        Ok(())
    })
    .await?;
    is(&scene, "passing").await?;
    lictor.idle().await
}

/// What says of itself that it is well, by another hand, is critical again.
#[tokio::test]
async fn a_check_that_another_hand_turned_is_turned_back() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    register(&scene).await?;
    let seen = is(&scene, "critical").await?;
    lictor.idle().await?;
    let mut check = seen.check(&check_id(&scene)).clone();
    check["Status"] = json!("passing");
    let node = scene.consul_node();
    let entry = json!({"Node": node, "SkipNodeUpdate": true, "Check": check});
    for _ in 0..2 {
        scene.by_hand(&entry).await?;
        is(&scene, "critical").await?;
        lictor.idle().await?;
    }
    session_count(&scene, 0).await?;
    Ok(())
}
