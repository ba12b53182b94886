//! `protocol` of a registration: the `service-defaults` of its service.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{DEFAULTS, ENTRY, rules, speaks, to};
use crate::support::{Kind, Scene, condition};

async fn speaks_now(scene: &Scene, service: &str, protocol: &str) -> Result<Value> {
    let is = |entry: &Value| entry["Protocol"] == protocol;
    scene.config_entry_is(DEFAULTS, service, is).await
}

async fn is_ready(scene: &Scene, name: &str) -> Result<()> {
    let is = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration(name, is).await.map(drop)
}

async fn is_not(scene: &Scene, name: &str, reason: &str) -> Result<String> {
    let is = |status: &Value| condition(status, "Ready").1 == reason;
    let status = scene.registration(name, is).await?;
    Ok(condition(&status, "Ready").2.to_owned())
}

#[tokio::test]
async fn equal_protocols_are_shared_and_of_different_ones_the_older_counts() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene.register("old", speaks(&payment, "http")).await?;
    let entry = speaks_now(&scene, &payment, "http").await?;
    assert_eq!(
        entry["Meta"],
        json!({"external-source": "kubernetes", "lictor-cluster": scene.cluster,
               "lictor-owner": format!("ServiceRegistration/{}/old", scene.namespace)})
    );
    scene.event("Registered", "old", DEFAULTS).await?;
    super::merge::next_second().await?;
    scene.register("same", speaks(&payment, "http")).await?;
    is_ready(&scene, "same").await?;
    super::merge::next_second().await?;
    scene.register("young", speaks(&payment, "grpc")).await?;
    let message = is_not(&scene, "young", "Conflict").await?;
    ensure!(message.contains("/old"), "{message}");
    is_ready(&scene, "old").await?;
    scene.unregister("old").await?;
    let owner = format!("ServiceRegistration/{}/same", scene.namespace);
    let is = |entry: &Value| entry["Meta"]["lictor-owner"] == *owner;
    let handed = scene.config_entry_is(DEFAULTS, &payment, is).await?;
    assert_eq!(handed["CreateIndex"], entry["CreateIndex"]);
    scene
        .edit("same", json!({"spec": {"protocol": null}}))
        .await?;
    speaks_now(&scene, &payment, "grpc").await?;
    is_ready(&scene, "young").await?;
    scene.unregister("young").await?;
    scene
        .config_entry_is(DEFAULTS, &payment, Value::is_null)
        .await?;
    lictor.idle().await
}

#[tokio::test]
async fn defaults_of_others_serve_where_they_say_the_same() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let (same, other) = (scene.named("same"), scene.named("other"));
    let theirs = |name: &str, protocol: &str| json!({"Kind": DEFAULTS, "Name": name, "Protocol": protocol, "MaxInboundConnections": 7});
    let mut before = Vec::new();
    for (name, protocol) in [(&same, "http"), (&other, "grpc")] {
        scene.entry_by_hand(&theirs(name, protocol)).await?;
        before.push(scene.config_entry(DEFAULTS, name).await?);
    }
    scene.register("same", speaks(&same, "http")).await?;
    scene.register("other", speaks(&other, "http")).await?;
    is_ready(&scene, "same").await?;
    let message = is_not(&scene, "other", "OwnedByAnother").await?;
    ensure!(
        message.contains("without marks") && message.contains("\"grpc\""),
        "{message}"
    );
    scene.unregister("same").await?;
    scene.barrier().await?;
    lictor.idle().await?;
    for (name, before) in [&same, &other].into_iter().zip(&before) {
        assert_eq!(scene.config_entry(DEFAULTS, name).await?, *before);
    }
    // Taken over where that is asked for, with all that is in it.
    let adopt = json!({"spec": {"adopt": true}});
    scene.edit("other", adopt).await?;
    let taken = speaks_now(&scene, &other, "http").await?;
    assert_eq!(taken["MaxInboundConnections"], 7);
    is_ready(&scene, "other").await?;
    scene.unregister("other").await?;
    let left = |entry: &Value| {
        entry["Meta"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
    };
    let left = scene.config_entry_is(DEFAULTS, &other, left).await?;
    assert_eq!(left["MaxInboundConnections"], 7);
    let protocol = left["Protocol"].as_str().unwrap_or_default();
    assert_eq!(protocol, "", "what we wrote into it is gone");
    Ok(())
}

