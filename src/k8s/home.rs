//! Which Kubernetes cluster is behind the address: the one of the start, or another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::client::{CallError, within};
use super::rights::IDENTITY;
use crate::model::text::Text;

/// How long the API server may take to show it.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is asked again at the start.
const RETRY: Duration = Duration::from_secs(2);

/// The namespace whose UID tells this Kubernetes cluster from others, where only these are watched: the first
/// of them by name, since no other may be read. All are watched where there is none.
#[must_use]
pub fn identity(namespaces: &BTreeSet<Text>) -> Text {
    let first = namespaces.first().cloned();
    first.unwrap_or_else(|| IDENTITY.into())
}

/// Asks for the UID of a namespace. Needs `get` on it.
pub async fn uid_of(client: &Client, namespace: &Text) -> Result<Text, UidError> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let found = within(DEADLINE, namespaces.get_metadata(namespace)).await;
    let found = found.map_err(|source| UidError::Unread {
        namespace: namespace.clone(),
        source,
    })?;
    let uid = found.metadata.uid.map(Text::from);
    uid.ok_or_else(|| UidError::None(namespace.clone()))
}

/// Why it is not known which cluster this is.
#[derive(Debug, thiserror::Error)]
pub enum UidError {
    /// The namespace cannot be read.
    #[error(
        "{}: the namespace {namespace}, whose UID tells clusters apart, cannot be read",
        said(source)
    )]
    Unread {
        /// Which.
        namespace: Text,
        /// What happened.
        source: CallError,
    },
    /// What was read is no namespace of a cluster.
    #[error("the namespace {0}, whose UID tells clusters apart, has none")]
    None(Text),
}

/// What the API server said, if it did, without how it was said.
fn said(error: &CallError) -> String {
    error.status().map_or_else(
        || error.to_string(),
        |status| format!("{} {}", status.code, status.message),
    )
}

/// Another cluster than at the start answers at the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ClusterNameTaken: the API server is another Kubernetes cluster's than at the start, its \
     {namespace} has UID {theirs} and not {ours}: nothing is written until the address leads back; \
     restart this process if it is right"
)]
pub(super) struct Stranger {
    namespace: Text,
    ours: Text,
    theirs: Text,
}

/// The way to an API server, and the cluster that it belonged to when it first answered. What another
/// cluster shows at the same address is never taken for a change of ours.
#[derive(Clone)]
pub struct Home {
    client: Client,
    /// The namespaces that alone may be read; empty for all of the cluster.
    namespaces: Arc<BTreeSet<Text>>,
    ours: Arc<OnceCell<Text>>,
}

impl Home {
    /// Of a client that has not been used yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self::in_namespaces(client, BTreeSet::new())
    }

    /// The same where only these namespaces may be read, or all of the cluster if there is none.
    #[must_use]
    pub fn in_namespaces(client: Client, namespaces: BTreeSet<Text>) -> Self {
        Self {
            client,
            namespaces: Arc::new(namespaces),
            ours: Arc::default(),
        }
    }

    /// The namespaces that alone may be read; empty for all of the cluster.
    pub(super) fn namespaces(&self) -> &BTreeSet<Text> {
        &self.namespaces
    }

    async fn ask(&self) -> Result<Text, UidError> {
        uid_of(&self.client, &identity(&self.namespaces)).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The UID that tells the cluster of the start from others. Asks until it is answered: what cannot
    /// be read says nothing about whose it is.
    pub async fn uid(&self) -> Text {
        let mut told = None;
        loop {
            let known = self.ours.get_or_try_init(|| self.ask());
            match known.await {
                Ok(ours) => return ours.clone(),
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!("{error}");
                    }
                    told = Some(error);
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Looks whose the API server is now.
    pub(super) async fn look(&self) -> Result<Result<(), Stranger>, UidError> {
        let theirs = self.ask().await?;
        let ours = self.ours.get_or_init(async || theirs.clone()).await.clone();
        Ok(if theirs == ours {
            Ok(())
        } else {
            Err(Stranger {
                namespace: identity(&self.namespaces),
                ours,
                theirs,
            })
        })
    }
}
