//! Builders of Kubernetes facts for unit tests.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::index::Index;
use crate::api::object::Object;
use crate::model::facts::{
    ContainerPort, NamespaceFacts, NodeFacts, Phase, PodFacts, Tristate, UnreadyContainer,
};
use crate::model::text::{Pairs, Text};
use crate::policy::admission::Memory;
use crate::policy::ledger::Ledger;
use crate::policy::names::Moment;
use crate::policy::{Admission, DefaultPolicy};

/// An object of ours of namespace `shop`, whose uid is its name.
pub(crate) fn object<S: DeserializeOwned, T>(name: &str, spec: Value) -> Object<S, T> {
    Object {
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        created: 1,
        generation: 1,
        annotations: Pairs::default(),
        spec: Ok(Box::new(serde_json::from_value(spec).unwrap())),
        status: None,
    }
}

/// From now on claims in the namespace `shop` are judged by this rule, and Consul keeps nothing of names.
pub(crate) fn judge(index: &mut Index, rule: DefaultPolicy, now: Instant) {
    index.admission = Admission::new(rule, Duration::from_hours(1));
    index.apply_namespace(NamespaceFacts {
        name: "shop".into(),
        uid: "u".into(),
        created: 1,
        labels: Pairs::default(),
    });
    let moment = Moment { now, wall: 1 };
    let none = Ledger::default();
    index.admission.settle(
        Ok(&none),
        BTreeSet::new(),
        Memory::Superseded,
        moment,
        &index.watches,
    );
}

/// A pod that runs and is ready on node `n1` in namespace `shop`, to be varied.
pub(crate) struct PodFixture(PodFacts);

pub(crate) fn pod(name: &str) -> PodFixture {
    PodFixture(PodFacts {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        created: 100,
        deleting: false,
        labels: Pairs::default(),
        annotations: Pairs::default(),
        node: Some("n1".into()),
        service_account: None,
        host_network: false,
        ports: Box::default(),
        phase: Phase::Running,
        ips: Box::new(["10.0.0.1".into()]),
        host_ip: Some("192.168.0.1".into()),
        ready: Tristate::True,
        ready_reason: "".into(),
        gate: None,
        unready: Box::default(),
    })
}

fn with(pairs: &Pairs, key: &str, value: &str) -> Pairs {
    let added = (Text::from(key), Text::from(value));
    pairs
        .iter()
        .map(|(k, v)| (k.clone(), v.clone()))
        .chain([added])
        .collect()
}

impl PodFixture {
    pub(crate) fn facts(self) -> PodFacts {
        self.0
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.labels = with(&self.0.labels, key, value);
        self
    }

    /// An annotation of ours, named without its domain.
    pub(crate) fn lictor(mut self, key: &str, value: &str) -> Self {
        self.0.annotations = with(&self.0.annotations, &format!("lictor.io/{key}"), value);
        self
    }

    pub(crate) fn port(mut self, name: &str, port: u16, host_port: Option<u16>) -> Self {
        let name = (!name.is_empty()).then(|| name.into());
        let mut ports = self.0.ports.into_vec();
        ports.push(ContainerPort {
            name,
            port,
            host_port,
        });
        self.0.ports = ports.into();
        self
    }

    pub(crate) fn ips(mut self, ips: &[&str]) -> Self {
        self.0.ips = ips.iter().map(|ip| Text::from(*ip)).collect();
        self
    }

    pub(crate) fn phase(mut self, phase: Phase) -> Self {
        self.0.phase = phase;
        self
    }

    pub(crate) fn not_ready(mut self, container: &str, reason: &str) -> Self {
        self.0.ready = Tristate::False;
        self.0.ready_reason = "ContainersNotReady".into();
        self.0.unready = Box::new([UnreadyContainer {
            name: container.into(),
            reason: reason.into(),
        }]);
        self
    }

    pub(crate) fn change(mut self, change: impl FnOnce(&mut PodFacts)) -> Self {
        change(&mut self.0);
        self
    }
}

pub(crate) fn node(name: &str) -> NodeFacts {
    NodeFacts {
        name: name.into(),
        internal_ip: Some("192.168.0.1".into()),
        ready: Tristate::True,
        ready_reason: "KubeletReady".into(),
        region: None,
        zone: None,
    }
}
