//! `lictor migrate`: what it makes of manifests of other tools is taken by the API server, and is in Consul
//! then.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::support::{Scene, run, until};

const THEIRS: &str = r#"
apiVersion: consul.hashicorp.com/v1alpha1
kind: Registration
metadata: {name: ledger.one}
spec:
  node: legacy
  address: 192.0.2.7
  service: {name: ledger-NS, port: 5432, address: 192.0.2.8, tags: [primary], meta: {rack: r1}, weights: {passing: 3, warning: 1}}
  check:
    checkId: "db:health"
    definition: {http: "http://192.0.2.8:8443/health?deep=1", method: HEAD, header: {X-A: [a]}, intervalDuration: 1m0s, timeoutDuration: 2s, deregisterCriticalServiceAfterDuration: 90m}
---
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: ledger, namespace: NS}
spec:
  destination: {name: ledger-NS}
  sources: [{name: web, action: allow}, {name: "*", action: deny}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS, annotations: {consul.hashicorp.com/service-sync: "true", consul.hashicorp.com/service-tags: "k8s,v1"}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: NS}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata:
      labels: {app: api}
      annotations: {katalog-sync.wish.com/service-names: "api,admin", katalog-sync.wish.com/service-port-admin: "8081", katalog-sync.wish.com/service-meta: "team:x"}
    spec: {containers: [{name: api, image: api, ports: [{containerPort: 8080}]}]}
"#;

#[tokio::test]
async fn what_other_tools_registered_is_registered() -> Result<()> {
    let scene = Scene::new().await?;
    let ns = scene.namespace.as_str();
    let theirs = scene.bed.dir().join(format!("{ns}-theirs.yaml"));
    std::fs::write(&theirs, THEIRS.replace("NS", ns))?;
    // The workload is there before ours are added to it.
    let theirs_of_apps = THEIRS.replace("NS", ns);
    let deployment = theirs_of_apps.split("---").last().context("none")?;
    scene.bed.kubectl_apply(deployment).await?;
    let theirs = theirs.display().to_string();
    let (code, ours, told) = run(&["migrate", "-f", &theirs, "--object-namespace", ns]).await?;
    ensure!(code == Some(0), "{told}");
    ensure!(told.contains("4 written from 4 objects"), "{told}");
    let file = scene.bed.dir().join(format!("{ns}-ours.yaml"));
    std::fs::write(&file, &ours)?;
    let file = file.display().to_string();
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=people",
        "-f",
        &file,
    ];
    scene.bed.kubectl(&apply).await?;

    let pod = scene.pod("web-0").label("app", "web");
    pod.create_ready(&scene.client).await?;
    let _lictor = scene.lictor().await?;
    let web = format!("web-{ns}");
    let found = scene.status(&web, "web-0", "passing").await?;
    assert_eq!((found.port, &found.tags), (8080, &vec!["v1".to_owned()]));
    let ledger = format!("ledger-{ns}");
    let id = format!("{}.{ns}.{ledger}.{ledger}.ledger-one", scene.cluster);
    let found = until("the endpoint to be there", async || {
        let found = scene.find_id(&ledger, &id).await?;
        found.context("it is not there")
    })
    .await?;
    assert_eq!((found.address.as_str(), found.port), ("192.0.2.8", 5432));
    scene.sources_are(&ledger, &["* deny", "web allow"]).await?;
    let jsonpath = "jsonpath={.spec.template.metadata.annotations}";
    let args = ["get", "deployment", "api", "-n", ns, "-o", jsonpath];
    let annotations: serde_json::Value = serde_json::from_str(&scene.bed.kubectl(&args).await?)?;
    for (key, value) in [
        ("service", "api,admin"),
        ("port.admin", "8081"),
        ("meta", "team=x"),
    ] {
        assert_eq!(annotations[format!("lictor.io/{key}")], json!(value));
    }
    Ok(())
}

#[tokio::test]
async fn where_there_is_nothing_to_move_it_says_what_it_understands() -> Result<()> {
    let scene = Scene::new().await?;
    let file = scene
        .bed
        .dir()
        .join(format!("{}-none.yaml", scene.namespace));
    std::fs::write(
        &file,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}",
    )?;
    let file = file.display().to_string();
    let (code, out, told) = run(&["migrate", "-f", &file]).await?;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    ensure!(
        told.contains("none of 1 objects") && told.contains("ServiceIntentions"),
        "{told}"
    );
    let (code, _, told) = run(&["migrate"]).await?;
    ensure!(code == Some(64) && told.contains("--filename"), "{told}");
    Ok(())
}
