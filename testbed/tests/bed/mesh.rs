//! Consul's built-in proxies, with real certificates, on entries of the catalog.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{Bed, BedOptions, ConsulApi, ConsulToken, MeshProxy, MeshProxyOptions, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::SOON;

const NODE: &str = "lictor-t--n1";
const LEDGER: &str = "t.shop.ledger.ledger-0";
const SIDECAR: &str = "t.shop.ledger-sidecar-proxy.ledger-0";

/// A program that says again what it hears; it ends with the value.
struct Application {
    address: SocketAddr,
    _connections: JoinSet<()>,
}

impl Application {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Ok(Self {
            address,
            _connections: connections,
        })
    }
}

/// Sends a word and gets it back.
async fn talk(stream: &mut TcpStream) -> Result<()> {
    let exchange = async {
        stream.write_all(b"ping").await?;
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await?;
        ensure!(heard == *b"ping", "heard {heard:?}");
        Ok(())
    };
    timeout(Duration::from_secs(5), exchange).await?
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    talk(&mut stream).await?;
    Ok(stream)
}

async fn flows(address: SocketAddr) -> Result<TcpStream> {
    wait::until("traffic", SOON, async || connect(address).await).await
}

async fn refused(address: SocketAddr) -> Result<()> {
    wait::until("a refusal", SOON, async || match connect(address).await {
        Err(_) => Ok(()),
        Ok(_) => Err("traffic"),
    })
    .await
}

/// The service as another program registers it, not with an agent: a plain instance, and the
/// instance of its proxy.
struct Ledger {
    consul: ConsulApi,
    application: u16,
    listener: u16,
}

impl Ledger {
    fn plain(&self) -> Value {
        json!({
            "ID": LEDGER, "Service": "ledger",
            "Address": "127.0.0.1", "Port": self.application,
        })
    }

    fn sidecar(&self) -> Value {
        json!({
            "Kind": "connect-proxy",
            "ID": SIDECAR, "Service": "ledger-sidecar-proxy",
            "Address": "127.0.0.1", "Port": self.listener,
            "Proxy": {
                "DestinationServiceName": "ledger",
                "DestinationServiceID": LEDGER,
                "LocalServiceAddress": "127.0.0.1",
                "LocalServicePort": self.application,
            },
        })
    }

    async fn put(&self, service: &Value, status: &str) -> Result<()> {
        let id = &service["ID"];
        let entry = json!({
            "Node": NODE, "Address": "10.0.0.1",
            "Service": service,
            "Check": {"CheckID": id, "ServiceID": id, "Name": "ready", "Status": status},
        });
        let put = self.consul.put("/v1/catalog/register", &entry);
        put.await.map(drop)
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let entry = json!({"Node": NODE, "ServiceID": id});
        let put = self.consul.put("/v1/catalog/deregister", &entry);
        put.await.map(drop)
    }

    async fn stored(&self, id: &str) -> Result<Value> {
        let path = format!("/v1/catalog/node-services/{NODE}?consistent");
        let node = self.consul.get(&path).await?;
        let services = node["Services"].as_array().context("no list")?;
        let found = services.iter().find(|service| service["ID"] == id);
        found.cloned().with_context(|| format!("no {id}: {node}"))
    }
}

async fn intend(consul: &ConsulApi, destination: &str, sources: Value) -> Result<()> {
    let entry = json!({"Kind": "service-intentions", "Name": destination, "Sources": sources});
    consul.put("/v1/config", &entry).await.map(drop)
}

async fn forget(consul: &ConsulApi, kind: &str, name: &str) -> Result<()> {
    consul
        .delete(&format!("/v1/config/{kind}/{name}"))
        .await
        .map(drop)
}

#[tokio::test]
async fn proxies_find_each_other_by_the_catalog() -> Result<()> {
    let bed = Bed::start(BedOptions::default()).await?;
    let consul = bed.consul()?;
    let application = Application::start().await?;
    let inbound = MeshProxyOptions {
        service: "ledger".to_owned(),
        application: Some(application.address),
        ..MeshProxyOptions::default()
    };
    let outbound = MeshProxyOptions {
        service: "web".to_owned(),
        upstreams: vec!["ledger".to_owned(), "books.query".to_owned()],
        ..MeshProxyOptions::default()
    };
    let inbound = bed.mesh_proxy(&inbound).await?;
    let outbound = bed.mesh_proxy(&outbound).await?;
    ensure!(outbound.port().is_err() && outbound.upstream("nobody").is_err());
    let ledger = Ledger {
        consul: consul.clone(),
        application: application.address.port(),
        listener: inbound.port()?,
    };

    entries_decide_what_is_found(&ledger, &outbound).await?;
    intentions_decide_what_may_connect(&consul, outbound.upstream("ledger")?).await?;
    a_query_finds_instances_too(&consul, &outbound).await?;
    a_native_instance_needs_no_other(&ledger, outbound.upstream("ledger")?).await?;
    transactions_drop_what_register_keeps(&ledger).await?;

    // A proxy is a server like any other.
    let upstream = outbound.upstream("ledger")?;
    inbound.server().kill();
    refused(upstream).await?;
    inbound.server().start().await?;
    flows(upstream).await?;
    bed.consul_server.restart().await?;
    flows(upstream).await?;
    let deny = json!([{"Name": "web", "Action": "deny"}]);
    intend(&consul, "ledger", deny).await?;
    refused(upstream).await
}

