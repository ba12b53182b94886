//! Manifests instead of a cluster: what a pipeline knows before anything is applied.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use super::compute::stands_for_pod;
use super::{Action, Item, Preview, Scope, preview};
use crate::api::GROUP;
use crate::desired::claim::Freeze;
use crate::desired::index::{Index, Touched};
use crate::desired::intention::Intention;
use crate::desired::query::PreparedQuery;
use crate::desired::registration::Registration;
use crate::k8s::trim::{self, Texts, Trim};
use crate::model::facts::{NamespaceFacts, PodFacts};
use crate::model::key::{InstanceKey, Key};
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::names::NodeName;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::{Pairs, Text};
use crate::observed::mirror::Mirror;
use crate::plan::{self, Rules};
use crate::policy;
use crate::policy::ledger::Ledger;
use crate::policy::names::Moment;

/// The namespace of a manifest that says none.
const DEFAULT_NAMESPACE: &str = "default";
/// The uid of an object that the API server has not seen.
const NOT_YET: &str = "known-when-applied";
/// Where the pods of templates are thought to run, to judge what they ask for.
const NODE: &str = "a-node";
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

/// Shows what would be done if a cluster held these objects; of Consul nothing is looked at but what they
/// claim, and what it shows as theirs.
///
/// # Errors
///
/// An object that cannot be understood at all.
pub fn preview_of(
    objects: &[Value],
    mut index: Index,
    observed: &Mirror,
    ledger: &Ledger,
    mut rules: Rules,
    moment: Moment,
) -> anyhow::Result<Preview> {
    let (objects, others): (Vec<&Value>, Vec<&Value>) = objects
        .iter()
        .partition(|object| index.watches.covers(name_of(object).0));
    let mut manifests = claim(&objects, &mut index, observed, ledger)?;
    policy::there::settle(&mut index, observed, ledger, moment);
    judge_pods(&objects, &mut index, &mut manifests)?;
    manifests.notes.extend(note_others(&others));
    judge_names(&index, &mut manifests);
    let scope = Scope::Of(&manifests.owners);
    let mut preview = preview(&index, observed, &mut rules, scope, moment.now);
    preview.add(manifests.rejected);
    preview.notes = manifests.notes;
    Ok(preview)
}

/// Objects that claim something, and what is to be said of the others.
#[derive(Debug, Default)]
struct Manifests {
    /// The objects of our kinds.
    owners: BTreeSet<Owner>,
    /// What is wrong with pods and the templates of workloads.
    rejected: Vec<Item>,
    /// What is not judged.
    notes: Vec<String>,
}

