//! Kubernetes Events, for people who look at an object with `kubectl describe`.
//!
//! They tell of what was done and never hold it up: they wait in two short queues, warnings before
//! the rest, leave at most ten a second, and what is too much is counted and dropped. kube's own
//! recorder takes two Events of one reason for the same even where their texts differ, and would hide
//! that a key has another holder by now.

mod repeats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::repeats::{Repeat, Repeats};
use super::client::{CallError, within};
use crate::model::text::Text;

/// Who reports.
const CONTROLLER: &str = "lictor";
/// The API server's limits.
const NOTE_BYTES: usize = 1024;
const INSTANCE_BYTES: usize = 128;
const NAME_BYTES: usize = 253;
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// At most ten a second.
const SPACING: Duration = Duration::from_millis(100);
/// A minute of warnings may wait, but only seconds of what is no news by then.
const WARNINGS: usize = 600;
const OTHERS: usize = 50;

/// Why an Event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventReason {
    /// An instance was written to Consul.
    Registered,
    /// An instance was removed from Consul.
    Deregistered,
    /// A change by another hand was undone.
    DriftRepaired,
    /// Consul holds an entry of another owner under the key.
    OwnedByAnother,
    /// Another object of this cluster holds the key.
    Conflict,
    /// An annotation cannot be understood.
    InvalidAnnotation,
    /// Consul refused a write.
    ConsulRefused,
    /// What says whose something is has no room in Consul: it was not asked.
    TooManySources,
    /// The node that an instance is to be on cannot be made, for want of an address.
    NoNodeAddress,
    /// Another hand keeps changing an entry: repairs are slowed down.
    DriftContested,
    /// Too much was found missing at once: nothing of it is removed.
    DeletesHeld,
    /// Too many nodes turned not Ready at once: their checks stay as they are.
    NodesHeld,
    /// Nobody writes the readiness gate of a pod: it is off, or the API server refuses it.
    GateNotWritten,
}

impl EventReason {
    /// The text in `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "Registered",
            Self::Deregistered => "Deregistered",
            Self::DriftRepaired => "DriftRepaired",
            Self::OwnedByAnother => "OwnedByAnother",
            Self::Conflict => "Conflict",
            Self::InvalidAnnotation => "InvalidAnnotation",
            Self::ConsulRefused => "ConsulRefused",
            Self::TooManySources => "TooManySources",
            Self::NoNodeAddress => "NoNodeAddress",
            Self::DriftContested => "DriftContested",
            Self::DeletesHeld => "DeletesHeld",
            Self::NodesHeld => "NodesHeld",
            Self::GateNotWritten => "GateNotWritten",
        }
    }

    /// Whether somebody should look.
    #[must_use]
    pub fn is_warning(self) -> bool {
        match self {
            Self::Registered | Self::Deregistered => false,
            Self::DriftRepaired
            | Self::OwnedByAnother
            | Self::Conflict
            | Self::InvalidAnnotation
            | Self::ConsulRefused
            | Self::TooManySources
            | Self::NoNodeAddress
            | Self::DriftContested
            | Self::DeletesHeld
            | Self::NodesHeld
            | Self::GateNotWritten => true,
        }
    }

    /// What was tried: the API wants it apart from why it is told.
    fn action(self) -> &'static str {
        match self {
            Self::Registered
            | Self::OwnedByAnother
            | Self::Conflict
            | Self::ConsulRefused
            | Self::TooManySources
            | Self::NoNodeAddress => "Register",
            Self::Deregistered | Self::DeletesHeld => "Deregister",
            Self::DriftRepaired | Self::DriftContested => "Repair",
            Self::NodesHeld | Self::GateNotWritten => "Update",
            Self::InvalidAnnotation => "Read",
        }
    }
}

