//! How Consul's own discovery, over DNS and HTTP, sees the health and the weights of instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::kubelet::TestPod;
use lictor_testbed::{DnsRecord, DnsType};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Scene, until};

/// The pods of a service, of at most three: more do not fit an answer of Consul's over UDP.
struct Shop<'a> {
    scene: &'a Scene,
    service: String,
    pods: BTreeMap<Ipv4Addr, String>,
}

/// What a pod is to be found as.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    /// In DNS with this weight, and where only what passes is asked for.
    Passing(u16),
    /// In DNS with this weight, and not where only what passes is asked for.
    Warning(u16),
    /// Neither, but in the list of all.
    Critical,
    /// Nowhere.
    Gone,
}

impl<'a> Shop<'a> {
    fn new(scene: &'a Scene) -> Self {
        let service = scene.named("shop");
        Self {
            scene,
            service,
            pods: BTreeMap::new(),
        }
    }

    /// Creates a pod, and waits until it passes.
    async fn open(&mut self, pod: &TestPod) -> Result<()> {
        pod.create_ready(&self.scene.client).await?;
        let service = &self.service;
        let seen = self.scene.status(service, pod.name(), "passing").await?;
        self.pods
            .insert(seen.address.parse()?, pod.name().to_owned());
        Ok(())
    }

    fn name(&self, address: Option<Ipv4Addr>) -> String {
        let known = address.and_then(|address| self.pods.get(&address));
        known.cloned().unwrap_or_else(|| format!("{address:?}"))
    }

    /// The pods in an answer over HTTP.
    async fn over_http(&self, query: &str) -> Result<BTreeSet<String>> {
        let path = format!("/v1/health/service/{}?{query}", self.service);
        let answer = self.scene.consul.get(&path).await?;
        let found = answer.as_array().context("not a list")?;
        let address = |one: &Value| one["Service"]["Address"].as_str()?.parse().ok();
        Ok(found.iter().map(|one| self.name(address(one))).collect())
    }

    /// Waits until the pods are found so, over DNS and over HTTP.
    async fn finds(&self, wanted: &[(&str, Found)]) -> Result<()> {
        let named = |is: &dyn Fn(Found) -> bool| -> BTreeSet<String> {
            let named = wanted.iter().filter(|(_, found)| is(*found));
            named.map(|(name, _)| (*name).to_owned()).collect()
        };
        let all = named(&|found| found != Found::Gone);
        let passing = named(&|found| matches!(found, Found::Passing(_)));
        let weights: BTreeMap<String, u16> = wanted
            .iter()
            .filter_map(|(name, found)| match found {
                Found::Passing(weight) | Found::Warning(weight) => {
                    Some(((*name).to_owned(), *weight))
                }
                Found::Critical | Found::Gone => None,
            })
            .collect();
        let domain = format!("{}.service.consul", self.service);
        until("discovery to find what is wanted", async || {
            let found = self.over_http("consistent").await?;
            ensure!(found == all, "all: {found:?}");
            let found = self.over_http("passing&consistent").await?;
            ensure!(found == passing, "passing: {found:?}");
            let records = self.scene.bed.dns_lookup(&domain, DnsType::Srv).await?;
            let weight = |record: &DnsRecord| match record {
                DnsRecord::Srv { weight, .. } => *weight,
                DnsRecord::A { .. } => 0,
            };
            let found: BTreeMap<String, u16> = records
                .iter()
                .map(|record| (self.name(record.address()), weight(record)))
                .collect();
            ensure!(found == weights, "SRV: {found:?}");
            let records = self.scene.bed.dns_lookup(&domain, DnsType::A).await?;
            let found: BTreeSet<String> = records
                .iter()
                .map(|record| self.name(record.address()))
                .collect();
            let discovered: BTreeSet<String> = weights.keys().cloned().collect();
            ensure!(found == discovered, "A: {found:?}");
            anyhow::Ok(())
        })
        .await
    }
}

