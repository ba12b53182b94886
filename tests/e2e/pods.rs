//! Pods with annotations: the tables of the contract's section 2, row by row.

use anyhow::{Result, ensure};
use lictor_testbed::kubelet::TestPod;
use serde_json::{Value, json};

use crate::support::{Annotated as _, Scene, user_meta};

#[tokio::test]
async fn an_annotated_pod_is_registered_with_all_its_marks() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .ip("10.9.1.1")
        .lictor("service", "web")
        .lictor("tags", "v1, canary")
        .lictor("meta", "team=shop,stage=prod")
        .lictor("weight", "10")
        .lictor("weight-warning", "2");
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;

    let Scene {
        namespace,
        cluster,
        node,
        ..
    } = &scene;
    let id = format!("{cluster}.{namespace}.web.web-0");
    let consul_node = format!("lictor-{cluster}--{node}");
    let uid = scene.uid("web-0").await?;
    let without_indexes = |value: &Value| {
        let mut value = value.clone();
        let object = value.as_object_mut().unwrap();
        object.retain(|key, value| !(key.ends_with("Index") || is_empty(value)));
        value
    };
    let service = json!({
        "ID": id, "Service": "web", "Address": "10.9.1.1", "Port": 8080, "Tags": ["canary", "v1"],
        "Weights": {"Passing": 10, "Warning": 2},
        "Meta": {
            "external-source": "kubernetes",
            "external-k8s-ns": namespace,
            "external-k8s-ref-kind": "Pod",
            "external-k8s-ref-name": "web-0",
            "external-k8s-node-name": node,
            "lictor-cluster": cluster,
            "lictor-node": consul_node,
            "lictor-owner": format!("Pod/{namespace}/web-0"),
            "lictor-uid": uid,
            "team": "shop",
            "stage": "prod",
        },
    });
    assert_eq!(without_indexes(&seen.raw["Service"]), service);
    let ready = json!({
        "Node": consul_node, "CheckID": format!("{id}:ready"), "Name": "Kubernetes readiness",
        "Type": "kubernetes-readiness", "Status": "passing", "Output": "the pod is ready",
        "ServiceID": id, "ServiceName": "web",
    });
    let mut check = without_indexes(seen.check(&format!("{id}:ready")));
    for key in ["ServiceTags", "ExposedPort"] {
        check.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(check, ready);
    let on_node = &seen.raw["Node"];
    assert_eq!(on_node["Node"], json!(consul_node));
    assert_eq!(on_node["Address"], "192.168.7.1");
    let meta = json!({
        "external-source": "kubernetes", "lictor-cluster": cluster, "k8s-node": node,
        "topology-region": "north", "topology-zone": "north-1",
    });
    assert_eq!(on_node["Meta"], meta);
    let node_check = seen.check("lictor-node");
    assert_eq!(
        (&node_check["Status"], &node_check["ServiceID"]),
        (&json!("passing"), &json!(""))
    );
    // These are its checks, and there are no others.
    assert_eq!(seen.raw["Checks"].as_array().unwrap().len(), 2);
    scene.event("Registered", "web-0", &id).await?;
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.values().all(is_empty) || object.contains_key("Mode"),
        _ => false,
    }
}

#[tokio::test]
async fn readiness_shows_with_the_container_and_the_reason() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .container("proxy")
        .lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let first = scene.status("web", "web-0", "passing").await?;

    pod.not_ready(&scene.client, "proxy").await?;
    let seen = scene.status("web", "web-0", "critical").await?;
    ensure!(
        seen.output.contains("proxy") && seen.output.contains("ContainersNotReady"),
        "{seen:#?}"
    );
    ensure!(!seen.output.contains("app"), "{seen:#?}");

    pod.waiting(&scene.client, "app", "CrashLoopBackOff")
        .await?;
    scene
        .instance("web", "web-0", |seen| {
            seen.output.contains("app (CrashLoopBackOff)")
        })
        .await?;

    pod.running_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    pod.condition(&scene.client, "Ready", "Unknown").await?;
    scene.status("web", "web-0", "critical").await?;

    pod.running_ready(&scene.client).await?;
    let last = scene.status("web", "web-0", "passing").await?;
    // Only the check was written, each time.
    assert_eq!(first.raw["Service"], last.raw["Service"]);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_not_ready_may_warn() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .lictor("service", "web")
        .lictor("not-ready", "Warning");
    pod.create(&scene.client).await?;
    pod.not_ready(&scene.client, "app").await?;
    let seen = scene.status("web", "web-0", "warning").await?;
    ensure!(seen.output.contains("app"), "{seen:#?}");
    pod.running_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    Ok(())
}

