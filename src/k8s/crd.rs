//! Whether the API serves a kind of ours, or is about to take it away.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};

use super::client::{CallError, within};

const DEADLINE: Duration = Duration::from_secs(5);

/// Whether a CRD is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdState {
    /// It is there.
    Present,
    /// It is being deleted, and the API server deletes its objects one by one: nobody meant these.
    Terminating,
    /// It is not there.
    Missing,
}

/// Asks for a CRD by its full name, such as `serviceregistrations.lictor.io`. Needs `get` on it.
pub async fn crd_state(client: &Client, name: &str) -> Result<CrdState, CallError> {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let crd = within(DEADLINE, crds.get_metadata_opt(name)).await?;
    Ok(match crd {
        None => CrdState::Missing,
        Some(crd) if crd.metadata.deletion_timestamp.is_some() => CrdState::Terminating,
        Some(_) => CrdState::Present,
    })
}
