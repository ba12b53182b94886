//! The rows that follow one lictor through one situation each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{interval, sleep};

use super::{
    Setup,
    expected::Expected,
    report::{Goal, Report, percentile},
    scene::{Instance, Scene},
};

const NODES: usize = 100;
/// Nothing here takes longer, unless it fails.
const DEADLINE: Duration = Duration::from_mins(2);
/// Longer than the time after the last write in which lictor looks whether another hand wrote too.
const QUIET: Duration = Duration::from_secs(15);

/// An empty Consul is filled.
pub async fn cold(setup: &Setup, report: &mut Report) -> Result<()> {
    let sizes: &[(usize, f64)] = if setup.quick {
        &[(1_000, 0.7)]
    } else {
        &[(1_000, 0.7), (5_000, 3.0)]
    };
    for &(size, goal) in sizes {
        let row = format!("cold {size}");
        let scene = Scene::start(setup, NODES).await?;
        let instances = scene.instances(0..size);
        scene.create(&instances).await?;
        let raft = scene.raft_index().await?;
        let lictor = scene.lictor()?;
        let exact = Expected::of(NODES, &instances)
            .wait(&scene.consul, DEADLINE)
            .await?;
        let took = (exact - lictor.started).as_secs_f64();
        let raft = scene.raft_index().await? - raft;
        let metrics = lictor.metrics().await?;
        let (_, peak) = lictor.memory()?;
        report.add(&row, "exact after", took, "s", Goal::Below(goal));
        report.add(&row, "transactions", metrics.transactions(), "", Goal::None);
        let written = metrics.operations("instance", "") + metrics.operations("node", "");
        report.add(&row, "entries written", written, "", Goal::None);
        report.add(&row, "raft entries", raft, "", Goal::None);
        report.add(&row, "CPU", lictor.cpu()?, "s", Goal::None);
        report.add(&row, "peak memory", peak, "MiB", Goal::None);
    }
    Ok(())
}

/// Half of the pods are replaced by others, as fast as the API server takes it.
pub async fn churn(setup: &Setup, report: &mut Report) -> Result<()> {
    let (size, replaced) = (1_000, 500);
    let scene = Scene::start(setup, NODES).await?;
    let before = scene.instances(0..size);
    scene.create(&before).await?;
    let lictor = scene.lictor()?;
    Expected::of(NODES, &before)
        .wait(&scene.consul, DEADLINE)
        .await?;
    lictor.settled().await?;

    let (gone, kept) = before.split_at(replaced);
    let new = scene.instances(size..size + replaced);
    let after = [kept, &new].concat();
    let (metrics, cpu) = (lictor.metrics().await?, lictor.cpu()?);
    let began = Instant::now();
    tokio::try_join!(scene.delete(gone), scene.create(&new))?;
    let last = Instant::now();
    let exact = Expected::of(NODES, &after)
        .wait(&scene.consul, DEADLINE)
        .await?;
    lictor.settled().await?;
    let since = lictor.metrics().await?;
    let done = |verb| since.operations("instance", verb) - metrics.operations("instance", verb);
    let took = exact.saturating_duration_since(last).as_secs_f64();
    report.add(
        "churn",
        "API writes took",
        (last - began).as_secs_f64(),
        "s",
        Goal::None,
    );
    report.add("churn", "exact after the last", took, "s", Goal::Below(1.0));
    // One entry for each new pod, one removal for each old one; and the API server shows even a pod
    // that is deleted at once as terminating first, which is to be critical as soon as it is seen.
    let needed = u32::try_from(replaced)?.into();
    for verb in ["create", "update", "delete"] {
        let name = format!("entries written: {verb}");
        report.add("churn", &name, done(verb), "", Goal::AtMost(needed));
    }
    let transactions = since.transactions() - metrics.transactions();
    report.add("churn", "transactions", transactions, "", Goal::None);
    report.add("churn", "CPU", lictor.cpu()? - cpu, "s", Goal::None);
    Ok(())
}

/// A restart, with all in place.
pub async fn warm(setup: &Setup, report: &mut Report) -> Result<()> {
    let scene = Scene::start(setup, NODES).await?;
    let instances = scene.instances(0..1_000);
    scene.create(&instances).await?;
    let expected = Expected::of(NODES, &instances);
    let lictor = scene.lictor()?;
    expected.wait(&scene.consul, DEADLINE).await?;
    lictor.settled().await?;
    lictor.kill().await?;

    let catalog = catalog_index(&scene).await?;
    let lictor = scene.lictor()?;
    let ready = lictor.ready().await? - lictor.started;
    lictor.settled().await?;
    // Whatever is to come late.
    sleep(Duration::from_secs(2)).await;
    let metrics = lictor.metrics().await?;
    let moved = f64::from(u8::from(catalog_index(&scene).await? != catalog));
    expected.verify(&scene.consul).await?;
    report.add("warm", "ready after", ready.as_secs_f64(), "s", Goal::None);
    let written = metrics.transactions();
    // The epoch, which each start takes.
    report.add("warm", "writes", written, "", Goal::AtMost(1.0));
    report.add("warm", "catalog moved", moved, "", Goal::AtMost(0.0));
    report.add("warm", "requests", metrics.requests(), "", Goal::None);
    report.add("warm", "CPU", lictor.cpu()?, "s", Goal::None);
    Ok(())
}

