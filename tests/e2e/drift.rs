//! What another hand changes in Consul is repaired, and told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::support::{Annotated as _, Instance, Lictor, Scene, condition, until};

#[tokio::test]
async fn every_change_by_hand_is_repaired() -> Result<()> {
    let whats = [
        "service",
        "tags",
        "port",
        "check status",
        "check",
        "node check",
        "node meta",
        "node",
    ];
    let scene = Scene::new().await?;
    let lictor = repaired(&scene, &whats).await?;
    scene
        .event(
            "DriftRepaired",
            "web-0",
            "was removed in Consul by another hand",
        )
        .await?;
    scene.event("DriftRepaired", "web-0", "tags").await?;
    ensure!(lictor.metric("lictor_drift_total", &["instance"]).await? >= 5.0);
    ensure!(lictor.metric("lictor_drift_total", &["node"]).await? >= 2.0);
    Ok(())
}

/// What Lictor never writes itself is taken away again.
#[tokio::test]
async fn what_another_hand_adds_or_spoils_is_repaired() -> Result<()> {
    let scene = Scene::new().await?;
    let whats = [
        "one mark",
        "another check",
        "another node check",
        "node addresses",
        "node id",
    ];
    repaired(&scene, &whats).await?;
    Ok(())
}

/// Changes one thing after the other by hand, and sees each repaired and counted.
async fn repaired(scene: &Scene, whats: &[&str]) -> Result<Lictor> {
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene
        .pod("web-0")
        .lictor("service", "web")
        .lictor("tags", "v1")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-0", "passing").await?;
    let same = |first: &Instance, second: &Instance| {
        let plain = |instance: &Instance| {
            let mut raw = instance.raw.clone();
            strip_indexes(&mut raw);
            raw
        };
        plain(first) == plain(second)
    };
    let mut drifted = 0.0;
    for what in whats {
        lictor.idle().await?;
        let whole = scene.status("web", "web-0", "passing").await?;
        meddle(scene, what, &whole).await?;
        scene
            .instance("web", "web-0", |seen| same(seen, &whole))
            .await
            .map_err(|error| error.context(format!("{what} by hand")))?;
        drifted = until("the repair to be counted", async || {
            let now = lictor.metric("lictor_drift_total", &[]).await?;
            ensure!(now > drifted, "{now} after {what}");
            Ok::<_, anyhow::Error>(now)
        })
        .await?;
    }
    Ok(lictor)
}

/// Changes something of the instance by hand.
async fn meddle(scene: &Scene, what: &str, whole: &Instance) -> Result<()> {
    let (node, id) = (&whole.node, &whole.id);
    let check_id = format!("{id}:ready");
    let service_with = |key: &str, value: Value| {
        let mut service = whole.raw["Service"].clone();
        service[key] = value;
        json!({"Node": node, "SkipNodeUpdate": true, "Service": service})
    };
    let critical = |check: &Value| {
        let mut check = check.clone();
        check["Status"] = json!("critical");
        json!({"Node": node, "SkipNodeUpdate": true, "Check": check})
    };
    let entry = match what {
        "service" => json!({"Node": node, "ServiceID": id}),
        "check" => json!({"Node": node, "CheckID": check_id}),
        "node" => json!({"Node": node}),
        "tags" => service_with("Tags", json!(["evil"])),
        "port" => service_with("Port", json!(6666)),
        "check status" => critical(whole.check(&check_id)),
        "node check" => critical(whole.check("lictor-node")),
        "one mark" => {
            let mut meta = whole.raw["Service"]["Meta"].clone();
            meta["lictor-owner"] = json!("by-hand");
            service_with("Meta", meta)
        }
        "another check" => {
            let mut check = whole.check(&check_id).clone();
            check["CheckID"] = json!(format!("{id}:stray"));
            critical(&check)
        }
        "another node check" => {
            let mut check = whole.check("lictor-node").clone();
            check["CheckID"] = json!("lictor-alive");
            critical(&check)
        }
        "node addresses" | "node id" => {
            let mut node = json!({
                "Node": node, "Address": whole.raw["Node"]["Address"],
                "NodeMeta": whole.raw["Node"]["Meta"],
            });
            if what == "node id" {
                node["ID"] = json!("11111111-2222-3333-4444-555555555555");
            } else {
                node["TaggedAddresses"] = json!({"lan": "10.66.6.6"});
            }
            node
        }
        _ => {
            let mut meta = whole.raw["Node"]["Meta"].clone();
            meta["topology-zone"] = json!("elsewhere");
            json!({"Node": node, "Address": "10.66.6.6", "NodeMeta": meta})
        }
    };
    match what {
        "service" | "check" | "node" => scene.away_by_hand(&entry).await,
        _ => scene.by_hand(&entry).await,
    }
}

/// The entry of a pod that is gone, put back by hand, is nobody's claim.
#[tokio::test]
async fn what_comes_back_without_a_claim_is_removed() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    scene.barrier().await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    let entry = json!({"Node": seen.node, "SkipNodeUpdate": true, "Service": seen.raw["Service"]});
    scene.by_hand(&entry).await?;
    scene.gone("web", "web-0").await
}

