//! Whose a query is.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{writes, written, wrote_once};
use crate::support::{Kind, Lictor, Scene, until};

#[tokio::test]
async fn a_query_made_by_hand_is_left_and_taken_over_only_if_asked() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let spelt = name.to_uppercase();
    let query = json!({"Name": spelt, "Service": {"Service": "theirs"}, "Session": ""});
    let id = scene.query_by_hand(&query).await?;
    let theirs = scene.query_named(&name).await?;
    let spec = json!({"name": name, "service": "payment"});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let message = scene.refused("nearest", "OwnedByAnother").await?;
    ensure!(
        message.contains(&id) && message.contains("spec.adopt"),
        "{message}"
    );
    scene.event("OwnedByAnother", "nearest", &id).await?;
    scene.barrier().await?;
    assert_eq!(scene.query_named(&name).await?, theirs);
    assert!(scene.ledger(&name).await?.is_null());

    let adopt = json!({"spec": {"adopt": true}});
    scene.change(Kind::PreparedQuery, "nearest", adopt).await?;
    let ours = scene
        .whole("nearest", &name, |query| {
            query["Service"]["Service"] == "payment"
        })
        .await?;
    assert_eq!((&ours["ID"], &ours["Name"]), (&json!(id), &json!(name)));
    assert!(writes(&lictor, "create").await? == 0.0);
    wrote_once(&lictor);
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    Ok(())
}

/// A name may be taken by what has another one: Consul lets none be the id of a query.
#[tokio::test]
async fn a_name_that_consul_gave_to_another_in_other_words_is_said_to_be_taken() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let query = json!({"Name": scene.named("theirs"), "Service": {"Service": "theirs"}});
    let id = scene.query_by_hand(&query).await?;
    let there = scene.query_named(&scene.named("theirs")).await?;
    let spec = json!({"name": id, "service": "payment"});
    scene.create(Kind::PreparedQuery, "alike", spec).await?;
    let message = scene.refused("alike", "OwnedByAnother").await?;
    ensure!(message.contains("existing query ID"), "{message}");
    scene.event("OwnedByAnother", "alike", &id).await?;
    scene.barrier().await?;
    let tried = written(&lictor, "create", "conflict").await?;
    ensure!((2.0..=6.0).contains(&tried), "{tried} times");
    assert_eq!(scene.query_named(&scene.named("theirs")).await?, there);

    // It is tried again, and may be there then.
    scene.consul.delete(&format!("/v1/query/{id}")).await?;
    scene.whole("alike", &id, |_| true).await?;
    scene.delete(Kind::PreparedQuery, "alike").await?;
    scene.query_is(&id, Value::is_null).await?;
    scene.ledger_is(&id, Value::is_null).await?;
    Ok(())
}

/// Anybody who may write our ledger may write the id of any query into it.
#[tokio::test]
async fn a_ledger_that_is_spoilt_gives_us_no_query_of_another_and_takes_none_of_ours() -> Result<()>
{
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (name, their_name) = (scene.named("nearest"), scene.named("theirs"));
    let query = json!({"Name": their_name, "Service": {"Service": "theirs"}});
    let their_id = scene.query_by_hand(&query).await?;
    let theirs = scene.query_named(&their_name).await?;
    let note =
        json!({"id": their_id, "hash": "", "kind": "PreparedQuery", "namespace": "a", "name": "b"});
    let other = format!("/v1/kv/lictor/v1/{}-b/query/{their_name}", scene.cluster);
    scene.consul.put(&other, &note).await?;
    let ours = scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    lictor.idle().await?;
    let noted = scene.ledger(&name).await?;
    let key = format!("/v1/kv/lictor/v1/{}/query/{name}", scene.cluster);
    let mut spoilt = noted.clone();
    spoilt["id"] = json!(their_id);

    // With ours in its place.
    for entry in [&spoilt, &json!("garbage")] {
        scene.consul.put(&key, entry).await?;
        scene.ledger_is(&name, |ledger| *ledger == noted).await?;
        scene.barrier().await?;
        assert_eq!(scene.query_named(&name).await?, ours);
    }
    // Also by a process that never saw what it said before.
    lictor.stop().await?;
    scene.consul.put(&key, &spoilt).await?;
    let lictor = scene.lictor().await?;
    scene.ledger_is(&name, |ledger| *ledger == noted).await?;
    lictor.idle().await?;
    assert_eq!(scene.query_named(&name).await?, ours);

    // And with ours gone.
    let id = ours["ID"].as_str().context("no id")?;
    scene.consul.put(&key, &spoilt).await?;
    scene.consul.delete(&format!("/v1/query/{id}")).await?;
    scene
        .whole("nearest", &name, |seen| seen["ID"] != ours["ID"])
        .await?;
    assert_eq!(scene.query_named(&their_name).await?, theirs);
    scene.consul.put(&key, &spoilt).await?;
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    scene.ledger_is(&name, Value::is_null).await?;
    scene.barrier().await?;
    assert_eq!(scene.query_named(&their_name).await?, theirs);
    Ok(())
}

