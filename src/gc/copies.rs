//! The copies that a cluster registered of another one's instances, where one Kubernetes cluster ran under
//! both names: which belong together, and whether callers find them.

use std::collections::{BTreeMap, BTreeSet};

use super::Doomed;
use crate::consul::wire::{HealthCheck, status};
use crate::consul::{Client, Consistency, ServiceHealth};
use crate::model::key::InstanceKey;
use crate::model::marks::{self, Standing};
use crate::model::names::{ClusterName, InstanceId, NodeName};
use crate::sync::apply::{ReadError, sure};

/// How the copy of an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyHealth {
    /// It is registered, and all checks of it and of its node pass.
    Passing,
    /// It is registered, and the worst of its checks warns.
    Warning,
    /// It is registered, and one of its checks is critical.
    Critical,
    /// It is not registered.
    Missing,
}

impl CopyHealth {
    /// What is said of an instance whose copy stands so.
    #[must_use]
    pub fn tell(self, copy: &InstanceId) -> String {
        match self {
            Self::Passing => format!("its copy {copy} passes"),
            Self::Warning => format!("waits for its copy {copy}, which is warning"),
            Self::Critical => format!("waits for its copy {copy}, which is critical"),
            Self::Missing => format!("waits for its copy {copy}, which is not registered"),
        }
    }
}

/// The health of what a cluster has registered, by service.
#[derive(Debug)]
pub struct Copies {
    cluster: ClusterName,
    health: BTreeMap<String, Vec<ServiceHealth>>,
}

impl Copies {
    /// Reads what a cluster has registered of the services of these instances.
    pub async fn read(
        client: &Client,
        cluster: &ClusterName,
        instances: &[Doomed],
    ) -> Result<Self, ReadError> {
        let services: BTreeSet<&str> = instances.iter().map(|it| &*it.service).collect();
        let filter = format!(
            "Service.Meta[{:?}] == {:?}",
            marks::CLUSTER,
            cluster.as_ref()
        );
        let mut health = BTreeMap::new();
        for service in services {
            let answer = client.service_health(service, &filter, Consistency::Consistent);
            health.insert(service.to_owned(), sure(answer.await)?);
        }
        Ok(Self {
            cluster: cluster.clone(),
            health,
        })
    }

    /// How the copy with this id stands, whatever node it is on: a pod of the same name may be on another
    /// one by now. What does not carry all marks of the cluster is no copy.
    #[must_use]
    pub fn of(&self, service: &str, id: &InstanceId) -> CopyHealth {
        let all = self.health.get(service).into_iter().flatten();
        let copies = all.filter(|it| self.is_copy(it, id));
        let copies = copies.map(|it| worst(&it.checks));
        copies.min().unwrap_or(CopyHealth::Missing)
    }

    fn is_copy(&self, it: &ServiceHealth, id: &InstanceId) -> bool {
        let Some(node) = NodeName::parse(&self.cluster, &it.node.name) else {
            return false;
        };
        let key = InstanceKey {
            node,
            id: InstanceId::observed(&it.service.id),
        };
        let standing = marks::judge(&self.cluster, &key, &it.service.service, &it.service.meta);
        key.id == *id && matches!(standing, Standing::Ours(_))
    }
}

/// As Consul sums checks up; what somebody wrote that is no status of Consul's passes nowhere.
fn worst(checks: &[HealthCheck]) -> CopyHealth {
    let of = |check: &HealthCheck| match &*check.status {
        status::PASSING => CopyHealth::Passing,
        status::WARNING => CopyHealth::Warning,
        _ => CopyHealth::Critical,
    };
    checks.iter().map(of).max().unwrap_or(CopyHealth::Passing)
}

/// The id that an instance has under the other name of its cluster.
#[must_use]
pub fn id_of_copy(id: &InstanceId, from: &ClusterName, to: &ClusterName) -> Option<InstanceId> {
    let rest = id.as_ref().strip_prefix(from.as_ref())?;
    let rest = rest.strip_prefix('.')?;
    Some(InstanceId::observed(&format!("{to}.{rest}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn copies(all: &[Value]) -> Copies {
        let all = serde_json::from_value(json!(all)).unwrap();
        Copies {
            cluster: "new".parse().unwrap(),
            health: [("web".to_owned(), all)].into(),
        }
    }

    fn copy(node: &str, checks: &[&str]) -> Value {
        let checks: Vec<_> = checks.iter().map(|it| json!({"Status": it})).collect();
        json!({
            "Node": {"Node": node},
            "Service": {"ID": "new.shop.web.web-0", "Service": "web", "Meta": {
                "lictor-cluster": "new", "lictor-node": node, "lictor-owner": "Pod/shop/web-0",
            }},
            "Checks": checks,
        })
    }

    fn stands(all: &[Value]) -> CopyHealth {
        copies(all).of("web", &InstanceId::observed("new.shop.web.web-0"))
    }

    #[test]
    fn a_copy_has_the_same_id_but_for_the_clusters_name() {
        let (old, new) = ("a-b".parse().unwrap(), "c".parse().unwrap());
        let of = |id: &str| id_of_copy(&InstanceId::observed(id), &old, &new);
        for (id, copy) in [
            ("a-b.shop.web.web-0", "c.shop.web.web-0"),
            ("a-b.a-b.web.a-b", "c.a-b.web.a-b"),
            ("a-b.shop.db.db.primary", "c.shop.db.db.primary"),
        ] {
            assert_eq!(of(id), Some(InstanceId::observed(copy)));
        }
        assert_eq!(of("a-bc.shop.web.web-0"), None);
        assert_eq!(of("a.shop.web.web-0"), None);
    }

    #[test]
    fn only_what_passes_in_all_its_checks_passes() {
        let node = "lictor-new--n1";
        for (checks, expected) in [
            (&["passing", "passing"][..], CopyHealth::Passing),
            (&[], CopyHealth::Passing),
            (&["passing", "warning"], CopyHealth::Warning),
            (&["critical", "passing", "warning"], CopyHealth::Critical),
            (&["passing", "maintenance"], CopyHealth::Critical),
        ] {
            assert_eq!(stands(&[copy(node, checks)]), expected, "{checks:?}");
        }
        assert_eq!(stands(&[]), CopyHealth::Missing);
    }

    #[test]
    fn what_lacks_a_mark_or_is_on_anothers_node_is_no_copy() {
        let passing = &["passing"];
        for mark in ["lictor-cluster", "lictor-node", "lictor-owner"] {
            let mut copy = copy("lictor-new--n1", passing);
            copy["Service"]["Meta"][mark] = json!("x");
            assert_eq!(stands(&[copy]), CopyHealth::Missing, "{mark}");
        }
        assert_eq!(
            stands(&[copy("lictor-old--n1", passing)]),
            CopyHealth::Missing
        );
        assert_eq!(stands(&[copy("an-agent", passing)]), CopyHealth::Missing);
    }

    #[test]
    fn one_that_passes_on_another_node_is_enough() {
        let left = copy("lictor-new--n1", &["critical"]);
        let moved = copy("lictor-new--n2", &["passing"]);
        assert_eq!(stands(&[left.clone(), moved.clone()]), CopyHealth::Passing);
        assert_eq!(stands(&[moved, left]), CopyHealth::Passing);
    }
}
