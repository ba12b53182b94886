//! What Lictor keeps of the Kubernetes objects that it watches: only the fields in use.

use super::text::{Pairs, Text};

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers were started yet; also a pod without a phase.
    Pending,
    /// Bound to a node, at least one container runs.
    Running,
    /// All containers ended with success.
    Succeeded,
    /// All containers ended, at least one with failure; evicted pods too.
    Failed,
    /// The kubelet's state cannot be obtained, or a phase that this version does not know.
    Unknown,
}

/// A three-valued Kubernetes condition; a missing condition is `Unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tristate {
    /// `status: "True"`.
    True,
    /// `status: "False"`.
    False,
    /// `status: "Unknown"`, or no such condition.
    Unknown,
}

/// A declared container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// `name`, where given.
    pub name: Option<Text>,
    /// `containerPort`.
    pub port: u16,
    /// `hostPort`, where given and not 0.
    pub host_port: Option<u16>,
}

/// A container that is not ready, for the output of the readiness check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadyContainer {
    /// The container's name.
    pub name: Text,
    /// Why, e.g. `CrashLoopBackOff`, `Completed`; empty where the kubelet gives none.
    pub reason: Text,
}

/// A Lease, trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFacts {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `spec.renewTime`, as it is written; empty where it was never renewed.
    pub renewed: Text,
    /// Whether its annotation `lictor.io/status` is `critical`.
    pub critical: bool,
}

/// What a pod shows that has the readiness gate [`GateFacts::CONDITION`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateFacts {
    /// Its other readiness gates of which the condition is not True.
    pub closed: Box<[Text]>,
    /// The condition of the gate, if it has one.
    pub shown: Option<GateCondition>,
}

impl GateFacts {
    /// The gate, and the type of its condition.
    pub const CONDITION: &str = "lictor.io/registered";
    /// Longest `message` of the condition that is written or kept, in bytes.
    pub const MESSAGE_BYTES: usize = 1024;

    /// Whether the pod was let through: that is for good.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shown.as_ref().is_some_and(|shown| shown.open)
    }
}

/// The condition [`GateFacts::CONDITION`] of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateCondition {
    /// Whether it is True.
    pub open: bool,
    /// `reason`; not kept of one that is True.
    pub reason: Text,
    /// `message`; not kept of one that is True.
    pub message: Text,
}

/// A pod, trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.namespace`.
    pub namespace: Text,
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.uid`.
    pub uid: Text,
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub created: i64,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.labels`.
    pub labels: Pairs,
    /// `metadata.annotations` without kubectl's copy of the manifest, each value of ours cut to
    /// [`PodFacts::ANNOTATION_BYTES`], of others to [`PodFacts::FOREIGN_ANNOTATION_BYTES`].
    pub annotations: Pairs,
    /// `spec.nodeName`, where bound.
    pub node: Option<Text>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<Text>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Ports of the containers and of restartable init containers, in order of declaration.
    pub ports: Box<[ContainerPort]>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs` in order, else `status.podIP`.
    pub ips: Box<[Text]>,
    /// `status.hostIP`.
    pub host_ip: Option<Text>,
    /// The condition `Ready`, or `ContainersReady` of a pod with our readiness gate: its `Ready` waits for
    /// us.
    pub ready: Tristate,
    /// `reason` of that condition, empty where it has none.
    pub ready_reason: Text,
    /// Of a pod with our readiness gate.
    pub gate: Option<Box<GateFacts>>,
    /// Containers (and restartable init containers) whose status says that they are not ready.
    pub unready: Box<[UnreadyContainer]>,
}

impl PodFacts {
    /// From this length on the value of an annotation of ours is cut, and refused as too long, so
    /// that none is half used. Longer than anything that can be valid.
    pub const ANNOTATION_BYTES: usize = 32 * 1024;
    /// Longest value kept of an annotation that is not in the domain `lictor.io`: these serve only
    /// `${pod.annotations['KEY']}`, whose result is limited to less than this.
    pub const FOREIGN_ANNOTATION_BYTES: usize = 600;
}

/// A Kubernetes node, trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: Text,
    /// The first address of type `InternalIP`.
    pub internal_ip: Option<Text>,
    /// The condition `Ready`.
    pub ready: Tristate,
    /// `reason` of the condition `Ready`, empty where it has none.
    pub ready_reason: Text,
    /// Label `topology.kubernetes.io/region`.
    pub region: Option<Text>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Text>,
}

/// A namespace, trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.uid`.
    pub uid: Text,
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub created: i64,
    /// `metadata.labels`.
    pub labels: Pairs,
}