/// Whether another cluster's has it is in that cluster's ledger.
#[tokio::test]
async fn a_query_of_another_cluster_is_not_taken_over() -> Result<()> {
    let scene = Scene::new().await?;
    let name = scene.named("nearest");
    let other = format!("{}-b", scene.cluster);
    let theirs = scene.lictor_with_cluster(&other).await?;
    let spec = json!({"name": name, "service": "payment", "adopt": true});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let query = scene.query_is(&name, |query| !query.is_null()).await?;
    until("the other cluster to note it", async || {
        let ledger = scene.ledger_of(&other, &name).await?;
        ensure!(ledger["id"] == query["ID"], "{ledger}");
        anyhow::Ok(())
    })
    .await?;
    theirs.stop().await?;

    let lictor = scene.lictor().await?;
    let message = scene.refused("nearest", "OwnedByAnother").await?;
    ensure!(
        message.contains(&format!("the cluster \"{other}\"")),
        "{message}"
    );
    // Nor where it was renamed by hand: it has its id still.
    let renamed = scene.named("renamed");
    scene
        .change_by_hand(&query, &json!({"Name": renamed}))
        .await?;
    scene
        .whole("nearest", &name, |seen| seen["ID"] != query["ID"])
        .await?;
    let spec = json!({"name": renamed, "service": "payment", "adopt": true});
    scene.create(Kind::PreparedQuery, "renamed", spec).await?;
    scene.refused("renamed", "OwnedByAnother").await?;
    lictor.idle().await?;
    let there = scene.query_named(&renamed).await?;
    assert_eq!(there["ID"], query["ID"]);
    Ok(())
}

/// The same manifests are applied to two clusters at once.
#[tokio::test]
async fn two_clusters_that_ask_for_the_same_at_once_never_share_a_query() -> Result<()> {
    let scene = Scene::new().await?;
    let other = format!("{}-b", scene.cluster);
    let _both: [Lictor; 2] = [
        scene.lictor().await?,
        scene.lictor_with_cluster(&other).await?,
    ];
    let objects: Vec<String> = (0..12).map(|number| format!("q{number}")).collect();
    for object in &objects {
        let spec = json!({"name": scene.named(object), "service": "payment"});
        scene.create(Kind::PreparedQuery, object, spec).await?;
    }
    for object in &objects {
        let name = scene.named(object);
        until(&format!("one ledger to have {name}"), async || {
            let query = scene.query_named(&name).await?;
            let id = query["ID"].as_str().context("it is not there")?;
            let (one, two) = (
                scene.ledger(&name).await?,
                scene.ledger_of(&other, &name).await?,
            );
            let has = |ledger: &Value| ledger["id"] == *id;
            ensure!(has(&one) != has(&two), "{one} and {two}");
            ensure!(one.is_null() || two.is_null(), "{one} and {two}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_two_objects_the_older_has_the_name_and_the_other_takes_over_in_place() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = scene.named("nearest");
    let spec = json!({"service": "older"});
    let query = scene.query("older", &name, spec).await?;
    let api = scene.objects(Kind::PreparedQuery);
    scene.is_older(&api.get("older").await?).await?;
    let younger = json!({"name": name.to_uppercase(), "service": "younger"});
    scene
        .create(Kind::PreparedQuery, "younger", younger)
        .await?;
    let message = scene.refused("younger", "Conflict").await?;
    ensure!(message.contains("/older"), "{message}");
    scene.event("Conflict", "younger", &name).await?;
    assert_eq!(scene.query_named(&name).await?, query);

    scene.delete(Kind::PreparedQuery, "older").await?;
    let taken = scene
        .whole("younger", &name, |query| {
            query["Service"]["Service"] == "younger"
        })
        .await?;
    assert_eq!(taken["ID"], query["ID"]);
    assert_eq!(taken["CreateIndex"], query["CreateIndex"]);
    wrote_once(&lictor);
    Ok(())
}
