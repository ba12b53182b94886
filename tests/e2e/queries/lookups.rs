//! Queries executed, on instances that Lictor registered from pods.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::DnsType;
use serde_json::{Value, json};

use crate::support::{Scene, until};

/// The pods that an answer over HTTP has, by the names of the instances.
fn found(answer: &Value) -> BTreeSet<String> {
    let nodes = answer["Nodes"].as_array().into_iter().flatten();
    let id = |node: &Value| {
        node["Service"]["ID"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let pod = |id: String| id.rsplit('.').next().unwrap_or_default().to_owned();
    nodes.map(|node| pod(id(node))).collect()
}

/// Waits until a query finds these pods, over HTTP and over DNS.
async fn finds(scene: &Scene, name: &str, pods: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = pods.iter().map(|&pod| pod.to_owned()).collect();
    until(&format!("{name} to find {pods:?}"), async || {
        let answer = scene
            .consul
            .get(&format!("/v1/query/{name}/execute"))
            .await?;
        ensure!(found(&answer) == wanted, "{answer:#}");
        let nodes = answer["Nodes"].as_array().context("no list")?;
        let address = |node: &Value| node["Service"]["Address"].as_str().map(str::to_owned);
        let over_http: BTreeSet<Ipv4Addr> = nodes
            .iter()
            .filter_map(address)
            .map(|address| Ok(address.parse()?))
            .collect::<Result<_>>()?;
        let domain = format!("{name}.query.consul");
        let records = scene.bed.dns_lookup(&domain, DnsType::A).await?;
        let over_dns = records
            .iter()
            .filter_map(lictor_testbed::DnsRecord::address);
        ensure!(
            over_dns.collect::<BTreeSet<_>>() == over_http,
            "{records:?}"
        );
        anyhow::Ok(())
    })
    .await
}

/// Three pods of a service: stable, canary, and one that only warns.
async fn shop(scene: &Scene) -> Result<String> {
    let service = scene.named("shop");
    let spec = json!({
        "service": service,
        "selector": {"matchLabels": {"app": "shop"}},
        "tags": ["${pod.labels['track']}"],
        "meta": {"version": "${pod.labels['version']}"},
        "health": {"notReady": "Warning"},
    });
    scene.register("shop", spec).await?;
    for (name, track, version) in [
        ("stable", "stable", "1"),
        ("canary", "canary", "2"),
        ("warns", "stable", "1"),
    ] {
        let pod = scene.pod(name).label("app", "shop").label("track", track);
        let pod = pod.label("version", version);
        if name == "warns" {
            pod.create(&scene.client).await?;
            pod.not_ready(&scene.client, "app").await?;
        } else {
            pod.create_ready(&scene.client).await?;
        }
    }
    for (name, status) in [
        ("stable", "passing"),
        ("canary", "passing"),
        ("warns", "warning"),
    ] {
        scene.status(&service, name, status).await?;
    }
    Ok(service)
}

#[tokio::test]
async fn a_query_finds_by_health_tags_and_meta() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let service = shop(&scene).await?;
    let zone = json!({"topology-zone": "north-1"});
    let cases = [
        (
            "all",
            json!({"nodeMeta": zone}),
            &["canary", "stable", "warns"][..],
        ),
        (
            "passing",
            json!({"onlyPassing": true}),
            &["canary", "stable"],
        ),
        ("canaries", json!({"tags": ["canary"]}), &["canary"]),
        (
            "stables",
            json!({"tags": ["!canary"]}),
            &["stable", "warns"],
        ),
        (
            "second",
            json!({"serviceMeta": {"version": "2"}}),
            &["canary"],
        ),
        (
            "nowhere",
            json!({"nodeMeta": {"topology-zone": "south"}}),
            &[],
        ),
    ];
    for (object, mut spec, pods) in cases {
        let name = scene.named(object);
        spec["service"] = service.clone().into();
        scene.query(object, &name, spec).await?;
        finds(&scene, &name, pods).await?;
    }
    // The canary is promoted by its label.
    scene.label("canary", "track", Some("stable")).await?;
    finds(&scene, &scene.named("canaries"), &[]).await?;
    finds(
        &scene,
        &scene.named("stables"),
        &["canary", "stable", "warns"],
    )
    .await?;
    // What became ready passes.
    scene.pod("warns").running_ready(&scene.client).await?;
    finds(
        &scene,
        &scene.named("passing"),
        &["canary", "stable", "warns"],
    )
    .await
}

#[tokio::test]
async fn an_answer_over_dns_lives_as_long_as_is_said() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let service = scene.named("web");
    let pod = scene.pod("web-0");
    let pod = pod.annotation("lictor.io/service", &service);
    pod.create_ready(&scene.client).await?;
    let seen = scene.status(&service, "web-0", "passing").await?;
    let name = scene.named("timed");
    let spec = json!({"service": service, "dns": {"ttl": "1m17s"}});
    scene.query("timed", &name, spec).await?;
    let domain = format!("{name}.query.consul");
    for kind in [DnsType::A, DnsType::Srv] {
        let records = scene.bed.dns_lookup(&domain, kind).await?;
        ensure!(records.len() == 1, "{records:?}");
        assert_eq!(records[0].ttl(), Duration::from_secs(77));
        assert_eq!(records[0].address(), Some(seen.address.parse()?));
    }
    Ok(())
}

#[tokio::test]
async fn a_template_answers_every_name_that_begins_with_its_own() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let service = shop(&scene).await?;
    let name = scene.named("any");
    // The service, and after two dashes a tag, if any.
    let template = json!({
        "type": "name_prefix_match", "regexp": format!("^{name}-(.*?)(?:--(.*))?$"),
        "removeEmptyTags": true,
    });
    let spec = json!({"service": "${match(1)}", "tags": ["${match(2)}"], "template": template});
    scene.query("any", &name, spec).await?;
    finds(
        &scene,
        &format!("{name}-{service}"),
        &["canary", "stable", "warns"],
    )
    .await?;
    finds(&scene, &format!("{name}-{service}--canary"), &["canary"]).await?;
    // A query of just that name comes before it.
    let exact = format!("{name}-{service}--canary");
    let spec = json!({"service": service, "tags": ["stable"]});
    scene.query("exact", &exact, spec).await?;
    finds(&scene, &exact, &["stable", "warns"]).await
}
