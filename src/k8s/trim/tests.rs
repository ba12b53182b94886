use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::intention::HttpMethod;
use crate::api::service_registration::Port;
use crate::api::{IntentionObject, PreparedQueryObject, RegistrationObject};
use crate::model::facts::{GateFacts, NodeFacts, Phase, PodFacts, Tristate};

fn one<T: Trim>(object: &Value) -> T {
    let list = json!({"kind": "List", "metadata": {"resourceVersion": "7"}, "items": [object]});
    let page: Page<T> = page(list.to_string().as_bytes(), &mut Texts::default()).unwrap();
    assert_eq!((page.items.len(), &*page.resource_version), (1, "7"));
    page.items.into_iter().next().unwrap()
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-6d4cf56db6-x2k9p", "namespace": "shop", "uid": "0b0d0a3e-uid",
            "resourceVersion": "4711", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "web", "pod-template-hash": "6d4cf56db6"},
            "annotations": {
                "lictor.io/service": "web",
                "kubectl.kubernetes.io/last-applied-configuration": "{\"a\":1}",
                "prometheus.io/scrape": "true",
            },
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-6d4cf56db6"}],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
        },
        "spec": {
            "nodeName": "node-1.example", "hostNetwork": false,
            "initContainers": [
                {"name": "setup", "ports": [{"containerPort": 1}]},
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 15000}]},
            ],
            "containers": [
                {"name": "app", "image": "web:1", "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"containerPort": 9090, "hostPort": 19090},
                ]},
                {"name": "log"},
            ],
        },
        "status": {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.1.0.7",
            "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}],
            "conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
            ],
            "initContainerStatuses": [
                {"name": "setup", "ready": false, "state": {"terminated": {"reason": "Completed"}}},
                {"name": "proxy", "ready": false, "state": {"running": {}}},
            ],
            "containerStatuses": [
                {"name": "app", "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"reason": "Error"}}},
                {"name": "log", "ready": true, "state": {"running": {"startedAt": "2026-01-02T03:04:09Z"}}},
            ],
        },
    })
}

#[test]
fn a_pod_is_trimmed_to_its_facts() {
    let facts: PodFacts = one(&pod());
    assert_eq!(
        (&*facts.namespace, &*facts.name, &*facts.uid),
        ("shop", "web-6d4cf56db6-x2k9p", "0b0d0a3e-uid")
    );
    assert_eq!(facts.created, 1_767_323_045);
    assert!(!facts.deleting && !facts.host_network);
    assert_eq!(facts.labels.get("app").map(|value| &**value), Some("web"));
    let annotations: Vec<_> = facts
        .annotations
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    assert_eq!(
        annotations,
        [
            ("lictor.io/service", "web"),
            ("prometheus.io/scrape", "true")
        ]
    );
    assert_eq!(facts.node.as_deref(), Some("node-1.example"));
    let ports: Vec<_> = facts
        .ports
        .iter()
        .map(|port| (port.name.as_deref(), port.port, port.host_port))
        .collect();
    assert_eq!(
        ports,
        [
            (Some("http"), 8080, None),
            (None, 9090, Some(19090)),
            (Some("admin"), 15000, None)
        ]
    );
    assert_eq!(facts.phase, Phase::Running);
    assert_eq!(
        facts.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(),
        ["10.1.0.7", "fd00::7"]
    );
    assert_eq!(facts.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(
        (facts.ready, &*facts.ready_reason),
        (Tristate::False, "ContainersNotReady")
    );
    let unready: Vec<_> = facts
        .unready
        .iter()
        .map(|c| (&*c.name, &*c.reason))
        .collect();
    assert_eq!(unready, [("app", "CrashLoopBackOff"), ("proxy", "")]);
}

#[test]
fn a_pod_that_was_just_created_has_next_to_nothing() {
    let facts: PodFacts = one(&json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}, "status": {"podIP": "10.0.0.9"}
    }));
    assert_eq!(
        (facts.phase, facts.ready, facts.created),
        (Phase::Pending, Tristate::Unknown, 0)
    );
    assert_eq!(
        facts.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(),
        ["10.0.0.9"]
    );
    assert!(facts.ports.is_empty() && facts.unready.is_empty() && facts.node.is_none());
}

