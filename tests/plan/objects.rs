//! Kubernetes objects in few words, what the index is told of them, and, written down a second time
//! and independently of the code, what Consul is to hold for them.

use std::collections::{BTreeMap, BTreeSet};

use lictor::api::mesh::{Connect, Sidecar, Upstream};
use lictor::api::selector::LabelSelector;
use lictor::api::service_registration as api;
use lictor::api::{RegistrationObject, ServiceRegistrationSpec};
use lictor::desired::registration::Registration;
use lictor::model::facts::{ContainerPort, NodeFacts, Phase, PodFacts, Tristate};
use lictor::model::text::{Pairs, Text};

pub const SERVICES: [&str; 3] = ["web", "api", "db"];
pub const APPS: [&str; 2] = ["x", "y"];
pub const PODS: usize = 6;
pub const REGISTRATIONS: usize = 4;
pub const NODES: usize = 3;

/// Two namespaces, so that names are equal across them.
pub fn namespace(slot: usize) -> &'static str {
    if slot % 3 == 2 { "bank" } else { "shop" }
}

pub fn consul_node(slot: usize) -> String {
    format!("lictor-a--n{slot}.example")
}

pub const EXTERNAL: &str = "lictor-a-external";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Pending,
    Ready,
    Unready,
    Terminating,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Paused,
    /// Of a pod: a port that is none. Of a registration: it cannot be decoded.
    Invalid,
    /// Of a pod: a name in the list of services that is none.
    BadList,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub node: usize,
    pub state: State,
    pub app: Option<usize>,
    pub version: Option<u8>,
    pub services: BTreeSet<usize>,
    pub port: Option<u16>,
    pub tag: Option<u8>,
    pub warning: bool,
    pub deregister: bool,
    pub fault: Fault,
    /// Which pod of this name it is.
    pub life: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Select(usize),
    Endpoints(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reg {
    pub created: i64,
    pub service: usize,
    pub source: Source,
    pub tag: Option<u8>,
    pub warning: bool,
    pub deregister: bool,
    pub mesh: Mesh,
    pub fault: Fault,
    pub life: u32,
}

/// How it takes part in the service mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    None,
    Native,
    /// With this many upstreams.
    Sidecar(u16),
}

