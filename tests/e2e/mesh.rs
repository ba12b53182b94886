//! The service mesh: what `connect` of a `ServiceRegistration` becomes, with real mutual TLS between
//! two of Consul's built-in proxies.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::kubelet::TestPod;
use lictor_testbed::{CONSUL_MANAGEMENT_TOKEN, MeshProxy, MeshProxyOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::faults::three;
use crate::support::{Instance, Kind, Lictor, Scene, until};

/// A service with a proxy that listens for it, and another service whose proxy calls it.
struct Mesh {
    scene: Scene,
    service: String,
    caller: String,
    application: u16,
    inbound: MeshProxy,
    outbound: MeshProxy,
    _echo: JoinSet<()>,
}

impl Mesh {
    async fn new() -> Result<Self> {
        Self::on(Scene::new().await?, CONSUL_MANAGEMENT_TOKEN).await
    }

    /// With this token for the proxies, which are no part of Lictor.
    async fn on(scene: Scene, token: &str) -> Result<Self> {
        let (service, caller) = (scene.named("ledger"), scene.named("web"));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let application = listener.local_addr()?;
        let mut echo = JoinSet::new();
        echo.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let inbound = MeshProxyOptions {
            service: service.clone(),
            application: Some(application),
            token: token.to_owned(),
            ..MeshProxyOptions::default()
        };
        let outbound = MeshProxyOptions {
            service: caller.clone(),
            upstreams: vec![service.clone()],
            token: token.to_owned(),
            ..MeshProxyOptions::default()
        };
        Ok(Self {
            inbound: scene.bed.mesh_proxy(&inbound).await?,
            outbound: scene.bed.mesh_proxy(&outbound).await?,
            application: application.port(),
            scene,
            service,
            caller,
            _echo: echo,
        })
    }

    /// A pod of the service, where the proxy that listens really is.
    fn pod(&self) -> TestPod {
        let pod = self.scene.pod("ledger-0").ip("127.0.0.1");
        pod.label("app", "ledger")
    }

    async fn register(&self, port: u16, connect: &Value) -> Result<()> {
        let selector = json!({"matchLabels": {"app": "ledger"}});
        let spec = json!({"service": self.service, "selector": selector, "port": port, "tags": ["v1"],
                          "connect": connect});
        self.scene.register("ledger", spec).await?;
        Ok(())
    }

    fn sidecar(&self) -> String {
        format!("{}-sidecar-proxy", self.service)
    }

    async fn proxy(&self, is: impl Fn(&Instance) -> bool) -> Result<Instance> {
        self.scene.instance(&self.sidecar(), "ledger-0", is).await
    }

    fn upstream(&self) -> Result<SocketAddr> {
        self.outbound.upstream(&self.service)
    }

    async fn flows(&self) -> Result<()> {
        let upstream = self.upstream()?;
        until("traffic", async || connect(upstream).await).await
    }

    async fn refused(&self) -> Result<()> {
        let upstream = self.upstream()?;
        until("a refusal", async || match connect(upstream).await {
            Err(_) => Ok(()),
            Ok(()) => Err("traffic"),
        })
        .await
    }

    fn intention(&self, action: &str) -> Value {
        json!({"destination": {"name": self.service},
               "sources": [{"name": self.caller, "action": action}]})
    }
}

/// Sends a word and gets it back.
async fn connect(address: SocketAddr) -> Result<()> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"ping").await?;
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await?;
        ensure!(heard == *b"ping", "heard {heard:?}");
        Ok(())
    };
    timeout(Duration::from_secs(5), exchange).await?
}

