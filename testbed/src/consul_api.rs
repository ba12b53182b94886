//! A look at Consul that owes nothing to the code under test.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;

/// Longer than Consul takes for any answer that does not block.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long one of several servers may take for a read until the next one is asked.
const TURN: Duration = Duration::from_secs(5);
/// The header of a token.
pub(crate) const CONSUL_TOKEN: &str = "X-Consul-Token";

/// Raw calls of Consul's HTTP API. Paths are given with their query, as in
/// `/v1/catalog/node-services/n1?consistent`; blocking queries must end within 30 seconds.
///
/// With several servers, the one that answered last is asked first. A read goes on to the next
/// server on every failure of a server, also after five seconds without an answer; a write only
/// where it is sure that it was not sent.
#[derive(Debug, Clone)]
pub struct ConsulApi {
    bases: Vec<String>,
    token: Option<String>,
    client: Client,
    preferred: Arc<AtomicUsize>,
}

impl ConsulApi {
    /// For the agent at an address such as `http://127.0.0.1:8500`. The connections belong to the
    /// runtime of their first use.
    pub fn new(address: &str) -> Result<Self> {
        Self::any_of(&[address])
    }

    /// For servers of one datacenter.
    pub fn any_of<S: AsRef<str>>(addresses: &[S]) -> Result<Self> {
        if addresses.is_empty() {
            bail!("no address of a Consul");
        }
        let base = |address: &S| address.as_ref().trim_end_matches('/').to_owned();
        Ok(Self {
            bases: addresses.iter().map(base).collect(),
            token: None,
            client: http_client(&[])?,
            preferred: Arc::default(),
        })
    }

    /// The same with a token; the empty one is that of anonymous callers.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = (!token.is_empty()).then(|| token.to_owned());
        self
    }

    /// The same for each of its servers alone.
    #[must_use]
    pub fn each(&self) -> Vec<Self> {
        let one = |base: &String| Self {
            bases: vec![base.clone()],
            preferred: Arc::default(),
            ..self.clone()
        };
        self.bases.iter().map(one).collect()
    }

    /// The JSON at a path; fails on any answer that is not a success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// The JSON at a path, or `None` if there is nothing (404).
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        let (status, bytes) = self.raw(Method::GET, path, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        parse(path, status, &bytes).map(Some)
    }

    /// Writes JSON and gives the answer, `null` if it has no body.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Writes a key of the key-value store, whose value is this text.
    pub async fn put_text(&self, key: &str, text: &str) -> Result<()> {
        let path = format!("/v1/kv/{key}");
        let body = Some(text.as_bytes().to_vec());
        let (status, bytes) = self.raw(Method::PUT, &path, body).await?;
        parse(&path, status, &bytes).map(drop)
    }

    /// Posts JSON, as for a new prepared query, and gives the answer, `null` if it has no body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Deletes and gives the answer, `null` if it has no body.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    /// The instances of a service with their node and checks (`/v1/health/service`), read
    /// consistently.
    pub async fn health(&self, service: &str) -> Result<Vec<Value>> {
        match self
            .get(&format!("/v1/health/service/{service}?consistent"))
            .await?
        {
            Value::Array(instances) => Ok(instances),
            other => bail!("not a list of instances: {other}"),
        }
    }

    /// A snapshot of all that the servers hold (`/v1/snapshot`).
    pub async fn snapshot(&self) -> Result<Vec<u8>> {
        let path = "/v1/snapshot";
        let (status, bytes) = self.raw(Method::GET, path, None).await?;
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    /// Takes the servers back to a snapshot.
    pub async fn restore(&self, snapshot: &[u8]) -> Result<()> {
        let path = "/v1/snapshot";
        let (status, bytes) = self.raw(Method::PUT, path, Some(snapshot.to_vec())).await?;
        parse(path, status, &bytes).map(drop)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let (status, bytes) = self.raw(method, path, body).await?;
        parse(path, status, &bytes)
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let reads = method == Method::GET;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut turn = 0;
        loop {
            let number = (first + turn) % self.bases.len();
            turn += 1;
            let last = turn == self.bases.len();
            let deadline = if reads && !last { TURN } else { DEADLINE };
            let url = format!("{}{path}", self.bases[number]);
            let asked = self.ask(method.clone(), &url, body.clone(), deadline);
            match asked.await {
                Ok((status, _)) if reads && status.is_server_error() && !last => {}
                Err(error) if (reads || error.is_connect()) && !last => {}
                answer => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return answer.with_context(|| format!("no answer from {url}"));
                }
            }
        }
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> reqwest::Result<(StatusCode, Vec<u8>)> {
        let mut request = self.client.request(method, url).timeout(deadline);
        if let Some(token) = &self.token {
            request = request.header(CONSUL_TOKEN, token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        Ok((response.status(), response.bytes().await?.to_vec()))
    }
}

fn parse(path: &str, status: StatusCode, bytes: &[u8]) -> Result<Value> {
    let text = String::from_utf8_lossy(bytes);
    if !status.is_success() {
        bail!("{path}: {status}: {text}");
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{path}: not JSON: {text}"))
}

/// A client that trusts only the given authorities (DER) and no proxy of the environment.
pub(crate) fn http_client(authorities: &[&[u8]]) -> Result<Client> {
    // Without a provider the builder panics; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authorities = authorities
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Client::builder()
        .tls_certs_only(authorities)
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .build()?)
}
