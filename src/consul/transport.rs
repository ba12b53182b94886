//! Connections to the configured addresses.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderValue;
use reqwest::{Certificate, Identity, Url, redirect};

use super::config::{ConfigError, ConsulConfig};

/// Longest time for a connection including its TLS handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Shorter than the two minutes after which Consul (1.22.5 and later) closes an idle connection,
/// so that no write is ever sent into a connection that is being closed.
const POOL_IDLE: Duration = Duration::from_mins(1);
/// The scheme of an address that is a socket of this machine, and the base of the URLs asked for there.
const SOCKET: &str = "unix";
const LOCAL: &str = "http://localhost/";
const KEEPALIVE: Duration = Duration::from_secs(15);

/// One client for each address: with a server name override several addresses have the same URL,
/// and one pool would mix them up.
pub(super) struct Transport {
    endpoints: Vec<Endpoint>,
    /// The one that worked last.
    preferred: AtomicUsize,
}

pub(super) struct Endpoint {
    pub(super) http: reqwest::Client,
    /// Where requests go: the configured address, or its server name.
    pub(super) base: Url,
    /// The configured host, where `base` names another.
    pub(super) host: Option<HeaderValue>,
}

impl Transport {
    /// Reads the TLS files and prepares a client for each address; connects to nothing.
    pub(super) fn new(config: &ConsulConfig) -> Result<Self, ConfigError> {
        // Whoever came first, be it us or the Kubernetes client, has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let roots = match &config.tls.ca_cert {
            // Nothing is trusted where no TLS is used: the platform's verifier would fail to
            // start in an image without authorities.
            None if !config.uses_tls() => Some(Vec::new()),
            None => None,
            Some(path) => Some(authorities(path)?),
        };
        let identity = config
            .tls
            .identity
            .as_ref()
            .map(|(cert, key)| read_identity(cert, key))
            .transpose()?;
        let endpoints = config
            .addresses
            .iter()
            .map(|url| {
                Endpoint::new(
                    url,
                    config.tls.server_name.as_deref(),
                    roots.as_deref(),
                    identity.as_ref(),
                )
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            endpoints,
            preferred: AtomicUsize::new(0),
        })
    }

    /// Positions of all endpoints, the one that worked last first.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.endpoints.len());
        (0..count).map(move |offset| (first + offset) % count)
    }

    pub(super) fn endpoint(&self, position: usize) -> &Endpoint {
        &self.endpoints[position % self.endpoints.len()]
    }

    /// Goes on with this endpoint.
    pub(super) fn prefer(&self, position: usize) {
        self.preferred.store(position, Ordering::Relaxed);
    }

    /// Lets the next request start at another endpoint, unless someone else did so already.
    pub(super) fn avoid(&self, position: usize) {
        let next = (position + 1) % self.endpoints.len();
        let _ =
            self.preferred
                .compare_exchange(position, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Endpoint {
    fn new(
        address: &Url,
        server_name: Option<&str>,
        roots: Option<&[Certificate]>,
        identity: Option<&Identity>,
    ) -> Result<Self, ConfigError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("lictor/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true)
            .http1_only();
        if let Some(roots) = roots {
            builder = builder.tls_certs_only(roots.iter().cloned());
        }
        if let Some(identity) = identity {
            builder = builder.identity(identity.clone());
        }
        let mut base = address.clone();
        let mut host = None;
        if address.scheme() == SOCKET {
            builder = builder.unix_socket(Path::new(address.path()));
            base = LOCAL.parse().map_err(|error| {
                ConfigError::new("CONSUL_HTTP_ADDR", format!("{LOCAL}: {error}"))
            })?;
        }
        if let Some(name) = server_name.filter(|_| address.scheme() == "https") {
            let target = address
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            builder = builder.dns_resolver(Fixed { host: target });
            host = HeaderValue::from_str(address.authority()).ok();
            let problem = |_| {
                ConfigError::new(
                    "CONSUL_TLS_SERVER_NAME",
                    format!("{name:?} is not a host name"),
                )
            };
            base.set_host(Some(name)).map_err(problem)?;
        }
        let http = builder
            .build()
            .map_err(|error| ConfigError::new(tls_variable(roots), chain(&error)))?;
        Ok(Self { http, base, host })
    }
}

/// The setting to look at when a client cannot be built, which only TLS can cause.
fn tls_variable(roots: Option<&[Certificate]>) -> &'static str {
    if roots.is_none() {
        "CONSUL_CACERT"
    } else {
        "CONSUL_CLIENT_CERT"
    }
}

/// Resolves every name to one host, so that a URL can carry the name that TLS is to check.
struct Fixed {
    host: String,
}

impl Resolve for Fixed {
    fn resolve(&self, _name: Name) -> Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            // The port is that of the URL.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    const VARIABLE: &str = "CONSUL_CACERT";
    let pem = read(VARIABLE, path)?;
    let certs = Certificate::from_pem_bundle(&pem).map_err(|error| {
        ConfigError::new(VARIABLE, format!("{}: {}", path.display(), chain(&error)))
    })?;
    if certs.is_empty() {
        return Err(ConfigError::new(
            VARIABLE,
            format!("{} holds no PEM certificate", path.display()),
        ));
    }
    Ok(certs)
}

fn read_identity(cert: &Path, key: &Path) -> Result<Identity, ConfigError> {
    let mut pem = read("CONSUL_CLIENT_CERT", cert)?;
    pem.push(b'\n');
    pem.extend(read("CONSUL_CLIENT_KEY", key)?);
    Identity::from_pem(&pem).map_err(|error| {
        let problem = format!(
            "{} and {}: {}",
            cert.display(),
            key.display(),
            chain(&error)
        );
        ConfigError::new("CONSUL_CLIENT_CERT", problem)
    })
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|error| {
        ConfigError::new(variable, format!("cannot read {}: {error}", path.display()))
    })
}

/// An error with its causes, for those whose own text says only "error sending request".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
