//! Manifests instead of a cluster: what a pipeline knows before anything is applied.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use super::{Action, Item};
use crate::api::GROUP;
use crate::desired::claim::Freeze;
use crate::desired::index::{Index, Touched};
use crate::desired::intention::Intention;
use crate::desired::query::PreparedQuery;
use crate::desired::registration::Registration;
use crate::k8s::trim::{self, Texts, Trim};
use crate::model::key::Key;
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::observed::mirror::Mirror;
use crate::plan::{self, Rules};

/// The namespace of a manifest that says none.
const DEFAULT_NAMESPACE: &str = "default";
/// The uid of an object that the API server has not seen.
const NOT_YET: &str = "known-when-applied";
/// Where the pods of templates are thought to run, to judge what they ask for.
const NOWHERE: &str = "192.0.2.1";

/// The documents of a file, those in a `List` one by one. `source` is named in errors.
///
/// # Errors
///
/// What is no YAML, or holds a document that is no Kubernetes object.
pub fn parse(text: &str, source: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_saphyr::from_multiple::<Value>(text)
        .with_context(|| format!("{source} is no YAML"))?;
    let mut objects = Vec::new();
    for document in documents {
        take(document, source, &mut objects)?;
    }
    Ok(objects)
}

fn take(document: Value, source: &str, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    if document.is_null() {
        return Ok(());
    }
    let is_text = |field: &str| document.get(field).is_some_and(Value::is_string);
    if !is_text("apiVersion") || !is_text("kind") {
        bail!("{source} has a document without apiVersion and kind: it is no Kubernetes object");
    }
    let is_list = document["apiVersion"] == "v1" && document["kind"] == "List";
    match document {
        Value::Object(mut fields) if is_list => {
            let Some(Value::Array(items)) = fields.remove("items") else {
                return Ok(());
            };
            for item in items {
                take(item, source, objects)?;
            }
        }
        object => {
            if object["metadata"]["name"]
                .as_str()
                .is_none_or(str::is_empty)
            {
                let kind = &object["kind"];
                bail!("{source} has a document of kind {kind} without metadata.name");
            }
            objects.push(object);
        }
    }
    Ok(())
}

/// Objects that claim something, and what is to be said of the others.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The objects of our kinds.
    pub owners: BTreeSet<Owner>,
    /// What is wrong with pods and the templates of workloads.
    pub rejected: Vec<Item>,
    /// What is not judged.
    pub notes: Vec<String>,
}

/// Puts objects into an empty index, as if a cluster held these alone. Kinds that ask for nothing in
/// Consul are left out. `observed` knows the uids of those that were applied before.
///
/// # Errors
///
/// An object that cannot be understood at all.
pub fn claim(objects: &[Value], index: &mut Index, observed: &Mirror) -> anyhow::Result<Manifests> {
    let mut manifests = Manifests::default();
    let mut touched = Touched::default();
    for kind in Kind::ALL {
        index.begin_list(kind);
    }
    for object in objects {
        let Some(kind) = of_ours(object) else {
            continue;
        };
        let (namespace, name) = name_of(object);
        let owner = Owner {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        };
        let object = as_applied(object, &owner, observed);
        let index = &mut *index;
        match kind {
            OwnerKind::ServiceRegistration => {
                index.apply_registration(Registration::of(&trimmed(&object)?), &mut touched);
            }
            OwnerKind::Intention => {
                index.apply_intention(Intention::of(&trimmed(&object)?), &mut touched);
            }
            OwnerKind::PreparedQuery => {
                index.apply_query(PreparedQuery::of(&trimmed(&object)?), &mut touched);
            }
            OwnerKind::Pod => {}
        }
        if !manifests.owners.insert(owner.clone()) {
            bail!("{owner} is there twice: remove one of the two manifests");
        }
    }
    for kind in Kind::ALL {
        index.end_list(kind, &mut touched);
    }
    for object in objects {
        if let Some(pod) = pod_of(object) {
            judge_pod(object, &pod, objects, index, &mut manifests)?;
        }
    }
    note_pods(&mut manifests, observed);
    Ok(manifests)
}

fn of_ours(object: &Value) -> Option<OwnerKind> {
    let (group, _) = object["apiVersion"].as_str()?.split_once('/')?;
    let kind = object["kind"].as_str()?;
    let kinds = [
        OwnerKind::ServiceRegistration,
        OwnerKind::Intention,
        OwnerKind::PreparedQuery,
    ];
    let mut kinds = kinds.into_iter().filter(|_| group == GROUP);
    kinds.find(|known| known.as_str() == kind)
}

fn name_of(object: &Value) -> (&str, &str) {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().filter(|it| !it.is_empty());
    let name = metadata["name"].as_str().unwrap_or_default();
    (namespace.unwrap_or(DEFAULT_NAMESPACE), name)
}

