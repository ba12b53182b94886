//! Kubernetes nodes as Consul shows them.

use std::time::Duration;

use anyhow::{Result, ensure};
use lictor_testbed::kubelet::TestNode;
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::support::{Annotated as _, Installed, Scene, condition};

#[tokio::test]
async fn a_node_that_is_not_ready_takes_out_its_instances_with_one_check() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    for name in ["web-0", "web-1"] {
        let pod = scene.pod(name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
    }
    let spec = json!({"service": "web", "selector": {}});
    scene.register("web", spec).await?;
    scene
        .registration("web", |status| status["instances"]["passing"] == 2)
        .await?;
    let passing = async || -> Result<usize> {
        let all = scene
            .consul
            .get("/v1/health/service/web?passing&consistent")
            .await?;
        let ours = all.as_array().unwrap().iter();
        Ok(ours
            .filter(|one| one["Node"]["Node"] == *scene.consul_node())
            .count())
    };
    assert_eq!(passing().await?, 2);

    let node = scene.kubernetes_node();
    for (status, output) in [
        ("False", "KubeletNotReady"),
        ("Unknown", "NodeStatusUnknown"),
    ] {
        let before = scene.find("web", "web-0").await?.unwrap();
        node.ready(&scene.client, status).await?;
        let seen = scene
            .instance("web", "web-0", |seen| seen.node_status == "critical")
            .await?;
        let text = seen.check("lictor-node")["Output"].as_str().unwrap();
        ensure!(
            text.contains(output) && text.contains(&scene.node),
            "{text}"
        );
        assert_eq!(passing().await?, 0);
        // The instances themselves were not written.
        assert_eq!(seen.raw["Service"], before.raw["Service"]);
        assert_eq!((&*seen.status, &*before.status), ("passing", "passing"));
        // The worst of all checks counts in the status.
        scene
            .registration("web", |status| status["instances"]["critical"] == 2)
            .await?;
        node.ready(&scene.client, "True").await?;
        scene
            .instance("web", "web-0", |seen| seen.node_status == "passing")
            .await?;
        assert_eq!(passing().await?, 2);
        scene
            .registration("web", |status| status["instances"]["passing"] == 2)
            .await?;
    }

    node.delete(&scene.client).await?;
    let seen = scene
        .instance("web", "web-0", |seen| seen.node_status == "critical")
        .await?;
    let text = seen.check("lictor-node")["Output"].as_str().unwrap();
    ensure!(text.contains("does not exist"), "{text}");
    // Only its pods' end removes instances.
    assert_eq!(seen.status, "passing");
    node.create(&scene.client).await?;
    scene
        .instance("web", "web-0", |seen| seen.node_status == "passing")
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_went_while_it_was_down_takes_out_its_instances() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let passing = |seen: &crate::support::Instance| seen.node_status == "passing";
    scene.instance("web", "web-0", passing).await?;
    lictor.stop().await?;
    let node = scene.kubernetes_node();
    node.delete(&scene.client).await?;
    let lictor = scene.lictor().await?;
    let started = Instant::now();
    scene
        .instance("web", "web-0", |seen| seen.node_status == "critical")
        .await?;
    let took = started.elapsed();
    // Lists that are to confirm something come 30 s apart: none was waited for.
    ensure!(took < Duration::from_secs(25), "{took:?}");
    lictor.shows("lictor_held_nodes", 0.0).await?;
    node.create(&scene.client).await?;
    scene.instance("web", "web-0", passing).await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_node_has_no_address_is_told_so_until_it_has_one() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let name = format!("{}-bare", scene.node);
    let on_it = |pod| scene.pod(pod).node(&name).host_ips([""; 0]);
    let annotated = on_it("web-0").lictor("service", "web");
    annotated.create_ready(&scene.client).await?;
    let selected = on_it("api-0").label("app", "api");
    selected.create_ready(&scene.client).await?;
    let spec = json!({"selector": {"matchLabels": {"app": "api"}}});
    scene.register("api", spec).await?;

    let words = format!("Kubernetes node {name}, on which pod {}/", scene.namespace);
    scene.event("NoNodeAddress", "web-0", &words).await?;
    scene.event("NoNodeAddress", "api", "InternalIP").await?;
    let status = scene
        .registration("api", |status| {
            condition(status, "Ready").1 == "NoNodeAddress"
        })
        .await?;
    let message = status["lastError"].as_str().unwrap();
    ensure!(message.contains(&words), "{message}");
    assert_eq!(condition(&status, "Ready").0, "False");
    assert_eq!(condition(&status, "Reconciling").0, "True");
    assert_eq!(status["instances"]["summary"], "0/1");

    // It is looked at again and again, and told once.
    for value in ["1", "2", "3"] {
        scene.label("web-0", "round", Some(value)).await?;
        scene.annotate("web-0", &[("tags", Some(value))]).await?;
    }
    scene.barrier().await?;
    let id = scene.id("web", "web-0");
    let log = lictor.log();
    let told = log.lines().filter(|line| line.contains("NoNodeAddress"));
    assert_eq!(told.filter(|line| line.contains(&id)).count(), 1, "{log}");

    // A pod that goes is not waited for.
    let gone = on_it("web-1").lictor("service", "web");
    gone.create_ready(&scene.client).await?;
    scene.event("NoNodeAddress", "web-1", &words).await?;
    gone.delete(&scene.client).await?;
    gone.finish_deletion(&scene.client).await?;
    lictor.shows("lictor_pending_keys", 2.0).await?;

    let node = TestNode::new(&name).address("InternalIP", "192.168.7.9");
    node.create(&scene.client).await?;
    for (service, pod) in [("web", "web-0"), ("api", "api-0")] {
        let seen = scene.status(service, pod, "passing").await?;
        assert_eq!(seen.raw["Node"]["Address"], "192.168.7.9");
    }
    scene
        .registration("api", |status| {
            condition(status, "Ready").0 == "True" && status["lastError"].is_null()
        })
        .await?;
    lictor.shows("lictor_pending_keys", 0.0).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_shows_its_address_and_where_it_is() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let name = format!("{}.example.com", scene.node);
    let pod = scene
        .pod("web-0")
        .node(&name)
        .host_ips(["172.31.9.9"])
        .lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    // Without a node object, the pod's host IP serves.
    let seen = scene.status("web", "web-0", "passing").await?;
    assert_eq!(seen.node, format!("lictor-{}--{name}", scene.cluster));
    assert_eq!(seen.raw["Node"]["Address"], "172.31.9.9");
    let meta = json!({
        "external-source": "kubernetes", "lictor-cluster": scene.cluster, "k8s-node": name,
    });
    assert_eq!(seen.raw["Node"]["Meta"], meta);
    // Nobody saw it go: it is gone once pods were listed again.
    let seen = scene
        .instance("web", "web-0", |seen| seen.node_status == "critical")
        .await?;

    let node = TestNode::new(&name)
        .address("Hostname", &name)
        .address("InternalIP", "192.168.9.9")
        .address("InternalIP", "fd00:99::9")
        .label("topology.kubernetes.io/region", "north")
        .label("topology.kubernetes.io/zone", "north-2");
    node.create(&scene.client).await?;
    let after = scene
        .instance("web", "web-0", |seen| seen.node_status == "passing")
        .await?;
    assert_eq!(after.raw["Node"]["Address"], "192.168.9.9");
    assert_eq!(after.raw["Node"]["Meta"]["topology-region"], "north");
    assert_eq!(after.raw["Node"]["Meta"]["topology-zone"], "north-2");
    node.set_addresses(&scene.client, &[("InternalIP", "192.168.9.10")])
        .await?;
    let moved = scene
        .instance("web", "web-0", |seen| {
            seen.raw["Node"]["Address"] == "192.168.9.10"
        })
        .await?;
    assert_eq!(moved.create_index, seen.create_index);
    Ok(())
}

