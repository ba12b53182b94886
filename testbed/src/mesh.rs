//! Consul's built-in proxy of the service mesh.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use reqwest::Client;
use tokio::task::JoinHandle;

use crate::{
    Bed, Server,
    consul_api::{CONSUL_TOKEN, http_client},
    ports::Port,
    server::Probe,
    tools,
};

/// What a proxy logs when it has its certificate, just before it listens for others.
const HAS_CERTIFICATE: &str = "Proxy loaded config and ready to serve";
/// How long an agent may hold a request for intentions that do not change.
const HOLD: &str = "5m";
/// How long it lets be when an agent does not answer.
const BREATH: Duration = Duration::from_millis(100);

/// How a proxy of the mesh is made.
#[derive(Debug, Clone, Default)]
pub struct MeshProxyOptions {
    /// The service that it speaks for. Its certificate says that name; no entry of the catalog, nor
    /// of an agent, is needed for it.
    pub service: String,
    /// The program that gets what others send to the service. Without it the proxy listens for
    /// nobody else.
    pub application: Option<SocketAddr>,
    /// The services that it reaches; `<name>.query` is a prepared query, whose `Connect` must be
    /// true.
    pub upstreams: Vec<String>,
    /// The token for Consul, which needs `service:write` on the service, and `service:read` and
    /// `node:read` on what it reaches; the empty one is that of anonymous callers.
    pub token: String,
}

/// A running `consul connect proxy`, ended when it is dropped.
///
/// It asks the first server of `dc1`: for its certificate, for the instances of its upstreams
/// (`/v1/health/connect/<service>?passing`, at each connection), and whether a caller may connect
/// (`/v1/agent/connect/authorize`, at each connection as well; open ones stay). An intention with
/// `Permissions` is a refusal to it, since it knows nothing of HTTP.
///
/// It belongs to the runtime that it was started on.
#[derive(Debug)]
pub struct MeshProxy {
    server: Server,
    listener: Option<Port>,
    upstreams: Vec<(String, Port)>,
    _intentions: Option<Watch>,
}

impl MeshProxy {
    /// Its process, to be killed, paused and started.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The port on 127.0.0.1 where other proxies reach the service: that of the `connect-proxy`
    /// instance in the catalog, or of a `Connect.Native` one.
    pub fn port(&self) -> Result<u16> {
        let listener = self.listener.as_ref();
        let listener = listener.context("it listens for nobody: give it an application")?;
        Ok(listener.number())
    }

    /// Where a local program reaches an upstream, by the name that the options have.
    pub fn upstream(&self, name: &str) -> Result<SocketAddr> {
        let found = self.upstreams.iter().find(|(other, _)| other == name);
        let (_, port) = found.with_context(|| format!("{name} is no upstream of it"))?;
        Ok((Ipv4Addr::LOCALHOST, port.number()).into())
    }
}

impl Bed {
    /// Starts a proxy and waits until it has its certificate.
    pub async fn mesh_proxy(&self, options: &MeshProxyOptions) -> Result<MeshProxy> {
        let MeshProxyOptions { service, token, .. } = options;
        let reservations = tools::cache_folder()?.join("ports");
        let mut args = ["connect", "proxy"].map(str::to_owned).to_vec();
        args.push(format!("-http-addr={}", self.consul_addr()));
        args.push(format!("-service={service}"));
        if !token.is_empty() {
            args.push(format!("-token={token}"));
        }
        let mut listener = None;
        if let Some(application) = options.application {
            let port = Port::reserve(&reservations)?;
            args.push(format!("-listen=127.0.0.1:{}", port.number()));
            args.push(format!("-service-addr={application}"));
            listener = Some(port);
        }
        let mut upstreams = Vec::new();
        for name in &options.upstreams {
            let port = Port::reserve(&reservations)?;
            args.push(format!("-upstream={name}:127.0.0.1:{}", port.number()));
            upstreams.push((name.clone(), port));
        }

        let mut ports = listener
            .iter()
            .chain(upstreams.iter().map(|(_, port)| port));
        let Some(first) = ports.next().map(Port::number) else {
            bail!("a proxy without an application and without an upstream does nothing");
        };
        let folder = self.dir().join(format!("mesh-{service}-{first}"));
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let probe = Probe::log(format!("127.0.0.1:{first}"), HAS_CERTIFICATE);
        let server = self.consul_program("consul-connect-proxy", args, &folder, probe);
        server.start().await?;
        let watch = || Watch::start(&self.consul_addr(), service, token);
        Ok(MeshProxy {
            server,
            _intentions: listener.is_some().then(watch).transpose()?,
            listener,
            upstreams,
        })
    }
}

/// Keeps fresh what an agent holds of the intentions for a service.
///
/// Since Consul 1.22.5 an agent refreshes what it has cached for only as long as the request lives
/// that asked for it first (hashicorp/consul#23368), so a proxy that asks whether a caller may
/// connect is told what held long ago. A request that waits for a change of the same cached answer
/// sets that right; it is what Consul recommends to proxies, and what this one does not do.
#[derive(Debug)]
struct Watch(JoinHandle<()>);

impl Watch {
    fn start(agent: &str, service: &str, token: &str) -> Result<Self> {
        let client = http_client(&[])?;
        // The answer is cached by name and token, and this is the name that the agent itself uses.
        let url = format!(
            "{agent}/v1/connect/intentions/match?by=destination\
             &name=default/default/{service}&cached&wait={HOLD}"
        );
        let token = token.to_owned();
        Ok(Self(tokio::spawn(async move {
            let mut index = 0;
            loop {
                let next = next_index(&client, &url, &token, index).await;
                if next.is_err() {
                    tokio::time::sleep(BREATH).await;
                }
                // The agent may come back without what it had.
                index = next.unwrap_or_default();
            }
        })))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the answer has another index, and gives that.
async fn next_index(client: &Client, url: &str, token: &str, index: u64) -> Result<u64> {
    let mut request = client.get(format!("{url}&index={index}"));
    if !token.is_empty() {
        request = request.header(CONSUL_TOKEN, token);
    }
    let response = request.send().await?.error_for_status()?;
    let index = response.headers().get("X-Consul-Index");
    let index = index.context("an answer without an index")?;
    Ok(index.to_str()?.parse()?)
}
