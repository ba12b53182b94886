//! Watches Leases, in those namespaces only where a check looks at one: the Leases of nodes alone are renewed
//! more often than all else in a cluster changes.

use std::collections::{BTreeSet, HashMap};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::home::Home;
use super::kinds::KubeEvent;
use crate::model::kind::Kind;
use crate::model::text::Text;

/// Watches the Leases of these namespaces until the receiver is gone.
pub async fn watch_leases(
    mut namespaces: watch::Receiver<BTreeSet<Text>>,
    home: Home,
    events: mpsc::Sender<KubeEvent>,
) {
    // Nobody asks for another list: each namespace is one that was just begun, or is followed.
    let (_asks, relist) = watch::channel(());
    let mut watches: HashMap<Text, AbortOnDropHandle<()>> = HashMap::new();
    loop {
        let wanted = namespaces.borrow_and_update().clone();
        watches.retain(|namespace, _| wanted.contains(namespace));
        for namespace in wanted {
            watches.entry(namespace.clone()).or_insert_with(|| {
                let (home, events) = (home.clone(), events.clone());
                let watch =
                    super::watch(Kind::Lease, home, Some(namespace), events, relist.clone());
                AbortOnDropHandle::new(tokio::spawn(watch))
            });
        }
        tokio::select! {
            changed = namespaces.changed() => if changed.is_err() { return },
            () = events.closed() => return,
        }
    }
}
