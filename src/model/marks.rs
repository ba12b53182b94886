//! The marks by which an entry in Consul says whose it is.

use super::key::InstanceKey;
use super::names::ClusterName;
use super::owner::{Owner, OwnerKind};
use super::text::{Pairs, Text};

/// Meta key: where the entry comes from; Consul's UI shows it.
pub const EXTERNAL_SOURCE: &str = "external-source";
/// The value of [`EXTERNAL_SOURCE`] on everything of ours.
pub const KUBERNETES: &str = "kubernetes";
/// Meta key: the Kubernetes namespace.
pub const K8S_NAMESPACE: &str = "external-k8s-ns";
/// Meta key: the kind of the object that the instance stands for.
pub const K8S_REF_KIND: &str = "external-k8s-ref-kind";
/// Meta key: the name of the object that the instance stands for.
pub const K8S_REF_NAME: &str = "external-k8s-ref-name";
/// Meta key: the Kubernetes node that the pod runs on.
pub const K8S_NODE_NAME: &str = "external-k8s-node-name";
/// Meta key, on services and nodes: the cluster that writes the entry.
pub const CLUSTER: &str = "lictor-cluster";
/// Meta key: the Consul node that the entry was written on, so that a copy is known for one.
pub const NODE: &str = "lictor-node";
/// Meta key: the object that owns the entry.
pub const OWNER: &str = "lictor-owner";
/// Meta key of a config entry: how the numbered pairs begin that list sources by their owner.
pub const SOURCES: &str = "lictor-src-";
/// Meta key of a config entry: the Intention that its `JWT` is of.
pub const JWT: &str = "lictor-jwt";
/// Meta key: the uid of the pod or `ServiceRegistration`.
pub const UID: &str = "lictor-uid";
/// Node meta key: the Kubernetes node.
pub const NODE_K8S_NODE: &str = "k8s-node";
/// Node meta key: the region, from the node's label.
pub const NODE_REGION: &str = "topology-region";
/// Node meta key: the zone, from the node's label.
pub const NODE_ZONE: &str = "topology-zone";

/// Node meta key: consul-esm runs the checks of nodes where it is `true`.
pub const NODE_EXTERNAL: &str = "external-node";

/// Meta key that consul-k8s marks its instances with.
const MANAGED_BY: &str = "managed-by";

/// Meta keys that users may not set, because Lictor, Consul or consul-k8s reads a meaning in them.
pub const RESERVED: [&str; 6] = [
    EXTERNAL_SOURCE,
    K8S_NAMESPACE,
    K8S_REF_KIND,
    K8S_REF_NAME,
    K8S_NODE_NAME,
    MANAGED_BY,
];
/// How further meta keys begin that users may not set.
pub const RESERVED_PREFIXES: [&str; 2] = ["lictor-", "consul-"];

/// Whether users may not set the meta key.
#[must_use]
pub fn is_reserved(key: &str) -> bool {
    RESERVED.contains(&key)
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// Our keys that this release writes.
const KNOWN: [&str; 4] = [CLUSTER, NODE, OWNER, UID];
/// Most pairs of meta that Consul takes.
pub const MAX_PAIRS: usize = 64;

/// Adds to what is wanted the keys of ours that are there and that this release does not know: a newer
/// one wrote them and may come back, so that they are no drift.
pub fn keep_unknown(there: &Pairs, wanted: &mut Pairs) {
    let unknown =
        |(key, _): &(&Text, &Text)| key.starts_with("lictor-") && !KNOWN.contains(&key.as_ref());
    if !there.iter().any(|pair| unknown(&pair)) {
        return;
    }
    let room = MAX_PAIRS.saturating_sub(wanted.iter().count());
    let kept = there.iter().filter(unknown).take(room);
    let all = kept.chain(wanted.iter());
    *wanted = all
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
}

/// Whether meta carries no owner's mark of any kind: not ours, not another cluster's, not another
/// tool's.
#[must_use]
pub fn is_unmarked(meta: &Pairs) -> bool {
    let is_mark = |key: &str| {
        matches!(key, CLUSTER | EXTERNAL_SOURCE | MANAGED_BY)
            || names_object(key)
            || key.starts_with("consul.hashicorp.com/")
    };
    !meta.iter().any(|(key, _)| is_mark(key))
}

/// Whether a meta key of ours says which objects something is of.
fn names_object(key: &str) -> bool {
    matches!(key, OWNER | JWT) || key.starts_with(SOURCES)
}

/// Whether meta carries the mark of another cluster, or of another tool.
#[must_use]
pub fn is_anothers(cluster: &ClusterName, meta: &Pairs) -> bool {
    let is_mark = |(key, value): (&Text, &Text)| match &**key {
        CLUSTER => **value != *cluster.as_ref(),
        EXTERNAL_SOURCE => **value != *KUBERNETES,
        MANAGED_BY => true,
        key => key.starts_with("consul.hashicorp.com/"),
    };
    meta.iter().any(is_mark)
}

/// What the marks of a service entry say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All marks agree: ours, owned by this object.
    Ours(Owner),
    /// Anything else; a text that names the holder for people.
    Foreign(Text),
}

