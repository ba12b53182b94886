//! `--namespace`: a `lictor` that has Roles in its namespaces, no `ClusterRole`, and sees nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{kubelet::TestPod, wait};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Instance, Kind, Lictor, Scene, run, until};

/// Longer than three lists take, 30 s apart.
const LISTS: Duration = Duration::from_mins(3);

/// A scene with two namespaces that are watched and one that is not.
struct Place {
    scene: Scene,
    /// The second namespace that is watched.
    second: String,
    /// One that is not.
    other: String,
    /// With the rights of the chart's Roles.
    kubeconfig: String,
}

impl Place {
    async fn new() -> Result<Self> {
        let scene = Scene::new().await?;
        let name = |end: &str| format!("{}-{end}", scene.namespace);
        let (second, other) = (name("second"), name("other"));
        for namespace in [&second, &other] {
            scene.create_namespace(namespace).await?;
        }
        let kubeconfig = roles(&scene, &[&scene.namespace, &second]).await?;
        Ok(Self {
            scene,
            second,
            other,
            kubeconfig,
        })
    }

    /// The arguments of a process that watches these namespaces.
    fn args(&self, namespaces: &[&str]) -> Vec<String> {
        let namespaces = namespaces.iter();
        let mut args: Vec<_> = namespaces
            .map(|name| format!("--namespace={name}"))
            .collect();
        args.push(format!("--kubeconfig={}", self.kubeconfig));
        // Where the chart is installed.
        args.push(format!("--lease-namespace={}", self.scene.namespace));
        args
    }

    /// The exit code and the output of another subcommand for these namespaces.
    async fn once(&self, command: &[&str], namespaces: &[&str]) -> Result<(Option<i32>, String)> {
        let scene = &self.scene;
        let mut args: Vec<String> = command.iter().map(|&arg| arg.to_owned()).collect();
        let of_run = self.args(namespaces).into_iter();
        args.extend(of_run.filter(|arg| !arg.starts_with("--lease")));
        if command.first() == Some(&"plan") {
            args.push("--default-policy=shared".to_owned());
        }
        let secret = scene.token_for(&scene.cluster).await?;
        args.extend([
            format!("--cluster={}", scene.cluster),
            format!("--consul-http-addr={}", scene.bed.consul_addrs().join(",")),
            format!("--consul-http-token={secret}"),
        ]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = run(&args).await?;
        ensure!(code.is_some_and(|code| code < 64), "{code:?}: {stderr}");
        Ok((code, stdout))
    }

    /// A process that watches both namespaces.
    async fn lictor(&self) -> Result<Lictor> {
        let args = self.args(&[&self.second, &self.scene.namespace]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.scene.lictor_with(&args).await
    }

    /// A pod in one of the namespaces, on the scene's node.
    fn pod(&self, namespace: &str, name: &str, ip: &str) -> TestPod {
        TestPod::new(namespace, name)
            .node(&self.scene.node)
            .host_ips(["172.31.9.9"])
            .ip(ip)
            .port("http", 8080)
    }

    fn id(&self, namespace: &str, pod: &str) -> String {
        format!("{}.{namespace}.web.{pod}", self.scene.cluster)
    }
}

/// A kubeconfig with the rights that the chart gives in these namespaces.
async fn roles(scene: &Scene, namespaces: &[&str]) -> Result<String> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");
    let release = format!("roles-{}", scene.cluster);
    let value = format!("namespaces={{{}}}", namespaces.join(","));
    let rendered = scene
        .bed
        .helm(&[
            "template",
            &release,
            chart,
            "--namespace",
            &scene.namespace,
            "--set",
            &format!("cluster={},crds.install=false", scene.cluster),
            "--set",
            &value,
            "--show-only=templates/rbac.yaml",
            "--show-only=templates/serviceaccount.yaml",
        ])
        .await?;
    ensure!(!rendered.contains("kind: ClusterRole"), "{rendered}");
    scene.bed.kubectl_apply(&rendered).await?;
    let account = format!("{release}-lictor");
    // The API server's authorizer hears of a Role a moment later.
    let user = format!("--as=system:serviceaccount:{}:{account}", scene.namespace);
    for &namespace in namespaces {
        until("the Role to be in force", async || {
            let may = [
                "auth",
                "can-i",
                "list",
                "intentions.lictor.io",
                "-n",
                namespace,
            ];
            scene.bed.kubectl(&[&may[..], &[&*user]].concat()).await
        })
        .await?;
    }
    let kubeconfig = scene
        .bed
        .service_account_kubeconfig(&scene.namespace, &account)
        .await?;
    Ok(kubeconfig.display().to_string())
}

/// Policies are in no namespace, so that nobody reads them: the flag is to be given, and judges alone.
#[tokio::test]
async fn the_default_policy_must_be_given_and_judges_alone() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let (code, _, said) = run(&["plan", "--cluster=a", "--namespace=shop"]).await?;
    ensure!(
        code == Some(64) && said.contains("--default-policy"),
        "{code:?}: {said}"
    );
    let mut args = place.args(&[&place.second, &scene.namespace]);
    args.push("--default-policy=exclusive".to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let lictor = scene.lictor_with(&args).await?;
    let first = place
        .pod(&place.second, "first", "10.9.81.11")
        .lictor("service", "web");
    first.create_ready(&scene.client).await?;
    let id = place.id(&place.second, "first");
    scene.instance_id("web", &id, |_| true).await?;
    let second = place
        .pod(&scene.namespace, "second", "10.9.81.12")
        .lictor("service", "web");
    second.create_ready(&scene.client).await?;
    scene.event("NotAllowed", "second", &place.second).await?;
    lictor.idle().await?;
    let own = place.id(&scene.namespace, "second");
    ensure!(scene.find_id("web", &own).await?.is_none(), "it is there");
    let log = lictor.log();
    ensure!(!log.contains("orbidden"), "{log}");
    Ok(())
}

/// Whether Consul has a node.
async fn has_node(scene: &Scene, name: &str) -> Result<bool> {
    let nodes = scene.consul.get("/v1/catalog/nodes?consistent").await?;
    let mut nodes = nodes.as_array().context("not a list")?.iter();
    Ok(nodes.any(|node| node["Node"] == name))
}

#[tokio::test]
async fn the_main_path_works_with_roles_only() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let lictor = place.lictor().await?;