/// The object with what only the API server gives it.
fn as_applied(object: &Value, owner: &Owner, observed: &Mirror) -> Value {
    let uid = uid(owner, observed).unwrap_or_else(|| NOT_YET.into());
    let mut object = object.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.insert("namespace".to_owned(), json!(owner.namespace));
        metadata.insert("uid".to_owned(), json!(uid));
    }
    object
}

/// The uid that Consul shows an object with.
fn uid(owner: &Owner, observed: &Mirror) -> Option<Text> {
    let of = |key: &Key| match key {
        Key::Instance(key) => {
            plan::held_under(key, observed).filter(|held| held.pod.is_none())?;
            let there = observed.instance(key)?;
            there.service.meta.get(marks::UID).cloned()
        }
        Key::Query(name) => {
            let (ledger, _) = observed.queries.get(name)?.ledger.as_ref()?;
            Some(ledger.uid.as_str().into())
        }
        _ => None,
    };
    let instances = observed.held_by(owner, None);
    let entries = observed.entries_held_by(owner);
    instances.iter().chain(&entries).find_map(of)
}

fn trimmed<T: Trim>(object: &Value) -> anyhow::Result<T> {
    let list = json!({"metadata": {"resourceVersion": "0"}, "items": [object]});
    let (namespace, name) = name_of(object);
    let kind = object["kind"].as_str().unwrap_or_default();
    let page = trim::page::<T>(list.to_string().as_bytes(), &mut Texts::default());
    let page = page.with_context(|| format!("{kind}/{namespace}/{name} is not understood"))?;
    page.items
        .into_iter()
        .next()
        .with_context(|| format!("{kind}/{namespace}/{name} is not understood"))
}

/// A pod, or the pods that a workload asks for, as one that runs.
fn pod_of(object: &Value) -> Option<Value> {
    let template = match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("v1", "Pod") => object,
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job")
        | ("v1", "ReplicationController") => &object["spec"]["template"],
        ("batch/v1", "CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    let (namespace, name) = name_of(object);
    let mut metadata = template["metadata"].as_object().cloned();
    let metadata = metadata.get_or_insert_with(Map::new);
    metadata.insert("namespace".to_owned(), json!(namespace));
    metadata.insert("name".to_owned(), json!(name));
    metadata.insert("uid".to_owned(), json!(NOT_YET));
    let mut spec = template["spec"].as_object().cloned().unwrap_or_default();
    spec.insert("nodeName".to_owned(), json!("a-node"));
    Some(json!({
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": "Running", "hostIP": NOWHERE, "podIP": NOWHERE,
                   "podIPs": [{"ip": NOWHERE}], "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

/// Judges what a pod asks for, beside the registrations that may select it.
fn judge_pod(
    object: &Value,
    pod: &Value,
    objects: &[Value],
    index: &Index,
    manifests: &mut Manifests,
) -> anyhow::Result<()> {
    let (namespace, name) = name_of(object);
    if index.is_excluded(namespace) {
        return Ok(());
    }
    let mut alone = Index::new(index.cluster().clone(), globset::GlobSet::empty());
    let mut touched = Touched::default();
    let mut nothing = Mirror::new(index.cluster().clone());
    nothing.complete();
    for object in objects {
        if of_ours(object) == Some(OwnerKind::ServiceRegistration) && name_of(object).0 == namespace
        {
            let owner = Owner {
                kind: OwnerKind::ServiceRegistration,
                namespace: namespace.into(),
                name: name_of(object).1.into(),
            };
            let object = as_applied(object, &owner, &nothing);
            alone.apply_registration(Registration::of(&trimmed(&object)?), &mut touched);
        }
    }
    alone.apply_pod(trimmed(pod)?, &mut touched);
    let owner = Owner::pod(&namespace.into(), &name.into());
    let mut problems: Vec<String> = alone.problems(&owner).to_vec();
    for key in alone.claimed_keys() {
        let finding = plan::decide(&key, &alone, &nothing, &Rules::default());
        if let Some(Freeze::Invalid(of)) = finding.freeze {
            problems.extend(of);
        }
    }
    problems.sort_unstable();
    problems.dedup();
    if problems.is_empty() {
        return Ok(());
    }
    let kind = object["kind"].as_str().unwrap_or_default();
    let key = format!("{kind}/{namespace}/{name}");
    manifests.rejected.push(Item {
        action: Action::Rejected,
        kind: "object",
        key: key.clone(),
        owners: vec![key],
        fields: Vec::new(),
        message: Some(problems.join("; ")),
    });
    Ok(())
}

fn note_pods(manifests: &mut Manifests, observed: &Mirror) {
    for owner in &manifests.owners {
        let held = observed.held_by(owner, None);
        let stands_for_pod = |key: &&Key| {
            let Key::Instance(key) = key else {
                return false;
            };
            plan::held_under(key, observed).is_some_and(|held| held.pod.is_some())
        };
        let pods = held.iter().filter(stands_for_pod).count();
        if pods > 0 {
            manifests.notes.push(format!(
                "{owner} has {pods} instances of pods: they are not judged, since manifests do not say \
                 which pods run"
            ));
        }
    }
}
