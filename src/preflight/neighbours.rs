//! Who else is there: another holder of the cluster name, agents, consul-k8s.

use super::facts::{Consul, ConsulNode, Facts, Held, Rest, Seen};
use super::finding::Finding;
use super::{Settings, some};
use crate::app::epoch_of;
use crate::model::epoch::EpochKind;

const NAME: &str = "cluster.name";
const NODES: &str = "cluster.nodes";
const CONSUL_K8S: &str = "consul-k8s";

/// The tag that consul-k8s' catalog sync takes for its own, by default.
const SYNC_TAG: &str = "k8s";

fn rest(consul: &Seen<Box<Consul>>) -> Seen<&Rest> {
    match consul {
        Ok(consul) => consul.rest.as_deref().map_err(Clone::clone),
        Err(_) => Err("Consul was not reached".to_owned()),
    }
}

/// Whose the cluster name is.
pub(super) fn name(settings: &Settings, facts: &Facts) -> Finding {
    let held = match rest(&facts.consul).map(|rest| &rest.epoch) {
        Ok(Ok(held)) => held,
        Ok(Err(why)) => return Finding::skipped(NAME, why.clone()),
        Err(why) => return Finding::skipped(NAME, why),
    };
    let cluster = &settings.cluster;
    let before = match held {
        Held::Free => return Finding::ok(NAME, format!("{cluster} is free in this Consul")),
        Held::Unreadable(why) => {
            return Finding::error(
                NAME,
                format!("the key lictor/v1/{cluster}/epoch holds no epoch that can be read: {why}"),
            )
            .remedy("see who writes there; where it is nobody's, remove the key");
        }
        Held::By(before) => before,
    };
    let holder = &before.holder;
    if before.kind == EpochKind::Gc && before.uid.is_empty() {
        let message =
            format!("`lictor gc` removed what a dead cluster left under {cluster}: it is free");
        return Finding::ok(NAME, message);
    }
    let identity = match &facts.kubernetes {
        Ok(seen) => seen.identity.as_ref().map_err(String::as_str),
        Err(_) => Err("the API server was not reached"),
    };
    let uid = match identity {
        Ok(uid) => uid,
        Err(why) => {
            let of = &before.uid;
            let message = format!(
                "{holder} wrote last, for the Kubernetes cluster with UID {of}; whether that is this one is not \
                 known: {why}"
            );
            return Finding::skipped(NAME, message);
        }
    };
    let ours = epoch_of(uid.to_string(), settings.scope.of_epoch(), EpochKind::Run);
    let same = before.uid == ours.uid && before.scope == ours.scope;
    match ours.succeed(Some(before), cluster, settings.take_over.as_deref()) {
        Err(taken) => Finding::error(NAME, format!("ClusterNameTaken: {taken}"))
            .remedy("end the Lictor of the other cluster before its name is taken over"),
        Ok(_) if same => Finding::ok(
            NAME,
            format!(
                "{cluster} is this cluster's; {holder} took the epoch last, in term {}",
                before.term
            ),
        ),
        Ok(_) => Finding::warning(NAME, format!("{cluster} would be taken over from {holder}"))
            .remedy("end that one before, and leave --take-over out afterwards"),
    }
}

/// Nodes in Consul under names that are for this cluster, and nodes of Kubernetes that cannot be there.
pub(super) fn nodes(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(kubernetes) = &facts.kubernetes
        && let Ok(nodes) = &kubernetes.nodes
    {
        for node in nodes.iter().filter(|node| node.ends_with("-virtual")) {
            let message =
                "pods on it are not registered: consul-k8s removes nodes of such names whole";
            let remedy = "keep pods that are to be registered off it, or give it another name";
            let finding = Finding::warning(NODES, message).remedy(remedy);
            findings.push(finding.about(&**node));
        }
    }
    let seen = rest(&facts.consul).and_then(|rest| rest.nodes.as_deref().map_err(Clone::clone));
    let nodes = match seen {
        Ok(nodes) => nodes,
        Err(why) => {
            findings.push(Finding::skipped(NODES, why));
            return findings;
        }
    };
    findings.extend(nodes.iter().filter_map(stranger));
    if findings.is_empty() {
        let message = match nodes.len() {
            0 => "nothing is there yet under names of this cluster".to_owned(),
            count => format!("all {count} under names of this cluster are Lictor's"),
        };
        findings.push(Finding::ok(NODES, message));
    }
    findings
}

