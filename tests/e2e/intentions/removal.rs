//! What is taken out of Consul, and when.

use anyhow::{Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{ENTRY, audit, one, to};
use crate::support::{Kind, Scene, condition, json_lines, sources_of, until};

#[tokio::test]
async fn every_source_that_goes_is_one_line_of_the_audit_log() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    let payment = scene.named("payment");
    let three = json!([{"name": "a", "action": "allow"}, {"name": "b", "action": "allow"},
                       {"name": "c", "peer": "p", "action": "allow"}]);
    scene.intend("shop", to(&payment, &three)).await?;
    scene.is_ready("shop").await?;
    let edit = json!({"spec": {"sources": one("a", "allow")}});
    let before = scene.config_entry(ENTRY, &payment).await?;
    scene.change(Kind::Intention, "shop", edit).await?;
    let after = scene.sources_are(&payment, &["a allow"]).await?;
    scene.is_ready("shop").await?;
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .config_entry_is(ENTRY, &payment, Value::is_null)
        .await?;
    lictor.idle().await?;
    let lines = audit(&lictor)?;
    let owner = format!("Intention/{}/shop", scene.namespace);
    for (line, (source, entry)) in
        lines
            .iter()
            .zip([("b", &before), ("c|peer:p", &before), ("a", &after)])
    {
        assert_eq!(line["key"], format!("{ENTRY}/{payment}: {source}"));
        assert_eq!(
            (&line["kind"], &line["owner"], &line["seen"]),
            (&json!("intention"), &json!(owner), &json!(true))
        );
        // The index of what was removed.
        assert_eq!(line["index"], entry["ModifyIndex"], "{line}");
        ensure!(line["epoch"].as_u64() > Some(0), "{line}");
    }
    assert_eq!(lines.len(), 3, "{lines:#?}");
    scene
        .event("Deregistered", "shop", "its claim was seen going")
        .await?;
    let deleted = ["intentions", "delete"];
    let deleted = lictor.metric("lictor_operations_total", &deleted).await?;
    assert!((deleted - 1.0).abs() < f64::EPSILON, "{deleted}");
    lictor.shows("lictor_held_deletes", 0.0).await
}

/// Without a source, others may connect than before: one list is not enough to take it out.
#[tokio::test]
async fn what_went_while_nobody_looked_goes_when_three_lists_agree() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let names = ["stays", "goes", "edited", "moved"];
    for name in names {
        let two = json!([{"name": "web", "action": "allow"}, {"name": "api", "action": "deny"}]);
        scene.intend(name, to(&scene.named(name), &two)).await?;
    }
    // The limits are not what this is about.
    for number in 0..8 {
        let name = format!("more-{number}");
        scene
            .intend(&name, to(&scene.named(&name), &one("web", "allow")))
            .await?;
        scene.is_ready(&name).await?;
    }
    for name in names {
        scene.is_ready(name).await?;
    }
    lictor.stop().await?;
    scene.delete(Kind::Intention, "goes").await?;
    let edit = json!({"spec": {"sources": one("web", "deny")}});
    scene.change(Kind::Intention, "edited", edit).await?;
    let to_other = json!({"spec": {"destination": {"name": scene.named("elsewhere")}}});
    scene.change(Kind::Intention, "moved", to_other).await?;

    let began = std::time::Instant::now();
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    lictor.shows("lictor_held_deletes", 5.0).await?;
    // What is asked for is written at once.
    scene
        .sources_are(&scene.named("edited"), &["api deny", "web deny"])
        .await?;
    scene
        .sources_are(&scene.named("elsewhere"), &["api deny", "web allow"])
        .await?;
    scene
        .sources_are(&scene.named("goes"), &["api deny", "web allow"])
        .await?;
    let message = scene.is_not("edited", "Held").await?;
    ensure!(message.contains("until 3 lists agree"), "{message}");

    scene.goes_confirmed(&scene.named("goes")).await?;
    let took = began.elapsed();
    ensure!(took >= 2 * super::SPACING, "gone after {took:?}");
    scene
        .config_entry_is(ENTRY, &scene.named("moved"), Value::is_null)
        .await?;
    scene
        .sources_are(&scene.named("edited"), &["web deny"])
        .await?;
    scene
        .sources_are(&scene.named("stays"), &["api deny", "web allow"])
        .await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    scene.is_ready("edited").await?;
    let lines = audit(&lictor)?;
    ensure!(
        lines.len() == 5 && lines.iter().all(|line| line["seen"] == false),
        "{lines:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn upsert_only_takes_no_source_out() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    let payment = scene.named("payment");
    let two = json!([{"name": "web", "action": "allow"}, {"name": "api", "action": "allow"}]);
    scene.intend("shop", to(&payment, &two)).await?;
    scene.is_ready("shop").await?;
    let edit = json!({"spec": {"sources": one("web", "deny")}});
    scene.change(Kind::Intention, "shop", edit).await?;
    scene
        .sources_are(&payment, &["api allow", "web deny"])
        .await?;
    let message = scene.is_not("shop", "Held").await?;
    ensure!(message.contains("--policy is upsert-only"), "{message}");
    lictor.shows("lictor_held_deletes", 1.0).await?;
    scene.delete(Kind::Intention, "shop").await?;
    lictor.shows("lictor_held_deletes", 2.0).await?;
    lictor.idle().await?;
    let left = scene.config_entry(ENTRY, &payment).await?;
    assert_eq!(sources_of(&left), ["api allow", "web deny"]);
    Ok(())
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_what_it_would() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let (old, new) = (scene.named("old"), scene.named("new"));
    scene.intend("old", to(&old, &one("web", "allow"))).await?;
    scene.is_ready("old").await?;
    lictor.stop().await?;
    let before = scene.config_entry(ENTRY, &old).await?;
    let edit = json!({"spec": {"sources": one("web", "deny")}});
    scene.change(Kind::Intention, "old", edit).await?;
    scene.intend("new", to(&new, &one("web", "allow"))).await?;
    let lictor = scene
        .lictor_with(&["--policy=dry-run", "--log-format=json"])
        .await?;
    let would = async |destination: &str, what: &str| {
        until(&format!("it to say that it would {what}"), async || {
            let lines = json_lines(&lictor.log())?;
            let key = format!("{ENTRY}/{destination}");
            let says =
                |line: &Value| line["key"] == *key && line["message"] == format!("would {what}");
            ensure!(lines.iter().any(says), "{lines:#?}");
            Ok::<_, anyhow::Error>(())
        })
        .await
    };
    would(&old, "update sources").await?;
    would(&new, "create").await?;
    // What happens from now on is told too.
    scene.delete(Kind::Intention, "old").await?;
    would(&old, "delete").await?;
    lictor.idle().await?;
    assert_eq!(scene.config_entry(ENTRY, &old).await?, before);
    ensure!(scene.config_entry(ENTRY, &new).await?.is_null());
    let puts = ["endpoint=\"config\""];
    let puts = lictor.metric("lictor_consul_requests_total", &puts).await?;
    assert!(puts == 0.0, "{puts} writes");
    Ok(())
}

