//! A CRD that changes, goes and comes back.

use anyhow::{Context as _, Result, ensure};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::{alone, not_ready};
use crate::support::{Lictor, Oracle, Scene, condition, until};

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

/// How many registrations there are: more than `--max-delete-floor`.
const MANY: usize = 12;

/// With a CRD its objects go, each with an event of its own; nobody asked for their removal.
#[tokio::test]
async fn a_crd_that_is_deleted_removes_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    let ids = endpoints(&scene).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "ext", &ids, &[]).await?;
    let crds = crate::support::run(&["crds"]).await?.1;
    scene.bed.kubectl(&["delete", "crd", CRD]).await?;
    let missing = not_ready(&lictor, "is its CRD installed").await;
    scene.bed.kubectl_apply(&crds).await?;
    missing?;
    // Now the kind is there and empty.
    held(&lictor, MANY).await?;
    come_back(&scene, &lictor).await?;
    oracle.verdict().await
}

/// As with `kubectl replace --force`, while Lictor could not look: by the time it reads that the
/// objects were deleted, there is a CRD again.
#[tokio::test]
async fn a_crd_that_is_replaced_while_nobody_looks_removes_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    let ids = endpoints(&scene).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "ext", &ids, &[]).await?;
    let crds = crate::support::run(&["crds"]).await?.1;
    lictor.pause()?;
    let replaced = async {
        scene.bed.kubectl(&["delete", "crd", CRD]).await?;
        scene.bed.kubectl_apply(&crds).await?;
        until("the kind to be served", async || {
            scene.registrations().list(&ListParams::default()).await
        })
        .await
    };
    let replaced = replaced.await;
    lictor.resume()?;
    replaced?;
    held(&lictor, MANY).await?;
    come_back(&scene, &lictor).await?;
    oracle.verdict().await
}

fn name(number: usize) -> String {
    format!("ext-{number:02}")
}

/// Registers an endpoint by each of [`MANY`] objects; the ids in Consul.
async fn endpoints(scene: &Scene) -> Result<Vec<String>> {
    create(scene).await?;
    let id = |number| {
        format!(
            "{}.{}.ext.{}.a",
            scene.cluster,
            scene.namespace,
            name(number)
        )
    };
    let ids: Vec<_> = (0..MANY).map(id).collect();
    for id in &ids {
        scene.instance_id("ext", id, |_| true).await?;
    }
    Ok(ids)
}

async fn create(scene: &Scene) -> Result<()> {
    for number in 0..MANY {
        let address = format!("10.70.0.{number}");
        let endpoint = json!({"name": "a", "address": address, "port": 5432});
        let spec = json!({"service": "ext", "endpoints": [endpoint]});
        scene.register(&name(number), spec).await?;
    }
    Ok(())
}

async fn held(lictor: &Lictor, count: usize) -> Result<()> {
    until(&format!("{count} held removals"), async || {
        let held = lictor.metric("lictor_held_deletes", &[]).await?;
        let (code, body) = lictor.http("/readyz").await?;
        ensure!(code == 200, "{code}: {body}");
        ensure!(held.to_string() == count.to_string(), "{held}: {body}");
        Ok(())
    })
    .await
}

/// The objects are created again, and nothing is held any more.
async fn come_back(scene: &Scene, lictor: &Lictor) -> Result<()> {
    until("the objects to be created", async || {
        scene.registrations().list(&ListParams::default()).await
    })
    .await?;
    create(scene).await?;
    held(lictor, 0).await?;
    for number in 0..MANY {
        scene
            .registration(&name(number), |status| {
                condition(status, "Ready").0 == "True"
            })
            .await?;
    }
    Ok(())
}