#[tokio::test]
async fn a_terminating_pod_is_what_its_annotation_says_until_it_is_gone() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = |name: &str, how: Option<&str>| {
        let pod = scene.pod(name).lictor("service", "web");
        match how {
            Some(how) => pod.lictor("terminating", how),
            None => pod,
        }
    };
    let default = pod("default", None);
    let critical = pod("critical", Some("Critical"));
    let warning = pod("warning", Some("Warning"));
    let deregister = pod("deregister", Some("Deregister"));
    for pod in [&default, &critical, &warning, &deregister] {
        pod.create_ready(&scene.client).await?;
        scene.status("web", pod.name(), "passing").await?;
    }
    for (pod, status) in [
        (&default, "critical"),
        (&critical, "critical"),
        (&warning, "warning"),
    ] {
        pod.delete(&scene.client).await?;
        let seen = scene.status("web", pod.name(), status).await?;
        ensure!(seen.output.contains("terminating"), "{seen:#?}");
        pod.finish_deletion(&scene.client).await?;
        scene.gone("web", pod.name()).await?;
    }
    deregister.delete(&scene.client).await?;
    scene.gone("web", "deregister").await?;
    scene
        .event("Deregistered", "deregister", "removed from Consul")
        .await?;
    // It is still there, and stays unregistered.
    scene.pods().get("deregister").await?;
    scene.barrier().await?;
    ensure!(scene.find("web", "deregister").await?.is_none());
    deregister.finish_deletion(&scene.client).await?;
    Ok(())
}

#[tokio::test]
async fn phases() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = |name: &str| scene.pod(name).lictor("service", "job");
    let pending = pod("pending");
    pending.create(&scene.client).await?;
    let with_address = pod("with-address");
    with_address.create(&scene.client).await?;
    with_address.set_ips(&scene.client, &["10.9.200.1"]).await?;
    let no_address = pod("no-address");
    no_address.create_ready(&scene.client).await?;
    scene.status("job", "no-address", "passing").await?;
    no_address.set_ips(&scene.client, &[]).await?;
    scene.gone("job", "no-address").await?;
    let ended: Vec<_> = ["Succeeded", "Failed", "Unknown"]
        .into_iter()
        .map(|phase| (pod(&phase.to_lowercase()), phase))
        .collect();
    for (pod, phase) in &ended {
        pod.create_ready(&scene.client).await?;
        scene.status("job", pod.name(), "passing").await?;
        pod.phase(&scene.client, phase).await?;
    }
    scene.gone("job", "succeeded").await?;
    scene.gone("job", "failed").await?;
    let unknown = scene.status("job", "unknown", "critical").await?;
    ensure!(unknown.output.contains("unknown"), "{unknown:#?}");

    scene.barrier().await?;
    for name in [
        "pending",
        "with-address",
        "no-address",
        "succeeded",
        "failed",
    ] {
        ensure!(
            scene.find("job", name).await?.is_none(),
            "{name} is registered"
        );
    }
    // It gets its address at last.
    pending.running_ready(&scene.client).await?;
    scene.status("job", "pending", "passing").await?;
    Ok(())
}

