//! Watches Leases, in those namespaces only where a check looks at one: the Leases of nodes alone are renewed
//! more often than all else in a cluster changes.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::home::Home;
use super::kinds::KubeEvent;
use crate::model::kind::Kind;
use crate::model::text::Text;

/// The namespaces whose Leases are watched, and how often it was asked to list those of each anew.
pub type LeaseNamespaces = BTreeMap<Text, u64>;

/// The watch of one namespace.
struct Scope {
    lists: u64,
    relist: watch::Sender<()>,
    _watch: AbortOnDropHandle<()>,
}

/// Watches the Leases of these namespaces until the receiver is gone.
pub async fn watch_leases(
    mut namespaces: watch::Receiver<LeaseNamespaces>,
    home: Home,
    events: mpsc::Sender<KubeEvent>,
) {
    let mut scopes: HashMap<Text, Scope> = HashMap::new();
    loop {
        let wanted = namespaces.borrow_and_update().clone();
        scopes.retain(|namespace, _| wanted.contains_key(namespace));
        for (namespace, lists) in wanted {
            let scope = scopes.entry(namespace.clone()).or_insert_with(|| {
                let relist = watch::Sender::new(());
                let (home, events, asks) = (home.clone(), events.clone(), relist.subscribe());
                let watch = super::watch(Kind::Lease, home, Some(namespace), events, asks);
                Scope {
                    lists,
                    relist,
                    _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
                }
            });
            if std::mem::replace(&mut scope.lists, lists) != lists {
                scope.relist.send_replace(());
            }
        }
        tokio::select! {
            changed = namespaces.changed() => if changed.is_err() { return },
            () = events.closed() => return,
        }
    }
}