    // Pods come, in both namespaces; what is elsewhere is nobody's.
    let first = place
        .pod(&scene.namespace, "web-0", "10.9.81.1")
        .lictor("service", "web");
    let second = place
        .pod(&place.second, "web-1", "10.9.81.2")
        .lictor("service", "web");
    let other = place
        .pod(&place.other, "web-2", "10.9.81.3")
        .lictor("service", "web");
    other.create_ready(&scene.client).await?;
    first.create_ready(&scene.client).await?;
    second.create_ready(&scene.client).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    // What is known of the node its pods say.
    assert_eq!(seen.node, scene.consul_node());
    assert_eq!(seen.raw["Node"]["Address"], "172.31.9.9");
    assert_eq!(seen.node_status, "", "{:#}", seen.raw);
    let meta = &seen.raw["Node"]["Meta"];
    ensure!(
        meta["topology-zone"].is_null() && meta["k8s-node"] == *scene.node,
        "{meta}"
    );
    let id = place.id(&place.second, "web-1");
    scene
        .instance_id("web", &id, |seen| seen.status == "passing")
        .await?;

    // Readiness follows.
    first.not_ready(&scene.client, "app").await?;
    scene.status("web", "web-0", "critical").await?;
    first.running_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;

    // Our kinds.
    scene
        .register(
            "db",
            json!({"endpoints": [{"name": "a", "address": "10.1.1.1"}]}),
        )
        .await?;
    let db = format!("{}.{}.db.db.a", scene.cluster, scene.namespace);
    scene.instance_id("db", &db, |_| true).await?;
    scene
        .registration("db", |status| status["instances"]["summary"] == "1/1")
        .await?;
    let service = scene.named("web");
    let spec = json!({"destination": {"name": service},
                      "sources": [{"name": "api", "action": "allow"}]});
    scene.create(Kind::Intention, "web", spec).await?;
    scene.sources_are(&service, &["api allow"]).await?;
    let query = scene.named("nearest");
    let spec = json!({"name": query, "service": "web"});
    scene.create(Kind::PreparedQuery, "nearest", spec).await?;
    scene
        .query_is(&query, |found| found["Service"]["Service"] == "web")
        .await?;
    scene.event("Registered", "web-0", "web").await?;
    lictor.idle().await?;
    let none = scene
        .find_id("web", &place.id(&place.other, "web-2"))
        .await?;
    ensure!(none.is_none(), "{none:#?}");

