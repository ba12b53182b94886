//! The catalog and its health checks: `/v1/catalog/...`, `/v1/health/node/...`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/catalog>

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::wire::{HealthCheck, Node, NodeService, null_is_default, pairs};
use super::{Client, Consistency, ConsulError, Observed, Request, Response, Watch};
use crate::model::text::Pairs;

/// A node, at most one service on it, and checks, written as one.
///
/// Writes also what a transaction leaves out ([`NodeService::needs_register`]), but has neither
/// compare-and-set nor a fence.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The node's address; needed even where the node is not to be changed, for Consul creates a
    /// missing one with whatever is given.
    pub address: &'a str,
    /// The node's metadata; `None` leaves a node that is there entirely as it is
    /// (`SkipNodeUpdate`). With `Some` the node is written, so that all its metadata must be given.
    pub node_meta: Option<&'a Pairs>,
    /// The service.
    pub service: Option<Cow<'a, NodeService>>,
    /// Checks of the node or of the service.
    pub checks: &'a [HealthCheck],
}

/// Filters that select nothing, so that an answer is a few bytes long: no service and no check has
/// an empty name.
const NOTHING_SERVICE: &str = r#"ServiceName == """#;
const NOTHING_CHECK: &str = r#"CheckID == """#;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RegisterBody<'a> {
    node: &'a str,
    address: &'a str,
    skip_node_update: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_meta: Option<WrittenPairs<'a>>,
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct NodeServices {
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
        let found: Observed<Option<NodeServices>> = self.send(&request).await?.json()?;
        Ok(found.map(|found| found.and_then(|found| Some((found.node?, found.services)))))
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
        let found: Observed<Option<Vec<HealthCheck>>> = self.send(&request).await?.json()?;
        Ok(found.map(Option::unwrap_or_default))
    }

    /// Watches the nodes that a filter selects. Its index is that of all nodes.
    #[must_use]
    pub fn watch_nodes(&self, filter: &str, consistency: Consistency) -> Watch<Vec<Node>> {
        let request = Request::get("catalog/nodes")
            .query("filter", filter.to_owned())
            .consistency(consistency);
        Watch::new(self.clone(), request, Response::json)
    }

    /// Tells that some service changed, appeared or went, without saying which, in a few bytes.
    #[must_use]
    pub fn watch_any_service(&self) -> Watch<()> {
        let request = Request::get("catalog/services").query("filter", NOTHING_SERVICE);
        Watch::new(self.clone(), request, signal)
    }

    /// Tells that some check changed, appeared or went, without saying which, in a few bytes.
    #[must_use]
    pub fn watch_any_check(&self) -> Watch<()> {
        let request = Request::get("health/state")
            .segment("any")
            .query("filter", NOTHING_CHECK);
        Watch::new(self.clone(), request, signal)
    }

    /// Writes a registration as one.
    pub async fn register(&self, registration: &Registration<'_>) -> Result<(), ConsulError> {
        let Registration {
            node,
            address,
            node_meta,
            service,
            checks,
        } = registration;
        let body = RegisterBody {
            node,
            address,
            skip_node_update: node_meta.is_none(),
            node_meta: node_meta.map(WrittenPairs),
            service: service.as_deref(),
            checks,
        };
        self.put_json("catalog/register", &body).await
    }

    /// Removes a service and its checks. Succeeds also where there is none.
    pub async fn deregister_service(
        &self,
        node: &str,
        id: NonEmpty<'_>,
    ) -> Result<(), ConsulError> {
        self.deregister(&DeregisterBody {
            node,
            service_id: id.0,
            check_id: "",
        })
        .await
    }

    /// Removes a check. Succeeds also where there is none.
    pub async fn deregister_check(&self, node: &str, id: NonEmpty<'_>) -> Result<(), ConsulError> {
        self.deregister(&DeregisterBody {
            node,
            service_id: "",
            check_id: id.0,
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

/// An id that is not empty: in a deregistration an empty one would stand for the whole node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonEmpty<'a>(&'a str);

impl<'a> NonEmpty<'a> {
    /// `None` for an empty id.
    #[must_use]
    pub fn new(id: &'a str) -> Option<Self> {
        (!id.is_empty()).then_some(Self(id))
    }
}

/// The success alone; what it says is nothing anyway.
fn signal(answer: Response) -> Result<Observed<()>, ConsulError> {
    Ok(answer.success()?.observed(()))
}
