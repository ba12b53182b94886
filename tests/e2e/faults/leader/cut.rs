//! A leader that cannot reach Kubernetes, Consul, or either.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lictor_testbed::proxy::{Fault, Proxy};
use serde_json::json;

use super::{STAY, renewed};
use crate::faults::{Churn, foreign, settle};
use crate::leader::{
    AFTER_KILL, AFTER_KILL_BY_LOCK, epoch, follows, follows_since, holder, pod, stands_by, watched,
    works,
};
use crate::support::{Annotated as _, BY_LOCK, Lictor, Oracle, Scene};

/// Starts one that leads and reaches its APIs through these, and another one that stands by.
async fn pair_through(
    scene: &Scene,
    (kubernetes, consul): (&Proxy, &Proxy),
    more: &[&str],
) -> Result<(Lictor, Lictor)> {
    let kubeconfig = scene.kubeconfig_through(kubernetes)?;
    let address = format!("--consul-http-addr={}", consul.url());
    let first = pod(scene, "first", &[&[&*kubeconfig, &*address], more].concat()).await?;
    first.shows("lictor_leader", 1.0).await?;
    let second = pod(scene, "second", more).await?;
    stands_by(&second, "first").await?;
    Ok((first, second))
}

fn proxies(scene: &Scene) -> Result<(Proxy, Proxy)> {
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    Ok((kubernetes, Proxy::start(&scene.bed.consul_addr())?))
}

#[tokio::test]
async fn a_leader_that_is_cut_from_the_api_server_is_followed() -> Result<()> {
    let scene = Scene::new().await?;
    let (kubernetes, consul) = proxies(&scene)?;
    let (first, _second) = pair_through(&scene, (&kubernetes, &consul), &[]).await?;
    let oracle = watched(&scene).await?;
    kubernetes.set(Fault::Blackhole).await?;
    let pod = scene.pod("changes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    follows(&scene, "second", AFTER_KILL).await?;
    first.shows("lictor_leader", 0.0).await?;
    scene.status("web", "changes", "passing").await?;
    kubernetes.set(Fault::Reset).await?;
    kubernetes.set(Fault::Pass).await?;
    stands_by(&first, "second").await?;
    works(&scene, "later").await?;
    oracle.verdict().await
}

#[tokio::test]
async fn by_a_lock_a_leader_that_is_cut_from_consul_is_followed() -> Result<()> {
    let scene = Scene::new().await?;
    let (kubernetes, consul) = proxies(&scene)?;
    let (first, _second) = pair_through(&scene, (&kubernetes, &consul), &[BY_LOCK]).await?;
    let oracle = watched(&scene).await?;
    consul.set(Fault::Blackhole).await?;
    follows(&scene, "second", AFTER_KILL_BY_LOCK).await?;
    first.shows("lictor_leader", 0.0).await?;
    consul.set(Fault::Reset).await?;
    consul.set(Fault::Pass).await?;
    stands_by(&first, "second").await?;
    works(&scene, "later").await?;
    oracle.verdict().await
}

async fn cut_from_both(more: &[&str], within: Duration) -> Result<()> {
    let scene = Scene::new().await?;
    let (kubernetes, consul) = proxies(&scene)?;
    let (first, second) = pair_through(&scene, (&kubernetes, &consul), more).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let began = Instant::now();
    consul.set(Fault::Blackhole).await?;
    // It still hears of these, and its writes get no answer.
    churn.turns(5).await?;
    kubernetes.set(Fault::Blackhole).await?;
    churn.turns(5).await?;
    follows_since(&scene, "second", began, within).await?;
    first.shows("lictor_leader", 0.0).await?;
    churn.exact().await?;
    second.idle().await?;
    let before = scene.dump().await?;
    let taken = epoch(&scene).await?;
    for proxy in [&kubernetes, &consul] {
        proxy.set(Fault::Reset).await?;
        proxy.set(Fault::Pass).await?;
    }
    stands_by(&first, "second").await?;
    assert_eq!(scene.dump().await?, before);
    assert_eq!(epoch(&scene).await?, taken);
    churn.turns(5).await?;
    churn.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn by_a_lease_a_leader_that_is_cut_from_both_is_followed() -> Result<()> {
    cut_from_both(&[], AFTER_KILL).await
}

#[tokio::test]
async fn by_a_lock_a_leader_that_is_cut_from_both_is_followed() -> Result<()> {
    cut_from_both(&[BY_LOCK], AFTER_KILL_BY_LOCK).await
}

/// The Lease says nothing about Consul.
#[tokio::test]
async fn by_a_lease_a_leader_that_is_cut_from_consul_goes_on_when_it_is_back() -> Result<()> {
    let scene = Scene::new().await?;
    let (kubernetes, consul) = proxies(&scene)?;
    let (first, second) = pair_through(&scene, (&kubernetes, &consul), &[]).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let taken = epoch(&scene).await?;
    consul.set(Fault::Blackhole).await?;
    churn.turns(10).await?;
    renewed(&scene, 4).await?;
    assert_eq!(holder(&scene).await?, "first");
    stands_by(&second, "first").await?;
    consul.set(Fault::Reset).await?;
    consul.set(Fault::Pass).await?;
    churn.exact().await?;
    churn.turns(5).await?;
    churn.exact().await?;
    first.shows("lictor_leader", 1.0).await?;
    assert_eq!(epoch(&scene).await?, taken);
    oracle.verdict().await
}

/// By a lock it needs Consul alone: what another hand does there it still undoes.
#[tokio::test]
async fn by_a_lock_a_leader_that_is_cut_from_the_api_server_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let (kubernetes, consul) = proxies(&scene)?;
    let (first, second) = pair_through(&scene, (&kubernetes, &consul), &[BY_LOCK]).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let taken = epoch(&scene).await?;
    kubernetes.set(Fault::Blackhole).await?;
    let gone = churn.want.keys().next().context("nobody is there")?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", gone)});
    scene.away_by_hand(&away).await?;
    churn.exact().await?;
    churn.turns(10).await?;
    stands_by(&second, "first").await?;
    kubernetes.set(Fault::Reset).await?;
    kubernetes.set(Fault::Pass).await?;
    churn.exact().await?;
    first.shows("lictor_leader", 1.0).await?;
    assert_eq!(epoch(&scene).await?, taken);
    oracle.verdict().await
}
