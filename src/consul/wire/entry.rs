//! What config entries have in common, and `service-defaults`.
//!
//! Source: <https://developer.hashicorp.com/consul/docs/reference/config-entry/service-defaults>;
//! observed on Consul 1.22.7.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{null_is_default, pairs};
use crate::model::text::{Pairs, Text};

/// An entry of one kind in Consul's central configuration.
///
/// Its key is the name, **compared without case**: `Web` is read, replaced and removed where `web` is
/// asked for, and a write of the other spelling renames it in place.
///
/// Consul compares an entry with the one that it stores field by field, and takes an empty list or map
/// for another than none. An entry that is read and written as it is here compares as equal unless
/// its writer spelt out what is empty; then the first write makes it canonical.
pub trait ConfigEntry: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind, as in `Kind`.
    const KIND: &'static str;
    /// Where entries of the kind are read and removed; the label in metrics.
    const ENDPOINT: &'static str;

    /// The name.
    fn name(&self) -> &Text;
    /// Metadata: at most 64 pairs, keys of at most 128 bytes of any kind, values of at most 512.
    fn meta(&self) -> &Pairs;
    /// Raft index of the creation.
    fn create_index(&self) -> u64;
    /// Raft index of the last change.
    fn modify_index(&self) -> u64;
}

/// Defaults of a service: its protocol, and all that is not known here, which is kept.
///
/// With only a name Consul stores the protocol `""`, which counts as `tcp` unless `proxy-defaults` say
/// otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "Kind",
    rename = "service-defaults",
    rename_all = "PascalCase",
    default
)]
pub struct ServiceDefaults {
    /// The service.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// Its namespace. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub namespace: Text,
    /// Its partition. Enterprise; the Community Edition refuses even an empty one.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub partition: Text,
    /// `tcp`, `http`, `http2` or `grpc`, which Consul stores in lower case.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "str::is_empty"
    )]
    pub protocol: Text,
    /// Metadata.
    #[serde(with = "pairs", skip_serializing_if = "Pairs::is_empty")]
    pub meta: Pairs,
    /// Raft index of the creation. Not sent.
    #[serde(skip_serializing)]
    pub create_index: u64,
    /// Raft index of the last change. Not sent.
    #[serde(skip_serializing)]
    pub modify_index: u64,
    /// All else, without what Consul returns of every entry: `Hash`, and `TransparentProxy`,
    /// `MeshGateway` and `Expose` where they are empty.
    #[serde(flatten, deserialize_with = "settings")]
    pub other: Map<String, Value>,
}

impl ConfigEntry for ServiceDefaults {
    const KIND: &'static str = "service-defaults";
    const ENDPOINT: &'static str = "config/service-defaults";

    fn name(&self) -> &Text {
        &self.name
    }

    fn meta(&self) -> &Pairs {
        &self.meta
    }

    fn create_index(&self) -> u64 {
        self.create_index
    }

    fn modify_index(&self) -> u64 {
        self.modify_index
    }
}

/// Fields that a type does not know; `null` is as good as none.
pub(super) fn unknown<'de, D>(deserializer: D) -> Result<Map<String, Value>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut fields = Map::deserialize(deserializer)?;
    fields.retain(|_, value| !value.is_null());
    Ok(fields)
}

/// The same of a whole entry, without what Consul works out itself.
pub(super) fn unknown_of_entry<'de, D>(deserializer: D) -> Result<Map<String, Value>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut fields = unknown(deserializer)?;
    fields.retain(|name, _| name != "Kind" && name != "Hash");
    Ok(fields)
}

fn settings<'de, D>(deserializer: D) -> Result<Map<String, Value>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut fields = unknown_of_entry(deserializer)?;
    fields.retain(|name, value| {
        let always_there = matches!(&**name, "TransparentProxy" | "MeshGateway" | "Expose");
        !(always_there && value.as_object().is_some_and(Map::is_empty))
    });
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_consul_adds_to_every_entry_is_no_setting() {
        let read = json!({
            "Kind": "service-defaults", "Name": "web", "Protocol": "http", "TransparentProxy": {},
            "MeshGateway": {}, "Expose": {}, "Hash": 18_446_744_073_709_551_615_u64,
            "CreateIndex": 7, "ModifyIndex": 9, "Meta": null, "ExternalSNI": null,
        });
        let entry: ServiceDefaults = serde_json::from_value(read).unwrap();
        let expected = ServiceDefaults {
            name: "web".into(),
            protocol: "http".into(),
            create_index: 7,
            modify_index: 9,
            ..ServiceDefaults::default()
        };
        assert_eq!(entry, expected);
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"})
        );
    }

    #[test]
    fn settings_of_others_are_kept() {
        let written = json!({
            "Kind": "service-defaults", "Name": "web", "Expose": {"Checks": true},
            "Destination": {}, "Invented": [1, {"A": null}],
        });
        let entry: ServiceDefaults = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&entry).unwrap(), written);
    }
}
