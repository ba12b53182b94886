//! An API server, or an etcd behind it, that fails.

use anyhow::{Context as _, Result, ensure};
use kube::{
    api::{ListParams, WatchParams},
    core::Request,
};
use lictor_testbed::{
    Server,
    proxy::{Fault, Proxy},
    wait,
};
use serde_json::{Value, json};

use super::{Churn, alone, foreign, not_ready, ready_but, settle};
use crate::support::{Annotated as _, BY_LOCK, Installed, Oracle, SOON, Scene, until};

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
async fn an_api_server_that_restarts_costs_no_living_instance() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor_with(&[BY_LOCK]).await?;
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

const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

/// Waits until Kubernetes takes writes again.
async fn takes_writes(scene: &Scene) -> Result<()> {
    until("Kubernetes to take writes", async || {
        scene.label("web-0", "written", Some("yes")).await?;
        scene.label("web-0", "written", None).await
    })
    .await
}

#[tokio::test]
async fn servers_that_hang_or_die_cost_nothing() -> Result<()> {
    type Act = fn(&Server) -> Result<()>;
    let (_guard, installed) = alone().await?;
    let bed = &installed.bed;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor_with(&[BY_LOCK]).await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let kill: Act = |server| {
        server.kill();
        Ok(())
    };
    for (what, server, fail) in [
        ("etcd hangs", &bed.etcd, Server::pause as Act),
        ("the API server hangs", &bed.apiserver, Server::pause),
        ("etcd dies", &bed.etcd, kill),
        ("the API server dies", &bed.apiserver, kill),
    ] {
        println!("{what}");
        churn.exact().await?;
        lictor.idle().await?;
        fail(server)?;
        // What it knows it goes on to keep true.
        let id = churn.want.keys().next().cloned().unwrap_or_default();
        let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", &id)});
        scene.away_by_hand(&away).await?;
        churn.exact().await?;
        assert_eq!(lictor.http("/readyz").await?.0, 200);
        if server.pid().is_some() {
            server.resume()?;
        } else {
            server.start().await?;
        }
        takes_writes(&scene).await?;
        churn.turns(10).await?;
        churn.exact().await?;
    }
    oracle.verdict().await
}

const BINDING: &str = "clusterrolebinding/lictor";

#[tokio::test]
async fn rights_that_are_withdrawn_while_it_runs_cost_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let mut lictor = scene.lictor_through(&kubernetes, &consul).await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let before = scene.dump().await?;

    let binding = scene.bed.kubectl(&["get", BINDING, "-o", "json"]).await?;
    scene.bed.kubectl(&["delete", BINDING]).await?;
    let without = async {
        // An open watch goes on; the next one is refused.
        kubernetes.set(Fault::Reset).await?;
        kubernetes.set(Fault::Pass).await?;
        ready_but(&lictor, "pods: 403").await?;
        churn.turns(15).await?;
        assert_eq!(scene.dump().await?, before);
        // Nothing claims this one, as far as can be told without a watch of pods.
        let entry = json!({
            "Node": scene.consul_node(), "SkipNodeUpdate": true,
            "Service": {"ID": scene.id("web", "stray"), "Service": "web", "Port": 1, "Meta": {
                "lictor-cluster": scene.cluster, "lictor-node": scene.consul_node(),
                "lictor-owner": format!("Pod/{}/stray", scene.namespace),
            }},
        });
        scene.by_hand(&entry).await?;
        lictor.shows("lictor_held_deletes", 1.0).await?;
        ready_but(&lictor, "pods: 403").await?;
        lictor.idle().await?;
        ensure!(scene.find("web", "stray").await?.is_some(), "it went");
        Ok(())
    };
    let without = without.await;
    scene.bed.kubectl_apply(&binding).await?;
    without?;
    churn.exact().await?;
    until("it to have nothing to complain about", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body == "ok\n", "{status}: {body}");
        Ok(())
    })
    .await?;
    oracle.verdict().await
}

/// What the API server says to a watch of pods from a version of long ago.
async fn watched_from(scene: &Scene, version: &str) -> Result<Value> {
    let params = WatchParams::default().timeout(1);
    let request = Request::new("/api/v1/pods").watch(&params, version)?;
    let text = scene.client.request_text(request).await?;
    let line = text.lines().next().context("nothing is said")?;
    Ok(serde_json::from_str(line)?)
}

