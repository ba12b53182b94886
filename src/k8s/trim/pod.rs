//! Pods.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::lenient::{Flag, Int, Obj, Seq, Str};
use super::{Meta, Texts, Trim};
use crate::desired::annotations::DOMAIN;
use crate::model::facts::{
    ContainerPort, GateCondition, GateFacts, Phase, PodFacts, Tristate, UnreadyContainer,
};
use crate::model::text::Text;

/// kubectl's copy of the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec<'a> {
    #[serde(borrow)]
    node_name: Str<'a>,
    #[serde(borrow)]
    service_account_name: Str<'a>,
    host_network: Flag,
    #[serde(borrow)]
    containers: Seq<Obj<Container<'a>>>,
    #[serde(borrow)]
    init_containers: Seq<Obj<Container<'a>>>,
    #[serde(borrow)]
    readiness_gates: Seq<Obj<ReadinessGate<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ReadinessGate<'a> {
    #[serde(borrow)]
    condition_type: Str<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container<'a> {
    #[serde(borrow)]
    name: Str<'a>,
    #[serde(borrow)]
    restart_policy: Str<'a>,
    #[serde(borrow)]
    ports: Seq<Obj<Port<'a>>>,
}

impl Container<'_> {
    /// Whether an init container goes on running beside the others ("sidecar").
    fn restartable(&self) -> bool {
        self.restart_policy.0 == "Always"
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Port<'a> {
    #[serde(borrow)]
    name: Str<'a>,
    #[serde(rename = "containerPort")]
    container: Int,
    #[serde(rename = "hostPort")]
    host: Int,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status<'a> {
    #[serde(borrow)]
    phase: Str<'a>,
    #[serde(borrow, rename = "podIP")]
    pod_ip: Str<'a>,
    #[serde(borrow, rename = "podIPs")]
    pod_ips: Seq<Obj<PodIp<'a>>>,
    #[serde(borrow, rename = "hostIP")]
    host_ip: Str<'a>,
    #[serde(borrow)]
    conditions: Conditions<'a>,
    #[serde(borrow)]
    container_statuses: Seq<Obj<ContainerStatus<'a>>>,
    #[serde(borrow)]
    init_container_statuses: Seq<Obj<ContainerStatus<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodIp<'a> {
    #[serde(borrow)]
    ip: Str<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition<'a> {
    #[serde(borrow)]
    r#type: Str<'a>,
    #[serde(borrow)]
    status: Str<'a>,
    #[serde(borrow)]
    reason: Str<'a>,
    #[serde(borrow)]
    message: Str<'a>,
}

impl Condition<'_> {
    fn status(&self) -> Tristate {
        match &*self.status.0 {
            "True" => Tristate::True,
            "False" => Tristate::False,
            _ => Tristate::Unknown,
        }
    }
}

type Conditions<'a> = Seq<Obj<Condition<'a>>>;

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerStatus<'a> {
    #[serde(borrow)]
    name: Str<'a>,
    ready: Flag,
    #[serde(borrow)]
    state: Obj<ContainerState<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerState<'a> {
    #[serde(borrow)]
    waiting: Obj<Why<'a>>,
    #[serde(borrow)]
    terminated: Obj<Why<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Why<'a> {
    #[serde(borrow)]
    reason: Str<'a>,
}

/// The condition `Ready` and its reason.
pub(super) fn ready<'a>(conditions: &'a Conditions<'_>) -> (Tristate, &'a str) {
    status_and_reason(conditions, "Ready")
}

fn status_and_reason<'a>(conditions: &'a Conditions<'_>, kind: &str) -> (Tristate, &'a str) {
    find(conditions, kind).map_or((Tristate::Unknown, ""), |condition| {
        (condition.status(), &*condition.reason.0)
    })
}