#[tokio::test]
async fn addresses_and_ports() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let bare = |name: &str| {
        TestPod::new(&scene.namespace, name)
            .node(&scene.node)
            .lictor("service", "net")
    };
    let ports = |pod: TestPod| {
        pod.udp_port("dns", 53)
            .port("http", 8080)
            .host_port("admin", 9090, 30090)
    };
    let cases = [
        (bare("none").ip("10.9.2.1"), "10.9.2.1", 0),
        (ports(bare("default").ip("10.9.2.2")), "10.9.2.2", 53),
        (
            ports(bare("named").ip("10.9.2.3")).lictor("port", "admin"),
            "10.9.2.3",
            9090,
        ),
        (
            ports(bare("number").ip("10.9.2.4")).lictor("port", "4711"),
            "10.9.2.4",
            4711,
        ),
        (
            ports(bare("other-container").ip("10.9.2.5"))
                .container("b")
                .port("b-port", 7000)
                .lictor("port", "b-port"),
            "10.9.2.5",
            7000,
        ),
        (
            ports(bare("side").ip("10.9.2.6"))
                .sidecar("s")
                .port("envoy", 15000)
                .lictor("port", "envoy"),
            "10.9.2.6",
            15000,
        ),
        (
            ports(bare("host-ip").ip("10.9.2.7"))
                .host_ips(["172.31.0.9"])
                .lictor("address", "HostIP")
                .lictor("port", "admin"),
            "172.31.0.9",
            30090,
        ),
        (
            ports(bare("host-number").ip("10.9.2.8"))
                .host_ips(["172.31.0.9"])
                .lictor("address", "HostIP")
                .lictor("port", "8080"),
            "172.31.0.9",
            8080,
        ),
        (
            bare("host-network")
                .host_network()
                .host_ips(["172.31.0.9"])
                .host_port("http", 8080, 8080),
            "172.31.0.9",
            8080,
        ),
        (
            bare("v6").ip("fd00:9::1").port("http", 8080),
            "fd00:9::1",
            8080,
        ),
    ];
    for (pod, _, _) in &cases {
        pod.create_ready(&scene.client).await?;
    }
    for (pod, address, port) in &cases {
        let seen = scene
            .instance("net", pod.name(), |seen| !seen.status.is_empty())
            .await?;
        assert_eq!(
            (&*seen.address, seen.port),
            (*address, *port),
            "{}",
            pod.name()
        );
        ensure!(
            is_empty(&seen.raw["Service"]["TaggedAddresses"]),
            "{seen:#?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn both_addresses_of_a_dual_stack_pod_are_tagged() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .ips(["fd00:9::3", "10.9.3.3"])
        .lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    assert_eq!(seen.address, "fd00:9::3");
    let tagged = json!({
        "lan_ipv4": {"Address": "10.9.3.3", "Port": 8080},
        "lan_ipv6": {"Address": "fd00:9::3", "Port": 8080},
    });
    assert_eq!(seen.raw["Service"]["TaggedAddresses"], tagged);
    // An address that changes is followed, and the instance stays the same.
    pod.set_ips(&scene.client, &["10.9.3.4"]).await?;
    let after = scene
        .instance("web", "web-0", |seen| seen.address == "10.9.3.4")
        .await?;
    ensure!(
        is_empty(&after.raw["Service"]["TaggedAddresses"]),
        "{after:#?}"
    );
    assert_eq!(seen.create_index, after.create_index);
    Ok(())
}

#[tokio::test]
async fn several_services_on_one_pod_each_with_its_own() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .port("admin", 9090)
        .lictor("service", "web, api")
        .lictor("tags", "all")
        .lictor("port.api", "admin")
        .lictor("tags.api", "private,v2")
        .lictor("meta", "team=shop,kind=plain")
        .lictor("meta.api", "kind=api")
        .lictor("weight.api", "7")
        .lictor("not-ready.api", "Warning");
    pod.create(&scene.client).await?;
    pod.not_ready(&scene.client, "app").await?;
    let web = scene.status("web", "web-0", "critical").await?;
    let api = scene.status("api", "web-0", "warning").await?;
    assert_eq!((web.port, web.weights), (8080, (1, 1)));
    assert_eq!((api.port, api.weights), (9090, (7, 1)));
    assert_eq!(web.tags, ["all"]);
    assert_eq!(api.tags, ["private", "v2"]);
    assert_eq!(user_meta(&web), [("kind", "plain"), ("team", "shop")]);
    // The form for one service takes the place of the plain one.
    assert_eq!(user_meta(&api), [("kind", "api")]);

    scene
        .annotate("web-0", &[("service", Some("api")), ("port.api", None)])
        .await?;
    scene.gone("web", "web-0").await?;
    scene
        .instance("api", "web-0", |seen| seen.port == 8080)
        .await?;
    scene.annotate("web-0", &[("service", None)]).await?;
    // What it has left names a service that it does not have any more: that holds it.
    scene
        .annotate(
            "web-0",
            &[
                ("tags.api", None),
                ("meta.api", None),
                ("weight.api", None),
                ("not-ready.api", None),
            ],
        )
        .await?;
    scene.gone("api", "web-0").await?;
    Ok(())
}

