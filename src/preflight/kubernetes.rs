//! What the API server shows, judged.

use super::clock;
use super::facts::{Crd, Kubernetes, Seen};
use super::finding::Finding;
use crate::k8s::rights::Right;

const REACHABLE: &str = "kubernetes.reachable";
const VERSION: &str = "kubernetes.version";
const CLOCK: &str = "kubernetes.clock";
const CRD: &str = "kubernetes.crd";
const RIGHT: &str = "kubernetes.right";

/// The oldest minor version of Kubernetes 1 that Lictor is made for.
const OLDEST: u32 = 33;

pub(super) fn judge(seen: &Seen<Box<Kubernetes>>) -> Vec<Finding> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(why) => {
            let away = Finding::error(REACHABLE, why.clone())
                .remedy("see --kubeconfig and --context, or the service account of the pod");
            let skipped = [VERSION, CLOCK, CRD, RIGHT];
            let skip = |name| Finding::skipped(name, "the API server was not reached");
            return std::iter::once(away)
                .chain(skipped.into_iter().map(skip))
                .collect();
        }
    };
    let mut findings = vec![
        Finding::ok(REACHABLE, "the API server answers"),
        version(&seen.version),
        clock::judge(
            CLOCK,
            seen.clock.as_ref(),
            "service account tokens and certificates are judged by its clock, and the times in statuses and \
             Events are by ours",
        ),
    ];
    findings.extend(seen.crds.iter().map(|(name, crd)| judge_crd(name, crd)));
    findings.extend(rights(&seen.rights));
    findings
}

/// `v1.36.3`, and what distributions add to it.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix('v')?.split('.');
    let mut number = || numbers.next()?.parse::<u32>().ok();
    Some((number()?, number()?))
}

fn version(text: &str) -> Finding {
    match minor(text) {
        Some(version) if version >= (1, OLDEST) => Finding::ok(VERSION, text),
        Some(_) => Finding::warning(VERSION, format!("{text} is older than 1.{OLDEST}")).remedy(
            format!("Lictor is tested with Kubernetes 1.{OLDEST} and later: upgrade the cluster"),
        ),
        None => Finding::warning(VERSION, format!("{text:?} is no version that is known")).remedy(
            format!("Lictor is tested with Kubernetes 1.{OLDEST} and later: see that this is one"),
        ),
    }
}

fn judge_crd(name: &str, crd: &Seen<Crd>) -> Finding {
    let install = "lictor crds | kubectl apply -f -";
    let finding = match crd {
        Err(why) => Finding::skipped(CRD, why.clone()),
        Ok(Crd::Missing) => {
            Finding::error(CRD, "not installed: `lictor run` waits for it, and removes nothing meanwhile")
                .remedy(install)
        }
        Ok(Crd::Leaving) => Finding::error(
            CRD,
            "being deleted, and its objects with it: what they hold in Consul counts as found missing",
        )
        .remedy(format!("once it is gone: {install}, and apply the objects again")),
        Ok(Crd::Installed { unserved: Some(why), .. }) => {
            Finding::error(CRD, format!("installed, and not served: {why}"))
                .remedy("see who else has a kind of these names")
        }
        Ok(Crd::Installed { version: false, .. }) => {
            Finding::error(CRD, "installed without the version that this release reads").remedy(install)
        }
        Ok(Crd::Installed { same: false, .. }) => Finding::warning(
            CRD,
            "not the one of this release: the API server checks, or drops, other fields than are read",
        )
        .remedy(format!("with the newest release of those that run: {install}")),
        Ok(Crd::Served) => Finding::ok(CRD, "served; which one is not known with --namespace"),
        Ok(Crd::Installed { .. }) => Finding::ok(CRD, "installed, as of this release"),
    };
    finding.about(name)
}

/// What does not work without a right.
fn without(right: &Right) -> &'static str {
    match (&*right.resource, right.group) {
        (_, "coordination.k8s.io") if right.verb == "create" || right.name.is_some() => {
            "the processes cannot agree on who leads: nobody writes"
        }
        (_, "coordination.k8s.io") => {
            "checks of the kind ttl turn critical nowhere: no Lease is seen"
        }
        (_, "events.k8s.io") => "no Event tells what is done",
        ("pods/status", _) => "pods with the readiness gate never become ready",
        ("namespaces", _) if right.verb == "get" => {
            "clusters cannot be told apart: nothing is written"
        }
        ("customresourcedefinitions", _) => {
            "a deleted CRD cannot be told from deleted objects: their removals wait for three lists"
        }
        (resource, _) if resource.ends_with("/status") => {
            "nothing is told in the status of the objects"
        }
        _ => {
            "not everything that claims something is seen: nothing is removed, and it is not ready"
        }
    }
}

fn rights(rights: &[(Right, Seen<bool>)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut given = 0;
    for (right, seen) in rights {
        let finding = match seen {
            Ok(true) => {
                given += 1;
                continue;
            }
            Ok(false) => {
                let role = match &right.namespace {
                    None => "the chart's ClusterRole",
                    Some(_) => "the chart's Role there",
                };
                Finding::error(RIGHT, format!("missing: {}", without(right)))
                    .remedy(format!("give it to the service account: {role} has it"))
            }
            Err(why) => Finding::skipped(RIGHT, format!("the API server does not say: {why}")),
        };
        findings.push(finding.about(right.to_string()));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(RIGHT, format!("all {given} are given")));
    }
    findings
}