    // A restart writes nothing but the epoch.
    lictor.stop().await?;
    let before = scene.dump().await?;
    let lictor = place.lictor().await?;
    lictor.idle().await?;
    assert_eq!(scene.dump().await?, before);
    let written = lictor.metric("lictor_operations_total", &[]).await?;
    ensure!(written == 0.0, "{written} operations");
    let epoch = format!("/v1/kv/lictor/v1/{}/epoch?raw", scene.cluster);
    let epoch = scene.consul.get(&epoch).await?;
    assert_eq!(epoch["scope"], json!([scene.namespace, place.second]));
    lictor.kill();

    // What went while it was down is found.
    second.finish_deletion(&scene.client).await?;
    scene.unregister("db").await?;
    let lictor = place.lictor().await?;
    scene.gone_id("web", &id).await?;
    scene.gone_id("db", &db).await?;

    // Whether one of our objects went with its CRD is not known: its end waits for three lists.
    scene.delete(Kind::PreparedQuery, "nearest").await?;
    scene.delete(Kind::Intention, "web").await?;
    wait::until("query and intention to be gone", LISTS, async || {
        let found = scene.query_named(&query).await?;
        ensure!(found.is_null(), "{found:#}");
        let found = scene.config_entry("service-intentions", &service).await?;
        ensure!(found.is_null(), "{found:#}");
        Ok(())
    })
    .await?;