impl Mesh {
    fn connect(self) -> Option<Connect> {
        match self {
            Self::None => None,
            Self::Native => Some(Connect {
                native: Some(true),
                sidecar: None,
            }),
            Self::Sidecar(upstreams) => {
                let upstream = |number: u16| Upstream {
                    service: format!("up{number}"),
                    local_port: 9000 + number,
                    ..Upstream::default()
                };
                let sidecar = Sidecar {
                    port: 20000,
                    upstreams: (0..upstreams).map(upstream).collect(),
                };
                Some(Connect {
                    native: None,
                    sidecar: Some(sidecar),
                })
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub ready: bool,
    pub zone: Option<u8>,
}

/// All objects by their slots, which are their names.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub pods: BTreeMap<usize, Pod>,
    pub regs: BTreeMap<usize, Reg>,
    pub nodes: BTreeMap<usize, Node>,
}

fn pairs(pairs: Vec<(String, String)>) -> Pairs {
    let shared = |(key, value): (String, String)| (Text::from(key), Text::from(value));
    pairs.into_iter().map(shared).collect()
}

impl Pod {
    fn ip(&self, slot: usize) -> String {
        format!("10.{}.{slot}.{}", self.node, self.life)
    }

    pub fn runs(&self) -> bool {
        matches!(
            self.state,
            State::Ready | State::Unready | State::Terminating
        )
    }

    pub fn facts(&self, slot: usize) -> PodFacts {
        let mut labels = Vec::new();
        labels.extend(self.app.map(|app| ("app".into(), APPS[app].into())));
        labels.extend(self.version.map(|v| ("version".into(), format!("v{v}"))));
        let mut annotations = Vec::new();
        let mut annotate =
            |key: &str, value: String| annotations.push((format!("lictor.io/{key}"), value));
        let mut services: Vec<&str> = self.services.iter().map(|s| SERVICES[*s]).collect();
        if self.fault == Fault::BadList {
            services.push("Bad_Name");
        }
        if !services.is_empty() {
            annotate("service", services.join(","));
        }
        match (self.fault, self.port) {
            (Fault::Invalid, _) => annotate("port", "70000".into()),
            (_, Some(port)) => annotate("port", port.to_string()),
            _ => {}
        }
        if let Some(tag) = self.tag {
            annotate("tags", format!("t{tag}, ${{pod.labels['version']}}"));
        }
        if self.warning {
            annotate("not-ready", "Warning".into());
        }
        if self.deregister {
            annotate("terminating", "Deregister".into());
        }
        if self.fault == Fault::Paused {
            annotate("paused", "true".into());
        }
        let running = self.runs();
        PodFacts {
            namespace: namespace(slot).into(),
            name: format!("p{slot}").into(),
            uid: self.uid(slot).into(),
            created: 5,
            deleting: self.state == State::Terminating,
            labels: pairs(labels),
            annotations: pairs(annotations),
            node: (self.state != State::Pending).then(|| format!("n{}.example", self.node).into()),
            service_account: None,
            host_network: false,
            ports: Box::new([ContainerPort {
                name: Some("http".into()),
                port: 8080,
                host_port: None,
            }]),
            phase: match self.state {
                State::Pending => Phase::Pending,
                State::Failed => Phase::Failed,
                _ => Phase::Running,
            },
            ips: running
                .then(|| Text::from(self.ip(slot)))
                .into_iter()
                .collect(),
            host_ip: running.then(|| format!("192.168.0.{}", self.node).into()),
            ready: if self.state == State::Unready {
                Tristate::False
            } else {
                Tristate::True
            },
            ready_reason: "".into(),
            gate: None,
            unready: Box::default(),
        }
    }

    fn uid(&self, slot: usize) -> String {
        format!("pod-{slot}-{}", self.life)
    }
}

impl Reg {
    fn uid(&self, slot: usize) -> String {
        format!("reg-{slot}-{}", self.life)
    }

    pub fn registration(&self, slot: usize) -> Registration {
        let (selector, endpoints) = match self.source {
            Source::Select(app) => {
                let label = ("app".to_owned(), APPS[app].to_owned());
                let selector = LabelSelector {
                    match_labels: [label].into(),
                    ..LabelSelector::default()
                };
                (Some(selector), None)
            }
            Source::Endpoints(count) => {
                let endpoint = |n: u8| api::Endpoint {
                    name: format!("e{n}"),
                    address: format!("db{n}.example"),
                    port: Some(5432),
                    ..api::Endpoint::default()
                };
                (None, Some((0..count).map(endpoint).collect()))
            }
        };
        let spec = ServiceRegistrationSpec {
            service: Some(SERVICES[self.service].to_owned()),
            selector,
            endpoints,
            tags: self.tag.map(|tag| format!("r{tag}")).into_iter().collect(),
            meta: [("reg".to_owned(), format!("r{slot}"))].into(),
            health: Some(api::Health {
                not_ready: self.warning.then_some(api::NotReady::Warning),
                terminating: self.deregister.then_some(api::Terminating::Deregister),
                ..api::Health::default()
            }),
            connect: self.mesh.connect(),
            ..ServiceRegistrationSpec::default()
        };
        let spec = match self.fault {
            Fault::Invalid | Fault::BadList => Err(Text::from("spec.port: what is that?")),
            Fault::None | Fault::Paused => Ok(Box::new(spec)),
        };
        let paused = (self.fault == Fault::Paused)
            .then(|| ("lictor.io/paused".to_owned(), "true".to_owned()));
        Registration::of(&RegistrationObject {
            namespace: namespace(slot).into(),
            name: format!("r{slot}").into(),
            uid: self.uid(slot).into(),
            created: self.created,
            generation: 1,
            annotations: pairs(paused.into_iter().collect()),
            spec,
            status: None,
        })
    }
}

impl Node {
    pub fn facts(self, slot: usize) -> NodeFacts {
        NodeFacts {
            name: format!("n{slot}.example").into(),
            internal_ip: Some(format!("192.168.0.{slot}").into()),
            ready: if self.ready {
                Tristate::True
            } else {
                Tristate::False
            },
            ready_reason: "".into(),
            region: None,
            zone: self.zone.map(|zone| format!("z{zone}").into()),
        }
    }
}

/// An instance as it is to be; all of the entry but its indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub service: String,
    pub address: String,
    pub port: i64,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
    /// What it is in the mesh, and beside which instance.
    pub mesh: String,
    pub status: Option<String>,
}

impl Instance {
    /// The proxy beside it.
    fn proxy(&self, id: &str, upstreams: u16) -> Self {
        Self {
            service: format!("{}-sidecar-proxy", self.service),
            port: 20000,
            mesh: format!("connect-proxy {id} {} {upstreams}", self.port),
            ..self.clone()
        }
    }
}

/// An instance, and the proxy beside it.
fn put(
    wanted: &mut BTreeMap<Place, Instance>,
    mesh: Mesh,
    ids: [String; 2],
    mut instance: Instance,
) {
    let [id, beside] = ids;
    let node = instance.meta["lictor-node"].clone();
    match mesh {
        Mesh::None => {}
        Mesh::Native => "native".clone_into(&mut instance.mesh),
        Mesh::Sidecar(upstreams) => {
            let mut proxy = instance.proxy(&id, upstreams);
            // An endpoint has no check, and its proxy has one all the same.
            proxy.status.get_or_insert_with(|| "passing".to_owned());
            wanted.insert((node.clone(), beside), proxy);
        }
    }
    wanted.insert((node, id), instance);
}

/// The place of an instance: node and id.
pub type Place = (String, String);

impl Objects {
    /// What Consul is to hold for objects without a fault. What has one asks for nothing here.
    pub fn wanted(&self) -> BTreeMap<Place, Instance> {
        let mut wanted = BTreeMap::new();
        for (slot, pod) in &self.pods {
            if pod.runs() && pod.fault == Fault::None {
                self.of_pod(*slot, pod, &mut wanted);
            }
        }
        for (slot, reg) in &self.regs {
            if reg.fault == Fault::None {
                of_endpoints(*slot, reg, &mut wanted);
            }
        }
        wanted
    }

