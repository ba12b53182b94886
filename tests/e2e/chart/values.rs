//! All that values can make of the chart is accepted by the API server, and values that make no sense are
//! refused with what to do instead.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{template, text};
use crate::support::{Scene, until};

/// The kinds of the Prometheus Operator, with as much of their schema as the chart uses.
const OPERATOR: &str = include_str!("operator.yaml");

/// Values, each of which makes other objects or other pods.
fn variations(namespace: &str) -> Vec<Value> {
    let peers = json!([{"namespaceSelector": {"matchLabels": {"team": "a"}}}]);
    vec![
        json!({}),
        json!({"replicas": 1, "leaderElection": "off", "crds": {"install": false}}),
        json!({"replicas": 0, "leaderElection": "consul", "checks": "esm", "deadAfter": "0h1m"}),
        json!({"namespaces": [namespace, "default"], "readinessGate": true}),
        json!({
            "namespaces": [namespace],
            "admissionPolicy": {"enabled": true, "validationActions": ["Deny", "Audit"]},
        }),
        json!({
            "excludeNamespaces": ["kube-*", "dev-?[!a-c]"], "aggregateClusterRoles": false,
            "admissionPolicy": {"enabled": true}, "podDisruptionBudget": {"enabled": false},
        }),
        json!({"networkPolicy": {"enabled": true}}),
        json!({"networkPolicy": {"enabled": true}, "checks": "esm", "consul": {"address": "unix:///c"}}),
        everything(&peers),
    ]
}

/// All that is off by default.
fn everything(peers: &Value) -> Value {
    json!({
        "image": {"repository": "registry.example.com/lictor", "tag": "v1", "pullPolicy": "Always"},
        "imagePullSecrets": ["pull"],
        "consul": {
            "address": "https://consul-0:8501,consul-1",
            "tokenSecret": {"name": "token", "key": "a"},
            "tls": {
                "enabled": true, "serverName": "server.dc1.consul",
                "caSecret": {"name": "ca", "key": "tls.crt"}, "clientSecret": {"name": "client"},
            },
        },
        "excludeNamespaces": ["kube-*"],
        "readinessGate": true,
        "extraArgs": ["--log-format=json", "--max-delete-floor=5", "--consul-partition=p"],
        "extraEnv": [
            {"name": "LICTOR_LISTEN", "value": "[::]:8080"},
            {"name": "OTHER", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b", "optional": true}}},
        ],
        "terminationGracePeriodSeconds": 10,
        "podDisruptionBudget": {"enabled": true},
        "admissionPolicy": {"enabled": true},
        "aggregateClusterRoles": true,
        "networkPolicy": {
            "enabled": true, "ingressFrom": peers, "consulTo": peers, "consulPorts": [8501],
            "checksTo": peers, "extraEgress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}],
        },
        "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}, "interval": "1m"},
        "alerts": {"enabled": true, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": true, "annotations": {"grafana_folder": "Consul"}},
        "podAnnotations": {"a/b": "c"},
        "podLabels": {"team": "a"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        }]}},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"},
        ],
        "priorityClassName": "system-cluster-critical",
    })
}

/// A file in the folder of the bed, for kubectl.
fn file(scene: &Scene, name: &str, content: &str) -> Result<String> {
    let path: PathBuf = scene.bed.dir().join(format!("{}-{name}", scene.cluster));
    std::fs::write(&path, content)?;
    Ok(path.display().to_string())
}

/// What is rendered for a release that no other test has, in the namespace of the scene.
async fn rendered(scene: &Scene, values: &Value, more: &[&str]) -> Result<String> {
    let namespace = format!("--namespace={}", scene.namespace);
    let release = format!("--name-template={}", scene.cluster);
    let file = file(scene, "values.json", &values.to_string())?;
    let chart = super::CHART;
    let set = format!("--set=cluster={}", scene.cluster);
    let mut args = vec![
        "template", chart, &namespace, &release, &set, "--values", &file,
    ];
    args.extend(more);
    scene.bed.helm(&args).await
}

/// The kinds that the API server lacks, and a namespace that admits restricted pods alone.
async fn prepare(scene: &Scene) -> Result<()> {
    let bed = scene.bed;
    bed.kubectl_apply(OPERATOR).await?;
    until("the kinds to be served", async || {
        bed.kubectl(&["get", "servicemonitors,prometheusrules", "-A"])
            .await
    })
    .await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    bed.kubectl(&["label", "namespace", &scene.namespace, restricted])
        .await?;
    Ok(())
}