/// Removes all that etcd remembers of before this version.
async fn compact(scene: &Scene, version: &str) -> Result<()> {
    let url = format!("{}/v3/kv/compaction", scene.bed.etcd.addr());
    let body = json!({"revision": version, "physical": true});
    let http = reqwest::Client::builder().no_proxy().build()?;
    let answer = http.post(url).body(body.to_string()).send().await?;
    answer.error_for_status()?;
    Ok(())
}

/// The history that a broken watch would go on with is gone (410): what went is told to nobody.
#[tokio::test]
async fn a_history_that_is_compacted_costs_no_living_instance() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let mut lictor = scene.lictor_through(&kubernetes, &consul).await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &STAY).await?;
    scene.label("web-0", "app", Some("sel")).await?;
    let spec = json!({"selector": {"matchLabels": {"app": "sel"}}});
    scene.register("sel", spec).await?;
    scene.status("sel", "web-0", "passing").await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(15).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let version = async || -> Result<String> {
        let pods = scene.pods().list(&ListParams::default()).await?;
        pods.metadata.resource_version.context("no version")
    };

    kubernetes.set(Fault::Refuse).await?;
    ready_but(&lictor, "pods: ").await?;
    let known = version().await?;
    let before = scene.dump().await?;
    churn.turns(15).await?;
    scene.unregister("sel").await?;
    compact(&scene, &version().await?).await?;
    // A restart empties the cache from which watches are served.
    scene.bed.apiserver.kill();
    scene.bed.apiserver.start().await?;
    let said = until("watches to be served", async || {
        watched_from(&scene, &known).await
    })
    .await?;
    ensure!(
        said["type"] == "ERROR" && said["object"]["code"] == 410,
        "{said}"
    );
    assert_eq!(scene.dump().await?, before);

    kubernetes.set(Fault::Pass).await?;
    churn.exact().await?;
    scene.gone("sel", "web-0").await?;
    churn.turns(10).await?;
    churn.exact().await?;
    until("it to have nothing to complain about", async || {
        let (status, body) = lictor.http("/readyz").await?;
        ensure!(status == 200 && body == "ok\n", "{status}: {body}");
        Ok(())
    })
    .await?;
    oracle.verdict().await
}

/// The administrator's token, which is good in a Kubernetes that knows no account of the chart.
pub(super) fn admin(scene: &Scene) -> String {
    format!("--kubeconfig={}", scene.bed.kubeconfig_path().display())
}

/// Puts back what Kubernetes held before the test, whatever became of it.
pub(super) async fn restoring(
    installed: &Installed,
    from: &std::path::Path,
    test: impl Future<Output = Result<()>>,
) -> Result<()> {
    let result = test.await;
    if result.is_err() {
        installed.bed.restore_kubernetes(from).await?;
    }
    result
}

/// How many found absences are tried: more than `--max-delete-floor`.
const MANY: usize = 12;