#[test]
fn odd_values_hide_nothing_but_themselves() {
    let mut odd = pod();
    odd["metadata"]["labels"] = json!({"app": 5, "tier": "front"});
    odd["metadata"]["annotations"] = json!("none");
    odd["metadata"]["creationTimestamp"] = json!("yesterday");
    odd["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:06Z");
    odd["spec"]["containers"][0]["ports"] = json!([
        {"containerPort": "8080"}, {"containerPort": 70000}, {"containerPort": 443.5}, "x", {"containerPort": 81}
    ]);
    odd["spec"]["hostNetwork"] = json!("yes");
    odd["status"]["phase"] = json!("Dreaming");
    odd["status"]["podIPs"] = json!([null, {"ip": 4}, {"ip": "10.1.0.7"}]);
    odd["status"]["conditions"] = json!([17, {"type": "Ready", "status": true}]);
    odd["status"]["containerStatuses"] = json!({"a": "b"});
    let facts: PodFacts = one(&odd);
    assert_eq!(
        facts
            .labels
            .iter()
            .map(|(key, _)| &**key)
            .collect::<Vec<_>>(),
        ["tier"]
    );
    assert!(facts.annotations.is_empty() && facts.deleting && !facts.host_network);
    assert_eq!(facts.created, 0);
    assert_eq!(
        facts.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        [81, 15000]
    );
    assert_eq!(
        (facts.phase, facts.ready),
        (Phase::Unknown, Tristate::Unknown)
    );
    assert_eq!(
        facts.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(),
        ["10.1.0.7"]
    );
    assert_eq!(
        facts.unready.iter().map(|c| &*c.name).collect::<Vec<_>>(),
        ["proxy"]
    );

    let shapeless = json!({"metadata": {"name": "p", "uid": "u"}, "spec": [1], "status": "?"});
    assert_eq!(&*one::<PodFacts>(&shapeless).name, "p");
}

#[test]
fn annotations_are_cut_between_characters() {
    let mut long = pod();
    long["metadata"]["annotations"] = json!({
        "lictor.io/tags": format!("x{}", "é".repeat(PodFacts::ANNOTATION_BYTES)),
        "example.com/note": format!("x{}", "é".repeat(PodFacts::FOREIGN_ANNOTATION_BYTES)),
    });
    let facts: PodFacts = one(&long);
    let len = |key| facts.annotations.get(key).unwrap().len();
    assert_eq!(len("lictor.io/tags"), PodFacts::ANNOTATION_BYTES + 1);
    assert_eq!(
        len("example.com/note"),
        PodFacts::FOREIGN_ANNOTATION_BYTES + 1
    );
}

#[test]
fn a_node_is_trimmed_to_its_facts() {
    let facts: NodeFacts = one(&json!({
        "metadata": {"name": "node-1", "uid": "u", "labels": {
            "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1", "x": "y"}},
        "spec": {"podCIDR": "10.1.0.0/24"},
        "status": {
            "addresses": [{"type": "Hostname", "address": "node-1"}, {"type": "InternalIP", "address": "10.0.0.1"},
                          {"type": "InternalIP", "address": "10.9.0.1"}],
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}],
        },
    }));
    assert_eq!(
        (&*facts.name, facts.internal_ip.as_deref()),
        ("node-1", Some("10.0.0.1"))
    );
    assert_eq!(
        (facts.ready, &*facts.ready_reason),
        (Tristate::Unknown, "NodeStatusUnknown")
    );
    assert_eq!(
        (facts.region.as_deref(), facts.zone.as_deref()),
        (Some("eu"), Some("eu-1"))
    );
}

fn registration(spec: &Value) -> Value {
    json!({
        "metadata": {"name": "payment", "namespace": "shop", "uid": "u", "generation": 3,
                     "annotations": {"lictor.io/paused": "true", "other": "x"}},
        "spec": spec, "status": {"service": "payment", "observedGeneration": 2},
    })
}

#[test]
fn a_registration_is_decoded() {
    let object: RegistrationObject = one(&registration(
        &json!({"selector": {"matchLabels": {"a": "b"}}, "port": "http"}),
    ));
    let spec = object.spec.unwrap();
    assert_eq!(spec.port, Some(Port::Name("http".into())));
    assert_eq!(object.generation, 3);
    assert_eq!(
        object
            .annotations
            .iter()
            .map(|(key, _)| &**key)
            .collect::<Vec<_>>(),
        ["lictor.io/paused"]
    );
    assert_eq!(object.status.unwrap().observed_generation, Some(2));
}

