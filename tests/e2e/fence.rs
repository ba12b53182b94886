//! The epoch: who may write for a cluster.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use serde_json::{Value, json};

use crate::support::{Annotated as _, Lictor, OFF, Oracle, Scene, condition, until};

/// UID of a Kubernetes cluster that is none.
const ELSEWHERE: &str = "5e1f0000-0000-4000-8000-e15e44e4e000";

fn key(scene: &Scene) -> String {
    format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster)
}

/// The epoch and its index, `None` while there is none that can be read.
async fn epoch(scene: &Scene) -> Result<Option<(Value, u64)>> {
    let Some(pairs) = scene
        .consul
        .find(&format!("{}?consistent", key(scene)))
        .await?
    else {
        return Ok(None);
    };
    let index = pairs[0]["ModifyIndex"].as_u64().context("no index")?;
    let value = scene.consul.get(&format!("{}?raw", key(scene))).await?;
    Ok(Some((value, index)))
}

/// Waits until the epoch is as it should be.
async fn epoch_is(scene: &Scene, is: impl Fn(&Value) -> bool) -> Result<(Value, u64)> {
    until("the epoch to be as wanted", async || {
        let (value, index) = epoch(scene).await?.context("there is none")?;
        ensure!(is(&value), "{value}");
        Ok((value, index))
    })
    .await
}

/// Writes the epoch by hand.
async fn put(scene: &Scene, value: &Value) -> Result<()> {
    scene.consul.put(&key(scene), value).await?;
    Ok(())
}

async fn uid(scene: &Scene) -> Result<String> {
    let namespaces = Api::<Namespace>::all(scene.client.clone());
    let system = namespaces.get("kube-system").await?;
    system.metadata.uid.context("kube-system without UID")
}

fn foreign() -> Value {
    json!({"holder": "pod-of-another", "uid": ELSEWHERE, "scope": [], "kind": "run", "term": 7})
}

/// What it writes arrives in Consul.
async fn writes(scene: &Scene, pod: &str) -> Result<()> {
    let pod_of = scene.pod(pod).lictor("service", "web");
    pod_of.create_ready(&scene.client).await?;
    scene.status("web", pod, "passing").await?;
    Ok(())
}

async fn transactions(lictor: &Lictor) -> Result<f64> {
    lictor
        .metric("lictor_consul_requests_total", &["txn"])
        .await
}

