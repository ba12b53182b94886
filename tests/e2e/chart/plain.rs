//! The plain manifests: in one file, and as a base for kustomize.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::support::Scene;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The objects of a stream of YAML, by what they are.
fn objects(stream: &str) -> Result<BTreeMap<String, Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(stream)?;
    let name = |it: &Value| format!("{} {}", it["kind"], it["metadata"]["name"]);
    Ok(documents.into_iter().map(|it| (name(&it), it)).collect())
}

#[tokio::test]
async fn the_base_for_kustomize_is_the_install_and_an_overlay_says_whose_it_is() -> Result<()> {
    let scene = Scene::new().await?;
    let kustomize = async |folder: &str| {
        let folder = format!("{ROOT}/{folder}");
        scene.bed.kubectl(&["kustomize", &folder]).await
    };
    let install = std::fs::read_to_string(format!("{ROOT}/deploy/install.yaml"))?;
    let base = kustomize("deploy/kustomize").await?;
    assert_eq!(objects(&base)?, objects(&install)?);

    let overlay = kustomize("examples/kustomize").await?;
    ensure!(!overlay.contains("SET-ME"), "{overlay}");
    let seen = objects(&overlay)?;
    let of = |name: &str| seen.get(name).with_context(|| format!("no {name}"));
    let container = &of("\"Deployment\" \"lictor\"")?["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example.com/lictor:0.1.0");
    let cluster = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|it| it["name"] == "LICTOR_CLUSTER");
    assert_eq!(cluster.context("no cluster")?["value"], "prod-eu");
    let rules = &of("\"Role\" \"lictor\"")?["rules"];
    assert_eq!(rules[1]["resourceNames"][0], "lictor-prod-eu");
    let folder = format!("{ROOT}/examples/kustomize");
    scene
        .bed
        .kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "--kustomize",
            &folder,
        ])
        .await?;
    Ok(())
}
