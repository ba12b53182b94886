//! Three Consul servers, of which some fail; all of them wiped, or taken back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{CONSUL_MANAGEMENT_TOKEN, wait};
use serde_json::Value;
use tokio::time::Instant;

use super::{Churn, foreign, ready_but, settle, three};
use crate::support::{Annotated as _, Oracle, Scene, until};

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// The key of the epoch, with its index.
async fn epoch(scene: &Scene) -> Result<Value> {
    let path = format!("/v1/kv/lictor/v1/{}/epoch?consistent", scene.cluster);
    let pairs = scene.consul.get(&path).await?;
    pairs.get(0).cloned().context("no epoch")
}

async fn epoch_index(scene: &Scene) -> Result<u64> {
    let index = epoch(scene).await?["ModifyIndex"].as_u64();
    index.context("an epoch without index")
}

#[tokio::test]
async fn a_leader_that_dies_amid_changes_costs_nothing() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(5).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    for _ in 0..2 {
        let leader = installed.bed.consul_leader().await?;
        churn.turns(5).await?;
        leader.kill();
        churn.turns(15).await?;
        installed.bed.consul_leader().await?;
        churn.exact().await?;
        leader.start().await?;
    }
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    churn.turns(5).await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// Longer than any request to a server that hangs may take.
const LATE: Duration = Duration::from_secs(75);

#[tokio::test]
async fn a_leader_that_hangs_amid_changes_costs_nothing() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    // The one that hangs is the one that it talks to.
    let leader = installed.bed.consul_leader().await?;
    let followers = installed.bed.consul_followers().await?;
    let servers = std::iter::once(leader).chain(followers);
    let addresses: Vec<_> = servers.map(lictor_testbed::Server::addr).collect();
    let addresses = format!("--consul-http-addr={}", addresses.join(","));
    let _lictor = scene.lictor_with(&[&addresses]).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(5).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let leader = installed.bed.consul_leader().await?;
    leader.pause()?;
    churn.turns(15).await?;
    installed.bed.consul_leader().await?;
    let began = Instant::now();
    wait::until("Consul to be exact", LATE, async || churn.exact().await).await?;
    println!("exact {:?} after there was a leader", began.elapsed());
    leader.resume()?;
    installed.bed.consul_leader().await?;
    churn.turns(5).await?;
    churn.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn without_a_quorum_all_is_kept_and_said() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let owned = async || {
        let with = ["kind=\"instance\""];
        lictor.metric("lictor_owned", &with).await
    };
    let known = owned().await?;
    for server in installed.bed.consul_followers().await? {
        server.kill();
    }
    installed.bed.no_consul_leader().await?;
    churn.turns(15).await?;
    until("the age of the last contact to grow", async || {
        let name = "lictor_consul_last_contact_seconds";
        let age = lictor.metric(name, &[]).await?;
        ensure!(age > 1.5, "{age}");
        Ok(())
    })
    .await?;
    // The server that is left holds requests for a while before it refuses them.
    ready_but(&lictor, "consul: cannot ").await?;
    ready_but(&lictor, "last contact").await?;
    let now = owned().await?;
    ensure!(now.to_bits() == known.to_bits(), "{now} of {known} owned");
    installed.bed.start_consul().await?;
    installed.bed.consul_leader().await?;
    churn.exact().await?;
    until("it to have nothing to complain about", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body == "ok\n", "{status}: {body}");
        Ok(())
    })
    .await?;
    oracle.verdict().await
}

#[tokio::test]
async fn wiped_amid_changes_it_is_filled_again_under_a_new_epoch() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    // All other tokens go with the rest.
    let token = format!("--consul-http-token={CONSUL_MANAGEMENT_TOKEN}");
    let lictor = scene.lictor_with(&[&token]).await?;
    settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    // More than the guard lets go at once, were they taken for absences.
    churn.turns(30).await?;
    churn.exact().await?;
    let before = epoch(&scene).await?;
    installed.bed.wipe_consul().await?;
    let back = Instant::now();
    churn.turns(5).await?;
    churn.exact().await?;
    let took = back.elapsed();
    ensure!(took < Duration::from_secs(15), "{took:?}");
    let after = epoch(&scene).await?;
    ensure!(
        after["CreateIndex"] != before["CreateIndex"]
            || after["ModifyIndex"] != before["ModifyIndex"],
        "{before} {after}"
    );
    // The same process did it.
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    assert_eq!(lictor.log().matches("epoch taken").count(), 2);
    scene.barrier().await
}

#[tokio::test]
async fn taken_back_to_a_snapshot_it_is_exact_and_no_epoch_is_used_twice() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    for name in ["goes-0", "goes-1", "fails"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let first = epoch_index(&scene).await?;
    let snapshot = scene.consul.snapshot().await?;

    // What the snapshot does not know: removals, a change, a new pod, and a second epoch.
    let path = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
    scene.consul.delete(&path).await?;
    let second = until("a second epoch", async || {
        let index = epoch_index(&scene).await?;
        ensure!(index != first, "{index}");
        Ok(index)
    })
    .await?;
    for name in ["goes-0", "goes-1"] {
        scene.pod(name).finish_deletion(&scene.client).await?;
        scene.gone("web", name).await?;
    }
    scene.pod("fails").not_ready(&scene.client, "app").await?;
    scene.status("web", "fails", "critical").await?;
    let pod = scene.pod("comes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "comes", "passing").await?;
    lictor.idle().await?;

    scene.consul.restore(&snapshot).await?;
    let restored = Instant::now();
    for name in ["goes-0", "goes-1"] {
        scene.gone("web", name).await?;
    }
    scene.status("web", "fails", "critical").await?;
    scene.status("web", "comes", "passing").await?;
    println!("exact {:?} after the restore", restored.elapsed());
    let third = epoch_index(&scene).await?;
    ensure!(third != first, "the epoch {first} is used again");
    println!("epochs {first}, {second}, {third}");
    assert_eq!(lictor.log().matches("epoch taken").count(), 3);

    // From now on as ever.
    scene.pod("fails").finish_deletion(&scene.client).await?;
    scene.pod("comes").finish_deletion(&scene.client).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// Longer than it takes until no sweep is due any more.
const IDLE: Duration = Duration::from_secs(16);

/// The epoch is the same before and after, and nothing is written that would make Lictor look: only
/// the waits that the restore cuts short tell of it.
#[tokio::test]
async fn taken_back_while_nothing_happens_it_is_exact_within_seconds() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    for name in ["goes", "fails"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let snapshot = scene.consul.snapshot().await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.gone("web", "goes").await?;
    scene.pod("fails").not_ready(&scene.client, "app").await?;
    scene.status("web", "fails", "critical").await?;
    let pod = scene.pod("comes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "comes", "passing").await?;
    lictor.idle().await?;
    tokio::time::sleep(IDLE).await;

    scene.consul.restore(&snapshot).await?;
    let restored = Instant::now();
    scene.gone("web", "goes").await?;
    scene.status("web", "fails", "critical").await?;
    scene.status("web", "comes", "passing").await?;
    let took = restored.elapsed();
    ensure!(took < Duration::from_secs(10), "{took:?}");
    println!("exact {took:?} after the restore");
    assert_eq!(lictor.log().matches("epoch taken").count(), 1);
    oracle.verdict().await
}
