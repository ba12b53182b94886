//! What another hand changes is repaired, and told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use super::{DEFAULTS, ENTRY, one, speaks, to};
use crate::support::{Kind, Scene, condition, sources_of};

/// An entry without what only Consul writes.
fn plain(entry: &Value) -> Value {
    let mut plain = entry.clone();
    if let Some(fields) = plain.as_object_mut() {
        fields.retain(|key, _| !key.ends_with("Index") && key != "Hash");
    }
    plain
}

/// Changes the entry by hand; `null` removes it.
async fn meddle(scene: &Scene, entry: &Value, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut changed = plain(entry);
    change(&mut changed);
    scene.entry_by_hand(&changed).await
}

/// Within a second or two where the machine has nothing else to do.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What is done by hand, with what the repair says of it.
const BY_HAND: [(&str, &str, &str); 9] = [
    (ENTRY, "removal", "was removed"),
    (ENTRY, "all marks", "(meta)"),
    (ENTRY, "one mark", "(meta)"),
    (ENTRY, "sources", "(sources)"),
    (ENTRY, "another entry", "(sources, meta)"),
    (ENTRY, "description", "(sources)"),
    (DEFAULTS, "removal", "was removed"),
    (DEFAULTS, "all marks", "(meta)"),
    (DEFAULTS, "protocol", "(protocol)"),
];

async fn by_hand(scene: &Scene, kind: &str, name: &str, what: &str, whole: &Value) -> Result<()> {
    let evil = json!([{"Name": "web", "Action": "deny"}]);
    let change = |entry: &mut Value| match what {
        "all marks" => entry["Meta"] = json!({}),
        "one mark" => drop(
            entry["Meta"]
                .as_object_mut()
                .unwrap()
                .remove("lictor-src-0"),
        ),
        "sources" => entry["Sources"] = evil,
        "another entry" => {
            entry["Sources"] = evil;
            entry["Meta"] = Value::Null;
        }
        "description" => entry["Sources"][0]["Description"] = "by hand".into(),
        _ => entry["Protocol"] = "grpc".into(),
    };
    match what {
        "removal" => scene.entry_away(kind, name).await,
        _ => meddle(scene, whole, change).await,
    }
}

#[tokio::test]
async fn every_change_by_hand_is_repaired_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    // Other tests write to the same Consul: what they do there is looked at no oftener than this.
    let lictor = scene.lictor_with(&["--drift-interval=2s"]).await?;
    let web = json!([{"name": "web", "action": "allow"}, {"name": "*", "action": "deny"}]);
    // A destination for each: what is repaired again and again is left alone after a while.
    for n in 0..BY_HAND.len() {
        let destination = scene.named(&format!("d{n}"));
        scene
            .intend(&format!("web-{n}"), to(&destination, &web))
            .await?;
        scene
            .intend(&format!("api-{n}"), to(&destination, &one("api", "allow")))
            .await?;
        scene
            .register(&format!("d{n}"), speaks(&destination, "http"))
            .await?;
    }
    for n in 0..BY_HAND.len() {
        scene.is_ready(&format!("web-{n}")).await?;
        scene.is_ready(&format!("api-{n}")).await?;
        let is = |status: &Value| condition(status, "Ready").0 == "True";
        scene.registration(&format!("d{n}"), is).await?;
    }
    for (n, (kind, what, _)) in BY_HAND.into_iter().enumerate() {
        lictor.idle().await?;
        let name = scene.named(&format!("d{n}"));
        let whole = scene.config_entry(kind, &name).await?;
        let before = lictor.metric("lictor_drift_total", &[]).await?;
        by_hand(&scene, kind, &name, what, &whole).await?;
        let repaired = async || {
            let now = scene.config_entry(kind, &name).await?;
            ensure!(plain(&now) == plain(&whole), "{kind} {what}: {now:#}");
            let drift = lictor.metric("lictor_drift_total", &[]).await?;
            ensure!(drift > before, "{kind} {what}: {drift} repairs");
            anyhow::Ok(())
        };
        wait::until("the repair", AT_ONCE, repaired).await?;
    }
    for (n, (kind, what, text)) in BY_HAND.into_iter().enumerate() {
        let owners = match (kind, what) {
            (DEFAULTS, _) => vec![format!("d{n}")],
            // Each object that lost something by it.
            (_, "removal" | "sources" | "another entry") => {
                vec![format!("api-{n}"), format!("web-{n}")]
            }
            (_, "description") => vec![format!("api-{n}")],
            _ => Vec::new(),
        };
        for owner in owners {
            scene.event("DriftRepaired", &owner, text).await?;
        }
    }
    let drift = lictor.metric("lictor_drift_total", &["intentions"]).await?;
    assert!((drift - 6.0).abs() < f64::EPSILON, "{drift}");
    let drift = lictor.metric("lictor_drift_total", &[DEFAULTS]).await?;
    assert!((drift - 3.0).abs() < f64::EPSILON, "{drift}");
    Ok(())
}

