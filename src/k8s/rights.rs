//! The rights that `lictor run` needs in Kubernetes, by its settings: those that the chart gives it.

use std::collections::BTreeSet;

use super::home::identity;
use super::lease::LeaseName;
use crate::api::GROUP;
use crate::model::kind::Kind;
use crate::model::text::Text;

/// The namespace that every cluster has from its first moment, and whose UID tells clusters apart.
pub const IDENTITY: &str = "kube-system";

/// The API group of Leases.
const LEASES: &str = "coordination.k8s.io";

/// The API group of Events.
const EVENTS: &str = "events.k8s.io";

/// The verbs that Events are written with.
const EVENT_VERBS: &[&str] = &["create", "patch"];

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Right {
    /// The verb, such as `list`.
    pub verb: &'static str,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource, with its subresource after a slash, such as `pods/status`.
    pub resource: String,
    /// The one object that it is about; `None` is any.
    pub name: Option<Text>,
    /// The namespace that it is needed in; `None` is all of them, or a resource that is in none.
    pub namespace: Option<Text>,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            verb,
            group,
            resource,
            name,
            namespace,
        } = self;
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        if let Some(name) = name {
            write!(f, "/{name}")?;
        }
        match namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

/// Something that Lictor reads or writes, and the verbs for it.
struct Need<'a> {
    group: &'static str,
    resource: String,
    name: Option<&'a str>,
    verbs: &'static [&'static str],
}

/// All that `lictor run` needs.
///
/// `readiness_gate` is `--readiness-gate`, `namespaces` those of `--namespace`, in each of which Roles give all of
/// it, and `lease` that by which it is agreed who leads, if it is by one.
#[must_use]
pub fn needed(
    readiness_gate: bool,
    namespaces: &BTreeSet<Text>,
    lease: Option<&LeaseName>,
) -> Vec<Right> {
    let mut rights = in_scopes(readiness_gate, namespaces);
    rights.extend(lease.into_iter().flat_map(to_lead));
    // Events about its own pod, which is where the Lease is.
    let home = lease.map(|lease| &lease.namespace);
    let apart = home.filter(|home| !namespaces.is_empty() && !namespaces.contains(*home));
    rights.extend(apart.into_iter().flat_map(to_tell));
    rights
}

/// What it needs to write Events in a namespace.
fn to_tell(namespace: &Text) -> impl Iterator<Item = Right> {
    EVENT_VERBS.iter().map(|verb| Right {
        verb,
        group: EVENTS,
        resource: "events".to_owned(),
        name: None,
        namespace: Some(namespace.clone()),
    })
}

/// What it needs to take part in the election. A right to create cannot be limited to a name.
fn to_lead(lease: &LeaseName) -> impl Iterator<Item = Right> {
    let verbs = [
        ("create", false),
        ("get", true),
        ("watch", true),
        ("update", true),
    ];
    verbs.into_iter().map(|(verb, named)| Right {
        verb,
        group: LEASES,
        resource: Kind::Lease.resource().to_owned(),
        name: named.then(|| lease.name.clone()),
        namespace: Some(lease.namespace.clone()),
    })
}

fn in_scopes(readiness_gate: bool, namespaces: &BTreeSet<Text>) -> Vec<Right> {
    if namespaces.is_empty() {
        return in_scope(readiness_gate, None);
    }
    let first = identity(namespaces);
    let in_each = namespaces.iter().flat_map(|namespace| {
        let mut rights = in_scope(readiness_gate, Some(namespace));
        // Only one tells clusters apart.
        rights.retain(|right| right.resource != "namespaces" || *namespace == first);
        rights
    });
    in_each.collect()
}