/// Puts objects into an empty index, as if a cluster held these alone. Kinds that ask for nothing in
/// Consul are left out. `observed` knows the uids of those that were applied before.
fn claim(
    objects: &[&Value],
    index: &mut Index,
    observed: &Mirror,
    ledger: &Ledger,
) -> anyhow::Result<Manifests> {
    let mut manifests = Manifests::default();
    let mut touched = Touched::default();
    for kind in Kind::ALL {
        index.begin_list(kind);
    }
    let mut unknown = BTreeSet::new();
    if index.watches.watches(Kind::Policy) {
        unknown = namespaces(objects, index, ledger)?;
        policies(objects, index)?;
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
    note_pods(&mut manifests, observed);
    note_policies(&mut manifests, index, &unknown);
    Ok(manifests)
}

/// Puts the namespaces of all objects into the index. Of those that are not among the manifests only that
/// is known which every namespace has, and what Consul keeps of them. Returns these.
fn namespaces(
    objects: &[&Value],
    index: &mut Index,
    ledger: &Ledger,
) -> anyhow::Result<BTreeSet<Text>> {
    let mut uids = ledger.namespaces();
    let (mut given, mut others) = (BTreeSet::new(), BTreeSet::new());
    for object in objects {
        if !is_kind(object, "v1", "Namespace") {
            let claims = of_ours(object).is_some() || pod_of(object).is_some();
            others.extend(claims.then(|| Text::from(name_of(object).0)));
            continue;
        }
        let mut facts: NamespaceFacts = trimmed(&with_uid(object, NOT_YET))?;
        facts.uid = uids.remove(&facts.name).unwrap_or_default();
        with_own_label(&mut facts);
        given.insert(facts.name.clone());
        index.apply_namespace(facts);
    }
    others.retain(|name| !given.contains(name));
    for name in &others {
        uids.entry(name.clone()).or_default();
    }
    for (name, uid) in uids {
        let mut facts = NamespaceFacts {
            name,
            uid,
            created: i64::MAX,
            labels: Pairs::default(),
        };
        with_own_label(&mut facts);
        index.apply_namespace(facts);
    }
    Ok(others)
}

/// The label that the API server gives every namespace.
fn with_own_label(facts: &mut NamespaceFacts) {
    let own = ("kubernetes.io/metadata.name".into(), facts.name.clone());
    let pairs = facts.labels.iter();
    let pairs = pairs.map(|(key, value)| (key.clone(), value.clone()));
    facts.labels = pairs.chain([own]).collect();
}

fn policies(objects: &[&Value], index: &mut Index) -> anyhow::Result<()> {
    let version = format!("{GROUP}/v1alpha1");
    for object in objects {
        if is_kind(object, &version, "RegistrationPolicy")
            && let Some(why) = index.apply_policy(&trimmed(&with_uid(object, NOT_YET))?)
        {
            bail!("RegistrationPolicy {}: {why}", name_of(object).1);
        }
    }
    Ok(())
}

fn is_kind(object: &Value, version: &str, kind: &str) -> bool {
    object["apiVersion"] == version && object["kind"] == kind
}

fn judge_pods(
    objects: &[&Value],
    index: &mut Index,
    manifests: &mut Manifests,
) -> anyhow::Result<()> {
    for object in objects {
        if let Some(pod) = pod_of(object) {
            let problems = problems_of(object, trimmed(&pod)?, index);
            manifests.rejected.extend(rejected(object, &problems));
        }
    }
    Ok(())
}

/// Judges the names of registrations that select pods: there are no instances to tell it by.
fn judge_names(index: &Index, manifests: &mut Manifests) {
    for owner in &manifests.owners {
        for (name, refusal) in index.refused_names(owner) {
            manifests.rejected.push(Item {
                action: Action::Rejected,
                kind: "object",
                key: owner.to_string(),
                service: None,
                owners: vec![owner.to_string()],
                fields: Vec::new(),
                message: Some(format!("{name}: {}", refusal.message)),
            });
        }
    }
}

fn note_policies(manifests: &mut Manifests, index: &Index, unknown: &BTreeSet<Text>) {
    if !index.admission.is_on() || !index.watches.watches(Kind::Policy) {
        return;
    }
    if !index.admission.has_policies() {
        manifests.notes.push(
            "there is no RegistrationPolicy among the manifests: --default-policy alone says who may claim \
             which name"
                .to_owned(),
        );
    } else if !unknown.is_empty() {
        let unknown: Vec<String> = unknown.iter().map(ToString::to_string).collect();
        manifests.notes.push(format!(
            "these namespaces are not among the manifests, so that their labels are not known, by which \
             policies choose them: {}",
            unknown.join(", ")
        ));
    }
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
    let mut object = with_uid(object, &uid);
    object["metadata"]["namespace"] = json!(owner.namespace);
    object
}

fn with_uid(object: &Value, uid: &str) -> Value {
    let mut object = object.clone();
    object["metadata"]["uid"] = json!(uid);
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
    spec.insert("nodeName".to_owned(), json!(NODE));
    Some(json!({
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": "Running", "hostIP": NOWHERE, "podIP": NOWHERE,
                   "podIPs": [{"ip": NOWHERE}], "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

/// What is wrong with what a pod asks for, beside the registrations that may select it. The index is
/// afterwards as it was.
fn problems_of(object: &Value, pod: PodFacts, index: &mut Index) -> BTreeSet<String> {
    let (namespace, name) = name_of(object);
    let (namespace, name) = (Text::from(namespace), Text::from(name));
    let mut touched = Touched::default();
    index.apply_pod(pod, &mut touched);
    let owner = Owner::pod(&namespace, &name);
    let mut problems: BTreeSet<String> = index.problems(&owner).iter().cloned().collect();
    let mut nothing = Mirror::new(index.cluster().clone());
    nothing.complete();
    let node = NodeName::for_kubernetes(index.cluster(), NODE);
    let keys: Vec<InstanceKey> = index.claimed_on(&node).cloned().collect();
    for key in keys.iter().cloned().map(Key::Instance) {
        let finding = plan::decide(&key, index, &nothing, &Rules::default());
        if let Some(Freeze::Invalid(of)) = finding.freeze {
            problems.extend(of);
        }
        problems.extend(finding.refused.map(|refused| refused.refusal.message));
    }
    index.remove_pod(&namespace, &name, &mut touched);
    for key in &keys {
        index.forget_absence(key);
    }
    problems
}

fn rejected(object: &Value, problems: &BTreeSet<String>) -> Option<Item> {
    let problems: Vec<&str> = problems.iter().map(String::as_str).collect();
    let (namespace, name) = name_of(object);
    let kind = object["kind"].as_str().unwrap_or_default();
    let key = format!("{kind}/{namespace}/{name}");
    (!problems.is_empty()).then(|| Item {
        action: Action::Rejected,
        kind: "object",
        key: key.clone(),
        service: None,
        owners: vec![key],
        fields: Vec::new(),
        message: Some(problems.join("; ")),
    })
}

/// Says of which objects nothing is planned, since `lictor run` would not see them.
fn note_others(others: &[&Value]) -> Option<String> {
    let asks = |object: &&&Value| of_ours(object).is_some() || pod_of(object).is_some();
    let others: Vec<&str> = others
        .iter()
        .filter(asks)
        .map(|object| name_of(object).0)
        .collect();
    let namespaces = others.iter().copied().collect::<BTreeSet<_>>();
    let namespaces = Vec::from_iter(namespaces).join(", ");
    (!others.is_empty()).then(|| {
        let count = others.len();
        format!("{count} objects are not judged: their namespaces are not among those of --namespace: {namespaces}")
    })
}

fn note_pods(manifests: &mut Manifests, observed: &Mirror) {
    for owner in &manifests.owners {
        let held = observed.held_by(owner, None);
        let pods = held
            .iter()
            .filter(|key| stands_for_pod(key, observed))
            .count();
        if pods > 0 {
            manifests.notes.push(format!(
                "{owner} has {pods} instances of pods: they are not judged, since manifests do not say \
                 which pods run"
            ));
        }
    }
}