/// The pod that the Deployment would make.
fn pod_of(deployment: &Value) -> Value {
    let template = &deployment["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = "of-the-deployment".into();
    metadata["namespace"] = deployment["metadata"]["namespace"].clone();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

#[tokio::test]
async fn whatever_the_values_make_is_accepted_where_pods_must_be_restricted() -> Result<()> {
    let scene = Scene::new().await?;
    prepare(&scene).await?;
    for values in variations(&scene.namespace) {
        let manifests = rendered(&scene, &values, &[]).await?;
        // What differs from one time to the next would be a change to whoever compares.
        assert_eq!(manifests, rendered(&scene, &values, &[]).await?);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&manifests)?;
        let mut names = BTreeSet::new();
        for document in &documents {
            let metadata = &document["metadata"];
            let name = (
                document["kind"].to_string(),
                metadata["namespace"].to_string(),
                metadata["name"].to_string(),
            );
            ensure!(
                names.insert(name.clone()),
                "{values}: {name:?} is there twice"
            );
        }
        let deployment = documents.iter().find(|it| it["kind"] == "Deployment");
        let pod = pod_of(deployment.context("no Deployment")?);
        let all = file(&scene, "all.yaml", &format!("{manifests}\n---\n{pod}\n"))?;
        let accepted = scene
            .bed
            .kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "--validate=strict",
                "--filename",
                &all,
            ])
            .await
            .with_context(|| format!("{values}"))?;
        for pod in [
            "pod/of-the-deployment",
            &format!("pod/{}-lictor-check", scene.cluster),
        ] {
            ensure!(accepted.contains(pod), "{values}: {accepted}");
        }
        let has_budget = accepted.contains("poddisruptionbudget.policy/");
        let wants_budget = values["podDisruptionBudget"]["enabled"] != false
            && values["replicas"]
                .as_i64()
                .is_none_or(|replicas| replicas > 1);
        assert_eq!(has_budget, wants_budget, "{values}");
        let has_policy = accepted.contains("validatingadmissionpolicybinding");
        let wants_policy =
            values["namespaces"].is_null() || values["admissionPolicy"]["enabled"] == true;
        assert_eq!(has_policy, wants_policy, "{values}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_applied_shows_no_difference_and_a_change_shows_alone() -> Result<()> {
    let scene = Scene::new().await?;
    prepare(&scene).await?;
    let mut values = everything(&json!([{"podSelector": {}}]));
    values["crds"] = json!({"install": false});
    // No other test is to meet its warnings.
    values["admissionPolicy"] = json!({"enabled": false});
    let all = file(
        &scene,
        "applied.yaml",
        &rendered(&scene, &values, &["--skip-tests"]).await?,
    )?;
    scene.bed.kubectl(&["apply", "--filename", &all]).await?;
    let difference = async |all: &str| -> Result<(Option<i32>, String)> {
        let mut diff = scene.bed.kubectl_command();
        let output = diff.args(["diff", "--filename", all]).output().await?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.code(), shown))
    };
    let (code, shown) = difference(&all).await?;
    ensure!(code == Some(0), "{shown}");
    values["replicas"] = 3.into();
    let all = file(
        &scene,
        "changed.yaml",
        &rendered(&scene, &values, &["--skip-tests"]).await?,
    )?;
    let (code, shown) = difference(&all).await?;
    ensure!(code == Some(1), "{code:?}: {shown}");
    let changed: Vec<&str> = shown
        .lines()
        .filter(|line| {
            let change = line.starts_with('+') || line.starts_with('-');
            change && !line.starts_with("+++") && !line.starts_with("---")
        })
        .map(|line| line[1..].trim())
        .filter(|line| !line.starts_with("generation:"))
        .collect();
    assert_eq!(changed, ["replicas: 2", "replicas: 3"], "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_strict_lint_finds_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let lint = ["lint", "--strict", super::CHART, "--set", "cluster=prod"];
    scene.bed.helm(&lint).await?;
    Ok(())
}

/// The kinds of the objects that are rendered for these values.
async fn kinds(scene: &Scene, values: &Value) -> Result<BTreeSet<String>> {
    let rendered = template(scene, values, &["--set", "cluster=prod"]).await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    Ok(documents.iter().map(|it| text(&it["kind"])).collect())
}

