//! Servers that fail. These tests have a bed of their own, and it one after the other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use lictor_testbed::wait;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::support::{Annotated as _, Installed, Lictor, Oracle, SOON, Scene, condition, until};

/// The bed for faults, with all its servers running, for one test at a time.
async fn alone() -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
    static ONE: Mutex<()> = Mutex::const_new(());
    static BED: OnceCell<Installed> = OnceCell::const_new();
    let guard = ONE.lock().await;
    let installed = BED.get_or_try_init(Installed::start).await?;
    for server in installed.bed.servers() {
        if server.pid().is_none() {
            // A test failed half-way.
            server.start().await?;
        }
    }
    Ok((guard, installed))
}

/// Some pods of a service, registered, and one hand-made entry beside them.
async fn settle(scene: &Scene, names: &[&str]) -> Result<Vec<String>> {
    for name in names {
        scene
            .pod(name)
            .lictor("service", "web")
            .create_ready(&scene.client)
            .await?;
    }
    for name in names {
        scene.status("web", name, "passing").await?;
    }
    let entry = json!({
        "Node": format!("hand-{}", scene.cluster), "Address": "10.88.0.1",
        "Service": {"ID": "hand", "Service": "web", "Port": 1, "Tags": ["mine"]},
        "Check": {"CheckID": "hand", "Name": "mine", "ServiceID": "hand", "Status": "critical"},
    });
    scene.by_hand(&entry).await?;
    Ok(names.iter().map(|name| scene.id("web", name)).collect())
}

/// What another hand wrote, which must stay as it is.
fn foreign(scene: &Scene) -> Vec<String> {
    let node = format!("hand-{}", scene.cluster);
    ["catalog", "health"]
        .map(|api| format!("/v1/{api}/node/{node}?consistent"))
        .into()
}

async fn not_ready(lictor: &Lictor, text: &str) -> Result<()> {
    until("it to say why it is not ready", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 503 && body.contains(text), "{status}: {body}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn consul_is_down_at_the_start_and_later() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let consul = &installed.bed.consul_server;
    consul.stop().await?;
    let mut lictor = scene.spawn_lictor(&[], &[]).await?;
    not_ready(&lictor, "consul:").await?;
    assert_eq!(lictor.http("/livez").await?.0, 200);
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    consul.start().await?;
    lictor.ready().await?;
    let before = scene.status("web", "web-0", "passing").await?;

    consul.stop().await?;
    until("the outage to be told", async || {
        let age = lictor
            .metric("lictor_consul_last_contact_seconds", &[])
            .await?;
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200, "{status}: {body}");
        ensure!(age > 0.5 && body.contains("consul"), "{age} {body}");
        Ok(())
    })
    .await?;
    pod.not_ready(&scene.client, "app").await?;
    scene
        .pod("web-1")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    consul.start().await?;
    let seen = scene.status("web", "web-0", "critical").await?;
    assert_eq!(seen.raw["Service"], before.raw["Service"]);
    scene.status("web", "web-1", "passing").await?;
    Ok(())
}

#[tokio::test]
async fn the_api_server_is_down_at_the_start() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &["web-0", "web-1", "web-2"]).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let before = scene.dump().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;

    installed.bed.apiserver.kill();
    let mut lictor = scene.spawn_lictor(&[], &[]).await?;
    lictor.bears_refusals();
    not_ready(&lictor, "pods:").await?;
    installed.bed.apiserver.start().await?;
    lictor.ready().await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(operations == 0.0, "{operations} operations");
    let restarts = lictor
        .metric("lictor_watch_restarts_total", &["pods"])
        .await?;
    ensure!(restarts > 0.0, "no watch restarted");
    scene.barrier().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_restart_moves_no_index_of_the_catalog() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene, &["web-0", "web-1"]).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "db.example.com"}]}),
        )
        .await?;
    scene
        .registration("db", |status| condition(status, "Ready").0 == "True")
        .await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let indexes = async || -> Result<Vec<String>> {
        let mut indexes = Vec::new();
        for path in ["catalog/services", "catalog/nodes", "health/state/any"] {
            let url = format!("{}/v1/{path}?consistent", installed.bed.consul_addr());
            let answer = http.get(url).send().await?.error_for_status()?;
            let index = answer.headers().get("X-Consul-Index").context("no index")?;
            indexes.push(format!("{path} {}", index.to_str()?));
        }
        Ok(indexes)
    };
    let before = indexes().await?;
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    // A change that needs no write comes through after all that the start brought.
    scene
        .edit(
            "db",
            json!({"metadata": {"annotations": {"lictor.io/paused": "true"}}}),
        )
        .await?;
    scene
        .registration("db", |status| condition(status, "Ready").1 == "Paused")
        .await?;
    lictor.idle().await?;
    assert_eq!(indexes().await?, before);
    let (_, metrics) = lictor.http("/metrics").await?;
    ensure!(!metrics.contains("lictor_operations_total{"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_wiped_consul_is_filled_again() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    settle(&scene, &["web-0", "web-1"]).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let db = format!("{}.{}.db.db.a", scene.cluster, scene.namespace);
    scene.instance_id("db", &db, |_| true).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    consul.wipe()?;
    consul.start().await?;
    let started = std::time::Instant::now();
    for name in ["web-0", "web-1"] {
        let seen = scene.status("web", name, "passing").await?;
        ensure!(seen.node_status == "passing", "{seen:#?}");
    }
    scene.instance_id("db", &db, |_| true).await?;
    ensure!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    // The same process did it.
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    scene.barrier().await
}

#[tokio::test]
async fn a_consul_that_restarts_loses_and_repeats_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &["web-0", "web-1", "goes"]).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids[..2], &foreign(&scene)).await?;
    let consul = &installed.bed.consul_server;
    consul.kill();
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.annotate("web-1", &[("tags", Some("v2"))]).await?;
    scene
        .pod("comes")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    consul.start().await?;
    scene.gone("web", "goes").await?;
    scene
        .instance("web", "web-1", |seen| seen.tags == ["v2"])
        .await?;
    scene.status("web", "comes", "passing").await?;
    scene.barrier().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn an_api_server_that_restarts_costs_no_living_instance() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &["web-0", "web-1", "goes", "ends"]).await?;
    scene
        .register("gone", json!({"service": "sel", "selector": {}}))
        .await?;
    scene.status("sel", "web-0", "passing").await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids[..2], &foreign(&scene)).await?;
    // What happens before it looks again, it cannot see happen.
    lictor.pause()?;
    installed.bed.apiserver.kill();
    installed.bed.apiserver.start().await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.pod("ends").phase(&scene.client, "Succeeded").await?;
    scene.unregister("gone").await?;
    scene
        .pod("comes")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    lictor.resume()?;
    scene.gone("web", "goes").await?;
    scene.gone("web", "ends").await?;
    scene.gone("sel", "web-0").await?;
    scene.status("web", "comes", "passing").await?;
    scene.barrier().await?;
    let restarts = lictor
        .metric("lictor_watch_restarts_total", &["pods"])
        .await?;
    ensure!(restarts > 0.0, "the watch did not break");
    oracle.verdict().await?;

    // While it is away, nothing is known to be gone, and Consul stays as it is.
    let ids = [scene.id("web", "web-0"), scene.id("web", "comes")];
    let second = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    installed.bed.apiserver.stop().await?;
    wait::until("the outage to be seen", SOON, async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body.contains("pods:"), "{status}: {body}");
        Ok(())
    })
    .await?;
    // Drift is repaired from what is known, but nothing is removed.
    let id = scene.id("web", "web-1");
    let watched = Oracle::watch(&scene.consul, "web", std::slice::from_ref(&id), &[]).await?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": id});
    scene.away_by_hand(&away).await?;
    scene.status("web", "web-1", "passing").await?;
    ensure!(watched.verdict().await.is_err(), "the oracle is blind");
    installed.bed.apiserver.start().await?;
    scene.barrier().await?;
    second.verdict().await
}