#[test]
fn a_registration_that_cannot_be_decoded_still_shows() {
    for (spec, place) in [
        (json!({"port": 70000}), "spec.port: "),
        (json!({"tags": "a,b"}), "spec.tags: "),
        (json!(null), "spec: "),
        (json!([]), "spec: "),
    ] {
        let object: RegistrationObject = one(&registration(&spec));
        assert_eq!(&*object.name, "payment");
        let why = object.spec.unwrap_err();
        assert!(why.starts_with(place), "{spec}: {why}");
    }
}

#[test]
fn an_empty_text_is_none() {
    let object: IntentionObject = one(&registration(&json!({
        "destination": {"name": "api", "namespace": "", "partition": null},
        "sources": [{"name": "web", "peer": "", "permissions": [
            {"action": "allow", "http": {"pathExact": "", "pathPrefix": "/v1", "methods": ["GET"]}}]}],
    })));
    let spec = object.spec.unwrap();
    assert_eq!(spec.destination.namespace, None);
    assert_eq!(spec.sources[0].peer, None);
    let http = &spec.sources[0].permissions[0].http;
    assert_eq!(
        (http.path_exact.as_deref(), http.path_prefix.as_deref()),
        (None, Some("/v1"))
    );
    assert_eq!(http.methods, [HttpMethod::Get]);

    let object: PreparedQueryObject = one(&registration(&json!({
        "service": "web", "near": "", "dns": {"ttl": ""}, "failover": {"nearestN": 2},
    })));
    let spec = object.spec.unwrap();
    assert_eq!(
        (spec.name, spec.near, spec.dns.unwrap().ttl),
        (None, None, None)
    );
    assert_eq!(spec.failover.unwrap().nearest_n, Some(2));
}

#[test]
fn what_is_missing_or_wrong_shows_with_its_name() {
    for (spec, expected) in [
        (json!({"sources": []}), "missing field `destination`"),
        (
            json!({"destination": {"name": "a"}, "sources": [{"name": "b", "action": "maybe"}]}),
            ".sources[0].action: unknown variant `maybe`",
        ),
        (
            json!({"destination": {"name": "a"}, "sources": {}}),
            "expected a sequence",
        ),
    ] {
        let object: IntentionObject = one(&registration(&spec));
        assert_eq!(&*object.name, "payment");
        let why = object.spec.unwrap_err();
        assert!(why.starts_with("spec") && why.contains(expected), "{why}");
    }
    let object: PreparedQueryObject = one(&registration(&json!({"failover": {"nearestN": -1}})));
    assert!(object.spec.unwrap_err().contains("-1"));
}

#[test]
fn what_is_no_list_is_not_an_empty_list() {
    for body in [
        "",
        "{}",
        "[]",
        "<html>",
        r#"{"items": []}"#,
        r#"{"metadata": {}, "items": []}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": 5}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": [{}]}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a"}}]}"#,
        r#"{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a", "uid": "b"}}"#,
        r#"{"kind": "Status", "metadata": {}, "code": 500}"#,
    ] {
        let page = page::<PodFacts>(body.as_bytes(), &mut Texts::default());
        assert!(page.is_err(), "{body}");
    }
}

#[test]
fn a_list_may_be_empty_and_may_go_on() {
    let mut texts = Texts::default();
    let empty: Page<PodFacts> = page(
        br#"{"metadata": {"resourceVersion": "1"}, "items": null}"#,
        &mut texts,
    )
    .unwrap();
    assert!(empty.items.is_empty() && empty.continue_token.is_none());
    let body = br#"{"metadata": {"resourceVersion": "1", "continue": "abc", "remainingItemCount": 3}, "items": []}"#;
    assert_eq!(
        page::<PodFacts>(body, &mut texts)
            .unwrap()
            .continue_token
            .as_deref(),
        Some("abc")
    );
}

