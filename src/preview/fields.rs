//! Entries of Consul beside each other, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Field;
use crate::model::entry::{Node, Service};
use crate::model::key::InstanceKey;
use crate::model::text::Pairs;
use crate::observed::entries::ObservedIntentions;
use crate::observed::entry::wire_service;

/// What differs: fields of objects one by one, lists and all else as a whole.
pub(super) fn differing(before: Option<&Value>, after: Option<&Value>) -> Vec<Field> {
    let (mut was, mut will) = (BTreeMap::new(), BTreeMap::new());
    for (value, flat) in [(before, &mut was), (after, &mut will)] {
        if let Some(value) = value {
            flatten("", value, flat);
        }
    }
    let names: BTreeSet<&String> = was.keys().chain(will.keys()).collect();
    let field = |name: &String| {
        let (before, after) = (was.get(name), will.get(name));
        (before != after).then(|| Field {
            name: name.clone(),
            before: before.map(|value| (*value).clone()),
            after: after.map(|value| (*value).clone()),
        })
    };
    names.into_iter().filter_map(field).collect()
}

/// What says nothing is left out: Consul takes it for what is not there.
fn flatten<'a>(name: &str, value: &'a Value, into: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(fields) => {
            for (part, value) in fields {
                let name = match name {
                    "" => part.clone(),
                    name => format!("{name}.{part}"),
                };
                flatten(&name, value, into);
            }
        }
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        value => {
            into.insert(name.to_owned(), value);
        }
    }
}

/// A value of Consul's API; what cannot be written as JSON does not occur in it.
pub(super) fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

pub(super) fn service(key: &InstanceKey, service: &Service) -> Value {
    let mut value = value(&wire_service(key, service));
    if let Value::Object(fields) = &mut value {
        // It is the key.
        fields.remove("ID");
    }
    value
}

pub(super) fn node(node: &Node) -> Value {
    json!({"Address": node.address, "Meta": meta(&node.meta)})
}

fn meta(pairs: &Pairs) -> Map<String, Value> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (key.to_string(), Value::from(&**value)))
        .collect()
}

/// The sources of an entry by their names, so that each is compared with itself.
pub(super) fn intentions(there: &ObservedIntentions) -> Value {
    let sources = there.sources.iter().map(|(name, source)| {
        let mut source = value(source);
        if let Value::Object(fields) = &mut source {
            fields.remove("Name");
        }
        (name.to_string(), source)
    });
    let sources: Map<String, Value> = sources.collect();
    json!({
        "Sources": sources,
        "JWT": there.jwt.as_ref().map(value),
        "Meta": meta(&there.meta),
    })
}
