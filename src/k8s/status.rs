//! The writer of the status of our objects.
//!
//! Whoever derives statuses must not wait for the API server, so a status is left at a desk, where
//! the latest wins, and a task carries it out: at most once a second for an object, and only when it
//! differs from what was written last.

mod desk;
mod gate;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams};
use kube::{Client, Resource as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::desk::{Desk, Outcome};
use super::client::{CallError, within};
use super::events::EventSender;
use super::seldom::Seldom;
use crate::api::{
    Intention, IntentionStatus, PreparedQuery, PreparedQueryStatus, ServiceRegistration,
    ServiceRegistrationStatus,
};
use crate::model::facts::GateCondition;
use crate::model::owner::OwnerKind;
use crate::model::text::Text;

/// Who owns the fields of a status.
const MANAGER: &str = "lictor";
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Writes at a time.
const WRITES: usize = 4;

/// The status of an object of one of our kinds, or what is ours of that of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectStatus {
    /// Of a `ServiceRegistration`.
    Registration(ServiceRegistrationStatus),
    /// Of an `Intention`.
    Intention(IntentionStatus),
    /// Of a `PreparedQuery`.
    PreparedQuery(PreparedQueryStatus),
    /// Of a pod: one condition, which is never set back once it is True.
    Pod(GateCondition),
}

impl ObjectStatus {
    /// The kind of the object.
    #[must_use]
    pub fn kind(&self) -> OwnerKind {
        match self {
            Self::Registration(_) => OwnerKind::ServiceRegistration,
            Self::Intention(_) => OwnerKind::Intention,
            Self::PreparedQuery(_) => OwnerKind::PreparedQuery,
            Self::Pod(_) => OwnerKind::Pod,
        }
    }

    /// Where objects of the kind are in the API.
    fn path(&self, namespace: &str) -> String {
        let namespace = Some(namespace);
        match self {
            Self::Registration(_) => ServiceRegistration::url_path(&(), namespace),
            Self::Intention(_) => Intention::url_path(&(), namespace),
            Self::PreparedQuery(_) => PreparedQuery::url_path(&(), namespace),
            Self::Pod(_) => Pod::url_path(&(), namespace),
        }
    }

    fn json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Registration(status) => serde_json::to_value(status),
            Self::Intention(status) => serde_json::to_value(status),
            Self::PreparedQuery(status) => serde_json::to_value(status),
            // It is written in its own way.
            Self::Pod(_) => Ok(serde_json::Value::Null),
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

    /// Another process writes from now on: nothing that waits is written any more, and what is under way
    /// is given up, but for gates that open. Returns the objects whose status is not known to be written.
    #[must_use]
    pub fn withdraw(&self) -> Vec<(OwnerKind, Text, Text)> {
        let withdrawn = self.shared.desk().withdraw();
        self.shared.changed.notify_one();
        withdrawn
    }

    /// How many objects wait for a write, or for its answer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.desk().waiting()
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
    events: Option<EventSender>,
    /// Whether the log says already that the API server refuses conditions of pods.
    told: Told,
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
                events: None,
                told: Told::default(),
            },
        )
    }

    /// Tells pods by Events that their condition may not be written.
    #[must_use]
    pub fn telling(mut self, events: EventSender) -> Self {
        self.events = Some(events);
        self
    }

    /// Writes. Does not end by itself.
    pub async fn run(self) {
        let mut writes = FuturesUnordered::new();
        let mut round = 0;
        loop {
            let now = Instant::now();
            let (due, next) = {
                let mut desk = self.shared.desk();
                if std::mem::replace(&mut round, desk.round()) != desk.round() {
                    writes.clear();
                }
                (desk.due(now, WRITES - writes.len()), desk.next_due())
            };
            for update in due {
                let (client, told) = (&self.client, &self.told);
                writes.push(async move {
                    let outcome = match &update.status {
                        ObjectStatus::Pod(condition) => {
                            gate::write(&client.0, &update, condition, told).await
                        }
                        _ => (client.write(&update, told).await, None),
                    };
                    (update, outcome)
                });
            }
            // With all hands busy, only one that gets free matters.
            let idle = writes.len() < WRITES;
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = sleep_until(next.unwrap_or(now)), if idle && next.is_some() => {}
                Some((update, (outcome, denied))) = writes.next() => {
                    let event = denied.map(|why| gate::denied(&update, &why));
                    let (now, dice) = (Instant::now(), rand::random());
                    let first = self.shared.desk().done(update, outcome, now, dice);
                    if first && let (Some(events), Some(event)) = (&self.events, event) {
                        events.send(event);
                    }
                }
            }
        }
    }
}

/// What the log says already of writes that fail: thousands may.
#[derive(Debug, Default)]
struct Told {
    /// Whether it says that those of pods are refused.
    denial: AtomicBool,
    failures: Seldom,
}

struct WriterClient(Client);

impl std::fmt::Debug for WriterClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriterClient")
    }
}

impl WriterClient {
    async fn write(&self, update: &StatusUpdate, told: &Told) -> Outcome {
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
                if let Some(others) = told.failures.lets(Instant::now()) {
                    tracing::warn!(%namespace, %name, others, "the status was not written: {error}");
                }
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
