//! Rights in Consul that are lacking.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Turns, instances_go_on, is_ready, ledger_key, nothing_to_complain_about, settle, to};
use crate::faults::{ready_but, three};
use crate::support::{Kind, Lictor, Scene, condition};

/// What Lictor needs in Consul, with these rights on intentions and queries.
fn rules(scene: &Scene, intentions: &str, queries: &str) -> String {
    let cluster = &scene.cluster;
    format!(
        r#"
        node_prefix "" {{ policy = "read" }}
        node_prefix "lictor-{cluster}--" {{ policy = "write" }}
        node "lictor-{cluster}-external" {{ policy = "write" }}
        service_prefix "" {{
          policy = "write"
          intentions = "{intentions}"
        }}
        query_prefix "" {{ policy = "{queries}" }}
        key_prefix "lictor/v1/{cluster}/" {{ policy = "write" }}
        "#
    )
}

#[tokio::test]
async fn entries_that_may_not_be_read_are_neither_missing_nor_given_up() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let all = rules(&scene, "write", "write");
    let token = scene.consul.create_token(&all).await?;
    let arg = format!("--consul-http-token={}", token.secret);
    let more = [&*arg, "--drift-interval=1s"];
    let lictor = scene.lictor_with(&more).await?;
    let mut kept = settle(&scene).await?;
    for (kind, spec) in [
        (Kind::Intention, to(&scene, &["goes"], "allow")),
        (
            Kind::PreparedQuery,
            json!({"name": scene.named("goes"), "service": "payment"}),
        ),
    ] {
        scene.create(kind, "goes", spec).await?;
        scene.shown(kind, "goes", is_ready).await?;
    }
    lictor.idle().await?;
    kept.sources
        .push((scene.named("payment"), "goes".to_owned()));
    kept.queries.push(scene.named("goes"));
    for name in ["stays", "goes"] {
        let key = ledger_key(&scene, &scene.named(name));
        kept.foreign.push(format!("/v1/kv/{key}?consistent"));
    }
    let oracle = kept.watch(&scene).await?;

    let hidden = rules(&scene, "deny", "deny");
    scene.consul.change_rules(&token, &hidden).await?;
    let is_said = async |lictor: &Lictor| {
        ready_but(lictor, "give the token intentions:read").await?;
        ready_but(lictor, "give the token query:read").await?;
        instances_go_on(&scene, "web-0").await?;
        let log = lictor.log();
        ensure!(log.contains("left service-intentions out"), "{log}");
        ensure!(log.contains("left prepared queries out"), "{log}");
        Ok(())
    };
    is_said(&lictor).await?;
    // One is changed, and the others go, in front of its eyes.
    let spec = json!({"spec": {"dns": {"ttl": "7s"}}});
    scene.change(Kind::PreparedQuery, "stays", spec).await?;
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        scene.delete(kind, "goes").await?;
    }
    instances_go_on(&scene, "web-1").await?;
    lictor.stop().await?;
    let lictor = scene.lictor_with(&more).await?;
    is_said(&lictor).await?;
    oracle.verdict().await?;

    scene.consul.change_rules(&token, &all).await?;
    let mut turns = Turns::beside(&scene);
    turns.queries.insert(scene.named("stays"), "7s".to_owned());
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await
}

#[tokio::test]
async fn without_the_right_to_write_them_intentions_and_queries_say_so() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let all = rules(&scene, "write", "write");
    let token = scene.consul.create_token(&all).await?;
    let arg = format!("--consul-http-token={}", token.secret);
    let lictor = scene.lictor_with(&[&arg]).await?;
    let kept = settle(&scene).await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let only_read = rules(&scene, "read", "read");
    scene.consul.change_rules(&token, &only_read).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(2).await?;
    let is_denied = |status: &Value| {
        let (ready, reason, message) = condition(status, "Ready");
        (ready, reason) == ("False", "AccessDenied") && message.contains("ermission denied")
    };
    scene.shown(Kind::Intention, "turn-0000", is_denied).await?;
    scene
        .shown(Kind::PreparedQuery, "turn-0001", is_denied)
        .await?;
    instances_go_on(&scene, "web-0").await?;
    scene.consul.change_rules(&token, &all).await?;
    turns.exact().await?;
    oracle.verdict().await
}
