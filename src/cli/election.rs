//! The flags that say how processes agree on which of them leads.

use clap::Args;

use crate::app::told;
use crate::k8s::LeaseName;
use crate::leader::Election;
use crate::model::names::{ClusterName, is_dns_label};

#[derive(Args, Debug)]
pub(super) struct ElectionFlags {
    /// How several processes with the same cluster name agree on which of them writes: by a Lease in
    /// Kubernetes, by a lock in Consul, or not at all, where only one runs
    #[arg(
        long,
        env = "LICTOR_LEADER_ELECTION",
        default_value = "lease",
        value_name = "HOW"
    )]
    pub(super) leader_election: Election,
    /// Namespace of the Lease; by default that of the pod (`POD_NAMESPACE`), else "default"
    #[arg(
        long,
        env = "LICTOR_LEASE_NAMESPACE",
        value_parser = lease_namespace,
        value_name = "NAMESPACE"
    )]
    lease_namespace: Option<String>,
}

impl ElectionFlags {
    /// The Lease, where it is by one.
    pub(super) fn lease(&self, cluster: &ClusterName) -> LeaseName {
        let flag = self.lease_namespace.clone().filter(|it| !it.is_empty());
        let namespace = flag.or_else(|| told("POD_NAMESPACE"));
        LeaseName::of(cluster, namespace.as_deref().unwrap_or("default").into())
    }
}

/// A variable that is set to nothing is not set.
fn lease_namespace(given: &str) -> Result<String, String> {
    if given.is_empty() || is_dns_label(given) {
        return Ok(given.to_owned());
    }
    Err("no name of a namespace: lower-case letters, digits and \"-\", at most 63".to_owned())
}