#[tokio::test]
async fn it_is_taken_once_by_each_start_and_is_its_only_write() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (first, index) = epoch(&scene).await?.context("no epoch after the start")?;
    ensure!(
        first["holder"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    assert_eq!(first["uid"], uid(&scene).await?);
    assert_eq!(first["scope"], json!([]));
    assert_eq!((&first["kind"], &first["term"]), (&json!("run"), &json!(1)));
    writes(&scene, "web-0").await?;
    scene
        .register(
            "web",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    scene
        .registration("web", |status| status["instances"]["summary"] == "1/1")
        .await?;
    scene.pod("web-0").finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    lictor.idle().await?;
    // However much it writes, the epoch is not written again.
    assert_eq!(epoch(&scene).await?, Some((first.clone(), index)));
    lictor.stop().await?;
    assert_eq!(epoch(&scene).await?, Some((first.clone(), index)));
    let before = scene.dump().await?;

    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    let (second, later) = epoch(&scene).await?.context("no epoch")?;
    ensure!(later > index, "{later} after {index}");
    assert_eq!(second["term"], 2);
    ensure!(
        second["holder"] != first["holder"],
        "{second} after {first}"
    );
    assert_eq!(scene.dump().await?, before);
    let written = transactions(&lictor).await?;
    assert!(
        (written - 1.0).abs() < f64::EPSILON,
        "{written} transactions"
    );
    Ok(())
}

#[tokio::test]
async fn a_name_that_another_kubernetes_cluster_has_is_left_to_it() -> Result<()> {
    let scene = Scene::new().await?;
    put(&scene, &foreign()).await?;
    let before = epoch(&scene).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let wrong = format!("--take-over={}", uid(&scene).await?);
    for more in [vec![], vec![&*wrong]] {
        let lictor = scene.spawn_lictor(&more, &[]).await?;
        lictor.not_ready("ClusterNameTaken").await?;
        let (_, text) = lictor.http("/readyz").await?;
        let advice = format!("--take-over {ELSEWHERE}");
        ensure!(
            text.contains("pod-of-another") && text.contains(&advice),
            "{text}"
        );
        assert_eq!(lictor.http("/livez").await?.0, 200);
        // People who look at their object see it too.
        scene
            .registration("db", |status| {
                condition(status, "Ready").2.contains("ClusterNameTaken")
            })
            .await?;
        let written = transactions(&lictor).await?;
        assert!(written == 0.0, "{written} transactions");
        assert_eq!(epoch(&scene).await?, before);
        assert_eq!(scene.dump().await?, json!([]));
        lictor.stop().await?;
    }

    let lictor = scene
        .lictor_with(&[&format!("--take-over={ELSEWHERE}")])
        .await?;
    scene.status("web", "web-0", "passing").await?;
    let (now, _) = epoch(&scene).await?.context("no epoch")?;
    assert_eq!(now["uid"], uid(&scene).await?);
    assert_eq!(now["term"], 8);
    scene
        .registration("db", |status| condition(status, "Ready").0 == "True")
        .await?;

    // The name moves once: if the other cluster takes it back, the process does not fight.
    put(&scene, &foreign()).await?;
    lictor.not_ready("pod-of-another").await?;
    let standing = epoch(&scene).await?;
    let dump = scene.dump().await?;
    pod.not_ready(&scene.client, "app").await?;
    let other = scene.spawn_lictor(&[], &[]).await?;
    other.not_ready("ClusterNameTaken").await?;
    assert_eq!(epoch(&scene).await?, standing);
    assert_eq!(scene.dump().await?, dump);
    Ok(())
}

#[tokio::test]
async fn a_name_that_becomes_free_is_taken_without_a_restart() -> Result<()> {
    let scene = Scene::new().await?;
    put(&scene, &foreign()).await?;
    let mut lictor = scene.spawn_lictor(&[], &[]).await?;
    lictor.not_ready("ClusterNameTaken").await?;
    scene.consul.delete(&key(&scene)).await?;
    lictor.ready().await?;
    writes(&scene, "web-0").await
}

#[tokio::test]
async fn an_epoch_of_gc_is_taken_back_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    writes(&scene, "web-0").await?;
    let (ours, _) = epoch(&scene).await?.context("no epoch")?;
    let ids = [scene.id("web", "web-0")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    for (round, term) in [(1, 20), (2, 30), (3, 40)] {
        let mut gc = ours.clone();
        gc["holder"] = json!("somebody's gc");
        gc["kind"] = json!("gc");
        gc["term"] = json!(term);
        put(&scene, &gc).await?;
        let (now, _) = epoch_is(&scene, |epoch| epoch["kind"] == "run").await?;
        assert_eq!(now["holder"], ours["holder"]);
        assert_eq!(now["term"], term + 1);
        writes(&scene, &format!("web-{round}")).await?;
    }
    lictor.shows("lictor_leader", 1.0).await?;
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    oracle.verdict().await
}

#[tokio::test]
async fn an_epoch_that_is_deleted_by_hand_is_taken_anew() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    writes(&scene, "web-0").await?;
    let ids = [scene.id("web", "web-0")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    scene.consul.delete(&key(&scene)).await?;
    let (now, _) = epoch_is(&scene, |_| true).await?;
    assert_eq!((&now["kind"], &now["term"]), (&json!("run"), &json!(1)));
    writes(&scene, "web-1").await?;
    // Also where it goes and something is to be written at once.
    scene.consul.delete(&key(&scene)).await?;
    writes(&scene, "web-2").await?;
    lictor.idle().await?;
    epoch_is(&scene, |epoch| epoch["holder"] == now["holder"]).await?;
    oracle.verdict().await
}

#[tokio::test]
async fn an_epoch_that_cannot_be_read_stops_all_writes_until_it_is_mended() -> Result<()> {
    let scene = Scene::new().await?;
    let text = format!("lictor/v1/{}/epoch", scene.cluster);
    put(&scene, &json!({"kind": "something"})).await?;
    let mut lictor = scene.spawn_lictor(&[], &[]).await?;
    lictor.not_ready(&text).await?;
    scene.consul.delete(&key(&scene)).await?;
    lictor.ready().await?;
    writes(&scene, "web-0").await?;

    put(&scene, &json!("garbage")).await?;
    until("it to say what is wrong", async || {
        let (_, body) = lictor.http("/readyz").await?;
        ensure!(body.contains(&text), "{body}");
        Ok(())
    })
    .await?;
    let before = scene.dump().await?;
    let written = lictor.metric("lictor_operations_total", &["ok"]).await?;
    let pod = scene.pod("web-1").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    until("the key to wait", async || {
        let pending = lictor.metric("lictor_pending_keys", &[]).await?;
        ensure!(pending > 0.0, "nothing is pending");
        Ok(())
    })
    .await?;
    let now = lictor.metric("lictor_operations_total", &["ok"]).await?;
    assert!(
        (now - written).abs() < f64::EPSILON,
        "{now} writes after {written}"
    );
    assert_eq!(scene.dump().await?, before);
    scene.consul.delete(&key(&scene)).await?;
    scene.status("web", "web-1", "passing").await?;
    Ok(())
}

/// The first one hangs, a second one starts, and the first one goes on with what it had to write.
#[tokio::test]
async fn a_process_that_was_replaced_writes_nothing_any_more() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor_with(&[OFF]).await?;
    writes(&scene, "web-0").await?;
    first.idle().await?;
    first.pause()?;
    let second = scene.lictor_with(&[OFF]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "web-0", "critical").await?;
    let (taken, index) = epoch(&scene).await?.context("no epoch")?;
    first.resume()?;
    first.not_ready("replaced").await?;
    first.shows("lictor_leader", 0.0).await?;
    let written = first.metric("lictor_operations_total", &["ok"]).await?;
    pod.running_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    writes(&scene, "web-1").await?;
    second.idle().await?;
    let now = first.metric("lictor_operations_total", &["ok"]).await?;
    assert!(
        (now - written).abs() < f64::EPSILON,
        "{now} writes after {written}"
    );
    assert_eq!(epoch(&scene).await?, Some((taken, index)));
    assert_eq!(first.http("/livez").await?.0, 200);
    Ok(())
}