#[tokio::test]
async fn traffic_flows_through_what_is_registered_as_intentions_say() -> Result<()> {
    let mesh = Mesh::new().await?;
    let scene = &mesh.scene;
    let lictor = scene.lictor().await?;
    mesh.pod().create_ready(&scene.client).await?;
    let upstreams = json!([{"service": mesh.caller, "localPort": 9191}]);
    let port = mesh.inbound.port()?;
    mesh.register(
        mesh.application,
        &json!({"sidecar": {"port": port, "upstreams": upstreams}}),
    )
    .await?;
    let alias = format!("{}:alias", scene.id(&mesh.sidecar(), "ledger-0"));
    let proxy = mesh.proxy(|seen| seen.check(&alias)["Status"] == "passing");
    let proxy = proxy.await?;
    let instance = scene.status(&mesh.service, "ledger-0", "passing").await?;
    let entry = &proxy.raw["Service"];
    assert_eq!(entry["Kind"], "connect-proxy");
    assert_eq!(entry["Proxy"]["DestinationServiceName"], mesh.service);
    assert_eq!(entry["Proxy"]["DestinationServiceID"], instance.id);
    assert_eq!(entry["Proxy"]["LocalServiceAddress"], "127.0.0.1");
    assert_eq!(entry["Proxy"]["LocalServicePort"], mesh.application);
    assert_eq!(
        entry["Proxy"]["Upstreams"][0]["DestinationName"],
        mesh.caller
    );
    assert_eq!(entry["Proxy"]["Upstreams"][0]["LocalBindPort"], 9191);
    assert_eq!(
        (proxy.port, &*proxy.address),
        (u64::from(port), "127.0.0.1")
    );
    assert_eq!((&proxy.node, &proxy.meta), (&instance.node, &instance.meta));
    assert_eq!(proxy.tags, ["v1"]);
    mesh.flows().await?;

    scene
        .create(Kind::Intention, "ledger", mesh.intention("deny"))
        .await?;
    mesh.refused().await?;
    for (action, flows) in [("allow", true), ("deny", false)] {
        let patch = json!({"spec": mesh.intention(action)});
        scene.change(Kind::Intention, "ledger", patch).await?;
        if flows {
            mesh.flows().await?;
        } else {
            mesh.refused().await?;
        }
    }
    scene.delete(Kind::Intention, "ledger").await?;
    mesh.flows().await?;

    readiness_takes_both_out_and_back(&mesh, &alias).await?;
    edits_are_updates_in_place(&mesh, &proxy).await?;
    another_hand_is_undone(&mesh).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let lictor = a_restart_writes_nothing(&mesh).await?;

    scene
        .edit("ledger", json!({"spec": {"connect": null}}))
        .await?;
    scene.gone(&mesh.sidecar(), "ledger-0").await?;
    mesh.refused().await?;
    scene.status(&mesh.service, "ledger-0", "passing").await?;
    let id = scene.id(&mesh.sidecar(), "ledger-0");
    until("the removal to be told as seen", async || {
        let log = lictor.log();
        let told = |line: &&str| line.contains("audit") && line.contains(&id);
        let line = log.lines().find(told).context("nothing is told")?;
        ensure!(line.contains("seen=true"), "{line}");
        Ok(())
    })
    .await
}

/// One status for both, changed in one write.
async fn readiness_takes_both_out_and_back(mesh: &Mesh, alias: &str) -> Result<()> {
    let scene = &mesh.scene;
    let pod = mesh.pod();
    for (status, is_ready) in [("critical", false), ("passing", true)] {
        if is_ready {
            pod.running_ready(&scene.client).await?;
        } else {
            pod.not_ready(&scene.client, "app").await?;
        }
        let proxy = mesh
            .proxy(|seen| seen.check(alias)["Status"] == status)
            .await?;
        let instance = scene.status(&mesh.service, "ledger-0", status).await?;
        let ready = instance.check(&format!("{}:ready", instance.id));
        let alias = proxy.check(alias);
        assert_eq!(alias["ModifyIndex"], ready["ModifyIndex"], "one write");
        assert_eq!(alias["Output"], ready["Output"]);
        if is_ready {
            mesh.flows().await?;
        } else {
            mesh.refused().await?;
        }
    }
    Ok(())
}

