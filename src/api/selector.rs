//! A label selector with the JSON form and the meaning of `metav1.LabelSelector`, and limits that
//! let the API server judge it at apply.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::schema;
use crate::model::text::Pairs;

/// Chooses pods by their labels. All requirements must hold; an empty selector chooses every pod of
/// the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that the pod must have with exactly these values.
    #[schemars(schema_with = "labels")]
    #[x_kube(validation = schema::label_keys("self.all(key, key.{})"))]
    #[x_kube(validation = schema::label_values("self.all(key, self[key].{})"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)"
    ).message("operators In and NotIn need values, Exists and DoesNotExist take none")
)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = schema::label_keys("self.{}"))]
    pub key: String,
    /// How the key and the values are compared.
    pub operator: Operator,
    /// The values, for `In` and `NotIn`; none for `Exists` and `DoesNotExist`.
    #[schemars(length(max = 64), inner(length(max = 63)))]
    #[x_kube(validation = schema::label_values("self.all(value, value.{})"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is absent or has another value.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

impl LabelSelector {
    /// Whether an object with these labels is chosen.
    #[must_use]
    pub fn matches(&self, labels: &Pairs) -> bool {
        let exact = |(key, value): (&String, &String)| {
            labels.get(key).is_some_and(|have| **have == **value)
        };
        self.match_labels.iter().all(exact)
            && self
                .match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &Pairs) -> bool {
        let have = labels.get(&self.key);
        let listed = || have.is_some_and(|have| self.values.iter().any(|value| **value == **have));
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => have.is_some(),
            Operator::DoesNotExist => have.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        serde_json::from_str::<LabelSelector>(selector)
            .unwrap()
            .matches(&pairs(labels))
    }

    #[test]
    fn all_requirements_must_hold() {
        let selector = r#"{"matchLabels": {"app": "web", "tier": "front"}}"#;
        assert!(matches(
            selector,
            &[("app", "web"), ("tier", "front"), ("x", "y")]
        ));
        assert!(!matches(selector, &[("app", "web")]));
        assert!(!matches(selector, &[("app", "web"), ("tier", "back")]));
        assert!(matches("{}", &[]));
    }

    #[test]
    fn each_operator_means_what_it_means_in_kubernetes() {
        let with = |operator: &str, values: &str, labels: &[(&str, &str)]| {
            let selector = format!(
                r#"{{"matchExpressions": [{{"key": "env", "operator": "{operator}", "values": {values}}}]}}"#
            );
            matches(&selector, labels)
        };
        let dev = [("env", "dev")];
        assert!(with("In", r#"["dev", "qa"]"#, &dev));
        assert!(!with("In", r#"["qa"]"#, &dev));
        assert!(!with("In", r#"["qa"]"#, &[]));
        assert!(with("NotIn", r#"["qa"]"#, &dev));
        assert!(with("NotIn", r#"["qa"]"#, &[]));
        assert!(!with("NotIn", r#"["dev"]"#, &dev));
        assert!(with("Exists", "[]", &dev));
        assert!(!with("Exists", "[]", &[]));
        assert!(with("DoesNotExist", "[]", &[]));
        assert!(!with("DoesNotExist", "[]", &dev));
    }
}
