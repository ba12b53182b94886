//! What Consul refuses, it refuses whole: one bad source holds nobody else up.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::wait;
use serde_json::json;

use super::{DEFAULTS, one, provider, rules, speaks, to};
use crate::support::{Kind, Lictor, SOON, Scene, condition};

/// How often Consul refused a write.
async fn refused(lictor: &Lictor) -> Result<f64> {
    let with = ["intentions", "refused"];
    lictor.metric("lictor_operations_total", &with).await
}

/// The first retry comes 10 s after the first refusal: none of these tests takes that long.
async fn is_calm(scene: &Scene, lictor: &Lictor, most: f64) -> Result<()> {
    scene.barrier().await?;
    lictor.idle().await?;
    let before = refused(lictor).await?;
    ensure!(before <= most, "{before} refusals");
    for _ in 0..3 {
        scene.barrier().await?;
    }
    let after = refused(lictor).await?;
    ensure!(after - before < 1.5, "{before} refusals, then {after}");
    Ok(())
}

#[tokio::test]
async fn one_bad_source_does_not_hold_up_the_others() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene
        .intend("first", to(&payment, &one("web", "allow")))
        .await?;
    scene.sources_are(&payment, &["web allow"]).await?;
    let token = json!([{"name": "jwt", "permissions": [
        {"action": "allow", "http": {"pathPrefix": "/"},
         "jwt": {"providers": [{"name": scene.named("nobody")}]}}]}]);
    scene.intend("l7", to(&payment, &rules("reports"))).await?;
    scene.intend("jwt", to(&payment, &token)).await?;
    scene
        .intend("last", to(&payment, &one("api", "allow")))
        .await?;
    scene
        .sources_are(&payment, &["api allow", "web allow"])
        .await?;
    let message = scene.is_not("l7", "ConsulRefused").await?;
    ensure!(
        message.contains("has protocol \"tcp\"") && message.contains("is not written"),
        "{message}"
    );
    scene.event("ConsulRefused", "l7", "has protocol").await?;
    scene.is_not("jwt", "ConsulRefused").await?;
    scene.is_ready("first").await?;
    scene.is_ready("last").await?;
    is_calm(&scene, &lictor, 20.0).await?;
    ensure!(lictor.metric("lictor_rejections", &[]).await? >= 2.0);

    // What is written later is not held up either.
    let more = json!({"spec": {"sources": one("api", "deny")}});
    scene.change(Kind::Intention, "last", more).await?;
    scene
        .sources_are(&payment, &["api deny", "web allow"])
        .await?;
    // Whoever mends what is refused is heard at once.
    let mended = json!({"spec": {"sources": one("reports", "allow")}});
    scene.change(Kind::Intention, "l7", mended).await?;
    scene
        .sources_are(&payment, &["api deny", "reports allow", "web allow"])
        .await?;
    scene.is_ready("l7").await?;
    scene.delete(Kind::Intention, "jwt").await?;
    scene.barrier().await?;
    lictor.idle().await
}