async fn edits_are_updates_in_place(mesh: &Mesh, before: &Instance) -> Result<()> {
    let port = mesh.inbound.port()?;
    for upstreams in [
        json!([{"service": "a", "localPort": 9192}, {"service": "b", "localPort": 9193}]),
        json!([]),
        json!([{"service": "a", "localPort": 9192, "datacenter": "dc2"}]),
    ] {
        let connect = json!({"sidecar": {"port": port, "upstreams": upstreams}});
        let patch = json!({"spec": {"tags": ["v2"], "connect": connect}});
        mesh.scene.edit("ledger", patch).await?;
        let count = upstreams.as_array().map_or(0, Vec::len);
        let is = |seen: &Instance| {
            let stored = seen.raw["Service"]["Proxy"]["Upstreams"].as_array();
            seen.tags == ["v2"] && stored.map_or(0, Vec::len) == count
        };
        let seen = mesh.proxy(is).await?;
        assert_eq!(seen.create_index, before.create_index);
    }
    let seen = mesh.proxy(|_| true).await?;
    let upstream = &seen.raw["Service"]["Proxy"]["Upstreams"][0];
    assert_eq!(upstream["Datacenter"], "dc2");
    mesh.flows().await
}

async fn another_hand_is_undone(mesh: &Mesh) -> Result<()> {
    let scene = &mesh.scene;
    let wanted = mesh.proxy(|_| true).await?;
    let wanted = &wanted.raw["Service"];
    for field in [
        "/Proxy/Upstreams",
        "/Proxy/Config",
        "/Proxy/LocalServicePort",
        "/Port",
    ] {
        let mut service = wanted.clone();
        let fields = service.as_object_mut().context("no object")?;
        fields.retain(|name, _| {
            [
                "Kind", "ID", "Service", "Tags", "Address", "Meta", "Port", "Weights", "Proxy",
            ]
            .contains(&name.as_str())
        });
        match field {
            "/Port" => service["Port"] = json!(1),
            "/Proxy/Config" => service["Proxy"]["Config"] = json!({"protocol": "http"}),
            "/Proxy/LocalServicePort" => service["Proxy"]["LocalServicePort"] = json!(1),
            _ => service["Proxy"]["Upstreams"] = json!([]),
        }
        let entry = json!({"Node": scene.consul_node(), "Address": "192.168.7.1",
                           "SkipNodeUpdate": true, "Service": service});
        scene.by_hand(&entry).await?;
        let index = wanted["ModifyIndex"].as_u64();
        let repaired = |seen: &Instance| {
            let there = &seen.raw["Service"];
            Some(seen.modify_index) > index
                && there["Proxy"] == wanted["Proxy"]
                && there["Port"] == wanted["Port"]
        };
        mesh.proxy(repaired).await.context(field)?;
    }
    scene.event("DriftRepaired", "ledger", "proxy").await?;
    mesh.flows().await
}

async fn a_restart_writes_nothing(mesh: &Mesh) -> Result<Lictor> {
    let before = mesh.scene.dump().await?;
    let lictor = mesh.scene.lictor().await?;
    lictor.idle().await?;
    assert_eq!(mesh.scene.dump().await?, before);
    let operations = lictor.metric("lictor_operations_total", &[]).await?;
    assert!(
        operations == 0.0,
        "{operations} operations\n{}",
        lictor.log()
    );
    Ok(lictor)
}

/// More pods than a transaction has room for, each with a check of its own and one of its proxy.
const MANY: usize = 80;

