//! Pods.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::lenient::{Flag, Int, Obj, Seq, Str};
use super::{Meta, Texts, Trim};
use crate::desired::annotations::DOMAIN;
use crate::model::facts::{ContainerPort, Phase, PodFacts, Tristate, UnreadyContainer};
use crate::model::text::Text;

/// kubectl's copy of the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec<'a> {
    #[serde(borrow)]
    node_name: Str<'a>,
    host_network: Flag,
    #[serde(borrow)]
    containers: Seq<Obj<Container<'a>>>,
    #[serde(borrow)]
    init_containers: Seq<Obj<Container<'a>>>,
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
    conditions: Seq<Obj<Condition<'a>>>,
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
}

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
pub(super) fn ready<'a>(conditions: &'a Seq<Obj<Condition<'_>>>) -> (Tristate, &'a str) {
    let Some(Obj(ready)) = conditions
        .0
        .iter()
        .find(|Obj(condition)| condition.r#type.0 == "Ready")
    else {
        return (Tristate::Unknown, "");
    };
    let status = match &*ready.status.0 {
        "True" => Tristate::True,
        "False" => Tristate::False,
        _ => Tristate::Unknown,
    };
    (status, &ready.reason.0)
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
        let (ready, ready_reason) = ready(&status.conditions);
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
            host_network: spec.host_network.0.unwrap_or_default(),
            ports: ports(&spec, texts),
            phase: phase(&status.phase),
            ips: ips(&status),
            host_ip: status.host_ip.some().map(|ip| texts.share(ip)),
            ready,
            ready_reason: texts.share(ready_reason),
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
