//! The client of the API server, with a deadline on every call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use reqwest::header::{HeaderValue, USER_AGENT};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// How the API server is found.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// A kubeconfig file; else `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; else its current one.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A kubeconfig cannot be used.
    #[error("the kubeconfig {0} cannot be used: see --kubeconfig and --context")]
    Kubeconfig(String, #[source] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a service account was found.
    #[error(
        "there is neither a kubeconfig nor a service account to reach the Kubernetes API with: give \
         --kubeconfig, or run in a pod that has one"
    )]
    Nowhere(#[source] kube::config::InferConfigError),
    /// The settings make no client.
    #[error("the Kubernetes client cannot be built")]
    Build(#[source] kube::Error),
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server, or the way to it, failed.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// There was no answer in time.
    #[error("no answer from the API server within {0:?}")]
    Deadline(Duration),
}

impl CallError {
    /// What the API server said, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status),
            Self::Kube(_) | Self::Deadline(_) => None,
        }
    }
}

/// A call with a deadline: kube sets none of its own.
pub async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(CallError::Deadline(deadline)),
    }
}

/// Builds the client, and tells the host and port of the API server. It does not connect yet.
pub async fn client_and_address(
    options: &ClientOptions,
) -> Result<(Client, Option<(String, u16)>), ClientError> {
    let config = config(options).await?;
    let url = &config.cluster_url;
    let port = match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    let host = url.host().map(str::to_owned);
    let address = host.map(|host| (host, url.port_u16().unwrap_or(port)));
    Ok((build(config)?, address))
}

/// Builds the client. It does not connect yet.
pub async fn client(options: &ClientOptions) -> Result<Client, ClientError> {
    build(config(options).await?)
}

fn build(config: Config) -> Result<Client, ClientError> {
    // One is there already when another client was built before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(tuned(config)).map_err(ClientError::Build)
}

async fn config(options: &ClientOptions) -> Result<Config, ClientError> {
    let choice = KubeConfigOptions {
        context: options.context.clone(),
        ..KubeConfigOptions::default()
    };
    match &options.kubeconfig {
        Some(path) => from_file(path, &choice).await,
        // A context exists in a kubeconfig only: a service account would be somebody else.
        None if options.context.is_some() => Config::from_kubeconfig(&choice)
            .await
            .map_err(|error| ClientError::Kubeconfig("of the environment".to_owned(), error)),
        None => Config::infer().await.map_err(ClientError::Nowhere),
    }
}

async fn from_file(path: &Path, choice: &KubeConfigOptions) -> Result<Config, ClientError> {
    let read = async { Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, choice).await };
    read.await
        .map_err(|error| ClientError::Kubeconfig(path.display().to_string(), error))
}

fn tuned(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT_DEADLINE);
    config.write_timeout = Some(WRITE_DEADLINE);
    // kube would retry a call for minutes; each caller here has its own idea of when and whether.
    config.default_retry = false;
    config.headers.push((
        USER_AGENT,
        HeaderValue::from_static(concat!("lictor/", env!("CARGO_PKG_VERSION"))),
    ));
    // kube takes a proxy from the environment for a kubeconfig, but not in a cluster, and matches
    // NO_PROXY against the proxy instead of the server. Only a kubeconfig's own proxy is meant.
    let from_environment = ["HTTPS_PROXY", "https_proxy"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok()?.parse().ok())
        .any(|proxy| config.proxy_url.as_ref() == Some(&proxy));
    if from_environment {
        config.proxy_url = None;
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r"
apiVersion: v1
kind: Config
clusters:
- {name: one, cluster: {server: 'https://one.example:6443'}}
- {name: two, cluster: {server: 'https://two.example:6443'}}
users:
- {name: me, user: {token: secret}}
contexts:
- {name: one, context: {cluster: one, user: me}}
- {name: two, context: {cluster: two, user: me}}
current-context: one
";

    async fn server(context: Option<&str>) -> Result<String, ClientError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let options = ClientOptions {
            kubeconfig: Some(file.path().to_owned()),
            context: context.map(str::to_owned),
        };
        let config = tuned(config(&options).await?);
        assert!(!config.default_retry);
        assert!(
            config
                .headers
                .iter()
                .any(|(_, value)| value.as_bytes().starts_with(b"lictor/"))
        );
        client(&options).await?;
        Ok(config.cluster_url.to_string())
    }

    #[tokio::test]
    async fn a_context_chooses_the_server() {
        assert_eq!(server(None).await.unwrap(), "https://one.example:6443/");
        assert_eq!(
            server(Some("two")).await.unwrap(),
            "https://two.example:6443/"
        );
        assert!(matches!(
            server(Some("three")).await,
            Err(ClientError::Kubeconfig(..))
        ));
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_named() {
        let options = ClientOptions {
            kubeconfig: Some("/nowhere/config".into()),
            context: None,
        };
        let error = client(&options).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config"), "{error}");
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline() {
        let deadline = Duration::from_millis(20);
        let error = within::<()>(deadline, std::future::pending())
            .await
            .unwrap_err();
        assert!(matches!(error, CallError::Deadline(after) if after == deadline));
    }
}
