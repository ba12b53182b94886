//! The Deployment of the chart, started as it is rendered: its arguments, its environment, and the rights
//! of its `ServiceAccount`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::faults::three;
use crate::support::{Annotated as _, Lictor, RELEASE, Scene, json_lines, run};

/// The container of the Deployment that the chart makes of these values.
async fn container(scene: &Scene, values: &Value) -> Result<Value> {
    let file = scene
        .bed
        .dir()
        .join(format!("values-{}.json", scene.cluster));
    std::fs::write(&file, values.to_string())?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");
    let file = file.display().to_string();
    let rendered = scene
        .bed
        .helm(&["template", "lictor", chart, "--values", &file])
        .await?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let deployment = documents
        .iter()
        .find(|document| document["kind"] == "Deployment")
        .context("no Deployment is rendered")?;
    Ok(deployment["spec"]["template"]["spec"]["containers"][0].clone())
}

#[tokio::test]
async fn the_deployment_works_as_it_is_rendered() -> Result<()> {
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
        "extraArgs": ["--log-format=json"],
        "extraEnv": [{"name": "LICTOR_LISTEN", "value": "127.0.0.1:0"}],
    });
    let container = container(&scene, &values).await?;
    let token = scene.bed.dir().join(format!("secret-{}", scene.cluster));
    std::fs::write(&token, installed.token.context("the bed has ACLs")?)?;

    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let args: Vec<String> = container["args"]
        .as_array()
        .context("no arguments")?
        .iter()
        .map(text)
        .collect();
    let mut env = vec![(
        "KUBECONFIG".to_owned(),
        installed.kubeconfig.display().to_string(),
    )];
    for variable in container["env"].as_array().context("no environment")? {
        let value = match &*text(&variable["value"]) {
            "/etc/lictor/consul-token/token" => token.display().to_string(),
            "" if variable["name"] == "POD_NAMESPACE" => RELEASE.to_owned(),
            "" => format!("of-the-pod-{}", scene.cluster),
            value => value.to_owned(),
        };
        env.push((text(&variable["name"]), value));
    }
    let log = scene.bed.dir().join(format!("chart-{}.log", scene.cluster));
    let mut lictor = Lictor::start(&log, &args, &env).await?;
    for probe in ["livenessProbe", "readinessProbe"] {
        let path = text(&container[probe]["httpGet"]["path"]);
        ensure!(["/livez", "/readyz"].contains(&&*path), "{probe}: {path}");
    }
    lictor.ready().await?;
    ensure!(lictor.http("/livez").await?.0 == 200);
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
    let container = container(&scene, &values).await?;
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
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");
    let set = format!("cluster=prod,{set}");
    let rendered = scene
        .bed
        .helm(&["template", "lictor", chart, "--set", &set])
        .await?;
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
    let refused = rendered(&scene, "leaderElection=off,replicas=2").await;
    let text = format!("{:#}", refused.unwrap_err());
    ensure!(text.contains("only one may run"), "{text}");
    Ok(())
}
