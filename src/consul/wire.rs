//! What Consul returns and takes, in Consul's own terms.
//!
//! Reading is lenient: unknown fields are skipped, `null` is an empty value, and numbers are as
//! wide as Consul's own (`int` of Go is 64 bits there). The catalog checks neither ports nor
//! statuses, so a type that were narrower here would let a single odd entry of a stranger make a
//! whole node unreadable. Writing is canonical: lists and maps are always `[]` and `{}`, never
//! `null`, because Consul compares what it stores field by field and takes these for different.
//!
//! Config entries and prepared queries are written the other way round: what is empty is left out.
//! That is how Consul returns an entry in which nothing was said, and the Community Edition refuses
//! some fields of theirs even where they are empty.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/catalog>,
//! <https://developer.hashicorp.com/consul/api-docs/txn>; observed on Consul 1.22.7.

mod entry;
mod intentions;
mod proxy;
mod query;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::entry::{ConfigEntry, ServiceDefaults};
pub use self::intentions::{
    IntentionHeader, IntentionHttpPermission, IntentionJwt, IntentionJwtClaim,
    IntentionJwtProvider, IntentionPermission, ServiceIntentions, SourceIntention,
};
pub use self::proxy::{Proxy, ProxyUpstream};
pub use self::query::{
    PreparedQuery, QueryDns, QueryFailover, QueryService, QueryTarget, QueryTemplate,
};
use crate::model::text::{Pairs, Text};

/// A catalog node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// The node's UUID. Lictor leaves it empty: with an id a node can be renamed or stolen.
    #[serde(rename = "ID", deserialize_with = "null_is_default")]
    pub id: Text,
    /// The node's name, which is its key; compared without case.
    #[serde(rename = "Node", deserialize_with = "null_is_default")]
    pub name: Text,
    /// The datacenter, where Consul tells it. Not sent.
    #[serde(deserialize_with = "null_is_default", skip_serializing)]
    pub datacenter: Text,
    /// The node's address; any text is accepted by Consul.
    #[serde(deserialize_with = "null_is_default")]
    pub address: Text,
    /// Addresses by kind (`lan`, `wan`, `lan_ipv4`, ...).
    #[serde(with = "pairs")]
    pub tagged_addresses: Pairs,
    /// Node metadata, at most 64 pairs.
    #[serde(with = "pairs")]
    pub meta: Pairs,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change of the node itself; services do not move it. Not sent.
    #[serde(skip_serializing)]
    pub modify_index: u64,
}

/// An address with a port, as kept in the tagged addresses of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceAddress {
    /// Host name or IP.
    #[serde(deserialize_with = "null_is_default")]
    pub address: Text,
    /// Port.
    pub port: i64,
}

/// DNS weights of a service instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// Weight while passing, 1..=65535.
    pub passing: i64,
    /// Weight while warning, 1..=65535 (0 is kept as it is).
    pub warning: i64,
}

impl Default for Weights {
    /// What Consul stores where none were given.
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// A named port of a service; Consul 1.22 and later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServicePort {
    /// Name of the port.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// Number of the port.
    pub port: i64,
    /// Whether this is the port where none is asked for by name; exactly one must be.
    #[serde(rename = "Default")]
    pub is_default: bool,
}

/// Mesh settings of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Connect {
    /// Whether the service speaks the mesh's protocol itself.
    pub native: bool,
}

/// Where a service runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Locality {
    /// Region.
    #[serde(deserialize_with = "null_is_default")]
    pub region: Text,
    /// Zone.
    #[serde(deserialize_with = "null_is_default")]
    pub zone: Text,
}

