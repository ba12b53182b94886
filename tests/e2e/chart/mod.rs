//! The chart: what it renders, and the Deployment started as it is rendered, with its arguments, its
//! environment, and the rights of its `ServiceAccount`.

mod admission;
mod calls;
mod lifecycle;
mod plain;
mod running;
mod upgrade;
mod values;
mod ways;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lictor::k8s::{LeaseName, rights::needed};
use lictor_testbed::Bed;
use serde_json::{Value, json};

use crate::faults::three;
use crate::support::{Annotated as _, Lictor, RELEASE, Scene, json_lines, run, run_in};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");

/// What Helm renders of the chart with these values, as the release `lictor`, with more arguments.
async fn template(scene: &Scene, values: &Value, more: &[&str]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), values.to_string())?;
    let file = file.path().display().to_string();
    let mut args = vec!["template", "lictor", CHART, "--values", &file];
    args.extend(more);
    scene.bed.helm(&args).await
}

/// The container of the pod of this kind, a Deployment's or the test's, that the chart makes of these
/// values.
async fn container(scene: &Scene, values: &Value, kind: &str) -> Result<Value> {
    let rendered = template(scene, values, &[]).await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let found = documents.iter().find(|document| document["kind"] == kind);
    let found = found.with_context(|| format!("no {kind} is rendered"))?;
    let pod = found.pointer("/spec/template").unwrap_or(found);
    Ok(pod["spec"]["containers"][0].clone())
}

/// Helm, in the namespace of the release.
async fn helm(bed: &Bed, args: &[&str]) -> Result<String> {
    bed.helm(&[args, &["--namespace", RELEASE]].concat()).await
}

/// The container of the pods that the Deployment makes as it is now.
async fn container_there(bed: &Bed) -> Result<Value> {
    let get = [
        "get",
        "deployment",
        "lictor",
        "--namespace",
        RELEASE,
        "--output=json",
    ];
    let deployment: Value = serde_json::from_str(&bed.kubectl(&get).await?)?;
    Ok(deployment["spec"]["template"]["spec"]["containers"][0].clone())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What a process is started with.
struct Started {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

/// Where a container's process is started, for want of a pod.
struct Place<'a> {
    folder: &'a Path,
    kubeconfig: &'a Path,
    /// For Consul.
    token: Option<&'a str>,
    /// The name of the pod.
    pod: String,
}

impl Place<'_> {
    /// The arguments of a container, and its environment where it does not run in a pod.
    fn started(&self, container: &Value) -> Result<Started> {
        let token = self.folder.join(format!("secret-{}", self.pod));
        std::fs::write(&token, self.token.unwrap_or_default())?;
        let args = container["args"].as_array().context("no arguments")?;
        let mut env = vec![(
            "KUBECONFIG".to_owned(),
            self.kubeconfig.display().to_string(),
        )];
        for variable in container["env"].as_array().context("no environment")? {
            let value = match &*text(&variable["value"]) {
                "/etc/lictor/consul-token/token" => token.display().to_string(),
                "" if variable["name"] == "POD_NAMESPACE" => RELEASE.to_owned(),
                "" => self.pod.clone(),
                value => value.to_owned(),
            };
            env.push((text(&variable["name"]), value));
        }
        // A port of the pod would be one of this machine, which may be another's.
        env.push(("LICTOR_LISTEN".to_owned(), "127.0.0.1:0".to_owned()));
        let args = args.iter().map(text).collect();
        Ok(Started { args, env })
    }
}

#[tokio::test]
async fn the_deployment_and_the_test_work_as_they_are_rendered() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let excluded: Vec<String> = scene
        .args()
        .iter()
        .filter_map(|arg| arg.strip_prefix("--exclude-namespace="))
        .map(str::to_owned)
        .collect();
    let values = json!({
        "cluster": scene.cluster,
        "excludeNamespaces": excluded,
        "consul": {
            "address": scene.bed.consul_addrs().join(","),
            "tokenSecret": {"name": "consul", "key": "token"},
        },
        // `lictor check` knows the second one alone.
        "extraArgs": ["--log-format=json", "--context="],
    });
    let place = Place {
        folder: scene.bed.dir(),
        kubeconfig: &installed.kubeconfig,
        token: installed.token,
        pod: format!("of-the-pod-{}", scene.cluster),
    };
    let container_of_test = container(&scene, &values, "Pod").await?;
    let Started { args, env } = place.started(&container_of_test)?;
    assert_eq!(args, ["check", "--context="]);
    let (code, said, error) = run_in(&env, &["check"]).await?;
    ensure!(code == Some(0), "{said}{error}");
    ensure!(said.contains("ok       kubernetes.right"), "{said}");

    let mut values = values;
    values["extraArgs"] = json!(["--log-format=json"]);
    let container = container(&scene, &values, "Deployment").await?;
    let Started { args, env } = place.started(&container)?;
    let log = scene.bed.dir().join(format!("chart-{}.log", scene.cluster));
    let mut lictor = Lictor::start(&log, &args, &env).await?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = text(&container[probe]["httpGet"]["path"]);
        ensure!(["/livez", "/readyz"].contains(&&*path), "{probe}: {path}");
    }
    ensure!(lictor.http("/livez").await?.0 == 200);
    lictor.ready().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    ensure!(seen.node == scene.consul_node(), "{}", seen.node);
    json_lines(&lictor.log())?;
    lictor.stop().await?;
    Ok(())
}

