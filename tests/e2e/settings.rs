//! Settings that change without a restart: keys in Consul that win over flags.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::leader::{AFTER_STOP, epoch, follows, lease, pair, stands_by};
use crate::support::{Annotated as _, Instance, Lictor, Oracle, Scene, until};

fn key(scene: &Scene, name: &str) -> String {
    format!("lictor/v1/{}/config/{name}", scene.cluster)
}

async fn put(scene: &Scene, name: &str, text: &str) -> Result<()> {
    scene.consul.put_text(&key(scene, name), text).await
}

async fn remove(scene: &Scene, name: &str) -> Result<()> {
    let path = format!("/v1/kv/{}", key(scene, name));
    scene.consul.delete(&path).await.map(drop)
}

/// Waits until `/readyz?verbose` has this line.
async fn says(lictor: &Lictor, line: &str) -> Result<()> {
    until(&format!("{line:?} to be in force"), async || {
        let (status, text) = lictor.http("/readyz?verbose").await?;
        let found = text.lines().any(|one| one == format!("- {line}"));
        ensure!(found && status == 200, "{status}: {text}");
        Ok(())
    })
    .await
}

/// Waits until the log has a line with all of these.
async fn logs(lictor: &Lictor, texts: &[&str]) -> Result<()> {
    until(&format!("{texts:?} to be logged"), async || {
        let log = lictor.log();
        let has = |line: &str| texts.iter().all(|text| line.contains(text));
        ensure!(log.lines().any(has), "it is not");
        Ok(())
    })
    .await
}

async fn tags_by_hand(scene: &Scene, instance: &Instance, tag: &str) -> Result<()> {
    let service = &instance.raw["Service"];
    let entry = json!({
        "Node": instance.raw["Node"]["Node"], "SkipNodeUpdate": true,
        "Service": {
            "ID": service["ID"], "Service": service["Service"], "Port": service["Port"],
            "Address": service["Address"], "Meta": service["Meta"], "Tags": [tag],
        },
    });
    scene.by_hand(&entry).await
}

#[tokio::test]
async fn writes_are_stopped_and_go_on_by_a_key_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = |name: &str| scene.pod(name).lictor("service", "web");
    pod("web-0").create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    says(&lictor, "policy = sync").await?;

    put(&scene, "policy", "dry-run").await?;
    says(&lictor, "policy = dry-run (from Consul)").await?;
    let before = scene.dump().await?;
    pod("web-1").create_ready(&scene.client).await?;
    pod("web-0").not_ready(&scene.client, "app").await?;
    logs(&lictor, &["would register", "web-1"]).await?;
    logs(&lictor, &["would", "web-0"]).await?;
    assert_eq!(scene.dump().await?, before);
    let (_, text) = lictor.http("/readyz").await?;
    ensure!(
        text.contains("nothing is written: policy in Consul is dry-run"),
        "{text}"
    );

    // A start sees the key before it writes anything.
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    logs(&lictor, &["would register", "web-1"]).await?;
    assert_eq!(scene.dump().await?, before);

    remove(&scene, "policy").await?;
    scene.status("web", "web-1", "passing").await?;
    scene.status("web", "web-0", "critical").await?;
    says(&lictor, "policy = sync").await?;
    logs(&lictor, &["a setting changed", "policy", "flag"]).await?;
    pod("web-0").finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await
}

