//! Two processes of one cluster: one leads, and the other follows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::Api;
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::support::{Annotated as _, BY_LOCK, Lictor, Oracle, RELEASE, Scene, condition, until};

/// How long another process may take to follow one that was killed: by a Lease, by a lock.
pub(crate) const AFTER_KILL: Duration = Duration::from_secs(20);
pub(crate) const AFTER_KILL_BY_LOCK: Duration = Duration::from_secs(50);
/// And one that was stopped.
pub(crate) const AFTER_STOP: Duration = Duration::from_secs(2);

/// Starts a process as this pod.
pub(crate) async fn pod(scene: &Scene, name: &str, more: &[&str]) -> Result<Lictor> {
    let mut lictor = scene.spawn_lictor(more, &[("POD_NAME", name)]).await?;
    lictor.ready().await?;
    Ok(lictor)
}

/// Starts one that leads, and another one that stands by.
pub(crate) async fn pair(scene: &Scene, more: &[&str]) -> Result<(Lictor, Lictor)> {
    let first = pod(scene, "first", more).await?;
    first.shows("lictor_leader", 1.0).await?;
    let second = pod(scene, "second", more).await?;
    stands_by(&second, "first").await?;
    Ok((first, second))
}

pub(crate) async fn stands_by(lictor: &Lictor, leader: &str) -> Result<()> {
    let text = format!("standing by, {leader} leads");
    until("it to stand by", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body.contains(&text), "{status}: {body}");
        Ok(())
    })
    .await?;
    lictor.shows("lictor_leader", 0.0).await
}

