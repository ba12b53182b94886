//! How operations look on the wire.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::TxnOp;
use crate::consul::config::Tenancy;

/// An operation in a tenancy.
pub(super) struct Encoded<'a> {
    op: &'a TxnOp<'a>,
    tenancy: Place<'a>,
}

impl<'a> Encoded<'a> {
    pub(super) fn new(op: &'a TxnOp<'a>, tenancy: &'a Tenancy) -> Self {
        let Tenancy {
            namespace,
            partition,
        } = tenancy;
        let (namespace, partition) = (namespace.as_deref(), partition.as_deref());
        Self {
            op,
            tenancy: Place {
                namespace,
                partition,
            },
        }
    }
}

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use TxnOp as Op;
        match self.op {
            Op::NodeSet { node } => self.node(serializer, "set", &**node, None),
            Op::NodeCas { node, index } => self.node(serializer, "cas", &**node, Some(*index)),
            Op::NodeDeleteCas { name, index } => self.node(
                serializer,
                "delete-cas",
                &NodeKey { node: name },
                Some(*index),
            ),
            Op::NodeGet { name } => self.node(serializer, "get", &NodeKey { node: name }, None),
            Op::ServiceSet { node, service } => {
                self.service(serializer, "set", node, &**service, None)
            }
            Op::ServiceCas {
                node,
                service,
                index,
            } => self.service(serializer, "cas", node, &**service, Some(*index)),
            Op::ServiceDeleteCas {
                node,
                id,
                service,
                index,
            } => {
                let key = ServiceKey { id, service };
                self.service(serializer, "delete-cas", node, &key, Some(*index))
            }
            Op::ServiceGet { node, id, service } => {
                self.service(serializer, "get", node, &ServiceKey { id, service }, None)
            }
            Op::CheckSet { check } => self.check(serializer, "set", &**check, None),
            Op::CheckCas { check, index } => self.check(serializer, "cas", &**check, Some(*index)),
            Op::CheckDeleteCas {
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
                self.check(serializer, "delete-cas", &key, Some(*index))
            }
            Op::KvCheckIndex { key, index } => self.kv(
                serializer,
                "check-index",
                key,
                KvRest {
                    index: *index,
                    ..NOTHING
                },
            ),
            Op::KvCheckNotExists { key } => self.kv(serializer, "check-not-exists", key, NOTHING),
            Op::KvCheckSession { key, session } => self.kv(
                serializer,
                "check-session",
                key,
                KvRest { session, ..NOTHING },
            ),
            Op::KvGet { key } => self.kv(serializer, "get", key, NOTHING),
            Op::KvSet { key, value } => self.kv(
                serializer,
                "set",
                key,
                KvRest {
                    value: Some(Base64(value)),
                    ..NOTHING
                },
            ),
            Op::KvCas { key, value, index } => {
                let rest = KvRest {
                    value: Some(Base64(value)),
                    index: *index,
                    ..NOTHING
                };
                self.kv(serializer, "cas", key, rest)
            }
            Op::KvDeleteCas { key, index } => self.kv(
                serializer,
                "delete-cas",
                key,
                KvRest {
                    index: *index,
                    ..NOTHING
                },
            ),
        }
    }
}

impl Encoded<'_> {
    fn node<S: Serializer>(
        &self,
        serializer: S,
        verb: &'static str,
        fields: &impl Serialize,
        modify_index: Option<u64>,
    ) -> Result<S::Ok, S::Error> {
        // A node is in a partition, but in no namespace.
        let place = Place {
            namespace: None,
            ..self.tenancy
        };
        entry(
            serializer,
            "Node",
            &NodeOp {
                verb,
                node: Object {
                    fields,
                    modify_index,
                    place,
                },
            },
        )
    }

    fn service<S: Serializer>(
        &self,
        serializer: S,
        verb: &'static str,
        node: &str,
        fields: &impl Serialize,
        modify_index: Option<u64>,
    ) -> Result<S::Ok, S::Error> {
        let service = Object {
            fields,
            modify_index,
            place: self.tenancy,
        };
        entry(
            serializer,
            "Service",
            &ServiceOp {
                verb,
                node,
                service,
            },
        )
    }

    fn check<S: Serializer>(
        &self,
        serializer: S,
        verb: &'static str,
        fields: &impl Serialize,
        modify_index: Option<u64>,
    ) -> Result<S::Ok, S::Error> {
        let check = Object {
            fields,
            modify_index,
            place: self.tenancy,
        };
        entry(serializer, "Check", &CheckOp { verb, check })
    }

    fn kv<S: Serializer>(
        &self,
        serializer: S,
        verb: &'static str,
        key: &str,
        rest: KvRest<'_>,
    ) -> Result<S::Ok, S::Error> {
        entry(
            serializer,
            "KV",
            &KvOp {
                verb,
                key,
                rest,
                place: self.tenancy,
            },
        )
    }
}

/// `{"<kind>": <op>}`.
fn entry<S: Serializer>(
    serializer: S,
    kind: &'static str,
    op: &impl Serialize,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(kind, op)?;
    map.end()
}

/// Namespace and partition. Each operation names them: those in the query of a transaction are
/// ignored.
#[derive(Clone, Copy, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Place<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<&'a str>,
}

/// An object, or its key, with the index that it is expected to have.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Object<'a, T> {
    #[serde(flatten)]
    fields: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    modify_index: Option<u64>,
    #[serde(flatten)]
    place: Place<'a>,
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
    #[serde(flatten)]
    rest: KvRest<'a>,
    #[serde(flatten)]
    place: Place<'a>,
}

/// What only some operations on keys have.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct KvRest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    index: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    session: &'a str,
}

const NOTHING: KvRest<'static> = KvRest {
    value: None,
    index: 0,
    session: "",
};

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Bytes as Go puts them into JSON.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}