/// An instance of a service on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeService {
    /// Empty for a plain service, else `connect-proxy`, `mesh-gateway`, ...
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub kind: Text,
    /// The instance's id, its key on the node; compared without case.
    #[serde(rename = "ID", deserialize_with = "null_is_default")]
    pub id: Text,
    /// The service's name.
    #[serde(deserialize_with = "null_is_default")]
    pub service: Text,
    /// Tags. Their order counts in Consul's comparison.
    #[serde(deserialize_with = "null_is_default")]
    pub tags: Box<[Text]>,
    /// Address; empty means the node's.
    #[serde(deserialize_with = "null_is_default")]
    pub address: Text,
    /// Addresses by kind (`lan_ipv4`, `lan_ipv6`, ...).
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub tagged_addresses: BTreeMap<Text, ServiceAddress>,
    /// Port, 0 for none. Excludes `ports`.
    pub port: i64,
    /// Named ports; [`NodeService::needs_register`].
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "<[ServicePort]>::is_empty"
    )]
    pub ports: Box<[ServicePort]>,
    /// Service metadata, at most 64 pairs.
    #[serde(with = "pairs")]
    pub meta: Pairs,
    /// DNS weights.
    #[serde(deserialize_with = "null_is_default")]
    pub weights: Weights,
    /// Whether agents leave changed tags alone. Only agents look at it.
    pub enable_tag_override: bool,
    /// Mesh settings; [`NodeService::needs_register`].
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_default"
    )]
    pub connect: Connect,
    /// What the instance is a proxy of, if it is one; [`NodeService::needs_register`].
    #[serde(
        deserialize_with = "proxy::proxy",
        skip_serializing_if = "Option::is_none"
    )]
    pub proxy: Option<Box<Proxy>>,
    /// Where the service runs; [`NodeService::needs_register`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// The peer that the service was imported from; such a service is never ours. Not sent.
    #[serde(deserialize_with = "null_is_default", skip_serializing)]
    pub peer_name: Text,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change. Not sent; a compare-and-set names its index itself.
    #[serde(skip_serializing)]
    pub modify_index: u64,
}

impl NodeService {
    /// Whether something is set that `/v1/txn` would silently leave out, so that only
    /// [`register`](super::Client::register) writes the whole.
    #[must_use]
    pub fn needs_register(&self) -> bool {
        let proxy = self.proxy.as_ref();
        !self.ports.is_empty()
            || !is_default(&self.connect)
            || self.locality.is_some()
            || proxy.is_some_and(|proxy| !proxy.upstreams.is_empty() || !proxy.rest.is_empty())
    }
}

/// The status of a check.
///
/// A text, since the catalog accepts any; the constants are those that Consul itself acts on.
pub mod status {
    /// Healthy.
    pub const PASSING: &str = "passing";
    /// Returned by discovery unless only passing instances are asked for.
    pub const WARNING: &str = "warning";
    /// Left out of discovery.
    pub const CRITICAL: &str = "critical";
}

/// A health check of a node or of a service on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthCheck {
    /// The node's name.
    #[serde(deserialize_with = "null_is_default")]
    pub node: Text,
    /// The check's id, its key on the node.
    #[serde(rename = "CheckID", deserialize_with = "null_is_default")]
    pub check_id: Text,
    /// A name for people.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// One of [`status`], or whatever someone wrote.
    #[serde(deserialize_with = "null_is_default")]
    pub status: Text,
    /// Free text.
    #[serde(deserialize_with = "null_is_default")]
    pub notes: Text,
    /// What the check said last; the catalog does not limit its length.
    #[serde(deserialize_with = "null_is_default")]
    pub output: Text,
    /// Id of the service instance, empty for a check of the node.
    #[serde(rename = "ServiceID", deserialize_with = "null_is_default")]
    pub service_id: Text,
    /// Name of that service. Filled in by Consul from the id.
    #[serde(deserialize_with = "null_is_default")]
    pub service_name: Text,
    /// Kind of the check; free text except for `session`.
    #[serde(rename = "Type", deserialize_with = "null_is_default")]
    pub check_type: Text,
    /// The definition as it is on the wire; `None` for an empty one.
    #[serde(
        deserialize_with = "definition",
        skip_serializing_if = "Option::is_none"
    )]
    pub definition: Option<Box<serde_json::Value>>,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change. Not sent; a compare-and-set names its index itself.
    #[serde(skip_serializing)]
    pub modify_index: u64,
}

/// An entry of the key-value store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct KvPair {
    /// The key.
    #[serde(deserialize_with = "null_is_default")]
    pub key: Text,
    /// The value, decoded; empty in answers to writes, which carry no value.
    #[serde(deserialize_with = "base64_bytes")]
    pub value: Box<[u8]>,
    /// A number that belongs to the user of the key.
    pub flags: u64,
    /// The session that holds the lock, empty for none.
    #[serde(deserialize_with = "null_is_default")]
    pub session: Text,
    /// How often the key was locked.
    pub lock_index: u64,
    /// Raft index of the creation.
    pub create_index: u64,
    /// Raft index of the last change.
    pub modify_index: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads `null` as the default: Go encodes an empty list or map either way.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads `null` as an empty list, and in it as an empty value.
fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    let list: Vec<Option<T>> = null_is_default(deserializer)?;
    Ok(list.into_iter().map(Option::unwrap_or_default).collect())
}

fn definition<'de, D>(deserializer: D) -> Result<Option<Box<serde_json::Value>>, D::Error>
where
    D: Deserializer<'de>,
{
    let value = Option::<Box<serde_json::Value>>::deserialize(deserializer)?;
    Ok(value.filter(|value| value.as_object().is_none_or(|fields| !fields.is_empty())))
}

fn base64_bytes<'de, D>(deserializer: D) -> Result<Box<[u8]>, D::Error>
where
    D: Deserializer<'de>,
{
    use base64::Engine as _;
    let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?.unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
    bytes
        .map(Vec::into_boxed_slice)
        .map_err(serde::de::Error::custom)
}

/// A JSON object of texts as [`Pairs`].
pub(super) mod pairs {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    use crate::model::text::{Pairs, Text};

    pub(in crate::consul) fn serialize<S: Serializer>(
        pairs: &Pairs,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(pairs.iter())
    }

    pub(in crate::consul) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Pairs, D::Error> {
        let map = Option::<BTreeMap<Text, Option<Text>>>::deserialize(deserializer)?;
        Ok(map
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_an_empty_value_and_unknown_fields_are_skipped() {
        let service: NodeService = serde_json::from_value(json!({
            "ID": "a", "Service": "web", "Tags": null, "Address": "", "Meta": null,
            "TaggedAddresses": null, "Port": 70000, "Weights": null, "Ports": null,
            "Connect": {}, "Proxy": {"Mode": "", "Expose": {}}, "Invented": {"later": true},
        }))
        .unwrap();
        let expected = NodeService {
            id: "a".into(),
            service: "web".into(),
            port: 70000,
            ..NodeService::default()
        };
        assert_eq!(service, expected);
        let check: HealthCheck = serde_json::from_value(json!({
            "Node": "n", "CheckID": "c", "Status": "weird", "Definition": {}, "ServiceTags": null,
        }))
        .unwrap();
        assert_eq!((&*check.status, check.definition), ("weird", None));
        let node: Node = serde_json::from_value(json!({"Node": "n", "Meta": {"a": null}})).unwrap();
        assert_eq!(node.meta.get("a").map(|text| &**text), Some(""));
    }

    #[test]
    fn lists_and_maps_are_never_written_as_null() {
        let service = serde_json::to_value(NodeService::default()).unwrap();
        assert_eq!(
            service,
            json!({
                "ID": "", "Service": "", "Tags": [], "Address": "", "Port": 0, "Meta": {},
                "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": false,
            })
        );
        let node = serde_json::to_value(Node::default()).unwrap();
        assert_eq!(
            node,
            json!({"ID": "", "Node": "", "Address": "", "TaggedAddresses": {}, "Meta": {}})
        );
    }

    #[test]
    fn what_a_transaction_leaves_out_needs_a_registration() {
        let plain = NodeService::default();
        assert!(!plain.needs_register());
        let ports = vec![ServicePort::default()].into();
        assert!(
            NodeService {
                ports,
                ..plain.clone()
            }
            .needs_register()
        );
        let connect = Connect { native: true };
        assert!(
            NodeService {
                connect,
                ..plain.clone()
            }
            .needs_register()
        );
        let locality = Some(Locality::default());
        assert!(NodeService { locality, ..plain }.needs_register());
    }

    #[test]
    fn values_of_keys_are_decoded() {
        let pair: KvPair =
            serde_json::from_value(json!({"Key": "k", "Value": "e30=", "Flags": 3})).unwrap();
        assert_eq!(&*pair.value, b"{}");
        let empty: KvPair = serde_json::from_value(json!({"Key": "k", "Value": null})).unwrap();
        assert!(empty.value.is_empty());
    }
}