/// The object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// `apiVersion`.
    pub api_version: &'static str,
    /// `kind`.
    pub kind: &'static str,
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.uid`.
    pub uid: Text,
}

impl Regarding {
    /// A pod.
    #[must_use]
    pub fn pod(namespace: Text, name: Text, uid: Text) -> Self {
        Self {
            api_version: "v1",
            kind: "Pod",
            namespace,
            name,
            uid,
        }
    }

    /// An object of a kind of ours.
    #[must_use]
    pub fn ours(kind: &'static str, namespace: Text, name: Text, uid: Text) -> Self {
        Self {
            api_version: "lictor.io/v1alpha1",
            kind,
            namespace,
            name,
            uid,
        }
    }
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventRecord {
    /// What it is about.
    pub regarding: Regarding,
    /// Why.
    pub reason: EventReason,
    /// A sentence for people; cut to 1 KiB.
    pub note: String,
}

/// Takes Events, and never waits: what is too much is counted and dropped.
#[derive(Clone, Debug)]
pub struct EventSender {
    warnings: mpsc::Sender<Queued>,
    others: mpsc::Sender<Queued>,
    dropped: Arc<AtomicU64>,
    round: Arc<AtomicU64>,
}

/// An Event, and the round of the sender that it is of.
type Queued = (u64, EventRecord);

impl EventSender {
    /// Sends an Event, after the write that it tells of.
    pub fn send(&self, mut record: EventRecord) {
        // What waits in the queue takes no more room than what is sent.
        record
            .note
            .truncate(record.note.floor_char_boundary(NOTE_BYTES));
        let queue = if record.reason.is_warning() {
            &self.warnings
        } else {
            &self.others
        };
        let round = self.round.load(Ordering::Relaxed);
        if queue.try_send((round, record)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Another process tells from now on: what waits is not sent any more.
    pub fn withdraw(&self) {
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were dropped so far: too many at a time, or refused by the API server.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The task behind an [`EventSender`].
pub struct EventWriter {
    client: Client,
    instance: String,
    warnings: mpsc::Receiver<Queued>,
    others: mpsc::Receiver<Queued>,
    dropped: Arc<AtomicU64>,
    round: Arc<AtomicU64>,
}

impl EventWriter {
    /// A writer and the way to it. `instance` names this process, such as its pod.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> (EventSender, Self) {
        let (to_warnings, warnings) = mpsc::channel(WARNINGS);
        let (to_others, others) = mpsc::channel(OTHERS);
        let dropped = Arc::new(AtomicU64::new(0));
        let round = Arc::new(AtomicU64::new(0));
        let sender = EventSender {
            warnings: to_warnings,
            others: to_others,
            dropped: dropped.clone(),
            round: round.clone(),
        };
        let instance = if instance.is_empty() {
            CONTROLLER
        } else {
            instance
        };
        let instance = cut(instance, INSTANCE_BYTES).to_owned();
        (
            sender,
            Self {
                client,
                instance,
                warnings,
                others,
                dropped,
                round,
            },
        )
    }

    /// Writes, until all senders are gone.
    pub async fn run(mut self) {
        let mut pace = interval(SPACING);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut repeats = Repeats::default();
        loop {
            pace.tick().await;
            let Some(record) = self.next().await else {
                return;
            };
            if let Err(error) = self.write(&record, &mut repeats).await {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                let reason = record.reason.as_str();
                tracing::debug!(reason, object = %record.regarding.name, "an Event was not written: {error}");
            }
        }
    }

    /// The next Event that was not withdrawn; `None` once all senders are gone.
    async fn next(&mut self) -> Option<EventRecord> {
        loop {
            let (round, record) = tokio::select! {
                biased;
                Some(queued) = self.warnings.recv() => queued,
                Some(queued) = self.others.recv() => queued,
                else => return None,
            };
            if round == self.round.load(Ordering::Relaxed) {
                return Some(record);
            }
        }
    }

    async fn write(&self, record: &EventRecord, repeats: &mut Repeats) -> Result<(), CallError> {
        let events = Api::<Event>::namespaced(self.client.clone(), &record.regarding.namespace);
        let (now, time) = (Instant::now(), Timestamp::now());
        if let Some(Repeat { name, count }) = repeats.again(record, now) {
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(time)}});
            let (params, patch) = (PatchParams::default(), Patch::Merge(series));
            match within(WRITE_DEADLINE, events.patch(&name, &params, &patch)).await {
                Err(error) if error.status().is_some_and(kube::core::Status::is_not_found) => {}
                other => return other.map(drop),
            }
        }
        let event = event(record, &self.instance, time);
        within(
            WRITE_DEADLINE,
            events.create(&PostParams::default(), &event),
        )
        .await?;
        if let Some(name) = event.metadata.name {
            repeats.first(record.clone(), name, now);
        }
        Ok(())
    }
}

fn event(record: &EventRecord, instance: &str, now: Timestamp) -> Event {
    let Regarding {
        api_version,
        kind,
        namespace,
        name,
        uid,
    } = &record.regarding;
    let suffix = format!(".{:x}", now.as_nanosecond());
    Event {
        action: Some(record.reason.action().to_owned()),
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{}{suffix}", cut(name, NAME_BYTES - suffix.len()))),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        note: Some(cut(&record.note, NOTE_BYTES).to_owned()),
        reason: Some(record.reason.as_str().to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some((*api_version).to_owned()),
            kind: Some((*kind).to_owned()),
            name: Some(name.to_string()),
            namespace: Some(namespace.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(
            if record.reason.is_warning() {
                "Warning"
            } else {
                "Normal"
            }
            .to_owned(),
        ),
        ..Event::default()
    }
}

fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests;
