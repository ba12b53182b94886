//! Prepared queries: `PreparedQuery`s and those of `ServiceRegistration`s.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::{Kind, Scene, condition};

#[tokio::test]
async fn a_query_is_created_changed_in_place_and_removed() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let spec = json!({"name": name, "service": "payment", "onlyPassing": true, "tags": ["v2"]});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let query = scene.query_is(&name, |query| !query.is_null()).await?;
    assert_eq!(query["Service"]["OnlyPassing"], true);
    let status = scene
        .shown(Kind::PreparedQuery, "nearest", |status| {
            status["id"] == query["ID"]
        })
        .await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    let ledger = format!("/v1/kv/lictor/v1/{}/query/{name}?raw", scene.cluster);
    let noted = scene.consul.get(&ledger).await?;
    assert_eq!(noted["id"], query["ID"]);

    scene
        .change(
            Kind::PreparedQuery,
            "nearest",
            json!({"spec": {"dns": {"ttl": "7s"}}}),
        )
        .await?;
    let changed = scene
        .query_is(&name, |query| query["DNS"]["TTL"] == "7s")
        .await?;
    assert_eq!(changed["ID"], query["ID"]);
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    ensure!(scene.event("Registered", "nearest", &name).await.is_ok());
    Ok(())
}
