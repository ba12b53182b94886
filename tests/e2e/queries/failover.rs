//! Two datacenters, on a bed of their own.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{BedOptions, DnsRecord, DnsType};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::{Annotated as _, Installed, Kind, Lictor, Scene, condition, until};

async fn scene() -> Result<Scene> {
    static FEDERATED: OnceCell<Installed> = OnceCell::const_new();
    let installed = FEDERATED
        .get_or_try_init(|| {
            Installed::with(BedOptions {
                second_datacenter: true,
                ..BedOptions::default()
            })
        })
        .await?;
    Scene::on(installed).await
}

/// An instance in `dc2`, made by hand.
async fn beyond(scene: &Scene, service: &str, address: &str) -> Result<()> {
    let node = scene.named("beyond");
    let entry = json!({
        "Node": node, "Address": address,
        "Service": {"ID": format!("{service}-beyond"), "Service": service, "Address": address, "Port": 80},
    });
    let dc2 = scene.bed.dc2_consul()?;
    dc2.put("/v1/catalog/register", &entry).await?;
    Ok(())
}

/// Waits until a query is answered from this datacenter with this address, over HTTP and over DNS.
async fn answers(scene: &Scene, name: &str, datacenter: &str, address: &str) -> Result<()> {
    until(
        &format!("{name} to be answered by {datacenter}"),
        async || {
            let answer = scene
                .consul
                .get(&format!("/v1/query/{name}/execute"))
                .await?;
            let nodes = answer["Nodes"].as_array().context("no list")?;
            ensure!(
                answer["Datacenter"] == *datacenter && nodes.len() == 1,
                "{answer:#}"
            );
            assert_eq!(nodes[0]["Service"]["Address"], *address);
            let domain = format!("{name}.query.consul");
            let records = scene.bed.dns_lookup(&domain, DnsType::A).await?;
            let over_dns: Vec<_> = records.iter().filter_map(DnsRecord::address).collect();
            ensure!(
                over_dns == [address.parse::<std::net::Ipv4Addr>()?],
                "{over_dns:?}"
            );
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn another_datacenter_answers_while_this_one_has_nothing_healthy() -> Result<()> {
    let scene = scene().await?;
    let _lictor = scene.lictor().await?;
    let service = scene.named("payment");
    let pod = scene.pod("payment-0").lictor("service", &service);
    pod.create_ready(&scene.client).await?;
    let here = scene
        .status(&service, "payment-0", "passing")
        .await?
        .address;
    beyond(&scene, &service, "10.99.1.1").await?;
    let ways = [
        ("listed", json!({"datacenters": ["nowhere", "dc2"]})),
        ("nearest", json!({"nearestN": 1})),
        ("targets", json!({"targets": [{"datacenter": "dc2"}]})),
    ];
    for (object, failover) in &ways {
        let spec = json!({"service": service, "failover": failover});
        scene.query(object, &scene.named(object), spec).await?;
        answers(&scene, &scene.named(object), "dc1", &here).await?;
    }
    pod.not_ready(&scene.client, "app").await?;
    scene.status(&service, "payment-0", "critical").await?;
    for (object, _) in &ways {
        answers(&scene, &scene.named(object), "dc2", "10.99.1.1").await?;
    }
    pod.running_ready(&scene.client).await?;
    scene.status(&service, "payment-0", "passing").await?;
    for (object, _) in &ways {
        answers(&scene, &scene.named(object), "dc1", &here).await?;
    }
    Ok(())
}

/// An instance that warns is served here rather than one elsewhere, unless only passing ones count.
#[tokio::test]
async fn a_warning_instance_counts_as_healthy_unless_only_passing_ones_do() -> Result<()> {
    let scene = scene().await?;
    let _lictor = scene.lictor().await?;
    let service = scene.named("payment");
    let pod = scene.pod("payment-0").lictor("service", &service);
    let pod = pod.lictor("not-ready", "Warning");
    pod.create_ready(&scene.client).await?;
    let here = scene
        .status(&service, "payment-0", "passing")
        .await?
        .address;
    beyond(&scene, &service, "10.99.1.2").await?;
    for (object, only_passing) in [("any", false), ("passing", true)] {
        let failover = json!({"datacenters": ["dc2"]});
        let spec = json!({"service": service, "onlyPassing": only_passing, "failover": failover});
        scene.query(object, &scene.named(object), spec).await?;
    }
    pod.not_ready(&scene.client, "app").await?;
    scene.status(&service, "payment-0", "warning").await?;
    answers(&scene, &scene.named("any"), "dc1", &here).await?;
    answers(&scene, &scene.named("passing"), "dc2", "10.99.1.2").await
}

/// A lictor that talks to `dc2` alone.
async fn in_dc2(scene: &Scene) -> Result<Lictor> {
    let address = format!("--consul-http-addr={}", scene.bed.dc2_addr()?);
    scene.lictor_with(&[&address]).await
}

/// The sources of a destination in the primary datacenter, where Consul keeps the entries.
async fn sources(scene: &Scene, destination: &str, wanted: &[&str]) -> Result<Value> {
    scene.sources_are(destination, wanted).await
}

/// Consul compares a write with the entry in the primary datacenter, whoever takes it.
#[tokio::test]
async fn entries_that_are_written_from_a_secondary_datacenter_are_those_of_the_primary()
-> Result<()> {
    let scene = scene().await?;
    // So that no index of one datacenter is by chance one of the other's.
    for number in 0..200 {
        let key = format!("/v1/kv/ahead/{number}");
        scene.consul.put(&key, &json!(number)).await?;
    }
    let lictor = in_dc2(&scene).await?;
    let payment = scene.named("payment");
    let spec = |action: &str| {
        let source = json!([{"name": "web", "action": action}]);
        json!({"destination": {"name": payment}, "sources": source})
    };
    scene.create(Kind::Intention, "pay", spec("allow")).await?;
    let entry = sources(&scene, &payment, &["web allow"]).await?;
    assert_eq!(entry["Meta"]["lictor-cluster"], scene.cluster);
    let change = json!({"spec": spec("deny")});
    scene.change(Kind::Intention, "pay", change).await?;
    let entry = sources(&scene, &payment, &["web deny"]).await?;
    scene
        .shown(Kind::Intention, "pay", |status| {
            condition(status, "Ready").0 == "True"
        })
        .await?;
    lictor.idle().await?;
    let lost = lictor
        .metric(
            "lictor_operations_total",
            &["kind=\"intentions\"", "conflict"],
        )
        .await?;
    assert!(lost == 0.0, "{lost} writes were planned on another index");

    // What another hand changes, there or here, is repaired.
    for consul in [scene.bed.consul()?, scene.bed.dc2_consul()?] {
        let evil = json!({
            "Kind": "service-intentions", "Name": payment, "Meta": entry["Meta"],
            "Sources": [{"Name": "web", "Action": "allow"}, {"Name": "evil", "Action": "allow"}],
        });
        consul.put("/v1/config", &evil).await?;
        until("the change to be undone", async || {
            let seen = scene.config_entry("service-intentions", &payment).await?;
            let all = seen["Sources"].as_array().context("no sources")?;
            let web = all.iter().find(|source| source["Name"] == "web");
            ensure!(web.is_some_and(|web| web["Action"] == "deny"), "{seen:#}");
            anyhow::Ok(())
        })
        .await?;
        lictor.idle().await?;
    }
    let before = scene.config_entry("service-intentions", &payment).await?;
    lictor.stop().await?;
    let lictor = in_dc2(&scene).await?;
    lictor
        .shows("lictor_owned{kind=\"intention\"}", 1.0)
        .await?;
    lictor.idle().await?;
    assert_eq!(
        scene.config_entry("service-intentions", &payment).await?,
        before
    );
    let all = lictor.metric("lictor_operations_total", &[]).await?;
    assert!(all == 0.0, "{all} operations");
    Ok(())
}

/// Queries belong to the datacenter that Lictor talks to.
#[tokio::test]
async fn a_query_of_a_secondary_datacenter_is_there_alone() -> Result<()> {
    let scene = scene().await?;
    let _lictor = in_dc2(&scene).await?;
    let name = scene.named("nearest");
    let spec = json!({"name": name, "service": "payment"});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    let status = scene
        .shown(Kind::PreparedQuery, "nearest", |status| {
            condition(status, "Ready").0 == "True"
        })
        .await?;
    assert_eq!(status["consul"]["datacenter"], "dc2");
    let there = scene.bed.dc2_consul()?.get("/v1/query?consistent").await?;
    let ids = |queries: &Value| -> BTreeSet<String> {
        let queries = queries.as_array().into_iter().flatten();
        let text = |query: &Value| query["ID"].as_str().unwrap_or_default().to_owned();
        queries.map(text).collect()
    };
    let id = status["id"].as_str().context("no id")?;
    ensure!(ids(&there).contains(id), "{there:#}");
    let here = scene.consul.get("/v1/query?consistent").await?;
    ensure!(!ids(&here).contains(id), "{here:#}");
    Ok(())
}
