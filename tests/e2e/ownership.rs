//! What is another's is never touched.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Scene, condition, until};

#[tokio::test]
async fn hand_made_entries_stay_as_they_are_to_the_byte() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let ours = scene.status("web", "web-0", "passing").await?;

    // One under the same service name on a node of their own, one on our synthetic node, and one
    // there that has copied the marks of ours.
    let other_node = format!("hand-{}", scene.cluster);
    let hand = json!({
        "Node": other_node, "Address": "10.77.0.1",
        "Service": {"ID": "hand-1", "Service": "web", "Address": "10.77.0.1", "Port": 80,
                    "Tags": ["z", "a"], "Meta": {"who": "me"}},
        "Check": {"CheckID": "hand-1-check", "Name": "mine", "ServiceID": "hand-1", "Status": "warning"},
    });
    scene.by_hand(&hand).await?;
    let id = format!("hand-{}", scene.cluster);
    let on_ours = json!({
        "Node": scene.consul_node(), "SkipNodeUpdate": true,
        "Service": {"ID": id, "Service": "web", "Address": "10.77.0.2", "Port": 81},
    });
    scene.by_hand(&on_ours).await?;
    let copy = format!("copy-{}", scene.cluster);
    let mut service = ours.raw["Service"].clone();
    service["ID"] = json!(copy);
    let copied = json!({"Node": scene.consul_node(), "SkipNodeUpdate": true, "Service": service});
    scene.by_hand(&copied).await?;

    let foreign = async || -> Result<Vec<Value>> {
        let other = scene
            .consul
            .get(&format!("/v1/catalog/node/{other_node}?consistent"))
            .await?;
        let checks = scene
            .consul
            .get(&format!("/v1/health/node/{other_node}?consistent"))
            .await?;
        let ours = scene
            .consul
            .get(&format!(
                "/v1/catalog/node/{}?consistent",
                scene.consul_node()
            ))
            .await?;
        let services = &ours["Services"];
        Ok(vec![
            other,
            checks,
            services[&id].clone(),
            services[&copy].clone(),
        ])
    };
    let before = foreign().await?;
    ensure!(before.iter().all(|entry| !entry.is_null()), "{before:#?}");

    // All that Lictor does goes by: an update, drift beside them, removals, a restart.
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v2"])
        .await?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": ours.id});
    scene.away_by_hand(&away).await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v2"])
        .await?;
    lictor.stop().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    scene.barrier().await?;
    lictor.idle().await?;
    assert_eq!(foreign().await?, before);
    Ok(())
}

#[tokio::test]
async fn an_id_that_another_holds_is_left_and_taken_when_it_is_free() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    // The node exists, so that the other hand can put something on it.
    scene.barrier().await?;
    let id = scene.id("web", "web-0");
    let taken = json!({
        "Node": scene.consul_node(), "SkipNodeUpdate": true,
        "Service": {"ID": id, "Service": "web", "Address": "10.77.0.3", "Port": 99,
                    "Meta": {"managed-by": "somebody"}},
    });
    scene.by_hand(&taken).await?;
    let before = scene.instance("web", "web-0", |_| true).await?;
    let pod = scene
        .pod("web-0")
        .label("app", "web")
        .lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let event = scene.event("OwnedByAnother", "web-0", &id).await?;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    ensure!(
        event.note.as_deref().unwrap().contains("somebody"),
        "{event:?}"
    );
    // A registration of it shows the same in its status.
    scene
        .register("web", json!({"selector": {"matchLabels": {"app": "web"}}}))
        .await?;
    let status = scene
        .registration("web", |status| {
            condition(status, "Ready").1 == "OwnedByAnother"
        })
        .await?;
    ensure!(
        condition(&status, "Ready").2.contains("somebody"),
        "{status:#}"
    );
    assert_eq!(status["instances"]["summary"], "0/1");
    scene.barrier().await?;
    assert_eq!(scene.find("web", "web-0").await?.as_ref(), Some(&before));

    scene
        .away_by_hand(&json!({"Node": scene.consul_node(), "ServiceID": id}))
        .await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    assert_eq!(
        (seen.port, &*seen.meta["lictor-cluster"]),
        (8080, &*scene.cluster)
    );
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_node_of_another_cluster_is_left_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let node = json!({
        "Node": scene.consul_node(), "Address": "10.77.0.4",
        "NodeMeta": {"lictor-cluster": "somebody-else", "external-source": "kubernetes"},
    });
    scene.by_hand(&node).await?;
    let before = scene.dump().await?;
    let _lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene
        .pod("web-0")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    scene
        .event("OwnedByAnother", "web-0", "somebody-else")
        .await?;
    assert_eq!(scene.dump().await?, before);
    scene
        .away_by_hand(&json!({"Node": scene.consul_node()}))
        .await?;
    scene.status("web", "web-0", "passing").await?;
    Ok(())
}