/// Waits until it writes.
pub(crate) async fn leads_within(lictor: &Lictor, time: Duration) -> Result<()> {
    wait::until("it to lead", time, async || {
        let leads = lictor.metric("lictor_leader", &[]).await?;
        ensure!(leads > 0.5, "{leads}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

pub(crate) fn leases(scene: &Scene) -> Api<Lease> {
    Api::namespaced(scene.client.clone(), RELEASE)
}

pub(crate) async fn lease(scene: &Scene) -> Result<LeaseSpec> {
    let name = format!("lictor-{}", scene.cluster);
    let lease = leases(scene).get(&name).await?;
    lease.spec.context("a Lease without spec")
}

pub(crate) async fn holder(scene: &Scene) -> Result<String> {
    Ok(lease(scene).await?.holder_identity.unwrap_or_default())
}

pub(crate) async fn epoch(scene: &Scene) -> Result<Value> {
    let key = format!("/v1/kv/lictor/v1/{}/epoch?raw", scene.cluster);
    scene.consul.get(&key).await
}

/// The pod that has the epoch.
pub(crate) async fn writer(scene: &Scene) -> Result<String> {
    let epoch = epoch(scene).await?;
    let holder = epoch["holder"].as_str().unwrap_or_default();
    Ok(holder.split('/').next().unwrap_or_default().to_owned())
}

/// Waits until this pod has the epoch, which is the first that it writes.
pub(crate) async fn follows(scene: &Scene, pod: &str, within: Duration) -> Result<()> {
    follows_since(scene, pod, Instant::now(), within).await
}

pub(crate) async fn follows_since(
    scene: &Scene,
    pod: &str,
    began: Instant,
    within: Duration,
) -> Result<()> {
    wait::until(
        &format!("{pod} to write"),
        within + AFTER_KILL,
        async || {
            let writer = writer(scene).await?;
            ensure!(writer == pod, "{writer} writes");
            Ok::<_, anyhow::Error>(())
        },
    )
    .await?;
    let took = began.elapsed();
    println!("{pod} wrote after {took:?}");
    ensure!(took <= within, "{pod} wrote after {took:?}");
    Ok(())
}

/// Instances that stay passing all the while.
pub(crate) async fn watched(scene: &Scene) -> Result<Oracle> {
    let mut ids = Vec::new();
    for name in ["stays-0", "stays-1"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
        ids.push(scene.id("web", name));
    }
    Oracle::watch(&scene.consul, "web", &ids, &[]).await
}

pub(crate) async fn wrote(lictor: &Lictor) -> Result<f64> {
    lictor.metric("lictor_operations_total", &["ok"]).await
}

/// What it writes arrives in Consul, also what happened while nobody led.
pub(crate) async fn works(scene: &Scene, pod: &str) -> Result<()> {
    let pod_of = scene.pod(pod).lictor("service", "web");
    pod_of.create_ready(&scene.client).await?;
    scene.status("web", pod, "passing").await?;
    pod_of.not_ready(&scene.client, "app").await?;
    scene.status("web", pod, "critical").await?;
    pod_of.finish_deletion(&scene.client).await?;
    scene.gone("web", pod).await
}

async fn hands_over(more: &[&str]) -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, more).await?;
    let spec = json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]});
    scene.register("db", spec).await?;
    let is_ready = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration("db", is_ready).await?;
    let oracle = watched(&scene).await?;
    let goes = scene.pod("goes").lictor("service", "web");
    goes.create_ready(&scene.client).await?;
    scene.status("web", "goes", "passing").await?;
    // Who stands by says and writes nothing, and counts nothing as its own.
    second.shows("lictor_operations_total", 0.0).await?;
    second.shows("lictor_owned", 0.0).await?;
    let bad = scene
        .pod("bad")
        .lictor("service", "web")
        .lictor("nonsense", "x");
    bad.create_ready(&scene.client).await?;
    let reason = "InvalidAnnotation";
    scene.event(reason, "bad", "nonsense").await?;
    let before = scene.registrations().get("db").await?;
    first.idle().await?;
    for event in scene.events("bad").await? {
        assert_eq!(
            event.reporting_instance.as_deref(),
            Some("first"),
            "{event:?}"
        );
    }

    let began = Instant::now();
    first.terminate()?;
    goes.finish_deletion(&scene.client).await?;
    follows_since(&scene, "second", began, AFTER_STOP).await?;
    ensure!(first.stop().await?.success());
    scene.gone("web", "goes").await?;
    let took = began.elapsed();
    println!("all is true after {took:?}");
    leads_within(&second, AFTER_STOP).await?;
    works(&scene, "later").await?;
    second.idle().await?;
    // A status that is as it should be is not written again, but where Consul could not be read for so long
    // that it said so meanwhile.
    scene.registration("db", is_ready).await?;
    let after = scene.registrations().get("db").await?;
    ensure!(
        took > Duration::from_secs(1)
            || before.metadata.resource_version == after.metadata.resource_version,
        "{:#}, then {:#}",
        before.data,
        after.data
    );
    oracle.verdict().await?;

    // And back again, to a process that was started since.
    let third = pod(&scene, "third", more).await?;
    stands_by(&third, "second").await?;
    let oracle = watched_again(&scene).await?;
    second.terminate()?;
    follows(&scene, "third", AFTER_STOP).await?;
    second.stop().await?;
    works(&scene, "last").await?;
    oracle.verdict().await
}

pub(crate) async fn watched_again(scene: &Scene) -> Result<Oracle> {
    let ids = ["stays-0", "stays-1"].map(|name| scene.id("web", name));
    Oracle::watch(&scene.consul, "web", &ids, &[]).await
}

#[tokio::test]
async fn by_a_lease_a_stopped_leader_is_followed_within_two_seconds() -> Result<()> {
    hands_over(&[]).await
}

#[tokio::test]
async fn by_a_lock_a_stopped_leader_is_followed_within_two_seconds() -> Result<()> {
    hands_over(&[BY_LOCK]).await
}

#[tokio::test]
async fn a_lease_says_who_leads_and_how_often_that_changed() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[]).await?;
    let spec = lease(&scene).await?;
    assert_eq!(spec.holder_identity.as_deref(), Some("first"));
    assert_eq!(
        (spec.lease_duration_seconds, spec.lease_transitions),
        (Some(15), Some(0))
    );
    ensure!(spec.acquire_time.is_some() && spec.renew_time.is_some());
    first.stop().await?;
    leads_within(&second, AFTER_STOP).await?;
    let spec = lease(&scene).await?;
    assert_eq!(spec.holder_identity.as_deref(), Some("second"));
    assert_eq!(spec.lease_transitions, Some(1));
    second.stop().await?;
    assert_eq!(holder(&scene).await?, "");
    Ok(())
}

