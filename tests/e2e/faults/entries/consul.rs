//! Consul fails.

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use serde_json::{Value, json};

use super::{Turns, ledger, nothing_to_complain_about, settle};
use crate::faults::{alone, ready_but, three};
use crate::support::{Kind, Scene, until};

#[tokio::test]
async fn a_wiped_consul_gets_all_intentions_and_queries_again() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    let before = scene.query_named(&scene.named("stays")).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    consul.wipe()?;
    consul.start().await?;
    turns.hand = false;
    turns.exact().await?;
    let after = scene.query_named(&scene.named("stays")).await?;
    ensure!(after["ID"] != before["ID"], "{after}");
    scene
        .shown(Kind::PreparedQuery, "stays", |status| {
            status["id"] == after["ID"]
        })
        .await?;
    turns.turns(10).await?;
    turns.exact().await?;
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn taken_back_to_a_snapshot_intentions_and_queries_are_exact() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let snapshot = scene.consul.snapshot().await?;
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    scene.consul.restore(&snapshot).await?;
    turns.exact().await?;
    turns.turns(10).await?;
    turns.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_leader_that_is_lost_between_ledger_and_query_costs_neither() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let followers = installed.bed.consul_followers().await?;
    let consul = Proxy::start(followers[0].addr())?;
    let through = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(10).await?;
    turns.exact().await?;
    let oracle = kept.watch(&scene).await?;

    let lost = Answer::new(500).body("No cluster leader");
    consul
        .set(Fault::Answer(lost.only("POST /v1/query")))
        .await?;
    let half = scene.named("half");
    let spec = json!({"name": half, "service": "payment"});
    scene.create(Kind::PreparedQuery, "half", spec).await?;
    until("the ledger to have it", async || {
        let noted = ledger(&scene, &half).await?.context("not noted")?;
        ensure!(noted["id"].is_null(), "{noted}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    assert_eq!(scene.query_named(&half).await?, Value::Null);
    let leader = installed.bed.consul_leader().await?;
    leader.kill();
    consul.set(Fault::Pass).await?;
    turns.turns(10).await?;
    turns.queries.insert(half, String::new());
    installed.bed.consul_leader().await?;
    turns.exact().await?;
    leader.start().await?;

    // And once more amid all kinds of writes.
    let leader = installed.bed.consul_leader().await?;
    turns.turns(5).await?;
    leader.kill();
    turns.turns(15).await?;
    // It may be the one that Lictor asks.
    leader.start().await?;
    turns.exact().await?;
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    oracle.verdict().await
}

#[tokio::test]
async fn without_a_quorum_intentions_and_queries_are_kept() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    for server in installed.bed.consul_followers().await? {
        server.kill();
    }
    installed.bed.no_consul_leader().await?;
    turns.turns(15).await?;
    ready_but(&lictor, "consul: ").await?;
    installed.bed.start_consul().await?;
    installed.bed.consul_leader().await?;
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await?;
    oracle.verdict().await
}