fn stranger(node: &ConsulNode) -> Option<Finding> {
    let finding = match (&node.agent, &node.cluster) {
        // It removes what it does not know, within seconds.
        (Ok(true), _) => Finding::error(
            NODES,
            "a Consul agent has this name, and would remove what Lictor registers there",
        )
        .remedy("give the agent another name, or this cluster another --cluster"),
        (Ok(false) | Err(_), Some(_)) => return None,
        (Ok(false), None) => Finding::warning(
            NODES,
            "it lacks the mark lictor-cluster: pods on it are OwnedByAnother unless Lictor made it",
        )
        .remedy("where it is nobody's, deregister it"),
        (Err(why), None) => Finding::skipped(NODES, format!("whose it is is not known: {why}")),
    };
    Some(finding.about(&*node.name))
}

/// Whether consul-k8s is there, and in the way.
pub(super) fn consul_k8s(facts: &Facts) -> Vec<Finding> {
    let kinds = match &facts.kubernetes {
        Ok(seen) => seen.consul_k8s.clone(),
        Err(_) => Err("the API server was not reached".to_owned()),
    };
    let services =
        rest(&facts.consul).and_then(|rest| rest.services.as_ref().map_err(Clone::clone));
    let services = match services {
        Ok(services) => services,
        Err(why) => return vec![Finding::skipped(CONSUL_K8S, why)],
    };
    let mut findings = Vec::new();
    let tagged: Vec<&str> = services
        .ours
        .iter()
        .filter(|(_, tags)| tags.iter().any(|tag| tag == SYNC_TAG))
        .map(|(name, _)| &**name)
        .collect();
    let syncs = !services.synced.is_empty();
    if syncs && !tagged.is_empty() {
        let message = format!(
            "its catalog sync removes instances with the tag k8s that it does not know, and Lictor's of {} have it",
            some(&tagged)
        );
        findings.push(Finding::warning(CONSUL_K8S, message).remedy("use another tag"));
    }
    for (others, what) in [
        (&services.synced, "catalog sync"),
        (&services.meshed, "service mesh"),
    ] {
        let both: Vec<&str> = services
            .ours
            .keys()
            .filter(|name| others.contains(*name))
            .map(String::as_str)
            .collect();
        if !both.is_empty() {
            let message = format!(
                "its {what} registers instances of {} as well: the same pods may be there twice",
                some(&both)
            );
            let remedy = "let one of the two register them; different pods may share a service";
            findings.push(Finding::warning(CONSUL_K8S, message).remedy(remedy));
        }
    }
    if !findings.is_empty() {
        return findings;
    }
    let mut parts = Vec::new();
    if kinds == Ok(true) {
        parts.push("its kinds are installed".to_owned());
    }
    if syncs {
        parts.push(format!(
            "its catalog sync has {} services",
            services.synced.len()
        ));
    }
    if !services.meshed.is_empty() {
        parts.push(format!(
            "its service mesh has {} services",
            services.meshed.len()
        ));
    }
    vec![match kinds {
        _ if !parts.is_empty() => {
            let message = format!("{}; none of it is in the way", parts.join(", "));
            Finding::ok(CONSUL_K8S, message)
        }
        Err(why) => Finding::ok(
            CONSUL_K8S,
            format!("not seen in Consul; in Kubernetes not looked for: {why}"),
        ),
        Ok(_) => Finding::ok(CONSUL_K8S, "not seen"),
    }]
}