#[tokio::test]
async fn a_lock_has_a_session_on_the_external_node_and_leaves_none() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[BY_LOCK]).await?;
    let node = format!("lictor-{}-external", scene.cluster);
    let sessions = async || scene.consul.get(&format!("/v1/session/node/{node}")).await;
    let there = sessions().await?;
    let list = there.as_array().context("not a list")?;
    ensure!(list.len() == 1, "{there:#}");
    assert_eq!(list[0]["TTL"], "15s");
    assert_eq!(list[0]["Behavior"], "delete");
    ensure!(
        list[0]["NodeChecks"].as_array().is_none_or(Vec::is_empty),
        "{there:#}"
    );
    let read = scene
        .consul
        .get(&format!("/v1/catalog/node-services/{node}"))
        .await?;
    assert_eq!(read["Node"]["Meta"]["lictor-cluster"], json!(scene.cluster));
    assert_eq!(read["Node"]["Meta"]["external-source"], "kubernetes");
    assert_eq!(read["Node"]["Address"], "127.0.0.1");
    let key = format!("/v1/kv/lictor/v1/{}/leader", scene.cluster);
    let lock = scene.consul.get(&key).await?;
    assert_eq!(lock[0]["Session"], list[0]["ID"]);
    // No Lease.
    let name = format!("lictor-{}", scene.cluster);
    ensure!(leases(&scene).get_opt(&name).await?.is_none());
    second.stop().await?;
    first.stop().await?;
    let left = sessions().await?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "{left:#}");
    Ok(())
}

#[tokio::test]
async fn a_dry_run_never_campaigns() -> Result<()> {
    let scene = Scene::new().await?;
    let keys = format!("/v1/kv/lictor/v1/{}/?keys", scene.cluster);
    for more in [
        &["--policy=dry-run"] as &[&str],
        &["--policy=dry-run", BY_LOCK],
    ] {
        let dry = pod(&scene, "dry", more).await?;
        dry.idle().await?;
        dry.stop().await?;
    }
    ensure!(scene.consul.find(&keys).await?.is_none(), "it wrote keys");
    assert_eq!(scene.dump().await?, json!([]));
    let name = format!("lictor-{}", scene.cluster);
    ensure!(leases(&scene).get_opt(&name).await?.is_none());
    // Beside two that live it changes nothing, and follows nobody.
    let (first, second) = pair(&scene, &[]).await?;
    let oracle = watched(&scene).await?;
    let dry = pod(&scene, "dry", &["--policy=dry-run"]).await?;
    let held = epoch(&scene).await?;
    works(&scene, "later").await?;
    assert_eq!(epoch(&scene).await?, held);
    second.stop().await?;
    first.stop().await?;
    assert_eq!(holder(&scene).await?, "");
    let before = scene.dump().await?;
    let late = scene.pod("late").lictor("service", "web");
    late.create_ready(&scene.client).await?;
    until("the dry run to tell of it", async || {
        ensure!(dry.log().contains("would register"), "not yet");
        Ok(())
    })
    .await?;
    assert_eq!(scene.dump().await?, before);
    assert_eq!(holder(&scene).await?, "");
    dry.shows("lictor_leader", 0.0).await?;
    oracle.verdict().await
}

