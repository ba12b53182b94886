//! Consul, or another datacenter, out of reach for longer than anything lives without it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{
    BedOptions,
    proxy::{Fault, Proxy},
    wait,
};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::sleep;

use super::{Churn, foreign, ready_but, settle};
use crate::support::{
    Annotated as _, Installed, Kind, Lictor, Oracle, Scene, condition, sources_of, until,
};

/// Longer than every deadline of a call, every pause between two tries, and the shortest session with
/// Consul's grace.
const LONG: Duration = Duration::from_secs(125);
/// Longer than a read waits for an answer.
const CUT: Duration = Duration::from_secs(40);

/// Longer than three lists take, 30 s apart.
const LISTS: Duration = Duration::from_mins(3);

const STAY: [&str; 2] = ["web-0", "web-1"];

fn intention(scene: &Scene, action: &str) -> Value {
    json!({"destination": {"name": scene.named("pay")},
           "sources": [{"name": "web", "action": action}]})
}

/// An intention and a query that stand.
async fn entries(scene: &Scene) -> Result<()> {
    scene
        .create(Kind::Intention, "pay", intention(scene, "allow"))
        .await?;
    let query = json!({"name": scene.named("near"), "service": "web"});
    scene.create(Kind::PreparedQuery, "near", query).await?;
    let ready = |status: &Value| condition(status, "Ready").0 == "True";
    scene.shown(Kind::Intention, "pay", ready).await?;
    scene.shown(Kind::PreparedQuery, "near", ready).await?;
    Ok(())
}

/// Those stay.
async fn kept(scene: &Scene) -> Result<Oracle> {
    let sources = [(scene.named("pay"), "web".to_owned())];
    Oracle::watch_entries(&scene.consul, &sources, &[scene.named("near")], &[]).await
}

#[tokio::test]
async fn consul_away_for_longer_than_anything_lives_costs_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let lictor = scene.lictor_through(&kubernetes, &consul).await?;
    let ids = settle(&scene, &STAY).await?;
    entries(&scene).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let others = kept(&scene).await?;
    let before = scene.dump().await?;

    // What is open hangs, and what comes later is refused.
    consul.set(Fault::Blackhole).await?;
    churn.turns(15).await?;
    sleep(LONG / 2).await;
    consul.set(Fault::Refuse).await?;
    churn.turns(15).await?;
    sleep(LONG / 2).await;
    assert_eq!(scene.dump().await?, before);
    ready_but(&lictor, "consul: ").await?;
    let age = "lictor_consul_last_contact_seconds";
    let age = lictor.metric(age, &[]).await?;
    ensure!(age > LONG.as_secs_f64(), "{age}");

    consul.set(Fault::Pass).await?;
    churn.exact().await?;
    let patch = json!({"spec": intention(&scene, "deny")});
    others.verdict().await?;
    scene.change(Kind::Intention, "pay", patch).await?;
    scene
        .sources_are(&scene.named("pay"), &["web deny"])
        .await?;
    lictor.idle().await?;
    oracle.verdict().await
}

// === two datacenters ===

/// A bed with two datacenters, for one test at a time.
async fn federated() -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
    static ONE: Mutex<()> = Mutex::const_new(());
    static BED: OnceCell<Installed> = OnceCell::const_new();
    let guard = ONE.lock().await;
    let start = || {
        Installed::with(BedOptions {
            second_datacenter: true,
            ..BedOptions::default()
        })
    };
    let installed = BED.get_or_try_init(start).await?;
    joined(installed).await?;
    Ok((guard, installed))
}

/// A server that was taken for failed is asked again only every half minute.
async fn joined(installed: &Installed) -> Result<()> {
    wait::until("the datacenters to be joined", LISTS, async || {
        installed.bed.datacenters_joined().await
    })
    .await
}