    /// The registrations that select a pod, the oldest first.
    fn selecting(&self, slot: usize, pod: &Pod) -> Vec<(usize, &Reg)> {
        let mut selecting: Vec<(usize, &Reg)> = self
            .regs
            .iter()
            .filter(|(of, reg)| {
                let selects = pod.app.is_some_and(|app| reg.source == Source::Select(app));
                selects && reg.fault == Fault::None && namespace(**of) == namespace(slot)
            })
            .map(|(of, reg)| (*of, reg))
            .collect();
        selecting.sort_by_key(|(of, reg)| (reg.created, reg.uid(*of)));
        selecting
    }

    fn of_pod(&self, slot: usize, pod: &Pod, wanted: &mut BTreeMap<Place, Instance>) {
        let selecting = self.selecting(slot, pod);
        for (number, service) in SERVICES.iter().enumerate() {
            let holder = selecting.iter().find(|(_, reg)| reg.service == number);
            if holder.is_none() && !pod.services.contains(&number) {
                continue;
            }
            let reg = holder.map(|(_, reg)| *reg);
            if pod.state == State::Terminating
                && (pod.deregister || reg.is_some_and(|reg| reg.deregister))
            {
                continue;
            }
            let status = match pod.state {
                State::Unready if pod.warning || reg.is_some_and(|reg| reg.warning) => "warning",
                State::Unready | State::Terminating => "critical",
                _ => "passing",
            };
            let mut tags: Vec<String> = match (pod.tag, reg.and_then(|reg| reg.tag)) {
                (Some(tag), _) => {
                    let version = pod.version.map(|version| format!("v{version}"));
                    [Some(format!("t{tag}")), version]
                        .into_iter()
                        .flatten()
                        .collect()
                }
                (None, tag) => tag.map(|tag| format!("r{tag}")).into_iter().collect(),
            };
            tags.sort();
            let node = consul_node(pod.node);
            let space = namespace(slot);
            let name = format!("p{slot}");
            let owner = match holder {
                Some((of, _)) => format!("ServiceRegistration/{space}/r{of}"),
                None => format!("Pod/{space}/{name}"),
            };
            let mut meta = marks(&node, space, "Pod", &name, &owner, &pod.uid(slot));
            meta.insert(
                "external-k8s-node-name".into(),
                format!("n{}.example", pod.node),
            );
            if let Some((of, _)) = holder {
                meta.insert("reg".into(), format!("r{of}"));
            }
            let instance = Instance {
                service: (*service).to_owned(),
                address: pod.ip(slot),
                port: pod.port.map_or(8080, i64::from),
                tags,
                meta,
                mesh: String::new(),
                status: Some(status.to_owned()),
            };
            let mesh = reg.map_or(Mesh::None, |reg| reg.mesh);
            let ids =
                ["", "-sidecar-proxy"].map(|more| format!("a.{space}.{service}{more}.{name}"));
            put(wanted, mesh, ids, instance);
        }
    }
}

fn of_endpoints(slot: usize, reg: &Reg, wanted: &mut BTreeMap<Place, Instance>) {
    let Source::Endpoints(count) = reg.source else {
        return;
    };
    for number in 0..count {
        let (space, service) = (namespace(slot), SERVICES[reg.service]);
        let name = format!("r{slot}");
        let owner = format!("ServiceRegistration/{space}/{name}");
        let kind = "ServiceRegistration";
        let mut meta = marks(EXTERNAL, space, kind, &name, &owner, &reg.uid(slot));
        meta.insert("reg".into(), name.clone());
        let id = |more| format!("a.{space}.{service}{more}.{name}.e{number}");
        let instance = Instance {
            service: service.to_owned(),
            address: format!("db{number}.example"),
            port: 5432,
            tags: reg.tag.map(|tag| format!("r{tag}")).into_iter().collect(),
            meta,
            mesh: String::new(),
            status: None,
        };
        put(wanted, reg.mesh, ["", "-sidecar-proxy"].map(id), instance);
    }
}

fn marks(
    node: &str,
    space: &str,
    kind: &str,
    name: &str,
    owner: &str,
    uid: &str,
) -> BTreeMap<String, String> {
    [
        ("external-source", "kubernetes"),
        ("external-k8s-ns", space),
        ("external-k8s-ref-kind", kind),
        ("external-k8s-ref-name", name),
        ("lictor-cluster", "a"),
        ("lictor-node", node),
        ("lictor-owner", owner),
        ("lictor-uid", uid),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}