/// What it needs in a namespace, or in the whole cluster.
fn in_scope(readiness_gate: bool, namespace: Option<&Text>) -> Vec<Right> {
    const WATCH: &[&str] = &["get", "list", "watch"];
    let need = |group, resource: &str, verbs| Need {
        group,
        resource: resource.to_owned(),
        name: None,
        verbs,
    };
    // That of the namespaces has the one that tells clusters apart in it.
    let mut needs: Vec<Need<'_>> = Vec::new();
    needs.extend(namespace.map(|namespace| Need {
        name: Some(namespace),
        ..need("", "namespaces", &["get"])
    }));
    let is_watched = |kind: &Kind| kind.is_namespaced() || namespace.is_none();
    for kind in Kind::ALL.into_iter().filter(is_watched) {
        let Some(crd) = kind.crd() else {
            needs.push(need("", kind.resource(), WATCH));
            continue;
        };
        if namespace.is_none() {
            needs.push(Need {
                name: Some(crd),
                ..need(
                    "apiextensions.k8s.io",
                    "customresourcedefinitions",
                    &["get"],
                )
            });
        }
        needs.push(need(GROUP, kind.resource(), WATCH));
        // Policies have none.
        if kind != Kind::Policy {
            let status = format!("{}/status", kind.resource());
            needs.push(need(GROUP, &status, &["patch"]));
        }
    }
    needs.push(need(LEASES, Kind::Lease.resource(), WATCH));
    needs.push(need(EVENTS, "events", EVENT_VERBS));
    if readiness_gate {
        needs.push(need("", "pods/status", &["patch"]));
    }
    let rights = needs.into_iter().flat_map(|need| {
        need.verbs.iter().map(move |verb| Right {
            verb,
            group: need.group,
            resource: need.resource.clone(),
            name: need.name.map(Text::from),
            namespace: namespace.cloned(),
        })
    });
    rights.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What the rules of the roles in the plain manifests allow, which are made from the chart.
    fn allowed() -> BTreeSet<String> {
        // A placeholder for the cluster's name is in them, which is none.
        let manifests = include_str!("../../deploy/install.yaml").replace("SET-ME", "set-me");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&manifests).unwrap();
        let roles = documents.iter().filter(|document| {
            let kind = document["kind"].as_str().unwrap();
            // Others are for people.
            let is_its_own = document["metadata"]["name"] == "lictor";
            is_its_own && (kind == "ClusterRole" || kind == "Role")
        });
        roles.flat_map(allowed_by).collect()
    }

    /// What a role allows, each right as it is shown.
    fn allowed_by(role: &Value) -> Vec<String> {
        let texts = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items.map(|item| item.as_str().unwrap().into()).collect()
        };
        let place = role["metadata"]["namespace"].as_str();
        let place = place.map_or(String::new(), |namespace| format!(" in {namespace}"));
        let mut allowed = Vec::new();
        for rule in role["rules"].as_array().unwrap() {
            let mut names = texts(&rule["resourceNames"]);
            for name in &mut names {
                name.insert(0, '/');
            }
            if names.is_empty() {
                names.push(String::new());
            }
            let group = &texts(&rule["apiGroups"])[0];
            let dot = if group.is_empty() { "" } else { "." };
            for verb in texts(&rule["verbs"]) {
                for resource in texts(&rule["resources"]) {
                    let right = |name| format!("{verb} {resource}{dot}{group}{name}{place}");
                    allowed.extend(names.iter().map(right));
                }
            }
        }
        allowed
    }

    #[test]
    fn the_chart_gives_what_is_needed_and_no_more() {
        let cluster = "SET-ME".to_ascii_lowercase().parse().unwrap();
        let lease = LeaseName::of(&cluster, "lictor-system".into());
        let needed = needed(false, &BTreeSet::new(), Some(&lease));
        let needed: BTreeSet<String> = needed.iter().map(Right::to_string).collect();
        assert_eq!(needed, allowed());
        assert!(needed.contains("list serviceregistrations.lictor.io"));
    }

    #[test]
    fn the_readiness_gate_needs_one_more() {
        let none = BTreeSet::new();
        let mut with = needed(true, &none, None);
        with.retain(|right| !needed(false, &none, None).contains(right));
        assert_eq!(with.len(), 1);
        assert_eq!(with[0].to_string(), "patch pods/status");
    }

    #[test]
    fn events_about_its_own_pod_need_a_right_where_it_is_installed() {
        let cluster = "a".parse().unwrap();
        let lease = LeaseName::of(&cluster, "home".into());
        let of = |namespaces: &[&str]| {
            let namespaces = namespaces.iter().map(|name| Text::from(*name)).collect();
            let needed = needed(false, &namespaces, Some(&lease));
            let all = needed.iter().map(Right::to_string);
            all.filter(|right| right.contains("events"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of(&["shop"]),
            [
                "create events.events.k8s.io in shop",
                "patch events.events.k8s.io in shop",
                "create events.events.k8s.io in home",
                "patch events.events.k8s.io in home",
            ]
        );
        assert_eq!(of(&["home"]).len(), 2);
    }
}
