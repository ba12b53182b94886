//! Heartbeats while something else fails.

use super::*;
use crate::support::OFF;

/// How many sessions this process has renewed so far.
async fn renewals(lictor: &Lictor) -> Result<f64> {
    let with = ["session/renew", "200"];
    lictor.metric("lictor_consul_requests_total", &with).await
}

/// Waits for longer than a session and a Lease of 10 s would live without being renewed.
async fn renewed_for_long(lictor: &Lictor) -> Result<()> {
    let so_far = renewals(lictor).await?;
    until("it to be renewed for 25 s", async || {
        let more = renewals(lictor).await? - so_far;
        ensure!(more >= 7.0, "{more} renewals");
        Ok(())
    })
    .await
}

async fn watched(scene: &Scene) -> Result<Oracle> {
    Oracle::watch(&scene.consul, "web", &[scene.id("web", "p")], &[]).await
}

/// What cannot be seen is held against nobody, and renewed meanwhile.
#[tokio::test]
async fn while_the_api_server_is_away_sessions_live() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let mut lictor = scene
        .lictor_with(&[&scene.kubeconfig_through(&kubernetes)?])
        .await?;
    lictor.bears_refusals();
    let worker = beating(&scene).await?;
    let before = session_count(&scene, 1).await?;
    kubernetes.set(Fault::Refuse).await?;
    worker.stop();
    renewed_for_long(&lictor).await?;
    is(&scene, "passing").await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    kubernetes.set(Fault::Pass).await?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    Ok(())
}

/// A watch that is silent looks like Leases that nobody renews.
#[tokio::test]
async fn an_api_server_that_says_nothing_lets_no_heartbeat_lapse() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let mut lictor = scene
        .lictor_with(&[&scene.kubeconfig_through(&kubernetes)?])
        .await?;
    lictor.bears_refusals();
    let worker = beating(&scene).await?;
    let before = session_count(&scene, 1).await?;
    let oracle = watched(&scene).await?;
    kubernetes.set(Fault::Blackhole).await?;
    renewed_for_long(&lictor).await?;
    // Those that are half open are closed, so that it is found out at once.
    kubernetes.set(Fault::Reset).await?;
    kubernetes.set(Fault::Pass).await?;
    renewed_for_long(&lictor).await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    worker.stop();
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    Ok(())
}

/// Whoever writes, each process renews; none makes a second session.
#[tokio::test]
async fn a_process_that_stands_by_renews_when_the_other_one_dies() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor_with(&[OFF]).await?;
    let (_worker, before) = settled(&scene, &first).await?;
    let oracle = watched(&scene).await?;
    let second = scene.lictor_with(&[OFF]).await?;
    first.not_ready("replaced").await?;
    second.shows("lictor_sessions", 1.0).await?;
    second.kill();
    renewed_for_long(&first).await?;
    let third = scene.lictor_with(&[OFF]).await?;
    third.shows("lictor_sessions", 1.0).await?;
    third.idle().await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    // What the third one ends the first one does not keep alive.
    scene.unregister("web").await?;
    scene.gone("web", "p").await?;
    session_count(&scene, 0).await?;
    first.shows("lictor_sessions", 0.0).await
}

/// It knows nothing of Kubernetes yet, and keeps alive what it finds.
#[tokio::test]
async fn a_start_without_the_api_server_keeps_what_is_alive() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (worker, before) = settled(&scene, &lictor).await?;
    let oracle = watched(&scene).await?;
    lictor.stop().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let through = scene.kubeconfig_through(&kubernetes)?;
    kubernetes.set(Fault::Refuse).await?;
    let mut lictor = scene.spawn_lictor(&[&through], &[]).await?;
    lictor.bears_refusals();
    renewed_for_long(&lictor).await?;
    kubernetes.set(Fault::Pass).await?;
    lictor.ready().await?;
    lictor.idle().await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    worker.stop();
    is(&scene, "critical").await?;
    Ok(())
}

#[tokio::test]
async fn a_time_to_live_that_is_edited_holds_from_then_on() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let _worker = beating(&scene).await?;
    let first = session_count(&scene, 1).await?.remove(0);
    assert_eq!(first["TTL"], "10s");
    let mut longer = checks();
    longer[0]["ttl"]["ttl"] = json!("20s");
    scene
        .edit("web", json!({"spec": {"health": {"checks": longer}}}))
        .await?;
    until("a session that lives longer", async || {
        let found = sessions(&scene).await?;
        ensure!(found.len() == 1 && found[0]["TTL"] == "20s", "{found:?}");
        Ok(())
    })
    .await?;
    is(&scene, "passing").await?;
    lictor.idle().await
}

/// What says of itself that it is well, by another hand, is critical again.
#[tokio::test]
async fn a_check_that_another_hand_turned_is_turned_back() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    register(&scene).await?;
    let seen = is(&scene, "critical").await?;
    lictor.idle().await?;
    let mut check = seen.check(&check_id(&scene)).clone();
    check["Status"] = json!("passing");
    let node = scene.consul_node();
    let entry = json!({"Node": node, "SkipNodeUpdate": true, "Check": check});
    for _ in 0..2 {
        scene.by_hand(&entry).await?;
        is(&scene, "critical").await?;
        lictor.idle().await?;
    }
    session_count(&scene, 0).await?;
    Ok(())
}