/// Two clusters with one Consul; here they even see the same pods.
#[tokio::test]
async fn clusters_leave_each_others_entries_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.lictor().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let ours = scene.status("web", "web-0", "passing").await?;
    first.stop().await?;
    let before = scene.dump().await?;

    let other = format!("{}-2", scene.cluster);
    let second = scene.lictor_with_cluster(&other).await?;
    let id = format!("{other}.{}.web.web-0", scene.namespace);
    scene
        .instance_id("web", &id, |seen| seen.status == "passing")
        .await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone_id("web", &id).await?;
    second.idle().await?;
    let now = scene.dump().await?;
    assert_eq!(before, now);
    assert_eq!(scene.find("web", "web-0").await?.as_ref(), Some(&ours));
    // Whose it is removes it, as soon as it is back.
    let _first = scene.lictor().await?;
    scene.gone("web", "web-0").await?;
    Ok(())
}

#[tokio::test]
async fn maintenance_set_by_an_operator_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene
        .pod("web-0")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    let id = format!("_service_maintenance:{}", seen.id);
    let check = json!({
        "Node": seen.node, "SkipNodeUpdate": true,
        "Check": {"CheckID": id, "Name": "Service Maintenance Mode", "ServiceID": seen.id,
                  "Status": "critical", "Notes": "on purpose"},
    });
    scene.by_hand(&check).await?;
    let before = scene
        .instance("web", "web-0", |seen| !seen.check(&id).is_null())
        .await?;
    scene.annotate("web-0", &[("meta", Some("a=b"))]).await?;
    let after = scene
        .instance("web", "web-0", |seen| seen.meta.contains_key("a"))
        .await?;
    assert_eq!(after.check(&id), before.check(&id));
    // It is no drift either: only a look at the whole node tells.
    until("another hand's check to be seen", async || {
        let drift = lictor.metric("lictor_drift_total", &[]).await?;
        ensure!(drift == 0.0, "it counts as drift");
        let looks = lictor.metric("lictor_consul_requests_total", &[]).await?;
        ensure!(looks > 0.0);
        Ok(())
    })
    .await
}

/// The usual edit by hand, a register without meta, erases the marks.
#[tokio::test]
async fn entries_that_lost_their_marks_are_repaired() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1", "port": 1}]}),
        )
        .await?;
    let db = format!("{0}.{1}.db.db.a", scene.cluster, scene.namespace);
    scene.instance_id("db", &db, |_| true).await?;
    let ids = [("web", scene.id("web", "web-0")), ("db", db)];
    for round in ["service", "node", "both"] {
        for (service, id) in &ids {
            lictor.idle().await?;
            let before = scene.instance_id(service, id, |_| true).await?;
            let mut entry = json!({
                "Node": before.node, "Address": before.raw["Node"]["Address"],
                "Service": {"ID": id, "Service": service, "Address": "10.66.6.6", "Port": 666},
            });
            if round == "service" {
                entry["SkipNodeUpdate"] = json!(true);
            }
            if round == "node" {
                entry["Service"] = Value::Null;
            }
            scene.by_hand(&entry).await?;
            let after = scene
                .instance_id(service, id, |seen| {
                    seen.meta == before.meta
                        && seen.address == before.address
                        && seen.raw["Node"]["Meta"] == before.raw["Node"]["Meta"]
                })
                .await
                .map_err(|error| error.context(format!("{round} of {service}")))?;
            assert_eq!(after.create_index, before.create_index);
        }
    }
    scene
        .event("DriftRepaired", "web-0", "by another hand")
        .await?;
    // An entry that takes its place was never ours.
    let away = json!({"Node": scene.consul_node(), "ServiceID": ids[0].1});
    lictor.pause()?;
    scene.away_by_hand(&away).await?;
    let taken = json!({
        "Node": scene.consul_node(), "SkipNodeUpdate": true,
        "Service": {"ID": ids[0].1, "Service": "web", "Address": "10.77.0.9", "Port": 9},
    });
    scene.by_hand(&taken).await?;
    lictor.resume()?;
    scene
        .event("OwnedByAnother", "web-0", "without marks")
        .await?;
    let seen = scene.instance("web", "web-0", |_| true).await?;
    assert_eq!((&*seen.address, seen.port), ("10.77.0.9", 9));
    Ok(())
}

