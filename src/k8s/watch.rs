//! Our own list and watch.

use kube::Client;
use tokio::sync::mpsc;

use super::kinds::{Kind, KubeEvent};
use crate::model::text::Text;

/// Watches one kind, in the whole cluster or in one namespace, until the receiver is gone.
pub async fn watch(
    client: Client,
    kind: Kind,
    scope: Option<Text>,
    events: mpsc::Sender<KubeEvent>,
) {
    let _ = (client, kind, scope);
    events.closed().await;
}
