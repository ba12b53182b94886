use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::now;

/// The address of the node that a pod says it runs on, unless told otherwise.
const HOST_IP: &str = "172.31.0.1";

/// A pod to be created, and then the handle with which its status is written.
///
/// ```no_run
/// # async fn example(client: kube::Client) -> anyhow::Result<()> {
/// use lictor_testbed::kubelet::TestPod;
///
/// let pod = TestPod::new("shop", "web-0").node("n1").port("http", 8080).ip("10.1.2.3");
/// pod.create_ready(&client).await?;
/// pod.not_ready(&client, "app").await?;
/// pod.delete(&client).await?; // terminating, as with a kubelet that stops its containers
/// pod.finish_deletion(&client).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TestPod {
    namespace: String,
    name: String,
    node: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    finalizers: Vec<String>,
    containers: Vec<Container>,
    gates: Vec<String>,
    host_network: bool,
    host_ips: Vec<String>,
    ips: Vec<String>,
}

#[derive(Debug, Clone)]
struct Container {
    name: String,
    sidecar: bool,
    ports: Vec<Value>,
}

impl TestPod {
    /// A pod with one container, `app`, and neither node nor address.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            finalizers: Vec::new(),
            containers: vec![Container::new("app", false)],
            gates: Vec::new(),
            host_network: false,
            host_ips: vec![HOST_IP.to_owned()],
            ips: Vec::new(),
        }
    }

    /// The handle of a pod that something else created, with the addresses that it has.
    pub fn of(pod: &Pod) -> Self {
        let mut this = Self::new(&pod.namespace().unwrap_or_default(), &pod.name_any());
        if let Some(spec) = &pod.spec {
            this.node.clone_from(&spec.node_name);
            this.host_network = spec.host_network.unwrap_or_default();
            this.containers = spec
                .containers
                .iter()
                .map(|c| Container::new(&c.name, false))
                .collect();
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            this.containers
                .extend(sidecars.map(|c| Container::new(&c.name, true)));
        }
        let gates = pod
            .spec
            .iter()
            .flat_map(|spec| spec.readiness_gates.iter().flatten());
        this.gates = gates.map(|gate| gate.condition_type.clone()).collect();
        let ips = pod
            .status
            .iter()
            .flat_map(|status| status.pod_ips.iter().flatten());
        this.ips = ips.map(|ip| ip.ip.clone()).collect();
        this
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that it runs on; without one it is not scheduled, and deleted at once.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.to_owned());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a finalizer: the pod stays, terminating, until it is taken away.
    #[must_use]
    pub fn finalizer(mut self, name: &str) -> Self {
        self.finalizers.push(name.to_owned());
        self
    }

    /// Adds a container; the ports named next are its own.
    #[must_use]
    pub fn container(mut self, name: &str) -> Self {
        self.containers.push(Container::new(name, false));
        self
    }

    /// Adds a sidecar (an init container that goes on); the ports named next are its own.
    #[must_use]
    pub fn sidecar(mut self, name: &str) -> Self {
        self.containers.push(Container::new(name, true));
        self
    }

    /// Adds a TCP port to the container named last.
    #[must_use]
    pub fn port(self, name: &str, number: u16) -> Self {
        self.any_port(json!({"name": name, "containerPort": number}))
    }

    /// Adds a UDP port to the container named last.
    #[must_use]
    pub fn udp_port(self, name: &str, number: u16) -> Self {
        self.any_port(json!({"name": name, "containerPort": number, "protocol": "UDP"}))
    }

    /// Adds a TCP port that is also open on the node.
    #[must_use]
    pub fn host_port(self, name: &str, number: u16, host: u16) -> Self {
        self.any_port(json!({"name": name, "containerPort": number, "hostPort": host}))
    }

    /// Adds a readiness gate; [`TestPod::condition`] answers it, and [`TestPod::judge_gates`] looks at all.
    #[must_use]
    pub fn readiness_gate(mut self, condition: &str) -> Self {
        self.gates.push(condition.to_owned());
        self
    }

    /// Lets it share its node's network: its addresses are the node's.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The addresses of its node (by default one from 172.31.0.0/16).
    #[must_use]
    pub fn host_ips<S: Into<String>>(mut self, ips: impl IntoIterator<Item = S>) -> Self {
        self.host_ips = ips.into_iter().map(Into::into).collect();
        self
    }

    /// The address that it has once it runs.
    #[must_use]
    pub fn ip(self, ip: &str) -> Self {
        self.ips([ip])
    }

    /// The addresses that it has once it runs: at most one a family, the first is the primary.
    #[must_use]
    pub fn ips<S: Into<String>>(mut self, ips: impl IntoIterator<Item = S>) -> Self {
        self.ips = ips.into_iter().map(Into::into).collect();
        self
    }

    /// Creates it: pending, without an address.
    pub async fn create(&self, client: &Client) -> Result<Pod> {
        let pod = serde_json::from_value(self.manifest()).context("not a pod")?;
        let created = self.api(client).create(&PostParams::default(), &pod).await;
        created.with_context(|| format!("cannot create the pod {}/{}", self.namespace, self.name))
    }

    /// [`TestPod::create`], then [`TestPod::running_ready`].
    pub async fn create_ready(&self, client: &Client) -> Result<Pod> {
        self.create(client).await?;
        self.running_ready(client).await
    }

    /// Makes it running and ready, with its addresses.
    pub async fn running_ready(&self, client: &Client) -> Result<Pod> {
        self.run(client, None).await
    }

    /// Makes a container fail its readiness probe while it runs on.
    pub async fn not_ready(&self, client: &Client, container: &str) -> Result<Pod> {
        self.run(
            client,
            Some((container, json!({"running": {"startedAt": now()}}))),
        )
        .await
    }

    /// Makes a container wait to be started, with a reason such as `CrashLoopBackOff`.
    pub async fn waiting(&self, client: &Client, container: &str, reason: &str) -> Result<Pod> {
        let state = json!({"waiting": {"reason": reason, "message": format!("it is in {reason}")}});
        self.run(client, Some((container, state))).await
    }

    /// Makes it pending, without an address.
    pub async fn pending(&self, client: &Client) -> Result<Pod> {
        let state = json!({"waiting": {"reason": "ContainerCreating"}});
        let status = json!({
            "phase": "Pending",
            "podIP": null,
            "podIPs": null,
            "conditions": self.conditions("False", Some(("ContainersNotReady", "not started"))),
        });
        self.patch_status(
            client,
            self.with_containers(status, |_| (false, state.clone())),
        )
        .await
    }

    /// Ends its containers and gives it a phase that is not Running: `Succeeded`, `Failed`, or
    /// `Unknown`. It keeps its addresses, as with a real kubelet.
    pub async fn phase(&self, client: &Client, phase: &str) -> Result<Pod> {
        let code = i32::from(phase != "Succeeded");
        let state = json!({"terminated": {"exitCode": code, "finishedAt": now()}});
        let reason = if phase == "Succeeded" {
            "PodCompleted"
        } else {
            "PodFailed"
        };
        let status = json!({
            "phase": phase,
            "conditions": self.conditions("False", Some((reason, ""))),
        });
        self.patch_status(
            client,
            self.with_containers(status, |_| (false, state.clone())),
        )
        .await
    }

    /// Gives it other addresses, or none, and changes nothing else.
    pub async fn set_ips(&self, client: &Client, ips: &[&str]) -> Result<Pod> {
        let ips: Vec<_> = ips.iter().map(|&ip| ip.to_owned()).collect();
        self.patch_status(client, addresses(&ips)).await
    }

    /// Sets one condition, such as that of a readiness gate or `Ready` itself, and changes nothing
    /// else; `status` is `True`, `False` or `Unknown`.
    pub async fn condition(&self, client: &Client, kind: &str, status: &str) -> Result<Pod> {
        let condition = json!({"type": kind, "status": status, "lastTransitionTime": now()});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        self.send(client, &patch).await
    }

    /// Sets Ready as a kubelet does: True where `ContainersReady` and the conditions of all gates are.
    pub async fn judge_gates(&self, client: &Client) -> Result<Pod> {
        let pod = self.api(client).get(&self.name).await?;
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let held: BTreeMap<&str, &str> = conditions
            .map(|condition| (&*condition.type_, &*condition.status))
            .collect();
        let is_true = |kind: &str| held.get(kind) == Some(&"True");
        let ready = is_true("ContainersReady") && self.gates.iter().all(|gate| is_true(gate));
        if ready == is_true("Ready") {
            return Ok(pod);
        }
        let (status, reason) = if ready {
            ("True", Value::Null)
        } else {
            ("False", json!("ReadinessGatesNotReady"))
        };
        let condition = json!({
            "type": "Ready", "status": status, "reason": reason, "message": null,
            "lastTransitionTime": now(),
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        self.send(client, &patch).await
    }

    /// Asks for its deletion. With a node, it is terminating from now on and stays until
    /// [`TestPod::finish_deletion`]; without one, or when it has ended, it is gone at once.
    pub async fn delete(&self, client: &Client) -> Result<()> {
        self.api(client)
            .delete(&self.name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Removes it, as the kubelet does when all containers have ended; also its finalizers.
    pub async fn finish_deletion(&self, client: &Client) -> Result<()> {
        let api = self.api(client);
        if !self.finalizers.is_empty() {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            match api.patch(&self.name, &PatchParams::default(), &patch).await {
                // The last finalizer of a pod without grace: it went with the patch.
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
                other => other?,
            };
        }
        match api
            .delete(&self.name, &DeleteParams::default().grace_period(0))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    fn any_port(mut self, port: Value) -> Self {
        if let Some(container) = self.containers.last_mut() {
            container.ports.push(port);
        }
        self
    }

    async fn run(&self, client: &Client, unready: Option<(&str, Value)>) -> Result<Pod> {
        let (ready, cause) = match &unready {
            None => ("True", None),
            Some((name, _)) => (
                "False",
                Some((
                    "ContainersNotReady",
                    format!("containers with unready status: [{name}]"),
                )),
            ),
        };
        let cause = cause
            .as_ref()
            .map(|(reason, message)| (*reason, message.as_str()));
        let ips = if self.host_network {
            &self.host_ips
        } else {
            &self.ips
        };
        let mut status = addresses(ips);
        status["phase"] = json!("Running");
        status["conditions"] = self.conditions(ready, cause);
        let status = self.with_containers(status, |name| match &unready {
            Some((unready, state)) if *unready == name => (false, state.clone()),
            _ => (true, json!({"running": {"startedAt": now()}})),
        });
        self.patch_status(client, status).await
    }

    /// Readiness gates are not asked: a pod that has any is given its Ready condition by hand.
    fn conditions(&self, ready: &str, cause: Option<(&str, &str)>) -> Value {
        let condition = |kind: &str, status: &str, cause: Option<(&str, &str)>| {
            // Without a cause there is none any more.
            let (reason, message) = cause.unzip();
            json!({
                "type": kind, "status": status, "lastTransitionTime": now(),
                "reason": reason, "message": message,
            })
        };
        let gated = ready == "True" && !self.gates.is_empty();
        let gate = gated.then_some(("ReadinessGatesNotReady", "a readiness gate is not met"));
        json!([
            condition("PodScheduled", "True", None),
            condition("Initialized", "True", None),
            condition("ContainersReady", ready, cause),
            condition("Ready", if gated { "False" } else { ready }, gate.or(cause)),
        ])
    }

    fn with_containers(&self, mut status: Value, state: impl Fn(&str) -> (bool, Value)) -> Value {
        let statuses = |sidecar: bool| -> Vec<_> {
            let containers = self.containers.iter().filter(|c| c.sidecar == sidecar);
            let status = containers.map(|container| {
                let (ready, state) = state(&container.name);
                json!({
                    "name": container.name,
                    "ready": ready,
                    "started": ready,
                    "restartCount": 0,
                    "image": "example.com/app:1",
                    "imageID": "",
                    "state": state,
                })
            });
            status.collect()
        };
        status["containerStatuses"] = json!(statuses(false));
        status["initContainerStatuses"] = json!(statuses(true));
        status["hostIP"] = json!(self.host_ips.first());
        let host_ips: Vec<_> = self.host_ips.iter().map(|ip| json!({"ip": ip})).collect();
        status["hostIPs"] = json!(host_ips);
        status["startTime"] = json!(now());
        status
    }

    async fn patch_status(&self, client: &Client, mut status: Value) -> Result<Pod> {
        if self.gates.is_empty() {
            let patch = Patch::Merge(json!({"status": status}));
            return self.send(client, &patch).await;
        }
        // The conditions of its gates are others' and stay; its addresses are its own.
        for list in ["podIPs", "hostIPs"] {
            if let Some(list) = status[list].as_array_mut() {
                list.push(json!({"$patch": "replace"}));
            }
        }
        let patch = Patch::Strategic(json!({"status": status}));
        self.send(client, &patch).await
    }

    async fn send(&self, client: &Client, patch: &Patch<Value>) -> Result<Pod> {
        let sent = self
            .api(client)
            .patch_status(&self.name, &PatchParams::default(), patch)
            .await;
        sent.with_context(|| format!("no status for the pod {}/{}", self.namespace, self.name))
    }

    fn api(&self, client: &Client) -> Api<Pod> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    fn manifest(&self) -> Value {
        let containers = |sidecar: bool| -> Vec<_> {
            let containers = self.containers.iter().filter(|c| c.sidecar == sidecar);
            containers.map(Container::manifest).collect()
        };
        let gates: Vec<_> = self
            .gates
            .iter()
            .map(|gate| json!({"conditionType": gate}))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": self.labels,
                "annotations": self.annotations,
                "finalizers": self.finalizers,
            },
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "readinessGates": gates,
                "containers": containers(false),
                "initContainers": containers(true),
            },
        })
    }
}

impl Container {
    fn new(name: &str, sidecar: bool) -> Self {
        Self {
            name: name.to_owned(),
            sidecar,
            ports: Vec::new(),
        }
    }

    fn manifest(&self) -> Value {
        let mut manifest = json!({
            "name": self.name,
            "image": "example.com/app:1",
            "ports": self.ports,
        });
        if self.sidecar {
            manifest["restartPolicy"] = json!("Always");
        }
        manifest
    }
}

fn addresses(ips: &[String]) -> Value {
    let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    // A list that is absent cannot be compared with one that is empty: null removes it.
    let all = if all.is_empty() {
        Value::Null
    } else {
        json!(all)
    };
    json!({"podIP": ips.first(), "podIPs": all})
}