#[tokio::test]
async fn what_warns_is_still_discovered_with_less_weight_and_what_is_critical_is_not() -> Result<()>
{
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let mut shop = Shop::new(&scene);
    let spec = json!({
        "service": shop.service, "selector": {"matchLabels": {"app": "shop"}},
        "weights": {"passing": 10, "warning": 3}, "health": {"notReady": "Warning"},
    });
    scene.register("shop", spec).await?;
    let selected = |name: &str| scene.pod(name).label("app", "shop");
    let (steady, warns) = (selected("steady"), selected("warns"));
    // Its own word goes before that of the registration.
    let strict = selected("strict").lictor("not-ready", "Critical");
    let strict = strict.lictor("weight", "20");
    for pod in [&steady, &warns, &strict] {
        shop.open(pod).await?;
    }
    let all = [
        ("steady", Found::Passing(10)),
        ("warns", Found::Passing(10)),
        ("strict", Found::Passing(20)),
    ];
    shop.finds(&all).await?;
    warns.not_ready(&scene.client, "app").await?;
    strict.not_ready(&scene.client, "app").await?;
    let worse = [
        ("steady", Found::Passing(10)),
        ("warns", Found::Warning(3)),
        ("strict", Found::Critical),
    ];
    shop.finds(&worse).await?;

    // The weights of a running service change like all else.
    let patch = json!({"spec": {"weights": {"passing": 8, "warning": 2}}});
    scene.edit("shop", patch).await?;
    let reweighed = [
        ("steady", Found::Passing(8)),
        ("warns", Found::Warning(2)),
        ("strict", Found::Critical),
    ];
    shop.finds(&reweighed).await?;
    let own = [
        ("weight-warning", Some("5")),
        ("not-ready", Some("Warning")),
    ];
    scene.annotate("strict", &own).await?;
    let reweighed = [
        ("steady", Found::Passing(8)),
        ("warns", Found::Warning(2)),
        ("strict", Found::Warning(5)),
    ];
    shop.finds(&reweighed).await?;

    warns.running_ready(&scene.client).await?;
    strict.running_ready(&scene.client).await?;
    let back = [
        ("steady", Found::Passing(8)),
        ("warns", Found::Passing(8)),
        ("strict", Found::Passing(20)),
    ];
    shop.finds(&back).await?;
    // Of several healths the worst counts: the node's takes out what only warns too.
    warns.not_ready(&scene.client, "app").await?;
    scene
        .kubernetes_node()
        .ready(&scene.client, "False")
        .await?;
    let none = ["steady", "warns", "strict"].map(|name| (name, Found::Critical));
    shop.finds(&none).await
}

#[tokio::test]
async fn a_terminating_pod_is_discovered_as_is_asked_for() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let mut shop = Shop::new(&scene);
    let service = shop.service.clone();
    let pod = |how: &str| {
        let pod = scene.pod(&how.to_lowercase()).lictor("service", &service);
        let pod = pod.lictor("weight", "9").lictor("weight-warning", "4");
        pod.lictor("terminating", how)
    };
    let pods = ["Warning", "Critical", "Deregister"].map(pod);
    for pod in &pods {
        shop.open(pod).await?;
    }
    let names = ["warning", "critical", "deregister"];
    shop.finds(&names.map(|name| (name, Found::Passing(9))))
        .await?;
    for pod in &pods {
        pod.delete(&scene.client).await?;
    }
    let ending = [
        ("warning", Found::Warning(4)),
        ("critical", Found::Critical),
        ("deregister", Found::Gone),
    ];
    shop.finds(&ending).await?;
    // Its containers end before it does.
    pods[0].not_ready(&scene.client, "app").await?;
    let ending = [
        ("warning", Found::Critical),
        ("critical", Found::Critical),
        ("deregister", Found::Gone),
    ];
    shop.finds(&ending).await?;
    for pod in &pods {
        pod.finish_deletion(&scene.client).await?;
    }
    shop.finds(&names.map(|name| (name, Found::Gone))).await
}
