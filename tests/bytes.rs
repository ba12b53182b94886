//! Whatever bytes come from outside, nothing panics, and nothing is registered that Consul or DNS could
//! not take.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "bytes/entries.rs"]
mod entries;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use globset::GlobSet;
use lictor::api::{IntentionObject, PreparedQueryObject, RegistrationObject};
use lictor::consul::{Client, Consistency, ConsulConfig, ConsulSettings, Fence, Txn, TxnOp, wire};
use lictor::desired::index::{Index, Touched};
use lictor::desired::template;
use lictor::k8s::trim::{self, Texts};
use lictor::model::epoch::Epoch;
use lictor::model::facts::{NodeFacts, PodFacts};
use lictor::model::gc::Exchange;
use lictor::model::key::Key;
use lictor::model::kind::Kind;
use lictor::model::names::{NodeName, is_dns_label};
use lictor::observed::content::NodeContent;
use lictor::observed::mirror::Mirror;
use lictor::plan::{self, Rules, Step};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A way to spoil bytes that mean something.
#[derive(Clone, Debug)]
enum Spoil {
    Cut(usize),
    Put(usize, u8),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn spoils() -> impl Strategy<Value = Vec<Spoil>> {
    let at = 0..2000_usize;
    let telling = prop::sample::select(b"{}[]\",:0-\\n\xffeE.".to_vec());
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..8),
        prop::sample::select(vec![
            &b"null"[..],
            b"{}",
            b"[]",
            b"-1",
            b"1e999",
            b"18446744073709551616",
            b"\\ud800",
            b"\"\"",
        ])
        .prop_map(<[u8]>::to_vec),
    ];
    let one = prop_oneof![
        1 => at.clone().prop_map(Spoil::Cut),
        4 => (at.clone(), telling).prop_map(|(at, byte)| Spoil::Put(at, byte)),
        4 => (at.clone(), bytes).prop_map(|(at, bytes)| Spoil::Insert(at, bytes)),
        1 => (at, 1..40_usize).prop_map(|(at, len)| Spoil::Repeat(at, len)),
    ];
    prop::collection::vec(one, 0..6)
}

fn spoilt(value: &Value, spoils: &[Spoil]) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    for spoil in spoils {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match spoil {
            Spoil::Cut(at) => bytes.truncate(at % len),
            Spoil::Put(at, byte) => bytes[at % len] = *byte,
            Spoil::Insert(at, more) => {
                let at = at % len;
                bytes.splice(at..at, more.iter().copied());
            }
            Spoil::Repeat(at, count) => {
                let at = at % len;
                let part = bytes[at..(at + count).min(len)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// A JSON value with keys that mean something.
fn tree() -> impl Strategy<Value = Value> {
    let keys = [
        "metadata",
        "spec",
        "status",
        "name",
        "namespace",
        "uid",
        "items",
        "annotations",
        "labels",
        "conditions",
        "type",
        "podIPs",
        "ip",
        "containers",
        "ports",
        "containerPort",
        "selector",
        "endpoints",
        "destination",
        "sources",
        "permissions",
        "action",
        "http",
        "header",
        "service",
        "failover",
        "tags",
        "meta",
        "Node",
        "Services",
        "Service",
        "ID",
        "Meta",
        "Tags",
        "Weights",
        "Port",
        "Checks",
        "CheckID",
        "Status",
        "Results",
        "Errors",
        "OpIndex",
        "What",
        "KV",
        "Value",
        "Key",
        "ModifyIndex",
        "holder",
        "kind",
        "object",
        "resourceVersion",
        "Name",
        "Sources",
        "Action",
        "Permissions",
        "HTTP",
        "Header",
        "Methods",
        "JWT",
        "Providers",
        "VerifyClaims",
        "Path",
        "LegacyMeta",
        "Hash",
        "Token",
        "Template",
        "Failover",
        "Targets",
        "DNS",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        let key = prop_oneof![
            prop::sample::select(keys.to_vec()).prop_map(str::to_owned),
            ".{0,6}"
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn body(samples: Vec<Value>) -> impl Strategy<Value = Vec<u8>> {
    let sample = (prop::sample::select(samples), spoils());
    prop_oneof![
        4 => sample.prop_map(|(sample, spoils)| spoilt(&sample, &spoils)),
        2 => tree().prop_map(|tree| tree.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn pod(annotations: &Value) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": "web-0", "uid": "u", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "hostIP": "192.168.0.1", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn registration() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "r", "resourceVersion": "8",
                     "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"service": "web", "selector": {"matchLabels": {"app": "web"}}, "port": "http",
                 "tags": ["a", "${pod.name}"], "meta": {"k": "${pod.labels['app']}"},
                 "weights": {"passing": 2}},
        "status": {"conditions": []},
    })
}

fn intention() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "i", "resourceVersion": "8",
                     "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"destination": {"name": "api"}, "sources": [
            {"name": "web", "peer": "", "action": "allow"},
            {"name": "*", "permissions": [{"action": "deny", "http": {"pathPrefix": "/",
             "methods": ["GET"], "header": [{"name": "a", "present": true}]}}]}]},
        "status": {"sources": {"desired": 2, "applied": 1, "foreign": 0, "summary": "1/2"}},
    })
}

fn query() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "near", "uid": "q", "resourceVersion": "8",
                     "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"name": "near", "service": "web", "tags": ["!a"], "nodeMeta": {"k": "v"},
                 "failover": {"nearestN": 2, "targets": [{"peer": "a"}]}, "dns": {"ttl": "10s"},
                 "template": {"type": "name_prefix_match", "regexp": "(a)"}},
        "status": {"id": "x"},
    })
}

