//! Whether whoever wrote a manifest is told where it is wrong, and what to do: each sort of bad input goes
//! through the very judgement that `lictor plan` and `lictor run` have.

use serde_json::{Value, json};

use super::Action;
use super::tests::{names_of_shop, of_manifests, of_policies};
use crate::test_words::{is_whole, lacks};

fn pod(annotations: &[(&str, &str)]) -> Value {
    let annotations = annotations.iter();
    let annotations: serde_json::Map<_, _> = annotations
        .map(|(key, value)| (format!("lictor.io/{key}"), json!(value)))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "it", "namespace": "shop", "annotations": annotations},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 80}]}]},
    })
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "lictor.io/v1alpha1", "kind": kind,
        "metadata": {"name": "it", "namespace": "shop"}, "spec": spec,
    })
}

/// Judges each, of which something is to be told; all of it names the place and helps.
fn told<'a>(manifests: impl IntoIterator<Item = (Value, &'a str)>) {
    let mut wrong = Vec::new();
    for (manifest, place) in manifests {
        let preview = of_manifests(&manifest.to_string());
        let refused = preview.items.iter();
        let refused =
            refused.filter(|item| matches!(item.action, Action::Rejected | Action::Conflict));
        let messages: Vec<&String> = refused.filter_map(|item| item.message.as_ref()).collect();
        if messages.is_empty() {
            wrong.push(format!("nothing is told of {manifest}"));
        }
        wrong.extend(messages.iter().filter_map(|message| lacks(message, place)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_bad_annotation_is_told_with_its_place_and_what_to_do() {
    let (long, many) = (
        "x".repeat(600),
        (0..70).map(|n| format!("t{n}")).collect::<Vec<_>>(),
    );
    let pairs = (0..70)
        .map(|n| format!("k{n}=v"))
        .collect::<Vec<_>>()
        .join(",");
    let services = (0..100)
        .map(|n| format!("s{n}"))
        .collect::<Vec<_>>()
        .join(",");
    let huge = "y".repeat(100_000);
    let value = format!("k={long}");
    let cases = [
        ("port", "70000", "lictor.io/port"),
        ("port", "no port", "lictor.io/port"),
        ("port", "grpc", "port: "),
        ("port", &huge, "lictor.io/port"),
        ("meta", "novalue", "lictor.io/meta"),
        ("meta", "a b=c", "meta: "),
        ("meta", "lictor-owner=me", "meta: "),
        ("meta", &value, "meta k: "),
        ("meta", &pairs, "meta: "),
        ("meta", "k=${pod.nope}", "meta k: "),
        ("tags", "a$b", "tags: "),
        ("tags", "${pod.name", "tags: "),
        ("tags", &long, "tags: "),
        ("tags", "a\u{7}b", "tags: "),
        ("tags", &many.join(","), "tags: "),
        ("address", "Nowhere", "lictor.io/address"),
        ("address", "HostIP", "hostPort"),
        ("weight", "0", "lictor.io/weight"),
        ("weight-warning", "+5", "lictor.io/weight-warning"),
        ("not-ready", "Passing", "lictor.io/not-ready"),
        ("terminating", "Now", "lictor.io/terminating"),
        ("paused", "maybe", "lictor.io/paused"),
        ("colour", "red", "lictor.io/colour"),
        ("weight.other", "5", "lictor.io/*.other"),
        ("service", "Not_A_Name", "lictor.io/service"),
        ("service", ",", "lictor.io/service"),
        ("service", &services, "lictor.io/service"),
        ("service", &huge, "lictor.io/service"),
    ];
    told(cases.map(|(key, value, place)| {
        let annotations = [("service", "web"), (key, value)];
        (pod(&annotations[usize::from(key == "service")..]), place)
    }));
}

fn endpoints(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({"endpoints": [{"name": "a", "address": "10.0.0.1", "port": 80}]});
    change(&mut spec);
    object("ServiceRegistration", &spec)
}

fn check(check: &Value) -> Value {
    endpoints(|spec| spec["health"] = json!({"checks": [check]}))
}

#[test]
fn every_bad_registration_is_told_with_its_place_and_what_to_do() {
    let twice = json!({"name": "a", "address": "10.0.0.2", "port": 80});
    let many: Vec<Value> = (0..300)
        .map(|n| json!({"name": format!("e{n}"), "address": "10.0.0.1", "port": 80}))
        .collect();
    let upstream = |port: u16| json!({"service": "ledger", "localPort": port});
    told([
        (
            endpoints(|spec| spec["service"] = json!("Not_A_Name")),
            "spec.service",
        ),
        (
            endpoints(|spec| spec["selector"] = json!({"matchLabels": {"a": "b"}})),
            "spec: ",
        ),
        (object("ServiceRegistration", &json!({})), "spec: "),
        (
            endpoints(|spec| spec["endpoints"][0]["name"] = json!("A_B")),
            "spec.endpoints",
        ),
        (
            endpoints(|spec| spec["endpoints"][0]["address"] = json!("http://a/b")),
            "spec.endpoints",
        ),
        (
            endpoints(|spec| spec["endpoints"].as_array_mut().unwrap().push(twice)),
            "spec.endpoints",
        ),
        (
            endpoints(|spec| spec["endpoints"] = json!(many)),
            "spec.endpoints",
        ),
        (
            endpoints(|spec| spec["tags"] = json!(["${pod.name}"])),
            "tags: ",
        ),
        (
            endpoints(|spec| spec["meta"] = json!({"consul-x": "y"})),
            "meta: ",
        ),
        (
            endpoints(|spec| spec["weights"] = json!({"passing": "many"})),
            "weights",
        ),
        (
            endpoints(|spec| spec["queries"] = json!([{"name": "q"}, {"name": "Q"}])),
            "spec.queries",
        ),
        (
            endpoints(|spec| spec["queries"] = json!([{"name": "-"}])),
            "spec.queries",
        ),
        (
            endpoints(|spec| spec["connect"] = json!({})),
            "spec.connect",
        ),
        (
            endpoints(|spec| spec["connect"] = json!({"sidecar": {"port": 0}})),
            "sidecar.port",
        ),
        (
            endpoints(|spec| {
                let upstreams = [upstream(9000), upstream(9000)];
                spec["connect"] = json!({"sidecar": {"port": 20000, "upstreams": upstreams}});
            }),
            "sidecar.upstreams",
        ),
    ]);
}

#[test]
fn every_bad_check_is_told_with_its_place_and_what_to_do() {
    told([
        (check(&json!({"name": "c"})), "spec.health.checks"),
        (
            check(&json!({"name": "C_C", "tcp": {"port": 80}})),
            "spec.health.checks",
        ),
        (
            check(&json!({"name": "c", "tcp": {"port": 80}, "interval": "soon"})),
            "interval",
        ),
        (
            check(&json!({"name": "c", "tcp": {"port": 80}, "interval": "1ms"})),
            "interval",
        ),
        (
            check(&json!({"name": "c", "tcp": {"port": 80}, "timeout": "1h"})),
            "timeout",
        ),
        (
            check(&json!({"name": "c", "tcp": {"port": "http"}})),
            "endpoint a: ",
        ),
        (
            check(&json!({"name": "c", "http": {"path": "no-slash"}})),
            "http",
        ),
        (
            check(&json!({"name": "c", "http": {"path": "/", "method": "G T"}})),
            "method",
        ),
        (
            check(&json!({"name": "c", "ttl": {"lease": "l", "ttl": "1s"}})),
            "ttl",
        ),
        (
            check(&json!({"name": "c", "ttl": {"lease": "L_L", "ttl": "30s"}})),
            "ttl.lease",
        ),
        (
            endpoints(|spec| spec["health"] = json!({"deregisterCriticalServiceAfter": "1s"})),
            "spec.health",
        ),
    ]);
}

fn intention(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "destination": {"name": "payment"}, "sources": [{"name": "web", "action": "allow"}],
    });
    change(&mut spec);
    object("Intention", &spec)
}

#[test]
fn every_bad_intention_and_query_is_told_with_its_place_and_what_to_do() {
    let rules = json!([{"action": "allow", "http": {"pathPrefix": "/"}}]);
    let query = |spec: Value| object("PreparedQuery", &spec);
    told([
        (
            intention(|spec| spec["destination"]["name"] = json!("a,b")),
            "spec.destination",
        ),
        (
            intention(|spec| spec["destination"]["name"] = json!("..")),
            "spec.destination",
        ),
        (
            intention(|spec| spec["destination"]["namespace"] = json!("x")),
            "spec.destination",
        ),
        (
            intention(|spec| spec["sources"] = json!([])),
            "spec.sources",
        ),
        (
            intention(|spec| spec["sources"][0]["name"] = json!("")),
            "spec.sources",
        ),
        (
            intention(|spec| spec["sources"][0]["action"] = Value::Null),
            "spec.sources",
        ),
        (
            intention(|spec| spec["sources"][0]["action"] = json!("maybe")),
            "spec.sources",
        ),
        (
            intention(|spec| {
                let source = spec["sources"][0].clone();
                spec["sources"].as_array_mut().unwrap().push(source);
            }),
            "spec.sources",
        ),
        (
            intention(|spec| {
                spec["destination"]["name"] = json!("*");
                spec["sources"] = json!([{"name": "web", "permissions": rules}]);
            }),
            "spec.sources",
        ),
        (
            intention(|spec| spec["jwt"] = json!({"providers": []})),
            "jwt.providers",
        ),
        (query(json!({"name": "-a", "service": "web"})), "spec.name"),
        (query(json!({"name": "a"})), "service"),
        (
            query(json!({
                "name": "a", "service": "web",
                "failover": {"nearestN": 1, "targets": [{"peer": "p"}]},
            })),
            "failover",
        ),
    ]);
}

#[test]
fn a_claim_that_is_not_allowed_is_told_with_what_would_allow_it() {
    let ledger = names_of_shop(&["it", "payment"]);
    for object in [endpoints(|_| {}), intention(|_| {})] {
        let object = object.to_string().replace("\"shop\"", "\"bank\"");
        let preview = of_policies(&object, &ledger);
        let rejected = preview.items.iter();
        let mut rejected = rejected.filter(|item| item.action == Action::Rejected);
        let item = rejected.next();
        let item = item.unwrap_or_else(|| panic!("{object} {preview:#?}"));
        is_whole(item.message.as_deref().unwrap(), "shop");
    }
}
