//! How instances of a service are to be registered, wherever that was said.

use std::time::Duration;

use super::probe::Probes;
use crate::model::entry::{Health, Weights};
use crate::model::text::Text;

/// Which port of a pod an instance gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortChoice {
    /// The only, or the first, declared container port; 0 where none is declared.
    #[default]
    Default,
    /// This number, declared or not.
    Number(u16),
    /// The declared container port of this name.
    Name(Text),
}

/// Which address of a pod an instance gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressChoice {
    /// The pod's own.
    #[default]
    PodIp,
    /// Its node's; a port by name or default is then the `hostPort`.
    HostIp,
}

impl AddressChoice {
    /// The choice that this one is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::PodIp => Self::HostIp,
            Self::HostIp => Self::PodIp,
        }
    }
}

/// What becomes of an instance whose pod is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminating {
    /// It stays registered, with this health.
    Health(Health),
    /// It is removed at once.
    Deregister,
}

/// The shape of instances: all that is said about them before a pod is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceSpec {
    /// The port.
    pub port: PortChoice,
    /// The address.
    pub address: AddressChoice,
    /// Tags, as templates.
    pub tags: Vec<Text>,
    /// Meta, the values as templates.
    pub meta: Vec<(Text, Text)>,
    /// The weights.
    pub weights: Weights,
    /// Whether tags are written at creation only.
    pub enable_tag_override: bool,
    /// Whether instances speak the protocol of the service mesh themselves.
    pub native: bool,
    /// The health of a pod that is not ready.
    pub not_ready: Health,
    /// What becomes of a pod that is being deleted.
    pub terminating: Terminating,
    /// The checks that Lictor runs against every instance.
    pub probes: Probes,
    /// For how long the checks of an instance must be critical before it is deregistered.
    pub deregister_after: Option<Duration>,
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            port: PortChoice::default(),
            address: AddressChoice::default(),
            tags: Vec::new(),
            meta: Vec::new(),
            weights: Weights::default(),
            enable_tag_override: false,
            native: false,
            not_ready: Health::Critical,
            terminating: Terminating::Health(Health::Critical),
            probes: Probes::default(),
            deregister_after: None,
        }
    }
}
