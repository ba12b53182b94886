//! What the API server accepts and refuses.

use anyhow::{Result, bail, ensure};
use kube::{Client, Resource as _};
use lictor::api::ServiceRegistration;
use lictor_testbed::Bed;
use serde_json::{Value, json};

use crate::asking::{long, pairs, refused, taken, with, yaml};

fn endpoints(count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| json!({"name": format!("e{n}"), "address": "db.example.com"}))
        .collect()
}

/// A spec with pods as its source and something more.
fn pods(more: Value) -> Value {
    with(json!({"selector": {"matchLabels": {"app": "web"}}}), more)
}

/// A spec with one endpoint, and something more in it.
fn endpoint(more: Value) -> Value {
    json!({"endpoints": [with(json!({"name": "primary", "address": "10.0.0.1"}), more)]})
}

pub async fn good_objects_are_taken(client: &Client) -> Result<()> {
    let full = json!({
        "service": "payment",
        "selector": {"matchLabels": {"app": "payment"},
                     "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]},
                                          {"key": "example.com/old", "operator": "DoesNotExist"}]},
        "port": "http", "address": "PodIP", "tags": ["v2", "traefik.enable=true", "${pod.labels['version']}"],
        "meta": {"version": "${pod.labels['version']}", "empty": ""},
        "weights": {"passing": 10, "warning": 1}, "enableTagOverride": false, "adopt": true,
        "health": {"notReady": "Warning", "terminating": "Deregister"},
    });
    let good = [
        full,
        json!({"selector": {}}),
        json!({"selector": {"matchLabels": {"app.kubernetes.io/Name_1": "V.1_a-b", long(63): long(63), "a": ""}}}),
        json!({"endpoints": []}),
        json!({"endpoints": endpoints(256)}),
        json!({"endpoints": [
            {"name": "a", "address": "10.0.0.1", "port": 1}, {"name": "b", "address": "fd00::1", "port": 65535},
            {"name": "c", "address": "db", "tags": ["t"], "meta": {"k": "v"}},
            {"name": "d-4", "address": "_srv.Db-1.example.com."}]}),
        pods(json!({"port": 1})),
        pods(json!({"port": 65535})),
        pods(json!({"port": "a"})),
        pods(json!({"port": "p8080-tcp"})),
        pods(json!({"tags": vec![long(255); 64]})),
        pods(json!({"meta": pairs(48)})),
        pods(json!({"meta": {long(128): long(512), "A_z-9": "é"}})),
        pods(json!({"service": long(63)})),
        pods(json!({"weights": {"passing": 65535}})),
        pods(json!({"address": "HostIP"})),
        json!({"meta": pairs(48), "endpoints": [{"name": "a", "address": "x", "meta": pairs(48)}]}),
    ];
    for spec in good {
        taken::<ServiceRegistration>(client, "good", &spec).await?;
    }
    taken::<ServiceRegistration>(
        client,
        &format!("{}.with-dots", long(60)),
        &pods(json!({"service": "web"})),
    )
    .await?;
    Ok(())
}

const EXACTLY_ONE: &str = "spec: Invalid value: give exactly one of selector";
const LABEL: &str = "must be a lower-case DNS label";
const NUMBER: &str = "a port number is 1 to 65535";
const NAME: &str = "a port name is that of a container port";
const CONTROL: &str = "must not contain control characters";
const KEY: &str = "a meta key must be 1 to 128";
const VALUES: &str = "In and NotIn need values";
const COMMA: &str = "write two tags as two items";
const UNREACHABLE: &str = "no addresses that a client can reach";
const LABEL_KEY: &str = "a label's key is a name";
const LABEL_VALUE: &str = "a label's value is empty or";
const ADDRESS: &str = "address must be an IP address or a host name";

