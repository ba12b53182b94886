//! `lictor plan` judges by what `lictor run` judges by.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::holders::refused_to_own;
use super::{EXCLUSIVE, bed};
use crate::plan::{JSON, plan, written};
use crate::support::Scene;

#[tokio::test]
async fn a_plan_shows_what_is_not_allowed_and_why() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    let (web, other) = refused_to_own(&scene, "10.250.9.1").await?;

    // What Consul keeps of names counts: this namespace is the older one.
    let all = [JSON[0], JSON[1], EXCLUSIVE];
    let shown = plan(&scene, &all).await?;
    let id = scene.id(&web, "own");
    let key = format!("lictor-{}--{}/{id}", scene.cluster, scene.node);
    let item = shown.item(&key)?;
    let message = item["message"].as_str().unwrap_or_default();
    ensure!(item["action"] == "rejected", "{item:#}");
    ensure!(message.contains(&other), "{message}");
    ensure!(
        shown.items()?.len() == 1 && shown.code == Some(1),
        "{}",
        shown.err
    );

    // Without the other namespace its names are free, and what was refused comes.
    let without = format!("--without=namespace/{other}");
    let shown = plan(&scene, &[JSON[0], JSON[1], EXCLUSIVE, &without]).await?;
    let items = shown.items()?;
    let (comes, goes) = (format!("create {key}"), format!(".{other}.{web}.theirs"));
    let is_end = |item: &&String| item.starts_with("delete ") && item.ends_with(&goes);
    ensure!(
        items.len() == 2 && items.contains(&comes) && items.iter().any(|item| is_end(&item)),
        "{} {}",
        shown.out,
        shown.err
    );

    // Manifests as well: by what is kept, and by the policies among them.
    let registration = json!({"apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
        "metadata": {"name": web, "namespace": scene.namespace},
        "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    let policy = json!({"apiVersion": "lictor.io/v1alpha1", "kind": "RegistrationPolicy",
        "metadata": {"name": "it"},
        "spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}},
                 "services": [web]}});
    let file = written(&scene, "refused.yaml", &registration.to_string())?;
    let file = file.to_str().context("a path")?;
    let refused = [JSON[0], JSON[1], EXCLUSIVE, "-f", file];
    let shown = plan(&scene, &refused).await?;
    let key = format!("ServiceRegistration/{}/{web}", scene.namespace);
    ensure!(
        shown.items()? == [format!("rejected {key}")],
        "{}",
        shown.out
    );
    ensure!(shown.out.contains(&other), "{}", shown.out);
    std::fs::write(file, format!("{registration}\n---\n{policy}"))?;
    let shown = plan(&scene, &refused).await?;
    ensure!(
        shown.items()?.is_empty() && shown.code == Some(0),
        "{}",
        shown.out
    );

    // A policy that is there counts where the cluster is asked.
    scene.policy("it", json!({"services": [web]})).await?;
    let shown = plan(&scene, &all).await?;
    let items = shown.items()?;
    ensure!(
        items
            .iter()
            .any(|item| item.starts_with("create") && item.ends_with(&id)),
        "{items:?}"
    );
    Ok(())
}
