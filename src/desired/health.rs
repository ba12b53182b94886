//! What a pod's state means for its instances: the first table of the contract, section 2.

use super::spec::{InstanceSpec, Terminating};
use crate::model::entry::{Check, Health};
use crate::model::facts::{NodeFacts, Phase, PodFacts, Tristate};
use crate::model::text::Text;

/// Longest output of a check of ours, in bytes; Consul's catalog has no limit of its own.
const MAX_OUTPUT_BYTES: usize = 1024;

/// Whether a pod has instances at all: it runs, is bound to a node and has an address.
#[must_use]
pub fn is_registrable(pod: &PodFacts) -> bool {
    let runs = matches!(pod.phase, Phase::Running | Phase::Unknown);
    runs && pod.node.is_some() && !pod.ips.is_empty()
}

/// The readiness of a pod's instance, or `None` where it is to be removed.
///
/// Of several healths the worst counts; a removal wins over all.
#[must_use]
pub fn readiness(pod: &PodFacts, spec: &InstanceSpec) -> Option<Check> {
    let mut status = Health::Passing;
    let mut reasons = Vec::new();
    if pod.deleting {
        match spec.terminating {
            Terminating::Deregister => return None,
            Terminating::Health(health) => status = status.max(health),
        }
        reasons.push("the pod is terminating".to_owned());
    }
    if pod.phase == Phase::Unknown {
        status = status.max(spec.not_ready);
        reasons.push("the pod's phase is unknown".to_owned());
    } else if pod.ready != Tristate::True || !closed(pod).is_empty() {
        status = status.max(spec.not_ready);
        reasons.push(unready(pod));
    }
    let output = if reasons.is_empty() {
        // A pod with our gate need not be ready yet.
        match pod.gate {
            None => "the pod is ready".to_owned(),
            Some(_) => "the containers of the pod are ready".to_owned(),
        }
    } else {
        cut(reasons.join("; "), MAX_OUTPUT_BYTES)
    };
    Some(Check {
        status,
        output: output.into(),
    })
}

/// The readiness gates of others that keep a pod which has ours from being ready.
fn closed(pod: &PodFacts) -> &[Text] {
    pod.gate.as_ref().map_or(&[], |gate| &gate.closed)
}

fn unready(pod: &PodFacts) -> String {
    let mut text = match pod.ready {
        Tristate::Unknown => "it is not known whether the pod is ready".to_owned(),
        _ => "the pod is not ready".to_owned(),
    };
    if !pod.ready_reason.is_empty() {
        text.extend([" (", &*pod.ready_reason, ")"]);
    }
    if !pod.unready.is_empty() {
        let containers = pod
            .unready
            .iter()
            .map(|container| match &*container.reason {
                "" => container.name.to_string(),
                reason => format!("{} ({reason})", container.name),
            });
        text.extend([": ", &containers.collect::<Vec<_>>().join(", ")]);
    }
    if !closed(pod).is_empty() {
        text.extend([
            "; readiness gates that are not True: ",
            &closed(pod).join(", "),
        ]);
    }
    text
}

/// The check of a synthetic node; `None` stands for a Kubernetes node that is gone.
#[must_use]
pub fn node_check(name: &str, node: Option<&NodeFacts>) -> Check {
    let Some(node) = node else {
        let output = format!("the Kubernetes node {name} does not exist").into();
        return Check {
            status: Health::Critical,
            output,
        };
    };
    let (status, state) = match node.ready {
        Tristate::True => (Health::Passing, "is ready"),
        Tristate::False => (Health::Critical, "is not ready"),
        Tristate::Unknown => (Health::Critical, "does not report whether it is ready"),
    };
    let reason = match (&node.ready, &*node.ready_reason) {
        (Tristate::True, _) | (_, "") => String::new(),
        (_, reason) => format!(" ({reason})"),
    };
    Check {
        status,
        output: format!("the Kubernetes node {name} {state}{reason}").into(),
    }
}