/// What a spec has besides a selector, and what the refusal says.
const BAD_WITH_SELECTOR: &[(&str, &str)] = &[
    ("endpoints: []", EXACTLY_ONE),
    ("service: Payment", LABEL),
    ("service: pay_ment", LABEL),
    ("service: -payment", LABEL),
    ("service: pay.ment", LABEL),
    ("service: ''", "spec.service"),
    ("port: 0", NUMBER),
    ("port: 70000", NUMBER),
    ("port: '8080'", "write a number without quotes"),
    ("port: HTTP", NAME),
    ("port: a--b", NAME),
    ("port: a-port-name-that-is-long", NAME),
    ("port: 80.5", "spec.port"),
    ("port: [80]", "spec.port"),
    ("address: NodeIP", "supported values: \"PodIP\", \"HostIP\""),
    ("tags: 'v1,v2'", "must be of type array"),
    ("tags: ['v1,v2']", COMMA),
    ("tags: [\"v1\\nv2\"]", CONTROL),
    ("tags: [\"\\x7f\"]", CONTROL),
    ("tags: ['']", "spec.tags[0]"),
    ("meta: {a b: x}", KEY),
    ("meta: {'': x}", KEY),
    ("meta: {k: 5}", "must be of type string"),
    ("weights: {passing: 0}", "spec.weights.passing"),
    ("weights: {warning: 65536}", "spec.weights.warning"),
    (
        "health: {notReady: Deregister}",
        "supported values: \"Critical\", \"Warning\"",
    ),
    (
        "health: {terminating: Ignore}",
        "supported values: \"Critical\", \"Warning\", \"Deregister\"",
    ),
    (
        "selector: {matchExpressions: [{key: a, operator: In}]}",
        VALUES,
    ),
    (
        "selector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        VALUES,
    ),
    (
        "selector: {matchExpressions: [{key: a, operator: Near}]}",
        "supported values: \"In\"",
    ),
    ("selector: {matchLabels: {a b: x}}", LABEL_KEY),
    ("selector: {matchLabels: {A.example/a: x}}", LABEL_KEY),
    ("selector: {matchLabels: {a/: x}}", LABEL_KEY),
    ("selector: {matchLabels: {a: 'b c'}}", LABEL_VALUE),
    ("selector: {matchLabels: {a: b-}}", LABEL_VALUE),
    (
        "selector: {matchExpressions: [{key: a=b, operator: Exists}]}",
        LABEL_KEY,
    ),
    (
        "selector: {matchExpressions: [{key: a, operator: In, values: [b, 'c,d']}]}",
        LABEL_VALUE,
    ),
];

/// What one endpoint has, and what the refusal says.
const BAD_IN_ENDPOINT: &[(&str, &str)] = &[
    ("name: Primary", LABEL),
    ("port: 0", "endpoints[0].port"),
    ("port: 70000", "endpoints[0].port"),
    ("port: http", "must be of type integer"),
    ("tags: ['a,b']", COMMA),
    ("meta: {a.b: x}", KEY),
    ("address: ''", "endpoints[0].address"),
    ("address: 0.0.0.0", UNREACHABLE),
    ("address: '::'", UNREACHABLE),
    ("address: '0:0:0:0:0:0:0:0'", UNREACHABLE),
    ("address: 'http://db'", ADDRESS),
    ("address: 'db:5432'", ADDRESS),
    ("address: db/x", ADDRESS),
    ("address: my db", ADDRESS),
    ("address: 10.0.0.256", ADDRESS),
    ("address: '10.0.0.1:80'", ADDRESS),
    ("address: '[fd00::1]'", ADDRESS),
    ("address: -db", ADDRESS),
];

/// Whole specs, and what the refusal says.
const BAD: &[(&str, &str)] = &[
    ("{}", EXACTLY_ONE),
    (
        "endpoints: []\nport: 80",
        "spec.port: Invalid value: port goes with selector only",
    ),
    (
        "endpoints: [{name: a, address: x}, {name: a, address: 'y'}]",
        "Duplicate value",
    ),
    (
        "endpoints: [{name: a}]",
        "endpoints[0].address: Required value",
    ),
    (
        "endpoints: [{address: a}]",
        "endpoints[0].name: Required value",
    ),
];

const RESERVED: &[&str] = &[
    "external-source",
    "external-k8s-ns",
    "external-k8s-ref-kind",
    "external-k8s-ref-name",
    "external-k8s-node-name",
    "managed-by",
    "lictor-cluster",
    "lictor-",
    "consul-x",
];

