//! A look at Consul that owes nothing to the code under test.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;

/// Longer than Consul takes for any answer that does not block.
const DEADLINE: Duration = Duration::from_secs(30);

/// Raw calls of Consul's HTTP API. Paths are given with their query, as in
/// `/v1/catalog/node-services/n1?consistent`; blocking queries must end within 30 seconds.
#[derive(Debug, Clone)]
pub struct ConsulApi {
    base: String,
    client: Client,
}

impl ConsulApi {
    /// For the agent at an address such as `http://127.0.0.1:8500`. The connections belong to the
    /// runtime of their first use.
    pub fn new(address: &str) -> Result<Self> {
        Ok(Self {
            base: address.trim_end_matches('/').to_owned(),
            client: http_client(&[])?,
        })
    }

    /// The JSON at a path; fails on any answer that is not a success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// The JSON at a path, or `None` if there is nothing (404).
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        let (status, text) = self.raw(Method::GET, path, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        parse(path, status, &text).map(Some)
    }

    /// Writes JSON and gives the answer, `null` if it has no body.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::PUT, path, Some(body)).await
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

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, text) = self.raw(method, path, body).await?;
        parse(path, status, &text)
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, String)> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, &url).timeout(DEADLINE);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("no answer from {url}"))?;
        Ok((response.status(), response.text().await?))
    }
}

fn parse(path: &str, status: StatusCode, text: &str) -> Result<Value> {
    if !status.is_success() {
        bail!("{path}: {status}: {text}");
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("{path}: not JSON: {text}"))
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