/// Judges a service entry: it is ours only if the cluster, the form of its id with what it names, the
/// owner and the node that it says it was written on all agree.
#[must_use]
pub fn judge(cluster: &ClusterName, key: &InstanceKey, service: &str, meta: &Pairs) -> Standing {
    if meta.get(CLUSTER).is_some_and(|c| **c == *cluster.as_ref())
        && meta.get(NODE).is_some_and(|n| n == key.node.text())
        && let Some(owner) = meta.get(OWNER).and_then(|owner| Owner::parse(owner))
        && let Some(named) = key.id.named(cluster, &owner.namespace, service)
        && stands_for(&owner, named, meta)
    {
        return Standing::Ours(owner);
    }
    Standing::Foreign(holder(cluster, meta))
}

/// Whether an entry of this owner can be for what its id names.
fn stands_for(owner: &Owner, named: &str, meta: &Pairs) -> bool {
    let of_pod = meta
        .get(K8S_REF_KIND)
        .is_some_and(|kind| **kind == *OwnerKind::Pod.as_str());
    match owner.kind {
        OwnerKind::Pod => *named == *owner.name,
        OwnerKind::ServiceRegistration if of_pod => {
            meta.get(K8S_REF_NAME).is_some_and(|pod| **pod == *named)
        }
        OwnerKind::ServiceRegistration => named
            .strip_prefix(&*owner.name)
            .is_some_and(|endpoint| endpoint.starts_with('.')),
        // These register no instances.
        OwnerKind::Intention | OwnerKind::PreparedQuery => false,
    }
}