/// At a start all are in one write: who is to blame is found out at once, and nobody else is named.
#[tokio::test]
async fn of_many_that_are_new_at_once_those_to_blame_are_found() -> Result<()> {
    let scene = Scene::new().await?;
    let payment = scene.named("payment");
    let names = ["a", "b", "bad-c", "d", "bad-e", "f"];
    for name in names {
        let sources = if name.starts_with("bad") {
            rules(name)
        } else {
            one(name, "allow")
        };
        scene.intend(name, to(&payment, &sources)).await?;
    }
    let lictor = scene.lictor().await?;
    let soon = Duration::from_secs(5);
    wait::until("the good ones to be written", soon, async || {
        let found = scene.config_entry(super::ENTRY, &payment).await?;
        let good = ["a allow", "b allow", "d allow", "f allow"];
        ensure!(crate::support::sources_of(&found) == good, "{found:#}");
        anyhow::Ok(())
    })
    .await?;
    is_calm(&scene, &lictor, 15.0).await?;
    for name in names {
        let status = scene.shown(Kind::Intention, name, |_| true).await?;
        let (ready, reason, _) = condition(&status, "Ready");
        if name.starts_with("bad") {
            assert_eq!((ready, reason), ("False", "ConsulRefused"), "{name}");
            scene.event("ConsulRefused", name, "has protocol").await?;
        } else {
            assert_eq!(ready, "True", "{name}");
        }
    }
    for name in names.iter().filter(|name| !name.starts_with("bad")) {
        let told = scene.events(name).await?;
        let blamed = told
            .iter()
            .any(|it| it.reason.as_deref() == Some("ConsulRefused"));
        ensure!(!blamed, "{name}: {told:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_consul_took_before_stays_when_an_edit_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let two = json!([{"name": "web", "action": "allow"}, {"name": "*", "action": "deny"}]);
    scene.intend("shop", to(&payment, &two)).await?;
    let before = scene
        .sources_are(&payment, &["* deny", "web allow"])
        .await?;
    let bad = json!([{"name": "web", "permissions": [
        {"action": "allow", "http": {"pathPrefix": "/"}}]}, {"name": "*", "action": "allow"}]);
    let edit = json!({"spec": {"sources": bad}});
    scene.change(Kind::Intention, "shop", edit).await?;
    let message = scene.is_not("shop", "ConsulRefused").await?;
    ensure!(message.contains("is kept as it was"), "{message}");
    is_calm(&scene, &lictor, 5.0).await?;
    assert_eq!(scene.config_entry(super::ENTRY, &payment).await?, before);
    // A restart knows no better, and keeps it as well.
    lictor.stop().await?;
    let _lictor = scene.lictor().await?;
    scene.is_not("shop", "ConsulRefused").await?;
    scene.barrier().await?;
    assert_eq!(scene.config_entry(super::ENTRY, &payment).await?, before);
    // Its deletion is heeded.
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .config_entry_is(super::ENTRY, &payment, serde_json::Value::is_null)
        .await?;
    Ok(())
}

/// Whoever makes the destination speak HTTP.
#[tokio::test]
async fn it_is_written_at_once_when_the_protocol_allows_it() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (ours, theirs) = (scene.named("ours"), scene.named("theirs"));
    for (name, destination) in [("ours", &ours), ("theirs", &theirs)] {
        scene.intend(name, to(destination, &rules("web"))).await?;
        scene.is_not(name, "ConsulRefused").await?;
    }
    let soon = Duration::from_secs(5);
    let written = async |destination: &str| {
        wait::until("the rules to be written", soon, async || {
            let found = scene.config_entry(super::ENTRY, destination).await?;
            ensure!(
                crate::support::sources_of(&found) == ["web rules"],
                "{found:#}"
            );
            anyhow::Ok(())
        })
        .await
    };
    scene.register("ours", speaks(&ours, "http2")).await?;
    written(&ours).await?;
    let defaults = json!({"Kind": DEFAULTS, "Name": theirs, "Protocol": "grpc"});
    scene.entry_by_hand(&defaults).await?;
    written(&theirs).await?;
    scene.is_ready("ours").await?;
    scene.is_ready("theirs").await?;
    lictor.idle().await
}

/// What is not watched is tried again after a while.
#[tokio::test]
async fn it_is_written_before_long_when_what_it_lacked_is_there() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let (payment, okta) = (scene.named("payment"), scene.named("okta"));
    let mut spec = to(&payment, &one("web", "allow"));
    spec["jwt"] = json!({"providers": [{"name": okta}]});
    scene.intend("shop", spec).await?;
    scene.is_not("shop", "ConsulRefused").await?;
    provider(&scene, &okta).await?;
    wait::until("the retry", SOON, async || {
        let found = scene.config_entry(super::ENTRY, &payment).await?;
        ensure!(found["JWT"]["Providers"][0]["Name"] == okta, "{found:#}");
        anyhow::Ok(())
    })
    .await?;
    scene.is_ready("shop").await?;
    Ok(())
}

/// `proxy-defaults` is of all services: on a bed of its own.
#[tokio::test]
async fn the_protocol_of_all_services_counts_as_well() -> Result<()> {
    let (_guard, installed) = crate::faults::alone().await?;
    let scene = Scene::on(installed).await?;
    let _lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene.intend("shop", to(&payment, &rules("web"))).await?;
    scene.is_not("shop", "ConsulRefused").await?;
    let all = json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}});
    scene.entry_by_hand(&all).await?;
    let ready = scene.is_ready("shop").await;
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .config_entry_is(super::ENTRY, &payment, serde_json::Value::is_null)
        .await?;
    scene.entry_away("proxy-defaults", "global").await?;
    ready.map(drop)
}
