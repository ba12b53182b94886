//! A release that is taken back finds what a newer one wrote.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Kind, Scene, until};

/// Keys that this release does not know.
const LATER: &str = "lictor-later";

/// The entries of the cluster's in KV, but for its epoch, which each start writes, by what is behind
/// `lictor/v1/<cluster>/`.
async fn ledgers(scene: &Scene) -> Result<Vec<(String, Value)>> {
    let prefix = format!("lictor/v1/{}/", scene.cluster);
    let path = format!("/v1/kv/{prefix}?keys=true&consistent");
    let keys = scene.consul.get(&path).await?;
    let mut all = Vec::new();
    for key in keys.as_array().context("no keys")? {
        let key = key.as_str().context("no key")?;
        let path = format!("/v1/kv/{key}?raw&consistent");
        let value = scene.consul.get(&path).await?;
        all.push((key[prefix.len()..].to_owned(), value));
    }
    Ok(all)
}

#[tokio::test]
async fn what_a_newer_release_wrote_is_kept_and_is_no_drift() -> Result<()> {
    let scene = Scene::new().await?;
    let (web, payment, query) = (
        scene.named("web"),
        scene.named("payment"),
        scene.named("find"),
    );
    let pod = scene.pod("web-0").lictor("service", &web);
    pod.create_ready(&scene.client).await?;
    let spec = json!({"destination": {"name": payment},
                      "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "shop", spec).await?;
    let spec = json!({"name": query, "service": web});
    scene.create(Kind::PreparedQuery, "find", spec).await?;
    let exclusive = ["--default-policy=exclusive"];
    let lictor = scene.lictor_with(&exclusive).await?;
    scene.status(&web, "web-0", "passing").await?;
    scene.sources_are(&payment, &["web allow"]).await?;
    scene.query_is(&query, |found| !found.is_null()).await?;
    let held = format!("name/{web}");
    until("the name to be held", async || {
        let ledgers = ledgers(&scene).await?;
        ensure!(ledgers.iter().any(|(key, _)| *key == held), "{ledgers:#?}");
        anyhow::Ok(())
    })
    .await?;
    lictor.idle().await?;
    lictor.stop().await?;

    // As a newer release would have it: more in the marks, and in each entry of the ledgers.
    let path = format!("/v1/catalog/service/{web}?consistent");
    let there = scene.consul.get(&path).await?[0].clone();
    let mut meta = there["ServiceMeta"].clone();
    meta[LATER] = json!("x");
    let service = json!({
        "ID": there["ServiceID"], "Service": web, "Address": there["ServiceAddress"],
        "Port": there["ServicePort"], "Tags": there["ServiceTags"], "Meta": meta,
        "Weights": there["ServiceWeights"], "TaggedAddresses": there["ServiceTaggedAddresses"],
        "EnableTagOverride": there["ServiceEnableTagOverride"],
    });
    let entry = json!({"Node": there["Node"], "SkipNodeUpdate": true, "Service": service});
    scene.by_hand(&entry).await?;
    let mut entry = scene.config_entry("service-intentions", &payment).await?;
    entry["Meta"][LATER] = json!("x");
    scene.consul.put("/v1/config", &entry).await?;
    let written = ledgers(&scene).await?;
    ensure!(written.len() >= 3, "{written:#?}");
    for (key, mut value) in written {
        value["later"] = json!({"more": true});
        let path = format!("/v1/kv/lictor/v1/{}/{key}", scene.cluster);
        scene.consul.put(&path, &value).await?;
    }
    let (before, noted) = (scene.dump().await?, ledgers(&scene).await?);
    let intentions = scene.config_entry("service-intentions", &payment).await?;

    // The older one takes none of it for drift.
    let lictor = scene.lictor_with(&exclusive).await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    assert_eq!(
        scene.config_entry("service-intentions", &payment).await?,
        intentions
    );
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(operations == 0.0, "{operations} operations");
    for ((key, now), (_, then)) in ledgers(&scene).await?.iter().zip(&noted) {
        ensure!(now["later"] == json!({"more": true}), "{key}: {now}");
        ensure!(key == "epoch" || now == then, "{key}: {now}, {then}");
    }

    // What it changes keeps what it does not know, and what goes goes.
    let first = scene.find(&web, "web-0").await?.context("not there")?;
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    let seen = scene
        .instance(&web, "web-0", |seen| seen.tags == ["v2"])
        .await?;
    assert_eq!(seen.create_index, first.create_index);
    assert_eq!(seen.meta.get(LATER).map(String::as_str), Some("x"));
    let other = json!({"spec": {"sources": [{"name": "web", "action": "deny"}]}});
    scene.change(Kind::Intention, "shop", other).await?;
    scene.sources_are(&payment, &["web deny"]).await?;
    let entry = scene.config_entry("service-intentions", &payment).await?;
    assert_eq!(entry["Meta"][LATER], json!("x"));
    scene.delete(Kind::PreparedQuery, "find").await?;
    scene.query_is(&query, Value::is_null).await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone(&web, "web-0").await?;
    lictor.stop().await?;
    Ok(())
}