#[tokio::test]
async fn a_paused_intention_is_held_as_it_is_and_its_deletion_is_heeded() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    let two = json!([{"name": "web", "action": "allow"}, {"name": "api", "action": "allow"}]);
    scene.intend("shop", to(&payment, &two)).await?;
    scene.is_ready("shop").await?;
    let pause = |value: Option<&str>, sources: &Value| json!({"metadata": {"annotations": {"lictor.io/paused": value}}, "spec": {"sources": sources}});
    let edit = pause(Some("true"), &one("web", "deny"));
    scene.change(Kind::Intention, "shop", edit).await?;
    scene.is_not("shop", "Paused").await?;
    // Another one gets what is free, and not what is held.
    let theirs = json!([{"name": "web", "action": "deny"}, {"name": "db", "action": "allow"}]);
    scene.intend("other", to(&payment, &theirs)).await?;
    let held = ["api allow", "db allow", "web allow"];
    scene.sources_are(&payment, &held).await?;
    let message = scene.is_not("other", "Conflict").await?;
    ensure!(message.contains("/shop"), "{message}");
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    scene.barrier().await?;
    lictor.idle().await?;
    assert_eq!(
        sources_of(&scene.config_entry(ENTRY, &payment).await?),
        held
    );

    let edit = pause(None, &one("api", "deny"));
    scene.change(Kind::Intention, "shop", edit).await?;
    let free = ["api deny", "db allow", "web deny"];
    scene.sources_are(&payment, &free).await?;
    scene.is_ready("other").await?;
    let edit = pause(Some("true"), &one("api", "allow"));
    scene.change(Kind::Intention, "shop", edit).await?;
    scene.is_not("shop", "Paused").await?;
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .sources_are(&payment, &["db allow", "web deny"])
        .await?;
    Ok(())
}

/// Namespaces that are left out have no claims; what they had is removed when that is confirmed.
#[tokio::test]
async fn an_excluded_namespace_has_no_claims() -> Result<()> {
    let scene = Scene::new().await?;
    let out = format!("{}-out", scene.namespace);
    scene.create_namespace(&out).await?;
    let (ours, theirs) = (scene.named("ours"), scene.named("theirs"));
    let api = |namespace: &str| scene.objects_in(Kind::Intention, namespace);
    let apply = async |namespace: &str, name: &str, spec: Value| -> Result<()> {
        let object = json!({"apiVersion": "lictor.io/v1alpha1", "kind": "Intention",
                            "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("test").force();
        api(namespace)
            .patch(name, &params, &Patch::Apply(object))
            .await?;
        Ok(())
    };
    let lictor = scene.lictor().await?;
    scene.intend("in", to(&ours, &one("web", "allow"))).await?;
    for n in 0..3 {
        scene
            .intend(
                &format!("more-{n}"),
                to(&scene.named(&format!("m{n}")), &one("web", "allow")),
            )
            .await?;
    }
    apply(&out, "out", to(&theirs, &one("web", "allow"))).await?;
    scene.sources_are(&theirs, &["web allow"]).await?;
    scene.sources_are(&ours, &["web allow"]).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let exclude = format!("--exclude-namespace={out}");
    let lictor = scene.lictor_with(&[&exclude]).await?;
    lictor.shows("lictor_held_deletes", 1.0).await?;
    // It is edited and nobody minds.
    apply(&out, "out", to(&ours, &one("api", "allow"))).await?;
    scene.barrier().await?;
    lictor.idle().await?;
    assert_eq!(
        sources_of(&scene.config_entry(ENTRY, &ours).await?),
        ["web allow"]
    );
    scene.sources_are(&theirs, &["web allow"]).await?;
    scene.goes_confirmed(&theirs).await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    let status = scene.is_ready("in").await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    Ok(())
}