/// Without drift nothing is read or written again and again.
#[tokio::test]
async fn the_same_written_by_hand_is_no_drift() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    for name in ["web-0", "web-1"] {
        scene
            .pod(name)
            .lictor("service", "web")
            .create_ready(&scene.client)
            .await?;
    }
    let seen = scene.status("web", "web-0", "passing").await?;
    scene.status("web", "web-1", "passing").await?;
    let entry = json!({"Node": seen.node, "SkipNodeUpdate": true, "Service": seen.raw["Service"]});
    scene.by_hand(&entry).await?;
    // Something that is drift follows, so that all was looked at when it is repaired.
    let away = json!({"Node": seen.node, "ServiceID": scene.id("web", "web-1")});
    scene.away_by_hand(&away).await?;
    scene.status("web", "web-1", "passing").await?;
    lictor.idle().await?;
    let after = scene.find("web", "web-0").await?;
    assert_eq!(
        after.map(|after| after.raw["Service"].clone()),
        Some(seen.raw["Service"].clone())
    );
    let drift = lictor.metric("lictor_drift_total", &[]).await?;
    assert!((drift - 1.0).abs() < f64::EPSILON, "{drift}");
    Ok(())
}

/// Waits until so many changes by hand were counted.
async fn drifted(lictor: &Lictor, count: f64) -> Result<()> {
    lictor.shows("lictor_drift_total", count).await
}

#[tokio::test]
async fn drift_that_is_only_reported_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let flags = ["--drift=report", "--drift-interval=1s"];
    let lictor = scene.lictor_with(&flags).await?;
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}});
    scene.register("web", spec).await?;
    for name in ["web-0", "web-1"] {
        let pod = scene.pod(name).label("app", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    lictor.idle().await?;
    let first = scene.status("web", "web-0", "passing").await?;
    let second = scene.status("web", "web-1", "passing").await?;
    meddle(&scene, "tags", &first).await?;
    drifted(&lictor, 1.0).await?;
    meddle(&scene, "service", &second).await?;
    drifted(&lictor, 2.0).await?;
    for id in [&first.id, &second.id] {
        let event = scene.event("DriftRepaired", "web", id).await?;
        let note = event.note.context("no note")?;
        ensure!(note.contains("is left so"), "{note}");
    }
    let status = scene
        .registration("web", |status| condition(status, "Ready").1 == "Drifted")
        .await?;
    let (ready, _, message) = condition(&status, "Ready");
    ensure!(
        ready == "False" && message.contains("by another hand"),
        "{status:#}"
    );
    // Whatever else is written, and however often it is looked at, they stay as they are.
    let evil = scene.find("web", "web-0").await?;
    assert_eq!(evil.as_ref().unwrap().tags, ["evil"]);
    scene.barrier().await?;
    meddle(&scene, "node meta", &first).await?;
    drifted(&lictor, 3.0).await?;
    lictor.idle().await?;
    let now = scene.find("web", "web-0").await?.context("it is gone")?;
    assert_eq!(now.tags, ["evil"]);
    assert_eq!(now.raw["Node"]["Address"], "10.66.6.6");
    ensure!(scene.find("web", "web-1").await?.is_none());
    let repaired = lictor
        .metric("lictor_operations_total", &["instance", "update"])
        .await?;
    assert!(repaired == 0.0, "{repaired} updates");

    // A change in Kubernetes writes what it is about, and that only.
    scene.pod("web-0").not_ready(&scene.client, "app").await?;
    let seen = scene.status("web", "web-0", "critical").await?;
    ensure!(seen.tags.is_empty(), "{seen:#?}");
    ensure!(scene.find("web", "web-1").await?.is_none());
    scene.edit("web", json!({"spec": {"tags": ["v2"]}})).await?;
    scene
        .instance("web", "web-1", |seen| seen.tags == ["v2"])
        .await?;
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    drifted(&lictor, 3.0).await
}

/// Another hand writes its own again whenever it was repaired.
#[tokio::test]
async fn two_hands_that_fight_are_damped() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "tags": ["ours"]});
    scene.register("web", spec).await?;
    for name in ["web-0", "web-1"] {
        let pod = scene.pod(name).label("app", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    lictor.idle().await?;
    let whole = scene.status("web", "web-0", "passing").await?;
    // For as long as this goes on, the entry is the other hand's 20 ms after each repair.
    let fight = async {
        loop {
            let now = scene.find("web", "web-0").await?.context("it is gone")?;
            if now.tags == ["ours"] {
                meddle(&scene, "tags", &whole).await?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let watch = async {
        let event = scene.event("DriftContested", "web", &whole.id).await?;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let status = scene
            .registration("web", |status| {
                condition(status, "Ready").1 == "DriftContested"
            })
            .await?;
        let (ready, _, message) = condition(&status, "Ready");
        ensure!(
            ready == "False" && message.contains(&whole.id),
            "{status:#}"
        );
        // What is not fought over is repaired at once all the while.
        let other = scene.status("web", "web-1", "passing").await?;
        for _ in 0..2 {
            meddle(&scene, "port", &other).await?;
            scene
                .instance("web", "web-1", |seen| seen.port == other.port)
                .await?;
        }
        // The next repair comes after its pause, and the fight goes on.
        wait::until("a fourth repair", Duration::from_secs(20), async || {
            let repairs = lictor.log().matches("drift=true").count();
            ensure!(repairs >= 6, "{repairs}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let repairs = lictor.metric("lictor_drift_total", &[]).await?;
        ensure!(repairs <= 7.0, "{repairs} repairs in a few seconds");
        Ok(())
    };
    let ended: Result<()> = tokio::select! {
        lost = fight => lost,
        watched = watch => watched,
    };
    ended?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["ours"])
        .await?;
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    Ok(())
}

fn strip_indexes(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !key.ends_with("Index"));
            object.values_mut().for_each(strip_indexes);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_indexes),
        _ => {}
    }
}