/// A kubeconfig with the rights of the chart but for those on Leases.
async fn without_leases(scene: &Scene) -> Result<String> {
    let role = ["get", "clusterrole/lictor", "-o", "json"];
    let role: Value = serde_json::from_str(&scene.bed.kubectl(&role).await?)?;
    let is_of_leases = |rule: &&Value| rule["resources"].to_string().contains("leases");
    let rules = role["rules"].as_array().context("no rules")?.iter();
    let fewer: Vec<&Value> = rules.clone().filter(|rule| !is_of_leases(rule)).collect();
    ensure!(fewer.len() < rules.len(), "{role:#}");
    let (namespace, name) = (&scene.namespace, format!("{}-few", scene.namespace));
    let kind = |kind: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind});
    let with = |mut object: Value, more: Value| {
        object["metadata"] = json!({"name": name});
        for (key, value) in more.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        object.to_string()
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": "few", "namespace": namespace}});
    let role = with(kind("ClusterRole"), json!({"rules": fewer}));
    let binding = json!({
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "few", "namespace": namespace}],
    });
    let binding = with(kind("ClusterRoleBinding"), binding);
    for object in [account.to_string(), role, binding] {
        scene.bed.kubectl_apply(&object).await?;
    }
    let kubeconfig = scene.bed.service_account_kubeconfig(namespace, "few");
    Ok(format!("--kubeconfig={}", kubeconfig.await?.display()))
}

/// What may not be seen is told, and held against nobody.
#[tokio::test]
async fn without_the_right_to_watch_leases_what_passes_goes_on_passing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (worker, before) = settled(&scene, &lictor).await?;
    let oracle = watched(&scene).await?;
    lictor.stop().await?;
    let fewer = without_leases(&scene).await?;
    // Nor may it have a Lease to lead by.
    let mut lictor = scene.lictor_with(&[&fewer, OFF]).await?;
    lictor.bears_refusals();
    let denied = |status: &Value| condition(status, "Ready").1 == "AccessDenied";
    let status = scene.registration("web", denied).await?;
    let (_, _, message) = condition(&status, "Ready");
    let words = format!("Leases of namespace {}", scene.namespace);
    ensure!(
        message.contains(&words) && message.contains("forbidden"),
        "{message}"
    );
    assert_eq!(status["instances"]["passing"], 1);
    worker.stop();
    renewed_for_long(&lictor).await?;
    oracle.verdict().await?;
    assert_eq!(session_count(&scene, 1).await?, before);
    // Lists that are tried again meanwhile take nothing of it back.
    scene.registration("web", denied).await?;

    // With the right, it is as ever.
    lictor.stop().await?;
    let _lictor = scene.lictor().await?;
    is(&scene, "critical").await?;
    let ready = |status: &Value| condition(status, "Ready").0 == "True";
    scene.registration("web", ready).await?;
    session_count(&scene, 0).await?;
    Ok(())
}

/// Consul's servers see to it that nobody hears of one that stands still.
#[tokio::test]
async fn a_process_that_stood_still_for_long_makes_one_session_anew() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (_worker, before) = settled(&scene, &lictor).await?;
    lictor.pause()?;
    is(&scene, "critical").await?;
    session_count(&scene, 0).await?;
    lictor.resume()?;
    is(&scene, "passing").await?;
    let after = session_count(&scene, 1).await?;
    ensure!(after[0]["ID"] != before[0]["ID"], "{after:?}");
    // What it believed to be alive is heard of no more, and the new one stays.
    renewed_for_long(&lictor).await?;
    is(&scene, "passing").await?;
    assert_eq!(session_count(&scene, 1).await?, after);
    lictor.shows("lictor_sessions", 1.0).await
}

/// Longer than the sessions of a check and of Lictor live in Consul, which gives each twice its time.
const LONG: Duration = Duration::from_secs(125);

/// Consul cannot tell a Lictor that is cut off from one that is dead: it does what was asked for, and no more.
#[tokio::test]
async fn consul_out_of_reach_for_longer_than_all_sessions_live_is_over_when_it_is_back()
-> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let address = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&address, "--dead-after=1m"]).await?;
    let worker = beating(&scene).await?;
    let node = scene.consul_node();
    let alive = async |status: &str| {
        until("lictor-alive to be as wanted", async || {
            let path = format!("/v1/health/node/{node}?consistent");
            let checks = scene.consul.get(&path).await?;
            let mut checks = checks.as_array().context("no list")?.iter();
            let check = checks.find(|check| check["CheckID"] == "lictor-alive");
            ensure!(check.is_some_and(|it| it["Status"] == *status), "{check:?}");
            Ok(())
        })
        .await
    };
    alive("passing").await?;
    lictor.idle().await?;
    let before = scene.find("web", "p").await?.context("no instance")?;
    consul.set(Fault::Refuse).await?;
    tokio::time::sleep(LONG).await;
    is(&scene, "critical").await?;
    alive("critical").await?;
    // Registered it stays, as ready as it was seen last.
    let seen = scene.status("web", "p", "passing").await?;
    assert_eq!(seen.create_index, before.create_index);
    assert_eq!(seen.node_status, "passing");

    consul.set(Fault::Pass).await?;
    is(&scene, "passing").await?;
    alive("passing").await?;
    lictor.idle().await?;
    session_count(&scene, 2).await?;
    let seen = scene.find("web", "p").await?.context("no instance")?;
    assert_eq!(seen.create_index, before.create_index);
    worker.stop();
    Ok(())
}