/// Whoever leads and may not write would keep out those who may.
#[tokio::test]
async fn one_whose_cluster_name_is_taken_does_not_campaign() -> Result<()> {
    for more in [&[] as &[&str], &[BY_LOCK]] {
        let scene = Scene::new().await?;
        let key = |name: &str| format!("/v1/kv/lictor/v1/{}/{name}", scene.cluster);
        let foreign =
            json!({"holder": "pod-of-another", "uid": "another", "kind": "run", "term": 7});
        scene.consul.put(&key("epoch"), &foreign).await?;
        let mut lictor = scene.spawn_lictor(more, &[]).await?;
        lictor.not_ready("ClusterNameTaken").await?;
        ensure!(
            scene.consul.find(&key("leader")).await?.is_none(),
            "it has the lock"
        );
        let name = format!("lictor-{}", scene.cluster);
        let lease = leases(&scene).get_opt(&name).await?;
        ensure!(lease.is_none(), "{lease:?}");
        assert_eq!(scene.dump().await?, json!([]));
        scene.consul.delete(&key("epoch")).await?;
        lictor.ready().await?;
        works(&scene, "later").await?;
        // And gives up what it has where that happens later.
        scene.consul.put(&key("epoch"), &foreign).await?;
        lictor.not_ready("ClusterNameTaken").await?;
        until("it to give up its leadership", async || {
            let free = if more.is_empty() {
                holder(&scene).await?.is_empty()
            } else {
                let lock = scene.consul.get(&key("leader")).await?;
                lock[0]["Session"].is_null()
            };
            ensure!(free, "it leads");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn ends_where_its_identity_is_taken(more: &[&str]) -> Result<()> {
    let scene = Scene::new().await?;
    let mut first = pod(&scene, "same", more).await?;
    let oracle = watched(&scene).await?;
    let second = pod(&scene, "same", more).await?;
    let status = first.ended().await?;
    ensure!(status.code() == Some(1), "{status}");
    let log = first.log();
    ensure!(
        log.contains("another process runs under the identity \"same\""),
        "{log}"
    );
    second.shows("lictor_leader", 1.0).await?;
    works(&scene, "later").await?;
    oracle.verdict().await
}

#[tokio::test]
async fn one_whose_identity_renews_a_lease_that_it_did_not_write_ends() -> Result<()> {
    ends_where_its_identity_is_taken(&[]).await
}

#[tokio::test]
async fn one_whose_identity_takes_a_lock_that_it_did_not_take_ends() -> Result<()> {
    ends_where_its_identity_is_taken(&[BY_LOCK]).await
}

#[tokio::test]
async fn a_restarted_container_leads_again_at_once() -> Result<()> {
    for more in [&[] as &[&str], &[BY_LOCK]] {
        let scene = Scene::new().await?;
        let (first, second) = pair(&scene, more).await?;
        let oracle = watched(&scene).await?;
        first.kill();
        let began = Instant::now();
        let again = pod(&scene, "first", more).await?;
        leads_within(&again, AFTER_STOP).await?;
        let took = began.elapsed();
        println!("it leads again after {took:?}");
        // Less than another one would wait for, on whatever machine.
        ensure!(took < Duration::from_secs(10), "{took:?}");
        stands_by(&second, "first").await?;
        works(&scene, "later").await?;
        oracle.verdict().await?;
    }
    Ok(())
}

/// One that was started without an election takes the epoch.
#[tokio::test]
async fn a_leader_takes_its_epoch_back_and_no_more_than_twice_a_minute() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = pod(&scene, "first", &[]).await?;
    let oracle = watched(&scene).await?;
    let key = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
    for term in [20, 30] {
        let mut other = epoch(&scene).await?;
        other["holder"] = json!("somebody/1");
        other["term"] = json!(term);
        scene.consul.put(&key, &other).await?;
        follows(&scene, "first", AFTER_STOP).await?;
        assert_eq!(epoch(&scene).await?["term"], term + 1);
        works(&scene, &format!("after-{term}")).await?;
    }
    let mut other = epoch(&scene).await?;
    other["holder"] = json!("somebody/1");
    other["term"] = json!(40);
    scene.consul.put(&key, &other).await?;
    until("it to say that the epoch is contested", async || {
        let (_, body) = lictor.http("/readyz").await?;
        ensure!(
            body.contains("somebody/1 takes the epoch again and again"),
            "{body}"
        );
        Ok(())
    })
    .await?;
    lictor.shows("lictor_leader", 0.0).await?;
    assert_eq!(writer(&scene).await?, "somebody");
    // What belongs to lictor gc is taken back outside the limit.
    other["kind"] = json!("gc");
    other["term"] = json!(50);
    scene.consul.put(&key, &other).await?;
    follows(&scene, "first", AFTER_KILL).await?;
    works(&scene, "later").await?;
    oracle.verdict().await
}