/// The highest index of an entry of Consul's catalog, and how many entries there are.
async fn catalog_index(scene: &Scene) -> Result<(u64, usize)> {
    let checks = scene.consul.get("/v1/health/state/any?consistent").await?;
    let checks = checks.as_array().context("no list of checks")?;
    let index = |check: &Value| check["ModifyIndex"].as_u64();
    Ok((
        checks.iter().filter_map(index).max().unwrap_or_default(),
        checks.len(),
    ))
}

/// A minute in which nothing changes but leases of nodes.
pub async fn idle(setup: &Setup, report: &mut Report) -> Result<()> {
    let scene = Scene::start(setup, NODES).await?;
    let instances = scene.instances(0..1_000);
    scene.create(&instances).await?;
    let leases = tokio::spawn(renew_leases(scene.kube.clone()));
    let lictor = scene.lictor()?;
    Expected::of(NODES, &instances)
        .wait(&scene.consul, DEADLINE)
        .await?;
    lictor.settled().await?;
    sleep(QUIET).await;

    let (metrics, cpu) = (lictor.metrics().await?, lictor.cpu()?);
    let sleeps = lictor.sleeps()?;
    let minute = if setup.quick { 20 } else { 60 };
    sleep(Duration::from_secs(minute)).await;
    let cpu = lictor.cpu()? - cpu;
    let sleeps = lictor.sleeps()? - sleeps;
    let since = lictor.metrics().await?;
    leases.abort();
    let requests = since.requests() - metrics.requests();
    let written = since.transactions() - metrics.transactions();
    report.add("idle", "Consul requests", requests, "", Goal::Below(60.0));
    report.add("idle", "catalog writes", written, "", Goal::AtMost(0.0));
    report.add("idle", "CPU", cpu, "s", Goal::Below(0.12));
    report.add("idle", "wake-ups of threads", sleeps, "", Goal::None);
    report.add("idle", "memory", lictor.memory()?.0, "MiB", Goal::None);
    Ok(())
}

/// Renews the lease of each node every ten seconds, as kubelets do.
async fn renew_leases(kube: Client) -> Result<()> {
    let leases = Api::<Lease>::namespaced(kube, "kube-node-lease");
    for node in 0..NODES {
        let lease = serde_json::from_value(json!({
            "metadata": {"name": format!("node-{node:03}")},
            "spec": {"holderIdentity": format!("node-{node:03}"), "leaseDurationSeconds": 40},
        }))?;
        leases.create(&PostParams::default(), &lease).await?;
    }
    let mut tick = interval(Duration::from_secs(10) / u32::try_from(NODES)?);
    for node in (0..NODES).cycle() {
        tick.tick().await;
        let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
        let renewal = Patch::Merge(json!({"spec": {"renewTime": now.to_string()}}));
        leases
            .patch(
                &format!("node-{node:03}"),
                &PatchParams::default(),
                &renewal,
            )
            .await?;
    }
    Ok(())
}

/// Entries are removed and altered by hand, one after the other.
pub async fn drift(setup: &Setup, report: &mut Report) -> Result<()> {
    let scene = Scene::start(setup, 10).await?;
    let instances = scene.instances(0..100);
    scene.create(&instances).await?;
    let expected = Expected::of(scene.nodes, &instances);
    let lictor = scene.lictor()?;
    expected.wait(&scene.consul, DEADLINE).await?;
    lictor.settled().await?;
    sleep(QUIET).await;

    let tries = if setup.quick { 6 } else { 20 };
    let (mut removed, mut altered) = (Vec::new(), Vec::new());
    for number in 0..tries {
        let instance = &instances[(number * 37) % instances.len()];
        let took = if number % 2 == 0 {
            &mut removed
        } else {
            &mut altered
        };
        took.push(tamper(&scene, instance, number % 2 == 0).await?);
        // In no rhythm, and no faster than people are.
        sleep(Duration::from_millis(2_000 + (number as u64 * 613) % 1_500)).await;
    }
    expected.verify(&scene.consul).await?;
    let mut all = [removed.clone(), altered.clone()].concat();
    for (name, times) in [
        ("removed", &mut removed),
        ("altered", &mut altered),
        ("all", &mut all),
    ] {
        times.sort_by(f64::total_cmp);
        let goal = if name == "all" {
            Goal::Below(500.0)
        } else {
            Goal::None
        };
        let p50 = percentile(times, 50);
        report.add("drift", &format!("{name}: back p50"), p50, "ms", goal);
        let max = percentile(times, 100);
        report.add("drift", &format!("{name}: back max"), max, "ms", Goal::None);
    }
    Ok(())
}