#[tokio::test]
async fn what_is_asked_for_is_there_and_nothing_else() -> Result<()> {
    let scene = Scene::new().await?;
    let default = kinds(&scene, &json!({})).await?;
    for (values, more) in [
        (
            json!({"networkPolicy": {"enabled": true}}),
            &["NetworkPolicy"][..],
        ),
        (
            json!({"serviceMonitor": {"enabled": true}}),
            &["Service", "ServiceMonitor"],
        ),
        (json!({"alerts": {"enabled": true}}), &["PrometheusRule"]),
        (json!({"dashboards": {"enabled": true}}), &["ConfigMap"]),
    ] {
        let kinds = kinds(&scene, &values).await?;
        let added: Vec<&String> = kinds.difference(&default).collect();
        assert_eq!(added, more, "{values}");
        ensure!(kinds.is_superset(&default), "{values}");
    }
    let less = json!({
        "namespaces": ["a"], "crds": {"install": false}, "podDisruptionBudget": {"enabled": false},
    });
    let expected = ["Deployment", "Pod", "Role", "RoleBinding", "ServiceAccount"];
    assert_eq!(
        kinds(&scene, &less).await?,
        expected.map(str::to_owned).into()
    );
    Ok(())
}

#[tokio::test]
async fn the_chart_has_the_dashboard_and_the_alerts_as_they_are() -> Result<()> {
    let scene = Scene::new().await?;
    let values =
        json!({"cluster": "a", "alerts": {"enabled": true}, "dashboards": {"enabled": true}});
    let rendered = template(&scene, &values, &[]).await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let of = |kind: &str| documents.iter().find(|it| it["kind"] == kind);
    let map = of("ConfigMap").context("no ConfigMap")?;
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown: Value = serde_json::from_str(&text(&map["data"]["lictor.json"]))?;
    let source = include_str!("../../../deploy/observability/dashboard.json");
    assert_eq!(shown, serde_json::from_str::<Value>(source)?);
    let rule = of("PrometheusRule").context("no PrometheusRule")?;
    let source = include_str!("../../../deploy/observability/alerts.yaml");
    assert_eq!(rule["spec"], serde_saphyr::from_str::<Value>(source)?);
    Ok(())
}

/// What `networkPolicy` lets out: DNS, the API server, Consul, and what is checked.
#[tokio::test]
async fn the_network_policy_lets_out_what_is_needed() -> Result<()> {
    let scene = Scene::new().await?;
    let rules = async |values: Value| -> Result<Vec<Value>> {
        let mut values = values;
        values["cluster"] = "a".into();
        values["networkPolicy"]["enabled"] = true.into();
        let rendered = template(&scene, &values, &[]).await?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
        let policy = documents.iter().find(|it| it["kind"] == "NetworkPolicy");
        let egress = &policy.context("no NetworkPolicy")?["spec"]["egress"];
        Ok(egress.as_array().context("no egress")?.clone())
    };
    let ports = |rule: &Value| -> Vec<u64> {
        let ports = rule["ports"].as_array().into_iter().flatten();
        ports.filter_map(|port| port["port"].as_u64()).collect()
    };
    let anything = rules(json!({"consul": {"address": "a:1,http://[::1]:2/,http://b"}})).await?;
    let seen: Vec<Vec<u64>> = anything.iter().map(ports).collect();
    assert_eq!(
        seen,
        [vec![53, 53], vec![443, 6443], vec![1, 2, 80], vec![]]
    );
    assert_eq!(anything[3], json!({}));
    let peers = json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]);
    let some = rules(json!({"networkPolicy": {"checksTo": peers, "consulTo": peers}})).await?;
    assert_eq!((&some[2]["to"], &some[3]), (&peers, &json!({"to": peers})));
    let none = rules(json!({"checks": "esm"})).await?;
    assert_eq!(none.len(), 3);
    Ok(())
}

