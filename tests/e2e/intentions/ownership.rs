//! What is another's in Consul is not touched.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{ENTRY, audit, one, to};
use crate::support::{Kind, Scene, condition, sources_of, until};

fn entry(destination: &str, meta: &Value) -> Value {
    json!({"Kind": ENTRY, "Name": destination, "Meta": meta,
           "Sources": [{"Name": "theirs", "Action": "deny", "Description": "by hand"}]})
}

/// Marks of others, with what the condition says of them.
fn holders(cluster: &str) -> [(&'static str, Value, &'static str); 5] {
    [
        ("hand", json!({}), "without marks"),
        (
            "consul-k8s",
            json!({"consul.hashicorp.com/source-datacenter": "dc1", "external-source": "kubernetes"}),
            "consul-k8s",
        ),
        (
            "cluster",
            json!({"lictor-cluster": "somebody-else", "external-source": "kubernetes",
                   "lictor-src-0": "shop/one=theirs"}),
            "somebody-else",
        ),
        ("nomad", json!({"external-source": "nomad"}), "nomad"),
        (
            "half",
            json!({"external-source": "kubernetes", "lictor-cluster": cluster, "team": "x"}),
            "incomplete marks",
        ),
    ]
}

#[tokio::test]
async fn entries_of_others_stay_as_they_are_to_the_byte() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let mut before = Vec::new();
    for (name, meta, _) in holders(&scene.cluster) {
        let destination = scene.named(name);
        scene.entry_by_hand(&entry(&destination, &meta)).await?;
        before.push(scene.config_entry(ENTRY, &destination).await?);
    }
    let still = async || -> Result<()> {
        for ((name, ..), before) in holders(&scene.cluster).iter().zip(&before) {
            let now = scene.config_entry(ENTRY, &scene.named(name)).await?;
            assert_eq!(now, *before);
        }
        Ok(())
    };
    for (name, _, holder) in holders(&scene.cluster) {
        let spec = to(&scene.named(name), &one("web", "allow"));
        scene.intend(name, spec).await?;
        let message = scene.is_not(name, "OwnedByAnother").await?;
        ensure!(message.contains(holder), "{message}");
        scene.event("OwnedByAnother", name, holder).await?;
        let status = scene.shown(Kind::Intention, name, |_| true).await?;
        assert_eq!(status["sources"]["foreign"], 1, "{status:#}");
    }
    lictor.shows("lictor_conflicts", 5.0).await?;
    still().await?;
    // Whether they come or go, and over a restart.
    lictor.stop().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene.is_not("hand", "OwnedByAnother").await?;
    scene.delete(Kind::Intention, "cluster").await?;
    scene.barrier().await?;
    lictor.idle().await?;
    still().await?;
    // What its holder removes is free.
    let freed = scene.named("nomad");
    scene.entry_away(ENTRY, &freed).await?;
    scene.sources_are(&freed, &["web allow"]).await?;
    scene.is_ready("nomad").await?;
    Ok(())
}

#[tokio::test]
async fn only_what_nobody_owns_is_taken_over() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let both = json!([{"name": "web", "action": "allow"}, {"name": "theirs", "action": "allow"}]);
    for (name, meta, _) in holders(&scene.cluster) {
        let destination = scene.named(name);
        scene.entry_by_hand(&entry(&destination, &meta)).await?;
        let mut spec = to(&destination, &both);
        spec["adopt"] = true.into();
        scene.intend(name, spec).await?;
    }
    let taken = scene.named("hand");
    let entry = scene
        .sources_are(&taken, &["theirs allow", "web allow"])
        .await?;
    assert_eq!(entry["Meta"]["lictor-cluster"], scene.cluster);
    scene.is_ready("hand").await?;
    for (name, _, holder) in &holders(&scene.cluster)[1..] {
        let message = scene.is_not(name, "OwnedByAnother").await?;
        ensure!(message.contains(holder), "{message}");
        let left = scene.config_entry(ENTRY, &scene.named(name)).await?;
        assert_eq!(sources_of(&left), ["theirs deny"]);
    }
    // What was taken over goes with its Intention.
    scene.delete(Kind::Intention, "hand").await?;
    scene.config_entry_is(ENTRY, &taken, Value::is_null).await?;
    lictor.idle().await
}