/// Names the holder of meta that is not ours, for conditions and Events.
#[must_use]
pub fn holder(cluster: &ClusterName, meta: &Pairs) -> Text {
    if let Some(other) = meta.get(CLUSTER) {
        if **other == *cluster.as_ref() {
            return "an entry with copied or incomplete marks of this cluster".into();
        }
        return format!("Lictor of cluster {other:?}").into();
    }
    if let Some(manager) = meta.get(MANAGED_BY) {
        return format!("{manager:?} (meta managed-by)").into();
    }
    if let Some((key, _)) = meta
        .iter()
        .find(|(key, _)| key.starts_with("consul.hashicorp.com/"))
    {
        return format!("consul-k8s (meta {key:?})").into();
    }
    match meta.get(EXTERNAL_SOURCE) {
        Some(source) => format!("external source {source:?}").into(),
        None if meta.iter().any(|(key, _)| names_object(key)) => {
            "an entry with copied or incomplete marks".into()
        }
        None => "an entry without marks, written by hand or by another tool".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{InstanceId, NodeName};

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs
            .iter()
            .map(|(k, v)| (Text::from(*k), Text::from(*v)))
            .collect()
    }

    fn case(node: &str, id: &str, meta: &[(&str, &str)]) -> Standing {
        let cluster: ClusterName = "a".parse().unwrap();
        let key = InstanceKey {
            node: NodeName::parse(&cluster, node).unwrap(),
            id: InstanceId::observed(id),
        };
        judge(&cluster, &key, "web", &pairs(meta))
    }

    const MARKS: [(&str, &str); 3] = [
        ("lictor-cluster", "a"),
        ("lictor-node", "lictor-a--n1"),
        ("lictor-owner", "Pod/shop/web-0"),
    ];

    #[test]
    fn all_marks_must_agree() {
        assert!(matches!(
            case("lictor-a--n1", "a.shop.web.web-0", &MARKS),
            Standing::Ours(_)
        ));
        // The same marks on another node, under another id, or with one of them missing.
        assert!(matches!(
            case("lictor-a--n2", "a.shop.web.web-0", &MARKS),
            Standing::Foreign(_)
        ));
        assert!(matches!(
            case("lictor-a--n1", "web-0", &MARKS),
            Standing::Foreign(_)
        ));
        assert!(matches!(
            case("lictor-a--n1", "a.x.web.web-0", &MARKS),
            Standing::Foreign(_)
        ));
        for missing in 0..MARKS.len() {
            let mut marks = MARKS.to_vec();
            marks.remove(missing);
            let standing = case("lictor-a--n1", "a.shop.web.web-0", &marks);
            assert!(
                matches!(standing, Standing::Foreign(_)),
                "without {missing}"
            );
        }
    }

    #[test]
    fn the_owner_is_that_of_what_the_id_names() {
        let judged = |id: &str, meta: &[(&str, &str)]| {
            let all = [("lictor-cluster", "a"), ("lictor-node", "lictor-a--n1")];
            let all: Vec<_> = all.iter().chain(meta).copied().collect();
            matches!(case("lictor-a--n1", id, &all), Standing::Ours(_))
        };
        let pod = [("lictor-owner", "Pod/shop/web-0")];
        assert!(judged("a.shop.web.web-0", &pod));
        // A copy for a look at the same pod, with all its marks.
        assert!(!judged("a.shop.web.web-0-debug", &pod));
        let owner = ("lictor-owner", "ServiceRegistration/shop/db");
        let kind = ("external-k8s-ref-kind", "Pod");
        let selected = [owner, kind, ("external-k8s-ref-name", "web-0")];
        assert!(judged("a.shop.web.web-0", &selected));
        assert!(!judged("a.shop.web.web-1", &selected));
        let listed = [owner, ("external-k8s-ref-kind", "ServiceRegistration")];
        assert!(judged("a.shop.web.db.primary", &listed));
        assert!(!judged("a.shop.web.other.primary", &listed));
        assert!(!judged("a.shop.web.db", &listed));
    }

    #[test]
    fn keys_of_a_newer_release_are_kept_while_there_is_room() {
        let there = pairs(&[("lictor-later", "1"), ("lictor-owner", "x"), ("user", "y")]);
        let mut wanted = pairs(&[("lictor-owner", "Pod/shop/web-0")]);
        keep_unknown(&there, &mut wanted);
        let kept = [("lictor-later", "1"), ("lictor-owner", "Pod/shop/web-0")];
        assert_eq!(wanted, pairs(&kept));
        let mut full: Pairs = (0..MAX_PAIRS)
            .map(|n| (Text::from(format!("k{n}")), Text::from("")))
            .collect();
        let before = full.clone();
        keep_unknown(&there, &mut full);
        assert_eq!(full, before);
    }

    #[test]
    fn the_holder_is_named() {
        let named = |meta: &[(&str, &str)]| match case("lictor-a--n1", "x", meta) {
            Standing::Foreign(holder) => holder.to_string(),
            Standing::Ours(_) => panic!("not ours"),
        };
        assert!(named(&[("lictor-cluster", "b")]).contains("cluster \"b\""));
        assert!(named(&[("managed-by", "consul-k8s-endpoints-controller")]).contains("managed-by"));
        assert!(named(&[("external-source", "nomad")]).contains("nomad"));
        assert!(named(&[]).contains("without marks"));
    }
}