/// An object that was stored under a laxer schema, as an older release may have had.
#[tokio::test]
async fn a_registration_that_cannot_be_decoded_keeps_what_it_held() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    for name in ["web-0", "goes"] {
        scene.pod(name).create_ready(&scene.client).await?;
    }
    scene
        .register("web", json!({"selector": {}, "tags": ["v1"]}))
        .await?;
    let before = scene.status("web", "web-0", "passing").await?;
    scene.status("web", "goes", "passing").await?;

    let crd = lax(&scene).await?;
    let spec = json!({"selector": ["not", "an", "object"], "tags": "v2", "port": 70000});
    until("the lax schema to be in force", async || {
        scene.edit("web", json!({"spec": spec})).await
    })
    .await?;
    let event = scene
        .event("InvalidAnnotation", "web", "cannot be decoded")
        .await?;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let status = scene
        .registration("web", |status| condition(status, "Ready").1 == "Invalid")
        .await?;
    ensure!(
        condition(&status, "Ready").2.contains("cannot be decoded"),
        "{status:#}"
    );
    assert_eq!(condition(&status, "Stalled").0, "True");
    // All others go on: there is still a watch.
    scene
        .register("other", json!({"service": "other", "selector": {}}))
        .await?;
    scene.status("other", "web-0", "passing").await?;
    scene.pod("web-0").not_ready(&scene.client, "app").await?;
    let kept = scene.status("web", "web-0", "critical").await?;
    assert_eq!(kept.raw["Service"], before.raw["Service"]);
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.gone("web", "goes").await?;

    lictor.stop().await?;
    let _lictor = scene.lictor().await?;
    scene.barrier().await?;
    let kept = scene
        .find("web", "web-0")
        .await?
        .context("it went with the restart")?;
    assert_eq!(kept.raw["Service"], before.raw["Service"]);

    scene
        .edit(
            "web",
            json!({"spec": {"selector": {"matchLabels": {}}, "tags": ["v3"], "port": null}}),
        )
        .await?;
    let mended = scene
        .instance("web", "web-0", |seen| seen.tags == ["v3"])
        .await?;
    assert_eq!(mended.create_index, before.create_index);
    strict(&scene, crd).await
}

const CRD: &str = "serviceregistrations.lictor.io";

fn crds(scene: &Scene) -> kube::Api<DynamicObject> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let kind = kube::api::ApiResource::erase::<CustomResourceDefinition>(&());
    kube::Api::all_with(scene.client.clone(), &kind)
}

/// Lets the API server take any spec; returns the versions as they were.
async fn lax(scene: &Scene) -> Result<Value> {
    let crd = crds(scene).get(CRD).await?;
    let before = crd.data["spec"]["versions"].clone();
    let mut versions = before.clone();
    let schema = &mut versions[0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    schema
        .as_object_mut()
        .context("no schema")?
        .remove("x-kubernetes-validations");
    strict(scene, versions).await?;
    Ok(before)
}

async fn strict(scene: &Scene, versions: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"versions": versions}}));
    crds(scene)
        .patch(CRD, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}
