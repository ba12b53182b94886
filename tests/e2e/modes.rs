//! What lictor may write: `--policy`.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::{Annotated as _, Scene, condition, json_lines, until};

#[tokio::test]
async fn upsert_only_removes_nothing_and_says_so() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    let pod = |name: &str| scene.pod(name).label("app", "web");
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}});
    scene.register("web", spec).await?;
    for name in ["stays", "goes", "drops", "ends"] {
        pod(name).create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    let annotated = scene.pod("annotated").lictor("service", "web,api");
    annotated.create_ready(&scene.client).await?;
    scene.status("api", "annotated", "passing").await?;

    pod("goes").finish_deletion(&scene.client).await?;
    pod("ends").phase(&scene.client, "Failed").await?;
    scene.label("drops", "app", None).await?;
    scene
        .annotate("annotated", &[("service", Some("web"))])
        .await?;
    lictor.shows("lictor_held_deletes", 4.0).await?;
    let status = scene
        .registration("web", |status| condition(status, "Ready").1 == "Held")
        .await?;
    let (ready, _, message) = condition(&status, "Ready");
    ensure!(
        ready == "False" && message.contains("--policy is upsert-only"),
        "{status:#}"
    );
    // Creations and updates go on.
    pod("new").create_ready(&scene.client).await?;
    scene.status("web", "new", "passing").await?;
    scene.edit("web", json!({"spec": {"tags": ["v2"]}})).await?;
    for name in ["stays", "new"] {
        scene
            .instance("web", name, |seen| seen.tags == ["v2"])
            .await?;
    }
    pod("stays").not_ready(&scene.client, "app").await?;
    scene.status("web", "stays", "critical").await?;
    lictor.idle().await?;
    for (service, name) in [
        ("web", "goes"),
        ("web", "ends"),
        ("web", "drops"),
        ("api", "annotated"),
    ] {
        let there = scene.find(service, name).await?;
        ensure!(there.is_some(), "{name} was removed from {service}");
    }
    let deleted = lictor
        .metric("lictor_operations_total", &["delete"])
        .await?;
    assert!(deleted == 0.0, "{deleted} removals");
    let (code, text) = lictor.http("/readyz").await?;
    assert_eq!(code, 200, "{text}");
    lictor.stop().await?;
    // The same is found missing by a further start, and kept.
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    lictor.shows("lictor_held_deletes", 4.0).await?;
    lictor.stop().await?;

    let _lictor = scene.lictor().await?;
    for (service, name) in [
        ("web", "goes"),
        ("web", "ends"),
        ("web", "drops"),
        ("api", "annotated"),
    ] {
        scene.gone(service, name).await?;
    }
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    Ok(())
}

/// Nobody is to reach a pod under a name that is not its own.
#[tokio::test]
async fn what_is_kept_is_critical_where_its_address_is_another_pods() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let mut kept = Vec::new();
    for name in ["old-0", "old-1", "old-2"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        kept.push(scene.status("web", name, "passing").await?);
    }
    lictor.idle().await?;
    lictor.stop().await?;
    // Nobody saw them terminate, so that they are passing still.
    for name in ["old-0", "old-1", "old-2"] {
        scene.pod(name).finish_deletion(&scene.client).await?;
    }
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    lictor.shows("lictor_held_deletes", 3.0).await?;
    // One of them becomes a pod that Lictor has nothing to do with, one a pod of the node's network,
    // which is not told by its address.
    let heir = scene.pod("heir").ip(&kept[0].address);
    heir.create_ready(&scene.client).await?;
    let host = scene.pod("host").host_network();
    let host = host.host_ips([&*kept[1].address]);
    host.create_ready(&scene.client).await?;
    let seen = scene.status("web", "old-0", "critical").await?;
    let text = format!(
        "the address {} belongs to Pod/{}/heir now",
        kept[0].address, scene.namespace
    );
    assert_eq!(seen.output, text);
    assert_eq!(seen.raw["Service"], kept[0].raw["Service"]);
    scene.barrier().await?;
    for (name, before) in ["old-1", "old-2"].iter().zip(&kept[1..]) {
        let now = scene.find("web", name).await?;
        assert_eq!(now.as_ref(), Some(before));
    }
    lictor.shows("lictor_held_deletes", 3.0).await?;

    // It is passing again when it is its own once more.
    heir.finish_deletion(&scene.client).await?;
    let back = scene.pod("old-0").lictor("service", "web");
    back.create_ready(&scene.client).await?;
    let seen = scene.status("web", "old-0", "passing").await?;
    assert_eq!(seen.create_index, kept[0].create_index);
    lictor.shows("lictor_held_deletes", 2.0).await
}