/// Consul keeps the protocol for as long as rules need it.
#[tokio::test]
async fn the_protocol_comes_before_the_rules_and_goes_after_them() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene.intend("shop", to(&payment, &rules("web"))).await?;
    scene.register("payment", speaks(&payment, "http")).await?;
    scene.sources_are(&payment, &["web rules"]).await?;
    // It cannot become one without requests.
    scene
        .edit("payment", json!({"spec": {"protocol": "tcp"}}))
        .await?;
    let message = is_not(&scene, "payment", "ConsulRefused").await?;
    ensure!(message.contains("permissions"), "{message}");
    scene
        .edit("payment", json!({"spec": {"protocol": "http"}}))
        .await?;
    is_ready(&scene, "payment").await?;
    // Whether rules that stay need it, only Consul knows.
    let refused = async || {
        let refused = ["refused", DEFAULTS, "delete"];
        lictor.metric("lictor_operations_total", &refused).await
    };
    scene.unregister("payment").await?;
    crate::support::until("Consul to be asked", async || {
        ensure!(refused().await? > 0.0, "not yet");
        anyhow::Ok(())
    })
    .await?;
    speaks_now(&scene, &payment, "http").await?;
    // Nobody asks again and again.
    for _ in 0..3 {
        scene.barrier().await?;
    }
    let asked = refused().await?;
    ensure!(asked <= 5.0, "{asked} removals that Consul refused");
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .config_entry_is(ENTRY, &payment, Value::is_null)
        .await?;
    scene
        .config_entry_is(DEFAULTS, &payment, Value::is_null)
        .await?;
    // What was refused while rules needed another is written as soon as none does.
    scene.register("payment", speaks(&payment, "http")).await?;
    scene.intend("shop", to(&payment, &rules("web"))).await?;
    scene.sources_are(&payment, &["web rules"]).await?;
    scene
        .edit("payment", json!({"spec": {"protocol": "tcp"}}))
        .await?;
    is_not(&scene, "payment", "ConsulRefused").await?;
    scene.delete(Kind::Intention, "shop").await?;
    speaks_now(&scene, &payment, "tcp").await?;
    is_ready(&scene, "payment").await
}

#[tokio::test]
async fn a_protocol_that_nobody_asks_for_is_found_after_a_restart() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (goes, stays) = (scene.named("goes"), scene.named("stays"));
    for (name, service) in [("goes", &goes), ("stays", &stays)] {
        scene.register(name, speaks(service, "http")).await?;
        is_ready(&scene, name).await?;
    }
    lictor.stop().await?;
    let kept = scene.config_entry(DEFAULTS, &stays).await?;
    scene.unregister("goes").await?;
    let _lictor = scene.lictor().await?;
    scene
        .config_entry_is(DEFAULTS, &goes, Value::is_null)
        .await?;
    assert_eq!(scene.config_entry(DEFAULTS, &stays).await?, kept);
    Ok(())
}

/// `proxy-defaults` is of all services: on a bed of its own.
#[tokio::test]
async fn a_protocol_that_all_services_have_is_not_needed() -> Result<()> {
    let (_guard, installed) = crate::faults::alone().await?;
    let scene = Scene::on(installed).await?;
    let _lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene.register("payment", speaks(&payment, "http")).await?;
    scene.intend("shop", to(&payment, &rules("web"))).await?;
    scene.is_ready("shop").await?;
    let all = json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}});
    scene.entry_by_hand(&all).await?;
    scene.unregister("payment").await?;
    let gone = scene
        .config_entry_is(DEFAULTS, &payment, Value::is_null)
        .await;
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .config_entry_is(ENTRY, &payment, Value::is_null)
        .await?;
    scene.entry_away("proxy-defaults", "global").await?;
    gone.map(drop)
}