/// Values that contradict each other, and what is said: which, or what to do.
fn contradictions() -> Vec<(Value, &'static str)> {
    let tls = |more: Value| {
        let mut tls = json!({
            "enabled": false, "serverName": "", "caSecret": {"name": "", "key": "tls.crt"},
            "clientSecret": {"name": ""},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            tls[key] = value.clone();
        }
        json!({"consul": {"address": "http://c:8500", "tls": tls}})
    };
    vec![
        (json!({"cluster": ""}), "cluster is required"),
        (
            json!({"leaderElection": "off"}),
            "set replicas=1, or leaderElection=lease",
        ),
        (
            json!({"replicas": 1, "podDisruptionBudget": {"enabled": true}}),
            "set it to auto, or replicas to 2",
        ),
        (
            json!({"consul": {"tokenSecret": {"name": "a"}, "authMethod": "b"}}),
            "consul.tokenSecret.name and consul.authMethod are both set",
        ),
        (
            tls(json!({"enabled": true})),
            "write https:// and the TLS port",
        ),
        (
            tls(json!({"clientSecret": {"name": "a"}})),
            "do nothing without consul.tls.enabled=true",
        ),
        (
            json!({"consul": {"address": "https://c:8501"}}),
            "set consul.tls.enabled=true as well",
        ),
        (
            json!({"namespaces": ["a"], "defaultPolicy": null}),
            "namespaces is set, but defaultPolicy is not",
        ),
        (
            json!({"namespaces": ["dev-b"], "excludeNamespaces": ["dev-[!a]"]}),
            "namespaces has dev-b",
        ),
        (
            json!({"namespaces": ["a"], "aggregateClusterRoles": true}),
            "aggregateClusterRoles is true",
        ),
        (
            json!({"admissionPolicy": {"validationActions": ["Deny", "Warn"]}}),
            "both Deny and Warn",
        ),
        (
            json!({"extraArgs": ["--cluster=b"]}),
            "extraArgs has --cluster: set the value cluster",
        ),
        (
            json!({"extraArgs": ["--lease-namespace=b"]}),
            "install it where the Lease is to be",
        ),
        (
            json!({"extraEnv": [{"name": "CONSUL_CACERT", "value": "b"}]}),
            "set the value consul.tls.caSecret",
        ),
        (
            json!({"extraEnv": [{"name": "POD_NAME", "value": "b"}]}),
            "extraEnv has POD_NAME",
        ),
        (
            json!({"extraArgs": ["--listen=0.0.0.0:9090"]}),
            "extraArgs has --listen with \"0.0.0.0:9090\": probes",
        ),
        (
            json!({"extraEnv": [{"name": "LICTOR_LISTEN", "value": "127.0.0.1:8080"}]}),
            "give [::]:8080 where there is only IPv6",
        ),
        (json!({"deadAfter": "59s"}), "give from 1m to 24h"),
        (json!({"deadAfter": "23h59m61s"}), "give from 1m to 24h"),
        (
            json!({"podLabels": {"app.kubernetes.io/name": "b"}}),
            "choose another label",
        ),
    ]
}

/// Values that the schema knows to be wrong, and what is said.
fn misspelt() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"cluster": "Prod"}), "'/cluster'"),
        (json!({"replica": 2}), "'replica' not allowed"),
        (json!({"replicas": "two"}), "'/replicas'"),
        (json!({"leaderElection": "raft"}), "'/leaderElection'"),
        (json!({"defaultPolicy": "open"}), "'/defaultPolicy'"),
        (json!({"consul": {"token": "a"}}), "'token' not allowed"),
        (
            json!({"extraArgs": ["--policy", "dry-run"]}),
            "'/extraArgs/1'",
        ),
        (
            json!({"excludeNamespaces": ["a,b"]}),
            "'/excludeNamespaces/0'",
        ),
        (
            json!({"podDisruptionBudget": {"enabled": "yes"}}),
            "'/podDisruptionBudget/enabled'",
        ),
        (
            json!({"networkPolicy": {"apiServerPorts": ["https"]}}),
            "'/networkPolicy/apiServerPorts/0'",
        ),
        (
            json!({"networkPolicy": {"checks": []}}),
            "'checks' not allowed",
        ),
        (
            json!({"serviceMonitor": {"interval": "often"}}),
            "'/serviceMonitor/interval'",
        ),
        (
            json!({"admissionPolicy": {"validationActions": []}}),
            "'/admissionPolicy/validationActions'",
        ),
        (
            json!({"terminationGracePeriodSeconds": 1}),
            "'/terminationGracePeriodSeconds'",
        ),
        (
            json!({"affinity": {"nodeAffinty": {}}}),
            "'nodeAffinty' not allowed",
        ),
        (json!({"podAnnotations": {"a": 1}}), "'/podAnnotations/a'"),
        (
            json!({"resources": {"request": {}}}),
            "'request' not allowed",
        ),
    ]
}

#[tokio::test]
async fn values_that_make_no_sense_are_refused_with_what_to_do() -> Result<()> {
    let scene = Scene::new().await?;
    let rows = contradictions().into_iter().chain(misspelt());
    for (mut values, told) in rows {
        if values["cluster"].is_null() {
            values["cluster"] = "prod".into();
        }
        let refused = template(&scene, &values, &[]).await;
        let refused = refused
            .map(drop)
            .err()
            .with_context(|| format!("{values} is rendered"))?;
        let said = format!("{refused:#}");
        ensure!(said.contains(told), "{values}: {said}");
    }
    Ok(())
}