/// Each connection looks anew, so there is nothing to wait for.
async fn entries_decide_what_is_found(ledger: &Ledger, web: &MeshProxy) -> Result<()> {
    let upstream = web.upstream("ledger")?;
    let found = async || connect(upstream).await.is_ok();
    ensure!(!found().await, "found without an entry");
    ledger.put(&ledger.plain(), "passing").await?;
    ensure!(!found().await, "a plain instance was found");
    ledger.put(&ledger.sidecar(), "passing").await?;
    flows(upstream).await?;

    // The checks of the proxy's instance count, and only `passing` will do.
    ledger.put(&ledger.plain(), "critical").await?;
    ensure!(found().await, "the plain instance counts");
    for status in ["warning", "critical"] {
        ledger.put(&ledger.sidecar(), status).await?;
        ensure!(!found().await, "found although {status}");
    }
    ledger.put(&ledger.sidecar(), "passing").await?;
    ledger.remove(LEDGER).await?;
    ensure!(found().await, "the plain instance is needed");

    // Of the fields of the proxy, the name of the service that it stands for; of the others, where
    // it is and its kind.
    let mut bare = ledger.sidecar();
    bare["Service"] = json!("any-name");
    bare["Proxy"] = json!({"DestinationServiceName": "ledger"});
    ledger.put(&bare, "passing").await?;
    ensure!(found().await, "more is needed");
    bare["Proxy"] = json!({"DestinationServiceName": "other"});
    ledger.put(&bare, "passing").await?;
    ensure!(!found().await, "found as another service");
    bare["Proxy"] = json!({"DestinationServiceID": LEDGER});
    ensure!(ledger.put(&bare, "passing").await.is_err(), "no name taken");

    ledger.put(&ledger.plain(), "passing").await?;
    ledger.put(&ledger.sidecar(), "passing").await?;
    // Consul adds an address of its own to what is in the mesh.
    let stored = ledger.stored(SIDECAR).await?;
    ensure!(
        stored["TaggedAddresses"]["consul-virtual"]["Port"] == ledger.listener,
        "{stored}"
    );
    Ok(())
}