/// What the chart sets is what `lictor run` reads, whatever the values.
#[tokio::test]
async fn every_variable_of_the_deployment_is_one_that_is_read() -> Result<()> {
    let scene = Scene::new().await?;
    let values = json!({
        "cluster": "a",
        "namespaces": ["shop", "web"],
        "excludeNamespaces": ["kube-*"],
        "readinessGate": true,
        "checks": "esm",
        "consul": {
            "address": "https://consul:8501",
            "tokenSecret": {"name": "consul", "key": "token"},
            "tls": {
                "enabled": true, "serverName": "server.dc1.consul",
                "caSecret": {"name": "ca", "key": "tls.crt"}, "clientSecret": {"name": "client"},
            },
        },
    });
    let container = container(&scene, &values, "Deployment").await?;
    let (_, help, _) = run(&["run", "--help"]).await?;
    let variables = container["env"].as_array().context("no environment")?;
    // Those that say which pod it is are no flags.
    let flags: Vec<&str> = variables
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .filter(|name| !name.starts_with("POD_"))
        .collect();
    for expected in [
        "LICTOR_CLUSTER",
        "LICTOR_NAMESPACE",
        "LICTOR_LEADER_ELECTION",
        "LICTOR_EXCLUDE_NAMESPACE",
        "LICTOR_READINESS_GATE",
        "LICTOR_CHECKS",
        "CONSUL_CLIENT_KEY",
    ] {
        ensure!(
            flags.contains(&expected),
            "{expected} is not set: {flags:?}"
        );
    }
    for name in flags {
        ensure!(
            help.contains(&format!("[env: {name}=")),
            "{name} is not read"
        );
    }
    Ok(())
}

/// What the chart renders for these values: its documents, or why not.
async fn rendered(scene: &Scene, set: &str) -> Result<Vec<Value>> {
    let set = format!("cluster=prod,{set}");
    let rendered = template(scene, &json!({}), &["--set", &set]).await?;
    Ok(serde_saphyr::from_multiple(&rendered)?)
}

#[tokio::test]
async fn the_election_decides_rights_and_strategy() -> Result<()> {
    let scene = Scene::new().await?;
    for (how, replicas, strategy, has_role) in [
        ("lease", 2, "RollingUpdate", true),
        ("consul", 2, "RollingUpdate", false),
        ("off", 1, "Recreate", false),
    ] {
        let set = format!("leaderElection={how},replicas={replicas}");
        let documents = rendered(&scene, &set).await?;
        let of = |kind: &str| documents.iter().find(|it| it["kind"] == kind);
        let deployment = of("Deployment").context("no Deployment")?;
        assert_eq!(deployment["spec"]["strategy"]["type"], strategy, "{how}");
        assert_eq!(of("Role").is_some(), has_role, "{how}");
        if let Some(role) = of("Role") {
            assert_eq!(role["rules"][1]["resourceNames"], json!(["lictor-prod"]));
        }
    }
    // In a file of values a bare off is false.
    let off = json!({"leaderElection": false, "replicas": 1});
    let text = template(&scene, &off, &["--set", "cluster=prod"]).await?;
    let off = rendered(&scene, "leaderElection=off,replicas=1").await?;
    assert_eq!(serde_saphyr::from_multiple::<Value>(&text)?, off);
    let refused = rendered(&scene, "leaderElection=off,replicas=2").await;
    let text = format!("{:#}", refused.unwrap_err());
    ensure!(text.contains("only one may run"), "{text}");
    Ok(())
}