#[tokio::test]
async fn only_what_has_no_owner_is_adopted_and_only_on_request() -> Result<()> {
    let scene = Scene::new().await?;
    // The Consul node must be ours, so that what stands on it may be.
    let lictor = scene.lictor().await?;
    scene.barrier().await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let entries = [
        ("plain", json!({"team": "shop"})),
        ("nomad", json!({"external-source": "nomad"})),
        (
            "mesh",
            json!({"managed-by": "consul-k8s-endpoints-controller"}),
        ),
        ("other", json!({"lictor-cluster": "another"})),
    ];
    let spec = |adopt: bool| json!({"selector": {"matchLabels": {"app": "web"}}, "adopt": adopt});
    for (name, meta) in &entries {
        let entry = json!({
            "Node": scene.consul_node(), "SkipNodeUpdate": true,
            "Service": {"ID": scene.id("web", name), "Service": "web", "Address": "10.77.1.1",
                        "Port": 99, "Meta": meta},
        });
        scene.by_hand(&entry).await?;
        let pod = scene.pod(name).label("app", "web");
        pod.create_ready(&scene.client).await?;
    }
    let mut before = Vec::new();
    for (name, _) in &entries {
        before.push(scene.instance("web", name, |_| true).await?);
    }
    scene.register("web", spec(false)).await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene
        .registration("web", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "OwnedByAnother" && message.contains("3 more")
        })
        .await?;
    scene.barrier().await?;
    for ((name, _), before) in entries.iter().zip(&before) {
        assert_eq!(scene.find("web", name).await?.as_ref(), Some(before));
    }

    scene.edit("web", json!({"spec": spec(true)})).await?;
    let seen = scene.status("web", "plain", "passing").await?;
    assert_eq!(seen.create_index, before[0].create_index);
    assert_eq!(
        (seen.port, &*seen.meta["lictor-cluster"]),
        (8080, &*scene.cluster)
    );
    ensure!(!seen.meta.contains_key("team"), "{seen:#?}");
    scene
        .registration("web", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "OwnedByAnother" && message.contains("2 more")
        })
        .await?;
    scene.barrier().await?;
    lictor.idle().await?;
    for ((name, _), before) in entries.iter().zip(&before).skip(1) {
        assert_eq!(scene.find("web", name).await?.as_ref(), Some(before));
    }
    // What was adopted is ours for good, and goes like any other.
    scene.edit("web", json!({"spec": spec(false)})).await?;
    scene.pod("plain").finish_deletion(&scene.client).await?;
    scene.gone("web", "plain").await
}

#[tokio::test]
async fn maintenance_stays_through_all_repairs() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    let service = format!("_service_maintenance:{}", seen.id);
    let of_service = json!({
        "Node": seen.node, "SkipNodeUpdate": true,
        "Check": {"CheckID": service, "Name": "Service Maintenance Mode", "ServiceID": seen.id,
                  "Status": "critical", "Notes": "on purpose"},
    });
    let of_node = json!({
        "Node": seen.node, "SkipNodeUpdate": true,
        "Check": {"CheckID": "_node_maintenance", "Name": "Node Maintenance Mode",
                  "Status": "critical", "Notes": "on purpose"},
    });
    scene.by_hand(&of_service).await?;
    scene.by_hand(&of_node).await?;
    let checks = [&*service, "_node_maintenance"];
    let before = scene
        .instance("web", "web-0", |seen| {
            checks.iter().all(|id| !seen.check(id).is_null())
        })
        .await?;
    lictor.idle().await?;
    let unmarked = json!({
        "Node": seen.node, "Address": "10.66.6.6",
        "Service": {"ID": seen.id, "Service": "web", "Address": "10.66.6.6", "Port": 666},
    });
    let mut status = before.check(&format!("{}:ready", seen.id)).clone();
    status["Status"] = json!("critical");
    let status = json!({"Node": seen.node, "SkipNodeUpdate": true, "Check": status});
    let mut node = before.check("lictor-node").clone();
    node["Status"] = json!("critical");
    let node = json!({"Node": seen.node, "SkipNodeUpdate": true, "Check": node});
    for hand in [unmarked, status, node] {
        scene.by_hand(&hand).await?;
        let after = scene
            .instance("web", "web-0", |seen| {
                seen.meta == before.meta
                    && seen.raw["Node"]["Meta"] == before.raw["Node"]["Meta"]
                    && (&*seen.status, &*seen.node_status) == ("passing", "passing")
            })
            .await?;
        for id in checks {
            assert_eq!(after.check(id), before.check(id), "{hand}");
        }
        lictor.idle().await?;
    }
    // And through what Kubernetes changes, and a start.
    pod.not_ready(&scene.client, "app").await?;
    scene.status("web", "web-0", "critical").await?;
    lictor.stop().await?;
    pod.running_ready(&scene.client).await?;
    let _lictor = scene.lictor().await?;
    let after = scene.status("web", "web-0", "passing").await?;
    for id in checks {
        assert_eq!(after.check(id), before.check(id));
    }
    Ok(())
}