/// A pod whose end is to be seen.
async fn doomed(scene: &Scene) -> Result<()> {
    let pod = scene.pod("goes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "goes", "passing").await?;
    Ok(())
}

/// The server of `dc1` hangs: to `dc2` it is as if the WAN were cut.
#[tokio::test]
async fn a_secondary_datacenter_without_the_primary_keeps_what_it_has() -> Result<()> {
    let (_guard, installed) = federated().await?;
    let mut scene = Scene::on(installed).await?;
    scene.consul = installed.bed.dc2_consul()?;
    let address = format!("--consul-http-addr={}", installed.bed.dc2_addr()?);
    let lictor = scene.lictor_with(&[&address]).await?;
    let ids = settle(&scene, &STAY).await?;
    doomed(&scene).await?;
    entries(&scene).await?;
    let old = scene.named("old");
    let spec =
        json!({"destination": {"name": old}, "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "old", spec).await?;
    for name in [&scene.named("pay"), &old] {
        copied(&scene, name).await?;
    }
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let others = kept(&scene).await?;

    installed.bed.consul_server.pause()?;
    let cut = cut_off(&scene, &lictor).await;
    installed.bed.consul_server.resume()?;
    cut?;
    joined(installed).await?;
    others.verdict().await?;
    oracle.verdict().await?;
    // What was asked for meanwhile is there, in both.
    copied(&scene, &scene.named("late")).await?;
    wait::until("what was deleted to be gone", LISTS, async || {
        let found = scene.config_entry("service-intentions", &old).await?;
        ensure!(found.is_null(), "{found:#}");
        Ok(())
    })
    .await?;
    let primary = installed.bed.consul()?;
    until("the primary to be exact", async || {
        let all = primary
            .get("/v1/config/service-intentions?consistent")
            .await?;
        let all = all.as_array().context("no list")?;
        let of = |name: &str| all.iter().find(|entry| entry["Name"] == name);
        ensure!(of(&old).is_none(), "{all:#?}");
        let late = of(&scene.named("late")).context("it is not there")?;
        ensure!(sources_of(late) == ["web allow"], "{late:#}");
        Ok(())
    })
    .await?;
    lictor.idle().await
}

/// Waits until the secondary has an entry too: after a failure it asks for what is new only after a while.
async fn copied(scene: &Scene, name: &str) -> Result<()> {
    wait::until("the entry to be copied", LISTS, async || {
        let found = scene.config_entry("service-intentions", name).await?;
        ensure!(sources_of(&found) == ["web allow"], "{found:#}");
        Ok(())
    })
    .await
}

/// While the primary is out of reach.
async fn cut_off(scene: &Scene, lictor: &Lictor) -> Result<()> {
    // What is of this datacenter alone goes on.
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.gone("web", "goes").await?;
    let pod = scene.pod("comes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "comes", "passing").await?;
    let near = json!({"name": scene.named("later"), "service": "web"});
    scene.create(Kind::PreparedQuery, "later", near).await?;
    scene
        .query_is(&scene.named("later"), |found| !found.is_null())
        .await?;
    // What is of all waits, and says so.
    let late = json!({"destination": {"name": scene.named("late")},
                      "sources": [{"name": "web", "action": "allow"}]});
    scene.create(Kind::Intention, "late", late).await?;
    sleep(CUT).await;
    let object = scene.objects(Kind::Intention).get("late").await?;
    let (ready, reason, message) = condition(&object.data["status"], "Ready");
    ensure!(ready != "True", "{reason}: {message}");
    scene.delete(Kind::Intention, "old").await?;
    // The copy here still has it.
    scene
        .sources_are(&scene.named("old"), &["web allow"])
        .await?;
    let pod = scene.pod("comes");
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "comes", "critical").await?;
    let (status, body) = lictor.http("/readyz").await?;
    ensure!(status == 200, "{status}: {body}");
    Ok(())
}

/// The server of `dc2` hangs: to `dc1` that is nothing but a place to fail over to.
#[tokio::test]
async fn a_primary_datacenter_without_the_other_misses_nothing() -> Result<()> {
    let (_guard, installed) = federated().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, &STAY).await?;
    doomed(&scene).await?;
    entries(&scene).await?;
    let far = json!({"name": scene.named("far"), "service": "web",
                     "failover": {"datacenters": ["dc2"]}});
    scene.create(Kind::PreparedQuery, "far", far).await?;
    let there = |found: &Value| !found.is_null();
    let before = scene.query_is(&scene.named("far"), there).await?;
    lictor.idle().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;

    let other = installed.bed.dc2_server()?;
    other.pause()?;
    let test = async {
        scene.pod("goes").finish_deletion(&scene.client).await?;
        scene.gone("web", "goes").await?;
        let patch = json!({"spec": intention(&scene, "deny")});
        scene.change(Kind::Intention, "pay", patch).await?;
        scene
            .sources_are(&scene.named("pay"), &["web deny"])
            .await?;
        sleep(CUT).await;
        lictor.idle().await
    };
    let done = test.await;
    other.resume()?;
    done?;
    joined(installed).await?;
    assert_eq!(scene.query_named(&scene.named("far")).await?, before);
    let missed = lictor.metric("lictor_audit_findings_total", &[]).await?;
    ensure!(missed == 0.0, "{missed}");
    oracle.verdict().await
}
