//! `lictor` ends and starts again.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::{Annotated as _, Oracle, Scene};

#[tokio::test]
async fn what_went_while_it_was_down_is_removed_and_the_rest_stays() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    for name in ["stays", "goes", "ends", "anew"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let db = format!("{}.{}.db.db.a", scene.cluster, scene.namespace);
    scene.instance_id("db", &db, |_| true).await?;
    let stays = scene.find("web", "stays").await?;
    let anew = scene.status("web", "anew", "passing").await?;
    lictor.idle().await?;
    let ids = [scene.id("web", "stays"), scene.id("web", "anew")];
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;

    lictor.kill();
    scene.pod("goes").finish_deletion(&scene.client).await?;
    scene.pod("ends").phase(&scene.client, "Failed").await?;
    scene.unregister("db").await?;
    // A pod of the same name on the same node, as a StatefulSet makes it, is an update in place.
    scene.pod("anew").finish_deletion(&scene.client).await?;
    let again = scene.pod("anew").ip("10.9.77.7").lictor("service", "web");
    again.create_ready(&scene.client).await?;
    let _lictor = scene.lictor().await?;
    scene.gone("web", "goes").await?;
    scene.gone("web", "ends").await?;
    scene.gone_id("db", &db).await?;
    let seen = scene
        .instance("web", "anew", |seen| seen.address == "10.9.77.7")
        .await?;
    assert_eq!(seen.create_index, anew.create_index);
    assert_eq!(seen.meta["lictor-uid"], scene.uid("anew").await?);
    assert_eq!(scene.find("web", "stays").await?, stays);
    oracle.verdict().await
}

#[tokio::test]
async fn a_restart_writes_nothing_but_the_epoch() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let two = scene
        .pod("two")
        .port("admin", 9090)
        .ips(["10.9.70.1", "fd00:70::1"]);
    let two = two
        .label("version", "v1")
        .lictor("service", "web,api")
        .lictor("tags", "b,a,v-${pod.labels['version']}")
        .lictor("meta", "x=$$,y=${pod.name}")
        .lictor("port.api", "admin")
        .lictor("weight", "3");
    two.create_ready(&scene.client).await?;
    let unready = scene.pod("unready").lictor("service", "web");
    unready.create(&scene.client).await?;
    unready
        .waiting(&scene.client, "app", "CrashLoopBackOff")
        .await?;
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}], "tags": ["t"]}),
        )
        .await?;
    scene
        .register("all", json!({"service": "all", "selector": {}}))
        .await?;
    scene.status("web", "unready", "critical").await?;
    scene.status("api", "two", "passing").await?;
    let done = |status: &serde_json::Value| status["instances"]["summary"] == "2/2";
    scene.registration("all", done).await?;
    scene
        .registration("db", |status| status["instances"]["summary"] == "1/1")
        .await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let before = scene.dump().await?;
    let object = scene.registrations().get("db").await?;

    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    assert!(
        operations == 0.0,
        "{operations} operations\n{}",
        lictor.http("/metrics").await?.1
    );
    // Whatever still comes must come before this.
    scene.barrier().await?;
    let created = lictor
        .metric("lictor_operations_total", &["create"])
        .await?;
    let all = lictor.metric("lictor_operations_total", &[]).await?;
    assert!(
        (created - all).abs() < f64::EPSILON,
        "{}",
        lictor.http("/metrics").await?.1
    );
    // Nor was any status written: the other one counts the barrier's pod too.
    let after = scene.registrations().get("db").await?;
    assert_eq!(
        after.metadata.resource_version,
        object.metadata.resource_version
    );
    Ok(())
}

/// What this process did not see going is found, by what Consul holds.
#[tokio::test]
async fn a_move_to_another_node_while_it_was_down() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.kill();
    pod.finish_deletion(&scene.client).await?;
    let other = format!("{}-other", scene.node);
    let moved = scene
        .pod("web-0")
        .node(&other)
        .host_ips(["172.31.8.8"])
        .lictor("service", "web");
    moved.create_ready(&scene.client).await?;
    let _lictor = scene.lictor().await?;
    let node = format!("lictor-{}--{other}", scene.cluster);
    crate::support::until("the instance to be on the new node alone", async || {
        let all = scene.consul.health("web").await?;
        let id = scene.id("web", "web-0");
        let on: Vec<_> = all
            .iter()
            .filter(|one| one["Service"]["ID"] == *id)
            .collect();
        ensure!(on.len() == 1 && on[0]["Node"]["Node"] == *node, "{on:#?}");
        Ok(())
    })
    .await
}