#[tokio::test]
async fn templates_are_rendered_and_follow_the_pod() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .ip("10.9.4.1")
        .label("version", "v1")
        .annotation("example.com/tier", "gold")
        .lictor("service", "web")
        .lictor(
            "tags",
            "version-${pod.labels['version']},track-${pod.labels['track']},$${x}",
        )
        .lictor(
            "meta",
            "who=${pod.namespace}/${pod.name},where=${pod.node}@${pod.ip},\
             tier=${pod.annotations['example.com/tier']},track=${pod.labels['track']}",
        );
    pod.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    assert_eq!(seen.tags, ["${x}", "version-v1"]);
    let who = format!("{}/web-0", scene.namespace);
    let at = format!("{}@10.9.4.1", scene.node);
    assert_eq!(
        user_meta(&seen),
        [("tier", "gold"), ("where", &at), ("who", &who)]
    );

    scene.label("web-0", "track", Some("stable")).await?;
    let seen = scene
        .instance("web", "web-0", |seen| {
            seen.tags.contains(&"track-stable".to_owned())
        })
        .await?;
    assert_eq!(seen.meta["track"], "stable");
    scene.label("web-0", "track", None).await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["${x}", "version-v1"])
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_edit_of_a_running_pod_writes_only_what_differs() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    for name in ["web-0", "web-1"] {
        let pod = scene
            .pod(name)
            .lictor("service", "web,api")
            .lictor("tags", "v1");
        pod.create_ready(&scene.client).await?;
        scene.status("web", name, "passing").await?;
        scene.status("api", name, "passing").await?;
    }
    lictor.idle().await?;
    let before = [
        scene.find("api", "web-0").await?,
        scene.find("web", "web-1").await?,
    ];
    let web = scene.find("web", "web-0").await?.unwrap();

    scene
        .annotate("web-0", &[("tags.web", Some("v2,canary"))])
        .await?;
    let seen = scene
        .instance("web", "web-0", |seen| seen.tags == ["canary", "v2"])
        .await?;
    ensure!(seen.modify_index > web.modify_index);
    assert_eq!(seen.create_index, web.create_index);
    // What Kubernetes tells and Consul does not hold is no reason to write.
    scene.annotate("web-1", &[]).await?;
    scene.label("web-1", "unused", Some("x")).await?;
    scene.barrier().await?;
    lictor.idle().await?;
    let after = [
        scene.find("api", "web-0").await?,
        scene.find("web", "web-1").await?,
    ];
    assert_eq!(before, after);
    let updates = lictor
        .metric("lictor_operations_total", &["instance", "update"])
        .await?;
    assert!((updates - 1.0).abs() < f64::EPSILON, "{updates} updates");
    Ok(())
}

#[tokio::test]
async fn namespaces_share_a_name_and_excluded_ones_claim_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let namespaces = ["", "-two", "-out"].map(|end| format!("{}{end}", scene.namespace));
    let [_, two, out] = &namespaces;
    scene.create_namespace(two).await?;
    scene.create_namespace(out).await?;
    let _lictor = scene.lictor_with(&["--exclude-namespace=*-o?t"]).await?;
    for namespace in namespaces.iter().rev() {
        let pod = TestPod::new(namespace, "web-0")
            .node(&scene.node)
            .ip("10.9.5.1")
            .lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    scene.status("web", "web-0", "passing").await?;
    let other = format!("{}.{two}.web.web-0", scene.cluster);
    let other = scene
        .instance_id("web", &other, |seen| seen.status == "passing")
        .await?;
    assert_eq!(other.meta["external-k8s-ns"], *two);
    scene.barrier().await?;
    let excluded = format!("{}.{out}.web.web-0", scene.cluster);
    ensure!(scene.find_id("web", &excluded).await?.is_none());
    Ok(())
}
