//! A process that dies between the ledger and the query.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use rand::Rng as _;
use serde_json::{Value, json};

use super::written;
use crate::support::{Kind, Lictor, Scene, json_lines};

/// Requests of this kind fail.
fn fail(what: &str) -> Fault {
    Fault::Answer(Answer::new(503).only(what))
}

const CREATE: &str = "POST /v1/query";
const UPDATE: &str = "PUT /v1/query/";
const NOTE: &str = "PUT /v1/txn";

async fn behind(scene: &Scene, consul: &Proxy) -> Result<Lictor> {
    let address = format!("--consul-http-addr={}", consul.url());
    scene.lictor_with(&[&address]).await
}

/// The query is noted and not created.
async fn noted(scene: &Scene, consul: &Proxy, name: &str) -> Result<()> {
    consul.set(fail(CREATE)).await?;
    let spec = json!({"name": name, "service": "payment"});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let ledger = scene.ledger_is(name, |ledger| !ledger.is_null()).await?;
    ensure!(ledger["id"].is_null(), "{ledger}");
    Ok(())
}

/// There is one query of the name.
async fn one(scene: &Scene, name: &str) -> Result<()> {
    let all = scene.consul.get("/v1/query?consistent").await?;
    let all = all.as_array().cloned().unwrap_or_default();
    let named = all.iter().filter(|query| query["Name"] == *name).count();
    ensure!(named == 1, "{named} queries");
    Ok(())
}

#[tokio::test]
async fn killed_after_the_note_it_creates_the_query() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let lictor = behind(&scene, &consul).await?;
    let name = scene.named("nearest");
    noted(&scene, &consul, &name).await?;
    lictor.kill();
    assert!(scene.query_named(&name).await?.is_null());
    let _lictor = scene.lictor().await?;
    scene.whole("nearest", &name, |_| true).await?;
    one(&scene, &name).await
}

#[tokio::test]
async fn killed_after_the_query_it_notes_the_id_even_if_the_object_changed() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let lictor = behind(&scene, &consul).await?;
    let name = scene.named("nearest");
    noted(&scene, &consul, &name).await?;
    consul.set(fail(NOTE)).await?;
    let query = scene.query_is(&name, |query| !query.is_null()).await?;
    ensure!(scene.ledger(&name).await?["id"].is_null());
    lictor.kill();
    let change = json!({"spec": {"service": "other"}});
    scene.change(Kind::PreparedQuery, "nearest", change).await?;

    // The next one changes the query and dies as well.
    consul.set(fail(UPDATE)).await?;
    let lictor = behind(&scene, &consul).await?;
    scene
        .ledger_is(&name, |ledger| ledger["id"] == query["ID"])
        .await?;
    lictor.kill();
    let _lictor = scene.lictor().await?;
    let changed = scene
        .whole("nearest", &name, |query| {
            query["Service"]["Service"] == "other"
        })
        .await?;
    assert_eq!(changed["ID"], query["ID"]);
    one(&scene, &name).await
}

#[tokio::test]
async fn killed_after_the_removal_it_strikes_the_note() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let lictor = behind(&scene, &consul).await?;
    let name = scene.named("nearest");
    scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    lictor.idle().await?;
    consul.set(fail(NOTE)).await?;
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    ensure!(!scene.ledger(&name).await?.is_null());
    lictor.kill();
    let lictor = scene.lictor().await?;
    scene.ledger_is(&name, Value::is_null).await?;
    lictor.shows("lictor_owned{kind=\"query\"}", 0.0).await
}

/// Between the note and the query another hand is quicker; with a crash in between and without one.
#[tokio::test]
async fn a_name_that_another_takes_meanwhile_is_left_to_it() -> Result<()> {
    for dies in [false, true] {
        let scene = Scene::new().await?;
        let consul = Proxy::start(&scene.bed.consul_addr())?;
        let lictor = behind(&scene, &consul).await?;
        let name = scene.named("nearest");
        noted(&scene, &consul, &name).await?;
        let query = json!({"Name": name, "Service": {"Service": "theirs"}});
        let id = scene.query_by_hand(&query).await?;
        let theirs = scene.query_named(&name).await?;
        let _lictor = if dies {
            lictor.kill();
            scene.lictor().await?
        } else {
            consul.set(Fault::Pass).await?;
            lictor
        };
        let message = scene.refused("nearest", "OwnedByAnother").await?;
        ensure!(message.contains(&id), "{message}");
        scene.ledger_is(&name, Value::is_null).await?;
        scene.barrier().await?;
        assert_eq!(scene.query_named(&name).await?, theirs);
    }
    Ok(())
}

/// How often it is killed.
const KILLS: u32 = 12;
const LONGEST_LIFE: u64 = 700;

#[tokio::test]
async fn killed_at_random_moments_every_query_is_there_once_and_known() -> Result<()> {
    let scene = Scene::new().await?;
    let objects: Vec<String> = (0..6).map(|number| format!("q{number}")).collect();
    let flags = ["--max-delete-percent=100"];
    let mut version = 0;
    for life in 0..KILLS {
        let lictor = scene.spawn_lictor(&flags, &[]).await?;
        for object in &objects {
            version += 1;
            let service = format!("s{version}");
            let spec = json!({"name": scene.named(object), "service": service});
            // The sixth comes and goes.
            let there = life > 0 && (*object != objects[5] || life % 2 == 1);
            if there && *object == objects[5] {
                scene.delete(Kind::PreparedQuery, object).await?;
            } else if there {
                let change = json!({"spec": {"service": service}});
                scene.change(Kind::PreparedQuery, object, change).await?;
            } else {
                scene.create(Kind::PreparedQuery, object, spec).await?;
            }
        }
        let moment = Duration::from_millis(rand::rng().random_range(0..LONGEST_LIFE));
        // What is waited for is the kill itself.
        tokio::time::sleep(moment).await;
        lictor.kill();
    }
    let lictor = scene.lictor_with(&flags).await?;
    for object in &objects[..5] {
        let name = scene.named(object);
        let wanted = scene.objects(Kind::PreparedQuery).get(object).await?;
        let service = wanted.data["spec"]["service"].clone();
        scene
            .whole(object, &name, |query| {
                query["Service"]["Service"] == service
            })
            .await?;
        one(&scene, &name).await?;
    }
    let gone = scene.named(&objects[5]);
    scene.query_is(&gone, Value::is_null).await?;
    scene.ledger_is(&gone, Value::is_null).await?;
    lictor.shows("lictor_owned{kind=\"query\"}", 5.0).await
}

/// Consul removes it and the answer is lost: that it was removed is told all the same, once.
#[tokio::test]
async fn a_removal_whose_answer_is_lost_is_told() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let address = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&address, "--log-format=json"]).await?;
    let name = scene.named("nearest");
    scene
        .query("nearest", &name, json!({"service": "payment"}))
        .await?;
    lictor.idle().await?;
    // Answers take their time, and the one to the removal never comes.
    consul
        .set(Fault::Delay {
            request: Duration::ZERO,
            response: Duration::from_secs(3),
        })
        .await?;
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.query_is(&name, Value::is_null).await?;
    consul.set(Fault::Reset).await?;
    consul.set(Fault::Pass).await?;
    scene.ledger_is(&name, Value::is_null).await?;
    lictor.idle().await?;
    let lines = json_lines(&lictor.log())?;
    let audit = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .count();
    assert_eq!(audit, 1);
    let lost = written(&lictor, "delete", "ok").await?;
    assert!(lost == 0.0, "the answer arrived");
    Ok(())
}
