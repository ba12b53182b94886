//! What a proxy of the service mesh is for.
//!
//! What Lictor does not know of it is kept as it is, so that it is seen, and empty values are left out:
//! Consul returns some fields whether they were written or not, each upstream's `MeshGateway: {}` for
//! one.
//!
//! Source: <https://developer.hashicorp.com/consul/docs/reference/proxy/connect-proxy>; observed on
//! Consul 1.22.7.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::null_is_default;
use crate::model::text::Text;

/// Settings of an instance that is a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    /// The service that it is the proxy of.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub destination_service_name: Text,
    /// The id of that service's instance.
    #[serde(
        rename = "DestinationServiceID",
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub destination_service_id: Text,
    /// Where the proxy reaches the instance.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub local_service_address: Text,
    /// The port there.
    #[serde(skip_serializing_if = "is_zero")]
    pub local_service_port: i64,
    /// What the instance calls through it; [`NodeService::needs_register`](super::NodeService).
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "<[ProxyUpstream]>::is_empty"
    )]
    pub upstreams: Box<[ProxyUpstream]>,
    /// All else that says something.
    #[serde(flatten, deserialize_with = "telling")]
    pub rest: Map<String, Value>,
}

/// A service that is called through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProxyUpstream {
    /// The service.
    #[serde(deserialize_with = "null_is_default")]
    pub destination_name: Text,
    /// Its Consul namespace.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub destination_namespace: Text,
    /// Its admin partition.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub destination_partition: Text,
    /// The peer that it comes from.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub destination_peer: Text,
    /// The datacenter that it is looked up in.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub datacenter: Text,
    /// Where the proxy takes the calls.
    pub local_bind_port: i64,
    /// All else that says something.
    #[serde(flatten, deserialize_with = "telling")]
    pub rest: Map<String, Value>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Settings, where there are any.
pub(super) fn proxy<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<Proxy>>, D::Error> {
    let proxy = Option::<Box<Proxy>>::deserialize(from)?;
    Ok(proxy.filter(|proxy| **proxy != Proxy::default()))
}

fn telling<'de, D: Deserializer<'de>>(from: D) -> Result<Map<String, Value>, D::Error> {
    let mut rest = Map::deserialize(from)?;
    rest.retain(|_, value| !says_nothing(value));
    Ok(rest)
}

/// Whether it is what Go takes for nothing.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::NodeService;
    use super::*;

    fn read(proxy: &Value) -> NodeService {
        serde_json::from_value(json!({"ID": "i", "Service": "s", "Proxy": proxy})).unwrap()
    }

    #[test]
    fn what_consul_adds_of_its_own_accord_says_nothing() {
        for nothing in [
            json!(null),
            json!({"Mode": "", "MeshGateway": {}, "Expose": {}}),
        ] {
            assert_eq!(read(&nothing).proxy, None);
        }
        let stored = read(&json!({
            "DestinationServiceName": "web", "DestinationServiceID": "w", "LocalServicePort": 80,
            "Mode": "", "MeshGateway": {}, "Expose": {},
            "Upstreams": [{"DestinationType": "", "DestinationName": "ledger", "Datacenter": "",
                           "LocalBindPort": 9191, "MeshGateway": {}}],
        }));
        let written = serde_json::to_value(stored.proxy).unwrap();
        assert_eq!(
            written,
            json!({
                "DestinationServiceName": "web", "DestinationServiceID": "w", "LocalServicePort": 80,
                "Upstreams": [{"DestinationName": "ledger", "LocalBindPort": 9191}],
            })
        );
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let given = json!({
            "DestinationServiceName": "web", "Config": {"protocol": "http"},
            "Upstreams": [{"DestinationName": "l", "LocalBindPort": 1, "Config": {"a": 1}}],
        });
        let proxy = read(&given).proxy.unwrap();
        assert_eq!(proxy.rest.len(), 1);
        assert_eq!(serde_json::to_value(proxy).unwrap(), given);
    }

    #[test]
    fn a_transaction_keeps_a_proxy_without_upstreams_only() {
        let plain = read(&json!({"DestinationServiceName": "web"}));
        assert!(!plain.needs_register());
        for dropped in [
            json!({"Upstreams": [{"DestinationName": "l", "LocalBindPort": 1}]}),
            json!({"Config": {"protocol": "http"}}),
            json!({"Mode": "transparent"}),
        ] {
            assert!(read(&dropped).needs_register());
        }
    }
}
