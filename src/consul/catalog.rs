//! The catalog and its health checks: `/v1/catalog/...`, `/v1/health/node/...`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/catalog>

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::{HealthCheck, Node, NodeService, null_is_default, pairs};
use super::{Client, Consistency, ConsulError, ErrorClass, Observed, Request, Response, Watch};
use crate::model::text::{Pairs, Text};

/// The node of a [`Registration`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RegisteredNode<'a> {
    /// Writes the node as well, whole: what is not set of it is erased.
    Written(&'a Node),
    /// Leaves the node as it is (`SkipNodeUpdate`).
    Kept {
        /// Its name.
        name: &'a str,
        /// Its address. Changes nothing where the node is, but Consul **creates a missing node**
        /// with whatever is given here.
        address: &'a str,
    },
}

/// A node, at most one service on it, and checks, written as one.
///
/// Writes also what a transaction leaves out ([`NodeService::needs_register`]), but has neither
/// compare-and-set nor a fence. What is read back of a `Connect`-native service has a tagged
/// address `consul-virtual` more, which Consul assigns.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration<'a> {
    /// The node.
    pub node: RegisteredNode<'a>,
    /// The service.
    pub service: Option<Cow<'a, NodeService>>,
    /// Checks of the node or of the service. Each names its node and, for a service, id and name.
    pub checks: &'a [HealthCheck],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RegisterBody<'a> {
    node: &'a str,
    address: &'a str,
    #[serde(rename = "ID", skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tagged_addresses: Option<WrittenPairs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_meta: Option<WrittenPairs<'a>>,
    skip_node_update: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a NodeService>,
    #[serde(skip_serializing_if = "<[HealthCheck]>::is_empty")]
    checks: &'a [HealthCheck],
}

#[derive(Serialize)]
struct WrittenPairs<'a>(#[serde(serialize_with = "pairs::serialize")] &'a Pairs);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DeregisterBody<'a> {
    node: &'a str,
    #[serde(rename = "ServiceID", skip_serializing_if = "str::is_empty")]
    service_id: &'a str,
    #[serde(rename = "CheckID", skip_serializing_if = "str::is_empty")]
    check_id: &'a str,
}

/// An instance with its node and all checks that decide on it: its own, and those of the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceHealth {
    /// The node.
    pub node: Node,
    /// The instance.
    pub service: NodeService,
    /// The checks of both.
    #[serde(deserialize_with = "null_is_default")]
    pub checks: Vec<HealthCheck>,
}

/// Both fields are `null` where there is no such node, and never left out: what lacks one is no answer
/// of Consul's, and says nothing.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServices {
    #[serde(deserialize_with = "Option::deserialize")]
    node: Option<Node>,
    #[serde(deserialize_with = "null_is_default")]
    services: Vec<NodeService>,
}

impl Client {
    /// The nodes that a filter selects (bexpr, like `Meta["lictor-cluster"] == "c1"`), or all.
    pub async fn nodes(
        &self,
        filter: Option<&str>,
        consistency: Consistency,
    ) -> Result<Observed<Vec<Node>>, ConsulError> {
        let mut request = Request::get("catalog/nodes").consistency(consistency);
        if let Some(filter) = filter {
            request = request.query("filter", filter);
        }
        self.send(&request).await?.json()
    }

    /// A node and the services on it; `None` if the node is not there, or hidden from us.
    pub async fn node_services(
        &self,
        node: &str,
        consistency: Consistency,
    ) -> Result<Observed<Option<(Node, Vec<NodeService>)>>, ConsulError> {
        let request = Request::get("catalog/node-services")
            .segment(node)
            .consistency(consistency);
        let found: Observed<NodeServices> = self.send(&request).await?.json()?;
        Ok(found.map(|found| Some((found.node?, found.services))))
    }

    /// The names of the services that a filter selects, with the tags of all their instances.
    pub async fn service_tags(
        &self,
        filter: &str,
    ) -> Result<Observed<BTreeMap<String, Vec<String>>>, ConsulError> {
        let request = Request::get("catalog/services")
            .query("filter", filter.to_owned())
            .consistency(Consistency::Consistent);
        self.send(&request).await?.json()
    }

    /// The instances of a service that a filter selects (bexpr, like `Service.Meta["lictor-cluster"] == "c1"`),
    /// with their health.
    pub async fn service_health(
        &self,
        service: &str,
        filter: &str,
        consistency: Consistency,
    ) -> Result<Observed<Vec<ServiceHealth>>, ConsulError> {
        let request = Request::get("health/service")
            .segment(service)
            .query("filter", filter.to_owned())
            .consistency(consistency);
        self.send(&request).await?.json()
    }

    /// The nodes of these that an agent of Consul runs: those with the check of its gossip, which the servers
    /// write for every member.
    pub async fn agents(&self, nodes: &str) -> Result<Vec<Text>, ConsulError> {
        let request = Request::get("health/state")
            .segment("any")
            .query("filter", format!("CheckID == \"serfHealth\" and ({nodes})"))
            .consistency(Consistency::Consistent);
        let checks: Observed<Vec<HealthCheck>> = self.send(&request).await?.json()?;
        let checks = checks.value.into_iter();
        Ok(checks.map(|check| check.node).collect())
    }

