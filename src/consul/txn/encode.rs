//! How operations look on the wire.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use super::TxnOp;
use crate::consul::config::Tenancy;

impl Serialize for TxnOp<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::NodeSet { node } => node_op(to, "set", &**node, None),
            Self::NodeCas { node, index } => node_op(to, "cas", &**node, Some(*index)),
            Self::NodeDeleteCas { name, index } => {
                node_op(to, "delete-cas", &NodeKey { node: name }, Some(*index))
            }
            Self::NodeGet { name } => node_op(to, "get", &NodeKey { node: name }, None),
            Self::ServiceSet { node, service } => service_op(to, "set", node, &**service, None),
            Self::ServiceCas {
                node,
                service,
                index,
            } => service_op(to, "cas", node, &**service, Some(*index)),
            Self::ServiceDeleteCas {
                node,
                id,
                service,
                index,
            } => {
                let key = ServiceKey { id, service };
                service_op(to, "delete-cas", node, &key, Some(*index))
            }
            Self::ServiceGet { node, id, service } => {
                service_op(to, "get", node, &ServiceKey { id, service }, None)
            }
            Self::CheckSet { check } => check_op(to, "set", &**check, None),
            Self::CheckCas { check, index } => check_op(to, "cas", &**check, Some(*index)),
            Self::CheckDeleteCas {
                node,
                check_id,
                service_id,
                service,
                index,
            } => {
                let key = CheckKey {
                    node,
                    check_id,
                    service_id,
                    service_name: service,
                };
                check_op(to, "delete-cas", &key, Some(*index))
            }
            Self::KvCheckIndex { key, index } => entry(
                to,
                "KV",
                &KvOp {
                    index: *index,
                    ..KvOp::new("check-index", key)
                },
            ),
            Self::KvCheckNotExists { key } => entry(to, "KV", &KvOp::new("check-not-exists", key)),
            Self::KvCheckSession { key, session } => entry(
                to,
                "KV",
                &KvOp {
                    session,
                    ..KvOp::new("check-session", key)
                },
            ),
            Self::KvGet { key } => entry(to, "KV", &KvOp::new("get", key)),
            Self::KvSet { key, value } => entry(
                to,
                "KV",
                &KvOp {
                    value: Some(Base64(value)),
                    ..KvOp::new("set", key)
                },
            ),
            Self::KvCas { key, value, index } => {
                let value = Some(Base64(value));
                entry(
                    to,
                    "KV",
                    &KvOp {
                        value,
                        index: *index,
                        ..KvOp::new("cas", key)
                    },
                )
            }
            Self::KvDeleteCas { key, index } => entry(
                to,
                "KV",
                &KvOp {
                    index: *index,
                    ..KvOp::new("delete-cas", key)
                },
            ),
        }
    }
}

/// Writes the tenancy into each operation of a body, where Consul looks for it: the one in the
/// query of a transaction it ignores. Fails only for what is no body of a transaction.
pub(super) fn place(body: &[u8], tenancy: &Tenancy) -> serde_json::Result<Vec<u8>> {
    let mut ops: Vec<Map<String, Value>> = serde_json::from_slice(body)?;
    let set = |object: Option<&mut Map<String, Value>>, in_namespace: bool| {
        let Some(object) = object else { return };
        if let Some(namespace) = tenancy.namespace.as_ref().filter(|_| in_namespace) {
            object.insert("Namespace".to_owned(), Value::from(namespace.as_str()));
        }
        if let Some(partition) = &tenancy.partition {
            object.insert("Partition".to_owned(), Value::from(partition.as_str()));
        }
    };
    for (kind, op) in ops.iter_mut().flatten() {
        match kind.as_str() {
            "KV" => set(op.as_object_mut(), true),
            // A node is in a partition, but in no namespace.
            "Node" => set(op["Node"].as_object_mut(), false),
            kind => set(op[kind].as_object_mut(), true),
        }
    }
    serde_json::to_vec(&ops)
}

/// `{"<kind>": <op>}`.
fn entry<S: Serializer>(to: S, kind: &str, op: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(1))?;
    map.serialize_entry(kind, op)?;
    map.end()
}

fn node_op<S: Serializer>(
    to: S,
    verb: &'static str,
    fields: &impl Serialize,
    modify_index: Option<u64>,
) -> Result<S::Ok, S::Error> {
    entry(
        to,
        "Node",
        &NodeOp {
            verb,
            node: Expecting {
                fields,
                modify_index,
            },
        },
    )
}