fn find<'a, 'b>(conditions: &'a Conditions<'b>, kind: &str) -> Option<&'a Condition<'b>> {
    let mut conditions = conditions.0.iter().map(|Obj(condition)| condition);
    conditions.find(|condition| condition.r#type.0 == kind)
}

/// What is to be known of a pod that has our readiness gate.
fn gate(spec: &Spec<'_>, status: &Status<'_>, texts: &mut Texts) -> Option<Box<GateFacts>> {
    let gates = || {
        let gates = spec.readiness_gates.0.iter();
        gates.map(|Obj(gate)| &*gate.condition_type.0)
    };
    if !gates().any(|gate| gate == GateFacts::CONDITION) {
        return None;
    }
    let conditions = &status.conditions;
    let is_closed = |gate: &&str| {
        let shown = find(conditions, gate).map(Condition::status);
        *gate != GateFacts::CONDITION && shown != Some(Tristate::True)
    };
    let shown = find(conditions, GateFacts::CONDITION).and_then(|shown| {
        let (reason, message) = match shown.status() {
            Tristate::True => ("", ""),
            Tristate::False => (&*shown.reason.0, &*shown.message.0),
            // We write no such thing: it is to be written anew.
            Tristate::Unknown => return None,
        };
        let limit = message.floor_char_boundary(GateFacts::MESSAGE_BYTES);
        Some(GateCondition {
            open: shown.status() == Tristate::True,
            reason: texts.share(reason),
            message: texts.share(&message[..limit]),
        })
    });
    Some(Box::new(GateFacts {
        closed: gates()
            .filter(is_closed)
            .map(|gate| texts.share(gate))
            .collect(),
        shown,
    }))
}

impl Trim for PodFacts {
    type Resource = Pod;
    type Spec<'de> = Obj<Spec<'de>>;
    type Status<'de> = Obj<Status<'de>>;

    fn trim(
        meta: &Meta<'_>,
        Obj(spec): Obj<Spec<'_>>,
        Obj(status): Obj<Status<'_>>,
        texts: &mut Texts,
    ) -> Self {
        let gate = gate(&spec, &status, texts);
        let (ready, ready_reason) = match &gate {
            None => ready(&status.conditions),
            Some(_) => status_and_reason(&status.conditions, "ContainersReady"),
        };
        Self {
            namespace: texts.share(&meta.namespace.0),
            // These are hardly ever shared.
            name: Text::from(&*meta.name.0),
            uid: Text::from(&*meta.uid.0),
            created: meta.created(),
            deleting: meta.deleting(),
            labels: meta
                .labels
                .0
                .iter()
                .map(|(key, value)| (texts.share(key), texts.share(value)))
                .collect(),
            annotations: meta.annotations(kept, texts),
            node: spec.node_name.some().map(|node| texts.share(node)),
            service_account: spec
                .service_account_name
                .some()
                .map(|account| texts.share(account)),
            host_network: spec.host_network.0.unwrap_or_default(),
            ports: ports(&spec, texts),
            phase: phase(&status.phase),
            ips: ips(&status),
            host_ip: status.host_ip.some().map(|ip| texts.share(ip)),
            ready,
            ready_reason: texts.share(ready_reason),
            gate,
            unready: unready(&spec, &status, texts),
        }
    }
}

fn kept(key: &str, _: &str) -> Option<usize> {
    match key {
        LAST_APPLIED => None,
        _ if key.starts_with(DOMAIN) => Some(PodFacts::ANNOTATION_BYTES),
        _ => Some(PodFacts::FOREIGN_ANNOTATION_BYTES),
    }
}

/// The containers that serve: a sidecar's port must not become the default before the main one's.
fn ports(spec: &Spec<'_>, texts: &mut Texts) -> Box<[ContainerPort]> {
    let sidecars = spec
        .init_containers
        .0
        .iter()
        .filter(|Obj(container)| container.restartable());
    let ports = spec
        .containers
        .0
        .iter()
        .chain(sidecars)
        .flat_map(|Obj(container)| &container.ports.0);
    ports
        .filter_map(|Obj(port)| {
            Some(ContainerPort {
                port: port.container.port()?,
                name: port.name.some().map(|name| texts.share(name)),
                host_port: port.host.port(),
            })
        })
        .collect()
}

fn phase(phase: &Str<'_>) -> Phase {
    match phase.some() {
        None | Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(_) => Phase::Unknown,
    }
}

fn ips(status: &Status<'_>) -> Box<[Text]> {
    let ips: Box<[Text]> = status
        .pod_ips
        .0
        .iter()
        .filter_map(|Obj(ip)| ip.ip.some())
        .map(Text::from)
        .collect();
    if ips.is_empty() {
        status.pod_ip.some().map(Text::from).into_iter().collect()
    } else {
        ips
    }
}

fn unready(spec: &Spec<'_>, status: &Status<'_>, texts: &mut Texts) -> Box<[UnreadyContainer]> {
    let sidecar = |name: &str| {
        spec.init_containers
            .0
            .iter()
            .any(|Obj(init)| init.restartable() && init.name.0 == name)
    };
    let sidecars = status
        .init_container_statuses
        .0
        .iter()
        .filter(|Obj(init)| sidecar(&init.name.0));
    let unready = status
        .container_statuses
        .0
        .iter()
        .chain(sidecars)
        .filter(|Obj(container)| container.ready.0 == Some(false));
    unready
        .map(|Obj(container)| {
            let Obj(state) = &container.state;
            let reason = state
                .waiting
                .0
                .reason
                .some()
                .or(state.terminated.0.reason.some());
            UnreadyContainer {
                name: texts.share(&container.name.0),
                reason: texts.share(reason.unwrap_or_default()),
            }
        })
        .collect()
}
