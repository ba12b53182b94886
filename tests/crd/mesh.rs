//! What a `ServiceRegistration` may say of the mesh, and that Consul takes and refuses the same.

use anyhow::{Context as _, Result};
use kube::Client;
use lictor::api::ServiceRegistration;
use lictor_testbed::{Bed, ConsulApi};
use serde_json::{Value, json};

use crate::asking::{judge, long, refused, taken, with};

fn registration(more: Value) -> Value {
    with(json!({"endpoints": []}), more)
}

fn sidecar(upstreams: &Value) -> Value {
    registration(json!({"connect": {"sidecar": {"port": 20000, "upstreams": upstreams}}}))
}

pub async fn consul_agrees_on_upstreams(bed: &Bed, client: &Client) -> Result<()> {
    let consul = bed.consul()?;
    let cases = include_str!("cases/upstreams.yaml");
    let offer = async |spec: &Value| {
        let upstreams = &spec["connect"]["sidecar"]["upstreams"];
        offer(&consul, upstreams).await
    };
    judge::<ServiceRegistration, ()>(client, cases, |(), case| sidecar(&case), offer).await
}

/// Whether Consul takes these upstreams with a proxy.
async fn offer(consul: &ConsulApi, upstreams: &Value) -> Result<()> {
    let names = [
        ("service", "DestinationName"),
        ("localPort", "LocalBindPort"),
        ("datacenter", "Datacenter"),
        ("peer", "DestinationPeer"),
        ("namespace", "DestinationNamespace"),
        ("partition", "DestinationPartition"),
    ];
    let upstream = |upstream: &Value| {
        let fields = names.iter().filter_map(|(ours, theirs)| {
            let value = upstream.get(ours)?.clone();
            Some(((*theirs).to_owned(), value))
        });
        Value::Object(fields.collect())
    };
    let upstreams = upstreams.as_array().context("no list")?;
    let proxy = json!({
        "Node": "mesh", "Address": "192.0.2.1",
        "Service": {
            "Kind": "connect-proxy", "Service": "web-sidecar-proxy", "Port": 20000,
            "Proxy": {
                "DestinationServiceName": "web",
                "Upstreams": upstreams.iter().map(upstream).collect::<Vec<_>>(),
            },
        },
    });
    let answer = consul.put("/v1/catalog/register", &proxy).await;
    consul
        .put("/v1/catalog/deregister", &json!({"Node": "mesh"}))
        .await?;
    answer.map(drop)
}

pub async fn the_rest_is_judged(client: &Client) -> Result<()> {
    let upstream = |n: usize| json!({"service": format!("s{n}"), "localPort": n + 1});
    let upstreams = |count| sidecar(&(0..count).map(upstream).collect());
    let good = [
        registration(json!({"connect": {"native": true}})),
        registration(json!({"connect": {"native": false, "sidecar": {"port": 65535}}})),
        registration(json!({"connect": {"sidecar": {"port": 1}}, "service": long(49)})),
        registration(json!({"connect": {"native": true}, "service": long(63)})),
        registration(json!({"protocol": "tcp"})),
        registration(json!({"protocol": "http2", "queries": [], "connect": null})),
        upstreams(64),
    ];
    for spec in good {
        taken::<ServiceRegistration>(client, "good", &spec).await?;
    }
    let one = "give exactly one of native: true";
    let long_name = "with connect.sidecar the service's name has at most 49 characters";
    let bad = [
        (registration(json!({"connect": {}})), one),
        (registration(json!({"connect": {"native": false}})), one),
        (
            registration(json!({"connect": {"native": true, "sidecar": {"port": 1}}})),
            one,
        ),
        (
            registration(json!({"connect": {"sidecar": {}}})),
            "connect.sidecar.port: Required value",
        ),
        (
            registration(json!({"connect": {"sidecar": {"port": 0}}})),
            "connect.sidecar.port",
        ),
        (
            registration(json!({"connect": {"sidecar": {"port": 1}}, "service": long(50)})),
            long_name,
        ),
        (
            registration(json!({"protocol": "HTTP"})),
            "supported values: \"tcp\", \"http\", \"http2\", \"grpc\"",
        ),
        (upstreams(65), "must have at most 64 items"),
    ];
    for (spec, expected) in bad {
        refused::<ServiceRegistration>(client, "bad", &spec, expected).await?;
    }
    let defaulted = registration(json!({"connect": {"sidecar": {"port": 1}}}));
    taken::<ServiceRegistration>(client, &long(49), &defaulted).await?;
    refused::<ServiceRegistration>(client, &long(50), &defaulted, long_name).await
}