fn service_op<S: Serializer>(
    to: S,
    verb: &'static str,
    node: &str,
    fields: &impl Serialize,
    modify_index: Option<u64>,
) -> Result<S::Ok, S::Error> {
    let service = Expecting {
        fields,
        modify_index,
    };
    entry(
        to,
        "Service",
        &ServiceOp {
            verb,
            node,
            service,
        },
    )
}

fn check_op<S: Serializer>(
    to: S,
    verb: &'static str,
    fields: &impl Serialize,
    modify_index: Option<u64>,
) -> Result<S::Ok, S::Error> {
    entry(
        to,
        "Check",
        &CheckOp {
            verb,
            check: Expecting {
                fields,
                modify_index,
            },
        },
    )
}

/// An object, or its key, with the index that it is expected to have.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Expecting<'a, T> {
    #[serde(flatten)]
    fields: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    modify_index: Option<u64>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeOp<T> {
    verb: &'static str,
    node: T,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeKey<'a> {
    node: &'a str,
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
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{json, to_value};

    use super::*;
    use crate::consul::wire::{HealthCheck, Node, NodeService};

    #[test]
    fn operations_look_as_consul_documents_them() {
        let node = Node {
            name: "n".into(),
            address: "10.0.0.1".into(),
            modify_index: 3,
            ..Node::default()
        };
        let service = NodeService {
            id: "i".into(),
            service: "web".into(),
            ..NodeService::default()
        };
        let check = HealthCheck {
            node: "n".into(),
            check_id: "i:c".into(),
            ..HealthCheck::default()
        };
        let op = TxnOp::NodeCas {
            node: Cow::Borrowed(&node),
            index: 0,
        };
        assert_eq!(
            to_value(op).unwrap(),
            json!({"Node": {"Verb": "cas", "Node": {
                "ID": "", "Node": "n", "Address": "10.0.0.1", "TaggedAddresses": {}, "Meta": {},
                "ModifyIndex": 0,
            }}})
        );
        let op = to_value(TxnOp::ServiceSet {
            node: "n",
            service: Cow::Borrowed(&service),
        })
        .unwrap();
        assert_eq!(op["Service"]["Node"], "n");
        assert_eq!(op["Service"]["Service"]["ID"], "i");
        assert_eq!(op["Service"]["Service"].get("ModifyIndex"), None);
        let op = to_value(TxnOp::CheckCas {
            check: Cow::Owned(check),
            index: 7,
        })
        .unwrap();
        assert_eq!(op["Check"]["Check"]["CheckID"], "i:c");
        assert_eq!(op["Check"]["Check"]["ModifyIndex"], 7);
        let op = TxnOp::ServiceDeleteCas {
            node: "n",
            id: "i",
            service: "web",
            index: 7,
        };
        assert_eq!(
            to_value(op).unwrap(),
            json!({"Service": {"Verb": "delete-cas", "Node": "n", "Service": {
                "ID": "i", "Service": "web", "ModifyIndex": 7,
            }}})
        );
        let op = TxnOp::KvCas {
            key: "k",
            value: b"{}",
            index: 0,
        };
        assert_eq!(
            to_value(op).unwrap(),
            json!({"KV": {"Verb": "cas", "Key": "k", "Value": "e30=", "Index": 0}})
        );
    }

    #[test]
    fn the_tenancy_goes_into_every_operation() {
        let service = Cow::Owned(NodeService::default());
        let ops = [
            TxnOp::KvGet { key: "k" },
            TxnOp::NodeGet { name: "n" },
            TxnOp::ServiceSet { node: "n", service },
            TxnOp::CheckDeleteCas {
                node: "n",
                check_id: "c",
                service_id: "",
                service: "",
                index: 1,
            },
        ];
        let body = serde_json::to_vec(&ops).unwrap();
        let (namespace, partition) = (Some("ns".to_owned()), Some("p".to_owned()));
        let body = place(
            &body,
            &Tenancy {
                namespace,
                partition,
            },
        )
        .unwrap();
        let ops: Value = serde_json::from_slice(&body).unwrap();
        for object in [
            &ops[0]["KV"],
            &ops[2]["Service"]["Service"],
            &ops[3]["Check"]["Check"],
        ] {
            assert_eq!(
                (&object["Namespace"], &object["Partition"]),
                (&json!("ns"), &json!("p"))
            );
        }
        let node = &ops[1]["Node"]["Node"];
        assert_eq!(
            (node.get("Namespace"), &node["Partition"]),
            (None, &json!("p"))
        );
    }
}