async fn intentions_decide_what_may_connect(
    consul: &ConsulApi,
    upstream: SocketAddr,
) -> Result<()> {
    let source = |action: &str| json!([{"Name": "web", "Action": action}]);
    let mut open = flows(upstream).await?;
    for _ in 0..3 {
        intend(consul, "ledger", source("deny")).await?;
        refused(upstream).await?;
        intend(consul, "ledger", source("allow")).await?;
        flows(upstream).await?;
    }
    intend(consul, "ledger", source("deny")).await?;
    refused(upstream).await?;
    talk(&mut open).await.context("an open connection ended")?;
    forget(consul, "service-intentions", "ledger").await?;
    flows(upstream).await?;

    // Zero trust: all are denied, and one is allowed.
    let all = json!([{"Name": "*", "Action": "deny"}]);
    intend(consul, "*", all).await?;
    refused(upstream).await?;
    intend(consul, "ledger", source("allow")).await?;
    flows(upstream).await?;

    // This proxy knows nothing of HTTP, and refuses what asks for that.
    let http = json!({"Kind": "service-defaults", "Name": "ledger", "Protocol": "http"});
    consul.put("/v1/config", &http).await?;
    let permissions = json!([{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]);
    let permitted = json!([{"Name": "web", "Permissions": permissions}]);
    intend(consul, "ledger", permitted).await?;
    refused(upstream).await?;
    forget(consul, "service-intentions", "ledger").await?;
    forget(consul, "service-defaults", "ledger").await?;
    forget(consul, "service-intentions", "*").await?;
    flows(upstream).await.map(drop)
}

async fn a_query_finds_instances_too(consul: &ConsulApi, web: &MeshProxy) -> Result<()> {
    let query = json!({
        "Name": "books",
        "Service": {"Service": "ledger", "OnlyPassing": true, "Connect": true},
    });
    consul.post("/v1/query", &query).await?;
    flows(web.upstream("books.query")?).await.map(drop)
}

/// Here the proxy is the program that speaks TLS itself, under its own service's name.
async fn a_native_instance_needs_no_other(ledger: &Ledger, upstream: SocketAddr) -> Result<()> {
    ledger.remove(SIDECAR).await?;
    let mut native = ledger.plain();
    native["Port"] = json!(ledger.listener);
    ledger.put(&native, "passing").await?;
    ensure!(connect(upstream).await.is_err(), "found though not native");
    native["Connect"] = json!({"Native": true});
    ledger.put(&native, "passing").await?;
    flows(upstream).await?;
    ledger.put(&native, "warning").await?;
    ensure!(connect(upstream).await.is_err(), "found although warning");
    ledger.put(&native, "passing").await
}

async fn transactions_drop_what_register_keeps(ledger: &Ledger) -> Result<()> {
    let mut native = ledger.plain();
    native["Port"] = json!(ledger.listener);
    native["Connect"] = json!({"Native": true});
    let mut sidecar = ledger.sidecar();
    let dropped = json!({
        "Mode": "transparent",
        "Config": {"protocol": "http"},
        "Upstreams": [{"DestinationName": "db", "LocalBindPort": 9191}],
        "Expose": {"Checks": true},
        "AccessLogs": {"Enabled": true},
        "EnvoyExtensions": [{"Name": "builtin/lua"}],
    });
    let kept = json!({
        "MeshGateway": {"Mode": "local"},
        "TransparentProxy": {"OutboundListenerPort": 15001, "DialedDirectly": true},
    });
    for more in [&dropped, &kept] {
        for (field, value) in more.as_object().context("no object")? {
            sidecar["Proxy"][field] = value.clone();
        }
    }
    let set =
        |service: &Value| json!({"Service": {"Verb": "set", "Node": NODE, "Service": service}});
    let operations = json!([set(&native), set(&sidecar)]);
    ledger.consul.put("/v1/txn", &operations).await?;
    ensure!(ledger.stored(LEDGER).await?["Connect"] == json!({}));
    let stored = ledger.stored(SIDECAR).await?;
    for field in ["Config", "Upstreams", "AccessLogs", "EnvoyExtensions"] {
        ensure!(stored["Proxy"][field].is_null(), "{field}: {stored}");
    }
    ensure!(stored["Proxy"]["Mode"] == "" && stored["Proxy"]["Expose"] == json!({}));
    for (field, value) in kept.as_object().context("no object")? {
        ensure!(stored["Proxy"][field] == *value, "{field}: {stored}");
    }
    for field in [
        "DestinationServiceID",
        "LocalServiceAddress",
        "LocalServicePort",
    ] {
        let same = stored["Proxy"][field] == sidecar["Proxy"][field];
        ensure!(same, "{field}: {stored}");
    }

    ledger.put(&native, "passing").await?;
    ledger.put(&sidecar, "passing").await?;
    ensure!(ledger.stored(LEDGER).await?["Connect"] == json!({"Native": true}));
    let stored = ledger.stored(SIDECAR).await?;
    for field in ["Mode", "Config", "Expose", "AccessLogs"] {
        ensure!(
            stored["Proxy"][field] == dropped[field],
            "{field}: {stored}"
        );
    }
    ensure!(stored["Proxy"]["Upstreams"][0]["LocalBindPort"] == 9191);
    Ok(())
}

#[tokio::test]
async fn proxies_have_the_rights_of_their_tokens() -> Result<()> {
    let options = BedOptions {
        consul_acls: true,
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await?;
    let consul = bed.consul()?;
    let token = async |rules: &str| -> Result<ConsulToken> { consul.create_token(rules).await };
    let application = Application::start().await?;
    let inbound = MeshProxyOptions {
        service: "ledger".to_owned(),
        application: Some(application.address),
        token: token(r#"service "ledger" { policy = "write" }"#)
            .await?
            .secret,
        ..MeshProxyOptions::default()
    };
    let inbound = bed.mesh_proxy(&inbound).await?;
    let rules = r#"
        service "web" { policy = "write" }
        service_prefix "ledger" { policy = "read" }
        node_prefix "" { policy = "read" }
    "#;
    let outbound = MeshProxyOptions {
        service: "web".to_owned(),
        upstreams: vec!["ledger".to_owned()],
        token: token(rules).await?.secret,
        ..MeshProxyOptions::default()
    };
    let outbound = bed.mesh_proxy(&outbound).await?;
    let upstream = outbound.upstream("ledger")?;
    let ledger = Ledger {
        consul: consul.clone(),
        application: application.address.port(),
        listener: inbound.port()?,
    };
    ledger.put(&ledger.sidecar(), "passing").await?;

    // Where ACLs deny what no token allows, so do intentions.
    refused(upstream).await?;
    for _ in 0..2 {
        let allow = json!([{"Name": "web", "Action": "allow"}]);
        intend(&consul, "ledger", allow).await?;
        flows(upstream).await?;
        let deny = json!([{"Name": "web", "Action": "deny"}]);
        intend(&consul, "ledger", deny).await?;
        refused(upstream).await?;
    }
    forget(&consul, "service-intentions", "ledger").await?;
    refused(upstream).await
}