    // And the node goes with its last instance.
    ensure!(
        has_node(scene, &scene.consul_node()).await?,
        "the node is gone"
    );
    first.finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    until("the node to be gone", async || {
        let there = has_node(scene, &scene.consul_node()).await?;
        ensure!(!there, "it is there");
        Ok(())
    })
    .await?;
    // Nothing was refused to it: that is looked at when it ends.
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn another_scope_is_another_owner_until_it_is_said() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let wide = place.lictor().await?;
    for (namespace, name, ip) in [
        (&scene.namespace, "web-0", "10.9.82.1"),
        (&place.second, "web-1", "10.9.82.2"),
    ] {
        let pod = place.pod(namespace, name, ip).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    scene.status("web", "web-0", "passing").await?;
    let second = place.id(&place.second, "web-1");
    scene.instance_id("web", &second, |_| true).await?;
    wide.idle().await?;
    wide.stop().await?;

    // One of the namespaces, or all of the cluster, under the same name.
    let before = scene.dump().await?;
    let args = place.args(&[&scene.namespace]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for args in [&args[..], &[]] {
        let narrow = scene.spawn_lictor(args, &[]).await?;
        narrow.not_ready("ClusterNameTaken").await?;
        narrow.not_ready(&place.second).await?;
        narrow.stop().await?;
    }
    assert_eq!(scene.dump().await?, before);

    // What is of a namespace that is not watched any more stays, whatever becomes of it.
    let pods: kube::Api<k8s_openapi::api::core::v1::Namespace> =
        kube::Api::all(scene.client.clone());
    let uid = pods
        .get(&scene.namespace)
        .await?
        .metadata
        .uid
        .context("no uid")?;
    let take_over = format!("--take-over={uid}");
    let narrow = scene
        .lictor_with(&[&args[..], &[&*take_over]].concat())
        .await?;
    let pod = place.pod(&place.second, "web-1", "10.9.82.2");
    pod.finish_deletion(&scene.client).await?;
    let pod = place.pod(&scene.namespace, "web-0", "10.9.82.1");
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    narrow.idle().await?;
    let kept = scene.find_id("web", &second).await?;
    ensure!(kept.is_some(), "it is gone");
    ensure!(
        has_node(scene, &scene.consul_node()).await?,
        "its node is gone"
    );
    narrow.stop().await?;
    Ok(())
}

/// A list in one namespace is no list of the others.
#[tokio::test]
async fn a_namespace_that_cannot_be_read_keeps_what_all_hold() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let lictor = place.lictor().await?;
    let first = place
        .pod(&scene.namespace, "web-0", "10.9.83.1")
        .lictor("service", "web");
    first.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    lictor.stop().await?;
    first.finish_deletion(&scene.client).await?;
    // The Role of the second namespace is gone: what it claims is not known.
    let binding = format!("roles-{}-lictor-watch", scene.cluster);
    scene
        .bed
        .kubectl(&["-n", &place.second, "delete", "rolebinding", &binding])
        .await?;
    let args = place.args(&[&place.second, &scene.namespace]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut lictor = scene.spawn_lictor(&args, &[]).await?;
    lictor.bears_refusals();
    lictor.not_ready("pods: 403").await?;
    let there: Vec<Instance> = scene.find("web", "web-0").await?.into_iter().collect();
    ensure!(there.len() == 1, "it is gone");
    roles(scene, &[&scene.namespace, &place.second]).await?;
    scene.gone("web", "web-0").await?;
    lictor.ready().await
}

#[tokio::test]
async fn check_knows_the_roles_too() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let check = async |namespaces: &[&str], lease: &str| {
        let lease = format!("--lease-namespace={lease}");
        let (code, stdout) = place
            .once(&["check", "--output=json", &lease], namespaces)
            .await?;
        let json: Value = serde_json::from_str(&stdout)?;
        anyhow::Ok((code, json))
    };
    let (first, second) = (&scene.namespace, &place.second);
    let (code, json) = check(&[first, second], first).await?;
    ensure!(code == Some(0), "{json:#}");
    let (code, json) = check(&[first, &place.other], first).await?;
    let text = json.to_string();
    ensure!(code == Some(1), "{json:#}");
    let missing = format!("list pods in {}", place.other);
    ensure!(text.contains(&missing), "{json:#}");
    // The Lease is where the chart is installed, and nowhere else.
    let (code, json) = check(&[first, second], second).await?;
    let missing = format!(
        "update leases.coordination.k8s.io/lictor-{} in {second}",
        scene.cluster
    );
    ensure!(
        code == Some(1) && json.to_string().contains(&missing),
        "{json:#}"
    );
    Ok(())
}

#[tokio::test]
async fn plan_and_gc_see_the_same_with_roles_only() -> Result<()> {
    let place = Place::new().await?;
    let scene = &place.scene;
    let lictor = place.lictor().await?;
    let both: [&str; 2] = [&scene.namespace, &place.second];
    let mut ids = Vec::new();
    for (namespace, ip) in both.iter().zip(["10.9.84.1", "10.9.84.2"]) {
        let pod = place.pod(namespace, "web-0", ip).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        let id = place.id(namespace, "web-0");
        let passing = |seen: &Instance| seen.status == "passing";
        scene.instance_id("web", &id, passing).await?;
        ids.push(id);
    }
    lictor.idle().await?;
    let plan = ["plan", "--output=json", "--detailed-exitcode"];
    let (code, stdout) = place.once(&plan, &both).await?;
    ensure!(code == Some(0), "{code:?}: {stdout}");
    // What is of a namespace that would not be watched stays.
    let (code, stdout) = place.once(&plan, &both[..1]).await?;
    let json: Value = serde_json::from_str(&stdout)?;
    let items = json["items"].as_array().context("no items")?;
    let held = items.len() == 1 && items[0]["action"] == "held";
    let key = format!("{}/{}", scene.consul_node(), ids[1]);
    ensure!(
        code == Some(2) && held && items[0]["key"] == *key,
        "{code:?}: {json:#}"
    );

    // Nobody removes it meanwhile.
    lictor.stop().await?;
    let gone = place.pod(both[1], "web-0", "10.9.84.2");
    gone.finish_deletion(&scene.client).await?;
    let (code, stdout) = place.once(&["gc"], &both).await?;
    ensure!(
        code == Some(0) && stdout.contains(&ids[1]),
        "{code:?}: {stdout}"
    );
    ensure!(!stdout.contains(&ids[0]), "{stdout}");
    // Another scope is another owner to gc, too.
    let (code, stdout) = place.once(&["gc", "--yes"], &both[..1]).await?;
    ensure!(code == Some(1), "{code:?}: {stdout}");
    ensure!(scene.find_id("web", &ids[1]).await?.is_some(), "it is gone");
    let (code, stdout) = place.once(&["gc", "--yes"], &both).await?;
    ensure!(code == Some(0), "{code:?}: {stdout}");
    scene.gone_id("web", &ids[1]).await?;
    ensure!(scene.find_id("web", &ids[0]).await?.is_some(), "it is gone");
    Ok(())
}

#[tokio::test]
async fn namespaces_that_contradict_are_a_usage_error() -> Result<()> {
    for (args, text) in [
        (&["--namespace=shop", "--exclude-namespace=sh*"][..], "shop"),
        (&["--namespace=Shop"], "Shop"),
    ] {
        let args = [&["run", "--cluster=a"], args].concat();
        let (code, _, stderr) = run(&args).await?;
        ensure!(
            code == Some(64) && stderr.contains(text),
            "{args:?}: {stderr}"
        );
    }
    Ok(())
}
