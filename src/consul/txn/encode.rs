//! How operations look on the wire.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::TxnOp;
use crate::consul::wire::{HealthCheck, Node, NodeService};

impl Serialize for TxnOp<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::NodeSet { node } => map.serialize_entry("Node", &NodeOp::new("set", &**node))?,
            Self::NodeCas { node, index } => {
                map.serialize_entry(
                    "Node",
                    &NodeOp::new("cas", Indexed::<Node>::new(node, *index)),
                )?;
            }
            Self::NodeDeleteCas { name, index } => {
                map.serialize_entry(
                    "Node",
                    &NodeOp::new(
                        "delete-cas",
                        NodeKey {
                            node: name,
                            modify_index: *index,
                        },
                    ),
                )?;
            }
            Self::NodeGet { name } => {
                map.serialize_entry(
                    "Node",
                    &NodeOp::new(
                        "get",
                        NodeKey {
                            node: name,
                            modify_index: 0,
                        },
                    ),
                )?;
            }
            Self::ServiceSet { node, service } => {
                map.serialize_entry(
                    "Service",
                    &ServiceOp {
                        verb: "set",
                        node,
                        service: &**service,
                    },
                )?;
            }
            Self::ServiceCas {
                node,
                service,
                index,
            } => {
                let service = Indexed::<NodeService>::new(service, *index);
                map.serialize_entry(
                    "Service",
                    &ServiceOp {
                        verb: "cas",
                        node,
                        service,
                    },
                )?;
            }
            Self::ServiceDeleteCas {
                node,
                id,
                service,
                index,
            } => {
                let service = ServiceKey {
                    id,
                    service,
                    modify_index: *index,
                };
                map.serialize_entry(
                    "Service",
                    &ServiceOp {
                        verb: "delete-cas",
                        node,
                        service,
                    },
                )?;
            }
            Self::ServiceGet { node, id, service } => {
                let service = ServiceKey {
                    id,
                    service,
                    modify_index: 0,
                };
                map.serialize_entry(
                    "Service",
                    &ServiceOp {
                        verb: "get",
                        node,
                        service,
                    },
                )?;
            }
            Self::CheckSet { check } => map.serialize_entry(
                "Check",
                &CheckOp {
                    verb: "set",
                    check: &**check,
                },
            )?,
            Self::CheckCas { check, index } => {
                let check = Indexed::<HealthCheck>::new(check, *index);
                map.serialize_entry("Check", &CheckOp { verb: "cas", check })?;
            }
            Self::CheckDeleteCas {
                node,
                check_id,
                service_id,
                service,
                index,
            } => {
                let check = CheckKey {
                    node,
                    check_id,
                    service_id,
                    service_name: service,
                    modify_index: *index,
                };
                map.serialize_entry(
                    "Check",
                    &CheckOp {
                        verb: "delete-cas",
                        check,
                    },
                )?;
            }
            Self::KvCheckIndex { key, index } => {
                map.serialize_entry(
                    "KV",
                    &KvOp {
                        index: *index,
                        ..KvOp::new("check-index", key)
                    },
                )?;
            }
            Self::KvCheckNotExists { key } => {
                map.serialize_entry("KV", &KvOp::new("check-not-exists", key))?
            }
            Self::KvCheckSession { key, session } => {
                map.serialize_entry(
                    "KV",
                    &KvOp {
                        session,
                        ..KvOp::new("check-session", key)
                    },
                )?;
            }
            Self::KvGet { key } => map.serialize_entry("KV", &KvOp::new("get", key))?,
            Self::KvSet { key, value } => {
                map.serialize_entry(
                    "KV",
                    &KvOp {
                        value: Some(Base64(value)),
                        ..KvOp::new("set", key)
                    },
                )?;
            }
            Self::KvCas { key, value, index } => {
                let op = KvOp {
                    value: Some(Base64(value)),
                    index: *index,
                    ..KvOp::new("cas", key)
                };
                map.serialize_entry("KV", &op)?;
            }
            Self::KvDeleteCas { key, index } => {
                map.serialize_entry(
                    "KV",
                    &KvOp {
                        index: *index,
                        ..KvOp::new("delete-cas", key)
                    },
                )?;
            }
        }
        map.end()
    }
}

/// An object together with the index that it is expected to have.
#[derive(serde::Serialize)]
struct Indexed<'a, T> {
    #[serde(flatten)]
    object: &'a T,
    #[serde(rename = "ModifyIndex")]
    index: u64,
}

impl<'a, T> Indexed<'a, T> {
    fn new(object: &'a T, index: u64) -> Self {
        Self { object, index }
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeOp<T> {
    verb: &'static str,
    node: T,
}

impl<T> NodeOp<T> {
    fn new(verb: &'static str, node: T) -> Self {
        Self { verb, node }
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeKey<'a> {
    node: &'a str,
    modify_index: u64,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceOp<'a, T> {
    verb: &'static str,
    node: &'a str,
    service: T,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceKey<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    modify_index: u64,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct CheckOp<T> {
    verb: &'static str,
    check: T,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct CheckKey<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    check_id: &'a str,
    #[serde(rename = "ServiceID", skip_serializing_if = "str::is_empty")]
    service_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_name: &'a str,
    modify_index: u64,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct KvOp<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Base64<'a>>,
    index: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    session: &'a str,
}

impl<'a> KvOp<'a> {
    fn new(verb: &'static str, key: &'a str) -> Self {
        Self {
            verb,
            key,
            value: None,
            index: 0,
            session: "",
        }
    }
}

/// Bytes as Go puts them into JSON.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}
