//! `ServiceIntentions`, whose fields an `Intention` has, and protocols of `ServiceDefaults`.

use serde_json::{Map, Value, json};

use super::text::put;
use super::{CONSUL_K8S, Migrated, group, name, namespace, ours, what};

pub(super) fn migrate(object: &Value) -> Migrated {
    let mut notes = Vec::new();
    let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
    for field in ["namespace", "partition"] {
        let value = spec.get("destination").map(|it| &it[field]);
        if let Some(value) = value.and_then(Value::as_str).filter(|it| !it.is_empty()) {
            notes.push(format!(
                "{}: spec.destination.{field} is {value}: give Lictor the same, it writes to one alone",
                what(object)
            ));
        }
    }
    let annotation = format!("{CONSUL_K8S}/migrate-entry");
    if object["metadata"]["annotations"][annotation] == "true" {
        spec.insert("adopt".to_owned(), json!(true));
    }
    notes.push(format!(
        "{}: one entry in Consul cannot be of both: hand it over as docs/intentions.md says",
        what(object)
    ));
    let mut intention = ours("Intention", name(object), namespace(object), &spec);
    if let Some(metadata) = intention["metadata"].as_object_mut() {
        let labels = object["metadata"]["labels"].as_object();
        let labels = labels
            .into_iter()
            .flatten()
            .filter(|(key, _)| !is_of_tool(key));
        let labels: Map<String, Value> = labels
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        put(metadata, "labels", labels);
    }
    Migrated {
        object: intention,
        notes,
    }
}

/// Whether it is by this label that a tool knows what it may prune.
fn is_of_tool(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    matches!(
        label,
        "app.kubernetes.io/instance" | "app.kubernetes.io/managed-by"
    ) || ["helm.sh", "argocd.argoproj.io"].contains(&domain)
        || domain.ends_with("toolkit.fluxcd.io")
}

/// Gives registrations the protocol that `ServiceDefaults` say of their service; what else those say is left
/// to whoever writes them.
pub(super) fn protocols(objects: &[Value], all: &mut [Migrated]) {
    let is_defaults =
        |it: &&Value| group(it) == CONSUL_K8S && it["kind"].as_str() == Some("ServiceDefaults");
    for defaults in objects.iter().filter(is_defaults) {
        let Some(protocol) = defaults["spec"]["protocol"].as_str() else {
            continue;
        };
        let known = ["tcp", "http", "http2", "grpc"].contains(&protocol);
        let of = name(defaults);
        let mut registrations = all.iter_mut().filter(|it| service(&it.object) == Some(of));
        let (Some(registration), true) = (registrations.next(), known) else {
            continue;
        };
        registration.object["spec"]["protocol"] = json!(protocol);
        registration.notes.push(format!(
            "{}: spec.protocol is as there; as long as that object is there, it serves",
            what(defaults)
        ));
    }
}

/// The service of a registration.
fn service(object: &Value) -> Option<&str> {
    let is_one = object["kind"] == "ServiceRegistration";
    let spec: Option<&Map<String, Value>> = object["spec"].as_object();
    let named = spec.and_then(|spec| spec.get("service")?.as_str());
    named.or_else(|| Some(name(object))).filter(|_| is_one)
}
