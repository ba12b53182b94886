//! Which election this process takes part in, and under which name.

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{host, told};
use crate::consul;
use crate::k8s::{LeaseAccess, LeaseName};
use crate::leader::lease::LeaseElector;
use crate::leader::lock::LockElector;
use crate::leader::{self, Candidate, Election, IdentityTaken, off};
use crate::model::entry::Node;
use crate::model::names::ClusterName;

/// How this process takes part in the election.
pub(super) struct Ballot {
    /// None where it does not.
    pub(super) election: Option<Election>,
    /// The Lease, where one is agreed by.
    pub(super) lease: LeaseName,
    pub(super) cluster: ClusterName,
    /// The node that the session of a lock is on.
    pub(super) node: Node,
}

/// An election that runs, which ends before the process only where it failed.
pub(super) type Running = AbortOnDropHandle<Result<(), IdentityTaken>>;

impl Ballot {
    /// Begins to take part, until `released`.
    pub(super) fn open(
        self,
        kube: &kube::Client,
        consul: &consul::Client,
        released: CancellationToken,
    ) -> (Candidate, Option<Running>) {
        let Some(election) = self.election else {
            return (off::onlooker(), None);
        };
        let (seat, candidate) = leader::channel(election);
        let identity = candidacy();
        let running = match election {
            Election::Off => return (off::candidate(), None),
            Election::Lease => {
                let access = LeaseAccess::new(kube.clone(), self.lease);
                tracing::info!(%identity, "campaigning for {}", access.what());
                let elector = LeaseElector::new(access, identity);
                tokio::spawn(leader::run(elector, seat, released))
            }
            Election::Consul => {
                tracing::info!(%identity, "campaigning for a lock in Consul");
                let elector = LockElector::new(consul, self.cluster, identity, self.node);
                tokio::spawn(leader::run(elector, seat, released))
            }
        };
        (candidate, Some(AbortOnDropHandle::new(running)))
    }
}

/// Who campaigns: the pod, whose name a restarted container keeps; else a name that no other process has.
fn candidacy() -> String {
    told("POD_NAME").unwrap_or_else(|| {
        let (process, random) = (std::process::id(), rand::random::<u32>());
        format!("{}_{process}_{random:08x}", host())
    })
}
