//! When a query goes, and when it does not.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::writes;
use crate::support::{Kind, Scene, condition, json_lines};

/// Three queries, `q0` to `q2`.
async fn three(scene: &Scene) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for object in ["q0", "q1", "q2"] {
        let name = scene.named(object);
        scene
            .query(object, &name, json!({"service": "payment"}))
            .await?;
        names.push(name);
    }
    Ok(names)
}

#[tokio::test]
async fn what_was_deleted_while_lictor_was_down_goes_at_the_start() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names = three(&scene).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let stays = scene.query_named(&names[1]).await?;
    scene.delete(Kind::PreparedQuery, "q0").await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    scene.query_is(&names[0], Value::is_null).await?;
    scene.ledger_is(&names[0], Value::is_null).await?;
    let lines = json_lines(&lictor.log())?;
    let audit: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .collect();
    assert_eq!(audit.len(), 1);
    assert_eq!(audit[0]["seen"], false);
    assert_eq!(scene.query_named(&names[1]).await?, stays);
    lictor.stop().await?;

    // All that is left at once is not believed so soon.
    scene.delete(Kind::PreparedQuery, "q1").await?;
    scene.delete(Kind::PreparedQuery, "q2").await?;
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_held_deletes", 2.0).await?;
    assert_eq!(scene.query_named(&names[1]).await?, stays);
    let spec = json!({"name": names[1], "service": "payment"});
    scene.create(Kind::PreparedQuery, "q1", spec).await?;
    scene.query_is(&names[2], Value::is_null).await?;
    let kept = scene.whole("q1", &names[1], |_| true).await?;
    assert_eq!(kept, stays);
    Ok(())
}

#[tokio::test]
async fn upsert_only_removes_no_query() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    let name = scene.named("nearest");
    scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    let change = json!({"spec": {"service": "other"}});
    scene.change(Kind::PreparedQuery, "nearest", change).await?;
    let changed = scene
        .whole("nearest", &name, |query| {
            query["Service"]["Service"] == "other"
        })
        .await?;
    // Under another name it is another query.
    let moved = scene.named("moved");
    let change = json!({"spec": {"name": moved}});
    scene.change(Kind::PreparedQuery, "nearest", change).await?;
    scene.query_is(&moved, |query| !query.is_null()).await?;
    lictor.shows("lictor_held_deletes", 1.0).await?;
    let message = scene.refused("nearest", "Held").await?;
    ensure!(message.contains("--policy is upsert-only"), "{message}");
    assert_eq!(scene.query_named(&name).await?, changed);
    lictor.stop().await?;
    let _lictor = scene.lictor().await?;
    scene.query_is(&name, Value::is_null).await?;
    scene.whole("nearest", &moved, |_| true).await?;
    Ok(())
}

#[tokio::test]
async fn a_dry_run_and_a_report_of_drift_write_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let query = scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    lictor.idle().await?;
    lictor.stop().await?;

    let lictor = scene.lictor_with(&["--drift=report"]).await?;
    lictor.idle().await?;
    scene
        .change_by_hand(&query, &json!({"DNS": {"TTL": "9s"}}))
        .await?;
    scene.refused("nearest", "Drifted").await?;
    lictor
        .shows("lictor_drift_total{kind=\"query\"}", 1.0)
        .await?;
    scene
        .event("DriftRepaired", "nearest", "is left so")
        .await?;
    assert_eq!(scene.query_named(&name).await?["DNS"]["TTL"], "9s");
    lictor.stop().await?;

    let lictor = scene.lictor_with(&["--policy=dry-run"]).await?;
    let other = scene.named("other");
    let spec = json!({"name": other, "service": "payment"});
    scene.create(Kind::PreparedQuery, "other", spec).await?;
    for line in [format!("query/{name}"), format!("query/{other}")] {
        crate::support::until("the plan to be told", async || {
            let log = lictor.log();
            let told = log
                .lines()
                .any(|seen| seen.contains("would") && seen.contains(&line));
            ensure!(told, "{line} is not told");
            anyhow::Ok(())
        })
        .await?;
    }
    assert!(scene.query_named(&other).await?.is_null());
    assert!(scene.ledger(&other).await?.is_null());
    assert_eq!(scene.query_named(&name).await?["DNS"]["TTL"], "9s");
    assert!(writes(&lictor, "update").await? == 0.0);
    Ok(())
}

#[tokio::test]
async fn a_namespace_that_is_excluded_asks_for_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    let stays = scene.named("stays");
    let endpoints = json!([{"name": "a", "address": "10.1.1.1"}]);
    let db = scene.named("db");
    scene
        .register("db", json!({"service": db, "endpoints": endpoints}))
        .await?;
    scene
        .registration("db", |status| status["instances"]["summary"] == "1/1")
        .await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let excluded = format!("--exclude-namespace={}", scene.namespace);
    let lictor = scene
        .lictor_with(&[&excluded, "--policy=upsert-only"])
        .await?;
    let spec = json!({"name": stays, "service": "payment"});
    scene.create(Kind::PreparedQuery, "stays", spec).await?;
    // What it held is missing, and would go.
    lictor.shows("lictor_held_deletes", 2.0).await?;
    lictor.idle().await?;
    assert!(scene.query_named(&stays).await?.is_null());
    Ok(())
}

#[tokio::test]
async fn a_paused_or_invalid_object_keeps_its_query_as_it_is() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let query = scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    let listed = scene.named("listed");
    let endpoints = json!([{"name": "a", "address": "10.1.1.1"}]);
    let spec = json!({"service": "pay", "endpoints": endpoints, "queries": [{"name": listed}]});
    scene.register("pay", spec).await?;
    let of_list = scene.query_is(&listed, |query| !query.is_null()).await?;
    scene
        .registration("pay", |status| status["queries"][0]["id"] == of_list["ID"])
        .await?;

    let pause = json!({"metadata": {"annotations": {"lictor.io/paused": "true"}}});
    scene
        .change(Kind::PreparedQuery, "nearest", pause.clone())
        .await?;
    scene.refused("nearest", "Paused").await?;
    let change = json!({"spec": {"service": "other"}});
    scene.change(Kind::PreparedQuery, "nearest", change).await?;
    scene.edit("pay", pause).await?;
    scene
        .registration("pay", |status| condition(status, "Ready").1 == "Paused")
        .await?;
    scene
        .edit("pay", json!({"spec": {"queries": null}}))
        .await?;
    // Nor is what another hand does undone, after a restart either.
    scene
        .change_by_hand(&query, &json!({"DNS": {"TTL": "9s"}}))
        .await?;
    scene.barrier().await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    scene.barrier().await?;
    lictor.idle().await?;
    let seen = scene.query_named(&name).await?;
    assert_eq!(
        (&seen["DNS"]["TTL"], &seen["Service"]["Service"]),
        (&json!("9s"), &json!("payment"))
    );
    assert_eq!(scene.query_named(&listed).await?, of_list);

    let resume = json!({"metadata": {"annotations": {"lictor.io/paused": null}}});
    scene
        .change(Kind::PreparedQuery, "nearest", resume.clone())
        .await?;
    let seen = scene
        .whole("nearest", &name, |query| {
            query["Service"]["Service"] == "other"
        })
        .await?;
    assert_eq!(seen["ID"], query["ID"]);
    scene.edit("pay", resume).await?;
    scene.query_is(&listed, Value::is_null).await?;
    Ok(())
}
