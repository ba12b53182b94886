//! Tokens of Consul that are revoked or have too few rights.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::{Churn, foreign, not_ready, ready_but, settle, three};
use crate::support::{Annotated as _, Lictor, Oracle, Scene, until};

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// What Lictor needs in Consul.
fn rules(scene: &Scene, nodes: &str) -> String {
    rules_with(scene, nodes, "write")
}

/// The same with another right on its keys, which hold the epoch.
fn rules_with(scene: &Scene, nodes: &str, keys: &str) -> String {
    let cluster = &scene.cluster;
    format!(
        r#"
        {nodes}
        node_prefix "lictor-{cluster}--" {{ policy = "write" }}
        node "lictor-{cluster}-external" {{ policy = "write" }}
        service_prefix "" {{ policy = "write" }}
        query_prefix "" {{ policy = "read" }}
        key_prefix "lictor/v1/{cluster}/" {{ policy = "{keys}" }}
        "#
    )
}

const ALL_NODES: &str = r#"node_prefix "" { policy = "read" }"#;

/// What callers may send who have none.
const ANONYMOUS: &str = "anonymous";

/// A file with a token, and the argument that names it.
fn token_file(scene: &Scene, secret: &str) -> Result<(PathBuf, String)> {
    let file = scene.bed.dir().join(format!("token-{}", scene.cluster));
    std::fs::write(&file, secret)?;
    let arg = format!("--consul-http-token-file={}", file.display());
    Ok((file, arg))
}

#[tokio::test]
async fn a_revoked_token_costs_nothing_and_a_new_one_goes_on() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let token = scene.consul.create_token(&rules(&scene, ALL_NODES)).await?;
    let (file, arg) = token_file(&scene, &token.secret)?;
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
    let (_, arg) = token_file(&scene, &token.secret)?;
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

/// Waits until it has asked Consul so many times more, each of which it could have believed.
async fn asks(lictor: &Lictor, endpoint: &str) -> Result<()> {
    let count = async || {
        let with = [endpoint, "code=\"200\""];
        lictor.metric("lictor_consul_requests_total", &with).await
    };
    let before = count().await?;
    until("it to ask Consul again", async || {
        let now = count().await?;
        ensure!(now > before + 2.0, "{now} after {before}");
        Ok(())
    })
    .await
}

async fn epoch(scene: &Scene) -> Result<serde_json::Value> {
    let path = format!("/v1/kv/lictor/v1/{}/epoch?consistent", scene.cluster);
    scene.consul.get(&path).await
}

/// Without a token Consul answers reads with a success, and leaves out what it does not show.
#[tokio::test]
async fn without_a_token_consul_is_never_taken_for_empty() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let first = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    let pod = scene.pod("goes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "goes", "passing").await?;
    first.idle().await?;
    first.stop().await?;
    // There would be something to remove, to create and to change.
    pod.finish_deletion(&scene.client).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(4).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let before = (scene.dump().await?, epoch(&scene).await?);
    let kept = async |lictor: &Lictor| {
        not_ready(lictor, "the Consul token is rejected").await?;
        let asked = asks(lictor, "catalog/nodes").await;
        assert_eq!((scene.dump().await?, epoch(&scene).await?), before);
        let written = lictor.metric("lictor_operations_total", &[]).await?;
        ensure!(written == 0.0, "{written} operations");
        asked?;
        not_ready(lictor, "reads could be silently empty").await?;
        not_ready(lictor, "CONSUL_HTTP_TOKEN_FILE").await
    };
    let (file, in_file) = token_file(&scene, ANONYMOUS)?;

    let test = async {
        // Once where Consul would take writes of anybody, and once where it would not.
        let bountiful = rules(&scene, "");
        for allowed in [Some(&*bountiful), None] {
            scene.consul.allow_anonymous(allowed).await?;
            for token in ["--consul-http-token=", &in_file] {
                println!("{token} {allowed:?}");
                let lictor = scene.spawn_lictor(&[token], &[]).await?;
                kept(&lictor).await?;
                lictor.stop().await?;
            }
        }
        anyhow::Ok(())
    };
    let result = test.await;
    scene.consul.allow_anonymous(None).await?;
    result?;

    // A token that comes is used without a restart.
    let mut lictor = scene.spawn_lictor(&[&in_file], &[]).await?;
    kept(&lictor).await?;
    let token = scene.consul.create_token(&rules(&scene, ALL_NODES)).await?;
    std::fs::write(&file, &token.secret)?;
    lictor.ready().await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// The key of the epoch stands at the head of every transaction.
#[tokio::test]
async fn without_rights_on_the_epoch_nothing_is_written_and_that_is_said() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let with = |keys: &str| rules_with(&scene, ALL_NODES, keys);
    let token = scene.consul.create_token(&with("deny")).await?;
    let (_, arg) = token_file(&scene, &token.secret)?;
    let mut lictor = scene.spawn_lictor(&[&arg], &[]).await?;
    // At the start: nothing there may be read, then the epoch not be written.
    for (keys, what, lacks) in [
        ("deny", "/config/: ", "key:read"),
        ("read", "cannot take the epoch", "key:write"),
    ] {
        scene.consul.change_rules(&token, &with(keys)).await?;
        not_ready(&lictor, what).await?;
        not_ready(&lictor, &format!("lacks permission '{lacks}'")).await?;
        assert_eq!(scene.dump().await?, serde_json::json!([]));
    }
    scene.consul.change_rules(&token, &with("write")).await?;
    lictor.ready().await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let held = epoch(&scene).await?;

    // While it runs: that is no loss of the epoch, which is not taken anew.
    let before = scene.dump().await?;
    scene.consul.change_rules(&token, &with("deny")).await?;
    churn.turns(10).await?;
    ready_but(&lictor, "the epoch may not be read").await?;
    ready_but(&lictor, "Permission denied").await?;
    until("it to try again", async || {
        let fenced = lictor
            .metric("lictor_operations_total", &["fenced"])
            .await?;
        ensure!(fenced > 3.0, "{fenced}");
        Ok(())
    })
    .await?;
    assert_eq!(
        (scene.dump().await?, epoch(&scene).await?),
        (before, held.clone())
    );
    scene.consul.change_rules(&token, &with("write")).await?;
    churn.exact().await?;
    until("it to have nothing to complain about", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body == "ok\n", "{status}: {body}");
        Ok(())
    })
    .await?;
    assert_eq!(epoch(&scene).await?, held);
    oracle.verdict().await
}