#[tokio::test]
async fn an_etcd_of_before_all_removes_nothing_and_a_restored_one_ends_the_hold() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor_with(&[&admin(&scene)]).await?;
    let older = scene.bed.dir().join("saved-before-all");
    scene.bed.save_kubernetes(&older).await?;
    let names: Vec<_> = (0..MANY).map(|number| format!("web-{number:02}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let ids = settle(&scene, &names).await?;
    lictor.idle().await?;
    let saved = scene.bed.dir().join("saved-with-all");
    scene.bed.save_kubernetes(&saved).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let held = async |count: usize| {
        until(&format!("{count} held removals"), async || {
            let held = lictor.metric("lictor_held_deletes", &[]).await?;
            let (status, body) = lictor.http("/readyz").await?;
            ensure!(status == 200, "{status}: {body}");
            ensure!(held.to_string() == count.to_string(), "{held}: {body}");
            Ok(())
        })
        .await
    };
    restoring(installed, &saved, async {
        scene.bed.restore_kubernetes(&older).await?;
        held(MANY).await?;
        until("the guard to tell of it", async || {
            ensure!(lictor.log().contains("DeletesHeld"), "it is not told");
            Ok(())
        })
        .await?;
        held(MANY).await?;
        scene.bed.restore_kubernetes(&saved).await
    })
    .await?;
    held(0).await?;
    Churn::beside(&scene, &names).exact().await?;
    oracle.verdict().await?;
    takes_writes_of(&scene, "web-00").await?;
    scene.barrier().await
}

/// So few that three lists that agree would release them: but the lists are another cluster's.
#[tokio::test]
async fn another_cluster_behind_the_address_is_not_heard() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor_with(&[&admin(&scene)]).await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &STAY).await?;
    lictor.idle().await?;
    let saved = scene.bed.dir().join("saved-before-another");
    scene.bed.save_kubernetes(&saved).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    restoring(installed, &saved, async {
        scene.bed.wipe_kubernetes().await?;
        let crds = crate::support::run(&["crds"]).await?.1;
        scene.bed.kubectl_apply(&crds).await?;
        until("the stranger's namespace", async || {
            scene.create_namespace(&scene.namespace).await
        })
        .await?;
        // What it has, and what it has not.
        let pod = scene.pod("web-9").lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        for kind in ["pods", "nodes", "serviceregistrations", "intentions"] {
            until(&format!("{kind} to be told a stranger's"), async || {
                let (status, body) = lictor.http("/readyz").await?;
                let told = format!("{kind}: ClusterNameTaken");
                ensure!(status == 200 && body.contains(&told), "{status}: {body}");
                Ok(())
            })
            .await?;
        }
        let before = looks(&scene).await?;
        until("it to look again for every kind", async || {
            let more = looks(&scene).await? - before;
            ensure!(more >= 10.0, "{more} looks");
            Ok(())
        })
        .await?;
        ensure!(scene.find("web", "web-9").await?.is_none(), "registered");
        let held = lictor.metric("lictor_held_deletes", &[]).await?;
        ensure!(held == 0.0, "{held} are taken for missing");
        scene.bed.restore_kubernetes(&saved).await
    })
    .await?;
    until("it to know its own again", async || {
        let (status, body) = lictor.http("/readyz").await?;
        let told = body.contains("ClusterNameTaken");
        ensure!(status == 200 && !told, "{status}: {body}");
        Ok(())
    })
    .await?;
    Churn::beside(&scene, &STAY).exact().await?;
    let log = lictor.log();
    ensure!(!log.contains("web-9"), "it heard of the stranger's pod");
    oracle.verdict().await?;
    takes_writes_of(&scene, STAY[0]).await?;
    scene.barrier().await
}

/// How often the API server was asked for a single namespace.
async fn looks(scene: &Scene) -> Result<f64> {
    let request = hyper::Request::get("/metrics").body(Vec::new())?;
    let metrics = scene.client.request_text(request).await?;
    let of_one = |line: &&str| {
        let parts = [r#"resource="namespaces""#, r#"verb="GET""#];
        line.starts_with("apiserver_request_total{") && parts.iter().all(|part| line.contains(part))
    };
    let counts = metrics.lines().filter(of_one);
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

async fn takes_writes_of(scene: &Scene, pod: &str) -> Result<()> {
    until("Kubernetes to take writes", async || {
        scene.label(pod, "written", Some("yes")).await
    })
    .await
}

/// Resource versions go back, and a watch from one of the future is silent.
#[tokio::test]
async fn an_etcd_that_is_taken_back_is_followed() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    let ids = settle(&scene, &STAY).await?;
    for name in ["goes", "fails"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    let saved = scene.bed.dir().join("saved-before-changes");
    scene.bed.save_kubernetes(&saved).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    takes_writes(&scene).await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.pod("fails").not_ready(&scene.client, "app").await?;
    let pod = scene.pod("comes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.gone("web", "goes").await?;
    scene.status("web", "fails", "critical").await?;
    scene.status("web", "comes", "passing").await?;
    lictor.idle().await?;

    scene.bed.restore_kubernetes(&saved).await?;
    scene.status("web", "goes", "passing").await?;
    scene.status("web", "fails", "passing").await?;
    scene.gone("web", "comes").await?;
    takes_writes(&scene).await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.pod("fails").finish_deletion(&scene.client).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    oracle.verdict().await
}
