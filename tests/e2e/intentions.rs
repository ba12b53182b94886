//! `Intention`s: what they become in Consul, how several share a destination, and whose is what.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::{Kind, Scene, condition};

fn to(destination: &str, sources: &Value) -> Value {
    json!({"destination": {"name": destination}, "sources": sources})
}

#[tokio::test]
async fn intentions_of_one_destination_are_one_entry() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let web = json!([{"name": "web", "action": "allow", "description": "the shop"},
                     {"name": "*", "action": "deny"}]);
    scene
        .create(Kind::Intention, "shop", to(&payment, &web))
        .await?;
    scene
        .sources_are(&payment, &["* deny", "web allow"])
        .await?;
    let api = json!([{"name": "api", "action": "allow"}]);
    scene
        .create(Kind::Intention, "api", to(&payment, &api))
        .await?;
    let entry = scene
        .sources_are(&payment, &["* deny", "api allow", "web allow"])
        .await?;
    assert_eq!(entry["Meta"]["lictor-cluster"], scene.cluster);
    assert_eq!(entry["Meta"]["external-source"], "kubernetes");
    let status = scene
        .shown(Kind::Intention, "shop", |status| {
            status["sources"]["applied"] == 2
        })
        .await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(
        status["sources"],
        json!({"desired": 2, "applied": 2, "foreign": 0, "summary": "2/2"})
    );
    assert_eq!(status["destination"], payment);
    let shown = scene
        .bed
        .kubectl(&["get", "intent", "--namespace", &scene.namespace])
        .await?;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "DESTINATION", "SOURCES", "READY", "AGE"]);
    assert_eq!(rows[2][..4], ["shop", &payment, "2/2", "True"]);

    scene.delete(Kind::Intention, "shop").await?;
    scene.sources_are(&payment, &["api allow"]).await?;
    scene.delete(Kind::Intention, "api").await?;
    scene
        .config_entry_is("service-intentions", &payment, Value::is_null)
        .await?;
    ensure!(scene.event("Registered", "shop", &payment).await.is_ok());
    Ok(())
}