/// Cuts a text to at most `max` bytes, at a character's boundary.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::{node, pod};
    use crate::model::facts::GateFacts;

    fn status(pod: &PodFacts, spec: &InstanceSpec) -> Option<Health> {
        readiness(pod, spec).map(|check| check.status)
    }

    #[test]
    fn readiness_follows_the_ready_condition() {
        let spec = InstanceSpec::default();
        assert_eq!(status(&pod("p").facts(), &spec), Some(Health::Passing));
        for unready in [Tristate::False, Tristate::Unknown] {
            let facts = pod("p").change(|pod| pod.ready = unready).facts();
            assert_eq!(status(&facts, &spec), Some(Health::Critical));
            let warned = InstanceSpec {
                not_ready: Health::Warning,
                ..spec.clone()
            };
            assert_eq!(status(&facts, &warned), Some(Health::Warning));
        }
    }

    #[test]
    fn a_pod_with_our_gate_is_as_its_containers_and_its_other_gates_are() {
        let spec = InstanceSpec::default();
        let gated = |ready: Tristate, closed: &[&str]| {
            let gate = GateFacts {
                closed: closed.iter().map(|gate| Text::from(*gate)).collect(),
                shown: None,
            };
            let change = |pod: &mut PodFacts| {
                pod.ready = ready;
                pod.gate = Some(Box::new(gate));
            };
            pod("p").change(change).facts()
        };
        let passing = gated(Tristate::True, &[]);
        assert_eq!(status(&passing, &spec), Some(Health::Passing));
        let unready = gated(Tristate::False, &[]);
        assert_eq!(status(&unready, &spec), Some(Health::Critical));
        let closed = gated(Tristate::True, &["example.com/lb", "example.com/dns"]);
        let check = readiness(&closed, &spec).unwrap();
        assert_eq!(check.status, Health::Critical);
        let told = "readiness gates that are not True: example.com/lb, example.com/dns";
        assert!(check.output.ends_with(told), "{}", check.output);
    }

    #[test]
    fn the_worst_of_several_healths_counts() {
        let both = pod("p")
            .not_ready("app", "")
            .change(|pod| pod.deleting = true)
            .facts();
        let spec = InstanceSpec {
            terminating: Terminating::Health(Health::Warning),
            ..InstanceSpec::default()
        };
        assert_eq!(status(&both, &spec), Some(Health::Critical));
        let terminating = pod("p").change(|pod| pod.deleting = true).facts();
        assert_eq!(status(&terminating, &spec), Some(Health::Warning));
    }

    #[test]
    fn a_removal_wins_over_every_health() {
        let spec = InstanceSpec {
            terminating: Terminating::Deregister,
            ..InstanceSpec::default()
        };
        let facts = pod("p")
            .not_ready("app", "")
            .change(|pod| pod.deleting = true)
            .facts();
        assert_eq!(status(&facts, &spec), None);
    }

    #[test]
    fn phase_unknown_counts_as_readiness_unknown() {
        let facts = pod("p").phase(Phase::Unknown).facts();
        assert!(is_registrable(&facts));
        assert_eq!(
            status(&facts, &InstanceSpec::default()),
            Some(Health::Critical)
        );
    }

    #[test]
    fn only_a_running_bound_pod_with_an_address_is_registered() {
        assert!(is_registrable(&pod("p").facts()));
        for phase in [Phase::Pending, Phase::Succeeded, Phase::Failed] {
            assert!(!is_registrable(&pod("p").phase(phase).facts()), "{phase:?}");
        }
        assert!(!is_registrable(&pod("p").ips(&[]).facts()));
        assert!(!is_registrable(
            &pod("p").change(|pod| pod.node = None).facts()
        ));
    }

    #[test]
    fn the_output_names_containers_and_reasons() {
        let facts = pod("p").not_ready("app", "CrashLoopBackOff").facts();
        let check = readiness(&facts, &InstanceSpec::default()).unwrap();
        assert_eq!(
            &*check.output,
            "the pod is not ready (ContainersNotReady): app (CrashLoopBackOff)"
        );
    }

    #[test]
    fn an_output_is_cut_at_a_character() {
        assert_eq!(cut("äöü".to_owned(), 6), "äöü");
        assert_eq!(cut("äöüß".to_owned(), 7), "äö…");
    }

    #[test]
    fn a_node_that_is_lost_or_gone_is_critical() {
        assert_eq!(node_check("n", Some(&node("n"))).status, Health::Passing);
        for ready in [Tristate::False, Tristate::Unknown] {
            let lost = NodeFacts { ready, ..node("n") };
            assert_eq!(node_check("n", Some(&lost)).status, Health::Critical);
        }
        assert_eq!(node_check("n", None).status, Health::Critical);
    }
}