/// What a role allows, each right as `lictor check` names it.
fn allowed(role: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items
            .filter_map(|item| item.as_str())
            .map(str::to_owned)
            .collect()
    };
    let place = role["metadata"]["namespace"].as_str().unwrap_or("anywhere");
    let mut allowed = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        for name in &mut names {
            name.insert(0, '/');
        }
        if names.is_empty() {
            names.push(String::new());
        }
        for group in texts(&rule["apiGroups"]) {
            let dot = if group.is_empty() { "" } else { "." };
            for verb in texts(&rule["verbs"]) {
                for resource in texts(&rule["resources"]) {
                    let right = |name| format!("{verb} {resource}{dot}{group}{name} in {place}");
                    allowed.extend(names.iter().map(right));
                }
            }
        }
    }
    allowed
}

/// With namespaces there are Roles alone, which give what `lictor check` asks for and no more, wherever the
/// chart is installed; each is bound, and no two have one name.
#[tokio::test]
async fn namespaces_make_roles_with_just_the_rights_that_are_needed() -> Result<()> {
    let scene = Scene::new().await?;
    // Events about its own pod go to the namespace that it is installed in, whatever is watched.
    let events = ["create", "patch"].map(|verb| format!("{verb} events.events.k8s.io in default"));
    for (namespaces, election, gate) in [
        (["shop", "web"], "lease", false),
        (["web", "default"], "lease", true),
        (["web", "default"], "consul", false),
        (["shop", "web"], "off", false),
    ] {
        let set = format!(
            "namespaces={{{}}},leaderElection={election},replicas=1,readinessGate={gate}",
            namespaces.join(",")
        );
        let documents = rendered(&scene, &set).await?;
        let of = |kind: &'static str| documents.iter().filter(move |it| it["kind"] == kind);
        assert_eq!(
            of("ClusterRole").count() + of("ClusterRoleBinding").count(),
            0
        );
        let place =
            |it: &Value| format!("{}/{}", it["metadata"]["namespace"], it["metadata"]["name"]);
        let roles: BTreeSet<String> = of("Role").map(place).collect();
        assert_eq!(roles.len(), of("Role").count(), "{set}: {roles:?}");
        let bound = of("RoleBinding")
            .map(|it| format!("{}/{}", it["metadata"]["namespace"], it["roleRef"]["name"]));
        assert_eq!(bound.collect::<BTreeSet<String>>(), roles, "{set}");
        for binding in of("RoleBinding") {
            let subject =
                json!([{"kind": "ServiceAccount", "name": "lictor", "namespace": "default"}]);
            assert_eq!(binding["subjects"], subject);
        }
        let given: BTreeSet<String> = of("Role").flat_map(allowed).collect();
        let cluster = "prod".parse()?;
        let lease = (election == "lease").then(|| LeaseName::of(&cluster, "default".into()));
        let needed = needed(gate, &namespaces.map(Into::into).into(), lease.as_ref());
        let needed = needed.iter().map(ToString::to_string);
        let needed: BTreeSet<String> = needed.chain(events.clone()).collect();
        assert_eq!(given, needed, "{set}");
    }
    Ok(())
}

/// Without namespaces the roles that are bound to the `ServiceAccount` give the same: what is asked for and
/// no more.
#[tokio::test]
async fn the_cluster_role_has_just_the_rights_that_are_needed() -> Result<()> {
    let scene = Scene::new().await?;
    for (election, gate) in [("lease", false), ("consul", true)] {
        let set = format!("leaderElection={election},readinessGate={gate}");
        let documents = rendered(&scene, &set).await?;
        let name = |it: &Value| (text(&it["kind"]), text(&it["name"]));
        let bound = documents
            .iter()
            .filter(|it| text(&it["kind"]).ends_with("Binding"));
        let bound: Vec<_> = bound.map(|it| name(&it["roleRef"])).collect();
        let is_bound =
            |it: &&Value| bound.contains(&(text(&it["kind"]), text(&it["metadata"]["name"])));
        let given = documents.iter().filter(is_bound).flat_map(allowed);
        let given = given.map(|right| right.trim_end_matches(" in anywhere").to_owned());
        let given: BTreeSet<String> = given.collect();
        let cluster = "prod".parse()?;
        let lease = (election == "lease").then(|| LeaseName::of(&cluster, "default".into()));
        let needed = needed(gate, &BTreeSet::new(), lease.as_ref());
        let needed: BTreeSet<String> = needed.iter().map(ToString::to_string).collect();
        assert_eq!(given, needed, "{set}");
    }
    Ok(())
}