/// Changes an entry behind lictor's back, and gives the milliseconds until it is as it was.
async fn tamper(scene: &Scene, instance: &Instance, remove: bool) -> Result<f64> {
    let node = Instance::consul_node(instance.node);
    let path = format!("/v1/catalog/node-services/{node}");
    let own = |services: Value| -> Option<Value> {
        let services = services["Services"].as_array()?.iter();
        let mut own = services.filter(|service| service["ID"] == instance.id().as_str());
        own.next().cloned()
    };
    let before = own(scene.consul.get(&path).await?).context("nothing to alter")?;
    if remove {
        let body = json!({"Node": node, "ServiceID": instance.id()});
        scene.consul.put("/v1/catalog/deregister", &body).await?;
    } else {
        let mut service = before.clone();
        service["Port"] = json!(6_666);
        service["Tags"] = json!(["by-hand"]);
        for read_only in ["CreateIndex", "ModifyIndex", "Connect", "Proxy", "PeerName"] {
            if let Some(fields) = service.as_object_mut() {
                fields.remove(read_only);
            }
        }
        let body = json!({
            "Node": node,
            "Address": "127.0.0.1",
            "SkipNodeUpdate": true,
            "Service": service,
        });
        scene.consul.put("/v1/catalog/register", &body).await?;
    }
    let began = Instant::now();
    let same = |now: &Value| {
        ["Service", "Address", "Port", "Tags", "Meta"]
            .iter()
            .all(|field| now[field] == before[field])
    };
    lictor_testbed::wait::until("the entry to be as it was", DEADLINE, async || {
        match own(scene.consul.get(&path).await?) {
            Some(now) if same(&now) => anyhow::Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    // A removal took its readiness check along.
    let checks = format!("/v1/health/node/{node}");
    lictor_testbed::wait::until("the readiness check", DEADLINE, async || {
        let checks = scene.consul.get(&checks).await?;
        let mut checks = checks.as_array().into_iter().flatten();
        checks
            .find(|check| check["ServiceID"] == instance.id().as_str())
            .map(drop)
            .context("it is not there")
    })
    .await?;
    Ok(took)
}

/// Pods went while lictor was dead.
pub async fn restart(setup: &Setup, report: &mut Report) -> Result<()> {
    let scene = Scene::start(setup, NODES).await?;
    let instances = scene.instances(0..1_000);
    scene.create(&instances).await?;
    let lictor = scene.lictor()?;
    Expected::of(NODES, &instances)
        .wait(&scene.consul, DEADLINE)
        .await?;
    lictor.settled().await?;
    lictor.kill().await?;

    let (gone, left) = instances.split_at(200);
    scene.delete(gone).await?;
    let lictor = scene.lictor()?;
    let exact = Expected::of(NODES, left)
        .wait(&scene.consul, DEADLINE)
        .await?;
    let took = (exact - lictor.started).as_secs_f64();
    lictor.settled().await?;
    let metrics = lictor.metrics().await?;
    report.add("restart", "gone after", took, "s", Goal::Below(1.0));
    let written = metrics.operations("instance", "");
    report.add(
        "restart",
        "entries written",
        written,
        "",
        Goal::AtMost(200.0),
    );
    Ok(())
}

/// What stays resident, once all is written and quiet.
pub async fn memory(setup: &Setup, report: &mut Report) -> Result<()> {
    let mut sizes = vec![(1_000, 40.0)];
    if setup.large {
        sizes.push((10_000, 80.0));
    }
    for (size, goal) in sizes {
        let row = format!("memory {size}");
        let scene = Scene::start(setup, NODES).await?;
        let instances = scene.instances(0..size);
        scene.create(&instances).await?;
        let expected = Expected::of(NODES, &instances);
        let lictor = scene.lictor()?;
        let exact = expected.wait(&scene.consul, DEADLINE).await?;
        let took = (exact - lictor.started).as_secs_f64();
        lictor.settled().await?;
        sleep(QUIET).await;
        let (resident, peak) = lictor.memory()?;
        report.add(&row, "resident", resident, "MiB", Goal::Below(goal));
        report.add(&row, "peak", peak, "MiB", Goal::None);
        report.add(&row, "cold start", took, "s", Goal::None);
        lictor.kill().await?;

        // The same, where Consul is read instead of written.
        let lictor = scene.lictor()?;
        let ready = lictor.ready().await? - lictor.started;
        lictor.settled().await?;
        sleep(QUIET / 3).await;
        let (resident, peak) = lictor.memory()?;
        let name = "resident after a restart";
        report.add(&row, name, resident, "MiB", Goal::Below(goal));
        report.add(&row, "peak after a restart", peak, "MiB", Goal::None);
        report.add(&row, "warm start", ready.as_secs_f64(), "s", Goal::None);
    }
    Ok(())
}
