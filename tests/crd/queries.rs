//! Which prepared queries the API server accepts and refuses, and that Consul does the same.

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use lictor::api::{PreparedQuery, QuerySpec, ServiceRegistration};
use lictor_testbed::{Bed, ConsulApi};
use serde_json::{Value, json};

use crate::asking::{OfLength, judge, long, pairs, refused, taken, with, yaml};

/// Targets that only Consul Enterprise has; the Community Edition takes some and forgets the rest.
const TAKEN_BY_ENTERPRISE: &[&str] = &[
    "failover: {targets: [{partition: a}, {partition: a, namespace: b}, {namespace: b}]}",
    "failover: {targets: [{peer: a, namespace: b}, {datacenter: a, namespace: b, peer: '', partition: ''}]}",
];

fn query(case: Value) -> Value {
    with(json!({"service": "web"}), case)
}

pub async fn consul_agrees_on_what_is_taken_and_refused(bed: &Bed, client: &Client) -> Result<()> {
    let consul = bed.consul()?;
    let cases = include_str!("cases/queries.yaml");
    let offer = async |spec: &Value| offer(&consul, spec).await;
    judge::<PreparedQuery, ()>(client, cases, |(), case| query(case), offer).await?;
    for case in TAKEN_BY_ENTERPRISE {
        taken::<PreparedQuery>(client, "good", &query(yaml(case)?)).await?;
    }
    for name in [long(64), "with.dots".to_owned()] {
        let expected = "set spec.name or choose another name";
        refused::<PreparedQuery>(client, &name, &query(json!({})), expected).await?;
        taken::<PreparedQuery>(client, &name, &query(json!({"name": "short"}))).await?;
    }
    Ok(())
}

/// Whether Consul takes it as a query. Its fields are spelt as ours, but for capitals, which Consul
/// does not mind.
async fn offer(consul: &ConsulApi, spec: &Value) -> Result<()> {
    // As the controller reads it, without what is empty; what is wrong as it is.
    let read = serde_json::from_value::<QuerySpec>(spec.clone());
    let mut service = read.map_or_else(|_| Ok(spec.clone()), serde_json::to_value)?;
    let fields = service.as_object_mut().context("no object")?;
    fields.remove("adopt");
    let mut query = json!({"Name": fields.remove("name").unwrap_or(json!("bad"))});
    for field in ["dns", "template"] {
        if let Some(value) = fields.remove(field) {
            query[field] = value;
        }
    }
    query["Service"] = service;
    let answer = consul.post("/v1/query", &query).await;
    if let Ok(made) = &answer {
        let id = made["ID"].as_str().context("a query without an id")?;
        consul.delete(&format!("/v1/query/{id}")).await?;
    }
    answer.map(drop)
}

pub async fn lengths_have_limits(client: &Client) -> Result<()> {
    let list = |item: Value, count: usize| vec![item; count];
    let most: [(OfLength<'_>, usize, &str); 12] = [
        (&|n| json!({"name": long(n)}), 63, "may not be more than 63"),
        (
            &|n| json!({"service": long(n)}),
            256,
            "may not be more than 256",
        ),
        (
            &|n| json!({"tags": [long(n)]}),
            256,
            "may not be more than 256",
        ),
        (
            &|n| json!({"tags": list(json!("t"), n)}),
            64,
            "at most 64 items",
        ),
        (
            &|n| json!({"serviceMeta": pairs(n)}),
            64,
            "at most 64 items",
        ),
        (
            &|n| json!({"nodeMeta": {"a": "é".repeat(n)}}),
            256,
            "at most 512 bytes",
        ),
        (
            &|n| json!({"nodeMeta": {long(n): ""}}),
            128,
            "a meta key must be 1 to 128",
        ),
        (
            &|n| json!({"ignoreCheckIds": [long(n)]}),
            512,
            "may not be more than 512",
        ),
        (
            &|n| json!({"failover": {"datacenters": list(json!("d"), n)}}),
            64,
            "at most 64 items",
        ),
        (
            &|n| json!({"failover": {"targets": list(json!({"peer": "a"}), n)}}),
            64,
            "at most 64 items",
        ),
        (
            &|n| json!({"near": long(n)}),
            256,
            "may not be more than 256",
        ),
        (
            &|n| json!({"template": {"type": "name_prefix_match", "regexp": long(n)}}),
            1024,
            "may not be more than 1024",
        ),
    ];
    for (case, most, expected) in most {
        let query = |n| query(case(n));
        taken::<PreparedQuery>(client, "good", &query(most)).await?;
        refused::<PreparedQuery>(client, "bad", &query(most + 1), expected).await?;
    }
    Ok(())
}

/// The same rules hold for the queries of a registration, but for those about what is left out.
pub async fn a_registration_has_queries(client: &Client) -> Result<()> {
    let registration = |queries: Value| json!({"endpoints": [], "queries": queries});
    let named = |n: usize| json!({"name": format!("q{n}")});
    let many = |count| registration((0..count).map(named).collect());
    taken::<ServiceRegistration>(client, "good", &many(32)).await?;
    let bad = [
        ("[{}]", "spec.queries[0].name: Required value"),
        ("[{name: a}, {name: a}]", "Duplicate value"),
        (
            "[{name: nearest-a}, {name: Nearest-A}]",
            "two queries have one name",
        ),
        ("[{name: a.b}]", "a query's name is 1 to 63 of"),
        ("[{name: a}, {name: b, dns: {ttl: x}}]", "ttl is a duration"),
        (
            "[{name: a, failover: {nearestN: 1, targets: [{peer: a}]}}]",
            "targets go without nearestN",
        ),
    ];
    for (queries, expected) in bad {
        let spec = registration(yaml(queries)?);
        refused::<ServiceRegistration>(client, "bad", &spec, expected).await?;
    }
    refused::<ServiceRegistration>(client, "bad", &many(33), "must have at most 32 items").await
}

pub async fn kubectl_shows_queries(bed: &Bed) -> Result<()> {
    let manifest = json!({
        "apiVersion": "lictor.io/v1alpha1", "kind": "PreparedQuery",
        "metadata": {"name": "nearest-web", "namespace": "default"},
        "spec": {"service": "web", "near": null, "failover": {"nearestN": 2}},
    });
    bed.kubectl_apply(&manifest.to_string()).await?;
    let shown = bed.kubectl(&["get", "pq", "--output=wide"]).await?;
    let columns: Vec<_> = shown
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let expected = [
        "NAME", "NAME", "SERVICE", "ID", "READY", "AGE", "REASON", "MESSAGE",
    ];
    ensure!(columns == expected, "{shown}");
    let explained = bed.kubectl(&["explain", "pq.spec.template.type"]).await?;
    ensure!(explained.contains("name_prefix_match"), "{explained}");
    bed.kubectl(&["delete", "pq", "nearest-web"]).await?;
    Ok(())
}