#[tokio::test]
async fn a_dry_run_writes_nothing_anywhere_and_says_what_it_would() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    for name in ["same", "goes", "differs"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    lictor.stop().await?;
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.annotate("differs", &[("tags", Some("v2"))]).await?;
    let new = scene.pod("new").lictor("service", "web");
    new.create_ready(&scene.client).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let bad = scene
        .pod("bad")
        .lictor("service", "web")
        .lictor("port", "70000")
        .lictor("tag", "unknown");
    bad.create_ready(&scene.client).await?;
    let epoch = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
    let state = async || -> Result<_> {
        let mut events = Vec::new();
        for about in ["same", "goes", "differs", "new", "db", "bad"] {
            events.push(scene.events(about).await?);
        }
        let status = scene.registrations().get("db").await?.data["status"].clone();
        Ok((
            scene.dump().await?,
            scene.consul.get(&epoch).await?,
            status,
            events,
        ))
    };
    let before = state().await?;

    let lictor = scene
        .lictor_with(&["--policy=dry-run", "--log-format=json"])
        .await?;
    let would = async |pod: &str, what: &str| {
        let id = scene.id("web", pod);
        until(
            &format!("it to say that it would {what} {pod}"),
            async || {
                let lines = json_lines(&lictor.log())?;
                let says = |line: &&serde_json::Value| {
                    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                    text("key").ends_with(&id) && text("message") == format!("would {what}")
                };
                ensure!(lines.iter().any(|line| says(&line)), "{lines:#?}");
                Ok::<_, anyhow::Error>(())
            },
        )
        .await
    };
    would("goes", "remove web").await?;
    would("differs", "update tags").await?;
    would("new", "register web").await?;
    let (code, text) = lictor.http("/readyz").await?;
    ensure!(
        code == 200 && text.contains("--policy is dry-run"),
        "{code} {text}"
    );
    lictor.shows("lictor_leader", 0.0).await?;
    // What happens from now on is told too.
    let late = scene.pod("late").lictor("service", "web");
    late.create_ready(&scene.client).await?;
    would("late", "register web").await?;
    scene.pod("same").not_ready(&scene.client, "app").await?;
    would("same", "update check").await?;
    scene.pod("late").finish_deletion(&scene.client).await?;
    lictor.idle().await?;
    assert_eq!(state().await?, before);
    let written = lictor
        .metric("lictor_consul_requests_total", &["txn"])
        .await?;
    assert!(written == 0.0, "{written} transactions");
    lictor.stop().await?;

    // A process that may write does what was said.
    let _lictor = scene.lictor().await?;
    scene.gone("web", "goes").await?;
    scene.status("web", "new", "passing").await?;
    scene
        .instance("web", "differs", |seen| seen.tags == ["v2"])
        .await?;
    Ok(())
}

/// What would be held is said, too.
#[tokio::test]
async fn a_dry_run_says_what_the_guard_would_hold() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names: Vec<String> = (0..12).map(|n| format!("web-{n}")).collect();
    for name in &names {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    for name in &names {
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    lictor.stop().await?;
    for name in &names[..11] {
        scene.pod(name).finish_deletion(&scene.client).await?;
    }
    let before = scene.dump().await?;
    let lictor = scene.lictor_with(&["--policy=dry-run"]).await?;
    until("it to say that they would be held", async || {
        let log = lictor.log();
        ensure!(log.contains("11 of 12 entries would go"), "{log}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    lictor.idle().await?;
    ensure!(!lictor.log().contains("would remove"), "{}", lictor.log());
    assert_eq!(scene.dump().await?, before);
    Ok(())
}
