//! What manifests of other tools ask for, as objects and annotations of Lictor. Pure.
//!
//! Understood are `Registration` and `ServiceIntentions` of consul-k8s, Services that its catalog sync
//! registers, and pods and workloads with the annotations of katalog-sync and kube-consul-register. What is
//! the same and what has no counterpart is in `docs/migration.md`; the latter is told beside each object.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

mod annotations;
mod catalog;
mod intentions;
mod registrations;
mod text;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// How annotations of the catalog sync, and kinds of consul-k8s, are qualified.
const CONSUL_K8S: &str = "consul.hashicorp.com";

/// What manifests do not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of objects that are of the whole cluster there.
    pub namespace: String,
    /// Whether the sync registers each Service that does not say otherwise (`syncCatalog.default`).
    pub all_services: bool,
    /// What it puts before their names (`syncCatalog.consulPrefix`).
    pub prefix: String,
    /// Whether it puts their namespace behind their names (`syncCatalog.addK8SNamespaceSuffix`).
    pub suffix: bool,
}

/// An object of Lictor, or annotations of Lictor for an object that there is.
#[derive(Clone, Debug, PartialEq)]
pub struct Migrated {
    /// The manifest. Of an object that there is only what is added to it.
    pub object: Value,
    /// For people: what of it has no counterpart, and what to look at.
    pub notes: Vec<String>,
}

/// What these objects ask for, in their order.
#[must_use]
pub fn migrate(objects: &[Value], options: &Options) -> Vec<Migrated> {
    let mut all = registrations::migrate(objects, options);
    let others = objects.iter().filter_map(|object| {
        let kind = (group(object), object["kind"].as_str().unwrap_or_default());
        match kind {
            (CONSUL_K8S, "ServiceIntentions") => Some(intentions::migrate(object)),
            ("", "Service") => catalog::migrate(object, options),
            _ => annotations::migrate(object),
        }
    });
    all.extend(others);
    name_once(&mut all);
    intentions::protocols(objects, &mut all);
    all
}

/// Two objects of one kind and name would be one: the later one gets another name.
fn name_once(all: &mut [Migrated]) {
    let mut taken: BTreeSet<(String, String, String)> = BTreeSet::new();
    for migrated in all.iter_mut() {
        let (kind, namespace) = (
            migrated.object["kind"].to_string(),
            namespace(&migrated.object).to_owned(),
        );
        let first = name(&migrated.object).to_owned();
        let mut free = first.clone();
        for number in 2.. {
            if taken.insert((kind.clone(), namespace.clone(), free.clone())) {
                break;
            }
            free = format!("{first}-{number}");
        }
        if free == first {
            continue;
        }
        migrated.notes.push(format!(
            "{first}: it is called {free}, since another one has the name"
        ));
        if kind.contains("ServiceRegistration") && migrated.object["spec"]["service"].is_null() {
            migrated.object["spec"]["service"] = json!(first);
        }
        migrated.object["metadata"]["name"] = json!(free);
    }
}

/// As YAML, the notes as comments before each object.
///
/// # Errors
///
/// What cannot be written as YAML, which nothing is that was read as such.
pub fn yaml(all: &[Migrated]) -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for Migrated { object, notes } in all {
        text.push_str("---\n");
        for note in notes {
            // What somebody else wrote does not end the comment, nor speak to the terminal.
            let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
            let note: Vec<&str> = note.split(is_odd).filter(|word| !word.is_empty()).collect();
            let note = note.join(" ");
            let _ = writeln!(text, "# {note}");
        }
        let manifest = serde_saphyr::to_string(object)?;
        text.push_str(manifest.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// The API group of an object.
fn group(object: &Value) -> &str {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    version.split_once('/').map_or("", |(group, _)| group)
}

/// An object of Lictor.
fn ours(kind: &str, name: &str, namespace: &str, spec: &Map<String, Value>) -> Value {
    json!({
        "apiVersion": "lictor.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// The namespace of an object that is in one.
fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"]
        .as_str()
        .unwrap_or("default")
}

/// The name of an object.
fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The kind and name of an object, for people.
fn what(object: &Value) -> String {
    format!(
        "{}/{}",
        object["kind"].as_str().unwrap_or_default(),
        name(object)
    )
}

#[cfg(test)]
mod tests;