    /// All checks of a node and of the services on it; none if the node is not there.
    pub async fn node_checks(
        &self,
        node: &str,
        consistency: Consistency,
    ) -> Result<Observed<Vec<HealthCheck>>, ConsulError> {
        let request = Request::get("health/node")
            .segment(node)
            .consistency(consistency);
        self.send(&request).await?.json()
    }

    /// The checks of a node, and of the services on it, that have this id: one, or none.
    pub async fn node_check(
        &self,
        node: &str,
        id: &str,
        consistency: Consistency,
    ) -> Result<Observed<Vec<HealthCheck>>, ConsulError> {
        let request = Request::get("health/node")
            .segment(node)
            .query("filter", format!("CheckID == {id:?}"))
            .consistency(consistency);
        self.send(&request).await?.json()
    }

    /// Watches the nodes that a filter selects. Its index is that of all nodes.
    #[must_use]
    pub fn watch_nodes(&self, filter: &str, consistency: Consistency) -> Watch<Vec<Node>> {
        let request = Request::get("catalog/nodes")
            .query("filter", filter.to_owned())
            .consistency(consistency);
        Watch::new(self.clone(), request, Response::json)
    }

    /// Tells that some node changed, appeared or went, without saying which, in a few bytes.
    ///
    /// This and the two below are woken by the rows of their own table, whoever wrote them, and
    /// then give the index of that write: the `ModifyIndex` of what it left. A removal leaves
    /// nothing, so that only something else written in the same transaction tells its index, like
    /// a key that gets a new value. The index of the nodes takes in that of the services: a service that is written
    /// between two queries makes this one return once, too.
    #[must_use]
    pub fn watch_any_node(&self, consistency: Consistency) -> Watch<()> {
        let request = Request::get("catalog/nodes").query("filter", r#"Node == """#);
        Watch::new(self.clone(), request.consistency(consistency), signal)
    }

    /// Tells that some service changed, appeared or went, without saying which, in a few bytes.
    #[must_use]
    pub fn watch_any_service(&self, consistency: Consistency) -> Watch<()> {
        let request = Request::get("catalog/services").query("filter", r#"ServiceName == """#);
        Watch::new(self.clone(), request.consistency(consistency), signal)
    }

    /// Tells that some check changed, appeared or went, without saying which, in a few bytes.
    #[must_use]
    pub fn watch_any_check(&self, consistency: Consistency) -> Watch<()> {
        let request = Request::get("health/state")
            .segment("any")
            .query("filter", r#"CheckID == """#);
        Watch::new(self.clone(), request.consistency(consistency), signal)
    }

    /// Writes a registration as one.
    pub async fn register(&self, registration: &Registration<'_>) -> Result<(), ConsulError> {
        let Registration {
            node,
            service,
            checks,
        } = registration;
        let service = service.as_deref();
        let body = match node {
            RegisteredNode::Written(node) => RegisterBody {
                node: &node.name,
                address: &node.address,
                id: &node.id,
                tagged_addresses: Some(WrittenPairs(&node.tagged_addresses)),
                node_meta: Some(WrittenPairs(&node.meta)),
                skip_node_update: false,
                service,
                checks,
            },
            RegisteredNode::Kept { name, address } => RegisterBody {
                node: name,
                address,
                id: "",
                tagged_addresses: None,
                node_meta: None,
                skip_node_update: true,
                service,
                checks,
            },
        };
        self.put_json("catalog/register", &body).await
    }

    /// Removes a service and its checks. Succeeds also where there is none.
    ///
    /// Refuses an empty id, which would stand for the whole node.
    pub async fn deregister_service(&self, node: &str, id: &str) -> Result<(), ConsulError> {
        self.deregister(&DeregisterBody {
            node,
            service_id: not_empty(id)?,
            check_id: "",
        })
        .await
    }

    /// Removes a check. Succeeds also where there is none.
    ///
    /// Refuses an empty id, which would stand for the whole node.
    pub async fn deregister_check(&self, node: &str, id: &str) -> Result<(), ConsulError> {
        self.deregister(&DeregisterBody {
            node,
            service_id: "",
            check_id: not_empty(id)?,
        })
        .await
    }

    /// Removes a node **and everything on it**, whoever it belongs to.
    pub async fn deregister_node(&self, node: &str) -> Result<(), ConsulError> {
        self.deregister(&DeregisterBody {
            node,
            service_id: "",
            check_id: "",
        })
        .await
    }

    async fn deregister(&self, body: &DeregisterBody<'_>) -> Result<(), ConsulError> {
        self.put_json("catalog/deregister", body).await
    }

    async fn put_json(
        &self,
        endpoint: &'static str,
        body: &impl Serialize,
    ) -> Result<(), ConsulError> {
        self.send(&Request::put(endpoint).json(body)?)
            .await?
            .success()?;
        Ok(())
    }
}

fn not_empty(id: &str) -> Result<&str, ConsulError> {
    if id.is_empty() {
        let request = Request::put("catalog/deregister");
        return Err(request.error(ErrorClass::Refused, "an empty id stands for the whole node"));
    }
    Ok(id)
}

/// The success alone; what it says is nothing anyway.
pub(super) fn signal(answer: Response) -> Result<Observed<()>, ConsulError> {
    Ok(answer.success()?.observed(()))
}
