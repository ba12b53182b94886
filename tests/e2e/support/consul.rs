//! What Consul shows.

use std::collections::BTreeMap;

use serde_json::Value;

/// One instance as `/v1/health/service` has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub id: String,
    pub node: String,
    pub address: String,
    pub port: u64,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
    pub weights: (u64, u64),
    /// Status and output of its readiness check; empty without one.
    pub status: String,
    pub output: String,
    /// Status of the node's check `lictor-node`; empty without one.
    pub node_status: String,
    /// Of the service entry.
    pub create_index: u64,
    pub modify_index: u64,
    pub raw: Value,
}

impl Instance {
    pub fn of(raw: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let service = &raw["Service"];
        let id = text(&service["ID"]);
        let check = |id: &str| {
            let checks = raw["Checks"].as_array().into_iter().flatten();
            let found = checks.into_iter().find(|check| check["CheckID"] == id);
            found.cloned().unwrap_or_default()
        };
        let ready = check(&format!("{id}:ready"));
        Self {
            node: text(&raw["Node"]["Node"]),
            address: text(&service["Address"]),
            port: number(&service["Port"]),
            tags: service["Tags"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect(),
            meta: pairs(&service["Meta"]),
            weights: (
                number(&service["Weights"]["Passing"]),
                number(&service["Weights"]["Warning"]),
            ),
            status: text(&ready["Status"]),
            output: text(&ready["Output"]),
            node_status: text(&check("lictor-node")["Status"]),
            create_index: number(&service["CreateIndex"]),
            modify_index: number(&service["ModifyIndex"]),
            id,
            raw: raw.clone(),
        }
    }

    /// A check by its id, `null` without one.
    pub fn check(&self, id: &str) -> &Value {
        let mut checks = self.raw["Checks"].as_array().into_iter().flatten();
        checks
            .find(|check| check["CheckID"] == id)
            .unwrap_or(&Value::Null)
    }
}

pub fn pairs(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// The pairs of meta that are not marks of Lictor.
pub fn user_meta(instance: &Instance) -> Vec<(&str, &str)> {
    let mark = |key: &str| key.starts_with("lictor-") || key.starts_with("external-");
    let pairs = instance.meta.iter().filter(|(key, _)| !mark(key));
    pairs.map(|(key, value)| (&**key, &**value)).collect()
}

/// Status, reason and message of a condition in a status.
pub fn condition<'a>(status: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == kind);
    let field = |name: &str| {
        found
            .and_then(|condition| condition[name].as_str())
            .unwrap_or_default()
    };
    (field("status"), field("reason"), field("message"))
}