fn node() -> Value {
    json!({
        "metadata": {"name": "n1", "uid": "n", "resourceVersion": "9"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    })
}

fn kubernetes() -> impl Strategy<Value = Vec<u8>> {
    let objects = [
        pod(&json!({"lictor.io/service": "web"})),
        registration(),
        intention(),
        query(),
        node(),
    ];
    let lists = objects
        .iter()
        .map(|object| json!({"metadata": {"resourceVersion": "9"}, "items": [object]}));
    let lines = objects
        .iter()
        .map(|object| json!({"type": "MODIFIED", "object": object}));
    body(lists.chain(lines).collect())
}

fn consul() -> impl Strategy<Value = Vec<u8>> {
    let node = json!({"Node": "lictor-a--n1", "Address": "192.168.0.1", "Datacenter": "dc1",
        "Meta": {"lictor-cluster": "a"}, "CreateIndex": 1, "ModifyIndex": 2});
    let service = json!({"ID": "a.shop.web.web-0", "Service": "web", "Tags": ["a"], "Port": 8080,
        "Address": "10.0.0.1", "Meta": {"lictor-cluster": "a", "lictor-node": "lictor-a--n1",
        "lictor-owner": "Pod/shop/web-0"}, "Weights": {"Passing": 1, "Warning": 1},
        "TaggedAddresses": {"lan_ipv4": {"Address": "10.0.0.1", "Port": 8080}},
        "CreateIndex": 3, "ModifyIndex": 4});
    let check = json!({"Node": "lictor-a--n1", "CheckID": "a.shop.web.web-0:ready", "Name": "n",
        "Status": "passing", "ServiceID": "a.shop.web.web-0", "ServiceName": "web",
        "CreateIndex": 5, "ModifyIndex": 6});
    let pair = json!({"Key": "k", "Value": "eyJhIjoxfQ==", "Flags": 0, "ModifyIndex": 9});
    body(vec![
        json!([node]),
        json!({"Node": node, "Services": [service]}),
        json!([check]),
        json!([pair]),
        json!({"Results": [{"KV": pair}, {"Service": service}], "Errors": null}),
        json!({"Results": null, "Errors": [{"OpIndex": 0, "What": "index is stale"}]}),
        json!({"Errors": [{"OpIndex": 7, "What": "failed index check, current modify index 21 != 19"}]}),
        json!({"AccessorID": "x", "SecretID": "y"}),
        json!({"Config": {"Datacenter": "dc1", "Version": "1.22.7"}}),
    ])
}

/// Of an index that knows this pod, every entry is one that Consul and DNS take.
fn judge(index: &Index) -> Result<(), TestCaseError> {
    let mut mirror = Mirror::new("a".parse().unwrap());
    mirror.complete();
    for key in index.claimed_keys() {
        let step = plan::decide(&key, index, &mirror, &Rules::default()).step;
        let Step::Put(write) = step else { continue };
        let (service, _) = write.service.unwrap();
        prop_assert!(is_dns_label(&service.name), "{}", service.name);
        prop_assert!(service.meta.iter().count() <= 64);
        for (key, value) in service.meta.iter() {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            prop_assert!(key.len() <= 128 && key.chars().all(plain), "{key}");
            prop_assert!(value.len() <= 512, "{value}");
        }
        prop_assert!(service.weights.passing >= 1 && service.weights.warning >= 1);
        for tag in &service.tags {
            prop_assert!(
                !tag.is_empty() && !tag.chars().any(char::is_control),
                "{tag:?}"
            );
        }
    }
    Ok(())
}

fn index() -> Index {
    let mut index = Index::new("a".parse().unwrap(), GlobSet::empty());
    for kind in Kind::ALL {
        index.begin_list(kind);
        index.end_list(kind, &mut Touched::default());
    }
    index
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    let names = [
        "service",
        "port",
        "tags",
        "meta",
        "address",
        "weight",
        "weight-warning",
        "not-ready",
        "terminating",
        "paused",
        "other",
        "",
        "port.web",
        "tags.web",
        "meta.api",
        "service.web",
        "tags.",
    ];
    let value = prop_oneof![
        prop::sample::select(vec![
            "web",
            "web,api",
            "http",
            "8080",
            "70000",
            "-1",
            "a=b",
            "a=b,c",
            "lictor-x=1",
            "${pod.name}",
            "${pod.labels['app']}",
            "${",
            "$$",
            "${pod.labels['",
            "PodIP",
            "HostIP",
            "Critical",
            "Warning",
            "Deregister",
            "true",
            "\u{0}",
            "é",
            "a\nb",
        ])
        .prop_map(str::to_owned),
        ".{0,40}",
        "[a-z$,={}.'\\[\\]-]{0,30}",
    ];
    let name = prop::sample::select(names.to_vec()).prop_map(|name| format!("lictor.io/{name}"));
    (name, value)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn templates_are_rendered_or_refused(text in "(\\$|\\{|\\}|pod|\\.|name|labels|\\['|'\\]|.){0,20}") {
        let _ = template::render(&text, None);
    }

    #[test]
    fn annotations_register_nothing_wrong(pairs in prop::collection::vec(annotation(), 0..8)) {
        let annotations: serde_json::Map<String, Value> =
            pairs.into_iter().map(|(key, value)| (key, value.into())).collect();
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": [pod(&annotations.into())]});
        let page = trim::page::<PodFacts>(list.to_string().as_bytes(), &mut Texts::default());
        let mut index = index();
        for facts in page.unwrap().items {
            index.apply_pod(facts, &mut Touched::default());
        }
        judge(&index)?;
    }

    #[test]
    fn whatever_the_api_server_sends_is_decoded_or_refused(bytes in kubernetes()) {
        let texts = &mut Texts::default();
        let mut index = index();
        let touched = &mut Touched::default();
        let mut pods = trim::page::<PodFacts>(&bytes, texts).map_or(Vec::new(), |page| page.items);
        if let Ok((trim::Line::Applied(pod), _)) = trim::line::<PodFacts>(&bytes, texts) {
            pods.push(pod);
        }
        for pod in pods {
            index.apply_pod(pod, touched);
        }
        for node in trim::page::<NodeFacts>(&bytes, texts).map_or(Vec::new(), |page| page.items) {
            index.apply_node(node, touched);
        }
        let page = trim::page::<RegistrationObject>(&bytes, texts);
        for object in page.map_or(Vec::new(), |page| page.items) {
            let registration = lictor::desired::registration::Registration::of(&object);
            index.apply_registration(registration, touched);
        }
        let _ = trim::line::<NodeFacts>(&bytes, texts);
        let _ = trim::line::<RegistrationObject>(&bytes, texts);
        let _ = trim::page::<IntentionObject>(&bytes, texts);
        let _ = trim::line::<IntentionObject>(&bytes, texts);
        let _ = trim::page::<PreparedQueryObject>(&bytes, texts);
        let _ = trim::line::<PreparedQueryObject>(&bytes, texts);
        judge(&index)?;
    }

    #[test]
    fn whatever_stands_in_consul_is_mirrored_and_planned_around(bytes in consul()) {
        let services: Vec<wire::NodeService> = serde_json::from_slice(&bytes).unwrap_or_default();
        let checks: Vec<wire::HealthCheck> = serde_json::from_slice(&bytes).unwrap_or_default();
        let nodes: Vec<wire::Node> = serde_json::from_slice(&bytes).unwrap_or_default();
        let name = NodeName::for_kubernetes(&"a".parse().unwrap(), "n1");
        let content = NodeContent { node: nodes.into_iter().next(), services, checks };
        let mut mirror = Mirror::new("a".parse().unwrap());
        let ticket = mirror.start_read();
        let _ = mirror.finish_read(ticket, &name, &content, &HashSet::new());
        mirror.complete();
        let index = index();
        for key in mirror.keys().collect::<Vec<Key>>() {
            let step = plan::decide(&key, &index, &mirror, &Rules::default()).step;
            prop_assert!(!matches!(step, Step::Remove(_)), "not without a verdict: {step:?}");
        }
        let _ = serde_json::from_slice::<Epoch>(&bytes);
        let _ = serde_json::from_slice::<Exchange>(&bytes);
    }
}

type Shared = Arc<Mutex<(StatusCode, Vec<u8>)>>;

async fn answer(
    State(answer): State<Shared>,
) -> (StatusCode, [(&'static str, &'static str); 2], Vec<u8>) {
    let (status, body) = answer.lock().unwrap().clone();
    let headers = [("X-Consul-Index", "7"), ("X-Consul-KnownLeader", "true")];
    (status, headers, body)
}

/// The client decodes whatever a server answers, or fails with an error that tells one line.
#[test]
fn whatever_consul_answers_is_decoded_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shared: Shared = Arc::new(Mutex::new((StatusCode::OK, Vec::new())));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let addresses = listener.local_addr().unwrap().to_string();
    let routes = Router::new().fallback(answer).with_state(shared.clone());
    runtime.spawn(async { axum::serve(listener, routes).await });
    let settings = ConsulSettings {
        addresses,
        ..ConsulSettings::default()
    };
    let client = Client::new(ConsulConfig::new(settings).unwrap()).unwrap();
    let statuses = prop::sample::select(vec![200, 400, 403, 404, 409, 429, 500, 503]);
    let intentions = wire::ServiceIntentions::default();
    let query = wire::PreparedQuery {
        id: "94685ac5-e9ad-fd3c-0879-1e32c10106a4".into(),
        ..wire::PreparedQuery::default()
    };
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(500)
    };
    proptest!(config, |(status in statuses, bytes in prop_oneof![consul(), entries::samples()])| {
        *shared.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), bytes);
        let errors = runtime.block_on(async {
            let mut txn = Txn::new();
            for key in ["a", "b"] {
                txn.push(&TxnOp::KvCas { key, value: b"{}", index: 1 }).unwrap();
            }
            let fence = Fence { key: "fence", index: 3 };
            let read = Consistency::Consistent;
            [
                client.nodes(None, read).await.err(),
                client.node_services("n", read).await.err(),
                client.node_checks("n", read).await.err(),
                client.kv_get("k", read).await.err(),
                client.kv_put_cas("k", b"v", 1).await.err(),
                client.apply_fenced(fence, &txn).await.err(),
                client.check_token().await.err(),
                client.agent().await.err(),
                client.config_entries::<wire::ServiceIntentions>(read).await.err(),
                client.config_entry::<wire::ServiceDefaults>("a", read).await.err(),
                client.put_config_entry(&intentions, 1).await.err(),
                client.delete_config_entry::<wire::ServiceDefaults>("a", 1).await.err(),
                client.queries(read).await.err(),
                client.query(&query.id, read).await.err(),
                client.create_query(&query).await.err(),
                client.update_query(&query).await.err(),
                client.delete_query(&query.id).await.err(),
            ]
        });
        for error in errors.into_iter().flatten() {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    });
}
