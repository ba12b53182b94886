//! Kubernetes nodes as Consul shows them.

use anyhow::{Result, ensure};
use lictor_testbed::kubelet::TestNode;
use serde_json::json;

use crate::support::{Annotated as _, Scene};

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
    assert_eq!(seen.node_status, "critical");

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
