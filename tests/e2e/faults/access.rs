//! Tokens of Consul that are revoked or have too few rights.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lictor_testbed::ConsulToken;

use super::{Churn, foreign, not_ready, settle, three};
use crate::support::{Annotated as _, Oracle, Scene, until};

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// What Lictor needs in Consul.
fn rules(scene: &Scene, nodes: &str) -> String {
    let cluster = &scene.cluster;
    format!(
        r#"
        {nodes}
        node_prefix "lictor-{cluster}--" {{ policy = "write" }}
        node "lictor-{cluster}-external" {{ policy = "write" }}
        service_prefix "" {{ policy = "write" }}
        key_prefix "lictor/v1/{cluster}/" {{ policy = "write" }}
        "#
    )
}

const ALL_NODES: &str = r#"node_prefix "" { policy = "read" }"#;

/// A file with a token, and the argument that names it.
fn token_file(scene: &Scene, token: &ConsulToken) -> Result<(PathBuf, String)> {
    let file = scene.bed.dir().join(format!("token-{}", scene.cluster));
    std::fs::write(&file, &token.secret)?;
    let arg = format!("--consul-http-token-file={}", file.display());
    Ok((file, arg))
}

#[tokio::test]
async fn a_revoked_token_costs_nothing_and_a_new_one_goes_on() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let token = scene.consul.create_token(&rules(&scene, ALL_NODES)).await?;
    let (file, arg) = token_file(&scene, &token)?;
    let lictor = scene.lictor_with(&[&arg]).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let before = scene.dump().await?;

    scene.consul.delete_token(&token).await?;
    churn.turns(10).await?;
    not_ready(&lictor, "token is rejected").await?;
    assert_eq!(scene.dump().await?, before);

    let token = scene.consul.create_token(&rules(&scene, ALL_NODES)).await?;
    std::fs::write(&file, &token.secret)?;
    churn.exact().await?;
    until("it to be ready again", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200, "{status}: {body}");
        Ok(())
    })
    .await?;
    oracle.verdict().await
}

/// What a token may not read Consul leaves out of its answers, with a success.
#[tokio::test]
async fn entries_that_the_token_may_not_read_are_not_missing() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let token = scene.consul.create_token(&rules(&scene, ALL_NODES)).await?;
    let (_, arg) = token_file(&scene, &token)?;
    let lictor = scene.lictor_with(&[&arg]).await?;
    let ids = settle(&scene, &STAY).await?;
    for name in ["goes", "fails"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;

    // While it runs: the nodes of others are hidden from it, among them whatever else there is.
    scene
        .consul
        .change_rules(&token, &rules(&scene, ""))
        .await?;
    let away = serde_json::json!({
        "Node": scene.consul_node(), "ServiceID": scene.id("web", "fails"),
    });
    scene.away_by_hand(&away).await?;
    scene.pod("fails").not_ready(&scene.client, "app").await?;
    scene.status("web", "fails", "critical").await?;
    lictor.stop().await?;

    // And from its start on.
    let before = scene.dump().await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    let lictor = scene.spawn_lictor(&[&arg], &[]).await?;
    not_ready(&lictor, "left entries out").await?;
    assert_eq!(scene.dump().await?, before);
    scene
        .consul
        .change_rules(&token, &rules(&scene, ALL_NODES))
        .await?;
    scene.gone("web", "goes").await?;
    scene.pod("fails").finish_deletion(&scene.client).await?;
    Churn::beside(&scene, &STAY).exact().await?;
    oracle.verdict().await
}