#[tokio::test]
async fn sources_of_others_in_our_entry_are_kept_and_counted() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene
        .lictor_with(&["--drift-interval=1s", "--log-format=json"])
        .await?;
    let payment = scene.named("payment");
    scene
        .intend("shop", to(&payment, &one("web", "allow")))
        .await?;
    let ours = scene.sources_are(&payment, &["web allow"]).await?;
    scene.is_ready("shop").await?;
    lictor.idle().await?;
    let mut shared =
        json!({"Kind": ENTRY, "Name": payment, "Sources": ours["Sources"], "Meta": ours["Meta"]});
    let theirs = json!({"Name": "theirs", "Action": "deny", "Description": "by hand"});
    shared["Sources"].as_array_mut().unwrap().push(theirs);
    shared["Meta"]["team"] = "red".into();
    scene.entry_by_hand(&shared).await?;
    scene
        .shown(Kind::Intention, "shop", |status| {
            status["sources"] == json!({"desired": 1, "applied": 1, "foreign": 1, "summary": "1/1"})
        })
        .await?;
    let drift = lictor.metric("lictor_drift_total", &[]).await?;
    assert!(drift == 0.0, "{drift}: it is no drift");
    // An Intention that asks for it does not get it.
    scene
        .intend("wants", to(&payment, &one("theirs", "allow")))
        .await?;
    scene.is_not("wants", "OwnedByAnother").await?;
    scene.delete(Kind::Intention, "wants").await?;
    // With what is ours goes only that, and our marks.
    scene.delete(Kind::Intention, "shop").await?;
    let left = scene.sources_are(&payment, &["theirs deny"]).await?;
    assert_eq!(left["Meta"], json!({"team": "red"}));
    assert_eq!(left["Sources"][0]["Description"], "by hand");
    // It is written once Consul has answered, which may show what is left before.
    let lines = until("the line of the audit log", async || {
        let lines = audit(&lictor)?;
        ensure!(lines.len() == 1, "{lines:#?}");
        anyhow::Ok(lines)
    })
    .await?;
    assert_eq!(lines[0]["kind"], "intention");
    assert_eq!(lines[0]["key"], format!("{ENTRY}/{payment}: web"));
    // It is somebody else's entry from now on, over a restart as well.
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    scene
        .intend("again", to(&payment, &one("web", "allow")))
        .await?;
    scene.is_not("again", "OwnedByAnother").await?;
    assert_eq!(scene.config_entry(ENTRY, &payment).await?, left);
    lictor.idle().await
}

/// A write of what was known a moment ago is not taken: what another hand adds then is in neither.
#[tokio::test]
async fn what_another_hand_adds_at_the_same_moment_is_not_lost() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let payment = scene.named("payment");
    scene
        .intend("shop", to(&payment, &one("web", "allow")))
        .await?;
    scene.is_ready("shop").await?;
    let add = async |n: usize| {
        until("what is added to be taken", async || {
            let mut entry = scene.config_entry(ENTRY, &payment).await?;
            let path = format!("/v1/config?cas={}", entry["ModifyIndex"]);
            let theirs = json!({"Name": format!("theirs-{n:02}"), "Action": "deny"});
            entry["Sources"].as_array_mut().unwrap().push(theirs);
            let fields = entry.as_object_mut().unwrap();
            fields.retain(|key, _| !key.ends_with("Index") && key != "Hash");
            let taken = scene.consul.put(&path, &entry).await?;
            ensure!(taken == true, "{taken}");
            anyhow::Ok(())
        })
        .await
    };
    let mut wanted = Vec::new();
    for n in 0..20 {
        let action = if n % 2 == 0 { "deny" } else { "allow" };
        let edit = json!({"spec": {"sources": one("web", action)}});
        let edit = scene.change(Kind::Intention, "shop", edit);
        tokio::try_join!(add(n), edit)?;
        wanted.push(format!("theirs-{n:02} deny"));
    }
    wanted.push("web allow".to_owned());
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    scene.sources_are(&payment, &wanted).await?;
    scene
        .shown(Kind::Intention, "shop", |status| {
            status["sources"]["foreign"] == 20 && condition(status, "Ready").0 == "True"
        })
        .await?;
    lictor.idle().await
}

/// Two clusters with one Consul; here they even see the same objects.
#[tokio::test]
async fn clusters_leave_each_others_entries_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor().await?;
    let payment = scene.named("payment");
    scene
        .intend("shop", to(&payment, &one("web", "allow")))
        .await?;
    let before = scene.sources_are(&payment, &["web allow"]).await?;
    scene.is_ready("shop").await?;
    first.stop().await?;
    let second = scene
        .lictor_with_cluster(&format!("{}-2", scene.cluster))
        .await?;
    let message = scene.is_not("shop", "OwnedByAnother").await?;
    ensure!(message.contains(&scene.cluster), "{message}");
    scene.delete(Kind::Intention, "shop").await?;
    scene
        .intend("other", to(&payment, &one("api", "allow")))
        .await?;
    scene.is_not("other", "OwnedByAnother").await?;
    second.idle().await?;
    assert_eq!(scene.config_entry(ENTRY, &payment).await?, before);
    Ok(())
}
