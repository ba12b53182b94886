//! Several Intentions of one destination.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{ENTRY, audit, one, provider, to};
use crate::support::{Kind, Scene, condition, sources_of};

#[tokio::test]
async fn intentions_of_one_destination_are_one_entry() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let web = json!([{"name": "web", "action": "allow", "description": "the shop"},
                     {"name": "*", "action": "deny"}]);
    scene.intend("shop", to(&payment, &web)).await?;
    scene
        .sources_are(&payment, &["* deny", "web allow"])
        .await?;
    scene
        .intend("api", to(&payment, &one("api", "allow")))
        .await?;
    let entry = scene
        .sources_are(&payment, &["* deny", "api allow", "web allow"])
        .await?;
    assert_eq!(entry["Meta"]["lictor-cluster"], scene.cluster);
    assert_eq!(entry["Meta"]["external-source"], "kubernetes");
    let status = scene
        .shown(Kind::Intention, "shop", |status| {
            status["sources"]["applied"] == 2
        })
        .await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(
        status["sources"],
        json!({"desired": 2, "applied": 2, "foreign": 0, "summary": "2/2"})
    );
    assert_eq!(status["destination"], payment);
    let shown = scene
        .bed
        .kubectl(&["get", "intent", "--namespace", &scene.namespace])
        .await?;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "DESTINATION", "SOURCES", "READY", "AGE"]);
    assert_eq!(rows[2][..4], ["shop", &payment, "2/2", "True"]);
    // Each is told that it is written, also who came to an entry that there was.
    for name in ["shop", "api"] {
        scene.event("Registered", name, &payment).await?;
    }

    scene.delete(Kind::Intention, "shop").await?;
    scene.sources_are(&payment, &["api allow"]).await?;
    scene.delete(Kind::Intention, "api").await?;
    scene
        .config_entry_is(ENTRY, &payment, Value::is_null)
        .await?;
    Ok(())
}

#[tokio::test]
async fn of_two_that_want_one_source_the_older_has_it() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    let payment = scene.named("payment");
    // One by one: timestamps have seconds, and of the same second the uid decides.
    scene
        .intend("old", to(&payment, &one("web", "allow")))
        .await?;
    scene.is_ready("old").await?;
    next_second().await?;
    let both = json!([{"name": "web", "action": "deny"}, {"name": "api", "action": "allow"}]);
    scene.intend("young", to(&payment, &both)).await?;
    scene
        .sources_are(&payment, &["api allow", "web allow"])
        .await?;
    let message = scene.is_not("young", "Conflict").await?;
    let old = format!("Intention/{}/old", scene.namespace);
    ensure!(
        message.contains(&old) && message.contains("web"),
        "{message}"
    );
    scene.event("Conflict", "young", &old).await?;
    let status = scene.shown(Kind::Intention, "young", |_| true).await?;
    assert_eq!(status["sources"]["summary"], "1/2");
    lictor.shows("lictor_conflicts", 1.0).await?;
    scene.is_ready("old").await?;

    let before = scene.config_entry(ENTRY, &payment).await?;
    scene.delete(Kind::Intention, "old").await?;
    let after = scene
        .sources_are(&payment, &["api allow", "web deny"])
        .await?;
    assert_eq!(after["CreateIndex"], before["CreateIndex"]);
    scene.is_ready("young").await?;
    lictor.shows("lictor_conflicts", 0.0).await?;
    // It was handed on, not removed.
    assert_eq!(audit(&lictor)?, [Value::Null; 0]);
    Ok(())
}

#[tokio::test]
async fn the_token_that_all_must_carry_is_one_thing() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (payment, first, second) = (
        scene.named("payment"),
        scene.named("first"),
        scene.named("second"),
    );
    provider(&scene, &first).await?;
    provider(&scene, &second).await?;
    let asks = |source: &str, provider: &str| {
        let mut spec = to(&payment, &one(source, "allow"));
        spec["jwt"] = json!({"providers": [{"name": provider}]});
        spec
    };
    let requires = async |provider: &str| {
        let is = |entry: &Value| entry["JWT"]["Providers"][0]["Name"] == provider;
        scene.config_entry_is(ENTRY, &payment, is).await
    };
    scene.intend("old", asks("a", &first)).await?;
    scene.is_ready("old").await?;
    next_second().await?;
    // The same is no conflict.
    scene.intend("same", asks("b", &first)).await?;
    scene.is_ready("same").await?;
    next_second().await?;
    scene.intend("young", asks("c", &second)).await?;
    let message = scene.is_not("young", "Conflict").await?;
    ensure!(message.contains("/old"), "{message}");
    requires(&first).await?;
    scene
        .sources_are(&payment, &["a allow", "b allow", "c allow"])
        .await?;

    scene.delete(Kind::Intention, "old").await?;
    let owner = format!("{}/same", scene.namespace);
    let is = |entry: &Value| entry["Meta"]["lictor-jwt"] == *owner;
    scene.config_entry_is(ENTRY, &payment, is).await?;
    scene.delete(Kind::Intention, "same").await?;
    requires(&second).await?;
    scene.is_ready("young").await?;
    scene
        .change(Kind::Intention, "young", json!({"spec": {"jwt": null}}))
        .await?;
    scene
        .config_entry_is(ENTRY, &payment, |entry| entry["JWT"].is_null())
        .await?;
    lictor.idle().await
}

#[tokio::test]
async fn the_youngest_waits_where_the_marks_of_all_have_no_room() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let many = |prefix: &str| {
        let source = |n: u32| json!({"name": format!("{prefix}-{n:0>150}"), "action": "allow"});
        to(&payment, &(0..150).map(source).collect())
    };
    let all_of = |entry: &Value, prefix: &str| {
        let sources = sources_of(entry);
        sources.len() == 150 && sources.iter().all(|source| source.starts_with(prefix))
    };
    scene.intend("old", many("a")).await?;
    scene.is_ready("old").await?;
    next_second().await?;
    scene.intend("young", many("b")).await?;
    let message = scene.is_not("young", "TooManySources").await?;
    ensure!(message.contains("room"), "{message}");
    ensure!(message.contains("b-"), "{message}");
    scene.event("TooManySources", "young", "room").await?;
    let entry = scene.config_entry(ENTRY, &payment).await?;
    ensure!(all_of(&entry, "a-"), "{entry:#}");
    scene.is_ready("old").await?;
    // Also where neither has anything there.
    lictor.idle().await?;
    scene.entry_away(ENTRY, &payment).await?;
    scene
        .config_entry_is(ENTRY, &payment, |entry| !entry.is_null())
        .await?;
    let entry = scene.config_entry(ENTRY, &payment).await?;
    ensure!(all_of(&entry, "a-"), "{entry:#}");
    scene.delete(Kind::Intention, "old").await?;
    scene.is_ready("young").await?;
    let entry = scene.config_entry(ENTRY, &payment).await?;
    ensure!(all_of(&entry, "b-"), "{entry:#}");
    lictor.idle().await
}

/// What is created from now on is younger than what was created before.
pub async fn next_second() -> Result<()> {
    let now = || {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map(|since| since.as_secs())
    };
    let then = now()?;
    crate::support::until("the next second", async || {
        ensure!(now()? > then, "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await
}
