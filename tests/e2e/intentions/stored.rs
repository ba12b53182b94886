//! Intentions that were stored under a laxer schema, as an older release may have had.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{ENTRY, one, to};
use crate::support::schema::{set_versions, versions, without_rules};
use crate::support::{Kind, Scene, condition, until};

const CRD: &str = "intentions.lictor.io";

/// On a bed of its own: the CRD is everybody's.
#[tokio::test]
async fn what_a_laxer_schema_let_through_is_told_and_holds_nothing_up() -> Result<()> {
    let (_guard, installed) = crate::faults::alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let two = json!([{"name": "web", "action": "allow"}, {"name": "api", "action": "deny"}]);
    scene.intend("edited", to(&payment, &two)).await?;
    let before = scene
        .sources_are(&payment, &["api deny", "web allow"])
        .await?;
    scene.is_ready("edited").await?;
    lictor.stop().await?;

    let strict = versions(&scene, CRD).await?;
    let mut lax = strict.clone();
    without_rules(
        &mut lax,
        &["x-kubernetes-validations", "minItems", "minLength"],
    );
    set_versions(&scene, CRD, &lax).await?;
    let both = json!([{"name": "web", "action": "deny", "permissions": [
        {"action": "allow", "http": {"pathPrefix": "/"}}]}]);
    until("the lax schema to be in force", async || {
        let edit = json!({"spec": {"sources": both}});
        scene.change(Kind::Intention, "edited", edit).await
    })
    .await?;
    let mut no_token = to(&payment, &one("new", "allow"));
    no_token["jwt"] = json!({"providers": []});
    scene.intend("no-token", no_token).await?;
    // What only Consul knows to be wrong.
    let nothing = json!([{"name": "new", "permissions": [{"action": "allow", "http": {}}]}]);
    scene.intend("refused", to(&payment, &nothing)).await?;
    set_versions(&scene, CRD, &strict).await?;
    until("the strict schema to be in force", async || {
        let spec = to(&payment, &both);
        let taken = scene.intend("probe", spec).await;
        if taken.is_ok() {
            scene.delete(Kind::Intention, "probe").await?;
        }
        ensure!(taken.is_err(), "still lax");
        anyhow::Ok(())
    })
    .await?;

    let _lictor = scene.lictor().await?;
    for (name, reason, part) in [
        ("edited", "Invalid", "exactly one of action and permissions"),
        ("no-token", "Invalid", "spec.jwt.providers"),
        ("refused", "ConsulRefused", "HTTP should not be empty"),
    ] {
        let message = scene.is_not(name, reason).await?;
        ensure!(message.contains(part), "{name}: {message}");
    }
    let status = scene.shown(Kind::Intention, "edited", |_| true).await?;
    assert_eq!(condition(&status, "Stalled").0, "True");
    scene
        .event("InvalidAnnotation", "edited", "exactly one")
        .await?;
    // It keeps what it held, and others go on beside it.
    let now = scene.config_entry(ENTRY, &payment).await?;
    assert_eq!(now, before);
    scene
        .intend("other", to(&payment, &one("db", "allow")))
        .await?;
    let with_other = ["api deny", "db allow", "web allow"];
    scene.sources_are(&payment, &with_other).await?;
    scene.is_ready("other").await?;
    // Its deletion is heeded, and so is whoever mends one.
    scene.delete(Kind::Intention, "edited").await?;
    scene.sources_are(&payment, &["db allow"]).await?;
    let mended = json!({"spec": {"jwt": null}});
    scene.change(Kind::Intention, "no-token", mended).await?;
    scene
        .sources_are(&payment, &["db allow", "new allow"])
        .await?;
    scene.is_ready("no-token").await.map(drop).context("mended")
}
