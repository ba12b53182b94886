//! One Lease, by which processes agree on who leads. Nothing is decided here.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

use super::client::{CallError, within};
use crate::model::names::ClusterName;
use crate::model::text::Text;

/// How long the API server is asked to hold a watch, in seconds; it allows less than 5 minutes.
const WATCH: u32 = 290;

/// Which Lease the processes of a cluster agree by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: Text,
    /// Its name there.
    pub name: Text,
}

impl LeaseName {
    /// That of this cluster.
    #[must_use]
    pub fn of(cluster: &ClusterName, namespace: Text) -> Self {
        let name = format!("lictor-{cluster}").into();
        Self { namespace, name }
    }
}

/// What a watch of the Lease tells.
#[derive(Clone, Debug)]
pub enum LeaseNews {
    /// It is this now.
    Is(Box<Lease>),
    /// It is not there any more.
    Gone,
}

/// What became of a write.
#[derive(Debug)]
pub enum LeaseWrite {
    /// It was done: the Lease as it is stored.
    Done(Box<Lease>),
    /// The Lease is another than the one that was to be replaced, or is not there, or is there already.
    Conflict,
}

/// The access to a Lease. Needs `get`, `create`, `update` and `watch` of it in its namespace.
#[derive(Clone)]
pub struct LeaseAccess {
    api: Api<Lease>,
    lease: LeaseName,
}

impl LeaseAccess {
    /// To this Lease.
    #[must_use]
    pub fn new(client: Client, lease: LeaseName) -> Self {
        Self {
            api: Api::namespaced(client, &lease.namespace),
            lease,
        }
    }

    /// Which one it is, for people.
    #[must_use]
    pub fn what(&self) -> String {
        format!("the Lease {}/{}", self.lease.namespace, self.lease.name)
    }

    /// Reads it; `None` where it is not there.
    pub async fn get(&self, deadline: Duration) -> Result<Option<Box<Lease>>, CallError> {
        let found = within(deadline, self.api.get_opt(&self.lease.name)).await?;
        Ok(found.map(Box::new))
    }

    /// Creates it, under its name.
    pub async fn create(
        &self,
        mut lease: Lease,
        deadline: Duration,
    ) -> Result<LeaseWrite, CallError> {
        lease.metadata.name = Some(self.lease.name.to_string());
        let params = PostParams::default();
        // Where there is no such namespace, a conflict would be looked into for ever.
        let is_conflict = |code| code == 409;
        written(
            within(deadline, self.api.create(&params, &lease)).await,
            is_conflict,
        )
    }

    /// Replaces it, if it still has the `resourceVersion` that is given with it.
    pub async fn replace(
        &self,
        lease: &Lease,
        deadline: Duration,
    ) -> Result<LeaseWrite, CallError> {
        let params = PostParams::default();
        let is_conflict = |code| code == 404 || code == 409;
        written(
            within(deadline, self.api.replace(&self.lease.name, &params, lease)).await,
            is_conflict,
        )
    }

    /// Watches it from this `resourceVersion` on, or, without one, from what is there now. The stream
    /// ends after some minutes, or with the first failure.
    pub async fn watch(
        &self,
        version: Option<&str>,
        deadline: Duration,
    ) -> Result<BoxStream<'static, Result<LeaseNews, CallError>>, CallError> {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.lease.name))
            .timeout(WATCH)
            .disable_bookmarks();
        let watch = self.api.watch(&params, version.unwrap_or_default());
        let stream = within(deadline, watch).await?.boxed();
        let news = stream
            .map_err(CallError::from)
            .try_filter_map(async |event| {
                Ok(match event {
                    WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
                        Some(LeaseNews::Is(Box::new(lease)))
                    }
                    WatchEvent::Deleted(_) => Some(LeaseNews::Gone),
                    WatchEvent::Bookmark(_) => None,
                    WatchEvent::Error(status) => {
                        return Err(kube::Error::Api(status).into());
                    }
                })
            });
        Ok(news.boxed())
    }
}

fn written(
    answer: Result<Lease, CallError>,
    is_conflict: impl Fn(u16) -> bool,
) -> Result<LeaseWrite, CallError> {
    match answer {
        Ok(lease) => Ok(LeaseWrite::Done(Box::new(lease))),
        Err(error)
            if error
                .status()
                .is_some_and(|status| is_conflict(status.code)) =>
        {
            Ok(LeaseWrite::Conflict)
        }
        Err(error) => Err(error),
    }
}
