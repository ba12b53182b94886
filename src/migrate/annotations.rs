//! Annotations of katalog-sync and kube-consul-register on pods and on the templates of workloads: those of
//! Lictor that mean the same, beside them.

use serde_json::{Map, Value, json};

use super::text::{items, meta, plain, texts};
use super::{Migrated, group, name, what};

const KATALOG: &str = "katalog-sync.wish.com/";
const REGISTER: &str = "consul.register/";

/// Where the pod is in an object of this kind.
fn pod(object: &Value) -> Option<&'static [&'static str]> {
    match (group(object), object["kind"].as_str()?) {
        ("", "Pod") => Some(&[]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch", "Job") => {
            Some(&["spec", "template"])
        }
        ("", "ReplicationController") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// The annotations that are to be added, as what `kubectl apply --server-side` and kustomize take.
pub(super) fn migrate(object: &Value) -> Option<Migrated> {
    let path = pod(object)?;
    let pod = path.iter().fold(object, |within, field| &within[field]);
    let theirs: Vec<(&str, &str)> = texts(&pod["metadata"]["annotations"]).collect();
    let mut notes = Vec::new();
    let mut added = of_katalog_sync(&theirs, &what(object), &mut notes);
    added.extend(of_register(&theirs, object, &mut notes));
    if added.is_empty() {
        return None;
    }
    let added: Map<String, Value> = added
        .into_iter()
        .map(|(key, value)| (format!("lictor.io/{key}"), json!(value)))
        .collect();
    let mut manifest = json!({"metadata": {"annotations": added}});
    for field in path.iter().rev() {
        manifest = json!({*field: manifest});
    }
    let mut metadata = manifest["metadata"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    metadata.insert("name".to_owned(), json!(name(object)));
    if let Some(namespace) = object["metadata"]["namespace"].as_str() {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    manifest["metadata"] = Value::Object(metadata);
    manifest["apiVersion"] = object["apiVersion"].clone();
    manifest["kind"] = object["kind"].clone();
    notes.insert(
        0,
        format!(
            "{}: what is added to it; theirs may stay beside it until you are sure",
            what(object)
        ),
    );
    Some(Migrated {
        object: manifest,
        notes,
    })
}

fn of_katalog_sync(
    theirs: &[(&str, &str)],
    of: &str,
    notes: &mut Vec<String>,
) -> Vec<(String, String)> {
    let theirs = theirs
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(KATALOG)?, *value)));
    let theirs: Vec<(&str, &str)> = theirs.collect();
    let Some((_, names)) = theirs.iter().find(|(key, _)| *key == "service-names") else {
        return Vec::new();
    };
    let names = items(names);
    let mut added = vec![("service".to_owned(), names.join(","))];
    for (key, value) in theirs.iter().filter(|(key, _)| *key != "service-names") {
        let ours = ["port", "tags", "meta"].into_iter().find_map(|kind| {
            let rest = key.strip_prefix("service-")?.strip_prefix(kind)?;
            let service = rest.strip_prefix('-');
            let is_known = service.is_none_or(|it| names.iter().any(|name| name == it));
            (rest.is_empty() || service.is_some()).then_some((kind, service, is_known))
        });
        let Some((kind, service, true)) = ours else {
            notes.push(format!(
                "{of}: {KATALOG}{key} has no counterpart (docs/migration.md)"
            ));
            continue;
        };
        let value = match kind {
            "meta" => {
                let pairs = items(value).into_iter().filter_map(|pair| {
                    let (key, value) = pair.split_once(':')?;
                    Some((key.trim().to_owned(), json!(value.trim())))
                });
                {
                    let pairs = meta(pairs, of, notes);
                    written(&pairs, of, notes)
                }
            }
            "tags" => items(value)
                .iter()
                .map(|tag| plain(tag))
                .collect::<Vec<_>>()
                .join(", "),
            _ => (*value).to_owned(),
        };
        let service = service.map_or_else(String::new, |service| format!(".{service}"));
        added.push((format!("{kind}{service}"), value));
    }
    added
}

/// Pairs as the annotation `lictor.io/meta` has them, which commas part.
fn written(meta: &Map<String, Value>, of: &str, notes: &mut Vec<String>) -> String {
    let mut pairs = Vec::new();
    for (key, value) in meta {
        let value = value.as_str().unwrap_or_default();
        if key.contains(['=', ',']) || value.contains(',') {
            notes.push(format!(
                "{of}: meta {key:?} is left out: an annotation parts it at its commas; a ServiceRegistration can \
                 have it"
            ));
        } else {
            pairs.push(format!("{key}={value}"));
        }
    }
    pairs.join(", ")
}

fn of_register(
    theirs: &[(&str, &str)],
    object: &Value,
    notes: &mut Vec<String>,
) -> Vec<(String, String)> {
    let of = what(object);
    let theirs = theirs
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(REGISTER)?, *value)));
    let theirs: Vec<(&str, &str)> = theirs.collect();
    let find = |name: &str| {
        let found = theirs.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| *value)
    };
    if find("enabled") != Some("true") {
        return Vec::new();
    }
    let named = find("service.name").map(str::to_owned);
    let mut added = vec![(
        "service".to_owned(),
        named.unwrap_or_else(|| name(object).to_owned()),
    )];
    let pairs = theirs.iter().filter_map(|(key, value)| {
        let key = key.strip_prefix("service.meta.")?;
        Some((key.to_owned(), json!(value)))
    });
    let pairs = meta(pairs, &of, notes);
    let pairs = written(&pairs, &of, notes);
    if !pairs.is_empty() {
        added.push(("meta".to_owned(), pairs));
    }
    let is_known =
        |key: &str| matches!(key, "enabled" | "service.name") || key.starts_with("service.meta.");
    for (key, _) in theirs.iter().filter(|(key, _)| !is_known(key)) {
        notes.push(format!(
            "{of}: {REGISTER}{key} has no counterpart (docs/migration.md)"
        ));
    }
    notes.push(format!(
        "{of}: there each container is an instance, with its labels as tags; here the pod is one, with what \
         lictor.io/tags says"
    ));
    added
}