#[tokio::test]
async fn however_many_change_at_once_each_does_in_one_write_with_its_proxy() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let service = scene.named("many");
    let spec = json!({
        "service": service, "port": 80, "connect": {"sidecar": {"port": 20000}},
        "selector": {"matchLabels": {"app": "many"}},
    });
    scene.register("many", spec).await?;
    let pods: Vec<String> = (0..MANY)
        .map(|number| format!("many-{number:02}"))
        .collect();
    for name in &pods {
        let pod = scene.pod(name).label("app", "many");
        pod.create(&scene.client).await?;
        pod.not_ready(&scene.client, "app").await?;
    }
    let sidecar = format!("{service}-sidecar-proxy");
    let all = async |status: &str| {
        let mut writes = Vec::new();
        for name in &pods {
            let instance = scene.status(&service, name, status).await?;
            let alias = format!("{}:alias", scene.id(&sidecar, name));
            let follows = |seen: &Instance| seen.check(&alias)["Status"] == status;
            let proxy = scene.instance(&sidecar, name, follows).await?;
            let ready = instance.check(&format!("{}:ready", instance.id));
            let index = |check: &Value| check["ModifyIndex"].clone();
            writes.push((index(ready), index(proxy.check(&alias))));
        }
        anyhow::Ok(writes)
    };
    all("critical").await?;
    scene
        .edit("many", json!({"spec": {"health": {"notReady": "Warning"}}}))
        .await?;
    for (instance, proxy) in all("warning").await? {
        assert_eq!(instance, proxy);
    }
    Ok(())
}

/// Here the proxy is the program that speaks TLS itself.
#[tokio::test]
async fn a_native_instance_is_found_without_a_proxy() -> Result<()> {
    let mesh = Mesh::new().await?;
    let scene = &mesh.scene;
    let lictor = scene.lictor().await?;
    mesh.pod().create_ready(&scene.client).await?;
    mesh.register(mesh.inbound.port()?, &json!({"native": true}))
        .await?;
    let seen = scene.status(&mesh.service, "ledger-0", "passing").await?;
    assert_eq!(seen.raw["Service"]["Connect"]["Native"], true);
    mesh.flows().await?;
    scene
        .create(Kind::Intention, "ledger", mesh.intention("deny"))
        .await?;
    mesh.refused().await?;
    scene.delete(Kind::Intention, "ledger").await?;
    mesh.flows().await?;

    let pod = mesh.pod();
    pod.not_ready(&scene.client, "app").await?;
    mesh.refused().await?;
    pod.running_ready(&scene.client).await?;
    mesh.flows().await?;
    scene
        .edit("ledger", json!({"spec": {"tags": ["v2"]}}))
        .await?;
    let edited = scene.instance(&mesh.service, "ledger-0", |seen| seen.tags == ["v2"]);
    let edited = edited.await?;
    assert_eq!(edited.create_index, seen.create_index);
    assert_eq!(edited.raw["Service"]["Connect"]["Native"], true);
    lictor.idle().await?;
    lictor.stop().await?;
    let _lictor = a_restart_writes_nothing(&mesh).await?;

    scene
        .edit("ledger", json!({"spec": {"connect": null}}))
        .await?;
    let plain = |seen: &Instance| seen.raw["Service"]["Connect"] == json!({});
    let plain = scene.instance(&mesh.service, "ledger-0", plain).await?;
    assert_eq!(plain.create_index, seen.create_index);
    assert!(
        plain.raw["Service"]["TaggedAddresses"]
            .get("consul-virtual")
            .is_none()
    );
    mesh.refused().await
}

