//! The writer of the status of our objects.
//!
//! Whoever derives statuses must not wait for the API server, so a status is left at a desk, where
//! the latest wins, and a task carries it out: at most once a second for an object, and only when it
//! differs from what was written last.

mod desk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams};
use kube::{Client, Resource as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::desk::{Desk, Outcome};
use super::client::{CallError, within};
use crate::api::{
    Intention, IntentionStatus, PreparedQuery, PreparedQueryStatus, ServiceRegistration,
    ServiceRegistrationStatus,
};
use crate::model::owner::OwnerKind;
use crate::model::text::Text;

/// Who owns the fields of a status.
const MANAGER: &str = "lictor";
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Writes at a time.
const WRITES: usize = 4;

/// The status of an object of one of our kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectStatus {
    /// Of a `ServiceRegistration`.
    Registration(ServiceRegistrationStatus),
    /// Of an `Intention`.
    Intention(IntentionStatus),
    /// Of a `PreparedQuery`.
    PreparedQuery(PreparedQueryStatus),
}

impl ObjectStatus {
    /// The kind of the object.
    #[must_use]
    pub fn kind(&self) -> OwnerKind {
        match self {
            Self::Registration(_) => OwnerKind::ServiceRegistration,
            Self::Intention(_) => OwnerKind::Intention,
            Self::PreparedQuery(_) => OwnerKind::PreparedQuery,
        }
    }

    /// Where objects of the kind are in the API.
    fn path(&self, namespace: &str) -> String {
        let namespace = Some(namespace);
        match self {
            Self::Registration(_) => ServiceRegistration::url_path(&(), namespace),
            Self::Intention(_) => Intention::url_path(&(), namespace),
            Self::PreparedQuery(_) => PreparedQuery::url_path(&(), namespace),
        }
    }

    fn json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Registration(status) => serde_json::to_value(status),
            Self::Intention(status) => serde_json::to_value(status),
            Self::PreparedQuery(status) => serde_json::to_value(status),
        }
    }
}

/// The status that an object shall have.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusUpdate {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.uid`: another object of that name is not written.
    pub uid: Text,
    /// The whole status.
    pub status: ObjectStatus,
}

/// Takes statuses from whoever derives them, and never waits.
#[derive(Clone, Debug)]
pub struct StatusSender {
    shared: Arc<Shared>,
}

impl StatusSender {
    /// The object shall have this status. Of several for one object the latest wins.
    pub fn send(&self, update: StatusUpdate) {
        self.shared.desk().want(update);
        self.shared.changed.notify_one();
    }

    /// The object is gone.
    pub fn forget(&self, kind: OwnerKind, namespace: &Text, name: &Text) {
        self.shared.desk().forget(kind, namespace, name);
    }
}

#[derive(Debug, Default)]
struct Shared {
    desk: Mutex<Desk>,
    changed: Notify,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing panics while it holds the desk, and if it did, the next status would be whole again.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task behind a [`StatusSender`].
#[derive(Debug)]
pub struct StatusWriter {
    client: WriterClient,
    shared: Arc<Shared>,
}

impl StatusWriter {
    /// A writer and the way to it.
    #[must_use]
    pub fn new(client: Client) -> (StatusSender, Self) {
        let shared = Arc::new(Shared::default());
        (
            StatusSender {
                shared: shared.clone(),
            },
            Self {
                client: WriterClient(client),
                shared,
            },
        )
    }

    /// Writes. Does not end by itself.
    pub async fn run(self) {
        let mut writes = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            let (due, next) = {
                let mut desk = self.shared.desk();
                (desk.due(now, WRITES - writes.len()), desk.next_due())
            };
            for update in due {
                let client = &self.client;
                writes.push(async move {
                    let outcome = client.write(&update).await;
                    (update, outcome)
                });
            }
            // With all hands busy, only one that gets free matters.
            let idle = writes.len() < WRITES;
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = sleep_until(next.unwrap_or(now)), if idle && next.is_some() => {}
                Some((update, outcome)) = writes.next() => {
                    self.shared.desk().done(update, outcome, Instant::now(), rand::random());
                }
            }
        }
    }
}

struct WriterClient(Client);

impl std::fmt::Debug for WriterClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriterClient")
    }
}

impl WriterClient {
    async fn write(&self, update: &StatusUpdate) -> Outcome {
        let StatusUpdate {
            namespace,
            name,
            uid,
            status,
        } = update;
        let params = PatchParams::apply(MANAGER).force();
        let request = status
            .json()
            .map_err(|error| error.to_string())
            .and_then(|shown| {
                let object = json!({
                    "apiVersion": ServiceRegistration::api_version(&()),
                    "kind": status.kind().as_str(),
                    "metadata": {"namespace": namespace, "name": name, "uid": uid},
                    "status": shown,
                });
                Request::new(status.path(namespace))
                    .patch_subresource("status", name, &params, &Patch::Apply(&object))
                    .map_err(|error| error.to_string())
            });
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%namespace, %name, "a status that cannot be sent: {error}");
                return Outcome::Gone;
            }
        };
        // The answer is the object, which need not be one that can be decoded.
        match within(WRITE_DEADLINE, self.0.request_text(request)).await {
            Ok(_) => Outcome::Written,
            Err(error) if is_gone(&error) => Outcome::Gone,
            Err(error) => {
                tracing::warn!(%namespace, %name, "the status was not written: {error}");
                Outcome::Failed
            }
        }
    }
}

/// Whether the object that the status is for does not exist any more. A conflict cannot be about
/// fields, since the write is forced: then it is about the uid.
fn is_gone(error: &CallError) -> bool {
    error.status().is_some_and(|status| {
        status.is_not_found()
            || (status.is_conflict() && status.message.to_lowercase().contains("uid"))
    })
}