#[tokio::test]
async fn drift_that_is_only_reported_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let flags = ["--drift=report", "--drift-interval=1s"];
    let lictor = scene.lictor_with(&flags).await?;
    let payment = scene.named("payment");
    scene
        .intend("shop", to(&payment, &one("web", "allow")))
        .await?;
    scene.is_ready("shop").await?;
    lictor.idle().await?;
    let whole = scene.config_entry(ENTRY, &payment).await?;
    let evil = json!([{"Name": "web", "Action": "deny"}]);
    meddle(&scene, &whole, |entry| entry["Sources"] = evil).await?;
    lictor.shows("lictor_drift_total", 1.0).await?;
    let event = scene.event("DriftRepaired", "shop", &payment).await?;
    let note = event.note.context("no note")?;
    ensure!(note.contains("is left so"), "{note}");
    scene.is_not("shop", "Drifted").await?;
    scene.barrier().await?;
    lictor.idle().await?;
    let left = scene.config_entry(ENTRY, &payment).await?;
    assert_eq!(sources_of(&left), ["web deny"]);
    // A change in Kubernetes writes.
    let edit =
        json!({"spec": {"sources": [{"name": "web", "action": "allow", "description": "x"}]}});
    scene.change(Kind::Intention, "shop", edit).await?;
    scene.sources_are(&payment, &["web allow"]).await?;
    scene.is_ready("shop").await?;
    Ok(())
}

#[tokio::test]
async fn two_hands_that_fight_are_damped() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (payment, quiet) = (scene.named("payment"), scene.named("quiet"));
    scene
        .intend("shop", to(&payment, &one("web", "allow")))
        .await?;
    scene
        .intend("quiet", to(&quiet, &one("web", "allow")))
        .await?;
    scene.is_ready("shop").await?;
    scene.is_ready("quiet").await?;
    lictor.idle().await?;
    let whole = scene.config_entry(ENTRY, &payment).await?;
    let evil = json!([{"Name": "web", "Action": "deny"}]);
    let fight = async {
        loop {
            let now = scene.config_entry(ENTRY, &payment).await?;
            if sources_of(&now) == ["web allow"] {
                meddle(&scene, &whole, |entry| entry["Sources"] = evil.clone()).await?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let watch = async {
        let event = scene.event("DriftContested", "shop", &payment).await?;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        scene.is_not("shop", "DriftContested").await?;
        // What is not fought over is repaired all the while.
        scene.entry_away(ENTRY, &quiet).await?;
        scene.sources_are(&quiet, &["web allow"]).await?;
        let repairs = lictor.metric("lictor_drift_total", &[]).await?;
        ensure!(repairs <= 6.0, "{repairs} repairs in a few seconds");
        Ok(())
    };
    let ended: Result<()> = tokio::select! {
        lost = fight => lost,
        watched = watch => watched,
    };
    ended?;
    scene.sources_are(&payment, &["web allow"]).await?;
    scene
        .shown(Kind::Intention, "shop", |status| {
            condition(status, "Ready").0 == "True"
        })
        .await?;
    Ok(())
}