/// Without upstreams the entry of a proxy is written in a transaction.
#[tokio::test]
async fn endpoints_have_proxies_too() -> Result<()> {
    let mesh = Mesh::new().await?;
    let scene = &mesh.scene;
    let lictor = scene.lictor().await?;
    let spec = json!({
        "service": mesh.service,
        "endpoints": [{"name": "one", "address": "127.0.0.1", "port": mesh.application}],
        "connect": {"sidecar": {"port": mesh.inbound.port()?}},
    });
    scene.register("ledger", spec).await?;
    let Scene {
        cluster, namespace, ..
    } = scene;
    let sidecar = mesh.sidecar();
    let id = format!("{cluster}.{namespace}.{sidecar}.ledger.one");
    let alias = format!("{id}:alias");
    let passes = |seen: &Instance| seen.check(&alias)["Status"] == "passing";
    let proxy = scene.instance_id(&sidecar, &id, passes).await?;
    assert_eq!(proxy.raw["Checks"].as_array().map(Vec::len), Some(1));
    mesh.flows().await?;
    scene
        .registration("ledger", |status| status["instances"]["summary"] == "2/2")
        .await?;
    // The instance itself has no check, and that of the proxy is drift like any other.
    let instance = format!("{cluster}.{namespace}.{}.ledger.one", mesh.service);
    let instance = scene.instance_id(&mesh.service, &instance, |_| true);
    assert_eq!(instance.await?.raw["Checks"], json!([]));
    let mut check = proxy.check(&alias).clone();
    let fields = check.as_object_mut().context("no check")?;
    fields.retain(|name, _| ["CheckID", "Name", "ServiceID", "Type"].contains(&name.as_str()));
    check["Status"] = json!("critical");
    let entry = json!({"Node": proxy.node, "Address": "127.0.0.1", "SkipNodeUpdate": true,
                       "Check": check});
    scene.by_hand(&entry).await?;
    scene.instance_id(&sidecar, &id, passes).await?;
    scene.event("DriftRepaired", "ledger", "check").await?;
    mesh.flows().await?;
    lictor.idle().await?;
    lictor.stop().await?;
    let _lictor = a_restart_writes_nothing(&mesh).await?;
    scene.unregister("ledger").await?;
    scene.gone_id(&sidecar, &id).await?;
    mesh.refused().await
}

/// With ACLs nobody may call whom no intention lets call.
#[tokio::test]
async fn with_acls_the_rights_of_the_docs_are_enough_for_the_mesh() -> Result<()> {
    let (_guard, installed) = three().await?;
    let scene = Scene::on(installed).await?;
    let of_proxies = r#"service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }"#;
    let of_proxies = scene.consul.create_token(of_proxies).await?;
    let mesh = Mesh::on(scene, &of_proxies.secret).await?;
    let scene = &mesh.scene;
    let lictor = scene.lictor().await?;
    mesh.pod().create_ready(&scene.client).await?;
    let upstreams = json!([{"service": mesh.caller, "localPort": 9191}]);
    let port = mesh.inbound.port()?;
    let connect = json!({"sidecar": {"port": port, "upstreams": upstreams}});
    mesh.register(mesh.application, &connect).await?;
    let alias = format!("{}:alias", scene.id(&mesh.sidecar(), "ledger-0"));
    let proxy = mesh
        .proxy(|seen| seen.check(&alias)["Status"] == "passing")
        .await?;
    assert_eq!(
        proxy.raw["Service"]["Proxy"]["Upstreams"][0]["DestinationName"],
        mesh.caller
    );
    mesh.refused().await?;
    let intention = mesh.intention("allow");
    scene.create(Kind::Intention, "ledger", intention).await?;
    mesh.flows().await?;
    mesh.pod().not_ready(&scene.client, "app").await?;
    mesh.refused().await?;
    mesh.pod().running_ready(&scene.client).await?;
    mesh.flows().await?;
    scene.delete(Kind::Intention, "ledger").await?;
    mesh.refused().await?;
    scene
        .edit("ledger", json!({"spec": {"connect": null}}))
        .await?;
    scene.gone(&mesh.sidecar(), "ledger-0").await?;
    lictor.idle().await?;
    for outcome in ["denied", "access_denied"] {
        let with = [&*format!("outcome=\"{outcome}\"")];
        let denied = lictor.metric("lictor_operations_total", &with).await?;
        ensure!(denied == 0.0, "{denied} writes were denied");
    }
    Ok(())
}