pub async fn bad_objects_are_refused_with_what_to_do(client: &Client) -> Result<()> {
    for (more, expected) in BAD_WITH_SELECTOR {
        refused::<ServiceRegistration>(client, "bad", &pods(yaml(more)?), expected).await?;
    }
    for (more, expected) in BAD_IN_ENDPOINT {
        refused::<ServiceRegistration>(client, "bad", &endpoint(yaml(more)?), expected).await?;
    }
    for (spec, expected) in BAD {
        refused::<ServiceRegistration>(client, "bad", &yaml(spec)?, expected).await?;
    }
    for key in RESERVED {
        let expected = format!("the meta key {key} is reserved");
        refused::<ServiceRegistration>(
            client,
            "bad",
            &pods(json!({"meta": {"fine": "x", *key: "x"}})),
            &expected,
        )
        .await?;
        refused::<ServiceRegistration>(
            client,
            "bad",
            &endpoint(json!({"meta": {*key: "x"}})),
            &expected,
        )
        .await?;
    }
    let too_long = [
        (
            pods(json!({"service": long(64)})),
            "may not be more than 63",
        ),
        (
            pods(json!({"tags": [long(256)]})),
            "may not be more than 255",
        ),
        (
            pods(json!({"tags": vec!["t"; 65]})),
            "must have at most 64 items",
        ),
        (pods(json!({"meta": {long(129): "x"}})), KEY),
        (
            pods(json!({"meta": {"k": long(513)}})),
            "may not be more than 512",
        ),
        (
            pods(json!({"meta": pairs(49)})),
            "must have at most 48 items",
        ),
        (
            json!({"endpoints": endpoints(257)}),
            "must have at most 256 items",
        ),
        (
            endpoint(json!({"name": long(64)})),
            "may not be more than 63",
        ),
        (
            endpoint(json!({"address": long(254)})),
            "may not be more than 253",
        ),
    ];
    for (spec, expected) in too_long {
        refused::<ServiceRegistration>(client, "bad", &spec, expected).await?;
    }
    let together = with(
        json!({"tags": vec!["t"; 40]}),
        endpoint(json!({"tags": vec!["u"; 25]})),
    );
    refused::<ServiceRegistration>(
        client,
        "bad",
        &together,
        "at most 64 tags, those of spec.tags included",
    )
    .await?;
    let together = with(
        json!({"meta": pairs(48)}),
        endpoint(json!({"meta": {"other": "v"}})),
    );
    refused::<ServiceRegistration>(
        client,
        "bad",
        &together,
        "at most 48 pairs of meta, those of spec.meta included",
    )
    .await?;
    for name in [long(64), "with.dots".to_owned()] {
        refused::<ServiceRegistration>(
            client,
            &name,
            &pods(json!({})),
            "set spec.service or choose another name",
        )
        .await?;
    }
    Ok(())
}

pub async fn kubectl_tells_the_same(bed: &Bed) -> Result<()> {
    let manifest = |spec: &Value| {
        json!({
            "apiVersion": ServiceRegistration::api_version(&()), "kind": ServiceRegistration::kind(&()),
            "metadata": {"name": "by-hand", "namespace": "default"}, "spec": spec,
        })
        .to_string()
    };
    let error = match bed
        .kubectl_apply(&manifest(&pods(json!({"meta": {"managed-by": "me"}}))))
        .await
    {
        Ok(out) => bail!("taken: {out}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        error.contains("the meta key managed-by is reserved"),
        "{error}"
    );
    let error = match bed
        .kubectl_apply(&manifest(&pods(json!({"protokoll": "http"}))))
        .await
    {
        Ok(out) => bail!("taken: {out}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        error.contains("unknown field \"spec.protokoll\""),
        "{error}"
    );

    bed.kubectl_apply(&manifest(&pods(json!({})))).await?;
    // An empty value, as templates leave them, is none.
    bed.kubectl_apply(&manifest(&pods(json!({"port": null}))))
        .await?;
    // What a manifest says no more is gone, also where it says the other.
    bed.kubectl_apply(&manifest(&json!({"endpoints": endpoints(1)})))
        .await?;
    let shown = bed.kubectl(&["get", "lictor", "--all-namespaces"]).await?;
    ensure!(shown.contains("by-hand"), "{shown}");
    let explained = bed.kubectl(&["explain", "sreg.spec.endpoints"]).await?;
    ensure!(explained.contains("outside the cluster"), "{explained}");
    bed.kubectl(&["delete", "sreg", "by-hand"]).await?;
    Ok(())
}
