//! Intentions and prepared queries: many of them, and one change among them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use lictor_testbed::{kubelet, wait};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Setup,
    report::{Goal, Report, percentile},
    scene::{NAMESPACE, Scene},
    subject::Lictor,
};

const DEADLINE: Duration = Duration::from_mins(3);
/// Calls of the API server at once.
const CONCURRENCY: usize = 24;
/// Longer than the time after the last write in which lictor looks whether another hand wrote too.
const QUIET: Duration = Duration::from_secs(15);

/// Fills an empty Consul, restarts, and changes one Intention among all.
pub async fn measure(setup: &Setup, report: &mut Report) -> Result<()> {
    let (intentions, queries) = if setup.quick { (200, 50) } else { (2_000, 500) };
    let row = format!("entries {intentions}+{queries}");
    let scene = Scene::start(setup, 1).await?;
    create(&scene, intentions, queries).await?;
    let lictor = scene.lictor()?;
    let exact = written(&scene, intentions, queries).await?;
    let took = (exact - lictor.started).as_secs_f64();
    lictor.settled().await?;
    let (resident, _) = lictor.memory()?;
    report.add(&row, "exact after", took, "s", Goal::None);
    report.add(&row, "memory", resident, "MiB", Goal::None);
    lictor.kill().await?;

    let lictor = scene.lictor()?;
    lictor.settled().await?;
    // Whatever is to come late.
    sleep(Duration::from_secs(2)).await;
    let metrics = lictor.metrics().await?;
    report.add(
        &row,
        "writes of a restart",
        writes(&metrics),
        "",
        Goal::AtMost(0.0),
    );

    sleep(QUIET).await;
    let tries = if setup.quick { 5 } else { 20 };
    let before = lictor.metrics().await?;
    let mut times = Vec::new();
    for number in 0..tries {
        times.push(change(&scene, number * 37 % intentions).await?);
        sleep(Duration::from_millis(300)).await;
    }
    lictor.settled().await?;
    let since = lictor.metrics().await?;
    let each = (writes(&since) - writes(&before)) / f64::from(u32::try_from(tries)?);
    times.sort_by(f64::total_cmp);
    report.add(&row, "writes a change", each, "", Goal::AtMost(1.0));
    report.add(
        &row,
        "change shown p50",
        percentile(&times, 50),
        "ms",
        Goal::None,
    );
    report.add(
        &row,
        "change shown max",
        percentile(&times, 100),
        "ms",
        Goal::None,
    );
    idle(setup, &row, &lictor, report).await
}

/// A minute of nothing.
async fn idle(setup: &Setup, row: &str, lictor: &Lictor, report: &mut Report) -> Result<()> {
    sleep(QUIET).await;
    let (metrics, cpu) = (lictor.metrics().await?, lictor.cpu()?);
    sleep(Duration::from_secs(if setup.quick { 20 } else { 60 })).await;
    let (since, cpu) = (lictor.metrics().await?, lictor.cpu()? - cpu);
    let requests = since.requests() - metrics.requests();
    report.add(row, "idle: requests", requests, "", Goal::Below(60.0));
    let written = writes(&since) - writes(&metrics);
    report.add(row, "idle: writes", written, "", Goal::AtMost(0.0));
    report.add(row, "idle: CPU", cpu, "s", Goal::Below(0.12));
    Ok(())
}

/// Writes of entries that are on no node.
fn writes(metrics: &super::subject::Metrics) -> f64 {
    let kinds = ["intentions", "query", "service-defaults"];
    kinds
        .into_iter()
        .map(|kind| metrics.operations(kind, ""))
        .sum()
}

fn of_kind(kind: &str, plural: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk("lictor.io", "v1alpha1", kind);
    ApiResource::from_gvk_with_plural(&kind, plural)
}

fn api(scene: &Scene, resource: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(scene.kube.clone(), NAMESPACE, resource)
}

async fn create(scene: &Scene, intentions: usize, queries: usize) -> Result<()> {
    let resource = of_kind("Intention", "intentions");
    let api_of_intentions = api(scene, &resource);
    kubelet::for_each(0..intentions, CONCURRENCY, async |number| {
        let spec = json!({
            "destination": {"name": destination(number)},
            "sources": [
                {"name": "web", "action": "allow", "description": "the shop"},
                {"name": format!("service-{number}"), "action": "allow"},
                {"name": "*", "action": "deny"},
            ],
        });
        let object = DynamicObject::new(&destination(number), &resource);
        let object = object.data(json!({"spec": spec}));
        api_of_intentions
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    })
    .await?;
    let resource = of_kind("PreparedQuery", "preparedqueries");
    let api_of_queries = api(scene, &resource);
    kubelet::for_each(0..queries, CONCURRENCY, async |number| {
        let spec = json!({
            "service": destination(number), "onlyPassing": true, "tags": ["v1"],
            "failover": {"nearestN": 2}, "dns": {"ttl": "10s"},
        });
        let object = DynamicObject::new(&format!("nearest-{number:05}"), &resource);
        let object = object.data(json!({"spec": spec}));
        api_of_queries
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    })
    .await
}

fn destination(number: usize) -> String {
    format!("destination-{number:05}")
}

/// Waits until Consul has all, and gives the moment.
async fn written(scene: &Scene, intentions: usize, queries: usize) -> Result<Instant> {
    wait::until("all entries", DEADLINE, async || {
        let count = async |path: &str| -> Result<usize> {
            let all = scene.consul.get(path).await?;
            Ok(all.as_array().context("no list")?.len())
        };
        let found = (
            count("/v1/config/service-intentions").await?,
            count("/v1/query").await?,
        );
        ensure!(found == (intentions, queries), "{found:?}");
        Ok(())
    })
    .await?;
    Ok(Instant::now())
}

/// Changes one Intention, and gives the milliseconds until Consul shows it.
async fn change(scene: &Scene, number: usize) -> Result<f64> {
    let name = destination(number);
    let resource = of_kind("Intention", "intentions");
    let text = format!("changed at {:?}", Instant::now());
    let sources = json!([{"name": "web", "action": "deny", "description": text}]);
    let patch = Patch::Merge(json!({"spec": {"sources": sources}}));
    let all = api(scene, &resource);
    let began = Instant::now();
    all.patch(&name, &PatchParams::default(), &patch).await?;
    let at = format!("/v1/config/service-intentions/{name}");
    loop {
        let entry = scene.consul.get(&at).await?;
        if shows(&entry, &text) {
            return Ok(began.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(
            began.elapsed() < DEADLINE,
            "{name} does not change: {entry}"
        );
    }
}

fn shows(entry: &Value, text: &str) -> bool {
    let mut sources = entry["Sources"].as_array().into_iter().flatten();
    sources.any(|source| source["Description"] == text)
}
