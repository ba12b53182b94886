//! The writer of the status of our objects.

use kube::Client;

use crate::api::ServiceRegistrationStatus;
use crate::model::text::Text;

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
    pub status: ServiceRegistrationStatus,
}

/// Takes statuses from whoever derives them. Never waits: of several for one object the latest wins.
#[derive(Clone, Debug)]
pub struct StatusSender {}

impl StatusSender {
    /// The status is to be written, if it differs from what was written last.
    pub fn send(&self, update: StatusUpdate) {
        let _ = (self, update);
    }

    /// The API server was seen to hold this status (from a list or a watch).
    pub fn observed(&self, update: StatusUpdate) {
        let _ = (self, update);
    }

    /// Nothing is written any more until the next [`StatusSender::send`]: leadership is lost.
    pub fn clear(&self) {
        let _ = self;
    }
}

/// The task behind a [`StatusSender`].
#[derive(Debug)]
pub struct StatusWriter {}

impl StatusWriter {
    /// A writer and the way to it.
    #[must_use]
    pub fn new(client: Client) -> (StatusSender, Self) {
        drop(client);
        (StatusSender {}, Self {})
    }

    /// Writes, until all senders are gone.
    pub async fn run(self) {
        std::future::pending::<()>().await;
    }
}