#[test]
fn lines_of_a_watch_are_told_apart() {
    let mut texts = Texts::default();
    let mut read = |event: &str, object: &Value| {
        line::<PodFacts>(
            json!({"type": event, "object": object})
                .to_string()
                .as_bytes(),
            &mut texts,
        )
    };
    // `json!` sorts keys, so that here the object comes first, as no API server sends it.
    assert!(read("ADDED", &pod()).is_err());

    let mut read = |event: &str, object: &Value| {
        let text = format!(r#"{{"type":"{event}","object":{object}}}"#);
        line::<PodFacts>(text.as_bytes(), &mut texts).map_err(|error| error.to_string())
    };
    let (added, version) = read("ADDED", &pod()).unwrap();
    assert!(matches!(added, Line::Applied(facts) if &*facts.namespace == "shop"));
    assert_eq!(version.as_deref(), Some("4711"));
    assert!(matches!(
        read("MODIFIED", &pod()).unwrap().0,
        Line::Applied(_)
    ));
    assert!(
        matches!(read("DELETED", &pod()).unwrap().0, Line::Deleted(facts) if &*facts.uid == "0b0d0a3e-uid")
    );
    let bookmark = json!({"kind": "Pod", "metadata": {"resourceVersion": "4800"}, "spec": {"containers": null}});
    let (bookmark, version) = read("BOOKMARK", &bookmark).unwrap();
    assert!(matches!(bookmark, Line::Bookmark) && version.as_deref() == Some("4800"));
    let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    assert!(matches!(read("ERROR", &gone).unwrap().0, Line::Error(status) if status.code == 410));
    assert!(read("DREAMED", &pod()).unwrap_err().contains("DREAMED"));
    assert!(read("BOOKMARK", &json!({})).is_err());
    assert!(line::<PodFacts>(b"{\"type\":\"ADDED\"}", &mut texts).is_err());
}

#[test]
fn what_recurs_is_held_once() {
    let mut texts = Texts::default();
    let mut body = String::from(r#"{"metadata":{"resourceVersion":"1"},"items":["#);
    for n in 0..2 {
        let mut pod = pod();
        pod["metadata"]["name"] = json!(format!("web-{n}"));
        write!(body, "{}{pod}", if n == 0 { "" } else { "," }).unwrap();
    }
    body.push_str("]}");
    let pods = page::<PodFacts>(body.as_bytes(), &mut texts).unwrap().items;
    assert!(Arc::ptr_eq(&pods[0].namespace, &pods[1].namespace));
    assert!(Arc::ptr_eq(
        pods[0].labels.get("app").unwrap(),
        pods[1].labels.get("app").unwrap()
    ));
    assert!(Arc::ptr_eq(
        pods[0].node.as_ref().unwrap(),
        pods[1].node.as_ref().unwrap()
    ));
}

#[test]
fn of_a_pod_with_our_gate_its_containers_and_other_gates_are_kept() {
    let mut gated = pod();
    gated["spec"]["readinessGates"] = json!([
        {"conditionType": "example.com/lb"}, {"conditionType": "lictor.io/registered"},
        {"conditionType": "example.com/dns"}, {"conditionType": 7},
    ]);
    let message = "é".repeat(GateFacts::MESSAGE_BYTES);
    gated["status"]["conditions"] = json!([
        {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
        {"type": "ContainersReady", "status": "True"},
        {"type": "example.com/dns", "status": "True"},
        {"type": "lictor.io/registered", "status": "False", "reason": "Paused", "message": message},
    ]);
    let facts: PodFacts = one(&gated);
    assert_eq!((facts.ready, &*facts.ready_reason), (Tristate::True, ""));
    let gate = facts.gate.unwrap();
    let closed: Vec<&str> = gate.closed.iter().map(|gate| &**gate).collect();
    assert_eq!(closed, ["example.com/lb", ""]);
    let shown = gate.shown.as_ref().unwrap();
    assert_eq!((shown.open, &*shown.reason), (false, "Paused"));
    assert_eq!(shown.message.len(), GateFacts::MESSAGE_BYTES);

    gated["status"]["conditions"][3]["status"] = json!("True");
    let facts: PodFacts = one(&gated);
    let gate = facts.gate.unwrap();
    assert!(gate.is_open() && gate.shown.unwrap().message.is_empty());
    gated["spec"]["readinessGates"] = json!([{"conditionType": "example.com/lb"}]);
    let facts: PodFacts = one(&gated);
    assert_eq!((facts.ready, facts.gate), (Tristate::False, None));
}