/// Of two, the one that leads goes on leading; the epoch that it has it does not use.
#[tokio::test]
async fn writes_that_a_key_stops_leave_the_leader_in_place() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[]).await?;
    let pod = |name: &str| scene.pod(name).lictor("service", "web");
    pod("web-0").create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    let ids = [scene.id("web", "web-0")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    put(&scene, "policy", "dry-run").await?;
    for lictor in [&first, &second] {
        says(lictor, "policy = dry-run (from Consul)").await?;
    }
    let (held, before) = (epoch(&scene).await?, scene.dump().await?);
    pod("web-1").create_ready(&scene.client).await?;
    logs(&first, &["would register", "web-1"]).await?;
    // For longer than a Lease lasts that is not renewed.
    let mut renewals = lease(&scene).await?.renew_time;
    for _ in 0..4 {
        renewals = until("the Lease to be renewed", async || {
            let spec = lease(&scene).await?;
            assert_eq!(spec.holder_identity.as_deref(), Some("first"));
            ensure!(spec.renew_time != renewals, "{renewals:?}");
            Ok(spec.renew_time)
        })
        .await?;
    }
    assert_eq!(scene.dump().await?, before);
    assert_eq!(epoch(&scene).await?, held);
    remove(&scene, "policy").await?;
    scene.status("web", "web-1", "passing").await?;
    assert_eq!(epoch(&scene).await?, held);
    stands_by(&second, "first").await?;

    // One that stops meanwhile is followed once writes go on.
    put(&scene, "policy", "dry-run").await?;
    for lictor in [&first, &second] {
        says(lictor, "policy = dry-run (from Consul)").await?;
    }
    first.stop().await?;
    pod("web-1").not_ready(&scene.client, "app").await?;
    logs(&second, &["would", "web-1"]).await?;
    assert_eq!(epoch(&scene).await?, held);
    remove(&scene, "policy").await?;
    follows(&scene, "second", AFTER_STOP).await?;
    scene.status("web", "web-1", "critical").await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_bad_value_is_refused_and_the_last_good_one_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--policy=upsert-only"]).await?;
    put(&scene, "drift-interval", "1h30m").await?;
    says(&lictor, "drift-interval = 5400s (from Consul)").await?;
    put(&scene, "drift-interval", "soon").await?;
    put(&scene, "policy", "sync").await?;
    put(&scene, "max-delete-percent", "31").await?;
    put(&scene, "max-delete-flor", "1").await?;
    for (name, why) in [
        ("drift-interval", "soon"),
        ("policy", "it can only be made stricter"),
        ("max-delete-percent", "--max-delete-percent 30"),
        ("max-delete-flor", "there is no such setting"),
    ] {
        logs(&lictor, &["WARN", &key(&scene, name), why]).await?;
        until("/readyz to say so", async || {
            let (status, text) = lictor.http("/readyz").await?;
            let told = |line: &str| line.contains(&key(&scene, name)) && line.contains(why);
            ensure!(status == 200 && text.lines().any(told), "{status}: {text}");
            Ok(())
        })
        .await?;
    }
    says(&lictor, "drift-interval = 5400s (from Consul)").await?;
    says(&lictor, "policy = upsert-only").await?;
    says(&lictor, "max-delete-percent = 30").await?;
    // Good keys beside bad ones count.
    put(&scene, "max-delete-floor", "1").await?;
    says(&lictor, "max-delete-floor = 1 (from Consul)").await
}

#[tokio::test]
async fn the_limits_of_removals_and_the_level_of_logs_change_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    ensure!(!lictor.log().contains(" DEBUG "), "debug lines by default");
    put(&scene, "log-level", "debug").await?;
    for name in ["web-0", "web-1", "web-2", "web-3"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    logs(&lictor, &[" DEBUG "]).await?;
    put(&scene, "max-delete-percent", "10").await?;
    put(&scene, "max-delete-floor", "0").await?;
    says(&lictor, "max-delete-floor = 0 (from Consul)").await?;
    lictor.stop().await?;
    for name in ["web-0", "web-1"] {
        scene.pod(name).finish_deletion(&scene.client).await?;
    }
    // By the flags these two would go.
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_held_deletes", 2.0).await?;
    ensure!(
        scene.find("web", "web-0").await?.is_some(),
        "it was removed"
    );
    // Laxer limits release nothing that is held.
    remove(&scene, "max-delete-percent").await?;
    remove(&scene, "max-delete-floor").await?;
    says(&lictor, "max-delete-floor = 10").await?;
    lictor.idle().await?;
    lictor.shows("lictor_held_deletes", 2.0).await?;
    ensure!(
        scene.find("web", "web-0").await?.is_some(),
        "it was removed"
    );
    Ok(())
}

#[tokio::test]
async fn what_went_with_all_of_consul_stays_in_force_until_a_restart() -> Result<()> {
    let scene = Scene::new().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.lictor("tags", "ours")
        .create_ready(&scene.client)
        .await?;
    put(&scene, "drift", "report").await?;
    scene.lictor().await?.stop().await?;
    // The epoch that its predecessor took is there from the start.
    let lictor = scene.lictor().await?;
    let there = scene.status("web", "web-0", "passing").await?;
    says(&lictor, "drift = report (from Consul)").await?;
    let all = format!("/v1/kv/lictor/v1/{}/?recurse", scene.cluster);
    scene.consul.delete(&all).await?;
    says(&lictor, "drift = report (from Consul, which lost it)").await?;
    // Where the epoch was lost all is read and repaired once, whatever the mode.
    until("the epoch to be taken anew", async || {
        let epoch = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
        ensure!(
            scene.consul.find(&epoch).await?.is_some(),
            "it is not there"
        );
        Ok(())
    })
    .await?;
    scene.barrier().await?;
    lictor.idle().await?;
    tags_by_hand(&scene, &there, "theirs").await?;
    until("the drift to be counted", async || {
        let drift = lictor.metric("lictor_drift_total", &["instance"]).await?;
        ensure!(drift >= 1.0, "{drift}");
        Ok(())
    })
    .await?;
    scene.barrier().await?;
    let now = scene.status("web", "web-0", "passing").await?;
    assert_eq!(now.tags, ["theirs"]);
    // It is there again, and goes alone: then somebody removed it.
    put(&scene, "drift", "report").await?;
    says(&lictor, "drift = report (from Consul)").await?;
    remove(&scene, "drift").await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["ours"])
        .await?;
    says(&lictor, "drift = repair").await
}
