//! From a version before to this one and back, with what teams have registered: nothing of it moves.
//!
//! There is no version before. One is made of the chart as it is, by taking out what such versions lack:
//! a value, a field of a CRD, and the status that objects have by default.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{Bed, BedOptions};
use serde_json::{Value, json};

use super::CHART;
use super::running::{Release, pod};
use crate::support::{RELEASE, until};

const BEFORE: &str = "0.0.9";
/// A field that the version before does not know.
const FIELD: &str = "protocol";
/// A value that it does not know.
const VALUE: &str = "terminationGracePeriodSeconds";

/// The text without its block that begins with this line, as YAML has blocks.
fn without_block(text: &str, first: &str) -> Result<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines();
    let mut kept = Vec::new();
    kept.extend(lines.by_ref().take_while(|line| *line != first));
    ensure!(kept.len() < text.lines().count(), "no line {first:?}");
    kept.extend(lines.skip_while(|line| {
        depth(line) > depth(first)
            || line.trim_start().starts_with("- ") && depth(line) == depth(first)
    }));
    Ok(kept.join("\n") + "\n")
}

/// Changes a file of the chart.
fn change(chart: &Path, file: &str, how: impl FnOnce(String) -> Result<String>) -> Result<()> {
    let path = chart.join(file);
    let before = fs::read_to_string(&path)?;
    let after = how(before.clone())?;
    ensure!(before != after, "{file} is as it was");
    Ok(fs::write(path, after)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = (entry?, to);
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The chart of the version before, as a package.
async fn before(bed: &Bed) -> Result<String> {
    let chart = bed.dir().join("before/lictor");
    copy(CHART.as_ref(), &chart)?;
    change(&chart, "Chart.yaml", |text| {
        Ok(text.replace(env!("CARGO_PKG_VERSION"), BEFORE))
    })?;
    change(&chart, "values.yaml", |text| {
        Ok(text.replace(&format!("\n{VALUE}: 30\n"), "\n"))
    })?;
    change(&chart, "values.schema.json", |text| {
        let mut schema: Value = serde_json::from_str(&text)?;
        schema["properties"]
            .as_object_mut()
            .context("no properties")?
            .remove(VALUE);
        schema["required"]
            .as_array_mut()
            .context("none required")?
            .retain(|name| name != VALUE);
        Ok(schema.to_string())
    })?;
    change(&chart, "templates/deployment.yaml", |text| {
        Ok(text.replace(&format!("{{{{ .Values.{VALUE} }}}}"), "30"))
    })?;
    for kind in ["serviceregistrations", "intentions", "preparedqueries"] {
        change(
            &chart,
            &format!("templates/crds/lictor.io_{kind}.yaml"),
            |text| without_block(&text, "            default:"),
        )?;
    }
    let file = "templates/crds/lictor.io_serviceregistrations.yaml";
    let first = format!("              {FIELD}:");
    change(&chart, file, |text| without_block(&text, &first))?;
    let to = bed.dir().display().to_string();
    let chart = chart.display().to_string();
    bed.helm(&["package", &chart, "--destination", &to]).await?;
    Ok(format!("{to}/lictor-{BEFORE}.tgz"))
}

const OBJECTS: &str = "
apiVersion: lictor.io/v1alpha1
kind: ServiceRegistration
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, port: http}
---
apiVersion: lictor.io/v1alpha1
kind: ServiceRegistration
metadata: {name: db, namespace: shop}
spec: {endpoints: [{name: primary, address: 192.0.2.1, port: 5432}]}
---
apiVersion: lictor.io/v1alpha1
kind: Intention
metadata: {name: db, namespace: shop}
spec: {destination: {name: db}, sources: [{name: web, action: allow}]}
---
apiVersion: lictor.io/v1alpha1
kind: PreparedQuery
metadata: {name: nearest-web, namespace: shop}
spec: {service: web}
---
apiVersion: lictor.io/v1alpha1
kind: RegistrationPolicy
metadata: {name: shop}
spec: {namespaceSelector: {}, services: ['*'], destinations: ['*'], queries: ['*']}
";

/// With the field that only this version knows.
const NEWER: &str = "
apiVersion: lictor.io/v1alpha1
kind: ServiceRegistration
metadata: {name: api, namespace: shop}
spec: {endpoints: [], protocol: http}
";

impl Release {
    /// All that Consul holds of it, with the indexes of when each was made and changed. It is settled when
    /// all is ready.
    async fn in_consul(&self) -> Result<Vec<Value>> {
        let consul = self.bed.consul()?;
        let mut all = Vec::new();
        for path in [
            "/v1/catalog/node/lictor-prod--node-a?consistent",
            "/v1/health/node/lictor-prod--node-a?consistent",
            "/v1/catalog/node/lictor-prod-external?consistent",
            "/v1/config/service-intentions?consistent",
            "/v1/query?consistent",
            "/v1/kv/lictor/v1/prod/query?recurse",
        ] {
            all.push(consul.get(path).await?);
        }
        for (number, part) in all.iter().enumerate() {
            ensure!(!part.is_null() && *part != json!([]), "{number} is empty");
        }
        Ok(all)
    }

    /// Whether the API server knows the field by now.
    async fn knows_field(&self, expected: bool) -> Result<()> {
        until(&format!("{FIELD} to be known: {expected}"), async || {
            let strict = [
                "create",
                "--validate=strict",
                "--dry-run=server",
                "--filename",
            ];
            let file = self.file("newer.yaml", NEWER)?;
            let taken = self.bed.kubectl(&[&strict[..], &[&file]].concat()).await;
            let said = taken.err().map(|error| format!("{error:#}"));
            // That it is there already is no answer.
            let is_unknown = |said: &String| said.contains("unknown field");
            let as_expected = if expected {
                said.is_none()
            } else {
                said.as_ref().is_some_and(is_unknown)
            };
            ensure!(as_expected, "{said:?}");
            Ok(())
        })
        .await
    }
}

/// The version before, with what teams have.
async fn installed() -> Result<Release> {
    let release = Release::on_bed(BedOptions::default()).await?;
    let old = before(&release.bed).await?;
    release.install(&old, json!({})).await?;
    release.create_namespace("shop").await?;
    let client = release.bed.kube_client()?;
    for (name, ip) in [("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")] {
        let web = pod("shop", name, ip).label("app", "web");
        web.create_ready(&client).await?;
    }
    until("the kinds to be served", async || {
        release.bed.kubectl_apply(OBJECTS).await
    })
    .await?;
    Ok(release)
}

#[tokio::test]
async fn an_upgrade_and_a_way_back_move_nothing_that_is_registered() -> Result<()> {
    let release = installed().await?;
    let bed = &release.bed;
    release.knows_field(false).await?;
    let lictor = release.run("before-0").await?;
    release.all_ready("shop").await?;
    lictor.idle().await?;
    let registered = release.in_consul().await?;

    // Values that the release has not, as --reuse-values leaves it, are asked for by name.
    let upgrade = ["upgrade", "lictor", CHART];
    let reused = release
        .helm(&[&upgrade[..], &["--reuse-values"]].concat())
        .await;
    let said = format!("{:#}", reused.err().context("it is upgraded")?);
    ensure!(said.contains(VALUE), "{said}");
    release
        .helm(&[&upgrade[..], &["--reset-then-reuse-values"]].concat())
        .await?;
    release.knows_field(true).await?;
    let lictor = release.replaced(lictor, "now-0").await?;
    assert_eq!(release.in_consul().await?, registered);
    bed.kubectl_apply(NEWER).await?;
    let protocol = async || -> Result<Value> {
        let consul = bed.consul()?;
        Ok(consul
            .find("/v1/config/service-defaults/api")
            .await?
            .unwrap_or_default())
    };
    until("the field to be written", async || {
        let now = protocol().await?;
        ensure!(now["Protocol"] == "http", "{now}");
        anyhow::Ok(())
    })
    .await?;
    release.all_ready("shop").await?;

    release.helm(&["rollback", "lictor", "1"]).await?;
    release.knows_field(false).await?;
    let mut lictor = release.replaced(lictor, "before-1").await?;
    // What the version before does not know is no claim any more: it goes as what is found missing.
    until("what came of the field to go", async || {
        let now = protocol().await?;
        ensure!(now.is_null(), "{now}");
        anyhow::Ok(())
    })
    .await?;
    release.all_ready("shop").await?;
    assert_eq!(release.in_consul().await?, registered);

    // Its rights go before its process does.
    lictor.bears_refusals();
    release.helm(&["uninstall", "lictor"]).await?;
    lictor.stop().await?;
    assert_eq!(release.in_consul().await?, registered);
    let objects = release
        .json(&["sreg,intent,pq,regpol", "--namespace=shop"])
        .await?;
    assert_eq!(
        objects["items"].as_array().map(Vec::len),
        Some(6),
        "{objects:#}"
    );
    // There is no kubelet that would end them.
    let pods = ["delete", "pods", "--all", "--namespace=shop", "--force"];
    bed.kubectl(&pods).await?;
    for namespace in [RELEASE, "shop"] {
        bed.kubectl(&["delete", "namespace", namespace, "--timeout=30s"])
            .await?;
    }
    assert_eq!(release.in_consul().await?, registered);
    Ok(())
}