/// Nodes belong to no namespace, so that the share of those that are lost is that of all tests on one
/// bed: these have one of their own.
#[tokio::test]
async fn the_checks_of_most_nodes_lost_at_once_are_held() -> Result<()> {
    static BED: OnceCell<Installed> = OnceCell::const_new();
    let scene = Scene::on(BED.get_or_try_init(Installed::start).await?).await?;
    let lictor = scene.lictor().await?;
    let nodes: Vec<TestNode> = (0..3)
        .map(|number| TestNode::new(&format!("{}-{number}", scene.node)))
        .map(|node| node.address("InternalIP", "192.168.7.2"))
        .collect();
    let all = nodes.iter().map(TestNode::name).chain([&*scene.node]);
    let all: Vec<String> = all.map(str::to_owned).collect();
    for node in &nodes {
        node.create(&scene.client).await?;
    }
    for node in &all {
        let pod = scene.pod(node).node(node).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    let node_is = async |node: &str, status: &str| {
        let is = |seen: &crate::support::Instance| seen.node_status == status;
        scene.instance("web", node, is).await
    };
    for node in &all {
        node_is(node, "passing").await?;
    }
    let own = scene.pod("lictor-0");
    own.create_ready(&scene.client).await?;
    lictor.idle().await?;
    lictor.stop().await?;

    // 3 of 4 are more than 55 percent.
    for node in &nodes {
        node.ready(&scene.client, "Unknown").await?;
    }
    let before = scene.dump().await?;
    let uid = scene.uid("lictor-0").await?;
    let env = [
        ("POD_NAMESPACE", &*scene.namespace),
        ("POD_NAME", "lictor-0"),
        ("POD_UID", &*uid),
    ];
    let mut lictor = scene.spawn_lictor(&[], &env).await?;
    lictor.ready().await?;
    lictor.shows("lictor_held_nodes", 3.0).await?;
    let event = scene.event("NodesHeld", "lictor-0", "3 of 4 nodes").await?;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    ensure!(lictor.log().contains("NodesHeld"), "{}", lictor.log());
    assert_eq!(lictor.http("/readyz").await?.0, 200);
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    // The pods themselves are followed all the while.
    let web = scene.pod(&all[1]).node(&all[1]);
    web.not_ready(&scene.client, "app").await?;
    scene.status("web", &all[1], "critical").await?;
    for node in &all {
        node_is(node, "passing").await?;
    }

    // 2 of 4 are not: those that are lost indeed are out.
    nodes[0].ready(&scene.client, "True").await?;
    node_is(&all[1], "critical").await?;
    node_is(&all[2], "critical").await?;
    lictor.shows("lictor_held_nodes", 0.0).await?;
    node_is(&all[0], "passing").await?;
    node_is(&all[3], "passing").await?;

    // A third one that is lost within the minute is held again, and the two stay as they are.
    nodes[0].ready(&scene.client, "False").await?;
    lictor.shows("lictor_held_nodes", 3.0).await?;
    lictor.idle().await?;
    node_is(&all[0], "passing").await?;
    node_is(&all[1], "critical").await?;
    // What comes back is shown at once, and ends it.
    nodes[1].ready(&scene.client, "True").await?;
    node_is(&all[1], "passing").await?;
    node_is(&all[0], "critical").await?;
    nodes[1].ready(&scene.client, "Unknown").await?;
    lictor.shows("lictor_held_nodes", 3.0).await?;
    node_is(&all[1], "passing").await?;
    lictor.stop().await?;

    // Off, each is shown as it is.
    let lictor = scene.lictor_with(&["--node-panic=100"]).await?;
    for node in &all[..3] {
        node_is(node, "critical").await?;
    }
    node_is(&all[3], "passing").await?;
    lictor.shows("lictor_held_nodes", 0.0).await
}
